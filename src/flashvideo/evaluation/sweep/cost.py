"""Network evaluations and operations of the parts of a run that a sweep does, by formula."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from flashvideo.evaluation.cost import PhaseCost, run_cost, stage2_cost, text_cost
from flashvideo.pipelines.footprint import ModelConfigs
from flashvideo.pipelines.settings import EnhanceSettings


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What is counted and not measured."""

    evaluations: Mapping[str, int]
    """Evaluations of the transformer by stage; guidance counts two."""

    flops: Mapping[str, int]
    """Operations by phase."""

    @classmethod
    def of(cls, phases: Mapping[str, PhaseCost]) -> Self:
        """Takes from the costs of phases what a sweep keeps."""
        return cls(
            evaluations={name: phases[name].evaluations for name in ("stage1", "stage2") if name in phases},
            flops={name: phase.flops for name, phase in phases.items()},
        )


def preview_cost(
    configs: ModelConfigs, size: tuple[int, int], *, num_frames: int, steps: int, guidance: float
) -> Counted:
    """Counts Stage I with its text.

    Args:
        configs: The model.
        size: Height and width of the video that the preview is for.
        num_frames: Frames.
        steps: Steps of Stage I.
        guidance: Guidance scale of Stage I.
    """
    cost = run_cost(
        configs,
        height=size[0],
        width=size[1],
        num_frames=num_frames,
        stage1_num_inference_steps=steps,
        stage1_guidance_scale=guidance,
        preview_only=True,
    )
    return Counted.of(cost.phases)


def detail_cost(
    configs: ModelConfigs, settings: EnhanceSettings, *, num_frames: int, has_text: bool
) -> Counted:
    """Counts Stage II with its text, of a clip of any length and size.

    Args:
        configs: The model.
        settings: Complete settings.
        num_frames: Frames of the clip.
        has_text: Whether there is a prompt; without one there is no guidance.
    """
    phases, _ = stage2_cost(
        configs,
        settings.working_size,
        num_frames=num_frames,
        num_inference_steps=settings.num_inference_steps,
        guided=has_text and settings.guidance_scale != 1,
        window=settings.window,
        overlap=settings.overlap,
    )
    return Counted.of({**(text_cost(configs, (2,)) if has_text else {}), **phases})


def add_counts(parts: list[Counted]) -> Counted:
    """Adds the counts of parts of a run."""
    sums: dict[str, dict[str, int]] = {"evaluations": {}, "flops": {}}
    for part in parts:
        for kind, total in sums.items():
            for name, count in getattr(part, kind).items():
                total[name] = total.get(name, 0) + count
    return Counted(**sums)
