"""What a recipe would do, without doing it: sizes, steps, learning rates, memory, and its first batch as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from flashvideo.data.clips.files import ClipFile
from flashvideo.pipelines.tensor_file import SUFFIX
from flashvideo.shapes import latent_shape, vae_factors
from flashvideo.training.clip_data import StepClips
from flashvideo.training.config import Phase, Recipe
from flashvideo.training.first_batch import draw_batch, first_batch
from flashvideo.training.fitting import Fit, fit
from flashvideo.training.model_configs import recipe_configs
from flashvideo.training.optimizers import learning_rate
from flashvideo.training.precomputed import StepLatents, step_latents
from flashvideo.training.precomputed_description import describe_settings
from flashvideo.training.preference import split_pairs
from flashvideo.training.recipes import PreferenceRecipe
from flashvideo.training.samples import clips_to_watch, own_samples
from flashvideo.training.stage_recipes import Stage1Phase, Stage1Recipe, Stage2Recipe
from flashvideo.training.step_memory import Estimate, Sizes, StepMemory, phase_shapes

PICTURE = "first_batch.png"
MOST_NAMED = 10
"""So many of the clips that are left out are named."""


@dataclass(frozen=True, kw_only=True)
class PhaseOutlook:
    """What a phase would do.

    Attributes:
        number: from 1.
        steps: optimiser steps.
        clips_per_step: over all processes and accumulated batches.
        shapes: (frames, height, width) of its clips.
        tokens: of the longest sample, text among them; 0 where no transformer is trained.
        samples: clips of an epoch; 0 where each step has new ones, None where the clips are not there to be counted.
        steps_per_epoch: likewise.
        clips: of clips of one's own how many there are, in words; empty elsewhere, and where they are not there.
        left_out: the first of those that are left out, with the reason by name.
        rates: (step, learning rate) at the first step, the end of the warm-up, the middle and the last.
        memory: of a process; None where it is not known.
    """

    number: int
    steps: int
    clips_per_step: int
    shapes: tuple[tuple[int, int, int], ...]
    tokens: int
    samples: int | None
    steps_per_epoch: int | None
    clips: str
    left_out: dict[str, str]
    rates: tuple[tuple[int, float], ...]
    memory: StepMemory | None


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What a recipe would do.

    Attributes:
        task: of the recipe.
        sizes: of its networks; None where they are not known.
        missing: folders that are not there, in whose place the released model's sizes stand.
        processes: how many share the work.
        phases: in order.
        fits: how each phase fits the GPUs; None if that was not asked.
        picture: the first batch.
        notes: what could not be found out, in sentences.
    """

    task: str
    sizes: Sizes | None
    missing: tuple[str, ...]
    processes: int
    phases: tuple[PhaseOutlook, ...]
    fits: tuple[Fit, ...] | None
    picture: Path | None
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "task": self.task,
            "parameters": None if self.sizes is None else asdict(self.sizes),
            "missing": list(self.missing),
            "processes": self.processes,
            "phases": [
                {**vars(p), "memory": None if p.memory is None else p.memory.as_dict()} for p in self.phases
            ],
            "fits": None if self.fits is None else [found.as_dict() for found in self.fits],
            "picture": None if self.picture is None else str(self.picture),
            "notes": list(self.notes),
        }


def dry_run(
    recipe: Recipe,
    device: torch.device,
    *,
    gpus: int = 0,
    vram_bytes: int = 0,
    output: Path | None = None,
) -> DryRun:
    """Finds out what a recipe would do; no weights are loaded but a small VAE's, for round trips in the picture.

    Args:
        recipe: The recipe.
        device: Where it would run.
        gpus: How many GPUs to ask about; 0 asks about one process on `device`.
        vram_bytes: Memory of each of them.
        output: Folder for the picture; the recipe's output by default.
    """
    processes = max(1, gpus)
    if isinstance(recipe, PreferenceRecipe):
        return _alignment(recipe, processes)
    notes: list[str] = []
    configs = recipe_configs(recipe)
    estimate = Estimate(configs, torch.device("cuda") if gpus else device)
    owns = _own_clips(recipe, estimate, processes, notes)
    outlooks = tuple(_outlook(recipe, i, estimate, processes, own) for i, own in enumerate(owns))
    if outlooks[0].samples is not None:  # else the clips themselves are not there
        _check_watch(recipe, estimate, notes)
    picture = _picture(recipe, estimate, outlooks, owns[0], output or Path(recipe.output), notes)
    fits = tuple(fit(recipe, estimate, gpus=gpus, vram_bytes=vram_bytes)) if gpus and vram_bytes else None
    return DryRun(
        task=recipe.task,
        sizes=estimate.sizes(recipe),
        missing=configs.missing,
        processes=processes,
        phases=outlooks,
        fits=fits,
        picture=picture,
        notes=tuple(dict.fromkeys(notes)),
    )


def _alignment(recipe: PreferenceRecipe, processes: int) -> DryRun:
    """What an alignment would do; no model is read."""
    notes = [
        "sizes and memory are not estimated for the task preference",
        "the first batch is not drawn: it is of latents that were made before",
    ]
    outlooks = [_outlook(recipe, index, None, processes, None) for index in range(len(recipe.phases))]
    try:
        held_out, pairs = split_pairs(recipe)
    except ValueError as error:
        notes.append(f"training will be refused: {_first_line(error)}")
    else:
        files = len(list(Path(recipe.pairs).glob(f"*{SUFFIX}")))
        told = (
            f"{len(pairs)} pairs to learn from, {len(held_out)} held out; of {files} files the others differ by too "
            "little"
        )
        outlooks = [
            replace(
                outlook,
                clips=told,
                samples=len(pairs),
                steps_per_epoch=-(-len(pairs) // outlook.clips_per_step),
            )
            for outlook in outlooks
        ]
    return DryRun(
        task=recipe.task,
        sizes=None,
        missing=(),
        processes=processes,
        phases=tuple(outlooks),
        fits=None,
        picture=None,
        notes=tuple(notes),
    )


def _outlook(
    recipe: Recipe, index: int, estimate: Estimate | None, processes: int, own: StepClips | StepLatents | None
) -> PhaseOutlook:
    phase = recipe.phases[index]
    clips_per_step = _clips_per_step(phase, processes)
    samples, steps_per_epoch = _epoch(recipe, index, clips_per_step, estimate, own)
    moments = dict.fromkeys((0, min(phase.warmup, phase.steps - 1), phase.steps // 2, phase.steps - 1))
    return PhaseOutlook(
        number=index + 1,
        steps=phase.steps,
        clips_per_step=clips_per_step,
        shapes=phase_shapes(recipe, phase) if estimate is not None else (),
        tokens=_tokens(recipe, phase, estimate),
        samples=samples,
        steps_per_epoch=steps_per_epoch,
        clips="" if own is None else own.clips.describe(),
        left_out={} if own is None else dict(list(own.clips.skipped.items())[:MOST_NAMED]),
        rates=tuple((step, learning_rate(phase, step)) for step in sorted(moments)),
        memory=None if estimate is None else estimate.phase(recipe, phase, processes=processes),
    )


def _clips_per_step(phase: Phase, processes: int) -> int:
    return phase.batch * phase.accumulate * processes


def _own_clips(
    recipe: Recipe, estimate: Estimate, processes: int, notes: list[str]
) -> list[StepClips | StepLatents | None]:
    """Each phase's clips of one's own: None, with a note, if they are not there, and where there are none.

    Precomputed ones that training will refuse are noted too, and counted as if they were decoded.
    """
    owns: list[StepClips | StepLatents | None] = [None] * len(recipe.phases)
    if not isinstance(recipe, Stage1Recipe | Stage2Recipe) or recipe.data is None:
        return owns
    temporal = vae_factors(estimate.work.vae().config)[0]
    captions: dict[ClipFile, str] = {}
    for index, phase in enumerate(recipe.phases):
        clips_per_step = _clips_per_step(phase, processes)
        try:
            if recipe.precomputed:
                owns[index] = _stored(recipe, index, clips_per_step, estimate, captions, notes)
            if owns[index] is None:
                owns[index] = own_samples(recipe, index, clips_per_step, temporal)
        except (ValueError, OSError) as error:
            notes.append(f"the clips are not counted: {_first_line(error)}")
    return owns


def _stored(
    recipe: Stage1Recipe | Stage2Recipe,
    index: int,
    clips_per_step: int,
    estimate: Estimate,
    captions: dict[ClipFile, str],
    notes: list[str],
) -> StepLatents | None:
    """A phase's precomputed samples; None, with a note, if training will refuse them."""
    transformer = estimate.configs.transformer
    try:
        samples = step_latents(
            recipe,
            index,
            clips_per_step,
            models=describe_settings(recipe, max_text_tokens=int(transformer["max_text_seq_length"])),
            has_text=estimate.configs.text_encoder is not None,
            captions=captions,
            temporal=vae_factors(estimate.work.vae().config)[0],
            text_channels=int(transformer["text_embed_dim"]),
        )
    except ValueError as error:
        notes.append(f"training will be refused: {_first_line(error)}")
        return None
    notes.append(
        "whether precomputed was made by the same weights of VAE and text encoder is not checked: none are loaded"
    )
    return samples


def _check_watch(recipe: Recipe, estimate: Estimate, notes: list[str]) -> None:
    """Notes it where clips of one's own leave nothing to validate on."""
    if not isinstance(recipe, Stage1Recipe | Stage2Recipe) or recipe.data is None:
        return
    try:
        clips_to_watch(recipe, vae_factors(estimate.work.vae().config)[0])
    except (ValueError, OSError) as error:
        notes.append(f"training will be refused, for there is nothing to validate on: {_first_line(error)}")


def _epoch(
    recipe: Recipe,
    index: int,
    clips_per_step: int,
    estimate: Estimate | None,
    own: StepClips | StepLatents | None,
) -> tuple[int | None, int | None]:
    """Samples and steps of an epoch."""
    if isinstance(recipe, Stage1Recipe) and recipe.data is None:
        phase = recipe.phases[index]
        lengths = [f for f in dict.fromkeys(phase.lengths or (phase.frames,)) if f in recipe.clips]
        samples = sum(recipe.clips[frames] for frames in lengths) or max(recipe.clips.values())
        return samples, -(-samples // clips_per_step)
    if own is not None:
        return sum(len(group.items) for group in own.sampler.groups), own.sampler.batches_per_pass
    has_own = isinstance(recipe, Stage1Recipe | Stage2Recipe) and recipe.data is not None
    return (None, None) if has_own and estimate is not None else (0, 0)


def _tokens(recipe: Recipe, phase: Phase, estimate: Estimate | None) -> int:
    """Tokens of the longest sample."""
    if estimate is None or not estimate.configs.transformer:
        return 0
    config, most = estimate.configs.transformer, 0
    for frames, height, width in phase_shapes(recipe, phase):
        shape = latent_shape(
            frames, height, width, vae_config=estimate.configs.vae, patch_size=config["patch_size"]
        )
        num_frames = shape.num_frames
        if isinstance(phase, Stage1Phase) and phase.keyframes:
            num_frames = min(num_frames, phase.keyframes)
        most = max(most, num_frames * shape.height * shape.width // config["patch_size"] ** 2)
    return most + int(config["max_text_seq_length"])


def _picture(
    recipe: Recipe,
    estimate: Estimate,
    outlooks: Sequence[PhaseOutlook],
    own: StepClips | StepLatents | None,
    output: Path,
    notes: list[str],
) -> Path | None:
    """Draws the first batch, or notes why not."""
    try:
        rows = first_batch(recipe, estimate, outlooks[0].clips_per_step, own)
    except (ValueError, OSError) as error:
        notes.append(f"the first batch is not drawn: {_first_line(error)}")
        return None
    output.mkdir(parents=True, exist_ok=True)
    return draw_batch(rows, output / PICTURE)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
