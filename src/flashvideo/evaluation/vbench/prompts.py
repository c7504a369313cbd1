"""VBench's prompts and the videos that it wants of them: how many, under which names, from which seeds.

The list is VBench's own `VBench_full_info.json`, which is not part of this package. Names and numbers are those that
`VBench.build_full_info_json` of vbench 0.1.5 looks for: `{prompt}-{index}.mp4`, the prompt letter by letter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flashvideo.evaluation.vbench.totals import DIMENSIONS

INFO_NAME = "VBench_full_info.json"
"""Name of VBench's list, in its package and in its repository's folder `vbench`."""

STANDARD_ENTRIES = 946
"""Entries of the list of vbench 0.1.5; two prompts are in it twice, for different dimensions."""

STANDARD_SAMPLES = 5
"""Videos of each prompt that VBench reads."""

FLICKER_SAMPLES = 25
"""Videos of each prompt of temporal flickering, of which VBench's static filter keeps the first five still ones. VBench
names no fixed number and recommends more than five; its published CogVideoX videos are 25."""

FLICKER = "temporal flickering"
"""The dimension whose videos must hold still."""

_NAME_BYTES = 255
_SEED_BITS = 53  # whole numbers that every reader of JSON keeps exactly


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry of VBench's list."""

    prompt: str
    """The short prompt, after which the videos are named."""

    dimensions: tuple[str, ...]
    """What its videos are judged for, as `Dimension.name`."""

    long_prompt: str | None = None
    """What to make the videos from instead."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How many videos are made of a prompt.

    Raises:
        ValueError: If a number does not fit what VBench reads.
    """

    samples: int = STANDARD_SAMPLES
    """Videos of a prompt."""

    flicker_samples: int = FLICKER_SAMPLES
    """Videos of a prompt of temporal flickering."""

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if not 1 <= self.samples <= STANDARD_SAMPLES:
            raise ValueError(
                f"samples must be 1 to {STANDARD_SAMPLES}, which is all that VBench reads, got {self.samples}"
            )
        if self.flicker_samples < self.samples:
            raise ValueError(
                f"flicker_samples must be at least samples, {self.samples}, got {self.flicker_samples}"
            )

    def number(self, entry: Entry) -> int:
        """Returns how many videos are made of an entry."""
        return self.flicker_samples if FLICKER in entry.dimensions else self.samples


@dataclass(frozen=True, kw_only=True)
class PlannedVideo:
    """One video that VBench wants."""

    name: str
    """Its file's name."""

    prompt: str
    """The text that it is made from."""

    seed: int
    """Its seed."""


def read_info(path: Path) -> tuple[Entry, ...]:
    """Reads VBench's list.

    Args:
        path: `VBench_full_info.json`.

    Returns:
        Its entries, in order.

    Raises:
        ValueError: If the file is not such a list, or a prompt cannot be a file's name.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; expected VBench's list, {INFO_NAME}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}); expected VBench's list, {INFO_NAME}") from None
    if not isinstance(stored, list) or not stored:
        raise ValueError(
            f"{path} must hold a list of prompts as VBench's {INFO_NAME}, got {type(stored).__name__}"
        )
    return tuple(_read_entry(item, f"{path}, entry {i + 1},") for i, item in enumerate(stored))


def _read_entry(item: Any, place: str) -> Entry:
    known = {dimension.name for dimension in DIMENSIONS}
    prompt = item.get("prompt_en") if isinstance(item, dict) else None
    keys = item.get("dimension") if isinstance(item, dict) else None
    if not isinstance(prompt, str) or not prompt.strip() or not isinstance(keys, list) or not keys:
        raise ValueError(
            f"{place} must have the text prompt_en and the list dimension, got {json.dumps(item)}"
        )
    names = tuple(str(key).replace("_", " ") for key in keys)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"{place} names no dimension of VBench, got {unknown[0]!r}; expected one of {', '.join(known)}"
        )
    if "/" in prompt or "\0" in prompt or len(video_name(prompt, FLICKER_SAMPLES - 1).encode()) > _NAME_BYTES:
        raise ValueError(
            f"{place} cannot be the name of a file, as VBench needs it, got {prompt!r}; it must be without / and at "
            f"most {_NAME_BYTES} bytes long"
        )
    return Entry(prompt=prompt, dimensions=names)


def with_long_prompts(entries: Sequence[Entry], path: Path) -> tuple[Entry, ...]:
    """Gives each entry its long prompt.

    Args:
        entries: All of VBench's list, whose order the file must have.
        path: Text of one long prompt a line, such as VBench's `all_dimension_longer.txt`.

    Returns:
        The entries, with long prompts.

    Raises:
        ValueError: If there are more lines or fewer than entries, or one is empty.
    """
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    if len(lines) != len(entries):
        raise ValueError(
            f"{path} has {len(lines)} lines, expected {len(entries)}, one for each entry of VBench's list in its order"
        )
    if "" in lines:
        raise ValueError(f"{path} has no prompt on line {lines.index('') + 1}, expected one on each; add it")
    return tuple(replace(entry, long_prompt=line) for entry, line in zip(entries, lines, strict=True))


def choose_entries(entries: Sequence[Entry], dimensions: Sequence[str]) -> tuple[Entry, ...]:
    """Returns the entries that some dimensions need.

    Raises:
        ValueError: If there are none for one of them.
    """
    for name in dimensions:
        if not any(name in entry.dimensions for entry in entries):
            raise ValueError(
                f"VBench's list has no prompts for {name}; choose other dimensions or another list"
            )
    return tuple(entry for entry in entries if set(entry.dimensions) & set(dimensions))


def plan_videos(entries: Sequence[Entry], sampling: Sampling, *, seed: int) -> tuple[PlannedVideo, ...]:
    """Lists the videos of entries, all of a prompt together.

    A prompt that is in the list twice has one set of videos; of its two long prompts the later one counts, as in
    VBench's own loop, where the later video replaces the earlier.

    Args:
        entries: What to make videos of.
        sampling: How many of each.
        seed: What all seeds are derived from.

    Returns:
        The videos.
    """
    numbers: dict[str, int] = {}
    texts: dict[str, str] = {}
    for entry in entries:
        numbers[entry.prompt] = max(numbers.get(entry.prompt, 0), sampling.number(entry))
        texts[entry.prompt] = entry.long_prompt or entry.prompt
    return tuple(
        PlannedVideo(
            name=video_name(prompt, index), prompt=texts[prompt], seed=video_seed(seed, prompt, index)
        )
        for prompt, number in numbers.items()
        for index in range(number)
    )


def video_name(prompt: str, index: int) -> str:
    """Returns the name under which VBench looks for a video.

    >>> video_name("a red car", 0)
    'a red car-0.mp4'
    """
    return f"{prompt}-{index}.mp4"


def video_seed(seed: int, prompt: str, index: int) -> int:
    """Returns the seed of one video, the same whatever else is made beside it.

    Args:
        seed: The seed of all videos.
        prompt: The short prompt.
        index: The video's number.

    Returns:
        53 bits of the three's SHA-256.
    """
    digest = hashlib.sha256(json.dumps([seed, prompt, index]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - _SEED_BITS)


def check_distinct_names(videos: Sequence[PlannedVideo], *, case_matters: bool) -> None:
    """Checks that no two videos are one file: two of VBench's prompts differ in one capital letter alone.

    Args:
        videos: The videos.
        case_matters: Whether the file system tells capital letters from small ones.

    Raises:
        ValueError: If two are.
    """
    if case_matters:
        return
    seen: dict[str, str] = {}
    for video in videos:
        if (other := seen.setdefault(video.name.casefold(), video.name)) != video.name:
            raise ValueError(
                f"{other} and {video.name} are one file on this file system, which does not tell capital letters from "
                "small ones; choose a folder on another one"
            )


def not_comparable(entries: Sequence[Entry], sampling: Sampling) -> tuple[str, ...]:
    """Returns why scores cannot stand beside published ones; nothing if they can.

    Args:
        entries: All of the list that was used.
        sampling: How many videos were made of a prompt.
    """
    reasons = []
    if len(entries) != STANDARD_ENTRIES:
        reasons.append(f"the list has {len(entries)} entries, VBench's has {STANDARD_ENTRIES}")
    if sampling.samples < STANDARD_SAMPLES:
        reasons.append(f"{sampling.samples} of {STANDARD_SAMPLES} videos of each prompt")
    return tuple(reasons)
