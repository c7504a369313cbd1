"""Noisy latents that the sampler makes: with the truth for a prediction they are as noisy as the schedule says."""

import pytest
import torch

from flashvideo.schedule import FlashVideoScheduler, velocity_towards
from flashvideo.training.draws import Draws
from flashvideo.training.rollout import nearest_visited, roll_out, sampler, visited_table

STEPS = 6
SCHEDULER = FlashVideoScheduler()
SHAPE = (3, 4, 32, 32)


def draws(count: int) -> Draws:
    return Draws(1, 2, range(count), count)


def test_the_nearest_of_the_samplers_timesteps_is_taken() -> None:
    moved = nearest_visited(torch.arange(1000), STEPS)
    assert moved.unique().tolist() == [166, 333, 499, 666, 832, 999]
    assert (moved - torch.arange(1000)).abs().max() == 166


def test_at_them_the_table_has_the_samplers_own_levels() -> None:
    table, own = visited_table(SCHEDULER, STEPS), sampler(SCHEDULER, STEPS)
    assert torch.equal(table[own.timesteps], own.alphas_cumprod_sqrt[:-1])
    difference = (table - SCHEDULER.table).abs()
    assert (difference > 0).sum() == STEPS - 1  # pure noise is the same
    assert 0.005 < difference.max() < 0.008


def test_what_a_perfect_model_makes_has_the_schedules_noise() -> None:
    timesteps = sampler(SCHEDULER, STEPS).timesteps
    a = visited_table(SCHEDULER, STEPS)[timesteps]
    clean = torch.randn(STEPS, *SHAPE, generator=torch.Generator().manual_seed(0))

    def predict(noisy: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        return velocity_towards(clean, noisy, visited_table(SCHEDULER, STEPS)[times])

    noisy = roll_out(clean, timesteps, draws(STEPS), predict, scheduler=SCHEDULER, steps=STEPS)
    noise = noisy - a.view(-1, 1, 1, 1, 1) * clean
    # 12,288 elements each: the standard error of their deviation is 0.6 %.
    torch.testing.assert_close(noise.flatten(1).std(dim=1), (1 - a**2).sqrt(), rtol=0.03, atol=0)
    assert (noise * clean).flatten(1).mean(dim=1).abs().max() < 0.04


def test_it_starts_two_steps_before_but_not_from_pure_noise() -> None:
    timesteps, asked = sampler(SCHEDULER, STEPS).timesteps, []

    def predict(noisy: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        asked.append(times.tolist())
        return torch.zeros_like(noisy)

    clean = torch.ones(STEPS, *SHAPE)
    noisy = roll_out(clean, timesteps, draws(STEPS), predict, scheduler=SCHEDULER, steps=STEPS)
    assert asked == [[999, 832, 832, 832, 666, 499], [999, 832, 666, 666, 499, 333]]
    # The first two are the clip with noise, the others know of the clip only what v = 0 tells: x0 = a x.
    first = roll_out(clean[:2], timesteps[:2], draws(2), predict, scheduler=SCHEDULER, steps=STEPS)
    assert torch.equal(noisy[:2], first)
    assert len(asked) == 2


def test_the_steps_are_those_that_sampling_takes() -> None:
    generator = torch.Generator().manual_seed(3)
    clean = torch.randn(1, *SHAPE, generator=generator)
    end = sampler(SCHEDULER, STEPS).timesteps[3:4]
    seen = []

    def predict(noisy: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        seen.append(noisy)
        return torch.tanh(noisy)

    noisy = roll_out(clean, end, draws(1), predict, scheduler=SCHEDULER, steps=STEPS)
    again, numbers = sampler(SCHEDULER, STEPS), draws(1)
    again.set_begin_index(1)
    numbers.normal(SHAPE)
    latents = seen[0]
    for timestep in again.timesteps[1:3]:
        v = torch.tanh(latents)
        latents = again.step(v, timestep, latents, variance_noise=numbers.normal(SHAPE)).prev_sample
    assert torch.equal(noisy, latents)


def test_a_run_begins_where_it_is_told_and_the_next_at_the_start() -> None:
    own, latents = sampler(SCHEDULER, STEPS), torch.zeros(1, 2)
    own.set_begin_index(4)
    with pytest.raises(ValueError, match="step 4 of this run does not belong to timestep 999"):
        own.step(latents, 999, latents)
    own.set_timesteps(STEPS)
    own.step(latents, 999, latents)
