"""`flashvideo info` and `flashvideo doctor`."""

import json
import re
import sys

import pytest
import torch

from flashvideo.cli import doctor
from flashvideo.pipelines.preview import PreviewSettings, PreviewState, save_preview
from flashvideo.video import generation_metadata, write_video


@pytest.fixture
def made_video(tmp_path):
    sizes = {"stage1": (5, 16, 24)}
    note = generation_metadata(
        model="toy", version="1", seed=3, sizes=sizes, steps={"stage1": 2}, prompt="a circle"
    )
    return write_video(tmp_path / "made.mp4", torch.zeros(5, 3, 16, 24), frame_rate=8, metadata=note)


def test_info_shows_the_stream_and_how_the_file_was_made(call, made_video):
    outcome = call("info", made_video)
    facts = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in outcome.out.splitlines())
    assert outcome.code == 0
    assert (facts["num_frames"], facts["width"], facts["height"], facts["codec"]) == ("5", "24", "16", "h264")
    assert (facts["prompt"], facts["seed"], facts["ai_generated"]) == ("a circle", "3", "True")
    assert facts["sizes.stage1.width"] == "24"


def test_info_as_json_keeps_the_nesting(call, made_video):
    data = json.loads(call("info", made_video, "--json").out)
    assert (data["num_frames"], data["frame_rate"], data["sound"]) == (5, 8.0, False)
    assert data["metadata"]["steps"] == {"stage1": 2}


@pytest.mark.parametrize("suffix", [".mkv", ".webm", ".mov"])
def test_info_reads_every_container_that_is_written(call, tmp_path, suffix):
    write_video(tmp_path / f"made{suffix}", torch.zeros(5, 3, 16, 24), frame_rate=8)
    outcome = call("info", tmp_path / f"made{suffix}")
    assert outcome.code == 0, outcome.err
    assert "no note of how it was made" in outcome.out


def test_info_shows_what_a_previews_latents_were_made_with(call, tmp_path):
    settings = PreviewSettings(
        model="toy",
        version="1",
        prompts=("a circle",),
        seed=3,
        height=16,
        width=24,
        num_frames=5,
        num_inference_steps=2,
        guidance_scale=3.0,
        guidance_schedule="constant",
    )
    state = PreviewState(
        latents=torch.zeros(1, 2, 8, 4, 6),
        generator_state=torch.Generator().get_state(),
        generator_device="cpu",
        settings=settings,
    )
    path = save_preview(tmp_path / "p.safetensors", state)
    data = json.loads(call("info", path, "--json").out)
    assert data["latents"] == [1, 2, 8, 4, 6]
    assert (data["metadata"]["prompts"], data["metadata"]["seed"]) == (["a circle"], 3)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("missing.mp4", "missing.mp4 does not exist"),
        ("text.mp4", "text.mp4 is not a video"),
        ("text.safetensors", "text.safetensors is not a safetensors file"),
        ("empty.mp4", r"empty.mp4 is empty \(0 bytes\)"),
        ("folder", "folder is a folder"),
        ("cut.mp4", r"cut.mp4 is cut off: \d+ of its 40 frames"),
        ("cut.mkv", "cut.mkv is cut off"),
    ],
)
def test_info_refuses_what_is_no_whole_video(call, refusal, tmp_path, name, sentence):
    frames = torch.rand(40, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for suffix in (".mp4", ".mkv"):
        data = write_video(tmp_path / f"in{suffix}", frames, frame_rate=8).read_bytes()
        (tmp_path / f"cut{suffix}").write_bytes(data[: len(data) * 2 // 3])
    (tmp_path / "text.mp4").write_text("this is no video")
    (tmp_path / "text.safetensors").write_text("these are no tensors")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder").mkdir()
    said = refusal(call, "info", tmp_path / name)
    assert re.search(sentence, said), said


# --- doctor -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def nano(tmp_path, monkeypatch):
    """A complete folder in the place of the shipped model."""
    for part in ("text_encoder", "vae", "stage1_transformer", "stage2_transformer"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "model.safetensors").touch()
    (tmp_path / "model_index.json").touch()
    monkeypatch.setattr("flashvideo.pipelines.folders.NANO_PATH", tmp_path)
    return tmp_path


def test_doctor_finds_a_complete_installation_well(call, nano):
    outcome = call("doctor")
    assert outcome.code == 0, outcome.out
    assert f"torch {torch.__version__}" in outcome.out
    assert "libx264 found" in outcome.out
    assert re.search(r"device cpu: (float32|bfloat16) \(bfloat16 is [\d.]+ times as fast", outcome.out)
    assert outcome.out.splitlines()[-2:] == [f"nano: {nano}", "all is well"]


def test_doctor_as_json_tells_devices_threads_and_memory(call, nano):
    data = json.loads(call("doctor", "--json").out)
    assert data["processor"]["threads"] == torch.get_num_threads()
    assert data["devices"]["cpu"]["dtype"] in ("float32", "bfloat16")
    assert data["encoders"] == {"libx264": True, "libvpx-vp9": True}
    if sys.platform == "linux":
        assert data["processor"]["memory_gib"] > 0
    assert data["problems"] == []


def test_doctor_notices_missing_weights(call, nano):
    (nano / "vae" / "model.safetensors").unlink()
    outcome = call("doctor")
    assert outcome.code == 1
    assert outcome.out.splitlines()[-1].startswith("problem: the weights of nano are not complete")


def test_doctor_notices_a_missing_encoder(call, nano, monkeypatch):
    monkeypatch.setattr(doctor, "_ENCODERS", ("libx264", "libnothing"))
    outcome = call("doctor")
    assert outcome.code == 1
    assert "problem: FFmpeg has no encoder libnothing" in outcome.out


def test_doctor_notices_a_missing_package_and_looks_no_further(call, monkeypatch):
    monkeypatch.setattr(doctor, "_PACKAGES", ("torch", "not-a-package"))
    data = json.loads(call("doctor", "--json").out)
    assert data["exit_code"] == 1
    assert data["packages"]["not-a-package"] is None
    assert "devices" not in data
