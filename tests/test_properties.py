"""What holds for any small configuration: conversion, chunks, batches, time grids. Examples are always the same."""

import re

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from flashvideo.flow import network_timestep, time_grid
from flashvideo.models.convert import convert_transformer, convert_vae, transformer_config, vae_config
from flashvideo.models.transformer import FlashVideoTransformer3DModel
from flashvideo.pipelines.windows import cross_fade, iterate_windows
from flashvideo.schedule import FlashVideoScheduler
from flashvideo.shapes import latent_shape
from flashvideo.vae import decode_latents, encode_moments

PREFIX = "model.diffusion_model."
ADAPTED = ("attention.query_key_value", "attention.dense", "adaLN_modulations")

# The examples are small as they are; a search for a smaller one that fails takes minutes with models.
many = settings(
    max_examples=50, derandomize=True, deadline=None, database=None, phases=[Phase.explicit, Phase.generate]
)
few = settings(many, max_examples=8)

transformer_configs = st.fixed_dictionaries(
    {
        "num_attention_heads": st.integers(1, 3),
        "attention_head_dim": st.sampled_from([16, 32]),
        "in_channels": st.integers(1, 5),
        "out_channels": st.integers(1, 5),
        "time_embed_dim": st.sampled_from([8, 24]),
        "text_embed_dim": st.integers(1, 9),
        "num_layers": st.integers(1, 3),
        "patch_size": st.integers(1, 3),
        "max_text_seq_length": st.integers(1, 6),
        "noise_step_embed": st.booleans(),
        "num_frames_embed": st.booleans(),
    }
)
vae_configs = st.integers(3, 4).flatmap(
    lambda levels: st.fixed_dictionaries(
        {
            "block_out_channels": st.tuples(*[st.sampled_from([4, 8, 12])] * levels),
            "down_block_types": st.just(("CogVideoXDownBlock3D",) * levels),
            "up_block_types": st.just(("CogVideoXUpBlock3D",) * levels),
            "latent_channels": st.integers(1, 5),
            "layers_per_block": st.integers(1, 2),
            "norm_num_groups": st.just(4),
        }
    )
)


def randomized(model):
    """No parameter is zero or constant: a swap of two would show."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def reference_transformer(state):
    """Our weights under the reference's keys, fused as the reference fuses them; the way back, written on its own."""
    names = [
        (r"transformer_blocks\.(\d+)\.norm1\.norm", r"transformer.layers.\1.input_layernorm"),
        (r"transformer_blocks\.(\d+)\.norm2\.norm", r"transformer.layers.\1.post_attention_layernorm"),
        (r"transformer_blocks\.(\d+)\.attn1\.to_out\.0", r"transformer.layers.\1.attention.dense"),
        (r"transformer_blocks\.(\d+)\.ff\.net\.0\.proj", r"transformer.layers.\1.mlp.dense_h_to_4h"),
        (r"transformer_blocks\.(\d+)\.ff\.net\.2", r"transformer.layers.\1.mlp.dense_4h_to_h"),
        (r"transformer_blocks\.(\d+)\.attn1\.norm_q", r"mixins.adaln_layer.query_layernorm_list.\1"),
        (r"transformer_blocks\.(\d+)\.attn1\.norm_k", r"mixins.adaln_layer.key_layernorm_list.\1"),
        (r"patch_embed", "mixins.patch_embed"),
        (r"time_embedding\.linear_1", "time_embed.0"),
        (r"time_embedding\.linear_2", "time_embed.2"),
        (r"noise_step_embedding\.linear_1", "ref_step_time_embedding.0"),
        (r"noise_step_embedding\.linear_2", "ref_step_time_embedding.2"),
        (r"num_frames_embedding\.linear_1", "time_size_embedding.0"),
        (r"num_frames_embedding\.linear_2", "time_size_embedding.2"),
        (r"norm_final", "transformer.final_layernorm"),
        (r"norm_out\.norm", "mixins.final_layer.norm_final"),
        (r"norm_out\.linear", "mixins.final_layer.adaLN_modulation.1"),
        (r"proj_out", "mixins.final_layer.linear"),
    ]
    result = {}
    for key, tensor in state.items():
        if match := re.fullmatch(r"transformer_blocks\.(\d+)\.attn1\.to_q\.(\w+)", key):
            fused = [state[key.replace("to_q", f"to_{name}")] for name in "qkv"]
            result[f"{PREFIX}transformer.layers.{match[1]}.attention.query_key_value.{match[2]}"] = torch.cat(
                fused
            )
        elif match := re.fullmatch(r"transformer_blocks\.(\d+)\.norm1\.linear\.(\w+)", key):
            attention, mlp = (state[key.replace("norm1", norm)].chunk(2) for norm in ("norm1", "norm2"))
            both = torch.cat((attention[0], mlp[0], attention[1], mlp[1]))  # video's two halves, then text's
            result[f"{PREFIX}mixins.adaln_layer.adaLN_modulations.{match[1]}.1.{match[2]}"] = both
        elif not re.search(r"attn1\.to_[kv]\.|norm2\.linear\.", key):
            pattern, name = next(pair for pair in names if re.match(pair[0], key))
            result[PREFIX + re.sub("^" + pattern, name, key)] = tensor
    return result


def with_lora(state, rank):
    """Adds random LoRA branches where the released checkpoint has them."""
    generator = torch.Generator().manual_seed(1)
    result = {}
    for key, tensor in state.items():
        name, _, kind = key.rpartition(".")
        if not any(part in name for part in ADAPTED):
            result[key] = tensor
            continue
        result[f"{name}.original.{kind}"] = tensor
        parts = 3 if "query_key_value" in name else 1
        for part in range(parts if kind == "weight" else 0):
            shape = (rank, tensor.shape[1]), (tensor.shape[0] // parts, rank)
            for matrix, size in zip("AB", shape, strict=True):
                result[f"{name}.matrix_{matrix}.{part}"] = torch.randn(size, generator=generator)
    return result


def transformer_inputs(config, batch_size=1):
    generator = torch.Generator().manual_seed(2)
    side = 2 * config["patch_size"]
    latents = torch.randn(batch_size, 2, config["in_channels"], side, side, generator=generator)
    text = torch.randn(
        batch_size, config["max_text_seq_length"], config["text_embed_dim"], generator=generator
    )
    noise_step = 675 if config["noise_step_embed"] else None
    return latents, text, torch.full((batch_size,), 615.0), noise_step


@torch.no_grad()
def predict(model, inputs):
    latents, text, timesteps, noise_step = inputs
    return model(latents, text, timesteps, noise_step=noise_step).sample


@few
@given(transformer_configs)
def test_a_converted_transformer_equals_the_original_up_to_its_keys(config):
    original = randomized(FlashVideoTransformer3DModel(**config)).state_dict()
    conversion = convert_transformer(reference_transformer(original))
    assert not conversion.dropped
    assert conversion.weights.keys() == original.keys()
    assert all(tensor.equal(original[name]) for name, tensor in conversion.weights.items())
    length = config["max_text_seq_length"]
    assert transformer_config(conversion.weights, max_text_seq_length=length) == config


@few
@given(transformer_configs, st.integers(1, 5))
def test_a_merged_lora_equals_the_adapter_that_is_loaded_beside_the_base(config, rank):
    pytest.importorskip("peft")
    base = randomized(FlashVideoTransformer3DModel(**config))
    state = with_lora(reference_transformer(base.state_dict()), rank)
    inputs = transformer_inputs(config)
    plain = predict(base, inputs)
    merged = FlashVideoTransformer3DModel(**config).eval()
    convert_transformer(state).load_into(merged)
    conversion = convert_transformer(state, merge_lora=False)
    assert all(tensor.equal(base.state_dict()[name]) for name, tensor in conversion.weights.items())
    base.load_lora_adapter(conversion.lora, prefix=None, adapter_name="apart")
    together, apart = predict(merged, inputs), predict(base, inputs)
    size = float(together.abs().max())
    assert float((together - apart).abs().max()) <= 1e-4 * size
    assert float((together - plain).abs().max()) > 1e-2 * size


@few
@given(vae_configs)
def test_a_converted_vae_equals_the_original_up_to_its_keys(config):
    original = randomized(AutoencoderKLCogVideoX(**config)).state_dict()
    levels = len(config["block_out_channels"])
    names = [
        (r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2"),
        (r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"up.{levels - 1 - int(m[1])}.block.{m[2]}"),
        (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
        (r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample"),
        (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
        (r"conv_shortcut", "nin_shortcut"),
    ]
    reference = {}
    for key, tensor in original.items():
        for pattern, name in names:
            key = re.sub(pattern, name, key)
        reference[key] = tensor
    conversion = convert_vae(reference)
    assert conversion.weights.keys() == original.keys()
    assert all(tensor.equal(original[name]) for name, tensor in conversion.weights.items())
    read = vae_config(conversion.weights)
    assert read == {name: config[name] for name in read}


@few
@given(transformer_configs, st.integers(2, 4))
def test_a_batch_through_the_transformer_equals_its_samples_one_by_one(config, batch_size):
    model = randomized(FlashVideoTransformer3DModel(**config))
    latents, text, timesteps, noise_step = transformer_inputs(config, batch_size)
    timesteps = timesteps - 100 * torch.arange(batch_size)
    together = predict(model, (latents, text, timesteps, noise_step))
    for i in range(batch_size):
        one = slice(i, i + 1)
        alone = predict(model, (latents[one], text[one], timesteps[one], noise_step))
        assert float((together[one] - alone).abs().max()) <= 1e-4 * float(together.abs().max())


@few
@given(vae_configs, st.integers(1, 5), st.integers(1, 2), st.integers(1, 3))
def test_chunks_and_batches_of_the_vae_that_hold_the_whole_clip_change_nothing(
    config, num_latent_frames, half_chunk, batch_size
):
    assume(2 * half_chunk >= num_latent_frames - 1)  # a shorter chunk has group norms of its own
    vae = randomized(AutoencoderKLCogVideoX(**config)).requires_grad_(False)
    generator = torch.Generator().manual_seed(3)
    shape = (batch_size, num_latent_frames, config["latent_channels"], 2, 3)
    latents = torch.randn(shape, generator=generator)
    whole = decode_latents(vae, latents, scale=1.0, latent_frames_per_chunk=8)
    assert whole.shape[:2] == (batch_size, 1 + 4 * (num_latent_frames - 1))
    chunked = decode_latents(vae, latents, scale=1.0, latent_frames_per_chunk=2 * half_chunk)
    assert torch.equal(whole, chunked)
    moments = encode_moments(vae, whole, frames_per_chunk=32)
    assert torch.equal(moments, encode_moments(vae, whole, frames_per_chunk=8 * half_chunk))
    pixels_alone = decode_latents(vae, latents[-1:], scale=1.0, latent_frames_per_chunk=8)
    moments_alone = encode_moments(vae, whole[-1:], frames_per_chunk=32)
    for together, alone in ((whole, pixels_alone), (moments, moments_alone)):
        assert float((together[-1:] - alone).abs().max()) <= 1e-4 * float(together.abs().max())


@many
@given(st.integers(1, 1000), st.floats(0.1, 10))
def test_any_exact_grid_runs_from_0_to_1_and_rises(num_steps, shift):
    grid = time_grid(num_steps, shift)
    assert grid.shape == (num_steps + 1,)
    assert grid[0].item() == pytest.approx(0, abs=1e-12)
    assert grid[-1].item() == 1
    assert bool((grid.diff() > 0).all())
    assert bool((network_timestep(grid).diff() < 0).all())


@many
@given(st.integers(1, 12), st.floats(1, 5))
def test_a_rounded_grid_of_few_steps_runs_from_0_to_1_near_the_exact_one(num_steps, shift):
    grid = time_grid(num_steps, shift, reference_rounding=True)
    assert grid[-1].item() == 1
    assert bool((grid.diff() > 0).all())
    assert grid.bfloat16().float().equal(grid)
    torch.testing.assert_close(grid, time_grid(num_steps, shift), atol=0.02, rtol=0)


@many
@given(st.integers(1, 60), st.integers(0, 2**16))
def test_the_stage1_sampler_stays_finite_for_any_number_of_steps(num_steps, seed):
    generator = torch.Generator().manual_seed(seed)
    scheduler = FlashVideoScheduler()
    scheduler.set_timesteps(num_steps)
    x = torch.randn(1, 1, 2, 2, 2, generator=generator)
    for timestep in scheduler.timesteps:
        v = torch.randn(x.shape, generator=generator)
        x = scheduler.step(v, timestep, x, generator=generator).prev_sample
        assert x.isfinite().all()
        assert x.abs().max() < 100


@many
@given(st.integers(1, 97), st.integers(1, 40), st.integers(1, 40))
def test_any_frame_count_and_size_has_a_latent_shape_or_a_nearest_that_has_one(num_frames, rows, columns):
    config = {"temporal_compression_ratio": 4, "block_out_channels": (1,) * 4, "latent_channels": 16}
    try:
        shape = latent_shape(num_frames, rows, columns, vae_config=config, patch_size=2)
    except ValueError as error:
        nearest = [int(number) for number in re.findall(r"\d+", str(error).rpartition("try ")[2])]
        asked = [num_frames] if "num_frames" in str(error) else [rows, columns]
        fits = [*nearest, 16, 16] if len(nearest) == 1 else [1, *nearest]
        latent_shape(*fits, vae_config=config, patch_size=2)
        reach = 2 if len(nearest) == 1 else 15
        assert all(abs(a - b) <= reach for a, b in zip(asked, nearest, strict=True))
        return
    assert (num_frames, rows, columns) == (4 * shape.num_frames - 3, 8 * shape.height, 8 * shape.width)


@many
@given(st.integers(1, 97), st.integers(0, 6), st.integers(0, 5))
def test_windows_of_any_length_join_to_the_clip_that_was_cut(num_frames, half_window, half_overlap):
    assume(half_overlap < half_window or half_overlap == half_window == 0)
    window, overlap = 4 * half_window + 1, 4 * half_overlap + 1
    assume(overlap < window)
    clip = torch.arange(float(num_frames)).view(1, -1, 1, 1, 1)
    pieces = iterate_windows(clip.unbind(1), window=window, overlap=overlap, temporal_factor=4)
    joined = cross_fade(
        ((piece.start, piece.frames[:, : piece.num_valid]) for piece in pieces), overlap=overlap
    )
    torch.testing.assert_close(torch.cat(list(joined), dim=1), clip)
