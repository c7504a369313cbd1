"""Codecs: JPEG as PIL writes it, video with every frame in its place and a rate that matters."""

import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from flashvideo.degradations.codecs import (
    CODECS,
    compress_jpeg,
    compress_video,
    draw_bits_per_frame,
    random_jpeg,
    random_video,
)
from flashvideo.degradations.draws import ClipDraws
from flashvideo.degradations.ranges import JpegRange, VideoCodecRange


@pytest.fixture(scope="module")
def levels() -> torch.Tensor:
    """A textured picture that moves 3 pixels per frame while it brightens, (9, 3, 62, 94)."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 16, 32, generator=generator)
    picture = torch.nn.functional.interpolate(coarse, size=(62, 120), mode="bicubic").clamp(0, 1)[0]
    return torch.stack([150 * picture[:, :, 3 * i : 3 * i + 94] + 10 * i for i in range(9)]).byte()


def _draws(seed: int = 0) -> ClipDraws:
    return ClipDraws(seed, torch.device("cpu"))


def _error(first: torch.Tensor, second: torch.Tensor) -> float:
    """Mean squared error in levels."""
    return float((first.double() - second.double()).square().mean())


def test_each_frame_is_what_pil_makes_of_it_at_its_quality(levels: torch.Tensor) -> None:
    qualities = [10, 95, 60]
    for frame, quality, result in zip(
        levels[:3], qualities, compress_jpeg(levels[:3], qualities), strict=True
    ):
        file = io.BytesIO()
        Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy()).save(file, "JPEG", quality=quality)
        np.testing.assert_array_equal(result.permute(1, 2, 0), np.asarray(Image.open(file)))


def test_jpeg_qualities_drift_within_their_range(levels: torch.Tensor) -> None:
    still = levels[:1].expand(9, -1, -1, -1)
    frames = still / 127.5 - 1
    drifting = random_jpeg(frames, JpegRange(quality=(20, 40), quality_step=4), _draws())
    by_quality = {q: compress_jpeg(levels[:1], [q])[0] for q in range(20, 41)}
    found = [
        next(q for q, picture in by_quality.items() if torch.equal(((f + 1) * 127.5).round().byte(), picture))
        for f in drifting
    ]
    assert len(set(found)) > 1 and all(abs(a - b) <= 5 for a, b in itertools.pairwise(found))


@pytest.mark.parametrize("codec", CODECS)
def test_every_frame_comes_back_in_its_place(codec: str, levels: torch.Tensor) -> None:
    decoded = compress_video(levels, codec, 20_000)
    assert decoded.shape == levels.shape and decoded.dtype == torch.uint8
    nearest = [int(np.argmin([_error(frame, original) for original in levels])) for frame in decoded]
    assert nearest == list(range(len(levels)))


@pytest.mark.parametrize(
    ("codec", "rates"), [("libx264", (500, 3000, 20_000)), ("mpeg4", (3000, 9000, 20_000))]
)
def test_a_lower_rate_gives_a_worse_clip(codec: str, rates: tuple[int, ...], levels: torch.Tensor) -> None:
    coarse, middle, fine = (_error(compress_video(levels, codec, bits), levels) for bits in rates)
    assert coarse > 1.2 * middle > 1.2**2 * fine > 0


@pytest.mark.parametrize("codec", CODECS)
def test_odd_sizes_and_single_frames_are_compressed_too(codec: str, levels: torch.Tensor) -> None:
    odd = levels[:1, :, :31, :45]
    decoded = compress_video(odd, codec, 20_000)
    assert decoded.shape == odd.shape
    assert _error(decoded[..., -1:], odd[..., -1:]) < 100


@pytest.mark.parametrize("codec", CODECS)
def test_the_same_clip_is_compressed_in_the_same_way(codec: str, levels: torch.Tensor) -> None:
    assert torch.equal(compress_video(levels, codec, 3000), compress_video(levels, codec, 3000))


def test_rates_are_the_published_ones_at_256_pixels_and_grow_with_the_area() -> None:
    config = VideoCodecRange()
    small, large = (draw_bits_per_frame(config, size, _draws()) for size in ((256, 256), (256, 1024)))
    assert 1e4 <= small <= 1e5
    assert large == pytest.approx(4 * small)


def test_rates_follow_the_clean_clips_size(levels: torch.Tensor) -> None:
    frames = levels / 127.5 - 1
    coarse, fine = (
        random_video(frames, VideoCodecRange(mpeg4=0, bits_per_frame=(2e4, 2e4)), size, _draws())
        for size in ((16, 16), (256, 256))
    )
    assert (coarse - frames).square().mean() > 3 * (fine - frames).square().mean()


def test_compression_of_probability_0_does_nothing(levels: torch.Tensor) -> None:
    frames = levels / 127.5 - 1
    assert random_jpeg(frames, JpegRange(probability=0), _draws()).equal(frames)
    assert random_video(frames, VideoCodecRange(probability=0), (62, 94), _draws()).equal(frames)


def test_an_unknown_codec_is_an_error(levels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="codec must be one of libx264, mpeg4, got 'vp9'"):
        compress_video(levels, "vp9", 1000)
