"""What a sweep is made over: scenes of the procedural world, prompts, or videos of one's own.

Shapes: F frames of H x W pixels in [-1, 1]; h x w of what goes into Stage II.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from flashvideo.data.captions import full_caption
from flashvideo.data.shapes_world import Scene, render, sample_scene
from flashvideo.evaluation.folders import VideoFile, find_videos, match, read_rows
from flashvideo.evaluation.suite import FIRST_SEED, held_out_scene
from flashvideo.pipelines.sizes import crop_offset

Kind = Literal["scenes", "prompts", "inputs"]


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing that every setting is tried on."""

    name: str
    """Unique in a sweep."""

    prompt: str | None = None
    """The prompt; None for a video without text."""

    scene: Scene | None = None
    """The scene, of which small and full size are rendered."""

    video: VideoFile | None = None
    """What goes into Stage II."""

    reference: VideoFile | None = None
    """What should come out of it."""

    def as_dict(self) -> dict[str, Any]:
        """Returns what tells this item from another of the same name; of files their contents."""
        about: dict[str, Any] = {"name": self.name, "prompt": self.prompt}
        for name, file in (("video", self.video), ("reference", self.reference)):
            if file is not None:
                about[name] = file.digest
        return about


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
    """Reads prompts: text with one in a line, or CSV or JSON Lines with `prompt` and perhaps `name`.

    Empty lines of text are left out; prompts without a name are numbered.

    Raises:
        ValueError: If it is none of these, a prompt is missing or empty, or a name is there twice.
    """
    found: dict[str, Item] = {}
    for number, row in enumerate(read_rows(path, (".txt", ".csv", ".jsonl")), 1):
        prompt = row.get("prompt") if isinstance(row, Mapping) else None
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(f"{path} has no prompt in its row {number}; every row needs one, named prompt")
        name = str(row.get("name") or f"prompt_{number:04}")
        if name in found:
            raise ValueError(f"{path} has the name {name!r} twice; give each row its own")
        found[name] = Item(name=name, prompt=prompt.strip())
    if not found:
        raise ValueError(f"{path} has no prompts; write one in a line")
    return list(found.values())


def input_items(
    folder: Path, *, references: Path | None = None, prompts: Mapping[str, str] | None = None
) -> list[Item]:
    """Lists the videos of a folder.

    Args:
        folder: The folder, see `flashvideo.evaluation.folders`.
        references: Folder with a video of the same name for each of them.
        prompts: Prompts by names of videos.

    Raises:
        ValueError: If there are no videos, a reference is missing, or a prompt belongs to none of them.
    """
    videos, named = find_videos(folder), prompts or {}
    if strange := sorted(set(named) - set(videos)):
        raise ValueError(f"{folder} has no video {strange[0]!r}, for which there is a prompt; check the name")
    true = {} if references is None else match(list(videos), references, what="reference")
    return [
        Item(name=name, prompt=named.get(name), video=video, reference=true.get(name))
        for name, video in videos.items()
    ]


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
