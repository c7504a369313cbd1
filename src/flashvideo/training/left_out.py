"""Clips of one's own that a training leaves out: what is told as a phase begins, and the list of them with reasons."""

from __future__ import annotations

import logging
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import Dataset

from flashvideo.data.clips import ClipDataset
from flashvideo.training.checkpoints import PARTIAL, put_in_place, write_durably
from flashvideo.training.clip_data import StepClips
from flashvideo.training.precomputed import StepLatents

logger = logging.getLogger(__name__)

FILE = "skipped.txt"
"""The list in a run's output: one clip a line, a tab between its name and the reason."""


class LeftOut:
    """The clips that were left out so far, in any phase and by any process.

    Args:
        output: Of the run.
        accelerator: The processes.

    Attributes:
        reasons: Why, by name.
    """

    def __init__(self, output: Path, accelerator: Accelerator) -> None:
        self.path, self.accelerator = output / FILE, accelerator
        self.reasons: dict[str, str] = {}
        self._clips: ClipDataset | None = None
        self._num_written = -1

    def restore(self) -> None:
        """Goes on with the list that is there, in the main process."""
        if self.accelerator.is_main_process and self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            self.reasons = {name: reason for name, _, reason in (line.partition("\t") for line in lines)}

    def begin(self, dataset: Dataset, *, number: int, needs_captions: bool) -> None:
        """Takes up the clips of a phase, and tells of them if they are one's own.

        Args:
            dataset: Of the phase.
            number: Of the phase, from 1.
            needs_captions: Whether clips without a caption are worth a warning.
        """
        if not isinstance(dataset, StepClips | StepLatents):
            self._clips = None
            return
        clips = self._clips = dataset.clips
        self.reasons |= clips.skipped  # of every process the same
        if not self.accelerator.is_main_process:
            return
        lacking = needs_captions and clips.num_without_caption
        logger.log(logging.WARNING if lacking else logging.INFO, "phase %d: %s", number, clips.describe())
        sampler = dataset.sampler
        rare = [group.items for group in sampler.groups if len(group.items) < sampler.batch_size]
        if rare:
            told = ", ".join(f"{len(items)} of {clips.bucket(int(items[0]))}" for items in rare)
            logger.warning(
                "phase %d: fewer clips than the %d of a step are there of a size: %s; a step of it shows the same "
                "clips several times over, so add such clips or leave the size out",
                number,
                sampler.batch_size,
                told,
            )

    def write(self) -> None:
        """Brings together what the processes left out, and lists it if that is more than before; all must call it."""
        skipped = self._clips.skipped if self._clips is not None else {}
        for found in gather_object([{n: why for n, why in skipped.items() if n not in self.reasons}]):
            self.reasons |= found
        if not self.accelerator.is_main_process or len(self.reasons) == self._num_written:
            return
        self._num_written = len(self.reasons)
        if not self.reasons:
            self.path.unlink(missing_ok=True)  # of an earlier training
            return
        partial = self.path.with_name(self.path.name + PARTIAL)
        lines = [f"{_on_one_line(name)}\t{_on_one_line(why)}\n" for name, why in self.reasons.items()]
        write_durably(partial, "".join(lines))
        put_in_place(partial, self.path)


def _on_one_line(text: str) -> str:
    """What can be a part of a line in a file in UTF-8."""
    text = text.encode(errors="backslashreplace").decode()
    return " ".join(text.splitlines()).replace("\t", " ")
