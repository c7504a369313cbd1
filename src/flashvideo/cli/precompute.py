"""`flashvideo precompute`: latents and text embeddings of a recipe's clips, once and for all steps."""

from __future__ import annotations

import argparse
from pathlib import Path

from flashvideo.cli import arguments as shared
from flashvideo.cli.model import use_threads
from flashvideo.cli.results import Phases, Result
from flashvideo.cli.train import check_recipe

_MIB = 1024**2


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "precompute",
        help="compute a recipe's latents and text embeddings once",
        description="Compute the latents and text embeddings of a recipe's clips once, for training to read instead "
        "of decoding and encoding at every step. Ctrl-C keeps what is finished, and the same command goes on.",
    )
    shared.add_recipe(parser, "with clips of its own, 'data'")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="where to, for the recipe's key precomputed (default: that key's folder)",
    )
    parser.add_argument(
        "--versions",
        type=shared.whole_number(),
        default=4,
        metavar="K",
        help="degraded versions of each clip, for Stage II (default: 4)",
    )
    parser.add_argument(
        "--views",
        type=shared.whole_number(),
        default=1,
        metavar="V",
        help="parts and crops of each clip (default: 1)",
    )
    parser.add_argument(
        "--shard",
        type=part,
        default=(0, 1),
        metavar="I/N",
        help="compute part I of N, beside other processes",
    )
    parser.add_argument(
        "--shard-mib",
        type=shared.whole_number(),
        default=256,
        metavar="MIB",
        help="size of a file at most (default: 256)",
    )
    shared.add_device(parser)
    shared.add_common(parser)
    parser.set_defaults(run=run)


def part(text: str) -> tuple[int, int]:
    """Reads "I/N", I from 1 to N; returns I - 1 and N.

    Raises:
        ArgumentTypeError: If it is not so.
    """
    first, slash, last = text.partition("/")
    if not (slash and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise argparse.ArgumentTypeError(f"must look like 1/4, from 1/N to N/N, got {text!r}")
    return int(first) - 1, int(last)


def run(arguments: argparse.Namespace) -> Result:
    """Computes.

    Raises:
        ValueError: In one sentence, what is wrong with recipe or folder.
    """
    from flashvideo.data.clips.samples import format_skipped
    from flashvideo.pipelines.loading import choose_device
    from flashvideo.training.precompute import Extent, precompute
    from flashvideo.training.recipes import Stage1Recipe, Stage2Recipe, load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    if not isinstance(recipe, Stage1Recipe | Stage2Recipe):
        raise ValueError(f"precompute is for the tasks stage1 and stage2, got {recipe.task}")
    check_recipe(recipe)
    if arguments.output is None and not recipe.precomputed:
        raise ValueError(
            "precompute needs a folder to write to; give -o DIR, or the recipe's key precomputed"
        )
    extent = Extent(
        views=arguments.views,
        versions=arguments.versions,
        shard_bytes=arguments.shard_mib * _MIB,
        part=arguments.shard,
    )
    phases = Phases()
    with use_threads(arguments.threads), phases("precompute"):
        outcome = precompute(
            recipe, arguments.output or Path(recipe.precomputed), extent, choose_device(arguments.device)
        )
    data = {
        "output": str(outcome.folder),
        "shards": outcome.shards,
        "made": outcome.made,
        "missing": outcome.missing,
        "skipped": outcome.skipped,
        "seconds": phases.as_data(),
    }
    lines = [f"wrote {outcome.made} of {outcome.shards} shards to {outcome.folder}"]
    if outcome.missing:
        lines.append(f"{outcome.missing} are left to other parts")
    return Result(data=data, text="\n".join([*lines, format_skipped(outcome.skipped), phases.as_text()]))
