"""From a model's name to a pipeline that is ready to run: which folder, which device, which dtype.

A model is a folder that diffusers can read. One ships inside the package, `nano`; every other is named by its path.
Device and dtype are found by looking at the machine: the dtype by timing the two operations in which nearly all of
the work happens, linear layers and 3D convolutions.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from flashvideo.pipelines.two_stage import FlashVideoPipeline

logger = logging.getLogger(__name__)

NANO_PATH = Path(__file__).parents[1] / "assets" / "nano"
"""Folder of the model that ships inside the package."""

MODELS: Mapping[str, Path] = {"nano": NANO_PATH}
"""Models that have a name; all others are folders."""

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""The dtypes that a pipeline can run in, by name."""

MIN_SPEEDUP = 1.5
"""How many times faster than float32 bfloat16 must be to be worth its rounding. Well above the noise of timing, so
that the same machine makes the same choice, and with it the same video, on every run."""


def load_pipeline(
    model: str | Path = "nano",
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    text_encoder: bool = True,
) -> FlashVideoPipeline:
    """Loads the two-stage pipeline of a model, on a device and in a dtype that suit this machine.

    Args:
        model: `"nano"`, or the folder of a model as `save_pretrained` and `flashvideo train` write it.
        device: A torch device, or `"auto"` for the first of cuda, mps and cpu that is there.
        dtype: A torch dtype or its name, or `"auto"` for the faster one by a short probe (`probe_dtype`).
        text_encoder: Whether to load the text encoder; without it a call takes `prompt_embeds` and no prompt.

    Returns:
        The pipeline, moved to the device. The settings of its stages are those stored in the model's folder.

    Raises:
        ValueError: If there is no such model, device or dtype.
    """
    folder = model_folder(model)
    chosen_device = choose_device(device)
    chosen_dtype = choose_dtype(dtype, chosen_device)
    logger.info("loading %s on %s in %s", folder, chosen_device, chosen_dtype)
    pipeline: FlashVideoPipeline = FlashVideoPipeline.from_pretrained(
        folder, dtype=chosen_dtype, **({} if text_encoder else {"text_encoder": None})
    )
    return pipeline.to(chosen_device)


def model_folder(model: str | Path) -> Path:
    """Finds the folder of a model.

    Args:
        model: A name in `MODELS`, or a path. A name wins over a folder of the same name: write `./nano` for that.

    Returns:
        The folder, which holds a `model_index.json`.

    Raises:
        ValueError: If `model` is neither a known name nor the folder of a pipeline.
    """
    folder = MODELS.get(str(model), Path(model).expanduser())
    if (folder / "model_index.json").is_file():
        return folder
    known = ", ".join(repr(name) for name in MODELS)
    problem = "which has no model_index.json" if folder.is_dir() else "and there is no such folder"
    raise ValueError(
        f"model must be one of {known} or a folder with a model_index.json, got {str(model)!r}, {problem}"
    )


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """Returns the device that was asked for, or for `"auto"` the first of cuda, mps and cpu that this machine has.

    Raises:
        ValueError: If torch does not know the device, or this machine does not have it.
    """
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available.insert(0, "cuda")
    if device == "auto":
        return torch.device(available[0])
    expected = "'auto', " + ", ".join(repr(name) for name in available)
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device must be one of {expected}, got {device!r}") from error
    if chosen.type == "cuda" and chosen.type in available:
        in_range = chosen.index is None or chosen.index < torch.cuda.device_count()
    else:
        in_range = chosen.type in available
    if not in_range:
        raise ValueError(f"device must be one of {expected}, got {str(device)!r}, which this machine lacks")
    return chosen


def choose_dtype(dtype: str | torch.dtype = "auto", device: str | torch.device = "cpu") -> torch.dtype:
    """Returns the dtype that was asked for, or for `"auto"` the one that `probe_dtype` finds for the device.

    Raises:
        ValueError: If it is not one of `DTYPES`.
    """
    if dtype == "auto":
        return probe_dtype(str(device)).dtype
    chosen = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if chosen is None or chosen not in DTYPES.values():
        expected = ", ".join(repr(name) for name in ("auto", *DTYPES))
        raise ValueError(f"dtype must be one of {expected}, got {dtype!r}")
    return chosen


@dataclass(frozen=True, kw_only=True)
class DtypeProbe:
    """What a probe found on one device."""

    dtype: torch.dtype
    """The dtype to run in."""

    seconds: Mapping[torch.dtype, float]
    """Time of the probe's work per dtype; infinite where the device cannot do it."""


@functools.cache
def probe_dtype(device: str) -> DtypeProbe:
    """Times float32 and bfloat16 on a device, once per process; it takes about a tenth of a second.

    Args:
        device: Name of a device that `choose_device` accepts.

    Returns:
        The times and the dtype that follows from them by `faster_dtype`.
    """
    seconds = {
        dtype: _probe_seconds(torch.device(device), dtype) for dtype in (torch.float32, torch.bfloat16)
    }
    return DtypeProbe(dtype=faster_dtype(seconds), seconds=seconds)


def faster_dtype(seconds: Mapping[torch.dtype, float]) -> torch.dtype:
    """Returns bfloat16 where it is at least `MIN_SPEEDUP` times as fast as float32, and float32 elsewhere.

    Args:
        seconds: Time of the same work in both dtypes.

    >>> faster_dtype({torch.float32: 3.0, torch.bfloat16: 1.0})
    torch.bfloat16
    >>> faster_dtype({torch.float32: 3.0, torch.bfloat16: 2.9})
    torch.float32
    """
    faster = seconds[torch.bfloat16] * MIN_SPEEDUP <= seconds[torch.float32]
    return torch.bfloat16 if faster else torch.float32


def _probe_seconds(device: torch.device, dtype: torch.dtype, num_repeats: int = 10) -> float:
    """Returns the sum of the best times of a linear layer and a 3D convolution; infinity without kernels for them."""
    # Enough work to keep the device busy, so that it is the arithmetic that is timed and not the call.
    side, height, width = (256, 18, 34) if device.type == "cpu" else (4096, 130, 258)
    num_threads = torch.get_num_threads()
    try:
        # One thread: its speed is the processor's, while several wait for each other whenever a core is taken.
        torch.set_num_threads(1)
        tokens = torch.zeros(side, side, device=device, dtype=dtype)
        video = torch.zeros(1, 32, 4, height, width, device=device, dtype=dtype)
        kernel = torch.zeros(32, 32, 3, 3, 3, device=device, dtype=dtype)
        linear_seconds = _best_seconds(lambda: tokens @ tokens, device, num_repeats)
        return linear_seconds + _best_seconds(
            lambda: torch.nn.functional.conv3d(video, kernel), device, num_repeats
        )
    except (RuntimeError, TypeError) as error:  # how torch says that a device has no kernel for a dtype
        logger.info("%s cannot run %s: %s", device, dtype, error)
        return float("inf")
    finally:
        torch.set_num_threads(num_threads)


def _best_seconds(work: Callable[[], object], device: torch.device, num_repeats: int) -> float:
    best = float("inf")
    for _ in range(1 + num_repeats):  # the first run pays for set-up, and is never the best
        start = time.perf_counter()
        work()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best
