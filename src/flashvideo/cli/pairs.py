"""`flashvideo pairs`: several samples of each prompt, scored, for preference alignment to learn from."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from flashvideo.cli import arguments as shared
from flashvideo.cli.files import check_folder
from flashvideo.cli.model import model_label, open_pipeline, use_threads
from flashvideo.cli.results import Phases, Result

if TYPE_CHECKING:
    from torch import Tensor

    from flashvideo.pipelines.two_stage import FlashVideoPipeline
    from flashvideo.training.pairs import Scorer


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "pairs",
        help="sample and score a model's own videos, for preference alignment",
        description="Make several samples of each prompt and score them: what a recipe of the task preference learns "
        "from. A run that was stopped goes on with the same command.",
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", required=True, help="folder of the candidates"
    )
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        required=True,
        help=".txt with one in a line, or .csv or .jsonl with the column prompt",
    )
    parser.add_argument(
        "--scorer",
        metavar="NAME",
        required=True,
        help="a measure that 'flashvideo evaluate' has for videos alone or with their prompts, such as niqe or "
        "all_attributes; or module:function, from frames (F, 3, H, W) in [-1, 1] and the prompt to a number, higher "
        "for better",
    )
    parser.add_argument("--stage", type=int, choices=(1, 2), default=1, help="whose samples (default: 1)")
    parser.add_argument(
        "--candidates",
        type=shared.whole_number(least=2),
        default=4,
        metavar="N",
        help="samples of each prompt (default: 4)",
    )
    shared.add_seed(parser, default=0)
    shared.add_model_options(parser)
    shared.add_common(parser)
    parser.set_defaults(run=run, text_cache=None)


def run(arguments: argparse.Namespace) -> Result:
    """Samples and scores.

    Raises:
        ValueError: In one sentence, what is wrong with an argument.
    """
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
                count=arguments.candidates,
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
