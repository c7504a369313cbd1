"""`flashvideo evaluate FOLDER...`."""

import json
import sys

import numpy as np
import pytest
import torch

from flashvideo.evaluation.metrics.niqe import PRISTINE_PATH
from flashvideo.video import write_video


@pytest.fixture
def rows(tmp_path):
    """Two systems' folders with six videos each, and the truth."""
    generator = torch.Generator().manual_seed(0)
    for index in range(6):
        truth = torch.rand(3, 3, 32, 48, generator=generator) * 2 - 1
        for name, clip in {"truth": truth, "near": truth * 0.9, "far": truth * 0.1}.items():
            (tmp_path / name).mkdir(exist_ok=True)
            write_video(tmp_path / name / f"{index}.mp4", clip, frame_rate=8)
    return tmp_path


def test_two_folders_become_a_report(call, rows):
    words = ("evaluate", rows / "near", f"remote={rows / 'far'}", "--references", rows / "truth")
    outcome = call(*words, "-o", rows / "report")
    assert outcome.code == 0, outcome.err
    assert "near (6) | remote (6)" in outcome.out
    assert "## remote against near" in outcome.out
    report = json.loads((rows / "report" / "report.json").read_text())
    assert report["comparisons"][0]["figures"]["psnr"]["verdict"] == "worse"
    assert (rows / "report" / "report.md").read_text() in outcome.out
    assert "<video" in (rows / "report" / "report.html").read_text()
    assert len((rows / "report" / "scores.jsonl").read_text().splitlines()) == 12


def test_the_report_is_json_too(call, rows):
    outcome = call("evaluate", rows / "near", "-o", rows / "report", "--players", "0", "--json")
    values = json.loads(outcome.out)
    assert values["exit_code"] == 0
    assert values["report"]["systems"][0]["label"] == "near"


def test_quoted_rows_stand_beside_and_are_marked(call, rows):
    words = ("evaluate", rows / "near", "-o", rows / "report", "--players", "0")
    assert "RealBasicVSR (quoted)" in call(*words, "--quoted", "enhancers").out


def test_niqe_takes_other_parameters_and_says_so(call, rows, tmp_path):
    with np.load(PRISTINE_PATH) as own:
        published = {"mu_pris_param": own["mean"][None] + 1, "cov_pris_param": own["covariance"]}
    np.savez(tmp_path / "published.npz", **published)
    write_video(rows / "near" / "0.mp4", torch.rand(1, 3, 192, 192) * 2 - 1, frame_rate=8)
    words = ("evaluate", rows / "near", "-o", rows / "report", "--players", "0", "--json")
    results = [
        json.loads(call(*words, *more).out)["report"]
        for more in ((), ("--niqe-parameters", tmp_path / "published.npz"))
    ]
    assert results[1]["measures"]["niqe"]["variant"].startswith("parameters published.npz ")
    one, other = (result["systems"][0]["figures"]["niqe"]["mean"] for result in results)
    assert one != other


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("missing",), "missing does not exist, expected a folder of videos"),
        (("near", "--references", "missing"), "missing does not exist, expected a folder of videos"),
        (("near", "--prompts", "missing.csv"), "missing.csv does not exist; check the name"),
    ],
)
def test_what_is_missing_is_one_sentence(call, refusal, rows, monkeypatch, words, sentence):
    monkeypatch.chdir(rows)
    assert sentence in refusal(call, "evaluate", *words, "-o", "report")


def test_an_upscaler_of_a_systems_name_is_refused_before_any_work(call, refusal, rows):
    words = ("evaluate", f"bicubic={rows / 'near'}", "--inputs", rows / "far", "--upscaler", "bicubic")
    assert "got bicubic, bicubic; write NAME=FOLDER" in refusal(call, *words, "-o", rows / "report", code=2)


def test_folders_may_stand_behind_options(call, rows):
    outcome = call("evaluate", rows / "near", "-o", rows / "report", "--players", "0", rows / "far")
    assert "near (6) | far (6)" in outcome.out


@pytest.mark.parametrize(
    ("content", "sentence"), [(b"nonsense", "is no NumPy archive"), (b"", "is no NumPy archive")]
)
def test_niqe_parameters_of_another_kind_are_one_sentence(call, refusal, rows, content, sentence):
    (rows / "pristine.npz").write_bytes(content)
    words = ("evaluate", rows / "near", "-o", rows / "report", "--niqe-parameters", rows / "pristine.npz")
    assert sentence in refusal(call, *words)


def test_two_systems_of_one_name_are_wrong_usage(call, refusal, rows):
    sentence = refusal(call, "evaluate", rows / "near", rows / "near", "-o", rows / "report", code=2)
    assert "systems must have different names, got near, near; write NAME=FOLDER" in sentence


def test_an_upscaler_is_one_row_more(call, rows):
    for index in range(6):
        (rows / "small").mkdir(exist_ok=True)
        write_video(rows / "small" / f"{index}.mp4", torch.zeros(3, 3, 16, 24), frame_rate=8)
    words = ("evaluate", rows / "near", "--inputs", rows / "small", "-o", rows / "report", "--players", "0")
    outcome = call(*words, "--upscaler", "lanczos")
    assert "near (6) | lanczos (6)" in outcome.out
    assert (rows / "report" / "upscaled" / "lanczos" / "1.mp4").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--upscaler", "bicubic"), "--upscaler enlarges the inputs of the videos; add --inputs"),
        (("--dover-python", "python"), "DOVER needs both --dover-python and --dover-repository"),
        (("--learned", "lpips"), "--learned lpips compares with the truth; add --references"),
        (("--learned-weights", "weights"), "--learned-weights are those of --learned"),
        (("--quoted", "enhancers", "--quoted", "enhancers"), "--quoted must have each value once"),
        (
            ("--inputs", ".", "--upscaler", "a/x.pth", "--upscaler", "b/x.pth"),
            "--upscaler must have each value once, got x, x",
        ),
    ],
)
def test_options_that_lack_one_another_are_wrong_usage(call, refusal, rows, words, sentence):
    outcome = refusal(call, "evaluate", rows / "near", *words, "-o", rows / "report", code=2)
    assert sentence in outcome


def test_learned_metrics_name_the_extra_and_its_licence(call, refusal, rows, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    words = ("evaluate", rows / "near", "--learned", "musiq", "-o", rows / "report")
    assert "PolyForm Noncommercial licence): pip install 'flashvideo[metrics]'" in refusal(call, *words)


def test_without_opencv_the_warping_error_is_left_out_with_a_warning(call, rows, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    outcome = call("evaluate", rows / "near", "-o", rows / "report", "--players", "0", "--json")
    assert "pip install 'flashvideo[evaluate]'" in outcome.err
    assert "warping" not in json.loads(outcome.out)["report"]["measures"]
