"""The public pipelines, built by the converter, give what the reference gives."""

import pytest
import torch

from flashvideo.degradations.latent import degrade_latents


def stage1_draws(golden):
    """The noise of each step; the reference draws twice from the second step on and throws the first away."""
    shape = golden.metadata()["config"]["stage1_sampler_shape"]
    return [golden.formula(f"stage1_sampler/randn_like/{2 * step}", shape) for step in range(50)]


@pytest.mark.parametrize("whole", [True, False], ids=["call", "denoise"])
def test_the_stage1_pipeline_gives_the_references_latents(golden, replay, whole):
    pipeline = golden.build_stage1_pipeline()
    defaults = pipeline.preset.stage1
    noise = golden.formula("stage1_sampler/randn/0", golden.metadata()["config"]["stage1_sampler_shape"])
    text = golden.formula("stage1_sampler/cond", (1, golden.TEXT_TOKENS, 32), base=0.7)
    left = replay(stage1_draws(golden))
    if whole:
        size = {"num_frames": 5, "height": 32, "width": 48}
        latents = pipeline(latents=noise, prompt_embeds=text, output_type="latent", **size).latents
    else:
        latents = pipeline.denoise(
            noise,
            text,
            num_inference_steps=defaults.num_inference_steps,
            guidance_scale=defaults.guidance_scale,
            guidance_schedule=defaults.guidance_schedule,
        )
    assert not left
    assert golden.difference(latents, "stage1_sampler/dit/out") <= golden.STAGE1_SAMPLER


@pytest.mark.parametrize("name", ["n4", "n5"])
def test_the_enhance_pipeline_follows_the_references_trajectory(golden, name):
    case = next(c for c in golden.metadata()["config"]["stage2_sampler_cases"] if c["name"] == name)
    prefix, shape = f"stage2_sampler/{name}", case["shape"]
    pipeline = golden.build_enhance_pipeline(case["shift"])
    if case["uncond"] == "formula":
        no_text = golden.formula(f"{prefix}/uncond", (1, golden.TEXT_TOKENS, 32))
        pipeline.transformer.register_forward_pre_hook(
            # This case of the reference has a text of its own where the released model has none.
            lambda _, args: (args[0], torch.cat((args[1][:1], no_text)), args[2])
        )
    noise = golden.formula(f"{prefix}/randn_like/0", shape)
    start = degrade_latents(golden.formula(f"{prefix}/ref_x", shape), case["ref"], noise=noise)
    states = [start]

    def keep(pipeline, step, timestep, tensors):
        states.append(tensors["latents"])

    out = pipeline.denoise(
        start,
        golden.formula(f"{prefix}/cond", (1, golden.TEXT_TOKENS, 32)),
        num_inference_steps=case["num_steps"],
        guidance_scale=case["cfg"],
        noise_step=case["ref"],
        callback_on_step_end=keep,
    )
    assert golden.difference(torch.stack(states), f"{prefix}/trajectory") <= golden.STAGE2_SAMPLER
    assert golden.difference(out, f"{prefix}/out") <= golden.STAGE2_SAMPLER


@pytest.fixture(scope="module")
def clip():
    """Pixels (1, 9, 3, 16, 24), three latent frames."""
    return torch.rand(1, 9, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("num_steps", [4, 5, 6])
def test_a_rounded_run_takes_the_steps_of_a_bfloat16_run_of_the_reference(golden, watch, clip, num_steps):
    prefix = f"stage2_sampler/bf16_grid/steps{num_steps}"
    pipeline = golden.build_enhance_pipeline()
    seen = watch(pipeline.transformer)
    result = pipeline(
        clip,
        height=32,
        width=48,
        num_inference_steps=num_steps,
        reference_rounding=True,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).frames
    assert [time for (time,) in seen.timesteps] == golden.expected(f"{prefix}/idx").tolist()
    grid = golden.expected(f"{prefix}/t_grid")
    steps = zip(seen.latents, seen.outputs, grid.diff(), [*seen.latents[1:], result], strict=True)
    for before, velocity, length, after in steps:
        assert torch.equal(before + length * velocity, after)


def test_a_rounded_run_tells_the_network_what_a_bfloat16_run_tells_it(golden, watch, clip):
    pipeline = golden.build_enhance_pipeline()
    seen = watch(pipeline.transformer)
    size = {"height": 32, "width": 48, "output_type": "latent"}
    pipeline(clip, num_inference_steps=5, reference_rounding=True, **size)
    rows = torch.tensor(seen.embedded).reshape(5, 3)
    assert torch.equal(rows, golden.expected("stage2_sampler/bf16_grid/steps5/embedder_inputs_t_frames_ref"))


def test_rounding_leaves_the_noise_that_is_added_and_the_scheduler_as_they_are(golden, watch, clip):
    pipeline = golden.build_enhance_pipeline()
    seen = watch(pipeline.transformer)

    def run(**options):
        generator = torch.Generator().manual_seed(0)
        return pipeline(
            clip, height=32, width=48, generator=generator, output_type="latent", **options
        ).frames

    exact = run()
    sigmas = pipeline.scheduler.sigmas
    rounded = run(reference_rounding=True)
    num_steps = pipeline.preset.stage2.num_inference_steps
    assert torch.equal(seen.latents[0], seen.latents[num_steps])
    assert pipeline.scheduler.sigmas is sigmas
    assert not torch.allclose(exact, rounded, atol=1e-3)
    assert torch.equal(run(), exact)
