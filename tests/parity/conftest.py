"""What tests of whole pipelines share: the reference's noise in place of random draws, and a watch on the network."""

import importlib.util
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

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


@pytest.fixture(scope="session")
def oracle_module() -> ModuleType:
    """The module `oracles.py`."""
    spec = importlib.util.spec_from_file_location("oracles", Path(__file__).with_name("oracles.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def oracles(oracle_module):
    """The reference's larger set of tensors; without it the test is skipped."""
    folder = os.environ.get("FLASHVIDEO_ORACLES")
    if folder is None:
        pytest.skip("FLASHVIDEO_ORACLES names no folder of the reference's tensors")
    return oracle_module.Oracles(Path(folder))


@pytest.fixture
def equal(oracles, oracle_module, request) -> Callable[..., None]:
    """`equal(actual, expected, kind)` compares with the tolerance of that kind, and keeps the difference."""

    def compare(actual: torch.Tensor, expected: torch.Tensor | str, kind: str, label: str = "") -> None:
        if isinstance(expected, str):
            label, expected = label or expected, oracles.tensor(expected)
        assert actual.shape == expected.shape, label
        difference = float((actual.detach().double() - expected.double()).abs().max())
        request.node.user_properties.append((kind, difference))
        assert difference <= oracle_module.TOLERANCES[kind], label or kind

    return compare


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the largest difference of each kind that `equal` saw."""
    largest: dict[str, float] = {}
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for kind, difference in getattr(report, "user_properties", []):
            largest[kind] = max(difference, largest.get(kind, 0.0))
    if largest:
        terminalreporter.section("largest differences to the reference")
    for kind, difference in largest.items():
        terminalreporter.write_line(f"{kind}: {difference:.1e}")
