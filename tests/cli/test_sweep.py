"""`flashvideo sweep`."""

import json
import sys

import pytest

from flashvideo.evaluation.sweep import running as sweep_module
from flashvideo.video import read_metadata, read_video

PROMPT = "a red circle moves left"
MEASURES = "psnr,fidelity,flicker"


@pytest.fixture
def sweep(flashvideo):
    """`sweep(*words)` runs the command with the toy model and those of a few quick measures that apply."""

    def run(*words):
        measures = MEASURES if "--scenes" in words or "--references" in words else "fidelity,flicker"
        return flashvideo("sweep", *words, "--measures", "flicker" if "--preview-only" in words else measures)

    return run


@pytest.fixture
def without_plots(monkeypatch):
    """As if matplotlib were not installed."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text(PROMPT + "\n")
    return path


def runs_of(folder):
    return [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]


def test_a_grid_over_scenes_is_scored_costed_summed_up_and_plotted(sweep, tmp_path):
    outcome = sweep("--scenes", 2, "--detail-steps", "1,2", "-o", tmp_path / "out", "--json")
    data = json.loads(outcome.out)
    assert (outcome.code, data["settings"], data["runs"], data["new_runs"]) == (0, 2, 4, 4)
    assert [path.rpartition("/")[2] for path in data["plots"]][:4] == [
        "axis_detail_steps.png",
        "cost_seconds.png",
        "cost_evaluations.png",
        "cost_flops.png",
    ]
    run = runs_of(tmp_path / "out")[0]
    assert run["setting"] == {
        "size": "48x32",
        "detail_steps": 1,
        "noise_step": 8,
        "shift": 2.5,
        "detail_guidance": 1.0,
    }
    assert set(run["scores"]) == set(MEASURES.split(","))
    about = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert about["model"]["name"] == "toy"
    assert len(about["model"]["fingerprint"]) == 16
    assert about["measurement"]["num_frames"] == 5
    assert [item["name"] for item in about["items"]] == ["scene_0000", "scene_0001"]
    assert {"summary.json", "summary.md"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_a_cogvideox_that_makes_previews_has_a_fingerprint_too(
    call, cogvideox_folder, tmp_path, prompts, without_plots
):
    words = ["--preview-only", "--steps", 1, "--frames", 5, "--measures", "flicker", "--device", "cpu"]
    out = tmp_path / "out"
    outcome = call(
        "sweep",
        "--model",
        cogvideox_folder(rotary=False),
        "--prompts",
        prompts,
        "--size",
        "48x32",
        "-o",
        out,
        *words,
    )
    assert outcome.code == 0, outcome.err
    assert len(json.loads((out / "sweep.json").read_text())["model"]["fingerprint"]) == 16


def test_a_grid_grows_and_what_is_done_is_not_done_again(sweep, tmp_path, without_plots):
    words = ["--scenes", 1, "-o", tmp_path / "out"]
    assert sweep(*words, "--detail-steps", "1,2").code == 0
    before = runs_of(tmp_path / "out")
    outcome = sweep(*words, "--detail-steps", "2,3", "--seed", "0,1")
    assert "3 settings, 5 runs, 3 of them new" in outcome.out
    assert runs_of(tmp_path / "out")[:2] == before
    assert "not all settings were tried on the same items with the same seeds" in outcome.err


def test_without_matplotlib_the_tables_are_written_with_a_warning(sweep, tmp_path, without_plots):
    outcome = sweep("--scenes", 1, "--detail-steps", "1,2", "-o", tmp_path / "out")
    assert outcome.code == 0
    assert "pip install 'flashvideo[evaluate]'" in outcome.err
    assert (tmp_path / "out" / "summary.md").exists()
    assert not list((tmp_path / "out").glob("*.png"))


def test_prompts_go_through_both_stages_and_videos_are_kept(sweep, tmp_path, prompts):
    outcome = sweep("--prompts", prompts, "-o", tmp_path / "out", "--steps", 1, "--save-videos")
    assert outcome.code == 0, outcome.err
    (run,) = runs_of(tmp_path / "out")
    assert (run["setting"]["steps"], run["setting"]["guidance"]) == (1, 3.0)
    assert run["cost"]["evaluations"] == {"stage1": 2, "stage2": 2}
    note = read_metadata(tmp_path / "out" / run["video"])
    assert (note["prompt"], note["steps"]) == (PROMPT, {"stage1": 1, "stage2": 2})


def test_more_settings_of_the_detail_go_on_from_the_previews_that_are_kept(
    sweep, tmp_path, prompts, without_plots
):
    words = ["--prompts", prompts, "-o", tmp_path / "out"]
    assert sweep(*words, "--detail-steps", 1).code == 0
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "previews").iterdir()}
    assert sweep(*words, "--detail-steps", 2).code == 0
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "previews").iterdir()} == kept
    assert len({run["cost"]["seconds"]["preview"] for run in runs_of(tmp_path / "out")}) == 1


def test_previews_alone_can_be_swept_over_scenes(sweep, tmp_path, without_plots):
    outcome = sweep("--scenes", 1, "--preview-only", "--steps", "1,2", "-o", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    runs = runs_of(tmp_path / "out")
    assert [run["setting"] for run in runs] == [
        {"size": "48x32", "steps": steps, "guidance": 3.0} for steps in (1, 2)
    ]
    assert set(runs[0]["scores"]) == {"flicker"}


def test_videos_of_ones_own_are_enhanced_and_compared_with_references(
    sweep, tmp_path, video_file, without_plots
):
    for folder in ("in", "true"):
        (tmp_path / folder).mkdir()
        video_file(f"{folder}/a.mp4", num_frames=3)
    words = ["--inputs", tmp_path / "in", "--references", tmp_path / "true", "-o", tmp_path / "out"]
    assert sweep(*words, "--size", "24x16").code == 0
    (run,) = runs_of(tmp_path / "out")
    assert set(run["scores"]) == {"psnr", "fidelity", "flicker"}
    assert "detail_guidance" not in run["setting"]


def test_a_size_may_be_relative_to_the_video(sweep, tmp_path, video_file, without_plots):
    (tmp_path / "in").mkdir()
    video_file("in/a.mp4", num_frames=1)
    words = ["--inputs", tmp_path / "in", "--size", "x1,x2", "-o", tmp_path / "out", "--save-videos"]
    outcome = sweep(*words)
    assert outcome.code == 0, outcome.err
    sizes = [
        read_video(tmp_path / "out" / run["video"]).frames.shape[-2:] for run in runs_of(tmp_path / "out")
    ]
    assert sizes == [(16, 24), (32, 48)]


def test_a_mistake_in_a_reference_leaves_no_folder(sweep, refusal, tmp_path, video_file):
    for folder in ("in", "true"):
        (tmp_path / folder).mkdir()
        video_file(f"{folder}/a.mp4", num_frames=3)
    words = ["--inputs", tmp_path / "in", "--references", tmp_path / "true", "-o", tmp_path / "out"]
    assert "must have 3 frames of 48x32" in refusal(sweep, *words)


def test_ctrl_c_says_what_is_kept(sweep, tmp_path, monkeypatch, without_plots):
    words = ["--scenes", 1, "--detail-steps", "1,2", "-o", tmp_path / "out"]
    scores = iter([{"psnr": 1.0}])

    def interrupted(subject, measures):
        try:
            return next(scores)
        except StopIteration:
            raise KeyboardInterrupt from None

    with monkeypatch.context() as patch:
        patch.setattr(sweep_module, "score", interrupted)
        outcome = sweep(*words)
    assert outcome.code == 130
    assert "interrupted; 1 finished runs are kept in" in outcome.err
    assert not (tmp_path / "out" / "summary.json").exists()
    assert "2 runs, 1 of them new" in sweep(*words).out


def test_other_measures_are_not_mixed_into_a_sweep(sweep, flashvideo, refusal, tmp_path, without_plots):
    words = ["--scenes", 1, "--detail-steps", 1, "-o", tmp_path / "out"]
    assert sweep(*words).code == 0
    sentence = refusal(flashvideo, "sweep", *words, "--measures", "psnr")
    assert "was measured with flicker,psnr,fidelity as measures, and not with psnr" in sentence
    assert "with 5 as num_frames, and not with 9" in refusal(sweep, *words, "--frames", 9)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "sweep needs one of --scenes N, --prompts FILE and --inputs DIR"),
        (["--scenes", "1", "--prompts", "p.txt"], "--scenes and --prompts are both"),
        (["--scenes", "1", "--inputs", "in"], "--scenes and --inputs are both"),
        (["--scenes", "1", "--references", "true"], "--references is for --inputs"),
        (["--scenes", "1", "--steps", "4"], "--steps is of the preview, and --scenes starts behind it"),
        (
            ["--inputs", "in", "--guidance", "2"],
            "--guidance is of the preview, and --inputs starts behind it",
        ),
        (["--inputs", "in", "--preview-only"], "--preview-only is of previews"),
        (["--inputs", "in", "--frames", "5"], "--frames is of previews"),
        (["--scenes", "1", "--preview-only", "--shift", "2"], "--shift is of the detail"),
        (["--scenes", "1", "--preview-only", "--no-consistency"], "--consistency is of the detail"),
        (["--scenes", "0"], "argument --scenes: must be a whole number of at least 1"),
        (["--scenes", "1", "--detail-steps", "1,0"], "argument --detail-steps: must be a whole number"),
        (["--scenes", "1", "--detail-steps", "1,1"], "argument --detail-steps: must have each value once"),
        (["--scenes", "1", "--noise-step", "1000"], "argument --noise-step: must be a whole number from 0"),
        (["--scenes", "1", "--shift", "0"], "argument --shift: must be a number greater than 0"),
        (["--scenes", "1", "--detail-guidance", "0.5"], "--detail-guidance: must be a number of at least 1"),
        (["--scenes", "1", "--size", "x2"], "--size x2 is relative to a video, which --inputs gives"),
        (["--scenes", "1", "--size", "huge"], "argument --size: must be 270p"),
        (["--scenes", "1", "--seed", "-1"], "argument --seed: must be a whole number from 0"),
        (["--scenes", "1", "--measures", "beauty"], "--measures must be among niqe"),
    ],
)
def test_wrong_usage_is_one_sentence(flashvideo, refusal, tmp_path, words, sentence):
    assert sentence in refusal(flashvideo, "sweep", *words, "-o", tmp_path / "out", code=2)


def test_what_the_model_cannot_do_is_one_sentence(sweep, flashvideo, refusal, tmp_path, prompts):
    out = ["-o", tmp_path / "out"]
    assert "num_frames must be 4k+1, got 4" in refusal(sweep, "--scenes", 1, "--frames", 4, *out)
    sentence = refusal(sweep, "--scenes", 1, "--size", "48x32,reference", *out)
    assert "size must have each value once, got 48x32,48x32" in sentence
    assert "does not exist" in refusal(sweep, "--prompts", tmp_path / "none.txt", *out)
    assert "expected a folder of videos" in refusal(sweep, "--inputs", tmp_path / "none", *out)
    assert "is not empty and holds no sweep" in refusal(sweep, "--scenes", 1, "-o", tmp_path)
    assert "steps must be at most 1000" in refusal(sweep, "--prompts", prompts, "--steps", "1,1001", *out)
    sentence = refusal(flashvideo, "sweep", "--prompts", prompts, "--measures", "psnr", *out)
    assert "psnr needs a reference, which this sweep over prompts does not have; leave it out" in sentence


def test_guidance_without_prompts_is_refused(sweep, refusal, tmp_path, video_file):
    (tmp_path / "in").mkdir()
    video_file("in/a.mp4", num_frames=1)
    words = ["--inputs", tmp_path / "in", "--detail-guidance", 2, "-o", tmp_path / "out"]
    assert "--detail-guidance is towards prompts, and a has none" in refusal(sweep, *words, code=2)
