"""Pixel degradation: closed forms, determinism, errors."""

import pytest
import torch

from flashvideo.degradations.pixel import degrade_pixels, gaussian_blur


def _clip(seed: int = 0) -> torch.Tensor:
    return torch.rand(2, 5, 3, 16, 24, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def _generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_flat_clip_passes_the_weak_degradation_unchanged() -> None:
    flat = torch.full((1, 5, 3, 16, 24), 0.25)
    assert torch.allclose(degrade_pixels(flat, _generator(), scale=4, strong=False), flat, atol=1e-6)


@pytest.mark.parametrize("strong", [False, True])
def test_degradation_removes_fine_detail_and_keeps_size_and_range(strong: bool) -> None:
    clip = _clip()
    result = degrade_pixels(clip, _generator(), scale=4, strong=strong)
    assert result.shape == clip.shape and result.abs().max() <= 1
    assert result.diff(dim=-1).square().mean() < 0.2 * clip.diff(dim=-1).square().mean()


def test_the_same_generator_state_gives_the_same_result_and_another_does_not() -> None:
    first, second, other = (degrade_pixels(_clip(), _generator(s), scale=2, strong=True) for s in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_the_small_clip_passes_through_the_given_function() -> None:
    seen = []
    degrade_pixels(
        _clip(), _generator(), scale=4, strong=False, at_low_resolution=lambda x: seen.append(x.shape) or x
    )
    assert seen == [torch.Size((2, 5, 3, 4, 6))]


def test_blur_of_a_point_is_a_gaussian_of_that_deviation() -> None:
    point = torch.zeros(1, 1, 1, 41, 41)
    point[..., 20, 20] = 1
    blurred = gaussian_blur(point, 2.0)[0, 0, 0]
    x = torch.arange(41) - 20.0
    assert blurred.sum() == pytest.approx(1.0, abs=1e-5)
    assert (blurred.sum(0) * x**2).sum() == pytest.approx(4.0, rel=0.05)


def test_a_size_that_is_no_multiple_of_the_scale_is_an_error() -> None:
    with pytest.raises(ValueError, match="multiples of scale 5, got 16x24"):
        degrade_pixels(_clip(), _generator(), scale=5, strong=False)
