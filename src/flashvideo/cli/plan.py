"""`flashvideo plan`: what a run will need of the memory, and what will be done so that it fits."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from flashvideo.cli import arguments as shared
from flashvideo.cli.results import Result
from flashvideo.pipelines.sizes import enlarged_size, named_size, preview_size
from flashvideo.presets import FLASHVIDEO, RELEASED_REPOSITORY

if TYPE_CHECKING:
    from flashvideo.pipelines.footprint import ModelConfigs
    from flashvideo.pipelines.workload import Workload


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "plan",
        help="tell what a run will need of the memory",
        description="Tell for each phase of a run what it needs of the memory, and what is done so that it fits; exit "
        "code 1 if it does not. Nothing is downloaded or loaded. The phases are those of `generate`; `enhance` has the "
        "last three.",
    )
    parser.add_argument(
        "--model",
        default=FLASHVIDEO.name,
        metavar="NAME|DIR",
        help="a model's name, or its folder (default: %(default)s, the released model)",
    )
    shared.add_reference_size(parser)
    parser.add_argument("--frames", type=shared.whole_number(), metavar="N", help="number of frames")
    shared.add_vram(parser)
    shared.add_weights(parser)
    parser.add_argument(
        "--device",
        default="auto",
        help="without --vram, the device whose free memory counts (default: the best)",
    )
    parser.add_argument(
        "--dtype",
        default="bfloat16",
        metavar="TYPE",
        help="bfloat16, float16, float32, or auto: what `generate` takes on this device (default: %(default)s)",
    )
    shared.add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> Result:
    """Makes a plan from configs alone.

    Raises:
        ValueError: In one sentence, what is wrong.
    """
    from flashvideo.pipelines.device_memory import free_bytes, host_reserve
    from flashvideo.pipelines.devices import GIB, choose_device
    from flashvideo.pipelines.footprint import footprint_of
    from flashvideo.pipelines.loading import choose_dtype
    from flashvideo.pipelines.memory import DEVICE_RESERVE_BYTES, plan_memory

    shared.check_portrait(arguments)
    configs = read_configs(arguments.model)
    workload = workload_of(arguments, configs)
    device = choose_device(arguments.device)
    dtype = choose_dtype(arguments.dtype, device)
    dtype_name = str(dtype).removeprefix("torch.")
    on_host = arguments.vram is None and device.type == "cpu"
    plan = plan_memory(
        footprint_of(configs, dtype, weights=arguments.weights, on_host=on_host),
        workload,
        int(arguments.vram * GIB) if arguments.vram is not None else free_bytes(device),
        may_offload=not on_host,
        single_run=True,
        reserve_bytes=host_reserve(workload) if on_host else DEVICE_RESERVE_BYTES,
    )
    assert workload.preview is not None
    assert workload.video is not None
    frames, height, width = workload.video
    lines = [
        f"{configs.preset.name} in {dtype_name}: windows of {frames} frames of {width}x{height}, "
        f"from a preview of {workload.preview[0]} frames of {workload.preview[2]}x{workload.preview[1]}",
        str(plan),
    ]
    if not plan.fits:
        lines.append("it does not fit; a smaller size or fewer frames need less")
    sides = ("num_frames", "height", "width")
    data = {
        "model": configs.preset.name,
        "dtype": dtype_name,
        "stored_weights": arguments.weights,
        "preview": dict(zip(sides, workload.preview, strict=True)),
        "window": dict(zip(sides, workload.video, strict=True)),
        **plan.as_dict(),
    }
    return Result(data=data, text="\n".join(lines), exit_code=0 if plan.fits else 1)


def read_configs(model: str, *, command: str = "plan") -> ModelConfigs:
    """Returns the configs of a model; those of the released one are known without its files.

    Args:
        model: Its name or folder.
        command: What downloads nothing, for the error.

    Raises:
        ValueError: If there is no such model.
    """
    from flashvideo.pipelines.folders import is_repository, model_folder
    from flashvideo.pipelines.footprint import ModelConfigs

    if model in (FLASHVIDEO.name, RELEASED_REPOSITORY):
        return ModelConfigs.released()
    if is_repository(model):
        raise ValueError(
            f"{command} downloads nothing, got the repository {model}; give {FLASHVIDEO.name}, or the folder of a model"
        )
    return ModelConfigs.read(model_folder(model))


def workload_of(arguments: argparse.Namespace, configs: ModelConfigs) -> Workload:
    """Returns what `generate` would ask for.

    Raises:
        ValueError: If the model cannot make the size or the number of frames.
    """
    from flashvideo.pipelines.inputs import or_default
    from flashvideo.pipelines.trained import log_untrained_preview, log_untrained_video
    from flashvideo.pipelines.workload import Workload
    from flashvideo.shapes import check_num_frames, next_multiple, pixels_per_token

    preset = configs.preset
    if configs.stage2_transformer is None:
        raise ValueError(f"the model {arguments.model!r} has no Stage II; plan is for models of two stages")
    num_frames = or_default(arguments.frames, preset.stage1.num_frames)
    check_num_frames(num_frames, vae_config=configs.vae)
    multiple = pixels_per_token(configs.vae, int(configs.stage1_transformer["patch_size"]))
    size = named_size(arguments.size, portrait=arguments.portrait, preset=preset)
    preview = preview_size(*size, preset=preset, multiple=multiple)
    enlarged = enlarged_size(preview, size, preset=preset, multiple=multiple)
    log_untrained_preview(num_frames, *preview, preset=preset)
    log_untrained_video(*enlarged, preset=preset)
    height, width = (next_multiple(side, multiple) for side in enlarged)
    return Workload(
        preview=(num_frames, *preview),
        video=(min(num_frames, preset.stage1.num_frames), height, width),
        guided=(preset.stage1.guidance_scale != 1, preset.stage2.guidance_scale != 1),
    )
