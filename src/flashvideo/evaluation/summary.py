"""Means with intervals, of one system and of the difference between two that made the same videos."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from flashvideo.evaluation.metrics import (
    bootstrap_interval,
    mcnemar,
    paired_interval,
    sign_flip,
    wilson_interval,
)

Record = Mapping[str, float]
"""Numbers of one video, by name."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean and where it may lie."""

    mean: float
    low: float
    """Lower end of the 95 % interval."""

    high: float
    count: int
    """So many videos."""


def estimate(values: Sequence[float], *, is_share: bool = False) -> Estimate:
    """Returns the mean with Wilson's interval for shares, else the bootstrap's, which of one value is a point."""
    if is_share:
        low, high = wilson_interval(int(sum(values)), len(values))
    else:
        low, high = bootstrap_interval(values) if len(values) > 1 else (values[0], values[0])
    return Estimate(mean=float(np.mean(values)), low=low, high=high, count=len(values))


def summarise(records: Sequence[Record], shares: Collection[str] = ()) -> dict[str, dict[str, float]]:
    """Returns mean, low, high and count of every number, over the videos that have it.

    Args:
        records: The videos.
        shares: Names of numbers that are 0 or 1 of each video.
    """
    names = sorted({name for record in records for name in record})
    return {
        name: asdict(
            estimate([record[name] for record in records if name in record], is_share=name in shares)
        )
        for name in names
    }


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much one system's mean is above another's, over the videos that both have."""

    mean: float
    low: float | None
    """Lower end of the 95 % interval of the paired bootstrap; None for a single video."""

    high: float | None
    count: int
    """So many videos have both numbers."""

    p_value: float
    """How likely equally good systems differ so much, by McNemar's exact test for shares, else the sign-flip test."""

    @property
    def is_clear(self) -> bool:
        """Whether it is below 5 %, for which it takes six videos at least."""
        return self.p_value < 0.05


def difference(ours: Sequence[float], theirs: Sequence[float], *, is_share: bool) -> Difference:
    """Compares numbers of the same videos, in the same order.

    Args:
        ours: Of one system.
        theirs: Of the other.
        is_share: Whether they are 0 or 1 of each video.

    Returns:
        The difference, ours less theirs.

    Raises:
        ValueError: If they are not of one length, or none.
    """
    low, high = paired_interval(ours, theirs) if len(ours) > 1 else (None, None)
    return Difference(
        mean=float(np.mean(np.subtract(ours, theirs))),
        low=low,
        high=high,
        count=len(ours),
        p_value=mcnemar([bool(v) for v in ours], [bool(v) for v in theirs])
        if is_share
        else sign_flip(ours, theirs),
    )
