"""What a finished run was trained on and beside, and whether that is the model that it is to become a part of.

The run's `recipe.yaml` tells. Weights are compared in the dtype of the model, those of the VAE without its decoder,
which may have been trained further. What was trained on folders that are gone cannot be compared, which is said.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX
from torch import nn
from transformers import T5EncoderModel

from flashvideo.models.cogvideox import is_cogvideox, load_cogvideox_transformer
from flashvideo.models.transformer import FlashVideoTransformer3DModel
from flashvideo.presets import Preset
from flashvideo.training.config import Recipe
from flashvideo.training.recipes import RECIPE_FILE, PreferenceRecipe, load_recipe
from flashvideo.training.stage_recipes import Stage1Recipe, Stage2Recipe
from flashvideo.training.starts import start_preset, start_vae

logger = logging.getLogger(__name__)


def run_recipe(run: Path, part: str) -> Recipe:
    """The recipe of a run that is to become a part of a model.

    Args:
        run: Output folder of the run, or in it `last` or `best/step_N`.
        part: "vae", "stage1" or "stage2".

    Raises:
        ValueError: If there is none, or it trains another part.
    """
    folder = run.resolve()
    if folder.parent.name == "best":
        folder = folder.parents[1]
    elif folder.name == "last":
        folder = folder.parent
    if not (folder / RECIPE_FILE).is_file():
        raise ValueError(f"{run} must be a finished training run, got a folder without {RECIPE_FILE}")
    recipe = load_recipe(folder / RECIPE_FILE)
    trained = _trained(recipe)
    if trained != part:
        raise ValueError(
            f"--{part} must be a run that trained {part}, got {run}, which trained {trained}; give it as --{trained}"
        )
    return recipe


def check_adapted(recipe: Recipe, own: FlashVideoTransformer3DModel, name: str, base: Path) -> None:
    """Refuse an adapter of other weights than those that it is to be merged into.

    Args:
        recipe: Of the adapter's run.
        own: The model's transformer.
        name: Of its folder.
        base: Folder of the model; an adapter that was trained on it needs no comparison.

    Raises:
        ValueError: If they differ.
    """
    start = Path(recipe.start)
    if start.resolve() == base.resolve() or not _is_there(start):
        return
    trained: nn.Module
    if is_cogvideox(start):
        trained = load_cogvideox_transformer(start / "transformer", dtype=own.dtype)
    else:
        trained = FlashVideoTransformer3DModel.from_pretrained(start / name, torch_dtype=own.dtype)
    _refuse_others("transformer", own, trained, start)


def check_vae(recipe: Recipe, own: AutoencoderKLCogVideoX) -> float | None:
    """Refuse a transformer that was trained on another VAE's latents.

    Args:
        recipe: Of the transformer's run.
        own: The VAE of the model that it becomes a part of.

    Returns:
        The latent scale that it was trained with; None where that is not known any more.

    Raises:
        ValueError: If the VAEs differ.
    """
    named = recipe.vae if isinstance(recipe, Stage1Recipe | Stage2Recipe) else ""
    folder = Path(named) if named else Path(recipe.start) / "vae"
    if not _is_there(folder):
        return None
    scale = None
    if isinstance(recipe, Stage1Recipe | Stage2Recipe):
        trained = start_vae(recipe, torch.device("cpu"))
        scale = float(trained.config.scaling_factor)
    else:
        trained = AutoencoderKLCogVideoX.from_pretrained(folder, torch_dtype=own.dtype)
    _refuse_others("VAE", _encoding(own), _encoding(trained), folder)
    return scale


def check_same_latents(
    name: str, own: AutoencoderKLCogVideoX, trained: AutoencoderKLCogVideoX, base: Path
) -> None:
    """Refuse a VAE of other latents beside a transformer that stays the base's own.

    Args:
        name: Of the transformer.
        own: The base's VAE.
        trained: The one that is to take its place.
        base: Folder of the model.

    Raises:
        ValueError: If they encode otherwise.
    """
    times = [vae.config.temporal_compression_ratio for vae in (own, trained)]
    if times[0] != times[1] or not _equal(_encoding(own), _encoding(trained)):
        raise ValueError(
            f"the run's VAE must encode as that of {base} does, whose {name} stays, but it encodes otherwise; give a "
            f"run that trained {name} on its latents too"
        )


def check_text(recipe: Recipe, own: T5EncoderModel, own_folder: Path) -> None:
    """Refuse a transformer that was trained on another text encoder's embeddings.

    Args:
        recipe: Of the transformer's run.
        own: The text encoder of the model that it becomes a part of.
        own_folder: The folder that has it, which needs no comparison.

    Raises:
        ValueError: If the text encoders differ.
    """
    named = (recipe.text if isinstance(recipe, Stage2Recipe) else "") or recipe.start
    if not named or Path(named).resolve() == own_folder.resolve() or not _is_there(Path(named)):
        return
    folder = Path(named) / "text_encoder"
    if folder.is_dir():  # else trained without text
        trained = T5EncoderModel.from_pretrained(folder, dtype=own.dtype)
        _refuse_others("text encoder", own, trained, folder)


def with_settings(preset: Preset, recipe: Recipe, latent_scale: float | None) -> Preset:
    """A model's numbers, of which those of the stage that a run has trained are as the run had them.

    The noise step stays the model's own where the run's longest clips were trained with it.

    Args:
        preset: The model's.
        recipe: Of the run.
        latent_scale: What `check_vae` found.
    """
    stage = _trained(recipe)
    own = getattr(preset, stage)
    changes: dict[str, Any] = {} if latent_scale is None else {"latent_scale": latent_scale}
    if isinstance(recipe, Stage2Recipe):
        phase = recipe.phases[-1]
        low, high = phase.noise_range(max(phase.lengths or (phase.frames,)))
        noise_step = own.noise_step if low <= own.noise_step <= high else recipe.noise_step_to_watch()
        changes |= {"noise_step": noise_step, "shift": recipe.shift, "prompt_prefix": recipe.prompt_prefix}
    elif isinstance(recipe, PreferenceRecipe) and (start := start_preset(Path(recipe.start))) is not None:
        # Alignment leaves its start's numbers as they are.
        names = ("latent_scale", "noise_step", "shift", "prompt_prefix")
        given = getattr(start, stage)
        changes = {name: getattr(given, name) for name in names if hasattr(given, name)}
    return dataclasses.replace(preset, **{stage: dataclasses.replace(own, **changes)})


def _trained(recipe: Recipe) -> str:
    """What a recipe trains: "vae", "stage1" or "stage2"."""
    return recipe.stage if isinstance(recipe, PreferenceRecipe) else recipe.task


def _is_there(folder: Path) -> bool:
    if not folder.is_dir():
        logger.warning(
            "%s, which the run was trained with, is not there; whether it fits is not known", folder
        )
    return folder.is_dir()


def _encoding(vae: AutoencoderKLCogVideoX) -> nn.ModuleDict:
    """The half of a VAE that makes latents."""
    parts = {"encoder": vae.encoder, "quant_conv": vae.quant_conv}
    return nn.ModuleDict({name: module for name, module in parts.items() if module is not None})


def _refuse_others(what: str, own: nn.Module, trained: nn.Module, folder: Path) -> None:
    if not _equal(own, trained):
        raise ValueError(
            f"the model's {what} must be the one that the run was trained with, in {folder}, but has other weights; "
            "give the model that has it as --base, or its own run too"
        )


def _equal(own: nn.Module, trained: nn.Module) -> bool:
    """Whether weights are the same, in the dtype of the first."""
    ours, theirs = own.state_dict(), trained.state_dict()
    return ours.keys() == theirs.keys() and all(
        torch.equal(tensor, theirs[name].to(tensor.dtype)) for name, tensor in ours.items()
    )
