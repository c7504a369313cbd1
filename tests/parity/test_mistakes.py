"""The parity tests would notice: each of the twelve mistakes that change least is made, and rejected.

A mistake is made on the built model or on its weights, then the same comparison as in the parity tests runs.
"""

import pytest
import torch
from torch import nn

from flashvideo.vae import encode_moments


def set_eps(modules, eps):
    for module in modules:
        module.eps = eps


def use_erf_gelu(model):
    for block in model.transformer_blocks:
        block.ff.net[0].approximate = "none"


def change_input_norm_eps(model):
    set_eps([block.norm1.norm for block in model.transformer_blocks], 1e-6)


def change_post_attention_norm_eps(model):
    set_eps([block.norm2.norm for block in model.transformer_blocks], 1e-6)


def change_final_layernorm_eps(model):
    set_eps([model.norm_final], 1e-6)


def change_output_norm_eps(model):
    set_eps([model.norm_out.norm], 1e-5)


def change_query_key_norm_eps(model):
    set_eps([n for block in model.transformer_blocks for n in (block.attn1.norm_q, block.attn1.norm_k)], 1e-5)


def swap_query_and_key_norms(model):
    for block in model.transformer_blocks:
        block.attn1.norm_q, block.attn1.norm_k = block.attn1.norm_k, block.attn1.norm_q


def zero_the_key_norm_biases(model):
    for block in model.transformer_blocks:
        nn.init.zeros_(block.attn1.norm_k.bias)


@pytest.mark.parametrize(
    "mistake",
    [
        use_erf_gelu,
        change_input_norm_eps,
        change_post_attention_norm_eps,
        change_final_layernorm_eps,
        change_output_norm_eps,
        change_query_key_norm_eps,
        swap_query_and_key_norms,
        zero_the_key_norm_biases,
    ],
)
def test_a_mistake_in_the_transformer_is_rejected_by_every_case(golden, mistake):
    model = golden.build_transformer("stage2")
    mistake(model)
    differences = golden.transformer_differences(model, "stage2", "out")
    assert min(differences.values()) > golden.TRANSFORMER, differences


@pytest.mark.parametrize("part", ["attention.dense", "adaLN_modulations"])
def test_a_forgotten_part_of_the_lora_is_rejected_by_every_case(golden, part):
    state = golden.state_dict("stage1")
    forgotten = {key for key in state if part in key and ".matrix_" in key}
    assert forgotten
    # Under plain names, since `.original` says that there is a LoRA.
    rest = {
        (key.replace(".original", "") if part in key else key): tensor
        for key, tensor in state.items()
        if key not in forgotten
    }
    model = golden.build_transformer("stage1", rest)
    differences = golden.transformer_differences(model, "stage1", "out_unmerged")
    assert min(differences.values()) > golden.TRANSFORMER, differences


def test_a_slightly_lower_guidance_scale_is_rejected(golden):
    states = golden.run_stage1_analytic(guidance_scale=7.9)
    assert golden.difference(states[-1], "stage1_sampler/analytic/out") > golden.STAGE1_ANALYTIC


@torch.no_grad()
def test_another_group_norm_eps_in_the_vae_is_rejected(golden):
    vae = golden.build_vae()
    set_eps([module for module in vae.modules() if isinstance(module, nn.GroupNorm)], 1e-5)
    video = golden.formula("vae/video9", (1, 3, 9, 16, 24), scale=0.5)
    moments = encode_moments(vae, video.transpose(1, 2))
    assert golden.difference(moments, "vae/encode9/moments") > golden.VAE
