"""The shipped model: small enough for a package, and its previews show what they were asked for."""

import pytest
import torch

from flashvideo.data.captions import full_caption
from flashvideo.evaluation.metrics import downsampled_psnr, gradient_energy_ratio
from flashvideo.evaluation.readers import agreement, read_clip
from flashvideo.evaluation.suite import held_out_scene
from flashvideo.evaluation.upscalers import upscale_clip
from flashvideo.pipelines.folders import NANO_PATH
from flashvideo.pipelines.loading import load_pipeline
from flashvideo.vae import decode_latents, encode_pixels
from flashvideo.vae.layers import Workspace, decode_chunk
from flashvideo.vae.tiling import Tiling


@pytest.fixture(scope="module")
def nano():
    pipeline = load_pipeline("nano", device="cpu", dtype="float32")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def previews(nano):
    """Of four held-out prompts: their scenes and previews (17, 3, 96, 160)."""
    scenes = [held_out_scene(index) for index in range(4)]
    frames = nano.stage1(
        [full_caption(scene) for scene in scenes],
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).frames
    return scenes, frames.float()


def test_it_is_small_enough_for_a_package():
    sizes = [path.stat().st_size for path in NANO_PATH.rglob("*.safetensors")]
    assert sum(sizes) < 20e6 and max(sizes) < 15e6


def test_its_files_do_not_tell_where_they_were_made():
    for path in NANO_PATH.rglob("*.json"):
        assert "_name_or_path" not in path.read_text(encoding="utf-8"), path


def test_previews_show_the_colour_and_the_background_of_prompts_it_was_not_trained_on(previews):
    scenes, frames = previews
    for scene, clip in zip(scenes, frames, strict=True):
        found = agreement(read_clip(clip), scene)
        assert found["color"] and found["background"], full_caption(scene)


def test_stage_2_adds_detail_to_a_part_of_a_preview_and_keeps_its_content(nano, previews):
    clip = previews[1][0][:5, :, 24:72, 48:112]
    for consistency, least in ((False, 26), (True, 40)):
        frames = nano.stage2(
            clip[None],
            height=192,
            width=256,
            consistency=consistency,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        ).frames[0]
        assert gradient_energy_ratio(frames.float(), upscale_clip(clip, 192, 256, "bicubic")).item() > 1.1
        assert downsampled_psnr(frames.float(), clip).mean().item() > least


@torch.no_grad()
def test_strips_leave_no_seams_in_its_frames_as_tiles_do(nano, previews):
    latents = encode_pixels(nano.vae, previews[1][:1, :5], scale=1.0)
    whole = decode_latents(nano.vae, latents, scale=1.0)
    tiles = decode_latents(nano.vae, latents, scale=1.0, tiling=Tiling(rows=2, columns=2, overlap=4))
    workspace = Workspace(device=nano.vae.device, thrift="layers", strip_bytes=100_000)
    strips = decode_chunk(nano.vae.decoder, latents.transpose(1, 2), workspace).transpose(1, 2)
    assert 127.5 * (strips - whole).abs().max() < 0.05  # levels of 255
    assert 127.5 * (tiles - whole).abs().mean() > 0.1
