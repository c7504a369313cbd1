"""Sweeps of the toy pipeline: what runs, what is shared, what is kept, and what it is said to cost."""

import dataclasses
import json
import sys

import pytest
import torch

from flashvideo.evaluation.measures import Measure
from flashvideo.evaluation.scoring import System
from flashvideo.evaluation.sweep.checking import check_measures, check_sweep
from flashvideo.evaluation.sweep.files import Conditions, model_fingerprint, open_folder, read_runs
from flashvideo.evaluation.sweep.grid import Setting, make_grid
from flashvideo.evaluation.sweep.items import Item, input_items, scene_items
from flashvideo.evaluation.sweep.planning import Sweep, describe_conditions, grid_values
from flashvideo.evaluation.sweep.running import Maker, run_sweep
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
    """The folder of a sweep, which is not held open."""
    with open_folder(path, conditions, [item.as_dict() for item in sweep.items]) as folder:
        return folder


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
    if sys.platform == "linux":
        assert run.cost.peak_bytes > 2**20


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
        ({"model": {"name": "other"}}, "was measured with toy as model's name, and not with other"),
        ({"measurement": {"measures": ["psnr"]}}, "with mean as measures, and not with psnr"),
        ({"machine": {"device": "cuda"}}, "with cpu as machine's device, and not with cuda"),
        ({"machine": {}}, "with cpu as machine's device, and not with none"),
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
    assert len(evaluations) == 2 * 2 + 2  # two windows each, and one to warm up with text and without
    video = folder.path / folder.runs[1].video
    assert read_video(video).frames.shape == (9, 3, 32, 48)
    assert probe_video(video).frame_rate == 12
    note = read_metadata(video)
    assert (note["model"], note["prompt"], note["seed"]) == ("toy", PROMPT, 0)
    assert note["steps"] == {"stage2": 1}
    assert note["settings"]["stage2"]["shift"] == 4
    assert note["sizes"]["input"] == {"num_frames": 9, "height": 16, "width": 24}


def videos_of(tmp_path, *folders):
    for folder in folders:
        (tmp_path / folder).mkdir()
        write_video(tmp_path / folder / "a.mp4", torch.zeros(3, 3, 16, 24), frame_rate=8)


def test_a_reference_of_another_size_is_refused_before_any_work(pipeline, tmp_path):
    videos_of(tmp_path, "in", "true")
    items = input_items(tmp_path / "in", references=tmp_path / "true")
    check_sweep(pipeline, sweep_of("inputs", {"size": ["24x16"]}, items=items))
    with pytest.raises(
        ValueError, match="must have 3 frames of 48x32, as the result of a at size x2, got 3 of"
    ):
        check_sweep(pipeline, sweep_of("inputs", {"size": ["24x16", "x2"]}, items=items))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"steps": [2, 1001]}, "steps must be at most 1000, the steps of training, got 1001; take fewer"),
        ({"detail_steps": [1, 1001]}, "detail_steps must be at most 1000"),
        ({"detail_guidance": [1.0, 0.5]}, "guidance_scale must be at least 1, got 0.5"),
        ({"noise_step": [2, -1]}, "noise_step must be a whole number of at least 0"),
        ({"guidance": [3.0, 0.5]}, "guidance_scale must be at least 1, got 0.5"),
    ],
)
def test_every_setting_is_checked_before_any_work(pipeline, values, sentence):
    check_sweep(pipeline, sweep_of())
    with pytest.raises(ValueError, match=sentence):
        check_sweep(pipeline, sweep_of(values=values))


def test_guidance_where_only_some_videos_have_prompts_is_refused(pipeline, tmp_path):
    videos_of(tmp_path, "in")
    write_video(tmp_path / "in" / "b.mp4", torch.zeros(3, 3, 16, 24), frame_rate=8)
    items = input_items(tmp_path / "in", prompts={"b": PROMPT})
    check_sweep(pipeline, sweep_of("inputs", {"size": ["x2"]}, items=items))
    with pytest.raises(ValueError, match="guidance 2 of the detail is towards prompts, and a has none"):
        check_sweep(pipeline, sweep_of("inputs", {"size": ["x2"], "detail_guidance": [2.0]}, items=items))


@pytest.mark.parametrize(
    ("needs", "what"), [("reference", "a reference"), ("source", "what a result is made")]
)
def test_a_measure_that_cannot_apply_is_refused(needs, what):
    sweep = sweep_of(preview_only=True, measures=(dataclasses.replace(MEAN, needs=needs),))
    with pytest.raises(ValueError, match=f"mean needs {what}.*which a sweep of previews alone does not have"):
        check_measures(sweep)
    check_measures(sweep_of("scenes", items=scene_items(1), measures=sweep.measures))


def test_kept_previews_of_names_with_dots_are_each_their_own(pipeline, tmp_path):
    sweep = sweep_of(items=[Item(name="take.2", prompt=PROMPT)], seeds=(0, 1))
    folder = opened(tmp_path, sweep)
    made = [Maker(pipeline, sweep, folder).make(sweep.items[0], seed, sweep.settings[0]) for seed in (0, 1)]
    again = [Maker(pipeline, sweep, folder).make(sweep.items[0], seed, sweep.settings[0]) for seed in (0, 1)]
    assert not made[0].start.pixels.equal(made[1].start.pixels)
    assert [two.start.pixels.equal(one.start.pixels) for one, two in zip(made, again, strict=True)] == [
        True
    ] * 2
    assert len(list((tmp_path / "previews").iterdir())) == 4


def test_a_kept_preview_of_something_else_is_refused(pipeline, tmp_path):
    sweep = sweep_of(seeds=(0, 1))
    folder = opened(tmp_path, sweep)
    for seed in (0, 1):
        Maker(pipeline, sweep, folder).make(sweep.items[0], seed, sweep.settings[0])
    one, other = sorted((tmp_path / "previews").glob("*.safetensors"))
    other.write_bytes(one.read_bytes())
    with pytest.raises(ValueError, match="must be the preview of seed 1, got 0; remove it and one-seed1-"):
        Maker(pipeline, sweep, folder).make(sweep.items[0], 1, sweep.settings[0])


def test_videos_of_one_setting_are_a_system_that_can_be_evaluated(do):
    folder = do(sweep_of(seeds=(0, 1)), save_videos=True)
    names = sorted(path.name.rpartition("-")[0] for path in (folder.path / "videos").iterdir())
    assert names == ["detail_steps-1", "detail_steps-2"]
    for path in (folder.path / "videos").iterdir():
        assert sorted(seed.name for seed in path.iterdir()) == ["seed0", "seed1"]
        system = System.read(path / "seed1")
        assert list(system.videos) == ["one"]  # the item's name, by which references are found
        assert system.setting["steps.stage2"] == int(path.name[len("detail_steps-")])


def test_a_setting_keeps_its_folder_of_videos_when_the_grid_grows(do):
    do(sweep_of(values={"detail_steps": [1]}), save_videos=True)
    folder = do(sweep_of(values={"noise_step": [1, 2]}, seeds=(0, 1)), save_videos=True)
    runs = [run for run in folder.runs if run.setting == folder.runs[0].setting]
    assert len(runs) == 2
    assert len({run.video.rsplit("/", 2)[0] for run in runs}) == 1


def test_every_shape_is_warmed_up_once(do, pipeline):
    evaluations = evaluations_of(pipeline.stage2_transformer)
    do(
        sweep_of(
            values={"size": ["48x32", "64x32"], "detail_steps": [1], "detail_guidance": [1.0, 2.0]},
            seeds=(0, 1),
        )
    )
    warm_up = [1, 2, 1, 2]
    assert evaluations[: len(warm_up)] == warm_up
    assert len(evaluations) == len(warm_up) + 2 * 2 * 2


def test_a_result_that_is_not_finite_is_recorded_without_scores(do, pipeline, caplog):
    with torch.no_grad():
        pipeline.stage2_transformer.proj_out.bias.fill_(float("nan"))
    sweep = sweep_of("scenes", {"detail_steps": [1]}, items=scene_items(1), num_frames=5)
    folder = do(sweep, save_videos=True)
    assert [(run.scores, run.video) for run in folder.runs] == [({}, None)]
    assert "the result of scene_0000 with seed 0 and size 48x32, Stage II steps 1" in caplog.text
    assert "is not finite; it is recorded without scores" in caplog.text
    done = []
    do(sweep, on_run=done.append)
    assert done == []


def test_a_preview_that_is_not_finite_is_recorded_without_scores_too(do, pipeline, caplog):
    with torch.no_grad():
        pipeline.stage1_transformer.proj_out.bias.fill_(float("nan"))
    folder = do(sweep_of())
    assert [run.scores for run in folder.runs] == [{}, {}]
    assert caplog.text.count("is not finite; it is recorded without scores") == 2


def test_two_sweeps_at_once_in_a_folder_are_refused(tmp_path):
    with (
        open_folder(tmp_path / "out", CONDITIONS, []),
        pytest.raises(ValueError, match="another sweep is at work in"),
    ):
        opened(tmp_path / "out", sweep_of())
    opened(tmp_path / "out", sweep_of())


def test_a_run_that_is_there_twice_counts_once(do, tmp_path, caplog):
    do(sweep_of())
    path = tmp_path / "out" / "runs.jsonl"
    path.write_text(path.read_text() * 2)
    assert len(read_runs(tmp_path / "out")) == 2
    assert "line 3 of" in caplog.text


def test_all_that_numbers_depend_on_is_among_the_conditions(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    conditions = describe_conditions(pipeline, sweep_of(), model="toy", folder=tmp_path, vram=4)
    assert set(conditions.facts()) == {
        *("model's name", "model's fingerprint", "model's version"),
        *("kind", "preview_only", "num_frames", "consistency", "measures"),
        *("machine's device", "machine's processor name", "machine's processor cores"),
        *("machine's processor threads", "machine's dtype", "machine's weights", "machine's vram"),
        *("machine's torch", "machine's diffusers", "machine's transformers"),
    }
    without = {name for name, value in conditions.facts().items() if value is None}
    assert without == {"num_frames", "consistency"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kind", "scenes"),
        ("preview_only", True),
        ("num_frames", 9),
        ("consistency", False),
        ("measures", (dataclasses.replace(MEAN, variant="other"),)),
    ],
)
def test_whatever_changes_what_is_measured_is_noticed(tmp_path, name, value):
    sweep = sweep_of()
    opened(tmp_path, sweep, dataclasses.replace(CONDITIONS, measurement=sweep.about()))
    changed = dataclasses.replace(sweep, **{name: value})
    with pytest.raises(ValueError, match=f" as {name}, and not with "):
        opened(tmp_path, sweep, dataclasses.replace(CONDITIONS, measurement=changed.about()))


def test_a_grid_has_the_settings_that_apply_with_the_models_own_values(pipeline):
    given = {"detail_steps": (3, 4), "steps": None}
    assert grid_values(given, pipeline, kind="scenes") == {
        "size": ["48x32"],
        "detail_steps": (3, 4),
        "noise_step": (pipeline.preset.stage2.noise_step,),
        "shift": (pipeline.stage2_scheduler.shift,),
        "detail_guidance": (pipeline.preset.stage2.guidance_scale,),
    }
    assert set(grid_values({}, pipeline, kind="prompts", preview_only=True)) == {"size", "steps", "guidance"}
    assert "detail_guidance" not in grid_values({}, pipeline, kind="inputs", has_text=False)


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
