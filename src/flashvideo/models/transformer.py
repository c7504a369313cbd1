"""The diffusion transformer of both stages (paper sections 3.1 and 3.2).

A CogVideoX transformer with 3D RoPE. Parameter names are those of diffusers' ``CogVideoXTransformer3DModel``, so
CogVideoX weights and LoRAs load. Stage II adds two optional embedders: the step of the latent degradation and the
number of latent frames, both added to the time embedding. Small models may have two more, which the released ones lack:
pooled text, added likewise, and absolute positions. A new model starts by `flashvideo.models.initialization`, and a
CogVideoX one is read by `flashvideo.models.cogvideox`; of these the 2B has fixed absolute positions instead of RoPE.

Shapes: B batch, f latent frames, c latent channels, h and w latent height and width, p patch size,
S = f * h/p * w/p video tokens, L text tokens, C channels of the token stream, E time embedding channels.
"""

from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput
from diffusers.models.attention import AttentionMixin
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from torch import nn

from flashvideo.models.blocks import AdaptiveLayerNormOut, FlashVideoBlock, PatchEmbed, token_chunks
from flashvideo.models.rope import FixedPositionEmbedding3D, PositionEmbedding3D, RotaryEmbedding3D

DEFAULT_CHUNK_SIZE = 8192
"""Tokens per chunk of `FlashVideoTransformer3DModel.enable_forward_chunking`: enough to keep an accelerator busy."""


class FlashVideoTransformer3DModel(ModelMixin, AttentionMixin, ConfigMixin, PeftAdapterMixin):
    """Predicts v (Stage I) or the flow velocity (Stage II) from noisy latents, text and time.

    Args:
        num_attention_heads: Attention heads; C = heads * head channels.
        attention_head_dim: Channels per head, a multiple of 16.
        in_channels: Latent channels taken.
        out_channels: Latent channels predicted.
        flip_sin_to_cos: Time features are [cos | sin] (true, as released) or [sin | cos].
        freq_shift: Shift of the time features' frequency series.
        time_embed_dim: Time embedding channels E.
        text_embed_dim: Channels of the text encoder's states.
        num_layers: Transformer blocks.
        dropout: Dropout probability.
        attention_bias: Bias of the query, key and value projections.
        patch_size: Latent pixels per token side.
        max_text_seq_length: Text tokens the model was trained with; longer inputs are an error.
        activation_fn: Feed-forward activation.
        timestep_activation_fn: Activation inside the time embedders.
        norm_elementwise_affine: Whether layer norms have learned gains and biases.
        norm_eps: Epsilon of the block norms and of the final norm.
        norm_out_eps: Epsilon of the norm inside the output layer (differs in the released model).
        patch_bias: Whether the patch projection has a bias.
        noise_step_embed: Whether the latent degradation step is an input (Stage II).
        num_frames_embed: Whether the number of latent frames is embedded (Stage II).
        position_embed: Whether tokens are told their absolute position, beside the rotary embedding (not in the
            released models).
        pooled_text_embed: Whether the text tokens' largest values join the time embedding (not in the released
            models).
        use_rotary_positional_embeddings: Whether queries and keys are rotated by their position (3D RoPE); otherwise
            a fixed table of sines and cosines is added to the video tokens, as in CogVideoX-2B.
        spatial_interpolation_scale: What that table divides rows and columns by.
        temporal_interpolation_scale: What that table divides the frames' positions by.

    Example:
        >>> import torch
        >>> model = FlashVideoTransformer3DModel(
        ...     num_attention_heads=1, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=8,
        ...     text_embed_dim=6, num_layers=1, noise_step_embed=True)
        >>> latents, text = torch.zeros(1, 3, 4, 4, 6), torch.zeros(1, 5, 6)
        >>> model(latents, text, torch.tensor([1000.0]), noise_step=675).sample.shape
        torch.Size([1, 3, 4, 4, 6])
    """

    _supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["FlashVideoBlock", "PatchEmbed"]
    _repeated_blocks: ClassVar[list[str]] = ["FlashVideoBlock"]
    _skip_layerwise_casting_patterns: ClassVar[list[str]] = ["patch_embed", "norm"]
    # Every rank holds its share of the text and of the video tokens; attention does not care for the key order.
    _cp_plan: ClassVar[dict[str, Any]] = {
        "rope": {
            0: ContextParallelInput(split_dim=0, expected_dims=2, split_output=True),
            1: ContextParallelInput(split_dim=0, expected_dims=2, split_output=True),
        },
        "transformer_blocks.0": {
            "hidden_states": ContextParallelInput(split_dim=1, expected_dims=3),
            "encoder_hidden_states": ContextParallelInput(split_dim=1, expected_dims=3),
        },
        "proj_out": ContextParallelOutput(gather_dim=1, expected_dims=3),
    }

    @register_to_config
    def __init__(
        self,
        num_attention_heads: int = 30,
        attention_head_dim: int = 64,
        in_channels: int = 16,
        out_channels: int = 16,
        flip_sin_to_cos: bool = True,
        freq_shift: int = 0,
        time_embed_dim: int = 512,
        text_embed_dim: int = 4096,
        num_layers: int = 30,
        dropout: float = 0.0,
        attention_bias: bool = True,
        patch_size: int = 2,
        max_text_seq_length: int = 226,
        activation_fn: str = "gelu-approximate",
        timestep_activation_fn: str = "silu",
        norm_elementwise_affine: bool = True,
        norm_eps: float = 1e-5,
        norm_out_eps: float = 1e-6,
        patch_bias: bool = True,
        noise_step_embed: bool = False,
        num_frames_embed: bool = False,
        position_embed: bool = False,
        pooled_text_embed: bool = False,
        use_rotary_positional_embeddings: bool = True,
        spatial_interpolation_scale: float = 1.875,
        temporal_interpolation_scale: float = 1.0,
    ) -> None:
        super().__init__()
        dim = num_attention_heads * attention_head_dim
        self.patch_embed = PatchEmbed(patch_size, in_channels, dim, text_embed_dim, bias=patch_bias)
        self.rope = RotaryEmbedding3D(attention_head_dim, patch_size)

        self.time_proj = Timesteps(dim, flip_sin_to_cos, freq_shift)
        self.time_embedding = TimestepEmbedding(dim, time_embed_dim, timestep_activation_fn)
        self.noise_step_embedding = self.num_frames_embedding = None
        if noise_step_embed:
            self.noise_step_embedding = _zero_embedder(dim, time_embed_dim, timestep_activation_fn)
        if num_frames_embed:
            self.num_frames_embedding = _zero_embedder(dim, time_embed_dim, timestep_activation_fn)
        self.pooled_text_embedding = self.position_embedding = None
        if pooled_text_embed:
            self.pooled_text_embedding = _zero_embedder(
                text_embed_dim, time_embed_dim, timestep_activation_fn
            )
        if position_embed:
            self.position_embedding = PositionEmbedding3D(attention_head_dim, patch_size, dim)
        self.fixed_positions = None
        if not use_rotary_positional_embeddings:
            self.fixed_positions = FixedPositionEmbedding3D(
                patch_size, dim, spatial_interpolation_scale, temporal_interpolation_scale
            )

        self.transformer_blocks = nn.ModuleList(
            FlashVideoBlock(
                dim,
                num_attention_heads,
                attention_head_dim,
                time_embed_dim,
                dropout=dropout,
                activation_fn=activation_fn,
                attention_bias=attention_bias,
                norm_eps=norm_eps,
                norm_elementwise_affine=norm_elementwise_affine,
            )
            for _ in range(num_layers)
        )
        self.norm_final = nn.LayerNorm(dim, eps=norm_eps, elementwise_affine=norm_elementwise_affine)
        self.norm_out = AdaptiveLayerNormOut(
            time_embed_dim, dim, eps=norm_out_eps, elementwise_affine=norm_elementwise_affine
        )
        self.proj_out = nn.Linear(dim, out_channels * patch_size**2)
        self.gradient_checkpointing = False
        self.chunk_size: int | None = None

    def enable_forward_chunking(self, chunk_size: int = DEFAULT_CHUNK_SIZE, dim: int = 1) -> None:
        """Do everything but attention for few tokens at a time, to save memory; without gradients only.

        The result differs from the unchunked one by rounding alone.

        Args:
            chunk_size: Tokens at a time.
            dim: The axis of the tokens, 1; there is no other.

        Raises:
            ValueError: If ``chunk_size`` is not positive, or ``dim`` is not 1.
        """
        if chunk_size < 1 or dim != 1:
            raise ValueError(
                "forward chunking needs chunk_size of at least 1 and dim 1, the axis of tokens, "
                f"got {chunk_size} and {dim}"
            )
        self._set_chunk_size(chunk_size)

    def disable_forward_chunking(self) -> None:
        """Do everything for all tokens at once again."""
        self._set_chunk_size(None)

    def _set_chunk_size(self, chunk_size: int | None) -> None:
        self.chunk_size = chunk_size
        for block in self.transformer_blocks:
            assert isinstance(block, FlashVideoBlock)
            block.chunk_size = chunk_size

    def embed_conditions(
        self,
        timestep: torch.Tensor,
        noise_step: torch.Tensor | int | None,
        latents: torch.Tensor,
        text: torch.Tensor,
        *,
        num_frames: int | None = None,
    ) -> torch.Tensor:
        """The vector that modulates every block: time, plus what else the model has an embedder for.

        Args:
            timestep: Network time, () or (B,), see `FlashVideoTransformer3DModel.forward`.
            noise_step: Step of the latent degradation, an integer, () or (B,); None if the model has no input for it.
            latents: (B, f, c, h, w), for batch, frame count, dtype and device.
            text: Text embeddings (B, L, D).
            num_frames: Latent frames of the whole clip, see `FlashVideoTransformer3DModel.forward`.

        Returns:
            (B, E).

        Raises:
            ValueError: If ``noise_step`` is missing, or given to a model without that input.
        """
        if (self.noise_step_embedding is None) != (noise_step is None):
            wanted = "needs" if noise_step is None else "does not take"
            raise ValueError(
                f"this transformer {wanted} noise_step (config noise_step_embed={self.config.noise_step_embed}), "
                f"got noise_step={noise_step}"
            )

        def features(values: torch.Tensor | float) -> torch.Tensor:
            values = torch.as_tensor(values, dtype=torch.float32, device=latents.device)
            return self.time_proj(values.expand(latents.shape[0])).to(latents.dtype)  # (B, C)

        embedding = self.time_embedding(features(timestep))
        if self.num_frames_embedding is not None:
            embedding = embedding + self.num_frames_embedding(features(num_frames or latents.shape[1]))
        if self.noise_step_embedding is not None:
            assert noise_step is not None
            embedding = embedding + self.noise_step_embedding(features(noise_step))
        if self.pooled_text_embedding is not None:
            embedding = embedding + self.pooled_text_embedding(text.amax(dim=1))
        return embedding

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        *,
        noise_step: torch.Tensor | int | None = None,
        frame_positions: torch.Tensor | None = None,
        num_frames: int | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """Predict v or the velocity.

        Args:
            hidden_states: Scaled latents (B, f, c, h, w); h and w multiples of the patch size.
            encoder_hidden_states: Text embeddings (B, L, D).
            timestep: (B,) or (); the integer diffusion step at Stage I, ``1000 (1 - t)`` at Stage II.
            noise_step: Step of the latent degradation, 0 to 999, an integer or (B,); Stage II only.
            frame_positions: Latent frames' positions in time (f,), for frames taken out of a longer clip; 0 to f - 1
                by default.
            num_frames: Latent frames of the clip that these are taken out of; f by default.
            return_dict: Return an output object rather than a tuple.

        Returns:
            ``.sample`` of shape (B, f, out_channels, h, w), or a tuple of it.

        Raises:
            ValueError: If a shape does not fit the model, or ``noise_step`` is missing or not wanted.
        """
        self._check_inputs(hidden_states, encoder_hidden_states)
        patch_size = self.config.patch_size
        height = hidden_states.shape[3] // patch_size

        temb = self.embed_conditions(
            timestep, noise_step, hidden_states, encoder_hidden_states, num_frames=num_frames
        )  # (B, E)
        rotary_tables = None
        if self.fixed_positions is None:
            rotary_tables = self.rope(hidden_states, frame_positions)  # 2 x (S, D)
        video, text = self.patch_embed(hidden_states, encoder_hidden_states)  # (B, S, C), (B, L, C)
        if self.position_embedding is not None:
            video = video + self.position_embedding(hidden_states, frame_positions)
        if self.fixed_positions is not None:
            video = video + self.fixed_positions(hidden_states, frame_positions)
        if torch.is_autocast_enabled(video.device.type):
            # A float32 residual stream costs little and trains better.
            video, text = video.float(), text.float()

        for block in self.transformer_blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                video, text = self._gradient_checkpointing_func(block, video, text, temb, rotary_tables)
            else:
                video, text = block(video, text, temb, rotary_tables)

        patches = self.proj_out(self._normalise_out(video, temb))  # (B, S, c p p)
        sample = rearrange(
            patches,
            "b (f h w) (c p q) -> b f c (h p) (w q)",
            f=hidden_states.shape[1],
            h=height,
            p=patch_size,
            q=patch_size,
        )
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _normalise_out(self, video: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        """(B, S, C) -> (B, S, C)."""
        if self.chunk_size is None or torch.is_grad_enabled():
            return self.norm_out(self.norm_final(video), temb)
        for chunk in token_chunks(video.shape[1], self.chunk_size):
            video[:, chunk] = self.norm_out(self.norm_final(video[:, chunk]), temb)
        return video

    def _check_inputs(self, latents: torch.Tensor, text: torch.Tensor) -> None:
        config = self.config
        if latents.ndim != 5 or latents.shape[2] != config.in_channels:
            raise ValueError(
                f"hidden_states must be (batch, frames, {config.in_channels}, height, width), "
                f"got {tuple(latents.shape)}"
            )
        height, width = latents.shape[3:]
        if height % config.patch_size or width % config.patch_size:
            raise ValueError(
                f"latent height and width must be multiples of the patch size {config.patch_size}, got {height}x{width}"
            )
        if (
            text.ndim != 3
            or text.shape[2] != config.text_embed_dim
            or text.shape[1] > config.max_text_seq_length
        ):
            raise ValueError(
                f"encoder_hidden_states must be (batch, at most {config.max_text_seq_length} tokens, "
                f"{config.text_embed_dim}), got {tuple(text.shape)}"
            )


def _zero_embedder(dim: int, time_embed_dim: int, activation: str) -> TimestepEmbedding:
    """A time embedder that outputs zero until it is trained."""
    embedder = TimestepEmbedding(dim, time_embed_dim, activation)
    nn.init.zeros_(embedder.linear_2.weight)
    nn.init.zeros_(embedder.linear_2.bias)
    return embedder
