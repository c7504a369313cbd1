"""Peak memory of a training process."""

from __future__ import annotations

import sys

import psutil
import torch


def peak_memory(device: torch.device) -> int:
    """Most bytes in use at any time so far: of the GPU's memory what torch took, on a processor the process's own."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts in bytes, Linux in KiB
