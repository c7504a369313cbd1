"""Sizes, rates and lengths of all clips, read once, in threads, and kept for files that do not change."""

import dataclasses
import logging
import os
from collections.abc import Sequence

from flashvideo.data.clips.cache import FileCache
from flashvideo.data.clips.decoding import ClipHeader, read_image_header, read_video_header
from flashvideo.data.clips.entries import ClipEntry
from flashvideo.data.clips.files import ClipError, file_stamp, file_system
from flashvideo.data.clips.threads import MOST_THREADS, read_in_threads

logger = logging.getLogger(__name__)


def read_headers(
    entries: Sequence[ClipEntry], *, cache: FileCache, progress: bool = True
) -> list[ClipHeader | str]:
    """Reads the header of every clip.

    Args:
        entries: The clips.
        cache: Where headers of unchanged files are looked up, and kept; written also if the reading is interrupted.
        progress: Whether to show a bar.

    Returns:
        For each clip its header, or the reason why it cannot be used. What is wrong with the file itself is kept like
        a header; why it could not be reached is not, and the next run tries again.
    """
    threads = min(MOST_THREADS, 2 * (os.cpu_count() or 1))  # they decode too
    try:
        return read_in_threads(
            lambda e: _header(e, cache), entries, what="clips", progress=progress, threads=threads
        )
    finally:
        cache.save()


def _header(entry: ClipEntry, cache: FileCache) -> ClipHeader | str:
    name = f"header of {entry.file.url}@{entry.file.offset}"
    try:
        stamp = entry.stamp
        if not stamp:
            system, path = file_system(entry.file.url)
            stamp = file_stamp(system.info(path))
        known = cache.get(name, stamp)
        if known is not None:
            return known if isinstance(known, str) else ClipHeader(**known)
        try:
            header = (read_image_header if entry.is_image else read_video_header)(entry.file)
        except ClipError as error:
            cache.put(name, stamp, str(error))
            return str(error)
        cache.put(name, stamp, dataclasses.asdict(header))
        return header
    except MemoryError:
        raise
    except Exception as error:  # file systems of many makers: whatever they raise is one clip's reason
        return reason_of(error)


def reason_of(error: Exception) -> str:
    """One line that says why a clip was left out."""
    if isinstance(error, ClipError):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "it does not exist"
    return f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}"
