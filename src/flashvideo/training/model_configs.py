"""The configs of what a recipe trains, without weights; where folders are missing, those of models that are known."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKLCogVideoX

from flashvideo.data.captions import vocabulary
from flashvideo.models.checkpoint import read_json
from flashvideo.models.cogvideox import cogvideox_config, is_cogvideox, read_cogvideox_config
from flashvideo.models.transformer import FlashVideoTransformer3DModel
from flashvideo.pipelines.folders import NANO_PATH
from flashvideo.presets import (
    RELEASED_STAGE1_TRANSFORMER,
    RELEASED_STAGE2_TRANSFORMER,
    RELEASED_TEXT_ENCODER,
    RELEASED_VAE,
)
from flashvideo.training.config import Recipe
from flashvideo.training.recipes import VAERecipe
from flashvideo.training.stage_recipes import Stage1Recipe, Stage2Recipe


@dataclass(frozen=True, kw_only=True)
class RecipeConfigs:
    """What takes part in a training.

    Attributes:
        transformer: config of `FlashVideoTransformer3DModel`; empty where the VAE is trained.
        vae: config of `AutoencoderKLCogVideoX`.
        text_encoder: config of the T5 encoder; None without text.
        missing: folders that the recipe names and that are not there; the released model's configs take their place,
            and for a VAE of other channels the shipped one's.
    """

    transformer: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoder: Mapping[str, Any] | None
    missing: tuple[str, ...] = ()


def recipe_configs(recipe: Recipe) -> RecipeConfigs:
    """Reads the configs of what a recipe trains and uses."""
    if isinstance(recipe, VAERecipe):
        return _vae_configs(recipe)
    assert isinstance(recipe, Stage1Recipe | Stage2Recipe)
    start = Path(recipe.start) if recipe.start else None
    named = (recipe.start, recipe.vae, recipe.text if isinstance(recipe, Stage2Recipe) else "")
    missing = tuple(folder for folder in named if folder and not Path(folder).is_dir())
    if start is None:
        transformer = _new_positions(recipe) | recipe.model
    elif not start.is_dir():
        transformer = dict(_released_transformer(recipe))
    else:
        transformer = _start_transformer(recipe, start)
    text = _text_config(recipe)
    if text is not None and start is None and isinstance(recipe, Stage1Recipe):
        transformer["text_embed_dim"] = text["d_model"]
    vae_folder = Path(recipe.vae) if recipe.vae else Path(recipe.start) / "vae"
    return RecipeConfigs(
        transformer=_complete(FlashVideoTransformer3DModel, transformer),
        vae=_vae_config(vae_folder, int(_complete(FlashVideoTransformer3DModel, transformer)["in_channels"])),
        text_encoder=text,
        missing=missing,
    )


def _vae_configs(recipe: VAERecipe) -> RecipeConfigs:
    own: Mapping[str, Any] = {}
    missing: tuple[str, ...] = ()
    if recipe.start:
        own = _read(Path(recipe.start) / "vae") or RELEASED_VAE
        missing = () if Path(recipe.start).is_dir() else (recipe.start,)
    vae = _complete(AutoencoderKLCogVideoX, {**own, **recipe.model})
    return RecipeConfigs(transformer={}, vae=vae, text_encoder=None, missing=missing)


def _vae_config(folder: Path, channels: int) -> dict[str, Any]:
    """The config of a VAE; of one that is not there that of the released or of the shipped one, by its channels.

    Raises:
        ValueError: If neither has so many.
    """
    own = _read(folder)
    if own is not None:
        return _complete(AutoencoderKLCogVideoX, own)
    for config in (RELEASED_VAE, read_json(NANO_PATH / "vae" / "config.json")):
        if config["latent_channels"] == channels:
            return _complete(AutoencoderKLCogVideoX, config)
    raise ValueError(
        f"the recipe's vae {folder} is not there, and no other is known that has the {channels} latent channels of its "
        "model; train it first"
    )


def _released_transformer(recipe: Stage1Recipe | Stage2Recipe) -> Mapping[str, Any]:
    return RELEASED_STAGE1_TRANSFORMER if isinstance(recipe, Stage1Recipe) else RELEASED_STAGE2_TRANSFORMER


def _start_transformer(recipe: Stage1Recipe | Stage2Recipe, start: Path) -> dict[str, Any]:
    """The config of a start's transformer, as training changes it."""
    is_stage1 = isinstance(recipe, Stage1Recipe)
    if is_cogvideox(start):
        config = cogvideox_config(read_cogvideox_config(start / "transformer"))
        embedders = {} if is_stage1 else {"noise_step_embed": True, "num_frames_embed": True}
        return config | embedders | _new_positions(recipe)
    folder = start / ("stage1_transformer" if is_stage1 else "stage2_transformer")
    return dict(_read(folder) or _released_transformer(recipe))


def _new_positions(recipe: Stage1Recipe | Stage2Recipe) -> dict[str, Any]:
    """How a new Stage II, and one from a CogVideoX, marks positions; weights of one's own keep theirs."""
    if isinstance(recipe, Stage1Recipe):
        return {}
    return {"use_rotary_positional_embeddings": recipe.positions != "absolute"}


def _text_config(recipe: Stage1Recipe | Stage2Recipe) -> Mapping[str, Any] | None:
    if isinstance(recipe, Stage1Recipe) and not recipe.start:
        # The word tokenizer knows the procedural world's words and three signs of its own.
        return {"vocab_size": len({word.lower() for word in vocabulary()}) + 3, **recipe.text}
    named = recipe.text if isinstance(recipe, Stage2Recipe) and recipe.text else recipe.start
    if not named:
        return None
    if not Path(str(named)).is_dir():
        return RELEASED_TEXT_ENCODER
    return _read(Path(str(named)) / "text_encoder")


def _read(folder: Path) -> dict[str, Any] | None:
    path = folder / "config.json"
    return read_json(path) if path.is_file() else None


def _complete(model: type[Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with the model's defaults filled in, and nothing that is not the model's."""
    parameters = inspect.signature(model.__init__).parameters
    defaults = {
        name: parameter.default
        for name, parameter in parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    return {**defaults, **{name: value for name, value in config.items() if name in parameters}}
