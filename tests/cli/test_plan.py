"""`flashvideo plan`."""

import json

import torch


def test_a_plan_of_the_shipped_model_is_a_table(call):
    outcome = call("plan", "--model", "nano", "--vram", "8")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert (
        lines[0] == "nano in bfloat16: windows of 17 frames of 640x384, from a preview of 17 frames of 160x96"
    )
    assert [line.split()[0] for line in lines[2:-1]] == [
        "text",
        "stage1",
        "stage1_decode",
        "stage2_encode",
        "stage2",
        "stage2_decode",
    ]
    assert " of 8.00 GiB, 1.00 GiB of it for what is not torch's; all weights stay" in lines[-1]


def test_a_plan_is_json_too(call):
    values = json.loads(call("plan", "--model", "nano", "--vram", "8", "--json").out)
    assert values["fits"] is True
    assert values["exit_code"] == 0
    assert {"phase", "peak_gib", "host_gib", "measures"} <= values["phases"][0].keys()


def test_what_does_not_fit_is_said_with_exit_code_1(call):
    outcome = call("plan", "--model", "nano", "--vram", "0.1")
    assert outcome.code == 1
    assert outcome.out.splitlines()[-1] == "it does not fit; a smaller size or fewer frames need less"


def test_a_folder_is_planned_without_its_weights(call, toy_model):
    outcome = call("plan", "--model", toy_model, "--frames", "9", "--size", "64x48")
    assert outcome.code == 0
    assert outcome.out.startswith(
        "toy in bfloat16: windows of 5 frames of 64x48, from a preview of 9 frames of 32x24"
    )


def test_frames_that_do_not_fit_the_vae_are_refused(call, refusal):
    assert "num_frames must be 2k+1, got 4" in refusal(call, "plan", "--model", "nano", "--frames", "4")


def test_portrait_beside_a_landscape_size_is_refused(call, refusal):
    assert "try 48x64" in refusal(call, "plan", "--portrait", "--size", "64x48", code=2)


def test_what_the_model_is_not_made_for_is_warned_of(call):
    outcome = call("plan", "--model", "nano", "--vram", "8", "--size", "1280x1280", "--frames", "65")
    assert outcome.code == 0
    assert "a preview of height 320 and width 320 is outside what nano is made for" in outcome.err
    assert "the number of frames, 65, is outside what nano is made for" in outcome.err
    assert "detail of height 1280 and width 1280 is outside what nano is made for" in outcome.err


def test_a_repository_is_not_downloaded_for_a_plan(call, refusal):
    sentence = refusal(call, "plan", "--model", "zai-org/CogVideoX-2b")
    assert "plan downloads nothing, got the repository zai-org/CogVideoX-2b" in sentence


def test_the_dtype_that_auto_stands_for_is_said(call, monkeypatch):
    monkeypatch.setattr("flashvideo.pipelines.loading.choose_dtype", lambda dtype, device: torch.float16)
    outcome = call("plan", "--model", "nano", "--vram", "8", "--dtype", "auto", "--json")
    assert json.loads(outcome.out)["dtype"] == "float16"


def test_weights_in_8_bits_are_counted_as_such(call):
    full, fp8 = (
        json.loads(
            call("plan", "--vram", "12", "--size", "270p", "--frames", "1", "--weights", kind, "--json").out
        )
        for kind in ("full", "fp8")
    )
    stage2 = [next(p for p in plan["phases"] if p["phase"] == "stage2") for plan in (full, fp8)]
    assert stage2[1]["weights_gib"] < 0.7 * stage2[0]["weights_gib"]
