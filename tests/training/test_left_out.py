"""Clips of one's own that a training leaves out: what is told, and what is listed."""

import dataclasses
import logging
import shutil
from pathlib import Path

import pytest
from accelerate import Accelerator

from flashvideo.data.clips.sources import ClipSource
from flashvideo.training.clip_data import ClipData, StepClips, held_out_clips, phase_clips
from flashvideo.training.left_out import LeftOut


@pytest.fixture(scope="module")
def original(clip_folder) -> Path:
    return clip_folder(["a red circle"] * 5)


@pytest.fixture
def folder(original, tmp_path) -> Path:
    """Five videos with captions, one of no bytes, and two pictures without captions, in a folder of the test's own."""
    folder = Path(shutil.copytree(original, tmp_path / "clips"))
    (folder / "none.mp4").write_bytes(b"")
    return folder


def _step_clips(folder: Path, clips_per_step: int = 2, image_share: float = 0.0) -> StepClips:
    shapes, sources = [(1, 16, 24), (5, 16, 24)], (ClipSource(path=str(folder)),)
    cache = folder / ".cache" / "clips.json"
    clips = phase_clips(
        ClipData(sources=sources), shapes=shapes, image_share=image_share, seed=1, temporal=4, cache=cache
    )
    return StepClips(clips, clips_per_step, held_out=0.0)


def _task(toy, folder: Path, wrong_phase: int | None = None):
    """A task on the folder's clips that learns next to nothing of them."""

    class ClipTask(toy.ToyTask):
        steps = 0

        def dataset(self, phase_index, clips_per_step):
            self.clips = _step_clips(
                folder if phase_index != wrong_phase else folder / "nowhere", clips_per_step
            )
            return self.clips

        def loss(self, batch, phase_index, draws):
            self.steps += 1
            pixels, _, notes = batch
            self.clips.record(notes)
            return pixels.mean() + sum(p.square().sum() for p in self.modules.parameters()), {}

    return ClipTask()


@pytest.mark.filterwarnings(
    "ignore:.*multi-threaded, use of fork:DeprecationWarning"
)  # Python 3.12 and later
@pytest.mark.parametrize("workers", [0, 1])
def test_all_that_is_left_out_is_listed_in_the_output_with_reasons(toy, folder, tmp_path, workers) -> None:
    task = _task(toy, folder)
    make, broken = task.dataset, folder / "clip3.mp4"

    def make_and_break(*arguments):
        dataset = make(*arguments)
        broken.write_bytes(b"damaged")
        return dataset

    task.dataset = make_and_break
    recipe = toy.recipe(tmp_path / "run", batch=5, workers=workers)
    outcome = toy.run(dataclasses.replace(recipe, phases=recipe.phases[:1]), task)
    lines = (tmp_path / "run" / "skipped.txt").read_text().splitlines()
    assert lines[0] == f"{folder}/none.mp4\tit is empty (0 bytes)"
    assert lines[1].startswith(f"{broken}\tit is no video that FFmpeg can read")
    assert len(lines) == outcome.num_skipped == 2


def test_a_phase_whose_clips_cannot_work_is_refused_before_the_first_step(toy, folder, tmp_path) -> None:
    task = _task(toy, folder, wrong_phase=1)
    with pytest.raises(ValueError, match=r"\Aphase 2 cannot be trained: .*nowhere does not exist"):
        toy.run(toy.recipe(tmp_path / "run", batch=2), task)
    assert task.steps == 0


def test_a_resumed_list_keeps_what_it_held_and_one_of_an_earlier_training_goes(tmp_path) -> None:
    first = LeftOut(tmp_path, Accelerator(cpu=True))
    first.reasons = {"a  b\tc.mp4": "it is empty", "\udc80.mp4": "it is\nempty"}
    first.write()
    resumed = LeftOut(tmp_path, first.accelerator)
    resumed.restore()
    assert resumed.reasons == {"a  b c.mp4": "it is empty", "\\udc80.mp4": "it is empty"}
    LeftOut(tmp_path, first.accelerator).write()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("needs_captions", "level"), [(False, logging.INFO), (True, logging.WARNING)])
def test_the_beginning_of_a_phase_tells_of_its_clips(folder, tmp_path, caplog, needs_captions, level) -> None:
    caplog.set_level(logging.INFO)
    clips = _step_clips(folder, image_share=0.5)
    LeftOut(tmp_path, Accelerator(cpu=True)).begin(clips, number=2, needs_captions=needs_captions)
    told = "phase 2: 5 videos and 2 pictures (2 of 1x16x24, 5 of 5x16x24), 2 without a caption, 1 left out"
    assert ("flashvideo.training.left_out", level, told) in caplog.record_tuples


def test_sizes_of_fewer_clips_than_a_step_are_warned_of_once(folder, tmp_path, caplog) -> None:
    clips = _step_clips(folder, 4, image_share=0.5)
    LeftOut(tmp_path, Accelerator(cpu=True)).begin(clips, number=1, needs_captions=False)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith("phase 1: fewer clips than the 4 of a step are there of a size: 2 of 1x16x24; ")


def test_what_is_to_be_watched_is_read_with_a_bar(folder, capsys) -> None:
    data = ClipData(sources=(ClipSource(path=str(folder)),))
    held_out_clips(
        data, shape=(5, 16, 24), count=1, all_of_it=True, temporal=4, cache=folder / ".cache" / "clips.json"
    )
    assert "clips: 100%" in capsys.readouterr().err
