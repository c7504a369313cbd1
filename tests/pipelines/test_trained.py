"""What a model was not trained on is warned of, once and in one sentence."""

import dataclasses
import logging

import pytest

from flashvideo.pipelines.sizes import named_size, preview_size
from flashvideo.pipelines.trained import log_untrained_preview, log_untrained_video
from flashvideo.pipelines.two_stage import FlashVideoPipeline
from flashvideo.presets import FLASHVIDEO, NANO, PRESETS, TRAINED_RANGES, TrainedRange

PROMPT = "a red circle moves left"


@pytest.mark.parametrize("name", PRESETS)
def test_a_models_own_size_and_length_are_within_its_training_range(name, caplog):
    stage1, stage2 = PRESETS[name].stage1, PRESETS[name].stage2
    log_untrained_preview(stage1.num_frames, stage1.height, stage1.width, preset=PRESETS[name])
    log_untrained_video(stage2.height, stage2.width, preset=PRESETS[name])
    assert not caplog.records


def test_1080p_is_a_note_off_the_training_of_the_released_model(caplog):
    preview = preview_size(*named_size("1080p"), preset=FLASHVIDEO, multiple=16)
    with caplog.at_level(logging.INFO):
        log_untrained_preview(49, *preview, preset=FLASHVIDEO)
        log_untrained_video(*(4 * side for side in preview), preset=FLASHVIDEO)
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("INFO", "Stage II works at height 1088 and width 1920, not quite the 1072 and 1920 of its training")
    ]


def test_2k_is_within_the_range_of_the_released_stage_two_alone(caplog):
    preview = preview_size(*named_size("2k"), preset=FLASHVIDEO, multiple=16)
    log_untrained_video(*(4 * side for side in preview), preset=FLASHVIDEO)
    assert not caplog.records
    log_untrained_preview(49, *preview, preset=FLASHVIDEO)
    assert [record.message for record in caplog.records] == [
        "a preview of height 368 and width 640 is outside what flashvideo is made for, height 256 to 272 and "
        "width 480: expect worse content and motion"
    ]


@pytest.mark.parametrize("num_frames", [1, 45, 53, 97])
def test_another_number_of_frames_is_named(caplog, num_frames):
    log_untrained_preview(num_frames, 272, 480, preset=FLASHVIDEO)
    assert [record.message for record in caplog.records] == [
        f"the number of frames, {num_frames}, is outside what flashvideo is made for, 49: "
        "expect worse content and motion"
    ]


@pytest.mark.parametrize(("height", "width"), [(1920, 1080), (704, 1280), (2176, 3840)])
def test_detail_outside_the_range_is_named(caplog, height, width):
    log_untrained_video(height, width, preset=FLASHVIDEO)
    assert [record.message for record in caplog.records] == [
        f"detail of height {height} and width {width} is outside what flashvideo is made for, height 1072 to 1472 "
        "and width 1920 to 2560: it may look unfinished"
    ]


def test_a_run_warns_of_each_before_any_work_and_once(pipeline, generator, caplog):
    preset = dataclasses.replace(pipeline.preset, name="nano")
    nano = FlashVideoPipeline(**pipeline.components, preset=preset)
    nano.set_progress_bar_config(disable=True)
    evaluations = []
    pipeline.stage1_transformer.register_forward_hook(lambda *_: evaluations.append(len(caplog.records)))
    with caplog.at_level(logging.WARNING):
        nano(PROMPT, height=32, width=32, num_frames=53, generator=generator)
    assert len(caplog.records) == 3
    assert set(evaluations) == {3}


def test_nothing_is_said_of_a_model_whose_training_is_not_known(pipeline, generator, caplog):
    pipeline(PROMPT, height=32, width=32, num_frames=9, generator=generator)
    assert not caplog.records


def test_ranges_belong_to_presets_and_are_not_empty():
    assert set(TRAINED_RANGES) == set(PRESETS)
    numbers = dataclasses.asdict(TRAINED_RANGES[NANO.name])
    with pytest.raises(ValueError, match=r"num_frames must be \(least, most\), both positive, got \(5, 1\)"):
        TrainedRange(**{**numbers, "num_frames": (5, 1)})
