"""`flashvideo info`: what a file holds, and how it was made."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flashvideo.cli import arguments as shared
from flashvideo.cli.files import LATENTS_SUFFIX, check_input
from flashvideo.cli.results import Result


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "info",
        help="show what a file holds and how it was made",
        description=f"Show what a video, or the {LATENTS_SUFFIX} file of a preview, holds and how it was made.",
    )
    parser.add_argument(
        "file", type=Path, metavar="FILE", help=f"a video, or a preview's {LATENTS_SUFFIX} file"
    )
    shared.add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> Result:
    """Describes a file.

    Raises:
        ValueError: If it cannot be read, or ends before its last frame.
    """
    check_input(arguments.file)
    is_preview = arguments.file.suffix.lower() == LATENTS_SUFFIX
    data = describe_preview(arguments.file) if is_preview else describe_video(arguments.file)
    width = max(len(name) for name, _ in flatten(data))
    lines = [f"{name:<{width}}  {value}" for name, value in flatten(data)]
    if not data["metadata"]:
        lines.append("no note of how it was made")
    return Result(data=data, text="\n".join(lines))


def describe_video(path: Path) -> dict[str, Any]:
    """Returns facts of the stream, and what `generate` or `enhance` noted in the file.

    Raises:
        VideoError: If it is not a video, or is cut off.
    """
    from flashvideo.video import VideoError, is_cut_off, probe_video

    info = probe_video(path)
    num_found, has_sound = count_packets(path)
    if num_found < info.num_frames:
        raise VideoError(
            f"{path} is cut off: {num_found} of its {info.num_frames} frames are there; download it again"
        )
    if is_cut_off(path):
        raise VideoError(f"{path} is cut off: {num_found} of its frames are there; download it again")
    return {
        "file": str(path),
        "num_frames": info.num_frames,
        "width": info.width,
        "height": info.height,
        "frame_rate": round(float(info.frame_rate), 3),
        "seconds": round(info.duration, 3),
        "codec": info.codec,
        "pixel_aspect_ratio": str(info.pixel_aspect_ratio),
        "sound": has_sound,
        "metadata": info.metadata,
    }


def count_packets(path: Path) -> tuple[int, bool]:
    """Counts the whole packets of the first video stream, decoding none; a frame is a packet in all usual codecs.

    Returns:
        The count, and whether there is sound.
    """
    import av

    count = 0
    with av.open(str(path.absolute())) as container:
        has_sound = bool(container.streams.audio)
        try:
            for packet in container.demux(container.streams.video[0]):
                count += bool(packet.size) and not packet.is_corrupt
        except av.FFmpegError:  # how some containers end where they are cut off
            pass
    return count, has_sound


def describe_preview(path: Path) -> dict[str, Any]:
    """Returns what is needed to continue from a preview.

    Raises:
        ValueError: If it is not the file of a preview.
    """
    from flashvideo.pipelines.preview import load_preview

    preview = load_preview(path)
    stored = dataclasses.asdict(preview.settings)
    settings = {name: value for name, value in stored.items() if value is not None}
    return {
        "file": str(path),
        "latents": list(preview.latents.shape),
        "generator_device": preview.generator_device,
        "metadata": {**settings, "prompts": list(preview.settings.prompts)},
    }


def flatten(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields nested values under dotted names; the metadata's own name is left out.

    >>> list(flatten({"file": "a.mp4", "metadata": {"sizes": {"stage1": [17, 96]}}}))
    [('file', 'a.mp4'), ('sizes.stage1', [17, 96])]
    """
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from flatten(value, "" if name == "metadata" else f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
