"""Blur kernels against their formulas and scipy's, filtering against scipy's."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import ndimage, special

from flashvideo.degradations.blur import (
    draw_kernels,
    filter_frames,
    gaussian_kernels,
    plateau_kernels,
    random_blur,
    sinc_kernels,
)
from flashvideo.degradations.draws import ClipDraws
from flashvideo.degradations.ranges import BlurRange, FinalSincRange, KernelMix

KINDS = [field.name for field in dataclasses.fields(KernelMix)]


def _only(kind: str) -> KernelMix:
    return KernelMix(**{name: float(name == kind) for name in KINDS})


def _draws(seed: int = 0) -> ClipDraws:
    return ClipDraws(seed, torch.device("cpu"))


def _tensors(*values: float) -> list[torch.Tensor]:
    return [torch.tensor([value], dtype=torch.float64) for value in values]


def _one_gaussian(size: int, sigma: tuple[float, float], angle: float, shape: float = 1.0) -> torch.Tensor:
    return gaussian_kernels(size, torch.tensor([sigma], dtype=torch.float64), *_tensors(angle, shape))[0]


def _moments(kernels: torch.Tensor) -> torch.Tensor:
    """Covariances (F, 2, 2) of (x, y) under kernels (F, K, K)."""
    offsets = torch.arange(kernels.shape[-1], dtype=torch.float64) - kernels.shape[-1] // 2
    y, x = torch.meshgrid(offsets, offsets, indexing="ij")
    points = torch.stack((x, y))
    return torch.einsum("fyx,ayx,byx->fab", kernels, points, points)


def test_an_isotropic_gaussian_is_scipys() -> None:
    point = np.zeros(21)
    point[10] = 1
    profile = ndimage.gaussian_filter1d(point, 1.7, radius=10, mode="constant")
    np.testing.assert_allclose(_one_gaussian(21, (1.7, 1.7), 0.3), np.outer(profile, profile), atol=1e-12)


def test_the_second_moments_of_a_rotated_gaussian_are_its_rotated_squared_widths() -> None:
    angle = 0.6
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    expected = rotation @ np.diag([2.5**2, 1.2**2]) @ rotation.T
    np.testing.assert_allclose(
        _moments(_one_gaussian(41, (2.5, 1.2), angle)[None])[0], expected, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("shape", [0.5, 1.0, 3.0])
def test_generalized_gaussians_and_plateaus_follow_their_formulas(shape: float) -> None:
    sigma = torch.tensor([[2.0, 0.8]]).double()
    generalized = gaussian_kernels(9, sigma, *_tensors(0.0, shape))[0]
    plateau = plateau_kernels(9, sigma, *_tensors(0.0, shape))[0]
    for x, y in ((1, 0), (0, 1), (3, -2)):
        q = (x / 2.0) ** 2 + (y / 0.8) ** 2
        assert generalized[4 + y, 4 + x] / generalized[4, 4] == pytest.approx(math.exp(-(q**shape) / 2))
        assert plateau[4 + y, 4 + x] / plateau[4, 4] == pytest.approx(1 / (1 + q**shape))


def test_a_quarter_turn_exchanges_the_axes() -> None:
    torch.testing.assert_close(_one_gaussian(9, (2.0, 1.0), math.pi / 2), _one_gaussian(9, (1.0, 2.0), 0.0))


def test_a_sinc_is_the_formula_with_scipys_bessel_function() -> None:
    w = 1.3
    y, x = np.mgrid[-5:6, -5:6]
    radius = np.hypot(x, y)
    radius[5, 5] = 1
    expected = w * special.j1(w * radius) / (2 * math.pi * radius)
    expected[5, 5] = w**2 / (4 * math.pi)
    np.testing.assert_allclose(sinc_kernels(11, *_tensors(w))[0], expected / expected.sum(), atol=1e-7)


def test_a_sinc_passes_frequencies_below_its_cutoff_and_stops_those_above() -> None:
    response = torch.fft.fft2(sinc_kernels(101, *_tensors(math.pi / 2))[0]).abs()
    frequency = torch.fft.fftfreq(101) * 2 * math.pi
    radius = torch.hypot(frequency[:, None], frequency[None])
    torch.testing.assert_close(
        response[radius < 1.4], torch.ones_like(response[radius < 1.4]), atol=0.1, rtol=0
    )
    assert response[radius > 1.75].max() < 0.1


def test_each_frame_is_filtered_by_its_own_kernel_as_scipy_does_it() -> None:
    generator = torch.Generator().manual_seed(0)
    frames, kernels = (
        torch.rand(2, 3, 12, 9, generator=generator),
        torch.rand(2, 5, 5, generator=generator) / 25,
    )
    expected = [
        [ndimage.correlate(channel, kernel.numpy(), mode="nearest") for channel in frame.numpy()]
        for frame, kernel in zip(frames, kernels, strict=True)
    ]
    np.testing.assert_allclose(filter_frames(frames, kernels), expected, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.1, 0.5])
def test_kernels_with_empty_borders_filter_as_they_would_whole(sigma: float) -> None:
    frames = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    kernel = _one_gaussian(21, (sigma, sigma), 0.0)
    expected = [ndimage.correlate(channel, kernel.numpy(), mode="nearest") for channel in frames[0].numpy()]
    np.testing.assert_allclose(filter_frames(frames, kernel[None])[0], expected, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_of_every_kind_sum_to_one_and_change_little_from_frame_to_frame(kind: str) -> None:
    kernels = draw_kernels(BlurRange(kernels=_only(kind), sigma=(0.8, 3)), 8, _draws(3))
    torch.testing.assert_close(kernels.sum((1, 2)), torch.ones(8, dtype=torch.float64))
    steps = kernels.diff(dim=0).square().sum((1, 2)).sqrt()
    assert 0 < steps.max() < 0.3 * kernels.square().sum((1, 2)).sqrt().max()


@pytest.mark.parametrize("seed", range(4))
def test_widths_drift_by_less_than_their_step_within_their_range(seed: int) -> None:
    config = BlurRange(kernels=_only("iso"), sizes=(31,), sigma=(1.0, 2.0))
    widths = _moments(draw_kernels(config, 12, _draws(seed)))[:, 0, 0].sqrt()
    assert widths.min() > 0.999 and widths.max() < 2.001
    assert 0 < widths.diff().abs().max() < config.sigma_step + 1e-4


def test_exponents_lie_below_one_as_often_as_above() -> None:
    config = BlurRange(kernels=_only("generalized_iso"), sizes=(9,), sigma=(2.0, 2.0))
    below = 0
    for seed in range(200):
        kernel = draw_kernels(config, 1, _draws(seed))[0]
        # At twice the width q is 4, and a Gaussian has exp(-2) of its peak left.
        below += bool(kernel[4, 8] / kernel[4, 4] > math.exp(-2))
    assert 70 < below < 130


@pytest.mark.parametrize(("size", "cutoff"), [(11, 3.0), (13, 1.0)])
def test_small_sincs_have_their_own_cutoff(size: int, cutoff: float) -> None:
    config = BlurRange(
        kernels=_only("sinc"), sizes=(size,), cutoff=(1.0, 1.0), small_cutoff=(3.0, 3.0), cutoff_step=0
    )
    torch.testing.assert_close(draw_kernels(config, 1, _draws()), sinc_kernels(size, *_tensors(cutoff)))


@pytest.mark.parametrize("size", [7, 21])
def test_the_last_sinc_has_one_cutoff_at_all_sizes(size: int) -> None:
    config = FinalSincRange(sizes=(size,), cutoff=(2.9, 2.9))
    torch.testing.assert_close(draw_kernels(config, 1, _draws()), sinc_kernels(size, *_tensors(2.9)))


def test_a_blur_of_probability_0_does_nothing() -> None:
    frames = torch.rand(2, 3, 8, 8)
    assert random_blur(frames, BlurRange(probability=0), _draws()).equal(frames)
