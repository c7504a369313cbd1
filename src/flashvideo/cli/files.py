"""Files named on the command line, checked before the long work and not after it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from flashvideo.cli.arguments import UsageError

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm")
"""Suffixes that `flashvideo.video.write_video` writes."""

LATENTS_SUFFIX = ".safetensors"
"""Suffix of the file beside a preview from which it is continued."""


def check_input(path: Path) -> None:
    """Checks that a file is there and holds something.

    Raises:
        ValueError: In one sentence, what is wrong.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected a video file; name one file inside it")
    if not path.exists():
        raise ValueError(f"{path} does not exist; check the name")
    if path.is_file() and path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes), expected a video file; download or write it again")


def check_output(path: Path, suffixes: Sequence[str] = VIDEO_SUFFIXES) -> None:
    """Checks that a file can be written; leaves nothing behind. An existing file will be replaced.

    Raises:
        ValueError: In one sentence, what is wrong.
    """
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder, expected a file to write; add a name such as {path / 'out.mp4'}"
        )
    if path.suffix.lower() not in suffixes:
        found = f"the suffix {path.suffix!r}" if path.suffix else "no suffix"
        raise ValueError(f"{path} has {found}, expected one of {', '.join(suffixes)}; rename it")
    if not path.parent.is_dir():
        raise ValueError(
            f"{path} cannot be written: {path.parent} is not an existing folder; create it first"
        )
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}; choose another folder") from None
    if path.exists() and not os.access(path, os.W_OK):
        raise ValueError(f"{path} is there already and write-protected; choose another name")


def check_folder(path: Path) -> None:
    """Checks that a folder is there or can be made; it is made where it is used.

    Raises:
        ValueError: If it cannot.
    """
    nearest = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not nearest.is_dir():
        raise ValueError(f"{path} cannot be a folder, since {nearest} is a file; choose another name")
    if not os.access(nearest, os.W_OK):
        raise ValueError(
            f"{path} cannot be written, since {nearest} is write-protected; choose another folder"
        )


def check_distinct(outputs: Sequence[Path], inputs: Sequence[Path] = ()) -> None:
    """Checks that no output is another output or an input.

    Raises:
        UsageError: If one is.
    """
    seen = {path.resolve(): "is read" for path in inputs}
    for path in outputs:
        if (use := seen.get(path.resolve())) is not None:
            raise UsageError(f"{path} {use} and would be overwritten; give the output another name")
        seen[path.resolve()] = "is written already"
