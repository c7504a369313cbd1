"""More pixels and detail for a video of any length: `python examples/enhance.py small.mp4 large.mp4`.

Frames are read, enhanced and written a window at a time, so memory does not grow with the length of the video.
"""

import sys

import torch

from flashvideo import load_pipeline, write_video
from flashvideo.video import iter_frames, probe_video

source, target = sys.argv[1:]
stage2 = load_pipeline("nano").stage2
frames = stage2.stream(iter_frames(source), generator=torch.Generator().manual_seed(0))
write_video(target, frames, frame_rate=probe_video(source).frame_rate)
