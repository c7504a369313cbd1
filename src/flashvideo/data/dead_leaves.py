"""Uncaptioned clips whose statistics are near natural video's: moving dead leaves.

Occluding shapes with power-law radii, each with its own colour, texture and edge softness, form an image with
natural spectra and occlusions (the dead-leaves model; Lee, Mumford, Huang, IJCV 2001; Baradad et al., NeurIPS 2021
show that models trained on such images transfer to photographs). Two such layers move by different smooth flows,
so motion and occlusion in time are there too. Shapes: pixels (F, 3, h, w) in [-1, 1]; lengths in pixels.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from flashvideo.data.shapes_world import NUM_FRAMES
from flashvideo.data.textures import Array, checker, edge, hsv, sample_noise, wave


def _palette(rng: np.random.Generator) -> Array:
    """Five colours of one mood, (5, 3): one or two neighbouring hues, mostly muted."""
    hue = rng.uniform(0, 360)
    hues = hue + rng.normal(0, 25, 5) + 180 * (rng.random(5) < 0.25)
    saturations = np.clip(rng.beta(1.3, 2.5, 5), 0.02, 0.95)
    values = np.clip(rng.beta(2.0, 1.3, 5), 0.05, 1.0)
    return np.stack([hsv(h, s, v) for h, s, v in zip(hues, saturations, values, strict=True)])


def _distance(rng: np.random.Generator, u: Array, v: Array) -> Array:
    """Signed distance of a random shape of about unit radius, negative inside."""
    kind = rng.integers(6)
    if kind == 0:
        return np.hypot(u, v) - 1
    if kind == 5:  # a twig: a bent line, tapering
        bend, wave_length = rng.uniform(-0.5, 0.5), rng.uniform(1.5, 6.0)
        course = bend * (u * u - 0.4) + 0.1 * np.sin(wave_length * u + rng.uniform(0, 6.28))
        taper = rng.uniform(0.02, 0.09) * (1.15 - 0.5 * u)
        return np.maximum(np.abs(v - course) - taper, np.abs(u) - 0.95)
    if kind == 1:
        return np.maximum(np.abs(u), np.abs(v) * rng.uniform(1, 4)) - 0.9
    if kind == 2:
        return np.maximum(np.abs(u) * 0.87 - v * 0.5, v) - 0.6
    if kind == 3:  # a stroke of a glyph: an arc or a bar of some width
        width = rng.uniform(0.06, 0.2)
        return np.maximum(np.abs(np.hypot(u, v) - 0.8) - width, v - rng.uniform(-0.3, 0.9))
    a = np.arctan2(v, u)
    wobble = 1 + 0.18 * np.sin(int(rng.integers(2, 7)) * a + rng.uniform(0, 6.28))
    return np.hypot(u, v) - 0.85 * wobble


def _surface(rng: np.random.Generator, u: Array, v: Array, radius: float, colors: Array) -> Array:
    """Colour of a leaf's surface, (3, h, w): plain, noisy, grated, shaded or chequered."""
    first, second = colors[rng.integers(5)], colors[rng.integers(5)]
    kind = rng.choice(5, p=(0.15, 0.4, 0.2, 0.15, 0.1))
    grain = 1.0 / radius
    if kind == 0:
        return np.broadcast_to(first[:, None, None], (3, *u.shape)).copy()
    if kind == 1:
        period = float(np.exp(rng.uniform(np.log(3.0), np.log(20.0)))) * grain
        noise = sample_noise(
            u,
            v,
            grain,
            period=period,
            slope=0.9 if rng.random() < 0.6 else 0.4,
            seed=int(rng.integers(1 << 30)),
        )
        mix = rng.uniform(0.03, 0.2) * noise
    elif kind == 2:
        period = float(np.exp(rng.uniform(np.log(3.5), np.log(30.0)))) * grain
        mix = rng.uniform(0.08, 0.4) * wave(u / period, period, grain, sharpness=rng.choice((1.0, 3.0)))
    elif kind == 3:
        mix = rng.uniform(0.2, 0.6) * u
    else:
        mix = rng.uniform(0.2, 0.5) * checker(u, v, rng.uniform(6, 16) * grain, grain)
    if rng.random() < 0.7:  # shading: luminance only, as under one light
        return first[:, None, None] * (1 + mix)[None].astype(np.float32)
    mix = np.clip(0.5 + 0.5 * mix, 0, 1).astype(np.float32)
    return first[:, None, None] * (1 - mix) + second[:, None, None] * mix


def dead_leaves(
    rng: np.random.Generator, height: int, width: int, *, cover: float = 1.0
) -> tuple[Array, Array]:
    """One still layer.

    Args:
        cover: 1 fills the layer; smaller values leave gaps.

    Returns:
        Colours (3, height, width) in [0, 1], not multiplied by coverage, and coverage (height, width) in [0, 1].
    """
    colors = _palette(rng)
    image = np.empty((3, height, width), dtype=np.float32)
    y, x = np.arange(height, dtype=np.float32), np.arange(width, dtype=np.float32)
    alpha = np.full((height, width), float(cover >= 1.0), dtype=np.float32)
    ground_y, ground_x = np.meshgrid(y, x, indexing="ij")
    radius = float(max(height, width))
    image[:] = _surface(rng, ground_x / radius, ground_y / radius, radius, colors)
    smallest, largest = 2.5, 0.4 * min(height, width)
    # Now and then foliage: three times as many, most of them small.
    most = 330 if rng.random() < 0.25 else 110
    count = int(np.clip(cover * height * width / 250, 4, most))
    u = rng.random(count)
    # Density r^-2 between the two limits, after a ground of large leaves that leaves no flat gap.
    radii = 1.0 / (1 / smallest + u * (1 / largest - 1 / smallest))
    ground = largest * rng.uniform(0.35, 1.0, int(22 * cover))
    for radius in map(float, np.concatenate((ground, radii))):
        cx, cy = rng.uniform(0, width), rng.uniform(0, height)
        softness = float(rng.choice((0.8, 1.2, 2.0, 5.0), p=(0.45, 0.3, 0.15, 0.1)))
        reach = 1.45 * radius + softness
        rows = slice(max(0, int(cy - reach)), min(height, int(cy + reach) + 1))
        columns = slice(max(0, int(cx - reach)), min(width, int(cx + reach) + 1))
        dx, dy = np.meshgrid(x[columns] - np.float32(cx), y[rows] - np.float32(cy))
        angle = rng.uniform(0, 2 * np.pi)
        cos, sin = np.float32(np.cos(angle) / radius), np.float32(np.sin(angle) / radius)
        lu, lv = dx * cos + dy * sin, dy * cos - dx * sin
        opacity = edge(_distance(rng, lu, lv), softness / radius).astype(np.float32)
        box = image[:, rows, columns]
        box += opacity * (_surface(rng, lu, lv, radius, colors) - box)
        alpha[rows, columns] = np.maximum(alpha[rows, columns], opacity)
    return np.clip(image, 0.0, 1.0), alpha


def _flow(
    rng: np.random.Generator, height: int, width: int, num_frames: int, margin: int, speed: float
) -> torch.Tensor:
    """Sampling positions in the margin-padded layer, (F, h, w, 2) in pixels: pan, zoom, turn and a slow warp."""
    # At the usual 17 frames and speed a pan stays within the margin; the layer is reflected where it ends.
    pan = rng.uniform(-1, 1, 2) * rng.choice((0.0, 0.5, 1.0), p=(0.2, 0.4, 0.4)) * margin / NUM_FRAMES
    zoom, turn = rng.normal(0, 0.004), rng.normal(0, 0.004)
    amplitude, length = rng.uniform(0, 0.12) * margin, rng.uniform(0.5, 2.0) * max(height, width)
    phase = rng.uniform(0, 6.28, 2)
    y, x = torch.meshgrid(torch.arange(height) - height / 2, torch.arange(width) - width / 2, indexing="ij")
    t = speed * (torch.arange(num_frames) - num_frames / 2)[:, None, None]
    s = torch.exp(-zoom * t)
    px = s * (x * torch.cos(turn * t) - y * torch.sin(turn * t)) + pan[0] * t
    py = s * (y * torch.cos(turn * t) + x * torch.sin(turn * t)) + pan[1] * t
    px = px + amplitude * torch.sin(y / length * 6.28 + t * 0.2 + phase[0])
    py = py + amplitude * torch.sin(x / length * 6.28 + t * 0.2 + phase[1])
    return torch.stack((px + width / 2 + margin, py + height / 2 + margin), dim=-1).float()


def _warp(layer: Array, positions: torch.Tensor) -> torch.Tensor:
    """Sample a layer (C, H, W) at positions (F, h, w, 2): (F, C, h, w)."""
    _, height, width = layer.shape
    grid = positions / torch.tensor([(width - 1) / 2, (height - 1) / 2]) - 1
    source = torch.from_numpy(layer)[None].expand(len(grid), -1, -1, -1)
    return F.grid_sample(source, grid, mode="bilinear", padding_mode="reflection", align_corners=True)


def render_leaves(
    seed: int, *, height: int, width: int, num_frames: int = NUM_FRAMES, speed: float = 1.0
) -> Array:
    """Render one moving dead-leaves clip.

    Args:
        seed: the same seed and size give the same clip.
        height, width: size in pixels; there is no larger frame that this is a crop of.
        num_frames: frames, at 8 per second.
        speed: of the motion, 1 as usual.

    Returns:
        (F, 3, height, width) float32 in [-1, 1].
    """
    rng = np.random.default_rng(seed)
    margin = max(8, int(0.15 * max(height, width)))
    size = (height + 2 * margin, width + 2 * margin)
    back, _ = dead_leaves(rng, *size)
    video = _warp(back, _flow(rng, height, width, num_frames, margin, speed))
    if rng.random() < 0.7:
        front, alpha = dead_leaves(rng, *size, cover=0.12)
        layer = np.concatenate((front * alpha, alpha[None]))
        over = _warp(layer, _flow(rng, height, width, num_frames, margin, speed))
        video = video * (1 - over[:, 3:]) + over[:, :3]
    contrast = float(rng.uniform(0.6, 1.0))
    mean = video.mean()
    return ((mean + (video - mean) * contrast).clamp(0, 1) * 2 - 1).numpy()
