"""Memory of training predicted without doing it: what stays, what comes and goes, and what makes it fit."""

import dataclasses
import gc
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from torch import nn

from flashvideo.data.clips.sources import ClipSource
from flashvideo.models.transformer import FlashVideoTransformer3DModel
from flashvideo.pipelines.footprint import AllocationTracker
from flashvideo.training.clip_data import ClipData
from flashvideo.training.config import LoRA
from flashvideo.training.fitting import fit
from flashvideo.training.model_configs import recipe_configs
from flashvideo.training.optimizers import build_optimizers
from flashvideo.training.recipes import load_recipe
from flashvideo.training.stage2 import path_loss
from flashvideo.training.stage_recipes import Stage1Phase, Stage1Recipe, Stage2Phase, Stage2Recipe
from flashvideo.training.step_memory import Estimate, optimizer_bytes
from flashvideo.training.step_work import StepWork, Work

TRANSFORMER = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 8,
    "out_channels": 8,
    "time_embed_dim": 8,
    "text_embed_dim": 12,
    "num_layers": 4,
    "max_text_seq_length": 4,
    "noise_step_embed": True,
}
CUDA = torch.device("cuda")
RECIPES = Path(__file__).parents[2] / "recipes"
PHASE = Stage2Phase(steps=1, batch=2, frames=5, learning_rate=1e-3, crops=((64, 96),))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_vae_config) -> Stage2Recipe:
    folder = tmp_path_factory.mktemp("start")
    AutoencoderKLCogVideoX(**tiny_vae_config).save_pretrained(folder / "vae")
    FlashVideoTransformer3DModel(**TRANSFORMER).save_pretrained(folder / "stage2_transformer")
    return Stage2Recipe(
        task="stage2",
        output=str(folder / "run"),
        start=str(folder),
        data=ClipData(sources=(ClipSource(path="clips"),)),
        phases=(PHASE,),
        size=(64, 96),
        watch_frames=1,
    )


@pytest.fixture(scope="module")
def estimate(recipe) -> Estimate:
    return Estimate(recipe_configs(recipe), CUDA)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_the_optimisers_state_is_what_torch_keeps(optimizer, recipe):
    networks = nn.ModuleDict({"transformer": nn.Sequential(nn.Linear(16, 8), nn.Conv2d(4, 6, 3))})
    (real,) = build_optimizers(networks, dataclasses.replace(recipe, optimizer=optimizer))
    for parameter in networks.parameters():
        parameter.grad = torch.ones_like(parameter)
    real.step()
    kept = sum(
        value.nbytes
        for state in real.state.values()
        for name, value in state.items()
        if torch.is_tensor(value) and name != "step"
    )
    assert sum(optimizer_bytes(optimizer, n, p) for n, p in networks.named_parameters()) == kept


def test_muon_keeps_one_number_of_hidden_matrices_and_8_bits_are_a_quarter():
    matrix = nn.Parameter(torch.empty(128, 64))
    name = "transformer.transformer_blocks.0.attn1.to_q.weight"
    assert optimizer_bytes("muon", name, matrix) == 4 * 8192
    assert optimizer_bytes("muon", "transformer.proj_out.weight", matrix) == 8 * 8192
    assert optimizer_bytes("adamw8bit", name, matrix) == 2 * 8192 + 8 * 32


@pytest.mark.parametrize(("checkpointed", "bf16"), [(False, True), (True, True)])
def test_a_step_allocates_what_was_predicted_from_a_few_blocks(recipe, checkpointed, bf16):
    work = Work(shape=(5, 64, 96), batch=2, checkpointed=checkpointed, bf16=bf16)
    peak, last = StepWork(recipe_configs(recipe), on_host=True).backward(work, 2, PHASE)
    model = FlashVideoTransformer3DModel(**TRANSFORMER).train()
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    if checkpointed:
        model.enable_gradient_checkpointing()
    ends = (torch.rand(2, 2, 8, 16, 24), torch.rand(2, 2, 8, 16, 24))
    text, t, noise_step = torch.rand(2, 4, 12), torch.rand(2), torch.zeros(2, dtype=torch.long)
    gc.collect()
    with AllocationTracker(on_host=True) as tracker:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = path_loss(model, ends, text, t, noise_step, PHASE)
        loss.backward()
    assert peak == pytest.approx(tracker.peak_bytes, rel=0.05)
    assert 0 < last < peak


def test_recomputing_blocks_takes_less_and_norms_of_an_accelerator_take_more(recipe, estimate):
    configs = recipe_configs(recipe)
    work = Work(shape=(5, 64, 96), batch=2, checkpointed=False, bf16=True)
    host = StepWork(configs, on_host=True).backward(work, 2, PHASE)[0]
    device = estimate.work.backward(dataclasses.replace(work, frozen="float32"), 2, PHASE)[0]
    recomputed = estimate.work.backward(dataclasses.replace(work, checkpointed=True), 2, PHASE)[0]
    assert device > host > recomputed and device > 2 * recomputed


def test_processes_hold_buckets_of_gradients_or_share_everything(recipe, estimate):
    alone = estimate.phase(recipe, PHASE)
    copies = estimate.phase(recipe, PHASE, processes=4)
    parts = estimate.phase(dataclasses.replace(recipe, sharding="fsdp"), PHASE, processes=4)
    gradients = alone.average  # as many numbers
    assert copies.resident == alone.resident
    assert copies.moments["update"] == pytest.approx(alone.moments["update"] + 1.1 * gradients, abs=2)
    for name in ("trained", "average", "optimizer"):
        assert getattr(parts, name) == getattr(alone, name) // 4
    assert parts.frozen == alone.frozen


def test_an_adapter_leaves_weights_without_gradients_and_state(recipe, estimate):
    adapter = dataclasses.replace(recipe, lora=LoRA(rank=2, alpha=2.0))
    sizes = estimate.sizes(adapter)
    assert sizes.trained == 4 * 2 * (4 * (32 + 32) + 2 * (32 + 128) + 2 * (8 + 192))
    memory = estimate.phase(adapter, PHASE)
    assert memory.optimizer == 8 * sizes.trained
    assert memory.trained == 2 * (sizes.total - sizes.trained) + 4 * sizes.trained  # the frozen in bfloat16


def test_what_was_computed_before_needs_no_vae_on_an_accelerator(recipe, estimate):
    computed = estimate.phase(dataclasses.replace(recipe, precomputed="latents"), PHASE)
    assert computed.frozen == 0 and computed.moments["encode"] == 0
    assert computed.moments["validate"] > estimate.phase(recipe, PHASE).moments["validate"]


def test_the_smallest_change_that_fits_is_found(recipe, estimate):
    recipe = dataclasses.replace(recipe, precomputed="latents", vae_strips=True)
    (plenty,) = fit(recipe, estimate, gpus=1, vram_bytes=2**40)
    assert plenty.measures == () and plenty.with_them == plenty.as_it_is
    assert set(plenty.alone) == {"checkpoint_blocks", "lora", "optimizer: adamw8bit", "optimizer: adafactor"}
    least = plenty.alone["checkpoint_blocks"]
    assert least < plenty.as_it_is.peak
    (tight,) = fit(recipe, estimate, gpus=1, vram_bytes=least)
    assert tight.measures == ("checkpoint_blocks",) and tight.with_them.peak == least
    (none,) = fit(recipe, estimate, gpus=1, vram_bytes=1000)
    assert none.measures is None and none.with_them.peak <= least
    assert none.as_dict()["fits"] is False and none.as_dict()["measures"] is None


def test_no_measure_is_proposed_that_training_refuses(recipe, estimate):
    recipe = dataclasses.replace(recipe, vae_strips=True, checkpoint_blocks=True, precomputed="latents")
    muon = dataclasses.replace(recipe, optimizer="muon")
    (found,) = fit(muon, estimate, gpus=2, vram_bytes=2**40)
    assert set(found.alone) == {"lora", "optimizer: adamw8bit", "optimizer: adafactor"}
    (found,) = fit(dataclasses.replace(recipe, sharding="fsdp"), estimate, gpus=2, vram_bytes=2**40)
    assert set(found.alone) == {"lora"}
    with pytest.raises(ValueError, match="optimizer muon needs whole weights, got sharding: fsdp"):
        fit(dataclasses.replace(muon, sharding="fsdp"), estimate, gpus=2, vram_bytes=2**40)


def test_sizes_of_a_released_recipe_are_known_without_its_folders():
    recipe = Stage1Recipe(
        task="stage1",
        output="run",
        start="models/none",
        lora=LoRA(rank=128, alpha=1.0),
        phases=(Stage1Phase(steps=1, batch=1, frames=17, learning_rate=1e-4),),
        train_text=False,
    )
    configs = recipe_configs(recipe)
    assert configs.missing == ("models/none",)
    assert round(Estimate(configs, CUDA).sizes(dataclasses.replace(recipe, lora=None)).total / 1e8) == 56


@pytest.mark.parametrize(
    "name", ["enhancer", "nano_stage2_7", "released_stage2_1_coarse", "released_stage2_2_1080p"]
)
def test_a_shipped_recipes_positions_are_those_that_it_would_train_with(name):
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    rotary = recipe_configs(recipe).transformer["use_rotary_positional_embeddings"]
    assert rotary == (recipe.positions != "absolute")


def test_a_missing_vae_of_unknown_channels_is_an_error(tmp_path):
    recipe = Stage2Recipe(
        task="stage2", output="run", vae=str(tmp_path / "none"), model=TRANSFORMER, phases=(PHASE,)
    )
    with pytest.raises(ValueError, match="no other is known that has the 8 latent channels"):
        recipe_configs(recipe)
