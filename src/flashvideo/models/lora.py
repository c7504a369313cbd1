"""Stage I's LoRA kept apart: an adapter folder that peft and diffusers load, beside the base weights.

Matrices are stored as they are in the checkpoint, unscaled, with alpha = 1 and their rank, so that nothing is rounded.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from flashvideo.models.checkpoint import Checkpoint, read_json
from flashvideo.models.recipe import State, spec
from flashvideo.models.strictness import misfits, raise_if
from flashvideo.models.transformer import FlashVideoTransformer3DModel

LORA_FOLDER = "stage1_lora"
"""Name of the adapter's folder inside a model's folder."""

ADAPTER_STEM = "adapter_model"
ADAPTER_FILE = f"{ADAPTER_STEM}.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_NAME = "stage1"
PEFT_PREFIX = "base_model.model."
LORA_SUFFIXES = (".lora_A.weight", ".lora_B.weight")

# Where diffusers looks for an adapter's config, in the header of its file.
_HEADER_KEY = "lora_adapter_metadata"
STAGE_KEY = "flashvideo_stage"
"""Where the header of an adapter that we trained tells its stage, "stage1" or "stage2"."""


def adapter_settings(specs: State, alpha: float) -> dict[str, Any] | None:
    """Rank, alpha and modules of an adapter.

    Args:
        specs: The adapter's tensors under PEFT's names, without its prefix.
        alpha: The LoRA's alpha.

    Returns:
        Keyword arguments for ``peft.LoraConfig``; None without tensors.

    Raises:
        ValueError: If the modules' ranks differ.
    """
    down = LORA_SUFFIXES[0]
    ranks = {name: tensor.shape[0] for name, tensor in specs.items() if name.endswith(down)}
    if not ranks:
        return None
    if len(set(ranks.values())) > 1:
        raise ValueError(
            f"the LoRA has ranks {sorted(set(ranks.values()))}, a kept one must have a single rank; merge it"
        )
    modules = sorted(name.removesuffix(down) for name in ranks)
    return {"r": next(iter(ranks.values())), "lora_alpha": alpha, "target_modules": modules}


def adapter_config(settings: Mapping[str, Any]) -> str:
    """The text of an ``adapter_config.json``."""
    fixed = {"peft_type": "LORA", "bias": "none", "lora_dropout": 0.0, "inference_mode": True}
    return json.dumps({**fixed, **settings}, indent=2, sort_keys=True) + "\n"


def adapter_header(settings: Mapping[str, Any]) -> dict[str, str]:
    """The same for the file's header, where diffusers finds alpha; its names have the tensors' prefix."""
    return {_HEADER_KEY: json.dumps({PEFT_PREFIX + name: value for name, value in settings.items()})}


def read_adapter_alpha(folder: Path) -> float:
    """Alpha of a kept LoRA.

    Raises:
        ValueError: If the folder's config cannot be read.
    """
    try:
        return float(json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))["lora_alpha"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} holds no readable {ADAPTER_CONFIG} ({error}); convert again") from None


def adapter_stage(file: Path) -> str:
    """The stage that an adapter's header names; empty where there is none to read or it names none."""
    try:
        with safe_open(file, "pt") as opened:
            return str((opened.metadata() or {}).get(STAGE_KEY, ""))
    except (OSError, SafetensorError):
        return ""


def adapter_folder(model: Path, name: object) -> Path:
    """The folder of a kept LoRA.

    Args:
        model: The model's folder.
        name: What its index says: the name of a folder in it.

    Raises:
        ValueError: If that is anything else, which might lead out of the model's folder.
    """
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\\" in name:
        raise ValueError(f"stage1_lora of {model} must be the name of a folder in it, got {name!r}")
    return model / name


def _check_adapter(transformer: FlashVideoTransformer3DModel, folder: Path) -> None:
    """Check that a kept LoRA has the two matrices of each of its modules, in the transformer's shapes."""
    config = read_json(folder / ADAPTER_CONFIG)
    rank, modules = config.get("r"), config.get("target_modules")
    if not isinstance(rank, int) or not isinstance(modules, list):
        raise ValueError(
            f"{folder / ADAPTER_CONFIG} must hold r and a list of target_modules, got {rank!r} and {modules!r:.80}; "
            "convert again"
        )
    own = dict(transformer.named_modules())
    problems = [f"unknown module {name}" for name in modules if name not in own]
    expected = dict(_adapter_specs({name: own[name].weight for name in modules if name in own}, rank))
    problems += misfits(Checkpoint(folder / ADAPTER_FILE).specs, expected)
    raise_if(problems, f"the LoRA in {folder} does not fit the model's Stage I, convert again")


def _adapter_specs(weights: Mapping[str, Any], rank: int) -> Iterator[tuple[str, torch.Tensor]]:
    for name, weight in weights.items():
        (rows, columns), down, up = weight.shape, *LORA_SUFFIXES
        yield PEFT_PREFIX + name + down, spec((rank, columns), weight.dtype)
        yield PEFT_PREFIX + name + up, spec((rows, rank), weight.dtype)


def load_adapter(transformer: FlashVideoTransformer3DModel, folder: Path) -> None:
    """Put a kept LoRA on a transformer.

    Args:
        transformer: A transformer with the base weights.
        folder: The adapter's folder.

    Raises:
        ValueError: If the folder is not there, or its matrices are not those that its config names.
        ImportError: If peft is not installed.
    """
    if not (folder / ADAPTER_FILE).is_file():
        raise ValueError(
            f"the model's Stage I needs its LoRA, but {folder / ADAPTER_FILE} is missing; convert again"
        )
    _check_adapter(transformer, folder)
    try:
        import peft  # noqa: F401 - diffusers' own message does not name the extra
    except ImportError as error:
        raise ImportError(
            "this model's Stage I has its LoRA apart, which needs peft; install 'flashvideo[train]', "
            "or convert with the LoRA merged"
        ) from error
    transformer.load_lora_adapter(
        folder, weight_name=ADAPTER_FILE, prefix=PEFT_PREFIX.rstrip("."), adapter_name=ADAPTER_NAME
    )


def refuse_kept_lora(folder: Path) -> None:
    """Check that a model's Stage I weights are whole, for those who load them without a pipeline.

    Raises:
        ValueError: If the model keeps a LoRA apart.
    """
    if (folder / LORA_FOLDER).is_dir():
        raise ValueError(
            f"{folder} keeps Stage I's LoRA apart, and its weights alone are another model; "
            "convert with the LoRA merged"
        )
