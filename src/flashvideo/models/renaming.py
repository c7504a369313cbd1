"""Module names of the reference and of our models, one table for both directions."""

import re
from collections.abc import Sequence

Rule = tuple[str, str]
"""A pair of names; ``{}`` stands for a number and ``{*}`` for anything, in the same order on both sides."""

_BLOCK = "transformer_blocks.{}."

TRANSFORMER_RULES: tuple[Rule, ...] = (
    ("mixins.patch_embed.proj", "patch_embed.proj"),
    ("mixins.patch_embed.text_proj", "patch_embed.text_proj"),
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("ref_step_time_embedding.0", "noise_step_embedding.linear_1"),
    ("ref_step_time_embedding.2", "noise_step_embedding.linear_2"),
    ("time_size_embedding.0", "num_frames_embedding.linear_1"),
    ("time_size_embedding.2", "num_frames_embedding.linear_2"),
    ("transformer.layers.{}.input_layernorm", _BLOCK + "norm1.norm"),
    ("transformer.layers.{}.post_attention_layernorm", _BLOCK + "norm2.norm"),
    ("transformer.layers.{}.attention.dense", _BLOCK + "attn1.to_out.0"),
    ("transformer.layers.{}.mlp.dense_h_to_4h", _BLOCK + "ff.net.0.proj"),
    ("transformer.layers.{}.mlp.dense_4h_to_h", _BLOCK + "ff.net.2"),
    ("mixins.adaln_layer.query_layernorm_list.{}", _BLOCK + "attn1.norm_q"),
    ("mixins.adaln_layer.key_layernorm_list.{}", _BLOCK + "attn1.norm_k"),
    ("transformer.final_layernorm", "norm_final"),
    ("mixins.final_layer.norm_final", "norm_out.norm"),
    ("mixins.final_layer.adaLN_modulation.1", "norm_out.linear"),
    ("mixins.final_layer.linear", "proj_out"),
)

# Fused modules of the reference: number of row chunks, and which of them make up each of ours. Modulation chunks are
# shift, scale, gate of attention, the same of the MLP, for video; then the same six for text. Ours hold attention's
# six, then the MLP's.
TRANSFORMER_FUSED: dict[str, tuple[int, dict[str, tuple[int, ...]]]] = {
    "transformer.layers.{}.attention.query_key_value": (
        3,
        {_BLOCK + "attn1.to_q": (0,), _BLOCK + "attn1.to_k": (1,), _BLOCK + "attn1.to_v": (2,)},
    ),
    "mixins.adaln_layer.adaLN_modulations.{}.1": (
        12,
        {_BLOCK + "norm1.linear": (0, 1, 2, 6, 7, 8), _BLOCK + "norm2.linear": (3, 4, 5, 9, 10, 11)},
    ),
}

# The levels of the decoder are counted from the output by the reference and from the latent by diffusers.
VAE_RULES: tuple[Rule, ...] = (
    ("encoder.down.{}.block.{}.nin_shortcut", "encoder.down_blocks.{}.resnets.{}.conv_shortcut"),
    ("encoder.down.{}.block.{}.{*}", "encoder.down_blocks.{}.resnets.{}.{*}"),
    ("encoder.down.{}.downsample.conv", "encoder.down_blocks.{}.downsamplers.0.conv"),
    ("decoder.up.{}.block.{}.nin_shortcut", "decoder.up_blocks.{}.resnets.{}.conv_shortcut"),
    ("decoder.up.{}.block.{}.{*}", "decoder.up_blocks.{}.resnets.{}.{*}"),
    ("decoder.up.{}.upsample.conv", "decoder.up_blocks.{}.upsamplers.0.conv"),
    ("encoder.mid.block_1.{*}", "encoder.mid_block.resnets.0.{*}"),
    ("encoder.mid.block_2.{*}", "encoder.mid_block.resnets.1.{*}"),
    ("decoder.mid.block_1.{*}", "decoder.mid_block.resnets.0.{*}"),
    ("decoder.mid.block_2.{*}", "decoder.mid_block.resnets.1.{*}"),
    ("encoder.conv_in.conv", "encoder.conv_in.conv"),
    ("encoder.conv_out.conv", "encoder.conv_out.conv"),
    ("encoder.norm_out", "encoder.norm_out"),
    ("decoder.conv_in.conv", "decoder.conv_in.conv"),
    ("decoder.conv_out.conv", "decoder.conv_out.conv"),
    ("decoder.norm_out.{*}", "decoder.norm_out.{*}"),
)


def rename(name: str, rules: Sequence[Rule], *, back: bool = False) -> str | None:
    """Translate a module name.

    Args:
        name: A name of the reference, or with ``back`` one of ours.
        rules: The table; the first rule that fits counts.
        back: From ours to the reference's.

    Returns:
        The other name; None if no rule fits.

    >>> rename("transformer.layers.7.mlp.dense_4h_to_h", TRANSFORMER_RULES)
    'transformer_blocks.7.ff.net.2'
    >>> rename("transformer_blocks.7.ff.net.2", TRANSFORMER_RULES, back=True)
    'transformer.layers.7.mlp.dense_4h_to_h'
    """
    for reference, ours in rules:
        pattern, target = (ours, reference) if back else (reference, ours)
        if (fields := match_fields(name, pattern)) is not None:
            return fill(target, fields)
    return None


def match_fields(name: str, pattern: str) -> tuple[str, ...] | None:
    """Return what the placeholders of a pattern stand for in a name; None if it does not fit."""
    regex = re.escape(pattern).replace(r"\{\}", r"(\d+)").replace(r"\{\*\}", "(.+)")
    match = re.fullmatch(regex, name)
    return match.groups() if match else None


def fill(pattern: str, fields: Sequence[str]) -> str:
    """Return the pattern with its placeholders filled in.

    >>> fill("decoder.up.{}.block.{}.{*}", ("1", "0", "norm1"))
    'decoder.up.1.block.0.norm1'
    """
    return pattern.replace("{*}", "{}").format(*fields)


def flip_decoder_level(name: str, prefix: str, num_levels: int) -> str:
    """Count a decoder level from the other end; names without one stay as they are.

    >>> flip_decoder_level("decoder.up.0.upsample.conv", "decoder.up.", 4)
    'decoder.up.3.upsample.conv'
    """
    return re.sub(
        "^" + re.escape(prefix) + r"(\d+)", lambda m: f"{prefix}{num_levels - 1 - int(m[1])}", name, count=1
    )
