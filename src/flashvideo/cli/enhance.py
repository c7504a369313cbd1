"""`flashvideo enhance`: detail for any video; frame count and rate stay as they are."""

from __future__ import annotations

import argparse
import logging
import secrets
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from flashvideo.cli import arguments as shared
from flashvideo.cli.arguments import UsageError
from flashvideo.cli.files import check_distinct, check_folder, check_input, check_output
from flashvideo.cli.messages import StepProgress, progress_is_shown
from flashvideo.cli.metadata import enhance_metadata
from flashvideo.cli.model import count_windows, encode_text, open_pipeline, use_threads
from flashvideo.cli.results import Phases, Result, describe_clip
from flashvideo.pipelines.sizes import named_size

if TYPE_CHECKING:
    from flashvideo.pipelines.settings import EnhanceSettings
    from flashvideo.pipelines.two_stage import FlashVideoPipeline
    from flashvideo.video import VideoInfo

logger = logging.getLogger(__name__)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "enhance",
        help="give a video more pixels and detail",
        description="Give any video more pixels and detail; frame count and rate stay as they are.",
        epilog="Long clips are enhanced in overlapping, blended windows. An existing output file is replaced.",
    )
    parser.add_argument("input", type=Path, metavar="IN", help="any video file that FFmpeg reads")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="OUT", required=True, help="the video: .mp4, .mov, .mkv or .webm"
    )
    parser.add_argument(
        "--prompt", type=shared.prompt, metavar="TEXT", help="what the video shows (default: no text)"
    )
    shared.add_motion_prefix(parser)
    target = parser.add_mutually_exclusive_group()
    target.add_argument(
        "--scale",
        type=shared.number(above=0),
        metavar="S",
        help="factor of both sides, to even numbers of pixels",
    )
    target.add_argument(
        "--size",
        type=shared.size,
        metavar="SIZE",
        help="720p, 1080p, 2k, ...: so many pixels on the shorter side, in the input's own shape; or exactly "
        "WIDTHxHEIGHT (default: the model's own factor)",
    )
    settings = parser.add_argument_group("settings")
    settings.add_argument("--steps", type=shared.whole_number(), metavar="N", help="number of steps")
    settings.add_argument(
        "--noise-step",
        type=shared.whole_number(least=0, most=999),
        metavar="K",
        help="0 to 999: how much of the detail is invented anew",
    )
    settings.add_argument(
        "--guidance",
        type=shared.number(least=1),
        metavar="G",
        help="guidance scale, with --prompt; 1 is none",
    )
    shared.add_shift(settings)
    shared.add_consistency(settings)
    shared.add_reference_rounding(settings)
    shared.add_seed(settings)
    shared.add_model_options(parser)
    shared.add_text_cache(parser)
    shared.add_prompt_metadata(parser)
    shared.add_progress(parser)
    shared.add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> Result:
    """Enhances a video.

    Raises:
        ValueError: In one sentence, what is wrong; before any long work.
    """
    check_input(arguments.input)
    check_output(arguments.output)
    check_distinct([arguments.output], [arguments.input])
    if arguments.guidance is not None and arguments.prompt is None:
        raise UsageError("--guidance is towards a prompt; add --prompt TEXT")
    if arguments.motion_prefix is not None and arguments.prompt is None:
        raise UsageError("--motion-prefix goes before a prompt; add --prompt TEXT")
    if arguments.text_cache is not None:
        check_folder(arguments.text_cache)
    seed = secrets.randbelow(2**31) if arguments.seed is None else arguments.seed
    phases = Phases()
    with use_threads(arguments.threads):
        with phases("read"):
            info, num_frames = inspect_video(arguments.input)
        with phases("load"):
            pipeline = open_pipeline(arguments)
            pipeline.check_has_stage2()
            settings = choose_settings(arguments, pipeline, info)
        with phases("enhance"):
            enhance_file(arguments, pipeline, settings, info, num_frames=num_frames, seed=seed)
    clip = describe_clip(num_frames, settings.height, settings.width, info.frame_rate)
    data = {
        "output": str(arguments.output),
        "input": str(arguments.input),
        **_metadata(arguments, pipeline, settings, info, num_frames, seed),
        "frame_rate": float(info.frame_rate),
        "seconds": phases.as_data(),
    }
    return Result(data=data, text=f"wrote {arguments.output}: {clip}, seed {seed}\n{phases.as_text()}")


def inspect_video(path: Path) -> tuple[VideoInfo, int]:
    """Reads a video once through, so that a file that is cut off is noticed now and not after hours.

    Returns:
        What the file declares, and the number of frames that it really holds.

    Raises:
        VideoError: If it cannot be read to its end.
    """
    import av

    from flashvideo.video import iter_frames, probe_video

    info = probe_video(path)
    num_frames = sum(1 for _ in iter_frames(path))
    with av.open(str(path.absolute())) as container:
        if container.streams.audio:
            logger.warning("%s has sound, which is not copied to the output", path)
    return info, num_frames


def choose_settings(
    arguments: argparse.Namespace, pipeline: FlashVideoPipeline, info: VideoInfo
) -> EnhanceSettings:
    """Completes the settings from the model's own and the input's size.

    Raises:
        ValueError: In one sentence, what is wrong.
    """
    from flashvideo.pipelines.settings import complete_settings

    height: int | None = None
    width: int | None = None
    if arguments.size is not None:
        height, width = named_size(arguments.size, like=(info.height, info.width), preset=pipeline.preset)
        shared.log_odd_size(height, width)
    if arguments.scale is not None:
        # Even sides are what every player shows; a factor leaves that much open, an exact size does not.
        height, width = (max(2, 2 * round(arguments.scale * side / 2)) for side in (info.height, info.width))
    return complete_settings(
        (info.height, info.width),
        preset=pipeline.preset,
        vae=pipeline.vae,
        height=height,
        width=width,
        num_inference_steps=arguments.steps,
        guidance_scale=arguments.guidance,
        noise_step=arguments.noise_step,
        shift=arguments.shift,
        consistency=arguments.consistency,
        reference_rounding=arguments.reference_rounding,
    )


def enhance_file(
    arguments: argparse.Namespace,
    pipeline: FlashVideoPipeline,
    settings: EnhanceSettings,
    info: VideoInfo,
    *,
    num_frames: int,
    seed: int,
) -> None:
    """Streams the frames through the model, from file to file; memory does not grow with the clip's length."""
    import torch

    from flashvideo.video import iter_frames, write_video

    prompt, prefix = arguments.prompt, arguments.motion_prefix
    embeds = None
    if arguments.text_cache is not None and prompt is not None:
        embeds = encode_text(arguments, pipeline, [prompt])
        prompt, prefix = None, None
    pipeline.give_up("stage1_transformer")
    total = count_windows(pipeline, num_frames, settings) * settings.num_inference_steps
    with StepProgress("enhance", total, shown=progress_is_shown(arguments.progress)) as progress:
        frames = pipeline.stage2.stream(
            iter_frames(arguments.input),
            prompt,
            prompt_prefix=prefix,
            prompt_embeds=None if embeds is None else embeds.stage2,
            settings=settings,
            num_frames=num_frames,
            generator=torch.Generator().manual_seed(seed),
            callback_on_step_end=progress,
        )
        pipeline.give_up("text_encoder")  # the text has been read
        metadata = _metadata(arguments, pipeline, settings, info, num_frames, seed)
        write_video(arguments.output, frames, frame_rate=Fraction(info.frame_rate), metadata=metadata)


def _metadata(
    arguments: argparse.Namespace,
    pipeline: FlashVideoPipeline,
    settings: EnhanceSettings,
    info: VideoInfo,
    num_frames: int,
    seed: int,
) -> dict[str, object]:
    return enhance_metadata(
        pipeline,
        settings,
        size=(num_frames, info.height, info.width),
        model=arguments.model,
        seed=seed,
        prompt=arguments.prompt,
        prompt_prefix=arguments.motion_prefix,
        with_prompt=arguments.prompt_metadata,
    )
