"""What the networks compute, by formula: two operations for each multiplication with an addition.

Counted are matrix products, convolutions and attention, which is what `torch.utils.flop_counter` counts; norms,
activations, rotations and resizing are not. For each network there is one sum over its layers, from its config alone.

Shapes: B clips, F frames, H, W pixels; f, c, h, w of the latents, p patch size, S = f h/p w/p video tokens; L text
tokens, D channels of the text encoder, N = L + S; C channels of the token stream, E of the time embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flashvideo.shapes import check_num_frames, check_size, vae_factors

_FEED_FORWARD_FACTOR = 4  # diffusers' FeedForward: hidden channels per channel
_GATED_ACTIVATIONS = ("geglu", "swiglu")  # whose first layer of a feed-forward is twice as wide
_RESNET_KERNEL, _RESAMPLE_KERNEL = 3**3, 3**2  # diffusers' CogVideoX VAE
_MIDDLE_RESNETS = 2


def transformer_flops(
    config: Mapping[str, Any],
    *,
    num_latent_frames: int,
    height: int,
    width: int,
    num_text_tokens: int,
    batch: int = 1,
) -> int:
    """Operations of one forward pass of `FlashVideoTransformer3DModel`.

        2 B [ S c p^2 C + L D C                        patches and text to tokens
              + n (C E + E^2) + m (D E + E^2)          n embedders of time, noise step, frames; m of pooled text
              + layers (4 N C^2 + 2 N^2 C + 8 N C^2 + 12 E C)
                                                       q, k, v, out; scores and values; feed-forward; two norms
              + 2 E C + S C c' p^2 ]                   last norm, tokens to patches

    Absolute positions, where a model learns them, add 2 S d C, d being a head's channels, once for all B. A
    feed-forward with a gate has 12 in place of 8. With guidance B is 2.

    Args:
        config: The transformer's.
        num_latent_frames: f.
        height: Latent rows h.
        width: Latent columns w.
        num_text_tokens: L.
        batch: B.

    Returns:
        Operations.
    """
    head_dim, patch_size = config["attention_head_dim"], config["patch_size"]
    dim = config["num_attention_heads"] * head_dim
    time_dim, text_dim = config["time_embed_dim"], config["text_embed_dim"]
    num_video = num_latent_frames * (height // patch_size) * (width // patch_size)
    num_tokens = num_text_tokens + num_video
    num_embedders = 1 + _has(config, "noise_step_embed") + _has(config, "num_frames_embed")
    is_gated = config.get("activation_fn", "gelu-approximate") in _GATED_ACTIVATIONS

    feed_forward = (3 if is_gated else 2) * _FEED_FORWARD_FACTOR * dim**2
    block = num_tokens * (4 * dim**2 + feed_forward) + 2 * num_tokens**2 * dim + 2 * 6 * time_dim * dim
    channels = (config["in_channels"] + config["out_channels"]) * patch_size**2
    each = (
        num_video * channels * dim
        + num_text_tokens * text_dim * dim
        + num_embedders * (dim * time_dim + time_dim**2)
        + _has(config, "pooled_text_embed") * (text_dim * time_dim + time_dim**2)
        + config["num_layers"] * block
        + 2 * time_dim * dim
    )
    positions = _has(config, "position_embed") * num_video * head_dim * dim
    return int(2 * (batch * each + positions))


def text_flops(config: Mapping[str, Any], num_tokens: int, batch: int = 1) -> int:
    """Operations of one forward pass of a T5 encoder over L tokens, padding included.

        2 B layers ( 4 L D a + 2 L^2 a + m L D d_ff )

    with a all heads' channels, and m = 3 matrices of the feed-forward where it has a gate, otherwise 2.

    Args:
        config: The encoder's.
        num_tokens: L.
        batch: B.

    Returns:
        Operations.
    """
    dim, inner = config["d_model"], config["num_heads"] * config["d_kv"]
    num_matrices = 3 if str(config.get("feed_forward_proj", "relu")).startswith("gated-") else 2
    attention = 4 * num_tokens * dim * inner + 2 * num_tokens**2 * inner
    feed_forward = num_matrices * num_tokens * dim * config["d_ff"]
    return int(2 * batch * config["num_layers"] * (attention + feed_forward))


def vae_encode_flops(
    config: Mapping[str, Any], num_frames: int, height: int, width: int, batch: int = 1
) -> int:
    """Operations of encoding F frames of H x W pixels, whole: neither tiles nor strips.

    At level i there are `F_i = 1 + (F - 1) / 2^min(i, log2 temporal)` frames of `H_i W_i = H W / 4^i` pixels, n_i in
    all, of C_i channels, and, with C_-1 = C_0 and r layers per level,

        2 B [ 27 n_0 3 C_0 + sum_i n_i (27 (C_i-1 C_i + (2 r - 1) C_i^2) + (C_i-1 C_i where they differ))
              + sum_i 9 n_i+1 C_i^2 + n_last (4 27 C_last^2 + 27 C_last 2 c) ]

    the second sum over what halves a level, after time has been halved. How many frames a chunk has does not matter:
    convolutions are causal and take the last frames of the chunk before instead of computing them anew, and the first
    frame of the first chunk is kept apart at each level.

    Args:
        config: The VAE's, complete.
        num_frames: F, one more than a multiple of the temporal compression.
        height: H.
        width: W.
        batch: B.

    Returns:
        Operations.

    Raises:
        ValueError: If the VAE does not take that size.
    """
    check_num_frames(num_frames, vae_config=config)
    check_size(height, width, vae_config=config)
    channels, latent_channels = config["block_out_channels"], config["latent_channels"]
    temporal_levels = vae_factors(config)[0].bit_length() - 1

    def values(level: int) -> int:
        frames = 1 + (num_frames - 1) // 2 ** min(level, temporal_levels)
        return frames * (height >> level) * (width >> level)

    total = _RESNET_KERNEL * values(0) * config["in_channels"] * channels[0]
    before = channels[0]
    for level, after in enumerate(channels):
        total += values(level) * _resnets(before, after, config["layers_per_block"])
        if level + 1 < len(channels):
            # Time is halved before space: the convolution sees the frames of the next level.
            total += _RESAMPLE_KERNEL * values(level + 1) * after**2
        before = after
    last = values(len(channels) - 1)
    total += last * _resnets(before, before, _MIDDLE_RESNETS)
    total += last * _RESNET_KERNEL * before * 2 * latent_channels
    if config.get("use_quant_conv"):
        total += last * (2 * config["out_channels"]) ** 2
    return int(2 * batch * total)


def vae_decode_flops(
    config: Mapping[str, Any], num_frames: int, height: int, width: int, batch: int = 1
) -> int:
    """Operations of decoding to F frames of H x W pixels, whole, with diffusers' own modules: neither tiles nor strips.

    The levels of `vae_encode_flops` in reverse, each with one residual block more, and with norms whose gain and offset
    come from the c latent channels, enlarged to the layer's size: `4 n_i c C_i` operations for a norm of C_i channels.
    Where F makes an even number of latent frames, `flashvideo.vae.decode_latents` repeats the last one, and that is
    counted too. Work by strips (`flashvideo.vae.layers`) takes fewer: there gain and offset come before the
    enlargement, and frames that are doubled in time are convolved once.

    Args:
        config: The VAE's, complete.
        num_frames: F, one more than a multiple of the temporal compression.
        height: H.
        width: W.
        batch: B.

    Returns:
        Operations.

    Raises:
        ValueError: If the VAE does not make that size.
    """
    check_num_frames(num_frames, vae_config=config)
    check_size(height, width, vae_config=config)
    channels, latent_channels = tuple(reversed(config["block_out_channels"])), config["latent_channels"]
    temporal, spatial = vae_factors(config)
    latent_frames = 1 + (num_frames - 1) // temporal
    latent_frames += latent_frames % 2 == 0
    temporal_levels = temporal.bit_length() - 1

    def values(level: int) -> int:
        frames = 1 + (latent_frames - 1) * 2 ** min(level, temporal_levels)
        return frames * (height // spatial << level) * (width // spatial << level)

    def norms(num_channels: int) -> int:
        return 2 * latent_channels * num_channels

    def resnets(before: int, after: int, number: int) -> int:
        modulation = norms(before) + (2 * number - 1) * norms(after)
        return _resnets(before, after, number) + modulation

    before = channels[0]
    total = values(0) * (_RESNET_KERNEL * latent_channels * before + resnets(before, before, _MIDDLE_RESNETS))
    if config.get("use_post_quant_conv"):
        total += values(0) * config["out_channels"] ** 2
    for level, after in enumerate(channels):
        total += values(level) * resnets(before, after, config["layers_per_block"] + 1)
        if level + 1 < len(channels):
            total += _RESAMPLE_KERNEL * values(level + 1) * after**2
        before = after
    last = values(len(channels) - 1)
    total += last * (norms(before) + _RESNET_KERNEL * before * config["out_channels"])
    return int(2 * batch * total)


def _resnets(before: int, after: int, number: int) -> int:
    """Multiplications per value of so many residual blocks, the first of which changes the number of channels."""
    shortcut = before * after if before != after else 0
    return _RESNET_KERNEL * (before * after + (2 * number - 1) * after**2) + shortcut


def _has(config: Mapping[str, Any], name: str) -> bool:
    return bool(config.get(name, False))
