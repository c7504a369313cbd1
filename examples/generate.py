"""A video from a prompt: both stages in one call."""

import torch

from flashvideo import load_pipeline, write_video

pipeline = load_pipeline("nano")
generator = torch.Generator().manual_seed(0)
result = pipeline("a red ball moving left over sand", generator=generator, output_type="pt")
write_video("ball.mp4", result.frames[0], frame_rate=pipeline.preset.stage1.frame_rate)
