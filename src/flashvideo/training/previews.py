"""What a Stage I in training makes of prompts, without the pipeline's bookkeeping.

Shapes: latents (B, f, C, h, w), pixels (B, F, 3, H, W) in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor

from flashvideo.flow import guided_velocity
from flashvideo.models.transformer import FlashVideoTransformer3DModel
from flashvideo.schedule import FlashVideoScheduler, guidance_scale_at
from flashvideo.shapes import latent_shape
from flashvideo.training.rollout import sampler
from flashvideo.vae import decode_latents


class Previews:
    """Samples from a transformer.

    Args:
        transformer: The one in training.
        vae: Its config's scaling factor is the latent scale.
        scheduler: Whose noise schedule to sample on.
        encode: Prompts to text embeddings (B, L, D).
        size: (height, width) of the previews.
        bf16: Autocast to bfloat16.
        thrift: How the VAE saves memory, see `flashvideo.vae.decode_latents`.
    """

    def __init__(
        self,
        transformer: FlashVideoTransformer3DModel,
        vae: AutoencoderKLCogVideoX,
        scheduler: FlashVideoScheduler,
        encode: Callable[[Sequence[str]], Tensor],
        *,
        size: tuple[int, int],
        bf16: bool,
        thrift: str | None = None,
    ) -> None:
        self.transformer, self.vae, self.scheduler, self.encode = transformer, vae, scheduler, encode
        self.size, self.bf16, self.thrift = size, bf16, thrift

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[str],
        *,
        steps: int,
        guidance: float,
        frames: int,
        guidance_schedule: str = "constant",
        seed: int = 0,
    ) -> Tensor:
        """Previews of prompts (B, F, 3, H, W), guided against zeros for text unless the guidance is a constant 1."""
        device = self.vae.device
        generator = torch.Generator(device).manual_seed(seed)
        scheduler = sampler(self.scheduler, steps, device)
        latents = self._noise(len(prompts), frames, generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            text = self.encode(prompts)
            is_guided = guidance != 1 or guidance_schedule != "constant"
            texts = torch.cat((torch.zeros_like(text), text)) if is_guided else text
            for timestep in scheduler.timesteps:
                batch = latents.repeat(len(texts) // len(latents), 1, 1, 1, 1)
                v = self.transformer(batch, texts, timestep.float().expand(len(texts))).sample.float()
                if is_guided:
                    unconditional, conditional = v.chunk(2)
                    scale = guidance_scale_at(guidance_schedule, guidance, int(timestep), steps)
                    v = guided_velocity(conditional, unconditional, scale)
                latents = scheduler.step(v, timestep, latents, generator=generator, return_dict=False)[0]
            return self._decode(latents)

    @torch.no_grad()
    def guess(self, prompts: Sequence[str], *, frames: int, seed: int = 0) -> Tensor:
        """The first guess from pure noise, (B, F, 3, H, W): the mean of all clips that fit a prompt.

        It shows what the text has taught: where two prompts look alike here, the model takes them for the same.
        """
        generator = torch.Generator(self.vae.device).manual_seed(seed)
        noise = self._noise(1, frames, generator).expand(len(prompts), -1, -1, -1, -1)
        with torch.autocast(self.vae.device.type, torch.bfloat16, enabled=self.bf16):
            last = torch.full((len(prompts),), float(len(self.scheduler) - 1), device=self.vae.device)
            # At the last step a is 0, and v is minus the clean latents.
            return self._decode(-self.transformer(noise, self.encode(prompts), last).sample.float())

    def _noise(self, count: int, frames: int, generator: torch.Generator) -> Tensor:
        shape = latent_shape(frames, *self.size, vae_config=self.vae.config)
        return torch.randn(shape.as_tuple(count), generator=generator, device=generator.device)

    def _decode(self, latents: Tensor) -> Tensor:
        scale = float(self.vae.config.scaling_factor)
        clips = [
            decode_latents(self.vae, x[None], scale=scale, clamp=True, thrift=self.thrift) for x in latents
        ]
        return torch.cat(clips).float().clamp(-1, 1)
