"""Antialiased patterns that render at any resolution: the surfaces of the procedural world.

Coordinates are in units of the frame height: y runs from 0 (top) to 1, x from 0 to the aspect ratio. Every
pattern takes `pixel`, the size of one pixel in the same unit, and removes what that pixel cannot show, so a scene
rendered small is the scene rendered large and downsampled, up to the filter. Shapes: coordinate arrays (..., h, w)
give values of the same shape.
"""

from __future__ import annotations

import functools

import numpy as np

Array = np.ndarray
_TILE_SIZE = 512
_NUM_LEVELS = 6


@functools.cache
def noise_tile(slope: float, seed: int) -> tuple[Array, ...]:
    """Periodic noise whose amplitude spectrum falls as 1/f^slope, as a pyramid of ever smaller tiles.

    Returns:
        `_NUM_LEVELS` float32 arrays, (512, 512), (256, 256), ...; the first has mean 0 and standard deviation 1,
        the others are its ideal low-pass versions, so their deviation is what remains below their Nyquist limit.
    """
    size = _TILE_SIZE
    rng = np.random.default_rng(seed)
    fy = np.fft.fftfreq(size)[:, None] * size
    fx = np.fft.rfftfreq(size)[None] * size
    radius = np.hypot(fy, fx)
    radius[0, 0] = 1.0
    # Nothing below four periods per tile: repeats would show as large blotches.
    amplitude = np.where(radius < 4, 0.0, radius**-slope) * (radius < size * 0.45)
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) * amplitude
    tile = np.fft.irfft2(spectrum, s=(size, size))
    spectrum = spectrum / tile.std()
    levels = []
    for level in range(_NUM_LEVELS):
        small = size >> level
        keep = small // 2
        rows = np.r_[0:keep, size - keep : size]
        part = spectrum[rows][:, : keep + 1] * (radius[rows][:, : keep + 1] < 0.45 * small)
        levels.append((np.fft.irfft2(part, s=(small, small)) / 4**level).astype(np.float32))
    return tuple(levels)


def sample_noise(
    x: Array,
    y: Array,
    pixel: float,
    *,
    period: float,
    slope: float = 0.4,
    seed: int = 0,
    stretch: float = 1.0,
) -> Array:
    """Noise at points (x, y) whose finest grain has about the wavelength `period`; unit variance when resolved.

    Args:
        period: wavelength of the finest grain in frame heights; along y it is `period * stretch`.
        slope: fall of the amplitude spectrum, 0 white, 1 natural-image like.
    """
    texel = period / 2.5
    level = int(np.clip(np.floor(np.log2(max(pixel / texel, 1.0)) + 0.5), 0, _NUM_LEVELS - 1))
    tile = noise_tile(slope, seed % 8)[level]
    size = tile.shape[0]
    unit = texel * 2**level
    offset = (seed % 9973) * 17.31
    u = x * np.float32(1 / unit) + np.float32(offset % size)
    v = y * np.float32(1 / (unit * stretch)) + np.float32(offset * 1.7 % size)
    u0, v0 = np.floor(u), np.floor(v)
    fu, fv = u - u0, v - v0
    iu, iv = u0.astype(np.int32) & (size - 1), v0.astype(np.int32) & (size - 1)
    ju, jv = (iu + 1) & (size - 1), (iv + 1) & (size - 1)
    flat = tile.ravel()
    iv *= size
    jv *= size
    top = flat[iv + iu] * (1 - fu) + flat[iv + ju] * fu
    bottom = flat[jv + iu] * (1 - fu) + flat[jv + ju] * fu
    return top * (1 - fv) + bottom * fv


def hash01(i: Array, j: Array, seed: int) -> Array:
    """A reproducible number in [0, 1) for each integer cell (i, j): float32, same shape."""
    h = i.astype(np.int64) * 374761393 + j.astype(np.int64) * 668265263 + seed * 974634541
    h = (h ^ (h >> 13)) * 1274126177 & 0xFFFFFFFF
    return ((h ^ (h >> 16)) & 0xFFFF).astype(np.float32) / 65536


def edge(distance: Array, pixel: float) -> Array:
    """Coverage in [0, 1] of the side where `distance` (frame heights) is negative: a one-pixel linear ramp."""
    return np.clip(0.5 - distance / pixel, 0.0, 1.0)


def wave(phase: Array, period: float, pixel: float, *, sharpness: float = 1.0) -> Array:
    """A periodic line pattern in [-1, 1], `phase` in periods, fading to 0 where a pixel cannot show it.

    Args:
        sharpness: 1 is a sine; larger values steepen the flanks as far as the pixel size allows.
    """
    fade = float(np.clip(2.0 - 4.0 * pixel / period, 0.0, 1.0))
    if fade == 0.0:
        return np.zeros_like(phase)
    s = np.sin(phase * np.float32(2 * np.pi))
    if sharpness > 1.0:
        s = np.clip(s * max(1.0, min(sharpness, period / pixel / 6.3)), -1.0, 1.0)
    return s * np.float32(fade)


def checker(u: Array, v: Array, cell: float, pixel: float) -> Array:
    """A chessboard in [-1, 1] with antialiased edges; u, v and `cell` in frame heights."""
    a = np.abs((u / cell) % 2.0 - 1.0) - 0.5
    b = np.abs((v / cell) % 2.0 - 1.0) - 0.5
    gain = cell / pixel
    return np.clip(2 * a * gain, -1, 1) * np.clip(2 * b * gain, -1, 1)


def stripes(u: Array, period: float, pixel: float) -> Array:
    """Square stripes in [-1, 1] with antialiased edges; u and `period` in frame heights."""
    a = np.abs((u / period) % 1.0 * 2.0 - 1.0) - 0.5
    return np.clip(a * (period / pixel), -1, 1)


def dots(u: Array, v: Array, period: float, radius: float, pixel: float) -> Array:
    """Discs on a square grid: 1 inside, -1 outside, antialiased; all lengths in frame heights."""
    a = (u / period) % 1.0 - 0.5
    b = (v / period) % 1.0 - 0.5
    return 2 * edge(np.hypot(a, b) * period - radius, pixel) - 1


def hsv(hue: float, saturation: float, value: float) -> Array:
    """One colour: hue in degrees, saturation and value in [0, 1]; returns RGB (3,) float32 in [0, 1]."""
    k = (np.array([5.0, 3.0, 1.0]) + hue / 60.0) % 6.0
    return (value - value * saturation * np.clip(np.minimum(k, 4.0 - k), 0.0, 1.0)).astype(np.float32)
