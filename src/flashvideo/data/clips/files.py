"""Where the bytes of a clip lie: a file on this machine, behind an fsspec URL, or inside a tar file.

Nothing is unpacked to disk: a member of a tar file is a range of its bytes, read through a seekable file object.
"""

import contextlib
import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem


class ClipError(ValueError):
    """A file that cannot be trained on; the message is its reason, without the file's name."""


@dataclass(frozen=True, kw_only=True)
class ClipFile:
    """Bytes of one video, picture or caption.

    Attributes:
        url: Path, or any URL that fsspec knows.
        offset: Where the bytes begin.
        size: How many they are; None is all from `offset` on.
    """

    url: str
    offset: int = 0
    size: int | None = None

    @contextlib.contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Opens the bytes for reading and seeking; positions count from `offset`.

        Raises:
            ValueError: If the URL's protocol is not known, or a package that it needs is missing.
            OSError: If the file cannot be opened.
        """
        system, path = file_system(self.url)
        with system.open(path, "rb") as whole:
            if not self.offset and self.size is None:
                yield cast(BinaryIO, whole)
                return
            size = self.size if self.size is not None else whole.seek(0, os.SEEK_END) - self.offset
            with io.BufferedReader(_Part(whole, self.offset, size), 1 << 16) as part:
                yield cast(BinaryIO, part)

    def read(self) -> bytes:
        """All of the bytes."""
        with self.open() as file:
            return file.read()


class _Part(io.RawIOBase):
    """A range of a seekable file as a file of its own; closing it leaves the whole file open."""

    def __init__(self, whole: Any, offset: int, size: int) -> None:
        self.whole, self.offset, self.size, self.position = whole, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        self.position = max(0, base + position)
        return self.position

    def readinto(self, buffer: Any) -> int:
        self.whole.seek(self.offset + self.position)
        data = self.whole.read(max(0, min(len(buffer), self.size - self.position)))
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)


def file_system(url: str) -> tuple[Any, str]:
    """The file system of a path or URL, and the path in it.

    Raises:
        ValueError: If the protocol is not known, or a package that it needs is missing.
    """
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise ValueError(f"{url} cannot be reached: {str(error).splitlines()[0]}") from None
    except ValueError as error:
        raise ValueError(f"{url} must be a path or a URL that fsspec knows, got: {error}") from None


def full_url(system: Any, path: str) -> str:
    """How a file that a file system listed is named outside of it: a plain path on this machine, otherwise a URL."""
    return path if isinstance(system, LocalFileSystem) else str(system.unstrip_protocol(path))


def file_stamp(info: Mapping[str, Any]) -> str:
    """Size and version of a file as its file system tells them; another stamp means that the file has changed."""
    names = ("mtime", "ETag", "etag", "md5Hash", "blob_id", "LastModified", "updated", "created")
    version = next((info[name] for name in names if info.get(name) is not None), "")
    return f"{info.get('size')} {version}"
