"""Small files of tensors: safetensors with all else that belongs to them, as JSON, in the header."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

SUFFIX = ".safetensors"
"""Suffix of these files."""


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], content: Mapping[str, Any], *, key: str
) -> None:
    """Writes a file whole or not at all; several processes may write the same one at once.

    Args:
        path: File to write, or to replace.
        tensors: Name and contiguous tensor, on the CPU.
        content: What JSON can hold.
        key: Name of the content in the header, which tells what kind of file it is.
    """
    # A name of its own for each writer, so that none moves another's half-written file into place.
    partial = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        save_file(dict(tensors), partial, metadata={key: json.dumps(content)})
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_tensors(path: Path, *, key: str, kind: str) -> tuple[dict[str, torch.Tensor], Any]:
    """Reads what `write_tensors` wrote.

    Args:
        path: The file.
        key: Name of the content in the header.
        kind: What the file is of, for sentences, such as "a preview".

    Returns:
        The tensors on the CPU; the content, None if there is none of that name.

    Raises:
        ValueError: If the file is not there, or is not one of tensors.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist, expected the {SUFFIX} file of {kind}; check the name")
    try:
        with safe_open(path, framework="pt") as file:
            content = json.loads((file.metadata() or {}).get(key, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is not a dict
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a safetensors file of {kind} ({error}); write it again") from None
    return tensors, content
