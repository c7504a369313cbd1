"""What a clip does in time, without a truth to compare with.

Shapes: F frames, H height, W width.
"""

import itertools

import torch

from flashvideo.evaluation.metrics.frames import LEVELS, PIXEL_RANGE, check_frames


def temporal_flickering(clip: torch.Tensor) -> torch.Tensor:
    """VBench's score of that name, ``1 - mean(|x[t+1] - x[t]|) / 255`` in levels; for clips in which little moves.

    Args:
        clip: ``(..., F, 3, H, W)`` with at least two frames.

    Returns:
        ``(...)`` in [0, 1], higher is better; 1 for a clip that stands still.

    Raises:
        ValueError: The shape is not that of a clip, or there is a single frame.
    """
    clip = _check_clip(clip, 2, "temporal_flickering")
    steps = itertools.pairwise(clip.unbind(dim=-4))
    changes = torch.stack([_mean_change(one, other) for one, other in steps], dim=-1)
    return 1 - changes.mean(dim=-1) / PIXEL_RANGE


def flicker(clip: torch.Tensor) -> torch.Tensor:
    """How far frames are from halfway between their neighbours, ``mean(|x[t] - (x[t-1] + x[t+1]) / 2|)``.

    A steady fade has none, and motion less than in the difference of two frames; a pixel that alternates by
    +-a has 2 a.

    Args:
        clip: ``(..., F, 3, H, W)`` with at least three frames.

    Returns:
        ``(...)`` in levels of 255, lower is better; 0 for a clip that stands still.

    Raises:
        ValueError: The shape is not that of a clip, or there are fewer than three frames.
    """
    clip = _check_clip(clip, 3, "flicker")
    frames = clip.unbind(dim=-4)
    off = [
        _mean_change(now, (before + after) / 2)
        for before, now, after in zip(frames, frames[1:], frames[2:], strict=False)
    ]
    return torch.stack(off, dim=-1).mean(dim=-1) * LEVELS / PIXEL_RANGE


def _check_clip(clip: torch.Tensor, least: int, name: str) -> torch.Tensor:
    clip = check_frames("clip", clip, clip=True)
    if clip.shape[-4] < least:
        raise ValueError(f"{name} needs at least {least} frames, got {clip.shape[-4]}")
    return clip


def _mean_change(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (one - other).abs().mean(dim=(-3, -2, -1))
