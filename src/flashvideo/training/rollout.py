"""Noisy latents that the model's own sampler made, for training on what sampling goes through.

In training, noise is added to clean clips; in sampling, the model goes on from what it said itself, and what is wrong
there it has never learned to put right. So a share of noisy latents are the model's own. The clip gets the noise of a
timestep further up, the sampler takes its steps down from there without gradients, and the target stays the clip:

    v* = (a x - x0) / sqrt(1 - a^2),    the v that leads from these latents x to the clip

which is scheduled sampling (arXiv 1506.03099; for diffusion arXiv 2210.05147) along a sampler's own timesteps. It is
for few of them: an error of x0 counts 1 / (1 - a^2) times, as in all training of v, and near a = 1 that is much. The
steps are taken without guidance, and by the weights in training, not their average.

Shapes: latents (B, f, C, h, w), timesteps (B,).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flashvideo.schedule import FlashVideoScheduler, add_noise
from flashvideo.training.draws import Draws

DEPTH = 2
"""Steps of the sampler: from the second on it extrapolates from the step before."""


def sampler(
    scheduler: FlashVideoScheduler, steps: int, device: torch.device | None = None
) -> FlashVideoScheduler:
    """Another sampler on the same noise schedule, set to so many steps: samplers keep state."""
    own = FlashVideoScheduler.from_config(scheduler.config)
    own.set_timesteps(steps, device)
    return own


def visited_table(scheduler: FlashVideoScheduler, steps: int) -> Tensor:
    """a = sqrt(alpha_bar) by timestep, (1000,), at those that a sampler visits as it has it there.

    The sampler rescales its own timesteps to end at zero, which moves them a little: by up to 0.008 in 6 steps. With
    `steps` 0 it is the whole schedule's.
    """
    if not steps:
        return scheduler.table
    own = sampler(scheduler, steps)
    table = own.table.clone()
    table[own.timesteps] = own.alphas_cumprod_sqrt[:-1]
    return table


def nearest_visited(timesteps: Tensor, steps: int) -> Tensor:
    """Moves timesteps (B,) to the nearest of those that a sampler visits in so many steps; with 0 they stay."""
    if not steps:
        return timesteps
    visited = sampler(FlashVideoScheduler(), steps).timesteps.to(timesteps.device)
    return visited[(timesteps[:, None] - visited).abs().argmin(dim=1)]


@torch.no_grad()
def roll_out(
    clean: Tensor,
    timesteps: Tensor,
    draws: Draws,
    predict: Callable[[Tensor, Tensor], Tensor],
    *,
    scheduler: FlashVideoScheduler,
    steps: int,
) -> Tensor:
    """What the model's own sampler has at some timesteps, started from noisy clips up to `DEPTH` steps before.

    It never starts from pure noise, from which it would lead to another clip.

    Args:
        clean: Latents of the clips.
        timesteps: Where to arrive, each one that the sampler visits; at its first two the clip gets the noise alone.
        draws: Random numbers of these samples.
        predict: v of noisy latents and timesteps.
        scheduler: Whose noise schedule it is.
        steps: Of the sampler.

    Returns:
        Noisy latents, as `clean`.
    """
    # However soon these samples arrive, there are as many passes: processes that share the weights wait for each other.
    passes = min(DEPTH, max(0, steps - 2))
    samplers = [sampler(scheduler, steps) for _ in clean]
    visited, levels = samplers[0].timesteps, samplers[0].alphas_cumprod_sqrt
    hits = timesteps.cpu()[:, None] == visited
    assert bool(hits.any(dim=1).all())
    ends = hits.int().argmax(dim=1)
    starts = (ends - DEPTH).clamp(min=1).minimum(ends)
    for own, start in zip(samplers, starts.tolist(), strict=True):
        own.set_begin_index(start)
    noisy = add_noise(clean, draws.normal(clean.shape[1:]), levels[starts])
    for depth in range(passes):
        places = (starts + depth).minimum(ends)
        v = predict(noisy, visited[places].to(clean.device))
        noise = draws.normal(clean.shape[1:])
        moved = []
        for i, (own, place) in enumerate(zip(samplers, places.tolist(), strict=True)):
            one = slice(i, i + 1)
            if place == ends[i]:
                moved.append(noisy[one])
                continue
            step = own.step(v[one], visited[place], noisy[one], variance_noise=noise[one], return_dict=False)
            moved.append(step[0])
        noisy = torch.cat(moved)
    # Weights that autocast copied here have no gradients, and must not serve the pass that learns.
    torch.clear_autocast_cache()
    return noisy
