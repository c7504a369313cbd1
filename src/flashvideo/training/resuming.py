"""What of a recipe may change when a run goes on, and what would make it another run.

How a run is spread, saved, watched and published is free, and so are rates, since a run that has diverged is to go on
with lower ones. Phases that have not begun are free too. A begun phase may take other batches if its steps keep their
number of clips, as they do with twice the processes and half the batch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import yaml
from accelerate import Accelerator

from flashvideo.training.checkpoints import Progress
from flashvideo.training.config import Recipe
from flashvideo.training.processes import clips_per_step
from flashvideo.training.reading import build
from flashvideo.training.recipes import RECIPE_FILE, name_shipped

FREE = frozenset(
    {
        "checkpoint_blocks",
        "checkpoint_limit",
        "checkpoint_minutes",
        "compile",
        "ema_decay",
        "log_steps",
        "max_grad_norm",
        "max_skips",
        "output",
        "prompts",
        "push_to_hub",
        "rate_factors",
        "sharding",
        "trackers",
        "vae_strips",
        "validate_minutes",
        "validate_steps",
        "weight_decay",
        "workers",
    }
)
"""Keys of a recipe that may change; `phases` have their own. A checkpoint itself tells whether sharding fits it."""

FREE_OF_A_PHASE = frozenset({"accumulate", "batch", "final_learning_rate", "learning_rate", "warmup"})
"""Keys of a begun phase that may change."""


def check_resumed(recipe: Recipe, progress: Progress, accelerator: Accelerator) -> None:
    """Refuse to go on with a recipe that is not the one in the run's output, but for what is free.

    Args:
        recipe: the recipe now; the one before is `recipe.yaml` of its output, if that is still there.
        progress: of the checkpoint to go on from.
        accelerator: the processes now.

    Raises:
        ValueError: if something else has changed, by name.
    """
    path = Path(recipe.output) / RECIPE_FILE
    if path.is_file():
        changed = list(_changes(_read(path, type(recipe)), recipe, progress))
        if changed:
            raise ValueError(
                f"{recipe.output} was begun with another recipe: {', '.join(changed)}; resume with these as they were, "
                "or start another run from its best weights"
            )
    if not progress.step or not progress.clips:
        return
    now = clips_per_step(recipe.phases[progress.phase], accelerator)
    if now != progress.clips:
        raise ValueError(
            f"steps of phases.{progress.phase} must have {progress.clips} clips as before, got {now}; choose batch and "
            f"accumulate such that batch * accumulate * {accelerator.num_processes} processes make as many"
        )


def _read(path: Path, kind: type[Recipe]) -> Recipe:
    """The recipe of a run; values that were not known to it are the defaults."""
    try:
        return build(kind, name_shipped(yaml.safe_load(path.read_text()) or {}))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"{path}, by which the run was begun, cannot be compared with the recipe: {str(error).splitlines()[0]}; "
            "resume with the version that wrote it"
        ) from error


def _changes(before: Recipe, now: Recipe, progress: Progress) -> Iterator[str]:
    old, new = (json.loads(json.dumps(asdict(recipe))) for recipe in (before, now))
    for name in sorted(new.keys() - FREE - {"phases"}):
        yield from _change(name, old[name], new[name])
    for index in range(progress.phase + (progress.step > 0)):
        if index >= min(len(before.phases), len(now.phases)):
            yield f"phases.{index} is not in both"
            continue
        for name in sorted(new["phases"][index].keys() - FREE_OF_A_PHASE):
            yield from _change(f"phases.{index}.{name}", *(r["phases"][index][name] for r in (old, new)))
    # Without one that wants them a run keeps no best weights to go back to.
    wanting = [index for index, phase in enumerate(now.phases) if phase.from_best]
    if wanting and not any(phase.from_best for phase in before.phases):
        yield from _change(f"phases.{wanting[0]}.from_best", False, True)


def _change(name: str, before: object, now: object) -> Iterator[str]:
    """What to say of values, as YAML writes them, if they differ."""
    if before != now:
        told = f"was {json.dumps(before)}, is {json.dumps(now)}"
        yield f"{name} {told}" if len(told) < 60 else f"{name} differs"
