"""Small files of tensors: safetensors with all else that belongs to them, as JSON, in the header."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

SUFFIX = ".safetensors"
"""Suffix of these files."""


PARTIAL = ".part"
"""Suffix of a file that is being written."""


def partial_path(path: Path) -> Path:
    """A name for what is to become `path`, of its own for each writer on every machine that shares the folder.

    So none moves another's half-written file into place.
    """
    return path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}")


def remove_leftovers(path: Path) -> None:
    """Removes what killed processes left of a file under names of `partial_path`; none may be writing it now."""
    for leftover in path.parent.glob(f"{glob.escape(path.name)}.*{PARTIAL}"):
        leftover.unlink(missing_ok=True)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any]) -> None:
    """Writes a file whole or not at all; several processes may write the same one at once.

    Args:
        path: File to write, or to replace.
        tensors: Name and contiguous tensor, on the CPU.
        header: Contents that JSON can hold, by their names, which tell what kind of file it is.
    """
    partial = partial_path(path)
    try:
        save_file(
            dict(tensors), partial, metadata={name: json.dumps(value) for name, value in header.items()}
        )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def open_tensors(path: Path, *, key: str, kind: str) -> Iterator[tuple[Any, Any]]:
    """Opens what `write_tensors` wrote, to read a part of it.

    Args:
        path: The file.
        key: Name of the content in the header.
        kind: What the file is of, for sentences, such as "a preview".

    Yields:
        What `safetensors.safe_open` gives; the content, None if there is none of that name.

    Raises:
        ValueError: If the file is not there, or is not one of tensors.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist, expected the {SUFFIX} file of {kind}; check the name")
    try:
        with safe_open(path, framework="pt") as file:
            yield file, json.loads((file.metadata() or {}).get(key, "null"))
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a safetensors file of {kind} ({error}); write it again") from None


def read_tensors(path: Path, *, key: str, kind: str) -> tuple[dict[str, torch.Tensor], Any]:
    """Reads all of what `write_tensors` wrote, see `open_tensors`.

    Returns:
        The tensors on the CPU; the content, None if there is none of that name.
    """
    with open_tensors(path, key=key, kind=kind) as (file, content):
        return {name: file.get_tensor(name) for name in file.keys()}, content  # noqa: SIM118 - it is not a dict
