"""Weights in a model's folder, compared with its configs before anything is loaded.

diffusers fills what a file lacks with random numbers and says so in its log alone; here it is an error. Only the
files' headers are read.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX
from transformers import T5EncoderModel

from flashvideo.models.checkpoint import Checkpoint, read_json, weight_files
from flashvideo.models.convert_text import load_text_config, open_text_encoder, plan_text_encoder
from flashvideo.models.lora import PEFT_PREFIX
from flashvideo.models.strictness import misfits, raise_if
from flashvideo.models.transformer import FlashVideoTransformer3DModel
from flashvideo.pipelines.cache import INDEX

_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
_DIFFUSERS_CLASSES = {cls.__name__: cls for cls in (FlashVideoTransformer3DModel, AutoencoderKLCogVideoX)}


def open_whole(folder: Path, cls: Any, *adapter: Path) -> Checkpoint:
    """Opens a model's weights and compares them with the model's config.

    Args:
        folder: The model's own folder.
        cls: Its class, of diffusers' kind.
        adapter: Files of a LoRA to open with them.

    Returns:
        The weights, and those of the adapter.

    Raises:
        ValueError: If a weight is missing, unknown or mis-shaped.
    """
    read_json(folder / "config.json")
    sources = Checkpoint(*weight_files(folder, *_WEIGHTS), *adapter)
    with torch.device("meta"):
        model = cls.from_config(cls.load_config(folder))
    own = {name: tensor for name, tensor in sources.specs.items() if not name.startswith(PEFT_PREFIX)}
    raise_if(misfits(own, model.state_dict()), f"{folder} is not a whole {cls.__name__}")
    return sources


def check_whole(folder: Path, *, given: Collection[str] = ()) -> None:
    """Checks that a pipeline's transformers, VAE and text encoder have all of their weights.

    Args:
        folder: The pipeline's folder.
        given: Components that are not loaded from it.

    Raises:
        ValueError: If a weight is missing, unknown or mis-shaped.
    """
    for name, entry in read_json(folder / INDEX).items():
        if name in given or not isinstance(entry, list):
            continue
        kind = entry[-1] if entry else None
        if kind in _DIFFUSERS_CLASSES:
            open_whole(folder / name, _DIFFUSERS_CLASSES[kind])
        elif kind == T5EncoderModel.__name__:
            config = load_text_config(folder / name)
            try:
                plan_text_encoder(open_text_encoder(folder / name).specs, config)
            except ValueError as error:
                raise ValueError(f"{folder / name}: {error}") from None
