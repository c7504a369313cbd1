"""One clip of a source: where its video or picture lies, and its caption."""

import json
import math
import posixpath
from dataclasses import dataclass

from flashvideo.data.clips.files import ClipError, ClipFile

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg"}
    | {".ts", ".m2ts", ".mts", ".wmv", ".flv", ".ogv", ".3gp", ".gif"}
)
IMAGE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif"))
CAPTION_KEYS = ("caption", "text")
"""How a caption is called in a JSON file or a table, the first that is there."""


@dataclass(frozen=True, kw_only=True)
class ClipEntry:
    """A video, a part of one, or a picture.

    Attributes:
        name: Path or URL, of a tar file's member with the member's name after it, with `#start-end` of a part.
        key: Path of the video or picture as seen from its source: the same on every machine, and of all parts of a
            video.
        file: Where the bytes lie.
        source: Name of the source.
        is_image: Whether it is a picture.
        caption: The caption, where a table gave it.
        caption_file: Otherwise the file that holds it, which is read when it is needed.
        caption_is_json: Whether that file is a JSON object with a caption; if not, it is the caption.
        start: Where the part begins, in seconds.
        end: Where it ends; infinity is the end of the video.
        stamp: Size and version of the file where the listing gave them, otherwise empty.
    """

    name: str
    key: str
    file: ClipFile
    source: str
    is_image: bool
    caption: str = ""
    caption_file: ClipFile | None = None
    caption_is_json: bool = False
    start: float = 0.0
    end: float = math.inf
    stamp: str = ""

    @property
    def has_caption(self) -> bool:
        """Whether a caption was given; what a caption file holds is not looked at."""
        return bool(self.caption) or self.caption_file is not None

    def read_caption(self) -> str:
        """The caption without white space around it; empty if there is none.

        Raises:
            ClipError: If the caption's file is not text in UTF-8, or not JSON with a caption.
        """
        if self.caption_file is None:
            return self.caption.strip()
        data = self.caption_file.read()
        try:
            text = data.decode("utf-8-sig")
            if self.caption_is_json:
                text = caption_of(json.loads(text))
        except (ValueError, AttributeError) as error:  # the latter of JSON that is no object
            raise ClipError(f"its caption cannot be read ({error})") from None
        return text.strip()


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What a source holds.

    Attributes:
        entries: Its clips, in an order that depends on the source alone.
        problems: By name, why a file or a shard, or a part of it, was left out.
    """

    entries: list[ClipEntry]
    problems: dict[str, str]


def caption_of(values: dict[str, object]) -> str:
    """The caption among the values of a JSON object or a table's row; empty if there is none."""
    text = next((values[key] for key in CAPTION_KEYS if values.get(key) is not None), "")
    return str(text)


def suffix_of(path: str) -> str:
    """The suffix of a path or URL in small letters."""
    return posixpath.splitext(path.partition("?")[0] if "://" in path else path)[1].lower()
