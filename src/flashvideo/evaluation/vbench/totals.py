"""VBench's sixteen dimensions and its three totals (Huang et al., "VBench", CVPR 2024; VBench-Long has the same).

Each dimension is scaled to what was found to be its range, `(score - low) / (high - low)`; the quality total is the
weighted mean of the seven that judge a video alone, the semantic total the mean of the nine that judge it against its
prompt, and

    total = (4 quality + semantic) / 5
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One of VBench's scores."""

    name: str
    """As VBench prints it, for example `subject consistency`."""

    is_quality: bool
    """Whether it judges the video alone, and not against its prompt."""

    low: float = 0.0
    """Score that counts as 0, as a fraction."""

    high: float = 1.0
    """Score that counts as 1."""

    weight: float = 1.0
    """Weight in its total."""

    def scaled(self, percent: float) -> float:
        """Returns a score in percent as a fraction of the dimension's range."""
        return (percent / 100 - self.low) / (self.high - self.low)


DIMENSIONS = (
    Dimension(name="subject consistency", is_quality=True, low=0.1462),
    Dimension(name="background consistency", is_quality=True, low=0.2615),
    Dimension(name="temporal flickering", is_quality=True, low=0.6293),
    Dimension(name="motion smoothness", is_quality=True, low=0.706, high=0.9975),
    Dimension(name="dynamic degree", is_quality=True, weight=0.5),
    Dimension(name="aesthetic quality", is_quality=True),
    Dimension(name="imaging quality", is_quality=True),
    Dimension(name="object class", is_quality=False),
    Dimension(name="multiple objects", is_quality=False),
    Dimension(name="human action", is_quality=False),
    Dimension(name="color", is_quality=False),
    Dimension(name="spatial relationship", is_quality=False),
    Dimension(name="scene", is_quality=False, high=0.8222),
    Dimension(name="appearance style", is_quality=False, low=0.0009, high=0.2855),
    Dimension(name="temporal style", is_quality=False, high=0.364),
    Dimension(name="overall consistency", is_quality=False, high=0.364),
)
"""In the order in which VBench prints them."""


@dataclass(frozen=True, kw_only=True)
class Totals:
    """VBench's totals, in percent."""

    total: float
    """Of quality and semantic, four to one."""

    quality: float
    """Of the dimensions that judge the video alone."""

    semantic: float
    """Of the dimensions that judge it against its prompt."""


def totals(scores: Mapping[str, float]) -> Totals:
    """Computes VBench's three totals.

    Args:
        scores: Percent for the name of every dimension; what else there is is ignored.

    Returns:
        The totals in percent.

    Raises:
        ValueError: If a dimension is missing, or a score is not between 0 and 100.
    """
    missing = [dimension.name for dimension in DIMENSIONS if dimension.name not in scores]
    if missing:
        raise ValueError(
            f"VBench's totals need all {len(DIMENSIONS)} dimensions, missing {', '.join(missing)}"
        )
    for dimension in DIMENSIONS:
        if not 0 <= scores[dimension.name] <= 100:
            raise ValueError(
                f"scores must be percent from 0 to 100, got {scores[dimension.name]} for {dimension.name}"
            )
    quality, semantic = (_weighted_mean(scores, is_quality=is_quality) for is_quality in (True, False))
    return Totals(total=(4 * quality + semantic) / 5, quality=quality, semantic=semantic)


def _weighted_mean(scores: Mapping[str, float], *, is_quality: bool) -> float:
    chosen = [dimension for dimension in DIMENSIONS if dimension.is_quality == is_quality]
    weighted = sum(dimension.weight * dimension.scaled(scores[dimension.name]) for dimension in chosen)
    return 100 * weighted / sum(dimension.weight for dimension in chosen)
