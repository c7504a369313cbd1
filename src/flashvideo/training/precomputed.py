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

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import Dataset

from flashvideo.data.clips import ClipDataset
from flashvideo.data.clips.files import ClipFile
from flashvideo.data.clips.samples import ClipSample
from flashvideo.training.clip_data import deal_clips, is_held_out
from flashvideo.training.descriptions import read_description
from flashvideo.training.draws import Draws, sample_seed
from flashvideo.training.precomputed_description import (
    COMMAND,
    DESCRIPTION,
    clips_of_phase,
    describe_phase,
    difference,
    hash_prompts,
    phase_prompts,
    prompt_of,
)
from flashvideo.training.stage_recipes import Stage1Recipe, Stage2Recipe, image_share
from flashvideo.training.starts import trains_text

TEXT = "text"


def step_latents(
    recipe: Stage1Recipe | Stage2Recipe,
    phase_index: int,
    clips_per_step: int,
    *,
    models: Mapping[str, Any],
    has_text: bool,
    captions: dict[ClipFile, str],
    temporal: int,
    text_channels: int,
) -> StepLatents:
    """The samples of a phase that the recipe's `precomputed` folder holds.

    Args:
        recipe: With `data` and `precomputed`.
        phase_index: Of the phase.
        clips_per_step: Of all processes and accumulated batches.
        models: What `describe_models` tells of what the latents must have been made by, or `describe_settings` where
            there are no weights.
        has_text: Whether there is a text encoder. If it is trained, samples have captions instead of embeddings.
        captions: What caption files hold, of phases before, so that none is read twice; what is read is added.
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
    prompts = phase_prompts(recipe, clips, has_text=has_text, captions=captions)
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
        versions=found["versions"],
        texts=texts,
        prefix=recipe.prompt_prefix if isinstance(recipe, Stage2Recipe) else "",
    )


def version_draws(
    recipe: Stage1Recipe | Stage2Recipe,
    number: int,
    version: int,
    versions: int,
    device: torch.device | str = "cpu",
) -> Draws:
    """The random numbers by which one of a sample's degraded versions is made, new from their beginning."""
    return Draws(sample_seed(recipe.seed, 52), number, (version,), versions, device)


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
        versions: At Stage II stored degraded versions of each view.
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
        versions: int,
        texts: TextShards | None,
        prefix: str = "",
    ) -> None:
        self.clips, self.texts, self.prefix = clips, texts, prefix
        self.versions = versions
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

    def choose(self, index: tuple[int, int]) -> tuple[int, int]:
        """Number and version of a sample."""
        step, place = index
        if self._step[0] != step:
            self._step = step, self.sampler.batch(step)
        dealt = self._step[1][place]
        rng = np.random.default_rng([self.clips.seed, dealt])
        number = self._views[rng.integers(len(self._views))] + dealt % len(self.clips)
        return number, int(rng.integers(self.versions))

    def source(self, number: int) -> ClipSample:
        """The clip that a sample was computed from.

        Raises:
            ValueError: If it cannot be read any more.
        """
        return self.clips.sample(number, np.array([number % len(self.clips)]))

    def __getitem__(self, index: tuple[int, int]) -> tuple[Tensor, Tensor | str]:
        number, version = self.choose(index)
        with safe_open(self._places[number], "pt") as shard:
            latents: Tensor = shard.get_tensor(f"{number}.clean")
            if f"{number}.degraded" in shard.keys():  # noqa: SIM118
                latents = torch.stack((latents, shard.get_slice(f"{number}.degraded")[version]))
        if self.texts is None:
            return latents, self._captions[number]
        return latents, self.texts[self._prompt(number)]

    def _prompt(self, number: int) -> str:
        return prompt_of(self._captions[number], self.prefix)

    def _has_text(self, number: int) -> bool:
        return self.texts is None or self._prompt(number) in self.texts


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
