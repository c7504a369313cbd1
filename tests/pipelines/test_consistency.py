"""What enhanced clips keep of their input."""

import pytest
import torch

from flashvideo.evaluation.metrics import downsampled_psnr, frame_difference_error
from flashvideo.pipelines.consistency import (
    MAX_GAIN,
    average_noise,
    back_project,
    keep_consistent,
    steady_detail,
)
from flashvideo.video import resize_video


def smooth(*shape: int, seed: int = 0) -> torch.Tensor:
    """Clips of 8 by 8 pixels enlarged: a smaller picture tells all of them, nearly."""
    *rest, height, width = shape
    values = torch.randn(*rest, height // 8, width // 8, generator=torch.Generator().manual_seed(seed))
    return resize_video(values.clamp(-2, 2) / 3, height, width)


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.1


def test_back_projection_gives_the_input_back_at_its_size() -> None:
    truth = smooth(1, 2, 3, 64, 96)
    coarse = resize_video(truth, 16, 24)
    shifted = truth + 0.2 + noise(*truth.shape)
    before = downsampled_psnr(shifted[0], coarse[0]).mean()
    after = downsampled_psnr(back_project(shifted, coarse)[0], coarse[0]).mean()
    assert before < 21 and after > 35


def test_back_projection_leaves_detail_that_the_input_cannot_show() -> None:
    truth = smooth(1, 1, 3, 64, 96)
    stripes = 0.2 * torch.cos(torch.pi * torch.arange(96.0)).expand_as(truth)  # one pixel up, one down
    result = back_project(truth + stripes, resize_video(truth, 16, 24))
    expected = back_project(truth, resize_video(truth, 16, 24)) + stripes
    torch.testing.assert_close(result[..., 8:-8], expected[..., 8:-8], atol=0.01, rtol=0)


def test_a_result_that_matches_its_input_is_left_alone() -> None:
    flat = torch.full((1, 3, 3, 32, 48), 0.25)
    torch.testing.assert_close(keep_consistent(flat, flat[..., ::4, ::4]), flat)


def still_clip(batch: int, num_frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A still input (B, N, 3, 16, 24) and the same enlarged to 64x96."""
    coarse = smooth(batch, 1, 3, 16, 24).repeat(1, num_frames, 1, 1, 1)
    enlarged = torch.nn.functional.interpolate(coarse.flatten(0, 1), scale_factor=4, mode="bicubic")
    return coarse, enlarged.unflatten(0, (batch, num_frames))


def test_detail_that_stays_is_left_alone() -> None:
    coarse, enlarged = still_clip(2, 5)
    result = enlarged + noise(2, 1, 3, 64, 96)
    torch.testing.assert_close(steady_detail(result, coarse), result, atol=1e-5, rtol=0)


def test_detail_of_a_still_input_is_its_mean_over_time_as_strong_as_in_one_frame() -> None:
    coarse, enlarged = still_clip(2, 3)
    detail = noise(2, 3, 3, 64, 96)
    steady = steady_detail(enlarged + detail, coarse) - enlarged
    assert steady.diff(dim=1).abs().max() < 1e-5
    mean = detail.mean(dim=1)
    correlation = torch.corrcoef(torch.stack((steady[:, 0].flatten(), mean.flatten())))[0, 1]
    assert correlation > 0.99
    assert steady.std().item() == pytest.approx(detail.std().item(), rel=0.03)
    assert mean.std() < 0.6 * detail.std()


def test_the_mean_of_mere_noise_is_amplified_no_further_than_the_limit() -> None:
    coarse, enlarged = still_clip(1, 16)  # of 16 frames the mean is a quarter as strong as one
    detail = noise(1, 16, 3, 64, 96)
    steady = steady_detail(enlarged + detail, coarse) - enlarged
    assert steady.std().item() == pytest.approx(MAX_GAIN * detail.mean(dim=1).std().item(), rel=0.02)


def test_detail_of_which_the_mean_is_nothing_is_not_made_up_again() -> None:
    coarse, enlarged = still_clip(1, 8)
    signs = torch.tensor((1.0, -1.0)).repeat(4).view(1, 8, 1, 1, 1)
    steady = steady_detail(enlarged + signs * noise(1, 1, 3, 64, 96), coarse)
    torch.testing.assert_close(steady, enlarged, atol=1e-5, rtol=0)


def test_what_moves_keeps_its_own_detail_and_what_stands_still_does_not_flicker() -> None:
    still = smooth(1, 1, 3, 16, 48).repeat(1, 4, 1, 1, 1)
    still[..., 24:] = torch.linspace(-1, 1, 4).view(1, 4, 1, 1, 1)  # the right half brightens
    enlarged = torch.nn.functional.interpolate(still[0], scale_factor=4, mode="bicubic")[None]
    result = enlarged + noise(1, 4, 3, 64, 192)
    steady = steady_detail(result, still)
    torch.testing.assert_close(steady[..., 128:], result[..., 128:], atol=1e-3, rtol=0)
    assert steady[..., :72].diff(dim=1).abs().max() < 1e-4 < 0.05 < result[..., :72].diff(dim=1).abs().mean()


def passing_block(num_frames: int) -> torch.Tensor:
    """A block (B, N, 3, 16, 24) that passes over the middle rows of a flat clip, two pixels each frame."""
    coarse = torch.zeros(1, num_frames, 3, 16, 24)
    for t in range(num_frames):
        coarse[:, t, :, 6:10, 2 * t : 2 * t + 4] = 0.8
    return coarse


def test_a_passing_object_does_not_strengthen_the_detail_beside_its_path() -> None:
    coarse = passing_block(9)
    enlarged = torch.nn.functional.interpolate(coarse[0], scale_factor=4, mode="bicubic")[None]
    # The block is sharper in the result than in the input: detail of its own, at its edges.
    block = torch.nn.functional.interpolate(coarse[0], scale_factor=4, mode="nearest")[None]
    result = block + noise(1, 1, 3, 64, 96)
    steady = steady_detail(result, coarse)
    for rows in (slice(14, 18), slice(46, 50)):  # within 5x5 pixels of the path, but not within 3x3
        kept = (steady - enlarged)[..., rows, :].std() / (result - enlarged)[..., rows, :].std()
        assert kept.item() == pytest.approx(1, abs=0.02)
        assert (steady - result)[..., rows, :].diff(dim=1).abs().mean() < 1e-4


def test_a_pixel_beside_one_that_changes_does_not_stand_still() -> None:
    coarse = torch.zeros(1, 2, 3, 5, 5)
    coarse[:, 1, :, 2, 2] = 1
    enlarged = torch.nn.functional.interpolate(coarse[0], scale_factor=4, mode="bicubic")[None]
    result = enlarged.clone()
    result[..., 6:14, 6:14] += noise(1, 2, 3, 8, 8)
    torch.testing.assert_close(steady_detail(result, coarse), result, atol=1e-3, rtol=0)


def test_the_mean_over_time_cancels_flicker_but_not_detail_that_stays() -> None:
    coarse, enlarged = still_clip(1, 9)
    truth = enlarged + noise(1, 1, 3, 64, 96, seed=2)
    result = truth + noise(*enlarged.shape, seed=3) / 2
    steady = steady_detail(result, coarse)
    assert frame_difference_error(steady[0], truth[0]) < 1e-4
    assert (steady - truth).square().mean() < (result - truth).square().mean() / 4


@pytest.mark.parametrize("num_frames", [1, 3])
@pytest.mark.parametrize("size", [(16, 24), (8, 8), (32, 48), (64, 96), (100, 60)])
def test_results_look_like_still_inputs_of_any_size_and_do_not_flicker(
    size: tuple[int, int], num_frames: int
) -> None:
    given = resize_video(2 * smooth(1, 1, 3, 128, 192), *size).clamp(-1, 1).repeat(1, num_frames, 1, 1, 1)
    result = (resize_video(given, 64, 96) + 5 * noise(1, num_frames, 3, 64, 96)).bfloat16()
    output = keep_consistent(result, given)
    assert output.shape == result.shape and output.dtype == torch.float32
    assert result.abs().max() > 1 and output.abs().max() == 1
    small = resize_video(given, 8, 8)[0]
    assert downsampled_psnr(output[0], small).mean() > downsampled_psnr(result[0].float(), small).mean() + 3
    assert num_frames == 1 or output.diff(dim=1).abs().max() < 1e-4 < result.diff(dim=1).abs().mean()


def test_a_smaller_input_is_put_back_as_it_is_before_detail_is_averaged() -> None:
    given = noise(1, 3, 3, 12, 20, seed=4)
    result = resize_video(given, 64, 96) + noise(1, 3, 3, 64, 96)
    expected = steady_detail(back_project(result, given), given)
    torch.testing.assert_close(keep_consistent(result, given), expected)


def test_the_finest_octave_of_a_larger_input_is_not_put_back() -> None:
    """An input as large as the result must not simply be given back."""
    given = smooth(1, 1, 3, 64, 96) + noise(1, 1, 3, 64, 96)
    cleaned = smooth(1, 1, 3, 64, 96)
    output = keep_consistent(cleaned, given)
    assert (output - cleaned).square().mean() < (output - given).square().mean() / 2
    seen = downsampled_psnr(output[0], resize_video(given, 32, 48)[0]).mean()
    assert seen > downsampled_psnr(cleaned[0], resize_video(given, 32, 48)[0]).mean() + 6


def test_each_window_is_compared_with_its_own_frames(stage2, clip) -> None:
    """With the frames of another window, the coarse picture would be another's."""
    given = torch.cat((clip, -clip), dim=1)
    windows = {"window": clip.shape[1], "overlap": 1, "num_inference_steps": 1, "output_type": "pt"}
    frames = stage2(given, consistency=True, generator=torch.Generator().manual_seed(0), **windows).frames
    assert downsampled_psnr(frames[0], given[0]).min() > 20


def test_noise_of_a_still_input_is_averaged_over_all_frames() -> None:
    coarse, _ = still_clip(2, 8)
    noisy = coarse + 0.3 * noise(*coarse.shape)  # 4 levels of 255
    left = average_noise(noisy, coarse) - coarse
    assert left.std().item() == pytest.approx(0.03 / 8**0.5, rel=0.05)


def test_an_input_without_noise_changes_by_less_than_a_level_however_it_moves() -> None:
    moving = torch.stack([smooth(3, 32, 64).roll(2 * t, dims=-1) for t in range(5)])[None]
    result = moving + 0.2 * noise(*moving.shape)
    torch.testing.assert_close(average_noise(moving, result), moving, atol=2 / 255, rtol=0)


def test_motion_and_light_that_the_result_follows_are_no_noise() -> None:
    texture = 0.4 * smooth(3, 32, 96)
    panned = torch.stack([texture.roll(t, dims=-1) for t in range(8)])[None]
    faded = torch.stack([texture + 8 / 255 * t for t in range(8)])[None]
    for clip in (panned, faded):
        torch.testing.assert_close(average_noise(clip, clip), clip, atol=2 / 255, rtol=0)


def test_what_moves_in_the_result_is_not_mixed_with_other_frames() -> None:
    clip = torch.zeros(1, 6, 3, 24, 48)
    for t in range(6):
        clip[:, t, :, 8:16, 6 * t : 6 * t + 6] = 1
    noisy = clip + 0.3 * noise(*clip.shape)
    left = average_noise(noisy, clip) - clip
    assert left.abs().max() < 0.2  # a neighbour's share of the square would be seen as more


def test_each_clip_has_noise_of_its_own() -> None:
    coarse, _ = still_clip(2, 8)
    noisy = coarse.clone()
    noisy[1] += 0.3 * noise(*coarse.shape[1:])
    quiet = average_noise(noisy, coarse)
    torch.testing.assert_close(quiet[0], coarse[0])
    assert (quiet[1] - coarse[1]).std() < 0.5 * (noisy[1] - coarse[1]).std()


def test_a_single_frame_keeps_its_noise() -> None:
    frame = noise(1, 1, 3, 16, 24)
    assert torch.equal(average_noise(frame, torch.zeros_like(frame)), frame)
