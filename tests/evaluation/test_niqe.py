"""NIQE against another implementation, and what it says of blur and noise."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from flashvideo.evaluation.metrics import niqe
from flashvideo.evaluation.metrics.niqe import Pristine, block_features


@pytest.fixture(scope="module")
def picture():
    """(3, 288, 400): grey in whole levels of 255, with contrast at every scale as photographs have."""
    rng = np.random.default_rng(0)
    levels = np.zeros((288, 400))
    for octave in range(6):
        coarse = torch.from_numpy(rng.standard_normal((1, 1, 288 // 2**octave + 2, 400 // 2**octave + 2)))
        fine = F.interpolate(coarse, (288, 400), mode="bicubic", align_corners=False)[0, 0].numpy()
        levels += 2.0**octave * fine
    levels = np.clip(np.round(128 + 35 * levels / levels.std()), 0, 255)
    return torch.from_numpy(levels / 127.5 - 1).expand(3, -1, -1)


def blurred(picture):
    return F.avg_pool2d(picture, 5, stride=1, padding=2, count_include_pad=False)


def rounded(picture):
    return ((picture + 1) * 127.5).round() / 127.5 - 1


def test_it_is_what_another_implementation_gives_with_the_same_model(picture):
    # BasicSR 1.4.2's `niqe` on the grey levels, with this package's model in the place of its own.
    assert niqe(picture).item() == pytest.approx(20.9180, rel=1e-3)
    assert niqe(rounded(blurred(picture))).item() == pytest.approx(38.8043, rel=1e-3)


def test_blur_and_noise_are_worse(picture):
    noise = 0.3 * torch.randn(picture.shape[1:], generator=torch.Generator().manual_seed(0))
    clips = torch.stack([picture, blurred(picture), picture + noise])
    sharp, blur, noisy = niqe(clips).tolist()
    assert sharp < blur
    assert sharp < noisy


def test_a_model_of_pictures_is_near_them(picture):
    model = Pristine.fit([picture, picture.flip(-1), picture.flip(-2)])
    assert niqe(picture, model) < niqe(picture)


def test_the_sharpest_blocks_are_chosen(picture):
    half = torch.cat((picture[..., :192], 0.3 * picture[..., :192]), dim=-1)
    features, sharpness = block_features(half)
    assert features.shape == (12, 36)
    is_sharp = sharpness > 0.75 * sharpness.max()
    assert is_sharp.view(3, 4)[:, :2].any() and not is_sharp.view(3, 4)[:, 2:].any()
    torch.testing.assert_close(Pristine.fit([half]).mean, features[is_sharp].mean(0))


def test_flat_frames_have_none(picture):
    values = niqe(torch.stack([torch.zeros_like(picture), picture]))
    assert values.isnan().tolist() == [True, False]


def test_small_frames_and_other_archives_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match="niqe needs frames of at least 2 blocks of 96x96 pixels, got 100x150"
    ):
        niqe(torch.zeros(3, 100, 150))
    np.savez(tmp_path / "other.npz", mean=np.zeros(18))
    with pytest.raises(
        ValueError, match=r"must hold mean \(36,\) and covariance \(36, 36\), got {'mean': \(18,\)}"
    ):
        Pristine.read(tmp_path / "other.npz")
    with pytest.raises(ValueError, match="needs at least 2 sharp blocks, got 1"):
        Pristine.fit([torch.rand(3, 96, 96)])
