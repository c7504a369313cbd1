"""The pixel degradation as a recipe of Stage II gives it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from flashvideo.degradations.draws import Bounds
from flashvideo.degradations.pixel import PixelDegradation
from flashvideo.degradations.ranges import (
    FinalSincRange,
    OrderRange,
    ResizeRange,
    SecondOrderRange,
    VideoCodecRange,
)


@dataclass(frozen=True, kw_only=True)
class RecipeDegradation:
    """Ranges of `PixelDegradation`; factors that are not named follow the recipe's `scale`.

    Attributes:
        strong: not for here: the phases say how often the degradation is strong.
        weak_factor: between the size and the low resolution of the weak degradation; by default `scale` alone.
        strong_factor: the same of the strong degradation.
        low_multiple: as of `PixelDegradation`, like all below.
        first: first order.
        second: second order.
        final: sinc after the last resize.
        final_resize: of which only the shares of the interpolations count.
        video: last compression.
    """

    strong: float | None = None
    weak_factor: Bounds | None = None
    strong_factor: Bounds | None = None
    low_multiple: int = 1
    first: OrderRange = field(default_factory=OrderRange)
    second: SecondOrderRange = field(default_factory=SecondOrderRange)
    final: FinalSincRange = field(default_factory=FinalSincRange)
    final_resize: ResizeRange = field(default_factory=ResizeRange)
    video: VideoCodecRange = field(default_factory=VideoCodecRange)

    def __post_init__(self) -> None:
        if self.strong is not None:
            raise ValueError(
                f"degradation.strong is for the phases to say, got {self.strong}; give each phase its 'strong'"
            )
        self.at(1)

    def at(self, scale: float) -> PixelDegradation:
        """The whole degradation at a scale."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "strong"}
        for name in ("weak_factor", "strong_factor"):
            values[name] = values[name] or (float(scale), float(scale))
        return PixelDegradation(**values)
