"""Scores of folders: resumed, never mixed, compared in pairs, reported."""

import json
from io import BytesIO

import pytest
import torch

from flashvideo.data.captions import full_caption
from flashvideo.data.shapes_world import render, sample_scene
from flashvideo.evaluation import scoring
from flashvideo.evaluation.dover import COLUMNS, SCRIPT
from flashvideo.evaluation.measures import MEASURES, Measure
from flashvideo.evaluation.paper import quoted_rows
from flashvideo.evaluation.report.comparison import as_markdown, build_report
from flashvideo.evaluation.report.html import as_html
from flashvideo.evaluation.report.plots import plot_systems
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
    for index in range(6):
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
    assert len(calls) == 12


def test_a_changed_video_and_other_measures_are_scored_anew(folders, monkeypatch):
    _scores(folders)
    calls, whole = [], scoring.score
    monkeypatch.setattr(scoring, "score", lambda *both: calls.append(both) or whole(*both))
    write_video(folders / "dark" / "0.mp4", torch.zeros(5, 3, 48, 80), frame_rate=8)
    _scores(folders)
    assert len(calls) == 1
    one = Measure(name="psnr", label="PSNR", better="higher", compute=lambda _: 1.0, variant="mine")
    assert _scores(folders, measures=(one,))["bicubic"]["0"] == {"psnr": 1.0}
    assert len(calls) == 13


def test_a_measure_that_is_added_is_computed_alone(folders, monkeypatch):
    _scores(folders)
    asked, whole = [], scoring.score
    monkeypatch.setattr(scoring, "score", lambda subject, ms: asked.append(ms) or whole(subject, ms))
    more = next(m for m in MEASURES if m.name == "ssim")
    scores = _scores(folders, measures=(*CHOSEN, more))
    assert all(list(ms) == [more] for ms in asked)
    assert set(scores["bicubic"]["0"]) == {m.name for m in (*CHOSEN, more)}


def test_a_video_that_does_not_fit_is_named(folders):
    write_video(folders / "bicubic" / "1.mp4", torch.zeros(4, 3, 48, 80), frame_rate=8)
    with pytest.raises(ValueError, match=r"1 of bicubic: reference must have the shape"):
        _scores(folders)


def test_prompts_by_name_take_the_place_of_the_videos_own(folders):
    systems = _systems(folders)
    prompts = dict.fromkeys(systems[0].videos, "a white square spinning over the night")
    assert Known.read(systems, prompts=prompts).prompts == prompts
    with pytest.raises(ValueError, match="no prompts for 4 of 6 videos, such as 2"):
        Known.read(systems, prompts={"0": "a", "1": "b"})


def test_a_video_without_a_note_has_the_prompt_of_its_namesakes(folders):
    write_video(folders / "dark" / "0.mp4", torch.zeros(5, 3, 48, 80), frame_rate=8)
    systems = _systems(folders)
    assert Known.read(systems[1:], sources=folders / "small").prompts["0"]
    assert "0" not in Known.read(systems[1:]).prompts


def test_namesakes_with_two_prompts_are_refused(folders):
    note = {"software": "somebody", "prompt": "another one"}
    write_video(folders / "dark" / "0.mp4", torch.zeros(5, 3, 48, 80), frame_rate=8, metadata=note)
    with pytest.raises(ValueError, match="the videos called 0 note two prompts"):
        Known.read(_systems(folders))


def test_the_report_tells_the_better_system(folders):
    report = build_report(_systems(folders), _scores(folders), CHOSEN)
    figures = report["comparisons"][0]["figures"]
    assert report["comparisons"][0]["system"] == "darker"
    assert figures["psnr"]["verdict"] == "worse"
    assert figures["psnr"]["count"] == 6
    assert figures["color"]["verdict"] == "unclear"
    assert report["systems"][1]["videos"]["0"]["psnr"] < report["systems"][0]["videos"]["0"]["psnr"]
    assert json.loads(json.dumps(report)) == report


def test_a_ratio_is_compared_by_its_distance_from_one(folders):
    measure = next(m for m in MEASURES if m.name == "gradient_energy")
    ours = {str(i): {"gradient_energy": 2.0} for i in range(6)}
    theirs = {str(i): {"gradient_energy": 0.25} for i in range(6)}
    systems = [System(label=label, videos=_systems(folders)[0].videos) for label in ("theirs", "ours")]
    report = build_report(systems, {"theirs": theirs, "ours": ours}, (measure,))
    assert report["comparisons"][0]["figures"]["gradient_energy"]["verdict"] == "better"


def test_markdown_has_all_systems_and_marks_what_is_quoted(folders):
    report = build_report(_systems(folders), _scores(folders), CHOSEN, quoted_rows("enhancers"))
    text = as_markdown(report)
    assert "| PSNR, dB ↑ |" in text
    assert "bicubic (6) | darker (6)" in text
    assert "## darker against bicubic" in text
    assert "| RealBasicVSR (quoted) |" in text


def test_html_needs_nothing_beside_it(folders):
    systems = _systems(folders)
    known, scores = _known(folders, systems), _scores(folders)
    text = as_html(build_report(systems, scores, CHOSEN), systems, scores, known, num_players=2)
    assert text.count("<video") == 2 * 4  # input, two systems, reference
    assert "data:image/svg+xml;base64," in text
    for outside in ("http:", "https:", 'src="/', "@import"):
        assert outside not in text


def test_what_users_write_cannot_become_html(folders):
    bold = "<b>bold</b>"
    video = _systems(folders)[0].videos["0"]
    systems = [System(label=bold, videos={bold: video}, setting={bold: bold})]
    known = Known(prompts={bold: bold})
    scores = {bold: {bold: {"psnr": 1.0}}}
    text = as_html(build_report(systems, scores, CHOSEN), systems, scores, known, num_players=1)
    assert "<b>bold" not in text
    assert text.count("&lt;b&gt;bold") >= 6  # title, table, player's name, prompt, caption, setting


def test_two_publications_are_two_tables(folders):
    quoted = [*quoted_rows("enhancers"), *quoted_rows("vbench_long")]
    text = as_markdown(build_report(_systems(folders), _scores(folders), CHOSEN, quoted))
    assert "## Quoted from FlashVideo, arXiv:2502.05179, Table 1, not measured here" in text
    assert "Table 3, not measured here" in text


def test_systems_without_a_common_name_cannot_be_compared(folders):
    one, other = _systems(folders)
    renamed = System(label="renamed", videos={f"x{name}": video for name, video in other.videos.items()})
    scores = _scores(folders) | {"renamed": {name: {} for name in renamed.videos}}
    with pytest.raises(ValueError, match="renamed has no video that bicubic has, such as 0"):
        build_report([one, renamed], scores, CHOSEN)


def test_systems_with_some_common_names_are_compared_with_a_warning(folders, caplog):
    one, other = _systems(folders)
    fewer = System(label="darker", videos={name: other.videos[name] for name in ("0", "1")})
    scores = _scores(folders, [one, fewer])
    report = build_report([one, fewer], scores, CHOSEN)
    assert "2 of the 2 videos of darker and 6 of bicubic have one name" in caplog.text
    assert report["comparisons"][0]["figures"]["psnr"]["count"] == 2
    assert report["comparisons"][0]["figures"]["psnr"]["verdict"] == "unclear"


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_shares_of_none_and_all_are_drawn(folders, value):
    column = next(m for m in MEASURES if m.name == "color")
    for count in (3, 7, 10, 25):
        videos = dict.fromkeys(map(str, range(count)), _systems(folders)[0].videos["0"])
        scores = {"one": {name: {"color": value} for name in videos}}
        report = build_report([System(label="one", videos=videos)], scores, (column,))
        plot_systems(report, scores, BytesIO())


def test_an_upscaler_is_a_system_like_any_other(folders):
    first = System.read(folders / "dark")
    known = Known.read([first], sources=folders / "small", references=folders / "truth")
    made = upscale_inputs(first, known, "bicubic", folders / "made", device="cpu")
    assert (made.label, list(made.videos)) == ("bicubic", ["0", "1", "2", "3", "4", "5"])
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
    with pytest.raises(
        ValueError, match="an upscaler takes video files, but 0 of the inputs is pictures; write it as mp4"
    ):
        upscale_inputs(first, known, "bicubic", folders / "made", device="cpu")


def test_dovers_scores_join_the_others_and_are_kept(folders, monkeypatch):
    systems, calls = _systems(folders), []

    def dover_scores(paths, **_):
        calls.append(paths)
        return {path.stem: {"dover_technical": 10.0, "dover_aesthetic": 90.0} for path in paths}

    monkeypatch.setattr(scoring, "dover_scores", dover_scores)
    (folders / SCRIPT).write_text("")
    where = {"python": folders / "python", "repository": folders, "device": "cpu"}
    for _ in range(2):
        more = score_with_dover(systems, folders / "dover.jsonl", **where)
    assert len(calls) == 2  # once for each system
    (folders / SCRIPT).write_text("another version")
    score_with_dover(systems, folders / "dover.jsonl", **where)
    assert len(calls) == 4
    scores = merged(_scores(folders), more)
    assert scores["darker"]["2"]["dover_technical"] == 10
    report = build_report(systems, scores, [*CHOSEN, *COLUMNS])
    assert report["systems"][0]["figures"]["dover_aesthetic"]["mean"] == 90
