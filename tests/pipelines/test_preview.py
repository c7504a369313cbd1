"""Previews as files."""

import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from flashvideo.pipelines.preview import (
    PreviewSettings,
    PreviewState,
    latents_beside,
    load_preview,
    read_preview,
    save_preview,
)


@pytest.fixture
def state(generator):
    torch.randn(3, generator=generator)
    return PreviewState(
        latents=torch.randn(1, 2, 8, 4, 6),
        generator_state=generator.get_state(),
        generator_device="cpu",
        settings=PreviewSettings(
            model="toy",
            version="1.2.3",
            prompts=("a red circle", "ein Käfer 🪲"),
            seed=7,
            height=16,
            width=24,
            num_frames=5,
            num_inference_steps=2,
            guidance_scale=3.5,
            guidance_schedule="constant",
        ),
    )


def test_a_preview_survives_the_round_trip(state, tmp_path):
    loaded = load_preview(save_preview(tmp_path / "preview.safetensors", state))
    assert torch.equal(loaded.latents, state.latents)
    assert loaded.settings == state.settings
    assert [path.name for path in tmp_path.iterdir()] == ["preview.safetensors"]


def test_the_generator_goes_on_where_it_stopped(state, tmp_path, generator):
    loaded = load_preview(save_preview(tmp_path / "preview.safetensors", state))
    assert torch.equal(torch.randn(4, generator=loaded.generator()), torch.randn(4, generator=generator))


def test_a_preview_can_be_continued_more_than_once(state):
    assert torch.equal(
        torch.randn(4, generator=state.generator()), torch.randn(4, generator=state.generator())
    )


def test_a_generator_that_the_machine_lacks_is_refused(state):
    elsewhere = dataclasses.replace(state, generator_device="xpu")
    with pytest.raises(ValueError, match="made with a generator on 'xpu', which this machine lacks"):
        elsewhere.generator()


def test_another_suffix_is_refused(state, tmp_path):
    with pytest.raises(ValueError, match=r"saved as \.safetensors, got 'preview\.mp4'"):
        save_preview(tmp_path / "preview.mp4", state)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        load_preview(tmp_path / "preview.safetensors")


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "preview.safetensors"
    path.write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        load_preview(path)


def test_weights_are_not_a_preview(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="holds no preview"):
        load_preview(path)


def test_a_file_of_latents_is_found_beside_its_video(state, tmp_path):
    assert latents_beside(tmp_path / "preview.mp4") is None
    path = save_preview(tmp_path / "preview.safetensors", state)
    assert latents_beside(tmp_path / "preview.mp4") == path
    assert read_preview(str(tmp_path / "preview.mp4")).settings == state.settings


def test_a_state_and_none_are_read_as_they_are(state):
    assert read_preview(state) is state
    assert read_preview(None) is None
