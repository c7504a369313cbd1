"""CogVideoX-2B and 5B, in diffusers' layout, as Stage I: alone, for previews, or before the Stage II of another model.

What a model needs to be the Stage I of another: a VAE that makes latents of the same kind (channels and compression),
because the preview is decoded and encoded again with one VAE, and the same text encoder, because a prompt goes through
it for both stages.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX
from safetensors import safe_open
from transformers import AutoTokenizer, T5EncoderModel

from flashvideo.models.checkpoint import read_json
from flashvideo.models.cogvideox import load_cogvideox_transformer, read_cogvideox_config
from flashvideo.models.convert_text import load_text_config
from flashvideo.pipelines.sizes import upscale_factor
from flashvideo.presets import COGVIDEOX_GUIDANCE_SCALE, FLASHVIDEO, Preset
from flashvideo.schedule import FlashVideoScheduler
from flashvideo.shapes import vae_factors

logger = logging.getLogger(__name__)

COGVIDEOX_PIPELINE = "CogVideoXPipeline"
"""diffusers' class of CogVideoX-2B and 5B."""

_NONE: Mapping[str, Any] = MappingProxyType({})
# Options of diffusers that ask for what is done anyway.
_AS_IT_IS = {"low_cpu_mem_usage": True, "use_safetensors": True, "local_files_only": True}
# Two roundings to bfloat16 or float16 of the same weight differ by less, other weights by more.
_SAME_WEIGHTS = 0.02
# Small weights that tell two models apart without reading them whole.
_FINGERPRINTS = (
    ("vae", "encoder.conv_in.conv.weight"),
    ("vae", "decoder.conv_out.conv.weight"),
    ("text_encoder", "encoder.final_layer_norm.weight"),
)
# What makes two T5 encoders the same model; the rest of their configs does not change what they compute.
_TEXT_KEYS = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads", "feed_forward_proj")


def cogvideox_preset(folder: Path) -> Preset:
    """Defaults of a CogVideoX model: FlashVideo's, with its own size, guidance and latent scale.

    Args:
        folder: A `CogVideoXPipeline` as diffusers stores it.

    Returns:
        The preset, called as the folder or repository. It has no Stage II; that part only says how much larger a
        video would be.
    """
    transformer = read_cogvideox_config(folder / "transformer")
    vae = _config(folder, "vae")
    _, spatial = vae_factors(vae)
    height, width = (int(transformer[f"sample_{side}"]) * spatial for side in ("height", "width"))
    max_text_tokens = int(transformer["max_text_seq_length"])
    stage1 = dataclasses.replace(
        FLASHVIDEO.stage1,
        height=height,
        width=width,
        num_frames=int(transformer["sample_frames"]),
        guidance_scale=COGVIDEOX_GUIDANCE_SCALE,
        guidance_schedule="constant",
        latent_scale=float(vae["scaling_factor"]),
        max_text_tokens=max_text_tokens,
    )
    factor = upscale_factor(FLASHVIDEO)
    stage2 = dataclasses.replace(
        FLASHVIDEO.stage2, height=factor * height, width=factor * width, max_text_tokens=max_text_tokens
    )
    return Preset(name=_name(folder), stage1=stage1, stage2=stage2)


def cogvideox_components(
    folder: Path, *, dtype: torch.dtype | None = None, given: Mapping[str, Any] = _NONE
) -> dict[str, Any]:
    """Loads a CogVideoX model as the components of a `FlashVideoPipeline` without a Stage II.

    Args:
        folder: A `CogVideoXPipeline` as diffusers stores it.
        dtype: Dtype of the weights; as stored if None.
        given: Components that are not loaded, since these take their place; None for one to do without.

    Returns:
        Keyword arguments for `FlashVideoPipeline`.

    Raises:
        ValueError: If the model is of a kind that is not supported.
    """
    options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    makers: dict[str, Callable[[], Any]] = {
        "stage1_transformer": lambda: load_cogvideox_transformer(folder / "transformer", dtype=dtype),
        "stage1_scheduler": lambda: cogvideox_scheduler(folder),
        "tokenizer": lambda: AutoTokenizer.from_pretrained(folder / "tokenizer", trust_remote_code=False),
        "text_encoder": lambda: T5EncoderModel.from_pretrained(folder / "text_encoder", **options),
        "vae": lambda: AutoencoderKLCogVideoX.from_pretrained(folder / "vae", **options),
        "preset": lambda: cogvideox_preset(folder),
    }
    return {name: make() for name, make in makers.items() if name not in given} | dict(given)


def check_cogvideox_options(options: Mapping[str, Any]) -> None:
    """Checks what is given beside components: of diffusers' ways to load, a CogVideoX model takes a dtype alone.

    Args:
        options: Keyword arguments of `from_pretrained` that are no components.

    Raises:
        ValueError: If one asks for what is not done.
    """
    for name, value in sorted(options.items()):
        if name in ("dtype", "torch_dtype"):
            if value is not None and not isinstance(value, torch.dtype):
                raise ValueError(
                    f"{name} must be one torch.dtype for a CogVideoX model, got {value!r}; give torch.bfloat16"
                )
        elif value not in (None, False) and _AS_IT_IS.get(name) is not value:
            raise ValueError(
                f"{name} is not taken for a CogVideoX model, only dtype and components are; drop it, or save the "
                "pipeline with save_pretrained and load that"
            )


def cogvideox_scheduler(folder: Path) -> FlashVideoScheduler:
    """Our sampler on the noise schedule of a CogVideoX model; of the two published ones the 2B's is noisier.

    Raises:
        ValueError: If the schedule is not of the kind that our sampler knows.
    """
    config = _config(folder, "scheduler")
    expected = {
        "beta_schedule": "scaled_linear",
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
    }
    for name, value in expected.items():
        if config.get(name) != value:
            raise ValueError(
                f"the scheduler of {folder} must have {name}={value!r}, got {config.get(name)!r}; "
                "use CogVideoX-2b or CogVideoX-5b"
            )
    names = ("num_train_timesteps", "beta_start", "beta_end", "snr_shift_scale")
    return FlashVideoScheduler(**{name: config[name] for name in names})


def stage1_components(folder: Path, *, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """Loads what a CogVideoX model has that is Stage I's alone: transformer and scheduler.

    Args:
        folder: A `CogVideoXPipeline` as diffusers stores it.
        dtype: Dtype of the weights; as stored if None.

    Returns:
        Keyword arguments for `FlashVideoPipeline`.

    Raises:
        ValueError: If the model is of a kind that is not supported.
    """
    scheduler = cogvideox_scheduler(folder)
    transformer = load_cogvideox_transformer(folder / "transformer", dtype=dtype)
    return {"stage1_transformer": transformer, "stage1_scheduler": scheduler}


def preset_with_stage1(own: Preset, stage1: Preset) -> Preset:
    """Defaults of a model with another Stage I.

    Size, frames and steps of the preview stay those of the model, whose Stage II knows them.

    Args:
        own: The model's preset.
        stage1: The CogVideoX model's, for guidance, latent scale and text length.

    Returns:
        The preset, called after both.
    """
    theirs = stage1.stage1
    if (own.stage1.height, own.stage1.width) != (theirs.height, theirs.width):
        logger.warning(
            "%s was trained on videos of %dx%d, but previews are %dx%d here, as %s has them",
            *(stage1.name, theirs.width, theirs.height, own.stage1.width, own.stage1.height, own.name),
        )
    combined = dataclasses.replace(
        own.stage1,
        guidance_scale=theirs.guidance_scale,
        guidance_schedule=theirs.guidance_schedule,
        latent_scale=theirs.latent_scale,
        max_text_tokens=theirs.max_text_tokens,
    )
    return dataclasses.replace(own, name=f"{own.name}+{stage1.name}", stage1=combined)


def check_stage1_fits(model: Path, stage1: Path) -> None:
    """Checks that a CogVideoX model can be the Stage I of another model; different weights are logged.

    Args:
        model: Folder of a `FlashVideoPipeline`.
        stage1: Folder of a `CogVideoXPipeline`.

    Raises:
        ValueError: If their VAEs make different latents, or their text encoders are different models.
    """
    kinds = [
        (int(config["latent_channels"]), *vae_factors(config))
        for config in (_config(stage1, "vae"), _config(model, "vae"))
    ]
    if kinds[0] != kinds[1]:
        theirs, own = (f"{c} latent channels, {t}x in time, {s}x in space" for c, t, s in kinds)
        raise ValueError(
            f"stage1 must have a VAE of the model's kind, which is {own}, but that of {stage1} is {theirs}"
        )
    _check_same_text_encoder(stage1, model)
    for part, name in _FINGERPRINTS:
        if not _alike(_weight(model / part, name), _weight(stage1 / part, name)):
            logger.warning(
                "the weights of the %s in %s are not the model's; previews may come out wrong", part, stage1
            )


def _check_same_text_encoder(stage1: Path, model: Path) -> None:
    """Compares the text encoders, where both models have one."""
    folders = [folder / "text_encoder" for folder in (stage1, model)]
    if not all(folder.is_dir() for folder in folders):
        return
    text, own_text = (load_text_config(folder) for folder in folders)
    for name in _TEXT_KEYS:
        if getattr(text, name) != getattr(own_text, name):
            raise ValueError(
                f"stage1 must have the model's text encoder, whose {name} is {getattr(own_text, name)}, but that of "
                f"{stage1} is {getattr(text, name)}"
            )


def _alike(weight: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Whether two weights are the same but for rounding; what is not there cannot be told apart."""
    if weight is None or other is None:
        return True
    return weight.shape == other.shape and bool(
        (weight - other).abs().max() <= _SAME_WEIGHTS * other.abs().max()
    )


def _weight(folder: Path, name: str) -> torch.Tensor | None:
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            if name in file.keys():  # noqa: SIM118 - the file is no mapping
                tensor: torch.Tensor = file.get_tensor(name)
                return tensor.float()
    return None


def _name(folder: Path) -> str:
    """A folder's name; of one in `huggingface_hub`'s cache, which is called after its commit, the repository's."""
    folder = folder.absolute()
    return folder.parents[1].name.split("--")[-1] if folder.parent.name == "snapshots" else folder.name


def _config(folder: Path, part: str) -> dict[str, Any]:
    return read_json(folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json"))
