"""Resizing without antialiasing, by a factor that drifts over the clip.

Shapes: frames (F, 3, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from flashvideo.degradations.draws import ClipDraws
from flashvideo.degradations.ranges import ResizeRange

MODES = ("bilinear", "area", "bicubic")
# No side gets smaller than this by a drawn factor; otherwise two orders could leave a handful of pixels.
_MIN_SIDE = 8


def resize_frames(frames: Tensor, height: int, width: int, mode: str) -> Tensor:
    """Interpolate without antialiasing, so making frames smaller aliases (except by areas).

    Args:
        frames: (F, 3, H, W) floats.
        height: new height in pixels.
        width: new width in pixels.
        mode: "bilinear", "area" (the mean of the pixels that a new one touches) or "bicubic".

    Returns:
        (F, 3, height, width); bicubic may overshoot.
    """
    if frames.shape[-2:] == (height, width):
        return frames
    align = None if mode == "area" else False
    return F.interpolate(frames, size=(height, width), mode=mode, align_corners=align)


def scaled_size(height: int, width: int, factor: float) -> tuple[int, int]:
    """Height and width times a factor, rounded to even numbers and to at least 8."""
    scaled_height, scaled_width = (max(_MIN_SIDE, 2 * round(side * factor / 2)) for side in (height, width))
    return scaled_height, scaled_width


def draw_mode(config: ResizeRange, draws: ClipDraws) -> str:
    """One of `MODES`, by the range's shares."""
    return MODES[draws.choose((config.bilinear, config.area, config.bicubic))]


def resize_each(frames: Tensor, factors: Sequence[float], mode: str) -> Tensor:
    """Resize each frame by its own factor, then bring all to the size of the first, bilinearly.

    Args:
        frames: (F, 3, H, W) floats.
        factors: F factors.
        mode: of the first step, see `resize_frames`.

    Returns:
        (F, 3, h, w), where h and w are H and W times the first factor, even.
    """
    height, width = frames.shape[-2:]
    sizes = [scaled_size(height, width, factor) for factor in factors]
    if len(set(sizes)) == 1:
        return resize_frames(frames, *sizes[0], mode)
    resized = frames.new_empty(*frames.shape[:2], *sizes[0])
    for i, size in enumerate(sizes):
        resized[i : i + 1] = resize_frames(
            resize_frames(frames[i : i + 1], *size, mode), *sizes[0], "bilinear"
        )
    return resized


def random_resize(frames: Tensor, config: ResizeRange, draws: ClipDraws) -> Tensor:
    """Resize (F, 3, H, W) up, down or not at all, by factors that drift; "not at all" does not drift."""
    direction = draws.choose((config.up, config.down, config.keep))
    mode = draw_mode(config, draws)
    if direction == 2:
        return frames
    low, high = config.factor
    start = draws.uniform((1.0, high) if direction == 0 else (low, 1.0))
    factors = draws.drift(config.factor, config.step, len(frames), start=start)
    return resize_each(frames, factors.tolist(), mode).clamp(-1, 1)
