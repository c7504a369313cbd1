"""`flashvideo generate` with a CogVideoX folder as the model or as its Stage I, and with LoRAs on it."""

import json

import pytest
import torch
from safetensors.torch import save_file

from flashvideo.pipelines.preview import load_preview
from flashvideo.video import probe_video

PROMPT = "a red circle moves left"
KEY = "transformer.transformer_blocks.0.attn1.to_k.lora_{}.weight"


@pytest.fixture
def lora(tmp_path, generator):
    state = {KEY.format(matrix): torch.randn(32, 32, generator=generator) for matrix in "AB"}
    save_file(state, tmp_path / "anime.v2.safetensors")
    return tmp_path / "anime.v2.safetensors"


def stage1_settings(path):
    return probe_video(path).metadata["settings"]["stage1"]


def test_a_cogvideox_folder_makes_previews(call, cogvideox_folder, tmp_path):
    folder, out = cogvideox_folder(rotary=False), tmp_path / "small.mp4"
    words = [
        "generate",
        PROMPT,
        "-o",
        out,
        "--steps",
        2,
        "--model",
        folder,
        "--device",
        "cpu",
        "--preview-only",
    ]
    outcome = call(*words)
    assert outcome.code == 0, outcome.err
    info = probe_video(out)
    assert (info.num_frames, info.width, info.height) == (5, 24, 16)
    assert info.metadata["model"] == "cogvideox"


def test_without_preview_only_it_says_that_it_has_no_more_before_it_works(
    call, refusal, cogvideox_folder, tmp_path, video_file
):
    folder, clip = cogvideox_folder(rotary=True), video_file()
    for words in (["generate", PROMPT], ["enhance", clip]):
        words += ["-o", tmp_path / "o.mp4", "--model", folder, "--device", "cpu"]
        assert "the model 'cogvideox' has only Stage I: stop at the preview" in refusal(call, *words)


def test_it_takes_the_place_of_the_models_stage_1_also_when_continued(flashvideo, cogvideox_folder, tmp_path):
    folder, small, large = cogvideox_folder(rotary=True), tmp_path / "small.mp4", tmp_path / "large.mp4"
    words = ["--stage1", folder, "--seed", 3]
    preview = flashvideo("generate", PROMPT, "--preview", small, "--preview-only", *words)
    assert preview.code == 0, preview.err
    assert f"--stage1 {folder}" in preview.out
    assert stage1_settings(small)["model"] == "cogvideox"
    assert flashvideo("generate", "--from-preview", small, "-o", large, "--stage1", folder).code == 0
    assert flashvideo("generate", PROMPT, "-o", tmp_path / "whole.mp4", *words).code == 0
    assert probe_video(large).metadata == probe_video(tmp_path / "whole.mp4").metadata
    other = flashvideo("generate", "--from-preview", small, "-o", large)
    assert other.code == 1 and "made by the model 'toy+cogvideox'" in other.err


def test_loras_change_the_preview_and_stand_in_the_metadata(flashvideo, lora, tmp_path):
    videos = {scale: tmp_path / f"{scale}.mp4" for scale in (None, "0", "0.5")}
    for scale, video in videos.items():
        words = [] if scale is None else ["--lora", f"{lora}:{scale}"]
        outcome = flashvideo("generate", PROMPT, "-o", video, "--preview-only", "--seed", 1, *words)
        assert outcome.code == 0, outcome.err
    plain, off, half = (load_preview(video.with_suffix(".safetensors")).latents for video in videos.values())
    assert torch.equal(plain, off) and not torch.allclose(plain, half)
    assert "loras" not in stage1_settings(videos[None])
    assert stage1_settings(videos["0.5"])["loras"] == ["anime_v2:0.5"]


def test_the_final_video_names_the_loras_of_its_preview(flashvideo, lora, tmp_path):
    small, large = tmp_path / "small.mp4", tmp_path / "large.mp4"
    assert flashvideo("generate", PROMPT, "--preview", small, "--preview-only", "--lora", lora).code == 0
    outcome = flashvideo("generate", "--from-preview", small, "-o", large, "--json")
    assert json.loads(outcome.out)["settings"]["stage1"]["loras"] == ["anime_v2:1"]


def test_a_lora_that_does_not_fit_is_one_sentence(flashvideo, refusal, tmp_path):
    wrong = tmp_path / "wrong.safetensors"
    save_file({"lora_unet_down.lora_A.weight": torch.zeros(2, 2)}, wrong)
    words = ["generate", PROMPT, "-o", tmp_path / "o.mp4", "--lora"]
    sentence = refusal(flashvideo, *words, wrong)
    assert f"the LoRA {wrong} does not fit this model's Stage I" in sentence
    assert "does not exist" in refusal(flashvideo, *words, tmp_path / "none.safetensors")
    assert "--lora needs files of different names, got wrong.safetensors, wrong.safetensors" in refusal(
        flashvideo, *words, wrong, "--lora", f"{wrong}:2"
    )


def test_a_lora_that_cannot_be_read_and_a_scale_that_is_no_number_are_told_apart(
    flashvideo, refusal, tmp_path
):
    junk = tmp_path / "junk.safetensors"
    junk.write_bytes(b"not at all what its name says")
    words = ["generate", PROMPT, "-o", tmp_path / "o.mp4", "--lora"]
    assert f"the LoRA {junk} cannot be read, is it a safetensors file?" in refusal(flashvideo, *words, junk)
    assert "SCALE must be a number, got 'strong'" in refusal(flashvideo, *words, f"{junk}:strong", code=2)


def test_a_lora_with_a_preview_that_is_there_already_is_wrong_usage(
    flashvideo, refusal, lora, video_file, tmp_path
):
    words = ["generate", "--from-preview", video_file(), "-o", tmp_path / "o.mp4", "--lora", lora]
    assert "--lora is of the preview, which --from-preview has already" in refusal(flashvideo, *words, code=2)
