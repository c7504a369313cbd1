"""How fast a machine multiplies matrices, convolves and moves memory: the floor under every time measured on it.

The rate of bytes is that of memory beyond the caches; bytes that are still in a cache move faster, so where a network
is so small that its weights stay there, the part of the floor that comes from bytes is no floor.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from flashvideo.evaluation.peaks import timed

MIB = 1024**2
REPEATS = 5

_MATRIX_SIDES = {"cpu": (512, 1024, 1536)}  # large enough for the full rate, small enough for an old laptop
_ACCELERATOR_SIDES = (2048, 4096, 8192)
_CONVOLUTIONS = {"cpu": (64, 6, 50, 50)}
_ACCELERATOR_CONVOLUTION = (256, 10, 130, 130)
_BUFFER_BYTES = {"cpu": 256 * MIB}  # more than the caches hold
_ACCELERATOR_BUFFER_BYTES = 1024 * MIB


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What a device does per second."""

    flops: float
    """Operations of a matrix product, two for each multiplication with an addition."""

    convolution_flops: float
    """Operations of a convolution; on CUDA devices those of float32 may be of fewer digits, and so faster."""

    bytes: float
    """Bytes read or written."""

    def floor_seconds(self, flops: int, num_bytes: int, *, convolves: bool = False) -> float:
        """Returns the least time for so many operations and so many bytes: the longer of the two alone.

        Args:
            flops: Operations.
            num_bytes: Bytes.
            convolves: Whether they are of convolutions, for which the faster of the two rates counts.

        >>> Rates(flops=100, convolution_flops=200, bytes=10).floor_seconds(300, 10)
        3.0
        >>> Rates(flops=100, convolution_flops=200, bytes=10).floor_seconds(300, 10, convolves=True)
        1.5
        """
        rate = max(self.flops, self.convolution_flops) if convolves else self.flops
        return max(flops / rate, num_bytes / self.bytes)


def measure_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Measures a device, in a second or two.

    The rate of products is the best of three sizes of square matrices; that of convolutions is of one in three
    dimensions, such as the VAE has; that of bytes is of a copy, which reads and writes each of them. Each is run a few
    times, and its median counts.

    Args:
        device: Where.
        dtype: Of the matrices.

    Returns:
        The rates.
    """
    sides = _MATRIX_SIDES.get(device.type, _ACCELERATOR_SIDES)
    num_bytes = _BUFFER_BYTES.get(device.type, _ACCELERATOR_BUFFER_BYTES)
    return Rates(
        flops=max(_product_rate(side, device, dtype) for side in sides),
        convolution_flops=_convolution_rate(
            _CONVOLUTIONS.get(device.type, _ACCELERATOR_CONVOLUTION), device, dtype
        ),
        bytes=_copy_rate(num_bytes, device),
    )


def _product_rate(side: int, device: torch.device, dtype: torch.dtype) -> float:
    one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty(side, side, device=device, dtype=dtype)
    return 2 * side**3 / _median_seconds(lambda: torch.mm(one, other, out=out), device)


def _convolution_rate(clip: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype) -> float:
    """Of a clip (channels, frames, height, width) to as many channels."""
    channels, frames, height, width = clip
    pixels = torch.randn(1, channels, frames, height, width, device=device).to(dtype)
    kernel = torch.randn(channels, channels, 3, 3, 3, device=device).to(dtype)
    flops = 2 * 3**3 * channels**2 * (frames - 2) * (height - 2) * (width - 2)
    return flops / _median_seconds(lambda: F.conv3d(pixels, kernel), device)


def _copy_rate(num_bytes: int, device: torch.device) -> float:
    source, target = (torch.ones(num_bytes, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * num_bytes / _median_seconds(lambda: target.copy_(source), device)


def _median_seconds(work: Callable[[], object], device: torch.device) -> float:
    timed(work, device)  # kernels are chosen and memory is mapped in the first run
    return statistics.median(timed(work, device)[1] for _ in range(REPEATS))
