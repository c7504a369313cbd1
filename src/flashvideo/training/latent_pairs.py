"""Both ends of Stage II's paths (paper section 3.2): a clip's latents, and those of what was made of it.

    z_hq = Encode(x),  z_lq = Encode(DEG_pixel(x)), still before latent degradation

Shapes: pixels (B, F, 3, H, W) in [-1, 1], latents (B, f, C, h, w).
"""

from __future__ import annotations

import dataclasses

import torch
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor

from flashvideo.degradations.pixel import PixelDegradation, degrade_pixels
from flashvideo.shapes import latent_shape, vae_factors
from flashvideo.training.draws import Draws
from flashvideo.training.stage_recipes import Stage2Phase
from flashvideo.vae import decode_latents, encode_pixels


def drawn_kind(phase: Stage2Phase, generator: torch.Generator) -> tuple[bool, bool]:
    """Whether a clip gets the strong degradation, and whether it goes through the VAE while it is small."""
    strong, round_trip = torch.rand(2, generator=generator).tolist()
    return strong < phase.strong, round_trip < phase.round_trip


class LatentPairs:
    """Makes z_hq and z_lq of clips.

    Args:
        vae: Its config's scaling factor is the latent scale.
        degradation: What low quality is made by; of its `strong` the phases' own takes the place.
        thrift: How the VAE saves memory, see `flashvideo.vae.encode_pixels`.
    """

    def __init__(
        self, vae: AutoencoderKLCogVideoX, degradation: PixelDegradation, *, thrift: str | None = None
    ) -> None:
        self.vae, self.degradation, self.thrift = vae, degradation, thrift
        self.scale = float(vae.config.scaling_factor)

    @torch.no_grad()
    def __call__(self, pixels: Tensor, phase: Stage2Phase, draws: Draws) -> tuple[Tensor, Tensor]:
        """(z_hq, z_lq) of a batch; the target is the posterior's mean, the input a sample, as at inference."""
        return self.encode(pixels), self.low_quality(pixels, phase, draws)

    @torch.no_grad()
    def low_quality(self, pixels: Tensor, phase: Stage2Phase, draws: Draws) -> Tensor:
        """z_lq of a batch."""
        low = torch.cat([self.degrade(p[None], phase, g) for p, g in zip(pixels, draws.each, strict=True)])
        _, num_frames, _, height, width = pixels.shape
        shape = latent_shape(num_frames, height, width, vae_config=self.vae.config).as_tuple(1)[1:]
        return self.encode(low, noise=draws.normal(shape))

    def degrade(self, pixels: Tensor, phase: Stage2Phase, generator: torch.Generator) -> Tensor:
        """What a clip (1, F, 3, H, W) is made from, of its own size."""
        strong, round_trip = drawn_kind(phase, generator)
        config = self.degradation
        if round_trip:
            config = dataclasses.replace(config, low_multiple=vae_factors(self.vae.config)[1])
        return degrade_pixels(
            pixels,
            generator,
            config,
            strong=strong,
            at_low_resolution=self.round_trip if round_trip else None,
        )

    def encode(self, pixels: Tensor, *, noise: Tensor | None = None) -> Tensor:
        """Scaled latents: the posterior's mean, or a sample of it by this noise."""
        return encode_pixels(
            self.vae, pixels, scale=self.scale, posterior_noise=noise, thrift=self.thrift
        ).float()

    def round_trip(self, pixels: Tensor) -> Tensor:
        """What the VAE makes of a small clip; generated previews have been through its decoder."""
        latents = encode_pixels(self.vae, pixels, scale=1.0)
        return decode_latents(self.vae, latents, scale=1.0, clamp=True).float()
