"""From runs to a model folder."""

import dataclasses
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from transformers import T5Config, T5EncoderModel

from flashvideo.pipelines.two_stage import FlashVideoPipeline
from flashvideo.presets import NANO
from flashvideo.schedule import FlashVideoScheduler
from flashvideo.text import build_word_tokenizer
from flashvideo.training.release import assemble, save


@pytest.fixture
def runs(tiny_vae, tiny_transformer, tmp_path: Path) -> list[Path]:
    folders = [tmp_path / name for name in ("vae", "stage1", "stage2")]
    tiny_vae.register_to_config(scaling_factor=1.25)
    tiny_vae.save_pretrained(folders[0] / "vae")
    tiny_transformer(1).save_pretrained(folders[1] / "stage1_transformer")
    T5EncoderModel(
        T5Config(vocab_size=16, d_model=12, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    ).save_pretrained(folders[1] / "text_encoder")
    build_word_tokenizer(["a", "ball"]).save_pretrained(folders[1] / "tokenizer")
    FlashVideoScheduler().save_pretrained(folders[1] / "stage1_scheduler")
    tiny_transformer(2).save_pretrained(folders[2] / "stage2_transformer")
    FlowMatchEulerDiscreteScheduler(shift=2.5).save_pretrained(folders[2] / "stage2_scheduler")
    return folders


def test_a_model_folder_loads_in_bfloat16_with_the_scale_of_its_vae(runs: list[Path], tmp_path: Path) -> None:
    save(assemble(*runs), tmp_path / "model")
    pipeline = FlashVideoPipeline.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    assert pipeline.vae.dtype == torch.bfloat16
    assert pipeline.preset == dataclasses.replace(
        NANO,
        stage1=dataclasses.replace(NANO.stage1, latent_scale=1.25),
        stage2=dataclasses.replace(NANO.stage2, latent_scale=1.25),
    )


def test_a_model_folder_does_not_name_the_machine_it_was_made_on(runs: list[Path], tmp_path: Path) -> None:
    save(assemble(*runs), tmp_path / "model")
    texts = [path.read_text() for path in (tmp_path / "model").rglob("*.json")]
    assert texts and not any(str(tmp_path) in text for text in texts)


def test_an_unfinished_run_is_refused(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be a finished training run"):
        assemble(runs[0], runs[1], tmp_path / "nothing")
