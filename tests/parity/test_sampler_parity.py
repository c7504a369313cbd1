"""Both samplers and their time grids give what the reference gives."""

import pytest
import torch

from flashvideo.degradations.latent import degrade_latents
from flashvideo.flow import euler_steps, guided_velocity, network_timestep, time_grid
from flashvideo.schedule import FlashVideoScheduler, alphas_cumprod_sqrt_table, guidance_scale_at

RECORDED_STEPS = [0, 1, 2, 10, 25, 49]


@pytest.fixture(scope="module")
def stage2_cases(golden):
    return {case["name"]: case for case in golden.metadata()["config"]["stage2_sampler_cases"]}


@pytest.mark.parametrize("name", ["n4", "n5"])
def test_the_stage2_sampler_follows_the_references_trajectory(golden, stage2_cases, name):
    case = stage2_cases[name]
    prefix, shape = f"stage2_sampler/{name}", case["shape"]
    model = golden.build_transformer("stage2")
    cond = golden.formula(f"{prefix}/cond", (1, 8, 32))
    uncond = (
        golden.formula(f"{prefix}/uncond", (1, 8, 32))
        if case["uncond"] == "formula"
        else torch.zeros_like(cond)
    )
    noise = golden.formula(f"{prefix}/randn_like/0", shape)
    start = degrade_latents(golden.formula(f"{prefix}/ref_x", shape), case["ref"], noise=noise)

    def velocity(x, t):
        timestep = network_timestep(t)
        v_cond, v_uncond = (
            model(x, text, timestep, noise_step=case["ref"]).sample for text in (cond, uncond)
        )
        return guided_velocity(v_cond, v_uncond, case["cfg"])

    grid = time_grid(case["num_steps"], case["shift"])
    with torch.no_grad():
        states = [start, *euler_steps(velocity, start, grid)]
    assert golden.difference(torch.stack(states), f"{prefix}/trajectory") <= golden.STAGE2_SAMPLER
    assert golden.difference(states[-1], f"{prefix}/out") <= golden.STAGE2_SAMPLER


@pytest.mark.parametrize("name", ["n4", "n5"])
def test_the_exact_time_grid_equals_the_references(golden, stage2_cases, name):
    grid = time_grid(stage2_cases[name]["num_steps"], stage2_cases[name]["shift"])
    assert golden.relative_difference(grid, f"stage2_sampler/{name}/t_grid") <= golden.TABLE
    assert (
        golden.relative_difference(network_timestep(grid[:-1]), f"stage2_sampler/{name}/idx") <= golden.TABLE
    )


@pytest.mark.parametrize("num_steps", [4, 5, 6])
def test_the_rounded_time_grid_equals_that_of_a_bfloat16_run(golden, num_steps):
    prefix = f"stage2_sampler/bf16_grid/steps{num_steps}"
    grid = time_grid(num_steps, 2.5, reference_rounding=True)
    timesteps = network_timestep(grid[:-1], reference_rounding=True)
    assert grid.tolist() == golden.expected(f"{prefix}/t_grid").tolist()
    assert timesteps.tolist() == golden.expected(f"{prefix}/idx").tolist()


def test_a_bfloat16_run_of_the_reference_rounds_the_inputs_of_all_three_embedders(golden):
    inputs = golden.expected("stage2_sampler/bf16_grid/steps5/embedder_inputs_t_frames_ref")
    grid = time_grid(5, 2.5, reference_rounding=True)
    assert network_timestep(grid[:-1], reference_rounding=True).tolist() == inputs[:, 0].tolist()
    assert torch.tensor(675.0).bfloat16().float() == inputs[0, 2] == 676


def test_the_noise_level_table_equals_the_references_two(golden):
    table = alphas_cumprod_sqrt_table()
    for name in (
        "stage2_sampler/sqrt_alphas_cumprod_table",
        "stage1_sampler/denoiser_alphas_cumprod_sqrt_table",
    ):
        # The last bit of a square root is the mathematical library's; near the table's end the rescaling, which
        # subtracts the smallest root, makes it relatively large.
        torch.testing.assert_close(table, golden.expected(name), rtol=golden.TABLE, atol=1e-8)


def test_the_stage1_schedule_equals_the_references(golden):
    scheduler = FlashVideoScheduler()
    scheduler.set_timesteps(51)
    assert [*scheduler.timesteps.tolist(), -1] == golden.expected("stage1_sampler/timesteps").tolist()
    assert (
        golden.relative_difference(scheduler.alphas_cumprod_sqrt, "stage1_sampler/alphas_cumprod_sqrt")
        <= golden.TABLE
    )
    quantized = torch.tensor([scheduler.quantized_alpha(index) for index in range(51)])
    assert (
        golden.relative_difference(quantized, "stage1_sampler/denoiser_quantized_alphas_cumprod_sqrt")
        <= golden.TABLE
    )


def test_the_stage1_guidance_equals_the_references(golden):
    timesteps = golden.expected("stage1_sampler/model_timesteps").int().tolist()
    scales = torch.tensor([guidance_scale_at("reference", 8, t, 51) for t in timesteps], dtype=torch.float64)
    assert golden.relative_difference(scales, "stage1_sampler/cfg_scale") <= golden.TABLE


def test_the_stage1_sampler_equals_the_references_on_an_analytic_network(golden):
    states = golden.run_stage1_analytic()
    recorded = torch.stack([states[step] for step in RECORDED_STEPS])
    assert (
        golden.difference(recorded, "stage1_sampler/analytic/x_steps_0_1_2_10_25_49")
        <= golden.STAGE1_ANALYTIC
    )
    assert golden.difference(states[-1], "stage1_sampler/analytic/out") <= golden.STAGE1_ANALYTIC


def test_the_stage1_sampler_equals_the_references_on_the_transformer(golden):
    model = golden.build_transformer("stage1")
    states = golden.run_stage1(lambda x, timesteps, text: model(x, text, timesteps).sample)
    recorded = torch.stack([states[step] for step in RECORDED_STEPS])
    assert golden.difference(recorded, "stage1_sampler/dit/x_steps_0_1_2_10_25_49") <= golden.STAGE1_SAMPLER
    assert golden.difference(states[-1], "stage1_sampler/dit/out") <= golden.STAGE1_SAMPLER
