"""Compression by real codecs: JPEG frame by frame, and video encoders over the clip. Both work on the CPU.

Shapes: levels (F, 3, H, W) uint8, frames the same in [-1, 1].
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from typing import cast

import av
import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from flashvideo.degradations.draws import ClipDraws
from flashvideo.degradations.ranges import JpegRange, VideoCodecRange
from flashvideo.video import to_uint8

CODECS = ("libx264", "mpeg4")
_DECODERS = {"libx264": "h264", "mpeg4": "mpeg4"}
# Both encoders are allowed to be wrong by the bits of about one frame; else short clips would hardly feel the rate. The
# frame rate has no further meaning: libx264 counts in kilobits per second, which at one frame per second is too coarse.
_FRAME_RATE = 16
_MIN_BITS_PER_FRAME = 64
# The published rates are for clips of this many pixels.
_PUBLISHED_AREA = 256 * 256


def compress_jpeg(levels: Tensor, qualities: Sequence[int]) -> Tensor:
    """Write each frame as JPEG and read it again.

    Args:
        levels: (F, 3, H, W) uint8.
        qualities: F qualities, 1 to 100.

    Returns:
        (F, 3, H, W) uint8, on the device of `levels`.
    """
    pictures = []
    for picture, quality in zip(_to_pictures(levels), qualities, strict=True):
        file = io.BytesIO()
        Image.fromarray(picture).save(file, format="JPEG", quality=quality)
        with Image.open(file) as decoded:
            pictures.append(np.asarray(decoded))
    return _from_pictures(np.stack(pictures), levels.device)


def compress_video(levels: Tensor, codec: str, bits_per_frame: float, *, preset: str = "veryfast") -> Tensor:
    """Encode a clip as video at a mean rate, and decode it.

    Sides that are odd, which 4:2:0 cannot store, are continued by one pixel and cut again. One thread encodes, since
    what an encoder with threads writes depends on how many there are.

    Args:
        levels: (F, 3, H, W) uint8.
        codec: "libx264" or "mpeg4".
        bits_per_frame: mean rate that the encoder aims at, at least 64. It exceeds it where its coarsest quantiser
            needs more, and stays below where its finest needs less.
        preset: effort of libx264, "ultrafast" to "veryslow".

    Returns:
        (F, 3, H, W) uint8, on the device of `levels`: the same frames in the same order.

    Raises:
        ValueError: if the codec is another one.
    """
    if codec not in CODECS:
        raise ValueError(f"codec must be one of {', '.join(CODECS)}, got {codec!r}")
    height, width = levels.shape[-2:]
    pictures = np.pad(_to_pictures(levels), ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    packets = _encode(pictures, codec, max(_MIN_BITS_PER_FRAME, round(bits_per_frame)), preset)
    decoder = cast(av.VideoCodecContext, av.CodecContext.create(_DECODERS[codec], "r"))
    decoder.thread_count = 1
    frames = [frame for packet in [*packets, None] for frame in decoder.decode(packet)]
    if len(frames) != len(pictures):
        raise RuntimeError(f"{codec} gave {len(frames)} frames for {len(pictures)}")
    decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in frames]).astype(np.uint8, copy=False)
    return _from_pictures(decoded[:, :height, :width], levels.device)


def draw_bits_per_frame(config: VideoCodecRange, clean_size: tuple[int, int], draws: ClipDraws) -> float:
    """A rate for a clip whose clean size is (height, width): the published one times its area over 256x256."""
    return draws.uniform(config.bits_per_frame) * clean_size[0] * clean_size[1] / _PUBLISHED_AREA


def random_jpeg(frames: Tensor, config: JpegRange, draws: ClipDraws) -> Tensor:
    """JPEG of drifting quality over (F, 3, H, W), with the range's probability."""
    if not draws.happens(config.probability):
        return frames
    qualities = draws.drift(config.quality, config.quality_step, len(frames)).round().int().tolist()
    return _from_levels(compress_jpeg(to_uint8(frames), qualities))


def random_video(
    frames: Tensor, config: VideoCodecRange, clean_size: tuple[int, int], draws: ClipDraws
) -> Tensor:
    """Video compression of (F, 3, H, W), with the range's probability, at a rate for the clean clip's size."""
    if not draws.happens(config.probability):
        return frames
    codec = CODECS[draws.choose((config.libx264, config.mpeg4))]
    bits_per_frame = draw_bits_per_frame(config, clean_size, draws)
    return _from_levels(compress_video(to_uint8(frames), codec, bits_per_frame, preset=config.preset))


def _encode(pictures: NDArray[np.uint8], codec: str, bits_per_frame: int, preset: str) -> list[av.Packet]:
    """Packets of pictures (F, H, W, 3) of even sizes."""
    encoder = cast(av.VideoCodecContext, av.CodecContext.create(codec, "w"))
    encoder.height, encoder.width = pictures.shape[1:3]
    encoder.pix_fmt = "yuv420p"
    encoder.framerate, encoder.time_base = Fraction(_FRAME_RATE), Fraction(1, _FRAME_RATE)
    encoder.bit_rate = bits_per_frame * _FRAME_RATE
    encoder.thread_count = 1
    if codec == "libx264":
        # With x264's macroblock tree, two encodings of the same small clip now and then differ.
        encoder.options = {"preset": preset, "x264-params": f"mbtree=0:ratetol={1 / _FRAME_RATE}"}
    else:
        encoder.bit_rate_tolerance = bits_per_frame
    packets: list[av.Packet] = []
    for index, picture in enumerate(pictures):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
        frame.pts = index
        packets += encoder.encode(frame)
    return packets + list(encoder.encode(None))


def _to_pictures(levels: Tensor) -> NDArray[np.uint8]:
    return rearrange(levels.cpu(), "f c h w -> f h w c").contiguous().numpy()


def _from_pictures(pictures: NDArray[np.uint8], device: torch.device) -> Tensor:
    levels = torch.from_numpy(np.ascontiguousarray(pictures))
    return rearrange(levels, "f h w c -> f c h w").contiguous().to(device)


def _from_levels(levels: Tensor) -> Tensor:
    return levels.float().div_(127.5).sub_(1)
