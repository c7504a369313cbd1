"""The way back to the reference's names: full-size models, and random small ones."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import T5Config, T5EncoderModel

from flashvideo.models.convert import (
    convert_transformer,
    convert_vae,
    plan_transformer,
    plan_vae,
    transformer_config,
    vae_config,
)
from flashvideo.models.convert_back import check_all_used, plan_reference_transformer, plan_reference_vae
from flashvideo.models.lora import PEFT_PREFIX
from flashvideo.models.recipe import build_specs, empty_model, spec, specs_of
from flashvideo.models.transformer import FlashVideoTransformer3DModel
from flashvideo.presets import (
    FLASHVIDEO,
    RELEASED_STAGE1_LORA_RANK,
    RELEASED_STAGE1_TRANSFORMER,
    RELEASED_STAGE2_TRANSFORMER,
    RELEASED_TEXT_ENCODER,
    RELEASED_VAE,
)

UNUSED = "model.diffusion_model.transformer.position_embeddings.weight"


def released_keys(model):
    """Key -> shape of a full-size reference model."""
    text = Path(__file__).with_name("released_keys.txt").read_text()
    section = text.split(f"[{model}]\n")[1].split("\n[")[0]
    keys = {}
    for line in section.strip().splitlines():
        template, shape, *places = line.split(" ")
        shape = tuple(map(int, shape.split(",")))
        for place in _places(*places):
            keys[template.format(*place)] = shape
    return keys


def _places(text=""):
    if "-" in text:
        first, last = map(int, text.split("-"))
        return [(str(i),) for i in range(first, last + 1)]
    return [place.split(".") for place in text.split(",")]


def released_specs(model):
    return {key: spec(shape, torch.bfloat16) for key, shape in released_keys(model).items()}


TRANSFORMERS = {"stage1": RELEASED_STAGE1_TRANSFORMER, "stage2": RELEASED_STAGE2_TRANSFORMER}


def test_the_released_models_have_this_many_keys():
    assert [len(released_keys(model)) for model in ("stage1", "stage2", "vae")] == [1193, 565, 436]


@pytest.mark.parametrize("stage", TRANSFORMERS)
def test_the_released_transformers_config_is_read_off_their_keys(stage):
    plan = plan_transformer(released_specs(stage))
    specs = build_specs(plan.weights, released_specs(stage))
    config = transformer_config(specs, max_text_seq_length=FLASHVIDEO.stage1.max_text_tokens)
    assert config == dict(TRANSFORMERS[stage])
    assert list(plan.dropped) == [UNUSED]


def test_the_released_vaes_config_is_read_off_its_keys():
    assert vae_config(build_specs(plan_vae(released_specs("vae")).weights, released_specs("vae"))) == dict(
        RELEASED_VAE
    )


def test_stage2_of_full_size_goes_back_to_exactly_the_references_keys():
    ours = empty_model(FlashVideoTransformer3DModel, RELEASED_STAGE2_TRANSFORMER).state_dict()
    found = build_specs(plan_reference_transformer(ours), ours)
    expected = released_keys("stage2")
    del expected[UNUSED]
    assert {key: tuple(tensor.shape) for key, tensor in found.items()} == expected


def test_stage1_of_full_size_with_its_lora_goes_back_to_exactly_the_references_keys():
    sources = released_specs("stage1")
    plan = plan_transformer(sources, merge_lora=False)
    ours = empty_model(FlashVideoTransformer3DModel, RELEASED_STAGE1_TRANSFORMER).state_dict()
    assert ours.keys() == plan.weights.keys()
    lora = {PEFT_PREFIX + name: tensor for name, tensor in build_specs(plan.lora, sources).items()}
    ranks = {tensor.shape[0] for name, tensor in lora.items() if "lora_A" in name}
    assert ranks == {RELEASED_STAGE1_LORA_RANK}
    found = build_specs(plan_reference_transformer(ours | lora), ours | lora)
    expected = released_keys("stage1")
    del expected[UNUSED]
    assert {key: tuple(tensor.shape) for key, tensor in found.items()} == expected


def test_the_vae_of_full_size_goes_back_to_exactly_the_references_keys():
    ours = empty_model(AutoencoderKLCogVideoX, RELEASED_VAE).state_dict()
    found = build_specs(plan_reference_vae(ours), ours)
    assert {key: tuple(tensor.shape) for key, tensor in found.items()} == released_keys("vae")


def test_the_text_encoder_of_full_size_has_4_76_billion_parameters():
    model = empty_model(T5EncoderModel, {"config": T5Config(**RELEASED_TEXT_ENCODER)})
    assert sum(parameter.numel() for parameter in model.parameters()) == 4_762_310_656
    assert model.config.d_model == RELEASED_STAGE1_TRANSFORMER["text_embed_dim"]


# --- random small configurations --------------------------------------------------------------------------------------

small = st.fixed_dictionaries(
    {
        "num_attention_heads": st.integers(1, 3),
        "attention_head_dim": st.sampled_from([16, 32]),
        "in_channels": st.integers(1, 5),
        "out_channels": st.integers(1, 5),
        "time_embed_dim": st.integers(1, 9),
        "text_embed_dim": st.integers(1, 9),
        "num_layers": st.sampled_from([1, 2, 11]),
        "patch_size": st.integers(1, 3),
        "noise_step_embed": st.booleans(),
        "num_frames_embed": st.booleans(),
        "max_text_seq_length": st.just(3),
    }
)


def reference_of(config, rank, dtype=torch.float32):
    """A random reference state dict, its LoRA apart where there is a rank."""
    ours = empty_model(FlashVideoTransformer3DModel, config).state_dict()
    generator = torch.Generator().manual_seed(0)
    state = {
        key: torch.randn(tensor.shape, generator=generator) * 0.3
        for key, tensor in build_specs(plan_reference_transformer(ours), ours).items()
    }
    if rank:
        for key in [
            key for key in state if any(part in key for part in ("query_key_value", "dense.", "adaLN_mod"))
        ]:
            if "final_layer" in key:
                continue
            module, _, kind = key.rpartition(".")
            tensor = state[f"{module}.original.{kind}"] = state.pop(key)
            num_parts = 3 if "query_key_value" in key else 1
            for part in range(num_parts if kind == "weight" else 0):
                rows, columns = tensor.shape
                state[f"{module}.matrix_A.{part}"] = torch.randn(rank, columns, generator=generator)
                state[f"{module}.matrix_B.{part}"] = torch.randn(rows // num_parts, rank, generator=generator)
    return {key: tensor.to(dtype) for key, tensor in state.items()}


@settings(max_examples=12, deadline=None)
@given(config=small, rank=st.integers(0, 4), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_the_way_there_and_back_changes_no_bit(config, rank, dtype):
    state = reference_of(config, rank, dtype)
    plan = plan_transformer(specs_of(state), merge_lora=False)
    ours = {name: recipe.build(state) for name, recipe in plan.weights.items()}
    assert transformer_config(ours, max_text_seq_length=3) == config
    assert ours.keys() == empty_model(FlashVideoTransformer3DModel, config).state_dict().keys()
    ours |= {PEFT_PREFIX + name: recipe.build(state) for name, recipe in plan.lora.items()}
    back = {key: recipe.build(ours) for key, recipe in plan_reference_transformer(ours).items()}
    assert back.keys() == state.keys()
    assert all(tensor.equal(state[key]) and tensor.dtype == dtype for key, tensor in back.items())


@settings(max_examples=8, deadline=None)
@given(config=small, rank=st.integers(1, 4))
@torch.no_grad()
def test_a_merged_lora_does_what_one_kept_apart_does(config, rank):
    config = config | {"num_layers": min(config["num_layers"], 2)}
    state = reference_of(config, rank)
    apart, merged = convert_transformer(state, merge_lora=False), convert_transformer(state)
    outputs = []
    for conversion in (merged, apart):
        model = FlashVideoTransformer3DModel(**config).eval()
        conversion.load_into(model)
        if conversion.lora:
            model.load_lora_adapter(conversion.lora, prefix=None)
        side = 2 * config["patch_size"]
        generator = torch.Generator().manual_seed(1)
        latents = torch.randn(1, 2, config["in_channels"], side, side, generator=generator)
        text = torch.randn(1, 3, config["text_embed_dim"], generator=generator)
        step = 675 if config["noise_step_embed"] else None
        outputs.append(model(latents, text, torch.tensor([500.0]), noise_step=step).sample)
    assert outputs[0].any()
    torch.testing.assert_close(*outputs, atol=1e-4, rtol=1e-4)


@settings(max_examples=10, deadline=None)
@given(
    widths=st.lists(st.sampled_from([4, 8, 12]), min_size=2, max_size=4),
    layers=st.integers(1, 2),
    channels=st.integers(1, 4),
)
def test_the_vaes_way_there_and_back_changes_no_bit(widths, layers, channels):
    config = {
        "block_out_channels": tuple(widths),
        "down_block_types": ("CogVideoXDownBlock3D",) * len(widths),
        "up_block_types": ("CogVideoXUpBlock3D",) * len(widths),
        "latent_channels": channels,
        "layers_per_block": layers,
    }
    ours = AutoencoderKLCogVideoX(**config, norm_num_groups=4, temporal_compression_ratio=2).state_dict()
    state = {key: recipe.build(ours) for key, recipe in plan_reference_vae(ours).items()}
    converted = convert_vae(state).weights
    assert vae_config(converted) == config
    assert converted.keys() == ours.keys()
    assert all(converted[name].equal(tensor) for name, tensor in ours.items())


def test_what_the_reference_has_no_place_for_is_named(tiny_transformer):
    ours = specs_of(tiny_transformer(2, position_embed=True).state_dict())
    with pytest.raises(
        ValueError, match=r"cannot export it: the reference has no place for position_embedding\."
    ):
        check_all_used(plan_reference_transformer(ours), ours, "it")


def test_what_the_reference_misses_is_named(tiny_transformer):
    ours = specs_of(tiny_transformer(2).state_dict())
    del ours["transformer_blocks.1.attn1.to_v.weight"]
    with pytest.raises(ValueError, match=r"missing transformer_blocks\.1\.attn1\.to_v\.weight"):
        check_all_used(plan_reference_transformer(ours), ours, "it")
