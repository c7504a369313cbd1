"""`flashvideo train`: from a recipe to the loop, with a task of one small layer in place of a model."""

import json
import re
import signal

import pytest
import torch

from flashvideo.training.loop import Outcome

RECIPE = """
task: vae
output: {output}
workers: 0
bf16: false
model: {{}}
phases:
  - {{steps: 3, batch: 2, frames: 1, learning_rate: 0.1, crop: [8, 8]}}
"""


class Line(torch.utils.data.Dataset):
    """Points on it."""

    def __getitem__(self, index):
        return torch.tensor([float(sum(index))])


class TinyTask:
    """Fits a line."""

    def __init__(self, stop_at=None, stop_by=signal.SIGINT):
        self.signal = stop_by
        self.modules = torch.nn.ModuleDict({"line": torch.nn.Linear(1, 1)})
        self.stop_at, self.steps = stop_at, 0

    def dataset(self, phase_index, clips_per_step):
        return Line()

    def loss(self, batch, phase_index, draws):
        self.steps += 1
        if self.steps == self.stop_at:
            signal.raise_signal(self.signal)
        return (self.modules["line"](batch) - 2 * batch).square().mean(), {}

    def validate(self, folder):
        return {"error": 0.0}

    def score(self, values):
        return -values["error"]

    def warnings(self, values, history):
        return [f"the error is {values['error']}"]

    def save(self, folder, modules=None):
        (folder / "trained.txt").write_text("trained")


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(output=tmp_path / "runs" / "line"))
    return path


@pytest.fixture
def task(monkeypatch):
    """`task(stop_at, stop_by)` is what the next training trains."""

    def use(*stop):
        tiny = TinyTask(*stop)
        monkeypatch.setattr("flashvideo.cli.train.build_task", lambda recipe, device: tiny)
        return tiny

    return use


def test_a_recipe_is_run_to_its_end(call, recipe, task, tmp_path):
    tiny = task()
    outcome = call("train", recipe, "--device", "cpu", "--json")
    assert outcome.code == 0, outcome.err
    data = json.loads(outcome.out)
    assert (data["output"], data["task"]) == (str(tmp_path / "runs" / "line"), "vae")
    assert (data["steps"], data["finished"]) == (3, True)
    assert data["warnings"] == ["step 3: the error is 0.0"]
    assert tiny.steps == 3
    assert (tmp_path / "runs" / "line" / "trained.txt").exists()


@pytest.mark.parametrize(
    "order", [["phases.0.steps=2", "--threads", 1], ["--threads", 1, "phases.0.steps=2"]]
)
def test_values_of_the_recipe_are_replaced_before_or_behind_options(call, recipe, task, order):
    tiny = task()
    assert call("train", recipe, *order, "--device", "cpu").code == 0
    assert tiny.steps == 2


@pytest.mark.parametrize(("stop_by", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_training_is_saved_and_resumed(call, recipe, task, stop_by, code):
    task(2, stop_by)
    outcome = call("train", recipe, "--device", "cpu")
    assert outcome.code == code
    assert re.search(r"stopped at step 2; saved to .*; --resume goes on", outcome.err.splitlines()[-1])
    tiny = task()
    assert call("train", recipe, "--device", "cpu", "--resume").code == 0
    assert tiny.steps == 1


def test_a_loss_that_is_not_finite_is_one_sentence(call, recipe, task):
    tiny = task()
    torch.nn.init.constant_(tiny.modules["line"].weight, float("inf"))
    outcome = call("train", recipe, "--device", "cpu")
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1].startswith("flashvideo: error: loss is nan at step 0; lower the")


def test_a_training_that_is_out_of_time_says_that_it_is_not_done(call, recipe, task, tmp_path):
    task()
    outcome = call("train", recipe, "--device", "cpu", "--max-minutes", "0.0000001")
    assert outcome.code == 0
    assert "stopped at step 1; --resume goes on in" in outcome.out
    assert not (tmp_path / "runs" / "line" / "trained.txt").exists()


def test_clips_that_were_left_out_are_one_line_that_names_their_list(
    call, recipe, task, tmp_path, monkeypatch
):
    task()
    outcome = Outcome(output=tmp_path, steps=3, finished=True, num_skipped=2)
    monkeypatch.setattr("flashvideo.training.loop.train", lambda *arguments, **options: outcome)
    said = call("train", recipe, "--device", "cpu").out
    assert f"2 clips were left out; {tmp_path / 'skipped.txt'} says why" in said.splitlines()


def test_another_training_in_the_same_output_is_refused(call, refusal, recipe, task):
    task()
    assert call("train", recipe, "--device", "cpu").code == 0
    said = refusal(call, "train", recipe, "--device", "cpu")
    assert "holds checkpoints of an earlier training; add --resume" in said


def test_each_task_is_built_by_its_own_class():
    from flashvideo.cli.train import _TASKS
    from flashvideo.training.recipes import RECIPES

    assert _TASKS.keys() == RECIPES.keys()
    for module, name in _TASKS.values():
        assert hasattr(__import__(module, fromlist=[name]), name)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["missing.yaml"], "recipe must be a YAML file"),
        (["recipe.yaml", "taks=vae"], "unknown key 'taks' in the recipe; did you mean 'task'"),
        (["recipe.yaml", "task=film"], "task must be one of vae, stage1, stage2, preference, got 'film'"),
        (["recipe.yaml", "output=recipe.yaml/runs"], "output recipe.yaml/runs cannot be written"),
        (["recipe.yaml", "--device", "toaster"], "device must be one of"),
        (
            ["recipe.yaml", "sharding=fsdp"],
            "sharding: fsdp is for transformers, got task vae; use sharding: ddp",
        ),
        (["recipe.yaml", "push_to_hub=a/b/c"], "push_to_hub must be a repository such as name/model"),
        (
            ["stage2.yaml"],
            "the recipe's vae must be a folder of trained weights, got nowhere; train it first",
        ),
        (
            ["stage2.yaml", "model={}", "start=nothing"],
            "the recipe's start must be a folder of trained weights, got nothing; train it first",
        ),
    ],
)
def test_a_wrong_recipe_is_one_sentence(call, refusal, recipe, tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    text = (
        recipe.read_text()
        .replace("task: vae", "task: stage2\nvae: nowhere")
        .replace("crop: [8, 8]", "crops: [[8, 8]]")
        .replace("model: {}", "model: {num_layers: 1}")
    )
    (tmp_path / "stage2.yaml").write_text(text)
    said = refusal(call, "train", *words)
    assert re.search(sentence, said), said
