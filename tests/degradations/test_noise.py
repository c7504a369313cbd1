"""Noise by its moments."""

import pytest
import torch

from flashvideo.degradations.draws import ClipDraws
from flashvideo.degradations.noise import add_gaussian_noise, add_poisson_noise, random_noise
from flashvideo.degradations.ranges import NoiseRange


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _grey_frames(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None, None, None].expand(-1, 3, 200, 200).clone()


def test_gaussian_noise_has_its_frames_deviation_in_levels_and_differs_between_colours() -> None:
    frames = _grey_frames(0.0, 0.5)
    noise = 127.5 * (add_gaussian_noise(frames, torch.tensor([5.0, 20.0]), _generator(), grey=False) - frames)
    assert noise.std((1, 2, 3)).tolist() == pytest.approx([5, 20], rel=0.01)
    assert noise.mean((1, 2, 3)).abs().max() < 0.2
    assert torch.corrcoef(noise[1].flatten(1))[0, 1:].abs().max() < 0.02


@pytest.mark.parametrize("kind", ["gaussian", "poisson"])
def test_grey_noise_is_the_same_in_all_colours_and_as_strong(kind: str) -> None:
    frames = _grey_frames(0.2)
    if kind == "gaussian":
        noise = add_gaussian_noise(frames, torch.tensor([10.0]), _generator(), grey=True) - frames
        deviation = 10 / 127.5
    else:
        noise = add_poisson_noise(frames, torch.ones(1), _generator(), grey=True, photons=100) - frames
        deviation = 2 * (0.6 / 100) ** 0.5
    torch.testing.assert_close(noise[:, :1].expand(-1, 3, -1, -1), noise)
    assert noise.std() == pytest.approx(deviation, rel=0.02)


def test_poisson_noise_keeps_the_mean_and_has_a_variance_in_proportion_to_the_signal() -> None:
    frames = _grey_frames(-1.0, -0.5, 0.0, 1.0)
    scale = torch.full((4,), 1.5)
    noise = (add_poisson_noise(frames, scale, _generator(), grey=False, photons=256) - frames) / 2
    assert noise.mean((1, 2, 3)).abs().max() < 2e-3
    expected = [1.5**2 * signal / 256 for signal in (0, 0.25, 0.5, 1)]
    assert noise.var((1, 2, 3)).tolist() == pytest.approx(expected, rel=0.02)


def test_grey_poisson_noise_follows_the_brightness_of_the_pixel() -> None:
    green = torch.full((1, 3, 200, 200), -1.0)
    green[:, 1] = 1
    noise = (add_poisson_noise(green, torch.ones(1), _generator(), grey=True, photons=256) - green) / 2
    assert noise.var() == pytest.approx(0.587 / 256, rel=0.02)


@pytest.mark.parametrize("gaussian", [0.0, 1.0])
def test_random_noise_stays_in_range_and_drifts_little_in_strength(gaussian: float) -> None:
    config = NoiseRange(gaussian=gaussian, poisson=1 - gaussian)
    frames = _grey_frames(*[0.9] * 6)
    noisy = random_noise(frames, config, ClipDraws(1, torch.device("cpu")))
    assert noisy.abs().max() <= 1
    deviations = (noisy - frames).std((1, 2, 3))
    assert deviations.min() > 0 and deviations.max() / deviations.min() < 1.2
    assert not torch.equal(noisy[0], noisy[1])


def test_noise_of_probability_0_does_nothing() -> None:
    frames = _grey_frames(0.1)
    assert random_noise(frames, NoiseRange(probability=0), ClipDraws(1, torch.device("cpu"))).equal(frames)
