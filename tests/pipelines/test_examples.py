"""The examples run, here with toy models in place of nano."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

import flashvideo
from flashvideo.video import probe_video, write_video

EXAMPLES = Path(__file__).parents[2] / "examples"
WRITTEN_BY = {
    "callback.py": ["watched.mp4"],
    "enhance.py": ["large.mp4"],
    "generate.py": ["ball.mp4"],
    "stop_at_preview.py": ["preview0.mp4", "preview1.mp4", "square.mp4"],
}


def test_every_example_is_tested():
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == sorted(WRITTEN_BY)


@pytest.mark.parametrize("name", WRITTEN_BY)
def test_an_example_fits_on_a_screen(name):
    assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) <= 60


@pytest.mark.parametrize(("name", "videos"), WRITTEN_BY.items())
def test_an_example_writes_its_videos(name, videos, pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(flashvideo, "load_pipeline", lambda model: pipeline, raising=False)
    monkeypatch.setattr(sys, "argv", [name, "small.mp4", "large.mp4"])
    monkeypatch.chdir(tmp_path)
    write_video("small.mp4", torch.zeros(5, 3, 16, 24), frame_rate=8)
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    for video in videos:
        assert probe_video(tmp_path / video).num_frames == 5
