"""`flashvideo generate`: from a prompt to a video, with the preview between the stages as a file.

The preview is written as soon as Stage I is done. Continuing from it goes the same way as not stopping, so that both
give the same video bit for bit.
"""

from __future__ import annotations

import argparse
import secrets
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from flashvideo.cli import arguments as shared
from flashvideo.cli.arguments import UsageError
from flashvideo.cli.files import LATENTS_SUFFIX, check_distinct, check_folder, check_input, check_output
from flashvideo.cli.generation import Generation, preview_shape
from flashvideo.cli.model import encode_text, open_pipeline, use_threads
from flashvideo.cli.refinement import Refinement, add_refinement, check_refinement, refine
from flashvideo.cli.results import Phases, Result, describe_clip
from flashvideo.pipelines.sizes import REFERENCE, SHORT_SIDES, named_size
from flashvideo.presets import NANO

if TYPE_CHECKING:
    import torch

    from flashvideo.pipelines.preview import PreviewState
    from flashvideo.pipelines.two_stage import FlashVideoPipeline


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "generate",
        help="make a video from a prompt",
        description="Make a video from a prompt: a small preview first, then detail at full size.",
        epilog="The preview is the smallest that, enlarged by the model, covers the size; what it has more is cut off. "
        f"What is not given is the model's own; {own_settings()}. Existing output files are replaced.",
    )
    parser.add_argument(
        "prompt", nargs="?", type=shared.prompt, metavar="PROMPT", help="what the video shall show"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="OUT", help="the video: .mp4, .mov, .mkv or .webm"
    )
    add_refinement(parser)
    previews = parser.add_argument_group("preview")
    previews.add_argument(
        "--preview",
        type=Path,
        metavar="FILE",
        help=f"write the preview too, and beside it FILE{LATENTS_SUFFIX}, from which --from-preview continues exactly "
        "(that file holds the prompt)",
    )
    previews.add_argument("--preview-only", action="store_true", help="stop after the preview")
    previews.add_argument(
        "--from-preview",
        type=Path,
        metavar="FILE",
        help=f"continue from a preview (its video or its {LATENTS_SUFFIX} file), or from the pixels of any video; "
        "PROMPT then replaces the preview's",
    )
    previews.add_argument(
        "--previews",
        type=shared.whole_number(),
        metavar="N",
        help="make N previews with consecutive seeds and a contact sheet to choose from, then stop",
    )
    settings = parser.add_argument_group("settings")
    shared.add_seed(settings)
    add_sampling(settings)
    settings.add_argument(
        "--negative-prompt",
        metavar="TEXT",
        help="has no effect on these models, which are guided against no text; it is answered with a warning",
    )
    add_stage1_parts(parser)
    shared.add_model_options(parser)
    shared.add_text_cache(parser)
    shared.add_prompt_metadata(parser)
    shared.add_progress(parser)
    shared.add_common(parser)
    parser.set_defaults(run=run)


def add_sampling(settings: argparse._ActionsContainer) -> None:
    """Adds how a video is made of a prompt: size, length, steps and guidance of both stages."""
    settings.add_argument(
        "--size",
        type=shared.size,
        metavar="SIZE",
        help=f"size of the final video: {', '.join(SHORT_SIDES)} at 16:9, any WIDTHxHEIGHT, or {REFERENCE} for the "
        "model's own (the default)",
    )
    settings.add_argument(
        "--portrait", action="store_true", help="the named size, or the model's own, upright"
    )
    settings.add_argument(
        "--frames",
        type=shared.whole_number(),
        metavar="N",
        help="number of frames: one more than a multiple of the VAE's compression in time",
    )
    settings.add_argument(
        "--steps",
        type=shared.whole_number(),
        metavar="N",
        help="steps of the preview; after --from-preview, where only detail is left, steps of the detail",
    )
    settings.add_argument(
        "--guidance", type=shared.number(least=1), metavar="G", help="guidance scale of the same; 1 is none"
    )
    settings.add_argument(
        "--detail-steps", type=shared.whole_number(), metavar="N", help="steps of the detail, Stage II"
    )
    settings.add_argument(
        "--detail-guidance", type=shared.number(least=1), metavar="G", help="guidance scale of the detail"
    )
    settings.add_argument(
        "--noise-step",
        type=shared.whole_number(least=0, most=999),
        metavar="K",
        help="0 to 999: how much of the detail is invented anew",
    )
    shared.add_shift(settings)
    shared.add_consistency(settings)
    shared.add_reference_rounding(settings)
    shared.add_motion_prefix(settings)


def add_stage1_parts(parser: argparse.ArgumentParser) -> None:
    """Adds `--stage1` and `--lora`."""
    parts = parser.add_argument_group("Stage I")
    parts.add_argument(
        "--stage1",
        metavar="DIR|REPO",
        help="a CogVideoX-2B or 5B to make the preview with, instead of the model's own Stage I",
    )
    parts.add_argument(
        "--lora",
        dest="loras",
        action="append",
        default=[],
        type=shared.lora,
        metavar="FILE[:SCALE]",
        help="a LoRA for CogVideoX to put on Stage I, in safetensors; may be given several times",
    )


def own_settings() -> str:
    """Returns what the model inside the package does when nothing is asked for, for the help."""
    first, second = NANO.stage1, NANO.stage2
    return (
        f"{NANO.name} makes {describe_clip(first.num_frames, second.height, second.width, first.frame_rate)} in "
        f"{first.num_inference_steps} steps of guidance {first.guidance_scale:g} for the preview of "
        f"{first.width}x{first.height}, and {second.num_inference_steps} for the detail"
    )


def run(arguments: argparse.Namespace) -> Result:
    """Makes a preview, several, or a video.

    Raises:
        ValueError: In one sentence, what is wrong; before any long work.
    """
    check_combination(arguments)
    previews = check_files(arguments)
    phases = Phases()
    with use_threads(arguments.threads):
        refinement = None
        if arguments.refine_prompt:
            with phases("refine"):
                refinement = refine(arguments)
        with phases("load"):
            generation = prepare(arguments, phases, refinement)
        if arguments.previews:
            return generation.make_candidates(previews)
        return generation.make_video(previews[0] if previews else None)


def check_combination(arguments: argparse.Namespace) -> None:
    """Checks the options against one another.

    Raises:
        UsageError: If two contradict, or one is missing.
    """
    shared.check_portrait(arguments)
    check_refinement(arguments)
    if arguments.from_preview is None:
        if arguments.prompt is None:
            raise UsageError("generate needs a PROMPT, or --from-preview FILE to continue from")
        stops = arguments.preview_only or arguments.previews
        if arguments.output is None and not (stops and arguments.preview):
            raise UsageError("generate needs -o OUT for the video" + (", or --preview FILE" if stops else ""))
        return
    if arguments.output is None:
        raise UsageError("generate needs -o OUT for the video")
    for name in ("preview", "preview_only", "previews", "frames", "portrait", "loras"):
        if getattr(arguments, name):
            option = "--" + name.replace("_", "-").removesuffix("s" if name == "loras" else "")
            raise UsageError(
                f"{option} is of the preview, which --from-preview has already; drop one of the two"
            )
    for name in ("steps", "guidance"):
        if getattr(arguments, name) is not None and getattr(arguments, f"detail_{name}") is not None:
            raise UsageError(f"--{name} means --detail-{name} after --from-preview; give one of the two")


def preview_paths(arguments: argparse.Namespace) -> list[Path]:
    """Returns where previews go: none, one, or one per candidate and behind them the contact sheet."""
    base: Path | None = arguments.preview
    if arguments.previews:
        if base is None:
            base = arguments.output.with_name(f"{arguments.output.stem}-preview{arguments.output.suffix}")
        candidates = [base.with_name(f"{base.stem}-{i + 1}{base.suffix}") for i in range(arguments.previews)]
        return [*candidates, base.with_suffix(".png")]
    if base is None and arguments.preview_only:
        base = arguments.output
    return [] if base is None else [base]


def check_files(arguments: argparse.Namespace) -> list[Path]:
    """Checks that inputs can be read and outputs written.

    Returns:
        Where previews go, as `preview_paths`.

    Raises:
        ValueError: In one sentence, what is wrong.
    """
    for path in filter(None, (arguments.output, arguments.preview)):
        check_output(path)
    if arguments.text_cache is not None:
        check_folder(arguments.text_cache)
    previews = preview_paths(arguments)
    sheets = previews[-1:] if arguments.previews else []
    videos = [path for path in previews if path not in sheets]
    beside = sheets + [path.with_suffix(LATENTS_SUFFIX) for path in videos]
    for path in videos:
        check_output(path)
    for path in beside:
        check_output(path, (path.suffix,))
    inputs = [path for path, _ in arguments.loras]
    if arguments.from_preview is not None:
        inputs.append(arguments.from_preview)
    for path in inputs:
        check_input(path)
    outputs = [] if arguments.preview_only or arguments.previews else [arguments.output]
    check_distinct([*outputs, *videos, *beside], inputs)
    return previews


def prepare(arguments: argparse.Namespace, phases: Phases, refinement: Refinement | None) -> Generation:
    """Reads the preview to continue from, if any, loads the model, and checks sizes and frames against it.

    With `--text-cache` the text is encoded here.

    Raises:
        ValueError: In one sentence, what is wrong.
    """
    from flashvideo.pipelines.inputs import log_negative_prompt
    from flashvideo.pipelines.preview import PreviewState, read_preview
    from flashvideo.video import probe_video

    source = None if arguments.from_preview is None else read_preview(arguments.from_preview)
    pipeline = open_pipeline(arguments, stage1=arguments.stage1)
    put_on_loras(pipeline, arguments.loras)
    if not (arguments.preview_only or arguments.previews):
        pipeline.check_has_stage2()
    size = choose_size(arguments, pipeline, source)
    frame_rate = Fraction(pipeline.preset.stage1.frame_rate).limit_denominator(1001)
    if source is not None and not isinstance(source, PreviewState):
        frame_rate = probe_video(arguments.from_preview).frame_rate
    # A preview's own randomness goes on where it stood, unless another seed is asked for.
    seed = arguments.seed
    if seed is None and not isinstance(source, PreviewState):
        seed = secrets.randbelow(2**31)
    prompt = arguments.prompt if refinement is None else refinement.prompt
    prompts = source.settings.prompts if isinstance(source, PreviewState) else ()
    if prompt is not None:
        prompts = (prompt,)
    # Stage I alone reads its text itself.
    reads_both = arguments.text_cache is not None or not (arguments.preview_only or arguments.previews)
    log_negative_prompt(arguments.negative_prompt)
    return Generation(
        arguments=arguments,
        pipeline=pipeline,
        source=source,
        size=size,
        seed=seed,
        frame_rate=frame_rate,
        phases=phases,
        prompt=prompt,
        refinement=refinement,
        embeds=encode_text(arguments, pipeline, prompts) if reads_both else None,
    )


def choose_size(
    arguments: argparse.Namespace, pipeline: FlashVideoPipeline, source: PreviewState | torch.Tensor | None
) -> tuple[int, int] | None:
    """Returns height and width of the final video; None for the model's own, or the one that the preview is for."""
    if arguments.size is None and not arguments.portrait:
        return None
    portrait = arguments.portrait
    if source is not None and arguments.size.strip().lower() in SHORT_SIDES:
        height, width = preview_shape(source)[1:]
        portrait = height > width  # a name stands as the preview does
    size = named_size(arguments.size or REFERENCE, portrait=portrait, preset=pipeline.preset)
    shared.log_odd_size(*size)
    return size


def put_on_loras(pipeline: FlashVideoPipeline, loras: Sequence[tuple[Path, float]]) -> None:
    """Loads LoRAs and sets their scales.

    Raises:
        ValueError: If one does not fit, or two have the same name.
    """
    from flashvideo.pipelines.stage1_lora import adapter_name_of

    scales = {adapter_name_of(path): scale for path, scale in loras}
    if len(scales) < len(loras):
        names = ", ".join(path.name for path, _ in loras)
        raise ValueError(f"--lora needs files of different names, got {names}; rename one of them")
    for path, _ in loras:
        pipeline.load_lora_weights(path, adapter_name=adapter_name_of(path))
    if scales:
        pipeline.set_lora_scales(scales)
