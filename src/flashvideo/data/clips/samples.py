"""Samples of clips, and the list of those that were skipped.

Shapes: F frames, H height, W width.
"""

from collections.abc import Mapping
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
