"""The public pipelines against the larger set of the reference's tensors: both samplers, and both stages end to end."""

import pytest
import torch

from flashvideo.degradations.latent import degrade_latents
from flashvideo.models.transformer import FlashVideoTransformer3DModel
from flashvideo.vae import REFERENCE_TILES, encode_pixels

NUM_FRAMES = 49


class AnalyticNetwork(FlashVideoTransformer3DModel):
    """v = 0.3 x + 0.1 sin(timestep) + 0.05 mean(text), the reference's stand-in for Stage I's network."""

    def forward(self, hidden_states, encoder_hidden_states, timestep, **_):
        offset = 0.1 * torch.sin(timestep.float()) + 0.05 * encoder_hidden_states.mean(dim=(1, 2))
        return (0.3 * hidden_states + offset.view(-1, 1, 1, 1, 1),)


def sample_stage1(pipeline, oracles, oracle_module, replay):
    """Runs Stage I as a call on the set's noise; returns its latents and the state after each step."""
    states = []
    noise = oracles.tensor("stage1_sampler/initial_noise")
    left = replay(oracle_module.used_draws(oracles.tensor("stage1_sampler/noise_draws")))
    _, num_latent_frames, _, height, width = noise.shape
    latents = pipeline(
        latents=noise,
        prompt_embeds=oracles.tensor("stage1_sampler/cond"),
        num_frames=1 + 4 * (num_latent_frames - 1),
        height=8 * height,
        width=8 * width,
        output_type="latent",
        callback_on_step_end=lambda pipeline, step, timestep, tensors: states.append(tensors["latents"]),
    ).latents
    assert not left
    return latents, torch.stack(states)


@pytest.mark.parametrize("adapter", [False, True], ids=["merged", "adapter"])
def test_the_stage1_pipeline_samples_as_the_reference(oracles, oracle_module, replay, equal, adapter):
    pipeline = oracles.pipeline(adapter=adapter).stage1
    latents, states = sample_stage1(pipeline, oracles, oracle_module, replay)
    equal(latents, "stage1_sampler/dit/out", "Stage I sampler")
    equal(states[[0, 1, 10, 25, 49]], "stage1_sampler/dit/x_trace_steps_0_1_10_25_49", "Stage I sampler")


def test_the_stage1_pipeline_samples_an_analytic_network_as_the_reference(
    oracles, oracle_module, replay, equal
):
    pipeline = oracles.pipeline().stage1
    pipeline.register_modules(transformer=AnalyticNetwork(**dict(pipeline.transformer.config)))
    latents, states = sample_stage1(pipeline, oracles, oracle_module, replay)
    equal(latents, "stage1_sampler/analytic/out", "Stage I sampler")
    equal(states, "stage1_sampler/analytic/x_trace", "Stage I sampler")


@pytest.mark.parametrize("case", range(3))
def test_the_enhance_pipeline_samples_as_the_reference(oracles, watch, equal, case):
    prefix = f"stage2_sampler/case{case}"
    num_steps, noise_step, shift, scale = oracles.tensor(f"{prefix}/params").tolist()
    pipeline = oracles.pipeline(shift=shift).stage2
    no_text = oracles.tensor(f"{prefix}/uncond")
    pipeline.transformer.register_forward_pre_hook(
        # The third case of the set has a text of its own where the released model has zeros.
        lambda _, args: (args[0], torch.cat((args[1][:1], no_text)), args[2])
    )
    seen = watch(pipeline.transformer)
    noise = oracles.tensor(f"{prefix}/ref_noise")
    states = [degrade_latents(oracles.tensor(f"{prefix}/ref_x"), int(noise_step), noise=noise)]
    equal(states[0], f"{prefix}/x_start", "Stage II sampler")
    pipeline.denoise(
        states[0],
        oracles.tensor(f"{prefix}/cond"),
        num_inference_steps=int(num_steps),
        guidance_scale=scale,
        noise_step=int(noise_step),
        callback_on_step_end=lambda pipeline, step, timestep, tensors: states.append(tensors["latents"]),
    )
    equal(states[-1], f"{prefix}/out", "Stage II sampler")
    equal(torch.stack(states), f"{prefix}/trajectory", "Stage II sampler")
    times = torch.tensor([times[0] for times in seen.timesteps])
    torch.testing.assert_close(times, oracles.tensor(f"{prefix}/idx"), rtol=1e-6, atol=0)


def noise_of_both_stages(oracles, oracle_module):
    """All draws of a run, in the order of our pipeline."""
    return [
        oracles.tensor("pipeline/stage1/initial_noise"),
        *oracle_module.used_draws(oracles.tensor("pipeline/stage1/noise_draws")),
        oracle_module.house(oracles.tensor("pipeline/stage2/posterior_noise")),
        oracles.tensor("pipeline/stage2/ref_noise"),
    ]


def check_final_frames(oracles, oracle_module, equal, pixels):
    frames = oracle_module.frames255(pixels)
    index = oracles.tensor("pipeline/stage2/frames255_subset_index")
    equal(frames[index], "pipeline/stage2/frames255_subset", "both stages, frames of 0 to 255")
    means = frames.mean(dim=(1, 2))  # (F, 3)
    equal(means, "pipeline/stage2/frames255_mean_per_frame", "both stages, frames of 0 to 255")


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [False, True], ids=["merged", "adapter"])
def test_both_stages_give_the_references_video(oracles, oracle_module, replay, watch, equal, adapter):
    pipeline = oracles.pipeline(adapter=adapter)
    left = replay(noise_of_both_stages(oracles, oracle_module))
    seen = watch(pipeline.stage2_transformer)
    final = []
    result = pipeline(
        oracle_module.PROMPT,
        tiling=REFERENCE_TILES,
        output_type="pt",
        callback_on_step_end=lambda pipeline, step, timestep, tensors: final.append(tensors["latents"]),
    )
    assert not left
    equal(result.preview_latents, "pipeline/stage1/latent", "both stages, latents")
    equal(
        oracle_module.frames255(result.preview_frames),
        "pipeline/stage1/frames255",
        "both stages, frames of 0 to 255",
    )
    start = degrade_latents(
        oracles.tensor("pipeline/stage2/ref_latent"),
        pipeline.preset.stage2.noise_step,
        noise=oracles.tensor("pipeline/stage2/ref_noise"),
    )
    equal(seen.latents[0][:1], start, "both stages, latents")
    equal(final[-1], "pipeline/stage2/latent", "both stages, latents")
    check_final_frames(oracles, oracle_module, equal, result.frames)


def test_stage1_alone_gives_the_references_preview(oracles, oracle_module, replay, equal):
    pipeline = oracles.pipeline()
    left = replay(oracle_module.used_draws(oracles.tensor("pipeline/stage1/noise_draws")))
    noise = oracles.tensor("pipeline/stage1/initial_noise")
    result = pipeline.stage1(oracle_module.PROMPT, latents=noise, output_type="pt")
    assert not left
    equal(result.latents, "pipeline/stage1/latent", "both stages, latents")
    equal(
        oracle_module.frames255(result.frames), "pipeline/stage1/frames255", "both stages, frames of 0 to 255"
    )


@pytest.mark.slow
def test_enhancing_the_references_preview_gives_the_references_video(oracles, oracle_module, replay, equal):
    pipeline = oracles.pipeline().stage2
    preview = oracles.tensor("pipeline/stage1/frames255").permute(0, 3, 1, 2) / 127.5 - 1  # (F, 3, H, W)
    noise = oracles.tensor("pipeline/stage2/posterior_noise")
    pixels = pipeline.prepare_pixels(preview[None], *oracles.config["e2e"]["hw2"])
    with torch.no_grad():
        latents = encode_pixels(
            pipeline.vae,
            pixels,
            scale=pipeline.preset.stage2.latent_scale,
            posterior_noise=oracle_module.house(noise),
        )
    equal(latents, "pipeline/stage2/ref_latent", "both stages, latents")
    left = replay(noise_of_both_stages(oracles, oracle_module)[-2:])
    result = pipeline(preview, oracle_module.PROMPT, tiling=REFERENCE_TILES, output_type="pt")
    assert not left
    check_final_frames(oracles, oracle_module, equal, result.frames)
