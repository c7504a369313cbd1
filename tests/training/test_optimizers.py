"""The optimisers a recipe can name, and their rates."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKLCogVideoX

from flashvideo.training.average import Average
from flashvideo.training.checkpoints import Checkpoints, Contents, Progress
from flashvideo.training.config import OPTIMIZERS, Phase
from flashvideo.training.optimizers import KernelMuon, build_optimizers, check_optimizer, learning_rate
from flashvideo.training.recipes import VAEPhase, VAERecipe

CPU = torch.device("cpu")
ONE_STEP = (Phase(steps=1, batch=4, frames=1, learning_rate=3e-3, warmup=0),)


def test_the_learning_rate_warms_up_and_follows_a_cosine() -> None:
    phase = Phase(steps=110, batch=1, frames=1, learning_rate=1.0, final_learning_rate=0.2, warmup=10)
    assert learning_rate(phase, 0) == pytest.approx(0.1)
    assert learning_rate(phase, 10) == pytest.approx(1.0)
    assert learning_rate(phase, 60) == pytest.approx(0.6)
    assert learning_rate(phase, 110) == pytest.approx(0.2)


def test_muon_takes_hidden_matrices_and_kernels_only(
    tiny_vae: AutoencoderKLCogVideoX, tmp_path: Path
) -> None:
    phase = VAEPhase(steps=1, batch=1, frames=1, learning_rate=1e-3, crop=(16, 16))
    recipe = VAERecipe(task="vae", output=str(tmp_path), model={}, phases=(phase,), optimizer="muon")
    modules = torch.nn.ModuleDict({"vae": tiny_vae})
    adam, muon = build_optimizers(modules, recipe)
    kernels = [p for g in muon.param_groups for p in g["params"]]
    rest = [p for g in adam.param_groups for p in g["params"]]
    assert kernels and all(p.ndim == 2 for p in kernels)
    assert sum(p.numel() for p in kernels + rest) == sum(p.numel() for p in modules.parameters())


def test_a_muon_step_changes_the_kernel_itself() -> None:
    kernel = torch.nn.Parameter(torch.randn(4, 3, 3, 3, 3, generator=torch.Generator().manual_seed(0)))
    before = kernel.detach().clone()
    optimizer = KernelMuon([{"params": [kernel]}], lr=0.1, weight_decay=0.0)
    kernel.square().sum().backward()
    optimizer.step()
    update = (before - kernel.detach()).flatten(1)
    singular = torch.linalg.svdvals(update)
    assert singular.max() < 2.5 * singular.min()  # orthogonalised: all directions move about alike


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "muon"])
def test_each_optimiser_goes_on_bit_for_bit(toy, tmp_path: Path, optimizer: str) -> None:
    tasks = [toy.ToyTask() for _ in range(3)]
    whole, parts = (toy.recipe(tmp_path / name, optimizer=optimizer) for name in ("whole", "parts"))
    toy.run(whole, tasks[0])
    toy.run(parts, tasks[1], max_minutes=1e-9)
    toy.run(parts, tasks[2], resume=True)
    for a, b in zip(tasks[0].modules.parameters(), tasks[2].modules.parameters(), strict=True):
        assert torch.equal(a, b)


def test_adafactor_keeps_far_less_than_two_numbers_a_weight(toy, tmp_path: Path) -> None:
    toy.run(toy.recipe(tmp_path, optimizer="adafactor", phases=ONE_STEP))
    state = torch.load(tmp_path / "checkpoints/step_00000001/state.pt", weights_only=True)
    kept = sum(v.numel() for s in state["optimizers"][0]["state"].values() for v in s.values())
    assert kept < 0.5 * sum(p.numel() for p in state["parameters"].values())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_modules_factor_scales_its_learning_rate_also_when_resumed(
    toy, tmp_path: Path, optimizer: str
) -> None:
    recipe = toy.recipe(
        tmp_path,
        optimizer=optimizer,
        weight_decay=0.0,
        rate_factors={"transformer": 0.0, "text": 0.0},
        phases=ONE_STEP,
    )
    task = toy.ToyTask()
    before = [p.detach().clone() for p in task.modules.parameters()]
    toy.run(recipe, task)
    assert all(torch.equal(a, b) for a, b in zip(before, task.modules.parameters(), strict=True))
    faster = dataclasses.replace(recipe, rate_factors={"transformer": 1.0, "text": 1.0}, phases=ONE_STEP * 2)
    resumed = toy.ToyTask()
    toy.run(faster, resumed, resume=True)
    assert not torch.equal(before[0], next(resumed.modules.parameters()))


@pytest.mark.parametrize(
    ("before", "after"), [({"text": 0.1}, {}), ({"text": 0.1}, {"text": 2.0}), ({}, {"transformer": 0.5})]
)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_moments_find_their_parameters_again_with_other_factors(
    toy, tmp_path: Path, optimizer: str, before: dict[str, float], after: dict[str, float]
) -> None:
    recipe = toy.recipe(tmp_path, optimizer=optimizer, rate_factors=before)
    modules = torch.nn.ModuleDict()
    for number, name in enumerate(("transformer", "text"), 1):
        modules[name] = torch.nn.ModuleDict(
            {"transformer_blocks": torch.nn.ModuleDict({"ff": torch.nn.Linear(4, 4)})}
        )
        for parameter in modules[name].parameters():
            parameter.grad = torch.full_like(parameter, float(number))
    began = build_optimizers(modules, recipe)
    for kept in began:
        kept.step()
    resumed = build_optimizers(modules, dataclasses.replace(recipe, rate_factors=after))
    checkpoints = Checkpoints(tmp_path, 1, Accelerator(cpu=True), sharded=False)
    written, read = (
        Contents(objective=modules, optimizers=some, average=Average(modules, 0.0))
        for some in (began, resumed)
    )
    checkpoints.load(checkpoints.save(written, Progress()), read)
    for kept in resumed:
        assert [group["factor"] for group in kept.param_groups] == [after.get(name, 1.0) for name in modules]
        firsts = [kept.state[group["params"][0]] for group in kept.param_groups]
        transformer, text = (next(v for v in state.values() if v.ndim).mean() for state in firsts)
        assert 1.9 < text / transformer < 2.1


def test_a_factor_for_an_unknown_module_is_an_error(toy, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rate_factors must name one of transformer, text, got 'vae'"):
        toy.run(toy.recipe(tmp_path, rate_factors={"vae": 0.1}))


def test_a_factor_that_is_no_number_is_an_error(toy, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rate_factors\.vae must be a number of at least 0, got 'slow'"):
        toy.recipe(tmp_path, rate_factors={"vae": "slow"})


# What is allowed takes sharded steps in `test_processes.py`.
@pytest.mark.parametrize("optimizer", sorted(set(OPTIMIZERS) - {"adamw"}))
def test_what_needs_whole_weights_is_refused_for_sharded_ones(toy, tmp_path: Path, optimizer: str) -> None:
    recipe = toy.recipe(tmp_path, optimizer=optimizer, sharding="fsdp")
    said = f"optimizer {optimizer} needs whole weights, got sharding: fsdp, .*; use sharding: ddp, or optimizer: adamw$"
    with pytest.raises(ValueError, match=said):
        check_optimizer(recipe, CPU, sharded=True)


def test_adamw_in_8_bits_needs_a_gpu_and_its_package(toy, tmp_path: Path, monkeypatch) -> None:
    recipe = toy.recipe(tmp_path, optimizer="adamw8bit")
    with pytest.raises(ValueError, match="optimizer adamw8bit needs a CUDA device, got cpu; use adafactor"):
        toy.run(recipe)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ImportError, match=r"missing; pip install 'flashvideo\[adamw8bit\]'"):
        check_optimizer(recipe, torch.device("cuda"), sharded=False)
