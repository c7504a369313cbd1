"""Stage I: from a prompt to a small video with the right content and motion (paper section 3.1).

    text embeddings, Gaussian noise -> denoise (v-prediction, classifier-free guidance) -> latents -> decode -> preview

Shapes: B clips, F frames, H, W height and width; f = 1 + (F - 1) / temporal, C, h, w of the latents; L text tokens, D
channels of the text encoder. All of them come from the components' configs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX
from diffusers.utils.torch_utils import randn_tensor
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from flashvideo.models.transformer import FlashVideoTransformer3DModel
from flashvideo.pipelines.base import Callback, StagePipeline
from flashvideo.pipelines.inputs import (
    check_callback_inputs,
    check_count,
    check_embeds_tensor,
    check_generator,
    check_guidance,
    check_output_type,
    check_prompt,
    generator_or_fresh,
    log_negative_prompt,
    log_prompt_limits,
    or_default,
)
from flashvideo.pipelines.outputs import FlashVideoStage1Output, Frames, postprocess_frames
from flashvideo.pipelines.stage1_lora import Stage1LoraMixin
from flashvideo.pipelines.trained import log_untrained_preview
from flashvideo.pipelines.workload import Workload, count_clips
from flashvideo.presets import Preset
from flashvideo.schedule import FlashVideoScheduler, guidance_scale_at
from flashvideo.shapes import LatentShape, latent_shape
from flashvideo.vae import Tiling, decode_latents


class FlashVideoStage1Pipeline(StagePipeline, Stage1LoraMixin):
    """Makes the preview: a small video from a prompt.

    A negative prompt has no effect: the models are guided against an embedding of zeros.

    Args:
        tokenizer: Tokenizer of the text encoder; may be None if only `prompt_embeds` are used.
        text_encoder: T5 encoder; may be None likewise.
        vae: The VAE that both stages share.
        transformer: The Stage I transformer, which predicts v.
        scheduler: The Stage I sampler.
        preset: Defaults and constants of the model, or their `to_dict()`; stored in `model_index.json`.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _unconditional_first = True
    _phase = "stage1"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        text_encoder: T5EncoderModel | None,
        vae: AutoencoderKLCogVideoX,
        transformer: FlashVideoTransformer3DModel,
        scheduler: FlashVideoScheduler,
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
        *,
        height: int,
        width: int,
        num_frames: int,
        num_inference_steps: int,
        guidance_scale: float,
        generator: torch.Generator | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        output_type: str = "pil",
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> LatentShape:
        """Checks the arguments of a call.

        Returns:
            The latent size of the video that was asked for.

        Raises:
            ValueError: In one sentence, what is wrong and what would be right.
        """
        if (prompt is None) == (prompt_embeds is None):
            raise ValueError(
                "pass either prompt or prompt_embeds, got " + ("neither" if prompt is None else "both")
            )
        if prompt is not None:
            check_prompt(prompt)
        check_embeds_tensor(prompt_embeds)
        for name, value in (("height", height), ("width", width), ("num_frames", num_frames)):
            check_count(name, value)
        check_count("num_inference_steps", num_inference_steps)
        check_guidance("guidance_scale", guidance_scale)
        check_generator(generator)
        check_output_type(output_type)
        check_callback_inputs(callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        size = latent_shape(
            num_frames,
            height,
            width,
            vae_config=self.vae.config,
            patch_size=self.transformer.config.patch_size,
        )
        if latents is not None and tuple(latents.shape[1:]) != size.as_tuple()[1:]:
            raise ValueError(
                f"latents must be (B, {', '.join(map(str, size.as_tuple()[1:]))}) for {num_frames} frames of "
                f"{height}x{width}, got {tuple(latents.shape)}"
            )
        return size

    def encode_prompt(self, prompt: str | Sequence[str]) -> torch.Tensor:
        """Encodes one or more prompts; words that the model does not know, and what does not fit, are logged.

        Returns:
            Embeddings (B, L, D) in the transformer's dtype.

        Raises:
            ValueError: If the pipeline was made without a text encoder.
        """
        prompts = [prompt] if isinstance(prompt, str) else prompt
        max_text_tokens = self.preset.stage1.max_text_tokens
        embeds = self.embed(prompts, max_text_tokens)
        log_prompt_limits(prompts, self.tokenizer, max_text_tokens=max_text_tokens)
        return embeds

    def prepare_latents(
        self,
        batch_size: int,
        size: LatentShape,
        generator: torch.Generator | None = None,
        latents: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Draws the initial noise.

        Args:
            batch_size: B.
            size: Latent size of one video.
            generator: Source of the noise.
            latents: The noise itself (B, f, C, h, w), instead of a draw.

        Returns:
            Noise (B, f, C, h, w), float32, on the pipeline's device.
        """
        device = self._execution_device
        if latents is None:
            shape = size.as_tuple(batch_size)
            latents = randn_tensor(shape, generator=generator_or_fresh(generator), device=device)
        return latents.to(device, torch.float32) * self.scheduler.init_noise_sigma

    @torch.no_grad()
    def denoise(
        self,
        latents: torch.Tensor,
        prompt_embeds: torch.Tensor,
        *,
        num_inference_steps: int,
        guidance_scale: float,
        guidance_schedule: str = "constant",
        generator: torch.Generator | None = None,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> torch.Tensor:
        """Turns noise into latents.

        Each step is one evaluation of the network, or with guidance two in one batch, in the order (no text, text).

        Args:
            latents: Noise (B, f, C, h, w), float32.
            prompt_embeds: Text embeddings (B, L, D).
            num_inference_steps: Number of steps.
            guidance_scale: w in `v = v_uncond + w (v_cond - v_uncond)`; at 1 only the text is evaluated.
            guidance_schedule: How w changes over the steps, see `flashvideo.schedule.guidance_scale_at`.
            generator: Source of the noise of the steps.
            callback_on_step_end: Called after each step.
            callback_on_step_end_tensor_inputs: What the callback gets: `"latents"`, `"prompt_embeds"`.

        Returns:
            Scaled latents (B, f, C, h, w), float32.
        """
        self.scheduler.set_timesteps(num_inference_steps, device=latents.device)
        self._num_timesteps = num_inference_steps
        generator = generator_or_fresh(generator)
        with self.progress_bar(total=num_inference_steps) as progress_bar:
            for step, timestep in enumerate(self.scheduler.timesteps):
                if self.interrupt:
                    break
                self._current_timestep = timestep
                self._guidance_scale = 1.0
                if guidance_scale != 1:
                    self._guidance_scale = guidance_scale_at(
                        guidance_schedule, guidance_scale, int(timestep), num_inference_steps
                    )
                v = self.predict_velocity(
                    latents, prompt_embeds, timestep, guidance_scale=self.guidance_scale
                )
                latents = self.scheduler.step(v, timestep, latents, generator=generator, return_dict=False)[0]
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
    def decode_latents(self, latents: torch.Tensor, *, tiling: Tiling | None = None) -> torch.Tensor:
        """Decodes scaled latents (B, f, C, h, w) to pixels (B, F, 3, H, W) in [-1, 1], float32, not rounded."""
        scale = self.preset.stage1.latent_scale
        return self.run_phase(
            "stage1_decode",
            lambda measures: decode_latents(
                self.vae, latents, scale=scale, tiling=tiling, thrift=measures.thrift, clamp=True
            ),
        )

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
        guidance_schedule: str | None = None,
        generator: torch.Generator | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt: str | list[str] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> FlashVideoStage1Output | tuple[Frames, torch.Tensor]:
        """Makes a preview. What is None is taken from the model's preset.

        Args:
            prompt: One prompt or B prompts.
            height: Height in pixels, a multiple of the VAE's compression times the patch size.
            width: Width in pixels, likewise.
            num_frames: Frames, a multiple of the VAE's temporal compression plus one.
            num_inference_steps: Steps of the sampler.
            guidance_scale: Guidance scale, 1 or more; 1 halves the work.
            guidance_schedule: `"constant"` or `"reference"`.
            generator: Source of all randomness; a fresh one if None.
            latents: The initial noise (B, f, C, h, w), instead of a draw.
            prompt_embeds: Text embeddings (B, L, D) instead of a prompt.
            negative_prompt: Has no effect on these models, and is answered with a warning that says so.
            output_type: `"pil"`, `"np"` in [0, 1], `"pt"` in [-1, 1], or `"latent"`.
            return_dict: Whether to return a `FlashVideoStage1Output` rather than a tuple.
            callback_on_step_end: `(pipeline, step, timestep, tensors) -> tensors to replace`, after each step.
            callback_on_step_end_tensor_inputs: What the callback gets: `"latents"`, `"prompt_embeds"`.

        Returns:
            The frames and the latents that they were decoded from.

        Raises:
            ValueError: In one sentence, what is wrong and what would be right.
        """
        defaults = self.preset.stage1
        num_frames = or_default(num_frames, defaults.num_frames)
        height, width = or_default(height, defaults.height), or_default(width, defaults.width)
        num_inference_steps = or_default(num_inference_steps, defaults.num_inference_steps)
        guidance_scale = or_default(guidance_scale, defaults.guidance_scale)
        size = self.check_inputs(
            prompt,
            height=height,
            width=width,
            num_frames=num_frames,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            generator=generator,
            latents=latents,
            prompt_embeds=prompt_embeds,
            output_type=output_type,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        log_untrained_preview(num_frames, height, width, preset=self.preset)
        log_negative_prompt(negative_prompt)
        with self.planned(
            lambda: Workload(
                preview=(num_frames, height, width),
                text=prompt is not None,
                guided=(guidance_scale != 1, False),
                batch_size=count_clips(prompt, None, prompt_embeds),
            )
        ):
            self._interrupt = False
            generator = generator_or_fresh(generator)
            if prompt is not None:
                prompt_embeds = self.encode_prompt(prompt)
            assert prompt_embeds is not None
            latents = self.prepare_latents(len(prompt_embeds), size, generator, latents)
            latents = self.denoise(
                latents,
                prompt_embeds.to(latents.device, self.transformer.dtype),
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                guidance_schedule=or_default(guidance_schedule, defaults.guidance_schedule),
                generator=generator,
                callback_on_step_end=callback_on_step_end,
                callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            )
            frames: Frames = latents
            if output_type != "latent":
                frames = postprocess_frames(self.decode_latents(latents), output_type)
        self.maybe_free_model_hooks()
        return FlashVideoStage1Output(frames=frames, latents=latents) if return_dict else (frames, latents)
