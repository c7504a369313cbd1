"""Latent degradation DEG_latent (paper section 3.2): noise that hides structures too small to be trusted.

    z' = a z + sqrt(1 - a^2) eps,    a = sqrt(alpha_bar[noise step])

on the 1000-step zero-terminal-SNR schedule. Training and inference call the same function; only the choice of the step
differs (training draws it from a range, inference uses 675).
"""

import torch
from diffusers.utils.torch_utils import randn_tensor

from flashvideo.schedule import add_noise, alphas_cumprod_sqrt_table


def degrade_latents(
    z: torch.Tensor,
    noise_step: int | torch.Tensor,
    generator: torch.Generator | None = None,
    *,
    noise: torch.Tensor | None = None,
) -> torch.Tensor:
    """Replace part of the latents by Gaussian noise.

    Args:
        z: Scaled latents (B, f, C, h, w).
        noise_step: 0 (clean) to 999 (pure noise), one integer or one per sample (B,).
        generator: Source of the noise.
        noise: The noise itself, for parity checks; the generator is then not used.

    Returns:
        Degraded latents, same shape and dtype.

    Raises:
        ValueError: If a step lies outside 0..999, or neither generator nor noise is given.
    """
    table = alphas_cumprod_sqrt_table().to(z.device)
    steps = torch.as_tensor(noise_step, device=z.device)
    if bool((steps < 0).any()) or bool((steps >= len(table)).any()):
        raise ValueError(f"noise_step must be in 0..{len(table) - 1}, got {noise_step}")
    if noise is None:
        if generator is None:
            raise ValueError("degrade_latents needs a torch.Generator (or explicit noise), got neither")
        noise = randn_tensor(z.shape, generator=generator, device=z.device, dtype=z.dtype)
    return add_noise(z, noise, table[steps])
