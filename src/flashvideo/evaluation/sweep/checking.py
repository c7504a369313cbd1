"""Checks of a whole sweep before its first run, so that it does not stop in the middle."""

from __future__ import annotations

from flashvideo.evaluation.folders import VideoFile
from flashvideo.evaluation.sweep.cost import detail_cost, preview_cost
from flashvideo.evaluation.sweep.grid import Setting
from flashvideo.evaluation.sweep.making import check_reference, complete_detail, result_size
from flashvideo.evaluation.sweep.planning import Sweep
from flashvideo.pipelines.footprint import ModelConfigs
from flashvideo.pipelines.inputs import or_default
from flashvideo.pipelines.sizes import named_size
from flashvideo.pipelines.two_stage import FlashVideoPipeline
from flashvideo.video import probe_video


def check_sweep(pipeline: FlashVideoPipeline, sweep: Sweep) -> None:
    """Checks every setting on every item by configs and by what files declare.

    Raises:
        ValueError: In one sentence, what the model does not take, or which video or reference does not fit.
    """
    for setting in sweep.settings:
        _check_steps(pipeline, setting)
    if sweep.kind == "inputs":
        _check_guidance(sweep)
        check_videos(pipeline, sweep)
    else:
        _check_sizes(pipeline, sweep)


def check_measures(sweep: Sweep) -> None:
    """Checks that every measure can be computed for at least one item.

    Raises:
        ValueError: If one needs what no item has.
    """
    for measure in sweep.measures:
        if measure.needs and measure.needs not in available_needs(sweep):
            what = {"reference": "a reference", "source": "what a result is made from", "prompt": "a prompt"}
            over = "a sweep of previews alone" if sweep.preview_only else f"this sweep over {sweep.kind}"
            raise ValueError(
                f"{measure.name} needs {what[measure.needs]}, which {over} does not have; leave it out"
            )


def available_needs(sweep: Sweep) -> set[str]:
    """Returns which of `reference`, `source` and `prompt` measures are given by a sweep."""
    needs = set()
    if not sweep.preview_only:
        needs.add("source")
        if sweep.kind == "scenes" or any(item.reference is not None for item in sweep.items):
            needs.add("reference")
    if any(item.prompt is not None for item in sweep.items):
        needs.add("prompt")
    return needs


def check_videos(pipeline: FlashVideoPipeline, sweep: Sweep) -> None:
    """Checks that the model takes the videos of a sweep, and that references are of the sizes that come out.

    Raises:
        ValueError: If one does not fit, or a file is no video.
    """
    configs = ModelConfigs.of(pipeline)
    for item in sweep.items:
        assert item.video is not None
        num_frames, *given = _declared(item.video)
        for setting in sweep.settings:
            final = result_size(pipeline, setting.size, (given[0], given[1]))
            if item.reference is not None:
                check_reference(item, setting.size, (num_frames, *final), _declared(item.reference))
            settings = complete_detail(
                pipeline, (given[0], given[1]), final, setting, consistency=sweep.consistency
            )
            detail_cost(configs, settings, num_frames=num_frames, has_text=item.prompt is not None)


def _check_sizes(pipeline: FlashVideoPipeline, sweep: Sweep) -> None:
    """Scenes and previews, of which sizes and frames are known from the settings."""
    configs = ModelConfigs.of(pipeline)
    num_frames = or_default(sweep.num_frames, pipeline.preset.stage1.num_frames)
    for setting in sweep.settings:
        final = named_size(setting.size)
        small = pipeline.preview_size(*final)
        if setting.steps is not None and setting.guidance is not None:
            preview_cost(
                configs, final, num_frames=num_frames, steps=setting.steps, guidance=setting.guidance
            )
        if not sweep.preview_only:
            enlarged = pipeline.enlarged_size(small, final)
            settings = complete_detail(
                pipeline, small, final, setting, consistency=sweep.consistency, enlarged=enlarged
            )
            detail_cost(configs, settings, num_frames=num_frames, has_text=True)


def _check_steps(pipeline: FlashVideoPipeline, setting: Setting) -> None:
    schedulers = (
        ("steps", setting.steps, pipeline.stage1_scheduler),
        ("detail_steps", setting.detail_steps, pipeline.stage2_scheduler),
    )
    for name, steps, scheduler in schedulers:
        if steps is not None and steps > (most := scheduler.config.num_train_timesteps):
            raise ValueError(f"{name} must be at most {most}, the steps of training, got {steps}; take fewer")


def _check_guidance(sweep: Sweep) -> None:
    """Where some videos have prompts and others not, settings with guidance would be two settings in one."""
    bare = [item.name for item in sweep.items if item.prompt is None]
    scales = [
        setting.detail_guidance for setting in sweep.settings if setting.detail_guidance not in (None, 1)
    ]
    if bare and scales:
        raise ValueError(
            f"guidance {scales[0]:g} of the detail is towards prompts, and {bare[0]} has none; give every video a "
            "prompt, or take the guidance 1"
        )


def _declared(file: VideoFile) -> tuple[int, int, int]:
    """Frames, height and width, of a video without decoding it."""
    num_frames = probe_video(file.paths[0]).num_frames if file.is_video else len(file.paths)
    return (num_frames, *file.size)
