"""`flashvideo bench`: how fast each phase of a model is on this machine, beside diffusers' own classes."""

from __future__ import annotations

import argparse
import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashvideo.cli import arguments as shared
from flashvideo.cli.arguments import UsageError
from flashvideo.cli.files import check_output
from flashvideo.cli.messages import progress_is_shown
from flashvideo.cli.model import quiet_libraries, use_threads
from flashvideo.cli.plan import read_configs
from flashvideo.cli.results import Result
from flashvideo.pipelines.sizes import named_size
from flashvideo.presets import FLASHVIDEO, NANO

if TYPE_CHECKING:
    import torch

    from flashvideo.evaluation.bench.rates import Rates
    from flashvideo.evaluation.bench.running import Row
    from flashvideo.pipelines.two_stage import FlashVideoPipeline

logger = logging.getLogger(__name__)

_PHASES = ("text", "stage1", "stage1_decode", "stage2_encode", "stage2", "stage2_decode", "whole")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "bench",
        help="measure each phase of a model on this machine",
        description="Measure speed and memory of each phase of a model on this machine, beside the plainest "
        "implementation of the same computation, diffusers' and transformers' own classes, in the same run, by turns. "
        "In float32 and in what a pipeline takes here by itself. The machine should have nothing else to do.",
    )
    model = parser.add_mutually_exclusive_group()
    model.add_argument(
        "--model",
        default=NANO.name,
        metavar="NAME|DIR|REPO",
        help="the model, as in `generate` (default: %(default)s)",
    )
    model.add_argument(
        "--random",
        metavar="NAME|DIR",
        help="random weights in the shape of this model, which is not loaded: its folder, or "
        f"{FLASHVIDEO.name}; speed and memory do not depend on weights",
    )
    shared.add_reference_size(parser)
    parser.add_argument(
        "--frames", type=shared.whole_number(), metavar="N", help="number of frames (default: the model's)"
    )
    parser.add_argument(
        "--repeats",
        type=shared.whole_number(least=2),
        default=5,
        metavar="N",
        help="repetitions of each phase on each side, after two that do not count (default: %(default)s)",
    )
    parser.add_argument(
        "--phases", nargs="+", choices=_PHASES, default=_PHASES, help="which phases (default: all of them)"
    )
    shared.add_device(parser)
    parser.add_argument(
        "--dtype",
        default="auto",
        metavar="TYPE",
        help="float32, bfloat16 or float16 alone (default: float32, and what a pipeline takes here by itself)",
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.json", help="keep the figures")
    parser.add_argument(
        "--compare",
        type=Path,
        metavar="OLD.json",
        help="show what has changed since these figures, of the same machine, model and size",
    )
    parser.add_argument(
        "--force", action="store_true", help="compare with another machine, model or size all the same"
    )
    shared.add_progress(parser)
    shared.add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> Result:
    """Measures.

    Raises:
        ValueError: In one sentence, what is wrong.
        KeyboardInterrupt: On Ctrl-C, saying what is kept.
    """
    from flashvideo.evaluation.bench.report import (
        as_comparison_table,
        as_table,
        check_comparable,
        check_phases,
        compare,
        read_record,
    )
    from flashvideo.evaluation.records import write_json

    shared.check_portrait(arguments)
    if arguments.force and arguments.compare is None:
        raise UsageError("--force is for --compare, which is not given; drop it")
    if arguments.output is not None:
        check_output(arguments.output, (".json",))
    before = None if arguments.compare is None else read_record(arguments.compare)
    if before is not None:
        check_phases(arguments.phases, before)
    with use_threads(arguments.threads):
        subject = _subject(arguments)
        if before is not None and not arguments.force:
            check_comparable(subject, before)  # before the long work
        record = _measure(arguments, subject)
    if arguments.output is not None:
        write_json(arguments.output, record)
    text, data = as_table(record), record
    if before is not None:
        changes = compare(record, before)
        data = {**record, "compared": changes}
        text += "\n\n" + as_comparison_table(changes, before)
    return Result(data=data, text=text)


def _subject(arguments: argparse.Namespace) -> dict[str, Any]:
    """What is to be measured, and where: what two files must have in common."""
    from flashvideo.evaluation.machine import describe_machine
    from flashvideo.pipelines.devices import choose_device
    from flashvideo.pipelines.folders import model_folder
    from flashvideo.pipelines.footprint import ModelConfigs
    from flashvideo.pipelines.inputs import or_default
    from flashvideo.pipelines.loading import choose_dtype

    device = choose_device(arguments.device)
    if arguments.random is not None:
        configs = read_configs(arguments.random, command="bench --random")
    else:
        configs = ModelConfigs.read(model_folder(arguments.model, dtype=choose_dtype("auto", device)))
    height, width = named_size(arguments.size, portrait=arguments.portrait, preset=configs.preset)
    return {
        "model": configs.preset.name,
        "weights": "trained" if arguments.random is None else "random",
        "size": {"height": height, "width": width},
        "num_frames": or_default(arguments.frames, configs.preset.stage1.num_frames),
        "machine": describe_machine(str(device)),
    }


def _measure(arguments: argparse.Namespace, subject: dict[str, Any]) -> dict[str, Any]:
    """Measures all dtypes; what is done when it is cut short is written, marked as incomplete."""
    import torch

    from flashvideo.evaluation.bench.report import make_record
    from flashvideo.evaluation.machine import describe_software, is_busy, load_average
    from flashvideo.evaluation.records import write_json
    from flashvideo.pipelines.loading import choose_dtype

    device = torch.device(subject["machine"]["device"])
    load = load_average()
    if is_busy(load):
        logger.warning(
            "the machine is busy, with a load of %s on %d cores: times are too long, and their ratios rough",
            load,
            subject["machine"]["processor"]["cores"],
        )
    picked = choose_dtype("auto", device)
    size = (subject["size"]["height"], subject["size"]["width"])
    rates: dict[str, Rates] = {}
    rows: list[Row] = []
    record = functools.partial(
        make_record,
        **{**subject, "size": size},
        repeats=arguments.repeats,
        software=describe_software(),
        load_average=load,
        default_dtype=str(picked).removeprefix("torch."),
        rates=rates,
        rows=rows,
    )
    dtypes = (
        dict.fromkeys((torch.float32, picked))
        if arguments.dtype == "auto"
        else (choose_dtype(arguments.dtype, device),)
    )
    try:
        for dtype in dtypes:
            _measure_dtype(arguments, subject, device, dtype, rates=rates, rows=rows)
    except BaseException as error:
        if arguments.output is None or not rows:
            raise
        write_json(arguments.output, record(is_complete=False))
        kept = f"{len(rows)} finished rows are kept in {arguments.output}, which is marked as incomplete"
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"interrupted; {kept}") from None
        logger.warning("%s", kept)
        raise
    return record()


def _measure_dtype(
    arguments: argparse.Namespace,
    subject: dict[str, Any],
    device: torch.device,
    dtype: torch.dtype,
    *,
    rates: dict[str, Rates],
    rows: list[Row],
) -> None:
    """Adds the rates and rows of one dtype as they come."""
    from flashvideo.evaluation.bench.running import bench

    name = str(dtype).removeprefix("torch.")
    pipeline = _open(arguments, device, dtype)
    with _progress(name, len(arguments.phases), shown=progress_is_shown(arguments.progress)) as progress:
        rates[name], found = bench(
            pipeline,
            size=(subject["size"]["height"], subject["size"]["width"]),
            num_frames=subject["num_frames"],
            repeats=arguments.repeats,
            phases=arguments.phases,
            progress=progress,
        )
        for row in found:
            rows.append(row)


def _open(arguments: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> FlashVideoPipeline:
    """The model with all of its networks on the device, as the reference needs them."""
    from flashvideo.evaluation.phases import random_pipeline
    from flashvideo.pipelines.folders import model_folder
    from flashvideo.pipelines.loading import choose_dtype
    from flashvideo.pipelines.two_stage import FlashVideoPipeline

    with quiet_libraries():
        if arguments.random is not None:
            pipeline = random_pipeline(read_configs(arguments.random, command="bench --random"), dtype)
        else:
            # One folder for all dtypes: what has to be converted is converted once.
            folder = model_folder(arguments.model, dtype=choose_dtype("auto", device))
            pipeline = FlashVideoPipeline.from_pretrained(folder, dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


@contextmanager
def _progress(dtype: str, num_phases: int, *, shown: bool) -> Iterator[Any]:
    """A bar over the phases; yields what is to be told of each of them, when it begins."""
    import sys

    from tqdm import tqdm

    with tqdm(total=num_phases, disable=not shown, file=sys.stderr, desc=dtype) as bar:
        started = False

        def tell(phase: str) -> None:
            nonlocal started
            bar.set_postfix_str(phase)
            if phase in _PHASES:
                if started:
                    bar.update()
                started = True

        yield tell
        bar.update(num_phases - bar.n)
