"""What a recipe names as data: a folder, a table or tar shards, here or behind any fsspec URL.

A folder is read with all folders in it: videos and pictures, each with its caption in a `.txt` file of the same stem.
"""

import logging
import os
from dataclasses import dataclass

from flashvideo.data.clips.cache import FileCache
from flashvideo.data.clips.entries import IMAGE_SUFFIXES, VIDEO_SUFFIXES, ClipEntry, Listing, suffix_of
from flashvideo.data.clips.files import ClipFile, file_stamp, file_system, full_url
from flashvideo.data.clips.shards import find_shards, list_shards, shards_root
from flashvideo.data.clips.tables import TABLE_SUFFIXES, list_table

logger = logging.getLogger(__name__)

_PACKED_TARS = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True, kw_only=True)
class ClipSource:
    """One source of clips.

    Attributes:
        path: A folder; a table ending in .csv, .jsonl or .parquet; a tar file, a pattern of them such as
            `shards/{000..012}.tar`, or a folder of them. A path, or a URL such as `s3://bucket/clips`.
        weight: How many times as often as clips of weight 1 each of its clips is seen.
        name: What to call it; its path if empty.
        least_score: Of a table with the column `score`, take the rows of at least this score: fine-tuning on a curated
            list, the paper's preference alignment (Table 7).
    """

    path: str
    weight: float = 1.0
    name: str = ""
    least_score: float | None = None

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("path of a source must name a folder, a table or tar shards, got an empty one")
        if not 0 < self.weight <= 1000:
            raise ValueError(
                f"weight of a source must be greater than 0 and at most 1000, got {self.weight}; "
                "leave the source out to not use it"
            )


def list_source(source: ClipSource, *, cache: FileCache, progress: bool = True) -> Listing:
    """Lists the clips of a source; no video or picture is opened.

    Args:
        source: The source.
        cache: Where the members of tar shards are looked up, and kept.
        progress: Whether to show a bar.

    Raises:
        ValueError: If there is nothing there, or it is none of the three kinds, or a table is not right.
        ImportError: If it is a Parquet table and pyarrow is not installed.
    """
    url, name = os.path.expanduser(source.path), source.name or source.path
    if url.lower().endswith(_PACKED_TARS):
        raise ValueError(
            f"{url} is a compressed tar file, in which no sample can be reached alone; unpack it to a .tar"
        )
    if suffix_of(url) in TABLE_SUFFIXES:
        return list_table(url, source=name, least_score=source.least_score)
    if source.least_score is not None:
        raise ValueError(
            f"least_score is for a table ({', '.join(TABLE_SUFFIXES)}) with the column 'score', got {url}; drop it, or "
            "list the clips in a table"
        )
    if suffix_of(url) == ".tar":
        shards = find_shards(url)
        return list_shards(shards, root=shards_root(url), source=name, cache=cache, progress=progress)
    system, path = file_system(url)
    if not system.isdir(path):
        found = "is a file of another kind" if system.exists(path) else "does not exist"
        raise ValueError(
            f"{url} {found}, expected a folder, a table ({', '.join(TABLE_SUFFIXES)}) or tar shards"
        )
    infos = {full_url(system, found): info for found, info in system.find(path, detail=True).items()}
    files = {url: info for url, info in sorted(infos.items()) if not _base(url).startswith(".")}
    root = full_url(system, path).rstrip("/") + "/"
    entries = _folder_entries(files, root, name)
    shards = [url for url in files if suffix_of(url) == ".tar"]
    if entries and shards:
        logger.warning(
            "%s holds %d tar files beside videos and pictures; they are not read", url, len(shards)
        )
    if not entries and shards:
        return list_shards(shards, root=root, source=name, cache=cache, progress=progress)
    if not entries:
        raise ValueError(f"{url} holds no video, no picture and no tar file, expected clips; check the name")
    return Listing(entries=entries, problems={})


def _folder_entries(files: dict[str, dict], root: str, source: str) -> list[ClipEntry]:
    """The clips among the files of the folder `root`, given with what the file system tells of each."""
    captions = {url[:-4]: url for url in files if suffix_of(url) == ".txt" and files[url].get("size") != 0}
    entries = []
    for url, info in files.items():
        suffix = suffix_of(url)
        if suffix in VIDEO_SUFFIXES or suffix in IMAGE_SUFFIXES:
            caption = captions.get(url[: -len(suffix)])
            entries.append(
                ClipEntry(
                    name=url,
                    key=url.removeprefix(root),
                    file=ClipFile(url=url),
                    source=source,
                    is_image=suffix in IMAGE_SUFFIXES,
                    caption_file=None if caption is None else ClipFile(url=caption),
                    stamp=file_stamp(info),
                )
            )
    return entries


def _base(url: str) -> str:
    return url.rpartition("/")[2]
