"""Reference checkpoints -> our models: key maps and LoRA merge.

The reference stores Stage I with its LoRA apart: ``X.original`` and, per output part j, ``X.matrix_A.j`` (r, in) and
``X.matrix_B.j`` (out / parts, r); the effective weight is ``W + concat_j(B_j A_j) * alpha / r`` with alpha = 1. Fused
projections are cut along their rows: qkv in plain thirds, the modulation in twelfths.

Strict in both directions: a key is converted, dropped for a stated reason, or an error.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

TRANSFORMER_PREFIX = "model.diffusion_model."
RELEASED_LORA_ALPHA = 1.0
STATE_DICT_KEYS = ("module", "state_dict")

TRANSFORMER_DROPPED = {
    r"model\.diffusion_model\.transformer\.position_embeddings\.weight": "stored by the reference, never used",
    r"model\.diffusion_model\.mixins\.pos_embed\.freqs_(sin|cos)": "rotary tables, computed from the latent's size",
    r"first_stage_model\..+": "the VAE, which has its own checkpoint",
    r"conditioner\..+": "the text encoder, which has its own checkpoint",
}
VAE_DROPPED = {r"loss\..+": "discriminator and perceptual loss, used in training only"}

_BLOCK = "transformer_blocks.{}."
TRANSFORMER_MODULES = {
    r"mixins\.patch_embed\.proj": "patch_embed.proj",
    r"mixins\.patch_embed\.text_proj": "patch_embed.text_proj",
    r"time_embed\.0": "time_embedding.linear_1",
    r"time_embed\.2": "time_embedding.linear_2",
    r"ref_step_time_embedding\.0": "noise_step_embedding.linear_1",
    r"ref_step_time_embedding\.2": "noise_step_embedding.linear_2",
    r"time_size_embedding\.0": "num_frames_embedding.linear_1",
    r"time_size_embedding\.2": "num_frames_embedding.linear_2",
    r"transformer\.layers\.(\d+)\.input_layernorm": _BLOCK + "norm1.norm",
    r"transformer\.layers\.(\d+)\.post_attention_layernorm": _BLOCK + "norm2.norm",
    r"transformer\.layers\.(\d+)\.attention\.dense": _BLOCK + "attn1.to_out.0",
    r"transformer\.layers\.(\d+)\.mlp\.dense_h_to_4h": _BLOCK + "ff.net.0.proj",
    r"transformer\.layers\.(\d+)\.mlp\.dense_4h_to_h": _BLOCK + "ff.net.2",
    r"mixins\.adaln_layer\.query_layernorm_list\.(\d+)": _BLOCK + "attn1.norm_q",
    r"mixins\.adaln_layer\.key_layernorm_list\.(\d+)": _BLOCK + "attn1.norm_k",
    r"transformer\.final_layernorm": "norm_final",
    r"mixins\.final_layer\.norm_final": "norm_out.norm",
    r"mixins\.final_layer\.adaLN_modulation\.1": "norm_out.linear",
    r"mixins\.final_layer\.linear": "proj_out",
}
# Fused modules: number of row chunks, and which of them make up each target. Modulation chunks are shift, scale, gate
# of attention, the same of the MLP, for video; then the same six for text. Ours hold attention's six, then the MLP's.
TRANSFORMER_FUSED: dict[str, tuple[int, dict[str, tuple[int, ...]]]] = {
    r"transformer\.layers\.(\d+)\.attention\.query_key_value": (
        3,
        {_BLOCK + "attn1.to_q": (0,), _BLOCK + "attn1.to_k": (1,), _BLOCK + "attn1.to_v": (2,)},
    ),
    r"mixins\.adaln_layer\.adaLN_modulations\.(\d+)\.1": (
        12,
        {_BLOCK + "norm1.linear": (0, 1, 2, 6, 7, 8), _BLOCK + "norm2.linear": (3, 4, 5, 9, 10, 11)},
    ),
}
VAE_MODULES = {
    r"encoder\.down\.(\d+)\.block\.(\d+)\.nin_shortcut": "encoder.down_blocks.{}.resnets.{}.conv_shortcut",
    r"encoder\.down\.(\d+)\.block\.(\d+)\.(.+)": "encoder.down_blocks.{}.resnets.{}.{}",
    r"encoder\.down\.(\d+)\.downsample\.conv": "encoder.down_blocks.{}.downsamplers.0.conv",
    r"decoder\.up\.(\d+)\.block\.(\d+)\.nin_shortcut": "decoder.up_blocks.{}.resnets.{}.conv_shortcut",
    r"decoder\.up\.(\d+)\.block\.(\d+)\.(.+)": "decoder.up_blocks.{}.resnets.{}.{}",
    r"decoder\.up\.(\d+)\.upsample\.conv": "decoder.up_blocks.{}.upsamplers.0.conv",
    r"(encoder|decoder)\.mid\.block_1\.(.+)": "{}.mid_block.resnets.0.{}",
    r"(encoder|decoder)\.mid\.block_2\.(.+)": "{}.mid_block.resnets.1.{}",
    r"(encoder|decoder)\.(conv_in\.conv|conv_out\.conv|norm_out(?:\..+)?)": "{}.{}",
}

State = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Conversion:
    """Converted weights.

    Attributes:
        weights: Our parameter name -> tensor.
        dropped: Reference key that was left out -> reason.
        lora: With ``merge_lora=False``, the LoRA under PEFT's names, its scale folded into ``lora_B`` so that it loads
            with alpha equal to the rank; otherwise empty.
    """

    weights: dict[str, torch.Tensor]
    dropped: dict[str, str]
    lora: dict[str, torch.Tensor] = field(default_factory=dict)

    def load_into(self, model: nn.Module) -> None:
        """Copy the weights into a model that has exactly these parameters.

        Raises:
            ValueError: If a weight is missing, unknown or of another shape; all of them are named.
        """
        expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        problems = [f"missing {name}" for name in expected if name not in self.weights]
        problems += [f"unknown {name}" for name in self.weights if name not in expected]
        problems += [
            f"{name} has shape {tuple(tensor.shape)}, the model needs {expected[name]}"
            for name, tensor in self.weights.items()
            if name in expected and tuple(tensor.shape) != expected[name]
        ]
        _raise_if(problems, f"the checkpoint does not fit {type(model).__name__}")
        model.load_state_dict(self.weights, strict=True)


@dataclass
class _Module:
    """Tensors of one reference module."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    down: dict[int, torch.Tensor] = field(default_factory=dict)
    up: dict[int, torch.Tensor] = field(default_factory=dict)


def read_checkpoint(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a reference checkpoint without executing anything in it.

    Args:
        path: A ``.safetensors`` file, or a torch file whose state dict may lie under "module" or "state_dict".

    Returns:
        The state dict, on the CPU.

    Raises:
        ValueError: If the file holds no state dict.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return load_file(path)
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    for key in STATE_DICT_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = isinstance(content, Mapping) and all(isinstance(v, torch.Tensor) for v in content.values())
    if not tensors or not content:
        raise ValueError(
            f"{path} holds no state dict, neither at its top nor under {' or '.join(STATE_DICT_KEYS)}"
        )
    return dict(content)


def convert_transformer(
    state: State, *, merge_lora: bool = True, lora_alpha: float = RELEASED_LORA_ALPHA
) -> Conversion:
    """Convert a Stage I or Stage II transformer.

    Args:
        state: Reference state dict, keys ``model.diffusion_model.*``.
        merge_lora: Add LoRA branches to the weights (in float32, then back to the weight's dtype); otherwise keep them
            apart in `Conversion.lora`.
        lora_alpha: The LoRA's alpha; 1 in the released checkpoint.

    Returns:
        The conversion.

    Raises:
        ValueError: If a key is unknown or a LoRA is incomplete; all of them are named.
    """
    state, dropped = _drop(state, TRANSFORMER_DROPPED)
    modules, problems = _group(state)
    weights: dict[str, torch.Tensor] = {}
    lora: dict[str, torch.Tensor] = {}
    for name, module in modules.items():
        chunks, targets = _transformer_targets(name)
        problems += _check_module(name, module, num_chunks=chunks, known=bool(targets))
        if problems:
            continue
        tensors = dict(module.tensors)
        if module.down and merge_lora:
            tensors["weight"] = _merged(module, lora_alpha)
        for target, rows in targets.items():
            for kind, tensor in tensors.items():
                weights[f"{target}.{kind}"] = _take_rows(tensor, chunks, rows)
            if module.down and not merge_lora:
                down, up = _lora_of(module, chunks, rows)
                lora[f"{target}.lora_A.weight"] = down.contiguous()
                lora[f"{target}.lora_B.weight"] = up * (lora_alpha / down.shape[0])
    _raise_if(problems, "cannot convert the transformer")
    return Conversion(weights, dropped, lora)


def convert_vae(state: State) -> Conversion:
    """Convert the 3D causal VAE (keys ``encoder.*`` and ``decoder.*``).

    Raises:
        ValueError: If a key is unknown; all of them are named.
    """
    state, dropped = _drop(state, VAE_DROPPED)
    up_levels = [int(match[1]) for key in state if (match := re.match(r"decoder\.up\.(\d+)\.", key))]
    weights, problems = {}, []
    for key, tensor in state.items():
        name, _, kind = key.rpartition(".")
        # The reference counts the decoder's levels from the output, diffusers from the latent.
        reversed_name = re.sub(
            r"^(decoder\.up\.)(\d+)", lambda match: f"{match[1]}{max(up_levels) - int(match[2])}", name
        )
        target = _translate(reversed_name, VAE_MODULES)
        if target is None:
            problems.append(f"unknown {key}")
        else:
            weights[f"{target}.{kind}"] = tensor
    _raise_if(problems, "cannot convert the VAE")
    return Conversion(weights, dropped)


def transformer_config(weights: State, *, max_text_seq_length: int) -> dict[str, Any]:
    """Config of the transformer that converted weights belong to, read off their shapes.

    Args:
        weights: `Conversion.weights` of a transformer.
        max_text_seq_length: Text tokens, which no shape tells (226 in the released models).

    Returns:
        Keyword arguments for `FlashVideoTransformer3DModel`.
    """
    dim, in_channels, patch_size, _ = weights["patch_embed.proj.weight"].shape
    head_dim = weights["transformer_blocks.0.attn1.norm_q.weight"].shape[0]
    return {
        "num_attention_heads": dim // head_dim,
        "attention_head_dim": head_dim,
        "in_channels": in_channels,
        "out_channels": weights["proj_out.weight"].shape[0] // patch_size**2,
        "time_embed_dim": weights["time_embedding.linear_1.weight"].shape[0],
        "text_embed_dim": weights["patch_embed.text_proj.weight"].shape[1],
        "num_layers": _count(weights, r"transformer_blocks\.(\d+)\."),
        "patch_size": patch_size,
        "max_text_seq_length": max_text_seq_length,
        "noise_step_embed": "noise_step_embedding.linear_1.weight" in weights,
        "num_frames_embed": "num_frames_embedding.linear_1.weight" in weights,
    }


def vae_config(weights: State) -> dict[str, Any]:
    """Config of the VAE that converted weights belong to, read off their shapes.

    Returns:
        Keyword arguments for ``AutoencoderKLCogVideoX``; what shapes do not tell keeps diffusers' default.
    """
    levels = _count(weights, r"encoder\.down_blocks\.(\d+)\.")
    return {
        "block_out_channels": tuple(
            weights[f"encoder.down_blocks.{i}.resnets.0.conv2.conv.weight"].shape[0] for i in range(levels)
        ),
        "down_block_types": ("CogVideoXDownBlock3D",) * levels,
        "up_block_types": ("CogVideoXUpBlock3D",) * levels,
        "latent_channels": weights["decoder.conv_in.conv.weight"].shape[1],
        "layers_per_block": _count(weights, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
    }


def _drop(state: State, patterns: Mapping[str, str]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    kept, dropped = {}, {}
    for key, tensor in state.items():
        reason = next((reason for pattern, reason in patterns.items() if re.fullmatch(pattern, key)), None)
        if reason is None:
            kept[key] = tensor
        else:
            dropped[key] = reason
    return kept, dropped


def _group(state: State) -> tuple[dict[str, _Module], list[str]]:
    """Tensors by module name (without the prefix), and keys that fit no pattern."""
    modules: dict[str, _Module] = defaultdict(_Module)
    problems = []
    for key, tensor in state.items():
        match = re.fullmatch(
            re.escape(TRANSFORMER_PREFIX) + r"(.+?)(?:\.(matrix_[AB])\.(\d+)|(?:\.original)?\.(weight|bias))",
            key,
        )
        if match is None:
            problems.append(f"unknown {key}")
            continue
        name, matrix, part, kind = match.groups()
        module = modules[name]
        if matrix is None:
            if kind in module.tensors:
                problems.append(f"{key} is there twice, plain and as .original")
            module.tensors[kind] = tensor
        else:
            (module.down if matrix == "matrix_A" else module.up)[int(part)] = tensor
    return dict(modules), problems


def _transformer_targets(name: str) -> tuple[int, dict[str, tuple[int, ...]]]:
    """Row chunks of a reference module, and which of them each of our modules takes; no targets if unknown."""
    target = _translate(name, TRANSFORMER_MODULES)
    if target is not None:
        return 1, {target: (0,)}
    for pattern, (chunks, targets) in TRANSFORMER_FUSED.items():
        if match := re.fullmatch(pattern, name):
            return chunks, {target.format(*match.groups()): rows for target, rows in targets.items()}
    return 1, {}


def _check_module(name: str, module: _Module, *, num_chunks: int, known: bool) -> Iterable[str]:
    full = TRANSFORMER_PREFIX + name
    if not known:
        yield f"unknown {full}"
        return
    if "weight" not in module.tensors:
        yield f"missing {full}.weight"
        return
    for kind, tensor in module.tensors.items():
        if tensor.shape[0] % num_chunks:
            yield f"{full}.{kind} has shape {tuple(tensor.shape)}, its rows do not divide by {num_chunks}"
    for part in sorted(module.down.keys() ^ module.up.keys()):
        matrix = "matrix_B" if part in module.down else "matrix_A"
        yield f"missing {full}.{matrix}.{part}"
    if module.down and module.down.keys() == module.up.keys():
        yield from _check_lora(full, module, num_chunks)


def _check_lora(full: str, module: _Module, num_chunks: int) -> Iterable[str]:
    parts = sorted(module.down)
    rows, columns = module.tensors["weight"].shape
    if parts != list(range(len(parts))) or num_chunks % len(parts):
        yield f"{full} has LoRA parts {parts}, expected 0.. of a number that divides {num_chunks}"
        return
    for part in parts:
        down, up = tuple(module.down[part].shape), tuple(module.up[part].shape)
        if down != (up[-1], columns) or up != (rows // len(parts), down[0]):
            yield (
                f"{full} part {part}: matrix_A {down} and matrix_B {up} do not make up a weight of "
                f"{(rows // len(parts), columns)}"
            )


def _merged(module: _Module, alpha: float) -> torch.Tensor:
    """``W + concat_j(B_j A_j) * alpha / r``, computed in float32."""
    weight = module.tensors["weight"]
    rank = module.down[0].shape[0]
    delta = torch.cat([module.up[j].float() @ module.down[j].float() for j in range(len(module.down))])
    return (weight.float() + delta * (alpha / rank)).to(weight.dtype)


def _lora_of(module: _Module, chunks: int, rows: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """The (A, B) pair of a target that takes some row chunks; they all lie in one LoRA part."""
    chunks_per_part = chunks // len(module.down)
    (part,) = {row // chunks_per_part for row in rows}
    local_rows = tuple(row - part * chunks_per_part for row in rows)
    return module.down[part], _take_rows(module.up[part], chunks_per_part, local_rows)


def _take_rows(tensor: torch.Tensor, chunks: int, rows: tuple[int, ...]) -> torch.Tensor:
    if chunks == 1:
        return tensor
    parts = tensor.chunk(chunks)
    return torch.cat([parts[row] for row in rows])


def _translate(name: str, patterns: Mapping[str, str]) -> str | None:
    for pattern, target in patterns.items():
        if match := re.fullmatch(pattern, name):
            return target.format(*match.groups())
    return None


def _count(weights: State, pattern: str) -> int:
    return 1 + max(int(match[1]) for key in weights if (match := re.match(pattern, key)))


def _raise_if(problems: Iterable[str], sentence: str) -> None:
    if problems := list(problems):
        raise ValueError(f"{sentence}: " + "; ".join(problems))
