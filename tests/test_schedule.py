"""The noise schedule and the Stage I sampler, by closed forms and round trips."""

import math

import pytest
import torch

from flashvideo.schedule import (
    FlashVideoScheduler,
    add_noise,
    alphas_cumprod_sqrt_table,
    clean_from_velocity,
    guidance_scale_at,
    velocity_target,
)


def test_the_table_falls_from_the_first_betas_value_to_exactly_zero():
    table = alphas_cumprod_sqrt_table()
    assert len(table) == 1000
    assert table[0].item() == pytest.approx(math.sqrt(1 - 0.00085), abs=1e-6)
    assert table[-1] == 0
    assert (table.diff() < 0).all()


def test_noise_and_velocity_give_the_clean_latents_back(generator):
    x0, eps = torch.randn(2, 4, 3, dtype=torch.float64, generator=generator).unsqueeze(0).unbind(1)
    for a in (0.0, 0.3, 1.0):
        x, v = add_noise(x0, eps, a), velocity_target(x0, eps, a)
        torch.testing.assert_close(clean_from_velocity(x, v, a), x0, atol=1e-6, rtol=0)


def test_the_noisy_latents_of_unit_variance_keep_unit_variance(generator):
    x0, eps = torch.randn(2, 1, 100_000, generator=generator)
    assert add_noise(x0, eps, 0.4).std().item() == pytest.approx(1, abs=0.01)


def test_each_sample_may_have_its_own_noise_level():
    x0, eps = torch.ones(2, 3, 1), torch.full((2, 3, 1), 5.0)
    noisy = add_noise(x0, eps, torch.tensor([1.0, 0.0]))
    assert noisy[0].equal(x0[0])
    assert noisy[1].equal(eps[1])


def perfect(x0, scheduler):
    """A network that knows the answer: the v for which the scheduler's clean latents are x0."""

    def v(x, index):
        a = scheduler.quantized_alpha(index)
        return (a * x - x0) / math.sqrt(1 - a**2)

    return v


@pytest.mark.parametrize("num_steps", [1, 2, 3, 20, 51, 1000])
def test_a_perfect_network_leads_to_its_answer_in_any_number_of_steps(generator, num_steps):
    x0 = torch.randn(1, 2, 3, generator=generator)
    x = torch.randn(1, 2, 3, generator=generator)
    scheduler = FlashVideoScheduler()
    scheduler.set_timesteps(num_steps)
    network = perfect(x0, scheduler)
    for index, timestep in enumerate(scheduler.timesteps):
        x = scheduler.step(network(x, index), timestep, x, generator=generator).prev_sample
        assert x.isfinite().all()
    torch.testing.assert_close(x, x0, atol=1e-4, rtol=0)


def test_states_on_the_way_have_the_schedules_noise_level(generator):
    x0 = torch.zeros(1, 20_000)
    x = torch.randn(x0.shape, generator=generator)
    scheduler = FlashVideoScheduler()
    scheduler.set_timesteps(10)
    network = perfect(x0, scheduler)
    for index, timestep in enumerate(scheduler.timesteps[:-1]):
        x = scheduler.step(network(x, index), timestep, x, generator=generator).prev_sample
        expected = math.sqrt(1 - scheduler.alphas_cumprod_sqrt[index + 1].item() ** 2)
        assert x.std().item() == pytest.approx(expected, rel=0.03), index


def test_sampling_a_gaussian_gives_its_spread(generator):
    """For data N(0, s^2) the best v is known: E[x0 | x] = a s^2 x / (a^2 s^2 + 1 - a^2)."""
    spread = 0.5
    x = torch.randn(1, 50_000, generator=generator)
    scheduler = FlashVideoScheduler()
    scheduler.set_timesteps(100)
    for index, timestep in enumerate(scheduler.timesteps):
        a = scheduler.quantized_alpha(index)
        x0 = a * spread**2 * x / (a**2 * spread**2 + 1 - a**2)
        x = scheduler.step((a * x - x0) / math.sqrt(1 - a**2), timestep, x, generator=generator).prev_sample
    assert x.std().item() == pytest.approx(spread, rel=0.03)


def test_timesteps_are_those_of_the_released_run():
    scheduler = FlashVideoScheduler()
    scheduler.set_timesteps(51)
    timesteps = scheduler.timesteps.tolist()
    assert timesteps[:4] == [999, 979, 959, 940]
    assert timesteps[-2:] == [39, 19]


def test_the_same_seed_gives_the_same_step_and_another_seed_another():
    def first_step(seed):
        scheduler = FlashVideoScheduler()
        scheduler.set_timesteps(5)
        zeros = torch.zeros(1, 4)
        return scheduler.step(zeros, 999, zeros, generator=torch.Generator().manual_seed(seed)).prev_sample

    assert first_step(0).equal(first_step(0))
    assert not first_step(0).equal(first_step(1))


def test_setting_timesteps_again_starts_a_fresh_run(generator):
    scheduler = FlashVideoScheduler()
    results = []
    for _ in range(2):
        scheduler.set_timesteps(3)
        x = torch.ones(1, 4)
        for timestep in scheduler.timesteps:
            x = scheduler.step(0.1 * x, timestep, x, variance_noise=torch.ones(1, 4)).prev_sample
        results.append(x)
    assert results[0].equal(results[1])


def test_a_step_out_of_order_is_an_error():
    scheduler = FlashVideoScheduler()
    x = torch.zeros(1, 4)
    with pytest.raises(ValueError, match="call set_timesteps before step"):
        scheduler.step(x, 999, x)
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="step 0 of this run does not belong to timestep 749"):
        scheduler.step(x, 749, x)


@pytest.mark.parametrize("num_steps", [0, 1001])
def test_an_impossible_number_of_steps_is_an_error(num_steps):
    with pytest.raises(ValueError, match=rf"num_inference_steps must be in 1\.\.1000, got {num_steps}"):
        FlashVideoScheduler().set_timesteps(num_steps)


def test_a_step_returns_a_tuple_on_request():
    scheduler = FlashVideoScheduler()
    scheduler.set_timesteps(1)
    x = torch.ones(1, 4)
    previous, clean = scheduler.step(-x, 999, x, return_dict=False)
    assert previous.equal(clean)
    assert clean.equal(x)  # a = 0 at the start: x0 = -v


def test_the_scheduler_survives_a_folder(tmp_path):
    FlashVideoScheduler(num_train_timesteps=100).save_pretrained(tmp_path)
    assert FlashVideoScheduler.from_pretrained(tmp_path).config.num_train_timesteps == 100


def test_constant_guidance_is_constant():
    assert {guidance_scale_at("constant", 4, t, 20) for t in (999, 500, 19)} == {4.0}


def test_reference_guidance_oscillates_between_1_and_1_plus_scale():
    scales = [guidance_scale_at("reference", 8, t, 51) for t in (999, 979, 959)]
    assert scales == pytest.approx([8.29, 4.00, 2.40], abs=0.005)


def test_an_unknown_guidance_schedule_is_an_error():
    with pytest.raises(ValueError, match="guidance_schedule must be one of"):
        guidance_scale_at("linear", 4, 999, 20)
