"""The loop on a tiny VAE: it learns, saves, resumes bit for bit, and survives interruption."""

import csv
import dataclasses
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX

from flashvideo.training import loop
from flashvideo.training.config import Phase
from flashvideo.training.loop import Interrupted, learning_rate, train
from flashvideo.training.recipes import VAEPhase, VAERecipe
from flashvideo.training.vae import VAETask

MODEL = {
    "down_block_types": ["CogVideoXDownBlock3D"] * 2,
    "up_block_types": ["CogVideoXUpBlock3D"] * 2,
    "block_out_channels": [4, 4],
    "latent_channels": 2,
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "temporal_compression_ratio": 2,
}


class TinyVAETask(VAETask):
    """The real task; validation on full-size clips is left out for time."""

    def validate(self) -> dict[str, float]:
        return {"checked": float(sum(p.detach().abs().sum() for p in self.vae.parameters()))}


def _recipe(output: Path, steps: int = 3) -> VAERecipe:
    phase = VAEPhase(steps=steps, batch=2, frames=3, crop=(16, 16), learning_rate=1e-3, natural=0.0, warmup=1)
    return VAERecipe(
        task="vae",
        output=str(output),
        model=MODEL,
        phases=(phase, phase),
        workers=0,
        bf16=False,
        ema_decay=0.5,
    )


def _clip() -> torch.Tensor:
    return torch.linspace(-0.2, 0.9, 16).expand(3, 3, 16, 16).clone()


class Same(torch.utils.data.Dataset):
    """One clip over and over."""

    def __init__(self, clip: torch.Tensor) -> None:
        self.clip = clip

    def __getitem__(self, index: tuple[int, int]) -> torch.Tensor:
        return self.clip


def _run(recipe: VAERecipe, **options: object) -> TinyVAETask:
    task = TinyVAETask(recipe, torch.device("cpu"))
    train(task, recipe, recipe.phases, **options)  # type: ignore[arg-type]
    return task


def test_a_stopped_and_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    whole = _run(_recipe(tmp_path / "whole"))
    _run(_recipe(tmp_path / "parts"), max_minutes=1e-9)  # stops after one step
    _run(_recipe(tmp_path / "parts"), resume=True, max_minutes=1e-9)
    parts = _run(_recipe(tmp_path / "parts"), resume=True)
    for a, b in zip(whole.vae.parameters(), parts.vae.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_saved_weights_are_the_moving_average_and_load(tmp_path: Path) -> None:
    task = _run(_recipe(tmp_path))
    saved = AutoencoderKLCogVideoX.from_pretrained(tmp_path / "vae")
    checkpoint = torch.load(tmp_path / loop.CHECKPOINT, weights_only=True)
    for average, parameter in zip(checkpoint["average"], saved.parameters(), strict=True):
        assert torch.equal(average, parameter)
    assert any(not torch.equal(a, b) for a, b in zip(saved.parameters(), task.vae.parameters(), strict=True))


def test_training_lowers_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = _clip()
    monkeypatch.setattr(TinyVAETask, "dataset", lambda self, *_: Same(clip))
    _run(_recipe(tmp_path, steps=40))
    with (tmp_path / "curve.csv").open() as file:
        losses = [float(r["loss"]) for r in csv.DictReader(file) if r["loss"]]
    assert len(losses) == 4 and losses[-1] < 0.9 * losses[0]


def test_ctrl_c_saves_and_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = loop.Run.step, []

    def step(self: loop.Run, batch: object) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, batch)

    monkeypatch.setattr(loop.Run, "step", step)
    with pytest.raises(Interrupted, match="stopped at step 2"):
        _run(_recipe(tmp_path))
    assert (tmp_path / loop.CHECKPOINT).exists()


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(self: VAETask, *args: object) -> tuple[torch.Tensor, dict[str, float]]:
        return next(self.vae.parameters()).sum() * float("nan"), {}

    monkeypatch.setattr(TinyVAETask, "loss", loss)
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        _run(_recipe(tmp_path))


def test_the_learning_rate_warms_up_and_follows_a_cosine() -> None:
    phase = Phase(steps=110, batch=1, frames=1, learning_rate=1.0, final_learning_rate=0.2, warmup=10)
    assert learning_rate(phase, 0) == pytest.approx(0.1)
    assert learning_rate(phase, 10) == pytest.approx(1.0)
    assert learning_rate(phase, 60) == pytest.approx(0.6)
    assert learning_rate(phase, 110) == pytest.approx(0.2)


def test_muon_takes_hidden_matrices_and_kernels_only(tmp_path: Path) -> None:
    recipe = VAERecipe(task="vae", output=str(tmp_path), model=MODEL, phases=(), optimizer="muon")
    task = TinyVAETask(recipe, torch.device("cpu"))
    adam, muon = loop.build_optimizer(task.modules, recipe)
    kernels = [p for g in muon.param_groups for p in g["params"]]
    rest = [p for g in adam.param_groups for p in g["params"]]
    assert kernels and all(p.ndim == 2 for p in kernels)
    assert sum(p.numel() for p in kernels + rest) == sum(p.numel() for p in task.modules.parameters())


def test_a_muon_step_changes_the_kernel_itself(tmp_path: Path) -> None:
    kernel = torch.nn.Parameter(torch.randn(4, 3, 3, 3, 3, generator=torch.Generator().manual_seed(0)))
    before = kernel.detach().clone()
    optimizer = loop.KernelMuon([kernel], lr=0.1, weight_decay=0.0)
    kernel.square().sum().backward()
    optimizer.step()
    update = (before - kernel.detach()).flatten(1)
    singular = torch.linalg.svdvals(update)
    assert singular.max() < 2.5 * singular.min()  # orthogonalised: all directions move about alike


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_modules_factor_scales_its_learning_rate_also_when_resumed(tmp_path: Path, optimizer: str) -> None:
    options = {"optimizer": optimizer, "weight_decay": 0.0, "rate_factors": {"vae": 0.0}}
    recipe = dataclasses.replace(_recipe(tmp_path / "run", steps=1), **options)
    task = TinyVAETask(recipe, torch.device("cpu"))
    before = [p.detach().clone() for p in task.modules.parameters()]
    train(task, recipe, recipe.phases[:1])
    assert all(torch.equal(a, b) for a, b in zip(before, task.modules.parameters(), strict=True))
    faster = dataclasses.replace(recipe, rate_factors={"vae": 1.0})
    resumed = _run(faster, resume=True)
    assert not any(torch.equal(a, b) for a, b in zip(before, resumed.modules.parameters(), strict=True))


def test_a_factor_for_an_unknown_module_is_an_error(tmp_path: Path) -> None:
    recipe = dataclasses.replace(_recipe(tmp_path / "run"), rate_factors={"text": 0.1})
    with pytest.raises(ValueError, match="rate_factors must name one of vae, got 'text'"):
        _run(recipe)


def test_a_factor_that_is_no_number_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rate_factors\.vae must be a number of at least 0, got 'slow'"):
        dataclasses.replace(_recipe(tmp_path / "run"), rate_factors={"vae": "slow"})
