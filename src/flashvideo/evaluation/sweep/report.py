"""What is written of a sweep when its runs are done."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from flashvideo.evaluation.measures import Measure
from flashvideo.evaluation.sweep.files import SweepFolder
from flashvideo.evaluation.sweep.plots import write_plots
from flashvideo.evaluation.sweep.summary import are_uneven, outcomes, write_summary

logger = logging.getLogger(__name__)


def write_report(folder: SweepFolder, measures: Sequence[Measure]) -> tuple[list[Path], int]:
    """Writes tables and plots of all runs in a sweep's folder.

    Args:
        folder: The folder.
        measures: What runs were scored with.

    Returns:
        The plots, none where matplotlib is not installed, and the number of settings.
    """
    found = outcomes(folder.runs, measures)
    if are_uneven(found):
        logger.warning(
            "not all settings were tried on the same items with the same seeds, so their means are not of the same "
            "videos; see the column runs of %s",
            folder.path / "summary.md",
        )
    write_summary(folder.path, found, measures)
    try:
        return write_plots(folder.path, found, measures), len(found)
    except ImportError as error:
        logger.warning("%s; the tables are written without them", error)
        return [], len(found)
