"""What a run costs, from a model's configs alone: network evaluations, operations, and bytes of weights read.

    run_cost(ModelConfigs.released()).flops

Operations are those of the plain computation (`flashvideo.evaluation.flops`): no tiles, no strips, no LoRA beside the
weights. What is not a network (resizing, samplers, consistency) counts nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKLCogVideoX
from torch import nn
from transformers import T5Config, T5EncoderModel

from flashvideo.evaluation.flops import text_flops, transformer_flops, vae_decode_flops, vae_encode_flops
from flashvideo.models.transformer import FlashVideoTransformer3DModel
from flashvideo.pipelines.footprint import ModelConfigs
from flashvideo.pipelines.inputs import check_count, check_guidance, or_default
from flashvideo.pipelines.memory import PHASES
from flashvideo.pipelines.settings import complete_windows
from flashvideo.pipelines.sizes import enlarged_size, preview_size
from flashvideo.pipelines.windows import iterate_windows
from flashvideo.schedule import FlashVideoScheduler, guidance_scale_at
from flashvideo.shapes import latent_shape, next_multiple, pixels_per_token, vae_factors
from flashvideo.vae import DECODE_LATENT_FRAMES_PER_CHUNK, ENCODE_FRAMES_PER_CHUNK, time_chunks


@dataclass(frozen=True, kw_only=True)
class PhaseCost:
    """What one phase costs."""

    evaluations: int
    """How often its network is evaluated, on one clip each time: guidance counts two, B clips count B, and a chunk of
    the VAE's time counts one."""

    passes: int
    """How often at least the network's weights are read: guidance, and B clips, are one pass in one batch."""

    flops: int
    """Operations of all evaluations, two for each multiplication with an addition."""

    num_parameters: int
    """Numbers that a pass reads."""

    def weight_bytes(self, itemsize: int) -> int:
        """Returns the bytes of weights that are read at least, each number having `itemsize` of them."""
        return self.passes * self.num_parameters * itemsize


@dataclass(frozen=True, kw_only=True)
class RunCost:
    """What a run costs."""

    phases: Mapping[str, PhaseCost]
    """Costs by keys of `flashvideo.pipelines.memory.PHASES`, in order; a phase that does not run is missing."""

    preview: tuple[int, int, int]
    """Frames, height and width of the preview."""

    window: tuple[int, int, int] | None
    """Frames, height and width of a window of Stage II, such as the networks take; None without Stage II."""

    @property
    def flops(self) -> int:
        """Operations of all phases."""
        return sum(phase.flops for phase in self.phases.values())

    @property
    def evaluations(self) -> dict[str, int]:
        """Evaluations of the transformers by stage, such as `{"stage1": 102, "stage2": 8}`."""
        return {
            stage: self.phases[stage].evaluations for stage in ("stage1", "stage2") if stage in self.phases
        }


def run_cost(
    configs: ModelConfigs,
    *,
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    stage1_num_inference_steps: int | None = None,
    stage1_guidance_scale: float | None = None,
    stage1_guidance_schedule: str | None = None,
    window: int | None = None,
    overlap: int | None = None,
    preview_only: bool = False,
    batch: int = 1,
) -> RunCost:
    """Costs of a call of `FlashVideoPipeline` with a prompt. What is None is taken from the model's preset.

    Args:
        configs: The model.
        height: Height of the final video.
        width: Width of the final video.
        num_frames: Frames.
        num_inference_steps: Steps of Stage II.
        guidance_scale: Guidance scale of Stage II.
        stage1_num_inference_steps: Steps of Stage I.
        stage1_guidance_scale: Guidance scale of Stage I.
        stage1_guidance_schedule: Guidance schedule of Stage I.
        window: Frames of a window of Stage II.
        overlap: Frames that windows of Stage II share.
        preview_only: Whether Stage II is left out.
        batch: Prompts B.

    Returns:
        The costs.

    Raises:
        ValueError: If the model does not take such an argument.
    """
    preset = configs.preset
    num_frames = or_default(num_frames, preset.stage1.num_frames)
    final = (or_default(height, preset.stage2.height), or_default(width, preset.stage2.width))
    check_count("batch", batch)
    multiple = pixels_per_token(configs.vae, int(configs.stage1_transformer["patch_size"]))
    preview = (num_frames, *preview_size(*final, preset=preset, multiple=multiple))
    has_stage2 = not preview_only and configs.stage2_transformer is not None
    phases = text_cost(configs, (1, 2) if has_stage2 else (1,), batch=batch)
    evaluations = stage1_evaluations(
        or_default(stage1_num_inference_steps, preset.stage1.num_inference_steps),
        or_default(stage1_guidance_scale, preset.stage1.guidance_scale),
        or_default(stage1_guidance_schedule, preset.stage1.guidance_schedule),
    )
    phases["stage1"] = _denoising(configs, 1, preview, evaluations, batch)
    phases["stage1_decode"] = _decoding(configs, preview, 1, batch)
    if not has_stage2:
        return RunCost(phases=phases, preview=preview, window=None)

    scale = or_default(guidance_scale, preset.stage2.guidance_scale)
    check_guidance("guidance_scale", scale)
    window, overlap = complete_windows(window, overlap, preset=preset, vae_config=configs.vae)
    detail, size = stage2_cost(
        configs,
        enlarged_size(preview[1:], final, preset=preset, multiple=multiple),
        num_frames=num_frames,
        num_inference_steps=or_default(num_inference_steps, preset.stage2.num_inference_steps),
        guided=scale != 1,
        window=window,
        overlap=overlap,
        batch=batch,
    )
    return RunCost(phases={**phases, **detail}, preview=preview, window=size)


def stage2_cost(
    configs: ModelConfigs,
    working_size: tuple[int, int],
    *,
    num_frames: int,
    num_inference_steps: int,
    guided: bool,
    window: int,
    overlap: int,
    batch: int = 1,
) -> tuple[dict[str, PhaseCost], tuple[int, int, int]]:
    """Costs of Stage II alone, without its text, of a clip of any length and size.

    Args:
        configs: The model, with a Stage II.
        working_size: Height and width to which the clip is enlarged.
        num_frames: Frames of the clip.
        num_inference_steps: Steps.
        guided: Whether there is guidance.
        window: Frames of a window.
        overlap: Frames that windows share.
        batch: Clips B.

    Returns:
        Costs by phase, and frames, height and width of a window, such as the networks take.

    Raises:
        ValueError: If there are no steps, or windows do not fit the VAE's time grid.
    """
    assert configs.stage2_transformer is not None
    check_count("num_inference_steps", num_inference_steps)
    multiple = pixels_per_token(configs.vae, int(configs.stage2_transformer["patch_size"]))
    frames, num_windows = _windows(configs, num_frames, window, overlap)
    rows, columns = (next_multiple(side, multiple) for side in working_size)
    size = (frames, rows, columns)
    evaluations = [2 if guided else 1] * num_inference_steps * num_windows
    phases = {
        "stage2_encode": _encoding(configs, size, num_windows, batch),
        "stage2": _denoising(configs, 2, size, evaluations, batch),
        "stage2_decode": _decoding(configs, size, num_windows, batch),
    }
    return phases, size


def text_cost(configs: ModelConfigs, stages: Sequence[int], *, batch: int = 1) -> dict[str, PhaseCost]:
    """Costs of reading prompts, which each stage does with its own prefix and length.

    Args:
        configs: The model.
        stages: Those that read: 1, 2 or both.
        batch: Prompts B.

    Returns:
        The cost of `text`; empty if the model has no text encoder.
    """
    if configs.text_encoder is None:
        return {}
    preset = configs.preset
    tokens = {1: preset.stage1.max_text_tokens, 2: preset.stage2.max_text_tokens}
    lengths = [tokens[stage] for stage in stages]
    cost = PhaseCost(
        evaluations=batch * len(lengths),
        passes=len(lengths),
        flops=sum(text_flops(configs.text_encoder, length, batch) for length in lengths),
        num_parameters=_num_parameters(configs)["text"],
    )
    return {"text": cost}


def stage1_evaluations(
    num_inference_steps: int, guidance_scale: float, guidance_schedule: str = "constant"
) -> list[int]:
    """Evaluations of Stage I's network in each step.

    A step is one evaluation, with guidance two; a schedule may come to no guidance within a run. There are as many
    steps as are asked for: of the released model 51, where the paper counts 50.

    Args:
        num_inference_steps: Number of steps.
        guidance_scale: Scale; 1 means no guidance.
        guidance_schedule: How it changes, see `flashvideo.schedule.guidance_scale_at`.

    Returns:
        1 or 2 for each step.

    Raises:
        ValueError: If a number is out of range, or there is no such schedule.
    """
    check_count("num_inference_steps", num_inference_steps)
    check_guidance("guidance_scale", guidance_scale)
    if guidance_scale == 1:
        return [1] * num_inference_steps
    scheduler = FlashVideoScheduler()
    scheduler.set_timesteps(num_inference_steps)
    scales = [
        guidance_scale_at(guidance_schedule, guidance_scale, int(timestep), num_inference_steps)
        for timestep in scheduler.timesteps
    ]
    return [1 if scale == 1 else 2 for scale in scales]


@functools.lru_cache(maxsize=4)
def _num_parameters(configs: ModelConfigs) -> dict[str, int]:
    """Numbers that an evaluation of each network reads, by phase; phases that the model lacks are missing.

    Of the text encoder's table of words it reads a few rows, so the table does not count.
    """
    with torch.device("meta"):
        vae = AutoencoderKLCogVideoX.from_config(dict(configs.vae))
        networks: dict[str, nn.Module] = {
            "stage1": FlashVideoTransformer3DModel.from_config(dict(configs.stage1_transformer)),
            "stage1_decode": vae.decoder,
            "stage2_encode": vae.encoder,
            "stage2_decode": vae.decoder,
        }
        if configs.stage2_transformer is not None:
            networks["stage2"] = FlashVideoTransformer3DModel.from_config(dict(configs.stage2_transformer))
        if configs.text_encoder is not None:
            encoder = T5EncoderModel(T5Config(**configs.text_encoder))
            networks["text"] = encoder.encoder.block
    counts = {
        name: sum(parameter.numel() for parameter in network.parameters())
        for name, network in networks.items()
    }
    return {name: counts[name] for name in PHASES if name in counts}


def _denoising(
    configs: ModelConfigs, stage: int, size: tuple[int, int, int], evaluations: list[int], batch: int
) -> PhaseCost:
    preset = configs.preset.stage1 if stage == 1 else configs.preset.stage2
    config = configs.stage1_transformer if stage == 1 else configs.stage2_transformer
    assert config is not None
    shape = latent_shape(*size, vae_config=configs.vae, patch_size=int(config["patch_size"]))
    total = batch * sum(evaluations)
    # Batches cost as much as their clips one by one, but for absolute positions, which a batch shares.
    flops = sum(
        transformer_flops(
            config,
            num_latent_frames=shape.num_frames,
            height=shape.height,
            width=shape.width,
            num_text_tokens=preset.max_text_tokens,
            batch=batch * number,
        )
        * evaluations.count(number)
        for number in sorted(set(evaluations))
    )
    return PhaseCost(
        evaluations=total,
        passes=len(evaluations),
        flops=flops,
        num_parameters=_num_parameters(configs)[f"stage{stage}"],
    )


def _encoding(configs: ModelConfigs, size: tuple[int, int, int], num_windows: int, batch: int) -> PhaseCost:
    num_chunks = num_windows * len(time_chunks(size[0], ENCODE_FRAMES_PER_CHUNK))
    return PhaseCost(
        evaluations=batch * num_chunks,
        passes=num_chunks,
        flops=num_windows * vae_encode_flops(configs.vae, *size, batch),
        num_parameters=_num_parameters(configs)["stage2_encode"],
    )


def _decoding(configs: ModelConfigs, size: tuple[int, int, int], num_windows: int, batch: int) -> PhaseCost:
    num_latent_frames = latent_shape(*size, vae_config=configs.vae).num_frames
    num_latent_frames += num_latent_frames % 2 == 0  # `decode_latents` repeats the last one
    num_chunks = num_windows * len(time_chunks(num_latent_frames, DECODE_LATENT_FRAMES_PER_CHUNK))
    return PhaseCost(
        evaluations=batch * num_chunks,
        passes=num_chunks,
        flops=num_windows * vae_decode_flops(configs.vae, *size, batch),
        num_parameters=_num_parameters(configs)["stage1_decode"],
    )


def _windows(configs: ModelConfigs, num_frames: int, window: int, overlap: int) -> tuple[int, int]:
    """Frames of a window of Stage II, and how many windows there are; all are of one length."""
    temporal, _ = vae_factors(configs.vae)
    frames = (torch.empty(1, 1, 1, 1) for _ in range(num_frames))
    lengths = [
        one.frames.shape[1]
        for one in iterate_windows(frames, window=window, overlap=overlap, temporal_factor=temporal)
    ]
    return lengths[0], len(lengths)
