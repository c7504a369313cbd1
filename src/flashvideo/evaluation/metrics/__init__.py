"""Distances between clips, statistics of detail, and intervals: plain functions of tensors.

No single figure tells a good enhancement from a bad one: the mean of all plausible results has the best PSNR and no
detail, and noise has detail that is not the truth's. So these come in groups: distance to the truth (`psnr`, `ssim`,
`gmsd`, `edge_psnr`), amount and kind of detail wherever it lies (`gradient_energy_ratio`, `filter_bank_distance`,
`high_frequency_fraction`, `band_energy`), likeness to photographs (`niqe`), motion (`frame_difference_error`,
`flicker`, `temporal_flickering`, and along optical flow `warping_error`), and fidelity to the preview
(`downsampled_psnr`, `structure_change`).

Frames are RGB in [-1, 1], as everywhere; values outside are measured as they are, so clamp them first if a file would.
A metric of frames takes ``(..., 3, H, W)`` and gives ``(...)``, one value per frame; average as you need. A metric of
clips takes ``(..., F, 3, H, W)`` and gives ``(...)``. Results are float32, or float64 for float64 input. Luma is
``0.299 R + 0.587 G + 0.114 B`` (BT.601), as in the papers that defined the metrics.
"""

from flashvideo.evaluation.metrics.detail import (
    OCTAVES,
    band_energy,
    filter_bank_distance,
    filter_bank_statistics,
    gradient_energy,
    gradient_energy_ratio,
    high_frequency_fraction,
)
from flashvideo.evaluation.metrics.distance import (
    downsampled_psnr,
    edge_psnr,
    frame_difference_error,
    gmsd,
    psnr,
    ssim,
    structure_change,
)
from flashvideo.evaluation.metrics.intervals import (
    bootstrap_interval,
    mcnemar,
    paired_interval,
    sign_flip,
    wilson_interval,
)
from flashvideo.evaluation.metrics.niqe import Pristine, niqe
from flashvideo.evaluation.metrics.temporal import flicker, temporal_flickering
from flashvideo.evaluation.metrics.warping import visible_mask, warping_error

__all__ = [
    "OCTAVES",
    "Pristine",
    "band_energy",
    "bootstrap_interval",
    "downsampled_psnr",
    "edge_psnr",
    "filter_bank_distance",
    "filter_bank_statistics",
    "flicker",
    "frame_difference_error",
    "gmsd",
    "gradient_energy",
    "gradient_energy_ratio",
    "high_frequency_fraction",
    "mcnemar",
    "niqe",
    "paired_interval",
    "psnr",
    "sign_flip",
    "ssim",
    "structure_change",
    "temporal_flickering",
    "visible_mask",
    "warping_error",
    "wilson_interval",
]
