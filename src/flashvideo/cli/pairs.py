"""`flashvideo pairs`: what preference alignment learns from: samples of each prompt, scored, or videos of one's own."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from flashvideo.cli import arguments as shared
from flashvideo.cli.arguments import UsageError
from flashvideo.cli.files import check_folder
from flashvideo.cli.model import model_label, open_pipeline, use_threads
from flashvideo.cli.results import Phases, Result

if TYPE_CHECKING:
    from torch import Tensor

    from flashvideo.pipelines.two_stage import FlashVideoPipeline
    from flashvideo.training.pairs import Scorer

DEFAULT_CANDIDATES = 4
"""Samples of each prompt."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "pairs",
        help="sample and score a model's own videos, or encode pairs of yours, for preference alignment",
        description="Make several samples of each prompt and score them, or encode pairs of videos that you have: what "
        "a recipe of the task preference learns from. A run that was stopped goes on with the same command.",
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", required=True, help="folder of the candidates"
    )
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help=".txt with one in a line, or .csv or .jsonl with the column prompt",
    )
    parser.add_argument(
        "--scorer",
        metavar="NAME",
        help="a measure that 'flashvideo evaluate' has for videos alone or with their prompts, such as niqe or "
        "all_attributes; or module:function, from frames (F, 3, H, W) in [-1, 1] and the prompt to a number, higher "
        "for better",
    )
    parser.add_argument(
        "--table",
        type=Path,
        metavar="FILE",
        help="pairs of your own instead: .csv, .jsonl or .parquet with the columns prompt, better and worse, videos or "
        "pictures by their paths from the table's folder, and with --stage 2 low, the small one that both were "
        "enlarged from",
    )
    parser.add_argument(
        "--stage", type=int, choices=(1, 2), default=1, help="which stage is to learn (default: 1)"
    )
    parser.add_argument(
        "--candidates",
        type=shared.whole_number(least=2),
        metavar="N",
        help=f"samples of each prompt (default: {DEFAULT_CANDIDATES})",
    )
    shared.add_seed(parser, default=0)
    shared.add_model_options(parser)
    shared.add_common(parser)
    parser.set_defaults(run=run, text_cache=None)


def run(arguments: argparse.Namespace) -> Result:
    """Samples and scores, or encodes.

    Raises:
        ValueError: In one sentence, what is wrong with an argument.
    """
    _check_options(arguments)
    return _sample(arguments) if arguments.table is None else _encode(arguments)


def _check_options(arguments: argparse.Namespace) -> None:
    """Refuses options of samples beside a table, and neither.

    Raises:
        UsageError: If they contradict or lack one another.
    """
    given = {name: getattr(arguments, name) is not None for name in ("prompts", "scorer", "candidates")}
    given["seed"] = arguments.seed != 0
    if arguments.table is not None:
        for name in (name for name, is_given in given.items() if is_given):
            raise UsageError(
                f"--{name} is for samples, and --table has videos that are there; drop one of the two"
            )
        return
    for name in ("prompts", "scorer"):
        if not given[name]:
            raise UsageError(
                f"--{name} is missing; give --prompts and --scorer, or pairs of your own by --table"
            )


def _encode(arguments: argparse.Namespace) -> Result:
    """Encodes pairs of one's own."""
    from flashvideo.training.own_pairs import encode_own_pairs, read_own_pairs

    check_folder(arguments.output)
    stage = f"stage{arguments.stage}"
    pairs = read_own_pairs(arguments.table, stage=stage)
    phases = Phases()
    with use_threads(arguments.threads):
        with phases("load"):
            pipeline = open_pipeline(arguments, reads_text=False)
        with phases("encode"):
            files = encode_own_pairs(pipeline, pairs, arguments.output, stage=stage)
    data = {"output": str(arguments.output), "pairs": len(files), "seconds": phases.as_data()}
    return Result(data=data, text=f"wrote {arguments.output}: {len(files)} pairs\n{phases.as_text()}")


def _sample(arguments: argparse.Namespace) -> Result:
    """Samples and scores."""
    from flashvideo.evaluation.sweep.items import prompt_items
    from flashvideo.training.pairs import make_candidates, read_scores

    scorer = load_scorer(arguments.scorer)
    check_folder(arguments.output)
    prompts = [str(item.prompt) for item in prompt_items(arguments.prompts)]
    phases = Phases()
    with use_threads(arguments.threads):
        with phases("load"):
            pipeline = open_pipeline(arguments)
        with phases("sample"):
            files = make_candidates(
                pipeline,
                prompts,
                scorer,
                arguments.output,
                stage=f"stage{arguments.stage}",
                count=arguments.candidates or DEFAULT_CANDIDATES,
                seed=arguments.seed,
                about=_about(arguments, pipeline),
            )
    scores = [read_scores(path) for path in files]
    differ = sum(max(s) > min(s) for s in scores)
    flat = [value for s in scores for value in s]
    data = {
        "output": str(arguments.output),
        "prompts": len(files),
        "pairs": differ,
        "mean_score": sum(flat) / len(flat),
        "seconds": phases.as_data(),
    }
    text = (
        f"wrote {arguments.output}: {len(files)} prompts, of which {differ} make a pair; "
        f"mean score {data['mean_score']:.4g}\n{phases.as_text()}"
    )
    return Result(data=data, text=text)


def _about(arguments: argparse.Namespace, pipeline: FlashVideoPipeline) -> dict[str, str]:
    """The model's weights, how they are computed with, and the scorer."""
    from flashvideo.evaluation.sweep.files import model_fingerprint
    from flashvideo.pipelines.folders import model_folder
    from flashvideo.pipelines.loading import choose_dtype

    folder = model_folder(
        arguments.model,
        revision=arguments.revision,
        text_encoder=arguments.text_encoder,
        dtype=choose_dtype(arguments.dtype, pipeline.execution_device),
    )
    return {
        "model": f"{model_label(arguments.model)} {model_fingerprint(folder)}",
        "weights": pipeline.weights,
        "scorer": arguments.scorer,
    }


def load_scorer(name: str) -> Scorer:
    """Returns the scorer of a name.

    Args:
        name: A measure's name, or "module:function".

    Raises:
        ValueError: If there is no such measure or function, or it cannot tell better from worse.
    """
    if ":" in name:
        module_name, _, function_name = name.partition(":")
        try:
            scorer: Scorer = getattr(importlib.import_module(module_name), function_name)
        except (ImportError, AttributeError) as error:
            raise ValueError(
                f"scorer must be an importable module:function, got {name!r} ({error}); check the name and PYTHONPATH"
            ) from None
        return scorer
    return _measure(name)


def _measure(name: str) -> Scorer:
    from flashvideo.evaluation.measures import Subject, available_measures

    usable = {
        measure.name: measure
        for measure in available_measures()
        if measure.needs in ("", "prompt") and measure.better in ("higher", "lower")
    }
    if name not in usable:
        raise ValueError(
            f"scorer must be one of {', '.join(usable)}, or module:function, got {name!r}; "
            "other measures need a truth, or have no better and worse"
        )
    measure = usable[name]
    sign = 1 if measure.better == "higher" else -1

    def score(frames: Tensor, prompt: str) -> float:
        value = measure.compute(Subject(frames=frames, prompt=prompt))
        if value is None:
            raise ValueError(
                f"{name} says nothing of a clip of {len(frames)} frames of "
                f"{frames.shape[-1]}x{frames.shape[-2]} for {prompt!r}; use another scorer"
            )
        return sign * value

    return score
