"""Latents and text embeddings that `flashvideo.training.precompute` computed once, as training data.

    DIR/precomputed.json                     all that decides what is in the folder
    DIR/text/00000.safetensors ...           `embeddings` (N, L, D); the header has their N prompts
    DIR/phase_1/00000.safetensors ...        by sample: `3.clean` (f, C, h, w), the posterior's mean, and at Stage II
                                             `3.degraded` (K, f, C, h, w), samples of the posteriors of K versions; the
                                             header has captions, which versions are strong, and what was skipped

All latents are multiplied by the latent scale. A sample's number is ``view * items + item`` of the phase's
`ClipDataset`. Phases that differ in nothing that decides their samples share one folder. "No text" is zeros and not
stored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from flashvideo.data.clips import ClipDataset
from flashvideo.data.clips.files import ClipError
from flashvideo.degradations.pixel import PixelDegradation
from flashvideo.text import with_prefix
from flashvideo.training.clip_data import CACHE, deal_clips, is_held_out, phase_clips
from flashvideo.training.descriptions import DECODES_ONLY, read_description, weights_fingerprint
from flashvideo.training.draws import sample_seed
from flashvideo.training.samples import held_out_share, shapes_of_phase
from flashvideo.training.stage_recipes import Stage1Recipe, Stage2Recipe, image_share
from flashvideo.training.starts import trains_text

FORMAT = 2
"""Of the folder: to be raised when what is in it changes."""

COMMAND = "flashvideo precompute"
DESCRIPTION = "precomputed.json"
TEXT = "text"

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
    assert recipe.data is not None
    about: dict[str, Any] = {
        "format": FORMAT,
        "task": recipe.task,
        "vae": weights_fingerprint(vae, without=DECODES_ONLY),
        "latent_scale": float(vae.config.scaling_factor),
        "text_encoder": None if text_encoder is None else weights_fingerprint(text_encoder),
        "max_text_tokens": max_text_tokens,
        "dtype": "float16" if recipe.bf16 else "float32",
        "seed": recipe.seed,
        "held_out": held_out_share(recipe),
    }
    if isinstance(recipe, Stage2Recipe):
        about |= {
            "vae": weights_fingerprint(vae),  # round trips go through its decoder
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
    recipe: Stage1Recipe | Stage2Recipe, clips: ClipDataset, *, has_text: bool
) -> dict[int, str]:
    """What the text encoder reads of each item that is trained on; without one all prompts are empty.

    Args:
        recipe: Of the training.
        clips: Of a phase.
        has_text: Whether there is a text encoder, frozen or in training.
    """
    share = held_out_share(recipe)
    items = [item for item in range(len(clips)) if not is_held_out(clips.key(item), share)]
    if not has_text:
        return dict.fromkeys(items, "")
    prefix = recipe.prompt_prefix if isinstance(recipe, Stage2Recipe) else ""
    return {
        item: prompt_of(_caption(clips, item), prefix)
        for item in tqdm(items, desc="captions", mininterval=1, delay=1)
    }


def _caption(clips: ClipDataset, item: int) -> str:
    try:
        return clips.caption(item)
    except (ClipError, OSError):  # for the same reason there will be no sample
        return ""


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


def step_latents(
    recipe: Stage1Recipe | Stage2Recipe,
    phase_index: int,
    clips_per_step: int,
    *,
    models: Mapping[str, Any],
    temporal: int,
    text_channels: int,
) -> StepLatents:
    """The samples of a phase that the recipe's `precomputed` folder holds.

    Args:
        recipe: With `data` and `precomputed`.
        phase_index: Of the phase.
        clips_per_step: Of all processes and accumulated batches.
        models: What `describe_models` tells of what the latents must have been made by. Without a text encoder there
            samples have prompts instead of embeddings if one is trained, and zeros if not.
        temporal: The VAE's compression in time.
        text_channels: Of an embedding.

    Raises:
        ValueError: If the folder was made of or by something else, or is not finished.
    """
    folder = Path(recipe.precomputed)
    found = read_description(folder / DESCRIPTION, COMMAND)
    if found is None:
        raise ValueError(
            f"precomputed must be a folder that flashvideo precompute made, got {folder} without {DESCRIPTION}"
        )
    clips = clips_of_phase(recipe, phase_index, temporal)
    learns_text = isinstance(recipe, Stage1Recipe) and trains_text(recipe)
    prompts = phase_prompts(recipe, clips, has_text=learns_text or models["text_encoder"] is not None)
    number = str(phase_index + 1)
    phase = describe_phase(recipe, phase_index, clips) | {"captions": hash_prompts(prompts)}
    differing = difference({**models, "phases": {number: phase}}, found)
    if differing:
        raise ValueError(
            f"{folder} was computed for another recipe ({differing}); run flashvideo precompute into a new folder"
        )
    shape = models["max_text_tokens"], text_channels
    texts = None if learns_text else TextShards(folder / TEXT, found["shards"][TEXT], shape)
    home = found["phases"][number]["folder"]
    return StepLatents(
        folder / home,
        found["shards"][home],
        clips,
        clips_per_step,
        image_share=image_share(recipe.phases[phase_index]),
        held_out=models["held_out"],
        views=found["views"],
        texts=texts,
        prefix=recipe.prompt_prefix if isinstance(recipe, Stage2Recipe) else "",
    )


class TextShards:
    """Embeddings by prompt.

    Args:
        folder: Of their shards.
        count: How many there must be; none without a text encoder, when every prompt is no text.
        shape: (L, D), of the zeros that stand for no text.
    """

    def __init__(self, folder: Path, count: int, shape: tuple[int, int]) -> None:
        self.count, self.shape = count, shape
        self._places = {
            prompt: (path, row)
            for path in whole_shards(folder, count)
            for row, prompt in enumerate(json.loads(shard_header(path)["prompts"]))
        }

    def __contains__(self, prompt: str) -> bool:
        return not prompt or not self.count or prompt in self._places

    def __getitem__(self, prompt: str) -> Tensor:
        """(L, D); of no text zeros."""
        if not prompt or not self.count:
            return torch.zeros(self.shape)
        path, row = self._places[prompt]
        with safe_open(path, "pt") as shard:
            embedding: Tensor = shard.get_slice("embeddings")[row]
        return embedding.float()


class StepLatents(Dataset):
    """The samples of a phase: `dataset[step, place]`.

    A sample is (latents, text): latents (f, C, h, w), at Stage II (2, f, C, h, w) with z_hq before z_lq; text is the
    embedding (L, D), or the caption where the text encoder is trained too.

    Args:
        folder: Of the phase's shards.
        count: How many there must be.
        clips: The phase's, whose pixels are not read.
        clips_per_step: Of all processes and accumulated batches.
        image_share: Share of the steps that are of pictures.
        held_out: Share of clips that is left out.
        views: Stored views of each clip.
        texts: Embeddings; None for captions.
        prefix: Put before each caption.

    Raises:
        ValueError: If shards are missing, or nothing is left to train on.
    """

    def __init__(
        self,
        folder: Path,
        count: int,
        clips: ClipDataset,
        clips_per_step: int,
        *,
        image_share: float,
        held_out: float,
        views: int,
        texts: TextShards | None,
        prefix: str = "",
    ) -> None:
        self.clips, self.texts, self.prefix = clips, texts, prefix
        self._places: dict[int, Path] = {}
        self._captions: dict[int, str] = {}
        for path in whole_shards(folder, count):
            header = shard_header(path)
            for number, about in json.loads(header["samples"]).items():
                self._places[int(number)], self._captions[int(number)] = path, about["caption"]
            clips.skipped.update(json.loads(header["skipped"]))
        # A clip is there with all of its views or not at all.
        self._views = [view * len(clips) for view in range(views)]
        self.sampler = deal_clips(
            clips,
            clips_per_step,
            image_share=image_share,
            keep=lambda item: (
                all(first + item in self._places for first in self._views)
                and not is_held_out(clips.key(item), held_out)
            ),
            reason=f"of the {len(clips)} clips, what could be read and data.held_out, {held_out},",
        )
        missing = [self._captions[number] for number in self._captions if not self._has_text(number)]
        if missing:
            raise ValueError(
                f"{folder.parent} lacks text embeddings, the first that of {missing[0]!r}; run flashvideo precompute "
                "again to finish it"
            )
        self._step: tuple[int, list[int]] = (-1, [])

    def __getitem__(self, index: tuple[int, int]) -> tuple[Tensor, Tensor | str]:
        step, place = index
        if self._step[0] != step:
            self._step = step, self.sampler.batch(step)
        dealt = self._step[1][place]
        rng = np.random.default_rng([self.clips.seed, dealt])
        number = self._views[rng.integers(len(self._views))] + dealt % len(self.clips)
        with safe_open(self._places[number], "pt") as shard:
            latents: Tensor = shard.get_tensor(f"{number}.clean")
            if f"{number}.degraded" in shard.keys():  # noqa: SIM118
                versions = shard.get_slice(f"{number}.degraded")
                latents = torch.stack((latents, versions[int(rng.integers(versions.get_shape()[0]))]))
        if self.texts is None:
            return latents, self._captions[number]
        return latents, self.texts[self._prompt(number)]

    def _prompt(self, number: int) -> str:
        return prompt_of(self._captions[number], self.prefix)

    def _has_text(self, number: int) -> bool:
        return self.texts is None or self._prompt(number) in self.texts


def prompt_of(caption: str, prefix: str) -> str:
    """What the text encoder reads; empty for no text."""
    return with_prefix(caption, prefix) if caption else ""


def shard_path(folder: Path, number: int) -> Path:
    """Where shard `number` lies."""
    return folder / f"{number:05}.safetensors"


def whole_shards(folder: Path, count: int) -> list[Path]:
    """All shards of a folder.

    Raises:
        ValueError: If one is missing.
    """
    paths = [shard_path(folder, number) for number in range(count)]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise ValueError(
            f"{folder} lacks {len(missing)} of {count} shards, the first {missing[0].name}; run flashvideo precompute "
            "again to finish it"
        )
    return paths


def shard_header(path: Path) -> dict[str, str]:
    """What a shard says about itself.

    Raises:
        ValueError: If it cannot be read.
    """
    try:
        with safe_open(path, "pt") as shard:
            header: dict[str, str] = shard.metadata()
            return header
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); delete it and run flashvideo precompute again"
        ) from None


def pixel_degradation(recipe: Stage1Recipe | Stage2Recipe) -> PixelDegradation:
    """What low quality is made by; Stage I has none and gets the published one, which it does not use."""
    return recipe.pixel_degradation() if isinstance(recipe, Stage2Recipe) else PixelDegradation()
