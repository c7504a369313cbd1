"""Stage II: detail for any video, in a few steps (paper section 3.2).

    resize to the target size -> encode -> degrade the latents -> Euler from low to high quality -> decode
    -> keep the input's coarse picture and stillness, if wanted

Clips longer than the model was trained on go through window by window (`flashvideo.pipelines.windows`), each by the
steps of `flashvideo.pipelines.stage2_steps`; sizes and frame counts that the VAE does not take are continued by
reflection and cut back at the end.

Shapes: B clips, F frames, H, W target height and width; f, C, h, w of the latents; L text tokens, D channels of the
text encoder.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX, FlowMatchEulerDiscreteScheduler
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from flashvideo.models.transformer import FlashVideoTransformer3DModel
from flashvideo.pipelines.base import Callback
from flashvideo.pipelines.consistency import keep_consistent
from flashvideo.pipelines.inputs import (
    check_callback_inputs,
    check_embeds_tensor,
    check_generator,
    check_output_type,
    check_prompt,
    check_prompt_prefix,
    generator_or_fresh,
    log_negative_prompt,
    peek,
    to_pixels,
)
from flashvideo.pipelines.outputs import FlashVideoEnhanceOutput, Frames, postprocess_frames
from flashvideo.pipelines.settings import EnhanceSettings, complete_settings
from flashvideo.pipelines.sizes import crop_offset
from flashvideo.pipelines.stage2_steps import EnhanceSteps
from flashvideo.pipelines.windows import NoiseField, Window, cross_fade, iterate_windows
from flashvideo.pipelines.workload import Workload, stage2_workload
from flashvideo.presets import Preset
from flashvideo.shapes import latent_shape, vae_factors
from flashvideo.vae import Tiling


class FlashVideoEnhancePipeline(EnhanceSteps):
    """Enhances a video: more pixels and the detail to fill them.

    Args:
        tokenizer: Tokenizer of the text encoder; may be None if no prompts are used.
        text_encoder: T5 encoder; may be None likewise.
        vae: The VAE that both stages share.
        transformer: The Stage II transformer, which predicts the velocity from low to high quality.
        scheduler: Euler's method. Its own `shift` shapes the time grid where a call gives no other.
        preset: Defaults and constants of the model, or their `to_dict()`; stored in `model_index.json`.
    """

    model_cpu_offload_seq = "text_encoder->vae->transformer"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        text_encoder: T5EncoderModel | None,
        vae: AutoencoderKLCogVideoX,
        transformer: FlashVideoTransformer3DModel,
        scheduler: FlowMatchEulerDiscreteScheduler,
        preset: Mapping[str, Any] | Preset | None = None,
    ) -> None:
        super().__init__(
            preset,
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            vae=vae,
            transformer=transformer,
            scheduler=scheduler,
        )

    def check_inputs(
        self,
        prompt: str | Sequence[str] | None,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        prompt_embeds: torch.Tensor | None = None,
        prompt_prefix: str | None = None,
        output_type: str = "pil",
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> None:
        """Checks the arguments of a call that `complete_settings` does not.

        Raises:
            ValueError: In one sentence, what is wrong and what would be right.
        """
        if prompt is not None and prompt_embeds is not None:
            raise ValueError("pass prompt or prompt_embeds or neither, got both")
        if prompt is not None:
            check_prompt(prompt)
        check_embeds_tensor(prompt_embeds)
        given = prompt_embeds if prompt_embeds is not None else prompt
        if given is not None and not isinstance(given, str) and len(given) not in (1, batch_size):
            raise ValueError(
                f"prompt must be one for all clips or one per clip, got {len(given)} for {batch_size}"
            )
        check_prompt_prefix(prompt_prefix, has_prompt=prompt is not None)
        check_generator(generator)
        check_output_type(output_type)
        check_callback_inputs(callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)

    @torch.no_grad()
    def enhance_windows(
        self,
        frames: Iterable[torch.Tensor],
        prompt_embeds: torch.Tensor | None,
        settings: EnhanceSettings,
        *,
        generator: torch.Generator,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Iterator[tuple[Window, torch.Tensor]]:
        """Enhances a clip window by window, as latents.

        Latent frames that two windows share start from the same noise. After an interruption no window follows.

        Args:
            frames: F frames, each (B, 3, any height, any width) in [-1, 1].
            prompt_embeds: Text embeddings (B, L, D); None for no text, and then no guidance.
            settings: Complete settings.
            generator: Source of all randomness.
            callback_on_step_end: Called after each step of each window.
            callback_on_step_end_tensor_inputs: What the callback gets.

        Yields:
            Each window with its enhanced, scaled latents (B, f, C, h, w), float32.
        """
        temporal, _ = vae_factors(self.vae.config)
        posterior_field, degradation_field = NoiseField(generator), NoiseField(generator)
        for window in iterate_windows(
            frames, window=settings.window, overlap=settings.overlap, temporal_factor=temporal
        ):
            pixels = self.prepare_pixels(window.frames, *settings.working_size)
            batch_size, num_frames, _, height, width = pixels.shape
            shape = latent_shape(num_frames, height, width, vae_config=self.vae.config).as_tuple(batch_size)
            start, device = window.start // temporal, self._execution_device
            latents = self.prepare_latents(
                pixels,
                settings.noise_step,
                posterior_noise=posterior_field.take(start, shape, device=device),
                noise=degradation_field.take(start, shape, device=device),
                tiling=settings.tiling,
            )
            latents = self.denoise(
                latents,
                self.no_text(batch_size) if prompt_embeds is None else prompt_embeds,
                num_inference_steps=settings.num_inference_steps,
                guidance_scale=1.0 if prompt_embeds is None else settings.guidance_scale,
                noise_step=settings.noise_step,
                shift=settings.shift,
                reference_rounding=settings.reference_rounding,
                callback_on_step_end=callback_on_step_end,
                callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            )
            yield window, latents
            if self.interrupt:
                return

    def join_windows(
        self, windows: Iterable[tuple[Window, torch.Tensor]], settings: EnhanceSettings
    ) -> Iterator[torch.Tensor]:
        """Decodes what `enhance_windows` yields, keeps it consistent if wanted, cuts it to size and cross-fades it.

        Yields:
            Stretches (B, n, 3, H, W) of the clip in [-1, 1], on the CPU.
        """
        top, left = crop_offset(settings.working_size, (settings.height, settings.width))

        def decoded() -> Iterator[tuple[int, torch.Tensor]]:
            for window, latents in windows:
                pixels = self.decode_latents(
                    latents,
                    *settings.working_size,
                    tiling=settings.tiling,
                    output_device=None if settings.consistency else "cpu",  # consistency is for the device
                )
                if settings.consistency:
                    pixels = keep_consistent(pixels, window.frames)
                pixels = pixels[..., top : top + settings.height, left : left + settings.width]
                yield window.start, pixels[:, : window.num_valid].cpu()

        yield from cross_fade(decoded(), overlap=settings.overlap)

    def enhance(
        self,
        pixels: torch.Tensor,
        prompt_embeds: torch.Tensor | None,
        settings: EnhanceSettings,
        *,
        generator: torch.Generator,
        output_type: str = "pt",
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Frames:
        """Enhances whole clips: what is left of a call once everything has been checked and the text encoded.

        Args:
            pixels: (B, F, 3, any height, any width) in [-1, 1].
            prompt_embeds: Text embeddings (B, L, D); None for no text, and then no guidance.
            settings: Complete settings.
            generator: Source of all randomness.
            output_type: Form of the frames; `"latent"` gives those of the first window.
            callback_on_step_end: Called after each step of each window.
            callback_on_step_end_tensor_inputs: What the callback gets.

        Returns:
            The enhanced clips in the form asked for.
        """
        self._interrupt = False
        windows = self.enhance_windows(
            pixels.unbind(1),
            prompt_embeds,
            settings,
            generator=generator,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        if output_type == "latent":
            return next(windows)[1]
        return postprocess_frames(torch.cat(list(self.join_windows(windows, settings)), dim=1), output_type)

    def stream(
        self,
        frames: Iterable[torch.Tensor],
        prompt: str | None = None,
        *,
        prompt_prefix: str | None = None,
        settings: EnhanceSettings | None = None,
        num_frames: int | None = None,
        generator: torch.Generator | None = None,
        prompt_embeds: torch.Tensor | None = None,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Iterator[torch.Tensor]:
        """Enhances one clip of any length in bounded memory; gives the same frames as a call with the whole clip.

        `write_video(target, pipeline.stream(iter_frames(source)), frame_rate=8)` needs as much memory for an hour as
        for a few seconds.

        Args:
            frames: F frames (3, h, w) of one size, in [-1, 1].
            prompt: What the video shows; None for no text, and then no guidance.
            prompt_prefix: Goes before the prompt, without a space, such as "medium motion,"; the model's own if None.
            settings: From `complete_settings`; the model's defaults for the size of the first frame if None.
            num_frames: F, where it is known: the memory of a clip shorter than a window is planned as such.
            generator: Source of all randomness; a fresh one if None.
            prompt_embeds: Text embeddings (1, L, D) instead of a prompt.
            callback_on_step_end: Called after each step of each window.
            callback_on_step_end_tensor_inputs: What the callback gets.

        Returns:
            Iterator over stretches (n, 3, H, W) of the enhanced clip in [-1, 1], on the CPU.

        Raises:
            ValueError: In one sentence, what is wrong and what would be right.
        """
        first, frames = peek(frames)
        self.check_inputs(
            prompt,
            batch_size=1,
            generator=generator,
            prompt_embeds=prompt_embeds,
            prompt_prefix=prompt_prefix,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        if settings is None:
            settings = complete_settings((first.shape[-2], first.shape[-1]), preset=self.preset, vae=self.vae)
        # The text is read now, and may be given up before the first frame is asked for.
        with self.planned(lambda: Workload(text=prompt is not None)):
            embeds = self.text_embeds(prompt, prompt_embeds, 1, prompt_prefix=prompt_prefix)
        self._interrupt = False
        windows = self.enhance_windows(
            (frame[None] for frame in frames),
            embeds,
            settings,
            generator=generator_or_fresh(generator),
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        workload = functools.partial(
            stage2_workload, self, settings, num_clips=1, num_frames=num_frames, prompt_embeds=embeds
        )
        return self._planned_stretches(workload, self.join_windows(windows, settings))

    def _planned_stretches(
        self, workload: Callable[[], Workload], stretches: Iterator[torch.Tensor]
    ) -> Iterator[torch.Tensor]:
        with self.planned(workload):
            for stretch in stretches:
                yield stretch[0]

    @torch.no_grad()
    def __call__(
        self,
        video: torch.Tensor | Sequence[Any],
        prompt: str | list[str] | None = None,
        *,
        prompt_prefix: str | None = None,
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
        reference_rounding: bool = False,
        generator: torch.Generator | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt: str | list[str] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> FlashVideoEnhanceOutput | tuple[Frames]:
        """Enhances clips of any size and length. What is None is taken from the model's preset.

        Args:
            video: Pixels (B, F, 3, h, w) or (F, 3, h, w) in [-1, 1], or a list of frames as in `to_pixels`.
            prompt: What the video shows, one for all clips or one per clip; None for no text, and then no guidance.
            prompt_prefix: Goes before each prompt, without a space, such as "medium motion,"; the model's own if None.
            height: Target height, any; None together with `width` enlarges by the model's own factor.
            width: Target width.
            num_inference_steps: Euler steps.
            guidance_scale: Guidance scale, 1 or more; 1 halves the work.
            noise_step: Step of the latent degradation, 0 to 999: how much of the detail is invented anew.
            shift: Time shift of the grid of steps: above 1 more of them lie near the start; its own if None.
            window: Frames of a window, a multiple of the VAE's temporal compression plus one.
            overlap: Frames over which windows are cross-faded, likewise.
            consistency: Whether the result keeps the input's coarse picture and stillness
                (`flashvideo.pipelines.consistency`); latents for output are before that.
            tiling: Tiles of the VAE, to save memory.
            reference_rounding: Whether time grid and noise step are rounded as in a bfloat16 run of the released code,
                to repeat its results; exact otherwise.
            generator: Source of all randomness; a fresh one if None.
            prompt_embeds: Text embeddings (B, L, D) instead of a prompt.
            negative_prompt: Has no effect on these models, and is answered with a warning that says so.
            output_type: `"pil"`, `"np"` in [0, 1], `"pt"` in [-1, 1] on the CPU; `"latent"` for a single window.
            return_dict: Whether to return a `FlashVideoEnhanceOutput` rather than a tuple.
            callback_on_step_end: `(pipeline, step, timestep, tensors) -> tensors to replace`, after each step.
            callback_on_step_end_tensor_inputs: What the callback gets: `"latents"`, `"prompt_embeds"`.

        Returns:
            The enhanced clips, with as many frames as the input; after an interruption, the windows done so far.

        Raises:
            ValueError: In one sentence, what is wrong and what would be right.
        """
        pixels = to_pixels(video)
        batch_size, num_frames, _, *size = pixels.shape
        self.check_inputs(
            prompt,
            batch_size,
            generator=generator,
            prompt_embeds=prompt_embeds,
            prompt_prefix=prompt_prefix,
            output_type=output_type,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        settings = complete_settings(
            (size[0], size[1]),
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
            reference_rounding=reference_rounding,
        )
        if output_type == "latent":
            settings.check_one_window(num_frames)
        log_negative_prompt(negative_prompt)
        with self.planned(
            lambda: stage2_workload(
                self,
                settings,
                num_clips=batch_size,
                num_frames=num_frames,
                prompt=prompt,
                prompt_embeds=prompt_embeds,
            )
        ):
            frames = self.enhance(
                pixels,
                self.text_embeds(prompt, prompt_embeds, batch_size, prompt_prefix=prompt_prefix),
                settings,
                generator=generator_or_fresh(generator),
                output_type=output_type,
                callback_on_step_end=callback_on_step_end,
                callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            )
        self.maybe_free_model_hooks()
        return FlashVideoEnhanceOutput(frames=frames) if return_dict else (frames,)
