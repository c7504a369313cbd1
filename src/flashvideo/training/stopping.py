"""Ctrl-C and the scheduler's SIGTERM as a wish that the loop grants after a whole step."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """The run was stopped by a signal; resume continues it.

    Args:
        message: what was saved, and how to go on.
        number: of the signal.

    Attributes:
        exit_code: what a command that was stopped by this signal exits with: 130 or 143.
    """

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.exit_code = 128 + int(number)


class StopSignals:
    """Within the block, signals to stop are noted in `received` instead of acted upon.

    Args:
        alone: whether this is the only process: then a second Ctrl-C stops at once, without saving. A launcher sends
            its processes several signals for one Ctrl-C.

    Attributes:
        received: the signal, 0 for none.
    """

    def __init__(self, *, alone: bool) -> None:
        self.alone, self.received = alone, 0
        self._before: dict[int, Any] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received and self.alone and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        if self.alone:
            # Streams and logs may be in the middle of a line, and cannot be entered again from here.
            os.write(2, b"\nstopping after this step; Ctrl-C again stops at once, without saving\n")

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # only there Python lets one set handlers
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def leave_signals_to_parent(worker: int) -> None:
    """For a process that makes data: a Ctrl-C in the terminal is the trainer's, and SIGTERM ends it as usual."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
