"""Descriptions beside what was computed once: all that decides it, so that nothing stale is taken for new."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flashvideo.pipelines.tensor_file import partial_path

DECODES_ONLY = ("decoder.", "post_quant_conv.")
"""Beginnings of the names of a VAE's weights that have no part in its latents."""


def weights_fingerprint(
    module: nn.Module, *, without: tuple[str, ...] = (), dtype: torch.dtype = torch.bfloat16
) -> str:
    """A short hash of a module's weights.

    Args:
        module: The module.
        without: Beginnings of names that do not count.
        dtype: What weights are rounded to: by default they may be in 32 bits or in bfloat16, with the same hash.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if not name.startswith(without):
            digest.update(name.encode())
            plain = tensor.detach().cpu().to(dtype).contiguous()
            digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def read_description(path: Path, command: str) -> dict[str, Any] | None:
    """What `write_description` wrote; None if it is not there.

    Args:
        path: The file.
        command: What writes it, for the error.

    Raises:
        ValueError: If it cannot be read.
    """
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must be what {command} wrote, but cannot be read; delete the folder")
    return values


def write_description(path: Path, about: Mapping[str, Any]) -> None:
    """Writes a description whole or not at all; several processes may write the same one at once."""
    partial = partial_path(path)
    try:
        partial.write_text(json.dumps(dict(about), indent=1), encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
