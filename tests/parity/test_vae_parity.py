"""The VAE's chunks and tiles give what the reference gives."""

import pytest
import torch
from einops import rearrange

from flashvideo.presets import FLASHVIDEO
from flashvideo.vae import REFERENCE_TILES, decode_latents, encode_moments, encode_pixels

SCALE = FLASHVIDEO.stage2.latent_scale


@pytest.fixture(scope="module")
def vae(golden):
    return golden.build_vae()


def house(tensor):
    """(B, C, F, H, W), the reference's order, to (B, F, C, H, W)."""
    return rearrange(tensor, "b c f h w -> b f c h w")


def reference(tensor):
    return rearrange(tensor, "b f c h w -> b c f h w")


@pytest.fixture
def video(golden):
    return lambda num_frames: house(
        golden.formula(f"vae/video{num_frames}", (1, 3, num_frames, 16, 24), scale=0.5)
    )


@torch.no_grad()
@pytest.mark.parametrize("num_frames", [9, 17])
def test_the_moments_of_one_chunk_equal_the_references(golden, vae, video, num_frames):
    moments = encode_moments(vae, video(num_frames))
    assert golden.difference(moments, f"vae/encode{num_frames}/moments") <= golden.VAE


@torch.no_grad()
def test_the_moments_of_two_causal_chunks_equal_the_references(golden, vae, video):
    moments = encode_moments(vae, video(17), frames_per_chunk=8)
    assert golden.difference(moments, "vae/encode17_chunks_9_8/moments") <= golden.VAE
    assert golden.difference(moments, "vae/encode17/moments") > golden.VAE


@torch.no_grad()
@pytest.mark.parametrize(("num_frames", "num_latent_frames"), [(9, 3), (17, 5)])
def test_the_posterior_sample_equals_the_references(golden, vae, video, num_frames, num_latent_frames):
    noise = golden.formula(f"vae/encode{num_frames}/randn_like/0", (1, 16, num_latent_frames, 2, 3))
    latents = encode_pixels(vae, video(num_frames), scale=1.0, posterior_noise=house(noise))
    assert golden.difference(reference(latents), f"vae/encode{num_frames}/latent_sampled") <= golden.VAE


@torch.no_grad()
def test_49_frames_are_encoded_in_the_references_chunks(golden, vae, video):
    prefix = "vae/encode49_chunks_17_16_16"
    mean = encode_pixels(vae, video(49), scale=SCALE)
    assert golden.difference(reference(mean), f"{prefix}/latent_mean_scaled") <= golden.VAE
    draws = [
        golden.formula(f"vae/encode49/randn_like/{i}", (1, 16, f, 2, 3)) for i, f in enumerate((5, 4, 4))
    ]
    sample = encode_pixels(vae, video(49), scale=SCALE, posterior_noise=house(torch.cat(draws, dim=2)))
    assert golden.difference(reference(sample), f"{prefix}/latent_sampled_scaled") <= golden.VAE


@torch.no_grad()
@pytest.mark.parametrize("num_frames", [1, 3, 5])
def test_decoding_in_the_references_chunks_equals_the_reference(golden, vae, num_frames):
    latents = golden.formula(f"vae/decode{num_frames}/latent", (1, 16, num_frames, 2, 3))
    pixels = decode_latents(vae, house(latents) * SCALE, scale=SCALE)
    assert golden.difference(reference(pixels), f"vae/decode{num_frames}/raw") <= golden.VAE


def frames255(pixels):
    """(1, F, 3, H, W) in [-1, 1] to the reference's (F, H, W, 3) in [0, 255]."""
    return rearrange((pixels[0] + 1) / 2 * 255, "f c h w -> f h w c")


@torch.no_grad()
def test_decoded_frames_equal_the_references(golden, vae):
    latents = golden.formula("vae/decode1/latent", (1, 16, 1, 2, 3))
    pixels = decode_latents(vae, house(latents), scale=1.0, clamp=True)
    assert golden.difference(frames255(pixels), "vae/decode1/frames255") <= golden.FRAMES255


@torch.no_grad()
def test_the_references_tiles_give_the_references_frames(golden, vae):
    latents = golden.formula("vae/save_mem_decode/latent", (1, 16, 1, 1, 36))
    pixels = decode_latents(vae, house(latents), scale=1.0, tiling=REFERENCE_TILES, clamp=True)
    assert golden.difference(frames255(pixels), "vae/save_mem_decode/frames255") <= golden.FRAMES255
