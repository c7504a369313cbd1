"""Benchmarks on toy models: both sides compute the same, and figures come out as they should."""

import dataclasses
import json
import math

import pytest
import torch

from flashvideo.evaluation.bench import rates as rates_module
from flashvideo.evaluation.bench import running as bench_module
from flashvideo.evaluation.bench.cases import BENCH_PHASES, Case, Workbench, cases
from flashvideo.evaluation.bench.plain import PlainModel, PlainTransformer, plain_chunks
from flashvideo.evaluation.bench.rates import Rates, measure_rates
from flashvideo.evaluation.bench.report import (
    SCHEMA,
    as_comparison_table,
    as_table,
    check_comparable,
    compare,
    make_record,
    read_record,
    speedup,
)
from flashvideo.evaluation.bench.running import Row, Side, bench, measure
from flashvideo.evaluation.cost import PhaseCost, run_cost
from flashvideo.evaluation.machine import describe_machine, describe_software, git_commit, is_busy
from flashvideo.evaluation.phases import random_pipeline
from flashvideo.evaluation.records import write_json
from flashvideo.pipelines.footprint import ModelConfigs

WORDS = ["a", "striped", "red", "star", "spinning", "over", "grass"]
SIZE, NUM_FRAMES = (
    (32, 48),
    9,
)  # three latent frames: of an even number diffusers' decoder makes something else
RATES = Rates(
    flops=1e9, convolution_flops=2e9, bytes=1e7
)  # at which some phases wait for operations, and some for bytes


@pytest.fixture(autouse=True)
def quick_rates(monkeypatch):
    monkeypatch.setattr(bench_module, "measure_rates", lambda device, dtype: RATES)


@pytest.fixture
def model(toy_pipeline):
    """Both stages guided, with all that our transformers have beyond CogVideoX's at Stage II."""
    pipeline = toy_pipeline(WORDS, stage1={"num_frames": NUM_FRAMES}, stage2={"guidance_scale": 2.0})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def benched(pipeline, phases=BENCH_PHASES, **settings):
    _, rows = bench(
        pipeline, **{"size": SIZE, "num_frames": NUM_FRAMES, "repeats": 2, "phases": phases} | settings
    )
    return list(rows)


def check_same_results(pipeline, size=SIZE, num_frames=NUM_FRAMES, phases=BENCH_PHASES):
    with torch.no_grad():
        for case in cases(pipeline, size, num_frames, phases):
            ours, reference = case.ours(), case.reference()
            assert ours.dtype == reference.dtype == torch.float32
            assert torch.allclose(ours, reference, atol=1e-5 * ours.abs().max(), rtol=0), case.phase


def test_both_sides_of_every_phase_compute_the_same(model):
    check_same_results(model)


@pytest.mark.parametrize(
    "overrides",
    [
        {"position_embed": True, "pooled_text_embed": True},
        {"use_rotary_positional_embeddings": False},
        {"patch_size": 1},
    ],
)
def test_whatever_stage1_has_the_reference_computes_the_same(model, tiny_transformer, overrides):
    model.register_modules(stage1_transformer=tiny_transformer(1, **overrides))
    check_same_results(model, phases=["stage1", "whole"])


def test_a_size_that_is_cut_is_the_same_on_both_sides(model):
    check_same_results(model, size=(41, 59), num_frames=1, phases=["stage2_encode", "stage2_decode", "whole"])


def test_a_size_that_the_models_do_not_take_is_continued_alike(model, generator):
    enlarged, padded, stage2 = (30, 45), (32, 48), model.stage2
    preview = torch.rand(1, NUM_FRAMES, 3, 16, 24, generator=generator) * 2 - 1
    noises = {name: torch.randn(1, 3, 8, 8, 12, generator=generator) for name in ("posterior_noise", "noise")}
    theirs = PlainModel(model).encode(preview, enlarged, padded, **noises)
    pixels = stage2.prepare_pixels(preview, *enlarged)
    ours = stage2.prepare_latents(pixels, model.preset.stage2.noise_step, **noises)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_unguided_runs_and_random_models_are_the_same_on_both_sides(toy_pipeline):
    trained = toy_pipeline(WORDS, stage1={"guidance_scale": 1.0, "num_frames": NUM_FRAMES})
    pipeline = random_pipeline(ModelConfigs.of(trained), torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    check_same_results(pipeline)
    assert next(cases(pipeline, SIZE, NUM_FRAMES, ["whole"])).note.endswith("from embeddings")


def test_a_model_without_a_text_encoder_has_no_such_phase(model):
    model.register_modules(text_encoder=None)
    assert [case.phase for case in cases(model, SIZE, NUM_FRAMES, ["text", "stage1"])] == ["stage1"]


def test_the_reference_shares_the_weights_and_names_what_it_leaves_out(model):
    plain = PlainModel(model)
    pairs = (
        (plain.vae, model.vae),
        (plain.text_encoder, model.text_encoder),
        (plain.stage1.model, model.stage1_transformer),
        (plain.stage2.model, model.stage2_transformer),
    )
    for theirs, ours in pairs:
        weights = ours.state_dict()
        shared = {
            name: one.data_ptr() == weights[name].data_ptr() for name, one in theirs.state_dict().items()
        }
        assert shared
        assert all(shared.values())
    assert plain.stage1.left_out == {}
    assert list(plain.stage2.left_out) == ["noise_step_embedding", "num_frames_embedding"]
    assert model.vae.num_sample_frames_batch_size != plain.vae.num_sample_frames_batch_size


def test_what_the_reference_leaves_out_would_be_missed(model):
    latents, text = torch.randn(1, 3, 8, 4, 6), torch.randn(1, 8, 12)
    plain = PlainTransformer(model.stage2_transformer, noise_step=2)
    timestep = torch.tensor(500.0)
    with torch.no_grad():
        plain.prepare(latents, text)
        whole = plain.guided(latents, text, timestep, 1.0, text_at=0)
        plain._condition = None
        without = plain.guided(latents, text, timestep, 1.0, text_at=0)
    assert not torch.allclose(whole, without, atol=1e-3)


def test_a_lora_beside_the_weights_is_refused(model):
    peft = pytest.importorskip("peft")
    model.stage1_transformer.add_adapter(peft.LoraConfig(r=1, target_modules=["to_q"]))
    with pytest.raises(ValueError, match="with its LoRA merged"):
        PlainModel(model)


def test_a_benchmark_has_a_row_for_each_phase_in_order(model):
    told = []
    settings = {"size": SIZE, "num_frames": NUM_FRAMES, "repeats": 2, "phases": ["whole", "text", "stage2"]}
    rates, found = bench(model, **settings, progress=told.append)
    rows = list(found)
    assert [row.phase for row in rows] == ["text", "stage2", "whole"]
    assert told[1:] == ["text", "stage2", "whole"]
    assert rates == RATES
    for row in rows:
        assert row.dtype == "float32"
        assert len(row.ours.seconds) == len(row.reference.seconds) == 2
        assert row.difference < 1e-4 * row.largest
        assert row.agrees
        low, high = row.ratio_interval
        assert low <= row.ratio * 1.0000001
        assert row.ratio <= high * 1.0000001


def test_operations_and_weights_are_those_of_the_formulas(model):
    cost = run_cost(ModelConfigs.of(model), height=32, width=48, num_frames=NUM_FRAMES)
    by_phase = {case.phase: case.costs for case in cases(model, SIZE, NUM_FRAMES, BENCH_PHASES)}
    assert list(by_phase) == list(BENCH_PHASES)
    for phase, one in cost.phases.items():
        # The benchmark has one step of each stage, the run two; and one prompt, the run one for each stage.
        share = 2 if phase in ("stage1", "stage2", "text") else 1
        mine = by_phase[phase][phase]
        assert (share * mine.flops, share * mine.passes) == (one.flops, one.passes)
    assert by_phase["whole"] == cost.phases


def test_the_floor_of_a_whole_run_is_the_sum_of_its_phases(model):
    cost = run_cost(ModelConfigs.of(model), height=32, width=48, num_frames=NUM_FRAMES)
    (row,) = benched(model, ["whole"])
    assert row.flops == cost.flops
    rates = {phase: 2e9 if phase.endswith("code") else 1e9 for phase in cost.phases}  # the VAE convolves
    least = sum(
        max(one.flops / rates[phase], one.weight_bytes(4) / 1e7) for phase, one in cost.phases.items()
    )
    assert row.floor_seconds == pytest.approx(least)


def test_a_narrower_dtype_is_said_and_measured(model):
    rows = benched(model.to(torch.bfloat16), ["stage1"])
    assert rows[0].dtype == "bfloat16"
    assert rows[0].weight_bytes == 2 * sum(one.numel() for one in model.stage1_transformer.parameters())
    assert rows[0].difference < 0.1 * rows[0].largest


def test_a_reference_that_fails_is_left_out_with_its_reason(model, monkeypatch, caplog):
    def fail(*arguments):
        raise torch.OutOfMemoryError("out of memory\nand more")

    monkeypatch.setattr(PlainModel, "decode", fail)
    (row,) = benched(model, ["stage2_decode"])
    assert (row.reference, row.ratio, row.ratio_interval, row.difference) == (None, None, None, None)
    assert row.note == "the reference fails: out of memory"
    assert "the reference fails at stage2_decode: out of memory" in caplog.text
    assert "| none |" in as_table(record_of([row]))


def test_when_ours_fails_the_row_says_so_and_other_phases_are_measured(model, monkeypatch):
    def fail(*arguments, **settings):
        raise torch.OutOfMemoryError("out of memory\nand more")

    monkeypatch.setattr(type(model.stage2), "decode_latents", fail)
    row, other = benched(model, ["stage2_encode", "stage2_decode"])[::-1]
    assert other.ours is not None
    assert (row.ours, row.ratio, row.difference, row.largest) == (None, None, None, None)
    assert len(row.reference.seconds) == 2
    assert row.note == "ours fails: out of memory"
    record = record_of([row])
    assert json.loads(json.dumps(record))["rows"][0]["times_floor"] is None
    assert "| stage2_decode | float32 | none |" in as_table(record)


def test_a_side_that_fails_at_a_repetition_has_no_times(model, monkeypatch):
    decode, calls = PlainModel.decode, []

    def fail_late(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise RuntimeError("no more")
        return decode(*arguments)

    monkeypatch.setattr(PlainModel, "decode", fail_late)
    (row,) = benched(model, ["stage2_decode"], repeats=3)
    assert row.reference is None
    assert row.note == "the reference fails: no more"
    assert len(row.ours.seconds) == 3


def test_results_of_other_shapes_are_not_a_failure_and_have_no_times(model, monkeypatch, caplog):
    decode = PlainModel.decode
    monkeypatch.setattr(PlainModel, "decode", lambda *arguments: decode(*arguments)[:, 1:])
    (row,) = benched(model, ["stage2_decode"])
    assert (row.reference, row.difference) == (None, None)
    assert row.note.startswith(
        "cannot be compared: ours is of the shape (1, 9, 3, 32, 48), the reference's of (1, 8"
    )
    assert "fails" not in caplog.text


@pytest.mark.parametrize(
    ("num_frames", "phases"), [(5, {"stage1_decode", "stage2_decode", "whole"}), (9, set()), (1, set())]
)
def test_frames_that_diffusers_cuts_otherwise_are_not_compared(model, num_frames, phases):
    found = {case.phase: case for case in cases(model, SIZE, num_frames, BENCH_PHASES)}
    assert {phase for phase, case in found.items() if case.reference is None} == phases
    for phase in phases:
        assert (
            "diffusers takes 2 latent frames in chunks of 2, and so makes something else" in found[phase].note
        )


def test_frames_that_the_encoder_cuts_otherwise_are_not_compared(toy_pipeline):
    pipeline = toy_pipeline(WORDS, stage1={"num_frames": 25})
    (case,) = cases(pipeline, SIZE, 25, ["stage2_encode"])
    assert case.reference is None
    assert "diffusers takes 25 frames in chunks of 25" in case.note


@pytest.mark.parametrize("count", range(1, 60))
def test_chunks_are_those_that_diffusers_makes(count):
    lengths, rest = [], count % 16
    for i in range(max(count // 16, 1)):
        start, end = 16 * i + (0 if i == 0 else rest), 16 * (i + 1) + rest
        lengths.append(len(range(count)[start:end]))
    assert plain_chunks(count, 16) == lengths


def test_a_difference_that_rounding_does_not_explain_is_warned_of(model, monkeypatch, caplog):
    decode = PlainModel.decode
    monkeypatch.setattr(PlainModel, "decode", lambda *arguments: decode(*arguments) * 0.99)
    (row,) = benched(model, ["stage2_decode"])
    assert row.agrees is False
    assert "the two sides differ at stage2_decode in float32" in caplog.text
    assert "(too large) |" in as_table(record_of([row]))
    assert dataclasses.replace(row, dtype="bfloat16").agrees


def test_what_is_not_finite_is_not_compared_and_is_still_json(model):
    with torch.no_grad():
        model.vae.decoder.conv_out.conv.bias.fill_(float("nan"))
    (row,) = benched(model, ["stage2_decode"])
    assert (row.difference, row.largest) == (None, None)
    assert row.note == "cannot be compared: our result is not finite"
    json.dumps(row.as_dict(), allow_nan=False)


def test_the_side_that_goes_first_changes():
    told = []
    case = Case(
        phase="stage1",
        ours=lambda: told.append("ours") or torch.ones(1),
        reference=lambda: told.append("theirs") or torch.ones(1),
        costs={"stage1": PhaseCost(evaluations=1, passes=1, flops=1, num_parameters=1)},
    )
    measure(case, RATES, repeats=3, device=torch.device("cpu"), dtype=torch.float32)
    assert told[4:] == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]


def test_the_text_phase_is_said_to_be_noise(model):
    (case,) = cases(model, SIZE, NUM_FRAMES, ["text"])
    assert "both sides are transformers' own class" in case.note


def test_what_the_reference_is_spared_is_said(model):
    one, whole = cases(model, SIZE, NUM_FRAMES, ["stage2", "whole"])
    parts = "noise_step_embedding, num_frames_embedding"
    assert one.note == (
        f"the reference is spared the work of {parts}, tables of rotary embeddings, batching text and no text"
    )
    assert whole.note == f"the reference is spared the work of {parts}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repeats": 1}, "repeats must be at least 2, since one alone has no spread, got 1"),
        ({"phases": ["stage1", "stage3"]}, "phases must be some of text, .*, got stage3"),
        ({"phases": []}, "got none"),
        ({"num_frames": 13}, "at most 9 frames of this model, got 13"),
        ({"num_frames": 4}, r"num_frames must be 4k\+1"),
    ],
)
def test_what_cannot_be_measured_is_refused(model, settings, message):
    with pytest.raises(ValueError, match=message):
        benched(model, **settings)


def test_a_model_without_stage2_is_refused(model):
    model.register_modules(stage2_transformer=None)
    with pytest.raises(ValueError, match="but 'toy' has no Stage II"):
        Workbench(model, SIZE, NUM_FRAMES)


# --- figures and files ------------------------------------------------------------------------------------------------


def row_of(ours, reference, phase="stage1") -> Row:
    return Row(
        phase=phase,
        dtype="float32",
        ours=Side(seconds=tuple(ours), peak_bytes=3 * 1024**2),
        reference=Side(seconds=tuple(reference), peak_bytes=None),
        difference=1e-6,
        largest=2.0,
        flops=10,
        weight_bytes=20,
        floor_seconds=0.5,
        note="",
    )


def record_of(rows, **changes):
    settings = {
        "model": "toy",
        "weights": "trained",
        "size": SIZE,
        "num_frames": NUM_FRAMES,
        "repeats": 3,
        "machine": describe_machine("cpu"),
        "software": describe_software(),
        "load_average": 0.1,
        "default_dtype": "float32",
        "rates": {"float32": RATES},
        "rows": rows,
    }
    return make_record(**settings | changes)


WHOLE_RECORD = record_of([])


def test_the_ratio_is_the_geometric_mean_over_pairs():
    row = row_of([1.0, 2.0, 4.0], [2.0, 4.0, 8.0])
    assert row.ratio == pytest.approx(2)
    assert row.ratio_interval == pytest.approx((2, 2))  # the spread is the machine's, the pairs agree
    assert row_of([1.0, 1.0], [1.0, 4.0]).ratio == pytest.approx(2)
    assert row.as_dict()["times_floor"] == 4


def test_a_record_survives_its_file_and_is_json(tmp_path):
    record = record_of([row_of([1.0, 2.0], [2.0, 2.0])])
    write_json(tmp_path / "a.json", record)
    assert read_record(tmp_path / "a.json") == json.loads(json.dumps(record))
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ("{", "is no JSON file"),
        ("[]", "is not of a benchmark"),
        (
            '{"kind": "flashvideo bench", "schema": 0}',
            f"has schema 0 of benchmarks, this version reads {SCHEMA}",
        ),
        (
            json.dumps(WHOLE_RECORD | {"rows": None}),
            "has rows that are not those of a benchmark; measure again",
        ),
        (
            json.dumps(WHOLE_RECORD | {"rows": [{"phase": "text"}]}),
            "has rows that are not those of a benchmark",
        ),
        (
            json.dumps({"kind": WHOLE_RECORD["kind"], "schema": SCHEMA}),
            "lacks machine, model, num_frames, rows, size",
        ),
    ],
)
def test_a_file_that_is_no_benchmark_is_refused(tmp_path, content, message):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_record(path)


def test_the_table_has_a_line_for_each_phase_and_the_machine_above():
    text = as_table(record_of([row_of([1.0, 2.0, 1.5], [2.0, 4.0, 3.0])]))
    lines = text.splitlines()
    assert lines[0] == "toy (trained weights), 9 frames of 48x32, 3 repetitions each, by turns"
    assert lines[1].startswith("processor: ")
    assert (
        "| stage1 | float32 | 1.5 s [1 s, 2 s] | 3 s [2 s, 4 s] | 2.00 [2.00, 2.00] | 1.0e-06 of 2.0 | 3 MiB, ? | "
        "500 ms | 3.0 |"
    ) in lines


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"model": "nano"}, "another model, got nano there and toy here"),
        ({"size": (64, 48)}, "another size height, got 64 there and 32 here"),
        ({"num_frames": 5}, "another num frames"),
        ({"weights": "random"}, "another weights"),
        (
            {"machine": describe_machine("cpu") | {"device": "cuda"}},
            "another device, got cuda there and cpu here",
        ),
        ({"machine": describe_machine("cpu") | {"processor": {"name": "other"}}}, "another processor name"),
        ({"machine": describe_machine("cpu") | {"accelerator": {"name": "x"}}}, "another accelerator name"),
    ],
)
def test_records_of_other_machines_models_and_sizes_are_not_compared(changes, what):
    with pytest.raises(ValueError, match=f"the earlier benchmark is of {what}.*--force"):
        check_comparable(record_of([]), record_of([], **changes))


def test_the_first_device_of_a_kind_has_two_names():
    one, other, third = (
        record_of([], machine=describe_machine("cpu") | {"device": name})
        for name in ("cuda", "cuda:0", "cuda:1")
    )
    check_comparable(one, other)
    with pytest.raises(ValueError, match="another device, got cuda:1 there and cuda here"):
        check_comparable(one, third)


def test_benchmarks_with_nothing_in_common_are_not_compared():
    one, other = (record_of([row_of([1.0, 1.0], [1.0, 1.0], phase)]) for phase in ("text", "stage1"))
    with pytest.raises(ValueError, match="no phase in the same dtype in common with this one"):
        compare(one, other)
    failed = record_of([dataclasses.replace(row_of([1.0, 1.0], [1.0, 1.0], "text"), ours=None)])
    with pytest.raises(ValueError, match="no phase in the same dtype in common"):
        compare(one, failed)


def test_other_versions_loads_and_repeats_are_compared():
    check_comparable(record_of([]), record_of([], software={}, load_average=9.0, repeats=7))


def test_a_comparison_tells_what_has_changed_and_what_the_machine_has_to_do_with_it():
    before = record_of([row_of([2.0, 2.0, 2.0], [3.0, 3.0, 3.0]), row_of([1.0, 1.0], [1.0, 1.0], "text")])
    now = record_of([row_of([1.0, 1.0], [1.5, 1.5]), row_of([1.0, 1.0], [1.0, 1.0], "whole")])
    (change,) = compare(now, before)
    assert change["phase"] == "stage1"
    assert change["ours"] == {"before": 2, "now": 1, "times_as_fast": 2, "interval": (2, 2)}
    assert change["reference"]["times_as_fast"] == 2
    assert change["relative"] == {"times_as_fast": pytest.approx(1), "interval": pytest.approx((1, 1))}
    table = as_comparison_table([change], before)
    expected = "| stage1 | float32 | 2 s | 1 s | 2.00 [2.00, 2.00] | 2.00 [2.00, 2.00] | 1.00 [1.00, 1.00] |"
    assert expected in table


def test_a_speedup_has_an_interval_that_covers_it():
    generator = torch.Generator().manual_seed(3)
    before, now = (scale * torch.rand(20, generator=generator).add(1) for scale in (2, 1))
    factor, (low, high) = speedup(now.tolist(), before.tolist())
    assert low < 2 < high
    assert low < factor < high
    assert factor == pytest.approx(math.exp(before.log().mean() - now.log().mean()))


def test_a_phase_whose_reference_failed_is_compared_by_ours_alone():
    row = dataclasses.replace(row_of([1.0, 1.0], [1.0, 1.0]), reference=None)
    (change,) = compare(record_of([row]), record_of([row]))
    assert (change["reference"], change["relative"]) == (None, None)
    assert as_comparison_table([change], record_of([])).endswith("| 1.00 [1.00, 1.00] | ? | ? |")


# --- the machine ------------------------------------------------------------------------------------------------------


def test_rates_are_operations_and_bytes_over_seconds(monkeypatch):
    monkeypatch.setattr(rates_module, "_MATRIX_SIDES", {"cpu": (64, 128)})
    monkeypatch.setattr(rates_module, "_BUFFER_BYTES", {"cpu": 2**20})
    monkeypatch.setattr(rates_module, "_CONVOLUTIONS", {"cpu": (2, 4, 5, 6)})
    monkeypatch.setattr(rates_module, "timed", lambda work, device: (work(), 0.5))
    assert measure_rates(torch.device("cpu"), torch.float32) == Rates(
        flops=2 * 128**3 / 0.5,
        convolution_flops=2 * 27 * 2 * 2 * (2 * 3 * 4) / 0.5,
        bytes=2**21 / 0.5,
    )


def test_a_floor_is_the_longer_of_operations_and_bytes():
    assert RATES.floor_seconds(3 * 10**9, 10**7) == 3
    assert RATES.floor_seconds(10**9, 2 * 10**7) == 2
    assert RATES.floor_seconds(4 * 10**9, 0, convolves=True) == 2
    slow = dataclasses.replace(RATES, convolution_flops=1e8)
    assert slow.floor_seconds(4 * 10**9, 0, convolves=True) == 4


def test_a_commit_is_found_where_there_is_one_and_changes_are_said(tmp_path):
    import shutil
    import subprocess

    if shutil.which("git") is None:
        pytest.skip("no git here")
    assert git_commit(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    file = tmp_path / "a.txt"
    file.write_text("1")
    for words in (["init", "-q"], ["add", "a.txt"], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *words], check=True)
    commit = git_commit(tmp_path)
    assert len(commit) == 40
    file.write_text("2")
    assert git_commit(tmp_path) == commit + "-changed"


def test_a_load_above_half_of_the_cores_is_busy(monkeypatch):
    monkeypatch.setattr("flashvideo.evaluation.machine.num_cores", lambda: 4)
    assert [is_busy(load) for load in (None, 0.0, 2.0, 2.1)] == [False, False, False, True]
