"""The folder of models that were converted on this machine: each made once, also when two processes want it at once.

A model is made in a folder beside its own and moved when it is complete. Whoever makes it holds a lock that the system
lets go of when the process dies; the next one to hold it sweeps away what was left.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from flashvideo.pipelines.hub_errors import writing

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "FLASHVIDEO_CACHE"
"""Environment variable that names the cache folder."""

INDEX = "model_index.json"
"""File that every complete model has."""


def cache_folder() -> Path:
    """Returns where converted models are kept: `$FLASHVIDEO_CACHE`, or `~/.cache/flashvideo`."""
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/flashvideo").expanduser().absolute()


def file_name(text: str) -> str:
    """Returns a text as a part of a file's name.

    >>> file_name("FoundationVision/FlashVideo")
    'FoundationVision--FlashVideo'
    """
    return re.sub(r"[^\w.-]", "_", text.replace("/", "--"))


def is_complete(folder: Path) -> bool:
    """Whether a folder holds a model."""
    return (folder / INDEX).is_file()


def make_once(folder: Path, make: Callable[[Path], None], *, what: str) -> Path:
    """Makes a model's folder, unless it is there already or another process is making it.

    Args:
        folder: Where the model shall be.
        make: `make(output)` writes the model into `output`, which does not exist yet.
        what: What is being made, for messages.

    Returns:
        The folder, complete.

    Raises:
        ValueError: If the cache cannot be written.
    """
    if is_complete(folder):
        return folder
    lock = FileLock(folder.with_name(folder.name + ".lock"))
    try:
        with writing(what, folder.parent, variable=CACHE_VARIABLE):
            folder.parent.mkdir(parents=True, exist_ok=True)
            held = lock.acquire(timeout=0)
    except Timeout:
        logger.warning("waiting for another process, which is making %s (%s)", what, lock.lock_file)
        held = lock.acquire()
    with held:
        if not is_complete(folder):
            _make(folder, make, what)
    return folder


def _make(folder: Path, make: Callable[[Path], None], what: str) -> None:
    unfinished = folder.with_name(folder.name + ".unfinished")
    with writing(what, folder.parent, variable=CACHE_VARIABLE):
        for leftover in (unfinished, folder):
            if leftover.exists():
                logger.info("removing %s, left by a run that was interrupted", leftover)
                shutil.rmtree(leftover)
        unfinished.mkdir()
    try:
        make(unfinished / folder.name)
        with writing(what, folder.parent, variable=CACHE_VARIABLE):
            (unfinished / folder.name).rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
