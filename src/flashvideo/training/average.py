"""The moving average of the weights, which is what is judged and kept."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from flashvideo.training.processes import local_part, trained_parameters


class Average:
    """Exponential moving average of parameters, warmed up so that early weights are forgotten.

    Args:
        modules: whose trained parameters are averaged; of sharded ones each process averages its part.
        decay: of the average; 0 keeps none, and the weights themselves stand for it.

    Attributes:
        shadow: the averages by the parameters' names; empty without a decay.
    """

    def __init__(self, modules: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = trained_parameters(modules) if decay else {}
        self.shadow = {name: p.detach().clone() for name, p in self.parameters.items()}

    def _pairs(self) -> tuple[list[Tensor], list[Tensor]]:
        """(averages, parameters) as this process holds them."""
        parameters = [local_part(p) for p in self.parameters.values()]
        return [local_part(s) for s in self.shadow.values()], parameters

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the current weights; the horizon grows with `step` up to the decay."""
        if self.shadow:
            decay = min(self.decay, (1 + step) / (10 + step))
            shadow, parameters = self._pairs()
            torch._foreach_lerp_(shadow, parameters, 1 - decay)

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Take averages by name, as `shadow` has them."""
        for name, shadow in self.shadow.items():
            shadow.copy_(values[name])

    @torch.no_grad()
    def restart(self) -> None:
        """Forget all before: the average is what the weights are now."""
        for shadow, parameter in zip(*self._pairs(), strict=True):
            shadow.copy_(parameter)

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """Within the block the modules hold the averaged weights, and the average the others."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        # One at a time, so that no second copy of the model is needed.
        for shadow, parameter in zip(*self._pairs(), strict=True):
            kept = parameter.clone()
            parameter.copy_(shadow)
            shadow.copy_(kept)
