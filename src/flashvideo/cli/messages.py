"""What the command says on stderr: warnings, notes with `--verbose`, and progress."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self


class StderrHandler(logging.Handler):
    """Writes each message once, as `flashvideo: warning: ...`, without tearing a progress bar apart."""

    def __init__(self) -> None:
        super().__init__()
        self.warnings: list[str] = []
        self._seen: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a message, unless the same one was written before: both stages warn of the same words."""
        message = record.getMessage()
        if message in self._seen:
            return
        self._seen.add(message)
        is_warning = record.levelno >= logging.WARNING
        if is_warning:
            self.warnings.append(message)
        from tqdm import tqdm

        level = f"{record.levelname.lower()}: " if is_warning else ""
        tqdm.write(f"flashvideo: {level}{message}", file=sys.stderr)


@contextmanager
def messages_to_stderr(*, verbose: bool, debug: bool) -> Iterator[StderrHandler]:
    """Within the block, what the package logs appears on stderr.

    Args:
        verbose: Show notes, not only warnings.
        debug: Show everything.

    Yields:
        The handler, which collects the warnings.
    """
    logger, handler = logging.getLogger("flashvideo"), StderrHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if debug else logging.INFO if verbose else logging.WARNING)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def one_sentence(error: BaseException) -> str:
    """Returns an error's message on one line; errors of the system name their file first.

    >>> one_sentence(FileNotFoundError(2, "No such file or directory", "a.mp4"))
    'a.mp4: No such file or directory'
    """
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


class StepProgress:
    """A progress bar over the steps of one phase, with the time left; also the callback that moves it.

    Args:
        label: What is being done.
        total: Number of steps.
        shown: Whether to show anything at all.
        unit: What a step is called.
    """

    def __init__(self, label: str, total: int, *, shown: bool, unit: str = "step") -> None:
        from tqdm import tqdm

        size = shutil.get_terminal_size()
        self._bar: Any = tqdm(
            total=total,
            desc=label,
            disable=not shown,
            file=sys.stderr,
            # tqdm shows nothing in a terminal that does not tell its size
            ncols=size.columns,
            nrows=size.lines,
            bar_format="{desc}: {bar:16} "
            + unit
            + " {n_fmt}/{total_fmt}, {elapsed} gone, {remaining} left{postfix}",
        )

    def __call__(
        self, pipeline: object, step: int, timestep: object, tensors: dict[str, Any]
    ) -> dict[str, Any]:
        """Counts a step; replaces no tensors."""
        self._bar.update()
        if self._bar.n == self._bar.total:
            self._bar.set_postfix_str("decoding")
        return {}

    def begin(self, done: int) -> None:
        """Says how many steps were done before: they take no time."""
        self._bar.initial = self._bar.n = done
        self._bar.refresh()

    def reach(self, done: int) -> None:
        """Moves to a number of steps."""
        self._bar.n = done
        self._bar.refresh()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._bar.set_postfix_str("")
        self._bar.close()


def progress_is_shown(wanted: bool | None) -> bool:
    """Returns what `--progress` or `--no-progress` said, and otherwise whether stderr is a terminal."""
    return sys.stderr.isatty() if wanted is None else wanted
