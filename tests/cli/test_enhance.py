"""`flashvideo enhance` with a toy model."""

import json
import re
import signal
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from flashvideo.evaluation.metrics import downsampled_psnr
from flashvideo.pipelines.windows import iterate_windows
from flashvideo.video import probe_video, read_metadata, read_video

PROMPT = "a red circle moves left"


@pytest.fixture
def enhance(flashvideo):
    return lambda *words: flashvideo("enhance", *words)


@pytest.mark.parametrize(("num_frames", "frame_rate"), [(12, 25), (1, Fraction(24000, 1001))])
def test_frame_count_and_rate_are_kept_and_the_size_grows_by_the_models_factor(
    enhance, video_file, tmp_path, num_frames, frame_rate
):
    path = video_file(num_frames=num_frames, frame_rate=frame_rate)
    outcome = enhance(path, "-o", tmp_path / "out.mp4")
    assert (outcome.code, outcome.err) == (0, "")
    info = probe_video(tmp_path / "out.mp4")
    assert (info.num_frames, info.width, info.height) == (num_frames, 48, 32)
    assert info.frame_rate == frame_rate


@pytest.mark.parametrize(
    ("words", "width", "height"),
    [
        (["--scale", 1.3], 32, 20),
        (["--scale", 0.01], 2, 2),
        (["--size", "40x24"], 40, 24),
        (["--size", "270p", "--steps", 1], 404, 270),  # the input's own shape, to even numbers
        (["--size", "reference"], 48, 32),
    ],
)
def test_the_size_is_chosen_by_factor_or_exactly(enhance, video_file, tmp_path, words, width, height):
    assert enhance(video_file(num_frames=1), "-o", tmp_path / "out.mp4", *words).code == 0
    info = probe_video(tmp_path / "out.mp4")
    assert (info.width, info.height) == (width, height)


def test_an_odd_size_is_made_and_warned_of(enhance, video_file, tmp_path):
    outcome = enhance(video_file(num_frames=1), "-o", tmp_path / "out.mp4", "--size", "45x31")
    assert "45x31 is an odd size" in outcome.err
    assert probe_video(tmp_path / "out.mp4").width == 45
    note = read_metadata(tmp_path / "out.mp4")["settings"]["stage2"]
    assert note["computed"] == {"height": 32, "width": 48}
    assert note["crop"] == {"top": 0, "left": 0}


def test_a_change_of_shape_or_a_smaller_size_is_warned_of(enhance, video_file, tmp_path):
    path = video_file(num_frames=1)
    for size, change in (("40x40", "it is stretched"), ("12x8", "what it shows is lost")):
        assert change in enhance(path, "-o", tmp_path / "out.mp4", "--size", size).err


def test_the_same_seed_gives_the_same_file_and_settings_are_noted_in_it(enhance, video_file, tmp_path):
    words = [video_file(), "--prompt", PROMPT, "--steps", 1, "--noise-step", 10, "--guidance", 2, "--seed", 3]
    for name in ("one.mp4", "two.mp4"):
        assert enhance(*words, "-o", tmp_path / name).code == 0
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()
    note = read_metadata(tmp_path / "one.mp4")
    assert (note["prompt"], note["seed"], note["model"], note["steps"]) == (PROMPT, 3, "toy", {"stage2": 1})
    assert note["sizes"]["input"] == {"num_frames": 9, "height": 16, "width": 24}
    assert note["settings"]["stage2"] == {"guidance_scale": 2, "noise_step": 10, "consistency": True}


def test_the_references_rounding_is_noted_where_it_is_asked_for(enhance, video_file, tmp_path):
    words = [video_file(num_frames=1), "--steps", 5, "--seed", 3]
    assert enhance(*words, "-o", tmp_path / "exact.mp4").code == 0
    assert enhance(*words, "-o", tmp_path / "rounded.mp4", "--reference-rounding").code == 0
    assert "reference_rounding" not in read_metadata(tmp_path / "exact.mp4")["settings"]["stage2"]
    assert read_metadata(tmp_path / "rounded.mp4")["settings"]["stage2"]["reference_rounding"] is True
    exact, rounded = (read_video(tmp_path / f"{name}.mp4").frames for name in ("exact", "rounded"))
    assert not torch.equal(exact, rounded)


def test_a_shift_is_noted_where_it_is_asked_for(enhance, video_file, tmp_path):
    words = [video_file(num_frames=1), "--seed", 3]
    assert enhance(*words, "-o", tmp_path / "own.mp4").code == 0
    assert enhance(*words, "-o", tmp_path / "other.mp4", "--shift", 5).code == 0
    notes = [read_metadata(tmp_path / name)["settings"]["stage2"] for name in ("own.mp4", "other.mp4")]
    assert [note.get("shift") for note in notes] == [None, 5.0]
    own, other = (read_video(tmp_path / name).frames for name in ("own.mp4", "other.mp4"))
    assert not torch.equal(own, other)


def test_consistency_can_be_switched_off(enhance, video_file, tmp_path):
    path = video_file(num_frames=5)
    for name, switch in (("on", "--consistency"), ("off", "--no-consistency")):
        assert enhance(path, "-o", tmp_path / f"{name}.mp4", "--seed", 3, switch).code == 0
    assert read_metadata(tmp_path / "off.mp4")["settings"]["stage2"]["consistency"] is False
    given = read_video(path).frames
    on, off = (
        downsampled_psnr(read_video(tmp_path / f"{name}.mp4").frames, given).mean() for name in ("on", "off")
    )
    assert on > off + 3


def test_json_names_input_and_output_and_leaves_the_prompt_out_where_asked(enhance, video_file, tmp_path):
    path = video_file(num_frames=1)
    outcome = enhance(path, "-o", tmp_path / "out.mp4", "--prompt", PROMPT, "--no-prompt-metadata", "--json")
    data = json.loads(outcome.out)
    assert (data["input"], data["output"], data["exit_code"]) == (str(path), str(tmp_path / "out.mp4"), 0)
    assert list(data["seconds"]) == ["read", "load", "enhance", "total"]
    assert "prompt" not in read_metadata(tmp_path / "out.mp4")


def test_progress_counts_the_steps_of_all_windows(enhance, video_file, tmp_path):
    outcome = enhance(video_file(num_frames=9), "-o", tmp_path / "out.mp4", "--steps", 1, "--progress")
    # windows of 5 frames, 1 frame shared
    assert "step 2/2" in outcome.err


@pytest.mark.parametrize("num_frames", [1, 4, 5, 6, 9, 10, 13, 14, 36])
@pytest.mark.parametrize(("window", "overlap"), [(5, 1), (9, 5), (17, 5)])
def test_windows_are_counted_as_they_are_cut(tiny_vae, num_frames, window, overlap):
    from types import SimpleNamespace

    from flashvideo.cli.model import count_windows

    frames = [torch.zeros(1, 3, 1, 1)] * num_frames
    windows = list(iterate_windows(frames, window=window, overlap=overlap, temporal_factor=4))
    settings = SimpleNamespace(window=window, overlap=overlap)
    assert count_windows(SimpleNamespace(vae=tiny_vae), num_frames, settings) == len(windows)


def test_sound_is_not_lost_in_silence(enhance, video_file, tmp_path):
    with av.open(str(video_file(num_frames=1))) as source, av.open(str(tmp_path / "loud.mp4"), "w") as target:
        video = target.add_stream_from_template(source.streams.video[0])
        sound = target.add_stream("aac", rate=8000)
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = video
                target.mux(packet)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 8000
        target.mux(sound.encode(silence))
        target.mux(sound.encode(None))
    outcome = enhance(tmp_path / "loud.mp4", "-o", tmp_path / "out.mp4")
    assert outcome.code == 0
    assert "has sound, which is not copied" in outcome.err


# --- Wrong inputs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("missing.mp4", "missing.mp4 does not exist"),
        ("text.mp4", "text.mp4 is not a video"),
        ("empty.mp4", r"empty.mp4 is empty \(0 bytes\)"),
        ("folder.mp4", "folder.mp4 is a folder, expected a video file"),
        ("cut.mp4", r"cut.mp4 is cut off: \d of its 9 frames can be decoded"),
        ("head.mp4", "head.mp4 is cut off: its index .* is missing"),
    ],
)
def test_an_input_that_is_no_whole_video_is_refused_before_the_model_is_loaded(
    call, refusal, video_file, tmp_path, name, sentence
):
    data = video_file("in.mp4").read_bytes()
    (tmp_path / "text.mp4").write_text("this is no video")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "cut.mp4").write_bytes(data[:-200])
    (tmp_path / "head.mp4").write_bytes(data[:40])
    said = refusal(call, "enhance", tmp_path / name, "-o", tmp_path / "out.mp4", "--model", "none")
    assert re.search(sentence, said), said


def test_a_video_that_cannot_be_enhanced_leaves_no_file(enhance, refusal, video_file, tmp_path, monkeypatch):
    from flashvideo.pipelines.stage2 import FlashVideoEnhancePipeline

    path = video_file()

    def fail(*arguments, **options):
        raise RuntimeError("something broke")

    monkeypatch.setattr(FlashVideoEnhancePipeline, "denoise", fail)
    said = refusal(enhance, path, "-o", tmp_path / "out.mp4")
    assert said == "unexpected RuntimeError: something broke; add --debug for the traceback\n"


def test_an_interruption_while_the_file_is_being_written_leaves_no_file(
    enhance, refusal, video_file, tmp_path, monkeypatch
):
    from flashvideo.pipelines.stage2 import FlashVideoEnhancePipeline

    path = video_file(num_frames=81)  # 20 windows, enough for the encoder to have let go of its first frames
    calls = []

    def interrupted(pipeline, latents, *arguments, **options):
        calls.append(1)
        if len(calls) == 20:
            assert any(".part" in other.name for other in tmp_path.iterdir())
            signal.raise_signal(signal.SIGINT)  # Ctrl-C
        return latents

    monkeypatch.setattr(FlashVideoEnhancePipeline, "denoise", interrupted)
    said = refusal(enhance, path, "-o", tmp_path / "out.mp4", "--scale", 1, code=130)
    assert said == "interrupted; no unfinished file is left\n"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["in.mp4"], "the following arguments are required: -o/--output"),
        (["in.mp4", "-o", "in.mp4"], "in.mp4 is read and would be overwritten"),
        (["in.mp4", "-o", "out.mp4", "--steps", "0"], "--steps: must be a whole number of at least 1"),
        (["in.mp4", "-o", "out.mp4", "--scale", "0"], "--scale: must be a number greater than 0, got '0'"),
        (["in.mp4", "-o", "out.mp4", "--scale", "2", "--size", "8x8"], "not allowed with argument --scale"),
        (["in.mp4", "-o", "out.mp4", "--prompt", ""], "--prompt: must not be empty"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_2(
    call, refusal, video_file, tmp_path, monkeypatch, words, sentence
):
    monkeypatch.chdir(tmp_path)
    video_file("in.mp4")
    said = refusal(call, "enhance", *words, code=2)
    assert re.search(sentence, said), said


def test_an_output_that_cannot_be_written_is_refused_before_any_work(call, refusal, video_file, tmp_path):
    path = video_file()
    for name in ("", "out.txt", "missing/out.mp4"):
        refusal(call, "enhance", path, "-o", tmp_path / name, "--model", "none")


def test_the_result_is_the_same_as_the_pipelines_own(enhance, toy_model, video_file, tmp_path):
    from flashvideo.pipelines.loading import load_pipeline
    from flashvideo.video import write_video

    path = video_file(num_frames=6)
    enhance(path, "-o", tmp_path / "out.mkv", "--seed", 2)
    pipeline = load_pipeline(toy_model, device="cpu", dtype="float32")
    pipeline.set_progress_bar_config(disable=True)
    clip = read_video(path).frames[None]
    result = pipeline.stage2(clip, generator=torch.Generator().manual_seed(2), output_type="pt")
    write_video(tmp_path / "own.mkv", result.frames[0], frame_rate=8)
    assert torch.equal(read_video(tmp_path / "out.mkv").frames, read_video(tmp_path / "own.mkv").frames)
