"""What a model was not trained on still runs, but may come out badly: one warning says so, before any work."""

from __future__ import annotations

import logging

from flashvideo.presets import TRAINED_RANGES, Preset

logger = logging.getLogger(__name__)


def log_untrained_preview(num_frames: int, height: int, width: int, *, preset: Preset) -> None:
    """Warns of a size, and of a number of frames, that Stage I was not trained on.

    Args:
        num_frames: Frames of the preview.
        height: Height of the preview.
        width: Width of the preview.
        preset: The model's preset; nothing is known of a model without a `TrainedRange`.
    """
    trained = TRAINED_RANGES.get(preset.name)
    if trained is None:
        return
    if not (_within(height, trained.preview_height) and _within(width, trained.preview_width)):
        logger.warning(
            "a preview of height %d and width %d is outside what %s is made for, height %s and width %s: "
            "expect worse content and motion",
            height,
            width,
            preset.name,
            _as_text(trained.preview_height),
            _as_text(trained.preview_width),
        )
    if not _within(num_frames, trained.num_frames):
        logger.warning(
            "the number of frames, %d, is outside what %s is made for, %s: expect worse content and motion",
            num_frames,
            preset.name,
            _as_text(trained.num_frames),
        )


def log_untrained_video(height: int, width: int, *, preset: Preset) -> None:
    """Warns of a size that Stage II was not trained on, and notes one that is near to what it was.

    Args:
        height: Height that Stage II works at.
        width: Width that Stage II works at.
        preset: The model's preset; nothing is known of a model without a `TrainedRange`.
    """
    trained = TRAINED_RANGES.get(preset.name)
    own = preset.stage2.height, preset.stage2.width
    if trained is None or (height, width) == own:
        return
    if _within(height, trained.video_height) and _within(width, trained.video_width):
        logger.info(
            "Stage II works at height %d and width %d, not quite the %d and %d of its training",
            height,
            width,
            *own,
        )
        return
    logger.warning(
        "detail of height %d and width %d is outside what %s is made for, height %s and width %s: "
        "it may look unfinished",
        height,
        width,
        preset.name,
        _as_text(trained.video_height),
        _as_text(trained.video_width),
    )


def _within(value: int, bounds: tuple[int, int]) -> bool:
    return bounds[0] <= value <= bounds[1]


def _as_text(bounds: tuple[int, int]) -> str:
    least, most = bounds
    return str(least) if least == most else f"{least} to {most}"
