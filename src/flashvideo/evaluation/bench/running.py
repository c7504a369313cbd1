"""Speed and memory of each phase of a model, beside the plainest implementation of the same computation.

Both sides have the same weights, inputs and dtype, and take turns, so that whatever else the machine does meets both.
Ours is what `FlashVideoPipeline` does with all of its networks on the device; theirs is
`flashvideo.evaluation.bench.plain`. Their results are compared too: a time counts only beside the right result.

Phases are those of `flashvideo.pipelines.memory.PHASES`, a stage being one step with guidance, and `whole`: a run with
the model's own settings, without consistency, which has no counterpart.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from flashvideo.evaluation.bench.cases import BENCH_PHASES, Case, cases
from flashvideo.evaluation.bench.rates import Rates, measure_rates, timed
from flashvideo.evaluation.memory import extra_peak
from flashvideo.evaluation.metrics import bootstrap_interval
from flashvideo.pipelines.two_stage import FlashVideoPipeline

logger = logging.getLogger(__name__)


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

    ours: Side
    """What ours took."""

    reference: Side | None
    """What theirs took; None where it failed."""

    difference: float | None
    """Largest absolute difference of the two results."""

    largest: float
    """Largest absolute value of our result, to judge the difference by."""

    flops: int
    """Operations by formula."""

    weight_bytes: int
    """Bytes of weights that are read at least."""

    floor_seconds: float
    """Least time by these two over the measured rates; of a whole run, the sum of its phases' least times."""

    note: str
    """What the reference leaves out, or why it failed."""

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
        if self.reference is None:
            return None
        pairs = zip(self.reference.seconds, self.ours.seconds, strict=True)
        return [math.log(theirs / ours) for theirs, ours in pairs]

    def as_dict(self) -> dict[str, Any]:
        """Returns the figures as plain values, for JSON."""
        return {
            **asdict(self),
            "ours": self.ours.as_dict(),
            "reference": None if self.reference is None else self.reference.as_dict(),
            "ratio": self.ratio,
            "ratio_interval": self.ratio_interval,
            "times_floor": self.ours.median / self.floor_seconds,
        }


@torch.no_grad()
def bench(
    pipeline: FlashVideoPipeline,
    *,
    size: tuple[int, int],
    num_frames: int,
    repeats: int,
    phases: Sequence[str] = BENCH_PHASES,
    progress: Callable[[str], None] | None = None,
) -> tuple[list[Row], Rates]:
    """Measures a model in the dtype in which it was loaded.

    Each side does each phase once to warm up, once to have its memory measured, then `repeats` times in turns.

    Args:
        pipeline: The model with all of its networks on one device, without memory plans.
        size: Height and width of the video.
        num_frames: Its frames, no more than a window of Stage II.
        repeats: Repetitions, at least 2.
        phases: Some of `BENCH_PHASES`.
        progress: Told what is being measured.

    Returns:
        A row for each phase that the model has, in order, and the rates that the floors come from.

    Raises:
        ValueError: If there is no such phase, or the model cannot be measured so.
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
    rates, rows = measure_rates(device, dtype), []
    for case in cases(pipeline, size, num_frames, phases):
        tell(case.phase)
        rows.append(measure(case, rates, repeats=repeats, device=device, dtype=dtype))
    return rows, rates


def measure(case: Case, rates: Rates, *, repeats: int, device: torch.device, dtype: torch.dtype) -> Row:
    """Measures one phase; a reference that fails is left out with its reason."""
    result, note, difference = case.ours().float(), case.note, None
    sides = [case.ours]
    try:
        difference = (case.reference().float() - result).abs().max().item()
        sides.append(case.reference)
    except RuntimeError as error:  # also of too little memory
        reason = str(error).splitlines()[0]
        logger.warning("the reference fails at %s: %s", case.phase, reason)
        note = f"the reference fails: {reason}"
    largest = result.abs().max().item()
    del result
    peaks = [extra_peak(side, device) for side in sides]
    seconds: list[list[float]] = [[] for _ in sides]
    for _ in range(repeats):
        for side, times in zip(sides, seconds, strict=True):
            times.append(timed(side, device))
    measured = [
        Side(seconds=tuple(times), peak_bytes=peak) for times, peak in zip(seconds, peaks, strict=True)
    ]
    itemsize = dtype.itemsize
    return Row(
        phase=case.phase,
        dtype=str(dtype).removeprefix("torch."),
        ours=measured[0],
        reference=measured[1] if len(measured) > 1 else None,
        difference=difference,
        largest=largest,
        flops=sum(cost.flops for cost in case.costs),
        weight_bytes=sum(cost.weight_bytes(itemsize) for cost in case.costs),
        floor_seconds=sum(
            rates.floor_seconds(cost.flops, cost.weight_bytes(itemsize)) for cost in case.costs
        ),
        note=note,
    )
