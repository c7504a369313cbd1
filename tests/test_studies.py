"""The script of the studies: what is there already passes for nothing that it is not."""

import copy
import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

from flashvideo.training.recipes import load_recipe, recipe_text

ROOT = Path(__file__).parents[1]


@pytest.fixture
def studies(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    loader = SourceFileLoader("studies", str(ROOT / "scripts" / "studies"))
    spec = importlib.util.spec_from_loader("studies", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "studies", module)  # where dataclasses look for it
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["stage2", "stage1_resolution", "../nano_preference_stage1"])
def test_a_run_of_other_overrides_is_not_taken_for_this_one(studies, name: str, tmp_path: Path) -> None:
    file = studies.RECIPES / f"{name}.yaml"
    recipe = load_recipe(file, [f"output={tmp_path}"])
    studies.check_same(tmp_path, recipe)  # nothing is there
    (tmp_path / "recipe.yaml").write_text(recipe_text(recipe))
    studies.check_same(tmp_path, recipe)
    with pytest.raises(SystemExit, match="holds a run with another value of phases, seed; choose another"):
        studies.check_same(tmp_path, load_recipe(file, [f"output={tmp_path}", "seed=3", "phases.0.steps=20"]))


def test_degraded_inputs_are_as_bad_as_the_recipe_says(studies) -> None:
    options = {"size": (32, 48), "scale": 4, "degraded": True}
    mild, strong = (studies.stage2_inputs(2, **options, strength=strength)[0] for strength in (0.0, 1.0))
    assert not mild.equal(strong)


def test_runs_from_other_weights_are_not_taken_for_these(studies, tmp_path: Path) -> None:
    model, output = tmp_path / "model", tmp_path / "output"
    for folder in (model, output):
        folder.mkdir()
    (model / "weights.safetensors").write_bytes(b"one")
    studies.check_model(output, model)
    studies.check_model(output, model)
    (model / "weights.safetensors").write_bytes(b"another")
    with pytest.raises(SystemExit, match="holds runs from other weights than those of"):
        studies.check_model(output, model)


def test_tables_have_what_was_measured_and_differences_of_the_same_clips(studies, capsys) -> None:
    studies.print_tables(
        {
            "none": [
                {"8x8 ours psnr": 1.0, "8x8 bicubic psnr": 9.0},
                {"8x8 ours psnr": 3.0, "8x8 bicubic psnr": 9.0},
            ],
            "pixel": [
                {"8x8 ours psnr": 2.0, "8x8 bicubic psnr": 9.0},
                {"8x8 ours psnr": 4.0, "8x8 bicubic psnr": 9.0},
            ],
        }
    )
    rows = capsys.readouterr().out.splitlines()
    assert "| none | 8x8 | 2 (1 to 3) |" in rows
    assert "| bicubic | 8x8 | 9 (9 to 9) |" in rows
    assert "| pixel less none | 8x8 | 1 (1 to 1) |" in rows
    assert not any("bicubic less" in row for row in rows)


def test_a_runs_own_transformer_is_what_is_measured(
    studies, toy_pipeline, monkeypatch, tmp_path: Path
) -> None:
    pipeline = toy_pipeline(["a", "red"])
    monkeypatch.setattr(studies, "load_pipeline", lambda start: pipeline)
    monkeypatch.setattr(studies, "compare", lambda *_: {"gradient_energy": 0.0, "filter_bank": 0.0})
    changed = copy.deepcopy(pipeline.stage1_transformer)
    for parameter in changed.parameters():
        parameter.data.mul_(0.5)
    changed.save_pretrained(tmp_path / "run" / "stage1_transformer")
    seen = []
    monkeypatch.setattr(studies, "outline_margin", lambda clip, shape: seen.append(clip) or 0.0)
    for run in ("none", "run"):
        list(studies.measure_stage1(tmp_path / run, (32, 48), "nano", 1))
    assert not seen[0].equal(seen[1])
