"""Stage I training that starts from a CogVideoX or from a whole model: its schedule, its text, its latents."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from flashvideo.data.clips.sources import ClipSource
from flashvideo.schedule import FlashVideoScheduler, alphas_cumprod_sqrt_table, clean_from_velocity
from flashvideo.training.clip_data import ClipData
from flashvideo.training.config import LoRA
from flashvideo.training.draws import Draws
from flashvideo.training.recipes import Stage1Phase, Stage1Recipe
from flashvideo.training.stage1 import Stage1Task
from flashvideo.training.starts import trains_text

CPU = torch.device("cpu")
BATCH = (
    torch.randn(2, 2, 8, 4, 6, generator=torch.Generator().manual_seed(0)),
    ["a red circle", "moves left"],
)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr("flashvideo.training.pool.SHARD", 1)


@pytest.fixture
def recipe(tmp_path) -> Stage1Recipe:
    """Without a start that exists."""
    return Stage1Recipe(
        task="stage1",
        output=str(tmp_path / "run"),
        start="nowhere",
        phases=(Stage1Phase(steps=2, batch=2, frames=5, learning_rate=1e-3, density=1.0),),
        size=(16, 24),
        clips={5: 1},
        bf16=False,
    )


@pytest.fixture
def cogvideox(recipe, cogvideox_folder) -> Stage1Task:
    """From a 2B."""
    return Stage1Task(dataclasses.replace(recipe, start=str(cogvideox_folder(rotary=False))), CPU)


@pytest.fixture
def whole_model(toy_pipeline, tmp_path) -> Path:
    """A whole model, whose preset has another latent scale than its VAE's config."""
    pipeline = toy_pipeline(["a", "red", "circle"], stage1={"latent_scale": 0.7})
    pipeline.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_cogvideox_keeps_its_own_noise_schedule_and_hands_it_on(cogvideox, tmp_path):
    assert torch.equal(cogvideox.scheduler.table, alphas_cumprod_sqrt_table(snr_shift_scale=3.0))
    cogvideox.save(tmp_path / "trained")
    saved = FlashVideoScheduler.from_pretrained(tmp_path / "trained" / "stage1_scheduler")
    assert torch.equal(saved.table, cogvideox.scheduler.table)


def test_the_text_encoder_of_a_cogvideox_is_frozen_and_not_written_again(cogvideox, tmp_path):
    assert set(cogvideox.modules) == {"transformer"}
    cogvideox.loss(BATCH, 0, Draws(0, 0, range(2), 2))[0].backward()
    assert all(p.grad is None for p in cogvideox.text_encoder.parameters())
    cogvideox.save(tmp_path / "trained")
    assert {p.name for p in (tmp_path / "trained").iterdir()} == {"stage1_transformer", "stage1_scheduler"}


def test_the_text_encoder_can_be_trained_too(recipe, cogvideox_folder, tmp_path):
    start = str(cogvideox_folder(rotary=True))
    task = Stage1Task(dataclasses.replace(recipe, start=start, train_text=True), CPU)
    assert set(task.modules) == {"transformer", "text_encoder"}
    task.save(tmp_path / "trained")
    assert (tmp_path / "trained" / "text_encoder").is_dir() and (tmp_path / "trained" / "tokenizer").is_dir()


def test_the_loss_is_that_of_clean_latents_weighted_by_one_over_the_noises_variance(cogvideox):
    seen = []
    v = torch.randn(BATCH[0].shape, generator=torch.Generator().manual_seed(1))

    def forward(noisy, text, timestep, **_):
        seen.append((noisy, cogvideox.scheduler.table[timestep.long()]))
        return SimpleNamespace(sample=v)

    cogvideox.transformer.forward = forward
    loss, _ = cogvideox.loss(BATCH, 0, Draws(0, 0, range(2), 2))
    ((noisy, a),) = seen
    error = (clean_from_velocity(noisy, v, a) - BATCH[0]).square().flatten(1).mean(dim=1)
    torch.testing.assert_close(loss, (error / (1 - a**2)).mean(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_dropped_text_is_zeros_and_not_the_encoding_of_an_empty_prompt(cogvideox, dropout):
    cogvideox.recipe = dataclasses.replace(cogvideox.recipe, text_dropout=dropout)
    seen = []
    cogvideox.transformer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1]))
    cogvideox.loss(BATCH, 0, Draws(0, 0, range(2), 2))
    assert bool(seen[0].any()) == (dropout == 0)


def test_a_clip_without_a_caption_has_zeros_for_text(cogvideox):
    cogvideox.recipe = dataclasses.replace(cogvideox.recipe, text_dropout=0.0)
    seen = []
    cogvideox.transformer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1]))
    cogvideox.loss((BATCH[0], ["", "a red circle"]), 0, Draws(0, 0, range(2), 2))
    assert [bool(text.any()) for text in seen[0]] == [False, True]


def test_the_text_encoder_of_a_whole_model_is_frozen_on_clips_of_ones_own_alone(recipe, whole_model):
    start = dataclasses.replace(recipe, start=str(whole_model))
    data = ClipData(sources=(ClipSource(path="clips"),))
    assert trains_text(start) and not trains_text(dataclasses.replace(start, data=data))
    assert not trains_text(dataclasses.replace(start, lora=LoRA(rank=1, alpha=1.0)))


def test_latents_of_a_whole_model_have_its_own_scale_and_its_own_sampling_is_watched(recipe, whole_model):
    task = Stage1Task(dataclasses.replace(recipe, start=str(whole_model)), CPU)
    assert task.vae.config.scaling_factor == 0.7
    assert task.preset.name == "toy" and task.preset.stage1.num_inference_steps == 2
    assert task.previews.sample(["a red circle"], steps=1, guidance=2.0, frames=5).shape == (1, 5, 3, 16, 24)


def test_a_given_vae_has_the_scale_of_its_own_config(recipe, whole_model, tiny_vae, tmp_path):
    tiny_vae.register_to_config(scaling_factor=2.0)
    tiny_vae.save_pretrained(tmp_path / "vae")
    start = dataclasses.replace(recipe, start=str(whole_model))
    assert (
        Stage1Task(dataclasses.replace(start, vae=str(tmp_path / "vae")), CPU).vae.config.scaling_factor == 2
    )
    start = dataclasses.replace(start, output=str(tmp_path / "other"))
    again = dataclasses.replace(start, vae=str(whole_model / "vae"))
    assert Stage1Task(again, CPU).vae.config.scaling_factor == 0.7


def test_a_start_that_lacks_a_part_is_an_error_that_names_it(recipe, tiny_vae, tmp_path):
    (tmp_path / "empty").mkdir()
    empty = dataclasses.replace(recipe, start=str(tmp_path / "empty"))
    with pytest.raises(
        ValueError, match=r"must give 'vae', since its start .*empty has no folder of that name"
    ):
        Stage1Task(empty, CPU)
    tiny_vae.save_pretrained(tmp_path / "vae")
    with pytest.raises(ValueError, match="start must have the folder text_encoder"):
        Stage1Task(dataclasses.replace(empty, vae=str(tmp_path / "vae")), CPU)


def test_a_new_stage_1_cannot_read_the_captions_of_clips_of_ones_own(recipe):
    data = ClipData(sources=(ClipSource(path="clips"),))
    with pytest.raises(
        ValueError, match="data needs a 'start' whose text encoder knows the words of its captions"
    ):
        dataclasses.replace(recipe, start="", vae="vae", model={"a": 1}, text={"a": 1}, data=data)
