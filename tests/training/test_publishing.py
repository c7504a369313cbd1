"""What a finished run tells of itself, where it can be watched, and its way to the hub."""

import dataclasses
import importlib.util
import logging
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi, ModelCard
from PIL import Image

from flashvideo.training import publishing
from flashvideo.training.config import Phase
from flashvideo.training.tracking import check_trackers

PHASES = (Phase(steps=2, batch=4, frames=1, learning_rate=3e-3, warmup=0),)


def _run(toy, output: Path, **options: object) -> None:
    toy.run(toy.recipe(output, phases=PHASES, **options))


@pytest.fixture
def hub(monkeypatch) -> list[tuple[str, dict]]:
    """What the hub was asked for, in order."""
    asked: list[tuple[str, dict]] = []
    for name in ("create_repo", "upload_folder", "upload_file"):
        monkeypatch.setattr(
            HfApi,
            name,
            lambda self, *args, _name=name, **kwargs: asked.append((_name, {"args": args} | kwargs)),
        )
    return asked


def test_the_model_card_tells_base_recipe_time_machine_and_figures(toy, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(publishing, "describe_device", lambda device: "some processor")
    _run(toy, tmp_path / "mine", start="/home/ada/models/base")
    text = (tmp_path / "mine" / "README.md").read_text()
    card = ModelCard(text)
    assert card.data.library_name == "diffusers" and card.data.license is None
    for fact in (
        "- base: base\n",
        "- steps: 2, of which these weights had 2\n",
        "- machine: 1 x some processor\n",
        "The licence is for you to choose",
        "| size | -0.",
        "    learning_rate: 0.003\n".removeprefix("  "),
    ):
        assert fact in text, fact
    assert "/home/ada" not in text and str(tmp_path) not in text
    assert yaml.safe_load((tmp_path / "mine" / "recipe.yaml").read_text())["start"] == "/home/ada/models/base"


def test_what_was_trained_from_nano_has_nanos_licence(toy, tmp_path) -> None:
    _run(toy, tmp_path, start=str(publishing.NANO_PATH))
    text = (tmp_path / "README.md").read_text()
    assert ModelCard(text).data.license == "apache-2.0" and "- base: nano\n" in text
    assert "for you to choose" not in text


def test_a_finished_run_is_pushed_without_its_checkpoints(toy, tmp_path, hub) -> None:
    _run(toy, tmp_path, push_to_hub="ada/mine")
    (_, made), (_, sent), _ = hub
    assert made == {"args": ("ada/mine",), "private": True, "exist_ok": True}
    assert (sent["repo_id"], sent["folder_path"]) == ("ada/mine", tmp_path)
    kept = sent["allow_patterns"]
    assert {
        "transformer/*",
        "text.safetensors",
        "validation.json",
        "README.md",
        "curve.csv",
    } <= set(kept)
    assert not any(name in " ".join(kept) for name in ("checkpoints", "best", "last", "trained"))


def test_the_recipe_is_pushed_without_the_machines_folders_and_no_other_picture(toy, tmp_path, hub) -> None:
    _run(toy, tmp_path / "mine", push_to_hub="ada/mine", start="/home/ada/base")
    sent, recipe = hub[1][1], hub[2][1]
    patterns = sent["allow_patterns"]
    assert not any(fnmatch(name, p) for name in ("recipe.yaml", "first_batch.png") for p in patterns)
    pushed = yaml.safe_load(recipe["path_or_fileobj"])
    assert (recipe["path_in_repo"], pushed["start"], pushed["output"]) == ("recipe.yaml", "base", "mine")


def test_a_failed_upload_loses_nothing_and_says_how_to_try_again(toy, tmp_path, monkeypatch, caplog) -> None:
    def fail(self, *args, **kwargs):
        raise OSError("no way\nto the hub")

    monkeypatch.setattr(HfApi, "create_repo", fail)
    _run(toy, tmp_path, push_to_hub="ada/mine")
    (said,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "was not uploaded to ada/mine (no way to the hub); nothing is lost" in said
    assert f"hf upload ada/mine {tmp_path} . --include 'text.safetensors' --include 'transformer/*'" in said
    assert (tmp_path / "transformer").is_dir()


def test_a_name_no_repository_can_have_is_refused_before_training(toy, tmp_path) -> None:
    with pytest.raises(ValueError, match="push_to_hub must be a repository such as name/model, got 'a b'"):
        _run(toy, tmp_path, push_to_hub="a b")
    assert not (tmp_path / "checkpoints").exists()


def test_curves_and_pictures_go_to_tensorboard(toy, tmp_path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    task = toy.ToyTask()

    def validate(folder: Path) -> dict[str, float]:
        Image.new("RGB", (4, 3), (255, 0, 0)).save(folder / "sheet.png")
        return {"size": 1.0}

    task.validate = validate
    toy.run(toy.recipe(tmp_path, phases=PHASES, trackers=("tensorboard",)), task)
    events = EventAccumulator(str(tmp_path / "trackers" / "flashvideo")).Reload()
    losses = events.Scalars("train/loss")
    assert [event.step for event in losses] == [1, 2]
    assert events.Scalars("validation/size")[0].value == 1.0
    (picture,) = events.Images("validation/sheet")
    assert (picture.width, picture.height) == (4, 3)
    assert (tmp_path / "sheet.png").exists()


def test_a_tracker_that_is_not_installed_is_one_sentence(toy, tmp_path, monkeypatch) -> None:
    recipe = dataclasses.replace(toy.recipe(tmp_path), trackers=("wandb",))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ImportError, match=r"trackers: wandb needs the package wandb, .* 'flashvideo\[track\]'"
    ):
        check_trackers(recipe)
