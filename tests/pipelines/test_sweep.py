"""Sweeps of the toy pipeline: what runs, what is shared, what is kept, and what it is said to cost."""

import dataclasses
import json

import pytest
import torch

from flashvideo.evaluation.measures import Measure
from flashvideo.evaluation.sweep.files import Conditions, model_fingerprint, open_folder, read_runs
from flashvideo.evaluation.sweep.grid import Setting, make_grid
from flashvideo.evaluation.sweep.items import Item, input_items, scene_items
from flashvideo.evaluation.sweep.making import check_videos
from flashvideo.evaluation.sweep.running import Maker, Sweep, run_sweep
from flashvideo.video import probe_video, read_metadata, read_video, write_video

PROMPT = "a red circle moves left"
MEAN = Measure(
    name="mean", label="mean", better="neither", compute=lambda subject: subject.frames.mean().item()
)
GRID = {
    "size": ["48x32"],
    "detail_steps": [1, 2],
    "noise_step": [2],
    "shift": [2.5],
    "detail_guidance": [1.0],
}
PREVIEWS = {"steps": [2], "guidance": [3.0]}
CONDITIONS = Conditions(model={"name": "toy"}, measurement={"measures": ["mean"]}, machine={"device": "cpu"})


def sweep_of(kind="prompts", values=None, **options):
    items = options.pop("items", (Item(name="one", prompt=PROMPT),))
    grid = make_grid({**GRID, **(PREVIEWS if kind == "prompts" else {}), **(values or {})})
    return Sweep(
        kind=kind, items=tuple(items), settings=grid, **{"seeds": (0,), "measures": (MEAN,), **options}
    )


def opened(path, sweep, conditions=CONDITIONS):
    return open_folder(path, conditions, [item.as_dict() for item in sweep.items])


def evaluations_of(transformer):
    """A list that grows by the batch size at each evaluation."""
    seen = []
    transformer.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    return seen


@pytest.fixture
def do(pipeline, tmp_path):
    """`do(sweep)` runs a sweep in one folder and returns it."""

    def run(sweep, **options):
        folder = opened(tmp_path / "out", sweep)
        run_sweep(pipeline, sweep, folder, model="toy", **options)
        return folder

    return run


def test_every_setting_is_run_on_every_item_with_every_seed(do):
    items = [Item(name=name, prompt=PROMPT) for name in ("one", "two")]
    folder = do(sweep_of(items=items, seeds=(0, 1)))
    assert len(folder.runs) == 2 * 2 * 2
    assert len({run.key for run in folder.runs}) == 8
    assert read_runs(folder.path) == folder.runs


def test_a_preview_is_made_once_for_all_settings_of_stage_2_and_kept(do, pipeline):
    evaluations = evaluations_of(pipeline.stage1_transformer)
    do(sweep_of(seeds=(0, 1)))
    warm_up, steps = 1, 2
    assert len(evaluations) == warm_up + 2 * steps
    folder = do(sweep_of(values={"detail_steps": [1, 2, 3]}, seeds=(0, 1)))
    assert len(evaluations) == 2 * warm_up + 2 * steps
    assert len(folder.runs) == 6
    previews = {run.seed: run.cost.seconds["preview"] for run in folder.runs[:4]}
    assert {run.seed: run.cost.seconds["preview"] for run in folder.runs[4:]} == previews


def test_a_result_is_that_of_the_pipeline_also_from_a_kept_preview(pipeline, tmp_path):
    sweep = sweep_of()
    setting = dataclasses.replace(sweep.settings[0], shift=5.0, detail_steps=2)
    options = {"num_inference_steps": 2, "shift": 5.0, "guidance_scale": 1.0, "noise_step": 2}
    generator = torch.Generator().manual_seed(3)
    expected = pipeline(PROMPT, generator=generator, output_type="pt", **options).frames[0]
    folder = opened(tmp_path, sweep)
    for _ in range(2):
        made = Maker(pipeline, sweep, folder).make(sweep.items[0], 3, setting)
        assert made.frames.equal(expected)


def test_a_run_counts_what_the_networks_really_do(do, pipeline):
    seen = evaluations_of(pipeline.stage1_transformer), evaluations_of(pipeline.stage2_transformer)
    folder = do(sweep_of(values={"detail_steps": [3], "detail_guidance": [2.0]}))
    (run,) = folder.runs
    warm_up = 2
    assert run.cost.evaluations == {"stage1": sum(seen[0]) - warm_up, "stage2": sum(seen[1]) - warm_up}
    assert run.cost.evaluations == {"stage1": 4, "stage2": 6}
    assert set(run.cost.seconds) == {"text", "preview", "detail"}
    assert set(run.cost.flops) == {
        "text",
        "stage1",
        "stage1_decode",
        "stage2_encode",
        "stage2",
        "stage2_decode",
    }
    assert run.cost.peak_bytes is None or run.cost.peak_bytes > 0


def test_an_interrupted_sweep_goes_on_where_it_stood(do, tmp_path):
    calls = []

    def interrupting(subject):
        calls.append(subject)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return 1.0

    measure = dataclasses.replace(MEAN, compute=interrupting)
    sweep = sweep_of(values={"detail_steps": [1, 2, 3]}, measures=(measure,))
    with pytest.raises(KeyboardInterrupt):
        do(sweep)
    assert [run.setting.detail_steps for run in read_runs(tmp_path / "out")] == [1]
    done = []
    folder = do(sweep, on_run=done.append)
    assert done == [2, 3]
    assert [run.setting.detail_steps for run in folder.runs] == [1, 2, 3]


def test_a_torn_last_line_is_dropped_and_its_run_done_again(do, tmp_path):
    do(sweep_of())
    path = tmp_path / "out" / "runs.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    folder = do(sweep_of())
    assert len(folder.runs) == 2
    assert len(path.read_bytes().splitlines()) == 2
    assert path.read_bytes().splitlines()[0] == whole.splitlines()[0]


def test_a_line_that_is_no_run_is_refused(do, tmp_path):
    do(sweep_of())
    path = tmp_path / "out" / "runs.jsonl"
    path.write_text('{"item": "one"}\n' + path.read_text())
    with pytest.raises(ValueError, match=r"line 1 of .*runs.jsonl is not a run; remove that line"):
        do(sweep_of())


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        ({"model": {"name": "other"}}, "was measured with another model name, toy and not other"),
        ({"measurement": {"measures": ["psnr"]}}, "another measurement measures, mean and not psnr"),
        ({"machine": {"device": "cuda"}}, "another machine device, cpu and not cuda"),
        ({"machine": {}}, "another machine device, cpu and not none"),
    ],
)
def test_what_was_measured_otherwise_is_never_mixed(tmp_path, part, sentence):
    opened(tmp_path / "out", sweep_of())
    before = (tmp_path / "out" / "sweep.json").read_bytes()
    with pytest.raises(ValueError, match=sentence):
        opened(tmp_path / "out", sweep_of(), dataclasses.replace(CONDITIONS, **part))
    assert (tmp_path / "out" / "sweep.json").read_bytes() == before


def test_more_items_may_join_but_none_may_change(tmp_path):
    one, two = (Item(name=name, prompt=PROMPT) for name in ("one", "two"))
    opened(tmp_path / "out", sweep_of(items=[one]))
    opened(tmp_path / "out", sweep_of(items=[two]))
    names = [item["name"] for item in json.loads((tmp_path / "out" / "sweep.json").read_text())["items"]]
    assert names == ["one", "two"]
    changed = Item(name="one", prompt="a blue square")
    with pytest.raises(ValueError, match="was measured with another one than the one given now"):
        opened(tmp_path / "out", sweep_of(items=[changed]))


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no sweep; choose a new folder"):
        opened(tmp_path, sweep_of())


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 0}'])
def test_a_sweep_of_another_format_is_refused(tmp_path, content):
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(ValueError, match=r"is not what this version writes \(format 1\)"):
        opened(tmp_path, sweep_of())


def test_scenes_are_compared_with_their_rendering_in_the_swept_size(do):
    def shapes(subject):
        assert subject.reference.shape == subject.frames.shape
        assert subject.source.shape == (5, 3, *(side // 2 for side in subject.frames.shape[-2:]))
        assert subject.prompt
        return float(subject.frames.shape[-1])

    measure = dataclasses.replace(MEAN, compute=shapes)
    folder = do(
        sweep_of(
            "scenes", {"size": ["48x32", "64x32"]}, items=scene_items(1), num_frames=5, measures=(measure,)
        )
    )
    assert [run.scores["mean"] for run in folder.runs] == [48, 48, 64, 64]
    assert set(folder.runs[0].cost.seconds) == {"text", "detail"}


def test_a_sweep_of_previews_stops_after_stage_1(do, pipeline):
    evaluations = evaluations_of(pipeline.stage2_transformer)
    grid = make_grid({"size": ["48x32"], "steps": [1, 2], "guidance": [1.0]})
    sweep = dataclasses.replace(sweep_of(), settings=grid, preview_only=True)
    folder = do(sweep)
    assert not evaluations
    assert [run.cost.evaluations for run in folder.runs] == [{"stage1": 1}, {"stage1": 2}]


def test_videos_are_enhanced_with_and_without_a_prompt_and_kept_with_a_note(do, pipeline, tmp_path):
    evaluations = evaluations_of(pipeline.stage2_transformer)
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        write_video(tmp_path / "in" / f"{name}.mp4", torch.rand(9, 3, 16, 24) * 2 - 1, frame_rate=12)
    items = input_items(tmp_path / "in", prompts={"b": PROMPT})
    values = {"size": ["x2"], "detail_steps": [1], "shift": [4.0]}
    folder = do(sweep_of("inputs", values, items=items), save_videos=True)
    assert [run.cost.evaluations for run in folder.runs] == [{"stage2": 2}, {"stage2": 2}]
    assert len(evaluations) == 2 * 3  # two windows each, and to warm up
    video = folder.path / folder.runs[1].video
    assert read_video(video).frames.shape == (9, 3, 32, 48)
    assert probe_video(video).frame_rate == 12
    note = read_metadata(video)
    assert (note["model"], note["prompt"], note["seed"]) == ("toy", PROMPT, 0)
    assert note["steps"] == {"stage2": 1}
    assert note["settings"]["stage2"]["shift"] == 4
    assert note["sizes"]["input"] == {"num_frames": 9, "height": 16, "width": 24}


def test_a_reference_of_another_size_is_refused_before_any_work(pipeline, tmp_path):
    for folder in ("in", "true"):
        (tmp_path / folder).mkdir()
        write_video(tmp_path / folder / "a.mp4", torch.zeros(3, 3, 16, 24), frame_rate=8)
    items = input_items(tmp_path / "in", references=tmp_path / "true")
    check_videos(pipeline, items, ["24x16"])
    with pytest.raises(
        ValueError, match="must have 3 frames of 48x32, as the result of a at size x2, got 3 of"
    ):
        check_videos(pipeline, items, ["24x16", "x2"])


def test_other_weights_are_another_model(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "model")
    before = model_fingerprint(tmp_path / "model")
    assert model_fingerprint(tmp_path / "model") == before
    path = next((tmp_path / "model" / "vae").glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert model_fingerprint(tmp_path / "model") != before


def test_settings_of_a_run_come_back_from_its_line(do):
    folder = do(sweep_of())
    assert read_runs(folder.path)[0].setting == Setting.from_dict(folder.runs[0].setting.as_dict())
