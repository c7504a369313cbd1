"""Both stages: a prompt to a preview, and the preview to the final video (paper section 3).

    Stage I -> preview -> (a user may stop, look, change the prompt, and continue) -> Stage II

The model, its loading and its sizes are `flashvideo.pipelines.two_stage_model`; the text is encoded by
`flashvideo.pipelines.two_stage_text`, the preview made by `flashvideo.pipelines.two_stage_preview`.

Shapes: B clips, F frames.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX, FlowMatchEulerDiscreteScheduler
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from flashvideo.models.transformer import FlashVideoTransformer3DModel
from flashvideo.pipelines.base import Callback
from flashvideo.pipelines.embeds import PromptEmbeds, text_encoder_id
from flashvideo.pipelines.inputs import (
    check_generator,
    check_output_type,
    check_prompt,
    check_prompt_prefix,
    log_negative_prompt,
    or_default,
    read_preset,
)
from flashvideo.pipelines.outputs import FlashVideoPipelineOutput, Frames
from flashvideo.pipelines.preview import PreviewState, read_preview
from flashvideo.pipelines.settings import complete_settings
from flashvideo.pipelines.sizes import check_crop, upscale_factor
from flashvideo.pipelines.two_stage_preview import PreviewSteps
from flashvideo.pipelines.two_stage_text import check_text, embed_for_stages, prepare_text
from flashvideo.pipelines.workload import Workload, count_clips, two_stage_workload
from flashvideo.presets import Preset
from flashvideo.schedule import FlashVideoScheduler
from flashvideo.vae import Tiling


class FlashVideoPipeline(PreviewSteps):
    """From a prompt to the final video, in two stages.

    A negative prompt has no effect: the models are guided against an embedding of zeros.

    Args:
        tokenizer: Tokenizer of the text encoder; may be None if only `prompt_embeds` are used.
        text_encoder: T5 encoder of both stages; may be None likewise.
        vae: VAE of both stages.
        stage1_transformer: Makes the preview.
        stage1_scheduler: Sampler of Stage I.
        stage2_transformer: Enhances the preview; None for a model that makes previews only, such as CogVideoX.
        stage2_scheduler: Euler's method of Stage II; None likewise.
        preset: Defaults and constants of the model, or their `to_dict()`; stored in `model_index.json`.
        stage1_lora: Folder inside the model's folder with a LoRA of Stage I, which `from_pretrained` applies.

    Example:
        >>> from diffusers.utils import export_to_video
        >>> from flashvideo import load_pipeline
        >>> pipeline = load_pipeline("nano")  # doctest: +SKIP
        >>> result = pipeline("a red circle moves left")  # doctest: +SKIP
        >>> export_to_video(result.frames[0], "circle.mp4", fps=8)  # doctest: +SKIP
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        text_encoder: T5EncoderModel | None,
        vae: AutoencoderKLCogVideoX,
        stage1_transformer: FlashVideoTransformer3DModel,
        stage1_scheduler: FlashVideoScheduler,
        stage2_transformer: FlashVideoTransformer3DModel | None = None,
        stage2_scheduler: FlowMatchEulerDiscreteScheduler | None = None,
        preset: Mapping[str, Any] | Preset | None = None,
        stage1_lora: str | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            vae=vae,
            stage1_transformer=stage1_transformer,
            stage1_scheduler=stage1_scheduler,
            stage2_transformer=stage2_transformer,
            stage2_scheduler=stage2_scheduler,
        )
        self.register_to_config(preset=read_preset(preset).to_dict(), stage1_lora=stage1_lora)

    def check_inputs(
        self,
        prompt: str | list[str] | None,
        source: PreviewState | torch.Tensor | None,
        *,
        preview_only: bool,
        generator: torch.Generator | None,
        output_type: str,
        prompt_prefix: str | None = None,
        prompt_embeds: PromptEmbeds | None = None,
        **stage1_arguments: object,
    ) -> None:
        """Checks the arguments of a call that concern both stages; each stage checks its own.

        Args:
            prompt: The call's prompt.
            source: What `read_preview` returned.
            preview_only: Whether to stop at the preview.
            generator: The call's generator.
            output_type: The call's output type.
            prompt_prefix: The call's prefix.
            prompt_embeds: The call's embeddings.
            stage1_arguments: Arguments that only Stage I takes; None where they were not given.

        Raises:
            ValueError: In one sentence, what is wrong and what would be right.
        """
        check_generator(generator)
        check_output_type(output_type)
        if not preview_only:
            self.check_has_stage2()
        check_text(self, prompt, source, prompt_prefix=prompt_prefix, prompt_embeds=prompt_embeds)
        if source is None:
            return
        num_clips = len(source.latents) if isinstance(source, PreviewState) else len(source)
        self.stage2.check_inputs(
            prompt, num_clips, prompt_embeds=None if prompt_embeds is None else prompt_embeds.stage2
        )
        if preview_only:
            raise ValueError("preview_only makes a preview and preview is one already; drop one of the two")
        given = [name for name, value in stage1_arguments.items() if value is not None]
        if given:
            raise ValueError(
                f"{', '.join(given)} cannot be changed after Stage I, and preview holds its result; "
                "drop them, or drop preview to make a new one"
            )
        if isinstance(source, PreviewState) and source.settings.model != self.preset.name:
            raise ValueError(
                f"preview was made by the model {source.settings.model!r}, but this is {self.preset.name!r}; "
                "load that model, or continue from the preview's pixels"
            )

    @torch.no_grad()
    def encode_prompt(self, prompt: str | Sequence[str], *, prompt_prefix: str | None = None) -> PromptEmbeds:
        """Encodes prompts for both stages, to be kept or to go on without the text encoder.

        Passing the result as `prompt_embeds` gives, bit for bit, what passing the prompt gives. Words that the model
        does not know, and what does not fit, are logged.

        Args:
            prompt: One prompt or B prompts.
            prompt_prefix: Goes before each prompt at Stage II, without a space; the model's own if None.

        Returns:
            The embeddings of both stages, in their transformers' dtypes.

        Raises:
            ValueError: If a prompt is empty, or the pipeline has no text encoder.
        """
        check_prompt(prompt)
        check_prompt_prefix(prompt_prefix, has_prompt=True)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        with self.planned(lambda: Workload(batch_size=len(prompts))):
            stage1, stage2 = embed_for_stages(self, prompts, prompt_prefix=prompt_prefix)
        assert stage1 is not None
        assert stage2 is not None
        return PromptEmbeds(
            stage1=stage1,
            stage2=stage2,
            prompts=tuple(prompts),
            prompt_prefix=or_default(prompt_prefix, self.preset.stage2.prompt_prefix),
            model=self.preset.name,
            text_encoder=text_encoder_id(self.text_encoder, self.tokenizer),
        )

    def seconds_since(self, started: float) -> float:
        """Returns the seconds since `started`, a `time.perf_counter()`, once the device is done with its work."""
        if self._execution_device.type != "cpu":
            torch.accelerator.synchronize(self._execution_device)
        return time.perf_counter() - started

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *,
        prompt_prefix: str | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        noise_step: int | None = None,
        shift: float | None = None,
        stage1_num_inference_steps: int | None = None,
        stage1_guidance_scale: float | None = None,
        stage1_guidance_schedule: str | None = None,
        window: int | None = None,
        overlap: int | None = None,
        consistency: bool | None = None,
        tiling: Tiling | None = None,
        reference_rounding: bool = False,
        generator: torch.Generator | None = None,
        prompt_embeds: PromptEmbeds | None = None,
        negative_prompt: str | list[str] | None = None,
        preview: PreviewState | str | os.PathLike[str] | torch.Tensor | Sequence[Any] | None = None,
        preview_only: bool = False,
        output_type: str = "pil",
        return_dict: bool = True,
        stage1_callback_on_step_end: Callback | None = None,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> FlashVideoPipelineOutput | tuple[Frames | None, Frames | None]:
        """Makes a video, or its preview, or a video from its preview. What is None is taken from the model's preset.

        Args:
            prompt: One prompt or B prompts. With `preview`, a new prompt for Stage II; the preview's own if None.
            prompt_prefix: Goes before each prompt at Stage II, without a space, such as "medium motion,"; the model's
                own if None.
            height: Height of the final video, any; Stage II works at that of the preview enlarged, and the middle is
                kept. `named_size("1080p")` gives both by a name. None for the model's own, or the preview's.
            width: Width of the final video.
            num_frames: Frames, a multiple of the VAE's temporal compression plus one.
            num_inference_steps: Steps of Stage II.
            guidance_scale: Guidance scale of Stage II.
            noise_step: Step of Stage II's latent degradation, 0 to 999.
            shift: Time shift of Stage II's grid of steps; its scheduler's own if None.
            stage1_num_inference_steps: Steps of Stage I.
            stage1_guidance_scale: Guidance scale of Stage I.
            stage1_guidance_schedule: `"constant"` or `"reference"`.
            window: Frames of a window of Stage II.
            overlap: Frames over which the windows of Stage II are cross-faded.
            consistency: Whether the result keeps the preview's coarse picture and stillness
                (`flashvideo.pipelines.consistency`); latents for output are before that.
            tiling: Tiles of the VAE at Stage II, to save memory.
            reference_rounding: Whether Stage II's time grid and noise step are rounded as in a bfloat16 run of the
                released code, to repeat its results; exact otherwise.
            generator: Source of all randomness; a fresh one if None.
            prompt_embeds: What `encode_prompt` made, instead of a prompt; no text encoder is needed then.
            negative_prompt: Has no effect on these models, and is answered with a warning that says so.
            preview: Continue from this: a `PreviewState`, its file, a preview video beside which that file lies, any
                other video file, or pixels (B, F, 3, H, W).
            preview_only: Stop after Stage I.
            output_type: `"pil"`, `"np"` in [0, 1], `"pt"` in [-1, 1], or `"latent"`, of which nothing is cut off.
            return_dict: Whether to return a `FlashVideoPipelineOutput` rather than (frames, preview frames).
            stage1_callback_on_step_end: `(pipeline, step, timestep, tensors) -> tensors to replace`, in Stage I.
            callback_on_step_end: The same in Stage II.
            callback_on_step_end_tensor_inputs: What both get: `"latents"`, `"prompt_embeds"`.

        Returns:
            Frames, preview, and what it takes to continue from the preview.

        Raises:
            ValueError: In one sentence, what is wrong and what would be right.
        """
        source = read_preview(preview)
        self.check_inputs(
            prompt,
            source,
            preview_only=preview_only,
            generator=generator,
            output_type=output_type,
            prompt_prefix=prompt_prefix,
            prompt_embeds=prompt_embeds,
            num_frames=num_frames,
            stage1_num_inference_steps=stage1_num_inference_steps,
            stage1_guidance_scale=stage1_guidance_scale,
            stage1_guidance_schedule=stage1_guidance_schedule,
        )
        preview_shape, (height, width) = self.resolve_sizes(
            source, num_frames=num_frames, height=height, width=width
        )
        enlarged = self.enlarged_size(preview_shape[1:], (height, width))
        check_crop(enlarged, (height, width), step=upscale_factor(self.preset) * self.preview_multiple)
        settings = complete_settings(
            preview_shape[1:],
            preset=self.preset,
            vae=self.vae,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            noise_step=noise_step,
            shift=shift,
            window=window,
            overlap=overlap,
            consistency=consistency,
            tiling=tiling,
            enlarged=enlarged,
            reference_rounding=reference_rounding,
        )
        if output_type == "latent" and not preview_only:
            settings.check_one_window(preview_shape[0])
        log_negative_prompt(negative_prompt)
        with self.planned(
            lambda: two_stage_workload(
                self,
                source,
                preview_shape,
                None if preview_only else settings,
                num_clips=count_clips(prompt, source, prompt_embeds),
                reads_text=prompt_embeds is None and (prompt is not None or isinstance(source, PreviewState)),
                stage1_guidance_scale=stage1_guidance_scale,
            )
        ):
            self._interrupt, timings = False, {}
            started = time.perf_counter()
            prompts, stage1_embeds, stage2_embeds = prepare_text(
                self,
                prompt,
                source,
                prompt_prefix=prompt_prefix,
                prompt_embeds=prompt_embeds,
                preview_only=preview_only,
            )
            if source is None:
                made = self.make_preview(
                    prompts,
                    preview_shape,
                    final=(height, width),
                    prompt_embeds=stage1_embeds,
                    num_inference_steps=stage1_num_inference_steps,
                    guidance_scale=stage1_guidance_scale,
                    guidance_schedule=stage1_guidance_schedule,
                    generator=generator,
                    callback_on_step_end=stage1_callback_on_step_end,
                    callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
                )
                timings["stage1"] = self.seconds_since(started)
                started = time.perf_counter()
            else:
                made = self.open_preview(source, generator)
            frames = None
            if not preview_only and not self.interrupt:
                frames = self.stage2.enhance(
                    made.pixels,
                    None if stage2_embeds is None else stage2_embeds.expand(len(made.pixels), -1, -1),
                    settings,
                    generator=made.generator,
                    output_type=output_type,
                    callback_on_step_end=self.relay(callback_on_step_end),
                    callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
                )
                timings["stage2"] = self.seconds_since(started)
        self.maybe_free_model_hooks()
        output = FlashVideoPipelineOutput(
            frames=frames,
            preview_frames=made.frames(output_type),
            preview_latents=made.latents,
            preview=made.state,
            timings=timings,
        )
        return output if return_dict else (output.frames, output.preview_frames)
