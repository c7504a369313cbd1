"""Candidates with scores, pairs of them, and what is learned from pairs."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import default_collate

from flashvideo.models.transformer import FlashVideoTransformer3DModel
from flashvideo.schedule import FlashVideoScheduler, alphas_cumprod_sqrt_table
from flashvideo.training import pairs
from flashvideo.training.config import LoRA
from flashvideo.training.draws import Draws
from flashvideo.training.loop import train
from flashvideo.training.pairs import (
    Candidates,
    PairClips,
    find_pairs,
    make_candidates,
    read_candidates,
    write_candidates,
)
from flashvideo.training.preference import PreferenceTask, Stage1Errors, preference_loss
from flashvideo.training.recipes import PreferencePhase, PreferenceRecipe
from flashvideo.training.starts import transformer_dtype

CPU = torch.device("cpu")
WORDS = ["a", "red", "blue", "ball"]


def _brightness(frames: torch.Tensor, prompt: str) -> float:
    assert frames.ndim == 4 and prompt
    return frames.mean().item()


@pytest.fixture
def model(toy_pipeline, tmp_path) -> Path:
    toy_pipeline(WORDS).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def _write(folder: Path, index: int, scores: tuple[float, ...], stage: int = 1) -> Path:
    generator = torch.Generator().manual_seed(index)
    size = (2, 8, 4, 6) if stage == 1 else (2, 8, 8, 12)
    latents = torch.randn((len(scores), *size), generator=generator)
    low = torch.randn(size, generator=generator) if stage == 2 else None
    path = folder / f"{index:06}.safetensors"
    folder.mkdir(exist_ok=True)
    write_candidates(
        path,
        Candidates(prompt=("a red ball", "a blue ball")[index % 2], latents=latents, scores=scores, low=low),
    )
    return path


def _recipe(model: Path, tmp_path: Path, stage: int = 1, **changes: Any) -> PreferenceRecipe:
    for index in range(4):
        _write(tmp_path / "pairs", index, (0.0, 1.0, 0.5), stage)
    options: dict[str, Any] = {
        "task": "preference",
        "stage": f"stage{stage}",
        "start": str(model),
        "output": str(tmp_path / "run"),
        "pairs": str(tmp_path / "pairs"),
        "phases": (PreferencePhase(steps=3, batch=2, frames=5, learning_rate=1e-3, warmup=1),),
        "workers": 0,
        "bf16": False,
        "ema_decay": 0.0,
    }
    return PreferenceRecipe(**options | changes)


def _loss(task: PreferenceTask, step: int = 0) -> tuple[torch.Tensor, dict[str, float]]:
    dataset = task.dataset(0, 2)
    batch = default_collate([dataset[step, place] for place in range(2)])
    return task.loss(batch, 0, Draws(0, step, range(2), 2))


def _loss_of(task: PreferenceTask, network: torch.nn.Module) -> float:
    latents = torch.ones(1, 2, 8, 4, 6)
    point = task.errors.point(latents, task.recipe.phases[0], Draws(0, 0, (0,), 1))
    with torch.no_grad():
        return task.errors(network, point, latents, torch.zeros(1, 8, 12)).item()


def test_the_loss_is_log_2_where_nothing_was_learned_and_falls_as_the_better_one_gains() -> None:
    one = torch.ones(1)
    loss, advantage = preference_loss(one, one, one, one, beta=10.0)
    assert loss.item() == pytest.approx(math.log(2)) and advantage.item() == 0
    gained, advantage = preference_loss(0.9 * one, one, one, one, beta=10.0)
    assert advantage.item() == pytest.approx(0.5)
    assert gained.item() == pytest.approx(math.log(1 + math.exp(-0.5)))
    lost, _ = preference_loss(one, 0.9 * one, one, one, beta=10.0)
    assert lost > loss > gained


def test_the_loss_counts_errors_relative_to_the_references() -> None:
    errors = torch.tensor((0.3, 0.7))
    loss, advantage = preference_loss(errors, 2 * errors, errors, 2 * errors, beta=500.0)
    assert advantage.tolist() == [0, 0] and loss.tolist() == pytest.approx([math.log(2)] * 2)


@pytest.mark.parametrize("stage", [1, 2])
def test_a_models_own_samples_become_scored_candidates_and_what_is_there_is_kept(
    toy_pipeline, tmp_path: Path, stage: int
) -> None:
    pipeline = toy_pipeline(WORDS)
    pipeline.set_progress_bar_config(disable=True)
    options: dict[str, Any] = {"stage": f"stage{stage}", "count": 2, "seed": 3}
    files = make_candidates(pipeline, ["a red ball", "a blue ball"], _brightness, tmp_path, **options)
    first = read_candidates(files[0])
    preset = pipeline.preset.stage1 if stage == 1 else pipeline.preset.stage2
    assert first.prompt == "a red ball"
    assert first.latents.shape == (2, 2, 8, preset.height // 4, preset.width // 4)
    assert (first.low is None) == (stage == 1)
    assert first.scores[0] != first.scores[1]
    times = [path.stat().st_mtime_ns for path in files]
    files[1].unlink()
    leftover = tmp_path / f"{files[1].name}.1-abcd.part"
    leftover.touch()
    again = make_candidates(pipeline, ["a red ball", "a blue ball"], _brightness, tmp_path, **options)
    assert again == files and files[0].stat().st_mtime_ns == times[0]
    assert read_candidates(files[1]).prompt == "a blue ball" and not leftover.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 3}, "another count, 2 instead of 3"),
        ({"seed": 1}, "another seed, 0 instead of 1"),
        ({"stage": "stage2"}, "another stage, stage1 instead of stage2"),
        ({"about": {"model": "b", "scorer": "s"}}, "another model, a instead of b"),
        ({"about": {"model": "a"}}, "another scorer, s instead of None"),
        ({"prompts": ["a blue ball", "a red ball"]}, "another prompt, 'a red ball' instead of 'a blue ball'"),
        ({"prompts": ["a red ball"]}, "000001.safetensors is beyond the 1 prompts"),
    ],
)
def test_a_folder_of_other_candidates_is_refused(
    toy_pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict, message: str
) -> None:
    pipeline = toy_pipeline(WORDS)
    made = Candidates(prompt="a red ball", latents=torch.zeros(2, 2, 8, 4, 6), scores=(0.0, 1.0))
    monkeypatch.setattr(
        "flashvideo.training.pairs._previews", lambda _, prompt, *__: dataclasses.replace(made, prompt=prompt)
    )
    options: dict[str, Any] = {
        "prompts": ["a red ball", "a blue ball"],
        "count": 2,
        "about": {"model": "a", "scorer": "s"},
    }
    make_candidates(pipeline, scorer=_brightness, output=tmp_path, **options)
    with pytest.raises(ValueError, match=message):
        make_candidates(pipeline, scorer=_brightness, output=tmp_path, **options | changes)
    more = make_candidates(
        pipeline, scorer=_brightness, output=tmp_path, **options | {"prompts": [*options["prompts"], "red"]}
    )
    assert [read_candidates(path).prompt for path in more] == [*options["prompts"], "red"]
    preset = pipeline.preset
    steps = dataclasses.replace(preset.stage1, num_inference_steps=preset.stage1.num_inference_steps + 1)
    pipeline.register_to_config(preset=dataclasses.replace(preset, stage1=steps).to_dict())
    with pytest.raises(ValueError, match=r"another stage1.num_inference_steps, \d+ instead of"):
        make_candidates(pipeline, scorer=_brightness, output=tmp_path, **options)
    (tmp_path / "candidates.json").unlink()
    with pytest.raises(ValueError, match=r"no candidates.json that tells what made them"):
        make_candidates(pipeline, scorer=_brightness, output=tmp_path, **options)


@pytest.mark.parametrize("stage", [1, 2])
def test_candidates_of_the_other_stage_are_refused(tmp_path: Path, stage: int) -> None:
    files = [_write(tmp_path, 0, (0.0, 1.0), stage)]
    with pytest.raises(ValueError, match=f"candidates of stage{stage}, but stage{3 - stage} is trained"):
        find_pairs(files, stage=f"stage{3 - stage}")


def test_pairs_are_found_without_reading_latents_and_read_without_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _write(tmp_path, 0, (0.0, 0.5, 1.0), stage=2)
    whole = read_candidates(path)
    read: list[str] = []

    class Watched:
        """A file that notes which tensors are read whole."""

        def __init__(self, file: Any) -> None:
            self.file, self.keys, self.get_slice = file, file.keys, file.get_slice

        def get_tensor(self, name: str) -> torch.Tensor:
            read.append(name)
            return self.file.get_tensor(name)

    opened = pairs.open_tensors

    @contextlib.contextmanager
    def watched(path: Path, **names: str) -> Iterator[tuple[Any, Any]]:
        with opened(path, **names) as (file, content):
            yield Watched(file), content

    monkeypatch.setattr(pairs, "open_tensors", watched)
    (pair,) = find_pairs([path], stage="stage2")
    assert not read
    better, worse, low = pair.read()
    assert read == ["low"] and torch.equal(low, whole.low)
    assert torch.equal(better, whole.latents[2]) and torch.equal(worse, whole.latents[0])


def test_pairs_are_the_best_and_the_worst_where_they_differ_enough(tmp_path: Path) -> None:
    files = [_write(tmp_path, i, s) for i, s in enumerate([(0.2, 0.9, 0.1), (0.5, 0.5), (0.3, 0.4)])]
    (pair,) = find_pairs(files, stage="stage1", least_margin=0.2)
    assert (pair.path, pair.better, pair.worse) == (files[0], 1, 2)
    assert pair.margin == pytest.approx(0.8)
    assert len(find_pairs(files, stage="stage1")) == 2
    with pytest.raises(ValueError, match=r"differ by more than 1, got none in 3 files"):
        find_pairs(files, stage="stage1", least_margin=1)


def test_every_pair_is_seen_once_in_an_epoch(tmp_path: Path) -> None:
    found = find_pairs([_write(tmp_path, i, (0.0, 1.0)) for i in range(4)], stage="stage1")
    dataset = PairClips(found, seed=0, pairs_per_step=2)
    sums = [round(dataset[step, place][0].sum().item(), 3) for step in range(2) for place in range(2)]
    assert sorted(sums) == sorted(round(read_candidates(p.path).latents[1].sum().item(), 3) for p in found)


@pytest.mark.parametrize("stage", [1, 2])
def test_alignment_starts_at_log_2_and_moves_the_transformer_alone(
    model: Path, tmp_path: Path, stage: int
) -> None:
    task = PreferenceTask(_recipe(model, tmp_path, stage), CPU)
    loss, values = _loss(task)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-5)
    assert values["told_apart"] == 0
    loss.backward()
    assert any(p.grad is not None and p.grad.any() for p in task.transformer.parameters())
    assert all(p.grad is None for p in task.copy.parameters())


def test_errors_of_v_are_on_the_models_own_noise_schedule(toy_pipeline, tmp_path: Path) -> None:
    pipeline = toy_pipeline(WORDS)
    pipeline.register_modules(stage1_scheduler=FlashVideoScheduler(snr_shift_scale=3.0))  # CogVideoX-2B's
    pipeline.save_pretrained(tmp_path / "model")
    errors = PreferenceTask(_recipe(tmp_path / "model", tmp_path), CPU).errors
    assert torch.equal(errors.table, alphas_cumprod_sqrt_table(snr_shift_scale=3.0))


def test_an_adapter_learns_beside_its_own_reference(model: Path, tmp_path: Path) -> None:
    phase = PreferencePhase(steps=8, batch=3, frames=5, learning_rate=1e-2, warmup=1)
    recipe = _recipe(model, tmp_path, phases=(phase,), beta=100.0, lora=LoRA(rank=2, alpha=2))
    task = PreferenceTask(recipe, CPU)
    assert _loss(task)[0].item() == pytest.approx(math.log(2), abs=1e-5)
    with task._reference() as reference:
        before = _loss_of(task, reference)
    train(task, recipe, recipe.phases)
    with task._reference() as reference:
        assert _loss_of(task, reference) == before  # switched off, nothing has changed
    assert _loss_of(task, task.transformer) != before
    assert (tmp_path / "run" / "pytorch_lora_weights.safetensors").exists()


@pytest.mark.parametrize("stage", [1, 2])
def test_alignment_learns_to_tell_pairs_apart_and_leaves_a_part_of_a_model(
    model: Path, tmp_path: Path, stage: int
) -> None:
    phase = PreferencePhase(steps=12, batch=3, frames=5, learning_rate=3e-3, warmup=1)
    recipe = _recipe(model, tmp_path, stage, phases=(phase,), beta=100.0)
    task = PreferenceTask(recipe, CPU)
    train(task, recipe, recipe.phases)
    losses = [_loss(task, step)[0].item() for step in range(4)]
    assert sum(losses) / 4 < 0.8 * math.log(2)
    assert set(task.validate(tmp_path)) == {"told_apart", "better_error"}
    saved = FlashVideoTransformer3DModel.from_pretrained(tmp_path / "run" / f"stage{stage}_transformer")
    for a, b in zip(saved.parameters(), task.transformer.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_fine_tuning_on_what_was_liked_is_the_stages_own_loss_on_the_better_ones(
    model: Path, tmp_path: Path
) -> None:
    recipe = _recipe(model, tmp_path, better_weight=2.0)
    preferred = PreferenceTask(recipe, CPU)
    tuned = PreferenceTask(dataclasses.replace(recipe, method="finetune"), CPU)
    loss, values = _loss(preferred)
    own, _ = _loss(tuned)
    assert values["better"] == pytest.approx(own.item())
    assert loss.item() == pytest.approx(math.log(2) + 2 * own.item(), rel=1e-5)


@pytest.mark.parametrize("method", ["dpo", "finetune"])
def test_dropped_text_is_zeros_for_both_videos_and_the_reference_and_nothing_else_changes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Watched(Stage1Errors):
        """Errors that note noise and text."""

        def __call__(self, network: Any, point: Any, clean: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            seen.append((point[1], text))
            return super().__call__(network, point, clean, text)

    monkeypatch.setattr("flashvideo.training.preference.Stage1Errors", Watched)
    recipe = _recipe(model, tmp_path, method=method)
    for share in (0.0, 0.5, 1.0):
        _loss(PreferenceTask(dataclasses.replace(recipe, text_dropout=share), CPU), step=1)
    calls = len(seen) // 3
    noises = [noise for noise, _ in seen]
    kept, half, dropped = ([text for _, text in seen[i * calls : (i + 1) * calls]] for i in range(3))
    assert calls == (4 if method == "dpo" else 1)
    assert all(torch.equal(noise, noises[0]) for noise in noises)
    assert all(text.flatten(1).any(1).all() for text in kept) and not any(text.any() for text in dropped)
    assert {tuple(text.flatten(1).any(1).tolist()) for text in half} in ({(True, False)}, {(False, True)})


@pytest.mark.parametrize("stage", [1, 2])
def test_prompts_are_read_as_the_stage_reads_them_at_inference(
    toy_pipeline, tmp_path: Path, stage: int
) -> None:
    pipeline = toy_pipeline([*WORDS, "medium", "motion", ","], stage2={"prompt_prefix": "medium motion,"})
    pipeline.save_pretrained(tmp_path / "model")
    task = PreferenceTask(_recipe(tmp_path / "model", tmp_path, stage), CPU)
    embeds = pipeline.encode_prompt("a red ball")
    expected = embeds.stage1 if stage == 1 else embeds.stage2
    torch.testing.assert_close(task.text["a red ball"], expected[0])
    assert not torch.equal(embeds.stage1, embeds.stage2)


def test_a_start_with_its_lora_apart_is_refused_where_stage_1_is_to_learn(
    model: Path, tmp_path: Path
) -> None:
    (model / "stage1_lora").mkdir()
    with pytest.raises(ValueError, match="keeps Stage I's LoRA apart"):
        PreferenceTask(_recipe(model, tmp_path), CPU)


@pytest.mark.parametrize(
    ("stage", "missing", "message"),
    [
        (1, ("text_encoder", "tokenizer"), "must have the folders text_encoder and tokenizer"),
        (2, ("stage2_transformer", "stage2_scheduler"), "stage is stage2, which its start .* does not have"),
    ],
)
def test_a_start_that_lacks_a_part_is_refused(
    toy_pipeline, tmp_path: Path, stage: int, missing: tuple[str, ...], message: str
) -> None:
    pipeline = toy_pipeline(WORDS)
    pipeline.register_modules(**dict.fromkeys(missing))
    pipeline.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        PreferenceTask(_recipe(tmp_path / "model", tmp_path, stage), CPU)


def test_a_validation_has_as_many_pairs_at_once_as_a_step_and_its_precision(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = _recipe(model, tmp_path, lora=LoRA(rank=2, alpha=2))
    wide = dataclasses.replace(recipe, phases=(dataclasses.replace(recipe.phases[0], batch=8),))
    figures = PreferenceTask(wide, CPU).validate(tmp_path)
    seen = []

    class Watched(Stage1Errors):
        """Errors that note how many samples there are at once, and whether they are rounded."""

        def __call__(self, network: Any, point: Any, clean: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            seen.append((len(clean), torch.is_autocast_enabled("cpu")))
            return super().__call__(network, point, clean, text)

    monkeypatch.setattr("flashvideo.training.preference.Stage1Errors", Watched)
    task = PreferenceTask(dataclasses.replace(recipe, bf16=True), CPU)
    rounded = task.validate(tmp_path)
    assert set(seen) == {(2, True)}
    assert rounded["better_error"] == pytest.approx(figures["better_error"], rel=2e-2)
    narrow = PreferenceTask(recipe, CPU).validate(tmp_path)
    assert seen[-1] == (2, False) and narrow["told_apart"] == figures["told_apart"]
    assert narrow["better_error"] == pytest.approx(figures["better_error"], rel=1e-5)


def test_what_is_frozen_lies_in_16_bits_where_that_is_fast(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = _recipe(model, tmp_path, bf16=True, lora=LoRA(rank=2, alpha=2))
    assert transformer_dtype(recipe, torch.device("cuda")) == torch.bfloat16
    assert transformer_dtype(dataclasses.replace(recipe, lora=None), torch.device("cuda")) == torch.float32
    monkeypatch.setattr("flashvideo.training.starts.frozen_dtype", lambda *_: torch.bfloat16)
    monkeypatch.setattr("flashvideo.training.preference.frozen_dtype", lambda *_: torch.bfloat16)
    task = PreferenceTask(recipe, CPU)
    dtypes = {p.requires_grad: p.dtype for p in task.transformer.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    assert task.text["a red ball"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": 3}, "stage must be one of stage1, stage2, got 'stage3'"),
        ({"method": "ppo"}, "method must be one of dpo, finetune, got 'ppo'"),
        ({"start": ""}, "needs 'start'"),
        ({"beta": 0.0}, "beta must be positive"),
        ({"text_dropout": 1.5}, "text_dropout must be between 0 and 1, got 1.5"),
        ({"pairs": "nowhere"}, "must be a folder of candidates, got nowhere"),
        ({"held_out": 0.99}, "needs more pairs than the 4 held out, got 4"),
    ],
)
def test_mistakes_in_a_recipe_are_named(model: Path, tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PreferenceTask(_recipe(model, tmp_path, **changes), CPU)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "0.safetensors"
    path.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="not a safetensors file of candidates"):
        read_candidates(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"count": 1}, "at least 2 candidates"), ({"stage": "third"}, "stage must be one of stage1, stage2")],
)
def test_candidates_that_make_no_sense_are_an_error(
    toy_pipeline, tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_candidates(toy_pipeline(WORDS), ["a red ball"], _brightness, tmp_path, **changes)
