"""Both stages: a prompt to a preview, and the preview to the final video (paper section 3).

    Stage I -> preview -> (a user may stop, look, change the prompt, and continue) -> Stage II

Shapes: B clips, F frames; f, C, h, w of the latents.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import AutoencoderKLCogVideoX, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from flashvideo import __version__
from flashvideo.models.lora import ADAPTER_NAME, load_adapter
from flashvideo.models.transformer import FlashVideoTransformer3DModel
from flashvideo.pipelines.base import Callback
from flashvideo.pipelines.inputs import (
    check_count,
    check_generator,
    check_output_type,
    check_prompt,
    generator_or_fresh,
    or_default,
    read_preset,
)
from flashvideo.pipelines.outputs import (
    FlashVideoPipelineOutput,
    FlashVideoStage1Output,
    Frames,
    Preview,
)
from flashvideo.pipelines.preview import PreviewSettings, PreviewState, read_preview
from flashvideo.pipelines.settings import complete_settings
from flashvideo.pipelines.sizes import final_size, preview_size
from flashvideo.pipelines.stage1 import FlashVideoStage1Pipeline
from flashvideo.pipelines.stage2 import FlashVideoEnhancePipeline
from flashvideo.presets import Preset
from flashvideo.schedule import FlashVideoScheduler
from flashvideo.shapes import check_size, vae_factors
from flashvideo.vae import Tiling

logger = logging.getLogger(__name__)


class FlashVideoPipeline(DiffusionPipeline):
    """From a prompt to the final video, in two stages.

    There is no negative prompt: the models are guided against an embedding of zeros, so it would have no effect.

    Args:
        tokenizer: Tokenizer of the text encoder.
        text_encoder: T5 encoder of both stages.
        vae: VAE of both stages.
        stage1_transformer: Makes the preview.
        stage1_scheduler: Sampler of Stage I.
        stage2_transformer: Enhances the preview.
        stage2_scheduler: Euler's method of Stage II.
        preset: Defaults and constants of the model, or their `to_dict()`; stored in `model_index.json`.
        stage1_lora: Folder inside the model's folder with a LoRA of Stage I, which `from_pretrained` applies.

    Example:
        >>> from diffusers.utils import export_to_video
        >>> from flashvideo import load_pipeline
        >>> pipeline = load_pipeline("nano")  # doctest: +SKIP
        >>> result = pipeline("a red circle moves left")  # doctest: +SKIP
        >>> export_to_video(result.frames[0], "circle.mp4", fps=8)  # doctest: +SKIP
    """

    model_cpu_offload_seq = "text_encoder->stage1_transformer->vae->stage2_transformer"
    _optional_components: ClassVar[list[str]] = ["tokenizer", "text_encoder"]
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents", "prompt_embeds"]

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        text_encoder: T5EncoderModel | None,
        vae: AutoencoderKLCogVideoX,
        stage1_transformer: FlashVideoTransformer3DModel,
        stage1_scheduler: FlashVideoScheduler,
        stage2_transformer: FlashVideoTransformer3DModel,
        stage2_scheduler: FlowMatchEulerDiscreteScheduler,
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
        self._interrupt = False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Loads a pipeline as every diffusers pipeline, and puts Stage I's LoRA on where the model keeps it apart.

        Args:
            pretrained_model_name_or_path: The model's folder.
            kwargs: Those of `DiffusionPipeline.from_pretrained`; `stage1_lora=None` leaves the LoRA out.

        Returns:
            The pipeline.

        Raises:
            ValueError: If the LoRA is missing.
            ImportError: If there is one and peft is not installed.
        """
        pipeline: Self = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        missing = pipeline.config.stage1_lora is not None and not pipeline.has_lora
        if missing and pipeline.stage1_transformer is not None:
            folder = Path(pretrained_model_name_or_path) / pipeline.config.stage1_lora
            load_adapter(pipeline.stage1_transformer, folder)
        return pipeline

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Saves the pipeline as every diffusers pipeline.

        Args:
            save_directory: The folder to write.
            kwargs: Those of `DiffusionPipeline.save_pretrained`.

        Raises:
            ValueError: If Stage I carries a LoRA, whose branches diffusers would save under names that do not load.
        """
        if getattr(self.stage1_transformer, "peft_config", {}):
            raise ValueError(
                "Stage I carries a LoRA, and saved so it would not load; "
                "call stage1_transformer.fuse_lora() and stage1_transformer.unload_lora() first"
            )
        self.register_to_config(stage1_lora=None)
        super().save_pretrained(save_directory, **kwargs)

    @property
    def has_lora(self) -> bool:
        """Whether the LoRA that `from_pretrained` applies is on Stage I."""
        return ADAPTER_NAME in getattr(self.stage1_transformer, "peft_config", {})

    @property
    def preset(self) -> Preset:
        """Defaults and constants of the model."""
        return read_preset(self.config.preset)

    @property
    def interrupt(self) -> bool:
        """Whether a callback asked to stop, by setting `_interrupt` to true."""
        return self._interrupt

    @property
    def stage1(self) -> FlashVideoStage1Pipeline:
        """Stage I alone, from the components that this pipeline has now; made anew at each access."""
        pipeline = FlashVideoStage1Pipeline(
            tokenizer=self.tokenizer,
            text_encoder=self.text_encoder,
            vae=self.vae,
            transformer=self.stage1_transformer,
            scheduler=self.stage1_scheduler,
            preset=self.config.preset,
        )
        pipeline.set_progress_bar_config(**getattr(self, "_progress_bar_config", {}))
        return pipeline

    @property
    def stage2(self) -> FlashVideoEnhancePipeline:
        """Stage II alone, from the components that this pipeline has now; made anew at each access."""
        pipeline = FlashVideoEnhancePipeline(
            tokenizer=self.tokenizer,
            text_encoder=self.text_encoder,
            vae=self.vae,
            transformer=self.stage2_transformer,
            scheduler=self.stage2_scheduler,
            preset=self.config.preset,
        )
        pipeline.set_progress_bar_config(**getattr(self, "_progress_bar_config", {}))
        return pipeline

    def preview_size(self, height: int, width: int) -> tuple[int, int]:
        """Returns height and width of the preview of a video of this size.

        Raises:
            ValueError: If the size has no preview, with the nearest that has one.
        """
        check_count("height", height)
        check_count("width", width)
        _, spatial = vae_factors(self.vae.config)
        multiple = spatial * self.stage1_transformer.config.patch_size
        size = preview_size(height, width, preset=self.preset, multiple=multiple)
        check_size(
            height, width, vae_config=self.vae.config, patch_size=self.stage2_transformer.config.patch_size
        )
        return size

    def check_inputs(
        self,
        prompt: str | list[str] | None,
        source: PreviewState | torch.Tensor | None,
        *,
        preview_only: bool,
        generator: torch.Generator | None,
        output_type: str,
        **stage1_arguments: object,
    ) -> None:
        """Checks the arguments of a call that concern both stages; each stage checks its own.

        Args:
            prompt: The call's prompt.
            source: What `read_preview` returned.
            preview_only: Whether to stop at the preview.
            generator: The call's generator.
            output_type: The call's output type.
            stage1_arguments: Arguments that only Stage I takes; None where they were not given.

        Raises:
            ValueError: In one sentence, what is wrong and what would be right.
        """
        check_generator(generator)
        check_output_type(output_type)
        if source is None:
            check_prompt(prompt)
            return
        num_clips = len(source.latents) if isinstance(source, PreviewState) else len(source)
        self.stage2.check_inputs(prompt, num_clips)
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

    def make_preview(
        self,
        prompt: str | list[str],
        shape: tuple[int, int, int],
        *,
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
            num_inference_steps: Steps of Stage I; the preset's if None, as for all that follow.
            guidance_scale: Guidance scale of Stage I.
            guidance_schedule: Guidance schedule of Stage I.
            generator: Source of all randomness; a fresh one if None.
            callback_on_step_end: Called after each step.
            callback_on_step_end_tensor_inputs: What the callback gets.

        Returns:
            The preview; without a state if a callback interrupted it, since it is not complete then.
        """
        defaults, generator = self.preset.stage1, generator_or_fresh(generator)
        settings = PreviewSettings(
            model=self.preset.name,
            version=__version__,
            prompts=(prompt,) if isinstance(prompt, str) else tuple(prompt),
            seed=generator.initial_seed(),
            num_frames=shape[0],
            height=shape[1],
            width=shape[2],
            num_inference_steps=or_default(num_inference_steps, defaults.num_inference_steps),
            guidance_scale=or_default(guidance_scale, defaults.guidance_scale),
            guidance_schedule=or_default(guidance_schedule, defaults.guidance_schedule),
        )
        result = self.stage1(
            prompt,
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
        return Preview(
            pixels=result.frames, prompt=prompt, generator=generator, latents=result.latents, state=state
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
            return Preview(
                pixels=source,
                prompt=None,
                generator=generator_or_fresh(generator),
                latents=None,
                state=None,
            )
        if generator is not None:
            logger.info(
                "the given generator replaces the preview's own: the detail differs from an unbroken run"
            )
        return Preview(
            pixels=self.stage1.decode_latents(source.latents.to(self._execution_device)),
            prompt=list(source.settings.prompts),
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

    def resolve_sizes(
        self,
        source: PreviewState | torch.Tensor | None,
        *,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> tuple[tuple[int, int, int], tuple[int, int]]:
        """Completes the final size and finds the preview's.

        Args:
            source: What `read_preview` returned.
            num_frames: Frames of a new preview; the preset's if None.
            height: Final height; None together with `width` for the model's own size, or the preview's enlarged.
            width: Final width.

        Returns:
            Frames, height and width of the preview; final height and width.

        Raises:
            ValueError: If only one of the two is given, or no preview fits the size.
        """
        if (height is None) != (width is None):
            raise ValueError(
                f"height and width must be given both or not at all, got height={height}, width={width}"
            )
        preset = self.preset
        if source is None:
            if height is None or width is None:
                height, width = preset.stage2.height, preset.stage2.width
            num_frames = or_default(num_frames, preset.stage1.num_frames)
            return (num_frames, *self.preview_size(height, width)), (height, width)
        if isinstance(source, PreviewState):
            made = source.settings
            preview_shape = (made.num_frames, made.height, made.width)
        else:
            preview_shape = (source.shape[1], source.shape[-2], source.shape[-1])
        if height is None or width is None:
            height, width = final_size(*preview_shape[1:], preset=preset)
        return preview_shape, (height, width)

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
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        noise_step: int | None = None,
        stage1_num_inference_steps: int | None = None,
        stage1_guidance_scale: float | None = None,
        stage1_guidance_schedule: str | None = None,
        window: int | None = None,
        overlap: int | None = None,
        consistency: bool | None = None,
        tiling: Tiling | None = None,
        generator: torch.Generator | None = None,
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
            height: Height of the final video, see `preview_size`.
            width: Width of the final video.
            num_frames: Frames, a multiple of the VAE's temporal compression plus one.
            num_inference_steps: Steps of Stage II.
            guidance_scale: Guidance scale of Stage II.
            noise_step: Step of Stage II's latent degradation, 0 to 999.
            stage1_num_inference_steps: Steps of Stage I.
            stage1_guidance_scale: Guidance scale of Stage I.
            stage1_guidance_schedule: `"constant"` or `"reference"`.
            window: Frames of a window of Stage II.
            overlap: Frames over which the windows of Stage II are cross-faded.
            consistency: Whether the result keeps the preview's coarse picture and stillness
                (`flashvideo.pipelines.consistency`); latents for output are before that.
            tiling: Tiles of the VAE at Stage II, to save memory.
            generator: Source of all randomness; a fresh one if None.
            preview: Continue from this: a `PreviewState`, its file, a preview video beside which that file lies, any
                other video file, or pixels (B, F, 3, H, W).
            preview_only: Stop after Stage I.
            output_type: `"pil"`, `"np"` in [0, 1], `"pt"` in [-1, 1], or `"latent"`.
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
            num_frames=num_frames,
            stage1_num_inference_steps=stage1_num_inference_steps,
            stage1_guidance_scale=stage1_guidance_scale,
            stage1_guidance_schedule=stage1_guidance_schedule,
        )
        preview_shape, (height, width) = self.resolve_sizes(
            source, num_frames=num_frames, height=height, width=width
        )
        settings = complete_settings(
            preview_shape[1:],
            preset=self.preset,
            vae=self.vae,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            noise_step=noise_step,
            window=window,
            overlap=overlap,
            consistency=consistency,
            tiling=tiling,
        )
        if output_type == "latent" and not preview_only:
            settings.check_one_window(preview_shape[0])
        self._interrupt, timings = False, {}
        started = time.perf_counter()
        if source is None:
            assert prompt is not None
            made = self.make_preview(
                prompt,
                preview_shape,
                num_inference_steps=stage1_num_inference_steps,
                guidance_scale=stage1_guidance_scale,
                guidance_schedule=stage1_guidance_schedule,
                generator=generator,
                callback_on_step_end=stage1_callback_on_step_end,
                callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            )
            timings["stage1"] = self.seconds_since(started)
        else:
            made = self.open_preview(source, generator)
        frames, started = None, time.perf_counter()
        if not preview_only and not self.interrupt:
            stage2 = self.stage2
            frames = stage2.enhance(
                made.pixels,
                stage2.encode_prompt(or_default(prompt, made.prompt), len(made.pixels)),
                settings,
                generator=made.generator,
                output_type=output_type,
                callback_on_step_end=self.relay(callback_on_step_end),
                callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            )
            timings["stage2"] = self.seconds_since(started)
        self.maybe_free_model_hooks()
        preview_frames = made.frames(output_type)
        if not return_dict:
            return frames, preview_frames
        return FlashVideoPipelineOutput(
            frames=frames,
            preview_frames=preview_frames,
            preview_latents=made.latents,
            preview=made.state,
            timings=timings,
        )
