"""Tiles of the VAE: their number, what they cost in memory, and that they cannot be told from whole frames."""

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flashvideo.data.dead_leaves import render_leaves
from flashvideo.pipelines.loading import NANO_PATH
from flashvideo.vae import Tiling, decode_latents, encode_pixels, tile_spans
from flashvideo.vae.lockstep import Walker, decoder_walk, encoder_walk, normalise, pool_moments, walk_together

CPU = torch.device("cpu")
TILING = Tiling(rows=2, columns=2, overlap=2)


@pytest.fixture(scope="module")
def nano_vae():
    return AutoencoderKLCogVideoX.from_pretrained(NANO_PATH / "vae").eval()


@pytest.fixture(scope="module")
def leaves():
    """A textured picture, (1, 1, 3, 96, 192)."""
    return torch.as_tensor(render_leaves(1, height=96, width=192, num_frames=1))[None]


@pytest.fixture(scope="module")
@torch.no_grad()
def whole(nano_vae, leaves):
    """Its latents, and what they are decoded to."""
    latents = encode_pixels(nano_vae, leaves, scale=1.0)
    return latents, decode_latents(nano_vae, latents, scale=1.0)


@pytest.fixture
def pixels(generator):
    return torch.rand(2, 17, 3, 32, 48, generator=generator) * 2 - 1


@pytest.fixture
def latents(generator):
    return torch.randn(2, 5, 8, 8, 12, generator=generator)


def levels_apart(ours, theirs):
    """Mean difference in levels of 255."""
    return 127.5 * (ours - theirs).abs().mean().item()


@torch.no_grad()
def test_tiles_of_the_shipped_decoder_differ_from_whole_frames_by_a_small_part_of_a_level(nano_vae, whole):
    latents, expected = whole
    shared, alone = (
        decode_latents(nano_vae, latents, scale=1.0, tiling=Tiling(columns=2, shared_norms=shared_norms))
        for shared_norms in (True, False)
    )
    assert levels_apart(shared, expected) < 0.1
    assert levels_apart(shared, expected) < 0.2 * levels_apart(alone, expected)


@torch.no_grad()
def test_tiles_of_the_shipped_encoder_differ_from_whole_frames_by_a_small_part_of_a_level(
    nano_vae, leaves, whole
):
    latents = encode_pixels(nano_vae, leaves, scale=1.0, tiling=Tiling(columns=2))
    assert levels_apart(decode_latents(nano_vae, latents, scale=1.0), whole[1]) < 0.25


@torch.no_grad()
@pytest.mark.parametrize("temporal", [2, 4])
def test_the_walk_through_a_network_is_its_own_forward(tiny_vae, pixels, latents, temporal):
    vae = type(tiny_vae).from_config({**tiny_vae.config, "temporal_compression_ratio": temporal}).eval()
    (tile,) = Tiling().tiles(8, 12)
    for network, walk, source, cuts in (
        (vae.encoder, encoder_walk(vae.encoder), pixels, (slice(0, 9), slice(9, 17))),
        (vae.decoder, decoder_walk(vae.decoder), latents, (slice(0, 3), slice(3, 5))),
    ):
        walker, last_frames = Walker(tile, CPU, CPU), None
        for cut in cuts:
            chunk = source[:, cut].transpose(1, 2)
            theirs, last_frames = network(chunk, conv_cache=last_frames)
            (ours,) = walk_together([walker], [lambda chunk=chunk: chunk], walk)
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_norm_with_given_moments_is_group_norm_and_has_its_gradient(generator):
    norm = torch.nn.GroupNorm(2, 6)
    torch.nn.init.normal_(norm.weight, generator=generator)
    x = (torch.randn(2, 6, 3, 4, 5, generator=generator) + 3).requires_grad_()
    variance, mean = torch.var_mean(x.reshape(2, 2, -1), dim=2, correction=0)
    results = [normalise(x, mean, variance, norm), norm(x)]
    ours, theirs = (torch.autograd.grad(y.pow(3).sum(), x, retain_graph=True)[0] for y in results)
    torch.testing.assert_close(*results)
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(normalise(x, mean, variance, norm), results[1])


@torch.no_grad()
def test_one_tile_is_the_whole_frame_bit_for_bit(tiny_vae, pixels, latents):
    for one_tile in (Tiling(), Tiling(overlap=0, shared_norms=False)):
        assert encode_pixels(tiny_vae, pixels, scale=1.0, tiling=one_tile).equal(
            encode_pixels(tiny_vae, pixels, scale=1.0)
        )
        assert decode_latents(tiny_vae, latents, scale=1.0, tiling=one_tile).equal(
            decode_latents(tiny_vae, latents, scale=1.0)
        )


def test_gradients_of_tiles_are_those_of_whole_frames(tiny_vae, generator):
    latents = torch.randn(1, 3, 8, 8, 24, generator=generator, requires_grad=True)
    gradients = [
        torch.autograd.grad(
            decode_latents(tiny_vae, latents, scale=1.0, tiling=tiling).square().mean(), latents
        )[0]
        for tiling in (None, Tiling(columns=2, overlap=8))
    ]
    assert torch.nn.functional.cosine_similarity(*(g.flatten() for g in gradients), dim=0) > 0.99


@torch.no_grad()
@pytest.mark.parametrize("tiling", [None, TILING])
def test_the_result_is_where_it_is_wanted(tiny_vae, latents, tiling):
    pixels = decode_latents(tiny_vae, latents, scale=1.0, tiling=tiling, clamp=True, output_device="meta")
    assert pixels.device.type == "meta"
    assert pixels.shape == (2, 17, 3, 32, 48)


class LargestPlane(TorchDispatchMode):
    """Records the largest height times width of the videos on the CPU that come about, apart from views of `given`."""

    def __init__(self, given):
        super().__init__()
        self.given = given.untyped_storage().data_ptr()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for video in tree_leaves(result):
            if not isinstance(video, torch.Tensor) or video.ndim != 5 or video.device != CPU:
                continue
            if video.untyped_storage().data_ptr() != self.given:
                self.largest = max(self.largest, video.shape[-2] * video.shape[-1])
        return result


@torch.no_grad()
@pytest.mark.parametrize("shared_norms", [True, False])
def test_nothing_of_full_size_is_made_on_the_vaes_device(tiny_vae, pixels, latents, shared_norms):
    tiling = Tiling(rows=2, columns=2, overlap=2, shared_norms=shared_norms)
    height, width = (4 * side for side in tiling.largest_tile(8, 12))
    with LargestPlane(latents) as decoding:
        decode_latents(tiny_vae, latents, scale=0.7, tiling=tiling, clamp=True, output_device="meta")
    with LargestPlane(pixels) as encoding:
        encode_pixels(tiny_vae, pixels, scale=0.7, tiling=tiling)
    assert decoding.largest == height * width
    assert encoding.largest == (height + 1) * (width + 1)  # a downsampling layer pads by one


@torch.no_grad()
def test_an_error_on_the_way_leaves_the_vae_as_it_was(tiny_vae, latents):
    before = decode_latents(tiny_vae, latents, scale=1.0)
    state = {name: dict(vars(module)) for name, module in tiny_vae.named_modules()}

    def fail(*_):
        raise RuntimeError("out of memory")

    handle = tiny_vae.decoder.up_blocks[1].resnets[0].conv1.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        decode_latents(tiny_vae, latents, scale=1.0, tiling=TILING)
    handle.remove()
    assert {name: dict(vars(module)) for name, module in tiny_vae.named_modules()} == state
    assert decode_latents(tiny_vae, latents, scale=1.0).equal(before)


def test_shared_norms_of_a_vae_whose_parts_are_elsewhere_are_an_error(tiny_vae, latents):
    tiny_vae.encoder.to("meta")
    with pytest.raises(ValueError, match=r"need the whole VAE on its device.*Tiling\(shared_norms=False\)"):
        decode_latents(tiny_vae, latents, scale=1.0, tiling=TILING)


@settings(deadline=None)
@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    overlap=st.integers(0, 16),
    spare=st.integers(0, 150),
)
def test_tiles_fit_are_even_and_as_few_as_possible(height, width, overlap, spare):
    max_side = max(1, 4 * overlap) + spare
    tiling = Tiling.to_fit(height, width, max_side=max_side, overlap=overlap)
    assert max(tiling.largest_tile(height, width)) <= max_side
    for length, count in ((height, tiling.rows), (width, tiling.columns)):
        cores = [span.core_stop - span.core_start for span in tile_spans(length, count, overlap)]
        assert max(cores) - min(cores) <= 1
        if count > 1:
            assert max(span.length for span in tile_spans(length, count - 1, overlap)) > max_side


@settings(deadline=None)
@given(length=st.integers(2, 200), count=st.integers(2, 6), overlap=st.integers(0, 16))
def test_the_largest_tile_is_the_longest_of_both_axes(length, count, overlap):
    assume(length // count >= max(1, overlap))
    height, width = Tiling(rows=count, overlap=overlap).largest_tile(length, 7)
    assert (height, width) == (max(span.length for span in tile_spans(length, count, overlap)), 7)


def test_a_full_hd_frame_needs_no_sliver():
    # diffusers cuts this into 6 x 7 tiles, the last row of which is 14 latent pixels high.
    tiling = Tiling.to_fit(134, 240, max_side=45)
    assert (tiling.rows, tiling.columns) == (5, 9)
    assert {tile.rows.length for tile in tiling.tiles(134, 240)} == {34, 35, 43}


def test_the_moments_of_parts_together_are_those_of_the_whole(generator):
    x = torch.randn(2, 4, 30, generator=generator) + torch.arange(30)
    parts = []
    for part in x.split([5, 15, 10], dim=2):
        variance, mean = torch.var_mean(part, dim=2, correction=0)
        parts.append((part.shape[2], (mean, variance)))
    size, (mean, variance) = pool_moments(parts)
    assert size == 30
    torch.testing.assert_close((variance, mean), torch.var_mean(x, dim=2, correction=0))
