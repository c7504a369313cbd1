"""What a sweep is made over: scenes of the procedural world, prompts, or videos of one's own.

Shapes: F frames of H x W pixels in [-1, 1]; h x w of what goes into Stage II.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from flashvideo.data.captions import full_caption
from flashvideo.data.shapes_world import Scene, render, sample_scene
from flashvideo.evaluation.suite import FIRST_SEED, held_out_scene
from flashvideo.pipelines.sizes import crop_offset
from flashvideo.video import read_video

Kind = Literal["scenes", "prompts", "inputs"]

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
"""Files of a folder that are taken as videos."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing that every setting is tried on."""

    name: str
    """Unique in a sweep."""

    prompt: str | None = None
    """The prompt; None for a video without text."""

    scene: Scene | None = None
    """The scene, of which small and full size are rendered."""

    video: Path | None = None
    """What goes into Stage II."""

    reference: Path | None = None
    """What should come out of it."""

    def as_dict(self) -> dict[str, Any]:
        """Returns what tells this item from another of the same name; of files their contents."""
        about: dict[str, Any] = {"name": self.name, "prompt": self.prompt}
        for name, path in (("video", self.video), ("reference", self.reference)):
            if path is not None:
                about[name] = {"file": path.name, "sha256": file_digest(path)}
        return about


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def scene_items(count: int, *, preview_only: bool = False) -> list[Item]:
    """Makes held-out scenes: combinations of attributes that were never trained on.

    Args:
        count: How many; more of them begin with fewer.
        preview_only: Whether only their prompts are wanted: scenes with one object and without a pan, which readers can
            read.
    """
    items = []
    for index in range(count):
        scene = held_out_scene(index) if preview_only else sample_scene(FIRST_SEED + index, held_out=True)
        items.append(Item(name=f"scene_{index:04}", prompt=full_caption(scene), scene=scene))
    return items


def prompt_items(path: Path) -> list[Item]:
    """Reads prompts, see `read_prompts`; those without a name are numbered.

    Raises:
        ValueError: In one sentence, what is wrong with the file.
    """
    rows = read_prompts(path)
    return [Item(name=name or f"prompt_{i:04}", prompt=prompt) for i, (name, prompt) in enumerate(rows, 1)]


def input_items(
    folder: Path, *, references: Path | None = None, prompts: Sequence[tuple[str | None, str]] = ()
) -> list[Item]:
    """Lists the videos of a folder.

    Args:
        folder: The folder, itself and not those in it.
        references: Folder with a video of the same name, the suffix aside, for each of them.
        prompts: From `read_prompts`, with the name of a video each.

    Raises:
        ValueError: If there are no videos, a reference is missing, or a prompt belongs to none of them.
    """
    videos = list_videos(folder)
    true = {} if references is None else list_videos(references)
    if references is not None and (missing := sorted(set(videos) - set(true))):
        raise ValueError(f"{references} has no video named {missing[0]}, which {folder} has; add it")
    named: dict[str, str] = {}
    for name, prompt in prompts:
        if name is None:
            raise ValueError(
                f"prompts for the videos of {folder} need a name each, and the prompt {prompt!r} has none; "
                "write a csv or jsonl file with the columns name and prompt"
            )
        stem = Path(name).stem if Path(name).suffix.lower() in VIDEO_SUFFIXES else name
        if stem not in videos:
            raise ValueError(
                f"{folder} has no video named {name}, for which there is a prompt; check the name"
            )
        named[stem] = prompt
    return [
        Item(name=name, prompt=named.get(name), video=path, reference=true.get(name))
        for name, path in videos.items()
    ]


def list_videos(folder: Path) -> dict[str, Path]:
    """Returns the videos of a folder by their names without the suffix, in order.

    Raises:
        ValueError: If it is no folder, there are none, or two differ in the suffix only.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} must be a folder of videos, and is none; check the name")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in VIDEO_SUFFIXES or not path.is_file():
            continue
        if path.stem in found:
            raise ValueError(
                f"{folder} has two videos named {path.stem}, {found[path.stem].name} and {path.name}; "
                "rename one of them"
            )
        found[path.stem] = path
    if not found:
        raise ValueError(f"{folder} has no videos ({', '.join(VIDEO_SUFFIXES)}); name another folder")
    return found


def read_prompts(path: Path) -> list[tuple[str | None, str]]:
    """Reads a file of prompts: text with one in a line, or csv or jsonl with `prompt` and perhaps `name`.

    Returns:
        Names, where there are any, and prompts. Empty lines of text are left out.

    Raises:
        ValueError: If it is none of these, a prompt is missing or empty, or a name is there twice.
    """
    suffix = path.suffix.lower()
    if suffix not in (".txt", ".csv", ".jsonl"):
        raise ValueError(f"{path} must be a .txt, .csv or .jsonl file of prompts; rename or convert it")
    if not path.is_file():
        raise ValueError(f"{path} does not exist; check the name")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if suffix == ".txt":
            return _checked(path, [{"prompt": line.strip()} for line in text.splitlines() if line.strip()])
        if suffix == ".csv":
            return _checked(path, list(csv.DictReader(io.StringIO(text, newline=""))))
        return _checked(path, [json.loads(line) for line in text.splitlines() if line.strip()])
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text; save it as such") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} has a line that is not JSON ({error}); mend it") from None


def _checked(path: Path, rows: Sequence[Mapping[str, Any]]) -> list[tuple[str | None, str]]:
    if not rows:
        raise ValueError(f"{path} has no prompts; write one in a line")
    found: list[tuple[str | None, str]] = []
    for number, row in enumerate(rows, 1):
        prompt = row.get("prompt") if isinstance(row, Mapping) else None
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(f"{path} has no prompt in its row {number}; every row needs one, named prompt")
        name = row.get("name")
        found.append((str(name) if name else None, prompt.strip()))
    names = [name for name, _ in found if name is not None]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{path} has the name {repeated[0]!r} twice; give each row its own")
    return found


def render_pair(
    scene: Scene,
    num_frames: int,
    *,
    small: tuple[int, int],
    enlarged: tuple[int, int],
    final: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Renders a scene as it goes into Stage II and as it should come out.

    Args:
        scene: The scene.
        num_frames: F.
        small: h and w.
        enlarged: Height and width that Stage II works at.
        final: H and W, the middle of it.

    Returns:
        (F, 3, h, w) and (F, 3, H, W).
    """
    low = torch.from_numpy(render(scene, height=small[0], width=small[1], num_frames=num_frames))
    crop = (*crop_offset(enlarged, final), *final)
    truth = render(scene, height=enlarged[0], width=enlarged[1], num_frames=num_frames, crop=crop)
    return low, torch.from_numpy(truth)


def read_input(item: Item) -> tuple[Tensor, Tensor | None]:
    """Reads the video of an item (F, 3, h, w), and its reference (F, 3, H, W) if it has one.

    Raises:
        VideoError: If one cannot be read.
    """
    assert item.video is not None
    reference = None if item.reference is None else read_video(item.reference).frames
    return read_video(item.video).frames, reference
