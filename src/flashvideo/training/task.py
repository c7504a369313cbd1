"""What the loop asks of a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils.data import Dataset

from flashvideo.training.draws import Draws


class Task(Protocol):
    """One objective. `modules` hold every network that is trained; nothing else changes while a run goes on."""

    modules: nn.ModuleDict

    def dataset(self, phase_index: int, clips_per_step: int) -> Dataset:
        """Samples of a phase: `dataset[step, place]` depends on these, the recipe's seed and the phase alone."""

    def loss(self, batch: Any, phase_index: int, draws: Draws) -> tuple[Tensor, dict[str, float]]:
        """Mean loss of one batch, and named values for the curve."""

    def validate(self, folder: Path) -> dict[str, float]:
        """Figures on fixed held-out clips, for the moving average's weights, which are loaded when it is called.

        It writes pictures for people into `folder`, which the loop moves to the run's output. With sharded weights all
        processes call it and must do the same.
        """

    def score(self, values: Mapping[str, float]) -> float:
        """How good weights with such figures are; the best are kept."""

    def warnings(self, values: Mapping[str, float], history: Sequence[Mapping[str, float]]) -> list[str]:
        """What looks like a collapse in the newest figures, in sentences; `history` are those before, in order."""

    def save(self, folder: Path, modules: nn.ModuleDict | None = None) -> None:
        """Write in diffusers layout what is trained, from `modules` if they are given, which then are alike."""


def fallen(
    values: Mapping[str, float], history: Sequence[Mapping[str, float]], allowed: Mapping[str, float]
) -> list[str]:
    """A sentence for each figure that is more than an allowed amount below its best.

    Args:
        values: the newest figures.
        history: those before.
        allowed: the amounts, by figure; higher figures are better.
    """
    sentences = []
    for name, amount in allowed.items():
        best = max((earlier[name] for earlier in history if name in earlier), default=None)
        if best is not None and name in values and not values[name] >= best - amount:
            sentences.append(
                f"{name} fell to {values[name]:.4g} from {best:.4g} at its best, by more than {amount:g}: look at "
                "the validation's pictures, and go back to the best weights or lower the learning rate"
            )
    return sentences
