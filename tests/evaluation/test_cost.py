"""Costs by formula are what torch counts, to the last operation."""

import dataclasses

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers import T5Config, T5EncoderModel

from flashvideo.evaluation.cost import run_cost, stage1_evaluations
from flashvideo.evaluation.flops import text_flops, transformer_flops, vae_decode_flops, vae_encode_flops
from flashvideo.models.transformer import FlashVideoTransformer3DModel
from flashvideo.pipelines.folders import NANO_PATH
from flashvideo.pipelines.footprint import ModelConfigs
from flashvideo.vae import decode_latents, encode_moments

WORDS = ["a", "red", "circle", "moves", "left"]
SMALL_T5 = {"vocab_size": 16, "d_model": 12, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2}
# torch counts attention by the names of its kernels, among which the processor's own is missing.
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *_, **__: (
        sdpa_flop_count(query, key, value)
    )
}


def counted(work, *inputs, **options) -> int:
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        work(*inputs, **options)
    return counter.get_total_flops()


@pytest.fixture(scope="module")
def nano() -> ModelConfigs:
    return ModelConfigs.read(NANO_PATH)


def count_transformer(config, shape: tuple[int, int, int], num_text_tokens: int, batch: int) -> int:
    f, h, w = shape
    with FakeTensorMode():
        model = FlashVideoTransformer3DModel.from_config(dict(config)).eval()
        latents = torch.empty(batch, f, config["in_channels"], h, w)
        text = torch.empty(batch, num_text_tokens, config["text_embed_dim"])
        noise_step = 1 if config.get("noise_step_embed") else None
        return counted(model, latents, text, torch.empty(batch), noise_step=noise_step)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize(("shape", "num_text_tokens"), [((1, 4, 4), 28), ((9, 24, 40), 28), ((3, 8, 12), 5)])
def test_a_pass_of_nanos_transformers_is_what_torch_counts(nano, stage, shape, num_text_tokens, batch):
    config = nano.stage1_transformer if stage == 1 else nano.stage2_transformer
    f, h, w = shape
    by_formula = transformer_flops(
        config, num_latent_frames=f, height=h, width=w, num_text_tokens=num_text_tokens, batch=batch
    )
    assert by_formula == count_transformer(config, shape, num_text_tokens, batch)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"noise_step_embed": True},
        {"noise_step_embed": True, "num_frames_embed": True},
        {"position_embed": True, "pooled_text_embed": True},
        {"use_rotary_positional_embeddings": False},
        {"activation_fn": "geglu"},
        {"in_channels": 4, "out_channels": 6, "num_layers": 3},
    ],
)
def test_every_option_of_the_transformer_is_counted(tiny_transformer, overrides):
    config = dict(tiny_transformer(1, **overrides).config)
    by_formula = transformer_flops(config, num_latent_frames=3, height=4, width=6, num_text_tokens=7, batch=2)
    assert by_formula == count_transformer(config, (3, 4, 6), 7, 2)


@pytest.mark.parametrize("kind", ["gated-gelu", "relu"])
@pytest.mark.parametrize(("num_tokens", "batch"), [(1, 1), (28, 2)])
def test_a_text_encoders_pass_is_what_torch_counts(kind, num_tokens, batch):
    config = T5Config(**SMALL_T5, feed_forward_proj=kind)
    encoder, token_ids = T5EncoderModel(config).eval(), torch.zeros(batch, num_tokens, dtype=torch.long)
    assert text_flops(config.to_dict(), num_tokens, batch) == counted(encoder, token_ids)


def vaes() -> dict[str, dict]:
    levels = {
        name: ("CogVideoX" + kind,) * 3
        for name, kind in (("down_block_types", "DownBlock3D"), ("up_block_types", "UpBlock3D"))
    }
    small = {"norm_num_groups": 4, "latent_channels": 5, **levels}
    return {
        "four frames in one": {**small, "block_out_channels": (4, 8, 8), "layers_per_block": 2},
        "time as it is": {
            **small,
            "block_out_channels": (4, 4, 8),
            "layers_per_block": 1,
            "temporal_compression_ratio": 1,
        },
        "with convolutions of the latents": {
            **small,
            "block_out_channels": (4, 4, 8),
            "layers_per_block": 1,
            "latent_channels": 3,
            "use_quant_conv": True,
            "use_post_quant_conv": True,
        },
    }


def check_vae(config, num_frames: int, height: int, width: int, batch: int = 1) -> None:
    with torch.device("meta"):
        vae = AutoencoderKLCogVideoX.from_config(dict(config)).eval()
        config = dict(vae.config)
        pixels = torch.empty(batch, num_frames, 3, height, width)
    size = (num_frames, height, width, batch)
    with torch.no_grad():
        latents = encode_moments(vae, pixels).chunk(2, dim=1)[0].transpose(1, 2)
    assert vae_encode_flops(config, *size) == counted(encode_moments, vae, pixels)
    assert vae_decode_flops(config, *size) == counted(decode_latents, vae, latents, scale=1.0)


@pytest.mark.parametrize("name", ["four frames in one", "time as it is", "with convolutions of the latents"])
@pytest.mark.parametrize("latent_frames", [1, 2, 3, 6, 9])
def test_encoding_and_decoding_cost_what_torch_counts(name, latent_frames):
    config = vaes()[name]
    temporal = config.get("temporal_compression_ratio", 4)
    check_vae(config, 1 + temporal * (latent_frames - 1), 12, 20)


@pytest.mark.parametrize("size", [(17, 96, 160), (49, 32, 48), (3, 8, 8)])
def test_nanos_vae_costs_what_torch_counts(nano, size):
    check_vae(nano.vae, *size, batch=2)


@pytest.mark.parametrize(
    ("num_frames", "height", "message"), [(5, 10, "multiples of 4"), (4, 12, r"num_frames must be 2k\+1")]
)
def test_a_size_that_the_vae_does_not_take_has_no_cost(nano, num_frames, height, message):
    with pytest.raises(ValueError, match=message):
        vae_encode_flops(nano.vae, num_frames, height, 16)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"guidance_scale": 3.0, "num_inference_steps": 3},
        {"stage1_guidance_scale": 1.0, "stage1_num_inference_steps": 1},
        {"height": 48, "width": 64},
        {"num_frames": 9},
        {"num_frames": 9, "window": 5, "overlap": 1, "guidance_scale": 2.0},
        {"num_frames": 1},
        {"preview_only": True},
    ],
)
def test_a_whole_run_costs_what_torch_counts(toy_pipeline, generator, settings):
    pipeline = toy_pipeline(WORDS)
    pipeline.set_progress_bar_config(disable=True)
    cost = run_cost(ModelConfigs.of(pipeline), **settings)
    total = counted(pipeline, "a red circle", generator=generator, output_type="pt", **settings)
    assert cost.flops == total


def test_two_clips_at_once_cost_what_torch_counts(toy_pipeline, generator):
    pipeline = toy_pipeline(WORDS)
    pipeline.set_progress_bar_config(disable=True)
    cost = run_cost(ModelConfigs.of(pipeline), batch=2)
    assert cost.flops == counted(pipeline, ["a red circle", "left"], generator=generator, output_type="pt")
    assert cost.evaluations == {"stage1": 8, "stage2": 4}
    assert cost.phases["stage1"].passes == 2  # both clips, with and without text, in one batch


def test_the_released_model_takes_102_and_8_evaluations_and_33_8_petaflop():
    cost = run_cost(ModelConfigs.released())
    assert cost.evaluations == {
        "stage1": 102,
        "stage2": 8,
    }  # the paper counts 50 steps, the released code makes 51
    assert (cost.preview, cost.window) == ((49, 256, 480), (49, 1072, 1920))
    rounded = {name: round(phase.flops / 1e15, 3) for name, phase in cost.phases.items()}
    assert rounded == {
        "text": 0.004,
        "stage1": 8.476,
        "stage1_decode": 0.112,
        "stage2_encode": 0.887,
        "stage2": 22.448,
        "stage2_decode": 1.876,
    }
    attention = 8 * 30 * 4 * (226 + 13 * 67 * 120) ** 2 * 1920
    assert round(attention / cost.phases["stage2"].flops, 2) == 0.9


@pytest.mark.parametrize("phase", ["stage1", "stage2"])
def test_the_released_models_passes_are_what_torch_counts(phase):
    configs, cost = ModelConfigs.released(), run_cost(ModelConfigs.released())
    config = configs.stage1_transformer if phase == "stage1" else configs.stage2_transformer
    f, h, w = shape = (13, 32, 60) if phase == "stage1" else (13, 134, 240)
    by_formula = transformer_flops(
        config, num_latent_frames=f, height=h, width=w, num_text_tokens=226, batch=2
    )
    assert by_formula == count_transformer(config, shape, 226, 2)
    assert cost.phases[phase].flops == cost.phases[phase].passes * by_formula


def test_a_schedule_that_comes_to_no_guidance_saves_an_evaluation():
    assert stage1_evaluations(4, 3.0) == [2, 2, 2, 2]
    assert stage1_evaluations(4, 1.0, "reference") == [1, 1, 1, 1]
    assert stage1_evaluations(51, 8.0, "reference") == [2] * 51
    assert sum(stage1_evaluations(11, 8.0, "reference")) == 21  # at the timestep 11 the scale is 1


def test_weights_are_read_once_for_a_batch_and_without_the_table_of_words(toy_pipeline):
    pipeline = toy_pipeline(WORDS)
    cost = run_cost(ModelConfigs.of(pipeline))
    sizes = {
        "text": pipeline.text_encoder.encoder.block,
        "stage1": pipeline.stage1_transformer,
        "stage2_encode": pipeline.vae.encoder,
        "stage2_decode": pipeline.vae.decoder,
    }
    for name, network in sizes.items():
        assert cost.phases[name].num_parameters == sum(one.numel() for one in network.parameters())
    stage1 = cost.phases["stage1"]
    assert (stage1.evaluations, stage1.passes) == (4, 2)  # two steps, each with guidance
    assert stage1.weight_bytes(2) == 2 * 2 * stage1.num_parameters


def test_a_model_without_stage2_or_text_encoder_has_no_such_phases(toy_pipeline):
    configs = dataclasses.replace(
        ModelConfigs.of(toy_pipeline(WORDS)), stage2_transformer=None, text_encoder=None
    )
    assert list(run_cost(configs).phases) == ["stage1", "stage1_decode"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_frames": 4}, r"num_frames must be 4k\+1, got 4"),
        ({"num_inference_steps": 0}, "num_inference_steps must be"),
        ({"guidance_scale": 0.5}, "guidance_scale must be"),
        (
            {"stage1_guidance_scale": 2.0, "stage1_guidance_schedule": "no"},
            "guidance_schedule must be one of",
        ),
        ({"window": 4}, r"window must be 4k\+1 frames"),
        ({"batch": 0}, "batch must be"),
    ],
)
def test_what_the_pipeline_refuses_has_no_cost(toy_pipeline, settings, message):
    with pytest.raises(ValueError, match=message):
        run_cost(ModelConfigs.of(toy_pipeline(WORDS)), **settings)
