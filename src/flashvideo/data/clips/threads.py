"""Many small reads at once, from disks and networks that answer slowly."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
Found = TypeVar("Found")

MOST_THREADS = 16
_SLICE = 10_000


def read_in_threads(
    read: Callable[[Item], Found],
    items: Sequence[Item],
    *,
    what: str,
    progress: bool = True,
    threads: int = MOST_THREADS,
    delay: float = 0.0,
) -> list[Found]:
    """Calls a function for every item, several at once.

    Args:
        read: Reads one; what it raises ends all, and reads that have not begun are dropped.
        items: What to read.
        what: What they are, for the bar.
        progress: Whether to show a bar.
        threads: How many wait at once.
        delay: Seconds before the bar is shown, so that what is soon done has none.

    Returns:
        What was read, in the order of the items.
    """
    pool = ThreadPoolExecutor(threads)
    try:
        found: list[Found] = []
        with tqdm(total=len(items), desc=what, disable=not progress, mininterval=1, delay=delay) as bar:
            for first in range(0, len(items), _SLICE):  # all at once, their futures would fill the memory
                for one in pool.map(read, items[first : first + _SLICE]):
                    found.append(one)
                    bar.update()
        return found
    finally:
        pool.shutdown(cancel_futures=True)
