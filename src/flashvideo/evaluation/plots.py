r"""Plots of what the suite measured and of training curves, as PNG files. Needs matplotlib (the `evaluate` extra).

python -m flashvideo.evaluation.plots --figures figures.json --curve stage1=runs/nano_stage1_4/curve.csv \
        --output docs/images
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

SWEEPS = {
    "steps": "Stage II steps",
    "noise": "noise step of the latent degradation",
    "guidance": "guidance scale",
    "preview_steps": "Stage I steps",
}
PREVIEW_SWEEPS = ("guidance", "preview_steps")
"""Sweeps whose figures are shares of prompts, shown in one panel."""
PANELS = {
    "psnr": "PSNR to truth, dB",
    "gradient_energy": "gradient energy / truth",
    "filter_bank": "filter-bank distance (lower is nearer)",
    "gmsd": "GMSD (lower is nearer)",
    "frame_difference": "error of frame differences",
    "fidelity": "PSNR of the downsampled result, dB",
}
COLUMNS = 4
"""Most panels beside one another."""


def sweep_series(summary: Mapping[str, Mapping[str, float]], figure: str) -> list[tuple[float, ...]]:
    """The swept values with their means and intervals: rows (value, mean, low, high), in order of the value.

    Args:
        summary: one section of the suite's summary, with names such as "4_psnr".
        figure: what was measured, such as "psnr".
    """
    rows = []
    for name, entry in summary.items():
        value, _, kind = name.partition("_")
        if kind == figure:
            rows.append((float(value), entry["mean"], entry["low"], entry["high"]))
    return sorted(rows)


def plot_sweep(summary: Mapping[str, Mapping[str, float]], section: str, path: Path) -> None:
    """One panel per figure over the swept value, with 95 % intervals; attributes share one panel."""
    attributes = dict.fromkeys(name.partition("_")[2] for name in summary if name != "seconds")
    groups = [tuple(attributes)] if section in PREVIEW_SWEEPS else [(name,) for name in PANELS]
    figure, axes = new_axes(len(groups))
    for axis, names in zip(axes, groups, strict=True):
        for name in names:
            rows = sweep_series(summary, name)
            values, means, lows, highs = zip(*rows, strict=True)
            (line,) = axis.plot(values, means, marker="o", label=name)
            axis.fill_between(values, lows, highs, color=line.get_color(), alpha=0.2)
        axis.set_xlabel(SWEEPS[section])
        axis.set_title("share read back right" if len(names) > 1 else PANELS[names[0]], fontsize=10)
        if len(names) > 1:
            axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    save_figure(figure, path)


def plot_curve(rows: Sequence[Mapping[str, str]], title: str, path: Path) -> None:
    """Every column of a training curve over steps; smoothed by a running mean of ten rows where rows are many."""
    skipped = {"step", "minutes", "phase", "rate"}
    names = [n for n in dict.fromkeys(k for r in rows for k in r) if n not in skipped]
    figure, axes = new_axes(len(names))
    for axis, name in zip(axes, names, strict=True):
        points = [(int(r["step"]), float(r[name])) for r in rows if r.get(name)]
        steps = [step for step, _ in points]
        values = [value for _, value in points]
        if len(points) > 20:
            axis.plot(steps, values, alpha=0.25)
            values = [sum(values[max(0, i - 9) : i + 1]) / min(i + 1, 10) for i in range(len(values))]
        axis.plot(steps, values, marker="" if len(points) > 20 else "o")
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("step")
    figure.suptitle(title)
    save_figure(figure, path)


def new_axes(
    count: int,
    *,
    columns: int = COLUMNS,
    width: float = 3.4,
    height: float = 3.0,
    layout: str | None = None,
) -> tuple[Any, list[Any]]:
    """Returns a figure of several panels, and their axes.

    Args:
        count: Number of panels.
        columns: Most of them beside one another.
        width: Of each, in inches.
        height: Of each, in inches.
        layout: Matplotlib's layout engine; `save_figure` lays out tightly if None.

    Raises:
        ImportError: If matplotlib is missing.
    """
    try:
        import matplotlib
    except ImportError:
        raise ImportError(
            "plots need matplotlib, which is not installed; pip install 'flashvideo[evaluate]'"
        ) from None

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(count, columns)
    rows = -(-count // columns)
    figure, grid = pyplot.subplots(
        rows, columns, figsize=(max(5.0, width * columns), height * rows), squeeze=False, layout=layout
    )
    axes = list(grid.flat)
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def save_figure(figure: Any, file: Path | BinaryIO, *, kind: str = "png", dpi: int = 80) -> None:
    """Writes a figure, whose panels are spread so that nothing overlaps, and closes it."""
    from matplotlib import pyplot

    if isinstance(file, Path):
        file.parent.mkdir(parents=True, exist_ok=True)
    if figure.get_layout_engine() is None:
        figure.tight_layout()
    figure.savefig(file, dpi=dpi, format=kind)
    pyplot.close(figure)


def main() -> None:
    """Command line of the plots."""
    parser = argparse.ArgumentParser(description="Plot the suite's sweeps and training curves.")
    parser.add_argument("--figures", type=Path, help="JSON file of the suite")
    parser.add_argument("--curve", action="append", default=[], metavar="NAME=FILE", help="a run's curve.csv")
    parser.add_argument("--output", type=Path, required=True, help="folder of the PNG files")
    arguments = parser.parse_args()
    if arguments.figures:
        summary = json.loads(arguments.figures.read_text())["summary"]
        for section in SWEEPS.keys() & summary.keys():
            plot_sweep(summary[section], section, arguments.output / f"{section}.png")
    for entry in arguments.curve:
        name, _, file = entry.partition("=")
        with open(file, newline="") as stream:
            plot_curve(list(csv.DictReader(stream)), name, arguments.output / f"curve_{name}.png")


if __name__ == "__main__":
    main()
