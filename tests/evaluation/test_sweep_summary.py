"""What a sweep found: summaries, Pareto fronts, tables and plots."""

import itertools
import json
import sys

import pytest
from PIL import Image

from flashvideo.evaluation.measures import MEASURES
from flashvideo.evaluation.records import append_record
from flashvideo.evaluation.sweep.files import Cost, Run
from flashvideo.evaluation.sweep.grid import AXES, make_grid
from flashvideo.evaluation.sweep.plots import lines_over, place_labels, write_plots
from flashvideo.evaluation.sweep.report import main
from flashvideo.evaluation.sweep.summary import (
    are_uneven,
    as_markdown,
    fronts,
    outcomes,
    pareto_front,
    write_summary,
)

STEPS, GUIDANCE = (next(a for a in AXES if a.name == name) for name in ("detail_steps", "detail_guidance"))
PSNR, ENERGY, COLOR, FLICKER, BAND = (
    next(m for m in MEASURES if m.name == name)
    for name in ("psnr", "gradient_energy", "color", "flicker", "energy_1_4")
)
SHOWN = (PSNR, ENERGY, COLOR, FLICKER, BAND)


def run(setting, index=0, *, seed=0, psnr=None):
    steps = setting.detail_steps or 1
    branches = 2 if (setting.detail_guidance or 1) > 1 else 1
    return Run(
        item=f"scene_{index:04}",
        seed=seed,
        setting=setting,
        scores={
            "psnr": 20.0 + steps + index / 10 if psnr is None else psnr,
            "gradient_energy": 0.5 + steps / 20,
            "color": float(index % 2),
            "flicker": 1.0 / steps,
            "energy_1_4": 3.0 * steps,
        },
        cost=Cost(
            seconds={"text": 0.5, "detail": float(steps + index)},
            evaluations={"stage2": steps * branches},
            flops={"stage2": steps * branches * 10**12},
            peak_bytes=(1 + index) * 2**30,
        ),
    )


def found_of(values, num_items=2, **options):
    settings = make_grid({"size": ["640x384"], **values}, **options)
    return outcomes([run(setting, index) for index in range(num_items) for setting in settings], SHOWN)


def test_a_point_that_costs_more_and_is_no_better_is_not_on_the_front():
    points = [(1, 20.0), (2, 25.0), (3, 24.0), (4, 26.0), (5, 26.0)]
    assert pareto_front(points, "higher") == [0, 1, 3]


def test_where_lower_is_better_the_front_descends():
    assert pareto_front([(3, 0.1), (1, 0.9), (2, 0.95)], "lower") == [1, 0]


def test_of_ratios_the_nearest_to_one_in_logarithms_is_best():
    # 0.5 and 2 are as far from 1 as one another, 1.9 is nearer than both.
    assert pareto_front([(1, 0.5), (2, 2.0), (3, 1.9), (4, 0.0)], "one") == [0, 2]


def test_equal_points_stay_on_the_front_together():
    assert pareto_front([(1, 5.0), (1, 5.0), (1, 4.0)], "higher") == [0, 1]


def test_at_equal_cost_only_the_best_is_on_the_front():
    assert pareto_front([(1, 5.0), (1, 6.0)], "higher") == [1]
    assert pareto_front([(2, 6.0), (1, 6.0)], "higher") == [1]


def test_points_without_a_number_are_never_on_the_front():
    assert pareto_front([(1, float("nan")), (2, 3.0)], "higher") == [1]
    assert pareto_front([], "higher") == []


def test_what_is_neither_good_nor_bad_has_no_front():
    with pytest.raises(ValueError, match="better must be higher, lower or one"):
        pareto_front([(1, 2.0)], "neither")


def test_means_and_intervals_are_over_items_and_costs_are_means_but_of_memory_the_most():
    (one,) = found_of({"detail_steps": [4]}, num_items=3)
    assert one.count == 3
    assert one.scores["psnr"].mean == pytest.approx(24.1)
    assert one.scores["psnr"].low < 24.1 < one.scores["psnr"].high
    assert one.scores["color"].count == 3
    assert one.cost == {"seconds": 5.5, "evaluations": 4, "flops": 4e12, "peak_bytes": 3 * 2**30}


def test_settings_are_in_the_order_of_their_values_sizes_by_pixels():
    found = found_of({"size": ["1280x768", "640x384", "960x576"], "detail_steps": [8, 1]}, num_items=1)
    assert [(one.setting.size, one.setting.detail_steps) for one in found] == [
        (size, steps) for size in ("640x384", "960x576", "1280x768") for steps in (1, 8)
    ]


def test_fronts_are_of_every_cost_and_of_measures_that_can_be_good():
    found = found_of({"detail_steps": [1, 4]})
    assert fronts(found, SHOWN)["flops"] == {
        "psnr": [0, 1],
        "gradient_energy": [0, 1],
        "color": [0],
        "flicker": [0, 1],
    }
    assert set(fronts(found, SHOWN)) == {"seconds", "evaluations", "flops", "peak_bytes"}


def test_the_table_has_what_is_shared_the_costs_and_every_measure():
    text = as_markdown(found_of({"detail_steps": [1, 4], "noise_step": [2]}), SHOWN)
    assert "All with size 640x384, noise step 2." in text
    assert "| Stage II steps | runs | seconds | evaluations | TFLOP | peak GiB |" in text
    assert "| 4 | 2 | 5 | 4 | 4 | 2 |" in text
    assert "| Stage II steps | PSNR, dB ↑ | gradient energy / truth →1 |" in text.replace("→ 1", "→1")
    assert "| 4 | 24.05 [24.00, 24.10]* | 0.700* |" in text
    assert "| 4 | 50 [9, 91] |" in text


def test_settings_that_were_not_tried_on_the_same_videos_are_noticed():
    one, other = make_grid({"size": ["640x384"], "detail_steps": [1, 4]})
    assert are_uneven(outcomes([run(one), run(one, 1), run(other)], SHOWN))
    assert are_uneven(outcomes([run(one), run(other, 1)], SHOWN))
    assert are_uneven(outcomes([run(one), run(other, seed=1)], SHOWN))
    assert not are_uneven(outcomes([run(one), run(other)], SHOWN))


def test_seeds_of_an_item_are_averaged_before_items_are_resampled():
    (setting,) = make_grid({"size": ["640x384"], "detail_steps": [4]})
    values = {(0, 0): 10.0, (0, 1): 30.0, (1, 0): 19.0, (1, 1): 21.0}
    runs = [run(setting, index, seed=seed, psnr=value) for (index, seed), value in values.items()]
    (one,) = outcomes(runs, SHOWN)
    found = one.scores["psnr"]
    assert (found.mean, found.low, found.high, found.count) == (20, 20, 20, 4)
    assert (one.scores["color"].mean, one.scores["color"].low, one.scores["color"].high) == (0.5, 0, 1)


def test_a_summary_is_json_and_markdown(tmp_path):
    write_summary(tmp_path, found_of({"detail_steps": [1, 4]}), SHOWN)
    data = json.loads((tmp_path / "summary.json").read_text())
    assert data["settings"][0]["setting"] == {"size": "640x384", "detail_steps": 1}
    assert set(data["settings"][0]["scores"]["psnr"]) == {"mean", "low", "high", "count"}
    assert data["pareto"]["seconds"]["psnr"] == [0, 1]
    assert (tmp_path / "summary.md").read_text().startswith("# Sweep")


def test_of_two_axes_there_is_a_line_per_value_of_the_other_one():
    lines = lines_over(STEPS, found_of({"detail_steps": [1, 2, 4], "detail_guidance": [1.0, 2.0]}))
    assert [name for name, _ in lines] == ["Stage II guidance 1", "Stage II guidance 2"]
    assert [one.setting.detail_steps for one in lines[1][1]] == [1, 2, 4]


def test_one_at_a_time_there_is_one_line_over_each_axis():
    values = {"detail_steps": [4, 1, 2], "detail_guidance": [1.0, 2.0]}
    found = found_of(values, one_at_a_time=True)
    assert [(name, len(members)) for name, members in lines_over(STEPS, found)] == [("", 3)]
    assert [(name, len(members)) for name, members in lines_over(GUIDANCE, found)] == [("", 2)]


def test_plots_are_drawn_over_each_axis_and_each_cost(tmp_path):
    pytest.importorskip("matplotlib")
    settings = make_grid({"size": ["640x384", "960x576"], "detail_steps": [1, 8]})
    found = outcomes([run(one, index) for index, one in enumerate(settings)], SHOWN)
    paths = write_plots(tmp_path, found, SHOWN)
    assert [path.name for path in paths] == [
        "axis_size.png",
        "axis_detail_steps.png",
        "cost_seconds.png",
        "cost_evaluations.png",
        "cost_flops.png",
        "cost_peak_bytes.png",
    ]
    for path in paths:
        with Image.open(path) as image:
            assert image.width > 500


def test_plots_of_before_do_not_stay_beside_new_tables(tmp_path):
    for name in ("axis_shift.png", "cost_flops.png", "mine.png"):
        (tmp_path / name).write_bytes(b"")
    write_plots(tmp_path, found_of({"detail_steps": [4]}), SHOWN)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.png"]


def test_what_is_not_drawn_is_said(tmp_path, caplog):
    pytest.importorskip("matplotlib")
    settings = make_grid({"size": ["640x384"], "detail_steps": [1, 4], "shift": [1.0, 2.0]})
    found = outcomes([run(settings[0]), run(settings[3])], SHOWN)
    paths = write_plots(tmp_path, found, (PSNR,))
    assert not [path for path in paths if path.name.startswith("axis")]
    assert "there is no plot over time shift: no two settings differ in it alone" in caplog.text


def test_a_sweep_of_one_setting_has_nothing_to_plot(tmp_path):
    assert write_plots(tmp_path, found_of({"detail_steps": [4]}), SHOWN) == []


def test_labels_cover_neither_one_another_nor_points():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    from matplotlib.text import Text

    figure, plot = pyplot.subplots(figsize=(4, 3))
    points = [(1.0, 1.0), (1.02, 1.01), (1.04, 1.03), (1.5, 1.3), (1.5, 1.31)]
    plot.plot(*zip(*points, strict=True), marker="o")
    plot.margins(0.3)
    figure.draw_without_rendering()
    placed = place_labels(plot, [(f"{i} / 2.5", point) for i, point in enumerate(points)])
    renderer = figure.canvas.get_renderer()
    boxes = [Text.get_window_extent(note, renderer) for note in placed]
    assert len(boxes) == len(points)
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    dots = [plot.transData.transform(point) for point in points]
    assert not any(box.contains(*dot) for box in boxes for dot in dots)
    pyplot.close(figure)


def test_a_sweep_is_summed_up_once_more_with_some_measures(tmp_path, monkeypatch):
    settings = make_grid({"size": ["640x384"], "detail_steps": [1, 8]})
    for index, one in enumerate(settings):
        append_record(tmp_path / "runs.jsonl", run(one, index).as_dict())
    words = ["report", str(tmp_path), "--measures", "psnr", "--output", str(tmp_path / "some")]
    monkeypatch.setattr(sys, "argv", words)
    main()
    text = (tmp_path / "some" / "summary.md").read_text()
    assert "PSNR" in text
    assert "GMSD" not in text
    assert (tmp_path / "some" / "axis_detail_steps.png").exists()
