"""What a recipe says about its clips."""

import math
from dataclasses import dataclass

from flashvideo.data.clips.buckets import Bucket
from flashvideo.data.clips.sources import ClipSource


@dataclass(frozen=True, kw_only=True)
class ClipsConfig:
    """Which clips are trained on, and how they are cut to size.

    Attributes:
        sources: One or more.
        buckets: Sizes that clips are brought to: (frames, height, width). Those of 1 frame are for pictures; if there
            is none, pictures take the sizes of the others.
        frame_rate: Frames per second that videos are brought to. Slower ones keep their own: no frame comes twice.
        image_share: Share of batches that are of pictures; 0 leaves pictures out, 1 leaves videos out.
        min_seconds: Videos, or parts of them, shorter than this are left out.
        min_frame_rate: Videos slower than so many frames per second are left out.
        max_upscale: By how much a clip may be enlarged to fill a bucket; 1 takes no clip that is smaller.
        avoid_cuts: Look for scene cuts, and take no frames from both sides of one.
        window_tries: How many parts of a video are decoded at most to find one without a cut.
    """

    sources: tuple[ClipSource, ...]
    buckets: tuple[tuple[int, int, int], ...]
    frame_rate: float
    image_share: float = 0.0
    min_seconds: float = 0.0
    min_frame_rate: float = 0.0
    max_upscale: float = 1.0
    avoid_cuts: bool = True
    window_tries: int = 4

    def __post_init__(self) -> None:
        for name in ("sources", "buckets"):
            if not getattr(self, name):
                raise ValueError(f"{name} must have at least one entry, got none")
        for bucket in self.buckets:
            if len(bucket) != 3 or min(bucket) < 1:
                raise ValueError(f"a bucket must be (frames, height, width), each at least 1, got {bucket}")
        if not 0 < self.frame_rate < math.inf:
            raise ValueError(f"frame_rate must be greater than 0, got {self.frame_rate}")
        if not 0 <= self.image_share <= 1:
            raise ValueError(f"image_share must be from 0 to 1, got {self.image_share}")
        for name in ("min_seconds", "min_frame_rate"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not 0 < self.max_upscale < math.inf:
            raise ValueError(f"max_upscale must be greater than 0, got {self.max_upscale}")
        if self.window_tries < 1:
            raise ValueError(f"window_tries must be 1 or more, got {self.window_tries}")
        if self.image_share < 1 and not self.video_buckets():
            raise ValueError(
                "buckets must have one of more than 1 frame unless image_share is 1, got "
                f"{', '.join(map(str, self.image_buckets()))} and image_share {self.image_share:g}"
            )

    def video_buckets(self) -> list[Bucket]:
        """Buckets of more than one frame."""
        return [bucket for bucket in self._all_buckets() if bucket.num_frames > 1]

    def image_buckets(self) -> list[Bucket]:
        """Buckets of one frame; the sizes of the others if none is given."""
        every = self._all_buckets()
        given = [bucket for bucket in every if bucket.num_frames == 1]
        sizes = dict.fromkeys((bucket.height, bucket.width) for bucket in every)
        return given or [Bucket(num_frames=1, height=height, width=width) for height, width in sizes]

    def _all_buckets(self) -> list[Bucket]:
        return [Bucket(num_frames=f, height=h, width=w) for f, h, w in dict.fromkeys(self.buckets)]
