"""`flashvideo train --dry-run`: what a recipe would do, as lines and tables."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from flashvideo.cli import arguments as shared
from flashvideo.cli.results import Result

if TYPE_CHECKING:
    from flashvideo.training.config import Recipe
    from flashvideo.training.dry_run import DryRun, PhaseOutlook
    from flashvideo.training.fitting import Fit
    from flashvideo.training.step_memory import Sizes, StepMemory

_GIB = 1024**3


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--dry-run` and what goes with it."""
    group = parser.add_argument_group("dry run")
    group.add_argument(
        "--dry-run",
        action="store_true",
        help="train nothing: tell sizes, steps and memory, and draw the first batch",
    )
    group.add_argument("--gpus", type=shared.whole_number(), metavar="N", help="ask about N GPUs")
    group.add_argument(
        "--vram",
        type=shared.number(above=0),
        metavar="GIB",
        help="whether it fits GPUs of this memory, and what makes it fit",
    )
    group.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="folder for the picture (default: the recipe's output)",
    )


def check_options(arguments: argparse.Namespace) -> None:
    """Refuses options of the dry run without it.

    Raises:
        ValueError: If there are any.
    """
    for name in ("gpus", "vram", "output"):
        if getattr(arguments, name) is not None and not arguments.dry_run:
            raise ValueError(f"--{name} is for --dry-run; leave it out, or add --dry-run")


def run_dry(arguments: argparse.Namespace, recipe: Recipe) -> Result:
    """Tells what a recipe would do."""
    from flashvideo.pipelines.loading import choose_device
    from flashvideo.training.dry_run import dry_run

    asks_fit = arguments.gpus is not None or arguments.vram is not None
    found = dry_run(
        recipe,
        choose_device(arguments.device),
        gpus=(arguments.gpus or 1) if asks_fit else 0,
        vram_bytes=int((arguments.vram or 0) * _GIB),
        output=arguments.output,
    )
    lines = [*_sizes(found), "", *_steps(found.phases), *_clips(found.phases), "", *_memory(found)]
    if found.fits is not None:
        lines += ["", *_fits(found.fits, gpus=found.processes, vram=arguments.vram)]
    lines += [""] * bool(found.notes) + list(found.notes)
    if found.picture is not None:
        lines.append(f"wrote {found.picture}: of each clip three frames, what is made of it, and its caption")
    return Result(data=found.as_dict(), text="\n".join(lines))


def _sizes(found: DryRun) -> list[str]:
    if found.sizes is None:
        return []
    sizes: Sizes = found.sizes
    frozen = (
        f", {_millions(sizes.total - sizes.trained)} beside them frozen"
        if sizes.total > sizes.trained
        else ""
    )
    others = {"VAE": sizes.vae, "text encoder": sizes.text_encoder}
    used = "".join(f"; {name} {_millions(count)}" for name, count in others.items() if count)
    lines = [f"{found.task}: {_millions(sizes.trained)} parameters are trained{frozen}{used}"]
    if found.missing:
        lines.append(
            f"{', '.join(found.missing)}: not there; sizes are those of the released model, or of nano's VAE"
        )
    return lines


def _steps(phases: tuple[PhaseOutlook, ...]) -> list[str]:
    rows: list[tuple[str, ...]] = [
        ("phase", "steps", "clips/step", "clips", "steps/epoch", "tokens", "learning rate", "sizes")
    ]
    for phase in phases:
        counts = [
            "?" if count is None else str(count) if count else "new each step"
            for count in (phase.samples, phase.steps_per_epoch)
        ]
        rates = " ".join(f"{rate:.2g}@{step}" for step, rate in phase.rates)
        sizes = " ".join(f"{f}x{h}x{w}" for f, h, w in phase.shapes)
        tokens = str(phase.tokens) if phase.tokens else "-"
        row = (str(phase.number), str(phase.steps), str(phase.clips_per_step), *counts, tokens, rates, sizes)
        rows.append(row)
    return _table(rows)


def _clips(phases: tuple[PhaseOutlook, ...]) -> list[str]:
    """How many clips of one's own there are, and the first of those left out."""
    from flashvideo.training.dry_run import MOST_NAMED

    lines = [f"phase {phase.number}: {phase.clips}" for phase in phases if phase.clips]
    left_out = {name: why for phase in phases for name, why in phase.left_out.items()}
    lines += [f"  {name} is left out: {why}" for name, why in list(left_out.items())[:MOST_NAMED]]
    return [""] * bool(lines) + lines


def _memory(found: DryRun) -> list[str]:
    rows: list[tuple[str, ...]] = [
        (
            "GiB",
            "weights",
            "VAE, text",
            "average",
            "optimiser",
            "encode",
            "forward",
            "backward",
            "update",
            "peak",
        )
    ]
    for phase in found.phases:
        if phase.memory is not None:
            memory: StepMemory = phase.memory
            moments = [memory.moments[name] for name in ("encode", "forward", "backward", "update")]
            parts = (memory.trained, memory.frozen, memory.average, memory.optimizer, *moments, memory.peak)
            rows.append((f"phase {phase.number}", *map(_gib, parts)))
    validations = [p.memory.moments["validate"] for p in found.phases if p.memory is not None]
    who = "process" if found.processes == 1 else f"process, of {found.processes}"
    lines = [f"memory of each {who}, estimated:", *_table(rows)] if len(rows) > 1 else []
    if any(validations):
        lines.append(f"a validation takes {_gib(max(validations))} GiB for a moment, beside what stays")
    return lines


def _fits(fits: tuple[Fit, ...], *, gpus: int, vram: float) -> list[str]:
    what = f"{gpus} GPU{'s' * (gpus > 1)} of {vram:g} GiB"
    names = list(fits[0].alone)
    rows: list[tuple[str, ...]] = [
        ("peak, GiB", "as it is", *names, "fits", "smallest change that fits", "peak then")
    ]
    for fit in fits:
        measures = "none is enough" if fit.measures is None else " + ".join(fit.measures) or "none is needed"
        rows.append(
            (
                f"phase {fit.number}",
                _gib(fit.as_it_is.peak),
                *(_gib(fit.alone[name]) for name in names),
                "yes" if fit.measures == () else "no",
                measures,
                _gib(fit.with_them.peak),
            )
        )
    return [f"on {what}, one change at a time, and the smallest set that fits:", *_table(rows)]


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f}M"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.{1 if num_bytes >= 10 * _GIB else 2}f}"
