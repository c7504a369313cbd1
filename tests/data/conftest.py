"""Small videos whose frames tell their own number, and pictures."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from flashvideo.data.clips import ClipDataset
from flashvideo.data.clips.config import ClipsConfig
from flashvideo.data.clips.sources import ClipSource


def _level(k: int) -> int:
    """The grey level of frame k: neighbours differ by less than what a cut is."""
    return 10 + 6 * k


@pytest.fixture(scope="session")
def write_counted() -> Callable[..., Path]:
    """`write_counted(path, num_frames=24)` writes flat frames, each as bright as its number says; see `count_of`.

    The second half comes `pause` frame periods late. Frames from `cut` on have black and white halves instead.
    """

    def write(
        path: Path,
        *,
        num_frames: int = 24,
        rate: Fraction | int = 24,
        size: tuple[int, int] = (48, 64),
        codec: str = "libx264",
        pix_fmt: str = "yuv420p",
        gop: int = 8,
        cut: int | None = None,
        noise: int = 0,
        pause: int = 0,
        quarter_turns: int = 0,
        aspect: Fraction = Fraction(1),
        container_options: dict[str, str] | None = None,
        **options: str,
    ) -> Path:
        rng = np.random.default_rng(0)
        with av.open(str(path), "w", container_options=container_options or {}) as container:
            stream = container.add_stream(codec, rate=Fraction(rate), options=options)
            stream.height, stream.width = size
            stream.pix_fmt, stream.gop_size = pix_fmt, gop
            stream.sample_aspect_ratio = aspect
            if quarter_turns:
                stream.set_display_rotation(90 * quarter_turns)
            for k in range(num_frames):
                levels = np.full((*size, 3), _level(k), np.uint8)
                if noise:
                    levels = rng.integers(0, noise, levels.shape, np.uint8)
                if cut is not None and k >= cut:
                    levels[:, : size[1] // 2], levels[:, size[1] // 2 :] = 0, 255
                image = av.VideoFrame.from_ndarray(levels, format="rgb24").reformat(format=pix_fmt)
                image.pts = k + (pause if k >= num_frames // 2 else 0)
                image.time_base = 1 / Fraction(rate)
                container.mux(stream.encode(image))
            container.mux(stream.encode(None))
        return path

    return write


@pytest.fixture(scope="session")
def count_of() -> Callable[[torch.Tensor], list[int]]:
    """`count_of(frames)` reads the numbers of frames that `write_counted` wrote, (F, 3, H, W) in [-1, 1]."""
    return lambda frames: [round((127.5 * (f.mean().item() + 1) - _level(0)) / 6) for f in frames]


@pytest.fixture(scope="session")
def write_picture() -> Callable[..., Path]:
    """`write_picture(path)` saves a picture that is red on its left half, 48 high and 64 wide."""

    def write(path: Path, size: tuple[int, int] = (48, 64), **options: object) -> Path:
        levels = np.zeros((*size, 3), np.uint8)
        levels[:, : size[1] // 2, 0] = 255
        Image.fromarray(levels).save(path, **options)
        return path

    return write


@pytest.fixture(scope="session")
def counted(tmp_path_factory, write_counted) -> Path:
    """One file of 24 frames at 24 fps, with keyframes and frames that refer to later ones."""
    return write_counted(tmp_path_factory.mktemp("counted") / "counted.mp4", bf="3")


@pytest.fixture(scope="session")
def make_dataset() -> Callable[..., ClipDataset]:
    """`make_dataset(path)` makes a data set of one source and one bucket of 5 frames; options are the config's."""

    def make(
        *paths: Path | str, seed: int = 0, training: bool = True, cache: Path | None = None, **options: object
    ) -> ClipDataset:
        settings = {"frame_rate": 24.0, "buckets": ((5, 16, 24),)} | options
        sources = tuple(ClipSource(path=str(path)) for path in paths)
        return ClipDataset(
            ClipsConfig(**{"sources": sources} | settings),
            temporal_compression=4,
            seed=seed,
            training=training,
            cache=cache,
            progress=False,
        )

    return make
