"""Stage II training that starts from a CogVideoX folder, as the paper's did from the 2B."""

import dataclasses
from pathlib import Path

import pytest
import torch

from flashvideo.models.transformer import FlashVideoTransformer3DModel
from flashvideo.training.config import LoRA
from flashvideo.training.loop import train
from flashvideo.training.recipes import Stage2Phase, Stage2Recipe
from flashvideo.training.stage2 import Stage2Task
from flashvideo.training.starts import takes_adapter

CPU = torch.device("cpu")


@pytest.fixture
def recipe(cogvideox_folder, tmp_path) -> Stage2Recipe:
    phase = Stage2Phase(
        steps=3, batch=1, frames=5, learning_rate=1e-3, crops=((16, 16),), natural=0.0, text_dropout=0.0
    )
    return Stage2Recipe(
        task="stage2",
        output=str(tmp_path / "run"),
        start=str(cogvideox_folder(rotary=False)),
        phases=(phase,),
        size=(96, 160),
        workers=0,
        bf16=False,
        ema_decay=0.0,
    )


def test_weights_latent_scale_and_text_come_from_the_folder_and_what_is_new_says_nothing(recipe):
    task = Stage2Task(recipe, CPU)
    assert task.scale == 1.15258426 and task.text_encoder is not None
    config = task.transformer.config
    assert config.use_rotary_positional_embeddings and config.noise_step_embed and config.num_frames_embed
    for embedder in (task.transformer.noise_step_embedding, task.transformer.num_frames_embedding):
        assert not embedder.linear_2.weight.any() and embedder.linear_1.weight.any()
    assert task.encode_text(["a red circle", ""])[0].any()


def test_a_few_steps_train_old_and_new_parts_and_leave_a_model_that_loads(recipe, monkeypatch):
    figures = {"bicubic_bank": 1.0, "steps1_bank": 1.0, "steps4_bank": 1.0, "steps4_fidelity": 30.0}
    figures |= {"steps4_energy": 1.0, "floor_energy": 0.1}
    monkeypatch.setattr(Stage2Task, "validate", lambda self, folder: figures)
    task = Stage2Task(recipe, CPU)
    before = {name: tensor.clone() for name, tensor in task.transformer.state_dict().items()}
    train(task, recipe, recipe.phases)
    trained = FlashVideoTransformer3DModel.from_pretrained(Path(recipe.output) / "stage2_transformer")
    moved = {name for name, tensor in trained.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {
        "proj_out.weight",
        "noise_step_embedding.linear_2.weight",
        "patch_embed.text_proj.weight",
    } <= moved
    assert {"num_frames_embedding.linear_2.weight", "transformer_blocks.1.attn1.to_q.weight"} <= moved


def test_another_vae_and_text_encoder_win_over_the_folders_own(recipe, tiny_vae, tmp_path):
    tiny_vae.register_to_config(scaling_factor=3.0)
    tiny_vae.save_pretrained(tmp_path / "own_vae")
    assert Stage2Task(dataclasses.replace(recipe, vae=str(tmp_path / "own_vae")), CPU).scale == 3.0


def test_a_start_without_a_vae_needs_one_and_so_does_no_start(recipe, tiny_transformer, tmp_path):
    tiny_transformer(2).save_pretrained(tmp_path / "stage2_transformer")
    with pytest.raises(ValueError, match=r"the recipe must give 'vae', since its start .* has no folder"):
        Stage2Task(dataclasses.replace(recipe, start=str(tmp_path)), CPU)
    with pytest.raises(ValueError, match="the recipe must give 'vae', which only a start may bring along"):
        dataclasses.replace(recipe, start="", model={"num_layers": 1})


def test_an_adapter_cannot_make_a_stage_2_of_it(recipe):
    adapter = dataclasses.replace(recipe, lora=LoRA(rank=2, alpha=2.0))
    with pytest.raises(ValueError, match="lora cannot make a Stage II of the CogVideoX"):
        Stage2Task(adapter, CPU)
    assert not takes_adapter(recipe)  # so that no dry run proposes one


def test_positions_can_stay_absolute_as_the_paper_compares(recipe):
    absolute = Stage2Task(dataclasses.replace(recipe, positions="absolute"), CPU)
    assert absolute.transformer.fixed_positions is not None
    assert Stage2Task(recipe, CPU).transformer.fixed_positions is None


def test_positions_other_than_those_of_the_start_are_an_error(recipe, tiny_vae, tmp_path):
    task = Stage2Task(dataclasses.replace(recipe, positions="absolute"), CPU)
    task.save(tmp_path / "trained")
    tiny_vae.save_pretrained(tmp_path / "vae")
    again = dataclasses.replace(recipe, start=str(tmp_path / "trained"), vae=str(tmp_path / "vae"))
    with pytest.raises(
        ValueError, match="positions of the recipe must be those of its model, absolute, got rotary"
    ):
        Stage2Task(dataclasses.replace(again, positions="rotary"), CPU)
    assert Stage2Task(again, CPU).transformer.fixed_positions is not None
