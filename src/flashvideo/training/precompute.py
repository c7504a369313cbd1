"""Computes latents and text embeddings once, so that training neither decodes, degrades nor encodes.

What is stored is described in `flashvideo.training.precomputed`. Text comes first, so that text encoder and VAE are
never on the device together. Shards are written under a temporary name and moved, and those that are there are not
made again: the same command goes on with what was interrupted, and several processes share the work by their numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from flashvideo.data.clips import ClipDataset
from flashvideo.data.clips.files import ClipFile
from flashvideo.data.clips.samples import ClipSample
from flashvideo.pipelines.tensor_file import remove_leftovers, write_tensors
from flashvideo.shapes import latent_shape, vae_factors
from flashvideo.text import encode_prompts
from flashvideo.training import precomputed as stored
from flashvideo.training.draws import Draws
from flashvideo.training.latent_pairs import LatentPairs, drawn_kind
from flashvideo.training.model_configs import recipe_configs
from flashvideo.training.precomputed_description import (
    clips_of_phase,
    describe_models,
    describe_phase,
    hash_prompts,
    keep_description,
    phase_prompts,
    pixel_degradation,
)
from flashvideo.training.stage_recipes import Stage1Recipe, Stage2Recipe
from flashvideo.training.starts import freeze, start_text, start_vae, trains_text
from flashvideo.training.stopping import Interrupted, leave_signals_to_parent
from flashvideo.vae.layers import THRIFTS

_PROMPTS_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How much is computed, and which part of it by this process.

    Attributes:
        views: parts and crops of each clip that are stored.
        versions: degraded versions of each view, Stage II's K.
        shard_bytes: size of a shard at most, if a sample is not larger.
        part: of how many parts this process makes one, and which: (index from 0, number).
    """

    views: int = 1
    versions: int = 4
    shard_bytes: int = 256 * 1024**2
    part: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        for name in ("views", "versions", "shard_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.part[0] < self.part[1]:
            raise ValueError(f"a part must be from 1 to {self.part[1]}, got {self.part[0] + 1}")

    def own(self, folder: Path, count: int) -> list[int]:
        """Which of a folder's shards this process still has to make; what a killed one left of them is removed."""
        numbers = range(self.part[0], count, self.part[1])
        todo = [number for number in numbers if not stored.shard_path(folder, number).exists()]
        for number in todo:
            remove_leftovers(stored.shard_path(folder, number))
        return todo


@dataclass(kw_only=True)
class Outcome:
    """What a call did.

    Attributes:
        folder: where latents and embeddings lie.
        shards: how many there are when all is done.
        made: how many this call made.
        missing: how many are not there yet, of other processes' parts.
        skipped: reason by name of every clip that could not be used.
    """

    folder: Path
    shards: int = 0
    made: int = 0
    missing: int = 0
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Home:
    """A folder of latents: the samples of one phase, or of several that are alike."""

    name: str
    phase_index: int
    clips: ClipDataset
    about: dict[str, Any]
    shards: list[list[int]]
    prompts: dict[int, str]


def precompute(
    recipe: Stage1Recipe | Stage2Recipe, folder: Path, extent: Extent, device: torch.device
) -> Outcome:
    """Computes what is missing in a folder.

    Args:
        recipe: With `data`.
        folder: Where to; made if it is not there.
        extent: How much, and which part of it.
        device: Where networks work.

    Raises:
        ValueError: If the recipe has no clips of its own, or the folder holds what was computed for another one.
        Interrupted: On Ctrl-C; all finished shards are kept.
    """
    if recipe.data is None:
        raise ValueError(
            "precompute is for clips of one's own, which the recipe's 'data' names; training itself keeps what it "
            "encodes of the procedural world"
        )
    vae = start_vae(recipe, device)
    tokenizer, encoder = (None, None) if _learns_text(recipe) else start_text(recipe, device)
    folder.mkdir(parents=True, exist_ok=True)
    has_text = encoder is not None or _learns_text(recipe)
    homes = _plan_homes(recipe, folder, extent, vae, has_text=has_text)
    distinct = {home.name: home for home in homes}
    length, channels = _text_shape(recipe)
    prompts = sorted({prompt for home in distinct.values() for prompt in home.prompts.values() if prompt})
    row_bytes = length * channels * _text_dtype(recipe).itemsize
    per_shard = max(1, extent.shard_bytes // row_bytes)
    texts = [prompts[i : i + per_shard] for i in range(0, len(prompts), per_shard)] if encoder else []
    models = describe_models(recipe, vae=vae, text_encoder=encoder, max_text_tokens=length)
    counts = {home.name: len(home.shards) for home in distinct.values()} | {stored.TEXT: len(texts)}
    keep_description(folder, models | _describe_extent(recipe, extent, homes), counts)
    outcome = Outcome(folder=folder, shards=sum(counts.values()))
    try:
        if encoder is not None and tokenizer is not None:
            freeze(encoder, device)
            _make_texts(recipe, folder / stored.TEXT, texts, extent, tokenizer, encoder, outcome)
            encoder.to("cpu")
        freeze(vae, device)
        for home in distinct.values():
            _make_latents(recipe, folder / home.name, home, extent, vae, outcome)
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped; the finished shards in {folder} are kept, and the same command goes on"
        ) from None
    for name, count in counts.items():
        there = [stored.shard_path(folder / name, number).exists() for number in range(count)]
        outcome.missing += there.count(False)
    return outcome


def _learns_text(recipe: Stage1Recipe | Stage2Recipe) -> bool:
    """Whether embeddings change as training goes on."""
    return isinstance(recipe, Stage1Recipe) and trains_text(recipe)


def _text_shape(recipe: Stage1Recipe | Stage2Recipe) -> tuple[int, int]:
    config = recipe_configs(recipe).transformer
    return int(config["max_text_seq_length"]), int(config["text_embed_dim"])


def _latent_dtype(recipe: Stage1Recipe | Stage2Recipe) -> torch.dtype:
    """Of what is trained in bfloat16, 16 bits that round finer than it."""
    return torch.float16 if recipe.bf16 else torch.float32


def _text_dtype(recipe: Stage1Recipe | Stage2Recipe) -> torch.dtype:
    """Of what is trained in bfloat16 that itself: the first thing that happens to embeddings is rounding to it."""
    return torch.bfloat16 if recipe.bf16 else torch.float32


def _plan_homes(
    recipe: Stage1Recipe | Stage2Recipe,
    folder: Path,
    extent: Extent,
    vae: AutoencoderKLCogVideoX,
    *,
    has_text: bool,
) -> list[_Home]:
    """The home of each phase."""
    homes: list[_Home] = []
    captions: dict[ClipFile, str] = {}
    for index in range(len(recipe.phases)):
        clips = clips_of_phase(recipe, index, vae_factors(vae.config)[0], cache=folder / "clips.json")
        about = describe_phase(recipe, index, clips)
        like = next((home for home in homes if home.about == about), None)
        if like is not None:
            homes.append(like)
            continue
        prompts = phase_prompts(recipe, clips, has_text=has_text, captions=captions)
        samples = [view * len(clips) + item for item in prompts for view in range(extent.views)]
        homes.append(
            _Home(
                name=f"phase_{index + 1}",
                phase_index=index,
                clips=clips,
                about=about,
                shards=_cut(samples, _sample_bytes(recipe, clips, extent, vae), extent.shard_bytes),
                prompts=prompts,
            )
        )
    return homes


def _sample_bytes(
    recipe: Stage1Recipe | Stage2Recipe, clips: ClipDataset, extent: Extent, vae: AutoencoderKLCogVideoX
) -> list[int]:
    """Bytes of a sample of each item."""
    copies = 1 if isinstance(recipe, Stage1Recipe) else 1 + extent.versions
    sizes = [0] * len(clips)
    for group, bucket in zip(clips.groups, clips.buckets, strict=True):
        shape = latent_shape(bucket.num_frames, bucket.height, bucket.width, vae_config=vae.config)
        num_bytes = copies * torch.Size(shape.as_tuple(1)).numel() * _latent_dtype(recipe).itemsize
        for item in group.items:
            sizes[int(item)] = num_bytes
    return sizes


def _cut(samples: Sequence[int], sizes: Sequence[int], most: int) -> list[list[int]]:
    """Samples in order, in shards of at most so many bytes; a larger sample has one of its own."""
    shards: list[list[int]] = []
    room = 0
    for number in samples:
        size = sizes[number % len(sizes)]
        if size > room or not shards:
            shards.append([])
            room = most
        shards[-1].append(number)
        room -= size
    return shards


def _describe_extent(
    recipe: Stage1Recipe | Stage2Recipe, extent: Extent, homes: Sequence[_Home]
) -> dict[str, Any]:
    """What beside the models decides the folder's content."""
    phases = [home.about | {"folder": home.name, "captions": hash_prompts(home.prompts)} for home in homes]
    return {
        "views": extent.views,
        "versions": extent.versions if isinstance(recipe, Stage2Recipe) else 1,
        "shard_bytes": extent.shard_bytes,
        "phases": {str(number): phase for number, phase in enumerate(phases, 1)},
    }


@torch.no_grad()
def _make_texts(
    recipe: Stage1Recipe | Stage2Recipe,
    folder: Path,
    shards: Sequence[Sequence[str]],
    extent: Extent,
    tokenizer: PreTrainedTokenizerBase,
    encoder: T5EncoderModel,
    outcome: Outcome,
) -> None:
    """Encodes the prompts of this process's shards."""
    length, dtype = _text_shape(recipe)[0], _text_dtype(recipe)
    folder.mkdir(parents=True, exist_ok=True)
    todo = extent.own(folder, len(shards))
    with tqdm(total=sum(len(shards[number]) for number in todo), desc="prompts", mininterval=1) as bar:
        for number in todo:
            prompts, parts = list(shards[number]), []
            for first in range(0, len(prompts), _PROMPTS_AT_ONCE):
                some = prompts[first : first + _PROMPTS_AT_ONCE]
                with torch.autocast(encoder.device.type, torch.bfloat16, enabled=recipe.bf16):
                    embeddings = encode_prompts(some, tokenizer, encoder, max_text_tokens=length)
                parts.append(embeddings.to("cpu", dtype))
                bar.update(len(some))
            path = stored.shard_path(folder, number)
            write_tensors(path, {"embeddings": torch.cat(parts)}, {"prompts": prompts})
            outcome.made += 1


def _make_latents(
    recipe: Stage1Recipe | Stage2Recipe,
    folder: Path,
    home: _Home,
    extent: Extent,
    vae: AutoencoderKLCogVideoX,
    outcome: Outcome,
) -> None:
    """Encodes the samples of this process's shards; what other shards skipped joins the outcome."""
    maker = _Maker(recipe, home.phase_index, extent, vae)
    folder.mkdir(parents=True, exist_ok=True)
    todo = extent.own(folder, len(home.shards))
    samples = _decoded(home, todo, recipe.workers)
    with tqdm(total=sum(len(home.shards[number]) for number in todo), desc=home.name, mininterval=1) as bar:
        for number in todo:
            tensors: dict[str, Tensor] = {}
            about: dict[int, dict[str, Any]] = {}
            skipped = dict(home.clips.skipped) if number == 0 else {}
            for sample_number in home.shards[number]:
                sample = next(samples)
                if isinstance(sample, str):
                    skipped[home.clips.name(sample_number % len(home.clips))] = sample
                else:
                    made, strong = maker(sample, sample_number)
                    tensors |= {f"{sample_number}.{name}": tensor for name, tensor in made.items()}
                    about[sample_number] = {"caption": sample.caption, "name": sample.name} | strong
                bar.update()
            path = stored.shard_path(folder, number)
            write_tensors(path, tensors, {"samples": about, "skipped": skipped})
            outcome.made += 1
    for number in range(len(home.shards)):
        path = stored.shard_path(folder, number)
        if path.exists():
            outcome.skipped |= json.loads(stored.shard_header(path)["skipped"])


class _Maker:
    """Makes what is stored of a sample.

    Args:
        recipe: Of the training.
        phase_index: Of a phase, for its shares of degradations.
        extent: How many versions.
        vae: On its device.
    """

    def __init__(
        self,
        recipe: Stage1Recipe | Stage2Recipe,
        phase_index: int,
        extent: Extent,
        vae: AutoencoderKLCogVideoX,
    ) -> None:
        self.recipe, self.phase_index, self.versions, self.vae = recipe, phase_index, extent.versions, vae
        thrift = THRIFTS[0] if recipe.vae_strips else None
        config = pixel_degradation(recipe)
        self.pairs = LatentPairs(vae, config, thrift=thrift)

    @torch.no_grad()
    def __call__(self, sample: ClipSample, number: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors to store, and at Stage II which versions are strong."""
        dtype, device = _latent_dtype(self.recipe), self.vae.device
        pixels = sample.pixels[None].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.recipe.bf16):
            tensors = {"clean": self.pairs.encode(pixels)[0].to("cpu", dtype).contiguous()}
            if isinstance(self.recipe, Stage1Recipe):
                return tensors, {}
            phase = self.recipe.phases[self.phase_index]
            low, strong = [], []
            for version in range(self.versions):
                low.append(self.pairs.low_quality(pixels, phase, self.draws(number, version))[0])
                strong.append(drawn_kind(phase, self.draws(number, version).each[0])[0])
        tensors["degraded"] = torch.stack(low).to("cpu", dtype)
        return tensors, {"strong": strong}

    def draws(self, number: int, version: int) -> Draws:
        """The random numbers of one version, new from their beginning."""
        return stored.version_draws(self.recipe, number, version, self.versions, self.vae.device)


class _Samples(Dataset):
    """Samples by their numbers; of a clip that cannot be used the reason."""

    def __init__(self, clips: ClipDataset) -> None:
        self.clips = clips

    def __getitem__(self, number: int) -> ClipSample | str:
        try:
            sample = self.clips[number]
        except ValueError as error:  # not one clip of its size can be read
            return str(error)
        # What stands in for it will be there under its own number.
        return sample.skips[0][1] if sample.skips else sample


def _decoded(home: _Home, todo: Sequence[int], workers: int) -> Iterator[ClipSample | str]:
    """The samples of some shards, in order, read ahead by other processes."""
    loader = DataLoader(
        _Samples(home.clips),
        batch_size=None,
        sampler=[number for shard in todo for number in home.shards[shard]],
        num_workers=workers if todo else 0,
        worker_init_fn=leave_signals_to_parent,
    )
    return iter(loader)
