"""Stage I alone: a prompt to a preview."""

import pytest
import torch

from flashvideo.pipelines.stage1 import FlashVideoStage1Pipeline
from flashvideo.vae import decode_latents

PROMPT = "a red circle moves left"


def count_evaluations(pipeline):
    """Batch sizes of the network's evaluations, filled while the pipeline runs."""
    batches = []
    pipeline.transformer.register_forward_hook(lambda module, inputs, output: batches.append(len(inputs[0])))
    return batches


def test_a_prompt_becomes_a_preview_of_the_presets_size(stage1, generator):
    result = stage1(PROMPT, generator=generator, output_type="pt")
    assert result.frames.shape == (1, 5, 3, 16, 24)
    assert result.latents.shape == (1, 2, 8, 4, 6)
    assert result.frames.abs().max() <= 1


def test_size_and_length_can_be_chosen(stage1, generator):
    result = stage1(
        [PROMPT, "a square"], height=24, width=16, num_frames=9, generator=generator, output_type="pt"
    )
    assert result.frames.shape == (2, 9, 3, 24, 16)
    assert result.latents.shape == (2, 3, 8, 6, 4)


def test_the_same_seed_gives_the_same_preview_and_another_seed_another(stage1, seeded):
    first, again, other = (
        stage1(PROMPT, generator=seeded(seed), output_type="latent").latents for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_another_prompt_gives_another_preview(stage1, seeded):
    circle = stage1(PROMPT, generator=seeded(), output_type="latent").latents
    square = stage1("a blue square", generator=seeded(), output_type="latent").latents
    assert not torch.allclose(circle, square, atol=1e-4)


def test_frames_are_the_decoded_latents(stage1, generator):
    result = stage1(PROMPT, generator=generator, output_type="pt")
    expected = decode_latents(stage1.vae, result.latents, scale=stage1.preset.stage1.latent_scale, clamp=True)
    assert torch.equal(result.frames, expected)


def test_the_latent_scale_of_the_preset_is_undone(pipeline, generator):
    stored = pipeline.preset.to_dict()
    stored["stage1"]["latent_scale"] = 0.7
    stage1 = FlashVideoStage1Pipeline(**pipeline.stage1.components, preset=stored)
    latents = torch.randn(1, 2, 8, 4, 6, generator=generator)
    assert torch.equal(
        stage1.decode_latents(latents * 0.7), pipeline.stage1.decode_latents(latents * 0.7 / 0.7)
    )


def test_guidance_evaluates_twice_in_one_batch_and_scale_one_only_once(stage1, seeded):
    batches = count_evaluations(stage1)
    stage1(PROMPT, guidance_scale=2.0, generator=seeded(), output_type="latent")
    assert batches == [2, 2]
    batches.clear()
    stage1(PROMPT, guidance_scale=1.0, generator=seeded(), output_type="latent")
    assert batches == [1, 1]


def test_the_batch_of_guidance_is_no_text_and_then_text(stage1, generator):
    texts = []
    stage1.transformer.register_forward_hook(lambda module, inputs, output: texts.append(inputs[1]))
    stage1(PROMPT, num_inference_steps=1, generator=generator, output_type="latent")
    without, text = texts[0]
    assert not without.any()
    assert torch.equal(text, stage1.encode_prompt(PROMPT)[0])


def test_guidance_is_the_weighted_difference_of_both_evaluations(stage1, generator):
    latents = torch.randn(1, 2, 8, 4, 6, generator=generator)
    text = stage1.encode_prompt(PROMPT)
    timestep = torch.tensor(500)
    with torch.no_grad():
        cond, uncond = (
            stage1.predict_velocity(latents, embeds, timestep, guidance_scale=1)
            for embeds in (text, text * 0)
        )
        guided = stage1.predict_velocity(latents, text, timestep, guidance_scale=3)
    torch.testing.assert_close(guided, uncond + 3 * (cond - uncond))


def test_the_reference_schedule_changes_the_scale_at_each_step(stage1, generator):
    scales = []

    def watch(pipeline, step, timestep, tensors):
        scales.append(pipeline.guidance_scale)
        return tensors

    stage1(
        PROMPT,
        num_inference_steps=3,
        guidance_schedule="reference",
        generator=generator,
        output_type="latent",
        callback_on_step_end=watch,
    )
    assert len(set(scales)) == 3


def test_given_noise_and_embeddings_replace_the_draw_and_the_prompt(stage1, seeded):
    by_prompt = stage1(PROMPT, num_inference_steps=1, generator=seeded(), output_type="latent").latents
    noise = torch.randn(1, 2, 8, 4, 6, generator=seeded())
    by_tensors = stage1(
        prompt_embeds=stage1.encode_prompt(PROMPT), latents=noise, num_inference_steps=1, output_type="latent"
    ).latents
    assert torch.equal(by_prompt, by_tensors)


def test_a_callback_sees_each_step_and_replaces_tensors(stage1, generator):
    seen = []

    def callback(pipeline, step, timestep, tensors):
        seen.append((step, int(timestep), sorted(tensors)))
        return {"latents": torch.zeros_like(tensors["latents"])}

    result = stage1(
        PROMPT,
        generator=generator,
        output_type="latent",
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
    )
    names = ["latents", "prompt_embeds"]
    assert seen == [(0, 999, names), (1, 499, names)]
    assert not result.latents.any()
    assert stage1.num_timesteps == 2
    assert stage1.current_timestep is None


def test_a_callback_can_stop_the_run(stage1, generator):
    batches = count_evaluations(stage1)

    def stop(pipeline, step, timestep, tensors):
        pipeline._interrupt = True
        return tensors

    stage1(PROMPT, generator=generator, output_type="latent", callback_on_step_end=stop)
    assert len(batches) == 1
    stage1(PROMPT, generator=generator, output_type="latent")
    assert len(batches) == 3


def test_without_a_dictionary_a_tuple_is_returned(stage1, generator):
    frames, latents = stage1(PROMPT, generator=generator, return_dict=False)
    assert len(frames[0]) == 5
    assert latents.shape == (1, 2, 8, 4, 6)


def test_a_saved_pipeline_comes_back_whole(stage1, seeded, tmp_path):
    stage1.save_pretrained(tmp_path)
    loaded = FlashVideoStage1Pipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.preset == stage1.preset
    ours, theirs = (p(PROMPT, generator=seeded(), output_type="latent").latents for p in (stage1, loaded))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_a_pipeline_without_text_encoder_takes_embeddings(stage1, generator, tmp_path):
    embeds = stage1.encode_prompt(PROMPT)
    bare = FlashVideoStage1Pipeline(
        **{**stage1.components, "tokenizer": None, "text_encoder": None}, preset=stage1.preset
    )
    bare.set_progress_bar_config(disable=True)
    assert bare(prompt_embeds=embeds, generator=generator, output_type="latent").latents.shape == (
        1,
        2,
        8,
        4,
        6,
    )
    with pytest.raises(ValueError, match="this model has no text encoder; name one"):
        bare(PROMPT)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": ""}, "prompt must not be empty"),
        ({"prompt": ["a circle", " "]}, "prompt must not be empty"),
        ({"prompt": []}, "non-empty list of strings"),
        ({"prompt": None}, "either prompt or prompt_embeds, got neither"),
        ({"num_inference_steps": 0}, "num_inference_steps must be a whole number of at least 1, got 0"),
        ({"num_inference_steps": -3}, "got -3"),
        ({"num_inference_steps": 2.5}, "got 2.5"),
        ({"num_frames": 48}, r"num_frames must be 4k\+1, got 48; try 49"),
        ({"num_frames": 0}, "num_frames must be a whole number"),
        ({"height": 17}, "multiples of 8, got 17x24; try 16x24"),
        ({"guidance_scale": 0.0}, "guidance_scale must be at least 1, got 0.0"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be at least 1, got nan"),
        ({"guidance_schedule": "cosine"}, "guidance_schedule must be one of"),
        ({"generator": 42}, "generator must be one torch.Generator, got int"),
        ({"output_type": "mp4"}, "output_type must be one of pil, np, pt, latent, got 'mp4'"),
        (
            {"callback_on_step_end_tensor_inputs": ["noise"]},
            "must be among latents, prompt_embeds, got noise",
        ),
        ({"latents": torch.zeros(1, 2, 8, 4, 4)}, r"latents must be \(B, 2, 8, 4, 6\) for 5 frames of 16x24"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_sentence(stage1, arguments, message):
    with pytest.raises(ValueError, match=message):
        stage1(**{"prompt": PROMPT, **arguments})
