"""Time chunks, spatial tiles and scales around the VAE."""

import pytest
import torch

from flashvideo.vae import (
    REFERENCE_TILES,
    Tiling,
    decode_latents,
    encode_moments,
    encode_pixels,
    tile_spans,
    time_chunks,
)


@pytest.fixture
def pixels(generator):
    return torch.rand(1, 17, 3, 16, 24, generator=generator) * 2 - 1


@pytest.fixture
def latents(generator):
    return torch.randn(1, 5, 8, 4, 6, generator=generator)


def test_17_frames_become_5_latent_frames_and_come_back(tiny_vae, pixels):
    latents = encode_pixels(tiny_vae, pixels, scale=0.7)
    assert latents.shape == (1, 5, 8, 4, 6)
    assert decode_latents(tiny_vae, latents, scale=0.7).shape == pixels.shape


@torch.no_grad()
@pytest.mark.parametrize("num_latent_frames", range(1, 6))
def test_every_latent_frame_count_decodes_to_4k_plus_1_frames(tiny_vae, latents, num_latent_frames):
    pixels = decode_latents(tiny_vae, latents[:, :num_latent_frames], scale=1.0)
    assert pixels.shape[1] == 1 + 4 * (num_latent_frames - 1)


@torch.no_grad()
@pytest.mark.parametrize("num_frames", [1, 5, 9, 13, 21, 29])
def test_every_4k_plus_1_frame_count_encodes(tiny_vae, generator, num_frames):
    pixels = torch.rand(1, num_frames, 3, 8, 8, generator=generator)
    assert encode_pixels(tiny_vae, pixels, scale=1.0).shape[1] == 1 + (num_frames - 1) // 4


@torch.no_grad()
def test_what_comes_later_does_not_change_earlier_chunks(tiny_vae, pixels, latents):
    changed = pixels.clone()
    changed[:, 9:] = 0
    first, other = (encode_moments(tiny_vae, p, frames_per_chunk=8) for p in (pixels, changed))
    assert first[:, :, :3].equal(other[:, :, :3])
    assert not first[:, :, 3:].equal(other[:, :, 3:])
    early, whole = (
        decode_latents(tiny_vae, latents[:, :3], scale=1.0),
        decode_latents(tiny_vae, latents, scale=1.0),
    )
    assert whole[:, :9].equal(early)


@torch.no_grad()
def test_a_later_chunk_remembers_the_one_before(tiny_vae, latents):
    whole = decode_latents(tiny_vae, latents, scale=1.0)
    other_start = torch.cat((latents[:, :3] + 1, latents[:, 3:]), dim=1)
    assert not decode_latents(tiny_vae, other_start, scale=1.0)[:, 9:].equal(whole[:, 9:])


@torch.no_grad()
def test_encoding_whole_clips_equals_diffusers_own_loop(tiny_vae, pixels):
    theirs = tiny_vae.encode(pixels.transpose(1, 2)).latent_dist.mean.transpose(1, 2)
    ours = encode_pixels(tiny_vae, pixels, scale=2.0, frames_per_chunk=16)
    chunked = encode_pixels(tiny_vae, pixels, scale=1.0, frames_per_chunk=8)
    assert theirs.shape == ours.shape  # theirs cuts 17 frames into 9 and 8
    torch.testing.assert_close(chunked, theirs)
    assert not torch.allclose(ours / 2, theirs)


@torch.no_grad()
def test_decoding_equals_diffusers_own_loop(tiny_vae, latents):
    theirs = tiny_vae.decode(latents.transpose(1, 2)).sample.transpose(1, 2)
    torch.testing.assert_close(decode_latents(tiny_vae, latents * 0.7, scale=0.7), theirs)


@torch.no_grad()
def test_without_a_generator_the_mean_is_returned_and_with_one_a_sample(tiny_vae, pixels):
    mean, log_variance = encode_moments(tiny_vae, pixels).transpose(1, 2).chunk(2, dim=2)
    assert encode_pixels(tiny_vae, pixels, scale=1.0).equal(mean)
    sample, again = (
        encode_pixels(tiny_vae, pixels, scale=1.0, generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    )
    assert sample.equal(again)
    noise = (sample - mean) / torch.exp(0.5 * log_variance)
    assert noise.std().item() == pytest.approx(1, abs=0.15)


@torch.no_grad()
def test_the_scale_multiplies_latents(tiny_vae, pixels):
    one, scaled = (encode_pixels(tiny_vae, pixels, scale=s) for s in (1.0, 0.7))
    torch.testing.assert_close(scaled, 0.7 * one)


def test_gradients_flow_through_both_ways(tiny_vae, pixels):
    latents = encode_pixels(tiny_vae, pixels, scale=1.0, tiling=Tiling(columns=2, overlap=1))
    decode_latents(tiny_vae, latents, scale=1.0, tiling=Tiling(rows=2, overlap=1)).square().mean().backward()
    assert tiny_vae.encoder.conv_in.conv.weight.grad.abs().sum() > 0


def test_the_vae_is_left_as_it_was(tiny_vae, pixels):
    before = {name: value for name, value in vars(tiny_vae).items() if not name.startswith("_")}
    decode_latents(tiny_vae, encode_pixels(tiny_vae, pixels, scale=1.0), scale=1.0, tiling=REFERENCE_SMALL)
    assert {name: value for name, value in vars(tiny_vae).items() if not name.startswith("_")} == before


REFERENCE_SMALL = Tiling(columns=2, overlap=2, blend=False)


@torch.no_grad()
def test_a_clamped_decode_stays_within_1(tiny_vae, latents):
    plain = decode_latents(tiny_vae, 20 * latents, scale=0.01)
    assert plain.abs().max() > 1
    assert decode_latents(tiny_vae, 20 * latents, scale=0.01, clamp=True).equal(plain.clamp(-1, 1))


@torch.no_grad()
def test_a_bfloat16_vae_takes_and_gives_float32(tiny_vae, pixels):
    vae = tiny_vae.to(torch.bfloat16)
    latents = encode_pixels(vae, pixels, scale=1.0)
    assert latents.dtype == decode_latents(vae, latents, scale=1.0).dtype == torch.float32


def test_chunks_cover_every_frame_once():
    assert [c.stop - c.start for c in time_chunks(49, 16)] == [17, 16, 16]
    assert [c.stop - c.start for c in time_chunks(13, 2)] == [3, 2, 2, 2, 2, 2]
    assert [c.stop - c.start for c in time_chunks(29, 16)] == [17, 12]
    assert [c.stop - c.start for c in time_chunks(1, 16)] == [1]


@pytest.mark.parametrize(("length", "num_tiles", "overlap"), [(36, 2, 16), (50, 3, 4), (7, 1, 8), (10, 5, 0)])
def test_the_cores_of_tiles_partition_the_axis(length, num_tiles, overlap):
    spans = tile_spans(length, num_tiles, overlap)
    assert [i for s in spans for i in range(s.core_start, s.core_stop)] == list(range(length))
    assert all(s.start <= s.core_start and s.core_stop <= s.stop for s in spans)


def test_the_references_tiles_are_two_of_34_columns_on_36():
    first, second = tile_spans(36, REFERENCE_TILES.columns, REFERENCE_TILES.overlap)
    assert (first.start, first.stop, second.start, second.stop) == (0, 34, 2, 36)


class PixelwiseVAE:
    """Stands in for a VAE whose result at a pixel depends on that pixel alone, so tiles must not be visible."""

    dtype, device = torch.float32, torch.device("cpu")
    quant_conv = post_quant_conv = None

    def __init__(self, config):
        self.config = config

    def encoder(self, video, conv_cache):
        pooled = torch.nn.functional.avg_pool3d(video[:, :, :1], (1, 4, 4))
        return pooled[:, :1].repeat(1, 16, 1, 1, 1), None

    def decoder(self, latents, conv_cache):
        return latents[:, :3].repeat_interleave(4, dim=3).repeat_interleave(4, dim=4), None


@pytest.mark.parametrize("blend", [True, False])
@pytest.mark.parametrize(("rows", "columns", "overlap"), [(1, 2, 3), (3, 2, 2), (2, 4, 0)])
def test_tiles_leave_no_trace_where_pixels_do_not_see_each_other(tiny_vae, blend, rows, columns, overlap):
    vae = PixelwiseVAE(tiny_vae.config)
    tiling = Tiling(rows=rows, columns=columns, overlap=overlap, blend=blend)
    latents = torch.randn(1, 1, 8, 9, 13, generator=torch.Generator().manual_seed(0))
    whole = decode_latents(vae, latents, scale=1.0)
    torch.testing.assert_close(decode_latents(vae, latents, scale=1.0, tiling=tiling), whole)
    torch.testing.assert_close(
        encode_pixels(vae, whole, scale=1.0, tiling=tiling), encode_pixels(vae, whole, scale=1.0)
    )


@torch.no_grad()
def test_blended_tiles_have_no_seam_where_cut_tiles_have_one(tiny_vae, generator):
    latents = torch.randn(1, 1, 8, 4, 32, generator=generator)
    whole = decode_latents(tiny_vae, latents, scale=1.0)

    def step_at_the_seam(blend):
        tiling = Tiling(columns=2, overlap=4, blend=blend)
        error = decode_latents(tiny_vae, latents, scale=1.0, tiling=tiling) - whole
        return error.diff(dim=-1)[..., 63].abs().mean()

    assert step_at_the_seam(True) < 0.5 * step_at_the_seam(False)


def test_the_fewest_tiles_that_fit_are_chosen():
    assert Tiling.to_fit(60, 60, max_side=64) == Tiling(overlap=8)
    tiling = Tiling.to_fit(134, 240, max_side=90, overlap=8)
    assert (tiling.rows, tiling.columns) == (2, 4)
    for length, count in ((134, tiling.rows), (240, tiling.columns)):
        assert max(s.stop - s.start for s in tile_spans(length, count, 8)) <= 90


def test_more_tiles_than_fit_are_an_error():
    with pytest.raises(ValueError, match="4 tiles with overlap 8 do not fit 20 latent pixels; at most 2 do"):
        tile_spans(20, 4, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": 0}, "rows, columns >= 1"),
        ({"overlap": -1}, "overlap >= 0"),
    ],
)
def test_an_impossible_tiling_is_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        Tiling(**arguments)


def test_a_tile_hardly_larger_than_its_overlaps_is_an_error():
    with pytest.raises(ValueError, match=r"max_side must be at least four times the overlap \(32\), got 16"):
        Tiling.to_fit(100, 100, max_side=16)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((1, 16, 3, 16, 16), {}, r"num_frames must be 4k\+1, got 16; try 17"),
        ((1, 17, 3, 18, 16), {}, "multiples of 4, got 18x16; try 16x16"),
        (
            (1, 17, 3, 16, 16),
            {"frames_per_chunk": 6},
            "frames_per_chunk must be a positive multiple of 4, got 6",
        ),
    ],
)
def test_pixels_that_do_not_fit_are_an_error(tiny_vae, shape, options, message):
    with pytest.raises(ValueError, match=message):
        encode_pixels(tiny_vae, torch.zeros(shape), scale=1.0, **options)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((1, 8, 5, 4, 4), {}, r"latents must be \(batch, frames, 8, height, width\), got \(1, 8, 5, 4, 4\)"),
        ((1, 5, 8, 4, 4), {"latent_frames_per_chunk": 3}, "must be a positive even number, got 3"),
    ],
)
def test_latents_that_do_not_fit_are_an_error(tiny_vae, shape, options, message):
    with pytest.raises(ValueError, match=message):
        decode_latents(tiny_vae, torch.zeros(shape), scale=1.0, **options)
