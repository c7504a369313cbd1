"""Videos and pictures of a `ClipFile` to frames, at any time of a video without decoding what lies far before.

Times are seconds since the first frame. A video is entered at the keyframe before the first wanted time and decoded
forward; of the frames decoded, those nearest to the wanted times are taken. FFmpeg gets the bytes through a Python
file object and no protocol of its own, so a playlist in disguise reaches neither the network nor other files.

Shapes: F frames, H height, W width.
"""

import contextlib
import itertools
import os
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from PIL import Image, ImageOps, UnidentifiedImageError

from flashvideo.data.clips.files import ClipError, ClipFile
from flashvideo.data.clips.scene_cuts import CONTEXT, GREY_SIZE, find_cuts
from flashvideo.video.colour import Levels
from flashvideo.video.reading import (
    HEAD_BYTES,
    declared_frames,
    pixel_aspect_ratio,
    promises_more,
    stream_rate,
)

# How far before a wanted time, in seconds, the file is entered: where frames refer across keyframes ("open GOP"), the
# keyframe that the container's index gives may lie after the wanted time. None is the very beginning.
_STEPS_BACK = (0.0, 1.0, 8.0, None)
# MPEG program streams, whose frames get wrong times after a jump: decoded from the beginning.
_TIMELESS = ("mpeg",)
# Times are compared to within so many frame periods, for timestamps are rounded; of two frames as near, the earlier.
_NEAR = 0.05
# A wanted time so many frame periods from every frame lies in a gap: frames were lost, or the picture stood still.
_FAR = 2.0
_ORIENTATION_TAG, _SIDEWAYS = 0x0112, (5, 6, 7, 8)


@dataclass(frozen=True, kw_only=True)
class ClipHeader:
    """What a file declares.

    Attributes:
        height: Height in square pixels, as shown: after rotation and with the pixels' own aspect ratio.
        width: Width, likewise.
        num_frames: Number of frames, by the container's index or its duration; 1 of a picture.
        frame_rate: Average frames per second; 0 of a picture.
        origin: Time of the first frame on the file's own clock, in seconds.
    """

    height: int
    width: int
    num_frames: int = 1
    frame_rate: float = 0.0
    origin: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Window:
    """Frames of a video at wanted times.

    Attributes:
        images: F decoded pictures, or fewer if the video ended before.
        cuts: Times (last of one scene, first of the next) of the scene cuts between the first and last of them.
        last: Time of the last frame that was decoded.
    """

    images: list[VideoFrame]
    cuts: list[tuple[float, float]]
    last: float


def read_video_header(file: ClipFile) -> ClipHeader:
    """Reads a video's size, rate and length; its first frame alone is decoded.

    Raises:
        ClipError: If it is no video, is cut off, or its first frame cannot be decoded.
        OSError: If it cannot be opened.
    """
    with _open(file) as (container, stream, size, head):
        if promises_more(container, stream, size=size, head=head):
            raise ClipError("it is cut off: it ends before its own index or header says")
        rate, aspect = stream_rate(stream), pixel_aspect_ratio(stream)
        num_frames = declared_frames(container, stream) or round(_duration(container, stream) * rate)
        first = next(_decode(container, stream), None)
        if first is None:
            raise ClipError("it holds no frame that can be decoded")
        origin = _time(first, stream)
        if num_frames == 0:  # a stream that was recorded without an end: count packets, decode none
            container.seek(0)
            num_frames = sum(1 for packet in container.demux(stream) if packet.size)
    height, width = first.height, max(1, round(first.width * aspect))
    if round(first.rotation / 90) % 2:
        height, width = width, height
    return ClipHeader(
        height=height, width=width, num_frames=num_frames, frame_rate=float(rate), origin=origin
    )


def decode_window(file: ClipFile, times: Sequence[float], *, header: ClipHeader, cuts: bool) -> Window:
    """Decodes the frames of a video that are nearest to wanted times.

    Args:
        file: The video.
        times: F ascending times in seconds.
        header: What the video declares.
        cuts: Whether to look for scene cuts among all frames from the first to the last wanted.

    Raises:
        ClipError: If it cannot be decoded there, a decoded frame is damaged, or frames are missing or out of order.
        OSError: If it cannot be opened.
    """
    period = 1 / header.frame_rate
    pending = deque(times)
    shown: list[tuple[float, VideoFrame]] = []
    grey: list[np.ndarray] = []
    grey_times: list[float] = []
    shrink = VideoReformatter()
    before: tuple[float, VideoFrame] | None = None
    # The generator is closed at the end of the block, and with it the file.
    with contextlib.closing(_frames_from(file, times[0] + _NEAR * period, header.origin)) as frames:
        for time, image in frames:
            if before is not None and time < before[0]:
                raise ClipError(f"its frames are out of order at {time:.2f} s")
            if image.is_corrupt:  # also before the first wanted frame, which may refer to it
                raise ClipError(f"it is damaged at {time:.2f} s")
            if cuts and time > times[0] - (CONTEXT + 0.5) * period:
                grey.append(shrink.reformat(image, *GREY_SIZE, format="gray").to_ndarray())
                grey_times.append(time)
            while pending and time >= pending[0] - _NEAR * period:
                wanted = pending.popleft()
                earlier = before is not None and wanted - before[0] <= time - wanted + _NEAR * period
                nearest = before if before is not None and earlier else (time, image)
                if abs(nearest[0] - wanted) > _FAR * period:
                    raise ClipError(f"frames are missing at {wanted:.2f} s")
                shown.append(nearest)
            before = time, image
            if not pending:
                break
    if before is None:
        raise ClipError(f"no frame can be decoded at {times[0]:.2f} s")
    while pending and pending[0] - before[0] <= period / 2:
        shown.append(before)
        pending.popleft()
    inside = [
        (grey_times[i - 1], grey_times[i])
        for i in find_cuts(np.stack(grey) if grey else np.zeros((0, *GREY_SIZE)))
        if shown and shown[0][0] <= grey_times[i - 1] and grey_times[i] <= shown[-1][0]
    ]
    return Window(images=[image for _, image in shown], cuts=inside, last=before[0])


def read_image_header(file: ClipFile) -> ClipHeader:
    """Reads a picture's size, upright; its pixels are not decoded.

    Raises:
        ClipError: If it is no picture that Pillow can read.
        OSError: If it cannot be opened.
    """
    with file.open() as handle, _picture(handle) as image:
        height, width = image.height, image.width
        if image.getexif().get(_ORIENTATION_TAG) in _SIDEWAYS:
            height, width = width, height
    return ClipHeader(height=height, width=width)


def read_image(file: ClipFile) -> Levels:
    """Reads a picture, upright; transparent parts are laid on white.

    Returns:
        ``(H, W, 3)`` levels 0 to 255.

    Raises:
        ClipError: If it cannot be read whole.
        OSError: If it cannot be opened.
    """
    with file.open() as handle, _picture(handle) as stored:
        image = ImageOps.exif_transpose(stored)
        if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip to white
            grey = (np.asarray(image, dtype=np.float64) / 257).round().clip(0, 255).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=-1)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.array(image.convert("RGB"))  # a copy: Pillow's own memory is read-only


@contextlib.contextmanager
def _picture(handle: object) -> Iterator[Image.Image]:
    """Opens a picture; whatever Pillow finds wrong with it, now or later, becomes one sentence."""
    try:
        with Image.open(handle) as image:  # type: ignore[arg-type]
            yield image
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        if isinstance(error, OSError) and (
            error.errno is not None or type(error) not in (OSError, UnidentifiedImageError)
        ):
            raise  # of the file system, and perhaps soon over; Pillow's own have no number and are of these two kinds
        raise ClipError(f"it is no picture that can be read ({_first_line(error)})") from None


@contextlib.contextmanager
def _open(file: ClipFile) -> Iterator[tuple[InputContainer, VideoStream, int, bytes]]:
    """Opens a file's first video stream; gives its size in bytes and first bytes too."""
    with file.open() as handle:
        head = handle.read(HEAD_BYTES)
        size = handle.seek(0, os.SEEK_END)
        handle.seek(0)
        if not size:
            raise ClipError("it is empty (0 bytes)")
        try:
            container = av.open(handle, "r", options={"protocol_whitelist": "none"})
        except av.FFmpegError as error:
            if head[4:8] == b"ftyp":
                raise ClipError("it is cut off: its index (moov) is missing") from None
            raise ClipError(f"it is no video that FFmpeg can read ({error.strerror})") from None
        with container:
            if not container.streams.video:
                raise ClipError("it holds no video stream")
            stream = container.streams.video[0]
            # One thread: loaders run many files at once, and a damaged file gives the same frames each time.
            stream.codec_context.thread_count = 1
            try:
                yield container, stream, size, head
            except av.FFmpegError as error:
                raise ClipError(f"it cannot be decoded ({error.strerror})") from None


def _frames_from(file: ClipFile, time: float, origin: float) -> Generator[tuple[float, VideoFrame]]:
    """Yields time and picture of all frames from the last keyframe at or before a time on."""
    for back in _STEPS_BACK:
        target = 0.0 if back is None else max(0.0, time - back)
        with _open(file) as (container, stream, _, _):
            if container.format.name in _TIMELESS:
                target = 0.0
            if target:
                moment = int((origin + target) / (stream.time_base or 1))
                container.seek(moment, stream=stream, backward=True)
            # Pictures shown before the keyframe refer to frames that were not decoded.
            frames = itertools.dropwhile(lambda image: not image.key_frame, _decode(container, stream))
            first = next(frames, None)
            if first is None or (target and _time(first, stream) - origin > time):
                continue  # enter the file farther ahead
            for image in itertools.chain([first], frames):
                yield _time(image, stream) - origin, image
            return


def _decode(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    for packet in container.demux(stream):
        yield from packet.decode()


def _time(image: VideoFrame, stream: VideoStream) -> float:
    """A frame's time on the file's own clock, in seconds."""
    if image.pts is None:
        raise ClipError("its frames carry no time; write it to another container, such as mp4")
    return float(image.pts * (image.time_base or stream.time_base or 1))


def _duration(container: InputContainer, stream: VideoStream) -> Fraction:
    """The video's length in seconds, or the whole file's; 0 if the file does not say."""
    if stream.duration and stream.time_base:
        return stream.duration * Fraction(stream.time_base)
    return Fraction(container.duration or 0, av.time_base)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
