"""Sizes come from the VAE's config, and a size that does not fit is an error with the nearest one that does."""

import pytest

from flashvideo.shapes import LatentShape, check_num_frames, check_size, latent_shape, vae_factors

RELEASED = {
    "temporal_compression_ratio": 4,
    "block_out_channels": (128, 256, 256, 512),
    "latent_channels": 16,
}


def test_49_frames_at_1080p_become_13_latent_frames_and_about_105_thousand_tokens():
    shape = latent_shape(49, 1072, 1920, vae_config=RELEASED, patch_size=2)
    assert shape == LatentShape(num_frames=13, channels=16, height=134, width=240)
    assert shape.num_tokens(patch_size=2) == 13 * 67 * 120
    assert shape.as_tuple(2) == (2, 13, 16, 134, 240)


def test_the_factors_are_the_vaes(tiny_vae):
    assert vae_factors(RELEASED) == (4, 8)
    assert vae_factors(tiny_vae.config) == (4, 4)
    assert latent_shape(17, 96, 160, vae_config=tiny_vae.config).as_tuple() == (1, 5, 8, 24, 40)


@pytest.mark.parametrize(("num_frames", "nearest"), [(48, 49), (46, 45), (0, 1), (-3, 1)])
def test_a_frame_count_that_does_not_fit_names_the_nearest(num_frames, nearest):
    with pytest.raises(ValueError, match=rf"num_frames must be 4k\+1, got {num_frames}; try {nearest}$"):
        check_num_frames(num_frames, vae_config=RELEASED)


@pytest.mark.parametrize(("height", "width", "nearest"), [(270, 480, "272x480"), (272, 3, "272x16")])
def test_a_frame_size_that_does_not_fit_names_the_nearest(height, width, nearest):
    with pytest.raises(ValueError, match=rf"multiples of 16, got {height}x{width}; try {nearest}$"):
        check_size(height, width, vae_config=RELEASED, patch_size=2)


def test_a_size_may_fit_the_vae_and_not_the_patches():
    check_size(264, 480, vae_config=RELEASED)
    with pytest.raises(ValueError, match="multiples of 16"):
        latent_shape(1, 264, 480, vae_config=RELEASED, patch_size=2)
