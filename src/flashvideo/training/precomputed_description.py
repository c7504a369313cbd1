"""What decides the content of a folder of precomputed latents and embeddings: its description, and what differs.

A folder that was begun with another description is neither added to nor trained on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKLCogVideoX
from torch import nn

from flashvideo.data.clips import ClipDataset
from flashvideo.data.clips.files import ClipFile
from flashvideo.degradations.pixel import PixelDegradation
from flashvideo.text import with_prefix
from flashvideo.training.clip_data import CACHE, is_held_out, phase_clips
from flashvideo.training.descriptions import (
    DECODES_ONLY,
    read_description,
    weights_fingerprint,
    write_description,
)
from flashvideo.training.draws import sample_seed
from flashvideo.training.samples import held_out_share, shapes_of_phase
from flashvideo.training.stage_recipes import Stage1Recipe, Stage2Recipe, image_share

FORMAT = 2
"""Of the folder: to be raised when what is in it changes."""

COMMAND = "flashvideo precompute"
DESCRIPTION = "precomputed.json"
_WORDS = {
    "format": "format of such folders",
    "task": "task",
    "vae": "VAE",
    "latent_scale": "latent scale",
    "text_encoder": "text encoder",
    "max_text_tokens": "text length",
    "prompt_prefix": "prompt_prefix",
    "dtype": "dtype (bf16)",
    "seed": "seed",
    "held_out": "share held out",
    "degradation": "pixel degradation",
    "scale": "scale",
    "views": "number of views",
    "versions": "number of versions",
    "shard_bytes": "size of shards",
    "captions": "captions",
    "clips": "clips, or a size or rate that they are brought to",
    "strong": "share of strong degradation",
    "round_trip": "share of round trips",
    "folder": "number of phases",
}
_HASHES = ("vae", "text_encoder", "clips", "captions")


def describe_models(
    recipe: Stage1Recipe | Stage2Recipe,
    *,
    vae: AutoencoderKLCogVideoX,
    text_encoder: nn.Module | None,
    max_text_tokens: int,
) -> dict[str, Any]:
    """What decides latents and embeddings of all phases, as plain values."""
    # At Stage II round trips go through the VAE's decoder.
    without = () if isinstance(recipe, Stage2Recipe) else DECODES_ONLY
    return describe_settings(recipe, max_text_tokens=max_text_tokens) | {
        "vae": weights_fingerprint(vae, without=without),
        "latent_scale": float(vae.config.scaling_factor),
        "text_encoder": None if text_encoder is None else weights_fingerprint(text_encoder),
    }


def describe_settings(recipe: Stage1Recipe | Stage2Recipe, *, max_text_tokens: int) -> dict[str, Any]:
    """What of `describe_models` is known before any weights are there."""
    assert recipe.data is not None
    about: dict[str, Any] = {
        "format": FORMAT,
        "task": recipe.task,
        "max_text_tokens": max_text_tokens,
        "dtype": "float16" if recipe.bf16 else "float32",
        "seed": recipe.seed,
        "held_out": held_out_share(recipe),
    }
    if isinstance(recipe, Stage2Recipe):
        about |= {
            "prompt_prefix": recipe.prompt_prefix,
            "degradation": asdict(pixel_degradation(recipe)),
            "scale": recipe.scale,
        }
    plain: dict[str, Any] = json.loads(json.dumps(about))
    return plain


def describe_phase(
    recipe: Stage1Recipe | Stage2Recipe, phase_index: int, clips: ClipDataset
) -> dict[str, Any]:
    """What decides the samples of a phase beside `describe_models` and their captions, as plain values."""
    about: dict[str, Any] = {"clips": clips.fingerprint()}
    if isinstance(recipe, Stage2Recipe):
        phase = recipe.phases[phase_index]
        about |= {"strong": phase.strong, "round_trip": phase.round_trip}
    return about


def phase_prompts(
    recipe: Stage1Recipe | Stage2Recipe,
    clips: ClipDataset,
    *,
    has_text: bool,
    captions: dict[ClipFile, str],
) -> dict[int, str]:
    """What the text encoder reads of each item that is trained on; without one all prompts are empty.

    Args:
        recipe: Of the training.
        clips: Of a phase.
        has_text: Whether there is a text encoder, frozen or in training.
        captions: What caption files hold, of phases before; what is read is added.
    """
    share = held_out_share(recipe)
    items = [item for item in range(len(clips)) if not is_held_out(clips.key(item), share)]
    if not has_text:
        return dict.fromkeys(items, "")
    prefix = recipe.prompt_prefix if isinstance(recipe, Stage2Recipe) else ""
    found = clips.captions(items, captions)
    return {item: prompt_of(caption, prefix) for item, caption in zip(items, found, strict=True)}


def hash_prompts(prompts: Mapping[int, str]) -> str:
    """A short hash of `phase_prompts`."""
    told = json.dumps(sorted(prompts.items()))
    return hashlib.sha256(told.encode(errors="surrogateescape")).hexdigest()[:16]


def difference(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """What differs first in two descriptions, in words; empty if `found` has all that is expected."""
    for name, value in expected.items():
        other = found.get(name)
        if other == value:
            continue
        if name == "phases":
            for number, phase in value.items():
                inner = difference(phase, (other or {}).get(number, {}))
                if inner:
                    return f"phase {number}: {inner}"
            continue
        told = all(isinstance(v, int | float | str) for v in (value, other)) and name not in _HASHES
        return _WORDS[name] + (f", {other} instead of {value}" if told else "")
    return ""


def clips_of_phase(
    recipe: Stage1Recipe | Stage2Recipe, phase_index: int, temporal: int, *, cache: Path | None = None
) -> ClipDataset:
    """The clips of a phase, the same in every phase of the same sizes."""
    assert recipe.data is not None
    share = image_share(recipe.phases[phase_index])
    return phase_clips(
        recipe.data,
        shapes=sorted(shapes_of_phase(recipe, phase_index)),
        image_share=0.5 if 0 < share < 1 else share,  # how many steps are of pictures decides no sample
        seed=sample_seed(recipe.seed, 51),
        temporal=temporal,
        cache=cache or Path(recipe.output) / CACHE,
    )


def prompt_of(caption: str, prefix: str) -> str:
    """What the text encoder reads; empty for no text."""
    return with_prefix(caption, prefix) if caption else ""


def pixel_degradation(recipe: Stage1Recipe | Stage2Recipe) -> PixelDegradation:
    """What low quality is made by; Stage I has none and gets the published one, which it does not use."""
    return recipe.pixel_degradation() if isinstance(recipe, Stage2Recipe) else PixelDegradation()


def keep_description(folder: Path, about: dict[str, Any], counts: Mapping[str, int]) -> None:
    """Writes a folder's description; refuses a folder with another one.

    Args:
        folder: Of what is precomputed.
        about: All that decides its content.
        counts: How many shards each folder in it will have.

    Raises:
        ValueError: If it has.
    """
    found = read_description(folder / DESCRIPTION, COMMAND)
    if found is None:
        write_description(folder / DESCRIPTION, about | {"shards": dict(counts)})
        return
    differing = difference(about, found)
    if differing:
        raise ValueError(
            f"{folder} holds what was computed for another recipe ({differing}); choose another folder, or delete it"
        )
