"""Which size of preview belongs to which size of video."""

from __future__ import annotations

from flashvideo.presets import Preset


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
    (256x480 and 1072x1920 in the released model). Every other final size is `upscale_factor` times the preview's.

    Args:
        height: Final height in pixels.
        width: Final width in pixels.
        preset: The model's preset.
        multiple: What the preview's sides must be multiples of: the VAE's compression times the patch size.

    Returns:
        Height and width of the preview.

    Raises:
        ValueError: If no preview fits, with the nearest size that has one.
    """
    if (height, width) == (preset.stage2.height, preset.stage2.width):
        return preset.stage1.height, preset.stage1.width
    factor = upscale_factor(preset)
    step = factor * multiple
    if height < step or width < step or height % step or width % step:
        nearest = [max(1, round(side / step)) * step for side in (height, width)]
        raise ValueError(
            f"height and width must be multiples of {step} ({factor} times the preview's {multiple}), "
            f"got {height}x{width}; try {nearest[0]}x{nearest[1]}"
        )
    return height // factor, width // factor


def final_size(height: int, width: int, *, preset: Preset) -> tuple[int, int]:
    """Size of the video that is made from a preview of this size; undoes `preview_size`.

    >>> from flashvideo.presets import FLASHVIDEO
    >>> final_size(256, 480, preset=FLASHVIDEO), final_size(272, 480, preset=FLASHVIDEO)
    ((1072, 1920), (1088, 1920))
    """
    if (height, width) == (preset.stage1.height, preset.stage1.width):
        return preset.stage2.height, preset.stage2.width
    factor = upscale_factor(preset)
    return height * factor, width * factor
