"""Sizes: what their names mean, which preview belongs to which video, and what is cut off between the two.

    final size -> preview (a multiple of what Stage I takes) -> enlarged by the model's factor -> cut to the final size

Only the model's own size is another way: its preview is enlarged to it as it is, for that is what it was trained on.
Sizes are (height, width) in pixels, as everywhere in Python; in text they are written the other way round, 1920x1080.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from fractions import Fraction
from types import MappingProxyType

from flashvideo.presets import Preset

logger = logging.getLogger(__name__)

SHORT_SIDES: Mapping[str, int] = MappingProxyType(
    {
        "270p": 270,
        "360p": 360,
        "480p": 480,
        "540p": 540,
        "720p": 720,
        "1080p": 1080,
        "1440p": 1440,
        "2k": 1440,
        "2160p": 2160,
        "4k": 2160,
    }
)
"""Names of sizes: the number of pixels of the shorter side."""

REFERENCE = "reference"
"""Name of a model's own size."""

ASPECT = Fraction(16, 9)
"""Longer to shorter side of a named size, where nothing else is said."""


def named_size(
    size: str,
    *,
    portrait: bool = False,
    like: tuple[int, int] | None = None,
    preset: Preset | None = None,
) -> tuple[int, int]:
    """Returns height and width of a size by its name, as arguments of a pipeline.

    Args:
        size: A key of `SHORT_SIDES`, in small or capital letters: so many pixels on the shorter side, 16:9, to even
            numbers; `"reference"` for a model's own size; or any `"WIDTHxHEIGHT"`.
        portrait: Whether a named size stands upright.
        like: Height and width whose aspect, upright or not, a size of `SHORT_SIDES` has instead of 16:9.
        preset: The model whose own size `"reference"` is, `pipeline.preset`.

    Returns:
        Height and width.

    Raises:
        ValueError: If there is no such size, or the arguments contradict one another.

    >>> named_size("1080p"), named_size("2k", portrait=True), named_size("853x480")
    ((1080, 1920), (2560, 1440), (480, 853))
    >>> named_size("720p", like=(600, 400))
    (1080, 720)
    """
    if portrait and like is not None:
        raise ValueError("portrait and like both say how a size stands, got both; drop one of the two")
    name = str(size).strip().lower()  # a number is refused below
    if name == REFERENCE:
        if preset is None:
            raise ValueError(
                f"size {REFERENCE!r} is a model's own, got no preset; pass preset=pipeline.preset"
            )
        short, long = sorted((preset.stage2.height, preset.stage2.width))
        return (long, short) if portrait else (preset.stage2.height, preset.stage2.width)
    if name in SHORT_SIDES:
        short = SHORT_SIDES[name]
        aspect = ASPECT if like is None else Fraction(max(like), min(like))
        long = 2 * round(short * aspect / 2)
        upright = portrait if like is None else like[0] > like[1]
        return (long, short) if upright else (short, long)
    match = re.fullmatch(r"([1-9]\d{0,5})[x×]([1-9]\d{0,5})", name)  # noqa: RUF001 - people paste it
    if match is None:
        names = ", ".join((*SHORT_SIDES, REFERENCE))
        raise ValueError(f"size must be {names} or WIDTHxHEIGHT such as 640x384, got {size!r}")
    width, height = int(match[1]), int(match[2])
    if portrait and width > height:
        raise ValueError(
            f"portrait turns a name such as 1080p, got the landscape size {width}x{height}; "
            f"try {height}x{width}"
        )
    return height, width


def upscale_factor(preset: Preset) -> int:
    """How many times wider Stage II makes a video, by the preset's own sizes; 4 for the shipped and the released model.

    >>> from flashvideo.presets import FLASHVIDEO
    >>> upscale_factor(FLASHVIDEO)
    4
    """
    return max(1, round(preset.stage2.width / preset.stage1.width))


def preview_size(height: int, width: int, *, preset: Preset, multiple: int) -> tuple[int, int]:
    """Size of the preview from which a video of this size is made.

    The preset's own final size goes with the preset's own preview size, also where one is not a multiple of the other
    (256x480 and 1072x1920 in the released model). For every other final size it is the smallest preview that, enlarged
    by `upscale_factor`, covers it.

    Args:
        height: Final height in pixels, any.
        width: Final width in pixels, any.
        preset: The model's preset.
        multiple: What the preview's sides must be multiples of: the VAE's compression times the patch size.

    Returns:
        Height and width of the preview.

    >>> from flashvideo.presets import FLASHVIDEO
    >>> preview_size(1080, 1920, preset=FLASHVIDEO, multiple=16)
    (272, 480)
    """
    if (height, width) == (preset.stage2.height, preset.stage2.width):
        return preset.stage1.height, preset.stage1.width
    step = upscale_factor(preset) * multiple
    return -(-height // step) * multiple, -(-width // step) * multiple


def final_size(height: int, width: int, *, preset: Preset) -> tuple[int, int]:
    """Size of the video that is made from a preview of this size where no other is asked for.

    >>> from flashvideo.presets import FLASHVIDEO
    >>> final_size(256, 480, preset=FLASHVIDEO), final_size(272, 480, preset=FLASHVIDEO)
    ((1072, 1920), (1088, 1920))
    """
    if (height, width) == (preset.stage1.height, preset.stage1.width):
        return preset.stage2.height, preset.stage2.width
    factor = upscale_factor(preset)
    return height * factor, width * factor


def is_own_pair(preview: tuple[int, int], final: tuple[int, int], preset: Preset) -> bool:
    """Whether these are the preset's own sizes, between which it may change the shape of the picture."""
    own = (preset.stage1.height, preset.stage1.width), (preset.stage2.height, preset.stage2.width)
    return (preview, final) == own


def enlarged_size(
    preview: tuple[int, int], final: tuple[int, int], *, preset: Preset, multiple: int
) -> tuple[int, int]:
    """Size to which a preview is enlarged for a video of the final size; what it has more is cut off.

    Args:
        preview: Height and width of the preview.
        final: Height and width of the video.
        preset: The model's preset.
        multiple: As in `preview_size`.

    Returns:
        The final size, if both are the preset's own; `upscale_factor` times the preview, if it is the one that
        `preview_size` names; otherwise, for a preview made for another size, the smallest of the preview's shape that
        covers the final size.

    >>> from flashvideo.presets import FLASHVIDEO
    >>> enlarged_size((272, 480), (1080, 1920), preset=FLASHVIDEO, multiple=16)
    (1088, 1920)
    >>> enlarged_size((272, 480), (1440, 2560), preset=FLASHVIDEO, multiple=16)
    (1451, 2560)
    """
    if is_own_pair(preview, final, preset):
        return final
    if preview == preview_size(*final, preset=preset, multiple=multiple):
        factor = upscale_factor(preset)
        return preview[0] * factor, preview[1] * factor
    scale = max(Fraction(after, before) for before, after in zip(preview, final, strict=True))
    return round(preview[0] * scale), round(preview[1] * scale)


def crop_offset(enlarged: tuple[int, int], final: tuple[int, int]) -> tuple[int, int]:
    """Rows above and columns left of what is kept: the middle, with one more cut off below or right of odd numbers.

    >>> crop_offset((1088, 1920), (1080, 1920)), crop_offset((480, 854), (480, 853))
    ((4, 0), (0, 0))
    """
    return (enlarged[0] - final[0]) // 2, (enlarged[1] - final[1]) // 2


def check_crop(enlarged: tuple[int, int], final: tuple[int, int], *, step: int) -> None:
    """Says what is cut off: a note for what no preview of this model avoids, a warning for more.

    Args:
        enlarged: Height and width that Stage II works at.
        final: Height and width that are kept.
        step: Side of the smallest piece by which previews, enlarged, differ.

    Raises:
        ValueError: If more than that is cut off, and less than half of the picture is left.
    """
    rows, columns = (before - after for before, after in zip(enlarged, final, strict=True))
    cut = f"{rows} of {enlarged[0]} rows and {columns} of {enlarged[1]} columns"
    if rows < step and columns < step:
        if rows or columns:
            logger.info("%s are cut off, since previews come in steps of %d enlarged pixels", cut, step)
    elif 2 * final[0] * final[1] < enlarged[0] * enlarged[1]:
        raise ValueError(
            f"the final size must be near the preview's shape, got height {final[0]} and width {final[1]}, "
            f"for which {cut} would be cut off; make a preview for that size"
        )
    else:
        logger.warning("the preview was made for another shape: %s are cut off", cut)
