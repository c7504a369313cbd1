"""What holds for any small request to the pipelines: steps, sizes, lengths, batches. Examples are always the same."""

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

# The toy pipeline is made once per test and not per example, which is safe because no run changes it. Examples are
# small as they are; a search for a smaller one that fails takes minutes.
few = settings(
    max_examples=8,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@few
@given(
    num_steps=st.integers(1, 60), scale=st.floats(1, 20), schedule=st.sampled_from(["constant", "reference"])
)
def test_stage1_stays_finite_for_any_number_of_steps(stage1, num_steps, scale, schedule):
    latents = stage1.denoise(
        noise(1, 1, 8, 2, 2),
        noise(1, 6, 12, seed=1),
        num_inference_steps=num_steps,
        guidance_scale=scale,
        guidance_schedule=schedule,
        generator=torch.Generator().manual_seed(0),
    )
    assert latents.shape == (1, 1, 8, 2, 2)
    assert latents.isfinite().all()


@few
@given(num_steps=st.integers(1, 60), scale=st.floats(1, 20), noise_step=st.integers(0, 999))
def test_stage2_stays_finite_for_any_number_of_steps(stage2, num_steps, scale, noise_step):
    times = []
    latents = stage2.denoise(
        noise(1, 1, 8, 2, 2),
        noise(1, 8, 12, seed=1),
        num_inference_steps=num_steps,
        guidance_scale=scale,
        noise_step=noise_step,
        callback_on_step_end=lambda pipeline, step, timestep, tensors: times.append(float(timestep)),
    )
    assert latents.shape == (1, 1, 8, 2, 2)
    assert latents.isfinite().all()
    assert times[0] == 1000
    assert len(times) == num_steps
    assert times == sorted(times, reverse=True)


@few
@given(
    num_frames=st.integers(1, 97),
    window=st.sampled_from([5, 17, 49, 97]),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
)
def test_any_length_and_size_is_enhanced_to_that_length_and_the_size_asked_for(
    stage2, num_frames, window, height, width
):
    clip = noise(num_frames, 3, 2, 3).clamp(-1, 1)
    frames = stage2(
        clip, height=height, width=width, window=window, overlap=1, num_inference_steps=1, output_type="pt"
    ).frames
    assert frames.shape == (1, num_frames, 3, height, width)
    assert frames.isfinite().all()


@few
@given(quarter=st.integers(0, 24), rows=st.integers(1, 3), columns=st.integers(1, 3))
def test_any_valid_length_and_size_of_a_preview_is_made(stage1, quarter, rows, columns):
    frames = stage1(
        "a circle",
        num_frames=1 + 4 * quarter,
        height=8 * rows,
        width=8 * columns,
        num_inference_steps=1,
        output_type="pt",
    ).frames
    assert frames.shape == (1, 1 + 4 * quarter, 3, 8 * rows, 8 * columns)
    assert frames.isfinite().all()


@few
@given(batch_size=st.integers(2, 4), scale=st.floats(1, 20), num_steps=st.integers(1, 4))
def test_a_batch_is_denoised_as_its_clips_one_by_one(stage2, batch_size, scale, num_steps):
    latents, text = noise(batch_size, 2, 8, 4, 4), noise(batch_size, 8, 12, seed=1)
    options = {"num_inference_steps": num_steps, "guidance_scale": scale, "noise_step": 250}
    together = stage2.denoise(latents, text, **options)
    for i in range(batch_size):
        alone = stage2.denoise(latents[i : i + 1], text[i : i + 1], **options)
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-3, rtol=1e-3)


@few
@given(stage=st.sampled_from([1, 2]), scale=st.floats(1.01, 20), time=st.integers(0, 1000))
def test_guidance_in_one_batch_equals_its_evaluations_one_after_another(pipeline, stage, scale, time):
    one_stage = pipeline.stage1 if stage == 1 else pipeline.stage2
    noise_step = {"noise_step": 250} if stage == 2 else {}
    latents, text = noise(1, 2, 8, 4, 4), noise(1, 6, 12, seed=1)
    timestep = torch.tensor(float(time))
    together = one_stage.predict_velocity(latents, text, timestep, guidance_scale=scale, **noise_step)
    with_text, without = (
        one_stage.predict_velocity(latents, words, timestep, guidance_scale=1.0, **noise_step)
        for words in (text, torch.zeros_like(text))
    )
    expected = without + scale * (with_text - without)
    assert together.detach().numpy() == pytest.approx(expected.detach().numpy(), abs=1e-4)
