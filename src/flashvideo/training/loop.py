"""The training loop, from a recipe to weights, in one process or many.

The loop knows nothing of what it trains: a `Task` gives it networks, data and a loss. Samples and random numbers are
functions of (seed, phase, step, place in the step) alone, so a resumed run goes on as the uninterrupted one would have,
and two processes do what one with twice the batch does.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from tqdm import tqdm

from flashvideo.training.checkpoints import PARTIAL, put_in_place, remove_partial, write_durably
from flashvideo.training.config import Phase, Recipe
from flashvideo.training.processes import start_processes
from flashvideo.training.publishing import check_repository
from flashvideo.training.recipes import RECIPE_FILE, recipe_text
from flashvideo.training.run import Run, Wishes
from flashvideo.training.stopping import Interrupted, StopSignals
from flashvideo.training.task import Task
from flashvideo.training.tracking import check_trackers


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a call of `train` ended.

    Attributes:
        output: folder of the run.
        steps: done so far, over all phases.
        finished: whether all phases are done; otherwise resume goes on.
        num_skipped: clips of one's own that were left out so far; `flashvideo.training.left_out.FILE` says why.
    """

    output: Path
    steps: int
    finished: bool
    num_skipped: int


def train(
    task: Task,
    recipe: Recipe,
    phases: Sequence[Phase],
    *,
    accelerator: Accelerator | None = None,
    resume: bool = False,
    max_minutes: float = 0.0,
) -> Outcome:
    """Run a recipe's phases; every process of a launcher calls it.

    Args:
        task: what is trained.
        recipe: its recipe.
        phases: `recipe.phases`.
        accelerator: of `flashvideo.training.processes.start_processes`; made here by default.
        resume: continue from the newest checkpoint in the recipe's output; without one, start anew.
        max_minutes: stop after this time with a checkpoint, to be resumed; 0 for no limit.

    Returns:
        Where the best weights are, if all phases are done.

    Raises:
        ValueError: if the output holds another run's checkpoints and is not resumed, or is resumed with another
            recipe, or what the recipe asks for cannot work.
        FloatingPointError: if loss or gradients are not finite, more often than the recipe allows.
        Interrupted: on Ctrl-C or SIGTERM, after saving.
    """
    device = next(task.modules.parameters()).device
    check_trackers(recipe)
    accelerator = accelerator or start_processes(recipe, device)
    prepare_output(recipe, phases, accelerator, resume=resume)
    deadline = time.monotonic() + 60 * max_minutes if max_minutes else math.inf
    with StopSignals(alone=accelerator.num_processes == 1) as signals:
        run = Run(task, recipe, phases, accelerator=accelerator, signals=signals, deadline=deadline)
        if resume:
            run.restore()
        write_recipe(recipe, accelerator)
        try:
            run.check_data()
            while run.progress.phase < len(phases):
                wishes = _run_phase_with_bar(run)
                if wishes.stop:
                    raise Interrupted(_farewell(run), wishes.stop)
                if wishes.out_of_time and run.progress.phase < len(phases):
                    return _outcome(run, finished=False)
            run.finish()
        except KeyboardInterrupt as interrupt:
            if isinstance(interrupt, Interrupted):
                raise
            raise Interrupted(
                f"stopped at once in {run.output}; --resume goes on from its last checkpoint"
            ) from None
        finally:
            accelerator.end_training()
    return _outcome(run, finished=True)


def _outcome(run: Run, *, finished: bool) -> Outcome:
    return Outcome(
        output=run.output,
        steps=run.progress.total,
        finished=finished,
        num_skipped=len(run.left_out.reasons),
    )


def _run_phase_with_bar(run: Run) -> Wishes:
    index, done = run.progress.phase, run.progress.step
    # Steps of other lengths differ many times over: the time left should not jump with each.
    with tqdm(
        total=run.phases[index].steps,
        initial=done,
        desc=f"phase {index + 1}/{len(run.phases)}",
        mininterval=1,
        smoothing=0.03,
        disable=not run.is_main,
        bar_format="{desc}: {bar:16} step {n_fmt}/{total_fmt}, {elapsed} gone, {remaining} left{postfix}",
    ) as bar:
        return run.run_phase(bar)


def _farewell(run: Run) -> str:
    newest = run.checkpoints.all()[-1]
    return f"stopped at step {run.progress.total}; saved to {newest}; --resume goes on"


def prepare_output(
    recipe: Recipe, phases: Sequence[Phase], accelerator: Accelerator, *, resume: bool
) -> None:
    """Make the output folder, and remove what a killed run left unfinished.

    Raises:
        ValueError: if it holds checkpoints and is not resumed, or the first phase wants the best of one before it.
    """
    output = Path(recipe.output)
    check_repository(recipe)
    if phases and phases[0].from_best:
        raise ValueError(
            "phases.0.from_best needs a phase before it, got the first one; use start: FOLDER instead"
        )
    held = sorted((output / "checkpoints").glob("step_*"))
    accelerator.wait_for_everyone()
    if held and not resume:
        raise ValueError(
            f"{output} holds checkpoints of an earlier training; add --resume to go on with it, or delete it or choose "
            "another output"
        )
    if accelerator.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        for folder in (output, output / "checkpoints", output / "best"):
            remove_partial(folder)
    accelerator.wait_for_everyone()


def write_recipe(recipe: Recipe, accelerator: Accelerator) -> None:
    """Leave the recipe in the output, once it is known to be that of the run there."""
    if accelerator.is_main_process:
        output = Path(recipe.output)
        partial = output / (RECIPE_FILE + PARTIAL)
        write_durably(partial, recipe_text(recipe))
        put_in_place(partial, output / RECIPE_FILE)
    accelerator.wait_for_everyone()
