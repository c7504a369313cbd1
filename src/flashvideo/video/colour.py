"""Between FFmpeg's pictures and RGB levels.

Files are written as BT.709, limited range, and tagged so. A picture is read with the matrix and range that it declares;
one that declares none is taken as limited-range BT.709 from 720 lines up and as BT.601 below, as players do.

Shapes: H height, W width.
"""

from typing import Any, TypeAlias

import numpy as np
import torch
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from av.video.stream import VideoStream

Levels: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]

# FFmpeg's number for BT.709, be it matrix, primaries or transfer, and for a matrix that is not declared.
_BT709, _UNSPECIFIED = 1, 2
# The first size that players take for high definition, and so for BT.709, where a file does not say.
_HIGH_DEFINITION_LINES = 720
# Without accurate rounding and full chroma interpolation a flat colour comes back one level darker.
_CONVERSION = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
)


def levels_from_image(image: VideoFrame) -> Levels:
    """Converts a decoded picture to RGB, turned upright as the file asks for.

    Args:
        image: A picture in any pixel format.

    Returns:
        ``(H, W, 3)`` levels 0 to 255.
    """
    options: dict[str, Any] = {}
    if not image.format.is_rgb:
        full_range = image.color_range == ColorRange.JPEG or image.format.name.startswith("yuvj")
        options["src_color_range"] = ColorRange.JPEG if full_range else ColorRange.MPEG
        if image.colorspace == _UNSPECIFIED:
            high = image.height >= _HIGH_DEFINITION_LINES
            options["src_colorspace"] = Colorspace.ITU709 if high else Colorspace.ITU601
    rgb = image.reformat(
        format="rgb24", dst_color_range=ColorRange.JPEG, interpolation=_CONVERSION, **options
    )
    quarter_turns = round(image.rotation / 90)
    return np.ascontiguousarray(np.rot90(rgb.to_ndarray(), quarter_turns))


def image_from_levels(levels: Levels, pix_fmt: str) -> VideoFrame:
    """Converts RGB levels to a picture in BT.709, limited range.

    Args:
        levels: ``(H, W, 3)`` levels 0 to 255.
        pix_fmt: FFmpeg's name of a YUV pixel format, such as ``"yuv420p"``.
    """
    return VideoFrame.from_ndarray(levels, format="rgb24").reformat(
        format=pix_fmt,
        dst_colorspace=Colorspace.ITU709,
        src_color_range=ColorRange.JPEG,
        dst_color_range=ColorRange.MPEG,
        interpolation=_CONVERSION,
    )


def declare_colour(stream: VideoStream) -> None:
    """Tags an output stream with the colours that `image_from_levels` makes."""
    context = stream.codec_context
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    context.color_range = ColorRange.MPEG


def frames_from_levels(levels: Levels) -> torch.Tensor:
    """Converts levels ``(..., H, W, 3)`` to frames ``(..., 3, H, W)`` float32, ``x = level / 127.5 - 1``."""
    return torch.from_numpy(levels).movedim(-1, -3).to(torch.float32).div_(127.5).sub_(1.0).contiguous()
