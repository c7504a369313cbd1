"""What the transformer is made of: patches, adaptive norms, and the block that is repeated.

Shapes: B batch, f latent frames, c latent channels, h and w latent height and width, p patch size,
S = f * h/p * w/p video tokens, L text tokens, C channels of the token stream, E time embedding channels, H heads,
D channels of a head; D of `PatchEmbed` are those of the text encoder.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from diffusers.models.attention import FeedForward
from einops import rearrange
from torch import nn

from flashvideo.models.attention import FlashVideoAttention
from flashvideo.models.rope import apply_rope


class PatchEmbed(nn.Module):
    """Latent patches and text embeddings -> tokens.

    Args:
        patch_size: Latent pixels per token side p.
        in_channels: Latent channels c.
        embed_dim: Token channels C.
        text_embed_dim: Channels of the text encoder.
        bias: Whether the patch projection has a bias.
    """

    def __init__(
        self, patch_size: int, in_channels: int, embed_dim: int, text_embed_dim: int, *, bias: bool
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, embed_dim, kernel_size=patch_size, stride=patch_size, bias=bias)
        self.text_proj = nn.Linear(text_embed_dim, embed_dim)

    def forward(self, latents: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Embed latents (B, f, c, h, w) and text (B, L, D); returns (B, S, C) and (B, L, C)."""
        num_frames = latents.shape[1]
        patches = self.proj(rearrange(latents, "b f c h w -> (b f) c h w"))  # (B f, C, h/p, w/p)
        return rearrange(patches, "(b f) c h w -> b (f h w) c", f=num_frames), self.text_proj(text)


class Modulation(NamedTuple):
    """Shift, scale and residual gate of one kind of token, each (B, 1, C)."""

    shift: torch.Tensor
    scale: torch.Tensor
    gate: torch.Tensor


class AdaptiveLayerNormZero(nn.Module):
    """Layer norm whose shift, scale and residual gate come from the time embedding, apart for video and text.

    Args:
        conditioning_dim: Time embedding channels E.
        dim: Token channels C.
        eps: Layer norm epsilon.
        elementwise_affine: Whether the norm has a learned gain and bias.
    """

    def __init__(self, conditioning_dim: int, dim: int, *, eps: float, elementwise_affine: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(conditioning_dim, 6 * dim)
        self.norm = nn.LayerNorm(dim, eps=eps, elementwise_affine=elementwise_affine)

    def forward(
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, temb: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Modulate video (B, S, C) and text (B, L, C) by temb (B, E).

        Returns:
            Modulated video, modulated text, video gate and text gate (gates: (B, 1, C)).
        """
        video, text = self.modulation(temb)
        return (
            self.modulate(hidden_states, video),
            self.modulate(encoder_hidden_states, text),
            video.gate,
            text.gate,
        )

    def modulation(self, temb: torch.Tensor) -> tuple[Modulation, Modulation]:
        """What the time embedding (B, E) asks for, of video and of text."""
        six = self.linear(nn.functional.silu(temb)).unsqueeze(1).chunk(6, dim=-1)  # (B, 1, C) each
        return Modulation(*six[:3]), Modulation(*six[3:])

    def modulate(self, tokens: torch.Tensor, by: Modulation) -> torch.Tensor:
        """Normalise, scale and shift any number of tokens (B, N, C)."""
        # Cast once to the compute dtype: under autocast the residual stream is float32, the matmuls are not.
        return (self.norm(tokens) * (1 + by.scale) + by.shift).to(by.scale.dtype)


class AdaptiveLayerNormOut(nn.Module):
    """The last layer norm, shifted and scaled by the time embedding.

    Args:
        conditioning_dim: Time embedding channels E.
        dim: Token channels C.
        eps: Layer norm epsilon.
        elementwise_affine: Whether the norm has a learned gain and bias.
    """

    def __init__(self, conditioning_dim: int, dim: int, *, eps: float, elementwise_affine: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(conditioning_dim, 2 * dim)
        self.norm = nn.LayerNorm(dim, eps=eps, elementwise_affine=elementwise_affine)

    def forward(self, hidden_states: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        """Modulate tokens (B, S, C) by temb (B, E)."""
        shift, scale = self.linear(nn.functional.silu(temb)).unsqueeze(1).chunk(2, dim=-1)  # (B, 1, C) each
        return (self.norm(hidden_states) * (1 + scale) + shift).to(scale.dtype)


class FlashVideoBlock(nn.Module):
    """One transformer block: joint attention and feed-forward, each between adaptive norm and gate.

    Args:
        dim: Token channels C.
        num_attention_heads: Heads.
        attention_head_dim: Channels per head.
        time_embed_dim: Time embedding channels E.
        dropout: Dropout in attention and feed-forward.
        activation_fn: Feed-forward activation, a diffusers name.
        attention_bias: Bias of the query, key and value projections.
        norm_eps: Epsilon of the two layer norms.
        norm_elementwise_affine: Whether these norms have learned gains and biases.
    """

    def __init__(
        self,
        dim: int,
        num_attention_heads: int,
        attention_head_dim: int,
        time_embed_dim: int,
        *,
        dropout: float,
        activation_fn: str,
        attention_bias: bool,
        norm_eps: float,
        norm_elementwise_affine: bool,
    ) -> None:
        super().__init__()
        self.norm1 = AdaptiveLayerNormZero(
            time_embed_dim, dim, eps=norm_eps, elementwise_affine=norm_elementwise_affine
        )
        self.attn1 = FlashVideoAttention(
            dim, num_attention_heads, attention_head_dim, bias=attention_bias, dropout=dropout
        )
        self.norm2 = AdaptiveLayerNormZero(
            time_embed_dim, dim, eps=norm_eps, elementwise_affine=norm_elementwise_affine
        )
        self.ff = FeedForward(dim, dropout=dropout, activation_fn=activation_fn, final_dropout=True)
        self.chunk_size: int | None = None

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        rotary_tables: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Update video tokens (B, S, C) and text tokens (B, L, C)."""
        if self.chunk_size is not None and not torch.is_grad_enabled():
            return self.forward_intoken_chunks(
                hidden_states, encoder_hidden_states, temb, rotary_tables, self.chunk_size
            )
        video, text, gate, text_gate = self.norm1(hidden_states, encoder_hidden_states, temb)
        video, text = self.attn1(video, text, rotary_tables)
        hidden_states = hidden_states + gate * video
        encoder_hidden_states = encoder_hidden_states + text_gate * text

        video, text, gate, text_gate = self.norm2(hidden_states, encoder_hidden_states, temb)
        # Two calls rather than one on the joined tokens: at 1080p the joined copy alone is 0.4 GB.
        hidden_states = hidden_states + gate * self.ff(video)
        encoder_hidden_states = encoder_hidden_states + text_gate * self.ff(text)
        return hidden_states, encoder_hidden_states

    def forward_intoken_chunks(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        rotary_tables: tuple[torch.Tensor, torch.Tensor] | None,
        chunk_size: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same for few tokens at a time; only attention, which needs them all, sees them at once.

        At its peak five tensors of the size of the token stream are alive: the stream, queries, keys, values and
        what was attended to. Not for training.

        Args:
            hidden_states: Video tokens (B, S, C).
            encoder_hidden_states: Text tokens (B, L, C).
            temb: Time embedding (B, E).
            rotary_tables: ``(cos, sin)`` of shape (S, D), or None.
            chunk_size: Tokens at a time.

        Returns:
            Updated video tokens (B, S, C) and text tokens (B, L, C).
        """
        streams = (encoder_hidden_states, hidden_states)  # attention's order
        attention, num_text = self.attn1, encoder_hidden_states.shape[1]
        modulations = self.norm1.modulation(temb)[::-1]
        qkv: list[torch.Tensor] = []  # query, key, value: (B, L + S, H, D) each
        for stream, by, start in zip(streams, modulations, (0, num_text), strict=True):
            for chunk in token_chunks(stream.shape[1], chunk_size):
                query, key, value = attention.project(self.norm1.modulate(stream[:, chunk], by))
                if stream is hidden_states and rotary_tables is not None:
                    tables = (rotary_tables[0][chunk], rotary_tables[1][chunk])
                    query, key = apply_rope(query, tables), apply_rope(key, tables)
                if not qkv:
                    shape = (len(stream), num_text + hidden_states.shape[1], *value.shape[2:])
                    qkv = [value.new_empty(shape) for _ in range(3)]
                for whole, part in zip(qkv, (query, key, value), strict=True):
                    whole[:, start + chunk.start : start + chunk.stop] = part
        attended = attention.processor.attend(*qkv)  # (B, L + S, C)
        del qkv
        results = []
        for stream, by, start in zip(streams, modulations, (0, num_text), strict=True):
            result = torch.empty_like(stream)
            for chunk in token_chunks(stream.shape[1], chunk_size):
                out = attention.project_out(attended[:, start + chunk.start : start + chunk.stop])
                result[:, chunk] = stream[:, chunk] + by.gate * out
            results.append(result)
        del attended
        for result, by in zip(results, self.norm2.modulation(temb)[::-1], strict=True):
            for chunk in token_chunks(result.shape[1], chunk_size):
                result[:, chunk] += by.gate * self.ff(self.norm2.modulate(result[:, chunk], by))
        return results[1], results[0]


def token_chunks(num_tokens: int, chunk_size: int) -> Iterator[slice]:
    """Stretches of `chunk_size` tokens, the last one of what remains.

    >>> list(token_chunks(5, 2))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    for start in range(0, num_tokens, chunk_size):
        yield slice(start, min(start + chunk_size, num_tokens))
