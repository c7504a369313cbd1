"""Video files to pixel tensors and back, the resize between the stages, and pictures for people to look at.

Frames are ``(F, 3, H, W)`` RGB in [-1, 1], where -1 is level 0 and 1 is level 255.
"""

from flashvideo.video.errors import VideoError
from flashvideo.video.pixels import contact_sheet, resize_video, to_uint8
from flashvideo.video.reading import (
    Video,
    VideoInfo,
    is_cut_off,
    iter_frames,
    probe_video,
    read_metadata,
    read_video,
)
from flashvideo.video.writing import generation_metadata, save_image, write_video

__all__ = [
    "Video",
    "VideoError",
    "VideoInfo",
    "contact_sheet",
    "generation_metadata",
    "is_cut_off",
    "iter_frames",
    "probe_video",
    "read_metadata",
    "read_video",
    "resize_video",
    "save_image",
    "to_uint8",
    "write_video",
]
