"""`flashvideo train`: run a recipe, or go on with one."""

from __future__ import annotations

import argparse
import importlib
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, cast

from flashvideo.cli import arguments as shared
from flashvideo.cli import dry_run
from flashvideo.cli.model import quiet_libraries, use_threads
from flashvideo.cli.results import Phases, Result

if TYPE_CHECKING:
    import torch

    from flashvideo.training.config import Recipe
    from flashvideo.training.loop import Task

# What each recipe's `task` runs; imported when it is asked for.
_TASKS = {
    "vae": ("flashvideo.training.vae", "VAETask"),
    "stage1": ("flashvideo.training.stage1", "Stage1Task"),
    "stage2": ("flashvideo.training.stage2", "Stage2Task"),
    "preference": ("flashvideo.training.preference", "PreferenceTask"),
}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "train",
        help="train a model by a recipe",
        description="Train a model by a recipe. Ctrl-C saves, and --resume continues.",
    )
    shared.add_recipe(parser, "such as recipes/nano_stage1_1.yaml")
    parser.add_argument(
        "--resume", action="store_true", help="continue from the checkpoint in the recipe's output"
    )
    parser.add_argument(
        "--max-minutes",
        type=shared.number(above=0),
        metavar="M",
        help="save and stop after this time, to be resumed (default: no limit)",
    )
    dry_run.add_options(parser)
    shared.add_device(parser)
    shared.add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> Result:
    """Trains.

    Raises:
        ValueError: In one sentence, what is wrong with the recipe.
        Interrupted: On Ctrl-C, after saving.
    """
    from flashvideo.pipelines.loading import choose_device
    from flashvideo.training.left_out import FILE
    from flashvideo.training.loop import train
    from flashvideo.training.processes import process_device, start_processes
    from flashvideo.training.recipes import load_recipe
    from flashvideo.training.stopping import Interrupted
    from flashvideo.training.tracking import check_trackers

    dry_run.check_options(arguments)
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    if arguments.dry_run:
        return dry_run.run_dry(arguments, recipe)
    check_recipe(recipe)
    check_trackers(recipe)
    device = choose_device(arguments.device)
    accelerator = start_processes(recipe, device)
    if not accelerator.is_main_process:  # results and warnings are the main one's, errors everyone's
        logging.getLogger("flashvideo").setLevel(logging.ERROR)
        arguments.json = False
    phases = Phases()
    with use_threads(arguments.threads):
        # What is made once, such as encoded clips, the main process makes while the others wait.
        with phases("prepare"), accelerator.main_process_first():
            task = build_task(recipe, process_device(accelerator, device))
        try:
            with phases("train"):
                outcome = train(
                    task,
                    recipe,
                    recipe.phases,
                    accelerator=accelerator,
                    resume=arguments.resume,
                    max_minutes=arguments.max_minutes or 0.0,
                )
        except Interrupted as interrupt:
            if accelerator.is_main_process:
                raise
            return Result(data={}, text="", exit_code=interrupt.exit_code)
    data = {
        "output": str(outcome.output),
        "task": recipe.task,
        "steps": outcome.steps,
        "finished": outcome.finished,
        "skipped": outcome.num_skipped,
        "seconds": phases.as_data(),
    }
    done = "wrote" if outcome.finished else f"stopped at step {outcome.steps}; --resume goes on in"
    lines = [f"{done} {outcome.output}"]
    if outcome.num_skipped:
        lines.append(f"{outcome.num_skipped} clips were left out; {outcome.output / FILE} says why")
    text = "\n".join([*lines, phases.as_text()])
    return Result(data=data, text=text if accelerator.is_main_process else "")


def check_recipe(recipe: Recipe) -> None:
    """Checks that the folders which a recipe starts from are there, and that its output can be written.

    Raises:
        ValueError: In one sentence, what is wrong.
    """
    for name in ("start", "vae", "text"):
        folder = getattr(recipe, name, None)
        # The text of a Stage I recipe is the description of a new encoder, of a Stage II recipe a folder.
        if isinstance(folder, str) and folder and not Path(folder).is_dir():
            raise ValueError(
                f"the recipe's {name} must be a folder of trained weights, got {folder}; train it first"
            )
    output = Path(recipe.output)
    nearest = next((path for path in (output, *output.absolute().parents) if path.exists()), output)
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise ValueError(
            f"the recipe's output {output} cannot be written: {error.strerror}; choose another"
        ) from None


def build_task(recipe: Recipe, device: torch.device) -> Task:
    """Builds what a recipe trains."""
    module_name, class_name = _TASKS[recipe.task]
    with quiet_libraries():
        task_class = getattr(importlib.import_module(module_name), class_name)
        return cast("Task", task_class(recipe, device))
