"""Clips of one's own as training data: which ones a recipe names, cut to the sizes of each phase.

A step is of one size, whose clips `flashvideo.data.clips` deals out. Some clips are never trained on: validation looks
at those. Which ones follows from their paths in their source alone, so that they are the same in every phase, in every
run and on every machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from flashvideo.data.clips import ClipDataset
from flashvideo.data.clips.bucket_sampler import BucketBatches
from flashvideo.data.clips.config import ClipsConfig
from flashvideo.data.clips.samples import ClipSample
from flashvideo.data.clips.sources import ClipSource
from flashvideo.presets import FLASHVIDEO

logger = logging.getLogger(__name__)

CACHE = "clips.json"
"""What was learned about the files, in a run's output."""


@dataclass(frozen=True, kw_only=True)
class ClipData:
    """Which clips; sizes, lengths and the share of pictures are the phases'.

    Attributes:
        sources: folders, tables or tar shards, each such as {path: clips}.
        frame_rate: frames per second that videos are brought to; slower ones keep their own.
        min_seconds: shorter videos are left out.
        min_frame_rate: slower videos are left out.
        max_upscale: by how much a clip may be enlarged to fill a size; 1 takes no clip that is smaller.
        avoid_cuts: take no frames from both sides of a scene cut.
        window_tries: how many parts of a video are decoded at most to find one without a cut.
        held_out: share of the clips that is kept for validation where the recipe names no clips for that.
    """

    sources: tuple[ClipSource, ...]
    frame_rate: float = FLASHVIDEO.stage1.frame_rate
    min_seconds: float = 0.0
    min_frame_rate: float = 0.0
    max_upscale: float = 1.0
    avoid_cuts: bool = True
    window_tries: int = 4
    held_out: float = 0.02

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out must be a share below 1, got {self.held_out}")
        self.config(((1, 16, 16), (5, 16, 16)), 0.5)

    def config(self, shapes: Iterable[tuple[int, int, int]], image_share: float) -> ClipsConfig:
        """The same clips, cut to sizes (frames, height, width)."""
        return ClipsConfig(
            sources=self.sources,
            buckets=tuple(dict.fromkeys(shapes)),
            frame_rate=self.frame_rate,
            image_share=image_share,
            min_seconds=self.min_seconds,
            min_frame_rate=self.min_frame_rate,
            max_upscale=self.max_upscale,
            avoid_cuts=self.avoid_cuts,
            window_tries=self.window_tries,
        )


class StepClips(Dataset):
    """The clips of a phase: `dataset[step, place]`.

    A sample is (pixels (F, 3, H, W), caption, notes), where notes tell for `record` what was skipped on the way.

    Args:
        clips: Cut to the phase's sizes.
        clips_per_step: Of all processes and accumulated batches.
        held_out: Share of clips that is left out.

    Raises:
        ValueError: If no video, or no picture, is left where some are wanted.
    """

    def __init__(self, clips: ClipDataset, clips_per_step: int, *, held_out: float) -> None:
        self.clips = clips
        self.sampler = deal_clips(
            clips,
            clips_per_step,
            image_share=clips.config.image_share,
            keep=lambda item: not is_held_out(clips.key(item), held_out),
            reason=f"data.held_out, {held_out},",
        )
        self._step: tuple[int, list[int], np.ndarray] = (-1, [], np.zeros(0, dtype=int))

    def __getitem__(self, index: tuple[int, int]) -> tuple[Tensor, str, str]:
        step, place = index
        if self._step[0] != step:
            dealt = self.sampler.groups[self.sampler.group_of(step)].items
            self._step = step, self.sampler.batch(step), dealt
        _, batch, dealt = self._step
        sample = self.clips.sample(batch[place], dealt)  # a clip that is held out stands in for none
        return sample.pixels, sample.caption, json.dumps(sample.skips)

    def record(self, notes: Iterable[str]) -> None:
        """Keeps, in the process that trains, what those that load data skipped."""
        for note in notes:
            self.clips.record([(name, reason) for name, reason in json.loads(note)])


def deal_clips(
    clips: ClipDataset,
    clips_per_step: int,
    *,
    image_share: float,
    keep: Callable[[int], bool],
    reason: str,
) -> BucketBatches:
    """Deals out a phase's clips, those of a step as one batch.

    Args:
        clips: Cut to the phase's sizes.
        clips_per_step: Of all processes and accumulated batches.
        image_share: Share of the steps that are of pictures.
        keep: Whether an item is trained on.
        reason: What leaves the others out, for the error.

    Raises:
        ValueError: If no video, or no picture, is left where some are wanted.
    """
    groups = []
    for group in clips.groups:
        kept = np.array([keep(int(item)) for item in group.items], dtype=bool)
        groups.append(replace(group, items=group.items[kept], weights=group.weights[kept]))
    left = {group.is_image for group in groups if len(group.items)}
    for is_image, wanted, word in ((False, image_share < 1, "video"), (True, image_share > 0, "picture")):
        if wanted and is_image not in left:
            raise ValueError(f"{reason} leaves no {word} to train on; lower it or add clips")
    return BucketBatches(
        groups, num_items=len(clips), batch_size=clips_per_step, image_share=image_share, seed=clips.seed
    )


def is_held_out(key: str, share: float) -> bool:
    """Whether a clip is among the share that is never trained on, by a hash of its `ClipDataset.key`."""
    return _hash(key) < share


def held_out_clips(
    data: ClipData,
    *,
    shape: tuple[int, int, int],
    count: int,
    all_of_it: bool,
    temporal: int,
    cache: Path,
) -> list[tuple[Tensor, str]]:
    """Fixed clips for validation, each from the middle of its video.

    Pictures take the place of missing videos; where one frame is asked for, videos that of missing pictures.

    Args:
        data: Where from.
        shape: (frames, height, width).
        count: How many at most.
        all_of_it: Take any of its clips rather than the share that is held out.
        temporal: The VAE's compression in time.
        cache: JSON file of what was learned about the files.

    Returns:
        Pixels (F, 3, H, W) and caption of each.

    Raises:
        ValueError: If there is none, or none can be read.
    """
    frames, height, width = shape
    shapes = [(max(frames, temporal + 1), height, width), (1, height, width)]
    config = data.config(shapes, image_share=0.5)
    clips = ClipDataset(config, temporal_compression=temporal, training=False, cache=cache)
    chosen = sorted(
        (group.is_image == (frames > 1), _hash(clips.key(item)), item)
        for group in clips.groups
        for item in group.items.tolist()
        if all_of_it or is_held_out(clips.key(item), data.held_out)
    )
    if not chosen:
        raise ValueError(
            f"of {len(clips)} clips that fill {height}x{width} the share held out, {data.held_out}, has none; "
            "name clips for 'validation', or raise data.held_out"
        )
    samples: list[ClipSample] = []
    for _, _, item in chosen:
        if len(samples) == count:
            break
        with contextlib.suppress(ValueError):  # noted and warned of; none but those held out stand in
            samples.append(clips.sample(item, np.array([item])))
    if not samples:
        raise ValueError(
            f"none of the {len(chosen)} clips to validate on can be read, the first being {clips.name(chosen[0][2])}; "
            "name others for 'validation'"
        )
    return [(sample.pixels[:frames], sample.caption) for sample in samples]


def phase_clips(
    data: ClipData,
    *,
    shapes: Sequence[tuple[int, int, int]],
    image_share: float,
    seed: int,
    temporal: int,
    cache: Path,
) -> ClipDataset:
    """The clips of a phase, cut to its sizes (frames, height, width)."""
    return ClipDataset(
        data.config(shapes, image_share), temporal_compression=temporal, seed=seed, cache=cache
    )


def _hash(key: str) -> float:
    """In [0, 1)."""
    digest = hashlib.sha256(key.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8]) / 2**64
