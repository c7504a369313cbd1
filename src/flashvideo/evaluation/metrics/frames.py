"""What the metrics share: checks of their input, luma, and going through a clip one frame at a time."""

from collections.abc import Callable

import torch

LEVELS = 255.0  # the range of luma, where a definition is in 8-bit levels
PIXEL_RANGE = 2.0  # of pixel values: from -1 to 1
_LUMA_WEIGHTS = (0.299, 0.587, 0.114)


def luma(frame: torch.Tensor) -> torch.Tensor:
    """One frame ``(1, 3, H, W)`` in [-1, 1] -> ``(1, 1, H, W)`` in [0, 1]."""
    red, green, blue = frame.split(1, dim=1)
    weights = _LUMA_WEIGHTS
    return (weights[0] * red + weights[1] * green + weights[2] * blue + 1) / PIXEL_RANGE


def each_frame(function: Callable[..., torch.Tensor], *clips: torch.Tensor) -> torch.Tensor:
    """Applies a function to single frames ``(1, 3, H, W)``, so that memory does not grow with the clip."""
    leading = clips[0].shape[:-3]
    flat = [clip.reshape(-1, *clip.shape[-3:]) for clip in clips]
    values = torch.stack([function(*(clip[i : i + 1] for clip in flat)) for i in range(flat[0].shape[0])])
    return values.reshape((*leading, *values.shape[1:]))


def gaussian_blur(maps: torch.Tensor, radius: int, sigma: float) -> torch.Tensor:
    """Blurs ``(..., H, W)`` with a Gaussian of 2 radius + 1 pixels, to ``(..., H - 2 radius, W - 2 radius)``."""
    offsets = torch.arange(-radius, radius + 1, dtype=maps.dtype, device=maps.device)
    line = torch.exp(-offsets.square() / (2 * sigma**2))
    weights = (line / line.sum()).tolist()
    # On a CPU, sums of shifted maps are faster than a convolution of a single channel.
    for dim in (-2, -1):
        length = maps.shape[dim] - 2 * radius
        total = maps.narrow(dim, 0, length) * weights[0]
        for shift in range(1, 2 * radius + 1):
            total.add_(maps.narrow(dim, shift, length), alpha=weights[shift])
        maps = total
    return maps


def check_frames(name: str, frames: torch.Tensor, *, clip: bool = False) -> torch.Tensor:
    """Checks frames, and widens half precision."""
    expected, num_dims = ("(..., F, 3, H, W)", 4) if clip else ("(..., 3, H, W)", 3)
    if frames.ndim < num_dims or frames.shape[-3] != 3 or frames.numel() == 0:
        raise ValueError(f"{name} must have the shape {expected}, none of it 0, got {tuple(frames.shape)}")
    if not frames.is_floating_point():
        raise ValueError(f"{name} must be floats in [-1, 1], got {frames.dtype}; use levels / 127.5 - 1")
    return frames.detach().to(torch.promote_types(frames.dtype, torch.float32))


def check_pair(
    result: torch.Tensor, truth: torch.Tensor, *, clip: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Checks frames that are to be compared pixel by pixel, and widens half precision."""
    result, truth = check_frames("result", result, clip=clip), check_frames("truth", truth, clip=clip)
    if result.shape != truth.shape:
        raise ValueError(
            f"result and truth must have one shape, got {shapes_of(result, truth)}; resize one of them"
        )
    return result, truth


def check_size(frames: torch.Tensor, least: int, name: str) -> None:
    """Checks that frames are large enough for the metric called `name`."""
    height, width = frames.shape[-2:]
    if min(height, width) < least:
        raise ValueError(f"{name} needs frames of at least {least}x{least} pixels, got {height}x{width}")


def shapes_of(one: torch.Tensor, other: torch.Tensor) -> str:
    """Two shapes, for a message."""
    return f"{tuple(one.shape)} and {tuple(other.shape)}"
