"""Which samples a phase of either stage is trained on, before any network is there."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from flashvideo.training.clip_data import CACHE, StepClips, held_out_clips, phase_clips
from flashvideo.training.draws import sample_seed
from flashvideo.training.stage_recipes import Stage1Recipe, Stage2Recipe, image_share
from flashvideo.training.world import CaptionedCrops


def own_samples(
    recipe: Stage1Recipe | Stage2Recipe, phase_index: int, clips_per_step: int, temporal: int
) -> StepClips:
    """Clips of one's own for a phase, without those that are held out.

    Args:
        recipe: With `data`.
        phase_index: Of the phase.
        clips_per_step: Of all processes and accumulated batches.
        temporal: The VAE's compression in time.
    """
    assert recipe.data is not None
    is_stage1 = isinstance(recipe, Stage1Recipe)
    clips = phase_clips(
        recipe.data,
        shapes=shapes_of_phase(recipe, phase_index),
        image_share=image_share(recipe.phases[phase_index]),
        seed=sample_seed(recipe.seed, *(() if is_stage1 else (31,)), phase_index),
        temporal=temporal,
        cache=Path(recipe.output) / CACHE,
    )
    return StepClips(clips, clips_per_step, held_out=held_out_share(recipe))


def clips_to_watch(recipe: Stage1Recipe | Stage2Recipe, temporal: int) -> list[tuple[Tensor, str]]:
    """Held-out clips of one's own at the recipe's size, with their captions; Stage I's are as long as it ends with.

    Args:
        recipe: With `data`.
        temporal: The VAE's compression in time.

    Raises:
        ValueError: If there is none.
    """
    data = recipe.validation or recipe.data
    assert data is not None
    if isinstance(recipe, Stage1Recipe):
        frames = max(length for length, *_ in recipe.shapes(len(recipe.phases) - 1))
    else:
        frames = recipe.watch_frames
    return held_out_clips(
        data,
        shape=(frames, *recipe.size),
        count=recipe.watch_clips,
        all_of_it=recipe.validation is not None,
        temporal=temporal,
        cache=Path(recipe.output) / CACHE,
    )


def shapes_of_phase(
    recipe: Stage1Recipe | Stage2Recipe, phase_index: int
) -> tuple[tuple[int, int, int], ...]:
    """(frames, height, width) of all clips of a phase."""
    if isinstance(recipe, Stage1Recipe):
        return recipe.shapes(phase_index)
    return recipe.phases[phase_index].shapes()


def held_out_share(recipe: Stage1Recipe | Stage2Recipe) -> float:
    """The share of clips that validation keeps for itself."""
    return recipe.data.held_out if recipe.data is not None and recipe.validation is None else 0.0


def crops_of_phase(recipe: Stage2Recipe, phase_index: int) -> CaptionedCrops:
    """Procedural crops for a phase of Stage II."""
    seed = sample_seed(recipe.seed, 31, phase_index)
    return CaptionedCrops(seed, recipe.phases[phase_index], recipe.size)
