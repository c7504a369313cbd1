"""The VAE strip by strip: the numbers of its own modules, whatever the strips and whatever waits on the host."""

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from diffusers.hooks import apply_group_offloading

from flashvideo.pipelines.footprint import Footprint, ModelConfigs
from flashvideo.presets import NANO
from flashvideo.vae import decode_latents, encode_pixels
from flashvideo.vae.codec import _modules_fail
from flashvideo.vae.layers import THRIFTS, Workspace, decode_chunk, encode_chunk, pool_moments

TOLERANCE = {"atol": 2e-5, "rtol": 0}


@pytest.fixture(params=[2, 4])
def vae(request, tiny_vae):
    """`tiny_vae` with this compression in time."""
    config = {**tiny_vae.config, "temporal_compression_ratio": request.param}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoencoderKLCogVideoX.from_config(config).eval().requires_grad_(False)


@torch.no_grad()
@pytest.mark.parametrize("thrift", THRIFTS)
@pytest.mark.parametrize("strip_bytes", [1, 9000, 2**30])
def test_decoding_by_strips_is_the_decoders_own_forward(vae, generator, thrift, strip_bytes):
    workspace, last_frames = Workspace(device=vae.device, thrift=thrift, strip_bytes=strip_bytes), None
    for num_frames in (3, 2, 4):
        latents = torch.randn(2, 8, num_frames, 3, 5, generator=generator)
        expected, last_frames = vae.decoder(latents, conv_cache=last_frames)
        torch.testing.assert_close(decode_chunk(vae.decoder, latents, workspace), expected, **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("thrift", THRIFTS)
@pytest.mark.parametrize("strip_bytes", [1, 9000, 2**30])
def test_encoding_by_strips_is_the_encoders_own_forward(vae, generator, thrift, strip_bytes):
    workspace, last_frames = Workspace(device=vae.device, thrift=thrift, strip_bytes=strip_bytes), None
    for num_frames in (5, 4, 8):
        video = torch.randn(2, 3, num_frames, 12, 20, generator=generator)
        expected, last_frames = vae.encoder(video, conv_cache=last_frames)
        torch.testing.assert_close(encode_chunk(vae.encoder, video, workspace), expected, **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("num_frames", [1, 2, 5])
def test_single_frames_and_even_numbers_go_by_strips_too(vae, generator, num_frames):
    latents = torch.randn(1, 8, num_frames, 3, 5, generator=generator)
    expected = decode_latents(vae, latents.transpose(1, 2), scale=1.0)
    found = decode_latents(vae, latents.transpose(1, 2), scale=1.0, thrift="strips")
    torch.testing.assert_close(found, expected, **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("thrift", THRIFTS)
def test_pixels_are_encoded_and_latents_decoded_as_without_thrift(tiny_vae, generator, thrift):
    pixels = torch.rand(1, 21, 3, 16, 24, generator=generator) * 2 - 1
    latents = encode_pixels(tiny_vae, pixels, scale=0.7)
    torch.testing.assert_close(
        encode_pixels(tiny_vae, pixels, scale=0.7, thrift=thrift), latents, **TOLERANCE
    )
    expected = decode_latents(tiny_vae, latents, scale=0.7)
    found = decode_latents(tiny_vae, latents, scale=0.7, thrift=thrift)
    torch.testing.assert_close(found, expected, **TOLERANCE)


@torch.no_grad()
def test_the_thriftier_the_less_is_on_the_device(tiny_vae):
    configs = ModelConfigs(
        preset=NANO,
        text_encoder=None,
        vae=dict(tiny_vae.config),
        stage1_transformer={},
        stage2_transformer=None,
    )
    footprint = Footprint(configs, torch.float32)
    for code in (footprint.encode, footprint.decode):
        plain, *by_strips = (code((9, 1536, 1536), thrift) for thrift in (None, *THRIFTS))
        device, host = (
            [getattr(peak, kind) for peak in by_strips] for kind in ("device_bytes", "host_bytes")
        )
        assert device[0] < plain.device_bytes
        assert device == sorted(device, reverse=True)
        assert host == sorted(host)
        assert host[0] == 0
        assert device[2] < 0.6 * device[0]


def test_thrift_with_gradients_is_an_error(tiny_vae, generator):
    latents = torch.randn(1, 1, 8, 4, 4, generator=generator)
    with pytest.raises(ValueError, match=r"thrift is for work without gradients.*torch\.no_grad"):
        decode_latents(tiny_vae, latents, scale=1.0, thrift="strips")


@torch.no_grad()
def test_an_unknown_thrift_is_an_error(tiny_vae, generator):
    latents = torch.randn(1, 1, 8, 4, 4, generator=generator)
    with pytest.raises(ValueError, match="thrift must be one of strips, caches, layers, got 'much'"):
        decode_latents(tiny_vae, latents, scale=1.0, thrift="much")


@torch.no_grad()
def test_layers_that_are_brought_to_the_device_one_by_one_are_left_to_their_modules(tiny_vae, generator):
    latents = torch.randn(1, 3, 8, 4, 4, generator=generator)
    expected = decode_latents(tiny_vae, latents, scale=1.0)
    cpu = torch.device("cpu")
    apply_group_offloading(tiny_vae.decoder, onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
    assert decode_latents(tiny_vae, latents, scale=1.0, thrift="strips").equal(expected)


def test_the_moments_of_parts_together_are_those_of_the_whole(generator):
    x = torch.randn(2, 4, 30, generator=generator) + torch.arange(30)
    parts = []
    for part in x.split([5, 15, 10], dim=2):
        variance, mean = torch.var_mean(part.double(), dim=2, correction=0)
        parts.append((part.shape[2], mean, variance))
    count, mean, variance = pool_moments(parts)
    assert count == 30
    torch.testing.assert_close((variance, mean), torch.var_mean(x.double(), dim=2, correction=0))


def test_frames_that_the_modules_split_too_finely_are_told_apart():
    # A chunk of 8 frames after 2 of the one before, 256 channels wide, as in the released decoder.
    assert not _modules_fail(256, (544, 960), [8])
    assert _modules_fail(256, (1088, 1920), [8])
    assert not _modules_fail(128, (1088, 1920), [17])


@torch.no_grad()
def test_frames_that_are_too_large_for_the_modules_go_by_strips(tiny_vae, generator, monkeypatch):
    latents = torch.randn(1, 3, 8, 4, 4, generator=generator)
    expected = decode_latents(tiny_vae, latents, scale=1.0, thrift="strips")
    monkeypatch.setattr("flashvideo.vae.codec._modules_fail", lambda *_: True)
    assert decode_latents(tiny_vae, latents, scale=1.0).equal(expected)
    cpu = torch.device("cpu")
    apply_group_offloading(tiny_vae.decoder, onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
    with pytest.raises(ValueError, match="frames of 16x16 need the VAE strip by strip"):
        decode_latents(tiny_vae, latents, scale=1.0)
