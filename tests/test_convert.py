"""Conversion of reference checkpoints: strict both ways, LoRA merged by the closed form."""

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX

from flashvideo.models.convert import (
    convert_transformer,
    convert_vae,
    transformer_config,
    vae_config,
)
from flashvideo.models.transformer import FlashVideoTransformer3DModel

PREFIX = "model.diffusion_model."
QKV = PREFIX + "transformer.layers.0.attention.query_key_value"
ADALN = PREFIX + "mixins.adaln_layer.adaLN_modulations.0.1"


@pytest.fixture
def stage1(golden):
    return golden.state_dict("stage1")


@pytest.fixture
def stage2(golden):
    return golden.state_dict("stage2")


def build(weights):
    return FlashVideoTransformer3DModel(**transformer_config(weights, max_text_seq_length=8))


@pytest.mark.parametrize("model", ["stage1", "stage2"])
def test_a_converted_transformer_has_exactly_the_models_parameters(golden, model):
    weights = convert_transformer(golden.state_dict(model)).weights
    assert weights.keys() == build(weights).state_dict().keys()


def test_a_converted_vae_has_exactly_the_models_parameters(golden):
    weights = convert_vae(golden.state_dict("vae")).weights
    assert weights.keys() == AutoencoderKLCogVideoX(**vae_config(weights)).state_dict().keys()


def test_the_configs_are_read_off_the_shapes(stage2, golden):
    config = transformer_config(convert_transformer(stage2).weights, max_text_seq_length=8)
    assert (config["num_attention_heads"], config["attention_head_dim"], config["num_layers"]) == (2, 64, 2)
    assert (config["patch_size"], config["in_channels"], config["out_channels"]) == (2, 16, 16)
    assert config["noise_step_embed"]
    assert config["num_frames_embed"]
    config = vae_config(convert_vae(golden.state_dict("vae")).weights)
    assert (config["block_out_channels"], config["layers_per_block"]) == ((32, 64, 32, 64), 1)


def test_every_number_of_stage2_arrives_once(stage2):
    conversion = convert_transformer(stage2)
    kept = {key: tensor for key, tensor in stage2.items() if key not in conversion.dropped}
    assert sum(t.numel() for t in kept.values()) == sum(t.numel() for t in conversion.weights.values())
    before = torch.cat([t.flatten() for t in kept.values()]).sort().values
    after = torch.cat([t.flatten() for t in conversion.weights.values()]).sort().values
    assert before.equal(after)


def test_queries_keys_and_values_are_plain_thirds(stage2):
    weights = convert_transformer(stage2).weights
    parts = [weights[f"transformer_blocks.0.attn1.to_{name}.weight"] for name in "qkv"]
    assert torch.cat(parts).equal(stage2[QKV + ".weight"])


def test_the_modulation_is_regrouped_from_video_and_text_to_attention_and_feed_forward(stage2):
    twelve = stage2[ADALN + ".bias"].chunk(12)
    weights = convert_transformer(stage2).weights
    assert weights["transformer_blocks.0.norm1.linear.bias"].equal(torch.cat(twelve[0:3] + twelve[6:9]))
    assert weights["transformer_blocks.0.norm2.linear.bias"].equal(torch.cat(twelve[3:6] + twelve[9:12]))


def test_the_lora_is_merged_by_its_closed_form(stage1):
    delta = torch.cat([stage1[f"{QKV}.matrix_B.{j}"] @ stage1[f"{QKV}.matrix_A.{j}"] for j in range(3)])
    query, key, value = (stage1[QKV + ".original.weight"] + delta / 4).chunk(3)
    weights = convert_transformer(stage1).weights
    for name, expected in (("q", query), ("k", key), ("v", value)):
        torch.testing.assert_close(weights[f"transformer_blocks.0.attn1.to_{name}.weight"], expected)


def test_the_lora_is_merged_in_float32_and_the_dtype_stays(stage1):
    full = convert_transformer(stage1).weights
    half = convert_transformer({key: tensor.bfloat16() for key, tensor in stage1.items()}).weights
    for name, tensor in half.items():
        assert tensor.dtype == torch.bfloat16
        torch.testing.assert_close(tensor.float(), full[name], atol=2e-2, rtol=2e-2)


def test_a_lora_kept_apart_makes_up_the_merged_weight(stage1):
    apart, merged = convert_transformer(stage1, merge_lora=False), convert_transformer(stage1)
    adapted = {name.removesuffix(".lora_A.weight") for name in apart.lora if name.endswith("lora_A.weight")}
    assert len(adapted) == 2 * (3 + 1 + 2)  # per block: query, key, value, output, two modulations
    for name in adapted:
        delta = apart.lora[f"{name}.lora_B.weight"] @ apart.lora[f"{name}.lora_A.weight"]
        torch.testing.assert_close(
            apart.weights[f"{name}.weight"] + delta, merged.weights[f"{name}.weight"], atol=1e-6, rtol=0
        )


def test_plain_names_are_taken_where_there_is_no_lora(stage1):
    base = convert_transformer(stage1, merge_lora=False).weights
    plain = {k.replace(".original", ""): tensor for k, tensor in stage1.items() if ".matrix_" not in k}
    for name, tensor in convert_transformer(plain).weights.items():
        assert tensor.equal(base[name])


def test_original_names_without_their_lora_are_an_error(stage1):
    for key in [key for key in stage1 if key.startswith(QKV) and ".matrix_" in key]:
        del stage1[key]
    with pytest.raises(ValueError, match=r"missing .*query_key_value\.matrix_A\.0; .*matrix_B\.2$"):
        convert_transformer(stage1)


def test_dropped_keys_are_listed_with_their_reason(stage2):
    extra = {
        "first_stage_model.encoder.conv_in.weight": "the VAE",
        "conditioner.embedders.0.weight": "the text encoder",
        PREFIX + "mixins.pos_embed.freqs_sin": "rotary tables",
        PREFIX + "transformer.position_embeddings.weight": "never used",
    }
    dropped = convert_transformer(stage2 | {key: torch.zeros(1) for key in extra}).dropped
    assert dropped.keys() == extra.keys()
    assert all(reason in dropped[key] for key, reason in extra.items())


def test_the_vaes_training_loss_is_dropped(golden):
    state = golden.state_dict("vae") | {"loss.logvar": torch.zeros(())}
    assert list(convert_vae(state).dropped) == ["loss.logvar"]


def test_a_converted_model_survives_a_folder(stage2, tmp_path):
    conversion = convert_transformer(stage2)
    model = build(conversion.weights)
    conversion.load_into(model)
    model.save_pretrained(tmp_path)
    loaded = FlashVideoTransformer3DModel.from_pretrained(tmp_path).state_dict()
    assert all(loaded[name].equal(tensor) for name, tensor in conversion.weights.items())


def test_an_unknown_key_is_an_error_that_names_it(stage2, golden):
    with pytest.raises(ValueError, match=r"unknown model\.diffusion_model\.mixins\.surprise"):
        convert_transformer(stage2 | {PREFIX + "mixins.surprise.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"unknown something\.else"):
        convert_transformer(stage2 | {"something.else": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"unknown encoder\.surprise\.weight"):
        convert_vae(golden.state_dict("vae") | {"encoder.surprise.weight": torch.zeros(1)})


def test_every_missing_unknown_and_misshaped_weight_is_named_at_once(stage2):
    conversion = convert_transformer(stage2)
    model = build(conversion.weights)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    del conversion.weights["norm_final.weight"]
    conversion.weights["extra"] = torch.zeros(1)
    conversion.weights["proj_out.bias"] = torch.zeros(3)
    with pytest.raises(ValueError, match="does not fit FlashVideoTransformer3DModel") as error:
        conversion.load_into(model)
    for part in (
        "missing norm_final.weight",
        "unknown extra",
        "proj_out.bias has shape (3,), the model needs (64,)",
    ):
        assert part in str(error.value)
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop(QKV + ".matrix_B.1"), r"missing .*query_key_value\.matrix_B\.1"),
        (lambda s: s.pop(QKV + ".matrix_A.0"), r"missing .*query_key_value\.matrix_A\.0"),
        (lambda s: s.pop(QKV + ".original.weight"), r"missing .*query_key_value\.weight"),
        (
            lambda s: s.update({QKV + ".weight": torch.zeros(384, 128)}),
            "is there twice, plain and as .original",
        ),
        (lambda s: s.update({QKV + ".matrix_A.2": torch.zeros(4, 5)}), r"part 2: matrix_A \(4, 5\)"),
        (lambda s: s.update({QKV + ".original.bias": torch.zeros(385)}), "its rows do not divide by 3"),
        (
            lambda s: (s.pop(QKV + ".matrix_A.2"), s.pop(QKV + ".matrix_B.2")),
            r"has LoRA parts \[0, 1\], expected \[0, 1, 2\]",
        ),
        (
            lambda s: (s.pop(QKV + ".matrix_A.0"), s.pop(QKV + ".matrix_B.0")),
            r"has LoRA parts \[1, 2\]",
        ),
    ],
)
def test_an_incomplete_or_misshaped_lora_is_an_error(stage1, change, message):
    change(stage1)
    with pytest.raises(ValueError, match=message):
        convert_transformer(stage1)
