"""The readers against rendered truth, raw and through a lossy codec."""

from pathlib import Path

import numpy as np
import pytest
import torch

from flashvideo.data.backgrounds import paint
from flashvideo.data.shapes_world import render, sample_scene
from flashvideo.evaluation.readers import NOTHING, agreement, outline_margin, read_clip
from flashvideo.video import read_video, write_video

ATTRIBUTES = ("color", "shape", "motion", "background")


def _scenes(count: int, first: int) -> list:
    return [sample_scene(first + i, held_out=i % 2 == 0, second_object=0.0, pan=0.0) for i in range(count)]


def _coarse(clip: torch.Tensor) -> torch.Tensor:
    """The clip with pixels of 6x6."""
    return torch.nn.functional.avg_pool2d(clip, 6).repeat_interleave(6, -1).repeat_interleave(6, -2)


def _rates(clips: list[torch.Tensor], scenes: list) -> dict[str, float]:
    found = [agreement(read_clip(clip), scene) for clip, scene in zip(clips, scenes, strict=True)]
    return {name: float(np.mean([f[name] for f in found])) for name in ATTRIBUTES}


def test_readers_are_right_on_rendered_previews() -> None:
    scenes = _scenes(60, 50_000)
    rates = _rates([torch.from_numpy(render(s)) for s in scenes], scenes)
    assert min(rates.values()) >= 0.98, rates


def test_readers_are_right_through_a_compressed_mp4(tmp_path: Path) -> None:
    scenes = _scenes(30, 60_000)
    clips = []
    for i, scene in enumerate(scenes):
        path = tmp_path / f"{i}.mp4"
        write_video(path, torch.from_numpy(render(scene)), frame_rate=8, crf=28)
        clips.append(read_video(path).frames)
    rates = _rates(clips, scenes)
    assert min(rates.values()) >= 0.96, rates  # one error of 30; the documented figure has 500 clips


def test_readers_agree_between_a_preview_and_its_full_size() -> None:
    for scene in _scenes(4, 70_000):
        small, large = (
            torch.from_numpy(render(scene, height=h, width=w)) for h, w in ((96, 160), (384, 640))
        )
        assert read_clip(small) == read_clip(large)


def test_an_empty_background_shows_no_object() -> None:
    y, x = np.meshgrid((np.arange(96) + 0.5) / 96, (np.arange(160) + 0.5) / 96, indexing="ij")
    frame = paint("grass", x.astype(np.float32), y.astype(np.float32), 1 / 96, seed=1, tone=(0, 0, 0))
    clip = torch.from_numpy(frame * 2 - 1)[None].repeat(9, 1, 1, 1).float()
    reading = read_clip(clip)
    assert reading.background == "grass"
    assert {reading.color, reading.shape, reading.motion} == {NOTHING}


def test_an_outlines_margin_is_above_zero_where_its_shape_is_read_and_smaller_on_a_blurred_one() -> None:
    for scene in _scenes(6, 300):
        clip = torch.from_numpy(render(scene, height=96, width=160))
        shape = scene.things[0].shape
        margin, other = outline_margin(clip, shape), "ball" if shape != "ball" else "star"
        assert (margin > 0) == (read_clip(clip).shape == shape)
        assert outline_margin(clip, other) <= -margin
        assert outline_margin(_coarse(clip), shape) < margin


def test_an_empty_background_has_no_outline() -> None:
    rng = np.random.default_rng(0)
    clip = torch.full((3, 3, 96, 160), 0.0) + torch.from_numpy(rng.normal(0, 0.01, (3, 3, 96, 160)))
    assert outline_margin(clip.float(), "star") == -1


def test_a_still_object_is_not_read_as_any_motion() -> None:
    scene = next(s for s in _scenes(50, 80_000) if s.motion == "moving left")
    frame = torch.from_numpy(render(scene, frames=slice(8, 9)))
    assert read_clip(frame.repeat(17, 1, 1, 1)).motion == NOTHING


def test_noise_is_read_as_nothing() -> None:
    noise = torch.rand(9, 3, 96, 160, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert read_clip(noise).shape == NOTHING


def test_a_clip_of_the_wrong_shape_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"must be \(frames, 3, height, width\)"):
        read_clip(torch.zeros(3, 4, 5))
