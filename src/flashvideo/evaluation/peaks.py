"""What work takes on a device: seconds until the device is done, and the most memory at once.

Memory is torch's own count on CUDA devices, and on Linux all of the process, by its high-water mark (VmHWM).
"""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """Memory around some work."""

    before: int
    """Bytes in use before it."""

    most: int
    """Bytes in use at its peak, those from before among them."""

    @property
    def extra(self) -> int:
        """Bytes that the work took beyond what was there."""
        return self.most - self.before


def timed(work: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """Does some work and times it, from when the device is done with what came before until it is done with this.

    Args:
        work: The work.
        device: Where it is done.

    Returns:
        Its result, and seconds.
    """
    synchronize(device)
    started = time.perf_counter()
    result = work()
    synchronize(device)
    return result, time.perf_counter() - started


def with_peak(work: Callable[[], T], device: torch.device) -> tuple[T, MemoryUse | None]:
    """Does some work and finds the most memory that is in use meanwhile.

    What nobody holds any longer is freed first: it would hide what the work takes.

    Args:
        work: The work.
        device: Where it is done.

    Returns:
        Its result, and the memory; None where that is not known.
    """
    before = _start(device)
    result = work()
    synchronize(device)
    most = None if before is None else _most(device)
    if before is None or most is None:
        return result, None
    return result, MemoryUse(before=before, most=most)


def synchronize(device: torch.device) -> None:
    """Waits until a device is done."""
    if device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(device)


def _start(device: torch.device) -> int | None:
    """Frees what is not needed and lets the peak start anew; returns the bytes in use, None if unknown."""
    synchronize(device)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if sys.platform != "linux" or device.type not in ("cpu", "meta"):
        return None
    _trim()
    try:
        _RESET.write_text("5")  # VmHWM starts anew
    except OSError:  # a container may forbid it, and the mark would be of earlier work
        return None
    return _process_bytes("VmRSS")


def _most(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _process_bytes("VmHWM")


def _trim() -> None:
    """Has the allocator give back what is free; only GNU's can."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return


def _process_bytes(name: str) -> int | None:
    """Memory of this process by its name in Linux's status; None where it is missing."""
    lines = _STATUS.read_text().splitlines() if _STATUS.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)
