"""From YAML to frozen dataclasses, strict about every key and type."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from typing import Any, TypeVar

import yaml

T = TypeVar("T")


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set one value in place.

    Args:
        data: what a YAML file holds.
        override: "key=value" or "phases.0.steps=10"; the value is YAML.

    Raises:
        ValueError: if it does not look so, or leads nowhere.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"an override must look like key=value, got {override!r}")
    *parents, last = key.split(".")
    node: Any = data
    try:
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node[part]
        if isinstance(node, list):
            node[int(last)] = yaml.safe_load(text)
        else:
            node[last] = _number(yaml.safe_load(text))
    except (KeyError, IndexError, ValueError, TypeError):
        raise ValueError(
            f"override {override!r} must name a key of the recipe; {key!r} leads nowhere"
        ) from None


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-4 as text; read it as the number that it is."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def build(cls: type[T], data: dict[str, Any], where: str = "") -> T:
    """A dataclass from a mapping.

    Args:
        cls: a dataclass, whose fields may be dataclasses, or tuples of them.
        data: its fields.
        where: what stands before their names in errors.

    Raises:
        ValueError: for an unknown key (the nearest known one is named), a missing one, or a value of the wrong type.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in data.items():
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known keys are {', '.join(fields)}"
            raise ValueError(f"unknown key {where + str(key)!r} in the recipe{hint}")
        values[key] = _convert(hints[key], value, where + key)
    missing = [
        name
        for name, f in fields.items()
        if name not in values
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"the recipe must give {where + missing[0]!r}, which is missing")
    return cls(**values)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{where} must be a list, got {value!r}")
        if arguments[-1] is Ellipsis:
            return tuple(_convert(arguments[0], v, f"{where}.{i}.") for i, v in enumerate(value))
        if len(value) != len(arguments):
            raise ValueError(f"{where} must have {len(arguments)} entries, got {value!r}")
        return tuple(_convert(a, v, where) for a, v in zip(arguments, value, strict=True))
    if dataclasses.is_dataclass(hint):
        where = where if where.endswith(".") else where + "."
        if not isinstance(value, dict):
            raise ValueError(f"{where.rstrip('.')} must be a mapping of keys to values, got {value!r}")
        return build(typing.cast(type, hint), value, where)
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be a mapping of keys to values, got {value!r}")
        value = {_key(arguments[0], k, where): v for k, v in value.items()}
        if typing.get_origin(arguments[1]) is tuple:
            return {k: _convert(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
        return {k: _number(v) for k, v in value.items()}
    if isinstance(hint, types.UnionType):
        return None if value is None else _convert(arguments[0], value, where)
    if hint is float:
        value = _number(value)
        value = float(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ValueError(f"{where} must be of type {hint.__name__}, got {value!r}")
    return value


def _key(hint: type, key: Any, where: str) -> Any:
    """A key of its type; in what a run writes of its recipe numbers are text, as in JSON."""
    if hint is int and isinstance(key, str) and key.isdecimal():
        return int(key)
    if not isinstance(key, hint):
        raise ValueError(f"{where} must have keys of type {hint.__name__}, got {key!r}")
    return key
