"""Video files to frames: whole, in part, or one frame at a time.

What the file promises is compared with what it holds, so that a download that was cut off is noticed and not enhanced.

Shapes: F frames, H height, W width.
"""

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from flashvideo.video.colour import Levels, frames_from_levels, levels_from_image
from flashvideo.video.errors import VideoError

logger = logging.getLogger(__name__)

HEAD_BYTES = 128
"""As many of a file's first bytes tell where its content should end."""


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a video file declares about itself.

    Attributes:
        path: The file.
        num_frames: Number of frames, from the container's index, or counted where it has none.
        height: Height in pixels, as shown (after the file's rotation).
        width: Width in pixels, as shown.
        frame_rate: Average frames per second.
        duration: ``num_frames / frame_rate``, in seconds.
        codec: FFmpeg's name of the codec, such as ``"h264"``.
        pixel_aspect_ratio: Width of one pixel over its height. Frames are read as stored, also where this is not 1.
        metadata: What `generation_metadata` made, if the file carries it, otherwise empty.
    """

    path: Path
    num_frames: int
    height: int
    width: int
    frame_rate: Fraction
    duration: float
    codec: str
    pixel_aspect_ratio: Fraction = Fraction(1)
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Video:
    """Frames with their rate.

    Attributes:
        frames: ``(F, 3, H, W)`` float32 in [-1, 1].
        frame_rate: Frames per second.
    """

    frames: torch.Tensor
    frame_rate: Fraction


def probe_video(path: str | os.PathLike[str]) -> VideoInfo:
    """Read a video file's size, rate, length and metadata; only its first frame is decoded.

    Args:
        path: Any file with a video stream that FFmpeg can read.

    Returns:
        What the file declares. A file that is cut off declares more frames than can be read.

    Raises:
        VideoError: The file is missing, is a folder, is empty, is not a video, or holds no frame that can be decoded.
    """
    with _open(path) as (container, stream):
        first = next(_decode(container, stream, Path(path)), None)
        if first is None:
            raise VideoError(_no_frame(path))
        sideways = round(first.rotation / 90) % 2 == 1
        aspect = pixel_aspect_ratio(stream)
        frame_rate = stream_rate(stream)
        num_frames = declared_frames(container, stream)
        codec, metadata = stream.codec_context.name, _generation_tags(container.metadata)
    if num_frames == 0:  # Matroska and WebM keep no count: read the packets, decode none
        with _open(path) as (container, stream):
            num_frames = sum(1 for packet in container.demux(stream) if packet.size)
    return VideoInfo(
        path=Path(path),
        num_frames=num_frames,
        height=first.width if sideways else first.height,
        width=first.height if sideways else first.width,
        frame_rate=frame_rate,
        duration=float(num_frames / frame_rate),
        codec=codec,
        pixel_aspect_ratio=1 / aspect if sideways else aspect,
        metadata=metadata,
    )


def is_cut_off(path: str | os.PathLike[str]) -> bool:
    """Whether a video file ends before its own index or header says; nothing is decoded.

    Raises:
        VideoError: The file is missing or is not a video.
    """
    with _open(path) as (container, stream):
        return _is_cut_off(container, stream, Path(path))


def read_video(path: str | os.PathLike[str], *, start: int = 0, num_frames: int | None = None) -> Video:
    """Read a video file into memory.

    Args:
        path: Any file with a video stream that FFmpeg can read.
        start: Index of the first frame to return.
        num_frames: How many frames to return; None returns all from ``start`` on.

    Returns:
        Frames ``(F, 3, H, W)`` float32 in [-1, 1], upright, with the average frame rate.

    Raises:
        VideoError: The file cannot be read, is cut off or damaged, or has fewer frames than asked for.
    """
    with _open(path) as (_, stream):
        frame_rate = stream_rate(stream)
    levels = np.stack(list(_level_frames(path, start=start, num_frames=num_frames)))  # (F, H, W, 3)
    return Video(frames=frames_from_levels(levels), frame_rate=frame_rate)


def iter_frames(
    path: str | os.PathLike[str], *, start: int = 0, num_frames: int | None = None
) -> Iterator[torch.Tensor]:
    """Read a video file one frame at a time, so that a clip of any length fits in memory.

    ``write_video(copy, iter_frames(path), frame_rate=probe_video(path).frame_rate)`` streams a whole file through.

    Args:
        path: Any file with a video stream that FFmpeg can read.
        start: Index of the first frame to yield.
        num_frames: How many frames to yield; None yields all from ``start`` on.

    Yields:
        Frames ``(3, H, W)`` float32 in [-1, 1].

    Raises:
        VideoError: As `read_video`; for a file that is cut off, after the frames that can be decoded.
    """
    for levels in _level_frames(path, start=start, num_frames=num_frames):
        yield frames_from_levels(levels)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read back what `write_video` was given as ``metadata``.

    Args:
        path: A video file.

    Returns:
        The JSON object in the container's ``comment`` tag, or an empty dict if there is none.

    Raises:
        VideoError: The file is missing or is not a video.
    """
    with _open(path) as (container, _):
        return _generation_tags(container.metadata)


def _level_frames(path: str | os.PathLike[str], *, start: int, num_frames: int | None) -> Iterator[Levels]:
    """Yield frames ``start`` to ``start + num_frames`` as upright ``(H, W, 3)`` levels 0 to 255."""
    if start < 0:
        raise VideoError(f"start must be 0 or more, got {start}")
    if num_frames is not None and num_frames < 1:
        raise VideoError(f"num_frames must be 1 or more, got {num_frames}; leave it out to read all frames")
    stop = None if num_frames is None else start + num_frames
    count = 0
    with _open(path) as (container, stream):
        if (aspect := pixel_aspect_ratio(stream)) != 1:
            logger.warning(
                "%s has pixels of aspect %s; its frames are used as stored, not stretched", path, aspect
            )
        for image in _decode(container, stream, Path(path)):
            count += 1
            if count > start:
                yield levels_from_image(image)
            if count == stop:
                return
    if count == 0:
        raise VideoError(_no_frame(path))
    if stop is not None or count <= start:
        wanted = "frames" if num_frames is None else f"{num_frames} frames"
        raise VideoError(
            f"{path} has {count} frames, but {wanted} from frame {start} on were asked for; "
            "ask for fewer or start earlier"
        )


@contextlib.contextmanager
def _open(path: str | os.PathLike[str]) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file's first video stream; failures become one sentence."""
    path = Path(path)
    if path.is_dir():
        raise VideoError(f"{path} is a folder, expected a video file; name one file inside it")
    if not path.is_file():
        raise VideoError(f"{path} does not exist, expected a video file; check the name")
    if path.stat().st_size == 0:
        raise VideoError(f"{path} is empty (0 bytes), expected a video file; download or write it again")
    try:
        # An absolute path cannot be taken for a protocol, nor can a playlist in it reach over the network.
        container = av.open(str(path.absolute()), options={"protocol_whitelist": "file"})
    except (av.FFmpegError, OSError) as error:
        raise VideoError(_cannot_open(path, error)) from None
    with container:
        if not len(container.streams):
            raise VideoError(_cannot_open(path, ValueError("it holds no stream")))
        if not container.streams.video:
            raise VideoError(f"{path} holds no video stream, expected a video file; is it sound only?")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        yield container, stream


def _cannot_open(path: Path, error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error)
    if isinstance(error, PermissionError):
        return f"{path} may not be read ({reason}); change its permissions"
    with path.open("rb") as file:
        is_mp4 = file.read(8)[4:] == b"ftyp"
    if is_mp4:
        return f"{path} is cut off: its index (moov) is missing, so no frame can be read; download or record it again"
    return f"{path} is not a video that FFmpeg can read ({reason}); expected a video file such as mp4, mkv, mov or webm"


def _decode(container: InputContainer, stream: VideoStream, path: Path) -> Iterator[VideoFrame]:
    """Yield every frame that can be decoded, then say so if the file promised more."""
    declared = declared_frames(container, stream)
    if declared == 0 and container.duration:
        declared = round(container.duration / av.time_base * stream_rate(stream))
    cut_off = _is_cut_off(container, stream, path)
    count, reason = 0, ""
    try:
        for packet in container.demux(stream):
            if packet.is_corrupt and cut_off:  # the packet that the cut goes through
                break
            for frame in packet.decode():
                count += 1
                yield frame
    except (av.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    if not reason and not cut_off:
        return
    # Frames that still wait in the decoder are whole ones.
    with contextlib.suppress(av.FFmpegError, OSError):
        for frame in stream.codec_context.decode(None):
            count += 1
            yield frame
    if reason or count < declared:
        cause = "is cut off" if cut_off else f"is damaged ({reason})"
        hint = f"or read only those with num_frames={count}" if count else "or use another file"
        raise VideoError(
            f"{path} {cause}: {count} of its {declared} frames can be decoded; download it again, {hint}"
        )


def declared_frames(container: InputContainer, stream: VideoStream) -> int:
    """Number of frames to be shown according to the index of an open file; 0 if the container keeps none."""
    if stream.frames and "mp4" in container.format.name:
        return sum(1 for entry in stream.index_entries if not entry.is_discard)
    return int(stream.frames)


def _is_cut_off(container: InputContainer, stream: VideoStream, path: Path) -> bool:
    with path.open("rb") as file:
        return promises_more(container, stream, size=path.stat().st_size, head=file.read(HEAD_BYTES))


def promises_more(container: InputContainer, stream: VideoStream, *, size: int, head: bytes) -> bool:
    """Whether the container's own index or header promises bytes beyond the end of the file.

    Args:
        container: The open file.
        stream: Its video stream.
        size: Bytes that the file has.
        head: Its first `HEAD_BYTES`.
    """
    if "mp4" in container.format.name:
        return any(entry.pos + entry.size > size for entry in stream.index_entries)
    if "matroska" in container.format.name:
        return _matroska_end(head) > size
    return False


def _matroska_end(head: bytes) -> int:
    """Where the segment of a Matroska file ends, from the file's first bytes; 0 if it does not say.

    The file is an EBML header followed by one segment; each is an ID of 4 bytes, a size whose leading zero bits tell
    how many bytes it has, and that many bytes of content (RFC 8794). A size of all ones means unknown.
    """
    position = 0
    for element in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"):
        if head[position : position + 4] != element or len(head) < position + 12:
            return 0
        position += 4
        num_bytes = 9 - head[position].bit_length()
        mask = (1 << 7 * num_bytes) - 1
        size = int.from_bytes(head[position : position + num_bytes], "big") & mask
        if size == mask:
            return 0
        position += num_bytes + size
    return position


def stream_rate(stream: VideoStream) -> Fraction:
    """Average frames per second, or FFmpeg's guess where a file does not say."""
    return Fraction(stream.average_rate or stream.guessed_rate or stream.base_rate or 25)


def _generation_tags(tags: Mapping[str, str]) -> dict[str, Any]:
    for name, text in tags.items():
        if name.lower() == "comment":  # Matroska writes it in capitals
            with contextlib.suppress(json.JSONDecodeError):
                value = json.loads(text)
                return value if isinstance(value, dict) else {}
    return {}


def pixel_aspect_ratio(stream: VideoStream) -> Fraction:
    """Width of one pixel over its height; 1 where a file does not say."""
    return stream.sample_aspect_ratio or Fraction(1)  # FFmpeg writes "not known" as 0


def _no_frame(path: str | os.PathLike[str]) -> str:
    return f"{path} holds no frame that can be decoded, expected a video file; try another one"
