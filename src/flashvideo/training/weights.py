"""Judged weights in diffusers layout: the best ones so far, and what a run leaves.

output/best/step_00001234/   the average's weights that were judged best, with `validation.json`
output/                      at the end, the same parts: the best of the run
output/last/                 at the end, the last average
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from flashvideo.training.average import Average
from flashvideo.training.checkpoints import PARTIAL, Best, put_in_place, remove_folder, write_durably
from flashvideo.training.processes import gather_whole, outline, put_whole, trained_parameters
from flashvideo.training.task import Task

TENSORS = "trained.safetensors"
"""In a folder of best weights: all trained tensors by name, for the phases that start from them."""

FIGURES = "validation.json"


class Weights:
    """Writes and reads folders of weights; all processes must call each method.

    Made before the networks are shared out, since whole weights need a place to be put together in.

    Args:
        task: whose networks they are.
        output: of the run.
        accelerator: the processes.
        sharded: whether each holds a part of the weights.
        keep_tensors: also keep what `restore` reads.
    """

    def __init__(
        self, task: Task, output: Path, accelerator: Accelerator, *, sharded: bool, keep_tensors: bool
    ) -> None:
        self.task, self.output, self.accelerator = task, output, accelerator
        self.sharded, self.keep_tensors = sharded, keep_tensors
        self.whole = outline(task.modules) if sharded and accelerator.is_main_process else None

    def folder(self, best: Best) -> Path:
        """Where such weights lie."""
        return self.output / "best" / f"step_{best.step:08}"

    def write(self, target: Path, average: Average, figures: Mapping[str, float], *, tensors: bool) -> None:
        """Write the average's weights into a folder, which appears whole.

        Args:
            target: the folder; one that is there is replaced.
            average: of the weights.
            figures: of these weights, for `validation.json`.
            tensors: also write what `restore` reads, if the run keeps it.
        """
        partial = target.with_name(target.name + PARTIAL)
        with average.swapped():
            modules = self.task.modules
            if self.sharded:
                modules = gather_whole(modules, self.whole)
            if self.accelerator.is_main_process:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
                self.task.save(partial, modules)
                write_durably(partial / FIGURES, json.dumps(dict(figures), indent=1))
                if tensors and self.keep_tensors:
                    values = {n: p.detach().contiguous() for n, p in trained_parameters(modules).items()}
                    save_file(values, partial / TENSORS)
                put_in_place(partial, target)
        self.accelerator.wait_for_everyone()

    def restore(self, best: Best) -> None:
        """Load the best weights into the networks."""
        values = load_file(self.folder(best) / TENSORS)
        for name, parameter in trained_parameters(self.task.modules).items():
            put_whole(parameter, values[name])

    def prune(self, keep: set[int]) -> None:
        """Remove best weights of other steps than these."""
        names = {f"step_{step:08}" for step in keep}
        for path in (self.output / "best").glob("step_*"):
            if path.name not in names and path.suffix != PARTIAL:
                remove_folder(path)

    def leave(self, best: Best) -> list[str]:
        """Put the parts of the best weights into the run's output.

        Returns:
            Names of these files and folders.
        """
        staged = []
        for source in sorted(self.folder(best).iterdir()):
            if source.name != TENSORS:
                partial = self.output / (source.name + PARTIAL)
                if source.is_dir():
                    shutil.rmtree(partial, ignore_errors=True)
                    shutil.copytree(source, partial)
                else:
                    shutil.copy(source, partial)
                staged.append((partial, self.output / source.name))
        for (
            partial,
            target,
        ) in staged:  # together, so that old and new parts are side by side for a moment only
            put_in_place(partial, target)
        return [target.name for _, target in staged]


def move_files(source: Path, target: Path) -> list[Path]:
    """Move files of one folder to another, each at once; returns their new places."""
    moved = []
    for path in sorted(source.iterdir()):
        os.replace(path, target / path.name)
        moved.append(target / path.name)
    return moved
