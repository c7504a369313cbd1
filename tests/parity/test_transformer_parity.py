"""The transformer computes what the reference computes."""

import pytest
import torch

from flashvideo.models.convert import convert_transformer
from flashvideo.models.rope import rope_tables


def test_stage2_equals_the_reference(golden):
    model = golden.build_transformer("stage2")
    for name, difference in golden.transformer_differences(model, "stage2", "out").items():
        assert difference <= golden.TRANSFORMER, name


@pytest.mark.parametrize("out", ["out_merged", "out_unmerged"])
def test_stage1_with_merged_lora_equals_the_reference_with_and_without_merging(golden, out):
    model = golden.build_transformer("stage1")
    for name, difference in golden.transformer_differences(model, "stage1", out).items():
        assert difference <= golden.TRANSFORMER, name


def test_stage1_with_lora_as_a_peft_adapter_equals_the_reference(golden):
    pytest.importorskip("peft")
    conversion = convert_transformer(golden.state_dict("stage1"), merge_lora=False)
    model = golden.build_transformer("stage1", without_lora(golden.state_dict("stage1")))
    merged = golden.build_transformer("stage1")
    model.load_lora_adapter(conversion.lora, prefix=None, adapter_name="released")
    for name, difference in golden.transformer_differences(model, "stage1", "out_unmerged").items():
        assert difference <= golden.TRANSFORMER, name
    latents, text = golden.transformer_inputs("stage1", "a")
    with torch.no_grad():
        apart, together = (m(latents, text, torch.tensor(500.0)).sample for m in (model, merged))
    assert (apart - together).abs().max() <= golden.MERGE


def test_stage1_without_its_lora_is_recognised(golden):
    model = golden.build_transformer("stage1", without_lora(golden.state_dict("stage1")))
    latents, text = golden.transformer_inputs("stage1", "b")
    for index, timestep in enumerate((615.384, 249.0)):
        with torch.no_grad():
            sample = model(latents, text, torch.tensor([timestep])).sample
        assert golden.difference(sample, f"stage1_dit/b/t{index}/out_lora_off") <= golden.TRANSFORMER
        assert golden.difference(sample, f"stage1_dit/b/t{index}/out_merged") > 0.2


def test_the_merged_projection_equals_the_references_merge(golden):
    attention = golden.build_transformer("stage1").transformer_blocks[0].attn1
    rows = torch.stack([layer.weight[0] for layer in (attention.to_q, attention.to_k, attention.to_v)])
    assert golden.difference(rows, "stage1_dit/merged_qkv_layer0_rows_0_128_256") <= golden.MERGE


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_the_condition_embedding_equals_the_references(golden, stage):
    model = golden.build_transformer(stage)
    for name, case, timesteps, noise_step in golden.transformer_calls(stage):
        latents, text = golden.transformer_inputs(stage, case)
        embedding = model.embed_conditions(timesteps, noise_step, latents, text)
        assert golden.difference(embedding, f"{name}/emb") <= golden.EMBEDDING, name


@pytest.mark.parametrize(("stage", "name"), [("stage1", "t1"), ("stage2", "t1_ref675")])
def test_the_tokens_between_blocks_equal_the_references(golden, stage, name):
    model = golden.build_transformer(stage)
    states = []

    def keep(video, text):
        states.append(torch.cat((text, video), dim=1))  # the reference joins text before video

    for block in model.transformer_blocks:
        block.register_forward_pre_hook(lambda _, args: keep(*args[:2]))
    model.transformer_blocks[-1].register_forward_hook(lambda _, args, output: keep(*output))
    latents, text = golden.transformer_inputs(stage, "a")
    with torch.no_grad():
        model(latents, text, torch.tensor([812.25, 96.0]), noise_step=675 if stage == "stage2" else None)
    assert len(states) == 3
    for index, state in enumerate(states):
        assert golden.difference(state, f"{stage}_dit/a/{name}/hidden_{index}") <= golden.HIDDEN


@pytest.mark.parametrize(("case", "size"), [("a", (3, 2, 3)), ("b", (2, 3, 5))])
def test_the_rotary_tables_equal_the_references(golden, case, size):
    cos, sin = rope_tables(*size, 64)
    assert golden.relative_difference(cos, f"rope/{case}/cos") <= golden.TABLE
    assert golden.relative_difference(sin, f"rope/{case}/sin") <= golden.TABLE


def without_lora(state):
    return {key.replace(".original", ""): tensor for key, tensor in state.items() if ".matrix_" not in key}
