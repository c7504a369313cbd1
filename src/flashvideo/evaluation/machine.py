"""What a figure was measured on: processor, accelerator, memory, software, and how busy the machine was.

Nothing heavy is imported before a function needs it.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flashvideo import __version__

_GIB = 1024**3
_MEASURED_PACKAGES = ("torch", "diffusers", "transformers", "accelerate")
_BUSY_SHARE = 0.5  # of the cores; a load above it is somebody else's work


def describe_machine(device: str) -> dict[str, Any]:
    """Returns what stays the same from one measurement to the next on the same machine.

    Args:
        device: The torch device that works.
    """
    processor = describe_processor()
    del processor["free_memory_gib"]
    return {
        "device": device,
        "processor": processor,
        "accelerator": describe_accelerator(device),
        "platform": platform.platform(),
    }


def describe_software() -> dict[str, Any]:
    """Returns versions: of Python, of the packages that do the work, and our own, with its commit if there is one."""
    return {
        "python": platform.python_version(),
        "packages": {name: package_version(name) for name in _MEASURED_PACKAGES},
        "flashvideo": __version__,
        "commit": git_commit(Path(__file__).parent),
    }


def package_version(name: str) -> str | None:
    """Returns the version of an installed package, None if there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe_processor() -> dict[str, Any]:
    """Returns the processor's cores, the threads that torch will use, and memory in GiB."""
    import torch

    return {
        "name": processor_name(),
        "cores": num_cores(),
        "threads": torch.get_num_threads(),
        "features": torch.backends.cpu.get_cpu_capability(),
        "memory_gib": memory_gib("SC_PHYS_PAGES"),
        "free_memory_gib": memory_gib("SC_AVPHYS_PAGES"),
    }


def num_cores() -> int:
    """Returns how many cores this process may use."""
    return (len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()) or 1


def processor_name() -> str:
    """Returns the processor's name as the system gives it."""
    if sys.platform == "linux":
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def memory_gib(pages: str) -> float | None:
    """Returns an amount of memory in GiB by its name in `os.sysconf`, None where the system does not tell."""
    try:
        return round(os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE") / _GIB, 1)
    except (AttributeError, ValueError, OSError):
        return None


def describe_accelerator(device: str) -> dict[str, Any] | None:
    """Returns name, memory in GiB and driver of a CUDA device, the name of another kind; None for the processor."""
    import torch

    kind = torch.device(device).type
    if kind == "cpu":
        return None
    if kind != "cuda":
        return {"name": kind, "memory_gib": None, "driver": None}
    properties = torch.cuda.get_device_properties(device)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    drivers = (_output_of(query) or "").splitlines()
    return {
        "name": properties.name,
        "memory_gib": round(properties.total_memory / _GIB, 1),
        "driver": drivers[0] if drivers else None,
    }


def git_commit(folder: Path) -> str | None:
    """Returns the commit of the repository in which a folder lies, with "-changed" behind it where files differ.

    None if it lies in no repository, or in one that does not hold it.
    """
    git = ["git", "-C", str(folder)]
    if not _output_of([*git, "ls-files", "."]):
        return None
    commit, changes = (
        _output_of([*git, "rev-parse", "HEAD"]),
        _output_of([*git, "status", "--porcelain", "."]),
    )
    return None if commit is None else commit + ("-changed" if changes else "")


def load_average() -> float | None:
    """Returns how many processes wanted a core in the last minute, on average; None where the system does not tell."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def is_busy(load: float | None) -> bool:
    """Whether a load average says that others are working too, so that times will be too long."""
    return load is not None and load > _BUSY_SHARE * num_cores()


def _output_of(command: Sequence[str]) -> str | None:
    """What a program prints; None if it is not there or fails."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
