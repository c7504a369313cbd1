"""`flashvideo train --dry-run`: what a recipe would do, without doing it."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import AutoencoderKLCogVideoX
from PIL import Image

from flashvideo.cli import main
from flashvideo.training.dry_run import dry_run
from flashvideo.training.first_batch import Row, draw_batch
from flashvideo.training.pairs import Candidates, write_candidates
from flashvideo.training.recipes import load_recipe
from flashvideo.video import write_video

CPU = torch.device("cpu")
TRANSFORMER = {
    "num_attention_heads": 1,
    "attention_head_dim": 16,
    "in_channels": 8,
    "out_channels": 8,
    "time_embed_dim": 8,
    "text_embed_dim": 12,
    "num_layers": 3,
    "max_text_seq_length": 8,
    "noise_step_embed": True,
}


@pytest.fixture
def path(tmp_path, tiny_vae_config) -> Path:
    """A recipe of Stage II on the procedural world."""
    AutoencoderKLCogVideoX(**tiny_vae_config).save_pretrained(tmp_path / "vae")
    phase = {
        "steps": 100,
        "batch": 2,
        "accumulate": 3,
        "frames": 5,
        "crops": [[16, 16], [32, 32]],
        "learning_rate": 1e-3,
        "warmup": 10,
        "strong": 0.0,
    }
    values = {
        "task": "stage2",
        "output": str(tmp_path / "run"),
        "vae": str(tmp_path / "vae"),
        "model": TRANSFORMER,
        "size": [32, 48],
        "watch_frames": 1,
        "phases": [phase],
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def test_the_command_tells_steps_tokens_rates_and_memory_and_trains_nothing(path, capsys):
    code = main(["train", str(path), "--dry-run", "--gpus", "2", "--vram", "16", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert code == 0 and told["processes"] == 2
    (phase,) = told["phases"]
    assert phase["clips_per_step"] == 2 * 3 * 2 and phase["samples"] == 0
    assert phase["tokens"] == 2 * 4 * 4 + 8
    assert phase["rates"][0] == [0, 1e-4] and phase["rates"][1] == [10, 1e-3]
    assert told["parameters"]["trained"] == told["parameters"]["total"] > 0
    assert phase["memory"]["peak_gib"] > 1  # with what drivers take
    assert told["fits"][0]["fits"] is True and told["fits"][0]["measures"] == []
    output = path.parent / "run"
    assert [file.name for file in output.iterdir()] == ["first_batch.png"]


def test_the_command_writes_tables_for_people(path, capsys):
    assert main(["train", str(path), "--dry-run", "-o", str(path.parent / "there")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("stage2: 0.0M parameters are trained")
    assert lines[2].split()[:2] == ["phase", "steps"] and "memory of each process, estimated:" in lines
    assert lines[-1].startswith(f"wrote {path.parent / 'there' / 'first_batch.png'}")


def test_its_options_need_it(path, capsys):
    assert main(["train", str(path), "--gpus", "2"]) == 1
    assert "--gpus is for --dry-run" in capsys.readouterr().err


def test_clips_of_ones_own_are_counted_and_missing_ones_are_a_note(path, tmp_path):
    (tmp_path / "clips").mkdir()
    for number in range(3):
        write_video(tmp_path / "clips" / f"{number}.mp4", torch.zeros(9, 3, 32, 48), frame_rate=8)
    overrides = [f"data={{sources: [{{path: {tmp_path / 'clips'}}}], held_out: 0}}", "phases.0.accumulate=1"]
    overrides.append(f"validation={{sources: [{{path: {tmp_path / 'clips'}}}]}}")
    found = dry_run(load_recipe(path, overrides), CPU)
    assert (found.phases[0].samples, found.phases[0].steps_per_epoch) == (3, 2)
    assert found.picture is not None
    assert found.notes == ()
    found = dry_run(load_recipe(path, overrides[:2]), CPU)
    assert any("nothing to validate on: of 3 clips" in note for note in found.notes)
    overrides[0] = "data={sources: [{path: nowhere}]}"
    found = dry_run(load_recipe(path, overrides), CPU)
    assert found.phases[0].samples is None and found.picture is None
    assert any("the first batch is not drawn" in note for note in found.notes)


def test_clips_that_are_left_out_are_counted_and_the_first_named(path, tmp_path, capsys):
    (tmp_path / "clips").mkdir()
    write_video(tmp_path / "clips" / "good.mp4", torch.zeros(9, 3, 32, 48), frame_rate=8)
    for number in range(12):
        (tmp_path / "clips" / f"bad{number:02}.mp4").write_bytes(b"")
    sources = f"{{sources: [{{path: {tmp_path / 'clips'}}}], held_out: 0}}"
    assert main(["train", str(path), f"data={sources}", f"validation={sources}", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    counted = "phase 1: 1 videos and 0 pictures (1 of 5x32x32), 1 without a caption, 12 left out"
    first = lines.index(counted) + 1
    assert lines[first] == f"  {tmp_path}/clips/bad00.mp4 is left out: it is empty (0 bytes)"
    assert len([line for line in lines if " is left out: " in line]) == 10


def test_the_picture_has_a_row_per_clip_with_what_is_made_of_it(tmp_path):
    white, black = torch.ones(5, 3, 10, 20), -torch.ones(5, 3, 10, 20)
    rows = [
        Row(pixels=white, degraded=black, caption="a snowman in the night"),
        Row(pixels=white, degraded=black, caption=""),
    ]
    picture = Image.open(draw_batch(rows, tmp_path / "batch.png")).convert("L")
    assert picture.width == 6 * 200
    assert picture.getpixel((100, 50)) == 255 and picture.getpixel((1100, 50)) == 0


def test_of_an_alignment_pairs_are_counted_and_a_folder_without_any_is_noted(tmp_path):
    values = {
        "task": "preference",
        "stage": "stage1",
        "start": "nano",
        "pairs": str(tmp_path / "pairs"),
        "output": str(tmp_path / "run"),
        "least_margin": 0.5,
        "phases": [{"steps": 9, "batch": 4, "frames": 5, "learning_rate": 1e-3}],
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    recipe = load_recipe(tmp_path / "recipe.yaml")
    (phase,) = (found := dry_run(recipe, CPU)).phases
    assert phase.samples == 0 and any("which has none; make them by" in note for note in found.notes)
    (tmp_path / "pairs").mkdir()
    for index in range(12):
        scores = (0.0, 1.0 if index else 0.1)
        candidates = Candidates(prompt=f"{index}", latents=torch.zeros(2, 1, 2, 4, 4), scores=scores)
        write_candidates(tmp_path / "pairs" / f"{index:06}.safetensors", candidates)
    (phase,) = (found := dry_run(recipe, CPU, gpus=2)).phases
    assert (phase.samples, phase.clips_per_step, phase.steps_per_epoch) == (10, 8, 2)
    assert phase.clips == "10 pairs to learn from, 1 held out; of 12 files the others differ by too little"
    assert not any("refused" in note for note in found.notes)
