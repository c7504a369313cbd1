"""Speed and memory of each phase of a model, beside the plainest implementation of the same computation.

Both sides have the same weights, inputs and dtype, and take turns, so that whatever else the machine does meets both.
Ours is what `FlashVideoPipeline` does with all of its networks on the device; theirs is
`flashvideo.evaluation.bench.plain`. Their results are compared too: a time counts only beside the right result, so a
difference that rounding does not explain is warned of. A side that fails is left out with its reason.

Phases are those of `flashvideo.pipelines.memory.PHASES`, a stage being one step with guidance, and `whole`: a run with
the model's own settings, without consistency, which has no counterpart.
"""

from __future__ import annotations

import functools
import logging
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from flashvideo.evaluation.bench.cases import BENCH_PHASES, Case, cases
from flashvideo.evaluation.bench.rates import Rates, measure_rates
from flashvideo.evaluation.metrics import bootstrap_interval
from flashvideo.evaluation.peaks import MemoryUse, timed, with_peak
from flashvideo.pipelines.two_stage import FlashVideoPipeline

logger = logging.getLogger(__name__)

T = TypeVar("T")

MOST_ROUNDING = 4.0
"""So many times the square root of a dtype's step results may differ, measured by the largest of them."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """What one side took."""

    seconds: tuple[float, ...]
    """Of each repetition."""

    peak_bytes: int | None
    """The most that was allocated beyond weights and inputs; None where that cannot be told."""

    @property
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)

    def as_dict(self) -> dict[str, Any]:
        """Returns the figures as plain values, for JSON."""
        return {
            "seconds": list(self.seconds),
            "median": self.median,
            "least": min(self.seconds),
            "most": max(self.seconds),
            "peak_bytes": self.peak_bytes,
        }


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was found of one phase in one dtype."""

    phase: str
    """One of `BENCH_PHASES`."""

    dtype: str
    """Name of the dtype, the same on both sides."""

    ours: Side | None
    """What ours took; None where it failed."""

    reference: Side | None
    """What theirs took; None where it failed or computes something else."""

    difference: float | None
    """Largest absolute difference of the two results; None where they cannot be compared."""

    largest: float | None
    """Largest absolute value of our result, to judge the difference by; None where it failed."""

    flops: int
    """Operations by formula."""

    weight_bytes: int
    """Bytes of weights that are read at least."""

    floor_seconds: float
    """Least time by these two over the measured rates; of a whole run, the sum of its phases' least times."""

    note: str
    """What the reference leaves out, or why a side failed or cannot be compared."""

    @property
    def agrees(self) -> bool | None:
        """Whether rounding explains the difference: at most `MOST_ROUNDING` times the square root of the dtype's step.

        None where the results cannot be compared. In that root is room for the sums of a deep network, and for the
        shorter float32 of some devices; another computation, or a missing part of it, differs more.
        """
        if self.difference is None or self.largest is None:
            return None
        step = torch.finfo(getattr(torch, self.dtype)).eps
        return self.difference <= MOST_ROUNDING * math.sqrt(step) * self.largest

    @property
    def ratio(self) -> float | None:
        """How many times as fast ours is: geometric mean over pairs of neighbouring repetitions."""
        logs = self._log_ratios()
        return None if logs is None else math.exp(statistics.fmean(logs))

    @property
    def ratio_interval(self) -> tuple[float, float] | None:
        """Its 95 % bootstrap interval over the pairs."""
        logs = self._log_ratios()
        if logs is None:
            return None
        low, high = bootstrap_interval(logs)
        return math.exp(low), math.exp(high)

    def _log_ratios(self) -> list[float] | None:
        if self.ours is None or self.reference is None:
            return None
        pairs = zip(self.reference.seconds, self.ours.seconds, strict=True)
        return [math.log(theirs / ours) for theirs, ours in pairs]

    def as_dict(self) -> dict[str, Any]:
        """Returns the figures as plain values, for JSON."""
        return {
            **asdict(self),
            "ours": None if self.ours is None else self.ours.as_dict(),
            "reference": None if self.reference is None else self.reference.as_dict(),
            "agrees": self.agrees,
            "ratio": self.ratio,
            "ratio_interval": self.ratio_interval,
            "times_floor": None if self.ours is None else self.ours.median / self.floor_seconds,
        }


def bench(
    pipeline: FlashVideoPipeline,
    *,
    size: tuple[int, int],
    num_frames: int,
    repeats: int,
    phases: Sequence[str] = BENCH_PHASES,
    progress: Callable[[str], None] | None = None,
) -> tuple[Rates, Iterator[Row]]:
    """Measures a model in the dtype in which it was loaded.

    Each side does each phase once to warm up, once to have its memory measured, then `repeats` times in turns, and the
    side that goes first changes from one to the next.

    Args:
        pipeline: The model with all of its networks on one device, without memory plans.
        size: Height and width of the video.
        num_frames: Its frames, no more than a window of Stage II.
        repeats: Repetitions, at least 2.
        phases: Some of `BENCH_PHASES`.
        progress: Told what is being measured.

    Returns:
        The rates that the floors come from, and a row for each phase that the model has, in order, measured when it is
        asked for. The rows raise a ValueError where the model cannot be measured so.

    Raises:
        ValueError: If there is no such phase, or there are too few repetitions.
    """
    unknown = [phase for phase in phases if phase not in BENCH_PHASES]
    if unknown or not phases:
        raise ValueError(
            f"phases must be some of {', '.join(BENCH_PHASES)}, got {', '.join(unknown) or 'none'}"
        )
    if repeats < 2:
        raise ValueError(f"repeats must be at least 2, since one alone has no spread, got {repeats}")
    device, dtype = pipeline.vae.device, pipeline.vae.dtype
    tell = progress or (lambda _: None)
    tell("rates of this machine")
    rates = measure_rates(device, dtype)

    @torch.no_grad()
    def rows() -> Iterator[Row]:
        for case in cases(pipeline, size, num_frames, phases):
            tell(case.phase)
            yield measure(case, rates, repeats=repeats, device=device, dtype=dtype)

    return rates, rows()


def measure(case: Case, rates: Rates, *, repeats: int, device: torch.device, dtype: torch.dtype) -> Row:
    """Measures one phase; a side that fails is left out with its reason."""
    sides = {"ours": case.ours}
    if case.reference is not None:
        sides["the reference"] = case.reference
    failures: dict[str, str] = {}
    results = {}
    for name, side in sides.items():
        # On the host, so that one side's result does not take the other one's memory.
        result = _attempt(functools.partial(_on_host, side), case.phase, name, failures)
        if result is not None:
            results[name] = result
    difference, largest, mismatch = _compare(results.get("ours"), results.get("the reference"))
    if mismatch:
        logger.warning("%s %s", case.phase, mismatch)
    results.clear()
    measured = _measure_sides(
        {
            name: side
            for name, side in sides.items()
            if name not in failures and not (mismatch and name != "ours")
        },
        case.phase,
        failures,
        repeats=repeats,
        device=device,
    )
    notes = [case.note, mismatch, *(f"{name} fails: {reason}" for name, reason in failures.items())]
    row = Row(
        phase=case.phase,
        dtype=str(dtype).removeprefix("torch."),
        ours=measured.get("ours"),
        reference=measured.get("the reference"),
        difference=difference,
        largest=largest,
        flops=sum(cost.flops for cost in case.costs.values()),
        weight_bytes=sum(cost.weight_bytes(dtype.itemsize) for cost in case.costs.values()),
        floor_seconds=sum(
            rates.floor_seconds(
                cost.flops, cost.weight_bytes(dtype.itemsize), convolves=phase.endswith("code")
            )
            for phase, cost in case.costs.items()
        ),
        note="; ".join(filter(None, notes)),
    )
    if row.agrees is False:
        logger.warning(
            "the two sides differ at %s in %s by %.1e, where the result is at most %.1e: more than rounding explains, "
            "so their times are not of the same work",
            row.phase,
            row.dtype,
            row.difference,
            row.largest,
        )
    return row


def _compare(ours: Tensor | None, theirs: Tensor | None) -> tuple[float | None, float | None, str]:
    """Largest difference of two results and largest value of ours, as far as there are such, and why there are not."""
    largest = None if ours is None else ours.abs().max().item()
    if largest is not None and not math.isfinite(largest):
        return None, None, "cannot be compared: our result is not finite"
    if ours is None or theirs is None:
        return None, largest, ""
    if ours.shape != theirs.shape:
        shapes = f"ours is of the shape {tuple(ours.shape)}, the reference's of {tuple(theirs.shape)}"
        return None, largest, f"cannot be compared: {shapes}"
    difference = (theirs - ours).abs().max().item()
    if not math.isfinite(difference):
        return None, largest, "cannot be compared: the reference's result is not finite"
    return difference, largest, ""


def _measure_sides(
    sides: Mapping[str, Callable[[], Tensor]],
    phase: str,
    failures: dict[str, str],
    *,
    repeats: int,
    device: torch.device,
) -> dict[str, Side]:
    """Memory and times of those sides that do not fail, by their names."""
    peaks: dict[str, int | None] = {}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for name, side in sides.items():
        memory = _attempt(functools.partial(_memory_of, side, device), phase, name, failures)
        peaks[name] = None if memory is None else memory.extra
    for number in range(repeats):
        for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
            if name not in failures:
                taken = _attempt(functools.partial(_seconds_of, sides[name], device), phase, name, failures)
                seconds[name] += [] if taken is None else [taken]
    return {
        name: Side(seconds=tuple(seconds[name]), peak_bytes=peaks[name])
        for name in sides
        if name not in failures
    }


def _memory_of(work: Callable[[], Tensor], device: torch.device) -> MemoryUse | None:
    return with_peak(work, device)[1]


def _seconds_of(work: Callable[[], Tensor], device: torch.device) -> float:
    return timed(work, device)[1]


def _on_host(work: Callable[[], Tensor]) -> Tensor:
    return work().float().cpu()


def _attempt(work: Callable[[], T], phase: str, side: str, failures: dict[str, str]) -> T | None:
    """What some work gives; None where it fails, also for too little memory, with the reason under the side's name."""
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        failures[side] = (str(error) or type(error).__name__).splitlines()[0]
        logger.warning("%s fails at %s: %s", side, phase, failures[side])
        return None
