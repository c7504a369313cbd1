"""The loop on a toy: it learns, keeps the best, resumes, stops when told to, and loses nothing."""

import csv
import dataclasses
import errno
import json
import logging
import math
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flashvideo.data.clips import ClipDataset
from flashvideo.data.clips.config import ClipsConfig
from flashvideo.data.clips.sources import ClipSource
from flashvideo.training.config import Phase
from flashvideo.training.curve import TIMES
from flashvideo.training.stopping import Interrupted
from flashvideo.training.task import fallen

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "curve.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _phase(steps: int, **options: object) -> Phase:
    return Phase(**{"steps": steps, "batch": 4, "frames": 1, "learning_rate": 3e-3, "warmup": 1} | options)


def _scores(task, *scores: float):
    """Gives a task's validations these scores, in order."""
    left = list(scores)
    task.validate = lambda folder: {"size": left.pop(0)}
    return task


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory) -> Path:
    """A run from beginning to end."""
    output = tmp_path_factory.mktemp("whole")
    assert toy.run(toy.recipe(output)).finished
    return output


def test_a_stopped_and_resumed_run_equals_the_uninterrupted_one_bit_for_bit(toy, whole, tmp_path) -> None:
    recipe = toy.recipe(tmp_path)
    for step in (1, 2):
        outcome = toy.run(recipe, resume=True, max_minutes=1e-9)  # stops after one step
        assert (outcome.steps, outcome.finished) == (step, False)
        assert not (tmp_path / "transformer").exists()
    assert toy.run(recipe, resume=True).finished
    for part in ("", "last"):
        ours, theirs = (load_file(run / part / WEIGHTS) for run in (tmp_path, whole))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    curves = [
        [{k: v for k, v in r.items() if k not in TIMES} for r in _rows(run)] for run in (tmp_path, whole)
    ]
    assert curves[0] == curves[1]


def test_the_curve_tells_of_time_speed_and_memory(whole) -> None:
    rows = _rows(whole)
    assert [row["step"] for row in rows] == ["1", "2", "2", "3", "4", "4"]
    trained = [row for row in rows if row["loss"]]
    assert all(float(row[name]) > 0 for row in trained for name in ("samples_per_second", "memory_gib"))
    assert [bool(row["score"]) for row in rows] == [False, False, True] * 2


def test_training_lowers_the_loss(toy, tmp_path) -> None:
    toy.run(toy.recipe(tmp_path, phases=(_phase(60, learning_rate=1e-2),), log_steps=5, validate_steps=0))
    losses = [float(row["loss"]) for row in _rows(tmp_path) if row["loss"]]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def test_the_best_average_is_left_and_the_last_beside_it(toy, tmp_path) -> None:
    task = _scores(toy.ToyTask(), 1.0, 3.0, 2.0)
    toy.run(toy.recipe(tmp_path, phases=(_phase(6),)), task)
    assert json.loads((tmp_path / "validation.json").read_text())["step"] == 4
    assert json.loads((tmp_path / "last" / "validation.json").read_text())["step"] == 6
    best, left, last = (
        load_file(folder / WEIGHTS)
        for folder in (tmp_path / "best/step_00000004", tmp_path, tmp_path / "last")
    )
    assert all(torch.equal(best[name], left[name]) for name in best)
    assert any(not torch.equal(left[name], last[name]) for name in left)
    state = torch.load(tmp_path / "checkpoints/step_00000006/state.pt", weights_only=True)
    average, weights = (
        {k.rpartition("transformer.")[2]: v for k, v in state[part].items() if "transformer." in k}
        for part in ("average", "parameters")
    )
    name = "proj_out.weight"
    assert torch.equal(last[name], average[name]) and not torch.equal(last[name], weights[name])
    assert [p.name for p in (tmp_path / "best").iterdir()] == ["step_00000004"]


@pytest.mark.parametrize(("from_best", "start"), [(True, 2), (False, 4)])
def test_a_phase_starts_from_the_best_or_the_last_of_the_one_before(toy, tmp_path, from_best, start) -> None:
    task = _scores(toy.ToyTask(), 3.0, 1.0, 0.0)
    still = _phase(1, learning_rate=1e-30, from_best=from_best)
    toy.run(toy.recipe(tmp_path, phases=(_phase(4), still), checkpoint_limit=9, ema_decay=0.0), task)
    state = torch.load(tmp_path / f"checkpoints/step_{start:08}/state.pt", weights_only=True)
    now = dict(task.modules.named_parameters())
    assert all(
        torch.equal(now[name.removeprefix("networks.")], value) for name, value in state["parameters"].items()
    )


def test_the_first_phase_has_no_best_to_start_from(toy, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"phases\.0\.from_best needs a phase before it"):
        toy.run(toy.recipe(tmp_path, phases=(_phase(1, from_best=True),)))


def test_only_so_many_checkpoints_are_kept(toy, tmp_path) -> None:
    toy.run(toy.recipe(tmp_path, checkpoint_minutes=0.0, checkpoint_limit=3))
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step_00000002", "step_00000003", "step_00000004"]


@pytest.mark.parametrize("damage", ["cut", "bit", "missing"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_continued(
    toy, whole, tmp_path, caplog, damage
) -> None:
    recipe = toy.recipe(tmp_path)
    toy.run(recipe)
    state = max((tmp_path / "checkpoints").iterdir()) / "state.pt"
    data = bytearray(state.read_bytes())
    if damage == "missing":
        state.unlink()
    else:
        data[len(data) // 2] ^= 1
        state.write_bytes(data[: len(data) // 2] if damage == "cut" else data)
    assert toy.run(recipe, resume=True).steps == 4
    assert "step_00000004 is damaged (state.pt is" in caplog.text
    ours, theirs = (load_file(run / WEIGHTS) for run in (tmp_path, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_resumed_run_warns_once_of_other_clips_and_so_do_processes_that_differ(
    toy, clip_folder, tmp_path, caplog, monkeypatch
) -> None:
    folder = clip_folder(["a", "b"])
    config = ClipsConfig(sources=(ClipSource(path=str(folder)),), buckets=((5, 16, 24),), frame_rate=8.0)

    def go_on() -> list[str]:
        task, dataset = toy.ToyTask(), toy.Clips(4)
        dataset.clips = ClipDataset(config, temporal_compression=4, progress=False)
        task.dataset = lambda phase_index, clips_per_step: dataset
        caplog.clear()
        toy.run(toy.recipe(tmp_path, phases=(_phase(6),)), task, resume=True, max_minutes=1e-9)
        return [record.getMessage() for record in caplog.records if record.name.endswith("steps")]

    assert not go_on() and not go_on()
    (folder / "clip0.mp4").rename(folder / "clip9.mp4")
    (warning,) = go_on()
    assert "not those that phase 1 began with, so that its 4 steps left see other samples" in warning
    assert not go_on()
    monkeypatch.setattr(
        "flashvideo.training.steps.gather_object", lambda values: [*values, "what another process sees"]
    )
    (warning,) = go_on()
    assert "the processes see different clips" in warning


def test_without_a_whole_checkpoint_nothing_is_begun_anew_in_secret(toy, tmp_path) -> None:
    recipe = toy.recipe(tmp_path, phases=(_phase(1),))
    toy.run(recipe)
    (tmp_path / "checkpoints/step_00000001/checkpoint.json").write_text("{")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"no checkpoint in .* is whole; put a whole copy of one there"):
            toy.run(recipe, resume=True)


@pytest.mark.parametrize("name", ["checkpoint.json", "state.pt"])
def test_a_disk_that_is_away_for_a_moment_damages_no_checkpoint(toy, tmp_path, monkeypatch, name) -> None:
    recipe = toy.recipe(tmp_path, phases=(_phase(1),))
    toy.run(recipe)
    opened = Path.open

    def away(path: Path, *arguments: object, **options: object) -> object:
        if path.name == name:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return opened(path, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", away)
        with pytest.raises(OSError, match="Input/output error"):
            toy.run(recipe, resume=True)
    assert toy.run(recipe, resume=True).finished


def test_an_output_with_checkpoints_is_not_overwritten(toy, tmp_path) -> None:
    recipe = toy.recipe(tmp_path, phases=(_phase(1),))
    toy.run(recipe)
    with pytest.raises(ValueError, match="holds checkpoints of an earlier training; add --resume"):
        toy.run(recipe)


def test_a_checkpoint_of_other_networks_is_one_sentence(toy, tmp_path) -> None:
    recipe = toy.recipe(tmp_path, phases=(_phase(1),))
    toy.run(recipe)
    task = toy.ToyTask()
    task.modules["text"] = torch.nn.Embedding(7, 31)
    with pytest.raises(
        ValueError, match=r"does not fit what the recipe trains now: .* resume with the recipe"
    ):
        toy.run(recipe, task, resume=True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_lets_the_step_end_saves_and_says_how_to_go_on(toy, tmp_path, number, code) -> None:
    task = toy.ToyTask()
    loss, calls = task.loss, []

    def signalled(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(number)
        return loss(*arguments)

    task.loss = signalled
    before = signal.getsignal(number)
    with pytest.raises(
        Interrupted, match=r"stopped at step 3; saved to .*step_00000003; --resume goes on"
    ) as caught:
        toy.run(toy.recipe(tmp_path), task)
    assert caught.value.exit_code == code and signal.getsignal(number) is before
    assert (tmp_path / "checkpoints/step_00000003").exists()
    assert toy.run(toy.recipe(tmp_path), resume=True).finished


def test_a_second_ctrl_c_stops_at_once(toy, tmp_path) -> None:
    task = toy.ToyTask()

    def impatient(*arguments: object) -> object:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    task.loss = impatient
    with pytest.raises(Interrupted, match="stopped at once"):
        toy.run(toy.recipe(tmp_path), task)


def test_a_loss_that_is_not_finite_stops_the_run(toy, tmp_path) -> None:
    task = toy.ToyTask()
    loss = task.loss
    task.loss = lambda *arguments: (loss(*arguments)[0] * math.nan, {})
    with pytest.raises(FloatingPointError, match="loss is nan at step 0; lower the learning rate"):
        toy.run(toy.recipe(tmp_path), task)


def _with_bad_gradient(toy, *steps: int):
    """A toy whose gradient is infinite at these calls of its loss, and the loss finite."""
    task, calls = toy.ToyTask(), []
    loss = task.loss

    def bad(*arguments: object) -> object:
        calls.append(1)
        value, named = loss(*arguments)
        weight = task.modules["text"].weight.sum()
        return value + (0.0 * (weight - weight.detach()).abs().sqrt() if len(calls) in steps else 0), named

    task.loss = bad
    return task


def test_a_gradient_that_is_not_finite_stops_the_run_or_is_skipped_and_counted(toy, tmp_path) -> None:
    with pytest.raises(FloatingPointError, match="the gradients' norm is nan at step 1"):
        toy.run(toy.recipe(tmp_path / "strict"), _with_bad_gradient(toy, 2))
    toy.run(toy.recipe(tmp_path / "lenient", max_skips=1), _with_bad_gradient(toy, 2))
    assert [row["skipped"] for row in _rows(tmp_path / "lenient") if row["loss"]] == ["0", "1", "1", "1"]
    assert all(value.isfinite().all() for value in load_file(tmp_path / "lenient" / WEIGHTS).values())
    with pytest.raises(FloatingPointError, match="let max_skips steps pass"):
        toy.run(toy.recipe(tmp_path / "twice", max_skips=1), _with_bad_gradient(toy, 2, 3))


def test_a_loss_that_is_not_finite_is_skipped_and_counted_too(toy, tmp_path) -> None:
    task, calls = toy.ToyTask(), []
    loss = task.loss

    def infinite_once(*arguments: object) -> object:
        calls.append(1)
        value, named = loss(*arguments)
        return value + (math.inf if len(calls) == 2 else 0), named  # its gradients are finite

    task.loss = infinite_once
    toy.run(toy.recipe(tmp_path, max_skips=1), task)
    assert [row["skipped"] for row in _rows(tmp_path) if row["loss"]] == ["0", "1", "1", "1"]


@pytest.mark.parametrize(
    ("variable", "value", "recipe"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16", "bf16 of the recipe"),
        ("ACCELERATE_MIXED_PRECISION", "fp16", "bf16 of the recipe"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "compile of the recipe"),
    ],
)
def test_what_the_launcher_asks_for_beside_the_recipe_is_refused(
    toy, tmp_path, monkeypatch, variable, value, recipe
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=f"the launcher asks for .* {value.lower()}, but {recipe} says"):
        toy.run(toy.recipe(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "muon"}, 'optimizer was "adamw", is "muon"'),
        ({"seed": 1, "bf16": True}, "bf16 was false, is true, seed was 0, is 1; resume with these"),
        ({"phases": (_phase(2),)}, r"phases\.0\.steps was 3, is 2"),
        ({"phases": (_phase(3, batch=2),)}, r"steps of phases\.0 must have 4 clips as before, got 2"),
        ({"phases": (_phase(3), _phase(3, from_best=True))}, r"phases\.1\.from_best was false, is true"),
    ],
)
def test_a_run_does_not_go_on_with_another_recipe(toy, tmp_path, changes, message) -> None:
    recipe = toy.recipe(tmp_path, phases=(_phase(3),))
    toy.run(recipe, max_minutes=1e-9)
    before = (tmp_path / "recipe.yaml").read_text()
    with pytest.raises(ValueError, match=message):
        toy.run(dataclasses.replace(recipe, **changes), resume=True)
    assert (tmp_path / "recipe.yaml").read_text() == before


def test_rates_places_and_what_has_not_begun_may_change(toy, tmp_path) -> None:
    recipe = toy.recipe(tmp_path, phases=(_phase(1), _phase(2)))
    toy.run(recipe, max_minutes=1e-9)
    phases = (_phase(1, batch=2, accumulate=2, learning_rate=1e-4), _phase(1, batch=8), _phase(1))
    changed = dataclasses.replace(
        recipe, phases=phases, weight_decay=0.1, validate_steps=1, checkpoint_limit=1
    )
    assert toy.run(changed, resume=True).steps == 3


def test_a_finished_run_with_more_steps_is_refused(toy, tmp_path) -> None:
    recipe = toy.recipe(tmp_path, phases=(_phase(1),))
    toy.run(recipe)
    with pytest.raises(ValueError, match=r"phases\.0\.steps was 1, is 2; resume with these as they were"):
        toy.run(dataclasses.replace(recipe, phases=(_phase(2),)), resume=True)


def test_a_figure_that_fell_far_below_its_best_is_warned_of(toy, tmp_path, caplog) -> None:
    task = _scores(toy.ToyTask(), 1.0, 0.4)
    task.warnings = lambda values, history: fallen(values, history, {"size": 0.5})
    toy.run(toy.recipe(tmp_path), task)
    (said,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert said.startswith("step 4: size fell to 0.4 from 1 at its best, by more than 0.5: look at")


def test_a_figure_that_is_not_a_number_counts_as_fallen_and_one_within_its_amount_does_not() -> None:
    history = [{"detail": 1.0}, {"detail": 0.7}]
    assert fallen({"detail": 0.8}, history, {"detail": 0.25, "unknown": 1.0}) == []
    assert len(fallen({"detail": math.nan}, history, {"detail": 0.25})) == 1


def test_pictures_of_a_validation_are_put_into_the_output(whole) -> None:
    assert (whole / "note.txt").read_text() == "judged"


def test_checkpointed_blocks_give_the_same_weights(toy, whole, tmp_path) -> None:
    task = toy.ToyTask()
    toy.run(toy.recipe(tmp_path, checkpoint_blocks=True), task)
    assert task.modules["transformer"].gradient_checkpointing
    ours, theirs = (load_file(run / WEIGHTS) for run in (tmp_path, whole))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)


def test_blocks_of_a_network_without_any_cannot_be_recomputed(toy, tmp_path) -> None:
    task = toy.ToyTask()
    del task.modules["transformer"]
    with pytest.raises(ValueError, match=r"checkpoint_blocks needs a network .* got Embedding; leave it out"):
        toy.run(toy.recipe(tmp_path, checkpoint_blocks=True), task)


def test_dropout_is_a_function_of_the_step(toy, tmp_path) -> None:
    def task():
        dropped = toy.ToyTask()
        loss = dropped.loss

        def with_dropout(batch, *arguments):
            return loss((torch.nn.functional.dropout(batch[0], 0.5), batch[1]), *arguments)

        dropped.loss = with_dropout
        return dropped

    toy.run(toy.recipe(tmp_path / "whole"), task())
    torch.rand(7)  # elsewhere in its random numbers
    toy.run(toy.recipe(tmp_path / "parts"), task(), max_minutes=1e-9)
    toy.run(toy.recipe(tmp_path / "parts"), task(), resume=True)
    losses = [[row["loss"] for row in _rows(tmp_path / name)] for name in ("whole", "parts")]
    assert losses[0] == losses[1]


def test_a_run_without_an_average_keeps_its_weights(toy, tmp_path) -> None:
    task = toy.ToyTask()
    toy.run(toy.recipe(tmp_path, ema_decay=0.0), task)
    saved = load_file(tmp_path / "last" / WEIGHTS)
    assert all(torch.equal(saved[name], p) for name, p in task.modules["transformer"].named_parameters())
    state = torch.load(tmp_path / "checkpoints/step_00000004/state.pt", weights_only=True)
    assert state["average"] == {}


@pytest.mark.parametrize(
    ("option", "least"), [("checkpoint_limit", 1), ("log_steps", 1), ("validate_steps", 0), ("max_skips", 0)]
)
def test_numbers_below_what_makes_sense_are_an_error(toy, tmp_path, option, least) -> None:
    with pytest.raises(ValueError, match=f"{option} must be at least {least}, got {least - 1}"):
        dataclasses.replace(toy.recipe(tmp_path), **{option: least - 1})
