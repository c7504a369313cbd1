"""The script of the studies: what is there already passes for nothing that it is not."""

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
