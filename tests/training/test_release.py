"""From runs to a model folder."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX

from flashvideo.pipelines.two_stage import FlashVideoPipeline
from flashvideo.text import build_word_tokenizer
from flashvideo.training.config import LoRA, Recipe
from flashvideo.training.lora import add_lora, save_lora
from flashvideo.training.recipes import (
    Stage1Phase,
    Stage1Recipe,
    Stage2Phase,
    Stage2Recipe,
    VAEPhase,
    VAERecipe,
    recipe_text,
)
from flashvideo.training.release import assemble, main, save


@pytest.fixture
def base(toy_pipeline, tmp_path: Path) -> Path:
    toy_pipeline(["a", "ball"]).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def _write(recipe: Recipe) -> None:
    Path(recipe.output).mkdir(parents=True, exist_ok=True)
    (Path(recipe.output) / "recipe.yaml").write_text(recipe_text(recipe))


PHASE = Stage2Phase(steps=1, batch=1, frames=5, learning_rate=1e-3, crops=((16, 24),))


@pytest.fixture
def runs(tiny_vae, tiny_transformer, toy_pipeline, tmp_path: Path) -> dict[str, Path]:
    """Of networks with other weights than the base's, but for VAE and text encoder."""
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
    vae, model = str(folders["vae"] / "vae"), {"num_layers": 2}
    common: dict[str, Any] = {"steps": 1, "batch": 1, "frames": 5, "learning_rate": 1e-3}
    phase = VAEPhase(**common, crop=(16, 16))
    _write(VAERecipe(task="vae", output=str(folders["vae"]), model=model, phases=(phase,)))
    phase = Stage1Phase(**common)
    stage1 = {"task": "stage1", "output": str(folders["stage1"]), "clips": {5: 1}}
    _write(Stage1Recipe(**stage1, vae=vae, model=model, text=model, phases=(phase,)))
    phase = dataclasses.replace(PHASE, noise_steps=(100, 150))
    stage2 = {"task": "stage2", "output": str(folders["stage2"]), "text": str(folders["stage1"])}
    settings = {"shift": 3.0, "prompt_prefix": "slow,"}
    _write(Stage2Recipe(**stage2, **settings, vae=vae, model=model, phases=(phase,)))
    return folders


@pytest.fixture
def adapter(base: Path, tiny_transformer, tmp_path: Path) -> Stage2Recipe:
    """The recipe of a run that left an adapter of the base's Stage II."""
    add_lora(trained := tiny_transformer(2), LoRA(rank=2, alpha=2.0))
    for name, parameter in trained.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(parameter)
    run = tmp_path / "adapter"
    save_lora(trained, run)
    lora = LoRA(rank=2, alpha=2.0)
    recipe = Stage2Recipe(task="stage2", output=str(run), start=str(base), phases=(PHASE,), lora=lora)
    _write(recipe)
    return recipe


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
    assert pipeline.stage2_scheduler.shift == 3.0
    settings = {"latent_scale": 1.25, "shift": 3.0, "noise_step": 125, "prompt_prefix": "slow,"}
    assert pipeline.preset == dataclasses.replace(
        before,
        stage1=dataclasses.replace(before.stage1, latent_scale=1.25),
        stage2=dataclasses.replace(before.stage2, **settings),
    )


def test_what_no_run_has_trained_stays_the_bases(base: Path, runs: dict[str, Path]) -> None:
    pipeline = assemble(base, stage2=runs["stage2"])
    assert pipeline.stage2_transformer.proj_out.bias.eq(1).all()
    assert not pipeline.stage1_transformer.proj_out.bias.eq(1).all()
    assert "ball" in pipeline.tokenizer.get_vocab()
    assert pipeline.preset.stage1 == FlashVideoPipeline.from_pretrained(base).preset.stage1


def test_a_vae_beside_stages_of_the_base_must_give_their_latents(base: Path, runs: dict[str, Path]) -> None:
    pipeline = assemble(base, vae=runs["vae"], stage2=runs["stage2"])
    before = FlashVideoPipeline.from_pretrained(base).preset
    assert pipeline.preset.stage1 == before.stage1 and pipeline.preset.stage2.latent_scale == 1.25

    vae = AutoencoderKLCogVideoX.from_pretrained(runs["vae"] / "vae")
    with torch.no_grad():
        next(vae.decoder.parameters()).add_(1)
    vae.save_pretrained(runs["vae"] / "vae")
    assemble(base, vae=runs["vae"])  # which decodes otherwise, and encodes as before
    with torch.no_grad():
        next(vae.encoder.parameters()).add_(1)
    vae.save_pretrained(runs["vae"] / "vae")
    with pytest.raises(ValueError, match=r"VAE must encode as that of .* whose stage1_transformer stays"):
        assemble(base, vae=runs["vae"], stage2=runs["stage2"])


def test_an_adapter_is_merged_into_the_bases_weights(base: Path, adapter: Stage2Recipe) -> None:
    pipeline, plain = assemble(base, stage2=Path(adapter.output)), assemble(base)
    merged, before = (p.stage2_transformer.state_dict() for p in (pipeline, plain))
    name = "transformer_blocks.0.attn1.to_q.weight"
    assert not torch.equal(merged[name], before[name]) and merged.keys() == before.keys()
    assert pipeline.preset == plain.preset  # whose noise step and shift it was trained with


def test_a_run_of_another_part_and_one_of_two_minds_are_refused(base: Path, adapter: Stage2Recipe) -> None:
    run = Path(adapter.output)
    with pytest.raises(ValueError, match=r"--stage1 must be a run that trained stage1, .* trained stage2"):
        assemble(base, stage1=run)
    (run / "stage2_transformer").mkdir()
    with pytest.raises(ValueError, match="must hold an adapter or whole weights, got both"):
        assemble(base, stage2=run)


@pytest.mark.parametrize("part", ["transformer", "VAE", "text encoder"])
def test_a_run_that_was_trained_with_other_weights_is_refused(
    base: Path, adapter: Stage2Recipe, tmp_path: Path, part: str
) -> None:
    pipeline = FlashVideoPipeline.from_pretrained(base)
    other = {
        "transformer": pipeline.stage2_transformer,
        "VAE": pipeline.vae,
        "text encoder": pipeline.text_encoder,
    }
    with torch.no_grad():
        next(other[part].parameters()).add_(1)
    pipeline.save_pretrained(tmp_path / "other")
    _write(dataclasses.replace(adapter, start=str(tmp_path / "other")))
    with pytest.raises(ValueError, match=f"the model's {part} must be the one that the run was trained with"):
        assemble(base, stage2=Path(adapter.output))


def test_a_run_whose_start_is_gone_is_taken_with_a_warning(base: Path, adapter: Stage2Recipe, caplog) -> None:
    _write(dataclasses.replace(adapter, start="gone"))
    assemble(base, stage2=Path(adapter.output))
    assert "gone, which the run was trained with, is not there" in caplog.text


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
    shutil.rmtree(runs["vae"] / "vae")
    with pytest.raises(ValueError, match="must be a finished training run, got a folder without vae"):
        assemble(base, vae=runs["vae"])
    arguments = ["release", "--base", str(base), "--stage2", str(runs["stage2"]), "--output", str(base)]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1 and "is there already and holds files" in capsys.readouterr().err
