"""`flashvideo evaluate vbench`: the videos that VBench wants, VBench itself in its own environment, and its scores."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashvideo.cli import arguments as shared
from flashvideo.cli.arguments import UsageError
from flashvideo.cli.files import check_folder, check_input
from flashvideo.cli.generate import add_sampling, add_stage1_parts
from flashvideo.cli.model import model_label, use_threads
from flashvideo.cli.results import Phases, Result
from flashvideo.cli.vbench_judging import Request, judge, make_table, show_commands, write_table

if TYPE_CHECKING:
    from flashvideo.evaluation.vbench.prompts import PlannedVideo

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
    from flashvideo.evaluation.vbench.totals import DIMENSIONS

    name, names = text.replace("_", " "), [known.name for known in DIMENSIONS]
    if name not in names:
        expected = ", ".join(known.replace(" ", "_") for known in names)
        raise argparse.ArgumentTypeError(f"must be one of {expected}, got {text!r}")
    return name


def run(arguments: argparse.Namespace) -> Result:
    """Makes videos, judges them and shows the scores, as far as was asked for.

    Raises:
        ValueError: In one sentence, what is wrong; before any long work.
    """
    check_combination(arguments)
    if arguments.results is not None:
        return only_read(arguments)
    request, phases = prepare(arguments), Phases()
    folder, videos = request.run.videos, request.planned()
    num_made, system = make_or_check(arguments, videos, folder, phases)
    made = {"folder": str(folder), "made": num_made, "kept": len(videos) - num_made}
    lines = [f"videos in {folder}: {num_made} made, {made['kept']} were there"]
    if not request.can_run:
        commands = show_commands(request)
        lines += ["to judge them, where `python` is that of VBench's environment:", *commands]
        read = ["flashvideo", "evaluate", "vbench", "--results", str(request.run.output)]
        lines.append(f"then: {shlex.join(read)}")
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
    from flashvideo.evaluation.vbench import prompts
    from flashvideo.evaluation.vbench.running import VBenchRun, find_vbench
    from flashvideo.evaluation.vbench.totals import DIMENSIONS

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
        seed=arguments.seed,
    )


def absolute_program(name: str) -> str:
    """Returns where a program lies, whatever folder it is started from; an environment's link is not followed."""
    found = shutil.which(name)
    return name if found is None else os.path.abspath(found)


def make_or_check(
    arguments: argparse.Namespace, videos: Sequence[PlannedVideo], folder: Path, phases: Phases
) -> tuple[int, str | None]:
    """Makes the videos that are missing, or with `--no-generate` checks those that are there.

    Returns:
        How many were made; the name of the system.

    Raises:
        ValueError: If videos are missing or too many, or made with different settings.
    """
    from flashvideo.cli.vbench_videos import (
        check_no_more,
        make_videos,
        tells_capitals_apart,
    )
    from flashvideo.evaluation.folders import VideoFile, check_one_setting
    from flashvideo.evaluation.vbench.prompts import check_distinct_names

    if arguments.no_generate:
        missing = [video.name for video in videos if not (folder / video.name).is_file()]
        if missing:
            raise ValueError(
                f"{folder} lacks {len(missing)} of {len(videos)} videos, first {missing[0]}; add them, or ask for "
                "fewer with --dimensions, --samples or --flicker-samples"
            )
        check_no_more(videos, folder)
        found = {video.name: VideoFile(name=video.name, paths=(folder / video.name,)) for video in videos}
        return 0, check_one_setting(found, folder).get("model")
    folder.mkdir(parents=True, exist_ok=True)
    check_no_more(videos, folder)
    check_distinct_names(videos, case_matters=tells_capitals_apart(folder))
    with use_threads(arguments.threads):
        return make_videos(arguments, videos, folder, phases), model_label(arguments.model)


def only_read(arguments: argparse.Namespace) -> Result:
    """Shows results that are there.

    Raises:
        ValueError: If there are none.
    """
    from flashvideo.evaluation.vbench.results import RESULTS_PATTERN, VBenchTable, read_results

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
