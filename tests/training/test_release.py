"""From runs to a model folder."""

import dataclasses
from pathlib import Path

import pytest
import torch

from flashvideo.pipelines.two_stage import FlashVideoPipeline
from flashvideo.text import build_word_tokenizer
from flashvideo.training.config import LoRA
from flashvideo.training.lora import add_lora, save_lora
from flashvideo.training.release import assemble, main, save


@pytest.fixture
def base(toy_pipeline, tmp_path: Path) -> Path:
    toy_pipeline(["a", "ball"]).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def runs(tiny_vae, tiny_transformer, toy_pipeline, tmp_path: Path) -> dict[str, Path]:
    """Of networks with other weights than the base's."""
    folders = {name: tmp_path / name for name in ("vae", "stage1", "stage2")}
    tiny_vae.register_to_config(scaling_factor=1.25)
    tiny_vae.save_pretrained(folders["vae"] / "vae")
    pipeline = toy_pipeline(["a", "star"])
    for stage, part in ((1, "stage1_transformer"), (2, "stage2_transformer")):
        transformer = tiny_transformer(stage)
        torch.nn.init.ones_(transformer.proj_out.bias)
        transformer.save_pretrained(folders[f"stage{stage}"] / part)
    pipeline.text_encoder.save_pretrained(folders["stage1"] / "text_encoder")
    build_word_tokenizer(["a", "star"]).save_pretrained(folders["stage1"] / "tokenizer")
    return folders


def test_all_parts_of_runs_take_the_place_of_the_bases(
    base: Path, runs: dict[str, Path], tmp_path: Path
) -> None:
    before = FlashVideoPipeline.from_pretrained(base).preset
    save(assemble(base, **runs), tmp_path / "model")
    pipeline = FlashVideoPipeline.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    assert pipeline.vae.dtype == torch.bfloat16
    for transformer in (pipeline.stage1_transformer, pipeline.stage2_transformer):
        assert transformer.proj_out.bias.eq(1).all()
    assert "star" in pipeline.tokenizer.get_vocab()
    assert pipeline.preset == dataclasses.replace(
        before,
        stage1=dataclasses.replace(before.stage1, latent_scale=1.25),
        stage2=dataclasses.replace(before.stage2, latent_scale=1.25),
    )


def test_what_no_run_has_trained_stays_the_bases(base: Path, runs: dict[str, Path]) -> None:
    pipeline = assemble(base, stage2=runs["stage2"])
    assert pipeline.stage2_transformer.proj_out.bias.eq(1).all()
    assert not pipeline.stage1_transformer.proj_out.bias.eq(1).all()
    assert "ball" in pipeline.tokenizer.get_vocab()
    assert pipeline.preset == FlashVideoPipeline.from_pretrained(base).preset


def test_an_adapter_is_merged_into_the_bases_weights(base: Path, tiny_transformer, tmp_path: Path) -> None:
    add_lora(trained := tiny_transformer(2), LoRA(rank=2, alpha=2.0))
    for name, parameter in trained.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(parameter)
    save_lora(trained, tmp_path)
    merged = assemble(base, stage2=tmp_path).stage2_transformer
    plain = assemble(base).stage2_transformer
    name = "transformer_blocks.0.attn1.to_q.weight"
    assert not torch.equal(merged.state_dict()[name], plain.state_dict()[name])
    assert merged.state_dict().keys() == plain.state_dict().keys()


def test_a_model_folder_does_not_name_the_machine_it_was_made_on(
    base: Path, runs: dict[str, Path], tmp_path: Path
) -> None:
    save(assemble(base, **runs), tmp_path / "model")
    texts = [path.read_text() for path in (tmp_path / "model").rglob("*.json")]
    assert texts and not any(str(tmp_path) in text for text in texts)


def test_an_unfinished_run_and_a_folder_in_use_are_refused(
    base: Path, runs: dict[str, Path], tmp_path: Path, monkeypatch, capsys
) -> None:
    with pytest.raises(ValueError, match="must be a finished training run"):
        assemble(base, stage2=tmp_path / "nothing")
    arguments = ["release", "--base", str(base), "--stage2", str(runs["stage2"]), "--output", str(base)]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1 and "is there already and holds files" in capsys.readouterr().err
