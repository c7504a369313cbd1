"""Stage II: detail for any video, in a few steps (paper section 3.2).

    resize to the target size -> encode -> degrade the latents -> Euler from low to high quality -> decode
    -> keep the input's coarse picture and stillness, if wanted

Clips longer than the model was trained on go through window by window (`flashvideo.pipelines.windows`); sizes and
frame counts that the VAE does not take are continued by reflection and cut back at the end.

Shapes: B clips, F frames, N frames of a window, H, W target height and width; f, C, h, w of the latents; L text tokens,
D channels of the text encoder.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX, FlowMatchEulerDiscreteScheduler
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from flashvideo.degradations.latent import degrade_latents
from flashvideo.flow import network_noise_step
from flashvideo.models.transformer import FlashVideoTransformer3DModel
from flashvideo.pipelines.base import Callback, StagePipeline
from flashvideo.pipelines.consistency import keep_consistent
from flashvideo.pipelines.euler import start_euler
from flashvideo.pipelines.inputs import (
    check_callback_inputs,
    check_embeds_tensor,
    check_generator,
    check_output_type,
    check_prompt,
    check_prompt_prefix,
    generator_or_fresh,
    log_negative_prompt,
    log_prompt_limits,
    or_default,
    peek,
    to_pixels,
)
from flashvideo.pipelines.outputs import FlashVideoEnhanceOutput, Frames, postprocess_frames
from flashvideo.pipelines.settings import EnhanceSettings, complete_settings
from flashvideo.pipelines.sizes import crop_offset
from flashvideo.pipelines.windows import NoiseField, Window, cross_fade, iterate_windows, reflect_indices
from flashvideo.pipelines.workload import stage2_workload
from flashvideo.presets import Preset
from flashvideo.shapes import latent_shape, vae_factors
from flashvideo.text import with_prefix
from flashvideo.vae import Tiling, decode_latents, encode_pixels
from flashvideo.video import resize_video


class FlashVideoEnhancePipeline(StagePipeline):
    """Enhances a video: more pixels and the detail to fill them.

    Args:
        tokenizer: Tokenizer of the text encoder; may be None if no prompts are used.
        text_encoder: T5 encoder; may be None likewise.
        vae: The VAE that both stages share.
        transformer: The Stage II transformer, which predicts the velocity from low to high quality.
        scheduler: Euler's method. Its own `shift` shapes the time grid; to try another one, replace it by
            `FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config, shift=3.0)`.
        preset: Defaults and constants of the model, or their `to_dict()`; stored in `model_index.json`.
    """

    model_cpu_offload_seq = "text_encoder->vae->transformer"
    _unconditional_first = False
    _phase = "stage2"

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

    def encode_prompt(
        self,
        prompt: str | Sequence[str] | None,
        batch_size: int,
        *,
        prompt_prefix: str | None = None,
    ) -> torch.Tensor | None:
        """Encodes prompts with their prefix; words that the model does not know, and what does not fit, are logged.

        Args:
            prompt: One prompt for all clips, one per clip, or None for no text.
            batch_size: B.
            prompt_prefix: Goes before each prompt, without a space; the model's own if None.

        Returns:
            Embeddings (B, L, D) in the transformer's dtype; None for no text.

        Raises:
            ValueError: If the pipeline was made without a text encoder.
        """
        if prompt is None:
            return None
        defaults = self.preset.stage2
        prompts = [prompt] if isinstance(prompt, str) else prompt
        prefix = or_default(prompt_prefix, defaults.prompt_prefix)
        embeds = self.embed([with_prefix(one, prefix) for one in prompts], defaults.max_text_tokens)
        log_prompt_limits(prompts, self.tokenizer, max_text_tokens=defaults.max_text_tokens, prefix=prefix)
        return embeds.expand(batch_size, -1, -1)

    def text_embeds(
        self,
        prompt: str | Sequence[str] | None,
        prompt_embeds: torch.Tensor | None,
        batch_size: int,
        *,
        prompt_prefix: str | None = None,
    ) -> torch.Tensor | None:
        """Returns embeddings (B, L, D): those given, or the prompt's as `encode_prompt` makes them."""
        if prompt_embeds is None:
            return self.encode_prompt(prompt, batch_size, prompt_prefix=prompt_prefix)
        prompt_embeds = prompt_embeds.to(self._execution_device, self.transformer.dtype)
        return prompt_embeds.expand(batch_size, -1, -1)

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Returns the next height and width that the models take: multiples of VAE compression times patch size."""
        multiple = vae_factors(self.vae.config)[1] * self.transformer.config.patch_size
        return -(-height // multiple) * multiple, -(-width // multiple) * multiple

    def prepare_pixels(self, pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Resizes to the target, then continues by reflection, below and to the right, to what the models take.

        Args:
            pixels: (B, N, 3, any height, any width) in [-1, 1].
            height: Target height.
            width: Target width.

        Returns:
            (B, N, 3, H', W') on the CPU, H' and W' as `padded_size` gives them.
        """
        rows, columns = (
            torch.tensor(reflect_indices(side, padded))
            for side, padded in zip((height, width), self.padded_size(height, width), strict=True)
        )
        prepared = torch.empty((*pixels.shape[:3], len(rows), len(columns)), dtype=pixels.dtype)
        for number, frame in enumerate(pixels.unbind(1)):  # one at a time: a large clip would fill the device
            resized = resize_video(frame.to(self._execution_device), height, width).cpu()
            prepared[:, number] = resized.index_select(-2, rows).index_select(-1, columns)
        return prepared

    @torch.no_grad()
    def prepare_latents(
        self,
        pixels: torch.Tensor,
        noise_step: int,
        *,
        posterior_noise: torch.Tensor,
        noise: torch.Tensor,
        tiling: Tiling | None = None,
    ) -> torch.Tensor:
        """Encodes pixels and degrades the latents: where Stage II starts from.

        Args:
            pixels: (B, N, 3, H', W') in [-1, 1], of a size that the VAE takes.
            noise_step: Step of the degradation, 0 to 999.
            posterior_noise: Standard noise (B, f, C, h, w) that samples the encoder's posterior.
            noise: Standard noise (B, f, C, h, w) of the degradation.
            tiling: Tiles of the VAE.

        Returns:
            Scaled latents (B, f, C, h, w), float32.
        """
        scale = self.preset.stage2.latent_scale
        latents = self.run_phase(
            "stage2_encode",
            lambda measures: encode_pixels(
                self.vae,
                pixels,
                scale=scale,
                posterior_noise=posterior_noise,
                tiling=tiling,
                thrift=measures.thrift,
            ),
        )
        return degrade_latents(latents, noise_step, noise=noise)

    @torch.no_grad()
    def denoise(
        self,
        latents: torch.Tensor,
        prompt_embeds: torch.Tensor,
        *,
        num_inference_steps: int,
        guidance_scale: float,
        noise_step: int,
        reference_rounding: bool = False,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> torch.Tensor:
        """Follows the velocity from the degraded latents (t = 0) to clean ones (t = 1) by Euler's method.

        The scheduler's sigma is 1 - t, hence the sign of the velocity. With guidance each step evaluates the network
        on (text, no text) in one batch, in this order.

        Args:
            latents: Degraded latents (B, f, C, h, w), float32.
            prompt_embeds: Text embeddings (B, L, D).
            num_inference_steps: Number of steps.
            guidance_scale: w in `v = v_uncond + w (v_cond - v_uncond)`; at 1 only the text is evaluated.
            noise_step: Step of the latent degradation that was applied, an input of the network.
            reference_rounding: Whether the time grid, and the noise step as the network gets it, are rounded as in a
                bfloat16 run of the released code.
            callback_on_step_end: Called after each step.
            callback_on_step_end_tensor_inputs: What the callback gets: `"latents"`, `"prompt_embeds"`.

        Returns:
            Scaled latents (B, f, C, h, w), float32.
        """
        self._num_timesteps, self._guidance_scale = num_inference_steps, guidance_scale
        scheduler = start_euler(
            self.scheduler, num_inference_steps, device=latents.device, reference_rounding=reference_rounding
        )
        network_step = None
        if self.transformer.config.noise_step_embed:
            network_step = network_noise_step(noise_step, reference_rounding=reference_rounding)
        with self.progress_bar(total=num_inference_steps) as progress_bar:
            for step, timestep in enumerate(scheduler.timesteps):
                if self.interrupt:
                    break
                self._current_timestep = timestep
                v = self.predict_velocity(
                    latents,
                    prompt_embeds,
                    timestep,
                    guidance_scale=guidance_scale,
                    noise_step=network_step,
                )
                latents = scheduler.step(-v, timestep, latents, return_dict=False)[0]
                tensors = self.end_step(
                    callback_on_step_end,
                    callback_on_step_end_tensor_inputs,
                    step,
                    timestep,
                    {"latents": latents, "prompt_embeds": prompt_embeds},
                )
                latents, prompt_embeds = tensors["latents"], tensors["prompt_embeds"]
                progress_bar.update()
        self._current_timestep = None
        return latents

    @torch.no_grad()
    def decode_latents(
        self,
        latents: torch.Tensor,
        height: int,
        width: int,
        *,
        tiling: Tiling | None = None,
        output_device: torch.device | str | None = None,
    ) -> torch.Tensor:
        """Decodes latents to pixels without the padding.

        Args:
            latents: Scaled latents (B, f, C, h, w).
            height: Target height.
            width: Target width.
            tiling: Tiles of the VAE.
            output_device: Where the pixels are wanted; None for the VAE's device.

        Returns:
            Pixels (B, N, 3, height, width) in [-1, 1], float32.
        """
        scale = self.preset.stage2.latent_scale
        pixels = self.run_phase(
            "stage2_decode",
            lambda measures: decode_latents(
                self.vae,
                latents,
                scale=scale,
                tiling=tiling,
                thrift=measures.thrift,
                clamp=True,
                output_device=output_device,
            ),
        )
        return pixels[..., :height, :width]

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
                reference_rounding=settings.reference_rounding,
                callback_on_step_end=callback_on_step_end,
                callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            )
            yield window, latents
            if self.interrupt:
                return

    def no_text(self, batch_size: int) -> torch.Tensor:
        """Returns the embeddings (B, L, D) of no text: zeros, in the transformer's dtype."""
        shape = (batch_size, self.preset.stage2.max_text_tokens, self.transformer.config.text_embed_dim)
        return torch.zeros(shape, device=self._execution_device, dtype=self.transformer.dtype)

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
        self.prepare_memory(
            lambda: stage2_workload(self, settings, num_clips=1, prompt=prompt, prompt_embeds=prompt_embeds)
        )
        self._interrupt = False
        windows = self.enhance_windows(
            (frame[None] for frame in frames),
            self.text_embeds(prompt, prompt_embeds, 1, prompt_prefix=prompt_prefix),
            settings,
            generator=generator_or_fresh(generator),
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        return (stretch[0] for stretch in self.join_windows(windows, settings))

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
            window=window,
            overlap=overlap,
            consistency=consistency,
            tiling=tiling,
            reference_rounding=reference_rounding,
        )
        if output_type == "latent":
            settings.check_one_window(num_frames)
        log_negative_prompt(negative_prompt)
        self.prepare_memory(
            lambda: stage2_workload(
                self,
                settings,
                num_clips=batch_size,
                num_frames=num_frames,
                prompt=prompt,
                prompt_embeds=prompt_embeds,
            )
        )
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
