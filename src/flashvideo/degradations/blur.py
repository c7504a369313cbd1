"""Blur: kernels that differ from frame to frame, and the filter that applies them.

With C = R diag(sigma_x^2, sigma_y^2) R^T for a rotation R, and q = p^T C^-1 p for an offset p = (x, y) from the centre:

    Gaussian exp(-q / 2), generalised Gaussian exp(-q^b / 2), plateau 1 / (1 + q^b),
    sinc     w J1(w r) / (2 pi r), r = |p|: the ideal low-pass of cutoff w, circular in frequency.

All are divided by their sum. Shapes: F frames, K kernel size, frames (F, 3, H, W).
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from flashvideo.degradations.draws import Bounds, ClipDraws
from flashvideo.degradations.ranges import BlurRange, KernelMix

# Kernels up to this size get `BlurRange.small_cutoff`.
_SMALL = 11
# Weights below this are left out: all of them together change no 8-bit level.
_NEGLIGIBLE = 1e-7


def gaussian_kernels(size: int, sigma: Tensor, angle: Tensor, shape: Tensor) -> Tensor:
    """Generalised Gaussians exp(-q^shape / 2).

    Args:
        size: K, odd.
        sigma: (F, 2) widths along the first and the second axis, in pixels.
        angle: (F,) of the first axis, in radians, from x towards y, which points down.
        shape: (F,) exponents; 1 is the Gaussian.

    Returns:
        (F, K, K) float64, each of sum 1.
    """
    q = _squared_distance(size, sigma, angle)
    return _normalized(torch.exp(-0.5 * q ** shape[:, None, None]))


def plateau_kernels(size: int, sigma: Tensor, angle: Tensor, shape: Tensor) -> Tensor:
    """Plateaus 1 / (1 + q^shape), flat in the middle; arguments and result as of `gaussian_kernels`."""
    q = _squared_distance(size, sigma, angle)
    return _normalized(1 / (1 + q ** shape[:, None, None]))


def sinc_kernels(size: int, cutoff: Tensor) -> Tensor:
    """Circular low-passes w J1(w r) / (2 pi r), cut off at the kernel's border.

    Args:
        size: K, odd.
        cutoff: (F,) w in radians per pixel, above 0 and at most pi.

    Returns:
        (F, K, K) float64, each of sum 1.
    """
    x, y = _grid(size)
    radius = torch.hypot(x, y)
    w = cutoff.double()[:, None, None]
    centre = w**2 / (4 * math.pi)
    kernel = w * torch.special.bessel_j1(w * radius) / (2 * math.pi * radius.clamp_min(1e-12))
    return _normalized(torch.where(radius == 0, centre, kernel))


def filter_frames(frames: Tensor, kernels: Tensor) -> Tensor:
    """Filter each frame with its own kernel; beyond the border, the border's pixels go on.

    Args:
        frames: (F, 3, H, W) floats.
        kernels: (F, K, K), K odd; point-symmetric ones, so correlation and convolution are the same.

    Returns:
        (F, 3, H, W).
    """
    kernels = _trimmed(kernels).to(frames)
    radius = kernels.shape[-1] // 2
    if radius == 0:
        return frames * kernels[:, None]
    num_channels = frames.shape[0] * frames.shape[1]
    padded = F.pad(frames, (radius,) * 4, mode="replicate")
    # One group per frame and colour: a single convolution for all of them.
    filtered = F.conv2d(
        padded.reshape(1, num_channels, *padded.shape[-2:]),
        kernels.repeat_interleave(frames.shape[1], dim=0)[:, None],
        groups=num_channels,
    )
    return filtered.reshape(frames.shape)


def draw_kernels(config: BlurRange, num_frames: int, draws: ClipDraws) -> Tensor:
    """Kernels of one kind and size, with parameters that drift over the clip.

    Args:
        config: ranges to draw from.
        num_frames: F.
        draws: of the clip.

    Returns:
        (F, K, K) float64.
    """
    kinds = [f.name for f in dataclasses.fields(KernelMix)]
    kind = kinds[draws.choose([getattr(config.kernels, name) for name in kinds])]
    size = config.sizes[draws.choose([1.0] * len(config.sizes))]
    if kind == "sinc":
        small = config.small_cutoff or config.cutoff
        cutoff = small if size <= _SMALL else config.cutoff
        return sinc_kernels(size, draws.drift(cutoff, config.cutoff_step, num_frames))
    family, _, direction = kind.rpartition("_")
    sigma_x = draws.drift(config.sigma, config.sigma_step, num_frames)
    sigma_y, angle = sigma_x, torch.zeros_like(sigma_x)
    if direction == "aniso":
        sigma_y = draws.drift(config.sigma, config.sigma_step, num_frames)
        angle = draws.drift(config.angle, config.angle_step, num_frames)
    sigma = torch.stack((sigma_x, sigma_y), dim=-1)
    if family == "plateau":
        shape = _draw_shape(config.plateau_shape, config.plateau_step, num_frames, draws)
        return plateau_kernels(size, sigma, angle, shape)
    shape = torch.ones_like(sigma_x)
    if family == "generalized":
        shape = _draw_shape(config.generalized_shape, config.generalized_step, num_frames, draws)
    return gaussian_kernels(size, sigma, angle, shape)


def random_blur(frames: Tensor, config: BlurRange, draws: ClipDraws) -> Tensor:
    """Blur (F, 3, H, W) by drifting kernels, with the range's probability."""
    if not draws.happens(config.probability):
        return frames
    return filter_frames(frames, draw_kernels(config, len(frames), draws))


def _draw_shape(bounds: Bounds, step: float, num_frames: int, draws: ClipDraws) -> Tensor:
    """Exponents whose first is as often below 1 as above: steep and flat tops alike."""
    low, high = bounds
    middle = min(max(1.0, low), high)
    start = draws.uniform((low, middle) if draws.happens(0.5) else (middle, high))
    return draws.drift(bounds, step, num_frames, start=start)


def _grid(size: int) -> tuple[Tensor, Tensor]:
    """x and y of each pixel of a kernel, (K, K), from its centre."""
    offsets = torch.arange(size, dtype=torch.float64) - size // 2
    y, x = torch.meshgrid(offsets, offsets, indexing="ij")
    return x, y


def _squared_distance(size: int, sigma: Tensor, angle: Tensor) -> Tensor:
    """q (F, K, K): squared length of each offset along the two axes, each in units of its sigma."""
    x, y = _grid(size)
    cos, sin = (f(angle.double())[:, None, None] for f in (torch.cos, torch.sin))
    along, across = cos * x + sin * y, cos * y - sin * x
    sigma_x, sigma_y = sigma.double()[:, :, None, None].unbind(1)
    return (along / sigma_x) ** 2 + (across / sigma_y) ** 2


def _normalized(kernels: Tensor) -> Tensor:
    return kernels / kernels.sum(dim=(-2, -1), keepdim=True)


def _trimmed(kernels: Tensor) -> Tensor:
    """The middle of kernels whose borders weigh nothing, which is quicker to apply."""
    middle = kernels.shape[-1] // 2
    weighty = (kernels.abs() > _NEGLIGIBLE).any(dim=0)
    reach = (torch.nonzero(weighty) - middle).abs()
    radius = int(reach.max()) if len(reach) else 0
    inside = slice(middle - radius, middle + radius + 1)
    return kernels[:, inside, inside]
