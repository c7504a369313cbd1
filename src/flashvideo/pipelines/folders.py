"""From a model's name to its folder: the one inside the package, a folder of the user's, or one from the hub."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch

from flashvideo.pipelines.cache import is_complete
from flashvideo.pipelines.hub import fetch_model
from flashvideo.presets import FLASHVIDEO, NANO, RELEASED_FILES, RELEASED_REPOSITORY

NANO_PATH = Path(__file__).parents[1] / "assets" / "nano"
"""Folder of the model that ships inside the package."""

MODELS: Mapping[str, Path | str] = {NANO.name: NANO_PATH, FLASHVIDEO.name: RELEASED_REPOSITORY}
"""Models that have a name, and their folders or repositories."""

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def model_folder(
    model: str | Path,
    *,
    revision: str | None = None,
    text_encoder: str | Path | None = None,
    dtype: torch.dtype | None = None,
    pipeline: str | None = None,
) -> Path:
    """Finds the folder of a model, which for a repository of the hub may mean to download and to convert it.

    Args:
        model: A name in `MODELS`, a path, or a repository such as `"FoundationVision/FlashVideo"`. A name wins over a
            folder of the same name (write `./nano` for that), and a folder over a repository.
        revision: Branch, tag or commit of the repository; its newest if None.
        text_encoder: Repository or folder of the text encoder, for released checkpoints, which come without.
        dtype: Dtype to convert released checkpoints to; as they are if None.
        pipeline: A pipeline's class that a repository may be of, besides those that are known.

    Returns:
        The folder, which holds a `model_index.json`.

    Raises:
        ValueError: If `model` is none of these, or cannot be had; and for options that a local folder does not take.
    """
    named = MODELS.get(str(model), model)
    folder = Path(named).expanduser()
    if is_complete(folder):
        given = {"revision": revision, "text_encoder": text_encoder}
        for name in (name for name, value in given.items() if value is not None):
            raise ValueError(
                f"{name} is for models of the hub, but {str(model)!r} is a folder on this machine; drop it"
            )
        return folder
    if is_repository(model):
        return fetch_model(
            str(named), revision=revision, text_encoder=text_encoder, dtype=dtype, pipeline=pipeline
        )
    if all((folder / name).is_file() for name in RELEASED_FILES):
        raise ValueError(
            f"{str(model)!r} holds checkpoints as the authors released them; convert them once, with "
            f"`flashvideo convert {model} -o NEW_FOLDER`, and give the new folder"
        )
    known = ", ".join(repr(name) for name in MODELS)
    problem = "which has no model_index.json" if folder.is_dir() else "and there is no such folder"
    raise ValueError(
        f"model must be one of {known}, a folder with a model_index.json or a repository of the hub such as "
        f"{RELEASED_REPOSITORY!r}, got {str(model)!r}, {problem}"
    )


def is_repository(model: str | os.PathLike[str]) -> bool:
    """Whether a model's name stands for a repository of the hub, and not for what is on this machine."""
    named = MODELS.get(str(model), model)
    if not isinstance(named, str) or Path(named).expanduser().is_dir():
        return False
    return _REPOSITORY.fullmatch(named) is not None
