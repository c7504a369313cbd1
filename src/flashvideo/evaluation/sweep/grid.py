"""What a sweep varies: settings of a run, and the grid of their values."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

Value = str | int | float


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One setting that may be varied."""

    name: str
    """Field of `Setting`."""

    label: str
    """For tables and plots."""


AXES: tuple[Axis, ...] = (
    Axis(name="size", label="size"),
    Axis(name="steps", label="Stage I steps"),
    Axis(name="guidance", label="Stage I guidance"),
    Axis(name="detail_steps", label="Stage II steps"),
    Axis(name="noise_step", label="noise step"),
    Axis(name="shift", label="time shift"),
    Axis(name="detail_guidance", label="Stage II guidance"),
)
"""In the order in which settings are named."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a run is made, seed and prompt aside; None for what does not apply to what is swept over."""

    size: str
    """`WIDTHxHEIGHT`, or for videos of one's own any name of a size, or `x4` for so many times their sides."""

    steps: int | None = None
    """Steps of Stage I."""

    guidance: float | None = None
    """Guidance scale of Stage I."""

    detail_steps: int | None = None
    """Steps of Stage II."""

    noise_step: int | None = None
    """Step of Stage II's latent degradation."""

    shift: float | None = None
    """Time shift of Stage II's steps."""

    detail_guidance: float | None = None
    """Guidance scale of Stage II."""

    def as_dict(self) -> dict[str, Value]:
        """Returns what applies, by the names of the axes."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Reads what `as_dict` wrote.

        Raises:
            ValueError: If a name is not an axis'.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"settings are {', '.join(sorted(known))}, got {', '.join(unknown)}")
        return cls(**values)

    def text(self, axes: Iterable[Axis] = AXES) -> str:
        """Returns the settings of some axes for people, such as `Stage II steps 4, time shift 2.5`."""
        return ", ".join(f"{axis.label} {self.value_text(axis)}" for axis in axes if self.has(axis))

    def value(self, axis: Axis) -> Value | None:
        """Returns the value of an axis; None if it does not apply."""
        value: Value | None = getattr(self, axis.name)
        return value

    def value_text(self, axis: Axis) -> str:
        """Returns the value of an axis for people."""
        return value_text(self.value(axis))

    def has(self, axis: Axis) -> bool:
        """Whether an axis applies."""
        return self.value(axis) is not None


def value_text(value: Value | None) -> str:
    """Returns a value for people; a dash for none.

    >>> value_text(2.5), value_text(4), value_text("640x384"), value_text(None)
    ('2.5', '4', '640x384', '-')
    """
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:g}"


def make_grid(values: Mapping[str, Sequence[Value]], *, one_at_a_time: bool = False) -> tuple[Setting, ...]:
    """Makes the settings of a sweep.

    Args:
        values: The values of each axis that applies, by its name.
        one_at_a_time: Whether only one axis at a time leaves the first of its values; otherwise all go with all.

    Returns:
        The settings, each once, in the order of `AXES` with the last axis fastest.

    Raises:
        ValueError: If an axis has no values, or one of them twice.

    >>> [one.detail_steps for one in make_grid({"size": ["640x384"], "detail_steps": [1, 4]})]
    [1, 4]
    """
    names = [axis.name for axis in AXES if axis.name in values]
    for name in names:
        given = values[name]
        if not given:
            raise ValueError(f"{name} needs at least one value, got none")
        if len(set(given)) < len(given):
            texts = ",".join(map(value_text, given))
            raise ValueError(f"{name} must have each value once, got {texts}; drop the repeated one")
    if one_at_a_time:
        first = {name: values[name][0] for name in names}
        rows = [first, *({**first, name: value} for name in names for value in values[name][1:])]
    else:
        rows = [dict(zip(names, row, strict=True)) for row in itertools.product(*(values[n] for n in names))]
    return tuple(Setting.from_dict(row) for row in rows)


def varying_axes(settings: Iterable[Setting]) -> list[Axis]:
    """Returns the axes of which settings have more than one value."""
    settings = list(settings)
    return [axis for axis in AXES if len({setting.value(axis) for setting in settings}) > 1]
