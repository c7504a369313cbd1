"""Figures of one's own files, on the toy pipeline."""

import json

import numpy as np
import pytest
import torch

from flashvideo.evaluation import own_files
from flashvideo.video import save_image, write_video


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(own_files, "VAE_WIDTH", 48)


@pytest.fixture
def run(pipeline, monkeypatch, tmp_path):
    def call(*words):
        monkeypatch.setattr(own_files, "load_pipeline", lambda model: pipeline)
        output = tmp_path / "own.json"
        monkeypatch.setattr("sys.argv", ["own_files", "--output", str(output), *map(str, words)])
        own_files.main()
        return json.loads(output.read_text())

    return call


def test_a_video_and_a_still_get_figures_and_pictures(run, tmp_path, clip):
    video = write_video(tmp_path / "in.mp4", clip[0], frame_rate=8)
    still = save_image(tmp_path / "in.png", clip[0, 0])
    records = run(video, still, "--pictures", tmp_path / "pictures")
    assert {"vae_psnr", "stage2_psnr", "bicubic_psnr", "stage2_colour_shift"} <= set(records["in.png"])
    of_video = {
        "fidelity",
        "stage2_flicker",
        "lanczos_flicker",
        "stage2_frame_difference",
        "truth_restored_flicker",
    }
    assert of_video <= set(records["in.mp4"]) and not of_video & set(records["in.png"])
    assert all(np.isfinite(value) for record in records.values() for value in record.values())
    assert (tmp_path / "pictures" / "in.png").exists()
    assert (tmp_path / "pictures" / "in_enlarged.png").exists()


def test_a_count_of_frames_off_the_vaes_time_grid(run, tmp_path, clip):
    video = write_video(tmp_path / "in.mp4", clip[0].repeat(2, 1, 1, 1), frame_rate=8)
    some, more = run(video, "--frames", 6), run(video, "--frames", 8)
    assert some != more and all(np.isfinite(value) for value in some["in.mp4"].values())


def test_no_frames_are_refused(run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(tmp_path / "in.mp4", "--frames", 0)
    assert "--frames" in capsys.readouterr().err


def test_the_right_half_of_a_still_is_its_own_picture(tmp_path):
    both = torch.cat((-torch.ones(3, 4, 6), torch.ones(3, 4, 6)), dim=-1)
    path = save_image(tmp_path / "both.png", both)
    half = own_files.read_still(path, right_half=True)
    assert half.shape == (1, 3, 4, 6) and bool((half == 1).all())


def test_a_perfect_upscaler_has_no_colour_shift_and_a_brighter_one_has(pipeline, monkeypatch):
    still = torch.zeros(1, 3, 32, 48)

    def brighter(video, **_):
        frames = torch.full((1, own_files.STILL_FRAMES, 3, 32, 48), 0.2)
        return type("Output", (), {"frames": frames})

    monkeypatch.setattr(type(pipeline), "stage2", property(lambda self: brighter))
    with torch.no_grad():
        record, _ = own_files.restored_figures(pipeline, still)
    assert record["bicubic_colour_shift"] == pytest.approx(0, abs=1e-3)
    assert record["stage2_colour_shift"] == pytest.approx(0.2 * 127.5, abs=1e-2)


def test_a_small_clip_is_not_enlarged_before_it_is_brought_down(pipeline, monkeypatch):
    monkeypatch.setattr(own_files, "VAE_WIDTH", 640)
    multiple = 16 * pipeline.preset.stage2.width // pipeline.preset.stage1.width
    with torch.no_grad():
        _, pictures = own_files.restored_figures(pipeline, torch.zeros(1, 3, multiple, 2 * multiple + 1))
    assert pictures.shape[-2:] == (multiple, 2 * multiple)
