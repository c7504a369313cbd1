"""VBench's results read into a table, as it writes them."""

import json

import pytest

from flashvideo.evaluation.paper import quoted_rows
from flashvideo.evaluation.vbench.results import VBenchTable, read_results
from flashvideo.evaluation.vbench.totals import DIMENSIONS

PRINTED = quoted_rows("vbench_long")[0]
SCORES = {dimension.name: PRINTED.figures[dimension.name] for dimension in DIMENSIONS}


@pytest.fixture
def write(tmp_path):
    """`write(name, stored)` writes one file of results; returns the folder."""

    def write_file(name, stored):
        path = tmp_path / "results" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(stored if isinstance(stored, str) else json.dumps(stored))
        return tmp_path / "results"

    return write_file


def test_fractions_become_percent_also_where_each_video_has_another_scale(write):
    videos = [{"video_path": "a-0.mp4", "video_results": 64.0}]
    folder = write("results_1_eval_results.json", {"imaging_quality": [0.64, videos], "color": [1, videos]})
    assert read_results(folder) == {"imaging quality": 64.0, "color": 100.0}


def test_results_of_vbench_long_have_a_third_part(write):
    folder = write("results_1_eval_results.json", {"human_action": [0.5, [], [{"video_path": "a.mp4"}]]})
    assert read_results(folder) == {"human action": 50.0}


def test_all_files_of_all_folders_are_read_in_vbenchs_order(write):
    write("z/results_1_eval_results.json", {"subject_consistency": [0.9, []]})
    write("a/results_1_full_info.json", [])
    folder = write("a/results_1_eval_results.json", {"scene": [0.3, []], "color": [0.2, []]})
    assert list(read_results(folder)) == ["subject consistency", "color", "scene"]


def test_two_scores_of_a_dimension_are_refused_unless_they_are_the_same(write):
    write("a_eval_results.json", {"scene": [0.3, []]})
    assert read_results(write("b_eval_results.json", {"scene": [0.3, []]})) == {"scene": 30.0}
    folder = write("c_eval_results.json", {"scene": [0.4, []]})
    with pytest.raises(
        ValueError, match=r"two scores for scene, in a_eval_results\.json and c_eval_results\.json"
    ):
        read_results(folder)


@pytest.mark.parametrize(
    ("stored", "sentence"),
    [
        ("{", "is not JSON"),
        ([1], "must map dimensions to scores as VBench's results, got list"),
        ({"colour": [0.5, []]}, "has a score for 'colour', which is no dimension of VBench"),
        ({"color": 0.5}, r"has no score for color, expected \[score, \.\.\.\], got 0\.5"),
        ({"color": []}, "has no score for color"),
        ({"color": [True, []]}, "has no score for color"),
        ('{"color": [NaN, []]}', "has no score for color"),
        (
            {"imaging_quality": [64.0, []]},
            "must have fractions from 0 to 1, as VBench writes them, got 64.0 for imaging",
        ),
    ],
)
def test_what_vbench_does_not_write_is_refused(write, stored, sentence):
    folder = write("results_1_eval_results.json", stored)
    with pytest.raises(ValueError, match=sentence):
        read_results(folder)


def test_all_dimensions_give_the_totals_that_were_printed():
    table = VBenchTable(system="mine", scores=SCORES, is_long=True)
    for name in ("total", "quality", "semantic"):
        assert table.as_data()["totals"][name] == pytest.approx(PRINTED.figures[name], abs=0.011)


def test_a_missing_dimension_leaves_the_others_and_no_totals():
    table = VBenchTable(
        system="mine", scores={name: score for name, score in SCORES.items() if name != "scene"}
    )
    data = table.as_data()
    assert (data["totals"], data["missing"], len(data["scores"])) == (None, ["scene"], 15)
    lines = table.as_markdown().splitlines()
    assert next(line for line in lines if line.startswith("| total |")).startswith("| total | - | ")
    assert next(line for line in lines if line.startswith("| scene |")).startswith("| scene | - | ")
    assert "- no totals, since dimensions are missing: scene" in lines


def test_published_systems_stand_beside_it_and_are_marked_as_quoted():
    table = VBenchTable(system="mine", scores=SCORES, is_long=True)
    header = table.as_markdown().splitlines()[2]
    assert header.startswith("|  | **mine** | ")
    assert header.count("(quoted)") == len(quoted_rows("vbench_long"))
    assert (
        "quoted, not measured here: VBench-Long from FlashVideo, arXiv:2502.05179, Table 1"
        in table.notes()[0]
    )
    assert table.as_data()["quoted"][0]["source"] == "FlashVideo, arXiv:2502.05179, Table 1"


def test_the_table_for_a_terminal_shows_the_range_of_the_quoted_ones():
    lines = VBenchTable(system="mine", scores=SCORES, is_long=True).as_text().splitlines()
    others = [row.figures["scene"] for row in quoted_rows("vbench_long")]
    line = next(line for line in lines if line.startswith("scene"))
    assert line.split() == [
        "scene",
        f"{SCORES['scene']:.2f}",
        f"{min(others):.2f}",
        "to",
        f"{max(others):.2f}",
    ]


def test_reservations_and_the_other_measure_are_said():
    table = VBenchTable(system="mine", scores=SCORES, is_long=False, reservations=("1 of 5 videos",))
    assert table.as_data()["comparable"] is False
    assert "not comparable with published scores: 1 of 5 videos" in table.notes()
    assert any(note.startswith("not the same measure") for note in table.notes())
    unknown = VBenchTable(system="mine", scores=SCORES, reservations=None)
    assert unknown.as_data()["comparable"] is None
    assert any("is not known" in note for note in unknown.notes())
