"""Whether a video shows what its prompt says, in the words of the procedural world.

VBench has a detector or a captioner for each of its dimensions; here readers take their place, for videos whose prompts
have the words of `flashvideo.data.captions`. Each kind of word is reported under the dimension that it corresponds to.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor

from flashvideo.data.captions import (
    BACKGROUND_WORDS,
    MOTION_WORDS,
    SHAPE_WORDS,
    TEXTURE_WORDS,
    vocabulary,
)
from flashvideo.data.shapes_world import COLORS, RELATIONS
from flashvideo.evaluation.readers import (
    LEAST_FRAMES,
    ThingReading,
    outline_margin,
    read_clip,
    read_pan,
    read_things,
)

Agreement = Mapping[str, bool]
"""Whether the video agrees with its prompt, by the name of each dimension that the prompt speaks of."""

AGREEMENTS: Mapping[str, str] = MappingProxyType(
    {
        "object_class": "object class: shape",
        "color": "color",
        "scene": "scene: background",
        "motion": "human action: motion",
        "camera": "temporal style: camera",
        "multiple_objects": "multiple objects: both shapes",
        "spatial_relationship": "spatial relationship",
        "all_attributes": "all of these",
    }
)
"""VBench's dimension and what stands for it here, by name; the last one is all of them at once."""


@dataclass(frozen=True, kw_only=True)
class ExpectedThing:
    """What a prompt says of an object; None where it says nothing."""

    color: str | None
    shape: str | None


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a prompt says, in words of the procedural world; None where it says nothing."""

    things: tuple[ExpectedThing, ...]
    """The object, and the second one if there is one."""

    motion: str | None
    """What the first object does."""

    background: str | None

    relation: str | None
    """Where the first object is, as seen from the second."""

    camera: str | None
    """Where the camera pans to: "left" or "right"."""


def expected_words(prompt: str) -> Expected | None:
    """Finds what a prompt says.

    Args:
        prompt: Any text.

    Returns:
        The words; None for a prompt that has none of them, or other words than the procedural world's: readers know
        nothing of real things.

    Example:
        >>> expected_words("a spinning box on a lawn, blue").things[0].color
        'blue'
    """
    if not set(re.findall(r"\w+", prompt.lower())) <= vocabulary():
        return None
    parts = " ".join(prompt.lower().split()).split(",")
    text = ",".join(part for part in parts if "camera" not in part)
    pan = ",".join(part for part in parts if "camera" in part)
    relation = _first(text, {name: (name,) for name in RELATIONS})
    ends: Sequence[str] = (text,)
    if relation is not None:
        before, _, after = text.partition(relation)
        # Adjectives may stand at the end and then belong to the first object.
        after, comma, tail = after.rpartition(",")
        if not comma or not set(re.findall(r"\w+", tail)) <= {*COLORS, *TEXTURE_WORDS, "and"}:
            after, tail = after + comma + tail, ""
        ends = f"{before} {tail}", after
    things = tuple(
        ExpectedThing(color=_first(end, {name: (name,) for name in COLORS}), shape=_first(end, SHAPE_WORDS))
        for end in ends
    )
    expected = Expected(
        things=things,
        motion=_first(text, MOTION_WORDS),
        background=_first(text, BACKGROUND_WORDS),
        relation=relation,
        camera=_first(pan, {side: (side,) for side in ("left", "right")}),
    )
    says = (
        expected.motion,
        expected.background,
        relation,
        expected.camera,
        *(t.color or t.shape for t in things),
    )
    return expected if any(says) else None


def agreement_with_prompt(clip: Tensor, prompt: str) -> Agreement:
    """Compares what a clip shows with what its prompt says.

    Args:
        clip: (F, 3, H, W) in [-1, 1].
        prompt: The prompt.

    Returns:
        Names of `AGREEMENTS` that the prompt speaks of; empty if it has no word that the readers know.
    """
    expected = expected_words(prompt)
    if expected is None:
        return {}
    found: dict[str, bool] = {}
    reading = read_clip(clip)
    if expected.background is not None:
        found["scene"] = reading.background == expected.background
    if expected.camera is not None and len(clip) >= LEAST_FRAMES:
        found["camera"] = read_pan(clip) == expected.camera
    # How the first of two objects moves is not read: it may be hidden in part.
    if expected.relation is not None:
        found |= _agreement_of_two(read_things(clip), expected)
        return found | {"all_attributes": all(found.values())}
    first = expected.things[0]
    if first.shape is not None:
        found["object_class"] = reading.shape == first.shape
    if first.color is not None:
        found["color"] = reading.color == first.color
    if expected.motion is not None and len(clip) >= LEAST_FRAMES:
        found["motion"] = reading.motion == expected.motion
    return found | ({"all_attributes": all(found.values())} if found else {})


def outline_margin_to_prompt(clip: Tensor, prompt: str) -> float | None:
    """How much better the outline of the prompt's shape fits the object than any other does.

    Args:
        clip: (F, 3, H, W) in [-1, 1].
        prompt: The prompt.

    Returns:
        As `outline_margin`; None for a prompt that has no shape, or two objects.
    """
    expected = expected_words(prompt)
    if expected is None or expected.relation is not None or expected.things[0].shape is None:
        return None
    return outline_margin(clip, expected.things[0].shape)


def _agreement_of_two(things: Sequence[ThingReading], expected: Expected) -> dict[str, bool]:
    found: dict[str, bool] = {}
    shapes = [thing.shape for thing in expected.things]
    # Of an object behind another one part is hidden, and no outline can be read.
    if None not in shapes and expected.relation != "behind":
        found["multiple_objects"] = Counter(shapes) == Counter(thing.shape for thing in things)
    first = _find(things, expected.things[0])
    second = _find([thing for thing in things if thing is not first], expected.things[1])
    right = first is not None and second is not None and first.relation_to(second) == expected.relation
    return found | {"spatial_relationship": right}


def _find(things: Sequence[ThingReading], expected: ExpectedThing) -> ThingReading | None:
    """The object of the expected colour, or where the prompt names none, of the expected shape."""
    for thing in things:
        if expected.color is not None:
            if thing.color == expected.color:
                return thing
        elif expected.shape is None or thing.shape == expected.shape:
            return thing
    return None


def _first(text: str, words: Mapping[str, Sequence[str]]) -> str | None:
    """The name whose wording comes first in a text; of several at one place the longest."""
    places = [
        (match.start(), -len(wording), name)
        for name, wordings in words.items()
        for wording in wordings
        if (match := re.search(rf"\b{re.escape(wording)}\b", text)) is not None
    ]
    return min(places)[2] if places else None
