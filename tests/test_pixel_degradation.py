"""Pixel degradation as a whole: sizes, randomness, drift, errors."""

import dataclasses

import pytest
import torch

from flashvideo.degradations.blur import filter_frames, sinc_kernels
from flashvideo.degradations.codecs import compress_video
from flashvideo.degradations.pixel import PixelDegradation, degrade_pixels
from flashvideo.degradations.ranges import (
    BlurRange,
    JpegRange,
    NoiseRange,
    OrderRange,
    ResizeRange,
    VideoCodecRange,
)
from flashvideo.degradations.resizing import resize_frames
from flashvideo.video import resize_video, to_uint8

BY_FOUR = PixelDegradation(weak_factor=(4, 4))


def _clip(seed: int = 0) -> torch.Tensor:
    return torch.rand(2, 5, 3, 16, 24, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def _generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_weak_degradation_is_antialiased_down_and_up_again() -> None:
    clip = _clip()
    expected = resize_video(resize_video(clip, 4, 6), 16, 24)
    torch.testing.assert_close(degrade_pixels(clip, _generator(), BY_FOUR, strong=False), expected)


@pytest.mark.parametrize("strong", [False, True])
def test_degradation_removes_fine_detail_and_keeps_size_and_range(strong: bool) -> None:
    clip = _clip()
    result = degrade_pixels(clip, _generator(), BY_FOUR, strong=strong)
    assert result.shape == clip.shape and result.abs().max() <= 1
    assert result.diff(dim=-1).square().mean() < 0.2 * clip.diff(dim=-1).square().mean()


@pytest.mark.parametrize("strong", [False, True])
def test_the_same_generator_state_gives_the_same_result_and_another_does_not(strong: bool) -> None:
    config = PixelDegradation()
    first, again, other = (degrade_pixels(_clip(), _generator(s), config, strong=strong) for s in (1, 1, 3))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_clips_of_a_batch_are_degraded_each_in_its_own_way() -> None:
    same = _clip()[:1].expand(2, -1, -1, -1, -1)
    first, second = degrade_pixels(same, _generator(), PixelDegradation(), strong=True)
    assert (first - second).abs().mean() > 0.01


def test_what_happens_to_a_clip_does_not_depend_on_the_others() -> None:
    clips, others = _clip(), _clip(5)
    mixed = torch.stack((others[0], clips[1]))
    first, second = (
        degrade_pixels(x, _generator(), PixelDegradation(), strong=True)[1] for x in (clips, mixed)
    )
    assert torch.equal(first, second)


def test_the_input_is_left_as_it_is() -> None:
    clip = 1.5 * _clip()
    before = clip.clone()
    degrade_pixels(clip, _generator(), PixelDegradation(), strong=True)
    assert torch.equal(clip, before)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_share_of_strong_clips_is_drawn_clip_by_clip(share: float) -> None:
    config = dataclasses.replace(BY_FOUR, strong=share)
    clip = _clip()[:1, :1].expand(20, -1, -1, -1, -1)
    weak = degrade_pixels(clip[:1], _generator(), config, strong=False)
    is_strong = (degrade_pixels(clip, _generator(), config) - weak).flatten(1).abs().amax(1) > 1e-5
    assert {0.0: 0, 0.5: 3, 1.0: 20}[share] <= is_strong.sum() <= {0.0: 0, 0.5: 17, 1.0: 20}[share]


@pytest.mark.parametrize("strong", [False, True])
def test_the_small_clips_pass_through_the_given_function(strong: bool) -> None:
    seen = []
    result = degrade_pixels(
        _clip(),
        _generator(),
        BY_FOUR,
        strong=strong,
        at_low_resolution=lambda x: seen.append(x.shape) or torch.zeros_like(x),
    )
    assert seen == [(2, 5, 3, 4, 6)]
    assert not result.any()


def test_sizes_that_no_factor_divides_are_rounded_to_the_nearest_multiple() -> None:
    clip, seen = torch.zeros(1, 1, 3, 45, 61), []
    for multiple in (1, 8):
        config = dataclasses.replace(BY_FOUR, low_multiple=multiple)
        result = degrade_pixels(
            clip,
            _generator(),
            config,
            strong=False,
            at_low_resolution=lambda x: seen.append(x.shape[-2:]) or x,
        )
        assert result.shape == clip.shape
    assert seen == [(11, 15), (8, 16)]


def test_weak_factors_fill_their_range() -> None:
    widths = []
    config = PixelDegradation(strong=0, weak_factor=(4, 8))
    clips = torch.zeros(30, 1, 3, 16, 256)
    degrade_pixels(
        clips, _generator(), config, at_low_resolution=lambda x: widths.extend([x.shape[-1]] * len(x)) or x
    )
    assert len(widths) == 30 and 32 <= min(widths) < 38 and 54 < max(widths) <= 64


def _without_codecs_and_noise(order: OrderRange) -> OrderRange:
    return dataclasses.replace(
        order,
        noise=NoiseRange(probability=0),
        jpeg=JpegRange(probability=0),
        video=VideoCodecRange(probability=0),
    )


@pytest.mark.parametrize("seed", range(3))
def test_neighbouring_frames_are_degraded_nearly_alike(seed: int) -> None:
    published = PixelDegradation()
    config = dataclasses.replace(
        published,
        first=_without_codecs_and_noise(published.first),
        second=_without_codecs_and_noise(published.second),
        video=VideoCodecRange(probability=0),
    )
    picture = torch.nn.functional.interpolate(_clip()[0, :1], scale_factor=4, mode="bicubic").clamp(-1, 1)
    still = picture.expand(2, 6, -1, -1, -1)
    first, second = degrade_pixels(still, _generator(seed), config, strong=True)
    between_frames = first.diff(dim=0).abs().mean()
    assert 0 < between_frames < 0.5 * (first - second).abs().mean()


OFF = {
    "blur": BlurRange(probability=0),
    "resize": ResizeRange(up=0, down=0, keep=1),
    "noise": NoiseRange(probability=0),
    "jpeg": JpegRange(probability=0),
    "video": VideoCodecRange(probability=0),
}
NOTHING = PixelDegradation(
    first=OrderRange(**OFF),
    second=OrderRange(**OFF),
    final=BlurRange(probability=0),
    video=VideoCodecRange(probability=0),
    strong_factor=(1, 1),
)


def test_a_strong_degradation_with_every_part_off_does_nothing() -> None:
    assert degrade_pixels(_clip(), _generator(), NOTHING, strong=True).equal(_clip())


@pytest.mark.parametrize("part", ["blur", "resize", "noise", "jpeg", "video"])
def test_each_part_of_an_order_has_its_effect(part: str) -> None:
    clip, on = _clip(), {**OFF, part: getattr(OrderRange(), part)}
    for name in ("first", "second"):
        changed = dataclasses.replace(NOTHING, **{name: OrderRange(**on)})
        assert (degrade_pixels(clip, _generator(), changed, strong=True) - clip).abs().mean() > 0.001


def test_the_last_filter_is_a_sinc_of_the_drawn_cutoff() -> None:
    final = dataclasses.replace(
        PixelDegradation().final, probability=1, sizes=(13,), cutoff=(2.0, 2.0), cutoff_step=0
    )
    clip = _clip()
    result = degrade_pixels(clip, _generator(), dataclasses.replace(NOTHING, final=final), strong=True)
    kernels = sinc_kernels(13, torch.full((5,), 2.0))
    expected = torch.stack([filter_frames(frames, kernels) for frames in clip]).clamp(-1, 1)
    torch.testing.assert_close(result, expected)


def test_the_last_compression_comes_before_or_after_the_last_resize() -> None:
    config = dataclasses.replace(
        NOTHING,
        strong_factor=(2, 2),
        final_resize=ResizeRange(area=0, bicubic=0),
        # At 256x256 pixels the rate is that of the clip, 400 bits, times the ratio of the areas.
        video=VideoCodecRange(mpeg4=0, bits_per_frame=(400 * 256**2 / (16 * 24),) * 2),
    )
    clip = _clip()[0]

    def compressed(frames: torch.Tensor) -> torch.Tensor:
        return compress_video(to_uint8(frames), "libx264", 400) / 127.5 - 1

    def resized(frames: torch.Tensor) -> torch.Tensor:
        return resize_frames(frames, 8, 12, "bilinear")

    orders = [resize_video(x, 16, 24) for x in (compressed(resized(clip)), resized(compressed(clip)))]
    batch = clip.expand(8, -1, -1, -1, -1)
    results = degrade_pixels(batch, _generator(), config, strong=True)
    found = {
        next(i for i, order in enumerate(orders) if torch.allclose(r, order, atol=1e-5)) for r in results
    }
    assert found == {0, 1}


def test_narrow_dtypes_stay() -> None:
    result = degrade_pixels(_clip().bfloat16(), _generator(), BY_FOUR, strong=True)
    assert result.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.zeros(5, 3, 16, 24), r"pixels must have the shape \(B, F, 3, H, W\).*got \(5, 3, 16, 24\)"),
        (torch.zeros(1, 5, 4, 16, 24), r"pixels must have the shape \(B, F, 3, H, W\)"),
        (
            torch.zeros(1, 5, 3, 16, 24, dtype=torch.uint8),
            r"pixels must be floats in \[-1, 1\], got torch.uint8",
        ),
    ],
)
def test_what_is_no_batch_of_clips_is_an_error(pixels: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        degrade_pixels(pixels, _generator(), BY_FOUR)
