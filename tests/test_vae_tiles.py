"""Tiles of the VAE: how many there are, and what they take."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flashvideo.vae import Tiling, decode_latents, encode_pixels, tile_spans

CPU = torch.device("cpu")
TILING = Tiling(rows=2, columns=2, overlap=2)


@pytest.fixture
def pixels(generator):
    return torch.rand(2, 17, 3, 32, 48, generator=generator) * 2 - 1


@pytest.fixture
def latents(generator):
    return torch.randn(2, 5, 8, 8, 12, generator=generator)


@torch.no_grad()
def test_one_tile_is_the_whole_frame_bit_for_bit(tiny_vae, pixels, latents):
    for one_tile in (Tiling(), Tiling(overlap=0)):
        assert encode_pixels(tiny_vae, pixels, scale=1.0, tiling=one_tile).equal(
            encode_pixels(tiny_vae, pixels, scale=1.0)
        )
        assert decode_latents(tiny_vae, latents, scale=1.0, tiling=one_tile).equal(
            decode_latents(tiny_vae, latents, scale=1.0)
        )


def test_gradients_flow_through_tiles_and_are_much_like_those_of_whole_frames(tiny_vae, generator):
    latents = torch.randn(1, 3, 8, 8, 24, generator=generator, requires_grad=True)
    gradients = [
        torch.autograd.grad(
            decode_latents(tiny_vae, latents, scale=1.0, tiling=tiling).square().mean(), latents
        )[0]
        for tiling in (None, Tiling(columns=2, overlap=8))
    ]
    assert torch.nn.functional.cosine_similarity(*(g.flatten() for g in gradients), dim=0) > 0.9


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
def test_nothing_of_full_size_is_made_on_the_vaes_device(tiny_vae, pixels, latents):
    height, width = (4 * side for side in TILING.largest_tile(8, 12))
    with LargestPlane(latents) as decoding:
        decode_latents(tiny_vae, latents, scale=0.7, tiling=TILING, clamp=True, output_device="meta")
    with LargestPlane(pixels) as encoding:
        encode_pixels(tiny_vae, pixels, scale=0.7, tiling=TILING)
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
