"""`flashvideo evaluate`: score folders of videos, of any systems, and compare them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from flashvideo.cli import arguments as shared
from flashvideo.cli.arguments import UsageError
from flashvideo.cli.files import check_folder
from flashvideo.cli.messages import progress_is_shown
from flashvideo.cli.results import Phases, Result

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flashvideo.evaluation.measures import Column, Measure
    from flashvideo.evaluation.scoring import Known, System

NUM_PLAYERS = 6


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "evaluate",
        help="score folders of videos and compare them",
        description="Score videos of any systems, a folder each, with the same measures, and compare them with the "
        "first. Videos are video files, pictures, or folders of pictures; the same name means the same video in every "
        "folder. Finished videos are kept: the same command continues. For VBench see `flashvideo evaluate vbench "
        "--help`.",
    )
    parser.add_argument(
        "systems",
        nargs="+",
        metavar="[NAME=]FOLDER",
        help="videos of one system, made with one setting; called by the folder's name unless given another",
    )
    parser.add_argument(
        "--output",
        "-o",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder for report.html, report.md, report.json and the scores of each video",
    )
    parser.add_argument(
        "--references", type=Path, metavar="DIR", help="the truth of each video, of the same size and length"
    )
    parser.add_argument(
        "--inputs", type=Path, metavar="DIR", help="what each video was made from, such as its preview"
    )
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="prompt of each video: CSV or JSON Lines with name and prompt, or JSON of prompts by name (default: what "
        "the videos say themselves)",
    )
    parser.add_argument(
        "--niqe-parameters",
        type=Path,
        metavar="FILE",
        help="NumPy archive with the model of pristine photographs (default: the package's own)",
    )
    parser.add_argument(
        "--upscaler",
        action="append",
        default=[],
        metavar="METHOD",
        help="one system more, made from --inputs: bilinear, bicubic, lanczos, or weights that spandrel reads; "
        "may be repeated",
    )
    parser.add_argument(
        "--quoted",
        action="append",
        default=[],
        metavar="TABLE",
        help="show published figures beside, marked as quoted: enhancers or vbench_long; may be repeated",
    )
    parser.add_argument(
        "--players",
        type=shared.whole_number(least=0),
        default=NUM_PLAYERS,
        metavar="N",
        help="so many videos are put into report.html, side by side (default: %(default)s)",
    )
    _add_learned(parser)
    shared.add_device(parser)
    shared.add_progress(parser)
    shared.add_common(parser)
    parser.set_defaults(run=run)


def _add_learned(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("metrics that networks learned; not for commercial use")
    group.add_argument(
        "--learned",
        action="append",
        default=[],
        metavar="NAME",
        help="a metric of pyiqa, such as musiq, maniqa, clipiqa, or with --references lpips, dists; may be repeated",
    )
    group.add_argument(
        "--learned-weights",
        type=Path,
        metavar="DIR",
        help="folder with NAME.pth for each of them (default: pyiqa downloads them)",
    )
    group.add_argument("--dover-python", type=Path, metavar="FILE", help="python of DOVER's own environment")
    group.add_argument("--dover-repository", type=Path, metavar="DIR", help="folder of DOVER's repository")


def run(arguments: argparse.Namespace) -> Result:
    """Scores the videos and writes the report.

    Raises:
        UsageError: If two systems have one name, or options lack one another.
        ValueError: If a video or what belongs to it is missing or does not fit.
    """
    from flashvideo.cli.model import use_threads

    check_combination(arguments)
    check_folder(arguments.output)
    with use_threads(arguments.threads):
        return _evaluate(arguments)


def check_combination(arguments: argparse.Namespace) -> None:
    """Checks the options against one another.

    Raises:
        UsageError: If one lacks another, or is there twice.
    """
    from flashvideo.evaluation.learned import NEED_REFERENCE
    from flashvideo.evaluation.scoring import upscaler_label

    if (arguments.dover_python is None) != (arguments.dover_repository is None):
        raise UsageError("DOVER needs both --dover-python and --dover-repository; give the other one too")
    if arguments.upscaler and arguments.inputs is None:
        raise UsageError("--upscaler enlarges the inputs of the videos; add --inputs")
    if arguments.learned_weights is not None and not arguments.learned:
        raise UsageError("--learned-weights are those of --learned; name the metrics with that")
    for name in arguments.learned:
        if name in NEED_REFERENCE and arguments.references is None:
            raise UsageError(f"--learned {name} compares with the truth; add --references")
    given = {"--learned": arguments.learned, "--quoted": arguments.quoted}
    given["--upscaler"] = [upscaler_label(method) for method in arguments.upscaler]
    for option, values in given.items():
        if len(set(values)) < len(values):
            raise UsageError(f"{option} must have each value once, got {', '.join(values)}")


def _evaluate(arguments: argparse.Namespace) -> Result:
    from flashvideo.evaluation.dover import COLUMNS, dover_script
    from flashvideo.evaluation.folders import read_prompts
    from flashvideo.evaluation.paper import quoted_rows
    from flashvideo.evaluation.records import write_json, write_text
    from flashvideo.evaluation.report.comparison import as_markdown, build_report
    from flashvideo.evaluation.report.html import as_html
    from flashvideo.evaluation.scoring import (
        Known,
        check_video_files,
        merged,
        score_systems,
        score_with_dover,
        upscaler_label,
    )
    from flashvideo.pipelines.devices import choose_device

    phases, output = Phases(), arguments.output
    systems = read_systems(arguments.systems)
    check_labels([system.label for system in systems] + [upscaler_label(one) for one in arguments.upscaler])
    quoted = [row for table in arguments.quoted for row in quoted_rows(table)]
    known = Known.read(
        systems,
        references=arguments.references,
        sources=arguments.inputs,
        prompts=None if arguments.prompts is None else read_prompts(arguments.prompts),
    )
    if arguments.dover_python is not None:
        dover_script(arguments.dover_repository)
        for system in systems:
            check_video_files("DOVER", system.label, system.videos.values())
    device = str(choose_device(arguments.device))
    measures = choose_measures(arguments, device)
    output.mkdir(parents=True, exist_ok=True)
    if arguments.upscaler:
        with phases("upscale"):
            systems += make_upscaled(arguments, systems[0], known, device)
    with phases("score"):
        scores = score_systems(
            systems,
            known,
            measures,
            output / "scores.jsonl",
            progress=progress_is_shown(arguments.progress),
        )
    columns: list[Column] = [*measures]
    if arguments.dover_python is not None:
        with phases("dover"):
            more = score_with_dover(
                systems,
                output / "dover.jsonl",
                python=arguments.dover_python,
                repository=arguments.dover_repository,
                device=device,
            )
        scores, columns = merged(scores, more), [*columns, *COLUMNS]
    with phases("report"):
        report = build_report(systems, scores, columns, quoted)
        write_json(output / "report.json", report)
        write_text(output / "report.md", as_markdown(report))
        write_text(
            output / "report.html",
            as_html(report, systems, scores, known, num_players=arguments.players),
        )
    text = f"{as_markdown(report)}\nwrote {output / 'report.html'}, report.md and report.json beside it"
    data = {"output": str(output), "report": report, "seconds": phases.as_data()}
    return Result(data=data, text=f"{text}\n{phases.as_text()}")


def read_systems(words: list[str]) -> list[System]:
    """Finds the videos of each `[NAME=]FOLDER`.

    Raises:
        ValueError: If one is no folder of videos of one setting.
    """
    from flashvideo.evaluation.scoring import System

    systems = []
    for word in words:
        name, equals, folder = word.partition("=")
        given = bool(equals) and not Path(word).exists()
        systems.append(System.read(Path(folder if given else word), name if given else None))
    return systems


def check_labels(labels: Sequence[str]) -> None:
    """Checks that systems can be told apart.

    Raises:
        UsageError: If two have one name.
    """
    if len(set(labels)) < len(labels):
        raise UsageError(f"systems must have different names, got {', '.join(labels)}; write NAME=FOLDER")


def make_upscaled(arguments: argparse.Namespace, system: System, known: Known, device: str) -> list[System]:
    """Makes the systems of `--upscaler`, in the output's folder `upscaled`."""
    from flashvideo.evaluation.scoring import upscale_inputs, upscaler_label

    folder = arguments.output / "upscaled"
    return [
        upscale_inputs(system, known, method, folder / upscaler_label(method), device=device)
        for method in arguments.upscaler
    ]


def choose_measures(arguments: argparse.Namespace, device: str) -> list[Measure]:
    """Returns the measures that were asked for.

    Raises:
        ImportError: If pyiqa is needed and missing.
        ValueError: If parameters or weights of one cannot be read.
    """
    from flashvideo.evaluation.folders import content_digest
    from flashvideo.evaluation.measures import available_measures, niqe_measure
    from flashvideo.evaluation.metrics import Pristine

    measures = list(available_measures())
    if (path := arguments.niqe_parameters) is not None:
        own = niqe_measure(Pristine.read(path), variant=f"parameters {path.name} {content_digest(path)}")
        measures = [own if measure.name == own.name else measure for measure in measures]
    if arguments.learned:
        from flashvideo.evaluation.learned import learned_measures

        measures += learned_measures(arguments.learned, device, weights=arguments.learned_weights)
    return measures
