"""Samples and batches of clips, and the list of those that were skipped.

Shapes: B samples, F frames, H height, W width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipSample:
    """One sample.

    Attributes:
        pixels: ``(F, 3, H, W)`` float32 in [-1, 1].
        caption: Its caption; empty if it has none.
        frame_rate: Frames per second of `pixels`; 0 of a picture.
        source: Name of its source.
        name: Of the clip, as in `ClipDataset.skipped`.
        start: Time of the first frame in its file, in seconds.
        skips: (name, reason) of each clip in whose place this one stands.
    """

    pixels: torch.Tensor
    caption: str
    frame_rate: float
    source: str
    name: str
    start: float = 0.0
    skips: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipBatch:
    """Samples of one bucket.

    Attributes:
        pixels: ``(B, F, 3, H, W)`` float32 in [-1, 1].
        captions: B captions.
        frame_rates: ``(B,)`` float32; 0 of pictures.
        sources: B names of sources.
        names: B names of clips.
        skips: (name, reason) of every clip that was replaced, for `ClipDataset.record`.
    """

    pixels: torch.Tensor
    captions: list[str]
    frame_rates: torch.Tensor
    sources: list[str]
    names: list[str]
    skips: tuple[tuple[str, str], ...] = ()


def collate_clips(samples: Sequence[ClipSample]) -> ClipBatch:
    """Puts the samples of one bucket together, for a loader's `collate_fn`."""
    return ClipBatch(
        pixels=torch.stack([sample.pixels for sample in samples]),
        captions=[sample.caption for sample in samples],
        frame_rates=torch.tensor([sample.frame_rate for sample in samples]),
        sources=[sample.source for sample in samples],
        names=[sample.name for sample in samples],
        skips=tuple(skip for sample in samples for skip in sample.skips),
    )


def format_skipped(skipped: Mapping[str, str], *, limit: int = 50) -> str:
    """Lists skipped clips for people, for the end of a run.

    Args:
        skipped: `ClipDataset.skipped`.
        limit: How many are named.

    Returns:
        Lines; the first says how many there are.

    Example:
        >>> print(format_skipped({"a.mp4": "it is empty (0 bytes)", "b.mp4": "it is too short"}, limit=1))
        2 clips were skipped:
          a.mp4: it is empty (0 bytes)
          and 1 more
    """
    if not skipped:
        return "No clip was skipped."
    lines = ["1 clip was skipped:" if len(skipped) == 1 else f"{len(skipped)} clips were skipped:"]
    lines += [f"  {name}: {reason}" for name, reason in list(skipped.items())[:limit]]
    if len(skipped) > limit:
        lines.append(f"  and {len(skipped) - limit} more")
    return "\n".join(lines)
