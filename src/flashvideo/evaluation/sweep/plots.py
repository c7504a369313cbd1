"""Plots of a sweep, as PNG files: measures over each setting that varies, and quality against cost.

    axis_NAME.png      a panel per measure over one setting, a line per value of the others, with 95 % intervals
    cost_NAME.png      a panel per measure: each setting's mean over its cost, and the Pareto front with its settings

Needs matplotlib (the `evaluate` extra).
"""

from __future__ import annotations

import itertools
import logging
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flashvideo.evaluation.measures import Measure
from flashvideo.evaluation.plots import new_axes, save_figure
from flashvideo.evaluation.sweep.grid import Axis, Setting, Value, varying_axes
from flashvideo.evaluation.sweep.summary import COSTS, CostKind, Outcome, fronts

logger = logging.getLogger(__name__)

MOST_LINES = 8
"""More lines than these cannot be told apart, and are not drawn."""
LOGARITHMIC = 8.0
"""Values whose largest is so many times their smallest are drawn on a logarithmic axis."""
TITLE_WIDTH = 34
"""Letters in a line of a panel's title."""
MOST_TICKS = 9
"""So many values get a tick each."""
OFFSETS = tuple(
    (dx * reach, dy * reach)
    for reach in (7, 13, 21, 30)
    for dx, dy in ((1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1.4), (0, -1.4), (1.4, 0), (-1.4, 0))
)
"""Where a label may stand, in points from its dot, best first."""


def write_plots(folder: Path, found: Sequence[Outcome], measures: Sequence[Measure]) -> list[Path]:
    """Draws all plots of a sweep, in the place of those that are there; what is not drawn is logged.

    Args:
        folder: Where to.
        found: What the settings came to.
        measures: What is shown, where it was measured.

    Returns:
        The files.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    for pattern in ("axis_*.png", "cost_*.png"):
        for old in folder.glob(pattern):
            old.unlink()
    shown = [measure for measure in measures if any(measure.name in one.scores for one in found)]
    paths = []
    for axis in varying_axes(one.setting for one in found) if shown else ():
        lines = lines_over(axis, found)
        if 0 < len(lines) <= MOST_LINES:
            paths.append(folder / f"axis_{axis.name}.png")
            plot_axis(axis, lines, shown, paths[-1])
        else:
            why = "no two settings differ in it alone" if not lines else f"{len(lines)} lines are too many"
            logger.warning("there is no plot over %s: %s", axis.label, why)
    judged = [measure for measure in shown if measure.better != "neither"]
    for kind in COSTS if judged and len(found) > 1 else ():
        if len({one.cost[kind.name] for one in found if kind.name in one.cost}) > 1:
            paths.append(folder / f"cost_{kind.name}.png")
            plot_cost(kind, found, judged, paths[-1])
        else:
            logger.info("there is no plot over %s: it is the same of all settings, or not known", kind.label)
    return paths


def lines_over(axis: Axis, found: Sequence[Outcome]) -> list[tuple[str, list[Outcome]]]:
    """Groups settings that differ in one axis alone.

    Args:
        axis: The axis.
        found: What the settings came to, in order.

    Returns:
        For each group of at least two its name, made of the other settings that vary between groups, and its members.
    """
    groups: dict[Setting, list[Outcome]] = {}
    for one in found:
        rest = {name: value for name, value in one.setting.as_dict().items() if name != axis.name}
        groups.setdefault(Setting.from_dict({"size": "", **rest}), []).append(one)
    groups = {rest: members for rest, members in groups.items() if len(members) > 1}
    others = varying_axes(groups)
    return [(rest.text(others), members) for rest, members in groups.items()]


def plot_axis(
    axis: Axis, lines: Sequence[tuple[str, Sequence[Outcome]]], measures: Sequence[Measure], path: Path
) -> None:
    """Draws measures over one axis."""
    figure, plots = new_axes(len(measures), width=3.6, height=2.9, layout="constrained")
    from matplotlib import colormaps  # after `new_axes`, which says what to install

    values = list(dict.fromkeys(one.setting.value(axis) for _, members in lines for one in members))
    positions = _positions(values)
    for plot, measure in zip(plots, measures, strict=True):
        for number, (name, members) in enumerate(lines):
            color = colormaps["viridis"](0.85 * number / max(len(lines) - 1, 1))
            have = [one for one in members if measure.name in one.scores]
            x = [positions[one.setting.value(axis)] for one in have]
            estimates = [one.scores[measure.name] for one in have]
            plot.plot(x, [one.mean for one in estimates], marker="o", markersize=4, color=color, label=name)
            plot.fill_between(
                x,
                [one.low for one in estimates],
                [one.high for one in estimates],
                color=color,
                alpha=0.15,
                lw=0,
            )
        plot.set_xlabel(axis.label)
        _scale_values(plot, values, positions)
        _describe(plot, measure)
    if len(lines) > 1:
        handles, names = plots[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper center", ncols=min(len(names), 4), fontsize=9)
    save_figure(figure, path, dpi=100)


def plot_cost(kind: CostKind, found: Sequence[Outcome], measures: Sequence[Measure], path: Path) -> None:
    """Draws measures over one kind of cost, with their Pareto fronts."""
    axes = varying_axes(one.setting for one in found)
    front_of = fronts(found, measures).get(kind.name, {})
    figure, plots = new_axes(len(measures), columns=3, width=4.6, height=3.6, layout="constrained")
    labels: list[list[tuple[str, tuple[float, float]]]] = []
    for plot, measure in zip(plots, measures, strict=True):
        have = [one for one in found if measure.name in one.scores and kind.name in one.cost]
        x = [one.cost[kind.name] / kind.unit for one in have]
        estimates = [one.scores[measure.name] for one in have]
        y = [one.mean for one in estimates]
        spread = [
            [max(one.mean - one.low, 0.0) for one in estimates],
            [max(one.high - one.mean, 0.0) for one in estimates],
        ]
        plot.errorbar(x, y, spread, fmt="o", markersize=4, color="0.55", ecolor="0.8", elinewidth=1, zorder=1)
        front = [found[number] for number in front_of.get(measure.name, ())]
        points = [(one.cost[kind.name] / kind.unit, one.scores[measure.name].mean) for one in front]
        plot.plot(*zip(*points, strict=True), marker="o", markersize=5, color="C3", lw=1.2, zorder=2)
        labels.append([(_short(one.setting, axes), point) for one, point in zip(front, points, strict=True)])
        plot.set_xlabel(kind.label)
        plot.margins(0.14, 0.16)
        _scale_cost(plot, x)
        _describe(plot, measure)
    key = " / ".join(axis.label for axis in axes)
    figure.suptitle(f"Red: the Pareto front, with its settings: {key}", fontsize=10)
    figure.draw_without_rendering()  # now the panels have their places, and labels can be given theirs
    for plot, names in zip(plots, labels, strict=True):
        place_labels(plot, names)
    save_figure(figure, path, dpi=100)


def place_labels(plot: Any, labels: Sequence[tuple[str, tuple[float, float]]]) -> list[Any]:
    """Writes labels beside points of a laid out panel so that none covers another, or a point.

    Args:
        plot: Matplotlib's axes.
        labels: Texts with the points that they belong to.

    Returns:
        Matplotlib's annotations. Where there is no free place near enough, the label is left out.
    """
    from matplotlib.text import Text

    renderer = plot.figure.canvas.get_renderer()
    inside = plot.get_window_extent(renderer)
    dots = [plot.transData.transform(xy) for line in plot.lines for xy in line.get_xydata()]
    front = [tuple(plot.transData.transform(point)) for _, point in labels]
    along = [
        tuple(before[i] + (after[i] - before[i]) * part / 50 for i in (0, 1))
        for before, after in itertools.pairwise(front)
        for part in range(51)
    ]
    taken: list[Any] = []
    placed = []
    for text, point in labels:
        # Beside the front's own line if there is room, else across it.
        for (dx, dy), kept_free in [(offset, free) for free in ([*dots, *along], dots) for offset in OFFSETS]:
            note = plot.annotate(
                text,
                point,
                xytext=(dx, dy),
                textcoords="offset points",
                fontsize=8,
                ha="left" if dx > 0 else "right" if dx < 0 else "center",
                va="bottom" if dy > 0 else "top" if dy < 0 else "center",
                arrowprops={"arrowstyle": "-", "color": "0.6", "lw": 0.6, "shrinkA": 0, "shrinkB": 3},
            )
            note.set_in_layout(False)
            note.update_positions(renderer)
            text_box = Text.get_window_extent(note, renderer)  # without its line to the point
            free = (
                inside.contains(text_box.x0, text_box.y0)
                and inside.contains(text_box.x1, text_box.y1)
                and not any(text_box.overlaps(other) for other in taken)
                and not any(text_box.padded(2).contains(*dot) for dot in kept_free)
            )
            if free:
                taken.append(text_box.padded(1))
                placed.append(note)
                break
            note.remove()
    return placed


def _positions(values: Sequence[Value | None]) -> dict[Value | None, float]:
    """Where values stand: numbers at themselves, names one after another."""
    if any(isinstance(value, str) for value in values):
        return {value: float(number) for number, value in enumerate(values)}
    return {value: float(value or 0) for value in values}


def _scale_values(plot: Any, values: Sequence[Value | None], positions: dict[Value | None, float]) -> None:
    """Gives the axis of a setting its scale, and each value a tick while they are few."""
    numbers = sorted(positions.values())
    if isinstance(values[0], str):
        plot.set_xticks(list(positions.values()), [str(value) for value in values], rotation=20, ha="right")
        plot.set_xlim(numbers[0] - 0.3, numbers[-1] + 0.3)
        return
    positive = [number for number in numbers if number > 0]
    if positive[-1:] and positive[-1] / positive[0] >= LOGARITHMIC:
        if len(positive) == len(numbers):
            plot.set_xscale("log")
        else:  # zero has its place before the least
            plot.set_xscale("symlog", linthresh=positive[0])
    if len(numbers) <= MOST_TICKS:
        plot.set_xticks(numbers, [f"{number:g}" for number in numbers])
        plot.set_xticks([], minor=True)


def _scale_cost(plot: Any, costs: Sequence[float]) -> None:
    """Gives the axis of a cost its scale."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if min(costs) > 0 and max(costs) / min(costs) >= LOGARITHMIC:
        plot.set_xscale("log")
        plot.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        plot.xaxis.set_major_formatter(FuncFormatter(lambda cost, _: f"{cost:g}"))
        plot.xaxis.set_minor_formatter(NullFormatter())


def _describe(plot: Any, measure: Measure) -> None:
    """Says what is measured, in what, and which values are good."""
    wish = {"higher": "higher is better", "lower": "lower is better", "one": "1 is best", "neither": ""}
    title = [*textwrap.wrap(measure.label, TITLE_WIDTH), wish[measure.better]]
    plot.set_title("\n".join(filter(None, title)), fontsize=10)
    plot.set_ylabel("share of videos" if measure.is_share else measure.unit, fontsize=9)
    plot.tick_params(labelsize=8)
    plot.ticklabel_format(axis="y", useOffset=False)
    if measure.is_share:
        plot.set_ylim(-0.04, 1.04)
    if measure.better == "one":
        plot.axhline(1, color="0.7", lw=0.8, ls="--", zorder=0)


def _short(setting: Setting, axes: Sequence[Axis]) -> str:
    """The varying values of a setting, as its point is labelled."""
    return " / ".join(setting.value_text(axis) for axis in axes)
