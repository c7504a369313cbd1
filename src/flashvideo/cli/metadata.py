"""What the command writes into its videos about their making (the settings that were really used)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flashvideo import __version__
from flashvideo.cli.model import model_label
from flashvideo.cli.refinement import Refinement

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flashvideo.pipelines.preview import PreviewState
    from flashvideo.pipelines.settings import EnhanceSettings
    from flashvideo.pipelines.two_stage import FlashVideoPipeline


def two_stage_metadata(
    pipeline: FlashVideoPipeline,
    *,
    preview: PreviewState | None,
    shape: tuple[int, ...] | None,
    enlarged: tuple[int, int] | None,
    detail: Mapping[str, Any],
    model: str,
    stage1: str | None,
    prompt: str | None,
    refinement: Refinement | None = None,
    seed: int | None,
    with_prompt: bool,
) -> dict[str, Any]:
    """Describes a preview or a video made from one.

    Args:
        pipeline: The model, for its defaults.
        preview: The preview with its settings; None if it came as pixels.
        shape: (F, 3, H, W) of the final video; None for the preview's own file.
        enlarged: Height and width that Stage II worked at, where there is a final video.
        detail: The pipeline's arguments for Stage II, None where the model's own apply.
        model: The model's name or folder.
        stage1: Likewise of the model whose Stage I takes the place of its own, if there is one.
        prompt: The prompt of this command; None if the preview's applies.
        refinement: How the prompt of this command was refined, if it was.
        seed: The seed of this command; None if the preview's applies.
        with_prompt: Whether the prompt is part of the description.

    Returns:
        For `write_video`; the same whether or not the run stopped at the preview.
    """
    from flashvideo.video import generation_metadata

    sizes: dict[str, tuple[int, ...]] = {}
    steps: dict[str, int] = {}
    settings: dict[str, Any] = describe_machine(pipeline)
    if preview is not None:
        made = preview.settings
        sizes["stage1"] = (made.num_frames, made.height, made.width)
        steps["stage1"] = made.num_inference_steps
        settings["stage1"] = {
            "guidance_scale": made.guidance_scale,
            "guidance_schedule": made.guidance_schedule,
        }
        if stage1 is not None:
            settings["stage1"]["model"] = model_label(stage1)
        if made.loras:
            settings["stage1"]["loras"] = list(made.loras)
        if prompt is None or prompt == made.prompts[0]:
            prompt, refinement = made.prompts[0], Refinement.of_preview(made)
        if with_prompt and prompt != made.prompts[0]:
            settings["stage1"]["prompt"] = made.prompts[0]
        if seed is not None and seed != made.seed:
            settings["stage1"]["seed"] = made.seed
        seed = made.seed if seed is None else seed
    if shape is not None:
        defaults = pipeline.preset.stage2
        sizes["stage2"] = (shape[0], shape[2], shape[3])
        steps["stage2"] = detail["num_inference_steps"] or defaults.num_inference_steps
        guidance = detail["guidance_scale"]
        noise_step, consistency = detail["noise_step"], detail["consistency"]
        settings["stage2"] = {
            "guidance_scale": 1.0 if prompt is None else guidance or defaults.guidance_scale,
            "noise_step": defaults.noise_step if noise_step is None else noise_step,
            "consistency": defaults.consistency if consistency is None else consistency,
            **computed_size(pipeline, enlarged or (shape[2], shape[3]), (shape[2], shape[3])),
            **_if_given("shift", detail["shift"]),
            **_if_on("reference_rounding", detail["reference_rounding"]),
            **_prefix_note(pipeline, prompt, detail["prompt_prefix"], with_prompt=with_prompt),
        }
    if refinement is not None:
        settings["refinement"] = refinement.as_note(with_prompt=with_prompt)
    return generation_metadata(
        model=model_label(model),
        version=__version__,
        seed=seed,
        sizes=sizes,
        steps=steps,
        prompt=prompt if with_prompt else None,
        settings=settings,
    )


def enhance_metadata(
    pipeline: FlashVideoPipeline,
    settings: EnhanceSettings,
    *,
    size: tuple[int, int, int],
    model: str,
    seed: int,
    prompt: str | None,
    prompt_prefix: str | None,
    with_prompt: bool,
) -> dict[str, Any]:
    """Describes an enhanced video.

    Args:
        pipeline: The model.
        settings: Complete settings of the run.
        size: (num_frames, height, width) of the input.
        model: The model's name or folder.
        seed: The seed.
        prompt: The prompt, if there is one.
        prompt_prefix: What was asked to go before it; None for the model's own.
        with_prompt: Whether they are part of the description.

    Returns:
        For `write_video`.
    """
    from flashvideo.video import generation_metadata

    return generation_metadata(
        model=model_label(model),
        version=__version__,
        seed=seed,
        sizes={"input": size, "stage2": (size[0], settings.height, settings.width)},
        steps={"stage2": settings.num_inference_steps},
        prompt=prompt if with_prompt else None,
        settings={
            **describe_machine(pipeline),
            "stage2": {
                "guidance_scale": 1.0 if prompt is None else settings.guidance_scale,
                "noise_step": settings.noise_step,
                "consistency": settings.consistency,
                **computed_size(pipeline, settings.working_size, (settings.height, settings.width)),
                **_if_given("shift", settings.shift),
                **_if_on("reference_rounding", settings.reference_rounding),
                **_prefix_note(pipeline, prompt, prompt_prefix, with_prompt=with_prompt),
            },
        },
    )


def computed_size(
    pipeline: FlashVideoPipeline, enlarged: tuple[int, int], final: tuple[int, int]
) -> dict[str, dict[str, int]]:
    """Describes what Stage II computed beyond the video's size, and where the video lies in it; empty if nothing.

    Args:
        pipeline: The model.
        enlarged: Height and width that the input was resized to.
        final: Height and width of the video.

    Returns:
        `computed`, its height and width with the padding, and `crop`, the rows above and columns left of the video.
    """
    from flashvideo.pipelines.sizes import crop_offset

    height, width = pipeline.stage2.padded_size(*enlarged)
    if (height, width) == final:
        return {}
    top, left = crop_offset(enlarged, final)
    return {"computed": {"height": height, "width": width}, "crop": {"top": top, "left": left}}


def _if_on(name: str, switch: bool) -> dict[str, bool]:
    """A switch that is worth a word only when it is on."""
    return {name: True} if switch else {}


def _if_given(name: str, value: float | None) -> dict[str, float]:
    """A setting that is worth a word only where it is not the model's own."""
    return {} if value is None else {name: value}


def _prefix_note(
    pipeline: FlashVideoPipeline, prompt: str | None, prompt_prefix: str | None, *, with_prompt: bool
) -> dict[str, str]:
    """Returns the prefix of Stage II's prompt, as the prompt a text; nothing where there is none of its own."""
    own = pipeline.preset.stage2.prompt_prefix
    if prompt is None or not with_prompt or (prompt_prefix is None and not own):
        return {}
    return {"prompt_prefix": own if prompt_prefix is None else prompt_prefix}


def describe_machine(pipeline: FlashVideoPipeline) -> dict[str, str]:
    """Returns on what and in what the pipeline computes."""
    weights = {} if pipeline.weights == "full" else {"weights": pipeline.weights}
    return {"device": pipeline.execution_device.type, "dtype": dtype_name(pipeline), **weights}


def dtype_name(pipeline: FlashVideoPipeline) -> str:
    """Returns for example `float32`."""
    return str(pipeline.dtype).removeprefix("torch.")
