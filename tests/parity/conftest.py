"""What tests of whole pipelines share: the reference's noise in place of random draws, and a watch on the network."""

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import nn

# Where the pipelines draw: Stage I's start, its steps, and Stage II's two noises.
DRAWING_MODULES = ("flashvideo.pipelines.stage1", "flashvideo.schedule", "flashvideo.pipelines.windows")


@pytest.fixture
def replay(monkeypatch) -> Callable[[Iterable[torch.Tensor]], list[torch.Tensor]]:
    """`replay(draws)` gives the pipelines these tensors, in order, for noise; returns what has not been drawn yet."""

    def start(draws: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        left = list(draws)

        def next_draw(shape: tuple[int, ...], **_: object) -> torch.Tensor:
            noise = left.pop(0)
            assert tuple(shape) == tuple(noise.shape)
            return noise

        for module in DRAWING_MODULES:
            monkeypatch.setattr(f"{module}.randn_tensor", next_draw)
        return left

    return start


class Evaluations:
    """What a network got and gave, evaluation by evaluation.

    Attributes:
        latents: (B, f, C, h, w) each.
        timesteps: The times of the batch, as a list each.
        outputs: (B, f, C, h, w) each.
        embedded: Values that reached the embedders, in the order time, number of frames, noise step.
    """

    def __init__(self, transformer: nn.Module) -> None:
        self.latents, self.timesteps, self.outputs, self.embedded = [], [], [], []
        transformer.register_forward_hook(self._keep)
        transformer.time_proj.register_forward_pre_hook(
            lambda _, args: self.embedded.append(args[0].tolist())
        )

    def _keep(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: tuple[torch.Tensor]) -> None:
        self.latents.append(inputs[0])
        self.timesteps.append(inputs[2].tolist())
        self.outputs.append(output[0])


@pytest.fixture
def watch() -> type[Evaluations]:
    """`watch(transformer)` records its evaluations from now on."""
    return Evaluations
