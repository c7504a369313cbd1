"""A comparison of systems as one HTML file that needs nothing beside it: tables, plots, and players in step.

Shapes: F frames of H x W pixels in [-1, 1].
"""

from __future__ import annotations

import base64
import logging
import tempfile
from collections.abc import Mapping, Sequence
from importlib import resources
from io import BytesIO
from pathlib import Path
from typing import Any

import jinja2

from flashvideo.evaluation.folders import VideoFile
from flashvideo.evaluation.report.comparison import (
    Report,
    differences_table,
    figures_table,
    quoted_tables,
    setting_text,
)
from flashvideo.evaluation.report.plots import MOST_DOTS, plot_systems
from flashvideo.evaluation.scoring import Known, Scores, System
from flashvideo.video import resize_video, write_video

logger = logging.getLogger(__name__)

PLAYER_WIDTH = 480
"""Most pixels of an embedded video's width."""
PLAYER_FRAMES = 240
"""Most frames of it."""


def as_html(
    report: Report, systems: Sequence[System], scores: Scores, known: Known, *, num_players: int
) -> str:
    """Returns the report as HTML.

    Args:
        report: As `flashvideo.evaluation.report.comparison.build_report` makes it.
        systems: The systems.
        scores: Of their videos.
        known: What is known of their videos.
        num_players: So many videos are embedded, evenly spread over the names that all systems have.

    Returns:
        The file's text.
    """
    template = resources.files("flashvideo").joinpath("assets/report.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(template).render(
        report=report,
        figures=figures_table(report),
        comparisons=[(one, differences_table(report, one)) for one in report["comparisons"]],
        quoted=quoted_tables(report),
        settings=[(s["label"], setting_text(s["setting"])) for s in report["systems"] if s["setting"]],
        plot=_plot(report, scores),
        most={"width": PLAYER_WIDTH, "frames": PLAYER_FRAMES, "dots": MOST_DOTS},
        players=[_player(name, systems, known) for name in _chosen(systems, num_players)],
    )


def _plot(report: Report, scores: Scores) -> str | None:
    """The plot as base64 of an SVG; None without matplotlib."""
    picture = BytesIO()
    try:
        plot_systems(report, scores, picture)
    except ImportError as error:
        logger.warning("the report has no plots: %s", error)
        return None
    return base64.b64encode(picture.getvalue()).decode()


def _chosen(systems: Sequence[System], count: int) -> list[str]:
    common = sorted(set.intersection(*(set(system.videos) for system in systems)))
    step = max(1, len(common) / count) if count else 1
    return [common[int(i * step)] for i in range(min(count, len(common)))]


def _player(name: str, systems: Sequence[System], known: Known) -> Mapping[str, Any]:
    columns: list[tuple[str, VideoFile]] = [(system.label, system.videos[name]) for system in systems]
    if known.sources is not None:
        columns.insert(0, ("input", known.sources[name]))
    if known.references is not None:
        columns.append(("reference", known.references[name]))
    return {
        "name": name,
        "prompt": known.prompts.get(name),
        "videos": [(label, _embedded(video)) for label, video in columns],
    }


def _embedded(video: VideoFile) -> str:
    """The video, small enough to be embedded, as base64 of an mp4 that every browser plays."""
    frames = video.read(PLAYER_FRAMES)
    height, width = frames.shape[-2:]
    smaller = min(1.0, PLAYER_WIDTH / width)
    # Even, so that it is stored as 4:2:0.
    size = (max(2, round(height * smaller / 2) * 2), max(2, round(width * smaller / 2) * 2))
    if size != (height, width):
        frames = resize_video(frames, *size)
    with tempfile.TemporaryDirectory() as folder:
        path = write_video(Path(folder) / "video.mp4", frames, frame_rate=video.frame_rate, crf=20)
        return base64.b64encode(path.read_bytes()).decode()
