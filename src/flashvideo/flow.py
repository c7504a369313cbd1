"""Flow matching from low to high quality: path, velocity, time and loss (paper section 3.2).

Straight path between a degraded latent and its clean counterpart,

    z_t = (1 - t) z_lq + t z_hq,    v = dz_t / dt = z_hq - z_lq,    t in [0, 1],

solved by Euler's method on a grid shifted towards t = 0, where the detail is decided. t = 0 is low quality. Everything
here is a pure function of tensors; latents are (B, f, C, h, w) but any shape with a leading batch works.
"""

from collections.abc import Callable, Iterator

import torch

from flashvideo.presets import NUM_TRAIN_TIMESTEPS


def shift_time(u: torch.Tensor, shift: float) -> torch.Tensor:
    """Shift uniform times: ``t = 1 - s (1 - u) / (1 + (s - 1)(1 - u))``.

    Args:
        u: Times in [0, 1], any shape.
        shift: s > 0; above 1 it moves times towards 0, 1 is the identity. Released value 2.5.

    Returns:
        Shifted times, same shape and dtype; 0 and 1 stay where they are.

    Raises:
        ValueError: If ``shift`` is not positive.
    """
    if shift <= 0:
        raise ValueError(
            f"shift must be positive, got {shift}; 1 means no shift, 2 to 3.5 is the useful range"
        )
    return 1 - shift * (1 - u) / (1 + (shift - 1) * (1 - u))


def time_grid(num_steps: int, shift: float, *, reference_rounding: bool = False) -> torch.Tensor:
    """The sampling grid: ``i / N`` for i = 0..N, shifted.

    Args:
        num_steps: Euler steps N, at least 1.
        shift: See `shift_time`.
        reference_rounding: Round every operation to bfloat16, as a bfloat16 run of the reference does.

    Returns:
        Increasing times from 0 to 1, float32, shape (N + 1,).

    Raises:
        ValueError: If ``num_steps`` is below 1, ``shift`` is not positive, or rounded times of so many steps coincide.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    dtype = torch.bfloat16 if reference_rounding else torch.float64
    grid = shift_time(torch.linspace(0, 1, num_steps + 1, dtype=dtype), shift).to(torch.float32)
    if reference_rounding and not bool((grid.diff() > 0).all()):
        raise ValueError(
            f"reference_rounding takes few steps (4 to 6 are usual), got {num_steps}: rounded to bfloat16 some of "
            "their times coincide; take fewer steps or leave it out"
        )
    return grid


def network_timestep(t: torch.Tensor, *, reference_rounding: bool = False) -> torch.Tensor:
    """Flow time -> what the transformer's time input expects, ``1000 - 1000 t`` (1000 = low quality).

    Args:
        t: Flow times in [0, 1], any shape.
        reference_rounding: Compute in bfloat16, to go with the grid of the same option.

    Returns:
        Float32 timesteps in [0, 1000], same shape.
    """
    t = t.to(torch.bfloat16 if reference_rounding else torch.float32)
    return (NUM_TRAIN_TIMESTEPS - NUM_TRAIN_TIMESTEPS * t).to(torch.float32)


def network_noise_step(noise_step: int, *, reference_rounding: bool = False) -> int:
    """Step of the latent degradation -> what the transformer's noise-step input gets: the step itself.

    Args:
        noise_step: 0 to 999.
        reference_rounding: Round it to bfloat16, as a bfloat16 run of the reference does on its way to the network
            alone; the noise that is added stays that of ``noise_step``.

    Returns:
        The step for the network, 0 to 1000.

    Example:
        >>> network_noise_step(675), network_noise_step(675, reference_rounding=True)
        (675, 676)
    """
    return int(torch.tensor(noise_step).bfloat16()) if reference_rounding else noise_step


def interpolate(z_lq: torch.Tensor, z_hq: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A point on the path, ``z_t = (1 - t) z_lq + t z_hq``.

    Args:
        z_lq: Low-quality latents (B, ...).
        z_hq: High-quality latents (B, ...).
        t: Times in [0, 1], () or (B,).

    Returns:
        (B, ...).
    """
    t = _per_sample(t, z_lq)
    return (1 - t) * z_lq + t * z_hq


def velocity(z_lq: torch.Tensor, z_hq: torch.Tensor) -> torch.Tensor:
    """The path's velocity, ``v = z_hq - z_lq``, the same at every t."""
    return z_hq - z_lq


def path_end(z_t: torch.Tensor, v: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Where a velocity leads, ``z_hq = z_t + (1 - t) v``.

    Args:
        z_t: A point on the path (B, ...).
        v: Velocity there, same shape.
        t: Times in [0, 1], () or (B,).

    Returns:
        (B, ...).
    """
    return z_t + (1 - _per_sample(t, z_t)) * v


def flow_matching_loss(
    v_predicted: torch.Tensor, z_lq: torch.Tensor, z_hq: torch.Tensor, *, reduction: str = "mean"
) -> torch.Tensor:
    """Mean squared error of the predicted velocity (paper equation 2), in float32.

    Args:
        v_predicted: The network's output (B, ...).
        z_lq: Low-quality latents (B, ...), after latent degradation.
        z_hq: High-quality latents (B, ...).
        reduction: "mean" for one number, "none" for one per sample.

    Returns:
        () or (B,).

    Raises:
        ValueError: If ``reduction`` is neither.
    """
    if reduction not in ("mean", "none"):
        raise ValueError(f'reduction must be "mean" or "none", got {reduction!r}')
    error = (v_predicted.float() - velocity(z_lq.float(), z_hq.float())).square()
    per_sample = error.flatten(1).mean(dim=1)
    return per_sample.mean() if reduction == "mean" else per_sample


def guided_velocity(v_cond: torch.Tensor, v_uncond: torch.Tensor, scale: float) -> torch.Tensor:
    """Classifier-free guidance, ``v = v_uncond + w (v_cond - v_uncond)``; w = 1 is no guidance."""
    return v_uncond + scale * (v_cond - v_uncond)


def euler_steps(
    velocity_fn: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], x: torch.Tensor, grid: torch.Tensor
) -> Iterator[torch.Tensor]:
    """Euler's method, one state at a time: ``x <- x + (t_next - t) v(x, t)``.

    Args:
        velocity_fn: ``(x, t) -> v`` with t a 0-dimensional tensor.
        x: Start state.
        grid: Times (N + 1,), see `time_grid`.

    Yields:
        The N states after each step.
    """
    for t, t_next in zip(grid[:-1], grid[1:], strict=True):
        x = x + (t_next - t).to(x.dtype) * velocity_fn(x, t)
        yield x


def euler(
    velocity_fn: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], x: torch.Tensor, grid: torch.Tensor
) -> torch.Tensor:
    """The last state of `euler_steps`."""
    for x in euler_steps(velocity_fn, x, grid):  # noqa: B007, B020 - only the last state is wanted
        pass
    return x


def _per_sample(t: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(B,) -> (B, 1, ...), so that it broadcasts over a latent."""
    return t.to(like).reshape(-1, *[1] * (like.ndim - 1))
