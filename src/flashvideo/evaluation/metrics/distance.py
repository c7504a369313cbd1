"""Distances between a result and the truth, in pixels, in motion, and at the size of the preview.

Shapes: F frames, H height, W width.
"""

import torch
import torch.nn.functional as F

from flashvideo.evaluation.metrics.frames import (
    LEVELS,
    PIXEL_RANGE,
    check_frames,
    check_pair,
    check_size,
    each_frame,
    gaussian_blur,
    luma,
    shapes_of,
)

# Wang et al. 2004.
_SSIM_SIZE, _SSIM_SIGMA, _SSIM_K1, _SSIM_K2 = 11, 1.5, 0.01, 0.03
# Xue et al. 2014: the constant c for luma of 0 to 255.
_GMSD_C = 170.0


def psnr(result: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio, ``10 log10(2^2 / mean((result - truth)^2))``, in decibels.

    Args:
        result: ``(..., 3, H, W)``.
        truth: Same shape.

    Returns:
        ``(...)``, higher is better; infinity for identical frames.

    Raises:
        ValueError: The shapes differ or are not those of frames.
    """
    result, truth = check_pair(result, truth)
    return _decibels((result - truth).square().mean(dim=(-3, -2, -1)))


def edge_psnr(result: torch.Tensor, truth: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`psnr` over the pixels of a mask alone, such as those near edges.

    Args:
        result: ``(..., 3, H, W)``.
        truth: Same shape.
        mask: Bool, ``(..., H, W)`` or anything that broadcasts to it; True where a pixel counts.

    Returns:
        ``(...)`` in decibels; infinity for frames identical within the mask.

    Raises:
        ValueError: The shapes do not fit, the mask is not bool, or it leaves out all of a frame.
    """
    result, truth = check_pair(result, truth)
    shape = (*result.shape[:-3], *result.shape[-2:])
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be of type torch.bool, got {mask.dtype}; compare it with a threshold")
    try:
        mask = mask.expand(shape)
    except RuntimeError:
        raise ValueError(
            f"mask must broadcast to {shape}, the frames without colour, got {tuple(mask.shape)}"
        ) from None
    num_pixels = mask.sum(dim=(-2, -1))
    if (num_pixels == 0).any():
        raise ValueError(
            f"mask leaves out all pixels of {int((num_pixels == 0).sum())} frames; every frame needs one"
        )
    squares = (result - truth).square().mean(dim=-3)  # (..., H, W)
    return _decibels(torch.where(mask, squares, 0).sum(dim=(-2, -1)) / num_pixels)


def ssim(result: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Structural similarity of luma (Wang et al., "Image quality assessment", 2004).

    ``(2 m_x m_y + C1)(2 s_xy + C2) / ((m_x^2 + m_y^2 + C1)(s_x^2 + s_y^2 + C2))``, with means and covariances under a
    Gaussian window of 11x11 pixels and sigma 1.5, averaged over all positions where the window fits;
    ``C1 = 0.01^2, C2 = 0.03^2`` for luma in [0, 1].

    Args:
        result: ``(..., 3, H, W)``, at least 11x11 pixels.
        truth: Same shape.

    Returns:
        ``(...)``, at most 1, which identical frames have.

    Raises:
        ValueError: The shapes differ, are not those of frames, or are too small.
    """
    result, truth = check_pair(result, truth)
    check_size(result, _SSIM_SIZE, "ssim")

    def of_frame(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x, y = luma(x), luma(y)  # (1, 1, H, W)
        products = torch.cat([x, y, x * x, y * y, x * y])
        blurred = gaussian_blur(products, _SSIM_SIZE // 2, _SSIM_SIGMA)
        mean_x, mean_y, mean_xx, mean_yy, mean_xy = blurred.split(1)
        variance_x, variance_y = mean_xx - mean_x**2, mean_yy - mean_y**2
        covariance = mean_xy - mean_x * mean_y
        c1, c2 = _SSIM_K1**2, _SSIM_K2**2
        numerator = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
        return (numerator / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))).mean()

    return each_frame(of_frame, result, truth)


def gmsd(result: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Gradient magnitude similarity deviation of luma (Xue et al., 2014).

    Luma in 0 to 255 is averaged over 2x2 blocks; g is the magnitude of its Prewitt gradient (kernels divided by 3, zero
    padding); the result is the standard deviation (n - 1) over the frame of ``(2 g_x g_y + c) / (g_x^2 + g_y^2 + c)``,
    ``c = 170``.

    Args:
        result: ``(..., 3, H, W)``, at least 4x4 pixels.
        truth: Same shape.

    Returns:
        ``(...)``, lower is better; 0 for identical frames.

    Raises:
        ValueError: The shapes differ, are not those of frames, or are too small.
    """
    result, truth = check_pair(result, truth)
    check_size(result, 4, "gmsd")
    across = torch.tensor([[1.0, 0, -1]] * 3, dtype=result.dtype, device=result.device) / 3
    kernels = torch.stack([across, across.T]).unsqueeze(1)  # (2, 1, 3, 3)

    def gradient(frame: torch.Tensor) -> torch.Tensor:
        levels = luma(frame) * LEVELS
        # An odd last row or column is averaged with zeros, as in the original.
        levels = F.pad(levels, (0, levels.shape[-1] % 2, 0, levels.shape[-2] % 2))
        return F.conv2d(F.avg_pool2d(levels, 2), kernels, padding=1).square().sum(dim=1).sqrt()

    def of_frame(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        g_x, g_y = gradient(x), gradient(y)
        return ((2 * g_x * g_y + _GMSD_C) / (g_x**2 + g_y**2 + _GMSD_C)).std()

    return each_frame(of_frame, result, truth)


def frame_difference_error(result: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Temporal error, ``mean(|(r[t+1] - r[t]) - (x[t+1] - x[t])|)``: flicker and wrong motion, not a constant offset.

    Args:
        result: ``(..., F, 3, H, W)`` with at least two frames.
        truth: Same shape.

    Returns:
        ``(...)`` in pixel values (a range of 2); 0 for identical motion.

    Raises:
        ValueError: The shapes differ, are not those of clips, or have a single frame.
    """
    result, truth = check_pair(result, truth, clip=True)
    if result.shape[-4] < 2:
        raise ValueError("frame_difference_error needs at least 2 frames, got 1; use psnr for a single frame")
    return (result - truth).diff(dim=-4).abs().mean(dim=(-4, -3, -2, -1))


def downsampled_psnr(final: torch.Tensor, preview: torch.Tensor) -> torch.Tensor:
    """`psnr` of the final frames, resized to the preview's size (bilinear with antialiasing), against the preview.

    Args:
        final: ``(..., 3, H, W)``.
        preview: ``(..., 3, h, w)``, not larger than `final`, otherwise of the same shape.

    Returns:
        ``(...)`` in decibels.

    Raises:
        ValueError: The shapes do not fit or are not those of frames.
    """
    final, preview = _at_the_previews_size(final, preview)
    return _decibels((final - preview).square().mean(dim=(-3, -2, -1)))


def structure_change(final: torch.Tensor, preview: torch.Tensor) -> torch.Tensor:
    """`gmsd` of the final frames, resized to the preview's size, against the preview: edges that moved, came or went.

    Unlike `downsampled_psnr` it does not mind another brightness or colour.

    Args:
        final: ``(..., 3, H, W)``.
        preview: ``(..., 3, h, w)``, not larger than `final` and large enough for `gmsd`, otherwise of the same shape.

    Returns:
        ``(...)``, lower is better; 0 if all structure is kept.

    Raises:
        ValueError: The shapes do not fit or are not those of frames.
    """
    return gmsd(*_at_the_previews_size(final, preview))


def _at_the_previews_size(final: torch.Tensor, preview: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The final frames, resized to the preview's size, and the preview, both checked."""
    final, preview = check_frames("final", final), check_frames("preview", preview)
    if final.shape[:-2] != preview.shape[:-2]:
        raise ValueError(f"final and preview must differ in size only, got {shapes_of(final, preview)}")
    if final.shape[-2] < preview.shape[-2] or final.shape[-1] < preview.shape[-1]:
        raise ValueError(
            f"final must not be smaller than preview, got {shapes_of(final, preview)}; swap them?"
        )
    size = preview.shape[-2:]

    def of_frame(frame: torch.Tensor) -> torch.Tensor:
        return F.interpolate(frame, size, mode="bilinear", align_corners=False, antialias=True)[0]

    return each_frame(of_frame, final), preview


def _decibels(mean_square: torch.Tensor) -> torch.Tensor:
    return 10 * torch.log10(PIXEL_RANGE**2 / mean_square)
