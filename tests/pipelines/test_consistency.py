"""What enhanced clips keep of their input."""

import pytest
import torch

from flashvideo.evaluation.metrics import downsampled_psnr, frame_difference_error
from flashvideo.pipelines.consistency import back_project, keep_consistent, steady_detail
from flashvideo.video import resize_video


def smooth(*shape: int, seed: int = 0) -> torch.Tensor:
    """Clips whose pixels a resize to half their size and back keeps, nearly."""
    *rest, height, width = shape
    noise = torch.randn(*rest, height // 8, width // 8, generator=torch.Generator().manual_seed(seed))
    return resize_video(noise.clamp(-2, 2) / 3, height, width)


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
    torch.testing.assert_close(keep_consistent(flat, flat[..., ::4, ::4], 4), flat)


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


def test_the_mean_over_time_cancels_flicker_but_not_detail_that_stays() -> None:
    coarse, enlarged = still_clip(1, 9)
    truth = enlarged + noise(1, 1, 3, 64, 96, seed=2)
    result = truth + noise(*enlarged.shape, seed=3) / 2
    steady = steady_detail(result, coarse)
    assert frame_difference_error(steady[0], truth[0]) < 1e-4
    assert (steady - truth).square().mean() < (result - truth).square().mean() / 4


@pytest.mark.parametrize("size", [(16, 24), (8, 8), (32, 48), (64, 96), (100, 60)])
def test_inputs_of_any_size(size: tuple[int, int]) -> None:
    given = smooth(1, 1, 3, 128, 192).expand(1, 3, 3, 128, 192)
    given = resize_video(given, *size)
    result = noise(1, 3, 3, 64, 96).bfloat16()
    output = keep_consistent(result, given, 4)
    assert output.shape == result.shape and output.dtype == torch.float32
    assert output.abs().max() <= 1


def test_bands_between_the_models_level_of_detail_and_a_larger_input_stay_the_models() -> None:
    """An input as large as the result must not simply be given back."""
    given = smooth(1, 1, 3, 64, 96) + noise(1, 1, 3, 64, 96)
    cleaned = smooth(1, 1, 3, 64, 96)
    output = keep_consistent(cleaned, given, 4)
    assert (output - cleaned).square().mean() < (output - given).square().mean() / 4
