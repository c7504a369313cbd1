"""Procedural captioned videos: a seed gives a scene, a scene renders at any resolution, crop and frame count.

Because rendering is resolution-free, (preview, full size) pairs are exact; because attributes are known, what a
generated video shows is measured against its prompt, not guessed. Coordinates are in frame heights: y in [0, 1],
x in [0, aspect]. Shapes: pixels (F, 3, h, w) in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flashvideo.data.backgrounds import BACKGROUNDS, paint
from flashvideo.data.textures import Array, checker, dots, edge, hsv, stripes

COLORS: dict[str, float | None] = {
    "red": 0.0,
    "orange": 30.0,
    "yellow": 52.0,
    "green": 130.0,
    "blue": 230.0,
    "purple": 280.0,
    "white": None,
    "black": None,
}
"""Object colours and their nominal hues in degrees; None for the two without a hue."""
SHAPES = ("ball", "square", "triangle", "star", "ring", "heart")
TEXTURES = ("plain", "striped", "dotted", "checkered")
MOTIONS = (
    "moving left",
    "moving right",
    "moving up",
    "moving down",
    "spinning",
    "growing",
    "shrinking",
    "bouncing",
)
RELATIONS = ("left of", "above", "behind")
ASPECT = 5 / 3
NUM_FRAMES = 17
FRAME_RATE = 8.0


def is_visible(shape: str, motion: str) -> bool:
    """Whether the motion shows: a round shape that spins looks the same, so no scene has it."""
    return not (motion == "spinning" and shape in ("ball", "ring"))


def is_held_out(color: str, shape: str, motion: str) -> bool:
    """Whether this combination is kept out of all training: a fixed list, about one in twelve."""
    index = list(COLORS).index(color) * 5 + SHAPES.index(shape) * 3 + MOTIONS.index(motion) * 7
    return index % 12 == 0


@dataclass(frozen=True, kw_only=True)
class Thing:
    """An object and its path.

    Attributes:
        color, texture, shape: vocabulary words.
        rgb: its colour, each in [0, 1].
        start, stop: centre (x, y) at the first and last frame.
        size: square root of its area at the first and last frame, in frame heights.
        angle: orientation at the first and last frame, radians.
        bounce: (height, count): vertical hops on top of the straight path.
    """

    color: str
    texture: str
    shape: str
    rgb: tuple[float, float, float]
    start: tuple[float, float]
    stop: tuple[float, float]
    size: tuple[float, float]
    angle: tuple[float, float] = (0.0, 0.0)
    bounce: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A complete scene; `render` and `flashvideo.data.captions.caption` read nothing else.

    Attributes:
        motion: what the first object does.
        background: a key of `BACKGROUNDS`.
        tone: offsets of the background's hue (degrees), saturation and value.
        things: the object, then optionally a second one.
        relation: where the first object is as seen from the second: a word of `RELATIONS`, or None.
        pan: camera motion in frame heights over the clip, positive to the right.
        seed: phase of the background's texture.
    """

    motion: str
    background: str
    tone: tuple[float, float, float]
    things: tuple[Thing, ...]
    relation: str | None
    pan: float
    seed: int

    @property
    def combination(self) -> tuple[str, str, str]:
        """(colour, shape, motion) of the first object: what `is_held_out` asks."""
        return self.things[0].color, self.things[0].shape, self.motion


def sample_scene(
    seed: int, *, held_out: bool = False, second_object: float = 0.08, pan: float = 0.12, spread: float = 1.0
) -> Scene:
    """Draw a scene.

    Args:
        seed: any non-negative integer; the same seed gives the same scene for ever.
        held_out: draw only combinations that training never shows, instead of only the others.
        second_object: probability of a second object.
        pan: probability of a camera pan.
        spread: how far places, sizes, paths, pans and leans, which no caption tells, go from their middles: 1 all the
            way, 0 not at all. Below 1 all that spins spins the same way.
    """
    rng = np.random.default_rng(seed)
    while True:
        color = str(rng.choice(list(COLORS)))
        shape, motion = str(rng.choice(SHAPES)), str(rng.choice(MOTIONS))
        if is_visible(shape, motion) and is_held_out(color, shape, motion) == held_out:
            break
    texture = str(rng.choice(TEXTURES, p=(0.4, 0.2, 0.2, 0.2)))
    background = str(rng.choice([b for b, s in BACKGROUNDS.items() if color not in s.excluded_colors]))
    relation = str(rng.choice(RELATIONS)) if rng.random() < second_object else None
    layout = _Layout(rng, spread)
    thing = _place(layout, color, texture, shape, motion, relation)
    things: tuple[Thing, ...] = (thing,)
    if relation is not None:
        others = [c for c in COLORS if c != color and c not in BACKGROUNDS[background].excluded_colors]
        things += (_place_second(layout, str(rng.choice(others)), relation, thing),)
    return Scene(
        motion=motion,
        background=background,
        tone=(float(rng.uniform(-6, 6)), float(rng.uniform(-0.04, 0.04)), float(rng.uniform(-0.04, 0.04))),
        things=things,
        relation=relation,
        pan=float(rng.choice((-1, 1)) * layout.uniform(0.08, 0.16)) if rng.random() < pan else 0.0,
        seed=int(rng.integers(1 << 30)),
    )


def _rgb(rng: np.random.Generator, color: str) -> tuple[float, float, float]:
    hue = COLORS[color]
    if hue is None:
        value = rng.uniform(0.94, 1.0) if color == "white" else rng.uniform(0.03, 0.07)
        return (float(value),) * 3
    rgb = hsv(hue + rng.uniform(-4, 4), rng.uniform(0.88, 1.0), rng.uniform(0.85, 1.0))
    return float(rgb[0]), float(rgb[1]), float(rgb[2])


class _Layout:
    """Draws of where things are, how large, how far they go and how they lean, narrowed around their middles."""

    def __init__(self, rng: np.random.Generator, spread: float) -> None:
        self.rng, self.spread = rng, spread

    def uniform(self, low: float, high: float) -> float:
        value, middle = float(self.rng.uniform(low, high)), (low + high) / 2
        return value if self.spread == 1 else middle + self.spread * (value - middle)

    def sign(self) -> int:
        drawn = int(self.rng.choice((-1, 1)))
        return drawn if self.spread == 1 else 1


def _place(
    layout: _Layout,
    color: str,
    texture: str,
    shape: str,
    motion: str,
    relation: str | None,
) -> Thing:
    """The first object: where it stands, and its path."""
    share = layout.uniform(0.05, 0.06) if relation in ("left of", "above") else layout.uniform(0.09, 0.15)
    if motion in ("growing", "shrinking"):
        share = max(share, 0.068)  # the smaller end still covers 4 %
    side = float(np.sqrt(share * ASPECT))
    x, y = {"left of": (0.28 * ASPECT, 0.5), "above": (0.5 * ASPECT, 0.30)}.get(
        relation or "", (0.5 * ASPECT, 0.5)
    )
    x, y = x + layout.uniform(-0.05, 0.05), y + layout.uniform(-0.03, 0.03)
    dx = ASPECT * layout.uniform(0.152, 0.18)
    dy = layout.uniform(0.202, 0.23)
    start, stop = (x, y), (x, y)
    sizes, angles, bounce = (side, side), (0.0, 0.0), (0.0, 0.0)
    if motion in ("moving left", "moving right"):
        sign = 1 if motion == "moving right" else -1
        start, stop = (x - sign * dx / 2, y), (x + sign * dx / 2, y)
    elif motion in ("moving up", "moving down"):
        sign = 1 if motion == "moving down" else -1
        start, stop = (x, y - sign * dy / 2), (x, y + sign * dy / 2)
    elif motion in ("growing", "shrinking"):
        ratio = float(np.sqrt(layout.uniform(1.9, 2.6)))
        small, large = side / np.sqrt(ratio), side * np.sqrt(ratio)
        sizes = (small, large) if motion == "growing" else (large, small)
    elif motion == "spinning":
        # Over a whole clip of 2 s: 8 frames see half of it.
        turn = float(np.deg2rad(layout.uniform(60, 85)) * layout.sign())
        angles = (layout.uniform(-0.4, 0.4),) * 2
        angles = (angles[0], angles[0] + turn)
    elif motion == "bouncing":
        bounce = (0.62 * dy, 1.0)
        start, stop = (x, y + 0.31 * dy), (x, y + 0.31 * dy)
    if motion != "spinning":
        lean = layout.uniform(-0.1, 0.1)
        angles = (lean, lean)
    return Thing(
        color=color,
        texture=texture,
        shape=shape,
        rgb=_rgb(layout.rng, color),
        start=start,
        stop=stop,
        size=(float(sizes[0]), float(sizes[1])),
        angle=angles,
        bounce=bounce,
    )


def _place_second(layout: _Layout, color: str, relation: str, first: Thing) -> Thing:
    """The second object: it stands still, and the first is left of it, above it or behind it."""
    share = layout.uniform(0.045, 0.06)
    if relation == "left of":
        place = (0.76 * ASPECT, 0.5 + layout.uniform(-0.05, 0.05))
    elif relation == "above":
        place = (0.5 * ASPECT + layout.uniform(-0.1, 0.1), 0.79)
    else:
        place = (0.5 * ASPECT + layout.uniform(-0.3, 0.3), 0.72)
    side = float(np.sqrt(share * ASPECT))
    shape = str(layout.rng.choice([s for s in SHAPES if s != first.shape]))
    return Thing(
        color=color,
        texture="plain",
        shape=shape,
        rgb=_rgb(layout.rng, color),
        start=place,
        stop=place,
        size=(side, side),
    )


_AREA = {"ball": np.pi, "ring": np.pi * (1 - 0.44**2), "square": 4.0, "triangle": 27**0.5, "heart": 4 + np.pi}
_STAR_INNER = 0.45
_SOFTNESS = 1.6  # width of an object's edge in pixels: about that of a camera's
_AREA["star"] = 5 * _STAR_INNER * np.sin(np.pi / 5)


def signed_distance(shape: str, u: Array, v: Array) -> Array:
    """Signed distance to a shape of unit area centred at the origin, negative inside; v points down."""
    if shape not in SHAPES:
        raise ValueError(f"shape must be one of {', '.join(SHAPES)}, got {shape!r}")
    scale = np.float32(np.sqrt(_AREA[shape]))
    u, v = u * scale, v * scale
    if shape == "ball":
        d = np.hypot(u, v) - 1
    elif shape == "ring":
        d = np.abs(np.hypot(u, v) - 0.72) - 0.28
    elif shape == "square":
        d = np.maximum(np.abs(u), np.abs(v)) - 1
    elif shape == "triangle":
        d = np.maximum(np.abs(u) * np.float32(3**0.5 / 2) - 0.5 * v, v) - 1
    elif shape == "star":
        r, a = np.hypot(u, v), np.arctan2(u, -v)
        sector = np.float32(2 * np.pi / 5)
        a = np.abs((a / sector + 0.5) % 1.0 - 0.5) * sector
        tip, notch = (
            np.array([1.0, 0.0]),
            _STAR_INNER * np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)]),
        )
        along = (notch - tip) / np.hypot(*(notch - tip))
        d = (r * np.cos(a) - 1) * along[1] - r * np.sin(a) * along[0]
    else:  # heart: a square on its tip between two half discs
        v = v - np.float32(0.443)
        p, q = (u + v) * np.float32(0.5**0.5), (v - u) * np.float32(0.5**0.5)
        diamond = np.maximum(np.abs(p), np.abs(q)) - 1
        d = np.minimum(diamond, np.minimum(np.hypot(p, q + 1), np.hypot(p + 1, q)) - 1)
    return d / scale


def _texture(name: str, u: Array, v: Array, pixel: float) -> Array | None:
    """Brightness pattern in [-1, 1] on the object's own surface (u, v in units of its size)."""
    if name == "striped":
        return stripes(u + 0.5 * v, 0.30, pixel)
    if name == "checkered":
        return checker(u + 0.1, v + 0.1, 0.21, pixel)
    if name == "dotted":
        return -dots(u + 0.14, v + 0.14, 0.29, 0.085, pixel)
    return None


def _draw(frame: Array, thing: Thing, time: float, x: Array, y: Array, pixel: float) -> None:
    """Draw a thing at `time` in [0, 1] over `frame` (3, h, w), in place, inside its own bounding box."""
    cx = thing.start[0] + (thing.stop[0] - thing.start[0]) * time
    cy = thing.start[1] + (thing.stop[1] - thing.start[1]) * time
    cy -= thing.bounce[0] * abs(np.sin(np.pi * thing.bounce[1] * time))
    size = thing.size[0] * (thing.size[1] / thing.size[0]) ** time
    angle = thing.angle[0] + (thing.angle[1] - thing.angle[0]) * time
    reach = size + pixel
    rows = slice(*np.searchsorted(y, (cy - reach, cy + reach)))
    columns = slice(*np.searchsorted(x, (cx - reach, cx + reach)))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return
    dx, dy = np.meshgrid(x[columns] - np.float32(cx), y[rows] - np.float32(cy))
    cos, sin = np.float32(np.cos(angle) / size), np.float32(np.sin(angle) / size)
    u, v = dx * cos + dy * sin, dy * cos - dx * sin
    grain = _SOFTNESS * pixel / size
    cover = edge(signed_distance(thing.shape, u, v), grain).astype(np.float32)
    pattern = _texture(thing.texture, u, v, grain)
    rgb = np.asarray(thing.rgb, dtype=np.float32)[:, None, None]
    if pattern is not None:
        mix = (0.5 + 0.5 * pattern).astype(np.float32)
        if thing.color == "black":
            rgb = rgb + np.float32(0.2) * mix
        else:  # a multiple of the colour: its hue and saturation stay
            dark = np.float32(0.76 if thing.color == "white" else 0.55)
            rgb = rgb * (dark + (1 - dark) * mix)
    box = frame[:, rows, columns]
    box += cover * (rgb - box)


def render(
    scene: Scene,
    *,
    height: int = 96,
    width: int = 160,
    num_frames: int = NUM_FRAMES,
    frames: slice | None = None,
    times: Sequence[float] | None = None,
    crop: tuple[int, int, int, int] | None = None,
) -> Array:
    """Render a scene.

    Args:
        scene: what to show.
        height, width: size of the whole frame in pixels.
        num_frames: frames in which the whole two-second course is run through.
        frames: which of them to render; all by default.
        times: in place of both, the moments of the course that frames show: 0 is its start, 1 its end, from which it
            runs back again, and so on.
        crop: (top, left, height, width) in pixels: render only this part.

    Returns:
        (F, 3, h, w) float32 in [-1, 1].
    """
    top, left, h, w = crop or (0, 0, height, width)
    pixel = 1.0 / height
    y = ((np.arange(top, top + h) + 0.5) * pixel).astype(np.float32)
    # A frame of another aspect shows the middle of the world.
    x = ((np.arange(left, left + w) + 0.5) * pixel + (ASPECT - width / height) / 2).astype(np.float32)
    if times is None:
        times = [index / max(num_frames - 1, 1) for index in range(num_frames)[frames or slice(None)]]
    video = np.empty((len(times), 3, h, w), dtype=np.float32)
    xx, yy = np.meshgrid(x, y)
    for i, moment in enumerate(times):
        time = 1 - abs(moment % 2 - 1)  # there and back
        if i == 0 or scene.pan:
            ground = paint(
                scene.background,
                xx + np.float32(scene.pan * time),
                yy,
                pixel,
                seed=scene.seed,
                tone=scene.tone,
            )
        video[i] = ground
        order = scene.things if scene.relation == "behind" else scene.things[::-1]
        for thing in order:
            _draw(video[i], thing, time, x, y, pixel)
    video *= 2
    video -= 1
    return video


def object_mask(scene: Scene, *, height: int, width: int, num_frames: int = NUM_FRAMES) -> Array:
    """Coverage of the first object, (F, height, width) float32 in [0, 1]: truth for readers and edge metrics."""
    pixel = 1.0 / height
    y = ((np.arange(height) + 0.5) * pixel).astype(np.float32)
    x = ((np.arange(width) + 0.5) * pixel + (ASPECT - width / height) / 2).astype(np.float32)
    thing = scene.things[0]
    white = Thing(**{**vars(thing), "rgb": (1.0, 1.0, 1.0), "texture": "plain", "color": "white"})
    masks = np.zeros((num_frames, 3, height, width), dtype=np.float32)
    for index in range(num_frames):
        _draw(masks[index], white, index / max(num_frames - 1, 1), x, y, pixel)
    return masks[:, 0]
