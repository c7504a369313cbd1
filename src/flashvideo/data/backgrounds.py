"""The eight backgrounds of the procedural world.

Each has a calm large-scale tone, clearly less saturated than any object, and fine texture, much of it above the
Nyquist limit of a preview four times smaller, so that Stage II has detail to make. Luminance carries the texture;
the hue stays put, so a background never takes an object's hue.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from flashvideo.data.textures import Array, checker, edge, hash01, hsv, sample_noise, stripes, wave


@dataclass(frozen=True, kw_only=True)
class Background:
    """Tone and texture of one background.

    Attributes:
        hue: nominal hue in degrees.
        saturation: nominal HSV saturation, below 0.45.
        value: nominal HSV value.
        excluded_colors: object colours too near in hue, or in brightness for white and black.
        texture: (x, y, pixel, seed) to a luminance factor around 1, same shape as x.
    """

    hue: float
    saturation: float
    value: float
    excluded_colors: frozenset[str]
    texture: Callable[[Array, Array, float, int], Array]


def _grass(x: Array, y: Array, pixel: float, seed: int) -> Array:
    lean = x + 0.15 * y
    blades = sample_noise(lean, y, pixel, period=0.0145, slope=0.0, seed=seed, stretch=1.8)
    tufts = sample_noise(x, y, pixel, period=0.05, slope=0.6, seed=seed + 1)
    return 1 + 0.13 * np.clip(blades, -2, 2) + 0.015 * tufts


def _bricks(x: Array, y: Array, pixel: float, seed: int) -> Array:
    height, width, mortar = 0.083, 0.19, 0.0095
    row = np.floor(y / height)
    u = x / width + 0.5 * (row % 2) + (seed % 97) / 97
    column = np.floor(u)
    dy = (0.5 - np.abs(y / height - row - 0.5)) * height
    dx = (0.5 - np.abs(u - column - 0.5)) * width
    joint = edge(np.minimum(dx, dy) - mortar / 2, pixel)
    tone = 0.94 + 0.06 * hash01(row, column, seed) + 0.04 * sample_noise(x, y, pixel, period=0.018, seed=seed)
    return tone * (1 - joint) + 1.38 * joint


def _checks(x: Array, y: Array, pixel: float, seed: int) -> Array:
    board = checker(x + seed % 83 / 83, y + seed % 61 / 61, 0.12, pixel)
    weave = wave((x + y) / 0.0195, 0.0138, pixel) + wave((x - y) / 0.0195, 0.0138, pixel)
    return 1 + 0.06 * board + 0.08 * weave


def _waves(x: Array, y: Array, pixel: float, seed: int) -> Array:
    p = seed % 89 / 89
    bend = 0.012 * np.sin(2 * np.pi * (x / 0.31 + p)) + 0.006 * np.sin(2 * np.pi * (x / 0.13 + 2 * p))
    crest = stripes(y + bend + p, 0.062, pixel)
    ripple = wave((y + 1.6 * bend) / 0.0175, 0.0175, pixel)
    return 1 + 0.08 * crest + 0.11 * ripple


def _sky(x: Array, y: Array, pixel: float, seed: int) -> Array:
    clouds = sample_noise(x, y, pixel, period=0.12, slope=1.0, seed=seed, stretch=0.6)
    wisps = sample_noise(x, y + 0.08 * x, pixel, period=0.036, slope=0.0, seed=seed + 1, stretch=0.4)
    return 1.0 + 0.016 * clouds + 0.05 * wisps - 0.02 * (y - 0.5)


def _sand(x: Array, y: Array, pixel: float, seed: int) -> Array:
    p = seed % 71 / 71
    ripple = np.sin(2 * np.pi * (y / 0.075 + 0.35 * np.sin(2 * np.pi * (x / 0.5 + p)) + p))
    grain = sample_noise(x, y, pixel, period=0.017, slope=0.1, seed=seed)
    return 1 + 0.04 * ripple + 0.08 * np.clip(grain, -2.2, 2.2)


def _wood(x: Array, y: Array, pixel: float, seed: int) -> Array:
    p = seed % 67 / 67
    warp = 0.016 * np.sin(2 * np.pi * (x / 0.9 + p)) + 0.01 * np.sin(2 * np.pi * (x / 0.37 + 3 * p))
    plank = np.floor((y + p) / 0.25)
    seam = edge(np.abs((y + p) / 0.25 - plank - 0.5) * -0.25 + 0.12, pixel)
    v = y + warp * (1 + 0.5 * (plank % 2)) + 0.37 * plank
    grain = wave(v / 0.0185 + 0.7 * np.sin(2 * np.pi * v / 0.09), 0.0185, pixel)
    fibre = sample_noise(x, y, pixel, period=0.09, slope=0.2, seed=seed, stretch=0.2)
    return (1 + 0.14 * grain + 0.04 * fibre) * (1 - 0.3 * seam)


def _night(x: Array, y: Array, pixel: float, seed: int) -> Array:
    cell = 0.055
    i, j = np.floor(x / cell), np.floor(y / cell)
    cx = (i + 0.2 + 0.6 * hash01(i, j, seed)) * cell
    cy = (j + 0.2 + 0.6 * hash01(i, j, seed + 1)) * cell
    size = 0.0035 + 0.004 * hash01(i, j, seed + 2) ** 2
    distance = np.hypot(x - cx, y - cy)
    # A star smaller than a pixel keeps its light: wider, dimmer.
    width = np.maximum(size, 0.6 * pixel)
    star = np.clip(1.2 - distance / width, 0, 1) * (size / width) ** 2 * (hash01(i, j, seed + 3) < 0.6)
    haze = sample_noise(x, y, pixel, period=0.0175, slope=0.3, seed=seed)
    return 1 + 0.12 * haze + 3.0 * star


BACKGROUNDS: dict[str, Background] = {
    "grass": Background(
        hue=100, saturation=0.40, value=0.50, excluded_colors=frozenset({"green"}), texture=_grass
    ),
    "bricks": Background(
        hue=8, saturation=0.38, value=0.58, excluded_colors=frozenset({"red", "orange"}), texture=_bricks
    ),
    "checks": Background(hue=0, saturation=0.0, value=0.52, excluded_colors=frozenset(), texture=_checks),
    "waves": Background(
        hue=185, saturation=0.40, value=0.52, excluded_colors=frozenset({"blue"}), texture=_waves
    ),
    "sky": Background(
        hue=215, saturation=0.26, value=0.84, excluded_colors=frozenset({"blue", "white"}), texture=_sky
    ),
    "sand": Background(
        hue=42,
        saturation=0.34,
        value=0.78,
        excluded_colors=frozenset({"yellow", "orange", "white"}),
        texture=_sand,
    ),
    "wood": Background(
        hue=30,
        saturation=0.42,
        value=0.40,
        excluded_colors=frozenset({"orange", "yellow", "black"}),
        texture=_wood,
    ),
    "night": Background(
        hue=240, saturation=0.35, value=0.17, excluded_colors=frozenset({"blue", "black"}), texture=_night
    ),
}


def paint(
    name: str, x: Array, y: Array, pixel: float, *, seed: int, tone: tuple[float, float, float]
) -> Array:
    """Paint a background.

    Args:
        name: a key of `BACKGROUNDS`.
        x, y: (h, w) coordinates in frame heights.
        pixel: pixel size in frame heights.
        seed: phase and noise of the texture.
        tone: small offsets of (hue in degrees, saturation, value) from the nominal ones.

    Returns:
        (3, h, w) float32 in [0, 1].
    """
    background = BACKGROUNDS[name]
    base = hsv(
        background.hue + tone[0],
        max(0.0, background.saturation + (tone[1] if background.saturation else 0.0)),
        background.value + tone[2],
    )
    luminance = background.texture(x, y, pixel, seed).astype(np.float32)
    return np.clip(base[:, None, None] * luminance[None], 0.0, 1.0)
