"""What a finished run says of itself, and its way to the Hugging Face Hub."""

from __future__ import annotations

import json
import logging
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from huggingface_hub import HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from flashvideo import __version__
from flashvideo.pipelines.folders import NANO_PATH
from flashvideo.training.checkpoints import PARTIAL, Progress, put_in_place, write_durably
from flashvideo.training.config import Recipe
from flashvideo.training.recipes import RECIPE_FILE
from flashvideo.training.weights import FIGURES

logger = logging.getLogger(__name__)
CARD = "README.md"
BESIDES = (CARD, "curve.csv", "validation.png", "guess.png")
"""What goes to the hub beside the folders of weights; the last two show held-out clips and what was made of them."""

WHAT = {
    "vae": "causal video VAE",
    "stage1": "Stage I of FlashVideo: a small preview from text",
    "stage2": "Stage II of FlashVideo: a large video from a small one, by flow matching in a few steps",
    "preference": "part of FlashVideo, aligned with preferences",
}


def check_repository(recipe: Recipe) -> None:
    """Refuse a name that no repository can have, before hours of training.

    Raises:
        ValueError: if it is one.
    """
    if not recipe.push_to_hub:
        return
    try:
        validate_repo_id(recipe.push_to_hub)
    except HFValidationError as error:
        raise ValueError(
            f"push_to_hub must be a repository such as name/model, got {recipe.push_to_hub!r}: {error}"
        ) from None


def describe(output: Path, recipe: Recipe, progress: Progress, device: torch.device, processes: int) -> None:
    """Write the model card of a finished run into its output.

    Args:
        output: of the run, with `recipe.yaml` and the figures of the weights that it left.
        recipe: its recipe.
        progress: at its end.
        device: that it ran on.
        processes: how many it ran in.
    """
    base = recipe.start and Path(recipe.start).name
    if recipe.start and Path(recipe.start).resolve() == NANO_PATH.resolve():
        base = "nano"
    data = ModelCardData(
        library_name="diffusers",
        license="apache-2.0" if base == "nano" else None,
        tags=["flashvideo", "video", recipe.task],
    )
    figures = json.loads((output / FIGURES).read_text())
    hours, minutes = divmod(round(progress.seconds / 60), 60)
    facts = [
        f"base: {base or 'none, trained from random weights'}",
        f"steps: {progress.total}, of which these weights had {figures['step']}",
        f"seed: {recipe.seed}",
        f"time: {hours} h {minutes} min of steps",
        f"machine: {processes} x {describe_device(device)}",
        f"software: flashvideo {__version__}, torch {torch.__version__}, Python {sys.version.split()[0]}",
    ]
    licence = "" if base == "nano" else "\nThe licence is for you to choose; that of the base may bind you.\n"
    rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in figures.items() if name != "step")
    card = ModelCard(
        f"---\n{data.to_yaml()}\n---\n\n# {output.resolve().name}\n\n"
        f"A {WHAT.get(recipe.task, recipe.task)}, trained with `flashvideo train`.\n\n"
        + "".join(f"- {fact}\n" for fact in facts)
        + f"{licence}\n## Validation\n\n| figure | value |\n| --- | --- |\n{rows}\n\n"
        + f"## Recipe\n\n```yaml\n{_public_recipe(output)}```\n"
    )
    write_durably(output / (CARD + PARTIAL), str(card))
    put_in_place(output / (CARD + PARTIAL), output / CARD)


def _public_recipe(output: Path) -> str:
    """The recipe in the output as others may read it."""
    settings = yaml.safe_load((output / RECIPE_FILE).read_text())
    return yaml.safe_dump(_without_folders(settings), sort_keys=False)


def _without_folders(settings: object) -> object:
    """The settings with the names alone of what absolute paths lead to: the way there is the machine's own."""
    if isinstance(settings, dict):
        return {key: _without_folders(value) for key, value in settings.items()}
    if isinstance(settings, list):
        return [_without_folders(value) for value in settings]
    if isinstance(settings, str) and (settings.startswith("~") or Path(settings).is_absolute()):
        return Path(settings).name
    return settings


def describe_device(device: torch.device) -> str:
    """The GPU's or the processor's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    processors = Path("/proc/cpuinfo")
    if processors.exists():
        for line in processors.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def push(output: Path, repository: str, parts: Sequence[str]) -> None:
    """Upload what a finished run left, without checkpoints; a new repository is private.

    The recipe goes without the machine's folders. What fails is a warning that says how to try again: the weights are
    safe on the disk.

    Args:
        output: of the run.
        repository: where to.
        parts: files and folders of weights in the output.
    """
    patterns = [f"{name}/*" if (output / name).is_dir() else name for name in parts] + list(BESIDES)
    api = HfApi()
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=output,
            allow_patterns=patterns,
            commit_message="Weights of a finished training",
        )
        api.upload_file(
            repo_id=repository,
            path_or_fileobj=_public_recipe(output).encode(),
            path_in_repo=RECIPE_FILE,
            commit_message="Its recipe",
        )
    except Exception as error:  # hours of training must not end in what an upload may fail by, whatever it is
        include = " ".join(f"--include '{pattern}'" for pattern in patterns)
        logger.warning(
            "%s was not uploaded to %s (%s); nothing is lost, try again by: hf upload %s %s . %s",
            output,
            repository,
            " ".join(str(error).split())[:300] or type(error).__name__,
            repository,
            output,
            include,
        )
    else:
        logger.info("uploaded %s to %s", output, repository)
