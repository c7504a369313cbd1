"""`flashvideo sweep`: a grid of settings, each scored and costed on the same scenes, prompts or videos."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from flashvideo.cli import arguments as shared
from flashvideo.cli.arguments import UsageError
from flashvideo.cli.files import check_folder
from flashvideo.cli.messages import StepProgress, progress_is_shown
from flashvideo.cli.model import model_label, open_pipeline, use_threads
from flashvideo.cli.results import Phases, Result

if TYPE_CHECKING:
    from flashvideo.evaluation.measures import Measure
    from flashvideo.evaluation.sweep.files import SweepFolder
    from flashvideo.evaluation.sweep.items import Item, Kind
    from flashvideo.evaluation.sweep.planning import Sweep
    from flashvideo.pipelines.two_stage import FlashVideoPipeline

T = TypeVar("T")

STAGE1_OPTIONS = ("steps", "guidance")
STAGE2_OPTIONS = ("detail_steps", "noise_step", "shift", "detail_guidance")
DEFAULT_SEEDS = (0,)
FACTOR = re.compile(r"x[1-9]\d?", re.IGNORECASE)
"""A size that is relative to a video's own."""


def values(convert: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    """Returns a converter of text to comma-separated values, each of them once."""

    def split(text: str) -> tuple[T, ...]:
        found = tuple(convert(part.strip()) for part in text.split(","))
        if len(set(found)) < len(found):
            raise argparse.ArgumentTypeError(f"must have each value once, got {text!r}")
        return found

    return split


def size_or_factor(text: str) -> str:
    """Takes a size as `arguments.size` does, or how many times the sides of a video become as long.

    >>> size_or_factor("X2"), size_or_factor("640x384")
    ('x2', '640x384')
    """
    return text.lower() if FACTOR.fullmatch(text) else shared.size(text)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "sweep",
        help="try settings against one another, in quality and cost",
        description="Try every setting of a grid on the same scenes, prompts or videos: scores, costs, plots.",
        epilog="Settings take comma-separated values and are the model's own where not given. A sweep that was stopped "
        "goes on with the same command; more values, seeds and items may be added to the same folder.",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        required=True,
        help="folder of the sweep, new or to go on with",
    )
    over = parser.add_argument_group("what to try them on, one of")
    over.add_argument(
        "--scenes",
        type=shared.whole_number(),
        metavar="N",
        help="N scenes of the procedural world that no model was trained on: exact small rendering in, exact rendering "
        "in full size as reference",
    )
    over.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="prompts: .txt with one in a line, or .csv or .jsonl with the columns prompt and, as wanted, name; with "
        "--inputs the prompts of its videos by their names",
    )
    over.add_argument("--inputs", type=Path, metavar="DIR", help="videos to enhance")
    over.add_argument(
        "--references",
        type=Path,
        metavar="DIR",
        help="what should come out of --inputs, under the same names",
    )
    _add_grid(parser)
    parser.add_argument("--preview-only", action="store_true", help="stop after the preview, and score that")
    parser.add_argument(
        "--frames", type=shared.whole_number(), metavar="N", help="frames of scenes and of previews"
    )
    shared.add_consistency(parser)
    parser.add_argument(
        "--measures",
        type=values(str),
        metavar="NAMES",
        help="comma-separated names of what to score with (default: all that apply)",
    )
    parser.add_argument(
        "--save-videos",
        action="store_true",
        help="keep the results of new runs, in DIR/videos/SETTING, such as evaluate takes",
    )
    shared.add_model_options(parser)
    shared.add_progress(parser)
    shared.add_common(parser)
    parser.set_defaults(run=run, text_cache=None)


def _add_grid(parser: argparse.ArgumentParser) -> None:
    grid = parser.add_argument_group("grid; each takes comma-separated values")
    count, scale = values(shared.whole_number()), values(shared.number(least=1))
    grid.add_argument(
        "--size",
        type=values(size_or_factor),
        metavar="SIZES",
        help="as in generate and enhance; for --inputs also x2 and the like, times the sides of each video",
    )
    grid.add_argument(
        "--seed",
        type=values(shared.whole_number(least=0, most=shared.MAX_SEED)),
        default=DEFAULT_SEEDS,
        metavar="SEEDS",
        help="seeds, over which is averaged (default: 0)",
    )
    grid.add_argument("--steps", type=count, metavar="STEPS", help="steps of the preview")
    grid.add_argument("--guidance", type=scale, metavar="SCALES", help="guidance scales of the preview")
    grid.add_argument("--detail-steps", type=count, metavar="STEPS", help="steps of the detail")
    grid.add_argument(
        "--noise-step",
        type=values(shared.whole_number(least=0, most=999)),
        metavar="STEPS",
        help="0 to 999: how much of the detail is invented anew",
    )
    grid.add_argument(
        "--shift",
        type=values(shared.number(above=0)),
        metavar="SHIFTS",
        help="time shifts of the detail's steps",
    )
    grid.add_argument("--detail-guidance", type=scale, metavar="SCALES", help="guidance scales of the detail")
    grid.add_argument(
        "--one-at-a-time",
        action="store_true",
        help="vary one setting at a time around the first values, instead of all with all",
    )


def run(arguments: argparse.Namespace) -> Result:
    """Does what is left of a sweep, and sums all of it up.

    Raises:
        ValueError: In one sentence, what is wrong; before any long work.
    """
    from flashvideo.evaluation.sweep.report import write_report

    check_combination(arguments)
    check_folder(arguments.output)
    phases = Phases()
    with use_threads(arguments.threads), ExitStack() as stack:
        measures = choose_measures(arguments.measures)
        items = read_items(arguments)
        with phases("load"):
            pipeline = open_pipeline(arguments)
        with phases("check"):
            sweep = plan_sweep(arguments, pipeline, items, measures)
            folder = stack.enter_context(open_sweep(arguments, pipeline, sweep))
        num_before = len(folder.runs)
        with phases("sweep"):
            run_all(arguments, pipeline, sweep, folder)
        with phases("sum up"):
            plots, num_settings = write_report(folder, measures)
    num_runs = len(folder.runs)
    lines = [
        f"wrote {arguments.output / 'summary.md'}: {num_settings} settings, {num_runs} runs, "
        f"{num_runs - num_before} of them new",
        *(f"wrote {path}" for path in plots),
        phases.as_text(),
    ]
    data = {
        "output": str(arguments.output),
        "settings": num_settings,
        "runs": num_runs,
        "new_runs": num_runs - num_before,
        "plots": [str(path) for path in plots],
        "seconds": phases.as_data(),
    }
    return Result(data=data, text="\n".join(lines))


def check_combination(arguments: argparse.Namespace) -> None:
    """Checks the options against one another.

    Raises:
        UsageError: If two contradict, or one is missing.
    """
    if arguments.scenes is None and arguments.prompts is None and arguments.inputs is None:
        raise UsageError("sweep needs one of --scenes N, --prompts FILE and --inputs DIR to try settings on")
    if arguments.scenes is not None and (arguments.prompts or arguments.inputs):
        other = "--prompts" if arguments.prompts else "--inputs"
        raise UsageError(f"--scenes and {other} are both what settings are tried on; drop one of the two")
    if arguments.references is not None and arguments.inputs is None:
        raise UsageError("--references is for --inputs; add that")
    if arguments.inputs is not None:
        for name in ("preview_only", "frames"):
            if getattr(arguments, name):
                raise UsageError(
                    f"{_option(name)} is of previews, and --inputs has none; drop one of the two"
                )
    else:
        for size in filter(FACTOR.fullmatch, arguments.size or ()):
            raise UsageError(f"--size {size} is relative to a video, which --inputs gives; give WIDTHxHEIGHT")
    if arguments.preview_only:
        for name in (*STAGE2_OPTIONS, "consistency"):
            if getattr(arguments, name) is not None:
                raise UsageError(
                    f"{_option(name)} is of the detail, which --preview-only leaves out; drop one"
                )
    elif arguments.prompts is None or arguments.inputs is not None:
        over = "--scenes" if arguments.inputs is None else "--inputs"
        for name in STAGE1_OPTIONS:
            if getattr(arguments, name) is not None:
                raise UsageError(
                    f"{_option(name)} is of the preview, and {over} starts behind it; use --detail-{name} or "
                    + ("--preview-only" if over == "--scenes" else "--prompts alone")
                )


def choose_measures(names: Sequence[str] | None) -> tuple[Measure, ...]:
    """Returns the measures of some names, all if None.

    Raises:
        UsageError: If there is none of a name.
    """
    from flashvideo.evaluation.measures import available_measures

    if names is None:
        return available_measures()
    known = [measure.name for measure in available_measures()]
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"--measures must be among {', '.join(known)}, got {unknown[0]!r}")
    return tuple(measure for measure in available_measures() if measure.name in names)


def read_items(arguments: argparse.Namespace) -> list[Item]:
    """Returns what settings are tried on.

    Raises:
        ValueError: In one sentence, what is wrong with a file or folder.
    """
    from flashvideo.evaluation.folders import read_prompts
    from flashvideo.evaluation.sweep.items import input_items, prompt_items, scene_items

    if arguments.scenes is not None:
        return scene_items(arguments.scenes, preview_only=arguments.preview_only)
    if arguments.inputs is None:
        return prompt_items(arguments.prompts)
    prompts = None if arguments.prompts is None else read_prompts(arguments.prompts)
    items = input_items(arguments.inputs, references=arguments.references, prompts=prompts)
    if arguments.detail_guidance is not None:
        bare = [item.name for item in items if item.prompt is None]
        if bare:
            raise UsageError(
                f"--detail-guidance is towards prompts, and {bare[0]} has none; add --prompts FILE"
            )
    return items


def plan_sweep(
    arguments: argparse.Namespace,
    pipeline: FlashVideoPipeline,
    items: Sequence[Item],
    measures: tuple[Measure, ...],
) -> Sweep:
    """Completes the grid with the model's own settings, and checks all of it.

    Raises:
        ValueError: If the model cannot do what is asked for, or a measure that was asked for does not apply.
    """
    from flashvideo.evaluation.sweep.checking import check_measures, check_sweep
    from flashvideo.evaluation.sweep.grid import make_grid
    from flashvideo.evaluation.sweep.planning import Sweep, grid_values
    from flashvideo.pipelines.inputs import or_default
    from flashvideo.shapes import check_num_frames

    if not arguments.preview_only:
        pipeline.check_has_stage2()
    if arguments.frames is not None:
        check_num_frames(arguments.frames, vae_config=pipeline.vae.config)
    kind: Kind = (
        "scenes" if arguments.scenes is not None else "prompts" if arguments.inputs is None else "inputs"
    )
    chosen = grid_values(
        {name: getattr(arguments, name) for name in ("size", *STAGE1_OPTIONS, *STAGE2_OPTIONS)},
        pipeline,
        kind=kind,
        preview_only=arguments.preview_only,
        has_text=arguments.inputs is None or arguments.prompts is not None,
    )
    preset = pipeline.preset
    sweep = Sweep(
        kind=kind,
        items=tuple(items),
        seeds=arguments.seed,
        settings=make_grid(chosen, one_at_a_time=arguments.one_at_a_time),
        preview_only=arguments.preview_only,
        num_frames=None if kind == "inputs" else or_default(arguments.frames, preset.stage1.num_frames),
        consistency=None
        if arguments.preview_only
        else or_default(arguments.consistency, preset.stage2.consistency),
        measures=measures,
    )
    if arguments.measures is not None:
        check_measures(sweep)
    check_sweep(pipeline, sweep)
    return sweep


def open_sweep(
    arguments: argparse.Namespace, pipeline: FlashVideoPipeline, sweep: Sweep
) -> AbstractContextManager[SweepFolder]:
    """Opens the folder, new or to go on with.

    Raises:
        ValueError: If it holds something else.
    """
    from flashvideo.evaluation.sweep.files import open_folder
    from flashvideo.evaluation.sweep.planning import describe_conditions
    from flashvideo.pipelines.folders import model_folder
    from flashvideo.pipelines.loading import choose_dtype

    folder = model_folder(
        arguments.model,
        revision=arguments.revision,
        text_encoder=arguments.text_encoder,
        dtype=choose_dtype(arguments.dtype, pipeline.execution_device),
    )
    conditions = describe_conditions(
        pipeline, sweep, model=model_label(arguments.model), folder=folder, vram=arguments.vram
    )
    return open_folder(arguments.output, conditions, [item.as_dict() for item in sweep.items])


def run_all(
    arguments: argparse.Namespace, pipeline: FlashVideoPipeline, sweep: Sweep, folder: SweepFolder
) -> None:
    """Does the runs that are not there yet.

    Raises:
        KeyboardInterrupt: On Ctrl-C, saying what is kept.
    """
    from flashvideo.evaluation.sweep.running import run_sweep

    keys = list(sweep.run_keys())
    shown = progress_is_shown(arguments.progress)
    with StepProgress("sweep", len(keys), shown=shown, unit="run") as progress:
        progress.begin(len({run.key for run in folder.runs} & set(keys)))
        try:
            run_sweep(
                pipeline,
                sweep,
                folder,
                model=model_label(arguments.model),
                save_videos=arguments.save_videos,
                on_run=progress.reach,
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted; {len(folder.runs)} finished runs are kept in {arguments.output}, and the same command "
                "goes on from there"
            ) from None


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
