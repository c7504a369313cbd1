"""Plots: what they have in common, and training curves. Needs matplotlib (the `evaluate` extra).

python -m flashvideo.evaluation.plots --curve stage1=runs/nano_stage1_4/curve.csv --output docs/images
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from flashvideo.evaluation.extras import import_extra

COLUMNS = 4
"""Most panels beside one another."""


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
    matplotlib = import_extra("matplotlib", "plots need it", extra="evaluate")
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
    parser = argparse.ArgumentParser(description="Plot training curves.")
    parser.add_argument(
        "--curve",
        action="append",
        required=True,
        metavar="NAME=FILE",
        help="a run's curve.csv; may be repeated",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the PNG files")
    arguments = parser.parse_args()
    for entry in arguments.curve:
        name, _, file = entry.partition("=")
        with open(file, newline="") as stream:
            plot_curve(list(csv.DictReader(stream)), name, arguments.output / f"curve_{name}.png")


if __name__ == "__main__":
    main()
