"""Network evaluations and operations of the parts of a run that a sweep does, by formula."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from flashvideo.evaluation.cost import (
    run_cost,
    text_flops,
    transformer_flops,
    vae_decode_flops,
    vae_encode_flops,
)
from flashvideo.pipelines.footprint import ModelConfigs
from flashvideo.pipelines.settings import EnhanceSettings
from flashvideo.pipelines.windows import iterate_windows
from flashvideo.shapes import latent_shape, next_multiple, pixels_per_token, vae_factors


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What is counted and not measured."""

    evaluations: Mapping[str, int]
    """Evaluations of the transformer by stage; guidance counts two."""

    flops: Mapping[str, int]
    """Operations by phase."""


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
    return Counted(
        evaluations=cost.evaluations, flops={name: phase.flops for name, phase in cost.phases.items()}
    )


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
    transformer, length = configs.stage2_transformer, configs.preset.stage2.max_text_tokens
    assert transformer is not None
    temporal, _ = vae_factors(configs.vae)
    patch_size = int(transformer["patch_size"])
    multiple = pixels_per_token(configs.vae, patch_size)
    height, width = (next_multiple(side, multiple) for side in settings.working_size)
    windows = list(
        iterate_windows(
            (torch.empty(1, 1, 1, 1) for _ in range(num_frames)),
            window=settings.window,
            overlap=settings.overlap,
            temporal_factor=temporal,
        )
    )
    frames = windows[0].frames.shape[1]
    shape = latent_shape(frames, height, width, vae_config=configs.vae, patch_size=patch_size)
    branches = 2 if has_text and settings.guidance_scale != 1 else 1
    num_passes = len(windows) * settings.num_inference_steps
    text = {}
    if has_text and configs.text_encoder is not None:
        text = {"text": text_flops(configs.text_encoder, length, 1)}
    one_pass = transformer_flops(
        transformer,
        num_latent_frames=shape.num_frames,
        height=shape.height,
        width=shape.width,
        num_text_tokens=length,
        batch=branches,
    )
    return Counted(
        evaluations={"stage2": branches * num_passes},
        flops={
            **text,
            "stage2_encode": len(windows) * vae_encode_flops(configs.vae, frames, height, width, 1),
            "stage2": num_passes * one_pass,
            "stage2_decode": len(windows) * vae_decode_flops(configs.vae, frames, height, width, 1),
        },
    )


def add_counts(parts: list[Counted]) -> Counted:
    """Adds the counts of parts of a run."""
    sums: dict[str, dict[str, int]] = {"evaluations": {}, "flops": {}}
    for part in parts:
        for kind, total in sums.items():
            for name, count in getattr(part, kind).items():
                total[name] = total.get(name, 0) + count
    return Counted(**sums)
