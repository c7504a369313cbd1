"""Converted transformers and VAE against the larger set of the reference's tensors."""

import pytest
import torch

from flashvideo.models.rope import rope_tables
from flashvideo.presets import FLASHVIDEO
from flashvideo.vae import REFERENCE_TILES, decode_latents, encode_moments, encode_pixels

CALLS = [
    *(("merged", f"stage1_dit/case{i}", "out_merged") for i in range(4)),
    *(("adapter", f"stage1_dit/case{i}", "out_unmerged") for i in range(4)),
    *(("stage2", f"stage2_dit/case{i}", "out") for i in range(6)),
]
SCALE = FLASHVIDEO.stage2.latent_scale


@pytest.fixture(scope="module")
def models(oracles):
    """`models[name]`: Stage I with its LoRA merged, Stage I with it as an adapter, Stage II."""
    pytest.importorskip("peft")
    return {
        "merged": oracles.transformer("stage1"),
        "adapter": oracles.transformer("stage1", adapter=True),
        "stage2": oracles.transformer("stage2"),
    }


@pytest.fixture(scope="module")
def vae(oracles):
    return oracles.vae()


def inputs(oracles, prefix):
    """Latents, text, timesteps and noise step of a recorded call."""
    tensors = [oracles.tensor(f"{prefix}/{name}") for name in ("x", "context", "timesteps")]
    stage2 = prefix.startswith("stage2")
    return *tensors, int(oracles.tensor(f"{prefix}/ref_noise_step")) if stage2 else None


@torch.no_grad()
@pytest.mark.parametrize("case", range(4))
@pytest.mark.parametrize(
    ("model", "out"), [("merged", "out_merged"), ("merged", "out_unmerged"), ("adapter", "out_unmerged")]
)
def test_stage1_equals_the_reference_with_its_lora_merged_and_apart(oracles, models, equal, case, model, out):
    x, text, timesteps, _ = inputs(oracles, f"stage1_dit/case{case}")
    kind = f"Stage I transformer, LoRA {'merged' if model == 'merged' else 'as an adapter'}"
    equal(models[model](x, text, timesteps).sample, f"stage1_dit/case{case}/{out}", kind)


@torch.no_grad()
@pytest.mark.parametrize("case", range(4))
def test_an_adapter_that_is_switched_off_leaves_the_base_model(oracles, models, equal, case):
    x, text, timesteps, _ = inputs(oracles, f"stage1_dit/case{case}")
    models["adapter"].disable_lora()
    try:
        sample = models["adapter"](x, text, timesteps).sample
    finally:
        models["adapter"].enable_lora()
    equal(sample, f"stage1_dit/case{case}/out_lora_off", "Stage I transformer, LoRA as an adapter")


def test_merged_weights_equal_the_references_merge(oracles, models, equal):
    block = models["merged"].transformer_blocks[0]
    attention, layers = block.attn1, "model.diffusion_model.transformer.layers.0.attention."
    merged = oracles.state("stage1_dit", "merged_sd/")
    qkv = torch.cat([layer.weight for layer in (attention.to_q, attention.to_k, attention.to_v)])
    equal(qkv, merged[layers + "query_key_value.weight"], "merged weights")
    equal(attention.to_out[0].weight, merged[layers + "dense.weight"], "merged weights")
    modulation = merged["model.diffusion_model.mixins.adaln_layer.adaLN_modulations.0.1.weight"].chunk(12)
    attention_first = [0, 1, 2, 6, 7, 8, 3, 4, 5, 9, 10, 11]
    ours = torch.cat((block.norm1.linear.weight, block.norm2.linear.weight))
    equal(ours, torch.cat([modulation[i] for i in attention_first]), "merged weights")


@torch.no_grad()
@pytest.mark.parametrize("case", range(6))
def test_stage2_equals_the_reference(oracles, models, equal, case):
    x, text, timesteps, noise_step = inputs(oracles, f"stage2_dit/case{case}")
    sample = models["stage2"](x, text, timesteps, noise_step=noise_step).sample
    equal(sample, f"stage2_dit/case{case}/out", "Stage II transformer")


@torch.no_grad()
@pytest.mark.parametrize(("model", "prefix", "out"), CALLS)
def test_given_the_references_time_embedding_the_transformers_come_closer(
    oracles, models, equal, monkeypatch, model, prefix, out
):
    x, text, timesteps, noise_step = inputs(oracles, prefix)
    embedding = oracles.tensor(f"{prefix}/emb")
    monkeypatch.setattr(models[model], "embed_conditions", lambda *_: embedding)
    sample = models[model](x, text, timesteps, noise_step=noise_step).sample
    equal(sample, f"{prefix}/{out}", "transformers, given the time embedding")


@torch.no_grad()
@pytest.mark.parametrize(("model", "prefix", "out"), CALLS)
def test_time_embedding_and_rotary_tables_equal_the_references(oracles, models, equal, model, prefix, out):
    x, text, timesteps, noise_step = inputs(oracles, prefix)
    embedding = models[model].embed_conditions(timesteps, noise_step, x, text)
    equal(embedding, f"{prefix}/emb", "time embedding")
    _, num_frames, _, height, width = x.shape
    cos, sin = rope_tables(num_frames, height // 2, width // 2, 64)
    equal(cos, f"{prefix}/rope_cos", "rotary tables")
    equal(sin, f"{prefix}/rope_sin", "rotary tables")


@torch.no_grad()
@pytest.mark.parametrize("num_frames", [9, 17])
def test_encoding_in_one_chunk_equals_the_reference(oracles, oracle_module, vae, equal, num_frames):
    prefix, house = f"vae/encode{num_frames}", oracle_module.house
    video = house(oracles.tensor(f"vae/video{num_frames}"))
    equal(encode_moments(vae, video), f"{prefix}/moments", "VAE")
    noise = house(oracles.tensor(f"{prefix}/posterior_noise"))
    sample = encode_pixels(vae, video, scale=1.0, posterior_noise=noise)
    equal(house(sample), f"{prefix}/latent_sampled", "VAE")


@torch.no_grad()
def test_encoding_in_causal_chunks_equals_the_reference(oracles, oracle_module, vae, equal):
    house = oracle_module.house
    moments = encode_moments(vae, house(oracles.tensor("vae/video17")), frames_per_chunk=8)
    equal(moments, "vae/encode17_chunks_9_8/moments", "VAE")
    prefix, video = "vae/encode49_chunks_17_16_16", house(oracles.tensor("vae/video49"))
    equal(house(encode_pixels(vae, video, scale=SCALE)), f"{prefix}/latent_mean_scaled", "VAE")
    noise = house(oracles.tensor(f"{prefix}/posterior_noise"))
    sample = encode_pixels(vae, video, scale=SCALE, posterior_noise=noise)
    equal(house(sample), f"{prefix}/latent_sampled_scaled", "VAE")


@torch.no_grad()
@pytest.mark.parametrize("num_frames", [1, 3, 5, 13])
def test_decoding_equals_the_reference(oracles, oracle_module, vae, equal, num_frames):
    prefix, house = f"vae/decode{num_frames}", oracle_module.house
    latents = house(oracles.tensor(f"{prefix}/latent"))
    equal(house(decode_latents(vae, latents * SCALE, scale=SCALE)), f"{prefix}/raw", "VAE")
    if num_frames < 13:
        frames = oracle_module.frames255(decode_latents(vae, latents, scale=1.0, clamp=True))
        equal(frames, f"{prefix}/frames255", "VAE, frames of 0 to 255")


@torch.no_grad()
def test_the_references_tiles_give_the_references_frames(oracles, oracle_module, vae, equal):
    latents = oracle_module.house(oracles.tensor("vae/save_mem_decode/latent"))
    pixels = decode_latents(vae, latents, scale=1.0, tiling=REFERENCE_TILES, clamp=True)
    equal(oracle_module.frames255(pixels), "vae/save_mem_decode/frames255", "VAE, frames of 0 to 255")
