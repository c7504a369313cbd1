"""Strict in both directions: every key is used, dropped for a stated reason, or an error that names it."""

import re
from collections.abc import Iterable, Mapping

from flashvideo.models.recipe import State

MAX_PROBLEMS_NAMED = 20


def misfits(weights: State, expected: State, source_of: Mapping[str, str] | None = None) -> list[str]:
    """Say where weights differ from what a model needs.

    Args:
        weights: Our name -> tensor or its shape.
        expected: The same of the model.
        source_of: Our name -> key of the checkpoint, to name what its owner knows; our own names if None.

    Returns:
        One phrase per missing, unknown and mis-shaped weight.
    """

    def called(name: str) -> str:
        return (source_of or {}).get(name, name)

    missing = dict.fromkeys(called(name) for name in expected if name not in weights)
    unknown = dict.fromkeys(called(name) for name in weights if name not in expected)
    problems = [f"missing {name}" for name in missing] + [f"unknown {name}" for name in unknown]
    for name, tensor in weights.items():
        if name in expected and tensor.shape != expected[name].shape:
            what = called(name) if called(name) == name else f"{called(name)} makes {name}, which"
            problems.append(
                f"{what} has shape {tuple(tensor.shape)}, the model needs {tuple(expected[name].shape)}"
            )
    return problems


def raise_if(problems: Iterable[str], sentence: str) -> None:
    """Raise all problems as one sentence; of very many the first are named and the rest counted.

    Raises:
        ValueError: If there is a problem.
    """
    if problems := list(problems):
        named, rest = problems[:MAX_PROBLEMS_NAMED], len(problems) - MAX_PROBLEMS_NAMED
        more = [f"and {rest} more"] if rest > 0 else []
        raise ValueError(f"{sentence}: " + "; ".join(named + more))


def split_dropped(specs: State, patterns: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Keys to convert, and those to leave out with the reason of the pattern that they match."""
    kept, dropped = [], {}
    for key in specs:
        reason = next((reason for pattern, reason in patterns.items() if re.fullmatch(pattern, key)), None)
        if reason is None:
            kept.append(key)
        else:
            dropped[key] = reason
    return kept, dropped
