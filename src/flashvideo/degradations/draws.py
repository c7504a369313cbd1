"""The random numbers of one clip's degradation: single draws, and walks that drift slowly from frame to frame.

Shapes: F frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

Bounds = tuple[float, float]


class ClipDraws:
    """All randomness of one clip, from one seed.

    Numbers always come from the CPU, so a clip is degraded with the same parameters on every device; only the fields
    of noise, which are large, come from the clip's own device.

    Attributes:
        fields: generator on the clip's device, for noise of the size of the clip.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._numbers = torch.Generator().manual_seed(seed)
        field_seed = int(torch.randint(2**62, (), generator=self._numbers))
        self.fields = torch.Generator(device).manual_seed(field_seed)

    def uniform(self, bounds: Bounds) -> float:
        """A number between the two bounds."""
        low, high = bounds
        return low + (high - low) * float(torch.rand((), generator=self._numbers, dtype=torch.float64))

    def happens(self, probability: float) -> bool:
        """Whether something of this probability happens: never at 0, always at 1."""
        return self.uniform((0.0, 1.0)) < probability

    def choose(self, weights: Sequence[float]) -> int:
        """An index, drawn in proportion to the weights."""
        return int(torch.multinomial(torch.tensor(weights, dtype=torch.float64), 1, generator=self._numbers))

    def drift(
        self, bounds: Bounds, step: float, num_frames: int, *, start: float | None = None
    ) -> torch.Tensor:
        """A bounded random walk: from frame to frame it moves by at most `step`, and stops at the bounds.

        Args:
            bounds: lowest and highest value.
            step: largest change between neighbouring frames; 0 keeps the first value.
            num_frames: F.
            start: the first value; by default drawn uniformly between the bounds.

        Returns:
            (F,) float64, on the CPU.
        """
        low, high = bounds
        values = [self.uniform(bounds) if start is None else start]
        for _ in range(num_frames - 1):
            values.append(min(max(values[-1] + self.uniform((-step, step)), low), high))
        return torch.tensor(values, dtype=torch.float64)
