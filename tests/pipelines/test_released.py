"""The three released files to a model folder and back: toy files with the reference's keys, of full structure."""

import errno
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceTrainer
from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration

from flashvideo.models.convert import convert_transformer, convert_vae
from flashvideo.pipelines import new_folder as new_folder_module
from flashvideo.pipelines import released as released_module
from flashvideo.pipelines.export import export_released
from flashvideo.pipelines.loading import model_folder
from flashvideo.pipelines.released import ReleasedFiles, convert_released
from flashvideo.pipelines.two_stage import FlashVideoPipeline
from flashvideo.presets import FLASHVIDEO
from flashvideo.text import build_word_tokenizer

pytestmark = pytest.mark.usefixtures("no_progress_bars")

UNUSED = "model.diffusion_model.transformer.position_embeddings.weight"
ROOTS = {"stage1.pt": "module", "stage2.pt": "module", "3d-vae.pt": "state_dict"}
TEXT_WIDTH = 32


@pytest.fixture(scope="module")
def states(golden):
    return {
        "stage1.pt": golden.state_dict("stage1"),
        "stage2.pt": golden.state_dict("stage2"),
        "3d-vae.pt": golden.state_dict("vae"),
    }


@pytest.fixture
def released(tmp_path, states):
    """`released(name=change, dtype=...)` writes the files, one of them changed, and returns them."""

    def write(changes=None, dtype=torch.float32):
        folder = tmp_path / "released"
        folder.mkdir()
        for name, root in ROOTS.items():
            state = {key: tensor.to(dtype) for key, tensor in states[name].items()}
            if changes and name in changes:
                changes[name](state)
            torch.save({root: state}, folder / name)
        return ReleasedFiles.find(folder)

    return write


@pytest.fixture
def text_folder(tmp_path):
    """`text_folder(whole=...)`: a T5 folder, or with `inside` a CogVideoX folder."""

    def write(*, width=TEXT_WIDTH, whole=False, inside=False, pickled=False, tied=True):
        config = T5Config(
            vocab_size=16, d_model=width, d_kv=4, d_ff=16, num_layers=2, num_heads=2, tie_word_embeddings=tied
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = (T5ForConditionalGeneration if whole else T5EncoderModel)(config)
        folder = tmp_path / "t5"
        model_folder = folder / "text_encoder" if inside else folder
        tokenizer_folder = folder / "tokenizer" if inside else folder
        model.save_pretrained(model_folder)
        if pickled:
            (model_folder / "model.safetensors").unlink()
            torch.save(model.state_dict(), model_folder / "pytorch_model.bin")
        build_word_tokenizer(["a", "red", "circle"]).save_pretrained(tokenizer_folder)
        return folder, model

    return write


def left(folder):
    """Names in a folder."""
    return sorted(path.name for path in folder.iterdir())


def read_back(folder):
    return {name: torch.load(folder / name, weights_only=True)[root] for name, root in ROOTS.items()}


# --- there ------------------------------------------------------------------------------------------------------------


def test_the_folder_loads_with_the_converted_weights(released, states, tmp_path):
    convert_released(released(), tmp_path / "model")
    pipeline = FlashVideoPipeline.from_pretrained(tmp_path / "model")
    for model, weights in (
        (pipeline.stage1_transformer, convert_transformer(states["stage1.pt"]).weights),
        (pipeline.stage2_transformer, convert_transformer(states["stage2.pt"]).weights),
        (pipeline.vae, convert_vae(states["3d-vae.pt"]).weights),
    ):
        loaded = model.state_dict()
        assert loaded.keys() == weights.keys()
        assert all(loaded[name].equal(tensor) for name, tensor in weights.items())
    assert pipeline.preset == FLASHVIDEO
    assert pipeline.stage2_scheduler.config.shift == FLASHVIDEO.stage2.shift
    assert (pipeline.text_encoder, pipeline.tokenizer) == (None, None)


def test_the_report_names_parts_and_what_was_left_out(released, tmp_path):
    report = convert_released(released(), tmp_path / "model")
    assert report.output == tmp_path / "model"
    assert list(report.num_bytes) == ["stage1_transformer", "stage2_transformer", "vae"]
    assert {part: list(keys) for part, keys in report.dropped.items()} == {
        "stage1_transformer": [UNUSED],
        "stage2_transformer": [UNUSED],
    }
    assert "never used" in report.dropped["stage1_transformer"][UNUSED]
    assert report.num_dropped == 2
    assert "no text encoder" in report.notes[0]
    assert report.notes[1].endswith("2 layers of 2 heads and a LoRA of rank 4, which should be all of them")
    assert report.notes[2].endswith("2 layers of 2 heads, which should be all of them")


def test_a_pipeline_without_a_text_encoder_says_so_when_it_gets_a_prompt(released, tmp_path):
    convert_released(released(), tmp_path / "model")
    pipeline = FlashVideoPipeline.from_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="has no text encoder"):
        pipeline("a red circle")


@pytest.mark.parametrize(("given", "expected"), [(None, torch.bfloat16), (torch.float16, torch.float16)])
def test_the_dtype_is_the_files_own_or_the_one_asked_for(released, tmp_path, given, expected):
    convert_released(released(dtype=torch.bfloat16), tmp_path / "model", dtype=given)
    for part in ("stage1_transformer", "stage2_transformer", "vae"):
        weights = load_file(tmp_path / "model" / part / "diffusion_pytorch_model.safetensors")
        assert {tensor.dtype for tensor in weights.values()} == {expected}


def test_a_lora_merged_into_another_dtype_is_rounded_once(released, states, tmp_path):
    convert_released(released(dtype=torch.bfloat16), tmp_path / "model", dtype=torch.float32)
    weights = load_file(tmp_path / "model" / "stage1_transformer" / "diffusion_pytorch_model.safetensors")
    halved = {key: tensor.bfloat16().float() for key, tensor in states["stage1.pt"].items()}
    for name, tensor in convert_transformer(halved).weights.items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-6, rtol=0)


def test_progress_tells_the_part_and_ends_at_the_total(released, tmp_path):
    seen = []
    report = convert_released(released(), tmp_path / "model", on_progress=lambda *state: seen.append(state))
    total = sum(report.num_bytes.values())
    assert list(dict.fromkeys(part for part, _, _ in seen)) == list(report.num_bytes)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert seen[-1] == ("vae", total, total)


def test_large_models_are_written_in_shards_that_load(released, states, tmp_path, monkeypatch):
    monkeypatch.setattr(released_module, "MAX_SHARD_BYTES", 10**6)
    convert_released(released(), tmp_path / "model")
    files = list(
        (tmp_path / "model" / "stage2_transformer").glob("diffusion_pytorch_model-0000*-of-0000*.safetensors")
    )
    assert len(files) == 3
    loaded = FlashVideoPipeline.from_pretrained(tmp_path / "model").stage2_transformer.state_dict()
    expected = convert_transformer(states["stage2.pt"]).weights
    assert all(loaded[name].equal(tensor) for name, tensor in expected.items())
    export_released(tmp_path / "model", tmp_path / "back")
    back = read_back(tmp_path / "back")["stage2.pt"]
    assert all(tensor.equal(states["stage2.pt"][key]) for key, tensor in back.items())


# --- and back ---------------------------------------------------------------------------------------------------------


def test_with_the_lora_kept_the_files_come_back_bit_for_bit(released, states, tmp_path):
    convert_released(released(dtype=torch.bfloat16), tmp_path / "model", lora="keep")
    export_released(tmp_path / "model", tmp_path / "back")
    for name, state in read_back(tmp_path / "back").items():
        assert state.keys() == states[name].keys() - {UNUSED}
        assert all(tensor.equal(states[name][key].bfloat16()) for key, tensor in state.items())


@pytest.mark.parametrize("lora", ["merge", "keep"])
def test_a_folder_comes_back_bit_for_bit(released, tmp_path, lora):
    convert_released(released(), tmp_path / "model", lora=lora)
    export_released(tmp_path / "model", tmp_path / "back")
    convert_released(ReleasedFiles.find(tmp_path / "back"), tmp_path / "again", lora=lora)
    files = sorted(
        path.relative_to(tmp_path / "model") for path in (tmp_path / "model").rglob("*") if path.is_file()
    )
    assert files == sorted(
        path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*") if path.is_file()
    )
    for file in files:
        assert (tmp_path / "model" / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file


def test_a_merged_lora_goes_back_under_plain_names(released, tmp_path):
    convert_released(released(), tmp_path / "model")
    export_released(tmp_path / "model", tmp_path / "back")
    keys = read_back(tmp_path / "back")["stage1.pt"].keys()
    assert "model.diffusion_model.transformer.layers.0.attention.dense.weight" in keys
    assert not [key for key in keys if "original" in key or "matrix" in key]


def rewrite(path, change):
    """Write a safetensors file again, changed."""
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


STAGE2 = "stage2_transformer/diffusion_pytorch_model.safetensors"
LORA = "stage1_lora/adapter_model.safetensors"
Q = "transformer_blocks.0.attn1.to_q.weight"
NORM_A = "base_model.model.transformer_blocks.0.norm2.linear.lora_A.weight"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (STAGE2, lambda w: w.pop(Q), rf"missing {Q}"),
        (STAGE2, lambda w: w.update(odd=torch.zeros(1)), "unknown odd"),
        (STAGE2, lambda w: w.update({Q: torch.zeros(3, 3)}), rf"{Q} has shape \(3, 3\), the model needs"),
        (LORA, lambda w: w.pop(NORM_A), rf"missing {NORM_A}"),
        (LORA, lambda w: w.update({NORM_A: torch.zeros_like(w[NORM_A])}), rf"{NORM_A} must equal .*norm1"),
        (LORA, lambda w: w.update({Q: torch.zeros(1)}), "is superfluous"),
    ],
)
def test_a_folder_that_is_not_whole_cannot_be_exported(released, tmp_path, file, change, message):
    convert_released(released(), tmp_path / "model", lora="keep")
    rewrite(tmp_path / "model" / file, change)
    with pytest.raises(ValueError, match=message):
        export_released(tmp_path / "model", tmp_path / "back")
    assert left(tmp_path) == ["model", "released"]


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (STAGE2, lambda w: w.pop(Q), rf"stage2_transformer is not a whole Flash.*: missing {Q}$"),
        ("vae/" + STAGE2.split("/")[1], lambda w: w.pop("decoder.conv_in.conv.bias"), r"missing decoder"),
        (
            "text_encoder/model.safetensors",
            lambda w: w.pop("encoder.final_layer_norm.weight"),
            r"text_encoder: .*missing encoder\.final_layer_norm\.weight$",
        ),
    ],
)
def test_a_folder_that_lost_a_weight_does_not_load(released, text_folder, tmp_path, file, change, message):
    convert_released(released(), tmp_path / "model", text_encoder=text_folder()[0])
    rewrite(tmp_path / "model" / file, change)
    with pytest.raises(ValueError, match=message):
        FlashVideoPipeline.from_pretrained(tmp_path / "model")


def test_what_is_not_loaded_may_have_lost_a_weight(released, tmp_path):
    convert_released(released(), tmp_path / "model")
    rewrite(tmp_path / "model" / STAGE2, lambda w: w.pop(Q))
    pipeline = FlashVideoPipeline.from_pretrained(tmp_path / "model", stage2_transformer=None)
    assert pipeline.stage2_transformer is None


def test_a_lora_of_another_alpha_cannot_be_exported(released, tmp_path):
    convert_released(released(), tmp_path / "model", lora="keep")
    path = tmp_path / "model" / "stage1_lora" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 2}))
    with pytest.raises(ValueError, match="has alpha 2, the reference knows 1 only; merge it first"):
        export_released(tmp_path / "model", tmp_path / "back")
    path.unlink()
    with pytest.raises(ValueError, match=r"no readable adapter_config\.json"):
        export_released(tmp_path / "model", tmp_path / "back")


def test_a_model_with_more_than_the_reference_has_cannot_be_exported(
    toy_pipeline, tiny_transformer, tmp_path
):
    pipeline = toy_pipeline(["a"])
    pipeline.register_modules(stage2_transformer=tiny_transformer(2, position_embed=True))
    pipeline.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="the reference has no place for position_embedding"):
        export_released(tmp_path / "model", tmp_path / "back")


def test_a_folder_that_is_no_model_cannot_be_exported(tmp_path):
    with pytest.raises(ValueError, match=r"has no model_index\.json"):
        export_released(tmp_path, tmp_path / "back")
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        export_released(tmp_path, tmp_path / "back")


# --- text encoders ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [{"inside": True}, {}, {"whole": True}, {"whole": True, "tied": False}, {"whole": True, "pickled": True}],
)
def test_a_t5_becomes_the_text_encoder(released, text_folder, tmp_path, kind):
    folder, model = text_folder(**kind)
    report = convert_released(released(), tmp_path / "model", text_encoder=folder)
    pipeline = FlashVideoPipeline.from_pretrained(tmp_path / "model")
    assert type(pipeline.text_encoder) is T5EncoderModel
    ids = pipeline.tokenizer("a red circle", return_tensors="pt").input_ids
    with torch.no_grad():
        assert pipeline.text_encoder(ids)[0].equal(model.eval().get_encoder()(ids)[0])
    assert not any("text encoder" in note for note in report.notes)
    dropped = report.dropped.get("text_encoder", {})
    assert any("decoder" in key for key in dropped) == kind.get("whole", False)


def test_a_tokenizer_that_is_a_sentencepiece_model_is_taken(released, text_folder, tmp_path):
    folder, _ = text_folder()
    (tmp_path / "text.txt").write_text("a red circle moves left\na blue square spins over grass\n" * 20)
    SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"),
        model_prefix=str(folder / "spiece"),
        vocab_size=26,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 0})
    )
    convert_released(released(), tmp_path / "model", text_encoder=folder)
    tokenizer = FlashVideoPipeline.from_pretrained(tmp_path / "model").tokenizer
    ids = tokenizer("a red circle").input_ids
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a red circle"


def test_the_text_encoder_takes_the_dtype_too(released, text_folder, tmp_path):
    convert_released(released(), tmp_path / "model", text_encoder=text_folder()[0], dtype=torch.bfloat16)
    weights = load_file(tmp_path / "model" / "text_encoder" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    config = json.loads((tmp_path / "model" / "text_encoder" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"


def test_the_folder_does_not_tell_where_its_parts_came_from(released, text_folder, tmp_path):
    convert_released(released(), tmp_path / "model", text_encoder=text_folder()[0])
    for path in (tmp_path / "model").rglob("*.json"):
        assert str(tmp_path) not in path.read_text()


def lose(name):
    return lambda folder: (folder / name).unlink()


def as_bert(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))


def test_a_t5_that_stores_its_embedding_under_the_encoders_name_is_taken(released, text_folder, tmp_path):
    folder, model = text_folder()
    rewrite(
        folder / "model.safetensors",
        lambda w: w.update({"encoder.embed_tokens.weight": w.pop("shared.weight")}),
    )
    convert_released(released(), tmp_path / "model", text_encoder=folder)
    weights = load_file(tmp_path / "model" / "text_encoder" / "model.safetensors")
    assert weights["shared.weight"].equal(model.shared.weight)


def without_a_weight(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.final_layer_norm.weight"]
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lose("config.json"), "holds no text encoder"),
        (lose("model.safetensors"), "holds no weights"),
        (
            lambda folder: [lose(n)(folder) for n in ("tokenizer.json", "tokenizer_config.json")],
            "holds no tokenizer",
        ),
        (as_bert, "of type 'bert', expected 't5'"),
        (without_a_weight, r"missing encoder\.final_layer_norm\.weight"),
    ],
)
def test_what_is_no_whole_t5_is_refused(released, text_folder, tmp_path, change, message):
    folder, _ = text_folder()
    change(folder)
    with pytest.raises(ValueError, match=message):
        convert_released(released(), tmp_path / "model", text_encoder=folder)
    assert left(tmp_path) == ["released", "t5"]


def test_code_beside_a_tokenizer_is_not_run_whatever_is_answered(
    released, text_folder, tmp_path, monkeypatch
):
    folder, _ = text_folder(inside=True)
    (folder / "tokenizer" / "odd.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Odd: ...\n"
    )
    (folder / "tokenizer" / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Odd", "auto_map": {"AutoTokenizer": ["odd.Odd", None]}})
    )
    monkeypatch.setattr("builtins.input", lambda *question: "y")
    with pytest.raises(ValueError, match="custom code"):
        convert_released(released(), tmp_path / "model", text_encoder=folder)
    assert not (tmp_path / "ran").exists()


def test_a_t5_of_another_width_is_refused(released, text_folder, tmp_path):
    with pytest.raises(ValueError, match="embeddings of 8 channels, the transformers need 32"):
        convert_released(released(), tmp_path / "model", text_encoder=text_folder(width=8)[0])


def test_a_text_encoder_that_is_no_folder_is_refused(released, tmp_path):
    with pytest.raises(ValueError, match="must be a local folder"):
        convert_released(released(), tmp_path / "model", text_encoder=tmp_path / "nowhere")


# --- strictness -------------------------------------------------------------------------------------------------------

BLOCK = "model.diffusion_model.transformer.layers.{}."


def without_block(index):
    return lambda state: [state.pop(key) for key in list(state) if f"layers.{index}." in key]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("stage2.pt", lambda s: s.update({"x.y": torch.zeros(1)}), r"stage2\.pt: .*unknown x\.y"),
        (
            "stage2.pt",
            lambda s: s.pop(BLOCK.format(1) + "mlp.dense_4h_to_h.bias"),
            r"missing .*1\.mlp\.dense_4h_to_h\.bias",
        ),
        ("stage2.pt", without_block(0), r"missing .*layers\.0\.attention\.query_key_value\.weight"),
        (
            "stage2.pt",
            lambda s: s.pop("model.diffusion_model.mixins.patch_embed.proj.weight"),
            r"missing .*patch_embed\.proj\.weight",
        ),
        (
            "stage2.pt",
            lambda s: s.update({"model.diffusion_model.time_embed.0.bias": torch.zeros(3)}),
            r"time_embed\.0\.bias makes time_embedding\.linear_1\.bias, which has shape \(3,\), .* needs \(64,\)",
        ),
        (
            "3d-vae.pt",
            lambda s: s.pop("encoder.mid.block_1.conv1.conv.bias"),
            r"3d-vae\.pt: .*missing encoder\.mid\.block_1\.conv1\.conv\.bias",
        ),
        (
            "3d-vae.pt",
            lambda s: s.pop("decoder.up.3.upsample.conv.bias"),
            r"missing decoder\.up\.3\.upsample\.conv\.bias",
        ),
        (
            "3d-vae.pt",
            lambda s: s.update({"encoder.down.0.block.0.odd.weight": torch.zeros(1)}),
            r"unknown encoder\.down\.0\.block\.0\.odd\.weight",
        ),
        (
            "stage1.pt",
            lambda s: s.pop(BLOCK.format(0) + "attention.dense.matrix_A.0"),
            r"stage1\.pt: .*missing .*matrix_A\.0",
        ),
    ],
)
def test_unknown_missing_and_misshaped_keys_are_named(released, tmp_path, name, change, message):
    with pytest.raises(ValueError, match=message):
        convert_released(released({name: change}), tmp_path / "model")
    assert left(tmp_path) == ["released"]


def test_what_tells_the_config_is_named_all_at_once_where_it_is_missing(released, tmp_path):
    def change(state):
        for part in ("mixins.patch_embed.proj", "time_embed.0"):
            for kind in ("weight", "bias"):
                state.pop(f"model.diffusion_model.{part}.{kind}")

    expected = (
        r"missing what makes patch_embed\.proj\.weight; missing what makes time_embedding\.linear_1\.weight"
    )
    with pytest.raises(ValueError, match=expected):
        convert_released(released({"stage2.pt": change}), tmp_path / "model")


LARGE = "model.diffusion_model.mixins.final_layer.linear.bias"


def test_a_weight_that_is_no_floating_point_number_is_refused(released, tmp_path):
    files = released({"stage2.pt": lambda s: s.update({LARGE: s[LARGE].to(torch.int8)})})
    with pytest.raises(ValueError, match=rf"stage2\.pt .*: {LARGE} is of dtype int8$"):
        convert_released(files, tmp_path / "model")


def test_a_weight_that_a_dtype_cannot_hold_is_named(released, tmp_path):
    files = released({"stage2.pt": lambda s: s[LARGE].fill_(1e5)})
    with pytest.raises(ValueError, match=rf"{LARGE} has values up to 1e\+05, which float16 cannot hold"):
        convert_released(files, tmp_path / "model", dtype=torch.float16)
    assert left(tmp_path) == ["released"]


def test_files_that_do_not_belong_together_are_noticed(released, tmp_path):
    def narrow(state):
        key = "model.diffusion_model.mixins.patch_embed.text_proj.weight"
        state[key] = state[key][:, :8].clone()

    with pytest.raises(ValueError, match=r"do not belong together: .* their texts 32 and 8"):
        convert_released(released({"stage2.pt": narrow}), tmp_path / "model")


def test_of_very_many_problems_the_first_are_named_and_the_rest_counted(released, tmp_path):
    with pytest.raises(ValueError, match="and 80 more") as error:
        convert_released(
            released({"stage2.pt": lambda s: s.update({f"x.{i}": torch.zeros(1) for i in range(100)})}),
            tmp_path / "model",
        )
    assert str(error.value).count("unknown") == 20


def test_a_lost_last_layer_is_noticed_at_the_released_width(released, tmp_path, monkeypatch):
    toy = {"num_attention_heads": 2, "attention_head_dim": 64, "num_layers": 2}
    monkeypatch.setattr(released_module, "RELEASED_STAGE1_TRANSFORMER", toy)
    monkeypatch.setattr(released_module, "RELEASED_STAGE2_TRANSFORMER", toy)

    def lose_layer(state):
        places = ("layers.1.", "adaLN_modulations.1.", "_list.1.")
        for key in [key for key in state if any(place in key for place in places)]:
            del state[key]

    with pytest.raises(ValueError, match=r"stage2\.pt: it has 1 layers of 2 heads, expected 2 as released"):
        convert_released(released({"stage2.pt": lose_layer}), tmp_path / "model")


def test_interchanged_stages_are_noticed(released, tmp_path):
    files = released()
    with pytest.raises(
        ValueError, match="has an embedder of Stage II; were the files of the stages interchanged"
    ):
        convert_released(ReleasedFiles(files.stage2, files.stage1, files.vae), tmp_path / "model")


def test_missing_files_are_named(tmp_path):
    (tmp_path / "stage2.pt").touch()
    with pytest.raises(ValueError, match=r"lacks stage1\.pt, 3d-vae\.pt"):
        ReleasedFiles.find(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        ReleasedFiles.find(tmp_path / "nowhere")


def test_an_unknown_way_to_treat_the_lora_is_refused(released, tmp_path):
    with pytest.raises(ValueError, match="lora must be one of merge, keep, got 'drop'"):
        convert_released(released(), tmp_path / "model", lora="drop")


# --- whole or not at all ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("way", ["there", "back"])
def test_an_interrupted_conversion_leaves_nothing(released, tmp_path, error, way):
    def stop(part, done, total):
        if done > total / 2:
            raise error

    files = released()
    if way == "there":
        with pytest.raises(type(error)):
            convert_released(files, tmp_path / "out", on_progress=stop)
        assert left(tmp_path) == ["released"]
    else:
        convert_released(files, tmp_path / "model")
        with pytest.raises(type(error)):
            export_released(tmp_path / "model", tmp_path / "out", on_progress=stop)
        assert left(tmp_path) == ["model", "released"]


def test_what_a_killed_run_leaves_does_not_load_and_is_named_by_the_next(released, tmp_path, caplog):
    files = released()

    def look(part, done, total):
        (unfinished,) = tmp_path.glob(".model.*.unfinished")
        assert not (tmp_path / "model").exists()
        with pytest.raises(ValueError, match=r"no model_index\.json"):
            model_folder(unfinished)

    convert_released(files, tmp_path / "model", on_progress=look)
    stale = tmp_path / ".other.0a.unfinished"
    stale.mkdir()
    convert_released(files, tmp_path / "other")
    assert f"{stale} is unfinished" in caplog.text


def test_an_output_that_holds_something_is_refused_and_kept(released, tmp_path):
    files, output = released(), tmp_path / "model"
    output.mkdir()
    (output / "precious").touch()
    with pytest.raises(ValueError, match="holds files; choose a new folder"):
        convert_released(files, output)
    assert left(output) == ["precious"]
    with pytest.raises(ValueError, match="is a file"):
        convert_released(files, output / "precious")


def test_an_empty_output_is_filled_and_parents_are_made(released, tmp_path):
    files = released()
    (tmp_path / "empty").mkdir()
    convert_released(files, tmp_path / "empty")
    convert_released(files, tmp_path / "deep" / "down")
    assert model_folder(tmp_path / "empty")
    assert model_folder(tmp_path / "deep" / "down")


def test_a_disk_without_room_is_noticed_before_anything_is_written(released, tmp_path, monkeypatch):
    files = released()
    usage = new_folder_module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(new_folder_module.shutil, "disk_usage", lambda path: usage._replace(free=10**6))
    with pytest.raises(ValueError, match=r"0\.02 GB are needed in .*, where 0\.00 GB are free"):
        convert_released(files, tmp_path / "model")
    assert left(tmp_path) == ["released"]


def test_a_link_in_the_outputs_place_is_called_one(released, tmp_path):
    files = released()
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    with pytest.raises(ValueError, match="link is a symbolic link, expected a new folder"):
        convert_released(files, tmp_path / "link")


def test_an_output_below_a_file_is_refused(released, tmp_path):
    files = released()
    (tmp_path / "file").touch()
    for output in (tmp_path / "file" / "model", tmp_path / "file" / "deep" / "model"):
        with pytest.raises(ValueError, match=r"model cannot be made, since .*file is a file"):
            convert_released(files, output)


def test_a_tilde_is_the_home_folder_in_every_path(released, text_folder, tmp_path, monkeypatch):
    released()
    text_folder()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    report = convert_released(ReleasedFiles.find("~/released"), "~/model", text_encoder=Path("~/t5"))
    export_released("~/model", "~/back")
    assert report.output == tmp_path / "model"
    assert left(tmp_path) == ["back", "model", "released", "t5"]


def test_released_files_in_the_place_of_a_model_are_told_to_be_converted(released, tmp_path):
    released()
    with pytest.raises(
        ValueError, match=r"convert them once, with `flashvideo convert .*released -o NEW_FOLDER`"
    ):
        model_folder(tmp_path / "released")
