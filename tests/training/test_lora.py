"""Adapters: no effect at first, trained and saved alone, and read back by ours and by diffusers' loader."""

import copy
import json
from pathlib import Path

import pytest
import torch
from diffusers import CogVideoXPipeline
from safetensors import safe_open
from torch.utils.data import default_collate

from flashvideo.models.cogvideox import load_cogvideox_transformer
from flashvideo.pipelines.two_stage import FlashVideoPipeline
from flashvideo.training.config import LoRA
from flashvideo.training.draws import Draws
from flashvideo.training.lora import LORA_FILE, adapted_layers, add_lora, merge_lora, save_lora
from flashvideo.training.recipes import Stage1Phase, Stage1Recipe, Stage2Phase, Stage2Recipe
from flashvideo.training.stage1 import Stage1Task
from flashvideo.training.stage2 import Stage2Task

CPU = torch.device("cpu")
RANDOM = torch.Generator().manual_seed(0)
LATENTS, TEXT = torch.randn(1, 2, 8, 4, 6, generator=RANDOM), torch.randn(1, 8, 12, generator=RANDOM)


@torch.no_grad()
def _output(transformer: torch.nn.Module) -> torch.Tensor:
    return transformer.eval()(LATENTS, TEXT, torch.tensor([500.0])).sample


def _train(task: Stage1Task | Stage2Task, steps: int = 2) -> None:
    trained = [p for p in task.modules.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.05)
    dataset = task.dataset(0, 2)
    for step in range(steps):
        batch = default_collate([dataset[step, place] for place in range(2)])
        task.loss(batch, 0, Draws(0, step, range(2), 2))[0].backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture
def folder(cogvideox_folder) -> Path:
    return cogvideox_folder(rotary=False)


@pytest.fixture
def task(folder, tmp_path) -> Stage1Task:
    """A Stage I task on a CogVideoX, whose adapter counts 3 / 2."""
    recipe = Stage1Recipe(
        task="stage1",
        output=str(tmp_path / "run"),
        start=str(folder),
        phases=(Stage1Phase(steps=2, batch=2, frames=5, learning_rate=1e-3, density=1.0),),
        lora=LoRA(rank=2, alpha=3.0),
        size=(16, 24),
        clips={5: 1},
        bf16=False,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flashvideo.training.pool.SHARD", 1)
        return Stage1Task(recipe, CPU)


@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        ("attention", {"attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"}),
        ("feed_forward", {"ff.net.0.proj", "ff.net.2"}),
        ("adaptive_norm", {"norm1.linear", "norm2.linear"}),
    ],
)
def test_a_kind_of_layers_is_those_of_all_blocks(tiny_transformer, kind, layers):
    expected = {f"transformer_blocks.{block}.{layer}" for block in (0, 1) for layer in layers}
    assert set(adapted_layers(tiny_transformer(1), [kind])) == expected


def test_a_new_adapter_changes_nothing_and_is_all_that_is_trained(tiny_transformer):
    transformer = tiny_transformer(1).to(torch.bfloat16).float()
    before = _output(transformer)
    add_lora(transformer, LoRA(rank=2, alpha=2.0, layers=("attention",)))
    assert torch.equal(_output(transformer), before)
    trained = {name for name, p in transformer.named_parameters() if p.requires_grad}
    assert len(trained) == 16 and all(".lora_" in name for name in trained)


def test_an_adapter_is_in_float32_beside_weights_in_half(tiny_transformer):
    transformer = tiny_transformer(1).to(torch.bfloat16)
    add_lora(transformer, LoRA(rank=2, alpha=2.0))
    dtypes = {p.requires_grad: p.dtype for p in transformer.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}


def test_a_trained_adapter_has_the_same_effect_wherever_it_is_loaded(task, folder, tmp_path):
    untrained = _output(load_cogvideox_transformer(folder / "transformer"))
    base = copy.deepcopy(task.transformer.transformer_blocks[0].attn1.to_q.base_layer.weight)
    _train(task)
    expected = _output(task.transformer)
    assert (expected - untrained).abs().max() > 1e-3
    assert torch.equal(task.transformer.transformer_blocks[0].attn1.to_q.base_layer.weight, base)

    task.save(tmp_path / "trained")
    assert [path.name for path in (tmp_path / "trained").iterdir()] == [LORA_FILE]
    file = tmp_path / "trained" / LORA_FILE
    ours, theirs = FlashVideoPipeline.from_pretrained(folder), CogVideoXPipeline.from_pretrained(folder)
    for pipeline in (ours, theirs):
        pipeline.load_lora_weights(str(file))
    merged = load_cogvideox_transformer(folder / "transformer")
    merge_lora(merged, file)
    for transformer in (ours.stage1_transformer, theirs.transformer, merged):
        torch.testing.assert_close(_output(transformer), expected, atol=2e-5, rtol=1e-5)


def test_the_files_header_tells_rank_alpha_and_modules(tiny_transformer, tmp_path):
    transformer = tiny_transformer(1)
    add_lora(transformer, LoRA(rank=3, alpha=1.0, layers=("feed_forward",)))
    with safe_open(save_lora(transformer, tmp_path), "pt") as file:
        settings = json.loads(file.metadata()["lora_adapter_metadata"])
        assert len(file.keys()) == 8
    assert (settings["transformer.r"], settings["transformer.lora_alpha"]) == (3, 1.0)
    assert len(settings["transformer.target_modules"]) == 4


def test_stage_2_trains_and_saves_an_adapter_that_merges(toy_pipeline, tmp_path):
    toy_pipeline(["a", "red", "circle"]).save_pretrained(tmp_path / "model")
    recipe = Stage2Recipe(
        task="stage2",
        output=str(tmp_path / "run"),
        start=str(tmp_path / "model"),
        phases=(Stage2Phase(steps=2, batch=2, frames=5, learning_rate=1e-3, crops=((16, 24),), natural=1.0),),
        lora=LoRA(rank=2, alpha=2.0),
        size=(32, 48),
        watch_clips=1,
        bf16=False,
    )
    task = Stage2Task(recipe, CPU)
    plain = copy.deepcopy(task.transformer)
    plain.unload_lora()
    _train(task)
    task.save(tmp_path / "trained")
    merge_lora(plain, tmp_path / "trained" / LORA_FILE)
    with torch.no_grad():
        outputs = [
            m.eval()(LATENTS, TEXT, torch.tensor([500.0]), noise_step=3).sample
            for m in (plain, task.transformer)
        ]
    torch.testing.assert_close(*outputs, atol=2e-5, rtol=1e-5)


def test_an_adapter_needs_weights_to_adapt_and_leaves_the_text_encoder_alone(task):
    lora, fields = LoRA(rank=2, alpha=2.0), {"task": "stage1", "output": "out"}
    phase = task.recipe.phases
    with pytest.raises(
        ValueError, match="lora adapts trained weights, which the recipe must name as 'start'"
    ):
        Stage1Recipe(
            **fields, vae="vae", model={"a": 1}, text={"a": 1}, phases=phase, lora=lora, clips={5: 1}
        )
    with pytest.raises(
        ValueError, match="lora trains an adapter of the transformer alone; leave out train_text"
    ):
        Stage1Recipe(**fields, start="folder", phases=phase, lora=lora, train_text=True, clips={5: 1})
    assert set(task.modules) == {"transformer"}
    assert not any(p.requires_grad for p in task.text_encoder.parameters())


def test_an_adapter_of_another_model_is_not_merged(tiny_transformer, tmp_path):
    add_lora(trained := tiny_transformer(1), LoRA(rank=2, alpha=2.0))
    save_lora(trained, tmp_path)
    with pytest.raises(
        ValueError, match=r"does not fit the transformer at transformer_blocks\.1\..* another model"
    ):
        merge_lora(tiny_transformer(1, num_layers=1), tmp_path / LORA_FILE)
    with pytest.raises(ValueError, match="must be an adapter of stage2, got one of stage1"):
        merge_lora(tiny_transformer(2), tmp_path / LORA_FILE)
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="must be an adapter that training wrote"):
        merge_lora(tiny_transformer(1), tmp_path / "bad.safetensors")
