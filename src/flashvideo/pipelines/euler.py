"""Stage II's scheduler, made ready for a run: diffusers' Euler method on the grid of flow matching.

The scheduler's sigma is 1 - t and runs from 1 down to 0; `flashvideo.flow.time_grid` is the definition of the grid.
"""

from __future__ import annotations

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from flashvideo.flow import network_timestep, time_grid
from flashvideo.presets import NUM_TRAIN_TIMESTEPS


def start_euler(
    scheduler: FlowMatchEulerDiscreteScheduler,
    num_inference_steps: int,
    *,
    device: torch.device,
    shift: float | None = None,
    reference_rounding: bool = False,
) -> FlowMatchEulerDiscreteScheduler:
    """Starts a run of Euler's method.

    Args:
        scheduler: The pipeline's scheduler.
        num_inference_steps: Number of steps.
        device: Where the timesteps shall lie.
        shift: Time shift, which shapes the grid; the scheduler's own if None.
        reference_rounding: Whether grid and timesteps are rounded as in a bfloat16 run of the released code.

    Returns:
        A scheduler that stands at t = 0: the given one, or for another shift or a rounded grid a new one, so that the
        given one stays as it is.

    Raises:
        ValueError: If rounded times of so many steps coincide.
    """
    if shift is not None and shift != scheduler.shift:
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(scheduler.config, shift=shift)
    if not reference_rounding:
        # The scheduler shifts what it is given: evenly spaced sigmas become the grid.
        sigmas = np.linspace(1, 1 / num_inference_steps, num_inference_steps)
        scheduler.set_timesteps(sigmas=sigmas, device=device)
        return scheduler
    grid = time_grid(num_inference_steps, scheduler.shift, reference_rounding=True)[:-1]
    timesteps = network_timestep(grid, reference_rounding=True)
    # A rounded grid is shifted already; with a shift of 1 the scheduler takes it bit by bit as it is.
    rounded = FlowMatchEulerDiscreteScheduler(num_train_timesteps=NUM_TRAIN_TIMESTEPS, shift=1.0)
    rounded.set_timesteps(sigmas=(1 - grid).tolist(), timesteps=timesteps.tolist(), device=device)
    return rounded
