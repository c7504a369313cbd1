"""NIQE: how far a frame's local statistics are from those of pristine photographs, without a truth.

Mittal, Soundararajan and Bovik, "Making a completely blind image quality analyzer", IEEE SPL 2013.

    x = (luma - mu) / (sigma + 1)         mu, sigma: local mean and deviation under a Gaussian of 7x7 pixels
    NIQE = sqrt((nu_1 - nu_2)^T ((S_1 + S_2) / 2)^-1 (nu_1 - nu_2))

where nu and S are mean and covariance of 36 features over blocks of 96x96 pixels: parameters of the asymmetric
generalised Gaussians that x and the products of its neighbours follow, at full size and at half.

Shapes: n blocks, p pixels of a block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flashvideo.evaluation.metrics.frames import (
    LEVELS,
    check_frames,
    check_size,
    each_frame,
    gaussian_blur,
    luma,
)

BLOCK = 96
"""Side of a block at full size, in pixels."""

PRISTINE_PATH = Path(__file__).parents[2] / "assets" / "niqe.npz"

_PUBLISHED_NAMES = ("mu_pris_param", "cov_pris_param")
_RADIUS, _SIGMA = 3, 7 / 6
_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))
_SHAPES = torch.arange(
    0.2, 10.001, 0.001, dtype=torch.float64
)  # of generalised Gaussians, from which one is chosen
_SHARPNESS = 0.75  # share of the sharpest block's sharpness from which on blocks count as pristine


@dataclass(frozen=True, kw_only=True, eq=False)
class Pristine:
    """The features of pristine photographs, as a Gaussian."""

    mean: Tensor
    """(36,), float64."""

    covariance: Tensor
    """(36, 36), float64."""

    @classmethod
    def read(cls, path: Path = PRISTINE_PATH) -> Pristine:
        """Reads a model from a NumPy archive with the arrays `mean` and `covariance`.

        Args:
            path: The archive; by default the one that `scripts/fit_niqe` made of eight free photographs. To compare
                with figures of others it takes their parameters, of which some packages have a copy, with the arrays
                `mu_pris_param` and `cov_pris_param`.

        Returns:
            The model.

        Raises:
            ValueError: If it holds no such arrays.
        """
        try:
            archive = np.load(path, allow_pickle=False)
        except (ValueError, EOFError, BadZipFile) as error:
            raise ValueError(f"{path} is no NumPy archive ({error}); expected an .npz file") from None
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError(f"{path} holds a single array, expected an .npz file with mean and covariance")
        with archive as arrays:
            names = _PUBLISHED_NAMES if "mu_pris_param" in arrays.files else ("mean", "covariance")
            shapes = {name: arrays[name].shape for name in arrays.files}
            if math.prod(shapes.get(names[0], ())) != 36 or shapes.get(names[1]) != (36, 36):
                raise ValueError(
                    f"{path} must hold mean (36,) and covariance (36, 36), got {shapes or 'nothing'}; "
                    "make it with scripts/fit_niqe"
                )
            mean, covariance = (torch.from_numpy(arrays[name]).double() for name in names)
        return cls(mean=mean.flatten(), covariance=covariance)

    @classmethod
    def fit(cls, photographs: list[Tensor]) -> Pristine:
        """Fits a model to the sharp blocks of photographs.

        Args:
            photographs: Frames (3, H, W) in [-1, 1], each at least 96x96 pixels.

        Returns:
            The model.

        Raises:
            ValueError: If they have fewer than two sharp blocks.
        """
        chosen = []
        for photograph in photographs:
            features, sharpness = block_features(photograph)
            chosen.append(features[sharpness > _SHARPNESS * sharpness.max()])
        features = torch.cat(chosen)
        if len(features) < 2:
            raise ValueError(
                f"a model needs at least 2 sharp blocks, got {len(features)}; give more photographs"
            )
        return cls(mean=features.mean(0), covariance=torch.cov(features.T))


def niqe(frames: Tensor, pristine: Pristine | None = None) -> Tensor:
    """Natural image quality evaluator, the distance from pristine photographs by the module's equation.

    Values depend on the photographs that the model is made of: compare only such as come from one model. Frames are cut
    to a whole number of blocks. Areas without any contrast, in which rounding decides signs, may make some 2 % between
    implementations.

    Args:
        frames: ``(..., 3, H, W)`` with at least two blocks of 96x96 pixels.
        pristine: The model of pristine photographs; the package's own if None.

    Returns:
        ``(...)``, lower is better. Not a number for frames without any contrast.

    Raises:
        ValueError: The shape is not that of frames, or they are too small.
    """
    frames = check_frames("frames", frames)
    check_size(frames, BLOCK, "niqe")
    if (frames.shape[-2] // BLOCK) * (frames.shape[-1] // BLOCK) < 2:
        size = f"{frames.shape[-2]}x{frames.shape[-1]}"
        raise ValueError(f"niqe needs frames of at least 2 blocks of {BLOCK}x{BLOCK} pixels, got {size}")
    model = _own() if pristine is None else pristine

    def of_frame(frame: Tensor) -> Tensor:
        features, _ = block_features(frame[0])
        features = features[features.isfinite().all(1)]
        if len(features) < 2:
            return frame.new_tensor(torch.nan)
        offset = (features.mean(0) - model.mean).cpu()
        pooled = (torch.cov(features.T).cpu() + model.covariance) / 2
        return (offset @ torch.linalg.pinv(pooled, hermitian=True) @ offset).sqrt().to(frame)

    return each_frame(of_frame, frames)


@cache
def _own() -> Pristine:
    return Pristine.read()


def block_features(frame: Tensor) -> tuple[Tensor, Tensor]:
    """Computes NIQE's features of every block of a frame.

    Args:
        frame: (3, H, W) in [-1, 1], at least 96x96 pixels.

    Returns:
        Features (n, 36) and sharpness (n,), the mean of sigma; both float64 on the host. Features of a block without
        contrast are not finite.
    """
    height, width = (side // BLOCK * BLOCK for side in frame.shape[-2:])
    levels = luma(frame[None].cpu().double())[..., :height, :width] * LEVELS
    features, sharpness = [], None
    for scale in (1, 2):
        normal, sigma = _normalise(levels)
        size = BLOCK // scale
        features.append(_features(_blocks(normal, size), size))
        if sharpness is None:
            sharpness = _blocks(sigma, size).mean(1)
            levels = _halve(levels)
    assert sharpness is not None
    return torch.cat(features, dim=1), sharpness


def _halve(levels: Tensor) -> Tensor:
    """(1, 1, H, W) -> (1, 1, H / 2, W / 2) as the authors do: by Keys' cubic of -1/2, with mirrored edges."""
    levels = torch.cat((levels[..., :4, :].flip(-2), levels, levels[..., -4:, :].flip(-2)), dim=-2)
    levels = torch.cat((levels[..., :4].flip(-1), levels, levels[..., -4:].flip(-1)), dim=-1)
    half = (levels.shape[-2] // 2, levels.shape[-1] // 2)
    # With antialiasing torch's cubic is Keys'.
    small = F.interpolate(levels, half, mode="bicubic", align_corners=False, antialias=True)
    return small[..., 2:-2, 2:-2]


def _normalise(levels: Tensor) -> tuple[Tensor, Tensor]:
    """Luma (1, 1, H, W) without local mean and contrast, and the local deviation."""

    def blur(values: Tensor) -> Tensor:
        return gaussian_blur(F.pad(values, (_RADIUS,) * 4, mode="replicate"), _RADIUS, _SIGMA)

    mean = blur(levels)
    sigma = (blur(levels.square()) - mean.square()).abs().sqrt()
    return (levels - mean) / (sigma + 1), sigma


def _blocks(values: Tensor, size: int) -> Tensor:
    """(1, 1, H, W) -> (n, p), row by row."""
    return F.unfold(values, size, stride=size)[0].T


def _features(blocks: Tensor, size: int) -> Tensor:
    """(n, p) -> (n, 18): shape and width of the values, and of the products of neighbours in four directions."""
    shape, left, right = _fit_gaussian(blocks)
    features = [shape, (left + right) / 2]
    square = blocks.view(-1, size, size)
    for shift in _SHIFTS:
        shape, left, right = _fit_gaussian((square * square.roll(shift, dims=(1, 2))).flatten(1))
        mean = (right - left) * torch.exp(torch.lgamma(2 / shape) - torch.lgamma(1 / shape))
        features += [shape, mean, left, right]
    return torch.stack(features, dim=1)


@cache
def _ratios() -> Tensor:
    """What `mean(|x|)^2 / mean(x^2)` is of a generalised Gaussian of each of `_SHAPES`; it rises with the shape."""
    one, two, three = (torch.lgamma(k / _SHAPES) for k in (1, 2, 3))
    return torch.exp(2 * two - one - three)


def _fit_gaussian(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fits asymmetric generalised Gaussians to (n, p) by moments; returns shape, left and right scale, each (n,)."""
    squares = values.square()
    is_left = values < 0
    left = ((squares * is_left).sum(1) / is_left.sum(1)).sqrt()
    is_right = values > 0
    right = ((squares * is_right).sum(1) / is_right.sum(1)).sqrt()
    balance = left / right
    ratio = values.abs().mean(1).square() / squares.mean(1)
    ratio = ratio * (balance**3 + 1) * (balance + 1) / (balance.square() + 1).square()
    of_shapes = _ratios()
    above = torch.searchsorted(of_shapes, ratio.nan_to_num()).clamp(1, len(_SHAPES) - 1)
    nearer_below = ratio - of_shapes[above - 1] < of_shapes[above] - ratio
    shape = _SHAPES[torch.where(nearer_below, above - 1, above)]
    scale = torch.exp((torch.lgamma(1 / shape) - torch.lgamma(3 / shape)) / 2)
    return shape, left * scale, right * scale
