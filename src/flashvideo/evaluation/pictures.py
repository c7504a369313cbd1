r"""A picture of what a model makes: for each prompt its preview, and below it the same moment in full size.

Or, for held-out clips of dead leaves, what stands in for a photograph: bicubic, Stage II, and the truth, side by side.

    python -m flashvideo.evaluation.pictures --output frames.jpg "a red ball growing over sand" ...
    python -m flashvideo.evaluation.pictures --output leaves.jpg --leaves 3 7

Shapes: clips (F, 3, H, W) in [-1, 1].
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from flashvideo.data.dead_leaves import render_leaves
from flashvideo.evaluation.suite import FIRST_SEED
from flashvideo.evaluation.upscalers import upscale_clip
from flashvideo.pipelines.loading import load_pipeline
from flashvideo.pipelines.two_stage import FlashVideoPipeline
from flashvideo.video import contact_sheet, resize_video, save_image


def preview_and_final(pipeline: FlashVideoPipeline, prompt: str, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The last frame of the preview, enlarged without smoothing, and that of the final video; each (3, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    result: Any = pipeline(prompt, generator=generator, output_type="pt")
    final = result.frames[0].float()
    height, width = final.shape[-2:]
    preview = result.preview_frames[0][-1:].float()
    return torch.nn.functional.interpolate(preview, size=(height, width), mode="nearest")[0], final[-1]


def sheet(pipeline: FlashVideoPipeline, prompts: Sequence[str], *, width: int, seed: int = 0) -> Tensor:
    """Previews in the upper row, finals in the lower one: (2 * prompts, 3, H, `width`)."""
    pairs = [preview_and_final(pipeline, prompt, seed=seed) for prompt in tqdm(prompts)]
    frames = torch.stack([pair[i] for i in (0, 1) for pair in pairs])
    return resize_video(frames, round(width * frames.shape[-2] / frames.shape[-1]), width)


def leaves_sheet(
    pipeline: FlashVideoPipeline, indices: Sequence[int], *, width: int, seed: int = 0
) -> Tensor:
    """The middle frames of held-out dead leaves at preview size, enlarged: (3 * indices, 3, H, `width`).

    In each row bicubic, Stage II without a prompt, and the truth.
    """
    preset = pipeline.preset
    size = preset.stage2.height, preset.stage2.width
    frames = []
    for index in tqdm(indices):
        truth = torch.from_numpy(render_leaves(FIRST_SEED + index, height=size[0], width=size[1]))
        low = resize_video(truth, preset.stage1.height, preset.stage1.width)
        generator = torch.Generator().manual_seed(seed)
        result: Any = pipeline.stage2(low[None], generator=generator, output_type="pt")
        middle = len(truth) // 2
        clips = upscale_clip(low, *size, "bicubic"), result.frames[0].float(), truth
        frames += [clip[middle] for clip in clips]
    return resize_video(torch.stack(frames), round(width * size[0] / size[1]), width)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Show previews and what Stage II makes of them.")
    parser.add_argument("prompts", nargs="*", metavar="PROMPT")
    parser.add_argument("--leaves", nargs="+", type=int, metavar="N", help="held-out dead leaves instead")
    parser.add_argument("--model", default="nano", help="nano, or a model folder")
    parser.add_argument("--output", type=Path, required=True, help="picture file")
    parser.add_argument("--width", type=int, default=512, help="of one frame, in pixels")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if bool(arguments.prompts) == bool(arguments.leaves):
        parser.error("needs either prompts or --leaves")
    pipeline = load_pipeline(arguments.model)
    pipeline.set_progress_bar_config(disable=True)
    options = {"width": arguments.width, "seed": arguments.seed}
    if arguments.leaves:
        picture = contact_sheet(leaves_sheet(pipeline, arguments.leaves, **options), columns=3)
    else:
        picture = contact_sheet(sheet(pipeline, arguments.prompts, **options), columns=len(arguments.prompts))
    save_image(arguments.output, picture)


if __name__ == "__main__":
    main()
