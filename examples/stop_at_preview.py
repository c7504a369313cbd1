"""Look at the preview first, pay for the second stage later, and get the very same video.

The preview is two files: the video to look at, and beside it the latents and settings to continue from.
"""

import torch

from flashvideo import load_pipeline, write_video
from flashvideo.pipelines.preview import save_preview

pipeline = load_pipeline("nano")
frame_rate = pipeline.preset.stage1.frame_rate

# Today: a few previews, each with its own seed.
for seed in (0, 1):
    generator = torch.Generator().manual_seed(seed)
    result = pipeline("a blue square moves right", preview_only=True, generator=generator, output_type="pt")
    write_video(f"preview{seed}.mp4", result.preview_frames[0], frame_rate=frame_rate)
    save_preview(f"preview{seed}.safetensors", result.preview)

# Tomorrow, in another process: the one that you liked. A new prompt as first argument would steer the detail.
result = pipeline(preview="preview1.mp4", output_type="pt")
write_video("square.mp4", result.frames[0], frame_rate=frame_rate)
