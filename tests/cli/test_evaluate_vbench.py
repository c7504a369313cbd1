"""`flashvideo evaluate vbench` with a toy model and a stand-in for VBench's Python."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from flashvideo.evaluation.vbench.prompts import video_seed
from flashvideo.evaluation.vbench.totals import DIMENSIONS
from flashvideo.video import read_metadata

SMALL = ("--frames", 1, "--steps", 1, "--detail-steps", 1)
ONE = ("--samples", 1)
STILL = "left circle"
INFO = [
    {"prompt_en": STILL, "dimension": ["temporal_flickering"]},
    {"prompt_en": "a circle", "dimension": ["color", "imaging_quality"]},
    {"prompt_en": "a red circle moves", "dimension": ["color", "dynamic_degree"]},
]
COLOR = ["a circle-0.mp4", "a red circle moves-0.mp4"]


@pytest.fixture
def info(tmp_path):
    path = tmp_path / "info.json"
    path.write_text(json.dumps(INFO))
    return path


@pytest.fixture
def standin(tmp_path):
    """The stand-in's folder; `python` in it is the interpreter."""
    home = tmp_path / "env"
    (home / "vbench").mkdir(parents=True)
    (home / "vbench" / "VBench_full_info.json").write_text(json.dumps(INFO))
    program = Path(__file__).with_name("vbench_standin.py").read_text()
    (home / "python").write_text(f"#!{sys.executable}\n{program}")
    (home / "python").chmod(0o755)
    return home


@pytest.fixture
def calls(standin):
    """`calls()` is what the stand-in was called with, without questions for where it lies."""

    def read():
        path = standin / "calls.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        return [words for line in lines if "find_spec" not in (words := json.loads(line))[1]]

    return read


@pytest.fixture
def evaluate(flashvideo, tmp_path):
    """`evaluate(...)` makes videos with the toy model into `tmp_path / "out"`."""
    return lambda *words: flashvideo("evaluate", "vbench", "-o", tmp_path / "out", *SMALL, *words)


@pytest.fixture
def judge(call, tmp_path, standin, video_file):
    """`judge(...)` has the stand-in judge one video of each prompt, made by nobody knows whom."""
    folder = tmp_path / "out" / "videos"
    folder.mkdir(parents=True)
    source = video_file(num_frames=1)
    for item in INFO:
        shutil.copy(source, folder / f"{item['prompt_en']}-0.mp4")
    source.unlink()
    words = ["--vbench-python", standin / "python", "--no-generate", *ONE, "-o", tmp_path / "out"]

    def run(*more):
        return call("evaluate", "vbench", *words, *more)

    return run


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- Videos -----------------------------------------------------------------------------------------------------------


def test_videos_have_vbenchs_names_and_the_seeds_that_follow_from_them(evaluate, info, tmp_path):
    outcome = evaluate("--info", info, "--dimensions", "color", "--samples", 2, "--seed", 3)
    assert (outcome.code, outcome.err) == (0, "")
    folder = tmp_path / "out" / "videos"
    assert names(folder) == [f"a circle-{i}.mp4" for i in (0, 1)] + [
        f"a red circle moves-{i}.mp4" for i in (0, 1)
    ]
    note = read_metadata(folder / "a circle-1.mp4")
    assert (note["prompt"], note["seed"], note["model"]) == ("a circle", video_seed(3, "a circle", 1), "toy")


def test_a_video_is_the_same_file_that_generate_writes(evaluate, flashvideo, info, tmp_path):
    settings = ("--size", "45x32", "--noise-step", 50, "--guidance", 2, "--motion-prefix", "left ")
    evaluate("--info", info, "--dimensions", "dynamic_degree", *ONE, *settings)
    made = tmp_path / "out" / "videos" / "a red circle moves-0.mp4"
    seed = video_seed(0, "a red circle moves", 0)
    words = ["a red circle moves", "-o", tmp_path / "one.mp4", "--seed", seed]
    assert flashvideo("generate", *words, *SMALL, *settings).code == 0
    assert made.read_bytes() == (tmp_path / "one.mp4").read_bytes()


def test_what_is_there_is_kept_and_what_is_missing_is_made(evaluate, info, tmp_path):
    words = ("--info", info, "--dimensions", "color", *ONE, "--json")
    assert json.loads(evaluate(*words).out)["videos"]["made"] == 2
    first, second = (tmp_path / "out" / "videos" / name for name in COLOR)
    before = first.stat().st_mtime_ns
    content = second.read_bytes()
    second.unlink()
    videos = json.loads(evaluate(*words).out)["videos"]
    assert (videos["made"], videos["kept"]) == (1, 1)
    assert first.stat().st_mtime_ns == before
    assert second.read_bytes() == content


@pytest.mark.parametrize(
    ("words", "difference"),
    [
        (["--seed", 1], f"seed {video_seed(0, 'a circle', 0)}, which is now {video_seed(1, 'a circle', 0)}"),
        (["--noise-step", 9], "settings.stage2.noise_step "),
        (["--size", "64x48"], "sizes.stage1.height 16, which is now 24"),
        (["--guidance", 2], "settings.stage1.guidance_scale "),
    ],
)
def test_settings_are_never_mixed(evaluate, info, tmp_path, refusal, words, difference):
    evaluate("--info", info, "--dimensions", "color", *ONE)
    (tmp_path / "out" / "videos" / COLOR[1]).unlink()  # which is not made then
    sentence = refusal(evaluate, "--info", info, "--dimensions", "color", *ONE, *words)
    assert f"{COLOR[0]} was made with {difference}" in sentence
    assert sentence.endswith("settings are never mixed; choose another --output, or remove it\n")


def test_a_strange_video_under_such_a_name_is_refused(evaluate, info, video_file, tmp_path, refusal):
    (tmp_path / "out" / "videos").mkdir(parents=True)
    video_file("out/videos/a circle-0.mp4")
    sentence = refusal(evaluate, "--info", info, "--dimensions", "color", *ONE)
    assert "a circle-0.mp4 does not say how it was made; choose another --output" in sentence


def test_long_prompts_make_the_videos_and_short_ones_name_them(evaluate, info, tmp_path):
    (tmp_path / "long.txt").write_text("a\na red circle moves left\nmoves left\n")
    words = ("--info", info, "--dimensions", "color", *ONE)
    evaluate(*words, "--long-prompts", tmp_path / "long.txt")
    folder = tmp_path / "out" / "videos"
    assert names(folder) == COLOR
    assert read_metadata(folder / COLOR[0])["prompt"] == "a red circle moves left"
    assert "prompt a red circle moves left, which is now a circle" in evaluate(*words).err


def test_the_text_of_a_prompt_is_encoded_once(evaluate, info, monkeypatch):
    from flashvideo.pipelines.two_stage import FlashVideoPipeline

    texts, encode = [], FlashVideoPipeline.encode_prompt

    def counted(pipeline, prompt, **settings):
        texts.extend(prompt)
        return encode(pipeline, prompt, **settings)

    monkeypatch.setattr(FlashVideoPipeline, "encode_prompt", counted)
    evaluate("--info", info, "--dimensions", "color", "--samples", 2)
    assert texts == ["a circle", "a red circle moves"]


def test_only_the_text_encoder_is_given_up_between_videos(evaluate, info, monkeypatch):
    from flashvideo.pipelines.two_stage import FlashVideoPipeline

    given_up = []
    monkeypatch.setattr(FlashVideoPipeline, "give_up", lambda pipeline, name: given_up.append(name))
    evaluate("--info", info, "--dimensions", "color", *ONE)
    assert given_up == ["text_encoder"]


def test_without_vbench_the_commands_are_shown(evaluate, info, tmp_path):
    outcome = evaluate("--info", info, "--dimensions", "temporal_flickering", "imaging_quality", *ONE)
    out = tmp_path / "out"
    assert names(out) == ["videos"]
    lines = [line for line in outcome.out.splitlines() if line.startswith("python ")]
    assert lines == [
        f"python -m vbench.launch.evaluate --videos_path {out}/videos --dimension imaging_quality --full_json_dir "
        f"{info} --output_path {out}/vbench/imaging_quality --mode vbench_standard",
        "python -c 'from vbench.cli.vbench import main; main()' static_filter --videos_path "
        f"{out}/videos --result_path {out}/vbench/temporal_flickering/static",
        f"python -m vbench.launch.evaluate --videos_path {out}/vbench/temporal_flickering/static/filtered_videos "
        f"--dimension temporal_flickering --full_json_dir {info} --output_path {out}/vbench/temporal_flickering "
        "--mode vbench_standard",
    ]
    assert f"flashvideo evaluate vbench --results {out}/vbench" in outcome.out


# --- VBench -----------------------------------------------------------------------------------------------------------


def test_videos_are_made_judged_and_shown_in_one_go(evaluate, standin, tmp_path):
    dimensions = ("--dimensions", "color", "imaging_quality", "temporal_flickering")
    outcome = evaluate(
        "--vbench-python", standin / "python", *dimensions, "--samples", 2, "--flicker-samples", 7
    )
    assert (outcome.code, outcome.err) == (0, "")
    stored = json.loads((tmp_path / "out" / "vbench.json").read_text())
    # The stand-in's scores are hundredths of the number of videos; five of the seven hold still.
    assert stored["scores"] == {"temporal flickering": 5.0, "imaging quality": 2.0, "color": 4.0}
    assert (stored["system"], stored["totals"], stored["comparable"]) == ("toy", None, False)
    assert "not comparable with published scores: the list has 3 entries" in outcome.out
    assert "| color | 4.00 |" in (tmp_path / "out" / "vbench.md").read_text()
    assert names(tmp_path / "out") == ["vbench", "vbench.json", "vbench.md", "videos"]


def test_the_static_filters_videos_are_judged_after_all_else(judge, calls, tmp_path):
    assert judge("--dimensions", "temporal_flickering", "dynamic_degree").code == 0
    assert [words[words.index("--videos_path") + 1] for words in calls()] == [
        f"{tmp_path}/out/videos",
        f"{tmp_path}/out/videos",
        f"{tmp_path}/out/vbench/temporal_flickering/static/filtered_videos",
    ]
    assert [words[2] for words in calls()] == ["--videos_path", "static_filter", "--videos_path"]


def test_a_dimension_that_is_done_is_not_computed_again(judge, calls, standin):
    (standin / "fails.txt").write_text("color")
    words = ("--dimensions", "imaging_quality", "color")
    assert judge(*words).code == 1
    (standin / "fails.txt").unlink()
    assert judge(*words).code == 0
    assert judge(*words).code == 0
    assert [words[words.index("--dimension") + 1] for words in calls()] == [
        "imaging_quality",
        "color",
        "color",
    ]


def test_a_dimension_whose_videos_are_others_by_now_is_judged_anew(judge, calls, tmp_path):
    words = ("--dimensions", "imaging_quality", "dynamic_degree")
    judge(*words)
    os.utime(tmp_path / "out" / "videos" / COLOR[1])  # of dynamic degree alone
    assert judge(*words).code == 0
    assert [words[words.index("--dimension") + 1] for words in calls()][2:] == ["dynamic_degree"]


def test_an_old_score_is_never_taken_for_a_new_one(judge, standin, tmp_path):
    assert judge("--dimensions", "color").code == 0
    os.utime(tmp_path / "out" / "videos" / COLOR[0])
    (standin / "silent.txt").write_text("color")
    assert "VBench ended without a score for color" in judge("--dimensions", "color").err


def test_a_failure_is_one_sentence_with_the_end_of_what_vbench_said(judge, standin, tmp_path):
    (standin / "fails.txt").write_text("color")
    outcome = judge("--dimensions", "color")
    errors = tmp_path / "out" / "vbench" / "color" / "stderr.txt"
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == (
        "flashvideo: error: VBench failed at color with exit code 1: RuntimeError: CUDA out of memory; read "
        f"{errors}\n"
    )
    assert "Traceback" in errors.read_text()
    assert not (tmp_path / "out" / "vbench.json").exists()


def test_an_end_without_a_score_is_a_failure(judge, standin):
    (standin / "silent.txt").write_text("color")
    assert "VBench ended without a score for color; read " in judge("--dimensions", "color").err


def test_no_video_that_holds_still_is_a_sentence(judge, standin):
    (standin / "still.txt").write_text("0")
    sentence = judge("--dimensions", "temporal_flickering").err
    assert "VBench's static filter found no video that holds still" in sentence
    assert "--flicker-samples, or leave that dimension out" in sentence


def test_ctrl_c_while_vbench_runs_keeps_what_is_done(judge, monkeypatch, tmp_path):
    from flashvideo.evaluation.vbench import running as vbench_run

    assert judge("--dimensions", "color").code == 0
    start = vbench_run.subprocess.run

    def interrupted(words, **settings):
        if "find_spec" in words[2]:
            return start(words, **settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(vbench_run.subprocess, "run", interrupted)
    outcome = judge("--dimensions", "color", "imaging_quality")
    assert outcome.code == 130
    assert outcome.err == (
        "flashvideo: error: interrupted while VBench judged imaging quality; what is done is kept, and the same "
        "command goes on\n"
    )
    assert (tmp_path / "out" / "vbench" / "color" / "done.json").exists()


def test_all_sixteen_dimensions_give_the_totals(judge, standin, tmp_path):
    keys = [dimension.name.replace(" ", "_") for dimension in DIMENSIONS]
    item = {"prompt_en": "a circle", "dimension": [key for key in keys if key != "temporal_flickering"]}
    (standin / "vbench" / "VBench_full_info.json").write_text(json.dumps([INFO[0], item]))
    outcome = judge("--name", "mine")
    stored = json.loads((tmp_path / "out" / "vbench.json").read_text())
    assert (outcome.code, stored["missing"], len(stored["scores"])) == (0, [], 16)
    assert set(stored["totals"]) == {"total", "quality", "semantic"}
    assert outcome.out.splitlines()[1].split() == ["mine", "quoted"]
    assert outcome.out.splitlines()[2].startswith(
        f"total                   {stored['totals']['total']:>8.2f}"
    )


def test_vbenchs_own_modules_are_not_this_programs(judge, standin, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "here")
    program = (standin / "python").read_text()
    program += "\nimport os\n(HOME / 'path.txt').write_text(os.environ.get('PYTHONPATH', 'none'))\n"
    (standin / "python").write_text(program)
    judge("--dimensions", "color")
    assert (standin / "path.txt").read_text() == "none"


# --- VBench-Long ------------------------------------------------------------------------------------------------------


@pytest.fixture
def clone(tmp_path):
    folder = tmp_path / "VBench"
    (folder / "vbench2_beta_long").mkdir(parents=True)
    (folder / "vbench2_beta_long" / "eval_long.py").touch()
    (folder / "vbench").mkdir()
    (folder / "vbench" / "VBench_full_info.json").write_text(json.dumps(INFO))
    return folder


@pytest.fixture
def videos_first(monkeypatch):
    """Whatever file system the tests run on, it lists videos before folders."""
    monkeypatch.setattr("flashvideo.evaluation.vbench.running._first_listed", lambda folder: "a-0.mp4")


def test_vbench_long_is_run_out_of_its_repository_on_links(judge, calls, clone, tmp_path, videos_first):
    words = ("--long", clone, "--dimensions", "color", "temporal_flickering")
    stored = json.loads(judge(*words, "--json").out)
    assert (stored["vbench_long"], stored["scores"]) == (True, {"temporal flickering": 1.0, "color": 2.0})
    color, still = calls()
    assert color[0] == still[0] == f"{clone}/vbench2_beta_long/eval_long.py"
    assert "--static_filter_flag" in still
    assert "--static_filter_flag" not in color
    links = Path(color[color.index("--videos_path") + 1])
    assert links.parent == tmp_path / "out" / "vbench_long"
    assert names(links) == [*COLOR, f"{STILL}-0.mp4", "split_clip"]
    assert all((links / name).is_symlink() for name in COLOR)
    assert names(tmp_path / "out" / "videos") == [*COLOR, f"{STILL}-0.mp4"]


def test_clips_of_other_videos_are_not_taken_again(judge, clone, tmp_path, videos_first):
    words = ("--long", clone, "--dimensions", "color")
    judge(*words)
    (before,) = (tmp_path / "out" / "vbench_long").glob("clips-*")
    videos = tmp_path / "out" / "videos"
    os.utime(videos / COLOR[0])
    judge(*words)
    (after,) = (tmp_path / "out" / "vbench_long").glob("clips-*")
    assert before != after
    assert names(after) == [*COLOR, "split_clip"]


def test_a_file_system_that_vbench_long_cannot_read_is_named(judge, clone, monkeypatch):
    monkeypatch.setattr("flashvideo.evaluation.vbench.running._first_listed", lambda folder: "split_clip")
    sentence = judge("--long", clone, "--dimensions", "color").err
    assert "is listed by its file system with the folder of clips first" in sentence


def test_scores_of_vbench_and_of_vbench_long_lie_apart(judge, clone, calls, tmp_path, videos_first):
    judge("--dimensions", "color")
    judge("--long", clone, "--dimensions", "color")
    assert len(calls()) == 2
    assert {"vbench", "vbench_long"} < set(names(tmp_path / "out"))


def test_the_command_of_vbench_long_sets_where_its_modules_lie(evaluate, clone, videos_first):
    outcome = evaluate("--long", clone, "--dimensions", "color", *ONE)
    assert f"cd {clone} && PYTHONPATH={clone} python {clone}/vbench2_beta_long/eval_long.py" in outcome.out


# --- Results ----------------------------------------------------------------------------------------------------------


def test_results_of_an_earlier_run_are_only_read(call, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "results_1_eval_results.json").write_text('{"human_action": [0.942, []]}')
    outcome = call("evaluate", "vbench", "--results", tmp_path / "theirs", "--json")
    stored = json.loads(outcome.out)
    assert (stored["system"], stored["scores"], stored["comparable"]) == (
        "theirs",
        {"human action": pytest.approx(94.2)},
        None,
    )
    assert names(tmp_path) == ["theirs"]
    call("evaluate", "vbench", "--results", tmp_path / "theirs", "-o", tmp_path / "table")
    assert names(tmp_path / "table") == ["vbench.json", "vbench.md"]


def test_a_folder_without_results_is_refused(call, refusal, tmp_path):
    assert "has no results of VBench" in refusal(call, "evaluate", "vbench", "--results", tmp_path)


# --- Wrong calls ------------------------------------------------------------------------------------------------------


def test_it_explains_itself_under_both_names(call):
    for words in (["evaluate", "vbench"], ["evaluate-vbench"]):
        outcome = call(*words, "--help")
        assert (outcome.code, outcome.err) == (0, "")
        assert outcome.out.startswith("usage: flashvideo evaluate vbench")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "evaluate vbench needs -o FOLDER, or --results DIR to read results"),
        (["-o", "out"], "evaluate vbench needs VBench's list of prompts: --info VBench_full_info.json"),
        (["-o", "out", "--info", "i", "--samples", "6"], "must be a whole number from 1 to 5, got '6'"),
        (
            ["-o", "out", "--info", "i", "--flicker-samples", "4"],
            "--flicker-samples must be at least --samples, 5, got 4",
        ),
        (
            ["-o", "out", "--dimensions", "colour"],
            "must be one of subject_consistency, background_consistency, ",
        ),
        (["--results", "r", "--no-generate"], "--no-generate is for its run; drop one"),
    ],
)
def test_wrong_usage_is_one_sentence(call, refusal, words, sentence):
    assert sentence in refusal(call, "evaluate", "vbench", *words, code=2)


@pytest.mark.parametrize(
    ("program", "sentence"),
    [
        (None, "cannot be started (No such file or directory); name the Python that has vbench"),
        ("exit 3", "is not a Python that has vbench: it wrote nothing"),
        ("echo null", "has no vbench; install it there with `pip install vbench`"),
    ],
)
def test_a_python_without_vbench_is_named_before_any_work(call, refusal, tmp_path, program, sentence):
    if program is not None:
        (tmp_path / "py").write_text(f"#!/bin/sh\n{program}\n")
        (tmp_path / "py").chmod(0o755)
    words = ["-o", tmp_path / "out", "--vbench-python", tmp_path / "py"]
    assert sentence in refusal(call, "evaluate", "vbench", *words)


def test_a_folder_that_is_no_clone_is_refused(call, refusal, tmp_path):
    words = ["-o", tmp_path / "out", "--long", tmp_path]
    assert "has no vbench2_beta_long/eval_long.py" in refusal(call, "evaluate", "vbench", *words)


def test_missing_videos_are_counted(judge, tmp_path):
    (tmp_path / "out" / "videos" / COLOR[1]).unlink()
    outcome = judge("--dimensions", "color")
    assert f"lacks 1 of 2 videos, first {COLOR[1]}; add them, or ask for fewer" in outcome.err


def test_more_videos_than_were_asked_for_are_refused(judge, evaluate, info, refusal, tmp_path):
    videos = tmp_path / "out" / "videos"
    shutil.copy(videos / COLOR[0], videos / "a circle-1.mp4")
    assert (
        "has 1 more videos of these prompts than were asked for, first a circle-1.mp4"
        in judge("--dimensions", "color").err
    )
    assert "has 1 more videos" in refusal(evaluate, "--info", info, "--dimensions", "color", *ONE)
    assert judge("--dimensions", "dynamic_degree").code == 0  # which does not read it


def test_videos_of_different_settings_are_not_judged_together(judge, flashvideo, tmp_path):
    video = tmp_path / "out" / "videos" / COLOR[0]
    flashvideo("generate", "a circle", "-o", video, *SMALL)
    error = judge("--dimensions", "color").err
    assert f"mixes settings: {COLOR[1]} and {COLOR[0]} differ in model" in error


def test_a_strange_file_among_the_videos_is_named(judge, tmp_path):
    (tmp_path / "out" / "videos" / "notes.txt").touch()
    outcome = judge("--dimensions", "color")
    assert "must hold .mp4 videos alone for VBench, got notes.txt; move it elsewhere" in outcome.err
