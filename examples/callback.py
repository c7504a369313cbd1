"""Watch a run from inside: log each step of both stages, and stop when it has taken long enough."""

import logging
import time

import torch

from flashvideo import load_pipeline, write_video

MAX_SECONDS = 600

logging.basicConfig(level=logging.INFO, format="%(message)s")
started = time.monotonic()


def watch(stage):
    def callback(pipeline, step, timestep, tensors):
        spread = tensors["latents"].std().item()
        logging.info("stage %d, step %d: latents spread by %.2f", stage, step, spread)
        # An interrupted first stage leaves the preview as far as it got, and no second stage follows.
        pipeline._interrupt = time.monotonic() - started > MAX_SECONDS
        return tensors

    return callback


pipeline = load_pipeline("nano")
result = pipeline(
    "a red ball moving left over sand",
    generator=torch.Generator().manual_seed(0),
    output_type="pt",
    stage1_callback_on_step_end=watch(1),
    callback_on_step_end=watch(2),
)
frames = result.preview_frames if result.frames is None else result.frames
write_video("watched.mp4", frames[0], frame_rate=pipeline.preset.stage1.frame_rate)
