"""Folders of videos, from any system: what is in them, and what belongs together by name.

A video is a video file, a picture (one frame), or a folder of numbered pictures (its frames).
Shapes: F frames of H x W pixels in [-1, 1].
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from flashvideo.video import iter_frames, probe_video, read_metadata, read_video

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FRAME_RATE = Fraction(8)
"""Of pictures, which have none; frames per second."""

_BY_RUN = ("settings.refinement.original_prompt", "settings.stage1.prompt", "settings.stage1.seed")
_BY_INPUT = ("settings.stage2.computed", "settings.stage2.crop")
"""Entries of a video's own note that differ from run to run, and from input to input, of one setting."""


@dataclass(frozen=True, kw_only=True)
class VideoFile:
    """A video of a folder."""

    name: str
    """The file's name without suffix, or the folder's: what it is known by in every folder."""

    paths: tuple[Path, ...]
    """The file, or the pictures of its frames in order."""

    @property
    def is_video(self) -> bool:
        """Whether it is a video file and not pictures."""
        return self.paths[0].suffix.lower() in VIDEO_SUFFIXES

    def read(self, most: int | None = None) -> Tensor:
        """Returns the frames (F, 3, H, W).

        Args:
            most: So many of them at most, from the first; all if None.

        Raises:
            ValueError: If a file cannot be read, or pictures differ in size.
        """
        if self.is_video and most is not None:
            return torch.stack(list(itertools.islice(iter_frames(self.paths[0]), most)))
        if self.is_video:
            return read_video(self.paths[0]).frames
        frames = [read_picture(path) for path in self.paths[:most]]
        sizes = {tuple(frame.shape[-2:]) for frame in frames}
        if len(sizes) > 1:
            raise ValueError(f"frames of {self.name} must have one size, got {sorted(sizes)}; resize some")
        return torch.stack(frames)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width; of pictures those of the first."""
        if self.is_video:
            info = probe_video(self.paths[0])
            return info.height, info.width
        with Image.open(self.paths[0]) as image:
            return image.height, image.width

    @property
    def frame_rate(self) -> Fraction:
        """Frames per second; `FRAME_RATE` for pictures."""
        return probe_video(self.paths[0]).frame_rate if self.is_video else FRAME_RATE

    def note(self) -> dict[str, Any]:
        """Returns what the file says about its making; empty for pictures and files of others."""
        return read_metadata(self.paths[0]) if self.is_video else {}

    @functools.cached_property
    def digest(self) -> str:
        """A hash of the content, as it was when first asked for: each file is read once, however many need it."""
        total = hashlib.sha256()
        for path in self.paths:
            with path.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        return total.hexdigest()


def content_digest(path: Path) -> str:
    """Returns the first 16 digits of a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def read_picture(path: Path) -> Tensor:
    """Reads a picture as RGB (3, H, W) in [-1, 1].

    Raises:
        ValueError: If it is not a picture.
    """
    try:
        with Image.open(path) as image:
            levels = np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a picture ({error}); write it again") from None
    return torch.from_numpy(levels.copy()).permute(2, 0, 1).float() / 127.5 - 1


def find_videos(folder: Path) -> dict[str, VideoFile]:
    """Finds the videos of a folder; hidden files and other kinds of files are passed over.

    Args:
        folder: The folder.

    Returns:
        Videos by name, sorted.

    Raises:
        ValueError: If it is not a folder, holds no video, or two of one name.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ValueError(f"{folder} {what}, expected a folder of videos; check the name")
    found: dict[str, VideoFile] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            paths = tuple(sorted(_pictures(path), key=_natural))
        else:
            paths = (path,) if path.suffix.lower() in VIDEO_SUFFIXES + PICTURE_SUFFIXES else ()
        if not paths:
            continue
        name = path.name if path.is_dir() else path.stem
        if name in found:
            raise ValueError(
                f"{folder} has two videos called {name}, {found[name].paths[0].name} and {path.name}; "
                "rename or remove one"
            )
        found[name] = VideoFile(name=name, paths=paths)
    if not found:
        raise ValueError(
            f"{folder} holds no video, expected files such as .mp4, pictures, or folders of pictures"
        )
    return found


def _pictures(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".")
    ]


def _natural(path: Path) -> list[Any]:
    """Sorts frame2 before frame10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def match(names: Sequence[str], folder: Path, *, what: str) -> dict[str, VideoFile]:
    """Finds the videos of a folder that belong to others of the same name.

    Args:
        names: The names.
        folder: The folder; it may hold more.
        what: What they are, for the message.

    Returns:
        One for each name.

    Raises:
        ValueError: If one is missing.
    """
    found = find_videos(folder)
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(
            f"{folder} has no {what} for {len(missing)} of {len(names)} videos ({_some(missing)}); "
            "files belong together by their names without suffix"
        )
    return {name: found[name] for name in names}


def read_prompts(path: Path) -> dict[str, str]:
    """Reads which prompt belongs to which video.

    Args:
        path: CSV with the columns `name` and `prompt`; JSON Lines with objects of these two; or JSON, one object of
            prompts by name.

    Returns:
        Prompts by name without suffix.

    Raises:
        ValueError: If the file is none of these, or has a name twice.
    """
    if path.suffix.lower() == ".json":
        rows = [{"name": name, "prompt": prompt} for name, prompt in _read_object(path).items()]
    else:
        rows = read_rows(path, (".csv", ".jsonl"))
    prompts: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        name, prompt = (row.get(key) if isinstance(row, Mapping) else None for key in ("name", "prompt"))
        if not isinstance(name, str) or not isinstance(prompt, str):
            raise ValueError(f"{path} has no name and prompt in its row {number}; every row needs both")
        name = Path(name).stem if Path(name).suffix.lower() in VIDEO_SUFFIXES + PICTURE_SUFFIXES else name
        if name in prompts:
            raise ValueError(f"{path} has the name {name!r} twice; give each video one prompt")
        prompts[name] = prompt
    if not prompts:
        raise ValueError(f"{path} has no prompts; write a name and a prompt in each row")
    return prompts


def read_rows(path: Path, suffixes: Sequence[str]) -> list[Any]:
    """Reads rows of text (`.txt`, as `prompt`), CSV or JSON Lines, as objects by the names of columns.

    Args:
        path: The file.
        suffixes: Which of them may be.

    Raises:
        ValueError: If it is missing, another kind of file, or cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix not in suffixes:
        raise ValueError(f"{path} must be a {' or '.join(suffixes)} file of prompts; rename or convert it")
    text = _read_text(path)
    if suffix == ".csv":
        return list(csv.DictReader(io.StringIO(text, newline="")))
    lines = [line for line in io.StringIO(text) if line.strip()]
    if suffix == ".txt":
        return [{"prompt": line.rstrip("\n")} for line in lines]
    try:
        return [json.loads(line) for line in lines]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} has a line that is not JSON ({error}); mend it") from None


def _read_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); mend it") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} must be one object of prompts by name, got {type(found).__name__}")
    return found


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"{path} does not exist; check the name")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text; save it as such") from None


def check_one_setting(videos: Mapping[str, VideoFile], folder: Path) -> dict[str, Any]:
    """Checks that all videos of a folder were made alike, as far as they say.

    Args:
        videos: The videos.
        folder: Where they are, for the message.

    Returns:
        The setting that all have; empty if their files do not tell.

    Raises:
        ValueError: If two differ in more than prompt and seed.
    """
    settings = {name: setting_of(video.note()) for name, video in videos.items()}
    first_name = next(iter(settings))
    first = settings[first_name]
    for name, setting in settings.items():
        if setting != first:
            keys = sorted(key for key in {*setting, *first} if setting.get(key) != first.get(key))
            raise ValueError(
                f"{folder} mixes settings: {name} and {first_name} differ in {', '.join(keys)}; keep each "
                "setting in a folder of its own"
            )
    return first


def setting_of(note: Mapping[str, Any]) -> dict[str, Any]:
    """Picks from a video's note what is the same for all videos of one setting.

    Args:
        note: As `flashvideo.video.generation_metadata` makes it; others are passed over.

    Returns:
        Values such as `steps.stage2` and `settings.stage2.noise_step`; empty for another kind of note.
    """
    if note.get("software") != "flashvideo":
        return {}
    flat = dict(
        _flat({key: note[key] for key in ("model", "version", "sizes", "steps", "settings") if key in note})
    )
    if "input" in note.get("sizes", {}):  # an enhanced video is as large as its input makes it
        flat = {key: value for key, value in flat.items() if not key.startswith(("sizes.", *_BY_INPUT))}
    return {key: value for key, value in flat.items() if not key.startswith(_BY_RUN)}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
