r"""A picture of what a model makes: for each prompt its preview, and below it the same moment in full size.

    python -m flashvideo.evaluation.pictures --output frames.jpg "a red ball growing over sand" ...

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


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Show previews and what Stage II makes of them.")
    parser.add_argument("prompts", nargs="+", metavar="PROMPT")
    parser.add_argument("--model", default="nano", help="nano, or a model folder")
    parser.add_argument("--output", type=Path, required=True, help="picture file")
    parser.add_argument("--width", type=int, default=512, help="of one frame, in pixels")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    pipeline = load_pipeline(arguments.model)
    pipeline.set_progress_bar_config(disable=True)
    frames = sheet(pipeline, arguments.prompts, width=arguments.width, seed=arguments.seed)
    save_image(arguments.output, contact_sheet(frames, columns=len(arguments.prompts)))


if __name__ == "__main__":
    main()
