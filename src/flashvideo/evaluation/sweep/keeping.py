"""Where a sweep keeps results and previews, and how results are written.

videos/<setting>/seed<seed>/<item>.mp4     a folder of one seed is a system for `flashvideo evaluate`
previews/<item>-seed<seed>-<hash>          latents and what they cost, without suffix
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from flashvideo import __version__
from flashvideo.evaluation.sweep.files import short_hash
from flashvideo.evaluation.sweep.grid import AXES, Setting, Value, varying_axes
from flashvideo.evaluation.sweep.items import Item
from flashvideo.evaluation.sweep.making import Made
from flashvideo.evaluation.sweep.planning import Sweep
from flashvideo.pipelines.two_stage import FlashVideoPipeline
from flashvideo.video import generation_metadata, write_video

_MOST_LETTERS = 60


def keep_video(
    folder: Path,
    sweep: Sweep,
    made: Made,
    *,
    pipeline: FlashVideoPipeline,
    item: Item,
    seed: int,
    setting: Setting,
    model: str,
) -> str:
    """Writes a result with what made it in its metadata.

    Args:
        folder: The sweep's.
        sweep: What is done.
        made: The result.
        pipeline: The model.
        item: What it was made from.
        seed: With which seed.
        setting: How.
        model: The model's name.

    Returns:
        The file's place in the folder.
    """
    rate = Fraction(pipeline.preset.stage1.frame_rate).limit_denominator(1001)
    if item.video is not None:
        rate = item.video.frame_rate
    note = generation_metadata(model=model, version=__version__, seed=seed, prompt=item.prompt, **made.about)
    path = setting_folder(folder / "videos", sweep, setting) / f"seed{seed}" / f"{file_name(item.name)}.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, made.frames, frame_rate=rate, metadata=note)
    return path.relative_to(folder).as_posix()


def setting_folder(videos: Path, sweep: Sweep, setting: Setting) -> Path:
    """Returns the folder of a setting's videos, called by what varies; one that is there keeps its name.

    Args:
        videos: Where the folders of all settings are.
        sweep: Whose settings vary.
        setting: The setting.
    """
    digest = short_hash(setting.as_dict())
    if videos.is_dir():
        for known in sorted(videos.glob(f"*-{digest}")):
            return known  # its grid may have grown since
    axes = varying_axes(sweep.settings) or AXES[:1]
    parts = [f"{axis.name}-{setting.value_text(axis)}" for axis in axes if setting.has(axis)]
    return videos / f"{_plain('_'.join(parts))}-{digest}"


def preview_path(folder: Path, name: str, seed: int, made_by: Sequence[Value | None]) -> Path:
    """Returns where a preview is kept, without suffix.

    Args:
        folder: The sweep's.
        name: The item's.
        seed: The seed.
        made_by: Whatever else it depends on.
    """
    return folder / "previews" / f"{file_name(name)}-seed{seed}-{short_hash([name, seed, *made_by])}"


def file_name(name: str) -> str:
    """Returns an item's name as files have it; where that is not the name itself, with a hash of it.

    >>> file_name("scene_0001"), file_name("a red ball")
    ('scene_0001', 'a_red_ball-b5ab4d6c')
    """
    plain = _plain(name)
    return plain if plain == name else f"{plain}-{short_hash(name)}"


def _plain(text: str) -> str:
    """A text with only such characters as every file system takes."""
    return re.sub(r"[^\w.-]+", "_", text)[:_MOST_LETTERS]
