"""The settings of one Stage II run: what the caller chose, completed from the model's preset."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusers import AutoencoderKLCogVideoX

from flashvideo.flow import time_grid
from flashvideo.pipelines.inputs import check_count, check_guidance, check_shift, or_default
from flashvideo.pipelines.sizes import is_own_pair, upscale_factor
from flashvideo.pipelines.trained import log_untrained_video
from flashvideo.pipelines.windows import check_windows
from flashvideo.presets import Preset
from flashvideo.shapes import vae_factors
from flashvideo.vae import Tiling

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EnhanceSettings:
    """Complete settings of one Stage II run.

    Raises:
        ValueError: If a number is out of range.
    """

    height: int
    """Target height in pixels."""

    width: int
    """Target width in pixels."""

    num_inference_steps: int
    """Euler steps, each one evaluation of the network (two with guidance)."""

    guidance_scale: float
    """Guidance scale; 1 means none."""

    noise_step: int
    """Step of the latent degradation, 0 (none) to 999 (pure noise)."""

    window: int
    """Frames of a window."""

    overlap: int
    """Frames that neighbouring windows share."""

    consistency: bool
    """Whether the result keeps the input's coarse picture and stillness."""

    tiling: Tiling | None = None
    """Tiles of the VAE; None for whole frames."""

    shift: float | None = None
    """Time shift of the grid of steps; None for the scheduler's own."""

    enlarged: tuple[int, int] | None = None
    """Height and width to which the input is resized, of which the middle is kept; None for the target's own."""

    reference_rounding: bool = False
    """Whether time grid and noise step are rounded as in a bfloat16 run of the released code."""

    def __post_init__(self) -> None:
        """Checks the numbers that mean the same for every model."""
        check_count("noise_step", self.noise_step, least=0)
        for name in ("height", "width", "num_inference_steps", "window", "overlap"):
            check_count(name, getattr(self, name))
        check_guidance("guidance_scale", self.guidance_scale)
        check_shift("shift", self.shift)
        if self.working_size[0] < self.height or self.working_size[1] < self.width:
            raise ValueError(
                f"enlarged must cover the height and width of {self.height}x{self.width}, "
                f"got {self.working_size[0]}x{self.working_size[1]}"
            )

    @property
    def working_size(self) -> tuple[int, int]:
        """Height and width at which the model works, before anything is cut off."""
        return (self.height, self.width) if self.enlarged is None else self.enlarged

    def check_one_window(self, num_frames: int) -> None:
        """Checks that a clip is a single window, as latents for output must be.

        Raises:
            ValueError: If it is longer.
        """
        if num_frames > self.window:
            raise ValueError(
                f"output_type 'latent' needs a clip of one window, got {num_frames} frames for windows of "
                f"{self.window}; use another output_type or a longer window"
            )


def complete_settings(
    input_size: tuple[int, int],
    *,
    preset: Preset,
    vae: AutoencoderKLCogVideoX,
    height: int | None = None,
    width: int | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    noise_step: int | None = None,
    shift: float | None = None,
    window: int | None = None,
    overlap: int | None = None,
    consistency: bool | None = None,
    tiling: Tiling | None = None,
    enlarged: tuple[int, int] | None = None,
    reference_rounding: bool = False,
) -> EnhanceSettings:
    """Fills in what is None, and checks the result against the model.

    Args:
        input_size: Height and width of the input.
        preset: Where steps, guidance, noise step and consistency come from.
        vae: The VAE, for its time grid and, if `vae.enable_tiling()` was called, its tile size.
        height: Target height; None together with `width` enlarges the input by the model's own factor.
        width: Target width.
        num_inference_steps: Euler steps.
        guidance_scale: Guidance scale.
        noise_step: Step of the latent degradation.
        shift: Time shift of the grid of steps; None for the scheduler's own.
        window: Frames of a window; None for the clip length that the model was made for.
        overlap: Frames that windows share; None for as little as crosses two latent frames.
        consistency: Whether the result keeps the input's coarse picture and stillness.
        tiling: Tiles of the VAE.
        enlarged: Height and width to which the input is resized, of which the middle is kept.
        reference_rounding: Whether time grid and noise step are rounded as in a bfloat16 run of the released code.

    Returns:
        Complete settings. A change of shape, a shrunk video and a size outside the training range are logged.

    Raises:
        ValueError: In one sentence, what is wrong and what would be right.
    """
    if (height is None) != (width is None):
        raise ValueError(
            f"height and width must be given both or not at all, got height={height}, width={width}"
        )
    if height is None or width is None:
        height, width = (side * upscale_factor(preset) for side in input_size)
    window, overlap = complete_windows(window, overlap, preset=preset, vae_config=vae.config)
    working_size = or_default(enlarged, (height, width))
    defaults = preset.stage2
    settings = EnhanceSettings(
        height=height,
        width=width,
        num_inference_steps=or_default(num_inference_steps, defaults.num_inference_steps),
        guidance_scale=or_default(guidance_scale, defaults.guidance_scale),
        noise_step=or_default(noise_step, defaults.noise_step),
        shift=shift,
        window=window,
        overlap=overlap,
        consistency=or_default(consistency, defaults.consistency),
        tiling=or_default(tiling, _tiling_of(vae, *working_size)),
        enlarged=enlarged,
        reference_rounding=reference_rounding,
    )
    check_windows(window, overlap, temporal_factor=vae_factors(vae.config)[0])
    if reference_rounding:  # too many steps for it are refused here, before any work
        time_grid(settings.num_inference_steps, or_default(shift, defaults.shift), reference_rounding=True)
    if not is_own_pair(input_size, working_size, preset):
        _log_stretch(input_size, working_size)
    _log_shrinkage(input_size, working_size)
    log_untrained_video(*working_size, preset=preset)
    return settings


def complete_windows(
    window: int | None, overlap: int | None, *, preset: Preset, vae_config: Mapping[str, Any]
) -> tuple[int, int]:
    """Fills in the frames of a window and of an overlap as `complete_settings` does, unchecked."""
    temporal, _ = vae_factors(vae_config)
    window = or_default(window, preset.stage1.num_frames)
    return window, or_default(overlap, temporal + 1 if window > temporal + 1 else 1)


def _tiling_of(vae: AutoencoderKLCogVideoX, height: int, width: int) -> Tiling | None:
    """Returns the tiling that the user switched on at the VAE itself, the way of diffusers."""
    if not vae.use_tiling:
        return None
    _, spatial = vae_factors(vae.config)
    max_side = max(vae.tile_latent_min_height, vae.tile_latent_min_width)
    return Tiling.to_fit(
        -(-height // spatial), -(-width // spatial), max_side=max_side, overlap=max_side // 5
    )


def _log_stretch(before: tuple[int, int], after: tuple[int, int]) -> None:
    # Both sides rounded to even numbers, each by a pixel at most, change the shape by no more than this.
    if abs(after[0] * before[1] - after[1] * before[0]) > sum(before):
        logger.warning(
            "the video changes its shape, from %dx%d to %dx%d: it is stretched", *before[::-1], *after[::-1]
        )


def _log_shrinkage(before: tuple[int, int], after: tuple[int, int]) -> None:
    if after[0] < before[0] or after[1] < before[1]:
        logger.warning(
            "the video shrinks, from %dx%d to %dx%d: what it shows is lost", *before[::-1], *after[::-1]
        )
