"""A folder that is there whole or not at all."""

import logging
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

UNFINISHED_SUFFIX = ".unfinished"


@contextmanager
def new_folder(output: str | Path, num_bytes: int) -> Iterator[Path]:
    """Fill a folder under another name beside its place, and move it there when the block ends well.

    On an error or Ctrl-C the unfinished folder is removed. A killed process leaves it behind; the next run names it.

    Args:
        output: The folder to make; it must not exist, or be empty.
        num_bytes: About what will be written.

    Yields:
        The folder to fill.

    Raises:
        ValueError: If the output holds something, its place cannot be written, or the disk has no room.
    """
    output = Path(output).expanduser().absolute()
    check_new(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    check_room(output.parent, num_bytes)
    for stale in output.parent.glob(f".{output.name}.*{UNFINISHED_SUFFIX}"):
        logger.warning(
            "%s is unfinished, of another run or of one that was killed; delete it in that case", stale
        )
    unfinished = output.with_name(f".{output.name}.{uuid.uuid4().hex[:8]}{UNFINISHED_SUFFIX}")
    unfinished.mkdir()
    try:
        yield unfinished
        if output.is_dir():
            output.rmdir()  # it was empty; should it have been filled meanwhile, this fails
        unfinished.rename(output)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def check_new(output: Path) -> None:
    """Check that a folder can be made without replacing anything.

    Raises:
        ValueError: If there is something, or a file where a folder above it should be.
    """
    if output.is_symlink():
        raise ValueError(
            f"{output} is a symbolic link, expected a new folder; name the folder that it leads to"
        )
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file, expected a new folder; choose another name")
    above = next(path for path in output.parents if path.exists())
    if not above.is_dir():
        raise ValueError(f"{output} cannot be made, since {above} is a file; choose another name")
    if output.is_dir() and any(output.iterdir()):
        raise ValueError(
            f"{output} is there already and holds files; choose a new folder, or delete it first"
        )


def check_room(folder: Path, num_bytes: int) -> None:
    """Check that a disk has room.

    Raises:
        ValueError: If it has not, with both figures.
    """
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise ValueError(
            f"{num_bytes / 1e9:.2f} GB are needed in {folder}, where {free / 1e9:.2f} GB are free; "
            "make room or choose another disk"
        )
