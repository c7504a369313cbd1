"""Both stages: in one go, stopped at the preview and continued, and from a file."""

import logging

import pytest
import torch

from flashvideo.pipelines.preview import load_preview, save_preview
from flashvideo.pipelines.two_stage import FlashVideoPipeline
from flashvideo.video import write_video

PROMPT = "a red circle moves left"


def test_a_prompt_becomes_a_video_and_its_preview(pipeline, generator):
    result = pipeline(PROMPT, generator=generator, output_type="pt")
    assert result.frames.shape == (1, 5, 3, 32, 48)
    assert result.preview_frames.shape == (1, 5, 3, 16, 24)
    assert result.preview_latents.shape == (1, 2, 8, 4, 6)
    assert sorted(result.timings) == ["stage1", "stage2"]


def test_the_result_is_that_of_the_stages_one_after_the_other(pipeline, seeded):
    both = pipeline(PROMPT, generator=seeded(), output_type="pt")
    generator = seeded()
    preview = pipeline.stage1(PROMPT, generator=generator, output_type="pt")
    enhanced = pipeline.stage2(preview.frames, PROMPT, generator=generator, output_type="pt")
    assert torch.equal(both.preview_frames, preview.frames)
    assert torch.equal(both.frames, enhanced.frames)


def test_size_length_and_batch_can_be_chosen(pipeline, generator):
    result = pipeline(
        [PROMPT, "a square"], height=48, width=32, num_frames=9, generator=generator, output_type="pt"
    )
    assert result.frames.shape == (2, 9, 3, 48, 32)
    assert result.preview_frames.shape == (2, 9, 3, 24, 16)


def test_the_preview_alone_costs_only_stage_one(pipeline, generator):
    evaluations = []
    pipeline.stage2_transformer.register_forward_hook(lambda *_: evaluations.append(1))
    result = pipeline(PROMPT, preview_only=True, generator=generator, output_type="pt")
    assert result.frames is None
    assert result.preview_frames.shape == (1, 5, 3, 16, 24)
    assert sorted(result.timings) == ["stage1"]
    assert not evaluations


def test_continuing_from_a_file_is_bit_identical_to_never_having_stopped(pipeline, seeded, tmp_path):
    unbroken = pipeline(PROMPT, generator=seeded(), output_type="pt")
    stopped = pipeline(PROMPT, preview_only=True, generator=seeded(), output_type="pt")
    path = save_preview(tmp_path / "preview.safetensors", stopped.preview)
    torch.randn(5)  # neither the global generator nor another run matters
    pipeline("a blue square", generator=seeded(9), output_type="pt")
    continued = pipeline(preview=path, output_type="pt")
    assert torch.equal(continued.frames, unbroken.frames)
    assert torch.equal(continued.preview_frames, unbroken.preview_frames)
    assert sorted(continued.timings) == ["stage2"]


def test_a_run_without_a_generator_can_be_continued_too(pipeline):
    unbroken = pipeline(PROMPT, output_type="pt")
    assert torch.equal(pipeline(preview=unbroken.preview, output_type="pt").frames, unbroken.frames)


def test_a_generator_that_was_used_before_is_continued_where_it_stood(pipeline, generator):
    torch.randn(3, generator=generator)
    unbroken = pipeline(PROMPT, generator=generator, output_type="pt")
    assert torch.equal(pipeline(preview=unbroken.preview, output_type="pt").frames, unbroken.frames)


def test_the_prompt_can_be_changed_after_the_preview(pipeline, seeded):
    first = pipeline(PROMPT, generator=seeded(), output_type="pt")
    changed = pipeline("a blue square", preview=first.preview, output_type="pt")
    assert torch.equal(changed.preview_frames, first.preview_frames)
    assert not torch.equal(changed.frames, first.frames)


def test_another_generator_replaces_the_previews_own(pipeline, seeded):
    first = pipeline(PROMPT, generator=seeded(), output_type="pt")
    other = pipeline(preview=first.preview, generator=seeded(5), output_type="pt")
    assert not torch.equal(other.frames, first.frames)


def test_a_preview_remembers_what_made_it(pipeline, seeded, tmp_path):
    preview = pipeline(
        PROMPT,
        stage1_num_inference_steps=1,
        stage1_guidance_scale=1.5,
        generator=seeded(42),
        preview_only=True,
    ).preview
    settings = load_preview(save_preview(tmp_path / "preview.safetensors", preview)).settings
    assert (settings.model, settings.prompts, settings.seed) == ("toy", (PROMPT,), 42)
    assert (settings.height, settings.width, settings.num_frames) == (16, 24, 5)
    assert (settings.num_inference_steps, settings.guidance_scale) == (1, 1.5)
    assert settings.guidance_schedule == "constant"


def test_a_preview_video_is_continued_from_the_latents_beside_it(pipeline, generator, tmp_path):
    first = pipeline(PROMPT, generator=generator, output_type="pt")
    write_video(tmp_path / "preview.mp4", first.preview_frames[0], frame_rate=8)
    save_preview(tmp_path / "preview.safetensors", first.preview)
    continued = pipeline(preview=tmp_path / "preview.mp4", output_type="pt")
    assert torch.equal(continued.frames, first.frames)


def test_a_plain_video_is_continued_from_its_pixels_and_says_so(pipeline, seeded, tmp_path, caplog):
    first = pipeline(PROMPT, generator=seeded(), output_type="pt")
    path = write_video(tmp_path / "plain.mp4", first.preview_frames[0], frame_rate=8)
    with caplog.at_level(logging.WARNING):
        continued = pipeline(PROMPT, preview=path, generator=seeded(), output_type="pt")
    assert "continuing from its pixels, which differs from an unbroken run" in caplog.text
    assert continued.frames.shape == first.frames.shape
    assert continued.preview is None
    assert continued.preview_latents is None


def test_pixels_are_a_preview_without_text(pipeline, clip, generator):
    result = pipeline(preview=clip[:, :1], generator=generator, output_type="pt")
    assert result.frames.shape == (1, 1, 3, 32, 48)
    assert torch.equal(result.preview_frames, clip[:, :1])


def test_another_final_size_can_be_made_from_one_preview(pipeline, generator):
    preview = pipeline(PROMPT, preview_only=True, generator=generator).preview
    assert pipeline(preview=preview, height=27, width=41, output_type="pt").frames.shape == (1, 5, 3, 27, 41)


def test_latents_are_given_for_output_type_latent(pipeline, generator):
    result = pipeline(PROMPT, generator=generator, output_type="latent")
    assert result.frames.shape == (1, 2, 8, 8, 12)
    assert torch.equal(result.preview_frames, result.preview_latents)


def test_pictures_are_the_default(pipeline, generator):
    frames, preview_frames = pipeline(PROMPT, generator=generator, return_dict=False)
    assert frames[0][0].size == (48, 32)
    assert len(preview_frames[0]) == 5


def test_each_stage_has_its_callback_and_both_see_the_whole_pipeline(pipeline, generator):
    seen = []

    def watch(stage):
        def callback(pipe, step, timestep, tensors):
            seen.append((stage, step, pipe is pipeline, sorted(tensors)))
            return tensors

        return callback

    pipeline(
        PROMPT,
        num_inference_steps=1,
        stage1_num_inference_steps=2,
        generator=generator,
        stage1_callback_on_step_end=watch(1),
        callback_on_step_end=watch(2),
    )
    assert seen == [(1, 0, True, ["latents"]), (1, 1, True, ["latents"]), (2, 0, True, ["latents"])]


def test_an_interruption_in_stage_one_saves_the_cost_of_stage_two(pipeline, generator):
    def stop(pipe, step, timestep, tensors):
        pipe._interrupt = True
        return tensors

    evaluations = []
    pipeline.stage1_transformer.register_forward_hook(lambda *_: evaluations.append(1))
    result = pipeline(PROMPT, generator=generator, stage1_callback_on_step_end=stop)
    assert result.frames is None
    assert result.preview is None
    assert len(evaluations) == 1
    assert pipeline(PROMPT, generator=generator).frames is not None


def test_the_stages_follow_an_exchange_of_components(pipeline, tiny_transformer):
    other = tiny_transformer(2, num_layers=1)
    pipeline.stage2_transformer = other
    assert pipeline.stage2.transformer is other
    assert pipeline.stage1.vae is pipeline.vae


def test_the_progress_bars_can_be_turned_off_and_on(pipeline, generator, capsys):
    pipeline(PROMPT, generator=generator)
    assert capsys.readouterr().err == ""
    pipeline.set_progress_bar_config(disable=False)
    pipeline(PROMPT, generator=generator)
    assert "2/2" in capsys.readouterr().err


def test_a_saved_pipeline_comes_back_whole(pipeline, seeded, tmp_path):
    pipeline.save_pretrained(tmp_path)
    loaded = FlashVideoPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.preset == pipeline.preset
    assert loaded.stage2_scheduler.config.shift == pipeline.preset.stage2.shift
    ours, theirs = (p(PROMPT, generator=seeded(), output_type="pt").frames for p in (pipeline, loaded))
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)


def test_a_stored_preset_is_checked(pipeline):
    stored = pipeline.preset.to_dict()
    stored["stage2"]["noise_stp"] = stored["stage2"].pop("noise_step")
    with pytest.raises(ValueError, match="did you mean 'noise_step'"):
        FlashVideoPipeline(**pipeline.components, preset=stored)
    with pytest.raises(ValueError, match="preset must be a Preset"):
        FlashVideoPipeline(**pipeline.components)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": ""}, "prompt must not be empty"),
        ({"prompt": None}, "prompt must be a string"),
        ({"num_frames": 48}, r"num_frames must be 4k\+1, got 48; try 49"),
        ({"height": 0, "width": 48}, "height must be a whole number of at least 1, got 0"),
        ({"height": 32}, "both or not at all"),
        ({"preview": torch.zeros(1, 5, 3, 16, 24), "height": 8, "width": 0}, "width must be .*, got 0"),
        ({"num_inference_steps": 0}, "num_inference_steps must be a whole number of at least 1, got 0"),
        (
            {"stage1_num_inference_steps": -1},
            "num_inference_steps must be a whole number of at least 1, got -1",
        ),
        ({"output_type": "gif"}, "output_type must be one of"),
        ({"generator": 3}, "one torch.Generator, got int"),
        ({"preview": "nowhere.safetensors"}, "does not exist"),
        ({"preview": torch.zeros(1, 5, 3, 16, 24, dtype=torch.uint8)}, "got torch.uint8"),
        ({"preview": torch.zeros(1, 5, 3, 16, 24), "preview_only": True}, "drop one of the two"),
        (
            {"preview": torch.zeros(1, 5, 3, 16, 24), "num_frames": 9},
            "num_frames cannot be changed after Stage I",
        ),
        ({"num_frames": 9, "output_type": "latent"}, "needs a clip of one window, got 9 frames"),
    ],
)
def test_what_cannot_be_made_is_refused_before_anything_is_computed(pipeline, arguments, message):
    evaluations = []
    pipeline.stage1_transformer.register_forward_hook(lambda *_: evaluations.append(1))
    with pytest.raises(ValueError, match=message):
        pipeline(**{"prompt": PROMPT, **arguments})
    assert not evaluations


def test_a_preview_of_another_model_is_refused(pipeline, generator):
    preview = pipeline(PROMPT, preview_only=True, generator=generator).preview
    stored = {**pipeline.preset.to_dict(), "name": "other"}
    with pytest.raises(ValueError, match="made by the model 'toy', but this is 'other'"):
        FlashVideoPipeline(**pipeline.components, preset=stored)(preview=preview)
