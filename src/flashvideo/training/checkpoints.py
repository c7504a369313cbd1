"""Checkpoints: folders that appear whole, are checked before they are read, and of which a few are kept.

    output/checkpoints/step_00001234/checkpoint.json   progress, and size and checksum of every other file
                                     state.pt          weights, average and optimisers; or, of sharded weights,
                                     shards/           what `torch.distributed.checkpoint` makes of them

A folder is written as `step_00001234.partial` and then renamed. So a process may be killed at any moment: what carries
the plain name is whole. A plain checkpoint can be continued by any number of processes with a copy of the weights
each, a sharded one by any number of processes with a part each.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from flashvideo.training.average import Average
from flashvideo.training.processes import trained_parameters

logger = logging.getLogger(__name__)
MANIFEST = "checkpoint.json"
PARTIAL = ".partial"
DAMAGED = ".damaged"


@dataclass(frozen=True, kw_only=True)
class Best:
    """Weights that were judged.

    Attributes:
        step: of the run.
        phase: index of the phase.
        score: the task's.
    """

    step: int
    phase: int
    score: float


@dataclass(kw_only=True)
class Progress:
    """Where a run stands: with weights, average and optimisers all that it takes to go on.

    Attributes:
        phase: index of the phase; the number of phases once all are done.
        step: of the phase, the next one.
        total: steps of all phases so far.
        clips: of each step of the phase so far, over all processes; 0 where it is not known.
        seconds: spent in steps.
        skipped: steps left out since their gradients were not finite.
        skipped_in_a_row: of these the latest, without a good one since.
        best: the best weights so far.
        best_of_phase: the best of the phase that was judged last.
        validations: figures of all validations, with their "step".
        data: what tells a phase's clips of one's own from others, of the phase that is trained; empty for other data.
    """

    phase: int = 0
    step: int = 0
    total: int = 0
    clips: int = 0
    seconds: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0
    best: Best | None = None
    best_of_phase: Best | None = None
    validations: list[dict[str, float]] = field(default_factory=list)
    data: str = ""


def read_progress(values: dict[str, Any]) -> Progress:
    """What `asdict` made of a `Progress`."""
    bests = {k: Best(**values[k]) if values[k] else None for k in ("best", "best_of_phase")}
    return Progress(**values | bests)


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a checkpoint holds, besides the progress.

    Attributes:
        objective: holds the trained parameters.
        optimizers: of them.
        average: of them.
    """

    objective: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    average: Average


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they lie; made when the first is written.
        limit: how many are kept.
        accelerator: the processes, all of which must call each method.
        sharded: whether each process holds a part of the weights.
    """

    def __init__(self, folder: Path, limit: int, accelerator: Accelerator, *, sharded: bool) -> None:
        self.folder, self.limit = folder, limit
        self.accelerator, self.sharded = accelerator, sharded

    def all(self) -> list[Path]:
        """Folders of checkpoints, oldest first."""
        return [p for p in sorted(self.folder.glob("step_*")) if p.suffix not in (PARTIAL, DAMAGED)]

    def save(self, contents: Contents, progress: Progress) -> Path:
        """Write a checkpoint, then remove those beyond the limit.

        Returns:
            Its folder.
        """
        target = self.folder / f"step_{progress.total:08}"
        partial = target.with_name(target.name + PARTIAL)
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        if self.sharded:
            _save_shards(contents, partial / "shards")
        elif self.accelerator.is_main_process:
            _save_plain(contents, partial / "state.pt")
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            manifest = {
                "kind": "sharded" if self.sharded else "plain",
                "progress": asdict(progress),
                "files": {str(p.relative_to(partial)): _describe(p) for p in _files(partial)},
            }
            write_durably(partial / MANIFEST, json.dumps(manifest, indent=1))
            put_in_place(partial, target)
            for old in self.all()[: -self.limit]:
                remove_folder(old)
        self.accelerator.wait_for_everyone()
        return target

    def newest(self) -> tuple[Path, Progress] | None:
        """Find the newest whole checkpoint; damaged ones are set aside with a warning.

        Returns:
            Its folder and progress; None if there is no checkpoint.

        Raises:
            ValueError: if there are some, or were, but none is whole.
            OSError: if one cannot be read for a reason that tells nothing of it, such as a disk that is away.
        """
        found: list[Any] = [self._newest() if self.accelerator.is_main_process else None]
        broadcast_object_list(found)
        if isinstance(found[0], Exception):
            raise found[0]
        if found[0] is None:
            return None
        path = self.folder / found[0]
        return path, read_progress(_manifest(path)["progress"])

    def load(self, path: Path, contents: Contents) -> None:
        """Read a whole checkpoint.

        Raises:
            ValueError: if it holds other weights than the run trains.
        """
        manifest = _manifest(path)
        if (manifest["kind"] == "sharded") != self.sharded:
            now = "parts of the weights" if self.sharded else "whole weights"
            raise ValueError(
                f"{path} is a {manifest['kind']} checkpoint, but these processes hold {now}; go on with sharding: "
                f"{'ddp' if self.sharded else 'fsdp and more than one process'}, or start from the run's best weights"
            )
        try:
            _load_shards(contents, path / "shards") if self.sharded else _load_plain(
                contents, path / "state.pt"
            )
        except (KeyError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"{path} does not fit what the recipe trains now: {' '.join(str(error).split())[:200]}; "
                "resume with the recipe that it was made by"
            ) from error

    def _newest(self) -> str | ValueError | OSError | None:
        """Name of the newest whole checkpoint, or what all processes are to raise."""
        for path in reversed(self.all()):
            try:
                fault = find_fault(path)
            except OSError as error:
                return error
            if fault is None:
                return path.name
            logger.warning("%s is damaged (%s) and is set aside; the one before is tried", path, fault)
            os.replace(path, path.with_name(path.name + DAMAGED))
        if any(self.folder.glob(f"step_*{DAMAGED}")):  # set aside now or by an earlier resume
            return ValueError(
                f"no checkpoint in {self.folder} is whole; put a whole copy of one there to go on, or delete "
                f"{self.folder.parent} or choose another output to train anew"
            )
        return None

    def referenced_steps(self) -> set[int]:
        """Steps whose best weights a kept checkpoint counts on."""
        steps = set()
        for path in self.all():
            if (path / MANIFEST).exists():
                progress = read_progress(_manifest(path)["progress"])
                steps |= {best.step for best in (progress.best, progress.best_of_phase) if best}
        return steps


def _manifest(path: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text())
    return manifest


def find_fault(path: Path) -> str | None:
    """What is wrong with a checkpoint's folder; None if all files are there and are as they were written.

    Raises:
        OSError: if a file that is there cannot be read, which does not show that it is damaged.
    """
    try:
        manifest = _manifest(path)
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except ValueError:
        return f"{MANIFEST} is not as it was written"
    for name, expected in manifest["files"].items():
        try:
            found = _describe(path / name)
        except FileNotFoundError:
            return f"{name} is missing"
        if found != expected:
            return f"{name} is not as it was written"
    return None


def put_in_place(partial: Path, target: Path) -> None:
    """Give a finished file or folder its name; what bore it before goes."""
    if target.is_dir():
        remove_folder(target, aside=".old")
    os.replace(partial, target)


def remove_folder(path: Path, *, aside: str = "") -> None:
    """Remove a folder such that no half of it is ever taken for the whole."""
    doomed = path.with_name(path.name + aside + PARTIAL)
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(path, doomed)
    shutil.rmtree(doomed)


def remove_partial(folder: Path) -> None:
    """Remove what a killed process left unfinished."""
    for path in folder.glob("*" + PARTIAL):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _describe(path: Path) -> list[int]:
    """Size and checksum."""
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            checksum = zlib.crc32(block, checksum)
    return [path.stat().st_size, checksum]


def write_durably(path: Path, text: str) -> None:
    """Write a small file that is on the disk when this returns."""
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _save_plain(contents: Contents, path: Path) -> None:
    parameters = trained_parameters(contents.objective)
    saved = {
        "parameters": {name: p.detach() for name, p in parameters.items()},
        "average": contents.average.shadow,
        "optimizers": [optimizer.state_dict() for optimizer in contents.optimizers],
    }
    with path.open("wb") as file:
        torch.save(saved, file)
        file.flush()
        os.fsync(file.fileno())


@torch.no_grad()
def _load_plain(contents: Contents, path: Path) -> None:
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} holds more than tensors") from error
    parameters = trained_parameters(contents.objective)
    if saved["parameters"].keys() != parameters.keys():
        raise ValueError(f"it holds {len(saved['parameters'])} parameters, the run has {len(parameters)}")
    for name, parameter in parameters.items():
        parameter.copy_(saved["parameters"][name])
    _load_optimizers(contents.optimizers, saved["optimizers"])
    # A run that kept no average before begins one now.
    if contents.average.shadow.keys() == saved["average"].keys():
        contents.average.load(saved["average"])
    else:
        contents.average.restart()


def _load_optimizers(optimizers: Sequence[torch.optim.Optimizer], states: Sequence[dict[str, Any]]) -> None:
    """Take moments; options such as rates are the recipe's."""
    for optimizer, values in zip(optimizers, states, strict=True):
        options = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        optimizer.load_state_dict(values)
        for group, own in zip(optimizer.param_groups, options, strict=True):
            group.update(own)


def _shard_contents(contents: Contents) -> dict[str, Any]:
    """All tensors by name, as sharded ones; a new optimiser gets its moments by this."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    optimizer = get_optimizer_state_dict(contents.objective, list(contents.optimizers))
    return {
        "parameters": {name: p.detach() for name, p in trained_parameters(contents.objective).items()},
        "average": dict(contents.average.shadow),
        "optimizer": optimizer,
    }


def _save_shards(contents: Contents, path: Path) -> None:
    from torch.distributed import checkpoint

    values = _shard_contents(contents)
    checkpoint.save(values | {"optimizer": values["optimizer"]["state"]}, checkpoint_id=path)


def _load_shards(contents: Contents, path: Path) -> None:
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

    values = _shard_contents(contents)
    stored = checkpoint.FileSystemReader(path).read_metadata().state_dict_metadata
    # As of whole weights: a run that kept no average before begins one now.
    begins = not all(f"average.{name}" in stored for name in values["average"])
    wanted = values | {"optimizer": values["optimizer"]["state"]} | ({"average": {}} if begins else {})
    try:
        checkpoint.load(wanted, checkpoint_id=path)
    except checkpoint.CheckpointException as error:  # no Exception; it holds one for each process that failed
        raise ValueError(str(next(iter(error.failures.values()))[0])) from error
    if begins:
        contents.average.restart()
    set_optimizer_state_dict(
        contents.objective, list(contents.optimizers), optim_state_dict=values["optimizer"]
    )
