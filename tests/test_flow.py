"""Path, velocity, time grid and Euler's method, by closed forms."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from flashvideo import flow


@pytest.fixture
def pair(generator):
    return torch.randn(2, 3, 4, 2, 2, generator=generator), torch.randn(2, 3, 4, 2, 2, generator=generator)


def test_the_path_runs_from_low_quality_to_high_quality(pair):
    z_lq, z_hq = pair
    assert flow.interpolate(z_lq, z_hq, torch.tensor(0.0)).equal(z_lq)
    assert flow.interpolate(z_lq, z_hq, torch.tensor(1.0)).equal(z_hq)


def test_each_sample_may_have_its_own_time(pair):
    z_lq, z_hq = pair
    z = flow.interpolate(z_lq, z_hq, torch.tensor([0.0, 0.25]))
    assert z[0].equal(z_lq[0])
    torch.testing.assert_close(z[1], 0.75 * z_lq[1] + 0.25 * z_hq[1])


def test_the_velocity_is_the_paths_derivative(pair):
    z_lq, z_hq = (z.double() for z in pair)
    t = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    for index in range(3):
        slope = torch.autograd.grad(flow.interpolate(z_lq, z_hq, t).flatten()[index], t)[0]
        torch.testing.assert_close(slope, flow.velocity(z_lq, z_hq).flatten()[index])


def test_the_velocity_leads_from_every_point_of_the_path_to_its_end(pair):
    z_lq, z_hq = pair
    times = torch.tensor([0.25, 0.75])
    end = flow.path_end(flow.interpolate(z_lq, z_hq, times), flow.velocity(z_lq, z_hq), times)
    torch.testing.assert_close(end, z_hq, atol=1e-5, rtol=0)


def test_the_shift_keeps_both_ends_and_moves_the_middle_to_low_quality():
    u = torch.tensor([0.0, 0.5, 1.0])
    # 1 - 2.5 * 0.5 / (1 + 1.5 * 0.5)
    assert flow.shift_time(u, 2.5).tolist() == pytest.approx([0.0, 2 / 7, 1.0])
    assert flow.shift_time(u, 1.0).equal(u)


def test_shifting_by_the_inverse_undoes_a_shift():
    u = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(flow.shift_time(flow.shift_time(u, 3.0), 1 / 3), u)


def test_the_grid_runs_from_0_to_1_and_its_steps_grow():
    grid = flow.time_grid(8, 2.5)
    assert grid.dtype == torch.float32
    assert (grid[0], grid[-1], len(grid)) == (0, 1, 9)
    assert (grid.diff().diff() > 0).all()


@pytest.mark.parametrize("num_steps", [1, 4, 5, 50])
@pytest.mark.parametrize("shift", [1.0, 2.5, 3.5])
def test_diffusers_scheduler_set_up_with_explicit_sigmas_takes_the_same_steps(num_steps, shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / num_steps, num_steps).tolist())
    grid = flow.time_grid(num_steps, shift)
    torch.testing.assert_close(1 - scheduler.sigmas, grid, atol=1e-6, rtol=0)
    torch.testing.assert_close(scheduler.timesteps, flow.network_timestep(grid[:-1]), atol=1e-3, rtol=0)

    def v(x, t):
        return x * 0.7 - t

    x = y = torch.tensor([[1.0, -2.0]])
    for timestep in scheduler.timesteps:
        x = scheduler.step(-v(x, 1 - timestep / 1000), timestep, x).prev_sample
    torch.testing.assert_close(x, flow.euler(v, y, grid), atol=1e-4, rtol=0)


def test_diffusers_scheduler_set_up_with_a_step_count_alone_takes_other_steps():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=2.5)
    scheduler.set_timesteps(4)
    assert (1 - scheduler.sigmas - flow.time_grid(4, 2.5)).abs().max() > 0.1


def test_the_networks_time_counts_down_from_1000():
    assert flow.network_timestep(torch.tensor([0.0, 0.25, 1.0])).tolist() == [1000, 750, 0]


def test_the_rounded_grid_holds_bfloat16_numbers():
    grid = flow.time_grid(5, 2.5, reference_rounding=True)
    assert grid.equal(grid.bfloat16().float())
    assert not grid.equal(flow.time_grid(5, 2.5))


@pytest.mark.parametrize("num_steps", [1, 3, 7])
def test_euler_is_exact_on_a_straight_path(pair, num_steps):
    z_lq, z_hq = pair
    end = flow.euler(lambda x, t: flow.velocity(z_lq, z_hq), z_lq, flow.time_grid(num_steps, 2.5))
    torch.testing.assert_close(end, z_hq, atol=1e-5, rtol=0)


def test_eulers_error_on_a_curved_path_halves_with_the_step():
    x = torch.ones(1, dtype=torch.float64)
    errors = [abs(flow.euler(lambda x, t: x, x, flow.time_grid(n, 1.0)).item() - torch.e) for n in (100, 200)]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.02)


def test_euler_steps_yields_every_state():
    states = list(
        flow.euler_steps(lambda x, t: torch.ones_like(x), torch.zeros(1), torch.tensor([0, 0.25, 1]))
    )
    assert [state.item() for state in states] == [0.25, 1.0]


def test_the_loss_of_a_perfect_prediction_is_zero_and_of_an_offset_its_square(pair):
    z_lq, z_hq = pair
    v = flow.velocity(z_lq, z_hq)
    assert flow.flow_matching_loss(v, z_lq, z_hq) == 0
    offset = torch.tensor([0.5, 2.0]).reshape(2, 1, 1, 1, 1)
    per_sample = flow.flow_matching_loss(v + offset, z_lq, z_hq, reduction="none")
    torch.testing.assert_close(per_sample, torch.tensor([0.25, 4.0]))
    torch.testing.assert_close(flow.flow_matching_loss(v + offset, z_lq, z_hq), torch.tensor(2.125))


def test_guidance_of_1_is_the_conditional_and_of_0_the_unconditional_prediction():
    v_cond, v_uncond = torch.tensor([3.0]), torch.tensor([1.0])
    guided = [flow.guided_velocity(v_cond, v_uncond, w).item() for w in (0, 1, 13)]
    assert guided == [1, 3, 27]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flow.time_grid(0, 2.5), "num_steps must be at least 1, got 0"),
        (lambda: flow.time_grid(4, 0.0), "shift must be positive, got 0"),
        (lambda: flow.time_grid(60, 2.5, reference_rounding=True), "takes few steps .*, got 60"),
        (
            lambda: flow.flow_matching_loss(*[torch.zeros(1, 1)] * 3, reduction="sum"),
            'must be "mean" or "none"',
        ),
    ],
)
def test_a_wrong_argument_is_an_error_that_names_it(call, message):
    with pytest.raises(ValueError, match=message):
        call()
