"""Pixel degradation DEG_pixel (paper section 3.2): from a clean clip to what Stage II is given at inference.

Weak: antialiased down- and upsampling. Strong: the same with blur and sensor noise, which drift slowly over the clip
so that the degradation is correlated in time. Both keep the size. Shapes: pixels (B, F, 3, H, W) in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from flashvideo.video import resize_video


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def gaussian_blur(pixels: Tensor, sigma: float) -> Tensor:
    """Blur (..., H, W) by a Gaussian of `sigma` pixels, edges replicated; below 0.05 nothing happens."""
    if sigma < 0.05:
        return pixels
    radius = max(1, int(3 * sigma + 0.5))
    x = torch.arange(-radius, radius + 1, dtype=pixels.dtype, device=pixels.device)
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    kernel = kernel / kernel.sum()
    flat = pixels.reshape(-1, 1, *pixels.shape[-2:])
    flat = F.conv2d(F.pad(flat, (radius, radius, 0, 0), mode="replicate"), kernel.view(1, 1, 1, -1))
    flat = F.conv2d(F.pad(flat, (0, 0, radius, radius), mode="replicate"), kernel.view(1, 1, -1, 1))
    return flat.reshape(pixels.shape)


def degrade_pixels(
    pixels: Tensor,
    generator: torch.Generator,
    *,
    scale: int,
    strong: bool,
    at_low_resolution: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Degrade a batch of clips, all alike.

    Args:
        pixels: (B, F, 3, H, W) in [-1, 1]; H and W multiples of `scale`.
        generator: a CPU generator, the source of all randomness.
        scale: factor of the down- and upsampling.
        strong: blur by up to 1.2 and add noise of up to 8/255 (standard deviation) at the low resolution.
        at_low_resolution: applied to the small clip, for instance a VAE's round trip, which is what a generated
            preview has been through.

    Returns:
        The same shape, in [-1, 1].

    Raises:
        ValueError: if the size is not a multiple of `scale`.
    """
    height, width = pixels.shape[-2:]
    if height % scale or width % scale:
        raise ValueError(f"height and width must be multiples of scale {scale}, got {height}x{width}")
    small = resize_video(pixels, height // scale, width // scale)
    if at_low_resolution is not None:
        small = at_low_resolution(small)
    if strong:
        first, last = (_uniform(0.0, 1.2, generator) for _ in range(2))
        frames = small.shape[1]
        blurred = [
            gaussian_blur(small[:, i], first + 0.25 * (last - first) * i / max(frames - 1, 1))
            for i in range(frames)
        ]
        small = torch.stack(blurred, dim=1)
        sigma = _uniform(0.0, 8 / 127.5, generator)
        noise = torch.randn(small.shape, generator=generator)
        small = small + sigma * noise.to(small)
    return resize_video(small.clamp(-1, 1), height, width).clamp(-1, 1)
