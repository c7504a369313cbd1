"""The formula gives the numbers that the reference was fed with."""

import pytest
import torch


def test_the_formula_gives_the_published_weights(golden):
    weight = golden.weight("stage2", "model.diffusion_model.time_embed.0.weight", (64, 128)).flatten()
    assert weight[:3].equal(torch.tensor([0.15273278951644897, -0.10582206398248672, 0.0396869033575058]))
    bias = golden.weight("vae", "decoder.norm_out.conv_y.conv.bias", (32,))
    assert bias[:3].equal(torch.tensor([1.0954152345657349, 1.1687568426132202, 1.0771235227584839]))


def test_the_formula_gives_the_published_inputs(golden):
    flat = golden.formula("stage2_dit/a/x", (2, 3, 16, 4, 6)).flatten()
    published = torch.tensor([0.28052660822868347, 0.9148884415626526, -0.227301225066185])
    assert flat[[0, 1, 2303]].equal(published)


@pytest.mark.parametrize(("model", "count"), [("stage1", 676288), ("stage2", 680128), ("vae", 2742211)])
def test_the_models_have_the_published_number_of_parameters(golden, model, count):
    assert sum(tensor.numel() for tensor in golden.state_dict(model).values()) == count
