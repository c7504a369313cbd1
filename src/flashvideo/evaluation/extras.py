"""Packages that are there only if asked for: imported, or missed in one sentence."""

from __future__ import annotations

import importlib
from typing import Any


def import_extra(name: str, why: str, *, extra: str) -> Any:
    """Imports a package that belongs to an extra.

    Args:
        name: The package's module.
        why: What it is for, as `optical flow needs it`.
        extra: The extra that brings it.

    Returns:
        The module.

    Raises:
        ImportError: If it is not installed, or cannot be imported, with the reason.
    """
    try:
        return importlib.import_module(name)
    except (
        ImportError,
        RuntimeError,
    ) as error:  # torchvision raises the latter beside another build of torch
        is_missing = isinstance(error, ImportError) and error.name == name
        reason = "is not installed" if is_missing else f"cannot be imported ({first_line(error)})"
        raise ImportError(f"{name} {reason}; {why}: pip install 'flashvideo[{extra}]'") from None


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, its kind if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
