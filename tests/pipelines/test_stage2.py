"""Stage II alone: any video to a better one."""

import logging

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image

from flashvideo.degradations.latent import degrade_latents
from flashvideo.flow import network_timestep, time_grid
from flashvideo.pipelines.consistency import keep_consistent
from flashvideo.pipelines.settings import complete_settings
from flashvideo.pipelines.stage2 import FlashVideoEnhancePipeline
from flashvideo.vae import Tiling, decode_latents, encode_pixels
from flashvideo.video import resize_video

PROMPT = "a red circle moves left"


def evaluations_of(pipeline):
    """(latents, text, time) of the network's evaluations, filled while the pipeline runs."""
    seen = []
    pipeline.transformer.register_forward_hook(lambda module, inputs, output: seen.append(inputs))
    return seen


def test_a_clip_is_enlarged_by_the_models_own_factor(stage2, clip, generator):
    frames = stage2(clip[:, :5], PROMPT, generator=generator, output_type="pt").frames
    assert frames.shape == (1, 5, 3, 32, 48)
    assert frames.abs().max() <= 1


def test_the_steps_are_those_of_the_method(stage2, clip, seeded):
    generator, preset = seeded(), stage2.preset.stage2
    text = stage2.encode_prompt(PROMPT, 1)
    pixels = resize_video(clip[:, :5], 32, 48)
    with torch.no_grad():
        x = encode_pixels(stage2.vae, pixels, scale=preset.latent_scale, generator=generator)
        x = degrade_latents(x, preset.noise_step, generator)
        grid = time_grid(3, preset.shift)
        for t, t_next in zip(grid[:-1], grid[1:], strict=True):
            v = stage2.transformer(x, text, network_timestep(t), noise_step=preset.noise_step).sample
            x = x + (t_next - t) * v
        expected = decode_latents(stage2.vae, x, scale=preset.latent_scale, clamp=True)
    options = {"num_inference_steps": 3, "output_type": "pt"}
    frames = stage2(clip[:, :5], PROMPT, **options, consistency=False, generator=seeded()).frames
    torch.testing.assert_close(frames, expected, atol=1e-4, rtol=0)
    consistent = stage2(clip[:, :5], PROMPT, **options, consistency=True, generator=seeded()).frames
    torch.testing.assert_close(consistent, keep_consistent(expected, clip[:, :5]), atol=1e-3, rtol=0)
    assert preset.consistency
    default = stage2(clip[:, :5], PROMPT, **options, generator=seeded()).frames
    assert default.equal(consistent)


@pytest.mark.parametrize("num_steps", [1, 4, 5, 8])
def test_the_scheduler_walks_the_shifted_grid_of_flow_matching(stage2, num_steps, generator):
    evaluations = evaluations_of(stage2)
    latents = torch.randn(1, 1, 8, 4, 4, generator=generator)
    stage2.denoise(
        latents, stage2.no_text(1), num_inference_steps=num_steps, guidance_scale=1.0, noise_step=250
    )
    times = torch.cat([timestep for _, _, timestep in evaluations])
    grid = time_grid(num_steps, stage2.preset.stage2.shift)
    torch.testing.assert_close(times, network_timestep(grid[:-1]), atol=2e-3, rtol=0)
    torch.testing.assert_close(1 - stage2.scheduler.sigmas, grid, atol=1e-6, rtol=0)


def run_by_call(pipeline, clip):
    pipeline.stage2(clip[:, :1], reference_rounding=True, output_type="latent")


def run_by_stream(pipeline, clip):
    settings = complete_settings((16, 24), preset=pipeline.preset, vae=pipeline.vae, reference_rounding=True)
    list(pipeline.stage2.stream(clip[0, :1], settings=settings))


def run_both_stages(pipeline, clip):
    pipeline(PROMPT, reference_rounding=True, output_type="latent")


@pytest.mark.parametrize("run", [run_by_call, run_by_stream, run_both_stages])
def test_the_references_rounding_can_be_asked_for_everywhere(pipeline, clip, run):
    evaluations = evaluations_of(pipeline.stage2)
    run(pipeline, clip)
    grid = time_grid(2, pipeline.preset.stage2.shift, reference_rounding=True)
    expected = network_timestep(grid[:-1], reference_rounding=True)
    assert torch.equal(torch.cat([timestep for _, _, timestep in evaluations]), expected)


@pytest.mark.parametrize("reference_rounding", [False, True])
def test_a_shift_shapes_the_grid_of_one_run_and_leaves_the_scheduler_as_it_is(
    pipeline, clip, reference_rounding
):
    evaluations = evaluations_of(pipeline.stage2)
    scheduler = pipeline.stage2_scheduler
    options = {"shift": 5.0, "reference_rounding": reference_rounding, "output_type": "latent"}
    pipeline.stage2(clip[:, :1], **options)
    pipeline(PROMPT, preview=clip[:, :1], **options)
    grid = time_grid(2, 5.0, reference_rounding=reference_rounding)
    expected = network_timestep(grid[:-1], reference_rounding=reference_rounding)
    times = torch.cat([timestep for _, _, timestep in evaluations])
    torch.testing.assert_close(times, expected.repeat(2), atol=2e-3, rtol=0)
    assert pipeline.stage2_scheduler is scheduler
    assert scheduler.shift == scheduler.config.shift == pipeline.preset.stage2.shift


def test_a_shift_gives_what_a_scheduler_of_that_shift_gives(stage2, clip, seeded):
    def enhanced(**options):
        return stage2(clip[:, :5], PROMPT, generator=seeded(), output_type="latent", **options).frames

    usual, shifted = enhanced(), enhanced(shift=5.0)
    stage2.scheduler = FlowMatchEulerDiscreteScheduler.from_config(stage2.scheduler.config, shift=5.0)
    assert enhanced().equal(shifted)
    assert not torch.allclose(usual, shifted, atol=1e-4)


@pytest.mark.parametrize("shift", [0.0, -1.0, float("nan"), float("inf")])
def test_a_shift_that_is_no_positive_number_is_refused(stage2, clip, shift):
    with pytest.raises(ValueError, match="shift must be a number greater than 0"):
        stage2(clip, shift=shift)


def test_the_same_seed_gives_the_same_video_and_another_seed_another(stage2, clip, seeded):
    first, again, other = (
        stage2(clip, PROMPT, generator=seeded(seed), output_type="pt").frames for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3)


def test_any_size_is_padded_for_the_models_and_cut_back(stage2, clip, generator):
    frames = stage2(clip[:, :1], height=27, width=43, generator=generator, output_type="pt").frames
    assert frames.shape == (1, 1, 3, 27, 43)


def test_padding_mirrors_the_picture(stage2):
    pixels = torch.rand(1, 1, 3, 13, 14)
    padded = stage2.prepare_pixels(pixels, 13, 14)
    assert padded.shape == (1, 1, 3, 16, 16)
    assert torch.equal(padded[..., :13, :14], pixels)
    assert torch.equal(padded[..., 13:16, :14], pixels[..., 9:12, :].flip(-2))
    assert torch.equal(padded[..., :13, 14:16], pixels[..., 11:13].flip(-1))


def test_a_picture_of_one_pixel_is_a_video_too(stage2, generator):
    frames = stage2(torch.zeros(1, 3, 1, 1), height=4, width=4, generator=generator, output_type="pt").frames
    assert frames.shape == (1, 1, 3, 4, 4)


@pytest.mark.parametrize("num_frames", [1, 2, 4, 6, 9])
def test_any_number_of_frames_comes_back(stage2, clip, generator, num_frames):
    frames = stage2(clip[:, :num_frames], height=16, width=24, generator=generator, output_type="pt").frames
    assert frames.shape == (1, num_frames, 3, 16, 24)


def test_a_clip_that_fits_gives_the_same_through_windows_as_whole(stage2, clip, seeded):
    arguments = {"prompt": PROMPT, "height": 16, "width": 24, "output_type": "pt"}
    whole = stage2(clip, window=9, generator=seeded(), **arguments).frames
    longer = stage2(clip, window=17, generator=seeded(), **arguments).frames
    assert torch.equal(whole, longer)


def test_windows_of_one_clip_agree_where_they_meet(stage2, clip, generator):
    settings = complete_settings(
        (16, 24), preset=stage2.preset, vae=stage2.vae, height=16, width=24, window=9, overlap=5
    )
    frames = clip.unbind(1) + clip.flip(1).unbind(1)[1:]
    starts, pairs = [], []
    evaluations = evaluations_of(stage2)
    for window, _ in stage2.enhance_windows(frames, None, settings, generator=generator):
        starts.append(window.start)
        pairs.append(evaluations[-2][0])  # what the first of the two steps started from
    assert starts == [0, 4, 8]
    # Both windows encode the shared frames apart, so they start alike, not equal; with noise apart they would not.
    assert (
        torch.nn.functional.cosine_similarity(pairs[0][:, 2].flatten(), pairs[1][:, 1].flatten(), dim=0) > 0.9
    )


def test_a_stream_gives_the_frames_of_a_call(stage2, clip, seeded):
    whole = stage2(clip[:, :7], PROMPT, generator=seeded(), output_type="pt").frames
    stretches = list(stage2.stream(iter(clip[0, :7]), PROMPT, generator=seeded()))
    assert len(stretches) > 1
    assert torch.equal(torch.cat(stretches)[None], whole)


def test_a_stream_reads_no_further_than_it_must(stage2, generator):
    reached = 0

    def frames():
        nonlocal reached
        while True:
            reached += 1
            yield torch.zeros(3, 8, 8)

    settings = complete_settings((8, 8), preset=stage2.preset, vae=stage2.vae, height=8, width=8, overlap=1)
    first = next(stage2.stream(frames(), settings=settings, generator=generator))
    assert first.shape == (4, 3, 8, 8)
    assert reached <= 5 + 2 * 4 + 1


def test_a_stream_without_frames_is_refused(stage2):
    with pytest.raises(ValueError, match="at least one frame"):
        stage2.stream([])


def test_without_text_the_embedding_is_zeros_and_there_is_no_guidance(stage2, clip, generator):
    evaluations = evaluations_of(stage2)
    stage2(clip[:, :1], guidance_scale=7.0, generator=generator, output_type="latent")
    assert [len(latents) for latents, _, _ in evaluations] == [1, 1]
    assert not evaluations[0][1].any()


def test_guidance_evaluates_text_and_then_no_text_in_one_batch(stage2, clip, generator):
    evaluations = evaluations_of(stage2)
    stage2(clip[:, :1], PROMPT, guidance_scale=7.0, generator=generator, output_type="latent")
    latents, text, _ = evaluations[0]
    assert len(latents) == 2
    assert text[0].any()
    assert not text[1].any()


def test_the_prompt_gets_the_models_prefix(stage2):
    stored = stage2.preset.to_dict()
    stored["stage2"]["prompt_prefix"] = ""
    bare = FlashVideoEnhancePipeline(**stage2.components, preset=stored)
    assert torch.equal(stage2.encode_prompt("a circle", 1), bare.encode_prompt("slowly,a circle", 1))


def test_one_prompt_serves_all_clips_and_each_can_have_its_own(stage2, clip, seeded):
    clips = clip[:, :1].expand(2, -1, -1, -1, -1)
    one = stage2(clips, "a circle", generator=seeded(), output_type="latent").frames
    own = stage2(clips, ["a circle", "a circle"], generator=seeded(), output_type="latent").frames
    assert torch.equal(one, own)
    with pytest.raises(ValueError, match="one for all clips or one per clip, got 3 for 2"):
        stage2(clips, ["a circle"] * 3)


def test_a_list_of_pictures_is_a_video(stage2, generator):
    frames = stage2([Image.new("RGB", (24, 16))] * 2, generator=generator).frames
    assert (len(frames), len(frames[0]), frames[0][0].size) == (1, 2, (48, 32))


def test_tiles_of_the_vae_can_be_switched_on_at_the_vae(stage2, clip):
    size = {"height": 160, "width": 240}
    untiled = complete_settings((16, 24), preset=stage2.preset, vae=stage2.vae, **size)
    stage2.vae.enable_tiling(tile_sample_min_height=80, tile_sample_min_width=120)
    tiled = complete_settings((16, 24), preset=stage2.preset, vae=stage2.vae, **size)
    given = complete_settings((16, 24), preset=stage2.preset, vae=stage2.vae, tiling=Tiling(rows=2), **size)
    assert untiled.tiling is None
    assert (tiled.tiling.rows, tiled.tiling.columns) == (2, 4)
    assert given.tiling == Tiling(rows=2)


def test_frames_are_resized_one_by_one_with_the_bits_of_a_clip(stage2, generator):
    pixels = torch.rand(2, 5, 3, 20, 30, generator=generator) * 2 - 1
    assert torch.equal(stage2.prepare_pixels(pixels, 48, 64), resize_video(pixels, 48, 64))
    assert torch.equal(stage2.prepare_pixels(pixels, 8, 16), resize_video(pixels, 8, 16))


def test_a_change_of_shape_is_logged(stage2, caplog):
    with caplog.at_level(logging.WARNING):
        complete_settings((16, 24), preset=stage2.preset, vae=stage2.vae, height=32, width=50)
        assert not caplog.records
        complete_settings((16, 24), preset=stage2.preset, vae=stage2.vae, height=32, width=32)
    assert [record.message for record in caplog.records] == [
        "the video changes its shape, from 24x16 to 32x32: it is stretched"
    ]


def test_a_callback_sees_every_step_of_every_window(stage2, clip, generator):
    seen = []

    def watch(pipeline, step, timestep, tensors):
        seen.append(step)
        return tensors

    stage2(clip, height=16, width=24, generator=generator, output_type="pt", callback_on_step_end=watch)
    assert seen == [0, 1, 0, 1]  # two windows of two steps


def test_an_interruption_ends_the_video_after_its_window(stage2, clip, generator):
    def stop(pipeline, step, timestep, tensors):
        pipeline._interrupt = True
        return tensors

    frames = stage2(
        clip, height=16, width=24, generator=generator, output_type="pt", callback_on_step_end=stop
    ).frames
    assert frames.shape[1] == 5


def test_a_saved_pipeline_comes_back_whole(stage2, clip, seeded, tmp_path):
    stage2.save_pretrained(tmp_path)
    loaded = FlashVideoEnhancePipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.preset == stage2.preset
    ours, theirs = (
        p(clip[:, :1], PROMPT, generator=seeded(), output_type="latent").frames for p in (stage2, loaded)
    )
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": ""}, "prompt must not be empty"),
        ({"prompt": "a circle", "prompt_embeds": torch.zeros(1, 8, 12)}, "got both"),
        ({"num_inference_steps": 0}, "num_inference_steps must be a whole number of at least 1, got 0"),
        ({"noise_step": -1}, "noise_step must be a whole number of at least 0, got -1"),
        ({"noise_step": 1000}, "noise_step must be in 0..999, got 1000"),
        ({"num_inference_steps": 60, "reference_rounding": True}, "takes few steps .*, got 60"),
        ({"guidance_scale": 0.5}, "guidance_scale must be at least 1, got 0.5"),
        ({"height": 32}, "height and width must be given both or not at all"),
        ({"height": 0, "width": 24}, "height must be a whole number of at least 1, got 0"),
        ({"window": 16}, r"window must be 4k\+1 frames"),
        ({"overlap": 5}, "overlap must be shorter than the window of 5 frames"),
        ({"output_type": "latent"}, "needs a clip of one window, got 9 frames for windows of 5"),
        ({"generator": [1, 2]}, "generator must be one torch.Generator, got list"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_sentence(stage2, clip, arguments, message):
    with pytest.raises(ValueError, match=message):
        stage2(clip, **arguments)
