"""Resizing against PIL, and drifting factors that leave every pixel in its place."""

import numpy as np
import pytest
import torch
from PIL import Image

from flashvideo.degradations.draws import ClipDraws
from flashvideo.degradations.ranges import ResizeRange
from flashvideo.degradations.resizing import (
    draw_mode,
    random_resize,
    resize_each,
    resize_frames,
    scaled_size,
)


def _frames(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def _draws(seed: int = 0) -> ClipDraws:
    return ClipDraws(seed, torch.device("cpu"))


@pytest.mark.parametrize(
    ("mode", "size", "filter"),
    [("bilinear", (24, 27), Image.Resampling.BILINEAR), ("area", (4, 3), Image.Resampling.BOX)],
)
def test_enlarging_bilinearly_and_averaging_areas_are_pils(
    mode: str, size: tuple[int, int], filter: Image.Resampling
) -> None:
    frames = _frames(1, 3, 12, 9)
    expected = [Image.fromarray(c).resize(size[::-1], filter) for c in frames[0].numpy()]
    np.testing.assert_allclose(resize_frames(frames, *size, mode)[0], np.stack(expected), atol=1e-5)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_fine_stripes_alias_where_areas_average_them(mode: str) -> None:
    stripes = torch.tensor([1.0, -1.0, 1.0]).repeat(10).expand(1, 3, 30, 30)
    assert resize_frames(stripes, 10, 10, mode).max() < -0.9
    torch.testing.assert_close(resize_frames(stripes, 10, 10, "area"), torch.full((1, 3, 10, 10), 1 / 3))


def test_sizes_are_rounded_to_even_numbers_and_never_vanish() -> None:
    assert scaled_size(101, 63, 0.5) == (50, 32)
    assert scaled_size(16, 16, 0.15) == (8, 8)


@pytest.mark.parametrize("mode", ["bilinear", "area", "bicubic"])
def test_frames_of_drifting_factors_get_one_size_and_keep_their_places(mode: str) -> None:
    ramp = torch.linspace(-1, 1, 64).expand(4, 3, 48, 64)
    resized = resize_each(ramp, [0.5, 0.53, 0.47, 0.6], mode)
    assert resized.shape == (4, 3, 24, 32)
    positions = torch.linspace(-1, 1, 64).unfold(0, 2, 2).mean(1)
    # A pixel is 1 / 16 of the ramp's height; "area" may be off by a part of one.
    assert (resized - positions)[..., 3:-3].abs().max() < 0.03


def test_directions_stay_on_their_side_of_the_size_at_first() -> None:
    frames = _frames(1, 3, 40, 40)
    for seed in range(10):
        up = random_resize(frames, ResizeRange(up=1, down=0, keep=0), _draws(seed))
        down = random_resize(frames, ResizeRange(up=0, down=1, keep=0), _draws(seed))
        assert 40 <= up.shape[-1] <= 60 and 8 <= down.shape[-1] <= 40
    assert random_resize(frames, ResizeRange(up=0, down=0, keep=1), _draws()).equal(frames)


def test_results_stay_in_range_though_bicubic_overshoots() -> None:
    config = ResizeRange(up=1, down=0, keep=0, bilinear=0, area=0)
    frames = _frames(3, 3, 20, 20).sign()
    assert resize_frames(frames, 28, 28, "bicubic").abs().max() > 1
    assert random_resize(frames, config, _draws()).abs().max() <= 1


def test_interpolations_are_drawn_by_their_shares() -> None:
    config = ResizeRange(bilinear=0, area=1, bicubic=1)
    assert {draw_mode(config, _draws(seed)) for seed in range(20)} == {"area", "bicubic"}
