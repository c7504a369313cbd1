"""Noisy latents that the sampler makes: with the truth for a prediction they are as noisy as the schedule says."""

import pytest
import torch

from flashvideo.schedule import FlashVideoScheduler, add_noise, velocity_towards
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
    own, asked = sampler(SCHEDULER, STEPS), []

    def predict(noisy: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        asked.append(times.tolist())
        return torch.zeros_like(noisy)

    clean = torch.ones(STEPS, *SHAPE)
    noisy = roll_out(clean, own.timesteps, draws(STEPS), predict, scheduler=SCHEDULER, steps=STEPS)
    assert asked == [[999, 832, 832, 832, 666, 499], [999, 832, 666, 666, 499, 333]]
    plain = add_noise(clean, draws(STEPS).normal(SHAPE), own.alphas_cumprod_sqrt[:-1])
    assert torch.equal(noisy[:2], plain[:2])
    assert not torch.equal(noisy[2:], plain[2:])


def test_a_sample_is_what_it_is_alone_and_all_processes_have_as_many_passes() -> None:
    timesteps, passes = sampler(SCHEDULER, STEPS).timesteps, []

    def predict(noisy: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        passes.append(len(noisy))
        return torch.tanh(noisy)

    clean = torch.randn(STEPS, *SHAPE, generator=torch.Generator().manual_seed(0))
    together = roll_out(clean, timesteps, draws(STEPS), predict, scheduler=SCHEDULER, steps=STEPS)
    for place in (0, 4):
        one, alone = slice(place, place + 1), Draws(1, 2, [place], STEPS)
        found = roll_out(clean[one], timesteps[one], alone, predict, scheduler=SCHEDULER, steps=STEPS)
        torch.testing.assert_close(found, together[one])
    assert passes == [STEPS, STEPS, 1, 1, 1, 1]


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
    with pytest.raises(
        ValueError, match=r"must be in 0\.\.5 and come before the first step, got 2 after a step"
    ):
        own.set_begin_index(2)
    own.set_timesteps(STEPS)
    for wrong in (-1, STEPS):
        with pytest.raises(ValueError, match=rf"begin_index must be in 0\.\.5 .*, got {wrong}$"):
            own.set_begin_index(wrong)
