"""Each metric against a closed form or an independent computation by scipy, and its behaviour at the extremes."""

import itertools
import math

import numpy as np
import pytest
import scipy.signal
import scipy.stats
import torch

from flashvideo.evaluation import metrics
from flashvideo.video import resize_video

OF_FRAME_PAIRS = [metrics.psnr, metrics.ssim, metrics.gmsd, metrics.filter_bank_distance]
OF_CLIP_PAIRS = [metrics.gradient_energy_ratio, metrics.frame_difference_error]
OF_FRAMES = [metrics.gradient_energy, metrics.high_frequency_fraction]


def random_frames(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def grey(values):
    """(..., H, W) -> (..., 3, H, W)"""
    return values.unsqueeze(-3).expand(*values.shape[:-2], 3, *values.shape[-2:])


def grating(wavelength, degrees, *, amplitude, size=128):
    """A grey wave around mid-grey; `degrees` is the direction in which it varies, 0 being along a row."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    angle = math.radians(degrees)
    return grey(
        amplitude * torch.cos(2 * math.pi / wavelength * (x * math.cos(angle) + y * math.sin(angle)) + 0.4)
    )


def noisy(frames, strength=0.2):
    return frames + strength * torch.randn(frames.shape, generator=torch.Generator().manual_seed(1))


def blurred(frames, factor=4):
    height, width = frames.shape[-2:]
    return resize_video(resize_video(frames, height // factor, width // factor), height, width)


def luma_of(frame):
    return ((np.tensordot([0.299, 0.587, 0.114], frame.double().numpy(), axes=1)) + 1) / 2


# --- psnr, edge_psnr --------------------------------------------------------------------------------------------------


def test_psnr_of_a_known_offset():
    truth = random_frames(2, 5, 3, 8, 8)
    torch.testing.assert_close(metrics.psnr(truth + 0.2, truth), torch.full((2, 5), 20.0))


def test_psnr_is_per_frame():
    truth = torch.zeros(3, 3, 8, 8)
    offsets = torch.tensor([0.02, 0.2, 2.0])[:, None, None, None]
    torch.testing.assert_close(metrics.psnr(truth + offsets, truth), torch.tensor([40.0, 20.0, 0.0]))


def test_edge_psnr_sees_the_mask_alone():
    truth = random_frames(4, 3, 8, 8)
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2:4] = True
    result = truth + torch.where(mask, 0.2, 1.5)
    torch.testing.assert_close(metrics.edge_psnr(result, truth, mask), torch.full((4,), 20.0))


def test_edge_psnr_under_a_full_mask_is_psnr():
    truth, result = random_frames(2, 3, 8, 8), random_frames(2, 3, 8, 8, seed=1)
    mask = torch.ones(2, 8, 8, dtype=torch.bool)
    torch.testing.assert_close(metrics.edge_psnr(result, truth, mask), metrics.psnr(result, truth))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(8, 8, dtype=torch.bool), "leaves out all pixels of 2 frames"),
        (torch.ones(8, 8), r"must be of type torch\.bool"),
        (torch.ones(8, 9, dtype=torch.bool), r"must broadcast to \(2, 8, 8\).*got \(8, 9\)"),
    ],
)
def test_edge_psnr_refuses_masks_that_do_not_fit(mask, message):
    frames = torch.zeros(2, 3, 8, 8)
    with pytest.raises(ValueError, match=message):
        metrics.edge_psnr(frames, frames, mask)


# --- ssim, gmsd -------------------------------------------------------------------------------------------------------


def ssim_by_scipy(result, truth):
    x, y = luma_of(result), luma_of(truth)
    window = scipy.signal.windows.gaussian(11, 1.5)
    window = np.outer(window, window) / window.sum() ** 2

    def mean(values):
        return scipy.signal.convolve2d(values, window, mode="valid")

    m_x, m_y = mean(x), mean(y)
    s_xx, s_yy, s_xy = mean(x * x) - m_x**2, mean(y * y) - m_y**2, mean(x * y) - m_x * m_y
    luminance = (2 * m_x * m_y + 1e-4) / (m_x**2 + m_y**2 + 1e-4)
    return (luminance * (2 * s_xy + 9e-4) / (s_xx + s_yy + 9e-4)).mean()


@pytest.mark.parametrize("strength", [0.05, 0.5])
def test_ssim_equals_scipys(strength):
    truth = blurred(random_frames(3, 48, 37))
    result = noisy(truth, strength)
    assert metrics.ssim(result, truth).item() == pytest.approx(ssim_by_scipy(result, truth), abs=1e-5)


def test_ssim_of_flat_frames_compares_their_luminance():
    dark, light = torch.full((3, 16, 16), -0.6), torch.full((3, 16, 16), 0.6)  # luma 0.2 and 0.8
    expected = (2 * 0.2 * 0.8 + 1e-4) / (0.2**2 + 0.8**2 + 1e-4)
    assert metrics.ssim(dark, light).item() == pytest.approx(expected, abs=1e-4)


def gmsd_by_scipy(result, truth):
    def gradient(frame):
        full = scipy.signal.convolve2d(255 * luma_of(frame), np.full((2, 2), 0.25))
        halved = full[1::2, 1::2]
        prewitt = np.array([[1, 0, -1]] * 3) / 3
        across, down = (
            scipy.signal.convolve2d(halved, kernel, mode="same") for kernel in (prewitt, prewitt.T)
        )
        return np.hypot(across, down)

    g_x, g_y = gradient(result), gradient(truth)
    return ((2 * g_x * g_y + 170) / (g_x**2 + g_y**2 + 170)).std(ddof=1)


@pytest.mark.parametrize("size", [(32, 48), (31, 48), (32, 47)])
def test_gmsd_equals_scipys(size):
    truth = random_frames(3, *size)
    result = noisy(truth)
    assert metrics.gmsd(result, truth).item() == pytest.approx(gmsd_by_scipy(result, truth), rel=1e-4)


# --- gradient_energy --------------------------------------------------------------------------------------------------


def test_gradient_energy_of_a_ramp_is_its_squared_slope():
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(24.0), indexing="ij")
    ramp = grey(0.01 * x - 0.02 * y)
    assert metrics.gradient_energy(ramp).item() == pytest.approx(0.01**2 + 0.02**2, rel=1e-4)


def test_gradient_energy_of_white_noise_is_four_variances():
    noise = 0.3 * torch.randn(3, 256, 256, generator=torch.Generator().manual_seed(0))
    assert metrics.gradient_energy(noise).item() == pytest.approx(4 * 0.3**2, rel=0.01)


def test_halving_the_contrast_quarters_the_gradient_energy_ratio():
    truth = random_frames(2, 5, 3, 16, 16)
    torch.testing.assert_close(metrics.gradient_energy_ratio(truth / 2, truth), torch.full((2,), 0.25))


def test_the_gradient_energy_ratio_weighs_frames_by_their_energy():
    truth = torch.cat([random_frames(1, 3, 16, 16), torch.zeros(1, 3, 16, 16)])
    assert metrics.gradient_energy_ratio(truth, truth).item() == 1  # not nan, though the second frame is flat


def test_the_gradient_energy_ratio_to_a_flat_truth():
    flat = torch.zeros(2, 3, 16, 16)
    assert metrics.gradient_energy_ratio(flat + 0.3, flat).item() == 1
    assert metrics.gradient_energy_ratio(random_frames(2, 3, 16, 16), flat).item() == math.inf


# --- The filter bank --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(4))
@pytest.mark.parametrize(("scale", "passed"), [(0, 1.0), (1, 0.614), (2, 0.546)])
def test_a_wave_answers_in_its_own_channel_with_its_own_energy(scale, orientation, passed):
    # `passed` is what of an amplitude is left after halving by (1, 3, 3, 1) / 8, for waves along a row or column:
    # (3 cos(pi f) + cos(3 pi f)) / 4 for each halving.
    wave = grating(2 * math.sqrt(2) * 2**scale, 45 * orientation, amplitude=40 / 127.5)
    channels = metrics.filter_bank_statistics(wave)[..., 5]  # (s, o), a window in the middle
    assert channels.flatten().argmax() == 4 * scale + orientation
    if orientation in (0, 2):
        assert channels[scale, orientation].item() == pytest.approx(math.log(1 + (passed * 40) ** 2), abs=0.1)
    assert (
        channels[scale, orientation] - channels[scale, (orientation + 2) % 4] > 3
    )  # a factor of 20 to the other way


def test_a_finest_diagonal_wave_has_its_own_energy_too():
    wave = grating(2 * math.sqrt(2), 45, amplitude=40 / 127.5)
    assert metrics.filter_bank_statistics(wave)[0, 1, 5].item() == pytest.approx(math.log(1 + 40**2), abs=0.1)


def test_the_phase_of_a_wave_does_not_matter():
    wave = grating(5.66, 30, amplitude=0.3, size=160)
    shifted = metrics.filter_bank_statistics(wave[..., 13:141, 7:135])
    torch.testing.assert_close(
        shifted, metrics.filter_bank_statistics(wave[..., :128, :128]), atol=0.15, rtol=0
    )


def test_turning_a_frame_turns_its_orientations_and_windows():
    frame = random_frames(3, 128, 128)
    statistics = metrics.filter_bank_statistics(frame).reshape(3, 4, 4, 4)
    turned = metrics.filter_bank_statistics(torch.rot90(frame, 1, dims=(-2, -1))).reshape(3, 4, 4, 4)
    expected = torch.rot90(statistics[:, [2, 3, 0, 1]], 1, dims=(-2, -1))
    torch.testing.assert_close(turned, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("size", "windows"), [((64, 96), 6), ((65, 96), 9), ((1080 // 8, 40), 10)])
def test_the_windows_cover_every_size(size, windows):
    assert metrics.filter_bank_statistics(torch.zeros(2, 3, *size)).shape == (2, 3, 4, windows)


def test_a_flat_frame_has_no_energy():
    for level in (-1.0, 0.3, 1.0):
        assert metrics.filter_bank_statistics(torch.full((3, 64, 64), level)).abs().max() < 1e-4


def test_the_filter_bank_distance_of_contrast_is_the_log_of_its_energy():
    truth = random_frames(3, 64, 64)
    energy = metrics.filter_bank_statistics(truth).expm1()
    expected = torch.log((1 + energy) / (1 + energy / 4)).mean()  # log 4 but for the floor of 1
    torch.testing.assert_close(metrics.filter_bank_distance(truth / 2, truth), expected)
    assert 1.2 < expected < math.log(4)


def test_the_filter_bank_forgives_another_sample_of_the_texture_but_not_blur_or_noise():
    texture, sample = (noisy(blurred(random_frames(3, 128, 128, seed=seed), 2), 0.05) for seed in (0, 1))
    other = metrics.filter_bank_distance(sample, texture)
    assert other < metrics.filter_bank_distance(blurred(texture), texture) / 3
    assert other < metrics.filter_bank_distance(noisy(texture, 0.5), texture) / 2
    assert metrics.psnr(sample, texture) < metrics.psnr(
        blurred(texture), texture
    )  # which PSNR sees the other way


# --- high_frequency_fraction ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [0, 90])
@pytest.mark.parametrize(("wavelength", "fraction"), [(9.5, 0.0), (6.7, 1.0)])
def test_waves_below_and_above_the_previews_limit(wavelength, degrees, fraction):
    wave = grating(wavelength, degrees, amplitude=0.5)
    assert metrics.high_frequency_fraction(wave, factor=4).item() == pytest.approx(fraction, abs=0.01)


def test_two_waves_share_by_their_energies():
    both = grating(20, 0, amplitude=0.6) + grating(3, 90, amplitude=0.3)
    assert metrics.high_frequency_fraction(both).item() == pytest.approx(
        0.3**2 / (0.6**2 + 0.3**2), abs=0.005
    )


def test_the_finest_stripes_count_once():
    stripes = grey(
        0.3 * (-1.0) ** torch.arange(128).expand(128, 128)
    )  # a mean square of 0.3^2, not half of it
    both = grating(20, 90, amplitude=0.6) + stripes
    assert metrics.high_frequency_fraction(both).item() == pytest.approx(
        0.3**2 / (0.6**2 / 2 + 0.3**2), abs=0.005
    )


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("size", [(256, 256), (255, 257)])
def test_white_noise_fills_the_spectrum_evenly(factor, size):
    noise = torch.randn(8, 3, *size, generator=torch.Generator().manual_seed(0))
    fraction = metrics.high_frequency_fraction(noise, factor).mean().item()
    assert fraction == pytest.approx(1 - 1 / factor**2, abs=0.01)


@pytest.mark.parametrize("level", [-1.0, 0.0, 0.3, 1.0])
def test_a_flat_frame_has_no_high_frequencies(level):
    assert metrics.high_frequency_fraction(torch.full((3, 50, 70), level)).item() == 0


def test_an_upscaled_preview_has_few_high_frequencies():
    truth = random_frames(3, 128, 128)
    assert (
        metrics.high_frequency_fraction(blurred(truth)) < 0.1 < 0.9 < metrics.high_frequency_fraction(truth)
    )


@pytest.mark.parametrize("factor", [1, 0, -4, math.inf, math.nan])
def test_a_factor_of_one_or_less_is_refused(factor):
    with pytest.raises(ValueError, match="factor must be more than 1"):
        metrics.high_frequency_fraction(torch.zeros(3, 32, 32), factor)


# --- band_energy ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [0, 30, 90])
@pytest.mark.parametrize(("wavelength", "band"), [(48, 0), (24, 1), (12, 2), (6, 3), (3, 4)])
def test_a_wave_is_in_its_octave_with_half_its_amplitude_squared(wavelength, band, degrees):
    energy = metrics.band_energy(grating(wavelength, degrees, amplitude=0.2, size=192))
    expected = torch.zeros(5)
    expected[band] = (0.2 * 127.5) ** 2 / 2
    torch.testing.assert_close(energy, expected, rtol=0.03, atol=4)


@pytest.mark.parametrize("size", [(256, 256), (255, 257)])
def test_the_whole_spectrum_is_the_variance(size):
    noise = 0.1 * torch.randn(4, 1, *size, generator=torch.Generator().manual_seed(0)).expand(-1, 3, -1, -1)
    assert metrics.band_energy(noise, (0.71,)).mean().item() == pytest.approx((0.1 * 127.5) ** 2, rel=0.01)


def test_flat_frames_have_no_bands_and_falling_edges_are_refused():
    assert metrics.band_energy(torch.full((2, 3, 50, 70), 0.3)).eq(0).all()
    with pytest.raises(ValueError, match=r"edges must rise from above 0, got \(0\.5, 0\.25\)"):
        metrics.band_energy(torch.zeros(3, 32, 32), (0.5, 0.25))


# --- Without a truth, in time -----------------------------------------------------------------------------------------


def test_alternation_is_flicker_and_a_fade_is_not():
    frame = 0.5 * random_frames(3, 8, 8)
    alternation = 0.1 * (-1.0) ** torch.arange(6)[:, None, None, None]
    fade = 0.02 * torch.arange(6)[:, None, None, None]
    assert metrics.flicker(frame + alternation).item() == pytest.approx(2 * 0.1 * 127.5)
    assert metrics.flicker(frame + fade).item() == pytest.approx(0, abs=1e-4)
    assert metrics.flicker(torch.stack([frame + alternation, frame + fade])).shape == (2,)


def test_temporal_flickering_is_vbenchs():
    levels = torch.randint(0, 256, (5, 3, 9, 7), generator=torch.Generator().manual_seed(0)).double()
    expected = np.mean([np.abs(a - b).mean() for a, b in itertools.pairwise(levels.numpy())])
    found = metrics.temporal_flickering(levels / 127.5 - 1)
    assert found.item() == pytest.approx((255 - expected) / 255)


@pytest.mark.parametrize(("metric", "least"), [(metrics.flicker, 3), (metrics.temporal_flickering, 2)])
def test_too_few_frames_have_no_course(metric, least):
    with pytest.raises(ValueError, match=f"needs at least {least} frames, got {least - 1}"):
        metric(torch.zeros(least - 1, 3, 8, 8))


# --- Two systems on the same clips ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (6, 0), (3, 9), (5, 5), (20, 8)])
def test_mcnemar_is_the_exact_test(wins, losses):
    ours = [True] * wins + [False] * losses + [True, False]
    theirs = [False] * wins + [True] * losses + [True, False]
    expected = scipy.stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert metrics.mcnemar(ours, theirs) == pytest.approx(expected)


@pytest.mark.parametrize("n", [6, 12, 40])
def test_the_sign_flip_test_agrees_with_scipys(n):
    rng = np.random.default_rng(n)
    ours, theirs = rng.normal(0.3, 1, n), rng.normal(0, 1, n)
    expected = scipy.stats.permutation_test(
        (ours - theirs,), np.mean, permutation_type="samples", n_resamples=20_000, rng=rng
    ).pvalue
    assert metrics.sign_flip(ours.tolist(), theirs.tolist()) == pytest.approx(expected, abs=0.015)


def test_the_sign_flip_test_of_equal_values_is_certain_of_nothing():
    assert metrics.sign_flip([1.0] * 8, [1.0] * 8) == 1
    assert metrics.sign_flip([1.0] * 40, [1.0] * 40) == 1
    with pytest.raises(ValueError, match="of the same clips, at least one, got 0 and 0"):
        metrics.sign_flip([], [])


def test_a_small_difference_shows_on_the_same_clips():
    clips = torch.randn(40, generator=torch.Generator().manual_seed(0))
    low, high = metrics.paired_interval(clips + 0.1 + 0.01 * clips.flip(0), clips)
    assert 0.09 < low < 0.1 < high < 0.11


def test_pairs_have_partners():
    with pytest.raises(ValueError, match="paired values must be of the same clips, got 3 and 2"):
        metrics.paired_interval([1.0, 2.0, 3.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="outcomes must be of the same prompts, got 1 and 2"):
        metrics.mcnemar([True], [True, False])


# --- Motion and the preview -------------------------------------------------------------------------------------------


def test_the_frame_difference_error_of_flicker_is_known():
    truth = random_frames(2, 6, 3, 8, 8)
    flicker = torch.tensor([0.1, -0.1] * 3)[:, None, None, None]
    torch.testing.assert_close(metrics.frame_difference_error(truth + flicker, truth), torch.full((2,), 0.2))


def test_a_constant_error_is_no_frame_difference_error():
    truth = random_frames(6, 3, 8, 8)
    assert metrics.frame_difference_error(truth + random_frames(1, 3, 8, 8, seed=1), truth).item() < 1e-6


def test_a_single_frame_has_no_frame_difference():
    with pytest.raises(ValueError, match="at least 2 frames, got 1"):
        metrics.frame_difference_error(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))


def test_downsampled_psnr_of_a_known_offset():
    final = random_frames(2, 5, 3, 32, 48)
    preview = resize_video(final, 8, 12) - 0.02
    torch.testing.assert_close(
        metrics.downsampled_psnr(final, preview), torch.full((2, 5), 40.0), atol=1e-3, rtol=0
    )


def test_downsampled_psnr_does_not_see_detail_that_the_preview_cannot_have():
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    checks = grey(0.5 * (-1.0) ** (x + y))
    preview = torch.zeros(3, 16, 16)
    assert metrics.psnr(checks, torch.zeros(3, 64, 64)) < 13
    assert metrics.downsampled_psnr(checks, preview) > 60


def test_structure_change_sees_moved_edges_and_no_other_brightness():
    preview = grating(12, 30, amplitude=0.7, size=48)
    final = resize_video(preview, 192, 192)
    brighter = metrics.structure_change(
        final + 0.2, preview
    )  # not 0, as gmsd takes what lies around for black
    assert brighter < 0.02 < 0.2 < metrics.structure_change(final.roll(24, dims=-1), preview)
    assert metrics.downsampled_psnr(final + 0.2, preview) < metrics.downsampled_psnr(final, preview) - 5


@pytest.mark.parametrize(
    ("final", "preview", "message"),
    [
        ((2, 3, 8, 8), (2, 3, 16, 16), "must not be smaller than preview"),
        ((2, 3, 16, 16), (3, 3, 8, 8), "must differ in size only"),
        ((2, 4, 16, 16), (2, 4, 8, 8), "final must have the shape"),
    ],
)
@pytest.mark.parametrize("metric", [metrics.downsampled_psnr, metrics.structure_change])
def test_previews_that_do_not_fit_are_refused(metric, final, preview, message):
    with pytest.raises(ValueError, match=message):
        metric(torch.zeros(final), torch.zeros(preview))


# --- All of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "perfect"),
    [
        (metrics.psnr, math.inf),
        (metrics.ssim, 1),
        (metrics.gmsd, 0),
        (metrics.filter_bank_distance, 0),
        (metrics.gradient_energy_ratio, 1),
        (metrics.frame_difference_error, 0),
        (metrics.downsampled_psnr, math.inf),
        (metrics.structure_change, 0),
    ],
)
@pytest.mark.parametrize("make", [random_frames, torch.zeros, torch.ones])
def test_identical_clips_are_perfect(metric, perfect, make):
    frames = make(2, 3, 40, 36)
    assert (metric(frames, frames) == perfect).all()


@pytest.mark.parametrize("metric", OF_FRAME_PAIRS + OF_CLIP_PAIRS)
def test_a_worse_result_measures_worse(metric):
    truth = blurred(random_frames(4, 3, 64, 64), 2)
    better, worse = metric(noisy(truth, 0.1), truth).mean(), metric(noisy(truth, 0.4), truth).mean()
    assert better > worse if metric in (metrics.psnr, metrics.ssim) else better < worse


@pytest.mark.parametrize("metric", OF_FRAME_PAIRS)
def test_metrics_of_frames_give_one_value_for_each(metric):
    truth = random_frames(2, 3, 3, 40, 36)
    result = noisy(truth)
    values = metric(result, truth)
    assert values.shape == (2, 3)
    torch.testing.assert_close(values[1, 2], metric(result[1, 2], truth[1, 2]))


@pytest.mark.parametrize("metric", OF_CLIP_PAIRS)
def test_metrics_of_clips_give_one_value_for_each(metric):
    truth = random_frames(2, 3, 3, 40, 36)
    result = noisy(truth)
    values = metric(result, truth)
    assert values.shape == (2,)
    torch.testing.assert_close(values[1], metric(result[1], truth[1]))


@pytest.mark.parametrize("metric", OF_FRAMES)
def test_statistics_give_one_value_for_each_frame(metric):
    frames = random_frames(2, 3, 3, 40, 36)
    values = metric(frames)
    assert values.shape == (2, 3)
    torch.testing.assert_close(values[1, 2], metric(frames[1, 2]))


@pytest.mark.parametrize("metric", OF_FRAME_PAIRS + OF_CLIP_PAIRS)
def test_half_precision_is_measured_in_single(metric):
    truth = random_frames(2, 3, 40, 36).bfloat16()
    result = noisy(truth.float()).bfloat16()
    torch.testing.assert_close(metric(result, truth), metric(result.float(), truth.float()))


@pytest.mark.parametrize("metric", OF_FRAME_PAIRS + OF_CLIP_PAIRS)
@pytest.mark.parametrize(
    ("result", "truth", "message"),
    [
        ((2, 3, 40, 40), (2, 3, 40, 41), r"must have one shape, got \(2, 3, 40, 40\) and \(2, 3, 40, 41\)"),
        ((2, 40, 40, 3), (2, 40, 40, 3), "result must have the shape"),
        ((0, 3, 40, 40), (0, 3, 40, 40), "none of it 0"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(metric, result, truth, message):
    with pytest.raises(ValueError, match=message):
        metric(torch.zeros(result), torch.zeros(truth))


@pytest.mark.parametrize("metric", OF_CLIP_PAIRS)
def test_metrics_of_clips_refuse_single_frames(metric):
    with pytest.raises(ValueError, match=r"\(\.\.\., F, 3, H, W\)"):
        metric(torch.zeros(3, 40, 40), torch.zeros(3, 40, 40))


@pytest.mark.parametrize(
    ("metric", "least"), [(metrics.ssim, 11), (metrics.gmsd, 4), (metrics.filter_bank_distance, 32)]
)
def test_frames_that_are_too_small_are_refused(metric, least):
    with pytest.raises(ValueError, match=f"at least {least}x{least} pixels, got {least - 1}x40"):
        metric(torch.zeros(3, least - 1, 40), torch.zeros(3, least - 1, 40))
    metric(torch.zeros(3, least, 40), torch.zeros(3, least, 40))


def test_levels_instead_of_pixel_values_are_refused():
    levels = torch.zeros(3, 40, 40, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"must be floats in \[-1, 1\], got torch\.uint8"):
        metrics.psnr(levels, levels)


# --- Intervals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (9, 10), (10, 10), (37, 120), (1, 1)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_the_wilson_interval_equals_scipys(successes, n, confidence):
    expected = scipy.stats.binomtest(successes, n).proportion_ci(confidence_level=confidence, method="wilson")
    assert metrics.wilson_interval(successes, n, confidence) == pytest.approx(
        (expected.low, expected.high), abs=1e-9
    )


def test_a_wilson_interval_holds_its_proportion():
    for n in range(1, 60):
        for successes in (0, n):
            low, high = metrics.wilson_interval(successes, n)
            assert 0 <= low <= successes / n <= high <= 1


@pytest.mark.parametrize(("successes", "n"), [(-1, 10), (11, 10), (0, 0)])
def test_impossible_counts_are_refused(successes, n):
    with pytest.raises(ValueError, match=f"got {successes} of {n}"):
        metrics.wilson_interval(successes, n)


def test_the_bootstrap_interval_agrees_with_scipys():
    values = np.random.default_rng(0).exponential(size=40)
    expected = scipy.stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(1))
    interval = metrics.bootstrap_interval(values.tolist())
    assert interval == pytest.approx(tuple(expected.confidence_interval), abs=0.02)


def test_the_bootstrap_interval_repeats_with_its_seed():
    values = random_frames(30)
    assert metrics.bootstrap_interval(values, seed=3) == metrics.bootstrap_interval(values, seed=3)
    assert metrics.bootstrap_interval(values, seed=3) != metrics.bootstrap_interval(values, seed=4)


def test_more_confidence_is_a_wider_bootstrap_interval():
    values = random_frames(30)
    (low, high), (lower, higher) = (
        metrics.bootstrap_interval(values, confidence) for confidence in (0.8, 0.99)
    )
    assert lower < low < high < higher


def test_the_bootstrap_interval_of_equal_values_is_a_point():
    assert metrics.bootstrap_interval([0.5]) == (0.5, 0.5)
    assert metrics.bootstrap_interval([2.0, 2.0, 2.0]) == (2.0, 2.0)


@pytest.mark.parametrize("values", [[], [1.0, math.inf], [math.nan], [[1.0], [2.0]]])
def test_values_without_a_mean_are_refused(values):
    with pytest.raises(ValueError, match="values must"):
        metrics.bootstrap_interval(values)


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_an_impossible_confidence_is_refused(confidence):
    with pytest.raises(ValueError, match="confidence must lie between 0 and 1"):
        metrics.bootstrap_interval([1.0, 2.0], confidence)
    with pytest.raises(ValueError, match="confidence must lie between 0 and 1"):
        metrics.wilson_interval(1, 2, confidence)
