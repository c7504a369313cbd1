"""Scores of folders: resumed, never mixed, compared in pairs, reported."""

import json

import pytest
import torch

from flashvideo.data.captions import full_caption
from flashvideo.data.shapes_world import render, sample_scene
from flashvideo.evaluation import scoring
from flashvideo.evaluation.dover import COLUMNS
from flashvideo.evaluation.measures import MEASURES, Measure
from flashvideo.evaluation.paper import quoted_rows
from flashvideo.evaluation.report.comparison import as_markdown, build_report
from flashvideo.evaluation.report.html import as_html
from flashvideo.evaluation.scoring import (
    Known,
    System,
    merged,
    score_systems,
    score_with_dover,
    upscale_inputs,
)
from flashvideo.video import save_image, write_video

CHOSEN = tuple(m for m in MEASURES if m.name in ("psnr", "flicker", "gradient_energy", "color", "fidelity"))


@pytest.fixture
def folders(tmp_path):
    """Truth, small inputs, and two systems: bicubic, and one that darkens."""
    for name in ("truth", "small", "bicubic", "dark"):
        (tmp_path / name).mkdir()
    for index in range(3):
        scene = sample_scene(30 + index, second_object=0.0, pan=0.0)
        truth = torch.from_numpy(render(scene, height=48, width=80, num_frames=5))
        small = torch.from_numpy(render(scene, height=12, width=20, num_frames=5))
        large = torch.nn.functional.interpolate(small, size=(48, 80), mode="bicubic").clamp(-1, 1)
        clips = {"truth": truth, "small": small, "bicubic": large, "dark": large - 0.6}
        for name, clip in clips.items():
            write_video(
                tmp_path / name / f"{index}.mp4",
                clip,
                frame_rate=8,
                metadata={"software": "somebody", "prompt": full_caption(scene)},
            )
    return tmp_path


def _systems(folders) -> list[System]:
    return [System.read(folders / "bicubic"), System.read(folders / "dark", "darker")]


def _known(folders, systems) -> Known:
    return Known.read(systems, references=folders / "truth", sources=folders / "small")


def _scores(folders, systems=None, measures=CHOSEN):
    systems = systems or _systems(folders)
    return score_systems(
        systems, _known(folders, systems), measures, folders / "scores.jsonl", progress=False
    )


def test_every_video_of_every_system_is_scored(folders):
    scores = _scores(folders)
    assert list(scores) == ["bicubic", "darker"]
    assert set(scores["darker"]["0"]) == {measure.name for measure in CHOSEN}


def test_a_second_run_computes_nothing_again(folders, monkeypatch):
    first = _scores(folders)
    monkeypatch.setattr(scoring, "score", lambda *_: pytest.fail("scored again"))
    assert _scores(folders) == first


def test_an_interrupted_run_continues(folders, monkeypatch):
    whole, calls = scoring.score, []

    def interrupted(subject, measures):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(subject)
        return whole(subject, measures)

    monkeypatch.setattr(scoring, "score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _scores(folders)
    monkeypatch.setattr(scoring, "score", lambda *both: calls.append(both) or whole(*both))
    _scores(folders)
    assert len(calls) == 6


def test_a_changed_video_and_other_measures_are_scored_anew(folders, monkeypatch):
    _scores(folders)
    calls, whole = [], scoring.score
    monkeypatch.setattr(scoring, "score", lambda *both: calls.append(both) or whole(*both))
    write_video(folders / "dark" / "0.mp4", torch.zeros(5, 3, 48, 80), frame_rate=8)
    _scores(folders)
    assert len(calls) == 1
    one = Measure(name="psnr", label="PSNR", better="higher", compute=lambda _: 1.0, variant="mine")
    assert _scores(folders, measures=(one,))["bicubic"]["0"] == {"psnr": 1.0}
    assert len(calls) == 7


def test_a_video_that_does_not_fit_is_named(folders):
    write_video(folders / "bicubic" / "1.mp4", torch.zeros(4, 3, 48, 80), frame_rate=8)
    with pytest.raises(ValueError, match=r"1 of bicubic: reference must have the shape"):
        _scores(folders)


def test_prompts_by_name_take_the_place_of_the_videos_own(folders):
    systems = _systems(folders)
    prompts = dict.fromkeys(("0", "1", "2"), "a white square spinning over the night")
    known = Known.read(systems, prompts=prompts)
    assert known.prompt(systems[0].videos["0"]) == prompts["0"]
    with pytest.raises(ValueError, match="no prompts for 1 of 3 videos, such as 2"):
        Known.read(systems, prompts={"0": "a", "1": "b"})


def test_the_report_tells_the_better_system(folders):
    report = build_report(_systems(folders), _scores(folders), CHOSEN)
    figures = report["comparisons"][0]["figures"]
    assert report["comparisons"][0]["system"] == "darker"
    assert figures["psnr"]["verdict"] == "worse"
    assert figures["psnr"]["count"] == 3
    assert figures["flicker"]["verdict"] in ("better", "unclear")
    assert json.loads(json.dumps(report)) == report


def test_a_ratio_is_compared_by_its_distance_from_one(folders):
    measure = next(m for m in MEASURES if m.name == "gradient_energy")
    ours = {str(i): {"gradient_energy": 2.0} for i in range(3)}
    theirs = {str(i): {"gradient_energy": 0.25} for i in range(3)}
    systems = [System(label=label, videos=_systems(folders)[0].videos) for label in ("theirs", "ours")]
    report = build_report(systems, {"theirs": theirs, "ours": ours}, (measure,))
    assert report["comparisons"][0]["figures"]["gradient_energy"]["verdict"] == "better"


def test_markdown_has_all_systems_and_marks_what_is_quoted(folders):
    report = build_report(_systems(folders), _scores(folders), CHOSEN, quoted_rows("enhancers"))
    text = as_markdown(report)
    assert "| PSNR, dB ↑ |" in text
    assert "bicubic (3) | darker (3)" in text
    assert "## darker against bicubic" in text
    assert "| RealBasicVSR (quoted) |" in text
    assert "arXiv:2502.05179, Table 3" in text


def test_html_needs_nothing_beside_it(folders):
    systems = _systems(folders)
    known, scores = _known(folders, systems), _scores(folders)
    text = as_html(build_report(systems, scores, CHOSEN), systems, scores, known, num_players=2)
    assert text.count("<video") == 2 * 4  # input, two systems, reference
    assert "data:image/svg+xml;base64," in text
    for outside in ("http:", "https:", 'src="/', "@import"):
        assert outside not in text


def test_what_users_write_cannot_become_html(folders):
    systems = [System(label="<b>bold</b>", videos=_systems(folders)[0].videos)]
    scores = score_systems(systems, Known(), CHOSEN, folders / "s.jsonl", progress=False)
    text = as_html(build_report(systems, scores, CHOSEN), systems, scores, Known(), num_players=0)
    assert "<b>bold" not in text
    assert "&lt;b&gt;bold" in text


def test_an_upscaler_is_a_system_like_any_other(folders):
    first = System.read(folders / "dark")
    known = Known.read([first], sources=folders / "small", references=folders / "truth")
    made = upscale_inputs(first, known, "bicubic", folders / "made", device="cpu")
    assert (made.label, list(made.videos)) == ("bicubic", ["0", "1", "2"])
    scores = score_systems([first, made], known, CHOSEN, folders / "scores.jsonl", progress=False)
    assert scores["bicubic"]["0"]["psnr"] > scores["dark"]["0"]["psnr"]


def test_an_upscaler_needs_video_files(folders):
    first = System.read(folders / "dark")
    with pytest.raises(ValueError, match="an upscaler needs what the videos were made from"):
        upscale_inputs(first, Known(), "bicubic", folders / "made", device="cpu")
    (folders / "stills").mkdir()
    for name in first.videos:
        save_image(folders / "stills" / f"{name}.png", torch.zeros(3, 12, 20))
    known = Known.read([first], sources=folders / "stills")
    with pytest.raises(ValueError, match="the inputs have pictures: 0; write them as mp4"):
        upscale_inputs(first, known, "bicubic", folders / "made", device="cpu")


def test_dovers_scores_join_the_others_and_are_kept(folders, monkeypatch):
    systems, calls = _systems(folders), []

    def dover_scores(paths, **_):
        calls.append(paths)
        return {path.stem: {"technical": 10.0, "aesthetic": 90.0, "overall": 50.0} for path in paths}

    monkeypatch.setattr(scoring, "dover_scores", dover_scores)
    where = {"python": folders / "python", "repository": folders, "device": "cpu"}
    for _ in range(2):
        more = score_with_dover(systems, folders / "dover.jsonl", **where)
    assert len(calls) == 2  # once for each system
    scores = merged(_scores(folders), more)
    assert scores["darker"]["2"]["dover_technical"] == 10
    report = build_report(systems, scores, [*CHOSEN, *COLUMNS])
    assert report["systems"][0]["figures"]["dover_aesthetic"]["mean"] == 90
