"""`flashvideo convert` on toy files with the reference's keys."""

import json

import pytest
import torch

from flashvideo.pipelines import released

DROPPED = "model.diffusion_model.transformer.position_embeddings.weight"


@pytest.fixture
def files(tmp_path, write_released):
    folder = tmp_path / "released"
    write_released(folder)
    return folder


def test_convert_says_what_it_wrote_and_counts_what_it_left_out(call, files, tmp_path):
    outcome = call("convert", files, "-o", tmp_path / "model")
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert lines[0] == f"wrote {tmp_path / 'model'}"
    assert lines[1] == "GB: stage1_transformer 0.00, stage2_transformer 0.00, vae 0.01"
    assert lines[2].startswith("left out 2 keys")
    assert lines[3].startswith("note: there is no text encoder")
    assert lines[4].startswith("note: Stage I is not of the released size")
    assert lines[6].startswith("seconds: convert ")
    assert (tmp_path / "model" / "model_index.json").is_file()


def test_convert_names_what_it_left_out_when_asked(call, files, tmp_path):
    outcome = call("convert", files, "-o", tmp_path / "model", "--verbose")
    assert f"stage1_transformer: left out {DROPPED}: stored by the reference, never used" in outcome.err


def test_convert_as_json_lists_reasons(call, files, tmp_path):
    data = json.loads(call("convert", files, "-o", tmp_path / "model", "--json", "--lora", "keep").out)
    assert data["output"] == str(tmp_path / "model")
    assert list(data["bytes"]) == ["stage1_transformer", "stage1_lora", "stage2_transformer", "vae"]
    assert data["dropped"]["stage2_transformer"] == {DROPPED: "stored by the reference, never used"}
    assert any("peft" in note for note in data["notes"])


def test_convert_shows_its_progress(call, files, tmp_path):
    outcome = call("convert", files, "-o", tmp_path / "model", "--progress")
    assert "vae: 100%" in outcome.err


def test_convert_writes_the_dtype_asked_for_and_comes_back(call, files, tmp_path, golden):
    assert call("convert", files, "-o", tmp_path / "model", "--dtype", "bfloat16", "--lora", "keep").code == 0
    outcome = call("convert", tmp_path / "model", "--back", "-o", tmp_path / "back")
    assert outcome.code == 0, outcome.err
    state = torch.load(tmp_path / "back" / "stage1.pt", weights_only=True)["module"]
    expected = golden.state_dict("stage1")
    assert state.keys() == expected.keys() - {DROPPED}
    assert all(tensor.equal(expected[key].bfloat16()) for key, tensor in state.items())


def test_convert_refuses_a_folder_without_the_files(call, refusal, tmp_path):
    assert "lacks stage1.pt, stage2.pt, 3d-vae.pt" in refusal(
        call, "convert", tmp_path, "-o", tmp_path / "model"
    )


def test_convert_refuses_an_output_that_holds_something(call, refusal, files):
    assert "holds files" in refusal(call, "convert", files, "-o", files)


def test_convert_refuses_a_damaged_file(call, refusal, files, tmp_path):
    path = files / "stage2.pt"
    path.write_bytes(path.read_bytes()[:-100])
    assert f"{path} is cut off or damaged" in refusal(call, "convert", files, "-o", tmp_path / "model")


@pytest.mark.parametrize("words", [["--lora", "merge"], ["--dtype", "float32"], ["--text-encoder", "t5"]])
def test_what_goes_with_one_way_only_is_wrong_usage_on_the_other(call, refusal, files, tmp_path, words):
    said = refusal(call, "convert", files, "--back", "-o", tmp_path / "out", *words, code=2)
    assert f"{words[0]} cannot be given with --back" in said


def test_an_output_is_needed(call, refusal, files):
    assert "-o/--output" in refusal(call, "convert", files, code=2)


def test_ctrl_c_leaves_no_unfinished_folder(call, files, tmp_path, monkeypatch):
    def interrupt(*arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr(released, "write_weights", interrupt)
    outcome = call("convert", files, "-o", tmp_path / "model")
    assert (outcome.code, outcome.err) == (
        130,
        "flashvideo: error: interrupted; no unfinished file is left\n",
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["released"]
