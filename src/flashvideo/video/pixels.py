"""Frames as tensors: the resize between the two stages, 8-bit levels, and pictures for people to look at.

Paper, section 3.2: before it is enhanced, the Stage I video is resized bilinearly with antialiasing to the output size.

Shapes: F frames, H height, W width.
"""

import torch
from einops import rearrange
from PIL import Image


def resize_video(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize frames bilinearly with antialiasing, as the method does between its stages (paper, section 3.2).

    Args:
        frames: ``(..., 3, H, W)`` floats.
        height: New height in pixels.
        width: New width in pixels. The aspect ratio is the caller's choice.

    Returns:
        ``(..., 3, height, width)``, same dtype and value range; computed in float32 for narrower dtypes.

    Raises:
        ValueError: The shape, dtype or new size is not valid.
    """
    _check_frames(frames)
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be 1 or more, got {height}x{width}")
    if not frames.is_floating_point():
        raise ValueError(f"frames must be floats in [-1, 1], got {frames.dtype}; use levels / 127.5 - 1")
    if frames.shape[-2:] == (height, width):
        return frames
    wide = frames.to(torch.promote_types(frames.dtype, torch.float32))
    resized = torch.nn.functional.interpolate(
        wide.flatten(0, -4) if frames.ndim > 3 else wide.unsqueeze(0),
        size=(height, width),
        mode="bilinear",
        align_corners=False,
        antialias=True,
    )
    return resized.reshape(*frames.shape[:-2], height, width).to(frames.dtype)


def to_uint8(frames: torch.Tensor) -> torch.Tensor:
    """Convert values in [-1, 1] to levels: ``round(127.5 (x + 1))``, clamped to 0..255.

    Args:
        frames: Floats of any shape.

    Returns:
        uint8 of the same shape.
    """
    wide = frames.detach().to(torch.promote_types(frames.dtype, torch.float32))
    return ((wide + 1.0) * 127.5).round_().clamp_(0, 255).to(torch.uint8)


def contact_sheet(frames: torch.Tensor, columns: int) -> Image.Image:
    """Lay frames out in one picture, row by row, at their own size.

    Args:
        frames: ``(F, 3, H, W)`` floats in [-1, 1].
        columns: Frames per row; the last row is filled up with black.

    Returns:
        An RGB picture of ``ceil(F / columns) H x columns W`` pixels.

    Raises:
        ValueError: The shape or ``columns`` is not valid.
    """
    _check_clip(frames)
    if columns < 1:
        raise ValueError(f"columns must be 1 or more, got {columns}")
    levels = to_uint8(frames).cpu()
    num_missing = -len(levels) % columns
    cells = torch.cat([levels, levels.new_zeros(num_missing, *levels.shape[1:])])
    sheet = rearrange(cells, "(rows columns) c h w -> (rows h) (columns w) c", columns=columns)
    return Image.fromarray(sheet.numpy())


def _check_frames(frames: torch.Tensor) -> None:
    if frames.ndim < 3 or frames.shape[-3] != 3 or frames.numel() == 0:
        raise ValueError(
            f"frames must have the shape (..., 3, H, W), none of it 0, got {tuple(frames.shape)}"
        )


def _check_clip(frames: torch.Tensor) -> None:
    if frames.ndim != 4 or frames.shape[1] != 3 or frames.numel() == 0:
        raise ValueError(f"frames must have the shape (F, 3, H, W), none of it 0, got {tuple(frames.shape)}")
