"""A task in training: everything that a checkpoint holds, and what happens to it between steps.

After each step, in this order: a row of the curve, a validation, a checkpoint. What a checkpoint counts on, rows and
best weights of earlier steps, has its name before it has, so that a process killed at any moment leaves no checkpoint
without them; what is newer is made anew after a resume. A checkpoint alone also outlasts a machine that fails.
"""

from __future__ import annotations

import json
import logging
import math
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from tqdm import tqdm

from flashvideo.training import processes
from flashvideo.training.average import Average
from flashvideo.training.checkpoints import PARTIAL, Best, Checkpoints, Contents, Progress
from flashvideo.training.config import Phase, Recipe
from flashvideo.training.curve import Curve
from flashvideo.training.left_out import LeftOut
from flashvideo.training.memory import peak_memory
from flashvideo.training.optimizers import build_optimizers, check_optimizer, forget
from flashvideo.training.publishing import describe, push
from flashvideo.training.resuming import check_resumed
from flashvideo.training.stage_recipes import Stage1Recipe
from flashvideo.training.steps import Steps
from flashvideo.training.stopping import StopSignals
from flashvideo.training.task import Task
from flashvideo.training.tracking import Tracking
from flashvideo.training.weights import Weights, move_files

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the processes agreed upon after a step.

    Attributes:
        stop: signal by which to stop, 0 for none.
        out_of_time: whether the time for this call is up.
        checkpoint: whether a checkpoint is due.
        validate: whether a validation is due.
    """

    stop: int
    out_of_time: bool
    checkpoint: bool
    validate: bool


class Run:
    """A task in training: everything that a checkpoint holds, and the steps that change it.

    Args:
        task: what is trained.
        recipe: its recipe.
        phases: `recipe.phases`.
        accelerator: the processes; all of them call the same methods.
        signals: what tells of a wish to stop.
        deadline: when to stop, of `time.monotonic`.
    """

    def __init__(
        self,
        task: Task,
        recipe: Recipe,
        phases: Sequence[Phase],
        *,
        accelerator: Accelerator,
        signals: StopSignals,
        deadline: float = math.inf,
    ) -> None:
        self.task, self.recipe, self.phases = task, recipe, phases
        self.accelerator, self.signals, self.deadline = accelerator, signals, deadline
        self.is_main = accelerator.is_main_process
        self.output = Path(recipe.output)
        self.device = next(task.modules.parameters()).device
        self.sharded = recipe.is_sharded(accelerator.num_processes)
        check_optimizer(recipe, self.device, sharded=self.sharded)
        if recipe.checkpoint_blocks:
            checkpoint_blocks(task)
        self.weights = Weights(
            task,
            self.output,
            accelerator,
            sharded=self.sharded,
            keep_tensors=any(phase.from_best for phase in phases),
        )
        if self.sharded:
            processes.shard(task.modules, accelerator)
        wrapped = processes.share_loss(task, accelerator, sharded=self.sharded)
        self.contents = Contents(
            objective=processes.unwrapped(wrapped),
            optimizers=build_optimizers(task.modules, recipe),
            average=Average(task.modules, recipe.ema_decay),
        )
        self.steps = Steps(
            task, recipe, phases, accelerator=accelerator, wrapped=wrapped, contents=self.contents
        )
        self.progress = Progress()
        self.checkpoints = Checkpoints(
            self.output / "checkpoints", recipe.checkpoint_limit, accelerator, sharded=self.sharded
        )
        self.curve = Curve(self.output / "curve.csv", 0)
        self.left_out = LeftOut(self.output, accelerator)
        self.tracking = Tracking(accelerator, self.output, json.dumps(asdict(recipe)))
        self.last_checkpoint = self.last_validation = time.monotonic()
        self.clips_since_row, self.seconds_of_row = 0, 0.0

    def restore(self) -> None:
        """Continue from the newest whole checkpoint, if there is one: bit for bit on the same kind of device.

        Raises:
            ValueError: if it is of another recipe.
        """
        found = self.checkpoints.newest()
        if found is None:
            return
        path, progress = found
        check_resumed(self.recipe, progress, self.accelerator)
        self.checkpoints.load(path, self.contents)
        self.progress, self.seconds_of_row = progress, progress.seconds
        self.curve = Curve(self.output / "curve.csv", progress.total)
        self.left_out.restore()
        if self.is_main:
            logger.info("resumed %s at step %d", self.output, progress.total)

    def checkpoint(self) -> Path:
        """Save all that `restore` reads, and remove best weights that no checkpoint counts on any more."""
        self.left_out.write()
        path = self.checkpoints.save(self.contents, self.progress)
        if self.is_main:
            self.weights.prune(self.checkpoints.referenced_steps())
        self.accelerator.wait_for_everyone()
        self.last_checkpoint = time.monotonic()
        return path

    def validate(self) -> None:
        """Judge the moving average's weights, warn of what looks like a collapse, and keep the best."""
        progress = self.progress
        values = self._judge()
        score = self.task.score(values)
        best = Best(
            step=progress.total, phase=progress.phase, score=score if math.isfinite(score) else -math.inf
        )
        if self.is_main:
            for sentence in self.task.warnings(values, progress.validations):
                logger.warning("step %d: %s", progress.total, sentence)
            row = {"step": progress.total, "minutes": progress.seconds / 60} | values | {"score": score}
            self.curve.add(row)
            self.tracking.figures(row, progress.total, kind="validation")
            figures = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            logger.info("step %d: %s", progress.total, figures)
        progress.validations.append({"step": progress.total} | values)
        is_best = progress.best is None or best.score > progress.best.score
        before = progress.best_of_phase
        is_best_of_phase = before is None or before.phase != best.phase or best.score > before.score
        if is_best or is_best_of_phase:
            about = {"step": best.step, "phase": best.phase + 1, "score": score} | values
            self.weights.write(self.weights.folder(best), self.contents.average, about, tensors=True)
        progress.best = best if is_best else progress.best
        progress.best_of_phase = best if is_best_of_phase else before
        self.last_validation = time.monotonic()

    def _judge(self) -> dict[str, float]:
        """Figures of the average's weights; the pictures go to the output.

        Every process takes part if the weights are sharded; else the main one does it alone.
        """
        values: list[Any] = [None]
        if self.is_main or self.sharded:
            # The others may run on machines without this folder.
            place = self.output if self.is_main else None
            with tempfile.TemporaryDirectory(dir=place, suffix=PARTIAL) as folder:
                self.task.modules.eval()
                with self.contents.average.swapped(), torch.no_grad():
                    values = [self.task.validate(Path(folder))]
                self.task.modules.train()
                if self.is_main:
                    self.tracking.pictures(move_files(Path(folder), self.output), self.progress.total)
        broadcast_object_list(values)
        figures: dict[str, float] = values[0]
        return figures

    def check_data(self) -> None:
        """Makes the data sets of the phases to come, which else would only be refused when these begin.

        Raises:
            ValueError: If one cannot work.
        """
        if not self.is_main:  # they are alike
            return
        for index in range(self.progress.phase + 1, len(self.phases)):
            try:
                self.steps.dataset(index)
            except ValueError as error:
                raise ValueError(f"phase {index + 1} cannot be trained: {error}") from None

    def start_phase(self) -> None:
        """At the first step of a phase: go back to the best weights of the phase before, if it wants that."""
        progress = self.progress
        if progress.step or not self.phases[progress.phase].from_best:
            return
        assert progress.best_of_phase is not None  # a validation ends every phase
        self.weights.restore(progress.best_of_phase)
        forget(self.contents.optimizers)
        self.contents.average.restart()

    def _agree(self) -> Wishes:
        """What all processes do next: stop if one was told to; time is the main one's."""
        now, recipe, progress = time.monotonic(), self.recipe, self.progress
        by_time = not recipe.validate_steps and now - self.last_validation > 60 * recipe.validate_minutes
        received = self.signals.received
        flags = (
            received == signal.SIGTERM,
            received == signal.SIGINT,
            self.is_main and now > self.deadline,
            self.is_main and now - self.last_checkpoint > 60 * recipe.checkpoint_minutes,
            self.is_main and by_time,
        )
        sums = processes.add_up([float(flag) for flag in flags], self.accelerator)
        return Wishes(
            stop=signal.SIGTERM if sums[0] else signal.SIGINT if sums[1] else 0,
            out_of_time=sums[2] > 0,
            checkpoint=sums[3] > 0,
            validate=sums[4] > 0
            or bool(recipe.validate_steps and progress.total % recipe.validate_steps == 0),
        )

    def run_phase(self, bar: tqdm) -> Wishes:
        """Train until the current phase ends or it is time to stop; what was last agreed upon tells which.

        Args:
            bar: moved by each step.
        """
        progress, phase = self.progress, self.phases[self.progress.phase]
        self.start_phase()
        dataset = self.steps.dataset(progress.phase)
        self.left_out.begin(
            dataset, number=progress.phase + 1, needs_captions=isinstance(self.recipe, Stage1Recipe)
        )
        batches = self.steps.batches(progress, dataset)
        while True:
            started = time.monotonic()
            values = self.steps.take(batches, progress)
            self.clips_since_row += self.steps.clips(progress)
            bar.set_postfix_str(
                f"{time.monotonic() - started:.2g} s/step, loss {values['loss']:.4g}", refresh=False
            )
            bar.update()
            wishes = self._agree()
            if progress.total % self.recipe.log_steps == 0:
                self._log(values)
            ended = progress.step == phase.steps
            if ended or wishes.validate:
                self.validate()
            if ended:
                progress.phase, progress.step = progress.phase + 1, 0
            stop = wishes.stop or wishes.out_of_time
            if ended or stop or wishes.validate or wishes.checkpoint:
                self.checkpoint()
            if ended or stop:
                return wishes

    def _log(self, values: dict[str, float]) -> None:
        """Write a row of the curve, with the mean of named values over the processes that have them."""
        progress = self.progress
        clips, seconds = self.clips_since_row, progress.seconds - self.seconds_of_row
        self.clips_since_row, self.seconds_of_row = 0, progress.seconds
        everyone = gather_object([values])
        memory = max(gather_object([peak_memory(self.device)]))
        if not self.is_main:
            return
        names = dict.fromkeys(name for one in everyone for name in one)
        found = {name: [one[name] for one in everyone if name in one] for name in names}
        row: dict[str, Any] = {
            "step": progress.total,
            "minutes": progress.seconds / 60,
            "phase": progress.phase + 1,
        }
        row |= {name: sum(numbers) / len(numbers) for name, numbers in found.items()}
        if self.recipe.max_skips:
            row["skipped"] = progress.skipped
        row |= {"samples_per_second": clips / max(seconds, 1e-9), "memory_gib": memory / 2**30}
        self.curve.add(row)
        self.tracking.figures(row, progress.total, kind="train")

    def finish(self) -> None:
        """Leave the best weights, the last ones, and what tells about them."""
        best = self.progress.best
        assert best is not None  # a validation ends every phase
        last = self.progress.validations[-1]
        self.weights.write(self.output / "last", self.contents.average, last, tensors=False)
        if self.is_main:
            parts = self.weights.leave(best)
            describe(self.output, self.recipe, self.progress, self.device, self.accelerator.num_processes)
            if self.recipe.push_to_hub:
                push(self.output, self.recipe.push_to_hub, parts)
        self.accelerator.wait_for_everyone()


def checkpoint_blocks(task: Task) -> None:
    """Have the networks that can recompute their blocks in the backward pass.

    Raises:
        ValueError: if none can.
    """
    able: list[Any] = [n for n in task.modules.children() if hasattr(n, "enable_gradient_checkpointing")]
    if not able:
        names = ", ".join(type(network).__name__ for network in task.modules.children())
        raise ValueError(
            f"checkpoint_blocks needs a network that can recompute its blocks, got {names}; leave it out"
        )
    for network in able:
        network.enable_gradient_checkpointing()
