"""Buckets: the few sizes that clips are brought to, so that those of one batch have one shape.

A clip goes to the bucket that is nearest in aspect ratio, is resized to cover it and cropped.

Shapes: F frames, H height, W width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from flashvideo.data.clips.files import ClipError
from flashvideo.video import resize_video

SAME_ASPECT = 0.05
"""Buckets whose aspect ratios are within so much (natural logarithm) of the nearest are equally near."""


@dataclass(frozen=True, kw_only=True, order=True)
class Bucket:
    """One size of sample.

    Attributes:
        num_frames: Frames F; 1 is for pictures.
        height: Height in pixels.
        width: Width in pixels.
    """

    num_frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.num_frames}x{self.height}x{self.width}"


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How a frame is brought to a bucket: resized to a size that covers it, then cropped.

    Attributes:
        resized: (height, width) after resizing.
        top: Rows cut off above.
        left: Columns cut off on the left.
        size: (height, width) of the bucket.
    """

    resized: tuple[int, int]
    top: int
    left: int
    size: tuple[int, int]


def upscale(height: int, width: int, bucket: Bucket) -> float:
    """By how much a frame of a size is enlarged to cover a bucket; below 1 it is made smaller."""
    return max(bucket.height / height, bucket.width / width)


def choose_bucket(
    buckets: Sequence[Bucket], *, num_frames: int, height: int, width: int, max_upscale: float
) -> Bucket:
    """The bucket that a clip goes to.

    Of the buckets nearest in aspect ratio, all within `SAME_ASPECT`, it is the one of the most pixels, over all of its
    frames, that the clip fills: it is long enough, and need not be enlarged by more than allowed.

    Args:
        buckets: One or more.
        num_frames: How many frames the clip has.
        height: Height of a frame in square pixels.
        width: Width, likewise.
        max_upscale: The largest factor that it may be enlarged by.

    Raises:
        ClipError: If it fills none of them.
    """
    distance = {b: abs(math.log(width * b.height / (height * b.width))) for b in buckets}
    nearest = min(distance.values())
    near = [b for b in buckets if distance[b] <= nearest + SAME_ASPECT]
    long_enough = [b for b in near if b.num_frames <= num_frames]
    if not long_enough:
        fewest = min(b.num_frames for b in near)
        raise ClipError(f"it is too short: it gives {num_frames} frames, {fewest} are wanted")
    filled = [b for b in long_enough if upscale(height, width, b) <= max_upscale * (1 + 1e-9)]
    if not filled:
        least = min(long_enough, key=lambda b: upscale(height, width, b))
        raise ClipError(
            f"it is too small: {height}x{width} would be enlarged {upscale(height, width, least):.2f} times for "
            f"{least}, at most {max_upscale:g} is allowed"
        )
    return max(filled, key=lambda b: (b.num_frames * b.height * b.width, b))


def place(height: int, width: int, bucket: Bucket, rng: np.random.Generator | None) -> Placement:
    """How frames of a size are brought to a bucket.

    Args:
        height: Height of a frame in square pixels.
        width: Width, likewise.
        bucket: The bucket.
        rng: Draws the crop; None takes the middle.
    """
    factor = upscale(height, width, bucket)
    resized = max(bucket.height, round(height * factor)), max(bucket.width, round(width * factor))
    spare = resized[0] - bucket.height, resized[1] - bucket.width
    top, left = (s // 2 for s in spare) if rng is None else (int(rng.integers(s + 1)) for s in spare)
    return Placement(resized=resized, top=top, left=left, size=(bucket.height, bucket.width))


def fit_frames(frames: torch.Tensor, placement: Placement) -> torch.Tensor:
    """Resizes frames with antialiasing and crops them.

    Args:
        frames: ``(..., 3, H, W)`` floats.
        placement: Where to.

    Returns:
        ``(..., 3, height, width)`` of the bucket.
    """
    resized = resize_video(frames, *placement.resized)
    height, width = placement.size
    rows, columns = (
        slice(placement.top, placement.top + height),
        slice(placement.left, placement.left + width),
    )
    return resized[..., rows, columns]
