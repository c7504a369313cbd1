"""What a command returns: the same facts for people and for machines, and an exit code."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Result:
    """The outcome of a command."""

    data: Mapping[str, Any]
    """For `--json`: plain values."""

    text: str
    """The same for people; may have several lines."""

    exit_code: int = 0
    """0 unless the command ran through and found a fault, as `doctor` may."""


@dataclass
class Phases:
    """Seconds that each phase of a command took, in order."""

    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds by name of the phase; a phase that is entered again adds up."""

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Times the block under a name, also when it fails."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def as_data(self) -> dict[str, float]:
        """Returns the seconds, rounded, with their total."""
        seconds = {**self.seconds, "total": sum(self.seconds.values())}
        return {name: round(value, 3) for name, value in seconds.items()}

    def as_text(self) -> str:
        """Returns one line such as `seconds: load 2.1, preview 4.0, total 6.1`."""
        return "seconds: " + ", ".join(f"{name} {value:.1f}" for name, value in self.as_data().items())


def describe_clip(num_frames: int, height: int, width: int, frame_rate: float | Fraction) -> str:
    """Returns for example `17 frames of 640x384 at 8 fps`; sizes are written width first, as everywhere in the CLI.

    >>> describe_clip(1, 96, 160, Fraction(24000, 1001))
    '1 frame of 160x96 at 23.976 fps'
    """
    frames = "1 frame" if num_frames == 1 else f"{num_frames} frames"
    return f"{frames} of {width}x{height} at {round(float(frame_rate), 3):g} fps"
