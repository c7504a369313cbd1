"""The steps of Stage II on one window of frames (paper section 3.2): text, pixels to degraded latents, Euler, pixels.

`flashvideo.pipelines.stage2` takes them for window after window.

Shapes: B clips, N frames of the window, H', W' height and width that the models take; f, C, h, w of the latents;
L text tokens, D channels of the text encoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from flashvideo.degradations.latent import degrade_latents
from flashvideo.flow import network_noise_step
from flashvideo.pipelines.base import Callback, StagePipeline
from flashvideo.pipelines.euler import start_euler
from flashvideo.pipelines.inputs import log_prompt_limits, or_default
from flashvideo.pipelines.windows import reflect_indices
from flashvideo.shapes import next_multiple, pixels_per_token
from flashvideo.text import with_prefix
from flashvideo.vae import Tiling, decode_latents, encode_pixels
from flashvideo.video import resize_video


class EnhanceSteps(StagePipeline):
    """What `FlashVideoEnhancePipeline` does to one window, step by step; each is usable alone."""

    _unconditional_first = False
    _phase = "stage2"

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

    def no_text(self, batch_size: int) -> torch.Tensor:
        """Returns the embeddings (B, L, D) of no text: zeros, in the transformer's dtype."""
        shape = (batch_size, self.preset.stage2.max_text_tokens, self.transformer.config.text_embed_dim)
        return torch.zeros(shape, device=self._execution_device, dtype=self.transformer.dtype)

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Returns the next height and width that the models take: multiples of VAE compression times patch size."""
        multiple = pixels_per_token(self.vae.config, self.transformer.config.patch_size)
        return next_multiple(height, multiple), next_multiple(width, multiple)

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
        shift: float | None = None,
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
            shift: Time shift of the grid of steps; the scheduler's own if None.
            reference_rounding: Whether the time grid, and the noise step as the network gets it, are rounded as in a
                bfloat16 run of the released code.
            callback_on_step_end: Called after each step.
            callback_on_step_end_tensor_inputs: What the callback gets: `"latents"`, `"prompt_embeds"`.

        Returns:
            Scaled latents (B, f, C, h, w), float32.
        """
        self._num_timesteps, self._guidance_scale = num_inference_steps, guidance_scale
        scheduler = start_euler(
            self.scheduler,
            num_inference_steps,
            device=latents.device,
            shift=shift,
            reference_rounding=reference_rounding,
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
