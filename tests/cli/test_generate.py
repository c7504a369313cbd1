"""`flashvideo generate` with a toy model."""

import argparse
import json
import os
import shlex
import signal
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from flashvideo.cli import build_parser
from flashvideo.cli.generate import choose_size
from flashvideo.cli.generation import KEPT_OPTIONS
from flashvideo.presets import NANO, TrainedRange
from flashvideo.video import probe_video, read_metadata, read_video, write_video

PROMPT = "a red circle moves left"


@pytest.fixture
def generate(flashvideo):
    return lambda *words: flashvideo("generate", *words)


# --- What it makes ----------------------------------------------------------------------------------------------------


def test_a_prompt_becomes_a_video_of_the_models_own_size_length_and_rate(generate, tmp_path):
    outcome = generate(PROMPT, "-o", tmp_path / "out.mp4")
    assert (outcome.code, outcome.err) == (0, "")
    info = probe_video(tmp_path / "out.mp4")
    assert (info.num_frames, info.width, info.height, info.frame_rate) == (5, 48, 32, 8)
    assert f"wrote {tmp_path / 'out.mp4'}: 5 frames of 48x32 at 8 fps, seed " in outcome.out
    assert outcome.out.splitlines()[-1].startswith("seconds: load ")
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_size_and_frames_are_those_asked_for(generate, tmp_path):
    assert generate(PROMPT, "-o", tmp_path / "out.mp4", "--size", "64x48", "--frames", 9).code == 0
    info = probe_video(tmp_path / "out.mp4")
    assert (info.num_frames, info.width, info.height) == (9, 64, 48)


@pytest.mark.parametrize(
    ("words", "width", "height"), [(["--size", "reference"], 48, 32), (["--portrait"], 32, 48)]
)
def test_the_models_own_size_has_a_name_and_can_stand_upright(generate, tmp_path, words, width, height):
    assert generate(PROMPT, "-o", tmp_path / "out.mp4", "--frames", 1, *words).code == 0
    info = probe_video(tmp_path / "out.mp4")
    assert (info.width, info.height) == (width, height)


def test_a_named_size_has_the_smallest_preview_that_covers_it(generate, call, tmp_path):
    size = ["--size", "270P", "--portrait"]
    generate(PROMPT, "-o", tmp_path / "p.mp4", "--preview-only", "--frames", 1, "--steps", 1, *size)
    info = probe_video(tmp_path / "p.mp4")
    assert (info.width, info.height) == (136, 240)
    note = json.loads(call("info", tmp_path / "p.safetensors", "--json").out)["metadata"]
    assert (note["final_width"], note["final_height"]) == (270, 480)


def test_any_size_is_made_and_what_was_cut_off_for_it_is_noted(generate, tmp_path):
    outcome = generate(PROMPT, "-o", tmp_path / "out.mp4", "--size", "45x31", "--json")
    assert outcome.err == "flashvideo: warning: 45x31 is an odd size, which some players do not show\n"
    info = probe_video(tmp_path / "out.mp4")
    assert (info.width, info.height) == (45, 31)
    for note in (json.loads(outcome.out), read_metadata(tmp_path / "out.mp4")):
        assert note["sizes"]["stage1"] == {"num_frames": 5, "height": 16, "width": 24}
        assert note["sizes"]["stage2"] == {"num_frames": 5, "height": 31, "width": 45}
        assert note["settings"]["stage2"]["computed"] == {"height": 32, "width": 48}
        assert note["settings"]["stage2"]["crop"] == {"top": 0, "left": 1}


def test_what_a_model_was_not_trained_on_is_named_once(generate, tmp_path, monkeypatch):
    toy = TrainedRange(
        preview_height=(16, 16),
        preview_width=(24, 24),
        num_frames=(5, 5),
        video_height=(32, 32),
        video_width=(48, 48),
    )
    monkeypatch.setattr("flashvideo.pipelines.trained.TRAINED_RANGES", {"toy": toy})
    assert generate(PROMPT, "-o", tmp_path / "out.mp4").err == ""
    outcome = generate(PROMPT, "-o", tmp_path / "out.mp4", "--portrait", "--frames", 9)
    assert [line.split(" outside ")[0] for line in outcome.err.splitlines()] == [
        "flashvideo: warning: detail of height 48 and width 32 is",
        "flashvideo: warning: a preview of height 24 and width 16 is",
        "flashvideo: warning: the number of frames, 9, is",
    ]


def test_the_same_seed_gives_the_same_file_and_another_seed_another_video(generate, tmp_path):
    for name, seed in (("one.mp4", 7), ("two.mp4", 7), ("three.mp4", 8)):
        assert generate(PROMPT, "-o", tmp_path / name, "--seed", seed).code == 0
    one, two, three = (tmp_path / f"{name}.mp4" for name in ("one", "two", "three"))
    assert one.read_bytes() == two.read_bytes()
    assert not torch.equal(read_video(one).frames, read_video(three).frames)


def test_the_file_says_how_it_was_made(generate, tmp_path):
    settings = [
        "--steps",
        3,
        "--detail-steps",
        1,
        "--noise-step",
        99,
        "--guidance",
        2,
        "--detail-guidance",
        1.5,
        "--no-consistency",
    ]
    generate(PROMPT, "-o", tmp_path / "out.mp4", "--seed", 5, *settings)
    note = read_metadata(tmp_path / "out.mp4")
    assert note["ai_generated"] is True
    assert (note["prompt"], note["seed"], note["model"]) == (PROMPT, 5, "toy")
    assert note["steps"] == {"stage1": 3, "stage2": 1}
    assert note["sizes"]["stage2"] == {"num_frames": 5, "height": 32, "width": 48}
    assert note["settings"]["stage1"]["guidance_scale"] == 2
    assert note["settings"]["stage2"] == {"guidance_scale": 1.5, "noise_step": 99, "consistency": False}


def test_a_shift_is_noted_where_it_is_asked_for(generate, tmp_path):
    for name, words in (("own.mp4", []), ("other.mp4", ["--shift", 5])):
        assert generate(PROMPT, "-o", tmp_path / name, "--seed", 5, *words).code == 0
    notes = [read_metadata(tmp_path / name)["settings"]["stage2"] for name in ("own.mp4", "other.mp4")]
    assert [note.get("shift") for note in notes] == [None, 5.0]
    own, other = (read_video(tmp_path / name).frames for name in ("own.mp4", "other.mp4"))
    assert not torch.equal(own, other)


def test_the_references_rounding_is_noted_where_it_is_asked_for(generate, tmp_path):
    for name, words in (("exact.mp4", []), ("rounded.mp4", ["--reference-rounding"])):
        assert generate(PROMPT, "-o", tmp_path / name, "--seed", 5, "--detail-steps", 5, *words).code == 0
    notes = [read_metadata(tmp_path / name)["settings"]["stage2"] for name in ("exact.mp4", "rounded.mp4")]
    assert [note.get("reference_rounding") for note in notes] == [None, True]
    exact, rounded = (read_video(tmp_path / name).frames for name in ("exact.mp4", "rounded.mp4"))
    assert not torch.equal(exact, rounded)


def test_the_prompt_can_be_left_out_of_the_file(generate, tmp_path):
    outcome = generate(PROMPT, "-o", tmp_path / "out.mp4", "--no-prompt-metadata", "--json")
    assert b"circle" not in (tmp_path / "out.mp4").read_bytes()
    assert json.loads(outcome.out)["prompt"] == PROMPT


def test_json_is_one_object_with_everything_in_it(generate, tmp_path):
    outcome = generate(PROMPT, "-o", tmp_path / "out.mp4", "--json", "--seed", 3)
    data = json.loads(outcome.out)
    assert (data["output"], data["seed"], data["exit_code"]) == (str(tmp_path / "out.mp4"), 3, 0)
    assert list(data["seconds"]) == ["load", "preview", "detail", "write", "total"]
    assert data["warnings"] == []


def test_words_that_the_model_has_never_seen_are_named_once(generate, tmp_path):
    outcome = generate("a red zeppelin", "-o", tmp_path / "out.mp4")
    assert outcome.code == 0
    assert outcome.err.startswith("flashvideo: warning: ")
    assert "zeppelin" in outcome.err
    assert outcome.err.count("\n") == 1


def test_progress_shows_each_step_and_the_time_left(generate, tmp_path):
    outcome = generate(PROMPT, "-o", tmp_path / "out.mp4", "--progress")
    assert "step 2/2" in outcome.err
    assert "left" in outcome.err
    assert "preview: " in outcome.err
    assert "detail: " in outcome.err


def test_an_existing_output_is_replaced(generate, tmp_path):
    (tmp_path / "out.mp4").write_text("old")
    assert generate(PROMPT, "-o", tmp_path / "out.mp4").code == 0
    assert probe_video(tmp_path / "out.mp4").num_frames == 5


def test_threads_are_used_and_given_back(generate, tmp_path):
    before = torch.get_num_threads()
    assert generate(PROMPT, "-o", tmp_path / "out.mp4", "--threads", 1).code == 0
    assert torch.get_num_threads() == before


# --- The preview ------------------------------------------------------------------------------------------------------


def test_continuing_from_a_preview_gives_the_same_file_as_not_stopping(generate, tmp_path):
    generate(PROMPT, "-o", tmp_path / "whole.mp4", "--preview", tmp_path / "p.mp4", "--seed", 4)
    assert generate(PROMPT, "--preview-only", "--preview", tmp_path / "q.mp4", "--seed", 4).code == 0
    assert (tmp_path / "p.mp4").read_bytes() == (tmp_path / "q.mp4").read_bytes()
    for name in ("q.mp4", "q.safetensors"):
        outcome = generate("--from-preview", tmp_path / name, "-o", tmp_path / "continued.mp4")
        assert (outcome.code, outcome.err) == (0, "")
        assert (tmp_path / "continued.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()


def test_a_preview_remembers_the_size_that_it_is_for(generate, tmp_path):
    size = ["--size", "36x46", "--seed", 4]
    generate(PROMPT, "-o", tmp_path / "whole.mp4", *size)
    generate(PROMPT, "-o", tmp_path / "p.mp4", "--preview-only", *size)
    assert probe_video(tmp_path / "p.mp4").height == 24
    generate("--from-preview", tmp_path / "p.mp4", "-o", tmp_path / "continued.mp4")
    assert (tmp_path / "continued.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    for size, shown in (("64x40", "24 of 64 rows and 0 of 64"), ("160x20", "make a preview for that size")):
        outcome = generate("--from-preview", tmp_path / "p.mp4", "-o", tmp_path / "other.mp4", "--size", size)
        assert shown in outcome.err


@pytest.mark.parametrize(
    ("size", "preview", "expected"),
    [
        ("720p", (24, 16), (1280, 720)),
        ("720p", (16, 24), (720, 1280)),
        ("90x60", (24, 16), (60, 90)),
        ("reference", (24, 16), (384, 640)),
        (None, (24, 16), None),
    ],
)
def test_a_name_stands_as_the_preview_does(size, preview, expected):
    arguments = argparse.Namespace(size=size, portrait=False)
    source = torch.zeros(1, 5, 3, *preview)
    assert choose_size(arguments, SimpleNamespace(preset=NANO), source) == expected


def test_the_preview_is_small_and_says_how_to_continue(generate, tmp_path):
    outcome = generate(PROMPT, "-o", tmp_path / "p.mp4", "--preview-only")
    info = probe_video(tmp_path / "p.mp4")
    assert (info.num_frames, info.width, info.height) == (5, 24, 16)
    command = next(line for line in outcome.out.splitlines() if line.startswith("to continue: "))
    words = shlex.split(command.removeprefix("to continue: "))
    assert words[:4] == ["flashvideo", "generate", "--from-preview", str(tmp_path / "p.mp4")]


def test_what_is_asked_of_the_detail_is_not_lost_at_the_preview(generate, tmp_path):
    private = ["--threads", "1", "--no-prompt-metadata"]
    detail = ["--detail-steps", "3", "--noise-step", "0", "--shift", "5.0", "--motion-prefix", ""]
    detail.append("--no-consistency")
    outcome = generate(
        PROMPT, "-o", tmp_path / "p.mp4", "--preview-only", *detail, "--reference-rounding", *private
    )
    command = next(line for line in outcome.out.splitlines() if line.startswith("to continue: "))
    words = shlex.split(command.removeprefix("to continue: "))
    kept = [
        "--model",
        words[7],
        "--device",
        "cpu",
        "--dtype",
        "float32",
        *detail,
        "--reference-rounding",
        *private,
    ]
    assert sorted(words[6:]) == sorted(kept)


def test_the_defaults_of_options_that_are_kept_are_the_parsers():
    arguments = build_parser().parse_args(["generate", PROMPT, "-o", "out.mp4"])
    assert {name: getattr(arguments, name) for name in KEPT_OPTIONS} == dict(KEPT_OPTIONS)


def test_continuing_from_a_plain_video_works_from_its_pixels_and_says_so(generate, tmp_path, video_file):
    path = video_file(num_frames=6, frame_rate=12)
    outcome = generate("--from-preview", path, "-o", tmp_path / "out.mp4")
    assert outcome.code == 0
    assert "continuing from its pixels" in outcome.err
    info = probe_video(tmp_path / "out.mp4")
    assert (info.num_frames, info.width, info.height, info.frame_rate) == (6, 48, 32, 12)
    assert "prompt" not in read_metadata(tmp_path / "out.mp4")


def test_another_seed_or_prompt_at_the_preview_gives_other_detail(generate, tmp_path):
    generate(PROMPT, "-o", tmp_path / "whole.mp4", "--preview", tmp_path / "p.mp4", "--seed", 4)
    source = ["--from-preview", tmp_path / "p.mp4"]
    generate(*source, "-o", tmp_path / "seed.mp4", "--seed", 5)
    generate("a circle", *source, "-o", tmp_path / "prompt.mp4", "--steps", 1)
    assert read_metadata(tmp_path / "seed.mp4")["settings"]["stage1"]["seed"] == 4
    note = read_metadata(tmp_path / "prompt.mp4")
    assert (note["prompt"], note["settings"]["stage1"]["prompt"]) == ("a circle", PROMPT)
    assert note["steps"] == {"stage1": 2, "stage2": 1}
    frames = [read_video(tmp_path / f"{name}.mp4").frames for name in ("whole", "seed", "prompt")]
    assert not torch.equal(frames[0], frames[1])
    assert not torch.equal(frames[0], frames[2])


def test_several_previews_come_with_a_contact_sheet_and_each_can_be_continued(generate, tmp_path):
    outcome = generate(PROMPT, "-o", tmp_path / "out.mp4", "--previews", 2, "--seed", 4)
    assert outcome.code == 0
    names = [f"out-preview-{i}{suffix}" for i in (1, 2) for suffix in (".mp4", ".safetensors")]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "out-preview.png"])
    with Image.open(tmp_path / "out-preview.png") as sheet:
        assert sheet.size == (3 * 24, 2 * 16)
    assert [read_metadata(tmp_path / names[i])["seed"] for i in (0, 2)] == [4, 5]
    assert generate("--from-preview", tmp_path / names[2], "-o", tmp_path / "out.mp4").code == 0
    assert read_metadata(tmp_path / "out.mp4")["seed"] == 5


def test_the_preview_stays_when_the_detail_is_interrupted(generate, tmp_path, monkeypatch):
    from flashvideo.pipelines.stage2 import FlashVideoEnhancePipeline

    def interrupt(*arguments, **options):
        signal.raise_signal(signal.SIGINT)  # Ctrl-C

    monkeypatch.setattr(FlashVideoEnhancePipeline, "enhance", interrupt)
    outcome = generate(PROMPT, "-o", tmp_path / "out.mp4", "--preview", tmp_path / "p.mp4")
    assert outcome.code == 130
    assert outcome.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.mp4", "p.safetensors"]


def test_a_preview_whose_video_cannot_be_written_leaves_no_latents(generate, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise OSError(28, "No space left on device", "p.mp4")

    monkeypatch.setattr("flashvideo.video.write_video", fail)
    outcome = generate(PROMPT, "--preview-only", "--preview", tmp_path / "p.mp4")
    assert (outcome.code, outcome.err) == (1, "flashvideo: error: p.mp4: No space left on device\n")
    assert list(tmp_path.iterdir()) == []


# --- Wrong inputs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--frames", 50], r"num_frames must be 4k\+1, got 50; try 49"),
        (["--device", "toaster"], r"device must be one of .* got 'toaster'"),
        (["--dtype", "int8"], r"dtype must be one of .* got 'int8'"),
    ],
    ids=["50 frames", "unknown device", "unknown dtype"],
)
def test_what_the_model_cannot_do_is_refused_with_what_it_can(
    call, toy_model, refusal, tmp_path, words, sentence
):
    said = refusal(call, "generate", PROMPT, "-o", tmp_path / "out.mp4", "--model", toy_model, *words)
    assert_matches(said, sentence)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([PROMPT, "-o", "out.mp4", "--steps", "0"], "--steps: must be a whole number of at least 1, got '0'"),
        (
            [PROMPT, "-o", "out.mp4", "--size", "640"],
            "--size: must be 270p, .*, 4k, reference or WIDTHxHEIGHT such as 640x384, got '640'",
        ),
        (
            [PROMPT, "-o", "out.mp4", "--size", "0x0"],
            "--size: must be .* or WIDTHxHEIGHT such as 640x384, got '0x0'",
        ),
        (
            [PROMPT, "-o", "out.mp4", "--size", "640x384", "--portrait"],
            "--portrait turns a name such as 1080p, got the landscape size 640x384; try 384x640",
        ),
        (["--from-preview", "in.mp4", "-o", "a.mp4", "--portrait"], "--portrait is of the preview"),
        (
            [PROMPT, "-o", "out.mp4", "--guidance", "nan"],
            "--guidance: must be a number of at least 1, got 'nan'",
        ),
        (
            [PROMPT, "-o", "out.mp4", "--noise-step", "1000"],
            "--noise-step: must be .* from 0 to 999, got '1000'",
        ),
        ([PROMPT, "-o", "out.mp4", "--seed", "-1"], "--seed: must be a whole number from 0 to"),
        (["", "-o", "out.mp4"], "PROMPT: must not be empty"),
        ([" \n", "-o", "out.mp4"], "PROMPT: must not be empty"),
        (["-o", "out.mp4"], "needs a PROMPT"),
        ([PROMPT], "needs -o OUT"),
        ([PROMPT, "--preview-only"], "needs -o OUT for the video, or --preview FILE"),
        (
            [PROMPT, "-o", "a.mp4", "--preview", "./a.mp4"],
            "a.mp4 is written already and would be overwritten",
        ),
        (["--from-preview", "in.mp4"], "needs -o OUT"),
        (["--from-preview", "in.mp4", "-o", "in.mp4"], "in.mp4 is read and would be overwritten"),
        (["--from-preview", "in.mp4", "-o", "a.mp4", "--previews", "2"], "--previews is of the preview"),
        (
            ["--from-preview", "in.mp4", "-o", "a.mp4", "--steps", "2", "--detail-steps", "2"],
            "give one of the two",
        ),
        ([PROMPT, "-o", "out.mp4", "--fps", "8"], "unrecognized arguments: --fps 8"),
        ([PROMPT, "-o", "out.mp4", "seed=3"], "unrecognized arguments: seed=3"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_2(
    call, refusal, video_file, tmp_path, monkeypatch, words, sentence
):
    monkeypatch.chdir(tmp_path)
    video_file("in.mp4")
    assert_matches(refusal(call, "generate", *words, code=2), sentence)


@pytest.mark.parametrize("option", ["-o", "--preview"])
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("folder", "folder is a folder, expected a file to write"),
        (".", "is a folder, expected a file to write"),
        ("out.txt", r"out.txt has the suffix '.txt', expected one of .mp4"),
        ("out", "out has no suffix, expected one of .mp4"),
        ("missing/out.mp4", "missing is not an existing folder"),
        ("file.txt/out.mp4", "file.txt is not an existing folder"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_any_work(
    call, refusal, tmp_path, monkeypatch, option, name, sentence
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.txt").write_text("text")
    words = {"-o": "ok.mp4", "--preview": "ok2.mp4"} | {option: name}
    given = [word for pair in words.items() for word in pair]
    assert_matches(refusal(call, "generate", PROMPT, *given, "--model", "none", "--previews", 2), sentence)
    assert_matches(refusal(call, "generate", PROMPT, *given, "--model", "none"), sentence)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="there is no /proc, where even root cannot write")
def test_a_folder_without_permission_to_write_is_refused(call, refusal):
    said = refusal(call, "generate", PROMPT, "-o", "/proc/out.mp4", "--model", "none")
    assert_matches(said, "/proc/out.mp4 cannot be written: .*; choose another folder")


def test_a_write_protected_output_is_refused(call, refusal, tmp_path, monkeypatch):
    (tmp_path / "out.mp4").write_text("old")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anything
    said = refusal(call, "generate", PROMPT, "-o", tmp_path / "out.mp4", "--model", "none")
    assert_matches(said, "out.mp4 is there already and write-protected")


def test_an_unknown_model_is_refused_with_the_known_ones(call, refusal, tmp_path):
    for model in ("nanoo", tmp_path):
        said = refusal(call, "generate", PROMPT, "-o", tmp_path / "out.mp4", "--model", model)
        assert_matches(
            said,
            "model must be one of 'nano', 'flashvideo', a folder with a model_index.json or a repository",
        )


def test_a_preview_that_is_none_is_refused(flashvideo, refusal, tmp_path):
    (tmp_path / "prose.mp4").write_text("no video")
    (tmp_path / "text.safetensors").write_text("no tensors")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    for name, sentence in (
        ("missing.mp4", "missing.mp4 does not exist"),
        ("text.safetensors", "text.safetensors is not a safetensors file"),
        ("empty.mp4", r"empty.mp4 is empty \(0 bytes\)"),
        ("prose.mp4", "prose.mp4 is not a video"),
        ("folder.mp4", "folder.mp4 is a folder"),
    ):
        said = refusal(flashvideo, "generate", "--from-preview", tmp_path / name, "-o", tmp_path / "out.mp4")
        assert_matches(said, sentence)


def test_a_preview_of_another_model_is_refused(generate, refusal, tmp_path):
    from flashvideo.pipelines.preview import load_preview, save_preview

    generate(PROMPT, "--preview-only", "-o", tmp_path / "p.mp4")
    state = load_preview(tmp_path / "p.safetensors")
    object.__setattr__(state.settings, "model", "other")
    save_preview(tmp_path / "p.safetensors", state)
    said = refusal(generate, "--from-preview", tmp_path / "p.mp4", "-o", tmp_path / "out.mp4")
    assert_matches(said, "made by the model 'other'")


def test_every_suffix_that_passes_the_check_can_be_written(tmp_path):
    from flashvideo.cli.files import VIDEO_SUFFIXES

    for suffix in VIDEO_SUFFIXES:
        write_video(tmp_path / f"out{suffix}", torch.zeros(1, 3, 16, 16), frame_rate=8)


def assert_matches(text, pattern):
    import re

    assert re.search(pattern, text), text
