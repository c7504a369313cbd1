"""The first batch of a recipe as a picture: what goes into a training, to be looked at before it starts.

Shapes: F frames, H height, W width; pixels (F, 3, H, W) in [-1, 1].
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from flashvideo.data.shapes_world import render
from flashvideo.shapes import vae_factors
from flashvideo.training.clip_data import StepClips
from flashvideo.training.config import Recipe
from flashvideo.training.draws import Draws, sample_seed
from flashvideo.training.latent_pairs import LatentPairs
from flashvideo.training.precomputed import StepLatents, version_draws
from flashvideo.training.recipes import VAERecipe
from flashvideo.training.samples import crops_of_phase
from flashvideo.training.stage_recipes import Stage1Recipe, Stage2Recipe
from flashvideo.training.starts import freeze, start_vae
from flashvideo.training.step_memory import Estimate
from flashvideo.training.vae import Crops
from flashvideo.training.world import PoolClips
from flashvideo.video import resize_video, save_image, to_uint8

_MOST_ROWS = 8
_CELL_WIDTH = 200
_LINE, _MARGIN = 12, 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """A clip of the batch.

    Attributes:
        pixels: (F, 3, H, W) as it is trained on.
        degraded: what Stage II is given, of the same shape; None elsewhere.
        caption: its caption.
    """

    pixels: Tensor
    degraded: Tensor | None
    caption: str


def first_batch(
    recipe: Recipe, estimate: Estimate, clips_per_step: int, own: StepClips | StepLatents | None
) -> list[Row]:
    """The clips of the first batch, degraded as the first step will degrade them, or as precomputed ones were.

    Args:
        recipe: The recipe.
        estimate: Of its model, for configs where weights are missing.
        clips_per_step: Of all processes and accumulated batches.
        own: The first phase's samples of clips of one's own, if it has any.

    Raises:
        ValueError: If they cannot be made without what is missing.
    """
    places = range(min(_MOST_ROWS, recipe.phases[0].batch))
    if isinstance(recipe, VAERecipe):
        return [_crop_row(recipe, place) for place in places]
    if not isinstance(recipe, Stage1Recipe | Stage2Recipe):
        raise ValueError("its batches are of candidates that were made and scored before")
    temporal = vae_factors(estimate.work.vae().config)[0]
    if isinstance(recipe, Stage1Recipe) and recipe.data is None:
        return [_pool_row(recipe, clips_per_step, temporal, place) for place in places]
    samples = list(_samples(recipe, own, clips_per_step, places))
    if isinstance(recipe, Stage1Recipe):
        return [Row(pixels=pixels, degraded=None, caption=text) for pixels, text, _ in samples]
    phase = recipe.phases[0]
    vae = estimate.work.vae()  # without weights, which only round trips need
    if phase.round_trip:
        if estimate.configs.missing:
            raise ValueError(f"round trips need the VAE, and {estimate.configs.missing[0]} is missing")
        vae = start_vae(recipe, torch.device("cpu")).float()
        freeze(vae, torch.device("cpu"))
    pairs = LatentPairs(vae, recipe.pixel_degradation())
    rows = []
    for pixels, text, generator in samples:
        with torch.no_grad():
            degraded = pairs.degrade(pixels[None], phase, generator)[0]
        rows.append(Row(pixels=pixels, degraded=degraded, caption=text))
    return rows


def _samples(
    recipe: Stage1Recipe | Stage2Recipe,
    own: StepClips | StepLatents | None,
    clips_per_step: int,
    places: Sequence[int],
) -> Iterator[tuple[Tensor, str, torch.Generator]]:
    """Pixels and caption of each clip, and what draws its degradation."""
    if isinstance(own, StepLatents):
        for place in places:
            number, version = own.choose((0, place))
            sample = own.source(number)
            draws = version_draws(recipe, number, version, own.versions)
            yield sample.pixels, sample.caption, draws.each[0]
        return
    if recipe.precomputed:
        raise ValueError("it is of what is precomputed, which training will refuse")
    if recipe.data is not None and own is None:
        raise ValueError("its clips are not there")
    dataset = crops_of_phase(_as_stage2(recipe), 0) if own is None else own
    for place, generator in zip(places, Draws(recipe.seed, 0, places, clips_per_step).each, strict=True):
        pixels, text, *_ = dataset[0, place]
        yield pixels, text, generator


def _crop_row(recipe: VAERecipe, place: int) -> Row:
    """A clip that the VAE is trained on."""
    phase = recipe.phases[0]
    seed = sample_seed(recipe.seed, 0)
    crops = Crops(seed, crop=phase.crop, frames=phase.frames, natural=phase.natural)
    return Row(pixels=crops[0, place], degraded=None, caption="")


def _as_stage2(recipe: Stage1Recipe | Stage2Recipe) -> Stage2Recipe:
    assert isinstance(recipe, Stage2Recipe)
    return recipe


def _pool_row(recipe: Stage1Recipe, clips_per_step: int, temporal: int, place: int) -> Row:
    """A clip of Stage I's pools, which need not be there yet."""
    pools = {frames: torch.empty(count, 1, device="meta") for frames, count in recipe.clips.items()}
    clips = PoolClips(pools, recipe, 0, clips_per_step, temporal)
    source, _, frames = clips.choose((0, place))
    scene, caption = clips.describe((0, place))
    height, width = recipe.size
    pixels = torch.from_numpy(render(scene, height=height, width=width, num_frames=source))[:frames]
    return Row(pixels=pixels, degraded=None, caption=caption)


def draw_batch(rows: Sequence[Row], path: Path) -> Path:
    """Writes a picture of a batch: first, middle and last frame of each clip, then of what was made of it; captions.

    Args:
        rows: The clips.
        path: Where to.
    """
    strips = [_strip(row) for row in rows]
    width = max(strip.width for strip in strips)
    lines = [textwrap.wrap(row.caption, max(10, width // 6))[:2] or ["(no caption)"] for row in rows]
    heights = [strip.height + _LINE * len(text) + _MARGIN for strip, text in zip(strips, lines, strict=True)]
    sheet = Image.new("RGB", (width, sum(heights)), "white")
    pen, top = ImageDraw.Draw(sheet), 0
    for strip, text, height in zip(strips, lines, heights, strict=True):
        sheet.paste(strip, (0, top))
        for number, line in enumerate(text):
            # Pillow's own font has no letters beyond Latin ones.
            shown = line.encode("latin-1", "replace").decode("latin-1")
            pen.text((_MARGIN, top + strip.height + _LINE * number), shown, fill="black")
        top += height
    return save_image(path, sheet)


def _strip(row: Row) -> Image.Image:
    """Frames of a clip side by side."""
    last = len(row.pixels) - 1
    shown = sorted({0, (last + 1) // 2, last})
    height = max(1, round(row.pixels.shape[2] * _CELL_WIDTH / row.pixels.shape[3]))
    frames = [row.pixels[shown]] + ([] if row.degraded is None else [row.degraded[shown]])
    cells = resize_video(torch.cat(frames), height, _CELL_WIDTH)
    levels = to_uint8(torch.cat(list(cells), dim=2))  # (3, height, cells * width)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())
