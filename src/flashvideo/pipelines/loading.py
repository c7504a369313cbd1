"""From a model's name to a pipeline that is ready to run: which folder, which device, which dtype.

A model is a folder that diffusers can read. One ships inside the package, `nano`; every other is named by its path, or
by its repository on the Hugging Face Hub.
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

from flashvideo.pipelines.cogvideox import (
    check_stage1_fits,
    cogvideox_preset,
    preset_with_stage1,
    stage1_components,
)
from flashvideo.pipelines.devices import GIB, choose_device
from flashvideo.pipelines.folders import model_folder
from flashvideo.pipelines.hub import PIPELINES, check_pipeline
from flashvideo.pipelines.stage1 import FlashVideoStage1Pipeline
from flashvideo.pipelines.two_stage import FlashVideoPipeline
from flashvideo.presets import NANO

logger = logging.getLogger(__name__)

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
    model: str | Path = NANO.name,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    text_encoder: str | Path | None = None,
    load_text_encoder: bool = True,
    vram: float | None = None,
    weights: str = "full",
    stage1: str | Path | None = None,
) -> FlashVideoPipeline:
    """Loads the two-stage pipeline of a model, on a device and in a dtype that suit this machine.

    Args:
        model: `"nano"`, `"flashvideo"`, the folder of a model as `save_pretrained` and `flashvideo train` write it, or
            its repository on the Hugging Face Hub: `"FoundationVision/FlashVideo"` or another with such checkpoints,
            which are converted once into the cache folder, or a pipeline in diffusers' layout. A CogVideoX-2B or 5B
            makes previews only.
        device: A torch device, or `"auto"` for the first of cuda, mps and cpu that is there.
        dtype: A torch dtype or its name, or `"auto"` for the faster one by a short probe (`probe_dtype`).
        revision: Branch, tag or commit of the model's repository; the newest if None.
        text_encoder: Repository or folder of the text encoder of released checkpoints, which come without; a pipeline
            with the folders `text_encoder` and `tokenizer`. CogVideoX-2B's if None.
        load_text_encoder: Whether to load the text encoder; without it a call takes `prompt_embeds` and no prompt.
        weights: How the transformers' weights are stored: `"full"`, `"fp8"` or `"int8"`, see
            `flashvideo.pipelines.quantization`.
        vram: Memory of the device in GiB that a run may use; all that is free if None.
        stage1: A CogVideoX-2B or 5B, folder or repository, to use as Stage I instead of the model's own. It must have
            the model's kind of VAE (latent channels, compression) and its text encoder.

    Returns:
        The pipeline, whose networks come to the device when it is their turn: the memory of each run is planned
        (`FlashVideoPipeline.enable_memory_plans`). The settings of its stages are those stored in the model's folder.

    Raises:
        ValueError: If there is no such model, device or dtype, or `stage1` does not fit.
    """
    chosen_device = choose_device(device)
    chosen_dtype = choose_dtype(dtype, chosen_device)
    folder = model_folder(model, revision=revision, text_encoder=text_encoder, dtype=chosen_dtype)
    logger.info("loading %s on %s in %s", folder, chosen_device, chosen_dtype)
    without = {} if load_text_encoder else {"text_encoder": None}
    if stage1 is not None:
        pipeline = _load_with_stage1(folder, stage1, chosen_dtype, **without)
    else:
        pipeline = FlashVideoPipeline.from_pretrained(folder, dtype=chosen_dtype, **without)
    budget_bytes = None if vram is None else int(vram * GIB)
    pipeline.enable_memory_plans(chosen_device, budget_bytes=budget_bytes, weights=weights)
    return pipeline


def load_stage1(
    model: str | Path = NANO.name,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    text_encoder: str | Path | None = None,
) -> FlashVideoStage1Pipeline:
    """Loads Stage I alone, of a two-stage model or of a CogVideoX-2B or 5B.

    Args:
        model: As for `load_pipeline`, as all other arguments.
        device: Where to.
        dtype: In which dtype.
        revision: Which revision.
        text_encoder: Which text encoder.

    Returns:
        The pipeline that makes previews; a Stage II is not loaded.

    Raises:
        ValueError: If there is no such model, device or dtype.
    """
    chosen_device = choose_device(device)
    chosen_dtype = choose_dtype(dtype, chosen_device)
    folder = model_folder(model, revision=revision, text_encoder=text_encoder, dtype=chosen_dtype)
    pipeline = FlashVideoPipeline.from_pretrained(
        folder, dtype=chosen_dtype, stage2_transformer=None, stage2_scheduler=None
    )
    return pipeline.to(chosen_device).stage1


def _load_with_stage1(
    folder: Path, stage1: str | Path, dtype: torch.dtype, **without: None
) -> FlashVideoPipeline:
    other = model_folder(stage1)
    for place, name, wanted in ((folder, folder, PIPELINES[0]), (other, stage1, PIPELINES[1])):
        if (found := check_pipeline(place, name)) != wanted:
            raise ValueError(f"stage1 must be a {PIPELINES[1]} for a {PIPELINES[0]}, but {name} is a {found}")
    check_stage1_fits(folder, other)
    components = stage1_components(other, dtype=dtype)
    pipeline = FlashVideoPipeline.from_pretrained(
        folder, dtype=dtype, stage1_lora=None, **components, **without
    )
    preset = preset_with_stage1(pipeline.preset, cogvideox_preset(other))
    pipeline.register_to_config(preset=preset.to_dict())
    return pipeline


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
