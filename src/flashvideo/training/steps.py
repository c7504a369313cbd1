"""Optimiser steps: a process's share of the batches, its gradients, and what becomes of them."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from flashvideo.data.clips import ClipDataset
from flashvideo.training import processes
from flashvideo.training.checkpoints import Contents, Progress
from flashvideo.training.config import Phase, Recipe
from flashvideo.training.draws import Draws, sample_seed
from flashvideo.training.optimizers import learning_rate, set_rate
from flashvideo.training.stopping import leave_signals_to_parent
from flashvideo.training.task import Task

logger = logging.getLogger(__name__)


class Steps:
    """The steps of a run, each a function of the recipe, the contents and the progress.

    Args:
        task: what is trained.
        recipe: its recipe.
        phases: `recipe.phases`.
        accelerator: the processes; all of them take each step.
        wrapped: what computes the loss, shared out over them.
        contents: the weights, the average and the optimisers.
    """

    def __init__(
        self,
        task: Task,
        recipe: Recipe,
        phases: Sequence[Phase],
        *,
        accelerator: Accelerator,
        wrapped: nn.Module,
        contents: Contents,
    ) -> None:
        self.task, self.recipe, self.phases = task, recipe, phases
        self.accelerator, self.wrapped, self.contents = accelerator, wrapped, contents
        self.device = next(task.modules.parameters()).device
        self.parameters = list(processes.trained_parameters(task.modules).values())

    def dataset(self, phase_index: int) -> Dataset:
        """The samples of a phase."""
        phase = self.phases[phase_index]
        return self.task.dataset(phase_index, processes.clips_per_step(phase, self.accelerator))

    def batches(self, progress: Progress, dataset: Dataset) -> Iterator[Any]:
        """This process's batches of the phase from the next step on, in the fixed order of their indices."""
        phase, workers = self.phases[progress.phase], self.recipe.workers
        indices = [
            (step, place)
            for step in range(progress.step, phase.steps)
            for micro_batch in range(phase.accumulate)
            for place in processes.places_of(phase, micro_batch, self.accelerator)
        ]
        self._note_data(dataset, progress)
        loader = DataLoader(
            dataset,
            batch_size=phase.batch,
            sampler=indices,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            worker_init_fn=leave_signals_to_parent,
            pin_memory=self.device.type == "cuda",
        )
        return iter(loader)

    def _note_data(self, dataset: Dataset, progress: Progress) -> None:
        """Puts down which clips of one's own a phase has; warns if they are not those that it began with."""
        clips = getattr(dataset, "clips", None)
        data = ""
        if isinstance(clips, ClipDataset):
            data = f"{clips.fingerprint()}, weights {[source.weight for source in clips.config.sources]}"
        everyone = gather_object([data])
        if self.accelerator.is_main_process:
            if len(set(everyone)) > 1:
                logger.warning(
                    "the processes see different clips, so that samples may be missed or seen twice; give "
                    "all of them the same files"
                )
            elif progress.step and progress.data and data != progress.data:
                logger.warning(
                    "the clips are not those that phase %d began with, so that its %d steps left see other samples "
                    "than an uninterrupted run would have",
                    progress.phase + 1,
                    self.phases[progress.phase].steps - progress.step,
                )
        progress.data = data

    def clips(self, progress: Progress) -> int:
        """Samples of a step over all processes and accumulated batches."""
        return processes.clips_per_step(self.phases[progress.phase], self.accelerator)

    def take(self, batches: Iterator[Any], progress: Progress) -> dict[str, float]:
        """One optimiser step over the next batches; moves the progress.

        Returns:
            Named values for the curve: the loss over all processes, the others over this one's batches.

        Raises:
            FloatingPointError: if loss or gradients are not finite more often than the recipe's `max_skips` allows.
        """
        started, phase = time.monotonic(), self.phases[progress.phase]
        rate = learning_rate(phase, progress.step)
        set_rate(self.contents.optimizers, rate)
        losses: list[float] = []
        named: dict[str, list[float]] = {}
        for micro_batch in range(phase.accumulate):
            last = micro_batch == phase.accumulate - 1
            with processes.without_sync(self.accelerator, self.wrapped, when=not last):
                loss, values = self._loss(next(batches), micro_batch, progress)
                (loss / phase.accumulate).backward()
            losses.append(loss.item())
            for name, value in values.items():
                named.setdefault(name, []).append(value)
        mean = sum(losses) / len(losses)
        mean = processes.add_up([mean], self.accelerator)[0] / self.accelerator.num_processes
        norm = self._update(progress, mean)
        progress.step += 1
        progress.total += 1
        progress.clips = self.clips(progress)
        progress.seconds += time.monotonic() - started
        means = {name: sum(values) / len(values) for name, values in named.items()}
        return {"loss": mean, "norm": norm, "rate": rate} | means

    def _loss(self, batch: Any, micro_batch: int, progress: Progress) -> tuple[Tensor, dict[str, float]]:
        """Loss and named values of one batch of this process."""
        seed = self.recipe.seed
        places = processes.places_of(self.phases[progress.phase], micro_batch, self.accelerator)
        draws = Draws(seed, progress.total, places, self.clips(progress), self.device)
        # Dropout layers know no generator but the global one.
        torch.manual_seed(sample_seed(seed, progress.total, 2, places[0]))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.bf16):
            result: tuple[Tensor, dict[str, float]] = self.wrapped(batch, progress.phase, draws)
        return result

    def _update(self, progress: Progress, loss: float) -> float:
        """Clip the gradients, change weights and average, and forget the gradients; returns the norm.

        Raises:
            FloatingPointError: if loss or gradients are not finite more often than the recipe's `max_skips` allows.
        """
        norm = processes.scalar(self.accelerator.clip_grad_norm_(self.parameters, self.recipe.max_grad_norm))
        is_good = math.isfinite(loss) and math.isfinite(norm)
        if is_good:
            for optimizer in self.contents.optimizers:
                optimizer.step()
            self.contents.average.update(progress.total)
        for optimizer in self.contents.optimizers:
            optimizer.zero_grad(set_to_none=True)
        progress.skipped += not is_good
        progress.skipped_in_a_row = 0 if is_good else progress.skipped_in_a_row + 1
        if progress.skipped_in_a_row > self.recipe.max_skips:
            what = f"the gradients' norm is {norm}" if math.isfinite(loss) else f"loss is {loss}"
            raise FloatingPointError(
                f"{what} at step {progress.total}; lower the learning rate, or let max_skips steps pass, and resume "
                "from the last checkpoint"
            )
        return norm
