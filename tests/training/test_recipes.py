"""Recipes: what is read, and what is refused."""

from pathlib import Path

import pytest
import yaml

from flashvideo.training.recipes import Stage2Recipe, VAERecipe, load_recipe, recipe_text

RECIPES = Path(__file__).parents[2] / "recipes"
PHASE = {"steps": 2, "batch": 1, "frames": 1, "crop": [16, 16], "learning_rate": 1e-3}


def _write(tmp_path: Path, **changes: object) -> Path:
    recipe = {"task": "vae", "output": "out", "model": {}, "phases": [PHASE]} | changes
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_recipe_loads_and_its_text_is_the_same_recipe(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.output.startswith("runs/")
    (tmp_path / "recipe.yaml").write_text(recipe_text(recipe))
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


def test_a_recipe_becomes_typed_phases(tmp_path: Path) -> None:
    recipe = load_recipe(_write(tmp_path))
    assert isinstance(recipe, VAERecipe)
    assert recipe.phases[0].crop == (16, 16) and recipe.phases[0].learning_rate == 1e-3


def test_overrides_reach_into_phases(tmp_path: Path) -> None:
    recipe = load_recipe(_write(tmp_path), ["phases.0.steps=7", "seed=3", "weight_decay=1e-4"])
    assert isinstance(recipe, VAERecipe)
    assert (recipe.phases[0].steps, recipe.seed, recipe.weight_decay) == (7, 3, 1e-4)


def test_keys_of_another_type_are_refused() -> None:
    with pytest.raises(ValueError, match=r"clips must have keys of type int, got 1\.5"):
        load_recipe(RECIPES / "nano_stage1_1.yaml", ["clips={1.5: 8}"])


def test_nano_names_the_shipped_model() -> None:
    recipe = load_recipe(RECIPES / "nano_stage2_6.yaml", ["start=nano", "vae=nano", "text=./nano"])
    assert isinstance(recipe, Stage2Recipe)
    assert (Path(recipe.start) / "stage2_transformer").is_dir()
    assert Path(recipe.vae) == Path(recipe.start) / "vae"
    assert recipe.text == "./nano"
    again = yaml.safe_load(recipe_text(recipe))
    assert [again[key] for key in ("start", "vae", "text")] == ["nano", "nano", "./nano"]


def test_crops_of_stage_2_are_pairs() -> None:
    recipe = load_recipe(RECIPES / "nano_stage2_1.yaml")
    assert isinstance(recipe, Stage2Recipe)
    assert all(len(crop) == 2 for phase in recipe.phases for crop in phase.crops)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sede": 1}, "did you mean 'seed'"),
        ({"task": "vea"}, "task must be one of vae, stage1, stage2, preference, got 'vea'"),
        ({"seed": "one"}, "seed must be of type int, got 'one'"),
        ({"optimizer": "sgd"}, "optimizer must be one of adamw, adamw8bit, adafactor, muon, got 'sgd'"),
        ({"ema_decay": 1.0}, "ema_decay must be in"),
        ({"phases": [PHASE | {"steps": 0}]}, "steps must be at least 1, got 0"),
        ({"phases": [PHASE | {"crop": [16]}]}, "must have 2 entries"),
        ({"phases": [PHASE | {"learning_rate": -1.0}]}, "learning_rate must be positive"),
        ({"phases": [PHASE | {"accumulate": 0}]}, "accumulate must be at least 1, got 0"),
        ({"phases": 3}, "phases must be a list"),
        ({"sharding": "zero"}, "sharding must be one of ddp, fsdp, got 'zero'"),
        ({"trackers": ["mlflow"]}, "trackers must be of tensorboard, wandb, got 'mlflow'"),
        ({"checkpoint_limit": 0}, "checkpoint_limit must be at least 1, got 0"),
        ({"phases": []}, "phases must have at least one phase, got none"),
        ({"phases": [PHASE | {"warmup": -5}]}, "warmup must be at least 0, got -5"),
        ({"phases": [PHASE | {"final_learning_rate": -1}]}, "final_learning_rate must be at least 0, got -1"),
        ({"phases": [PHASE | {"contrast_weight": -1}]}, "contrast_weight must be at least 0, got -1"),
        ({"weight_decay": -1}, "weight_decay must be at least 0, got -1"),
        ({"workers": -1}, "workers must be at least 0, got -1"),
        ({"checkpoint_minutes": -1}, "checkpoint_minutes must be at least 0, got -1"),
        ({"max_grad_norm": 0}, "max_grad_norm must be positive, got 0"),
        ({"kl_weight": -1}, "kl_weight must be at least 0, got -1"),
    ],
)
def test_mistakes_in_a_recipe_are_named(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe(_write(tmp_path, **changes))


@pytest.mark.parametrize(
    ("recipe", "override", "message"),
    [
        ("nano_stage2_1", "shift=0", "shift must be positive, got 0"),
        ("nano_stage1_1", "spread=1.5", "spread must be between 0 and 1, got 1.5"),
        ("nano_stage2_1", "scale=0", "scale must be at least 1, got 0"),
        ("nano_stage2_1", "phases.0.difference_weight=-1", "difference_weight must be at least 0, got -1"),
        ("nano_preference_stage1", "better_weight=-1", "better_weight must be at least 0, got -1"),
    ],
)
def test_so_are_those_in_a_recipe_of_a_stage(recipe: str, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe(RECIPES / f"{recipe}.yaml", [override])


def test_factors_that_a_degradation_does_not_name_follow_the_scale() -> None:
    overrides = ["scale=2", "degradation={final: {probability: 0.5}, strong_factor: [1, 3]}"]
    recipe = load_recipe(RECIPES / "nano_stage2_6.yaml", overrides)
    assert isinstance(recipe, Stage2Recipe)
    found = recipe.pixel_degradation()
    assert (found.weak_factor, found.strong_factor, found.final.probability) == ((2, 2), (1, 3), 0.5)


def test_what_a_degradation_leaves_open_is_as_if_it_were_not_named() -> None:
    overrides = ["degradation={strong: null, weak_factor: null, strong_factor: [1, 3]}"]
    recipe = load_recipe(RECIPES / "nano_stage2_6.yaml", overrides)
    assert isinstance(recipe, Stage2Recipe)
    assert recipe.pixel_degradation().weak_factor == (4, 4)


def test_how_often_a_degradation_is_strong_is_for_the_phases() -> None:
    with pytest.raises(ValueError, match=r"degradation\.strong is for the phases to say, got 0\.3"):
        load_recipe(RECIPES / "nano_stage2_6.yaml", ["degradation={strong: 0.3}"])


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("task: vae\noutput: out\nmodel: {}\n")
    with pytest.raises(ValueError, match="'phases', which is missing"):
        load_recipe(path)


def test_a_missing_or_unreadable_recipe_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1,")
    with pytest.raises(ValueError, match="must be YAML"):
        load_recipe(tmp_path / "bad.yaml")


@pytest.mark.parametrize("override", ["seed", "=3", "phases.9.steps=1", "nothing.here=1"])
def test_an_override_that_leads_nowhere_is_an_error(tmp_path: Path, override: str) -> None:
    with pytest.raises(ValueError, match="override"):
        load_recipe(_write(tmp_path), [override])
