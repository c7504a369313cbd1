"""Rotary position embedding over time, height and width (paper section 3.2, 3D RoPE of Stage II).

Each head's channels are split in three groups that rotate by the token's time, row and column index. Positions are
plain integers, never rescaled, which is what lets the model run above its training resolution (paper table 5).

Shapes: B batch, S = f * h * w video tokens (time slowest), H heads, D channels per head.
"""

from collections.abc import Callable

import torch
from diffusers.models.embeddings import get_3d_sincos_pos_embed
from einops import rearrange, repeat
from torch import nn

ROPE_THETA = 10000.0
NEIGHBOUR_ENERGY = ((0.0, 0.14, 0.06), (0.2, 0.12, 0.06, 0.02), (0.2, 0.12, 0.06, 0.02))
"""Shares of the first channel pairs of time, rows and columns in `neighbour_query_key`: fast pairs tell neighbouring
rows and columns apart, slower ones let a few frames around count alike."""


def axis_dims(head_dim: int) -> tuple[int, int, int]:
    """Split a head's channels between the three axes.

    A quarter goes to time and three eighths to each spatial axis, as in CogVideoX: 64 -> (16, 24, 24).

    Args:
        head_dim: Channels per attention head, a multiple of 16 (so that every part holds whole pairs).

    Returns:
        Channels for time, height and width; they sum to ``head_dim``.

    Raises:
        ValueError: If ``head_dim`` is not a positive multiple of 16.
    """
    if head_dim <= 0 or head_dim % 16:
        nearest = max(16, round(head_dim / 16) * 16)
        raise ValueError(f"attention_head_dim must be a multiple of 16, got {head_dim}; try {nearest}")
    return head_dim // 4, head_dim * 3 // 8, head_dim * 3 // 8


def rope_tables(
    num_frames: int,
    height: int,
    width: int,
    head_dim: int,
    *,
    theta: float = ROPE_THETA,
    device: torch.device | str | None = None,
    frame_positions: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of every token's rotation angles.

    Channel pair k of an axis with d channels turns by ``position * theta ** (-2k / d)``.

    Args:
        num_frames: Latent frames f.
        height: Token rows h (latent height / patch size).
        width: Token columns w (latent width / patch size).
        head_dim: Channels per head D, see `axis_dims`.
        theta: Base of the geometric frequency series.
        device: Where to build the tables.
        frame_positions: The frames' positions in time (f,); 0 to f - 1 by default.

    Returns:
        ``(cos, sin)``, each float32 of shape (f * h * w, D), each value repeated for both channels of its pair.
    """
    axes: list[torch.Tensor] = []
    for length, dim in zip((num_frames, height, width), axis_dims(head_dim), strict=True):
        exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim
        positions = torch.arange(length, dtype=torch.float32, device=device)
        if frame_positions is not None and not axes:
            positions = frame_positions.to(positions)
        axes.append(torch.outer(positions, 1.0 / theta**exponents))  # (length, dim / 2)
    time, rows, columns = axes

    def combine(function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        parts = (
            repeat(function(time), "f d -> (f h w) (d pair)", h=height, w=width, pair=2),
            repeat(function(rows), "h d -> (f h w) (d pair)", f=num_frames, w=width, pair=2),
            repeat(function(columns), "w d -> (f h w) (d pair)", f=num_frames, h=height, pair=2),
        )
        return torch.cat(parts, dim=-1)  # (f h w, D)

    return combine(torch.cos), combine(torch.sin)


def apply_rope(states: torch.Tensor, tables: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotate neighbouring channel pairs of queries or keys.

    Args:
        states: (B, S, H, D).
        tables: ``(cos, sin)`` of shape (S, D) from `rope_tables`.

    Returns:
        The rotated states, same shape and dtype; the arithmetic is float32.
    """
    cos, sin = (table[:, None, ::2] for table in tables)  # (S, 1, D/2)
    real, imaginary = rearrange(states.float(), "b s h (d pair) -> pair b s h d", pair=2)
    rotated = torch.stack((real * cos - imaginary * sin, real * sin + imaginary * cos), dim=-1)
    return rotated.flatten(-2).to(states.dtype)


def neighbour_query_key(offset: tuple[int, int, int], head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A query and a key whose product, once rotated, is largest where the key's token lies at `offset` of the query's.

    Pair k of the query is that of the key turned by ``offset * theta ** (-2k / d)``, so that the product of rotated
    pairs is a sum of cosines of (distance - offset), each weighted by `NEIGHBOUR_ENERGY`.

    Args:
        offset: (time, row, column) in tokens.
        head_dim: Channels per head D.

    Returns:
        Query and key (D,), of zero mean and unit variance up to what the offset turns.
    """
    queries: list[torch.Tensor] = []
    keys: list[torch.Tensor] = []
    for position, dim, shares in zip(offset, axis_dims(head_dim), NEIGHBOUR_ENERGY, strict=True):
        energy = torch.zeros(dim // 2)
        energy[: len(shares)] = torch.tensor(shares)[: dim // 2]
        amplitude = (energy * head_dim).sqrt()[:, None]
        turn = position * ROPE_THETA ** (-torch.arange(0, dim, 2) / dim)
        # Pairs (-1, 1) have no mean, which the norms of queries and keys would remove.
        start = torch.full_like(turn, 0.75 * torch.pi)
        for states, angle in ((queries, start + turn), (keys, start)):
            pairs = torch.stack((torch.cos(angle), torch.sin(angle)), dim=-1)
            states.append((amplitude * pairs).flatten())
    return torch.cat(queries), torch.cat(keys)


def token_tables(
    latents: torch.Tensor, patch_size: int, head_dim: int, frame_positions: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`rope_tables` of the tokens of latents (B, f, C, h, w)."""
    _, num_frames, _, height, width = latents.shape
    return rope_tables(
        num_frames,
        height // patch_size,
        width // patch_size,
        head_dim,
        device=latents.device,
        frame_positions=frame_positions,
    )


class PositionEmbedding3D(nn.Module):
    """Absolute positions: cosines and sines of a token's rotation angles through a linear map.

    Rotary embedding alone tells how tokens lie to each other, and where they are only by way of the text tokens, which
    are not rotated. A large model learns that; a small one late. Added to a trained model the map has no effect
    until it learns.

    Args:
        head_dim: Channels per attention head, the number of features.
        patch_size: Latent pixels per token side.
        dim: Token channels C.
    """

    def __init__(self, head_dim: int, patch_size: int, dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.patch_size = patch_size
        self.linear = nn.Linear(head_dim, dim, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, latents: torch.Tensor, frame_positions: torch.Tensor | None = None) -> torch.Tensor:
        """What to add to the video tokens of latents (B, f, C, h, w); returns (f * h/p * w/p, C)."""
        cos, sin = token_tables(latents, self.patch_size, self.head_dim, frame_positions)
        features = torch.cat((cos[:, ::2], sin[:, ::2]), dim=-1)  # (S, D)
        return self.linear(features.to(latents.dtype))


class FixedPositionEmbedding3D(nn.Module):
    """CogVideoX-2B's absolute positions: sines and cosines, a quarter of the channels for time, the rest for space.

    Args:
        patch_size: Latent pixels per token side.
        dim: Token channels C, a multiple of 16.
        spatial_scale: What rows and columns are divided by.
        temporal_scale: What frames' positions are divided by.
    """

    def __init__(self, patch_size: int, dim: int, spatial_scale: float, temporal_scale: float) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.dim = dim
        self.spatial_scale = spatial_scale
        self.temporal_scale = temporal_scale

    def forward(self, latents: torch.Tensor, frame_positions: torch.Tensor | None = None) -> torch.Tensor:
        """What to add to the video tokens of latents (B, f, C, h, w); returns (f * h/p * w/p, C)."""
        num_frames, height, width = latents.shape[1], latents.shape[3], latents.shape[4]
        if frame_positions is not None:
            num_frames = int(frame_positions.max()) + 1
        table = get_3d_sincos_pos_embed(
            self.dim,
            (width // self.patch_size, height // self.patch_size),
            num_frames,
            self.spatial_scale,
            self.temporal_scale,
            device=latents.device,
        )  # (f, h/p * w/p, C)
        if frame_positions is not None:
            table = table[frame_positions.to(table.device)]
        return table.flatten(0, 1).to(latents.dtype)


class RotaryEmbedding3D(nn.Module):
    """`rope_tables` as a parameter-free module, so that context parallelism can split its output.

    Args:
        head_dim: Channels per attention head.
        patch_size: Latent pixels per token side.
    """

    def __init__(self, head_dim: int, patch_size: int) -> None:
        super().__init__()
        axis_dims(head_dim)
        self.head_dim = head_dim
        self.patch_size = patch_size

    def forward(
        self, latents: torch.Tensor, frame_positions: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tables for latents of shape (B, f, C, h, w); returns two (f * h/p * w/p, D) tensors."""
        return token_tables(latents, self.patch_size, self.head_dim, frame_positions)
