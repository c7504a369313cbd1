"""The second half of `flashvideo evaluate vbench`: VBench is run on the videos, and its scores become a table."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flashvideo.cli.messages import progress_is_shown

if TYPE_CHECKING:
    from flashvideo.evaluation.vbench.prompts import Entry, PlannedVideo, Sampling
    from flashvideo.evaluation.vbench.results import VBenchTable
    from flashvideo.evaluation.vbench.running import VBenchRun


@dataclass(frozen=True, kw_only=True)
class Request:
    """A checked request."""

    run: VBenchRun
    """How VBench is run."""

    can_run: bool
    """Whether its Python is known."""

    dimensions: tuple[str, ...]
    """What is judged."""

    entries: tuple[Entry, ...]
    """All of VBench's list."""

    sampling: Sampling
    """How many videos of a prompt."""

    seed: int
    """What all seeds are derived from."""

    def planned(self, dimensions: Sequence[str] | None = None) -> tuple[PlannedVideo, ...]:
        """Returns the videos that some dimensions need, by default all that are judged.

        Raises:
            ValueError: If the list has no prompts for one.
        """
        from flashvideo.evaluation.vbench.prompts import choose_entries, plan_videos

        entries = choose_entries(self.entries, self.dimensions if dimensions is None else dimensions)
        return plan_videos(entries, self.sampling, seed=self.seed)

    def digest(self, dimensions: Sequence[str] | None = None) -> str:
        """Returns a word that changes with those videos."""
        from flashvideo.evaluation.vbench.running import digest_videos

        return digest_videos([self.run.videos / video.name for video in self.planned(dimensions)])


def ready_run(request: Request) -> VBenchRun:
    """Returns how VBench is run, now that the videos are there.

    Raises:
        ValueError: If VBench could not read the folder.
    """
    from flashvideo.evaluation.vbench.running import check_only_videos, link_clips

    check_only_videos(request.run.videos)
    if request.run.repository is None:
        return request.run
    names = [video.name for video in request.planned()]
    return dataclasses.replace(request.run, videos=link_clips(request.run, names, request.digest()))


def show_commands(request: Request) -> list[str]:
    """Returns the command lines that judge the videos."""
    from flashvideo.evaluation.vbench.running import command_lines, order_of_work

    run = ready_run(request)
    return [line for name in order_of_work(request.dimensions) for line in command_lines(run, name)]


def judge(arguments: argparse.Namespace, request: Request) -> None:
    """Runs VBench, dimension after dimension, for those that are not done.

    Raises:
        ValueError: If it fails.
    """
    from tqdm import tqdm

    from flashvideo.evaluation.vbench.running import is_done, order_of_work, run_dimension

    digests = {name: request.digest([name]) for name in order_of_work(request.dimensions)}
    left = [name for name, digest in digests.items() if not is_done(request.run, name, digest)]
    if not left:
        return
    run = ready_run(request)
    shown = progress_is_shown(arguments.progress)
    with tqdm(total=len(left), unit="dimension", disable=not shown, file=sys.stderr) as bar:
        for name in left:
            bar.set_description(name)
            run_dimension(run, name, digests[name])
            bar.update()


def make_table(request: Request, system: str) -> VBenchTable:
    """Returns the scores of the dimensions that were asked for."""
    from flashvideo.evaluation.vbench.prompts import not_comparable
    from flashvideo.evaluation.vbench.results import VBenchTable, read_results

    scores: dict[str, float] = {}
    for name in request.dimensions:
        scores |= read_results(request.run.folder(name))
    return VBenchTable(
        system=system,
        scores={name: scores[name] for name in request.dimensions},
        is_long=request.run.repository is not None,
        reservations=not_comparable(request.entries, request.sampling),
    )


def write_table(folder: Path, table: VBenchTable) -> list[Path]:
    """Writes `vbench.json` and `vbench.md`; returns their paths."""
    from flashvideo.evaluation.records import write_json, write_text

    paths = [folder / "vbench.json", folder / "vbench.md"]
    write_json(paths[0], table.as_data())
    write_text(paths[1], table.as_markdown())
    return paths
