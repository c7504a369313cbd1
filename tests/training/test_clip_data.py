"""Training on clips of one's own: both stages, sizes and lengths of a phase, and what is held out."""

import dataclasses
import os
import shutil
from pathlib import Path

import pytest
import torch
from torch.utils.data import default_collate

from flashvideo.data.clips.sources import ClipSource
from flashvideo.training.clip_data import ClipData, StepClips, held_out_clips, is_held_out, phase_clips
from flashvideo.training.draws import Draws
from flashvideo.training.recipes import Stage1Phase, Stage1Recipe, Stage2Phase, Stage2Recipe, load_recipe
from flashvideo.training.stage1 import Stage1Task
from flashvideo.training.stage2 import Stage2Task

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(clip_folder) -> Path:
    """Six videos of 9 frames and two pictures, all 32x48."""
    return clip_folder(["a red circle moves left"] * 6)


@pytest.fixture
def data(folder) -> ClipData:
    return ClipData(sources=(ClipSource(path=str(folder)),), held_out=0.4)


def _phase(data: ClipData, folder: Path, **changes) -> StepClips:
    shapes = changes.pop("shapes", [(5, 16, 24)])
    share = changes.pop("image_share", 0.0)
    clips = phase_clips(
        data, shapes=shapes, image_share=share, seed=1, temporal=4, cache=folder / ".cache" / "clips.json"
    )
    return StepClips(clips, 3, held_out=data.held_out)


def _names(clips: StepClips) -> set[str]:
    return {clips.clips[index].name for step in range(20) for index in clips.sampler.batch(step)}


def test_clips_held_out_are_those_that_training_never_sees_whatever_the_phase(data, folder):
    trained = [
        _names(_phase(data, folder, shapes=shapes)) for shapes in ([(5, 16, 24)], [(9, 32, 48), (5, 16, 16)])
    ]
    every = {str(path) for path in folder.glob("*.mp4")}
    held_out = {name for name in every if is_held_out(Path(name).name, data.held_out)}
    assert trained == [every - held_out] * 2 and 0 < len(held_out) < 6
    watched = held_out_clips(
        data, shape=(5, 16, 24), count=9, all_of_it=False, temporal=4, cache=folder / ".cache" / "clips.json"
    )
    assert len(watched) == len(held_out)
    assert all(caption == "a red circle moves left" for _, caption in watched)


@pytest.fixture
def breaking(data, folder, tmp_path):
    """The same clips in another folder, and what breaks one of them after its header was read: `break(number)`."""
    copy = Path(shutil.copytree(folder, tmp_path / "clips"))

    def damage(*paths: Path) -> None:
        for path in paths:
            about = path.stat()
            path.write_bytes(bytes(about.st_size))
            os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))

    return dataclasses.replace(data, sources=(ClipSource(path=str(copy)),)), copy, damage


def test_for_a_clip_that_breaks_in_training_none_that_is_held_out_stands_in(breaking):
    data, folder, damage = breaking
    clips = _phase(data, folder)
    trained = [path for path in folder.glob("*.mp4") if not is_held_out(path.name, data.held_out)]
    damage(*trained)
    with pytest.raises(ValueError, match=f"none of the {len(trained)} clips of bucket 5x16x24 can be read"):
        clips[0, 0]


def test_for_a_clip_to_watch_that_is_broken_the_next_that_is_held_out_is_taken(breaking):
    data, folder, damage = breaking
    watch = {
        "shape": (5, 16, 24),
        "all_of_it": False,
        "temporal": 4,
        "cache": folder / ".cache" / "clips.json",
    }
    whole = [pixels for pixels, _ in held_out_clips(data, count=9, **watch)]
    held_out = [path for path in folder.glob("*.mp4") if is_held_out(path.name, data.held_out)]
    for count, path in enumerate(held_out, start=1):
        damage(path)
        if count < len(held_out):
            left = [pixels for pixels, _ in held_out_clips(data, count=len(held_out) - count, **watch)]
            assert len(left) == len(held_out) - count
            assert all(any(torch.equal(one, other) for other in whole) for one in left)
    with pytest.raises(ValueError, match=f"none of the {len(held_out)} clips to validate on can be read"):
        held_out_clips(data, count=9, **watch)


def test_clips_of_one_name_in_several_folders_are_not_held_out_together():
    assert {is_held_out(f"s{number}/video.mp4", 0.5) for number in range(9)} == {False, True}


def test_pictures_are_watched_where_videos_are_missing_and_the_other_way_round(data, folder):
    watch = {"count": 2, "all_of_it": True, "temporal": 4, "cache": folder / ".cache" / "clips.json"}
    assert [len(pixels) for pixels, _ in held_out_clips(data, shape=(5, 16, 24), **watch)] == [5, 5]
    too_long = held_out_clips(data, shape=(801, 16, 24), **watch)
    assert [len(pixels) for pixels, _ in too_long] == [1, 1]
    stills = held_out_clips(data, shape=(1, 16, 24), **watch | {"count": 3})
    assert [len(pixels) for pixels, _ in stills] == [1, 1, 1]  # two pictures, and a frame of a video


def test_a_sample_depends_on_step_and_place_alone_and_a_step_has_one_size(data, folder):
    shapes = [(1, 16, 16), (5, 16, 24)]
    first, again = (_phase(data, folder, shapes=shapes, image_share=0.5) for _ in range(2))
    sizes = set()
    for step in (3, 0, 1, 2):
        samples = [first[step, place][0] for place in range(3)]
        assert len({sample.shape for sample in samples}) == 1
        sizes.add(tuple(samples[0].shape))
    assert torch.equal(again[3, 2][0], first[3, 2][0])
    assert sizes == {(1, 3, 16, 16), (5, 3, 16, 24)}


def test_too_few_clips_to_hold_some_out_is_an_error_that_says_what_to_do(data, folder):
    few = dataclasses.replace(data, held_out=0.0)
    with pytest.raises(ValueError, match=r"name clips for 'validation', or raise data\.held_out"):
        held_out_clips(
            few, shape=(5, 16, 24), count=9, all_of_it=False, temporal=4, cache=folder / ".cache" / "c.json"
        )
    with pytest.raises(ValueError, match=r"data\.held_out, 0\.999, leaves no video to train on"):
        _phase(dataclasses.replace(data, held_out=0.999), folder)


def test_both_stages_learn_from_clips_and_pictures_and_are_watched_on_others(
    data, folder, cogvideox_folder, tmp_path
):
    common = {
        "output": str(tmp_path / "run"),
        "start": str(cogvideox_folder(rotary=True)),
        "data": data,
        "watch_clips": 1,
        "bf16": False,
    }
    phase = {"steps": 2, "batch": 2, "frames": 5, "learning_rate": 1e-3, "lengths": (1, 5)}
    stage1 = Stage1Recipe(
        task="stage1",
        phases=(Stage1Phase(**phase),),
        size=(16, 24),
        prompts=("a red circle",),
        preview_steps=1,
        **common,
    )
    stage2 = Stage2Recipe(
        task="stage2",
        phases=(Stage2Phase(**phase, crops=((16, 24),), difference_weight=1.0),),
        size=(32, 48),
        **common,
    )
    for task in (Stage1Task(stage1, CPU), Stage2Task(stage2, CPU)):
        dataset, lengths = task.dataset(0, 2), set()
        for step in range(8, 16):
            batch = default_collate([dataset[step, place] for place in range(2)])
            lengths.add(batch[0].shape[1])
            loss, _ = task.loss(batch, 0, Draws(0, step, range(2), 2))
            assert torch.isfinite(loss)
        assert lengths == {1, 5}
        values = task.validate(tmp_path)
        assert torch.isfinite(torch.tensor(task.score(values))) and (tmp_path / "validation.png").exists()
        (tmp_path / "validation.png").unlink()


def test_a_rising_loss_of_held_out_clips_is_a_warning(data, cogvideox_folder, tmp_path):
    phase = Stage1Phase(steps=2, batch=2, frames=5, learning_rate=1e-3)
    fields = {"task": "stage1", "output": str(tmp_path), "data": data, "size": (16, 24), "bf16": False}
    task = Stage1Task(Stage1Recipe(start=str(cogvideox_folder(rotary=True)), phases=(phase,), **fields), CPU)
    history = [{"held_out_loss": 0.5}, {"held_out_loss": 0.4}]
    assert task.warnings({"held_out_loss": 0.43}, history) == []
    (warning,) = task.warnings({"held_out_loss": 0.45}, history)
    assert "learns the training clips by heart" in warning


def test_clips_of_a_recipe_are_read_from_its_file(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "task: stage2\noutput: out\nstart: model\n"
        "data: {sources: [{path: clips, weight: 2}], max_upscale: 1.5}\n"
        "degradation: {weak_factor: [4, 8], first: {noise: {probability: 0.5}}}\n"
        "phases: [{steps: 1, batch: 1, frames: 5, lengths: [1, 5, 5], crops: [[16, 16]],"
        " crops_by_frames: {1: [[32, 32]]}, noise_steps_by_frames: {1: [3, 4]}, learning_rate: 1e-4}]\n"
    )
    recipe = load_recipe(path)
    assert isinstance(recipe, Stage2Recipe) and recipe.data is not None
    assert recipe.data.sources[0] == ClipSource(path="clips", weight=2.0)
    assert recipe.pixel_degradation().first.noise.probability == 0.5
    phase = recipe.phases[0]
    assert phase.shapes() == ((1, 32, 32), (5, 16, 16))
    assert phase.noise_range(1) == (3, 4) and phase.noise_range(5) == (0, 12)
    path.write_text(path.read_text().replace("max_upscale", "max_upscal"))
    with pytest.raises(
        ValueError, match=r"unknown key 'data\.max_upscal' in the recipe; did you mean 'max_upscale'"
    ):
        load_recipe(path)
