"""Weights in 8 bits: smaller, and nearly the same."""

import sys

import pytest
import torch

from flashvideo.pipelines.footprint import Footprint, ModelConfigs
from flashvideo.pipelines.loading import load_pipeline
from flashvideo.pipelines.quantization import quantize, stored_bytes

PROMPT = "a red circle moves left"


@pytest.mark.parametrize("embedders", [{}, {"position_embed": True, "pooled_text_embed": True}])
def test_fp8_weights_take_less_and_change_the_result_a_little(tiny_transformer, generator, embedders):
    transformer = tiny_transformer(2, **embedders).bfloat16()
    latents = torch.randn(1, 3, 8, 4, 6, generator=generator).bfloat16()
    text = torch.randn(1, 5, 12, generator=generator).bfloat16()
    with torch.no_grad():
        expected = transformer(latents, text, torch.tensor(500.0), noise_step=675).sample
        before = stored_bytes(transformer)
        quantize(transformer, "fp8")
        found = transformer(latents, text, torch.tensor(500.0), noise_step=675).sample
    assert stored_bytes(transformer) < 0.8 * before
    assert not torch.equal(found, expected)
    error = (found - expected).float().norm() / expected.float().norm()
    assert error < 0.1


def test_int8_needs_torchao_and_says_so(tiny_transformer, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ImportError, match=r"int8 need torchao.*flashvideo\[quantize\].*fp8"):
        quantize(tiny_transformer(1), "int8")


def test_full_weights_stay_as_they_are(tiny_transformer):
    transformer = tiny_transformer(1)
    before = {name: tensor.clone() for name, tensor in transformer.state_dict().items()}
    quantize(transformer, "full")
    assert all(tensor.equal(before[name]) for name, tensor in transformer.state_dict().items())


def test_an_unknown_kind_is_an_error(tiny_transformer):
    with pytest.raises(ValueError, match="weights must be one of full, fp8, int8, got 'int4'"):
        quantize(tiny_transformer(1), "int4")


def test_a_footprint_counts_weights_as_they_are_stored(pipeline):
    configs = ModelConfigs.of(pipeline)
    full, fp8 = (Footprint(configs, torch.bfloat16, weights=kind).weights for kind in ("full", "fp8"))
    assert fp8["stage1_transformer"] < full["stage1_transformer"]
    assert fp8["vae"] == full["vae"]
    quantize(pipeline.stage1_transformer.bfloat16(), "fp8")
    assert stored_bytes(pipeline.stage1_transformer) == fp8["stage1_transformer"]


@pytest.mark.parametrize("weights", ["fp8", "int8"])
def test_a_model_is_loaded_with_its_weights_in_8_bits(pipeline, tmp_path, seeded, weights):
    if weights == "int8":
        pytest.importorskip("torchao", reason="int8 is tested where flashvideo[quantize] is installed")
    pipeline.save_pretrained(tmp_path)
    loaded = load_pipeline(tmp_path, device="cpu", dtype="float32", weights=weights)
    loaded.set_progress_bar_config(disable=True)
    stored = stored_bytes(loaded.stage2_transformer)
    assert stored < stored_bytes(pipeline.stage2_transformer)
    assert stored == loaded._memory._footprint.weights["stage2_transformer"]
    frames = loaded(PROMPT, generator=seeded(), output_type="pt").frames
    expected = pipeline(PROMPT, generator=seeded(), output_type="pt").frames
    assert 0 < (frames - expected).abs().mean() < 0.1
