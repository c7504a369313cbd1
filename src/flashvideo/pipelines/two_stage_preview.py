"""Stage I in a run of both stages: a preview made, or taken up where it was left.

Shapes: B clips, F frames; L text tokens, D channels of the text encoder.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from diffusers import DiffusionPipeline

from flashvideo import __version__
from flashvideo.pipelines.base import Callback
from flashvideo.pipelines.inputs import generator_or_fresh, or_default
from flashvideo.pipelines.outputs import FlashVideoStage1Output, Preview
from flashvideo.pipelines.preview import PreviewSettings, PreviewState
from flashvideo.pipelines.two_stage_model import TwoStageModel

logger = logging.getLogger(__name__)


class PreviewSteps(TwoStageModel):
    """How `FlashVideoPipeline` comes to the preview that its Stage II starts from."""

    def make_preview(
        self,
        prompt: str | Sequence[str],
        shape: tuple[int, int, int],
        *,
        final: tuple[int, int] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_schedule: str | None = None,
        generator: torch.Generator | None = None,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Preview:
        """Runs Stage I.

        Args:
            prompt: One prompt or B prompts.
            shape: Frames, height and width of the preview.
            final: Height and width of the video that the preview is for, which it notes; the model's own if None.
            prompt_embeds: Stage I's embeddings (B, L, D) of the prompt; made here if None.
            num_inference_steps: Steps of Stage I; the preset's if None, as for all that follow.
            guidance_scale: Guidance scale of Stage I.
            guidance_schedule: Guidance schedule of Stage I.
            generator: Source of all randomness; a fresh one if None.
            callback_on_step_end: Called after each step.
            callback_on_step_end_tensor_inputs: What the callback gets.

        Returns:
            The preview; without a state if a callback interrupted it, since it is not complete then.
        """
        generator = generator_or_fresh(generator)
        settings = self.preview_settings(
            prompt,
            shape,
            final=final,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance_schedule=guidance_schedule,
            seed=generator.initial_seed(),
        )
        result = self.stage1(
            list(settings.prompts) if prompt_embeds is None else None,
            prompt_embeds=prompt_embeds,
            num_frames=settings.num_frames,
            height=settings.height,
            width=settings.width,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            guidance_schedule=settings.guidance_schedule,
            generator=generator,
            output_type="pt",
            callback_on_step_end=self.relay(callback_on_step_end),
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        assert isinstance(result, FlashVideoStage1Output)
        assert isinstance(result.frames, torch.Tensor)
        state = None
        if not self.interrupt:
            state = PreviewState(
                latents=result.latents,
                generator_state=generator.get_state(),
                generator_device=generator.device.type,
                settings=settings,
            )
        return Preview(pixels=result.frames, generator=generator, latents=result.latents, state=state)

    def preview_settings(
        self,
        prompt: str | Sequence[str],
        shape: tuple[int, int, int],
        *,
        seed: int,
        final: tuple[int, int] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_schedule: str | None = None,
    ) -> PreviewSettings:
        """Returns what `make_preview` will note of a preview, without making it.

        Args:
            prompt: One prompt or B prompts.
            shape: Frames, height and width of the preview.
            seed: Seed of its generator.
            final: Height and width of the video that the preview is for; the model's own if None.
            num_inference_steps: Steps of Stage I; the preset's if None, as for all that follow.
            guidance_scale: Guidance scale of Stage I.
            guidance_schedule: Guidance schedule of Stage I.
        """
        defaults = self.preset.stage1
        return PreviewSettings(
            model=self.preset.name,
            version=__version__,
            prompts=(prompt,) if isinstance(prompt, str) else tuple(prompt),
            seed=seed,
            num_frames=shape[0],
            height=shape[1],
            width=shape[2],
            num_inference_steps=or_default(num_inference_steps, defaults.num_inference_steps),
            guidance_scale=or_default(guidance_scale, defaults.guidance_scale),
            guidance_schedule=or_default(guidance_schedule, defaults.guidance_schedule),
            final_height=None if final is None else final[0],
            final_width=None if final is None else final[1],
            loras=tuple(f"{name}:{scale:g}" for name, scale in self.lora_scales().items()),
        )

    def open_preview(
        self, source: PreviewState | torch.Tensor, generator: torch.Generator | None = None
    ) -> Preview:
        """Takes up a preview where it was left.

        Args:
            source: A state, from which the result is the same as without a stop; or pixels (B, F, 3, H, W).
            generator: Replaces the state's own generator, for other random detail.

        Returns:
            The preview.
        """
        if isinstance(source, torch.Tensor):
            return Preview(pixels=source, generator=generator_or_fresh(generator), latents=None, state=None)
        if generator is not None:
            logger.info(
                "the given generator replaces the preview's own: the detail differs from an unbroken run"
            )
        return Preview(
            pixels=self.stage1.decode_latents(source.latents.to(self._execution_device)),
            generator=source.generator() if generator is None else generator,
            latents=source.latents,
            state=source,
        )

    def relay(self, callback: Callback | None) -> Callback:
        """Wraps a callback for a stage: it sees this pipeline, and interrupting this pipeline interrupts the stage."""

        def relayed(
            stage: DiffusionPipeline, step: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]
        ) -> dict[str, torch.Tensor] | None:
            replaced = callback(self, step, timestep, tensors) if callback is not None else None
            stage._interrupt = self._interrupt
            return replaced

        return relayed
