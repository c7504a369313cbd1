"""What a call asks of the memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from flashvideo.pipelines.embeds import PromptEmbeds
from flashvideo.pipelines.inputs import or_default
from flashvideo.pipelines.preview import PreviewState
from flashvideo.pipelines.settings import EnhanceSettings
from flashvideo.shapes import next_num_frames

if TYPE_CHECKING:
    from flashvideo.pipelines.stage2 import FlashVideoEnhancePipeline
    from flashvideo.pipelines.two_stage import FlashVideoPipeline


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a run is asked for, as far as memory depends on it."""

    preview: tuple[int, int, int] | None = None
    """Frames, height and width of the preview; None if there is none in latents."""

    stage1: bool = True
    """Whether the preview is made, and not only decoded."""

    video: tuple[int, int, int] | None = None
    """Frames of a window, height and width at Stage II, such as the models take; None if it does not run."""

    text: bool = True
    """Whether prompts are encoded."""

    guided: tuple[bool, bool] = (True, True)
    """Whether there is guidance at Stage I and at Stage II."""

    batch_size: int = 1
    """Clips at once."""

    def includes(self, part: Workload) -> bool:
        """Whether a run is a part of this one, so that this one's plan holds for it."""
        return (
            part.preview in (None, self.preview)
            and (self.stage1 or part.preview is None or not part.stage1)
            and part.video in (None, self.video)
            and (self.text or not part.text)
            and (part.preview is None or part.guided[0] == self.guided[0])
            and (part.video is None or part.guided[1] == self.guided[1])
            and part.batch_size == self.batch_size
        )


def two_stage_workload(
    pipeline: FlashVideoPipeline,
    source: PreviewState | torch.Tensor | None,
    preview: tuple[int, int, int],
    settings: EnhanceSettings | None,
    *,
    num_clips: int = 1,
    reads_text: bool = True,
    stage1_guidance_scale: float | None = None,
) -> Workload:
    """Describes a run of both stages or of one.

    Args:
        pipeline: The model.
        source: The preview to continue from, if there is one.
        preview: Frames, height and width of the preview.
        settings: Those of Stage II; None if it does not run.
        num_clips: Clips at once.
        reads_text: Whether the text encoder is needed.
        stage1_guidance_scale: Guidance scale of Stage I; the preset's if None.

    Returns:
        The workload.
    """
    scale = or_default(stage1_guidance_scale, pipeline.preset.stage1.guidance_scale)
    return Workload(
        preview=None if isinstance(source, torch.Tensor) else preview,
        stage1=source is None,
        video=None if settings is None else window_size(pipeline.stage2, settings, preview[0]),
        text=reads_text,
        guided=(scale != 1, settings is not None and settings.guidance_scale != 1),
        batch_size=num_clips,
    )


def stage2_workload(
    stage2: FlashVideoEnhancePipeline,
    settings: EnhanceSettings,
    *,
    num_clips: int,
    num_frames: int | None = None,
    prompt: str | list[str] | None = None,
    prompt_embeds: torch.Tensor | None = None,
) -> Workload:
    """Describes a run of Stage II alone.

    Args:
        stage2: The pipeline.
        settings: Its settings.
        num_clips: Clips at once.
        num_frames: Frames of the clips; None if that is not known yet.
        prompt: The call's prompt.
        prompt_embeds: The call's embeddings.

    Returns:
        The workload.
    """
    has_text = prompt is not None or prompt_embeds is not None
    return Workload(
        video=window_size(stage2, settings, num_frames),
        text=prompt is not None,
        guided=(False, has_text and settings.guidance_scale != 1),
        batch_size=num_clips,
    )


def window_size(
    stage2: FlashVideoEnhancePipeline, settings: EnhanceSettings, num_frames: int | None
) -> tuple[int, int, int]:
    """Frames, height and width of the largest window of a clip, as the models take it."""
    window = settings.window
    if num_frames is not None:
        window = min(window, next_num_frames(num_frames, vae_config=stage2.vae.config))
    return (window, *stage2.padded_size(*settings.working_size))


def count_clips(
    prompt: str | list[str] | None,
    source: PreviewState | torch.Tensor | None,
    prompt_embeds: PromptEmbeds | torch.Tensor | None,
) -> int:
    """Returns how many clips a call makes."""
    if isinstance(source, PreviewState):
        return len(source.latents)
    if source is not None:
        return len(source)
    if prompt_embeds is not None:
        return len(prompt_embeds.prompts if isinstance(prompt_embeds, PromptEmbeds) else prompt_embeds)
    return 1 if prompt is None or isinstance(prompt, str) else len(prompt)
