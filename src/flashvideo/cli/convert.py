"""`flashvideo convert`: the authors' released files to a model folder, and back."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashvideo.cli import arguments as shared
from flashvideo.cli.arguments import UsageError
from flashvideo.cli.messages import progress_is_shown
from flashvideo.cli.results import Phases, Result

if TYPE_CHECKING:
    from flashvideo.pipelines.released import ConversionReport, OnProgress

logger = logging.getLogger(__name__)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "convert",
        help="convert the authors' released weights to a model folder, or back",
        description="Convert the authors' released files (stage1.pt, stage2.pt, 3d-vae.pt) to a model folder, or back.",
    )
    parser.add_argument(
        "folder", type=Path, metavar="DIR", help="folder of the three files; with --back a model's"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="the folder to make; must not hold anything",
    )
    parser.add_argument(
        "--lora",
        choices=("merge", "keep"),
        help="add Stage I's LoRA to its weights, or keep it beside them as an adapter (default: merge)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="dtype of the weights (default: the files' own)",
    )
    parser.add_argument(
        "--text-encoder",
        type=Path,
        metavar="DIR",
        help="local folder of a CogVideoX model or of a T5, for the text encoder (default: none, and no prompts then)",
    )
    parser.add_argument(
        "--back",
        action="store_true",
        help="from a model folder to the three files, under the reference's names",
    )
    shared.add_progress(parser)
    shared.add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> Result:
    """Converts.

    Raises:
        UsageError: If an argument does not go with --back.
        ValueError: In one sentence, what is wrong with the files or the output.
    """
    forward_only = {
        "--lora": arguments.lora,
        "--dtype": arguments.dtype,
        "--text-encoder": arguments.text_encoder,
    }
    if arguments.back and (given := [name for name, value in forward_only.items() if value is not None]):
        raise UsageError(
            f"{', '.join(given)} cannot be given with --back, which writes what the folder holds"
        )

    phases = Phases()
    with phases("convert"), byte_progress(shown=progress_is_shown(arguments.progress)) as on_progress:
        report = _convert(arguments, on_progress)
    for part, keys in report.dropped.items():
        for key, reason in keys.items():
            logger.info("%s: left out %s: %s", part, key, reason)
    return Result(data=as_data(report, phases), text=as_text(report, phases))


def _convert(arguments: argparse.Namespace, on_progress: OnProgress) -> ConversionReport:
    from flashvideo.cli.model import quiet_libraries

    with quiet_libraries():
        if arguments.back:
            from flashvideo.pipelines.export import export_released

            return export_released(arguments.folder, arguments.output, on_progress=on_progress)
        from flashvideo.pipelines.loading import DTYPES
        from flashvideo.pipelines.released import ReleasedFiles, convert_released

        return convert_released(
            ReleasedFiles.find(arguments.folder),
            arguments.output,
            text_encoder=arguments.text_encoder,
            dtype=None if arguments.dtype is None else DTYPES[arguments.dtype],
            lora=arguments.lora or "merge",
            on_progress=on_progress,
        )


@contextmanager
def byte_progress(*, shown: bool) -> Iterator[OnProgress]:
    """A progress bar over bytes on stderr, named by the part that is being written."""
    from tqdm import tqdm

    with tqdm(unit="B", unit_scale=True, disable=not shown, file=sys.stderr) as bar:

        def show(part: str, done: int, total: int) -> None:
            bar.total = total
            bar.set_description(part, refresh=False)
            bar.update(done - bar.n)

        yield show


def as_data(report: ConversionReport, phases: Phases) -> dict[str, Any]:
    """Returns the report as plain values."""
    return {
        "output": str(report.output),
        "bytes": dict(report.num_bytes),
        "dropped": {part: dict(keys) for part, keys in report.dropped.items()},
        "notes": list(report.notes),
        "seconds": phases.as_data(),
    }


def as_text(report: ConversionReport, phases: Phases) -> str:
    """Returns the report in lines."""
    parts = ", ".join(f"{part} {num_bytes / 1e9:.2f}" for part, num_bytes in report.num_bytes.items())
    lines = [f"wrote {report.output}", f"GB: {parts}"]
    if report.num_dropped:
        keys = "1 key" if report.num_dropped == 1 else f"{report.num_dropped} keys"
        lines.append(f"left out {keys} that the model does not use (--verbose names them)")
    return "\n".join([*lines, *(f"note: {note}" for note in report.notes), phases.as_text()])
