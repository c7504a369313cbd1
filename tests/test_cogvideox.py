"""CogVideoX transformers of diffusers' own class, loaded as ours: same outputs; what is another model is refused."""

import json

import pytest
import torch
from diffusers import CogVideoXDPMScheduler, CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from safetensors.torch import load_file, save_file

from flashvideo.models.cogvideox import (
    cogvideox_config,
    load_cogvideox_transformer,
    read_cogvideox_config,
    start_stage2_from_cogvideox,
)
from flashvideo.schedule import FlashVideoScheduler, alphas_cumprod_sqrt_table

LATENTS = (2, 2, 8, 4, 6)  # the toy model's own size


@pytest.fixture
def inputs(generator):
    latents = torch.randn(LATENTS, generator=generator)
    text = torch.randn(2, 8, 12, generator=generator)
    return latents, text, torch.tensor([999.0, 250.0])


@pytest.mark.parametrize("rotary", [True, False], ids=["5B, rotary", "2B, sines and cosines"])
@torch.no_grad()
def test_the_output_is_that_of_diffusers(cogvideox_folder, inputs, rotary):
    folder = cogvideox_folder(rotary=rotary) / "transformer"
    theirs = CogVideoXTransformer3DModel.from_pretrained(folder).eval()
    latents, text, timestep = inputs
    rope = get_3d_rotary_pos_embed(16, ((0, 0), (2, 3)), (2, 3), 2) if rotary else None
    expected = theirs(latents, text, timestep, image_rotary_emb=rope, return_dict=False)[0]
    ours = load_cogvideox_transformer(folder)
    torch.testing.assert_close(ours(latents, text, timestep).sample, expected, rtol=0, atol=1e-5)
    other = load_cogvideox_transformer(cogvideox_folder(rotary=not rotary) / "transformer")
    assert (other(latents, text, timestep).sample - expected).abs().max() > 1e-3


@torch.no_grad()
def test_fixed_positions_follow_diffusers_at_another_size_and_interpolation_too(cogvideox_folder, generator):
    folder = cogvideox_folder(rotary=False, spatial_interpolation_scale=1.5, temporal_interpolation_scale=2.0)
    theirs = CogVideoXTransformer3DModel.from_pretrained(folder / "transformer").eval()
    latents, text = (
        torch.randn(1, 3, 8, 6, 4, generator=generator),
        torch.randn(1, 8, 12, generator=generator),
    )
    timestep = torch.tensor([500.0])
    expected = theirs(latents, text, timestep, return_dict=False)[0]
    ours = load_cogvideox_transformer(folder / "transformer")
    torch.testing.assert_close(ours(latents, text, timestep).sample, expected, rtol=0, atol=1e-5)
    frames = torch.tensor([0, 2])
    table = ours.fixed_positions(latents).unflatten(0, (3, -1))
    picked = ours.fixed_positions(latents[:, frames], frames).unflatten(0, (2, -1))
    assert torch.equal(picked, table[frames])


def test_the_last_norm_has_diffusers_epsilon_and_not_the_released_ones(cogvideox_folder):
    model = load_cogvideox_transformer(cogvideox_folder(rotary=True) / "transformer")
    assert model.norm_out.norm.eps == model.norm_final.eps == 1e-5


def test_weights_come_in_the_dtype_asked_for_and_survive_saving(cogvideox_folder, tmp_path, inputs):
    model = load_cogvideox_transformer(cogvideox_folder(rotary=False) / "transformer", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    model.float().save_pretrained(tmp_path / "ours")
    again = type(model).from_pretrained(tmp_path / "ours")
    assert torch.equal(again(*inputs).sample, model(*inputs).sample)


def test_shards_are_read_one_after_the_other(cogvideox_folder, tmp_path, inputs):
    folder = cogvideox_folder(rotary=True) / "transformer"
    CogVideoXTransformer3DModel.from_pretrained(folder).save_pretrained(
        tmp_path / "sharded", max_shard_size="20KB"
    )
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    outputs = [load_cogvideox_transformer(path)(*inputs).sample for path in (folder, tmp_path / "sharded")]
    assert torch.equal(*outputs)


@torch.no_grad()
def test_a_start_of_stage_2_is_rotary_and_its_new_embedders_say_nothing_yet(cogvideox_folder, inputs):
    folder = cogvideox_folder(rotary=False) / "transformer"
    start = start_stage2_from_cogvideox(folder)
    assert start.config.use_rotary_positional_embeddings and start.fixed_positions is None
    outputs = [start(*inputs, noise_step=step).sample for step in (0, 675)]
    assert torch.equal(*outputs)
    config = json.loads((folder / "config.json").read_text()) | {"use_rotary_positional_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    assert torch.equal(load_cogvideox_transformer(folder)(*inputs).sample, outputs[0])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"patch_size_t": 2}, r"patches in time \(CogVideoX 1\.5\), patch_size_t=2, which is not supported"),
        ({"ofs_embed_dim": 512}, "an offset embedding"),
        ({"use_learned_positional_embeddings": True}, "learned positions"),
        ({"in_channels": 16}, "got 16 in and 8 out, as image-to-video models have"),
        ({"window": 3}, "unknown keys: window"),
    ],
)
def test_relatives_that_compute_something_else_are_refused(cogvideox_folder, change, sentence):
    config = read_cogvideox_config(cogvideox_folder(rotary=True) / "transformer")
    with pytest.raises(ValueError, match=sentence):
        cogvideox_config(config | change)


def test_a_folder_of_another_model_is_refused(cogvideox_folder):
    with pytest.raises(
        ValueError, match=r"must hold a CogVideoXTransformer3DModel.*got a AutoencoderKLCogVideoX"
    ):
        read_cogvideox_config(cogvideox_folder(rotary=True) / "vae")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda weights: weights.pop("proj_out.bias"), r"missing proj_out\.bias"),
        (lambda weights: weights.update(extra=torch.zeros(1)), "unknown extra"),
        (
            lambda weights: weights.update({"proj_out.bias": torch.zeros(3)}),
            r"proj_out\.bias has shape \(3,\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(cogvideox_folder, change, sentence):
    folder = cogvideox_folder(rotary=True) / "transformer"
    path = folder / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)
    with pytest.raises(ValueError, match=sentence):
        load_cogvideox_transformer(folder)


def test_a_shifted_noise_schedule_is_that_of_diffusers():
    theirs = CogVideoXDPMScheduler(rescale_betas_zero_snr=True, snr_shift_scale=3.0)
    ours = alphas_cumprod_sqrt_table(snr_shift_scale=3.0)
    torch.testing.assert_close(ours.double(), theirs.alphas_cumprod.double().sqrt(), rtol=0, atol=1e-6)
    scheduler = FlashVideoScheduler(snr_shift_scale=3.0)
    scheduler.set_timesteps(4)
    plain = FlashVideoScheduler()
    plain.set_timesteps(4)
    assert scheduler.alphas_cumprod_sqrt[1] < plain.alphas_cumprod_sqrt[1]
