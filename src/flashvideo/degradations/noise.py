"""Noise of sensors: Gaussian, the same everywhere, and Poisson, of which bright pixels have more.

With s the signal in [0, 1], N photons at full brightness and n ~ Poisson(N s), Poisson noise is scale (n / N - s): of
mean 0 and variance scale^2 s / N. Shapes: frames (F, 3, H, W) in [-1, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor

from flashvideo.degradations.draws import ClipDraws
from flashvideo.degradations.ranges import NoiseRange

# Parts of red, green and blue in brightness (ITU-R BT.601).
_LUMA = (0.299, 0.587, 0.114)


def add_gaussian_noise(frames: Tensor, sigma: Tensor, generator: torch.Generator, *, grey: bool) -> Tensor:
    """Add Gaussian noise.

    Args:
        frames: (F, 3, H, W) in [-1, 1].
        sigma: (F,) standard deviations in levels of 255.
        generator: on the frames' device.
        grey: whether the three colours of a pixel get the same noise.

    Returns:
        (F, 3, H, W), not limited to [-1, 1].
    """
    shape = (len(frames), 1 if grey else frames.shape[1], *frames.shape[2:])
    noise = torch.randn(shape, generator=generator, device=frames.device, dtype=frames.dtype)
    return torch.addcmul(frames, noise, (sigma / 127.5).to(frames)[:, None, None, None])


def add_poisson_noise(
    frames: Tensor, scale: Tensor, generator: torch.Generator, *, grey: bool, photons: float
) -> Tensor:
    """Add Poisson noise.

    Args:
        frames: (F, 3, H, W) in [-1, 1].
        scale: (F,) factors on the noise.
        generator: on the frames' device.
        grey: whether the three colours of a pixel get the same noise, that of its brightness.
        photons: N.

    Returns:
        (F, 3, H, W), not limited to [-1, 1].
    """
    signal = (frames.clamp(-1, 1) + 1) / 2
    if grey:
        signal = torch.einsum("fchw,c->fhw", signal, signal.new_tensor(_LUMA))[:, None]
    rate = photons * signal
    # From parts of 1 to [-1, 1] doubles the noise.
    factor = (2 * scale / photons).to(frames)[:, None, None, None]
    return torch.addcmul(frames, torch.poisson(rate, generator=generator) - rate, factor)


def random_noise(frames: Tensor, config: NoiseRange, draws: ClipDraws) -> Tensor:
    """Add noise whose strength drifts over (F, 3, H, W), with the range's probability; within [-1, 1]."""
    if not draws.happens(config.probability):
        return frames
    is_gaussian = draws.choose((config.gaussian, config.poisson)) == 0
    grey = draws.happens(config.grey)
    if is_gaussian:
        sigma = draws.drift(config.sigma, config.sigma_step, len(frames))
        noisy = add_gaussian_noise(frames, sigma, draws.fields, grey=grey)
    else:
        scale = draws.drift(config.scale, config.scale_step, len(frames))
        noisy = add_poisson_noise(frames, scale, draws.fields, grey=grey, photons=config.photons)
    return noisy.clamp_(-1, 1)
