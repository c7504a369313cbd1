"""Memory plans: what they choose, what they promise, and how a run goes on when the memory runs out."""

import logging

import pytest
import torch
from peft import LoraConfig

from flashvideo.pipelines import stage2_steps
from flashvideo.pipelines.device_memory import DeviceMemory, free_bytes, host_reserve, is_out_of_memory
from flashvideo.pipelines.devices import GIB
from flashvideo.pipelines.footprint import AllocationTracker, Footprint, ModelConfigs
from flashvideo.pipelines.memory import PHASES, Measures, plan_memory
from flashvideo.pipelines.workload import Workload

FULL_HD = Workload(preview=(49, 272, 480), video=(49, 1088, 1920))
PROMPT = "a red circle moves left"


@pytest.fixture(scope="module")
def released():
    """The footprint of the released model in bfloat16; what it has found once it remembers."""
    return Footprint(ModelConfigs.released(), torch.bfloat16)


def measures(plan, phase):
    return plan.phase(phase).measures


def test_the_released_model_has_the_weights_of_its_checkpoints(released):
    billions = {name: num_bytes / 2 / 1e9 for name, num_bytes in released.weights.items()}
    assert billions["stage1_transformer"] == pytest.approx(5.57, abs=0.01)
    assert billions["stage2_transformer"] == pytest.approx(1.70, abs=0.01)
    assert billions["vae"] == pytest.approx(0.22, abs=0.01)
    assert billions["text_encoder"] == pytest.approx(4.76, abs=0.01)


@pytest.mark.parametrize("gib", [24, 16, 12])
def test_full_hd_fits_the_cards_that_people_have(released, gib):
    plan = plan_memory(released, FULL_HD, gib * GIB, single_run=True)
    assert plan.fits
    assert plan.peak_bytes <= gib * GIB
    assert plan.host_bytes < 40 * GIB - host_reserve(FULL_HD)
    assert not plan.resident


def test_the_more_memory_the_fewer_measures(released):
    thrifty, default, ample = (plan_memory(released, FULL_HD, gib * GIB) for gib in (12, 24, 80))
    assert measures(thrifty, "stage2") == Measures(sequential_guidance=True)
    assert measures(default, "stage2") == Measures()
    assert [measures(plan, "stage2_decode").thrift for plan in (thrifty, default, ample)] == [
        "layers",
        "caches",
        "strips",
    ]
    assert ample.resident


def test_weights_do_not_stay_at_the_cost_of_another_measure(released):
    plan = plan_memory(released, FULL_HD, 48 * GIB)
    # All weights are 23 GiB; with them there would be no room for the VAE's strips.
    assert not plan.resident
    assert measures(plan, "stage2_decode").thrift == "strips"


def test_what_does_not_fit_is_planned_as_thriftily_as_can_be(released):
    plan = plan_memory(released, FULL_HD, 3 * GIB)
    assert not plan.fits
    assert measures(plan, "stage1").streamed_weights
    assert all(not phase.thriftier for phase in plan.phases if phase.peak_bytes > 2 * GIB)


def test_a_plan_can_be_read(released):
    plan = plan_memory(released, FULL_HD, 24 * GIB)
    assert [line.split()[0] for line in str(plan).splitlines()] == [
        "phase",
        "text",
        "stage1",
        "stage1_decode",
        "stage2_encode",
        "stage2",
        "stage2_decode",
        "peak",
    ]
    values = plan.as_dict()
    assert values["fits"] is True
    assert values["peak_gib"] == max(phase["peak_gib"] for phase in values["phases"])


@pytest.fixture
def planned(pipeline):
    """The toy pipeline with memory plans, on the host."""
    pipeline.enable_memory_plans("cpu")
    return pipeline


def run(pipeline, seeded, **arguments):
    return pipeline(PROMPT, generator=seeded(), output_type="pt", **arguments)


def test_a_planned_run_gives_the_frames_of_one_that_is_not(pipeline, seeded):
    expected = run(pipeline, seeded)
    pipeline.enable_memory_plans("cpu")
    found = run(pipeline, seeded)
    assert torch.equal(found.frames, expected.frames)
    assert torch.equal(found.preview_frames, expected.preview_frames)


def test_a_tight_budget_changes_the_frames_by_rounding_alone(pipeline, seeded, caplog):
    expected = run(pipeline, seeded)
    pipeline.enable_memory_plans("cpu", budget_bytes=1)
    with caplog.at_level(logging.WARNING):
        found = run(pipeline, seeded)
    plan = pipeline._memory.plan
    assert measures(plan, "stage1").sequential_guidance
    assert measures(plan, "stage2").chunk_size
    assert measures(plan, "stage2_decode").thrift == "strips"
    assert "it may run out of memory" in caplog.text
    torch.testing.assert_close(found.frames, expected.frames, atol=1e-3, rtol=0)


class RunsOut:
    """A function that runs out of memory at its first calls."""

    def __init__(self, function, times=1):
        self.function, self.left, self.calls = function, times, []

    def __call__(self, *args, **kwargs):
        self.calls.append(kwargs)
        if self.left:
            self.left -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return self.function(*args, **kwargs)


def test_when_the_memory_runs_out_the_phase_goes_on_more_thriftily(planned, seeded, monkeypatch, caplog):
    expected = run(planned, seeded)
    decode = RunsOut(stage2_steps.decode_latents)
    denoise = RunsOut(planned.stage1_transformer.forward, times=0)
    monkeypatch.setattr(stage2_steps, "decode_latents", decode)
    monkeypatch.setattr(planned.stage1_transformer, "forward", denoise)
    found = run(planned, seeded)
    assert [call["thrift"] for call in decode.calls] == [None, "strips"]
    assert len(denoise.calls) == planned.preset.stage1.num_inference_steps  # Stage I was not done again
    assert caplog.text.count("out of memory at stage2_decode; going on with strip by strip") == 1
    torch.testing.assert_close(found.frames, expected.frames, atol=1e-4, rtol=0)


def test_a_step_that_ran_out_of_memory_is_the_only_one_done_again(planned, seeded, monkeypatch):
    steps = []
    transformer = planned.stage1_transformer
    forward = transformer.forward

    def fails_once(latents, *args, **kwargs):
        steps.append(len(latents))
        if len(steps) == 2:
            raise torch.OutOfMemoryError("out of memory")
        return forward(latents, *args, **kwargs)

    monkeypatch.setattr(transformer, "forward", fails_once)
    run(planned, seeded, preview_only=True)
    # Two steps with guidance in a batch of two; the second fails, and its branches follow one another.
    assert steps == [2, 2, 1, 1]


def test_weights_make_room_before_anything_slower_is_done(released):
    plan = plan_memory(released, FULL_HD, 80 * GIB)
    assert plan.resident
    offloaded = plan.thriftier("stage2_decode")
    assert not offloaded.resident
    assert measures(offloaded, "stage2_decode").thrift == "strips"
    assert measures(offloaded.thriftier("stage2_decode"), "stage2_decode").thrift == "caches"


def test_memory_that_runs_out_for_good_is_an_error(planned, seeded, monkeypatch):
    monkeypatch.setattr(stage2_steps, "decode_latents", RunsOut(stage2_steps.decode_latents, times=9))
    with pytest.raises(torch.OutOfMemoryError):
        run(planned, seeded)


def test_other_errors_are_left_alone(planned, seeded, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(stage2_steps, "decode_latents", fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run(planned, seeded)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("no"), True),
        (MemoryError(), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("size mismatch"), False),
    ],
)
def test_errors_of_memory_are_known(error, expected):
    assert is_out_of_memory(error) is expected


def test_a_plan_holds_for_the_parts_of_its_run_and_no_longer(planned, seeded, monkeypatch):
    plans = []
    plan_for = planned._memory.plan_for
    monkeypatch.setattr(
        planned._memory, "plan_for", lambda workload: plans.append(plan_for(workload)) or plans[-1]
    )
    run(planned, seeded)
    assert [phase.phase for phase in planned._memory.plan.phases] == list(PHASES)
    embeds = planned.encode_prompt(PROMPT)
    planned(prompt_embeds=embeds, preview_only=True)
    planned(prompt_embeds=embeds, preview_only=True)
    assert [len(plan.phases) for plan in plans] == [6, 1, 2, 2]


def test_a_run_inside_another_has_a_plan_of_its_own(planned):
    memory, part = planned._memory, Workload(preview=(5, 16, 24), text=False)
    with memory.planned(Workload(preview=(5, 16, 24))):
        whole = memory.plan
        with memory.planned(part):
            assert memory.plan is whole
        with memory.planned(Workload(preview=(5, 32, 48))):
            assert memory.plan is not whole
        assert memory.plan is whole


def test_the_text_alone_leaves_all_other_networks_where_they_are(released):
    plan = plan_memory(released, Workload(), 80 * GIB)
    assert not plan.resident
    assert plan.peak_bytes < 11 * GIB


def test_weights_that_a_config_does_not_tell_of_are_counted(pipeline):
    pipeline.enable_memory_plans("cpu")
    workload = Workload(preview=(5, 16, 24), text=False)
    before = pipeline._memory.plan_for(workload).phase("stage1")
    pipeline.stage1_transformer.add_adapter(LoraConfig(r=4, target_modules=["to_k", "to_q"]))
    adapter = 2 * 2 * 2 * 4 * 32 * 4  # layers, linears, matrices of 4 x 32 in 4 bytes
    assert pipeline._memory.plan_for(workload).phase("stage1").weight_bytes == before.weight_bytes + adapter


def test_weights_come_block_by_block_and_the_frames_are_the_same(pipeline, seeded, monkeypatch):
    expected = run(pipeline, seeded)
    pipeline.enable_memory_plans("cpu")
    memory = pipeline._memory
    for name in ("text_encoder", "stage1_transformer", "stage2_transformer"):
        memory._stream(name)
    found = run(pipeline, seeded)
    assert torch.equal(found.frames, expected.frames)
    memory.give_up("stage1_transformer")
    assert next(pipeline.stage1_transformer.parameters()).is_meta


def test_networks_that_are_given_up_leave_their_weights(planned, seeded):
    preview = run(planned, seeded, preview_only=True).preview
    embeds = planned.encode_prompt(PROMPT)
    expected = planned(preview=preview, output_type="pt").frames
    planned.give_up("text_encoder")
    planned.give_up("stage1_transformer")
    assert next(planned.stage1_transformer.parameters()).is_meta
    assert torch.equal(planned(prompt_embeds=embeds, preview=preview, output_type="pt").frames, expected)


def test_one_network_at_a_time_is_on_the_device(pipeline):
    """With a device of its own kind, "meta", whose networks are seen to come and go."""
    networks = {name: getattr(pipeline, name) for name in ("stage1_transformer", "vae", "text_encoder")}
    memory = DeviceMemory(networks, Footprint(ModelConfigs.of(pipeline), torch.float32), torch.device("meta"))
    memory.enter("stage1_decode")
    where = {name: next(network.parameters()).device.type for name, network in networks.items()}
    assert where == {"stage1_transformer": "cpu", "vae": "meta", "text_encoder": "cpu"}


def test_the_free_memory_of_the_host_is_known():
    assert free_bytes(torch.device("cpu")) > 2**28


def test_the_tracker_counts_what_is_alive_at_once():
    x = torch.ones(1000)
    with AllocationTracker() as tracker:
        y = x + 1
        del y
        z = x.view(10, 100) * 2  # a view is no allocation
        z += 1  # nor is work in place
    assert tracker.peak_bytes == 4000


def test_switches_of_the_two_stage_pipeline_reach_its_stages(pipeline, seeded):
    pipeline.enable_sequential_guidance()
    pipeline.enable_vae_strips("caches")
    thrifts = []
    pipeline.stage1.run_phase("stage1_decode", lambda measures: thrifts.append(measures.thrift))
    assert thrifts == ["caches"]
    assert pipeline.stage1._sequential_guidance
    pipeline.disable_vae_strips()
    pipeline.disable_sequential_guidance()
    assert not pipeline.stage2._sequential_guidance


def test_chunks_that_the_user_asked_for_stay(planned, seeded):
    planned.stage2_transformer.enable_forward_chunking(7)
    run(planned, seeded)
    assert planned.stage2_transformer.chunk_size == 7


def test_a_network_that_was_given_up_is_missed_in_one_sentence(planned, seeded):
    planned.give_up("stage1_transformer")
    with pytest.raises(ValueError, match="stage1_transformer was given up and is needed again"):
        run(planned, seeded)


def test_a_move_that_runs_out_of_memory_is_made_again(pipeline):
    networks = {name: getattr(pipeline, name) for name in ("stage1_transformer", "vae")}
    memory = DeviceMemory(networks, Footprint(ModelConfigs.of(pipeline), torch.float32), torch.device("meta"))
    pipeline.vae.encoder.to("meta")  # as if a move had stopped half way
    memory.enter("stage1_decode")
    assert all(parameter.is_meta for parameter in pipeline.vae.parameters())


def test_impossible_plans_are_errors(pipeline):
    with pytest.raises(ValueError, match="budget_bytes must be positive, got -5"):
        pipeline.enable_memory_plans("cpu", budget_bytes=-5)
    with pytest.raises(ValueError, match="weights must be one of"):
        pipeline.enable_memory_plans("cpu", weights="int4")
    with pytest.raises(ValueError, match="device must be one of"):
        pipeline.enable_memory_plans("cuda:99")


def test_clips_at_once_are_counted(released):
    one, four = (
        plan_memory(released, Workload(preview=(49, 272, 480), text=False, batch_size=n), 80 * GIB)
        for n in (1, 4)
    )
    assert four.phase("stage1_decode").work_bytes > 3 * one.phase("stage1_decode").work_bytes
