"""`flashvideo evaluate vbench`: the videos that VBench wants, VBench itself in its own environment, and its scores."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashvideo.cli import arguments as shared
from flashvideo.cli.arguments import UsageError
from flashvideo.cli.files import check_folder, check_input
from flashvideo.cli.generate import add_sampling, add_stage1_parts
from flashvideo.cli.messages import progress_is_shown
from flashvideo.cli.model import model_label, use_threads
from flashvideo.cli.results import Phases, Result

if TYPE_CHECKING:
    from flashvideo.evaluation.vbench_prompts import Entry, PlannedVideo, Sampling
    from flashvideo.evaluation.vbench_results import VBenchTable
    from flashvideo.evaluation.vbench_run import VBenchRun

COMMAND = "evaluate-vbench"
"""Name of the command; `evaluate vbench` at the start of a command line means it."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        COMMAND,
        prog="flashvideo evaluate vbench",
        help="make VBench's videos, run an installed VBench on them, and show its scores (also: evaluate vbench)",
        description="Make the videos of VBench's prompts under the names that it wants, run an installed VBench or "
        "VBench-Long on them in its own environment, and show its sixteen dimensions and three totals beside "
        "published ones. What is done already is not done again.",
        epilog="Without --vbench-python the videos are made and the commands shown that judge them.",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FOLDER",
        help="folder of the videos, VBench's results, vbench.json and vbench.md; made if it is not there",
    )
    add_vbench(parser)
    settings = parser.add_argument_group("settings")
    settings.add_argument(
        "--seed",
        type=shared.whole_number(least=0),
        default=0,
        metavar="N",
        help="each video's seed is derived from it, the prompt and the video's number (default: %(default)s)",
    )
    add_sampling(settings)
    add_stage1_parts(parser)
    shared.add_model_options(parser)
    shared.add_progress(parser)
    shared.add_common(parser)
    # What `generate` may do beyond making a video of a prompt.
    parser.set_defaults(run=run, preview_only=False, from_preview=None, text_cache=None, prompt_metadata=True)


def add_vbench(parser: argparse.ArgumentParser) -> None:
    """Adds what is of VBench."""
    group = parser.add_argument_group("VBench")
    group.add_argument(
        "--vbench-python", metavar="PATH", help="the Python in whose environment vbench is installed"
    )
    group.add_argument(
        "--long",
        type=Path,
        metavar="DIR",
        help="judge with VBench-Long, meant for videos of 5 seconds and more, out of this clone of VBench's repository",
    )
    group.add_argument(
        "--info",
        type=Path,
        metavar="FILE",
        help="VBench_full_info.json, VBench's list of prompts (default: that of --long, or of --vbench-python)",
    )
    group.add_argument(
        "--long-prompts",
        type=Path,
        metavar="FILE",
        help="make the videos from these longer prompts, one a line in the order of the whole list, such as VBench's "
        "all_dimension_longer.txt; they are named after the short ones",
    )
    group.add_argument(
        "--dimensions", nargs="+", type=dimension, metavar="NAME", help="dimensions to judge (default: all)"
    )
    group.add_argument(
        "--samples",
        type=shared.whole_number(most=5),
        default=5,
        metavar="N",
        help="videos of each prompt; with fewer than VBench's %(default)s the scores are marked as not comparable",
    )
    group.add_argument(
        "--flicker-samples",
        type=shared.whole_number(),
        metavar="N",
        help="videos of each prompt of temporal flickering, of which VBench takes the first five that hold still "
        "(default: 25, or --samples where that is fewer than 5)",
    )
    group.add_argument(
        "--no-generate",
        action="store_true",
        help="make no videos; judge those in FOLDER/videos, of any system",
    )
    group.add_argument(
        "--results", type=Path, metavar="DIR", help="do nothing but read VBench's results in this folder"
    )
    group.add_argument("--name", metavar="TEXT", help="the system's name in the table (default: the model's)")


def dimension(text: str) -> str:
    """Returns a dimension's name as VBench prints it.

    >>> dimension("human_action")
    'human action'
    """
    from flashvideo.evaluation.vbench import DIMENSIONS

    name, names = text.replace("_", " "), [known.name for known in DIMENSIONS]
    if name not in names:
        expected = ", ".join(known.replace(" ", "_") for known in names)
        raise argparse.ArgumentTypeError(f"must be one of {expected}, got {text!r}")
    return name


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

    videos: tuple[PlannedVideo, ...]
    """The videos that are needed."""


def run(arguments: argparse.Namespace) -> Result:
    """Makes videos, judges them and shows the scores, as far as was asked for.

    Raises:
        ValueError: In one sentence, what is wrong; before any long work.
    """
    check_combination(arguments)
    if arguments.results is not None:
        return only_read(arguments)
    request, phases = prepare(arguments), Phases()
    folder = request.run.videos
    if not arguments.no_generate:
        folder.mkdir(parents=True, exist_ok=True)
    num_made, system = make_or_check(arguments, request, phases)
    made = {"folder": str(folder), "made": num_made, "kept": len(request.videos) - num_made}
    lines = [f"videos in {folder}: {num_made} made, {made['kept']} were there"]
    if not request.can_run:
        commands = show_commands(request)
        lines += ["to judge them, where `python` is that of VBench's environment:", *commands]
        lines.append(f"then: flashvideo evaluate vbench --results {request.run.output}")
        data = {"videos": made, "commands": commands, "seconds": phases.as_data()}
        return Result(data=data, text="\n".join(lines))
    with phases("vbench"):
        judge(arguments, request)
    table = make_table(request, arguments.name or system or "videos")
    written = write_table(arguments.output, table)
    lines += [table.as_text(), *(f"wrote {path}" for path in written), phases.as_text()]
    data = {"videos": made, **table.as_data(), "output": [str(path) for path in written]}
    return Result(data={**data, "seconds": phases.as_data()}, text="\n".join(lines))


def check_combination(arguments: argparse.Namespace) -> None:
    """Checks the options against one another.

    Raises:
        UsageError: If two contradict, or one is missing.
    """
    shared.check_portrait(arguments)
    if arguments.results is not None:
        for name in ("vbench_python", "long", "info", "long_prompts", "dimensions", "no_generate"):
            if getattr(arguments, name):
                option = "--" + name.replace("_", "-")
                raise UsageError(
                    f"--results only reads what VBench has written, and {option} is for its run; drop one"
                )
        return
    if arguments.output is None:
        raise UsageError("evaluate vbench needs -o FOLDER, or --results DIR to read results")
    if arguments.info is None and arguments.long is None and arguments.vbench_python is None:
        raise UsageError(
            "evaluate vbench needs VBench's list of prompts: --info VBench_full_info.json, or --vbench-python PATH or "
            "--long DIR, which have it"
        )
    if arguments.flicker_samples is not None and arguments.flicker_samples < arguments.samples:
        raise UsageError(
            f"--flicker-samples must be at least --samples, {arguments.samples}, got {arguments.flicker_samples}"
        )


def prepare(arguments: argparse.Namespace) -> Request:
    """Finds VBench and its list, and plans the videos.

    Raises:
        ValueError: In one sentence, what is wrong.
    """
    from flashvideo.evaluation import vbench_prompts as prompts
    from flashvideo.evaluation.vbench import DIMENSIONS
    from flashvideo.evaluation.vbench_run import VBenchRun, find_vbench

    check_folder(arguments.output)
    for path, _ in arguments.loras:
        check_input(path)
    repository = None if arguments.long is None else arguments.long.resolve()
    if repository is not None and not (repository / "vbench2_beta_long" / "eval_long.py").is_file():
        raise ValueError(
            f"{arguments.long} has no vbench2_beta_long/eval_long.py; expected a clone of VBench's repository"
        )
    python = None if arguments.vbench_python is None else absolute_program(arguments.vbench_python)
    found = None if python is None else find_vbench(python)
    info = arguments.info
    if info is None:
        info = found.info if found is not None else None
        info = info if repository is None else repository / "vbench" / prompts.INFO_NAME
    assert info is not None
    entries = prompts.read_info(info)
    if arguments.long_prompts is not None:
        entries = prompts.with_long_prompts(entries, arguments.long_prompts)
    names = arguments.dimensions or [known.name for known in DIMENSIONS]
    fewer = arguments.samples < prompts.STANDARD_SAMPLES
    sampling = prompts.Sampling(
        samples=arguments.samples,
        flicker_samples=arguments.flicker_samples
        or (arguments.samples if fewer else prompts.FLICKER_SAMPLES),
    )
    output = arguments.output.resolve()
    return Request(
        run=VBenchRun(
            python=python or "python",
            videos=output / "videos",
            info=info.resolve(),
            output=output / ("vbench" if repository is None else "vbench_long"),
            repository=repository,
            version="" if found is None else found.version,
        ),
        can_run=found is not None,
        dimensions=tuple(known.name for known in DIMENSIONS if known.name in names),
        entries=entries,
        sampling=sampling,
        videos=prompts.plan_videos(prompts.choose_entries(entries, names), sampling, seed=arguments.seed),
    )


def absolute_program(name: str) -> str:
    """Returns where a program lies, whatever folder it is started from; an environment's link is not followed."""
    found = shutil.which(name)
    return name if found is None else os.path.abspath(found)


def make_or_check(arguments: argparse.Namespace, request: Request, phases: Phases) -> tuple[int, str | None]:
    """Makes the videos that are missing, or with `--no-generate` checks those that are there.

    Returns:
        How many were made; the name of the system.

    Raises:
        ValueError: If videos are missing, or made with different settings.
    """
    from flashvideo.cli.vbench_videos import check_all_alike, make_videos, tells_capitals_apart
    from flashvideo.evaluation.vbench_prompts import check_distinct_names

    folder = request.run.videos
    if arguments.no_generate:
        missing = [video.name for video in request.videos if not (folder / video.name).is_file()]
        if missing:
            raise ValueError(
                f"{folder} lacks {len(missing)} of {len(request.videos)} videos, first {missing[0]}; add them, or ask "
                "for fewer with --dimensions, --samples or --flicker-samples"
            )
        return 0, check_all_alike([folder / video.name for video in request.videos])
    check_distinct_names(request.videos, case_matters=tells_capitals_apart(folder))
    with use_threads(arguments.threads):
        return make_videos(arguments, request.videos, folder, phases), model_label(arguments.model)


def ready_run(request: Request) -> tuple[VBenchRun, str]:
    """Returns how VBench is run, now that the videos are there, and what their set is called.

    Raises:
        ValueError: If there is more than videos in their folder.
    """
    import dataclasses

    from flashvideo.evaluation.vbench_run import check_only_videos, digest_videos, link_clips

    check_only_videos(request.run.videos)
    digest = digest_videos(request.run.videos)
    if request.run.repository is None:
        return request.run, digest
    return dataclasses.replace(request.run, videos=link_clips(request.run, digest)), digest


def show_commands(request: Request) -> list[str]:
    """Returns the command lines that judge the videos."""
    from flashvideo.evaluation.vbench_run import command_lines, order_of_work

    run, _ = ready_run(request)
    return [line for name in order_of_work(request.dimensions) for line in command_lines(run, name)]


def judge(arguments: argparse.Namespace, request: Request) -> None:
    """Runs VBench, dimension after dimension.

    Raises:
        ValueError: If it fails.
    """
    from tqdm import tqdm

    from flashvideo.evaluation.vbench_run import order_of_work, run_dimension

    run, digest = ready_run(request)
    shown = progress_is_shown(arguments.progress)
    with tqdm(total=len(request.dimensions), unit="dimension", disable=not shown, file=sys.stderr) as bar:
        for name in order_of_work(request.dimensions):
            bar.set_description(name)
            run_dimension(run, name, digest)
            bar.update()


def make_table(request: Request, system: str) -> VBenchTable:
    """Returns the scores of the dimensions that were asked for."""
    from flashvideo.evaluation.vbench_prompts import not_comparable
    from flashvideo.evaluation.vbench_results import VBenchTable, read_results

    scores: dict[str, float] = {}
    for name in request.dimensions:
        scores |= read_results(request.run.folder(name))
    return VBenchTable(
        system=system,
        scores={name: scores[name] for name in request.dimensions},
        is_long=request.run.repository is not None,
        reservations=not_comparable(request.entries, request.sampling),
    )


def only_read(arguments: argparse.Namespace) -> Result:
    """Shows results that are there.

    Raises:
        ValueError: If there are none.
    """
    from flashvideo.evaluation.vbench_results import RESULTS_PATTERN, VBenchTable, read_results

    scores = read_results(arguments.results)
    if not scores:
        raise ValueError(f"{arguments.results} has no results of VBench, expected files {RESULTS_PATTERN}")
    system = arguments.name or arguments.results.resolve().name
    table = VBenchTable(system=system, scores=scores, reservations=None)
    written: Sequence[Path] = ()
    if arguments.output is not None:
        check_folder(arguments.output)
        arguments.output.mkdir(parents=True, exist_ok=True)
        written = write_table(arguments.output, table)
    lines = [table.as_text(), *(f"wrote {path}" for path in written)]
    data: dict[str, Any] = {**table.as_data(), "output": [str(path) for path in written]}
    return Result(data=data, text="\n".join(lines))


def write_table(folder: Path, table: VBenchTable) -> list[Path]:
    """Writes `vbench.json` and `vbench.md`; returns their paths."""
    contents = {
        "vbench.json": json.dumps(table.as_data(), indent=1, ensure_ascii=False) + "\n",
        "vbench.md": table.as_markdown(),
    }
    for name, text in contents.items():
        temporary = folder / f".{name}.partial"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(folder / name)
    return [folder / name for name in contents]
