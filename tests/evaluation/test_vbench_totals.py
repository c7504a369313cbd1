"""VBench's totals against those that were printed, and the tables that they come from."""

import pytest

from flashvideo.evaluation.paper import SOURCES, quoted_rows
from flashvideo.evaluation.vbench.totals import DIMENSIONS, totals

PRINTED = {row.system: row.figures for row in quoted_rows("vbench_long")}
MISPRINTED = "FlashVideo 8 fps"


@pytest.mark.parametrize("system", [system for system in PRINTED if system != MISPRINTED])
def test_totals_are_those_printed(system):
    found = totals(PRINTED[system])
    for name in ("total", "quality", "semantic"):
        assert getattr(found, name) == pytest.approx(PRINTED[system][name], abs=0.011), name


def test_one_printed_row_contradicts_its_own_dimensions():
    found = totals(PRINTED[MISPRINTED])
    assert (round(found.total, 2), round(found.quality, 2), round(found.semantic, 2)) == (82.51, 82.58, 82.20)
    assert (PRINTED[MISPRINTED]["total"], PRINTED[MISPRINTED]["semantic"]) == (82.49, 82.10)


def test_the_best_scores_that_were_found_are_100_percent():
    assert totals({dimension.name: 100 * dimension.high for dimension in DIMENSIONS}).total == pytest.approx(
        100
    )


def test_incomplete_and_impossible_scores_are_refused():
    scores = {dimension.name: 50.0 for dimension in DIMENSIONS}
    with pytest.raises(ValueError, match="missing scene"):
        totals({name: score for name, score in scores.items() if name != "scene"})
    with pytest.raises(ValueError, match=r"must be percent from 0 to 100, got 120\.0 for color"):
        totals({**scores, "color": 120.0})


def test_every_table_has_a_source_and_numbers():
    assert [len(quoted_rows(table)) for table in SOURCES] == [10, 4]
    assert all(row.source.startswith("FlashVideo") for table in SOURCES for row in quoted_rows(table))
    assert {row.system: row.figures["NIQE"] for row in quoted_rows("enhancers")}["FlashVideo"] == 4.501
    with pytest.raises(ValueError, match="table must be one of vbench_long, enhancers, got 'table2'"):
        quoted_rows("table2")
