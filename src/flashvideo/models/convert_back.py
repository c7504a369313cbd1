"""Our models -> reference checkpoints: the way back, and the check that a checkpoint is whole.

The tables are those of the way there (`flashvideo.models.renaming`). A merged LoRA stays merged: its weights go back
under plain names, which the reference reads too.
"""

from collections.abc import Mapping

from torch import nn

from flashvideo.models.convert import TRANSFORMER_PREFIX, Plan, num_lora_parts
from flashvideo.models.lora import LORA_SUFFIXES, PEFT_PREFIX
from flashvideo.models.recipe import Chunk, Recipe, State, build_specs
from flashvideo.models.renaming import (
    TRANSFORMER_FUSED,
    TRANSFORMER_RULES,
    VAE_RULES,
    fill,
    flip_decoder_level,
    match_fields,
    rename,
)
from flashvideo.models.strictness import misfits, raise_if


def plan_reference_transformer(specs: State) -> dict[str, Recipe]:
    """Plan a reference state dict of one of our transformers.

    Args:
        specs: Our parameter name -> tensor without data; a LoRA kept apart beside them, under PEFT's names.

    Returns:
        Reference key -> how it is made. Whether that takes all of `specs`, `check_all_used` tells.
    """
    adapted = {
        name.removeprefix(PEFT_PREFIX).removesuffix(LORA_SUFFIXES[0]) for name in specs if _is_down(name)
    }
    recipes: dict[str, Recipe] = {}
    for name in specs:
        module, _, kind = name.rpartition(".")
        found = _reference_of(module)
        if found is None:
            continue
        target, num_chunks, rows_of = found
        with_lora = any(part in adapted for part in rows_of)
        key = f"{TRANSFORMER_PREFIX}{target}{'.original' if with_lora else ''}.{kind}"
        recipes[key] = Recipe(chunks=_interleaved(rows_of, f".{kind}"))
        if with_lora and kind == "weight":
            recipes |= _lora_back(target, num_chunks, rows_of)
    return recipes


def plan_reference_vae(specs: State) -> dict[str, Recipe]:
    """Plan a reference state dict of the VAE.

    Args:
        specs: Our parameter name -> tensor without data.

    Returns:
        Reference key -> how it is made.
    """
    levels = [fields for name in specs if (fields := match_fields(name, "decoder.up_blocks.{}.{*}"))]
    num_levels = 1 + max((int(level) for level, _ in levels), default=0)
    recipes = {}
    for name in specs:
        module, _, kind = name.rpartition(".")
        if (target := rename(module, VAE_RULES, back=True)) is not None:
            recipes[flip_decoder_level(f"{target}.{kind}", "decoder.up.", num_levels)] = Recipe.copy(name)
    return recipes


def check_all_used(recipes: Mapping[str, Recipe], specs: State, what: str) -> None:
    """Check that a reference state dict takes every tensor that there is, and takes none that is not.

    Raises:
        ValueError: If the reference has no place for a tensor, or misses one; all of them are named.
    """
    used = {chunk.key for recipe in recipes.values() for chunk in recipe.chunks}
    used |= {key for recipe in recipes.values() for key in recipe.equal_to}
    problems = [f"the reference has no place for {name}" for name in specs if name not in used]
    problems += [f"missing {name}" for name in sorted(used) if name not in specs]
    raise_if(problems, f"cannot export {what}")


def check_complete(
    plan: Plan, sources: State, model: nn.Module, back: Mapping[str, Recipe], what: str
) -> None:
    """Check that planned weights are exactly a model's, and name misfits as the checkpoint does.

    Args:
        plan: The plan.
        sources: The checkpoint's tensors without data.
        model: The model of the config that was read off them, on the meta device.
        back: Reference key -> recipe of the whole model, from `plan_reference_transformer` or `plan_reference_vae`.
        what: Whose file it is, for the error.

    Raises:
        ValueError: If a key is missing, unknown or mis-shaped.
    """
    source_of = {chunk.key: key for key, recipe in back.items() for chunk in recipe.chunks}
    source_of |= {name: recipe.chunks[0].key for name, recipe in plan.weights.items()}
    problems = misfits(build_specs(plan.weights, sources), model.state_dict(), source_of)
    raise_if(problems, f"{what} is not a whole {type(model).__name__}")


def _is_down(name: str) -> bool:
    return name.startswith(PEFT_PREFIX) and name.endswith(LORA_SUFFIXES[0])


def _reference_of(module: str) -> tuple[str, int, dict[str, tuple[int, ...]]] | None:
    """The reference's module that one of ours goes into, its row chunks, and which of them each of ours holds."""
    if (target := rename(module, TRANSFORMER_RULES, back=True)) is not None:
        return target, 1, {module: (0,)}
    for pattern, (num_chunks, parts) in TRANSFORMER_FUSED.items():
        for part in parts:
            if (fields := match_fields(module, part)) is not None:
                rows_of = {fill(other, fields): rows for other, rows in parts.items()}
                return fill(pattern, fields), num_chunks, rows_of
    return None


def _interleaved(rows_of: Mapping[str, tuple[int, ...]], suffix: str) -> tuple[Chunk, ...]:
    """The fused module's row chunks in its own order, each from the part that holds it."""
    chunks = {
        row: Chunk(part + suffix, nth, len(rows))
        for part, rows in rows_of.items()
        for nth, row in enumerate(rows)
    }
    return tuple(chunks[row] for row in sorted(chunks))


def _lora_back(target: str, num_chunks: int, rows_of: Mapping[str, tuple[int, ...]]) -> dict[str, Recipe]:
    """The LoRA parts of a reference module; ours that go into the same part share its matrix A."""
    down, up = LORA_SUFFIXES
    rows_by_name = {PEFT_PREFIX + module: rows for module, rows in rows_of.items()}
    if num_lora_parts(num_chunks) == 1:
        groups = [rows_by_name]
    else:
        groups = [{name: rows} for name, rows in rows_by_name.items()]
    recipes = {}
    for part, group in enumerate(groups):
        first, *others = group
        recipes[f"{TRANSFORMER_PREFIX}{target}.matrix_A.{part}"] = Recipe(
            chunks=(Chunk(first + down),), equal_to=tuple(name + down for name in others)
        )
        recipes[f"{TRANSFORMER_PREFIX}{target}.matrix_B.{part}"] = Recipe(chunks=_interleaved(group, up))
    return recipes
