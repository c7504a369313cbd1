"""Which part of a video one sample shows: as many frames as asked for, evenly spaced, with no scene cut between.

The frames' rate is the wanted one, or the video's own where that is lower: no frame is shown twice, so that a model
does not learn to stutter. The window begins on one of the video's frames; the others are the nearest to their times.
"""

import math
from dataclasses import dataclass

import numpy as np
from av.video.frame import VideoFrame

from flashvideo.data.clips.decoding import ClipHeader, decode_window
from flashvideo.data.clips.entries import ClipEntry
from flashvideo.data.clips.files import ClipError

_TINY = 1e-6


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoPart:
    """What was found.

    Attributes:
        images: F decoded pictures.
        start: Time of the first, in seconds since the video's first frame.
        frame_rate: Of the pictures.
    """

    images: list[VideoFrame]
    start: float
    frame_rate: float


def usable_span(entry: ClipEntry, header: ClipHeader) -> tuple[float, float]:
    """Times of the first and the last frame that an entry may show; the second is smaller if there is none."""
    rate = header.frame_rate
    first = math.ceil(entry.start * rate - _TINY)
    last = header.num_frames - 1
    if entry.end < math.inf:
        last = min(last, math.ceil(entry.end * rate - _TINY) - 1)
    return first / rate, last / rate


def num_frames_at(entry: ClipEntry, header: ClipHeader, frame_rate: float) -> int:
    """How many frames an entry gives at a frame rate, or at its own where that is lower."""
    first, last = usable_span(entry, header)
    return 1 + math.floor((last - first) * min(frame_rate, header.frame_rate) + _TINY) if last >= first else 0


def find_part(
    entry: ClipEntry,
    header: ClipHeader,
    *,
    num_frames: int,
    frame_rate: float,
    rng: np.random.Generator | None,
    avoid_cuts: bool,
    tries: int,
) -> VideoPart:
    """Decodes a part of a video without a cut in it.

    A part with a cut in it, or one that the video ends before, is given up, and the next is sought on either side of
    the cut, or before the end.

    Args:
        entry: The video.
        header: What its file declares.
        num_frames: F.
        frame_rate: Wanted frames per second.
        rng: Draws the part among all that are possible; None takes the middle of the longest stretch.
        avoid_cuts: Whether to look for cuts.
        tries: How many parts to decode at most.

    Raises:
        ClipError: If the video is too short, cannot be decoded, or each part that was tried has a cut in it.
    """
    rate = min(frame_rate, header.frame_rate)
    length = (num_frames - 1) / rate
    stretches, seen_cut = [usable_span(entry, header)], False
    for _ in range(tries):
        stretches = [(low, high) for low, high in stretches if high - low >= length - _TINY]
        if not stretches:
            break
        chosen, start = _draw(stretches, length, header.frame_rate, rng)
        times = [start + i / rate for i in range(num_frames)]
        window = decode_window(entry.file, times, header=header, cuts=avoid_cuts)
        if len(window.images) == num_frames and not window.cuts:
            return VideoPart(images=window.images, start=start, frame_rate=rate)
        low, high = stretches.pop(chosen)
        if len(window.images) < num_frames:
            high = min(high - 1 / header.frame_rate, window.last)
        seen_cut = seen_cut or bool(window.cuts)
        for before, after in window.cuts:
            stretches.append((low, before))
            low = after
        stretches.append((low, high))
    if seen_cut:
        raise ClipError(f"no {num_frames} frames without a scene cut were found")
    first, last = usable_span(entry, header)
    raise ClipError(
        f"it is too short: {num_frames} frames at {rate:g} fps are wanted, {last - first:.2f} s last"
    )


def _draw(
    stretches: list[tuple[float, float]], length: float, own_rate: float, rng: np.random.Generator | None
) -> tuple[int, float]:
    """Draws a stretch, and a start in it on one of the video's own frames: each start is as likely as any other."""
    counts = [1 + math.floor((high - low - length) * own_rate + _TINY) for low, high in stretches]
    if rng is None:
        chosen = int(np.argmax(counts))
        number = (counts[chosen] - 1) // 2
    else:
        number = int(rng.integers(sum(counts)))
        chosen = int(np.searchsorted(np.cumsum(counts), number, side="right"))
        number -= sum(counts[:chosen])
    return chosen, stretches[chosen][0] + number / own_rate
