"""Stage I's LoRA kept apart: every way of loading it gives the merged model's output."""

import builtins
import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from flashvideo.models.lora import load_adapter, refuse_kept_lora
from flashvideo.models.transformer import FlashVideoTransformer3DModel
from flashvideo.pipelines.released import ReleasedFiles, convert_released
from flashvideo.pipelines.two_stage import FlashVideoPipeline

pytestmark = pytest.mark.usefixtures("no_progress_bars")

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def models(tmp_path_factory, write_released):
    """Folders "merge" and "keep" of the same files."""
    folder = tmp_path_factory.mktemp("lora")
    write_released(folder / "released")
    for lora in ("merge", "keep"):
        convert_released(ReleasedFiles.find(folder / "released"), folder / lora, lora=lora)
    return folder


@pytest.fixture(scope="module")
def output_of(golden):
    """`output_of(model)`: what a Stage I transformer makes of the reference's inputs."""

    @torch.no_grad()
    def run(model):
        latents, text = golden.transformer_inputs("stage1", "a")
        return model.eval()(latents, text, torch.tensor([500.0, 20.0])).sample

    return run


@pytest.fixture(scope="module")
def merged_output(models, output_of):
    return output_of(FlashVideoTransformer3DModel.from_pretrained(models / "merge" / "stage1_transformer"))


@pytest.fixture
def base(models):
    return FlashVideoTransformer3DModel.from_pretrained(models / "keep" / "stage1_transformer")


def test_the_base_alone_is_another_model(base, output_of, merged_output):
    assert (output_of(base) - merged_output).abs().max() > 0.01


def test_a_pipeline_loads_with_its_lora_on(models, output_of, merged_output):
    pipeline = FlashVideoPipeline.from_pretrained(models / "keep")
    assert pipeline.has_lora
    torch.testing.assert_close(output_of(pipeline.stage1_transformer), merged_output, atol=TOLERANCE, rtol=0)


def test_a_pipeline_loads_in_another_dtype(models, output_of, merged_output):
    pipeline = FlashVideoPipeline.from_pretrained(models / "keep", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in pipeline.stage1_transformer.parameters()} == {torch.bfloat16}
    found = output_of(pipeline.stage1_transformer.float())
    torch.testing.assert_close(found, merged_output, atol=0.05, rtol=0.05)


def test_peft_loads_the_adapter(models, base, output_of, merged_output):
    model = PeftModel.from_pretrained(base, models / "keep" / "stage1_lora")
    torch.testing.assert_close(output_of(model), merged_output, atol=TOLERANCE, rtol=0)


def test_diffusers_loads_the_adapter_with_its_alpha(models, base, output_of, merged_output):
    folder = models / "keep" / "stage1_lora"
    base.load_lora_adapter(folder, weight_name="adapter_model.safetensors", prefix="base_model.model")
    torch.testing.assert_close(output_of(base), merged_output, atol=TOLERANCE, rtol=0)


def test_the_matrices_are_kept_as_they_are(models, golden):
    state = golden.state_dict("stage1")
    lora = load_file(models / "keep" / "stage1_lora" / "adapter_model.safetensors")
    qkv = "model.diffusion_model.transformer.layers.1.attention.query_key_value"
    ours = "base_model.model.transformer_blocks.1.attn1.to_k"
    assert lora[f"{ours}.lora_A.weight"].equal(state[f"{qkv}.matrix_A.1"])
    assert lora[f"{ours}.lora_B.weight"].equal(state[f"{qkv}.matrix_B.1"])


def test_a_lost_adapter_is_an_error_and_not_another_model(models, tmp_path):
    shutil.copytree(models / "keep", tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "stage1_lora")
    with pytest.raises(ValueError, match=r"needs its LoRA, but .*stage1_lora.* is missing"):
        FlashVideoPipeline.from_pretrained(tmp_path / "model")


NORM = "base_model.model.transformer_blocks.0.norm1.linear.lora_B.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop(NORM), rf"does not fit the model's Stage I, convert again: missing {NORM}$"),
        (lambda w: w.update(odd=torch.zeros(1)), "unknown odd"),
        (lambda w: w.update({NORM: torch.zeros(3, 4)}), rf"{NORM} has shape \(3, 4\), the model needs"),
    ],
)
def test_an_adapter_that_lost_a_matrix_is_an_error(models, tmp_path, change, message):
    shutil.copytree(models / "keep", tmp_path / "model")
    path = tmp_path / "model" / "stage1_lora" / "adapter_model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)
    with pytest.raises(ValueError, match=message):
        FlashVideoPipeline.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"target_modules": ["odd"]}, "unknown module odd"), ({"r": None}, "must hold r and a list")],
)
def test_an_adapters_config_that_does_not_fit_is_an_error(models, base, tmp_path, change, message):
    folder = shutil.copytree(models / "keep" / "stage1_lora", tmp_path / "lora")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        load_adapter(base, folder)


@pytest.mark.parametrize("name", ["../keep/stage1_lora", "/tmp", "..", "", 3])
def test_an_adapter_outside_of_the_models_folder_is_refused(models, tmp_path, name):
    shutil.copytree(models / "keep", tmp_path / "model")
    path = tmp_path / "model" / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"stage1_lora": name}))
    with pytest.raises(ValueError, match="must be the name of a folder in it, got"):
        FlashVideoPipeline.from_pretrained(tmp_path / "model")


def test_the_lora_is_left_out_where_the_caller_says_so(models, base, output_of):
    pipeline = FlashVideoPipeline.from_pretrained(models / "keep", stage1_lora=None)
    assert output_of(pipeline.stage1_transformer).equal(output_of(base))


def test_a_pipeline_without_stage_1_loads_without_its_lora(models):
    assert (
        FlashVideoPipeline.from_pretrained(models / "keep", stage1_transformer=None).stage1_transformer
        is None
    )


def test_training_does_not_start_from_weights_without_their_lora(models):
    refuse_kept_lora(models / "merge")
    with pytest.raises(ValueError, match="keeps Stage I's LoRA apart"):
        refuse_kept_lora(models / "keep")


def test_without_peft_one_sentence_names_the_extra(models, base, monkeypatch):
    real = builtins.__import__

    def without_peft(name, *rest):
        if name == "peft":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_peft)
    with pytest.raises(ImportError, match=r"needs peft; install 'flashvideo\[train\]'"):
        load_adapter(base, models / "keep" / "stage1_lora")


def test_a_pipeline_with_its_lora_on_is_saved_when_it_is_fused(models, tmp_path, output_of, merged_output):
    pipeline = FlashVideoPipeline.from_pretrained(models / "keep")
    with pytest.raises(ValueError, match=r"call stage1_transformer\.fuse_lora\(\)"):
        pipeline.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    pipeline.stage1_transformer.fuse_lora()
    pipeline.stage1_transformer.unload_lora()
    pipeline.save_pretrained(tmp_path / "model")
    again = FlashVideoPipeline.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(output_of(again.stage1_transformer), merged_output, atol=TOLERANCE, rtol=0)
