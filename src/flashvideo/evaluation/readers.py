"""Readers: what a video of the procedural world shows, read back from its pixels.

They know the vocabulary, never the scene. Everything is measured at preview size, so a full-size video and its
preview are read alike. Validated against rendered truth, also through a lossy codec (tests/test_readers.py).
Shapes: clips (F, 3, H, W) in [-1, 1].
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flashvideo.data.backgrounds import BACKGROUNDS
from flashvideo.data.shapes_world import COLORS, SHAPES, Scene, signed_distance
from flashvideo.data.textures import Array, hsv
from flashvideo.video import resize_video

READ_HEIGHT = 96
NOTHING = "nothing"
"""What a reader says when it recognises none of its words."""
LEAST_FRAMES = 3
"""Of a clip whose motion is read."""
_GRID, _SPAN = 36, 3.0
_NUM_RAYS = 72
_RIM, _BORDER = 3, 12  # pixels
_LEAST_PAN = 0.04
"""Frame heights; a pan of the world is 0.08 at least."""
# Of two objects' centres, in frame heights.
_BESIDE, _APART = 0.55, 0.36
_LEAST_OF_TWO = 0.012
"""Share of the pixels that each of two objects has at least."""


@dataclass(frozen=True, kw_only=True)
class ClipReading:
    """Vocabulary words read from a clip, each possibly `NOTHING`."""

    color: str
    shape: str
    motion: str
    background: str


def read_clip(clip: Tensor) -> ClipReading:
    """Read colour, shape, motion and background of a one-object clip.

    Args:
        clip: (F, 3, H, W) in [-1, 1], any size of the world's aspect.

    Returns:
        The words; `NOTHING` where nothing in the vocabulary fits.

    Raises:
        ValueError: if the clip does not have that shape.
    """
    background, color, masks = _find_object(clip)
    if color == NOTHING:
        return ClipReading(color=NOTHING, shape=NOTHING, motion=NOTHING, background=background)
    return ClipReading(color=color, shape=read_shape(masks), motion=read_motion(masks), background=background)


def outline_margin(clip: Tensor, shape: str) -> float:
    """How much better a shape fits the one object's outline than any other does, by intersection over union.

    It grades what `read_clip` only calls right or wrong, and is above 0 where that reads the shape.

    Args:
        clip: (F, 3, H, W) in [-1, 1], any size of the world's aspect.
        shape: Of `SHAPES`.

    Returns:
        A number in [-1, 1]; -1 where there is no object.

    Raises:
        ValueError: if the clip does not have that shape.
    """
    _, color, masks = _find_object(clip)
    fits = _shape_fits(masks) if color != NOTHING else None
    if fits is None:
        return -1.0
    return fits[shape] - max(fit for other, fit in fits.items() if other != shape)


def _find_object(clip: Tensor) -> tuple[str, str, Array]:
    """Background, and colour and masks (F, H, W) of the one object."""
    rgb = _small(clip)
    hue, saturation, value = _to_hsv(rgb)
    background = read_background(rgb)
    return background, *read_color(hue, saturation, value, background)


@dataclass(frozen=True, kw_only=True)
class ThingReading:
    """One of two objects of a clip; places in frame heights, from the upper left corner."""

    color: str
    shape: str
    x: float
    y: float

    def relation_to(self, other: ThingReading) -> str:
        """Where this object is, as seen from another: a word of `RELATIONS`, or `NOTHING`.

        What is neither beside nor above, and so nearly at the same place, is taken to be behind.
        """
        across, down = other.x - self.x, other.y - self.y
        if across > _BESIDE and across > abs(down):
            return "left of"
        if down > _APART:
            return "above"
        return "behind" if abs(across) <= _BESIDE and abs(down) <= _APART else NOTHING


def read_things(clip: Tensor) -> tuple[ThingReading, ...]:
    """Read the two most visible objects of a clip, of different colours.

    Args:
        clip: (F, 3, H, W) in [-1, 1], any size of the world's aspect.

    Returns:
        At most two, the larger one first.

    Raises:
        ValueError: if the clip does not have that shape.
    """
    rgb = _small(clip)
    candidates = _color_masks(*_to_hsv(rgb), read_background(rgb), exclusive=True)
    found: list[ThingReading] = []
    free = np.ones(rgb.shape[:-1], dtype=bool)
    while len(found) < 2:
        color = max(candidates, key=lambda name: (candidates[name] & free).sum())
        masks = candidates[color] & free
        if masks.mean() < _LEAST_OF_TWO:
            break
        places = np.array([_moments(mask)[1:] for mask in masks])
        y, x = np.nanmean(places, axis=0) if np.isfinite(places).any() else (np.nan, np.nan)
        found.append(ThingReading(color=color, shape=read_shape(masks), x=float(x), y=float(y)))
        free &= ~_grown(masks)
    return tuple(found)


def read_pan(clip: Tensor) -> str:
    """Where the camera pans to, from how the background moves along the upper and lower border.

    Least squares of the brightness constancy ``dI/dx v + dI/dt = 0`` between neighbouring frames give the shift
    (Lucas and Kanade, 1981).

    Args:
        clip: (F, 3, H, W) in [-1, 1], any size of the world's aspect, at least three frames.

    Returns:
        "left", "right", or `NOTHING` where it stands.

    Raises:
        ValueError: if the clip does not have that shape.
    """
    levels = _small(clip).mean(-1)  # (F, 96, w)
    border = np.concatenate((levels[:, :_BORDER], levels[:, -_BORDER:]), axis=1)
    across = np.gradient((border[1:] + border[:-1]) / 2, axis=2)
    shifts = -(across * np.diff(border, axis=0)).sum((1, 2)) / np.maximum((across**2).sum((1, 2)), 1e-6)
    moved = float(shifts.sum()) / READ_HEIGHT  # of the background, in frame heights
    if abs(moved) < _LEAST_PAN:
        return NOTHING
    return "left" if moved > 0 else "right"


def agreement(reading: ClipReading, scene: Scene) -> dict[str, bool]:
    """Which attributes of the scene's first object and background were read right."""
    thing = scene.things[0]
    return {
        "color": reading.color == thing.color,
        "shape": reading.shape == thing.shape,
        "motion": reading.motion == scene.motion,
        "background": reading.background == scene.background,
    }


def _small(clip: Tensor) -> Array:
    """The clip at the size in which it is read: (F, 96, w, 3) in [0, 1]."""
    if clip.ndim != 4 or clip.shape[1] != 3:
        raise ValueError(f"clip must be (frames, 3, height, width), got {tuple(clip.shape)}")
    width = round(clip.shape[-1] * READ_HEIGHT / clip.shape[-2])
    small = resize_video(clip.float(), READ_HEIGHT, width).clamp(-1, 1)
    return (small.permute(0, 2, 3, 1).cpu().numpy() + 1) / 2


def _grown(masks: Array) -> Array:
    """(F, H, W) bool masks with `_RIM` pixels more on each side: an object's soft edge has colours of its own."""
    planes = torch.from_numpy(masks.astype(np.float32))[:, None]
    return torch.nn.functional.max_pool2d(planes, 2 * _RIM + 1, 1, _RIM)[:, 0].numpy() > 0


def _to_hsv(rgb: Array) -> tuple[Array, Array, Array]:
    """Hue in degrees, saturation and value in [0, 1] of (..., 3)."""
    high, low = rgb.max(-1), rgb.min(-1)
    spread = high - low
    safe = np.maximum(spread, 1e-6)
    r, g, b = np.moveaxis(rgb, -1, 0)
    hue = (
        np.where(high == r, (g - b) / safe % 6, np.where(high == g, (b - r) / safe + 2, (r - g) / safe + 4))
        * 60
    )
    return hue, spread / np.maximum(high, 1e-3), high


def _hue_distance(hue: Array, nominal: float) -> Array:
    return np.abs((hue - nominal + 180) % 360 - 180)


@functools.cache
def _background_colors() -> Array:
    return np.stack([hsv(b.hue, b.saturation, b.value) for b in BACKGROUNDS.values()])


def read_background(rgb: Array) -> str:
    """The background whose nominal colour is nearest to the median of the frame's border, (F, H, W, 3) in [0, 1]."""
    border = np.concatenate(
        [part.reshape(-1, 3) for part in (rgb[:, :7], rgb[:, -7:], rgb[:, :, :10], rgb[:, :, -10:])]
    )
    color = np.median(border, axis=0)
    nominal = _background_colors()
    # Chroma matters more than brightness, which the textures modulate.
    chroma = (color - color.mean()) - (nominal - nominal.mean(1, keepdims=True))
    distance = np.sqrt((2 * chroma**2).sum(1) + 0.5 * (color.mean() - nominal.mean(1)) ** 2)
    return list(BACKGROUNDS)[int(distance.argmin())] if distance.min() < 0.12 else NOTHING


def _color_masks(
    hue: Array, saturation: Array, value: Array, background: str, *, exclusive: bool = False
) -> dict[str, Array]:
    """Where each colour may be, (F, H, W) bool; `exclusive`: a pixel of any hue has the nearest one alone."""
    excluded = BACKGROUNDS[background].excluded_colors if background != NOTHING else frozenset()
    vivid = (saturation > 0.58) & (value > 0.28)
    hues = {name: nominal for name, nominal in COLORS.items() if nominal is not None}
    distances = {name: _hue_distance(hue, nominal) for name, nominal in hues.items()}
    nearest = np.minimum.reduce(list(distances.values())) if exclusive else np.inf
    masks = {name: vivid & (d < 24) & (d <= nearest) for name, d in distances.items()}
    if "white" not in excluded:
        masks["white"] = (value > 0.68) & (saturation < 0.16)
    if "black" not in excluded:
        masks["black"] = (value < 0.29) & (saturation < 0.6)
    return masks


def read_color(hue: Array, saturation: Array, value: Array, background: str) -> tuple[str, Array]:
    """The object's colour and its masks.

    Args:
        hue, saturation, value: (F, H, W).
        background: as read; it decides which of white and black can be told from it.

    Returns:
        A word of `COLORS` or `NOTHING`, and (F, H, W) bool masks.
    """
    candidates = _color_masks(hue, saturation, value, background)
    # Orange and yellow are near: where two hues claim a pixel, the object goes to the hue nearest its median.
    share = {name: float(mask.mean()) for name, mask in candidates.items()}
    best = max(share, key=lambda name: share[name])
    if share[best] < 0.02:
        return NOTHING, np.zeros_like(candidates[best])
    if COLORS[best] is not None:
        inside = candidates[best]
        angle = np.deg2rad(hue[inside])
        mean = float(np.rad2deg(np.arctan2(np.sin(angle).mean(), np.cos(angle).mean())))
        hues = {name: h for name, h in COLORS.items() if h is not None}
        best = min(hues, key=lambda name: float(_hue_distance(np.array(mean), hues[name])))
        return best, (saturation > 0.5) & (value > 0.22) & (_hue_distance(hue, mean) < 30)
    return best, candidates[best]


def _moments(mask: Array) -> tuple[float, float, float]:
    """Area, centre y and centre x of a (H, W) mask, in frame heights; the centre ignores stray pixels."""
    height = mask.shape[0]
    y, x = np.nonzero(mask)
    if len(y) < 8:
        return 0.0, np.nan, np.nan
    keep = np.ones(len(y), dtype=bool)
    for _ in range(2):
        cy, cx = y[keep].mean(), x[keep].mean()
        reach = 2.6 * np.sqrt(((y[keep] - cy) ** 2 + (x[keep] - cx) ** 2).mean()) + 2
        keep = (y - cy) ** 2 + (x - cx) ** 2 < reach**2
    return keep.sum() / height**2, (y[keep].mean() + 0.5) / height, (x[keep].mean() + 0.5) / height


def _normalised(mask: Array) -> Array | None:
    """The mask centred and scaled to unit area on a fixed grid, (_GRID, _GRID) in [0, 1]."""
    area, cy, cx = _moments(mask)
    if area < 0.01:
        return None
    height, width = mask.shape
    side = np.sqrt(area)
    steps = (np.arange(_GRID) + 0.5) / _GRID * _SPAN - _SPAN / 2
    px = torch.tensor((cx + steps * side) * height / width * 2 - 1, dtype=torch.float32)
    py = torch.tensor((cy + steps * side) * 2 - 1, dtype=torch.float32)
    grid = torch.stack(torch.meshgrid(py, px, indexing="ij")[::-1], dim=-1)[None]
    source = torch.from_numpy(mask.astype(np.float32))[None, None]
    return torch.nn.functional.grid_sample(source, grid, align_corners=False)[0, 0].numpy()


@functools.cache
def _templates() -> tuple[Array, Array]:
    """Every shape in every orientation on the grid of `_normalised`: (T, _GRID^2) in [0, 1], and its shape's index."""
    period = {"ball": 0, "ring": 0, "square": 90, "triangle": 120, "star": 72, "heart": 360}
    fine = 4 * _GRID
    steps = (np.arange(fine) + 0.5) / fine * _SPAN - _SPAN / 2
    x, y = np.meshgrid(steps, steps)
    images, labels = [], []
    for index, shape in enumerate(SHAPES):
        centre = (signed_distance(shape, x, y) < 0).astype(float)
        oy, ox = (centre * y).sum() / centre.sum(), (centre * x).sum() / centre.sum()
        for degrees in range(0, max(period[shape], 1), 6):
            c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
            image = signed_distance(shape, x * c + y * s + ox, y * c - x * s + oy) < 0
            images.append(image.reshape(_GRID, 4, _GRID, 4).mean((1, 3)).ravel())
            labels.append(index)
    return np.stack(images), np.array(labels)


def read_shape(masks: Array) -> str:
    """The shape whose outline fits best over the clip; masks (F, H, W)."""
    fits = _shape_fits(masks)
    if fits is None or max(fits.values()) < 0.6:
        return NOTHING
    return max(fits, key=lambda shape: fits[shape])


def _shape_fits(masks: Array) -> dict[str, float] | None:
    """Intersection over union of each shape, turned as it fits best, with the outline, mean over the clip."""
    templates, labels = _templates()
    total, count = np.zeros(len(SHAPES)), 0
    for mask in masks[:: max(1, len(masks) // 8)]:
        image = _normalised(mask)
        if image is None:
            continue
        flat = image.ravel()
        overlap = np.minimum(templates, flat).sum(1) / np.maximum(templates, flat).sum(1)
        total += [overlap[labels == i].max() for i in range(len(SHAPES))]
        count += 1
    return dict(zip(SHAPES, (total / count).tolist(), strict=True)) if count else None


def _signature(mask: Array) -> Array | None:
    """How far the mask reaches along each of `_NUM_RAYS` rays from its centre, mean removed."""
    image = _normalised(mask)
    if image is None:
        return None
    angles = 2 * np.pi * np.arange(_NUM_RAYS) / _NUM_RAYS
    radii = np.linspace(0.05, 0.5, 28) * _SPAN
    y = (np.sin(angles)[:, None] * radii + _SPAN / 2) / _SPAN * _GRID - 0.5
    x = (np.cos(angles)[:, None] * radii + _SPAN / 2) / _SPAN * _GRID - 0.5
    grid = torch.tensor(np.stack((x, y), -1) * 2 / (_GRID - 1) - 1, dtype=torch.float32)[None]
    source = torch.from_numpy(image)[None, None]
    values = torch.nn.functional.grid_sample(source, grid, align_corners=True)[0, 0].numpy()
    reach = (values * radii).sum(1)
    return reach - reach.mean()


def _rotation(masks: Array) -> float:
    """Total turn over the clip in degrees, followed in steps of two frames; 0 where nothing turns."""
    signatures = [_signature(m) for m in masks[::2]]
    total = 0.0
    for before, after in zip(signatures[:-1], signatures[1:], strict=True):
        if before is None or after is None:
            continue
        lags = np.arange(-7, 8)
        scores = np.array([(before * np.roll(after, -lag)).sum() for lag in lags])
        norm = np.sqrt((before**2).sum() * (after**2).sum()) + 1e-6
        best = int(scores.argmax())
        if scores[best] / norm < 0.4 or before.std() < 0.02:
            continue
        offset = 0.0
        if 0 < best < len(lags) - 1:
            left, here, right = scores[best - 1 : best + 2]
            offset = 0.5 * (left - right) / min(left - 2 * here + right, -1e-9)
        total += (lags[best] + offset) * 360 / _NUM_RAYS
    return total


def read_motion(masks: Array) -> str:
    """What the object does, from the course of its centre, its area and its outline's turn; masks (F, H, W)."""
    course = np.array([_moments(m) for m in masks])
    course = course[course[:, 0] > 0.35 * np.median(course[:, 0])]
    if len(course) < max(LEAST_FRAMES, len(masks) // 2):
        return NOTHING
    area, y, x = course.T
    time = np.linspace(0, 1, len(y))
    hop = -np.sin(np.pi * time)
    hop -= hop.mean()
    swing = float((hop * (y - y.mean())).sum() / (hop**2).sum())
    residual = y - y.mean() - swing * hop
    end = max(1, len(y) // 8)
    dx, dy = x[-end:].mean() - x[:end].mean(), y[-end:].mean() - y[:end].mean()
    growth = float(np.log(area[-end:].mean() / area[:end].mean()))
    if swing > 0.07 and residual.std() < 0.6 * y.std() and abs(dy) < 0.5 * swing:
        return "bouncing"
    if max(abs(dx) / 1.3, abs(dy)) > 0.1:
        if abs(dx) / 1.3 > abs(dy):
            return "moving right" if dx > 0 else "moving left"
        return "moving down" if dy > 0 else "moving up"
    if abs(growth) > np.log(1.4):
        return "growing" if growth > 0 else "shrinking"
    return "spinning" if abs(_rotation(masks)) > 25 else NOTHING
