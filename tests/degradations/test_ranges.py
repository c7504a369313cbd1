"""Ranges: wrong ones are refused in one sentence, and milder ones lie inside."""

import dataclasses
import math
import typing
from collections.abc import Iterator

import pytest

from flashvideo.degradations.pixel import PixelDegradation
from flashvideo.degradations.ranges import (
    BlurRange,
    JpegRange,
    KernelMix,
    NoiseRange,
    OrderRange,
    ResizeRange,
    VideoCodecRange,
)


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (KernelMix, {"iso": -1.0}, "shares of kernels must be at least 0 and not all 0, got"),
        (BlurRange, {"probability": 1.2}, "probability must be between 0 and 1, got 1.2"),
        (BlurRange, {"sizes": (7, 8)}, r"sizes of blur kernels must be odd and positive, got \(7, 8\)"),
        (BlurRange, {"sigma": (3.0, 0.2)}, r"sigma must rise and lie between 0.01 and inf, got \(3, 0.2\)"),
        (BlurRange, {"cutoff": (1.0, 4.0)}, "cutoff must rise and lie between 0.01 and 3.14159"),
        (BlurRange, {"sigma_step": -1.0}, "sigma_step must be at least 0, got -1.0"),
        (ResizeRange, {"factor": (1.2, 1.5)}, "factor must go from at most 1 to at least 1"),
        (ResizeRange, {"up": 0.0, "down": 0.0, "keep": 0.0}, "shares of up, down, keep must be"),
        (ResizeRange, {"bicubic": -1.0}, "shares of bilinear, area, bicubic must be at least 0"),
        (NoiseRange, {"grey": -0.1}, "grey must be between 0 and 1, got -0.1"),
        (NoiseRange, {"photons": 0.0}, "photons must be positive, got 0.0"),
        (JpegRange, {"quality": (0.0, 95.0)}, "quality must rise and lie between 1 and 100"),
        (VideoCodecRange, {"libx264": 0.0, "mpeg4": 0.0}, "shares of libx264, mpeg4 must be"),
        (VideoCodecRange, {"bits_per_frame": (1.0, 1e5)}, "bits_per_frame must rise and lie between 100"),
        (VideoCodecRange, {"preset": "swift"}, "preset must be one of ultrafast, .*, got 'swift'"),
        (PixelDegradation, {"strong": 1.5}, "strong must be between 0 and 1, got 1.5"),
        (PixelDegradation, {"weak_factor": (0.5, 4.0)}, r"weak_factor must rise .* got \(0.5, 4\)"),
        (PixelDegradation, {"low_multiple": 0}, "low_multiple must be at least 1, got 0"),
    ],
)
def test_a_wrong_range_is_refused_in_one_sentence(cls: type, values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**values)


def _places(config: object) -> Iterator[tuple[object, type]]:
    """Every configuration inside another, with the class that its place is declared to have."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield value, hints[field.name]
            yield from _places(value)


def test_a_part_of_which_a_recipe_gives_one_value_keeps_the_published_others_of_its_place() -> None:
    places = list(_places(PixelDegradation()))
    assert len(places) > 15
    assert all(cls() == value for value, cls in places)


def test_the_second_order_is_the_milder_one() -> None:
    second = PixelDegradation().second
    assert (second.blur.probability, second.blur.sigma, second.noise.scale) == (0.8, (0.2, 1.5), (0.05, 2.5))
    assert second.resize.factor == (0.3, 1.2) and second.video.probability == 0


def test_a_strength_of_one_changes_nothing() -> None:
    assert PixelDegradation().milder(1.0) == PixelDegradation()


def test_half_the_strength_halves_the_way_to_the_good_ends() -> None:
    first = PixelDegradation().milder(0.5).first
    assert first.blur.sigma == pytest.approx((0.2, 1.6))
    assert first.resize.factor == pytest.approx((0.575, 1.25))
    assert first.noise.sigma == pytest.approx((1.0, 15.5))
    assert first.noise.scale == pytest.approx((0.05, 1.525))
    assert first.jpeg.quality == pytest.approx((62.5, 95.0))
    assert first.video.bits_per_frame == pytest.approx((10**4.5, 1e5))


def test_no_strength_leaves_the_good_ends_in_every_part() -> None:
    none = PixelDegradation().milder(0.0)
    for order in (none.first, none.second):
        assert order.blur.sigma == (0.2, 0.2) and order.resize.factor == (1, 1)
        assert order.noise.sigma == (1, 1) and order.jpeg.quality == (95, 95)
    assert none.first.blur.small_cutoff == none.final.cutoff == (math.pi, math.pi)
    assert none.video.bits_per_frame == (1e5, 1e5)


def test_a_range_of_one_value_keeps_it_at_any_strength() -> None:
    one = (1.3, 1.3)
    fixed = OrderRange(
        blur=BlurRange(sigma=one, cutoff=one, small_cutoff=one),
        resize=ResizeRange(factor=(1.0, 1.0)),
        noise=NoiseRange(sigma=one, scale=one),
        jpeg=JpegRange(quality=(83.3, 83.3)),
        video=VideoCodecRange(bits_per_frame=(12345.6, 12345.6)),
    )
    assert all(fixed.milder(percent / 100) == fixed for percent in range(101))


def test_a_strength_beyond_one_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"strength must be between 0 and 1, got 1\.5"):
        PixelDegradation().milder(1.5)
