"""How much detail frames have, and of what kind, wherever exactly it lies.

Shapes: F frames, H height, W width, s scales, o orientations, n windows.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from flashvideo.evaluation.metrics.frames import (
    LEVELS,
    check_frames,
    check_pair,
    check_size,
    each_frame,
    luma,
)

# The filter bank; see `filter_bank_statistics`. Set before any model was trained.
_BANK_SCALES = 3
_BANK_ANGLES = (0.0, 45.0, 90.0, 135.0)
_BANK_WAVELENGTH = 2.0 * math.sqrt(2.0)  # pixels, at the finest scale
_BANK_SIGMA = 0.56 * _BANK_WAVELENGTH  # a bandwidth of one octave
_BANK_RADIUS = 5
_BANK_WINDOW = 32  # pixels at full size
_BANK_FLOOR = 1.0  # one level squared

OCTAVES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Upper ends of frequency bands, in cycles per pixel; a preview four times smaller carries the first three."""


def gradient_energy(frames: torch.Tensor) -> torch.Tensor:
    """Mean squared forward difference, ``mean((x[i, j+1] - x[i, j])^2) + mean((x[i+1, j] - x[i, j])^2)``.

    Args:
        frames: ``(..., 3, H, W)``, at least 2x2 pixels.

    Returns:
        ``(...)`` in squared pixel values (a range of 2) per squared pixel; 0 for a flat frame.

    Raises:
        ValueError: The shape is not that of frames, or too small.
    """
    frames = check_frames("frames", frames)
    check_size(frames, 2, "gradient_energy")
    across = frames.diff(dim=-1).square().mean(dim=(-3, -2, -1))
    down = frames.diff(dim=-2).square().mean(dim=(-3, -2, -1))
    return across + down


def gradient_energy_ratio(result: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Gradient energy of a clip relative to the truth's: below 1 is blur, above 1 is noise or oversharpening.

    Args:
        result: ``(..., F, 3, H, W)``.
        truth: Same shape.

    Returns:
        ``(...)``, the ratio of the energies summed over frames. Where the truth is flat: infinity, or 1 if the result
        is flat too.

    Raises:
        ValueError: The shapes differ or are not those of clips.
    """
    result, truth = check_pair(result, truth, clip=True)
    ours, true = gradient_energy(result).sum(dim=-1), gradient_energy(truth).sum(dim=-1)
    return torch.where((ours == 0) & (true == 0), torch.ones_like(ours), ours / true)


def filter_bank_statistics(frames: torch.Tensor) -> torch.Tensor:
    """Local energy of oriented detail: which texture is where, whatever its phase.

    Luma in 0 to 255 is filtered by Gabor pairs (even, odd) of 11x11 pixels, ``g(x, y) cos(k . x)`` without its mean and
    ``g(x, y) sin(k . x)``, at wavelengths of 2.83, 5.66 and 11.3 pixels (the longer two by halving the frame once and
    twice, bilinear with antialiasing) and at 0, 45, 90 and 135 degrees of the wave's direction; the Gaussian's sigma is
    0.56 wavelengths, one octave. ``E = even^2 + odd^2`` is averaged over windows of 32x32 pixels at full size (over
    near-equal windows where 32 does not divide the size), and the statistic is ``log(1 + E)``. Kernels are scaled so
    that a wave of amplitude A at a filter's own frequency has ``E = A^2``; at the coarser scales the halvings leave
    0.61 A and 0.55 A of waves along a row or column.

    The finest two wavelengths lie above what a preview four times smaller can carry (8 pixels), the third below.

    Args:
        frames: ``(..., 3, H, W)``, at least 32x32 pixels.

    Returns:
        ``(..., 3, 4, n)``: scales from fine to coarse, orientations, windows row by row; 0 for a flat frame.

    Raises:
        ValueError: The shape is not that of frames, or too small.
    """
    frames = check_frames("frames", frames)
    check_size(frames, _BANK_WINDOW, "filter_bank_statistics")
    kernels = _gabor_kernels(frames.dtype, frames.device)
    num_down, num_across = (math.ceil(size / _BANK_WINDOW) for size in frames.shape[-2:])

    def of_frame(frame: torch.Tensor) -> torch.Tensor:
        levels = luma(frame) * LEVELS
        of_scales = []
        for scale in range(_BANK_SCALES):
            if scale:
                size = (levels.shape[-2] // 2, levels.shape[-1] // 2)
                levels = F.interpolate(levels, size, mode="bilinear", align_corners=False, antialias=True)
            padded = F.pad(levels, (_BANK_RADIUS,) * 4, mode="reflect")
            even, odd = F.conv2d(padded, kernels).chunk(2, dim=1)  # each (1, o, H, W)
            energy = F.adaptive_avg_pool2d(even.square() + odd.square(), (num_down, num_across))
            of_scales.append(torch.log(_BANK_FLOOR + energy).flatten(2))  # (1, o, n)
        return torch.cat(of_scales)  # (s, o, n)

    return each_frame(of_frame, frames)


def filter_bank_distance(result: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of `filter_bank_statistics` over scales, orientations and windows.

    Unlike a pixel distance it accepts texture of another phase, and does not reward blur: blur and noise both cost.
    A result whose energies are all off by a factor r from the truth's is at a distance of ``|log r|``,
    less where they come near the floor of one level squared.

    Args:
        result: ``(..., 3, H, W)``, at least 32x32 pixels.
        truth: Same shape.

    Returns:
        ``(...)``, lower is better; 0 for identical frames.

    Raises:
        ValueError: The shapes differ, are not those of frames, or are too small.
    """
    result, truth = check_pair(result, truth)
    difference = filter_bank_statistics(result) - filter_bank_statistics(truth)
    return difference.abs().mean(dim=(-3, -2, -1))


def high_frequency_fraction(frames: torch.Tensor, factor: float = 4) -> torch.Tensor:
    """Share of spectral energy that a preview `factor` times smaller could not carry.

    Luma loses its (window-weighted) mean and is multiplied by a Hann window; of its energy spectrum, the share at
    ``|f_x| > 1 / (2 factor)`` or ``|f_y| > 1 / (2 factor)`` cycles per pixel is returned.

    Args:
        frames: ``(..., 3, H, W)``, at least 8x8 pixels.
        factor: How many times smaller the preview is, more than 1.

    Returns:
        ``(...)`` in [0, 1]; 0 for a flat frame, ``1 - 1 / factor^2`` for white noise.

    Raises:
        ValueError: The shape is not that of frames, or too small, or `factor` is not more than 1.
    """
    frames = check_frames("frames", frames)
    check_size(frames, 8, "high_frequency_fraction")
    if not 1 < factor < math.inf:
        raise ValueError(f"factor must be more than 1, got {factor}")
    height, width = frames.shape[-2:]
    f_y, f_x = _frequencies(height, width, frames)
    above = (f_y.abs() > 0.5 / factor) | (f_x > 0.5 / factor)

    def of_frame(frame: torch.Tensor) -> torch.Tensor:
        energy = _spectrum(luma(frame)[0, 0])
        total = energy.sum()
        return torch.where(total == 0, total, (energy * above).sum() / total)

    return each_frame(of_frame, frames)


def band_energy(frames: torch.Tensor, edges: Sequence[float] = OCTAVES) -> torch.Tensor:
    """How much contrast luma has in each band of spatial frequency: the variance that its waves make up.

    Luma in 0 to 255 loses its (window-weighted) mean and is multiplied by a Hann window; its energy spectrum, over the
    window's own energy, adds up to the frame's variance, and is summed over rings of ``sqrt(f_x^2 + f_y^2)``.

    Args:
        frames: ``(..., 3, H, W)``, at least 8x8 pixels.
        edges: n rising frequencies in cycles per pixel: the upper ends of the bands, the lower one of the first being
            0; what lies above the last is left out. By default octaves; ``(0.71,)`` is the whole spectrum.

    Returns:
        ``(..., n)`` in squared levels of 255; 0 for a flat frame. A wave of amplitude A has ``A^2 / 2`` in its band.

    Raises:
        ValueError: The shape is not that of frames, or too small, or `edges` do not rise from above 0.
    """
    frames = check_frames("frames", frames)
    check_size(frames, 8, "band_energy")
    if not edges or any(low >= high for low, high in zip((0.0, *edges), edges, strict=False)):
        raise ValueError(f"edges must rise from above 0, got {tuple(edges)}")
    height, width = frames.shape[-2:]
    f_y, f_x = _frequencies(height, width, frames)
    bands = torch.bucketize(torch.hypot(f_y, f_x), torch.tensor(edges).to(frames))  # (H, W // 2 + 1)

    def of_frame(frame: torch.Tensor) -> torch.Tensor:
        energy = _spectrum(luma(frame)[0, 0] * LEVELS)
        sums = energy.new_zeros(len(edges) + 1)
        return sums.index_add(0, bands.flatten(), energy.flatten())[:-1]

    return each_frame(of_frame, frames)


def _frequencies(height: int, width: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of `_spectrum`, in cycles per pixel: ``(H, 1)`` of its rows and ``(1, W // 2 + 1)`` of its columns."""
    like = like.new_zeros(())  # carries dtype and device
    return torch.fft.fftfreq(height).to(like).unsqueeze(1), torch.fft.rfftfreq(width).to(like).unsqueeze(0)


def _spectrum(values: torch.Tensor) -> torch.Tensor:
    """Energy spectrum of ``(H, W)`` under a Hann window, ``(H, W // 2 + 1)``; its sum is the windowed variance."""
    height, width = values.shape
    # Without the zeros at its ends, so that every pixel counts.
    hann_y, hann_x = (
        torch.hann_window(size + 2, periodic=False)[1:-1].to(values) for size in (height, width)
    )
    window = torch.outer(hann_y, hann_x)
    contrast = (values - (window * values).sum() / window.sum()) * window
    energy = torch.fft.rfft2(contrast).abs().square() / (height * width * window.square().sum())
    # rfft2 leaves out the mirror images of all columns but the first and, for even widths, the last.
    energy[:, 1 : (width + 1) // 2] *= 2
    # A flat frame keeps rounding errors of about 1e-7 of its values, whose spectrum means nothing.
    is_flat = contrast.square().sum() < 1e-10 * (values.square().amax() + 1e-30) * window.square().sum()
    return torch.where(is_flat, torch.zeros_like(energy), energy)


def _gabor_kernels(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The even kernels of all orientations, then the odd ones: ``(2 o, 1, 11, 11)``."""
    offsets = torch.arange(-_BANK_RADIUS, _BANK_RADIUS + 1, dtype=torch.float64)
    y, x = torch.meshgrid(offsets, offsets, indexing="ij")
    envelope = torch.exp(-(x**2 + y**2) / (2 * _BANK_SIGMA**2))
    envelope = 2 * envelope / envelope.sum()  # half of a real wave's amplitude is at its positive frequency
    even, odd = [], []
    for angle in _BANK_ANGLES:
        along = x * math.cos(math.radians(angle)) + y * math.sin(math.radians(angle))
        phase = 2 * math.pi / _BANK_WAVELENGTH * along
        cosine = envelope * torch.cos(phase)
        even.append(cosine - envelope * (cosine.sum() / envelope.sum()))
        odd.append(envelope * torch.sin(phase))
    return torch.stack(even + odd).unsqueeze(1).to(device, dtype)
