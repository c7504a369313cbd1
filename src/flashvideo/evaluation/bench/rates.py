"""How fast a machine multiplies matrices and moves memory: the floor under every time measured on it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

MIB = 1024**2
REPEATS = 5

_MATRIX_SIDES = {"cpu": (512, 1024, 1536)}  # large enough for the full rate, small enough for an old laptop
_ACCELERATOR_SIDES = (2048, 4096, 8192)
_BUFFER_BYTES = {"cpu": 256 * MIB}  # more than the caches hold
_ACCELERATOR_BUFFER_BYTES = 1024 * MIB


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What a device does per second."""

    flops: float
    """Operations of a matrix product, two for each multiplication with an addition."""

    bytes: float
    """Bytes read or written."""

    def floor_seconds(self, flops: int, num_bytes: int) -> float:
        """Returns the least time for so many operations and so many bytes: the longer of the two alone.

        >>> Rates(flops=100, bytes=10).floor_seconds(300, 50)
        5.0
        """
        return max(flops / self.flops, num_bytes / self.bytes)


def measure_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Measures a device, in a second or two.

    The rate of products is the best of three sizes of square matrices; that of bytes is of a copy, which reads and
    writes each of them. Each size is run a few times, and its median counts.

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
        bytes=_copy_rate(num_bytes, device),
    )


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Returns the seconds that some work takes, until the device is done with it."""
    started = time.perf_counter()
    work()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - started


def _product_rate(side: int, device: torch.device, dtype: torch.dtype) -> float:
    one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty(side, side, device=device, dtype=dtype)
    return 2 * side**3 / _median_seconds(lambda: torch.mm(one, other, out=out), device)


def _copy_rate(num_bytes: int, device: torch.device) -> float:
    source, target = (torch.ones(num_bytes, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * num_bytes / _median_seconds(lambda: target.copy_(source), device)


def _median_seconds(work: Callable[[], object], device: torch.device) -> float:
    timed(work, device)  # kernels are chosen and memory is mapped in the first run
    return statistics.median(timed(work, device) for _ in range(REPEATS))
