"""The random numbers of one optimiser step, the same however its samples are shared out.

Every number is a function of the recipe's seed, the step, and a sample's place among all samples of that step, over
ranks and accumulated batches. So two processes draw what one with twice the batch draws, and a resumed run goes on
with the numbers that it would have had.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def sample_seed(*parts: int) -> int:
    """One 62-bit seed for a (recipe seed, phase, index, ...) tuple."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 2)


class Draws:
    """Random numbers for some samples of a step.

    All come from generators on the CPU, so that they are the same on every device.

    Args:
        seed: Of the run.
        step: Number of the step in the run.
        places: Of these samples, B of them, among all samples of the step.
        total: How many samples the step has in all.
        device: Where the numbers shall lie.

    Attributes:
        each: One generator per sample, a function of its place.
        shared: A generator that all samples of the step have in common: what it draws is alike everywhere.
    """

    def __init__(
        self, seed: int, step: int, places: Sequence[int], total: int, device: torch.device | str = "cpu"
    ) -> None:
        if not places or min(places) < 0 or max(places) >= total:
            raise ValueError(f"places must be in 0..{total - 1}, got {list(places)}")
        self.places, self.total, self.device = tuple(places), total, torch.device(device)
        self.each = [torch.Generator().manual_seed(sample_seed(seed, step, 1, place)) for place in places]
        self.shared = torch.Generator().manual_seed(sample_seed(seed, step, 0))

    def normal(self, shape: Sequence[int], *, repeat: int = 1) -> Tensor:
        """Standard normal numbers, (repeat B, *shape); sample i has the rows i, B + i, ..."""
        drawn = [torch.randn((repeat, *shape), generator=generator) for generator in self.each]
        return torch.stack(drawn, dim=1).flatten(0, 1).to(self.device)

    def uniform(self, *, repeat: int = 1) -> Tensor:
        """Uniform numbers in [0, 1), (repeat B,), in the order of `normal`."""
        drawn = [torch.rand(repeat, generator=generator) for generator in self.each]
        return torch.stack(drawn, dim=1).flatten().to(self.device)

    def stratified(self, *, repeat: int = 1) -> Tensor:
        """Numbers in [0, 1), (repeat B,), in the order of `normal`: over the whole step one in each of equal slices."""
        slices = torch.randperm(repeat * self.total, generator=self.shared).view(repeat, self.total)
        return (slices[:, self.places].flatten().to(self.device) + self.uniform(repeat=repeat)) / (
            repeat * self.total
        )
