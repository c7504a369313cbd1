"""Presets hold the released numbers, survive JSON, and reject what is wrong."""

import dataclasses
import json

import pytest

from flashvideo.presets import FLASHVIDEO, NANO, PRESETS, Preset


def test_the_released_preset_holds_the_published_numbers():
    stage1, stage2 = FLASHVIDEO.stage1, FLASHVIDEO.stage2
    assert (stage1.height, stage1.width, stage1.num_frames, stage1.frame_rate) == (256, 480, 49, 8)
    assert (stage1.num_inference_steps, stage1.guidance_scale, stage1.guidance_schedule) == (
        51,
        8,
        "reference",
    )
    assert (stage2.height, stage2.width, stage2.num_inference_steps) == (1072, 1920, 4)
    assert (stage2.guidance_scale, stage2.noise_step, stage2.shift) == (13, 675, 2.5)
    assert (stage1.latent_scale, stage2.latent_scale) == (0.7, 1.15258426)
    assert stage2.prompt_prefix == "medium motion,"
    assert stage1.max_text_tokens == stage2.max_text_tokens == 226


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_json(name):
    assert Preset.from_dict(json.loads(json.dumps(PRESETS[name].to_dict()))) == PRESETS[name]


def test_presets_are_found_by_their_own_name():
    assert all(preset.name == name for name, preset in PRESETS.items())
    assert PRESETS["nano"] is NANO


def test_presets_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        NANO.name = "other"
    with pytest.raises(TypeError):
        PRESETS["other"] = NANO


def test_an_unknown_key_is_an_error_that_names_the_nearest_known_one():
    values = NANO.to_dict()
    values["stage2"]["noise_steps"] = values["stage2"].pop("noise_step")
    with pytest.raises(
        ValueError, match="unknown key 'noise_steps' for Stage2Preset; did you mean 'noise_step'"
    ):
        Preset.from_dict(values)


def test_a_missing_key_is_an_error_that_names_it():
    values = NANO.to_dict()
    del values["stage1"]["height"]
    with pytest.raises(ValueError, match="Stage1Preset lacks height"):
        Preset.from_dict(values)


@pytest.mark.parametrize(
    ("stage", "key", "value", "message"),
    [
        ("stage1", "num_frames", 0, "num_frames must be positive, got 0"),
        ("stage1", "guidance_schedule", "cosine", "guidance_schedule must be one of .* got 'cosine'"),
        ("stage2", "noise_step", 1000, r"noise_step must be in 0\.\.999, got 1000"),
        ("stage2", "shift", -1.0, "shift must be positive"),
    ],
)
def test_a_value_out_of_range_is_an_error(stage, key, value, message):
    values = NANO.to_dict()
    values[stage][key] = value
    with pytest.raises(ValueError, match=message):
        Preset.from_dict(values)
