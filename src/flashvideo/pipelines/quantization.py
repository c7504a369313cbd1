"""Weights in 8 bits: half of the memory for the transformers, at the price of small errors.

Chosen by the user and never by a memory plan, since results change by more than rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import nn

from flashvideo.models.transformer import FlashVideoTransformer3DModel

WEIGHTS: Mapping[str, str] = MappingProxyType(
    {
        "full": "as they are loaded",
        "fp8": "linear layers stored in 8-bit floats and computed in the model's dtype, by diffusers",
        "int8": "linear layers in 8-bit integers with a scale per row, by torchao",
    }
)
"""How the transformers' weights can be stored."""


def quantize(transformer: FlashVideoTransformer3DModel, weights: str) -> None:
    """Stores the weights of a transformer in another way; there is no way back but loading it again.

    Args:
        transformer: The transformer, in its dtype.
        weights: A key of `WEIGHTS`.

    Raises:
        ValueError: If it is none.
        ImportError: If torchao is needed and not installed.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}, got {weights!r}")
    if weights != "full" and getattr(transformer, "peft_config", None):
        raise ValueError(
            f"Stage I carries a LoRA apart, which weights in {weights} do not bear; "
            "convert with --lora merge, or keep full weights"
        )
    if weights == "fp8":
        transformer.enable_layerwise_casting(
            storage_dtype=torch.float8_e4m3fn, compute_dtype=transformer.dtype
        )
    elif weights == "int8":
        try:
            from torchao.quantization import Int8WeightOnlyConfig, quantize_
        except ImportError:
            raise ImportError(
                "weights in int8 need torchao, which is not installed; pip install 'flashvideo[quantize]', or use fp8"
            ) from None
        quantize_(transformer, Int8WeightOnlyConfig())


def stored_bytes(module: nn.Module, *, dtype: torch.dtype | None = None) -> int:
    """Returns the bytes of a module's parameters and buffers, as they are stored.

    Args:
        module: Any module.
        dtype: Counts floats of more than one byte as if they were of this type.
    """
    return sum(_bytes_of(tensor, dtype) for tensor in (*module.parameters(), *module.buffers()))


def _bytes_of(tensor: torch.Tensor, dtype: torch.dtype | None) -> int:
    if hasattr(tensor, "__tensor_flatten__"):  # torchao's, which consist of others
        inner = tensor.__tensor_flatten__()[0]
        return sum(_bytes_of(getattr(tensor, name), None) for name in inner)
    is_wide = tensor.is_floating_point() and tensor.itemsize > 1
    return tensor.numel() * (dtype.itemsize if dtype is not None and is_wide else tensor.itemsize)
