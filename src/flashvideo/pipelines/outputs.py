"""What the pipelines return.

Shapes: B clips, F frames, H, W height and width of the frames; f, C, h, w latent frames, channels, height and width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image

from flashvideo.pipelines.preview import PreviewState
from flashvideo.video import to_uint8

Frames: TypeAlias = "list[list[Image.Image]] | np.ndarray | torch.Tensor"
"""Frames in one of the forms of `postprocess_frames`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Preview:
    """What Stage II starts from; the two stages of `FlashVideoPipeline` pass it on."""

    pixels: torch.Tensor
    """(B, F, 3, H, W) in [-1, 1], not rounded."""

    generator: torch.Generator
    """Source of Stage II's randomness."""

    latents: torch.Tensor | None
    """Scaled Stage I latents (B, f, C, h, w); None if the preview came as pixels."""

    state: PreviewState | None
    """What a file of the preview holds; None if it came as pixels or is not complete."""

    def frames(self, output_type: str) -> Frames | None:
        """Returns the preview in the form asked for; None for latents that there are none of."""
        return self.latents if output_type == "latent" else postprocess_frames(self.pixels, output_type)


@dataclass
class FlashVideoStage1Output(BaseOutput):
    """What Stage I returns.

    Attributes:
        frames: The preview in the form asked for; the latents for `output_type="latent"`.
        latents: Scaled latents (B, f, C, h, w), float32.
    """

    frames: Frames
    latents: torch.Tensor


@dataclass
class FlashVideoEnhanceOutput(BaseOutput):
    """What Stage II returns.

    Attributes:
        frames: The enhanced clip in the form asked for; scaled latents for `output_type="latent"`.
    """

    frames: Frames


@dataclass
class FlashVideoPipelineOutput(BaseOutput):
    """What both stages together return.

    Attributes:
        frames: The final video in the form asked for; None where the run stopped at the preview.
        preview_frames: The Stage I video in the form asked for; None where the run was continued from a video.
        preview_latents: Scaled Stage I latents (B, f, C, h, w); None where the run was continued from a video.
        preview: All that it takes to continue from the preview, for `save_preview` or for the `preview` argument.
        timings: Seconds per stage, `"stage1"` and `"stage2"`, of the stages that ran.
    """

    frames: Frames | None = None
    preview_frames: Frames | None = None
    preview_latents: torch.Tensor | None = None
    preview: PreviewState | None = None
    timings: dict[str, float] = field(default_factory=dict)


def postprocess_frames(pixels: torch.Tensor, output_type: str) -> Frames:
    """Brings pixels into the form that was asked for.

    Args:
        pixels: (B, F, 3, H, W) in [-1, 1].
        output_type: `"pt"` for the pixels as they are, in [-1, 1]; `"np"` for float32 (B, F, H, W, 3) in [0, 1], as
            diffusers' `export_to_video` takes a clip of them; `"pil"` for B lists of F Pillow images.

    Returns:
        The frames.
    """
    if output_type == "pt":
        return pixels
    if output_type == "np":
        # (B, F, 3, H, W) -> (B, F, H, W, 3)
        return (pixels.float() / 2 + 0.5).clamp(0, 1).permute(0, 1, 3, 4, 2).cpu().numpy()
    levels = to_uint8(pixels).permute(0, 1, 3, 4, 2).cpu().numpy()
    return [[Image.fromarray(frame) for frame in clip] for clip in levels]
