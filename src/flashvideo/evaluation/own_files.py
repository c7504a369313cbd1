"""How a model does on files of one's own, which have no prompt and no rendered truth.

Videos and stills of at most 640 pixels of width are brought down by the model's factor, enhanced back and compared with
what they were; a video is also enhanced to twice its size and compared with itself. Both go through the VAE alone too,
at 640 pixels of width: Stage II cannot be better than its VAE.

    python -m flashvideo.evaluation.own_files --output own.json --pictures DIR [--frames N] [--right-half] FILE ...

Shapes: clips (F, 3, H, W) in [-1, 1].
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from flashvideo.evaluation.folders import PICTURE_SUFFIXES, read_picture
from flashvideo.evaluation.metrics import downsampled_psnr, flicker, gradient_energy_ratio, niqe
from flashvideo.evaluation.metrics.niqe import BLOCK
from flashvideo.evaluation.records import write_json
from flashvideo.evaluation.suite import Record, clip_psnr, compare
from flashvideo.evaluation.upscalers import upscale_clip
from flashvideo.pipelines.loading import load_pipeline
from flashvideo.pipelines.sizes import upscale_factor
from flashvideo.pipelines.two_stage import FlashVideoPipeline
from flashvideo.shapes import vae_factors
from flashvideo.vae import decode_latents, encode_pixels
from flashvideo.video import contact_sheet, read_video, resize_video, save_image

VAE_WIDTH = 640
STILL_FRAMES = 5
"""A still is enhanced as a short clip in which nothing moves: the models know clips."""


def read_still(path: Path, *, right_half: bool = False) -> Tensor:
    """A picture as a clip of one frame; `right_half` keeps that half, of pictures that show two side by side."""
    frame = read_picture(path)
    return frame[None, ..., frame.shape[-1] // 2 :] if right_half else frame[None]


def fit(clip: Tensor, width: int, multiple: int) -> Tensor:
    """Resize to a width, the height to the nearest multiple that keeps the shape."""
    height = max(1, round(clip.shape[-2] * width / clip.shape[-1] / multiple)) * multiple
    return resize_video(clip, height, width)


def through_vae(pipeline: FlashVideoPipeline, clip: Tensor) -> Record:
    """What the VAE keeps of a clip, at 640 pixels of width, without last frames that its time grid leaves over."""
    temporal, _ = vae_factors(pipeline.vae.config)
    clip = fit(clip[: (len(clip) - 1) // temporal * temporal + 1], VAE_WIDTH, 16)
    latents = encode_pixels(pipeline.vae, clip[None], scale=1.0)
    result = decode_latents(pipeline.vae, latents, scale=1.0, clamp=True)[0].float()
    return {
        "vae_psnr": clip_psnr(result, clip),
        "vae_gradient_energy": gradient_energy_ratio(result, clip).item(),
    }


def enlarged_figures(pipeline: FlashVideoPipeline, clip: Tensor) -> tuple[Record, Tensor]:
    """Enhance a clip to twice its size, which has no truth.

    Returns:
        "fidelity", the PSNR of the downsampled result, and NIQE and flicker of Stage II and of Lanczos; middle frames
        to look at: Lanczos, result.
    """
    height, width = 2 * clip.shape[-2], 2 * clip.shape[-1]
    result: Any = pipeline.stage2(
        clip[None], height=height, width=width, generator=_generator(), output_type="pt"
    )
    outputs = {
        "lanczos": upscale_clip(clip, height, width, "lanczos"),
        "stage2": result.frames[0].float(),
    }
    record = {"fidelity": downsampled_psnr(outputs["stage2"], clip).mean().item()}
    for name, output in outputs.items():
        if min(height, width) >= 2 * BLOCK:
            record[f"{name}_niqe"] = niqe(output[::4]).nanmean().item()
        if len(output) >= 3:
            record[f"{name}_flicker"] = flicker(output).item()
    return record, torch.stack([output[len(clip) // 2] for output in outputs.values()])


def restored_figures(pipeline: FlashVideoPipeline, clip: Tensor) -> tuple[Record, Tensor]:
    """Bring a clip, which is not enlarged before, down by the model's factor and enhance it back.

    A still is enhanced as a clip in which nothing moves.

    Returns:
        Figures of `compare` for Stage II and bicubic; "colour_shift", the largest difference of a channel's mean in
        8-bit levels; of videos "restored_flicker", the truth's too; middle frames to look at: bicubic, result, truth.
    """
    scale = upscale_factor(pipeline.preset)
    multiple = 16 * scale
    own_width = max(1, clip.shape[-1] // multiple) * multiple
    truth = fit(clip, VAE_WIDTH if clip.shape[-1] >= VAE_WIDTH else own_width, multiple)
    height, width = truth.shape[-2:]
    low = resize_video(truth, height // scale, width // scale)
    frames = low.expand(STILL_FRAMES, -1, -1, -1) if len(low) == 1 else low
    result: Any = pipeline.stage2(frames[None], generator=_generator(), output_type="pt")
    restored = result.frames[0].float()
    outputs = {
        "bicubic": upscale_clip(low, height, width, "bicubic"),
        "stage2": restored[STILL_FRAMES // 2][None] if len(low) == 1 else restored,
    }
    record: Record = {}
    for name, output in outputs.items():
        record |= {f"{name}_{key}": value for key, value in compare(output, truth).items()}
        shift = (output - truth).mean(dim=(0, 2, 3)).abs().max().item()
        record[f"{name}_colour_shift"] = 127.5 * shift
    if len(truth) >= 3:
        record |= {
            f"{name}_restored_flicker": flicker(video).item()
            for name, video in {**outputs, "truth": truth}.items()
        }
    return record, torch.stack([x[len(truth) // 2] for x in (*outputs.values(), truth)])


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure a model on videos and stills of one's own.")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="videos, or stills")
    parser.add_argument("--model", default="nano", help="nano, or a model folder")
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    parser.add_argument("--pictures", type=Path, help="folder for frames to look at")
    parser.add_argument(
        "--frames", type=int, help="of a video, from its start; the model's clip length by default"
    )
    parser.add_argument("--right-half", action="store_true", help="stills show two pictures; take the right")
    arguments = parser.parse_args()
    if arguments.frames is not None and arguments.frames < 1:
        parser.error(f"--frames must be at least 1, got {arguments.frames}")
    pipeline = load_pipeline(arguments.model)
    pipeline.set_progress_bar_config(disable=True)
    records = {}
    for path in tqdm(arguments.files):
        with torch.no_grad():
            is_still = path.suffix.lower() in PICTURE_SUFFIXES
            if is_still:
                clip = read_still(path, right_half=arguments.right_half)
            else:
                num_frames = arguments.frames or pipeline.preset.stage1.num_frames
                clip = read_video(path, num_frames=num_frames).frames
            record, frames = restored_figures(pipeline, clip)
            pictures = {path.stem: frames}
            if not is_still:
                figures, pictures[f"{path.stem}_enlarged"] = enlarged_figures(pipeline, clip)
                record |= figures
            record |= through_vae(pipeline, clip)
        records[path.name] = record
        write_json(arguments.output, records)
        if arguments.pictures:
            arguments.pictures.mkdir(parents=True, exist_ok=True)
            for name, frames in pictures.items():
                save_image(arguments.pictures / f"{name}.png", contact_sheet(frames, columns=len(frames)))
        print(path.name, " ".join(f"{name}={value:.3f}" for name, value in record.items()))


if __name__ == "__main__":
    main()
