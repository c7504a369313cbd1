"""How a tensor of one layout is made of tensors of another: rows cut out and joined, a LoRA added.

A recipe knows names only. It is carried out twice: on tensors without data, for shapes and dtypes, and on the data.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

State = Mapping[str, torch.Tensor]


class Chunk(NamedTuple):
    """Rows of a tensor: the `nth` of `num` equal chunks, counted from 0."""

    key: str
    nth: int = 0
    num: int = 1


@dataclass(frozen=True, kw_only=True)
class LoraBranch:
    """What a LoRA adds: ``scale * up @ down``.

    Attributes:
        down: Key of the matrix (r, in).
        up: Chunks of the matrix (out, r), joined.
        scale: alpha / r.
    """

    down: str
    up: tuple[Chunk, ...]
    scale: float


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A tensor made of others.

    Attributes:
        chunks: Row chunks, joined in this order.
        lora: Added in float32, if any.
        equal_to: Keys that must hold the same tensor as the first chunk's, since only one of them is kept.
    """

    chunks: tuple[Chunk, ...]
    lora: LoraBranch | None = None
    equal_to: tuple[str, ...] = ()

    @classmethod
    def copy(cls, key: str) -> "Recipe":
        """The tensor `key` as it is."""
        return cls(chunks=(Chunk(key),))

    @property
    def sources(self) -> tuple[str, ...]:
        """Keys of the joined tensors, each once."""
        return tuple(dict.fromkeys(chunk.key for chunk in self.chunks))

    def build(self, tensors: State, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Make the tensor.

        Args:
            tensors: What the recipe's keys stand for; on the meta device the result is too.
            dtype: Dtype of the result; that of the joined tensors if None. Rounding happens once, after the LoRA.

        Returns:
            The tensor; it may share memory with one of `tensors`.

        Raises:
            ValueError: If tensors that must be equal are not, or the dtype cannot hold a number.
        """
        joined = _join(self.chunks, tensors)
        dtype = dtype or joined.dtype
        if self.lora is not None:
            up, down = _join(self.lora.up, tensors), tensors[self.lora.down]
            # W + (B A) alpha / r, in float32 whatever the checkpoint's dtype.
            joined = joined.float() + (up.float() @ down.float()) * self.lora.scale
        if not joined.is_meta:
            for key in self.equal_to:
                if not joined.equal(tensors[key]):
                    raise ValueError(
                        f"{key} must equal {self.chunks[0].key}, since one matrix stands for both"
                    )
        result = joined.to(dtype)
        if not result.is_meta and dtype != joined.dtype and (result.isinf() & joined.isfinite()).any():
            largest = joined[joined.isfinite()].abs().max()
            raise ValueError(
                f"{self.chunks[0].key} has values up to {largest:.4g}, which {str(dtype).removeprefix('torch.')} "
                "cannot hold; choose another dtype"
            )
        return result


def specs_of(tensors: State) -> dict[str, torch.Tensor]:
    """Tensors of the same names, shapes and dtypes without data, on the meta device."""
    return {name: spec(tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def spec(shape: torch.Size | tuple[int, ...] | list[int], dtype: torch.dtype) -> torch.Tensor:
    """A tensor without data."""
    return torch.empty(tuple(shape), dtype=dtype, device="meta")


def build_specs(
    recipes: Mapping[str, Recipe], sources: State, dtype: torch.dtype | None = None
) -> dict[str, torch.Tensor]:
    """Shapes and dtypes of what recipes make of sources without data."""
    return specs_of({name: recipe.build(sources, dtype) for name, recipe in recipes.items()})


def empty_model(cls: type[nn.Module], config: Mapping[str, object]) -> nn.Module:
    """A model of this config without data, on the meta device."""
    with torch.device("meta"):
        return cls(**config)


def _join(chunks: tuple[Chunk, ...], tensors: State) -> torch.Tensor:
    loaded = {key: tensors[key] for key in dict.fromkeys(chunk.key for chunk in chunks)}
    parts = [_rows(loaded[chunk.key], chunk) for chunk in chunks]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _rows(tensor: torch.Tensor, chunk: Chunk) -> torch.Tensor:
    if chunk.num == 1:
        return tensor
    size = tensor.shape[0] // chunk.num
    return tensor[chunk.nth * size : (chunk.nth + 1) * size]
