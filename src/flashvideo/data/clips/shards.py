"""Tar shards, as WebDataset names them: members that share a name up to its first dot are one sample.

`0001.mp4` with `0001.txt`, or with `0001.json` that has a caption. Each shard's headers are read once; where a member
begins and how long it is makes any sample one read away.
"""

import itertools
import re
import tarfile
from typing import Any

from tqdm import tqdm

from flashvideo.data.clips.cache import FileCache
from flashvideo.data.clips.entries import IMAGE_SUFFIXES, VIDEO_SUFFIXES, ClipEntry, Listing, suffix_of
from flashvideo.data.clips.files import ClipFile, file_stamp, file_system, full_url

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand_braces(pattern: str) -> list[str]:
    """Writes a pattern out as a shell does: `{000..012}` and `{a,b}`, any number of them.

    Example:
        >>> expand_braces("s3://bucket/{08..10}.tar")
        ['s3://bucket/08.tar', 's3://bucket/09.tar', 's3://bucket/10.tar']
    """
    found = _BRACES.search(pattern)
    if found is None:
        return [pattern]
    bounds = _RANGE.fullmatch(found[1])
    if bounds:
        first, last = int(bounds[1]), int(bounds[2])
        width = max(len(bounds[1]), len(bounds[2])) if bounds[1].startswith("0") else 0
        step = 1 if first <= last else -1
        words = [f"{number:0{width}}" for number in range(first, last + step, step)]
    else:
        words = found[1].split(",")
    head, tail = pattern[: found.start()], pattern[found.end() :]
    return [*itertools.chain.from_iterable(expand_braces(head + word + tail) for word in words)]


def find_shards(pattern: str) -> list[str]:
    """The shards that a name means: braces are written out, then `*`, `?` and `[...]` are looked up.

    Raises:
        ValueError: If there are none.
    """
    shards: list[str] = []
    for url in expand_braces(pattern):
        system, path = file_system(url)
        if any(sign in path for sign in "*?["):
            shards += [full_url(system, found) for found in sorted(system.glob(path))]
        else:
            shards.append(full_url(system, path))
    if not shards:
        raise ValueError(f"{pattern} matches no file, expected tar shards; check the name")
    return shards


def shards_root(pattern: str) -> str:
    """The folder, with a slash behind, above all that is left open in a name of shards."""
    fixed = re.split(r"[{*?\[]", pattern, maxsplit=1)[0]
    system, path = file_system(f"{fixed}0.tar")  # a name, for that of a folder may lose its last slash
    return full_url(system, path).rpartition("/")[0] + "/"


def list_shards(shards: list[str], *, root: str, source: str, cache: FileCache, progress: bool) -> Listing:
    """Lists the samples of tar shards.

    Args:
        shards: Paths or URLs.
        root: What the keys of their samples leave out of those.
        source: Name of the source.
        cache: Where the members of shards that have not changed are looked up, and kept.
        progress: Whether to show a bar.

    Returns:
        The samples; of a shard that is cut off those before the cut, and of one that cannot be read none.
    """
    entries: list[ClipEntry] = []
    problems: dict[str, str] = {}
    for url in tqdm(shards, desc="shards", disable=not progress, mininterval=1):
        try:
            system, path = file_system(url)
            stamp = file_stamp(system.info(path))
            index = cache.get(f"members of {url}", stamp)
            if index is None:
                index = _members(system, path)
                cache.put(f"members of {url}", stamp, index)
        except OSError as error:
            problems[url] = f"the shard cannot be read ({type(error).__name__}: {error})"
            continue
        members, problem = index
        if problem:
            problems[url] = problem
        entries += _samples(url, url.removeprefix(root), stamp, source, members)
    return Listing(entries=entries, problems=problems)


def _members(system: Any, path: str) -> tuple[list[list[Any]], str]:
    """Name, offset and size of every file in a tar file, and what is wrong with it, if anything is."""
    members: list[list[Any]] = []
    with system.open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # it would keep every header in memory
                    if member.offset_data + member.size > size:
                        return members, f"the shard is cut off after {len(members)} files"
                    if member.isreg() and not member.issparse():
                        members.append([member.name, member.offset_data, member.size])
        except tarfile.TarError as error:
            after = f" after {len(members)} files" if members else ""
            return members, f"the shard is no sound tar file{after} ({error})"
    return members, ""


def _samples(url: str, shard: str, stamp: str, source: str, members: list[list[Any]]) -> list[ClipEntry]:
    """The samples among a shard's members, in the shard's order; `shard` is its own path as seen from the source."""
    samples: dict[str, dict[str, ClipFile]] = {}
    names: dict[tuple[str, str], str] = {}
    for name, offset, size in members:
        folder, slash, base = name.rpartition("/")
        key, dot, _ = base.partition(".")
        suffix = suffix_of(name)
        if dot and key:
            sample = folder + slash + key
            samples.setdefault(sample, {})[suffix] = ClipFile(url=url, offset=offset, size=size)
            names[sample, suffix] = name
    entries = []
    for sample, files in samples.items():
        medium = next((s for kind in (VIDEO_SUFFIXES, IMAGE_SUFFIXES) for s in files if s in kind), None)
        if medium is None:
            continue
        text = files.get(".txt")
        caption_file = text if text is not None else files.get(".json")
        entries.append(
            ClipEntry(
                name=f"{url}/{names[sample, medium]}",
                key=f"{shard}/{names[sample, medium]}",
                file=files[medium],
                source=source,
                is_image=medium in IMAGE_SUFFIXES,
                caption_file=caption_file if caption_file is not None and caption_file.size else None,
                caption_is_json=text is None,
                stamp=stamp,
            )
        )
    return entries
