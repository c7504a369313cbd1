"""Captions of procedural scenes: many wordings of the same attributes, any of which may be left out."""

from __future__ import annotations

import re

import numpy as np

from flashvideo.data.shapes_world import Scene, Thing

MOTION_WORDS: dict[str, tuple[str, ...]] = {
    "moving left": ("moving left", "moving to the left", "drifting left", "sliding left", "going left"),
    "moving right": ("moving right", "moving to the right", "drifting right", "sliding right", "going right"),
    "moving up": ("moving up", "rising", "going up", "moving upwards", "floating up"),
    "moving down": ("moving down", "sinking", "going down", "moving downwards", "falling"),
    "spinning": ("spinning", "rotating", "turning"),
    "growing": ("growing", "getting bigger", "expanding"),
    "shrinking": ("shrinking", "getting smaller", "contracting"),
    "bouncing": ("bouncing", "hopping", "jumping"),
}
TEXTURE_WORDS = {
    "plain": ("plain",),
    "striped": ("striped",),
    "dotted": ("dotted",),
    "checkered": ("checkered",),
}
SHAPE_WORDS = {
    "ball": ("ball", "ball", "circle", "disc"),
    "square": ("square", "square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "ring": ("ring",),
    "heart": ("heart",),
}
BACKGROUND_WORDS: dict[str, tuple[str, ...]] = {
    "grass": ("grass", "a lawn"),
    "bricks": ("bricks", "a brick wall"),
    "checks": ("checks", "a checkerboard"),
    "waves": ("waves", "water"),
    "sky": ("the sky", "sky"),
    "sand": ("sand", "a sandy beach"),
    "wood": ("wood", "a wooden floor"),
    "night": ("the night", "the night sky", "night"),
}
_PLACES = ("over", "on", "against", "in front of")
_PAN_WORDS = ("the camera pans", "camera panning", "the camera moves")


def vocabulary() -> set[str]:
    """Every word and sign that a caption can hold, lower case."""
    phrases = [
        " ".join(w) for d in (MOTION_WORDS, SHAPE_WORDS, TEXTURE_WORDS, BACKGROUND_WORDS) for w in d.values()
    ]
    phrases += [*_PLACES, *_PAN_WORDS]
    phrases += [
        "red orange yellow green blue purple white black a an the is and to of left right object shape thing"
    ]
    phrases += ["behind above ,"]
    return set(re.findall(r"\w+|,", " ".join(phrases)))


def _article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _noun(rng: np.random.Generator, thing: Thing, *, drop: float) -> tuple[list[str], str]:
    """Adjectives and noun of a thing, attributes left out with probability `drop`."""
    adjectives = []
    if (thing.texture != "plain" and rng.random() > 2 * drop) or (
        rng.random() < 0.15 and thing.texture == "plain"
    ):
        adjectives.append(thing.texture)
    if rng.random() > drop:
        adjectives.append(thing.color)
    words = SHAPE_WORDS[thing.shape]
    noun = str(rng.choice(words)) if rng.random() > drop else str(rng.choice(("object", "shape", "thing")))
    return adjectives, noun


def caption(scene: Scene, rng: np.random.Generator, *, drop: float = 0.06) -> str:
    """Describe a scene in one of many wordings.

    Args:
        scene: what is shown.
        rng: chooses wording and omissions; the same state gives the same words.
        drop: probability that an attribute goes unmentioned.

    Returns:
        Lower-case words and commas, at most about 20.
    """
    adjectives, noun = _noun(rng, scene.things[0], drop=drop)
    motion = str(rng.choice(MOTION_WORDS[scene.motion])) if rng.random() > drop else ""
    ground = str(rng.choice(BACKGROUND_WORDS[scene.background])) if rng.random() > drop else ""
    place = f"{rng.choice(_PLACES)} {ground}" if ground else ""
    second = ""
    if scene.relation is not None:
        more, other = _noun(rng, scene.things[1], drop=drop)
        second = f"{scene.relation} {_article(' '.join([*more, other]))}"
    style = rng.random()
    if style < 0.62 or not (motion and adjectives):
        parts = [
            _article(" ".join([*adjectives, noun])),
            second,
            "is" if motion and style < 0.1 else "",
            motion,
            place,
        ]
        text = " ".join(p for p in parts if p)
    elif style < 0.76:
        parts = [_article(f"{motion} {' '.join([*adjectives, noun])}"), second, place]
        text = " ".join(p for p in parts if p)
    elif style < 0.90:
        head = place + ", " if place else ""
        text = head + " ".join(p for p in (_article(" ".join([*adjectives, noun])), second, motion) if p)
    else:
        head = place + ", " if place else ""
        text = (
            head
            + " ".join(p for p in (_article(f"{motion} {noun}"), second) if p)
            + ", "
            + " and ".join(adjectives)
        )
    if scene.pan and rng.random() > drop:
        text += f", {rng.choice(_PAN_WORDS)} {'right' if scene.pan > 0 else 'left'}"
    return text


def full_caption(scene: Scene) -> str:
    """The plain wording that names every attribute: what held-out prompts are written in."""
    thing = scene.things[0]
    texture = "" if thing.texture == "plain" else thing.texture + " "
    second = ""
    if scene.relation is not None:
        second = f" {scene.relation} {_article(f'{scene.things[1].color} {scene.things[1].shape}')}"
    ground = {"sky": "the sky", "night": "the night"}.get(scene.background, scene.background)
    return f"{_article(f'{texture}{thing.color} {thing.shape}')}{second} {scene.motion} over {ground}"
