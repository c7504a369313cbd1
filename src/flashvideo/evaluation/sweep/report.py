"""What is written of a sweep when its runs are done; or once more, with some of its measures, in another folder.

python -m flashvideo.evaluation.sweep.report runs/steps --measures psnr gmsd filter_bank --output pictures
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from flashvideo.evaluation.measures import MEASURES, Measure
from flashvideo.evaluation.sweep.files import SweepFolder, read_runs
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


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Sum a sweep up once more.")
    parser.add_argument("sweep", type=Path, help="its folder")
    parser.add_argument(
        "--measures",
        nargs="+",
        choices=[measure.name for measure in MEASURES],
        default=[measure.name for measure in MEASURES],
        metavar="NAME",
        help="what to show (default: all)",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of tables and plots")
    arguments = parser.parse_args()
    measures = [measure for measure in MEASURES if measure.name in arguments.measures]
    found = outcomes(read_runs(arguments.sweep), measures)
    if not found:
        parser.error(f"{arguments.sweep} holds no finished runs; name the folder of a sweep")
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_summary(arguments.output, found, measures)
    write_plots(arguments.output, found, measures)


if __name__ == "__main__":
    main()
