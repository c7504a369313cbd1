"""Full 3D attention over text and video tokens (paper section 3.2: every token sees every token of every frame).

Shapes: B batch, L text tokens, S video tokens, H heads, D channels per head, C = H * D.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from torch import nn
from torch.nn.attention import SDPBackend

from flashvideo.models.rope import apply_rope, neighbour_query_key

QK_NORM_EPS = 1e-6
LOCAL_GAIN = 1.4
"""Gain of query and key norms with which one neighbour gets about half of a local head's attention."""

MAX_SCORE_BYTES = 4 * 1024**3
"""Largest matrix of attention scores, queries times keys, that may come about. Fused kernels make none; torch's plain
kernel would need 1.2 TB at 1080p."""


class FlashVideoAttnProcessor:
    """Projects, normalises, rotates and attends; the kernel is chosen by ``model.set_attention_backend(name)``."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: "FlashVideoAttention",
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        rotary_tables: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `FlashVideoAttention.forward`."""
        num_text = encoder_hidden_states.shape[1]
        video_query, video_key, video_value = attn.project(hidden_states)  # (B, S, H, D)
        text_query, text_key, text_value = attn.project(encoder_hidden_states)  # (B, L, H, D)
        value = torch.cat((text_value, video_value), dim=1)  # (B, L + S, H, D)
        if rotary_tables is not None:
            video_query, video_key = (
                apply_rope(states, rotary_tables) for states in (video_query, video_key)
            )
        # Under autocast the norms may return float32; kernels want one dtype.
        query = torch.cat((text_query, video_query), dim=1).to(value.dtype)
        key = torch.cat((text_key, video_key), dim=1).to(value.dtype)

        attended = attn.project_out(self.attend(query, key, value))
        return attended[:, num_text:], attended[:, :num_text]

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Attention itself, by the kernel that was chosen.

        Args:
            query: (B, N, H, D).
            key: (B, N, H, D).
            value: (B, N, H, D).

        Returns:
            (B, N, C).

        Raises:
            ValueError: If only torch's plain kernel is left for a sequence that is too long for it.
        """
        if type(query) is torch.Tensor:  # not while shapes are traced
            refuse_plain_kernel(query, key, value, self._attention_backend)
        attended = dispatch_attention_fn(
            query, key, value, backend=self._attention_backend, parallel_config=self._parallel_config
        )
        return attended.flatten(2, 3).to(value.dtype)


class FlashVideoAttention(nn.Module, AttentionModuleMixin):
    """Joint self-attention of text and video tokens with per-head layer norm on queries and keys.

    Args:
        dim: Channels C of the token stream.
        num_heads: Attention heads H.
        head_dim: Channels per head D.
        bias: Whether the query, key and value projections have a bias.
        dropout: Dropout after the output projection.
    """

    _default_processor_cls = FlashVideoAttnProcessor
    _available_processors: ClassVar[list[type]] = [FlashVideoAttnProcessor]
    _supports_qkv_fusion = False

    to_out: nn.ModuleList

    def __init__(
        self, dim: int, num_heads: int, head_dim: int, *, bias: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__()
        inner_dim = num_heads * head_dim
        self.heads = num_heads
        self.to_q = nn.Linear(dim, inner_dim, bias=bias)
        self.to_k = nn.Linear(dim, inner_dim, bias=bias)
        self.to_v = nn.Linear(dim, inner_dim, bias=bias)
        self.norm_q = nn.LayerNorm(head_dim, eps=QK_NORM_EPS)
        self.norm_k = nn.LayerNorm(head_dim, eps=QK_NORM_EPS)
        self.to_out = nn.ModuleList([nn.Linear(inner_dim, dim), nn.Dropout(dropout)])
        self.processor = FlashVideoAttnProcessor()

    @torch.no_grad()
    def init_local(self, offsets: Sequence[tuple[int, int, int]]) -> None:
        """Let the last heads look at tokens at fixed offsets: their biases outweigh what tokens hold.

        Args:
            offsets: (time, row, column) in tokens, one per head.
        """
        for norm in (self.norm_q, self.norm_k):
            nn.init.constant_(norm.weight, LOCAL_GAIN)
        head_dim = self.norm_q.weight.shape[0]
        for head, offset in enumerate(offsets, start=self.heads - len(offsets)):
            rows = slice(head * head_dim, (head + 1) * head_dim)
            patterns = neighbour_query_key(offset, head_dim)
            for layer, pattern in zip((self.to_q, self.to_k), patterns, strict=True):
                layer.weight[rows] *= 0.5
                layer.bias[rows] = pattern

    def project(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Normalised queries, normalised keys and values.

        Args:
            states: Tokens (B, N, C).

        Returns:
            Three tensors (B, N, H, D).
        """
        query, key, value = (
            layer(states).unflatten(2, (self.heads, -1)) for layer in (self.to_q, self.to_k, self.to_v)
        )
        return self.norm_q(query), self.norm_k(key), value

    def project_out(self, attended: torch.Tensor) -> torch.Tensor:
        """The output projection of attended tokens (B, N, C)."""
        return self.to_out[1](self.to_out[0](attended))

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        rotary_tables: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attend over [text, video]; only video tokens carry a position.

        Args:
            hidden_states: Video tokens (B, S, C).
            encoder_hidden_states: Text tokens (B, L, C).
            rotary_tables: ``(cos, sin)`` of shape (S, D); None where positions are added to the tokens instead.

        Returns:
            Updated video tokens (B, S, C) and text tokens (B, L, C).
        """
        return self.processor(self, hidden_states, encoder_hidden_states, rotary_tables)


def refuse_plain_kernel(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, backend: AttentionBackendName | None
) -> None:
    """Refuses attention whose matrix of scores would come about and exceed `MAX_SCORE_BYTES`.

    Torch falls back to its plain kernel without a word where no fused one takes the device, dtype or head size.

    Args:
        query: (B, N, H, D).
        key: (B, N, H, D).
        value: (B, N, H, D).
        backend: The kernel that was chosen; None for torch's own choice.

    Raises:
        ValueError: In one sentence, what is needed and what to do.
    """
    batch_size, num_tokens, num_heads, _ = query.shape
    num_bytes = batch_size * num_heads * num_tokens**2 * query.element_size()
    if num_bytes <= MAX_SCORE_BYTES or backend not in (
        None,
        AttentionBackendName.NATIVE,
        AttentionBackendName._NATIVE_MATH,
    ):
        return
    is_plain = backend == AttentionBackendName._NATIVE_MATH
    if not is_plain and query.device.type in ("cpu", "cuda"):  # where torch tells its choice
        choice = torch._fused_sdp_choice(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        is_plain = choice == SDPBackend.MATH.value
    if is_plain:
        raise ValueError(
            f"attention over {num_tokens} tokens needs a fused kernel, but for {query.dtype} on {query.device.type} "
            f"there is only the plain one, which would need {num_bytes / 1024**3:.0f} GiB; use bfloat16 or float16, "
            "a smaller size or fewer frames, or name an installed kernel with transformer.set_attention_backend"
        )
