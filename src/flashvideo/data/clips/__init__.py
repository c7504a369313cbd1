"""Clips of one's own as training data: listed, read, cut to a few sizes and dealt out.

`sources` lists what a folder, a table or tar shards hold; `headers` and `decoding` read the files; `windows` and
`buckets` say which part of a video is shown, and at which size; `dataset` makes samples of them, and `bucket_sampler`
the batches.
"""

from flashvideo.data.clips.dataset import ClipDataset

__all__ = ["ClipDataset"]
