"""Low-rank adapters beside frozen weights (paper section 3.1; arXiv 2106.09685).

    W x + (alpha / r) B A x,    A (r, in) random, B (out, r) zero: at the start the model is what it was

By peft, on the kinds of linear layers that a recipe names, and saved as diffusers saves a CogVideoX LoRA: its loader,
and `FlashVideoPipeline.load_lora_weights`, find rank, alpha and modules in the file's header.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from flashvideo.models.lora import LORA_SUFFIXES, STAGE_KEY, adapter_settings
from flashvideo.models.transformer import FlashVideoTransformer3DModel
from flashvideo.training.config import LoRA

LORA_FILE = "pytorch_lora_weights.safetensors"
"""diffusers' name for such a file."""

ADAPTER = "default"
PREFIX = "transformer."
# Where diffusers looks for an adapter's settings, in the header of its file.
_HEADER_KEY = "lora_adapter_metadata"

_LAYERS = {
    "attention": r"transformer_blocks\.\d+\.attn1\.(to_q|to_k|to_v|to_out\.0)",
    "feed_forward": r"transformer_blocks\.\d+\.ff\.net\.(0\.proj|2)",
    # The released LoRA has none on the output layer's norm.
    "adaptive_norm": r"transformer_blocks\.\d+\.norm[12]\.linear",
}


def adapted_layers(transformer: nn.Module, kinds: Sequence[str]) -> list[str]:
    """Names of the linear layers of these kinds: "attention", "feed_forward", "adaptive_norm"."""
    pattern = re.compile("|".join(_LAYERS[kind] for kind in kinds))
    return [
        name
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and pattern.fullmatch(name)
    ]


def add_lora(transformer: FlashVideoTransformer3DModel, lora: LoRA) -> None:
    """Freezes a transformer and puts a new adapter on it, in place; what it predicts stays the same at first.

    The adapter is in float32, whatever the weights are in. Its random half comes from torch's global generator, as
    all initial weights do.

    Args:
        transformer: Without an adapter.
        lora: Rank, alpha, dropout and kinds of layers.

    Raises:
        ImportError: If peft is not installed.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError("lora needs peft, which is not installed; install 'flashvideo[train]'") from error
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # any number, as in the formula
        lora_dropout=lora.dropout,
        target_modules=adapted_layers(transformer, lora.layers),
    )
    transformer.add_adapter(config, ADAPTER)  # which freezes all else
    for parameter in transformer.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def save_lora(transformer: FlashVideoTransformer3DModel, folder: Path) -> Path:
    """Writes a transformer's adapter, under a temporary name first.

    Args:
        transformer: After `add_lora`.
        folder: Gets `LORA_FILE`.

    Returns:
        The file.
    """
    from peft import get_peft_model_state_dict

    weights = get_peft_model_state_dict(transformer, adapter_name=ADAPTER)
    alpha = transformer.peft_config[ADAPTER].lora_alpha
    settings = adapter_settings(weights, alpha) or {}
    header = {_HEADER_KEY: json.dumps({PREFIX + name: value for name, value in settings.items()})}
    header[STAGE_KEY] = _stage(transformer)
    tensors = {PREFIX + name: tensor.detach().float().cpu().contiguous() for name, tensor in weights.items()}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LORA_FILE
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(tensors, temporary, metadata={"format": "pt", **header})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


@torch.no_grad()
def merge_lora(transformer: FlashVideoTransformer3DModel, file: Path) -> None:
    """Adds a saved adapter to a transformer's weights, in place: W + (alpha / r) B A, rounded once.

    For an adapter of Stage II, which pipelines do not load, and for whatever has to start from adapted weights.

    Args:
        transformer: The one that the adapter was trained on.
        file: What `save_lora` wrote.

    Raises:
        ValueError: If the file is no such adapter, of another stage, or does not fit.
    """
    tensors, settings, stage = _read_lora(file)
    if stage not in ("", _stage(transformer)):
        raise ValueError(
            f"{file} must be an adapter of {_stage(transformer)}, got one of {stage}; give it to that stage"
        )
    scale = settings[PREFIX + "lora_alpha"] / settings[PREFIX + "r"]
    linears = dict(transformer.named_modules())
    for name in settings[PREFIX + "target_modules"]:
        down, up = (tensors.get(f"{PREFIX}{name}{suffix}") for suffix in LORA_SUFFIXES)
        module = linears.get(name)
        shapes = None if down is None or up is None else (up.shape[0], down.shape[1])
        if down is None or up is None or not isinstance(module, nn.Linear) or module.weight.shape != shapes:
            raise ValueError(
                f"{file} does not fit the transformer at {name}; was it trained on another model?"
            )
        weight = module.weight
        product = up.to(weight.device) @ down.to(weight.device)
        weight.copy_(weight.float() + scale * product)


def _stage(transformer: FlashVideoTransformer3DModel) -> str:
    """Stage II's transformer alone is told the noise step."""
    return "stage2" if transformer.config.noise_step_embed else "stage1"


def _read_lora(file: Path) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Tensors, settings and stage, if that is known, of what `save_lora` wrote."""
    try:
        with safe_open(file, "pt") as opened:
            header = opened.metadata() or {}
            settings = json.loads(header[_HEADER_KEY])
            tensors = {name: opened.get_tensor(name).float() for name in opened.keys()}  # noqa: SIM118
            return tensors, settings, header.get(STAGE_KEY, "")
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"{file} must be an adapter that training wrote, but cannot be read ({error})"
        ) from None
