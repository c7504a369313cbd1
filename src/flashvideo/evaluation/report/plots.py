"""The plot of a comparison: for every measure each system's videos, mean and interval. Needs matplotlib."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np

from flashvideo.evaluation.plots import new_axes, save_figure
from flashvideo.evaluation.report.comparison import Report, title
from flashvideo.evaluation.scoring import Scores

MOST_DOTS = 200
"""So many videos of a system are drawn, at most."""


def plot_systems(report: Report, scores: Scores, file: BinaryIO) -> None:
    """Draws one panel per measure into an SVG.

    Args:
        report: As `flashvideo.evaluation.report.comparison.build_report` makes it.
        scores: Of the systems' videos.
        file: Where to.

    Raises:
        ImportError: If matplotlib is missing; the message names what to install.
    """
    labels = [system["label"] for system in report["systems"]]
    figure, axes = new_axes(len(report["measures"]), height=1.1 + 0.45 * len(labels))
    rng = np.random.default_rng(0)  # spreads the dots
    for axis, (name, measure) in zip(axes, report["measures"].items(), strict=True):
        for row, system in enumerate(report["systems"]):
            estimate = system["figures"].get(name)
            if estimate is None:
                continue
            scale = 100 if measure["is_share"] else 1
            mean, low, high = (scale * estimate[key] for key in ("mean", "low", "high"))
            values = [record[name] for record in scores[system["label"]].values() if name in record]
            values = values[:MOST_DOTS]
            color = f"C{row % 10}"
            if not measure["is_share"]:
                spread = row + rng.uniform(0.12, 0.34, len(values))
                axis.plot(values, spread, ".", color=color, alpha=0.45, markersize=6, markeredgewidth=0)
            axis.errorbar(
                mean,
                row,
                xerr=[[max(0.0, mean - low)], [max(0.0, high - mean)]],
                fmt="o",
                color=color,
                capsize=3,
            )
        axis.locator_params(axis="x", nbins=4)
        axis.set_yticks(range(len(labels)), labels)
        axis.set_ylim(len(labels) - 0.4, -0.5)
        axis.set_title(title(measure), fontsize=9)
        axis.grid(axis="x", alpha=0.3)
        axis.margins(x=0.08)
    save_figure(figure, file, kind="svg")
