"""Community LoRAs on Stage I: their effect is B A, times what scale they ask for; what does not fit is refused."""

import json
import sys

import pytest
import torch
from safetensors.torch import save_file

from flashvideo.models.lora import STAGE_KEY
from flashvideo.pipelines.loading import load_pipeline
from flashvideo.pipelines.stage1_lora import read_lora

K = "transformer_blocks.0.attn1.to_k"
FF = "transformer_blocks.1.ff.net.0.proj"
SIZES = {K: (32, 32), FF: (32, 128)}


@pytest.fixture
def lora(generator):
    """Two pairs of ranks 2 and 3 under diffusers' names."""
    state = {}
    for (name, (columns, rows)), rank in zip(SIZES.items(), (2, 3), strict=True):
        state[f"transformer.{name}.lora_A.weight"] = torch.randn(rank, columns, generator=generator)
        state[f"transformer.{name}.lora_B.weight"] = torch.randn(rows, rank, generator=generator)
    return state


@pytest.fixture
def run(pipeline):
    """Stage I's transformer on fixed inputs."""
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(1, 2, 8, 4, 6, generator=generator)
    text = torch.randn(1, 6, 12, generator=generator)

    @torch.no_grad()
    def evaluate():
        return pipeline.stage1_transformer(latents, text, torch.tensor([500.0])).sample

    return evaluate


@pytest.fixture
def closed_form(pipeline, lora, run):
    """`closed_form(scales)` is the output with `scale B A` added to the weights by hand."""

    def evaluate(scales):
        modules = {name: pipeline.stage1_transformer.get_submodule(name) for name in SIZES}
        kept = {name: module.weight.detach().clone() for name, module in modules.items()}
        for name, module in modules.items():
            down, up = (lora[f"transformer.{name}.lora_{matrix}.weight"] for matrix in "AB")
            module.weight.data += scales[name] * up @ down
        output = run()
        for name, module in modules.items():
            module.weight.data.copy_(kept[name])
        return output

    return evaluate


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def test_a_file_has_the_effect_of_its_matrices_and_unloading_undoes_it(
    pipeline, lora, run, closed_form, tmp_path
):
    before, expected = run(), closed_form({K: 1.0, FF: 1.0})
    assert (before - expected).abs().max() > 1e-2
    save_file(lora, tmp_path / "style.safetensors")
    pipeline.load_lora_weights(tmp_path / "style.safetensors", adapter_name="style")
    close(run(), expected)
    assert pipeline.lora_scales() == {"style": 1.0}
    pipeline.unload_lora_weights()
    assert torch.equal(run(), before) and pipeline.lora_scales() == {}


def test_stage_1_alone_loads_it_alike(pipeline, lora, run, closed_form):
    expected = closed_form({K: 1.0, FF: 1.0})
    pipeline.stage1.load_lora_weights(lora)
    close(run(), expected)


def test_the_scale_can_be_set_also_in_diffusers_way(pipeline, lora, run, closed_form):
    half, double = (closed_form({K: scale, FF: scale}) for scale in (0.5, 2.0))
    pipeline.load_lora_weights(lora, adapter_name="style")
    pipeline.set_lora_scales({"style": 0.5})
    close(run(), half)
    pipeline.set_adapters("style", 2.0)
    close(run(), double)
    assert pipeline.lora_scales() == {"style": 2.0}


def test_alphas_scale_each_pair_by_its_own_rank(pipeline, lora, run, closed_form):
    expected = closed_form({K: 1.0 / 2, FF: 6.0 / 3})
    alphas = {f"transformer.{K}.alpha": torch.tensor(1.0), f"transformer.{FF}.alpha": torch.tensor(6.0)}
    pipeline.load_lora_weights(lora | alphas)
    close(run(), expected)


def test_the_scale_in_a_files_header_counts(pipeline, lora, run, closed_form, tmp_path):
    expected = closed_form({K: 2.0, FF: 0.0})
    header = {"transformer.r": 2, "transformer.lora_alpha": 4, "transformer.target_modules": [K]}
    only = {name: tensor for name, tensor in lora.items() if K in name}
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(header)}
    save_file(only, tmp_path / "one.safetensors", metadata=metadata)
    pipeline.load_lora_weights(tmp_path / "one.safetensors")
    close(run(), expected)


@pytest.mark.parametrize(("down", "up"), [(".lora.down", ".lora.up"), (".lora_down", ".lora_up")])
def test_older_names_and_names_without_a_prefix_are_understood(pipeline, lora, down, up):
    older = {
        name.removeprefix("transformer.").replace(".lora_A", down).replace(".lora_B", up): tensor
        for name, tensor in lora.items()
    }
    weights = read_lora(older, pipeline.stage1_transformer)
    assert weights.keys() == lora.keys() and all(torch.equal(weights[name], lora[name]) for name in lora)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"transformer.blocks.0.to_k.lora_A.weight": torch.zeros(2, 32)}, r"unknown transformer\.blocks\.0"),
        ({f"transformer.{K}.lora_magnitude_vector": torch.zeros(1)}, "unknown .*magnitude_vector"),
        ({"transformer.proj_out.lora_A.weight": torch.zeros(2, 32)}, "half of a pair for proj_out"),
        ({f"transformer.{K}.lora_A.weight": torch.zeros(2, 48)}, r"48 -> 32 for .*, which is 32 -> 32"),
        ({"transformer.proj_out.alpha": torch.tensor(1.0)}, "an alpha without a pair for proj_out"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(pipeline, lora, run, change, sentence):
    before = run()
    with pytest.raises(ValueError, match=rf"does not fit this model's Stage I, it has .*{sentence}"):
        pipeline.load_lora_weights(lora | change)
    assert torch.equal(run(), before)


def test_one_of_stage_2_is_refused_however_well_it_fits(pipeline, lora, tmp_path):
    path = tmp_path / "pytorch_lora_weights.safetensors"
    save_file(lora, path, metadata={STAGE_KEY: "stage2"})
    for given in (path, tmp_path):
        with pytest.raises(ValueError, match=r"must be one of Stage I, got .* which was trained on Stage II"):
            pipeline.load_lora_weights(given)
    save_file(lora, path, metadata={STAGE_KEY: "stage1"})
    pipeline.load_lora_weights(tmp_path)


def test_an_empty_one_is_refused(pipeline):
    with pytest.raises(ValueError, match="no tensors"):
        pipeline.load_lora_weights({})


def test_without_peft_the_extra_is_named(pipeline, lora, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(
        ImportError, match=r"LoRAs need peft, which is not installed; install 'flashvideo\[train\]'"
    ):
        pipeline.load_lora_weights(lora)


def test_the_preview_remembers_which_were_on(pipeline, lora, seeded, tmp_path):
    from flashvideo.pipelines.preview import load_preview, save_preview

    pipeline.load_lora_weights(lora, adapter_name="style")
    pipeline.set_lora_scales({"style": 0.5})
    preview = pipeline("a red circle", preview_only=True, generator=seeded()).preview
    again = load_preview(save_preview(tmp_path / "p.safetensors", preview))
    assert again.settings.loras == ("style:0.5",)


def test_a_pipeline_that_carries_one_is_not_saved(pipeline, lora, tmp_path):
    pipeline.load_lora_weights(lora)
    with pytest.raises(ValueError, match="Stage I carries a LoRA"):
        pipeline.save_pretrained(tmp_path / "saved")


def test_it_works_on_a_cogvideox_folder(cogvideox_folder, lora):
    pipeline = load_pipeline(cogvideox_folder(rotary=False), device="cpu", dtype="float32")
    pipeline.load_lora_weights(lora, adapter_name="style")
    assert pipeline.lora_scales() == {"style": 1.0}


def test_a_lora_of_the_model_itself_stays_through_loading_and_unloading(pipeline, lora, run):
    from flashvideo.models.lora import ADAPTER_NAME

    own = {name: tensor * 0.3 for name, tensor in lora.items() if K in name}
    pipeline.stage1_transformer.load_lora_adapter(own, adapter_name=ADAPTER_NAME)
    with_own = run()
    pipeline.load_lora_weights(lora, adapter_name="style")
    both = run()
    pipeline.stage1_transformer.set_adapters(["style"])
    assert (run() - both).abs().max() > 1e-3
    pipeline.set_lora_scales({"style": 1.0})
    close(run(), both)
    assert pipeline.lora_scales() == {"style": 1.0}
    pipeline.unload_lora_weights()
    close(run(), with_own)
