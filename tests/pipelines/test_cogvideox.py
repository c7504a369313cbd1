"""CogVideoX folders as Stage I: alone, and before the Stage II of another model."""

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from transformers import T5Config, T5EncoderModel

from flashvideo.pipelines.loading import load_pipeline, load_stage1
from flashvideo.pipelines.two_stage import FlashVideoPipeline
from flashvideo.presets import COGVIDEOX_GUIDANCE_SCALE, FLASHVIDEO

CPU = {"device": "cpu", "dtype": "float32"}
PROMPT = "a red circle moves left"


@pytest.fixture
def model(pipeline, tmp_path):
    """Folder of the toy model with both stages."""
    pipeline.save_pretrained(tmp_path / "both")
    return tmp_path / "both"


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_a_folder_is_a_stage_1_with_its_own_size_guidance_scale_and_schedule(cogvideox_folder, seeded):
    stage1 = quiet(load_stage1(cogvideox_folder(rotary=False), **CPU))
    preset = stage1.preset.stage1
    assert (preset.num_frames, preset.height, preset.width) == (5, 16, 24)
    assert (preset.guidance_scale, preset.guidance_schedule) == (COGVIDEOX_GUIDANCE_SCALE, "constant")
    assert (preset.latent_scale, preset.max_text_tokens) == (1.15258426, 8)
    assert preset.num_inference_steps == FLASHVIDEO.stage1.num_inference_steps
    assert stage1.scheduler.config.snr_shift_scale == 3.0
    frames = stage1(PROMPT, num_inference_steps=2, generator=seeded(), output_type="pt").frames
    assert frames.shape == (1, 5, 3, 16, 24) and frames.isfinite().all()


def test_alone_it_makes_previews_and_says_that_there_is_no_more(cogvideox_folder, seeded):
    pipeline = quiet(FlashVideoPipeline.from_pretrained(cogvideox_folder(rotary=True)))
    arguments = {"stage1_num_inference_steps": 2, "output_type": "pt"}
    result = pipeline(PROMPT, preview_only=True, generator=seeded(), **arguments)
    assert result.frames is None and result.preview_frames.shape == (1, 5, 3, 16, 24)
    with pytest.raises(ValueError, match="the model 'cogvideox' has only Stage I: stop at the preview"):
        pipeline(PROMPT, **arguments)
    with pytest.raises(ValueError, match="has only Stage I"):
        _ = pipeline.stage2


def test_saved_it_is_a_model_of_ours_without_stage_2(cogvideox_folder, tmp_path, seeded):
    pipeline = FlashVideoPipeline.from_pretrained(cogvideox_folder(rotary=False))
    pipeline.save_pretrained(tmp_path / "saved")
    again = load_pipeline(tmp_path / "saved", **CPU)
    clips = [
        quiet(p).stage1(PROMPT, num_inference_steps=2, generator=seeded(), output_type="pt").frames
        for p in (pipeline, again)
    ]
    assert torch.equal(*clips) and again.stage2_transformer is None


def test_it_takes_the_place_of_a_models_own_stage_1(cogvideox_folder, model, seeded):
    folder = cogvideox_folder(rotary=True)
    combined = quiet(load_pipeline(model, stage1=folder, **CPU))
    own, alone = load_pipeline(model, **CPU), quiet(load_stage1(folder, **CPU))
    preset = combined.preset
    assert preset.name == "toy+cogvideox" and preset.stage2 == own.preset.stage2
    assert preset.stage1.latent_scale == 0.7 and preset.stage1.num_inference_steps == 2
    result = combined(PROMPT, generator=seeded(), output_type="pt")
    preview = alone(PROMPT, num_inference_steps=2, generator=seeded(), output_type="pt").frames
    torch.testing.assert_close(result.preview_frames, preview, rtol=0, atol=1e-5)
    assert result.frames.shape == (1, 5, 3, 32, 48)


def test_a_lora_that_the_model_keeps_for_its_own_stage_1_is_left_out(cogvideox_folder, model):
    index = model / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"stage1_lora": "stage1_lora"}))
    combined = load_pipeline(model, stage1=cogvideox_folder(rotary=True), **CPU)
    assert not combined.has_lora
    with pytest.raises(ValueError, match="needs its LoRA"):
        load_pipeline(model, **CPU)


def test_another_size_than_its_own_is_logged(cogvideox_folder, model, caplog):
    load_pipeline(model, stage1=cogvideox_folder(rotary=True, sample_width=8), **CPU)
    assert "cogvideox was trained on videos of 32x16, but previews are 24x16 here" in caplog.text


def test_another_kind_of_vae_is_refused(cogvideox_folder, model):
    folder = cogvideox_folder(rotary=True)
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"temporal_compression_ratio": 8}))
    with pytest.raises(
        ValueError, match=r"is 8 latent channels, 4x in time, 4x in space, but that of .* 8x in"
    ):
        load_pipeline(model, stage1=folder, **CPU)


def test_another_text_encoder_is_refused(cogvideox_folder, model):
    folder = cogvideox_folder(rotary=True)
    T5EncoderModel(T5Config(vocab_size=16, d_model=16, num_layers=1)).save_pretrained(folder / "text_encoder")
    with pytest.raises(
        ValueError, match=r"the model's text encoder, whose d_model is 12, but that of .* is 16"
    ):
        load_pipeline(model, stage1=folder, **CPU)


@pytest.mark.parametrize("without", ["model", "stage1"])
def test_where_one_has_no_text_encoder_there_is_nothing_to_compare(
    cogvideox_folder, pipeline, tmp_path, without
):
    folder = cogvideox_folder(rotary=True)
    if without == "model":
        pipeline.register_modules(text_encoder=None, tokenizer=None)
    else:
        shutil.rmtree(folder / "text_encoder")
    pipeline.save_pretrained(tmp_path / "both")
    combined = load_pipeline(tmp_path / "both", stage1=folder, **CPU)
    assert (combined.text_encoder is None) == (without == "model")


def test_other_weights_of_the_vae_are_logged(cogvideox_folder, model, caplog):
    folder = cogvideox_folder(rotary=True)
    vae = AutoencoderKLCogVideoX.from_pretrained(folder / "vae")
    vae.decoder.conv_out.conv.weight.data += 1
    vae.save_pretrained(folder / "vae")
    load_pipeline(model, stage1=folder, **CPU)
    assert "the weights of the vae" in caplog.text and "previews may come out wrong" in caplog.text


def test_the_same_weights_in_bfloat16_are_the_same(cogvideox_folder, model, caplog):
    folder = cogvideox_folder(rotary=True)
    for part, cls in (("vae", AutoencoderKLCogVideoX), ("text_encoder", T5EncoderModel)):
        cls.from_pretrained(folder / part).to(torch.bfloat16).save_pretrained(folder / part)
    load_pipeline(model, stage1=folder, **CPU)
    assert "may come out wrong" not in caplog.text


def test_components_that_are_given_are_not_loaded(cogvideox_folder):
    folder = cogvideox_folder(rotary=True)
    (folder / "text_encoder" / "model.safetensors").unlink()
    pipeline = FlashVideoPipeline.from_pretrained(
        folder, text_encoder=None, dtype=torch.bfloat16, low_cpu_mem_usage=True, force_download=False
    )
    assert pipeline.text_encoder is None and pipeline.tokenizer is not None
    assert pipeline.stage1_transformer.dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"device_map": "balanced"}, "device_map is not taken for a CogVideoX model"),
        ({"dtype": {"vae": torch.float16}}, r"dtype must be one torch\.dtype for a CogVideoX model"),
    ],
)
def test_other_ways_to_load_are_refused(cogvideox_folder, option, message):
    with pytest.raises(ValueError, match=message):
        FlashVideoPipeline.from_pretrained(cogvideox_folder(rotary=True), **option)


def test_a_stage_1_for_a_model_without_stage_2_is_refused(cogvideox_folder, model):
    folder = cogvideox_folder(rotary=True)
    for one, other in ((folder, folder), (model, model)):
        with pytest.raises(
            ValueError, match="stage1 must be a CogVideoXPipeline for a FlashVideoPipeline, but"
        ):
            load_pipeline(one, stage1=other, **CPU)


def test_a_schedule_of_another_kind_is_refused(cogvideox_folder):
    folder = cogvideox_folder(rotary=True)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "epsilon"}))
    with pytest.raises(ValueError, match="must have prediction_type='v_prediction', got 'epsilon'"):
        load_stage1(folder, **CPU)


@pytest.mark.parametrize("file", ["model_index", "vae/config", "text_encoder/config", "transformer/config"])
@pytest.mark.parametrize(("text", "message"), [("", "cannot be read"), ("[]", "must hold a JSON object")])
def test_a_broken_small_file_is_one_sentence(cogvideox_folder, file, text, message):
    folder = cogvideox_folder(rotary=True)
    (folder / f"{file}.json").write_text(text)
    with pytest.raises(ValueError, match=rf"{file}\.json {message}"):
        FlashVideoPipeline.from_pretrained(folder)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_a_pointer_in_the_place_of_weights_is_one_sentence(cogvideox_folder, part):
    folder = cogvideox_folder(rotary=True)
    (path,) = (folder / part).glob("*.safetensors")
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ValueError, match=r"is a pointer of Git LFS and not the file itself"):
        FlashVideoPipeline.from_pretrained(folder)


def test_a_pipeline_of_another_class_is_refused(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    with pytest.raises(
        ValueError, match="must be a model of FlashVideoPipeline or CogVideoXPipeline, got one of Wan"
    ):
        load_pipeline(tmp_path, **CPU)
