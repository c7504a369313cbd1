"""Reference checkpoints -> our models: key maps and LoRA merge.

The reference stores Stage I with its LoRA apart: ``X.original`` and, per output part j, ``X.matrix_A.j`` (r, in) and
``X.matrix_B.j`` (out / parts, r); the effective weight is ``W + concat_j(B_j A_j) * alpha / r`` with alpha = 1. Fused
projections are cut along their rows: qkv in plain thirds, the modulation in twelfths.

Strict in both directions: a key is converted, dropped for a stated reason, or an error. Planning needs names, shapes
and dtypes only; `flashvideo.models.convert_back` is the way back.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from flashvideo.models.recipe import Chunk, LoraBranch, Recipe, State, specs_of
from flashvideo.models.renaming import (
    TRANSFORMER_FUSED,
    TRANSFORMER_RULES,
    VAE_RULES,
    fill,
    flip_decoder_level,
    match_fields,
    rename,
)
from flashvideo.models.strictness import misfits, raise_if, split_dropped

TRANSFORMER_PREFIX = "model.diffusion_model."
RELEASED_LORA_ALPHA = 1.0

TRANSFORMER_DROPPED = {
    r"model\.diffusion_model\.transformer\.position_embeddings\.weight": "stored by the reference, never used",
    r"model\.diffusion_model\.mixins\.pos_embed\.freqs_(sin|cos)": "rotary tables, computed from the latent's size",
    r"first_stage_model\..+": "the VAE, which has its own checkpoint",
    r"conditioner\..+": "the text encoder, which has its own checkpoint",
}
VAE_DROPPED = {r"loss\..+": "discriminator and perceptual loss, used in training only"}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a checkpoint becomes a model.

    Attributes:
        weights: Our parameter name -> how it is made of the checkpoint's tensors.
        dropped: Key that is left out -> reason.
        lora: With a LoRA kept apart, its matrices under PEFT's names, unscaled; otherwise empty.
    """

    weights: dict[str, Recipe]
    dropped: dict[str, str]
    lora: dict[str, Recipe] = field(default_factory=dict)


@dataclass(frozen=True)
class Conversion:
    """Converted weights, all of them in memory.

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
        problems = misfits(self.weights, model.state_dict())
        raise_if(problems, f"the checkpoint does not fit {type(model).__name__}")
        model.load_state_dict(self.weights, strict=True)


@dataclass
class _Module:
    """Keys of one reference module."""

    keys: dict[str, str] = field(default_factory=dict)
    down: dict[int, str] = field(default_factory=dict)
    up: dict[int, str] = field(default_factory=dict)


def convert_transformer(
    state: State, *, merge_lora: bool = True, lora_alpha: float = RELEASED_LORA_ALPHA
) -> Conversion:
    """Convert a Stage I or Stage II transformer in memory.

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
    plan = plan_transformer(specs_of(state), merge_lora=merge_lora, lora_alpha=lora_alpha)
    lora = _build(plan.lora, state)
    for name, matrix in lora.items():
        if name.endswith("lora_B.weight"):
            lora[name] = matrix * (lora_alpha / matrix.shape[1])
    return Conversion(_build(plan.weights, state), plan.dropped, lora)


def convert_vae(state: State) -> Conversion:
    """Convert the 3D causal VAE (keys ``encoder.*`` and ``decoder.*``) in memory.

    Raises:
        ValueError: If a key is unknown; all of them are named.
    """
    plan = plan_vae(specs_of(state))
    return Conversion(_build(plan.weights, state), plan.dropped)


def plan_transformer(
    specs: State, *, merge_lora: bool = True, lora_alpha: float = RELEASED_LORA_ALPHA
) -> Plan:
    """Plan the conversion of a Stage I or Stage II transformer.

    Args:
        specs: Reference state dict, of which only names and shapes are read.
        merge_lora: Merge LoRA branches, or keep them apart.
        lora_alpha: The LoRA's alpha.

    Returns:
        The plan. Whether it makes up a whole model is checked by `check_complete`.

    Raises:
        ValueError: If a key is unknown or a LoRA is incomplete; all of them are named.
    """
    kept, dropped = split_dropped(specs, TRANSFORMER_DROPPED)
    modules, problems = _group(kept)
    plan = Plan(weights={}, dropped=dropped)
    for name, module in modules.items():
        num_chunks, targets = _transformer_targets(name)
        found = list(_check_module(name, module, specs, num_chunks=num_chunks, known=bool(targets)))
        problems += found
        if not found:
            _plan_module(plan, module, specs, num_chunks, targets, lora_alpha if merge_lora else None)
    raise_if(problems, "cannot convert the transformer")
    return plan


def plan_vae(specs: State) -> Plan:
    """Plan the conversion of the 3D causal VAE.

    Raises:
        ValueError: If a key is unknown; all of them are named.
    """
    kept, dropped = split_dropped(specs, VAE_DROPPED)
    num_levels = 1 + max(
        (int(m[1]) for key in kept if (m := re.match(r"decoder\.up\.(\d+)\.", key))), default=0
    )
    weights: dict[str, Recipe] = {}
    problems = []
    for key in kept:
        name, _, kind = key.rpartition(".")
        target = rename(flip_decoder_level(name, "decoder.up.", num_levels), VAE_RULES)
        if target is None or f"{target}.{kind}" in weights:
            problems.append(f"unknown {key}")
        else:
            weights[f"{target}.{kind}"] = Recipe.copy(key)
    raise_if(problems, "cannot convert the VAE")
    return Plan(weights=weights, dropped=dropped)


def transformer_config(weights: State, *, max_text_seq_length: int) -> dict[str, Any]:
    """Config of the transformer that converted weights belong to, read off their shapes.

    Args:
        weights: Converted weights of a transformer, or their shapes on the meta device.
        max_text_seq_length: Text tokens, which no shape tells (226 in the released models).

    Returns:
        Keyword arguments for `FlashVideoTransformer3DModel`.

    Raises:
        ValueError: If a weight that tells the config is missing.
    """
    per_head = "transformer_blocks.{}.attn1.norm_q.weight"
    per_head = next((name for name in weights if match_fields(name, per_head)), per_head.format(0))
    patch, text, time, out, head = _shapes(
        weights,
        {
            "patch_embed.proj.weight": 4,
            "patch_embed.text_proj.weight": 2,
            "time_embedding.linear_1.weight": 2,
            "proj_out.weight": 2,
            per_head: 1,
        },
    )
    dim, in_channels, patch_size, _ = patch
    return {
        "num_attention_heads": dim // head[0],
        "attention_head_dim": head[0],
        "in_channels": in_channels,
        "out_channels": out[0] // patch_size**2,
        "time_embed_dim": time[0],
        "text_embed_dim": text[1],
        "num_layers": _count(weights, r"transformer_blocks\.(\d+)\."),
        "patch_size": patch_size,
        "max_text_seq_length": max_text_seq_length,
        "noise_step_embed": any(name.startswith("noise_step_embedding.") for name in weights),
        "num_frames_embed": any(name.startswith("num_frames_embedding.") for name in weights),
    }


def vae_config(weights: State) -> dict[str, Any]:
    """Config of the VAE that converted weights belong to, read off their shapes.

    Returns:
        Keyword arguments for ``AutoencoderKLCogVideoX``; what shapes do not tell keeps diffusers' default.

    Raises:
        ValueError: If a weight that tells the config is missing.
    """
    levels = _count(weights, r"encoder\.down_blocks\.(\d+)\.")
    convolutions = [f"encoder.down_blocks.{i}.resnets.0.conv2.conv.weight" for i in range(max(levels, 1))]
    latent, *widths = _shapes(weights, dict.fromkeys(["decoder.conv_in.conv.weight", *convolutions], 5))
    return {
        "block_out_channels": tuple(width[0] for width in widths),
        "down_block_types": ("CogVideoXDownBlock3D",) * levels,
        "up_block_types": ("CogVideoXUpBlock3D",) * levels,
        "latent_channels": latent[1],
        "layers_per_block": _count(weights, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
    }


def _build(recipes: Mapping[str, Recipe], state: State) -> dict[str, torch.Tensor]:
    return {name: recipe.build(state).contiguous() for name, recipe in recipes.items()}


def _group(keys: Iterable[str]) -> tuple[dict[str, _Module], list[str]]:
    """Keys by module name (without the prefix), and what fits no pattern."""
    modules: dict[str, _Module] = defaultdict(_Module)
    problems = []
    for key in keys:
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
            if kind in module.keys:
                problems.append(f"{key} is there twice, plain and as .original")
            module.keys[kind] = key
        else:
            (module.down if matrix == "matrix_A" else module.up)[int(part)] = key
    return dict(modules), problems


def _transformer_targets(name: str) -> tuple[int, dict[str, tuple[int, ...]]]:
    """Row chunks of a reference module, and which of them each of our modules takes; no targets if unknown."""
    target = rename(name, TRANSFORMER_RULES)
    if target is not None:
        return 1, {target: (0,)}
    for pattern, (num_chunks, targets) in TRANSFORMER_FUSED.items():
        if (fields := match_fields(name, pattern)) is not None:
            return num_chunks, {fill(target, fields): rows for target, rows in targets.items()}
    return 1, {}


def num_lora_parts(num_chunks: int) -> int:
    """LoRA parts of a module of so many row chunks: queries, keys and values have one each, all others one in all."""
    return 3 if num_chunks == 3 else 1


def _check_module(name: str, module: _Module, specs: State, *, num_chunks: int, known: bool) -> Iterator[str]:
    full = TRANSFORMER_PREFIX + name
    if not known:
        yield from (
            f"unknown {key}" for key in (*module.keys.values(), *module.down.values(), *module.up.values())
        )
        return
    if "weight" not in module.keys:
        yield f"missing {full}.weight"
        return
    for key in module.keys.values():
        shape = tuple(specs[key].shape)
        if not shape or shape[0] % num_chunks:
            yield f"{key} has shape {shape}, its rows do not divide by {num_chunks}"
    for part in sorted(module.down.keys() ^ module.up.keys()):
        matrix = "matrix_B" if part in module.down else "matrix_A"
        yield f"missing {full}.{matrix}.{part}"
    num_parts = num_lora_parts(num_chunks)
    if module.down and module.down.keys() == module.up.keys():
        yield from _check_lora(full, module, specs, num_parts)
    # The reference writes ".original" where a LoRA is, and only there.
    if not module.down and not module.up and any(".original." in key for key in module.keys.values()):
        yield from (f"missing {full}.matrix_{side}.{part}" for part in range(num_parts) for side in "AB")


def _check_lora(full: str, module: _Module, specs: State, num_parts: int) -> Iterator[str]:
    parts = sorted(module.down)
    if parts != list(range(num_parts)):
        yield f"{full} has LoRA parts {parts}, expected {list(range(num_parts))}"
        return
    weight = tuple(specs[module.keys["weight"]].shape)
    for part in parts:
        down, up = tuple(specs[module.down[part]].shape), tuple(specs[module.up[part]].shape)
        if len(weight) != 2 or len(up) != 2 or down != (up[1], weight[1]) or up[0] * num_parts != weight[0]:
            yield (
                f"{full} part {part}: matrix_A {down} and matrix_B {up} do not make up a weight of "
                f"{(weight[0] // num_parts, *weight[1:])}"
            )


def _plan_module(
    plan: Plan,
    module: _Module,
    specs: State,
    num_chunks: int,
    targets: Mapping[str, tuple[int, ...]],
    merged_alpha: float | None,
) -> None:
    """Add a module's recipes to the plan; with an alpha its LoRA is merged, without it is kept apart."""
    for target, rows in targets.items():
        branch = None
        if module.down:
            branch = _lora_of(module, specs, num_chunks, rows, merged_alpha or RELEASED_LORA_ALPHA)
        for kind, key in module.keys.items():
            plan.weights[f"{target}.{kind}"] = Recipe(
                chunks=tuple(Chunk(key, row, num_chunks) for row in rows),
                lora=branch if kind == "weight" and merged_alpha is not None else None,
            )
        if branch is not None and merged_alpha is None:
            plan.lora[f"{target}.lora_A.weight"] = Recipe.copy(branch.down)
            plan.lora[f"{target}.lora_B.weight"] = Recipe(chunks=branch.up)


def _lora_of(
    module: _Module, specs: State, num_chunks: int, rows: tuple[int, ...], alpha: float
) -> LoraBranch:
    """The branch of a target that takes some row chunks; they all lie in one LoRA part."""
    chunks_per_part = num_chunks // len(module.down)
    (part,) = {row // chunks_per_part for row in rows}
    up = tuple(Chunk(module.up[part], row - part * chunks_per_part, chunks_per_part) for row in rows)
    return LoraBranch(down=module.down[part], up=up, scale=alpha / specs[module.down[part]].shape[0])


def _shapes(weights: State, num_dims: Mapping[str, int]) -> list[torch.Size]:
    """Shapes of the weights that tell a model's config, each with its number of dimensions."""
    problems = [f"missing what makes {name}" for name in num_dims if name not in weights]
    problems += [
        f"what makes {name} has shape {tuple(weights[name].shape)}, expected {num} dimensions"
        for name, num in num_dims.items()
        if name in weights and weights[name].ndim != num
    ]
    raise_if(problems, "the checkpoint does not tell its model's config")
    return [weights[name].shape for name in num_dims]


def _count(weights: State, pattern: str) -> int:
    return 1 + max((int(match[1]) for key in weights if (match := re.match(pattern, key))), default=-1)
