"""A picture of the range of the pixel degradation: each operation alone at several strengths, then whole samples.

python -m flashvideo.degradations.sheet --output docs/images/degradations.jpg
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from flashvideo.data.dead_leaves import render_leaves
from flashvideo.data.shapes_world import render, sample_scene
from flashvideo.degradations.blur import filter_frames, gaussian_kernels, plateau_kernels, sinc_kernels
from flashvideo.degradations.codecs import compress_jpeg, compress_video
from flashvideo.degradations.noise import add_gaussian_noise, add_poisson_noise
from flashvideo.degradations.pixel import PixelDegradation, degrade_pixels
from flashvideo.degradations.resizing import resize_frames
from flashvideo.video import resize_video, to_uint8

Cell = tuple[str, Tensor]

SIZE = 256
NUM_FRAMES = 9
# Height of the label above each cell, and the space between cells.
_LABEL = 15
_GAP = 2
_QUALITY = 66
# The frame that is shown where a cell is of no other.
_SHOWN = 5


def sheet(leaves: Tensor, world: Tensor, *, cell: int = 150) -> Image.Image:
    """The whole picture: a row of cells for each operation, then for whole weak and strong samples.

    Args:
        leaves: clean clip (F, 3, H, W) in [-1, 1] for most rows; at least 6 frames.
        world: the same for the others.
        cell: side of what is shown of each frame, its middle, in pixels.

    Returns:
        8 rows of 6 cells with labels.
    """
    rows = [
        list(row)
        for row in (
            blur_row(leaves),
            resize_row(leaves),
            noise_row(leaves),
            codec_row(world),
            weak_row(world),
            strong_row(leaves, first_seed=0),
            strong_row(world, first_seed=10, strength=0.5),
            drift_row(leaves, seed=6),
        )
    ]
    width, height = cell + _GAP, _LABEL + cell + _GAP
    picture = Image.new("RGB", (width * max(map(len, rows)), height * len(rows)), "white")
    font = ImageFont.load_default(11)
    draw = ImageDraw.Draw(picture)
    for i, row in enumerate(rows):
        for k, (label, frame) in enumerate(row):
            x, y = k * width, i * height
            draw.text((x + 3, y + 1), label, fill="black", font=font)
            picture.paste(_middle(frame, cell), (x, y + _LABEL))
    return picture


def clips() -> tuple[Tensor, Tensor]:
    """Two clean clips (F, 3, H, W): dead leaves, and a scene of shapes world."""
    leaves = render_leaves(29, height=SIZE, width=SIZE, num_frames=NUM_FRAMES)
    world = render(sample_scene(17), height=SIZE, width=SIZE, frames=slice(0, NUM_FRAMES))
    return torch.from_numpy(leaves), torch.from_numpy(world)


def blur_row(clip: Tensor) -> Iterator[Cell]:
    """Kernels of each kind near the strong end of their range."""
    frame = clip[_SHOWN : _SHOWN + 1]
    one = torch.ones(1, dtype=torch.float64)
    wide, narrow = torch.tensor([[2.0, 2.0]]), torch.tensor([[3.0, 0.6]])
    yield "clean", frame[0]
    yield "Gaussian, sigma 2", filter_frames(frame, gaussian_kernels(21, wide, 0 * one, one))[0]
    yield "anisotropic, 3 and 0.6", filter_frames(frame, gaussian_kernels(21, narrow, 0.8 * one, one))[0]
    yield "generalised, b = 0.5", filter_frames(frame, gaussian_kernels(21, wide, 0 * one, 0.5 * one))[0]
    yield "plateau, b = 2", filter_frames(frame, plateau_kernels(21, wide, 0 * one, 2 * one))[0]
    yield "sinc, cutoff pi / 5", filter_frames(frame, sinc_kernels(21, one * torch.pi / 5))[0]


def resize_row(clip: Tensor) -> Iterator[Cell]:
    """Made smaller in each way, and back again to be seen at one size."""
    frame = clip[_SHOWN : _SHOWN + 1]
    for factor in (0.3, 0.15):
        height, width = (round(side * factor) for side in clip.shape[-2:])
        for mode in ("bilinear", "area", "bicubic"):
            resized = resize_frames(frame, height, width, mode).clamp(-1, 1)
            yield f"x {factor}, {mode}", resize_video(resized, clip.shape[-2], clip.shape[-1])[0]


def noise_row(clip: Tensor) -> Iterator[Cell]:
    """Gaussian and Poisson noise, in colour and grey."""
    frame = clip[_SHOWN : _SHOWN + 1]
    generator = torch.Generator().manual_seed(0)
    for sigma, grey in ((10.0, False), (30.0, False), (30.0, True)):
        label = f"Gaussian {sigma:g}, {'grey' if grey else 'colour'}"
        yield label, add_gaussian_noise(frame, torch.tensor([sigma]), generator, grey=grey)[0]
    for scale, grey in ((1.0, False), (3.0, False), (3.0, True)):
        noisy = add_poisson_noise(frame, torch.tensor([scale]), generator, grey=grey, photons=256)
        yield f"Poisson x {scale:g}, {'grey' if grey else 'colour'}", noisy[0]


def codec_row(clip: Tensor) -> Iterator[Cell]:
    """JPEG and video at the ends of their ranges."""
    levels = to_uint8(clip)
    for quality in (95, 30):
        picture = compress_jpeg(levels[_SHOWN : _SHOWN + 1], [quality])[0]
        yield f"JPEG, quality {quality}", picture / 127.5 - 1
    for codec in ("libx264", "mpeg4"):
        for bits in (100_000, 10_000):
            decoded = compress_video(levels, codec, bits)[_SHOWN]
            yield f"{codec}, {bits // 1000} kbit / frame", decoded / 127.5 - 1


def weak_row(clip: Tensor) -> Iterator[Cell]:
    """The clean frame, and the weak degradation by several factors."""
    yield "clean", clip[_SHOWN]
    for factor in (4.0, 5.0, 6.0, 7.0, 8.0):
        config = PixelDegradation(weak_factor=(factor, factor))
        degraded = degrade_pixels(clip[None], torch.Generator().manual_seed(0), config, strong=False)
        yield f"weak, factor {factor:g}", degraded[0, _SHOWN]


def strong_row(clip: Tensor, *, first_seed: int, strength: float = 1.0) -> Iterator[Cell]:
    """Whole strong degradations at six seeds, of ranges made milder."""
    config = PixelDegradation().milder(strength)
    label = "strong" if strength == 1 else f"strength {strength:g}"
    for seed in range(first_seed, first_seed + 6):
        generator = torch.Generator().manual_seed(seed)
        degraded = degrade_pixels(clip[None], generator, config, strong=True)
        yield f"{label}, seed {seed}", degraded[0, _SHOWN]


def drift_row(clip: Tensor, *, seed: int) -> Iterator[Cell]:
    """Frames of one strongly degraded clip."""
    generator = torch.Generator().manual_seed(seed)
    degraded = degrade_pixels(clip[None], generator, PixelDegradation(), strong=True)[0]
    for index in range(6):
        yield f"strong, seed {seed}, frame {index}", degraded[index]


def _middle(frame: Tensor, side: int) -> Image.Image:
    top, left = ((length - side) // 2 for length in frame.shape[-2:])
    inside = to_uint8(frame[:, top : top + side, left : left + side])
    return Image.fromarray(inside.permute(1, 2, 0).contiguous().numpy())


def main(arguments: list[str] | None = None) -> None:
    """Write the picture to the file that the arguments name."""
    parser = argparse.ArgumentParser(
        prog="python -m flashvideo.degradations.sheet",
        description="Draw the range of the pixel degradation: each operation alone, then whole samples.",
    )
    parser.add_argument("--output", type=Path, required=True, help="the picture, a .jpg file")
    output = parser.parse_args(arguments).output
    if output.suffix.lower() not in (".jpg", ".jpeg"):
        parser.error(f"--output must end in .jpg, got {output}")
    # `save_image` keeps every detail, which for so much noise makes a file too large for a page.
    temporary = output.with_name(f".{output.name}.part")
    sheet(*clips()).save(temporary, format="JPEG", quality=_QUALITY)
    temporary.replace(output)


if __name__ == "__main__":
    main()
