"""`flashvideo bench`."""

import json

import pytest
import torch

from flashvideo.cli import bench as command
from flashvideo.evaluation.bench import running as bench_module
from flashvideo.evaluation.bench.cases import BENCH_PHASES
from flashvideo.evaluation.bench.rates import Rates


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No long measurement of the machine, which is taken to have nothing else to do."""
    monkeypatch.setattr(
        bench_module,
        "measure_rates",
        lambda device, dtype: Rates(flops=1e9, convolution_flops=1e9, bytes=1e9),
    )
    monkeypatch.setattr("flashvideo.evaluation.machine.load_average", lambda: 0.0)


@pytest.fixture
def bench(flashvideo):
    """`bench(...)` measures one quick phase of the toy model."""
    return lambda *words: flashvideo("bench", "--phases", "stage1", "--repeats", "2", *words)


def test_the_phases_of_the_command_are_those_that_can_be_measured():
    assert command._PHASES == BENCH_PHASES


def test_a_benchmark_is_a_table(bench):
    outcome = bench()
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert lines[0] == "toy (trained weights), 5 frames of 48x32, 2 repetitions each, by turns"
    assert [line.split(" | ")[:2] for line in lines if line.startswith("| stage")] == [
        ["| stage1", "float32"]
    ]


def test_a_benchmark_is_json_and_kept(bench, tmp_path):
    outcome = bench("--json", "-o", tmp_path / "a.json")
    data = json.loads(outcome.out)
    kept = json.loads((tmp_path / "a.json").read_text())
    assert (data.pop("exit_code"), data.pop("warnings")) == (0, [])
    assert data == kept
    assert kept["schema"] == 1
    assert kept["complete"] is True
    assert kept["rows"][0]["phase"] == "stage1"
    assert {"processor", "accelerator", "platform"} <= kept["machine"].keys()
    assert {"commit", "flashvideo", "python"} <= kept["software"].keys()


def test_an_earlier_benchmark_is_compared_with(bench, tmp_path):
    bench("-o", tmp_path / "a.json")
    outcome = bench("--compare", tmp_path / "a.json")
    assert outcome.code == 0
    assert (
        "| phase | dtype | before | now | times as fast [95 %] | the reference | ours relative to it |"
        in outcome.out
    )
    data = json.loads(bench("--compare", tmp_path / "a.json", "--json").out)
    assert [change["phase"] for change in data["compared"]] == ["stage1"]


def test_another_size_is_not_compared_with_unless_forced(bench, refusal, tmp_path):
    bench("-o", tmp_path / "a.json")
    words = ("--compare", tmp_path / "a.json", "--size", "64x48")
    sentence = refusal(bench, *words)
    assert "the earlier benchmark is of another size height, got 32 there and 48 here" in sentence
    assert bench(*words, "--force").code == 0


def test_both_dtypes_are_measured_where_another_is_taken_by_default(call, toy_model, monkeypatch):
    given = {"auto": torch.bfloat16}
    monkeypatch.setattr("flashvideo.pipelines.loading.choose_dtype", lambda dtype, device: given[dtype])
    words = ("--model", toy_model, "--phases", "text", "stage1", "--repeats", "2", "--device", "cpu")
    data = json.loads(call("bench", *words, "--json").out)
    assert [(row["phase"], row["dtype"]) for row in data["rows"]] == [
        ("text", "float32"),
        ("stage1", "float32"),
        ("text", "bfloat16"),
        ("stage1", "bfloat16"),
    ]
    assert data["default_dtype"] == "bfloat16"


def test_random_weights_in_the_shape_of_a_model_need_no_weights(call, toy_model, tmp_path):
    for part in ("vae", "text_encoder", "stage1_transformer", "stage2_transformer"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text((toy_model / part / "config.json").read_text())
    (tmp_path / "model_index.json").write_text((toy_model / "model_index.json").read_text())
    words = (
        "--random",
        tmp_path,
        "--phases",
        "stage2",
        "--repeats",
        "2",
        "--device",
        "cpu",
        "--dtype",
        "float32",
    )
    outcome = call("bench", *words)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("toy (random weights)")
    assert (
        "stage2: the reference is spared the work of noise_step_embedding, num_frames_embedding, "
        in outcome.out
    )


def test_a_repository_is_not_downloaded_for_random_weights(call, refusal):
    sentence = refusal(call, "bench", "--random", "zai-org/CogVideoX-2b")
    assert "bench --random downloads nothing, got the repository zai-org/CogVideoX-2b" in sentence


def test_ctrl_c_leaves_no_file(bench, tmp_path, monkeypatch):
    def interrupt(*arguments, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(bench_module, "measure", interrupt)
    outcome = bench("-o", tmp_path / "a.json")
    assert outcome.code == 130
    assert outcome.err == "flashvideo: error: interrupted; no unfinished file is left\n"
    assert not list(tmp_path.iterdir())


def test_ctrl_c_keeps_the_rows_that_are_done(flashvideo, tmp_path, monkeypatch):
    measure, calls = bench_module.measure, []

    def interrupt_second(*arguments, **settings):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(*arguments, **settings)

    monkeypatch.setattr(bench_module, "measure", interrupt_second)
    path = tmp_path / "a.json"
    outcome = flashvideo("bench", "--phases", "text", "stage1", "--repeats", "2", "-o", path)
    assert outcome.code == 130
    assert f"1 finished rows are kept in {path}, which is marked as incomplete" in outcome.err
    kept = json.loads(path.read_text())
    assert [row["phase"] for row in kept["rows"]] == ["text"]
    assert kept["complete"] is False


def test_an_earlier_benchmark_of_other_phases_is_refused_before_the_work(
    bench, flashvideo, refusal, tmp_path
):
    bench("-o", tmp_path / "a.json")
    sentence = refusal(flashvideo, "bench", "--phases", "text", "--compare", tmp_path / "a.json")
    assert "--phases must have one of the earlier benchmark's stage1, got text" in sentence


def test_a_busy_machine_is_warned_of(bench, monkeypatch):
    monkeypatch.setattr("flashvideo.evaluation.machine.load_average", lambda: 999.0)
    assert "the machine is busy, with a load of 999.0 on" in bench().err


def test_progress_is_told_phase_by_phase(flashvideo):
    outcome = flashvideo("bench", "--phases", "text", "stage1", "--repeats", "2", "--progress")
    assert "float32" in outcome.err
    assert "2/2" in outcome.err


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("--repeats", "1"), 2, "must be a whole number of at least 2"),
        (("--phases", "stage3"), 2, "invalid choice: 'stage3'"),
        (("--random", "nano"), 2, "not allowed with argument"),
        (("--force",), 2, "--force is for --compare"),
        (("--frames", "9"), 1, "at most 5 frames of this model, got 9"),
        (("--frames", "4"), 1, "num_frames must be 4k+1"),
        (("--output", "a.txt"), 1, "expected one of .json"),
        (("--compare", "none.json"), 1, "none.json does not exist"),
    ],
)
def test_what_cannot_be_measured_is_refused(bench, refusal, words, code, sentence):
    assert sentence in refusal(bench, *words, code=code)
