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
from flashvideo.pipelines.base import Callback, PlannedPipeline
from flashvideo.pipelines.cogvideox import cogvideox_components
from flashvideo.pipelines.embeds import PromptEmbeds, text_encoder_id
from flashvideo.pipelines.folders import model_folder
from flashvideo.pipelines.hub import check_options, check_pipeline
from flashvideo.pipelines.inputs import (
    check_count,
    check_generator,
    check_output_type,
    check_prompt,
    check_prompt_prefix,
    generator_or_fresh,
    log_negative_prompt,
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
from flashvideo.pipelines.sizes import (
    check_crop,
    enlarged_size,
    final_size,
    preview_size,
    upscale_factor,
)
from flashvideo.pipelines.stage1 import FlashVideoStage1Pipeline
from flashvideo.pipelines.stage1_lora import Stage1LoraMixin
from flashvideo.pipelines.stage2 import FlashVideoEnhancePipeline
from flashvideo.pipelines.two_stage_text import check_text, embed_for_stages, prepare_text
from flashvideo.pipelines.workload import count_clips, two_stage_workload
from flashvideo.presets import Preset
from flashvideo.schedule import FlashVideoScheduler
from flashvideo.shapes import vae_factors
from flashvideo.vae import Tiling

logger = logging.getLogger(__name__)


class FlashVideoPipeline(PlannedPipeline, Stage1LoraMixin):
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

    model_cpu_offload_seq = "text_encoder->stage1_transformer->vae->stage2_transformer"
    _optional_components: ClassVar[list[str]] = [
        "tokenizer",
        "text_encoder",
        "stage2_transformer",
        "stage2_scheduler",
    ]
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents", "prompt_embeds"]
    _lora_loadable_modules: ClassVar[list[str]] = ["stage1_transformer"]

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
        self._interrupt = False

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        text_encoder_source: str | Path | None = None,
        **kwargs: Any,
    ) -> Self:
        """Loads a model by its name, its folder or its repository, and puts Stage I's LoRA on where it is kept apart.

        Args:
            pretrained_model_name_or_path: As `model` of `flashvideo.pipelines.folders.model_folder`.
            revision: Branch, tag or commit of a repository.
            text_encoder_source: Repository or folder of the text encoder, for released checkpoints.
            kwargs: Those of `DiffusionPipeline.from_pretrained`; `stage1_lora=None` leaves the LoRA out.

        Returns:
            The pipeline.

        Raises:
            ValueError: If the model cannot be had, is of another pipeline, or its LoRA is missing.
            ImportError: If there is one and peft is not installed.
        """
        given = pretrained_model_name_or_path
        if not Path(given).is_dir():
            check_options(kwargs)
        dtype = kwargs.get("dtype", kwargs.get("torch_dtype"))
        folder = model_folder(
            given if isinstance(given, str) else Path(given),
            revision=revision,
            text_encoder=text_encoder_source,
            dtype=dtype if isinstance(dtype, torch.dtype) else None,
        )
        if check_pipeline(folder, str(given)) != cls.__name__:
            components = {name: value for name, value in kwargs.items() if not name.endswith("dtype")}
            return cls(**cogvideox_components(folder, dtype=dtype) | components)
        pipeline: Self = super().from_pretrained(folder, **kwargs)
        missing = pipeline.config.stage1_lora is not None and not pipeline.has_lora
        if missing and pipeline.stage1_transformer is not None:
            load_adapter(pipeline.stage1_transformer, folder / pipeline.config.stage1_lora)
        return pipeline

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Saves the pipeline as every diffusers pipeline.

        Args:
            save_directory: The folder to write.
            kwargs: Those of `DiffusionPipeline.save_pretrained`.

        Raises:
            ValueError: If Stage I carries a LoRA, whose branches diffusers would save under names that do not load.
        """
        if getattr(self.stage1_transformer, "peft_config", None):
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
        pipeline._memory = self._memory
        return pipeline

    @property
    def stage2(self) -> FlashVideoEnhancePipeline:
        """Stage II alone, from the components that this pipeline has now; made anew at each access.

        Raises:
            ValueError: If the model has no Stage II.
        """
        self.check_has_stage2()
        pipeline = FlashVideoEnhancePipeline(
            tokenizer=self.tokenizer,
            text_encoder=self.text_encoder,
            vae=self.vae,
            transformer=self.stage2_transformer,
            scheduler=self.stage2_scheduler,
            preset=self.config.preset,
        )
        pipeline.set_progress_bar_config(**getattr(self, "_progress_bar_config", {}))
        pipeline._memory = self._memory
        return pipeline

    def preview_size(self, height: int, width: int) -> tuple[int, int]:
        """Returns height and width of the preview of a video of this size, which may be any."""
        return preview_size(height, width, preset=self.preset, multiple=self.preview_multiple)

    @property
    def preview_multiple(self) -> int:
        """What the sides of a preview are multiples of: the VAE's compression times Stage I's patch size."""
        _, spatial = vae_factors(self.vae.config)
        return spatial * int(self.stage1_transformer.config.patch_size)

    def enlarged_size(self, preview: tuple[int, int], final: tuple[int, int]) -> tuple[int, int]:
        """Returns height and width that Stage II works at, from those of the preview and of the video."""
        return enlarged_size(preview, final, preset=self.preset, multiple=self.preview_multiple)

    def enable_memory_plans(self, device: torch.device | str, *, budget_bytes: int | None = None) -> None:
        """From now on plans the memory of every run, see `flashvideo.pipelines.memory`.

        Each network is brought to the device when it is its turn, and the fastest measures are taken with which the run
        fits; if the memory runs out all the same, the next thriftier ones, without doing again what is done. In the
        place of `to(device)` and of diffusers' own offloading.

        Args:
            device: Where networks work.
            budget_bytes: Memory of the device that may be used; what is free at the start of a run if None.
        """
        from flashvideo.pipelines.device_memory import DeviceMemory
        from flashvideo.pipelines.footprint import Footprint, ModelConfigs
        from flashvideo.pipelines.memory import PHASES

        networks = {name: getattr(self, name) for name in dict.fromkeys(PHASES.values())}
        self._memory = DeviceMemory(
            {name: network for name, network in networks.items() if network is not None},
            Footprint(ModelConfigs.of(self), self.stage1_transformer.dtype),
            torch.device(device),
            budget_bytes=budget_bytes,
        )

    def give_up(self, name: str) -> None:
        """Frees the weights of a network that will not be needed any more, where memory is planned.

        Args:
            name: `"text_encoder"` or `"stage1_transformer"`, for example.
        """
        if self._memory is not None:
            self._memory.give_up(name)

    def check_has_stage2(self) -> None:
        """Checks that the model is more than a Stage I.

        Raises:
            ValueError: If it is not.
        """
        if self.stage2_transformer is None:
            raise ValueError(
                f"the model {self.preset.name!r} has only Stage I: stop at the preview (preview_only=True, "
                "--preview-only), or use it as the Stage I of a model that has both (stage1=, --stage1)"
            )

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
            final_height=None if final is None else final[0],
            final_width=None if final is None else final[1],
            loras=tuple(f"{name}:{scale:g}" for name, scale in self.lora_scales().items()),
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
            height: Final height; None together with `width` for the model's own size; from a preview for the size that
                it was made for, or of pixels the preview's enlarged.
            width: Final width.

        Returns:
            Frames, height and width of the preview; final height and width.

        Raises:
            ValueError: If only one of the two is given, or is not a whole number of at least 1.
        """
        if (height is None) != (width is None):
            raise ValueError(
                f"height and width must be given both or not at all, got height={height}, width={width}"
            )
        for name, side in (("height", height), ("width", width)):
            if side is not None:
                check_count(name, side)
        preset = self.preset
        if source is None:
            if height is None or width is None:
                height, width = preset.stage2.height, preset.stage2.width
            num_frames = or_default(num_frames, preset.stage1.num_frames)
            return (num_frames, *self.preview_size(height, width)), (height, width)
        if isinstance(source, PreviewState):
            made = source.settings
            preview_shape = (made.num_frames, made.height, made.width)
            if height is None:
                height, width = made.final_height, made.final_width
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
        prompt_prefix: str | None = None,
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
        self.prepare_memory(
            lambda: two_stage_workload(
                self,
                source,
                preview_shape,
                None if preview_only else settings,
                num_clips=count_clips(prompt, source, prompt_embeds),
                reads_text=prompt_embeds is None and (prompt is not None or isinstance(source, PreviewState)),
                stage1_guidance_scale=stage1_guidance_scale,
            )
        )
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
