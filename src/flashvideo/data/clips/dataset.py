"""Clips of one's own as training data: any folder, table or tar shards, and nothing in them that ends a run.

Sample `index` is of item ``index % len(dataset)`` and depends on the data, the seed and the index alone, so that a
resumed run sees what an uninterrupted one would have seen. A file that turns out not to be readable is replaced by the
next of its bucket, or of those that the caller allows; the sample carries a note of that, since what a loader's worker
process learns is lost with it: the process that trains hands the notes of each batch to `ClipDataset.record`.

Shapes: F frames, H height, W width.
"""

import collections
import dataclasses
import hashlib
import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from flashvideo.data.clips.bucket_sampler import Group
from flashvideo.data.clips.buckets import Bucket, choose_bucket, fit_frames, place
from flashvideo.data.clips.cache import FileCache
from flashvideo.data.clips.config import ClipsConfig
from flashvideo.data.clips.decoding import ClipHeader, read_image
from flashvideo.data.clips.entries import ClipEntry
from flashvideo.data.clips.files import ClipError, ClipFile, file_system
from flashvideo.data.clips.headers import read_headers, reason_of
from flashvideo.data.clips.samples import ClipSample
from flashvideo.data.clips.sources import list_source
from flashvideo.data.clips.threads import read_in_threads
from flashvideo.data.clips.windows import find_part, num_frames_at, usable_span
from flashvideo.video.colour import frames_from_levels, levels_from_image

logger = logging.getLogger(__name__)

_TINY = 1e-6


class ClipDataset(Dataset[ClipSample]):
    """Clips cut to the sizes of a config.

    Making it lists the sources and reads every file's header, in threads. What cannot be used goes into `skipped`.

    Args:
        config: Which clips, and how they are cut to size.
        temporal_compression: Of the VAE: a video's frames must be one more than a multiple of it.
        seed: Of which part of a video, and which crop, a sample shows.
        training: Draw both at random; otherwise take the middle, the same for every index of an item.
        cache: JSON file for headers and the members of tar shards, so that the next run does not read them again; a
            file that has changed is read anew.
        progress: Whether to show bars.

    Attributes:
        config: As given.
        skipped: Reason by name of every clip that was left out or replaced so far.
        num_without_caption: How many usable clips have no caption.
        buckets: The bucket of each group.
        groups: The items of each bucket, for `BucketBatches`.

    Raises:
        ValueError: If a frame count does not fit the VAE, a source is not right, or no clip can be used.
        ImportError: If a source needs a package that is not installed.
    """

    def __init__(
        self,
        config: ClipsConfig,
        *,
        temporal_compression: int,
        seed: int = 0,
        training: bool = True,
        cache: str | os.PathLike[str] | None = None,
        progress: bool = True,
    ) -> None:
        _check_frames(config, temporal_compression)
        self.config, self.seed, self.training = config, seed, training
        self.skipped: dict[str, str] = {}
        self._entries: list[ClipEntry] = []
        self._headers: list[ClipHeader] = []
        self._load(FileCache(cache), progress)
        self.num_without_caption = sum(not entry.has_caption for entry in self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[ClipSample]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> ClipSample:
        """Sample `index`, of item ``index % len(self)``; larger ones are other parts and crops of the same items.

        Raises:
            IndexError: If the index is negative.
            ValueError: If not one clip of the item's bucket can be read.
        """
        if index < 0:
            raise IndexError(f"index must be 0 or more, got {index}")
        return self.sample(index, self.groups[self._group_numbers[index % len(self)]].items)

    def sample(self, index: int, among: np.ndarray) -> ClipSample:
        """Sample `index`, for which no other clips than some stand in.

        Args:
            index: As for `dataset[index]`.
            among: (n,) items of the same bucket in ascending order, that of the sample among them.

        Raises:
            ValueError: If not one of them can be read.
        """
        item = index % len(self)
        position = int(np.searchsorted(among, item))
        bucket = self.bucket(item)
        skips: list[tuple[str, str]] = []
        for attempt in range(len(among)):
            candidate = int(among[(position + attempt) % len(among)])
            rng = np.random.default_rng([self.seed, index, attempt]) if self.training else None
            try:
                return self._sample(candidate, bucket, rng, tuple(skips))
            except MemoryError:
                raise
            except Exception as error:  # decoders and file systems of many makers: no clip may end a run
                skips.append((self._entries[candidate].name, reason_of(error)))
                if get_worker_info() is None:  # what a worker process records is lost; its notes are not
                    self.record(skips[-1:])
        raise ValueError(
            f"none of the {len(among)} clips of bucket {bucket} can be read; the first is "
            f"{skips[0][0]}: {skips[0][1]}"
        )

    def name(self, item: int) -> str:
        """The name of an item, as in `skipped`."""
        return self._entries[item].name

    def key(self, item: int) -> str:
        """The path of an item's file as seen from its source: the same on every machine."""
        return self._entries[item].key

    def bucket(self, item: int) -> Bucket:
        """The size that an item is brought to."""
        return self.buckets[self._group_numbers[item]]

    def captions(self, items: Sequence[int], known: dict[ClipFile, str] | None = None) -> list[str]:
        """The captions of items, without decoding these; empty where there is none, or none that can be read.

        Args:
            items: Which.
            known: What caption files hold that need not be read again; what is read is added.
        """
        known = {} if known is None else known
        entries = [self._entries[item] for item in items]
        unread = {
            e.caption_file: e for e in entries if e.caption_file is not None and e.caption_file not in known
        }
        found = read_in_threads(_caption, list(unread.values()), what="captions", delay=1)
        known.update(zip(unread, found, strict=True))
        return [e.read_caption() if e.caption_file is None else known[e.caption_file] for e in entries]

    def record(self, skips: Iterable[tuple[str, str]]) -> None:
        """Adds a batch's notes of skips to `skipped`, and logs what is new."""
        for name, reason in skips:
            if name not in self.skipped:
                logger.warning("%s is skipped: %s", name, reason)
            self.skipped[name] = reason

    def fingerprint(self) -> str:
        """A short hash of the config, the seed, and name, bytes, header and part of each usable clip, in their order.

        With the same fingerprint each sample is the same, unless a file was replaced by one of the same size in bytes
        and pixels: contents are not hashed. Names count from the folder that the clips of a source share, so that they
        may move; weights, which decide how often a sample is seen, do not count.
        """
        config = dataclasses.asdict(self.config)
        del config["sources"]
        told = [repr((config, self.seed, self.training))]
        sizes = _num_bytes(self._entries)
        clips = zip(self._entries, self._headers, strict=True)
        for _, of_source in itertools.groupby(clips, key=lambda clip: clip[0].source):
            some = list(of_source)
            names = [entry.name for entry, _ in some]
            shared = len(os.path.commonprefix(names).rpartition("/")[0])  # noqa: RUF071 - of URLs too, up to a slash
            told += [repr((e.name[shared:], sizes[e.file], e.start, e.end, h)) for e, h in some]
        return hashlib.sha256("\n".join(told).encode(errors="surrogateescape")).hexdigest()[:16]

    def describe(self) -> str:
        """One line for people: how many clips, of which buckets, and how many were left out."""
        images = sum(len(group.items) for group in self.groups if group.is_image)
        sizes = ", ".join(f"{len(g.items)} of {b}" for g, b in zip(self.groups, self.buckets, strict=True))
        return (
            f"{len(self) - images} videos and {images} pictures ({sizes}), {self.num_without_caption} without a "
            f"caption, {len(self.skipped)} left out"
        )

    def _load(self, cache: FileCache, progress: bool) -> None:
        """Lists and reads headers, and sorts what can be used into buckets."""
        share = self.config.image_share
        buckets = {False: self.config.video_buckets(), True: self.config.image_buckets()}
        placed: dict[Bucket, list[int]] = collections.defaultdict(list)
        weights: list[float] = []
        num_unwanted = 0
        for source in self.config.sources:
            listing = list_source(source, cache=cache, progress=progress)
            self.skipped.update(listing.problems)
            wanted = [e for e in listing.entries if (share > 0 if e.is_image else share < 1)]
            num_unwanted += len(listing.entries) - len(wanted)
            headers = read_headers(wanted, cache=cache, progress=progress)
            for entry, header in zip(wanted, headers, strict=True):
                try:
                    if isinstance(header, str):
                        raise ClipError(header)
                    bucket = self._bucket(entry, header, buckets[entry.is_image])
                except ClipError as error:
                    self.skipped[entry.name] = str(error)
                    continue
                placed[bucket].append(len(self._entries))
                self._entries.append(entry)
                self._headers.append(header)
                weights.append(source.weight)
        self._group(placed, np.asarray(weights))
        self._check_kinds(num_unwanted)

    def _group(self, placed: dict[Bucket, list[int]], weights: np.ndarray) -> None:
        """Makes the groups, and notes which of them each item is of."""
        self.buckets: list[Bucket] = sorted(placed)
        self.groups = [
            Group(items=np.asarray(placed[b]), weights=weights[placed[b]], is_image=b.num_frames == 1)
            for b in self.buckets
        ]
        self._group_numbers = np.zeros(len(self), dtype=int)
        for number, group in enumerate(self.groups):
            self._group_numbers[group.items] = number

    def _bucket(self, entry: ClipEntry, header: ClipHeader, buckets: list[Bucket]) -> Bucket:
        """Which of the buckets a clip goes to; ClipError if it does not meet what the config asks for."""
        config = self.config
        num_frames = 1
        if not entry.is_image:
            if header.frame_rate < config.min_frame_rate - _TINY:
                raise ClipError(
                    f"it is too slow: {header.frame_rate:g} fps, at least {config.min_frame_rate:g} are wanted"
                )
            first, last = usable_span(entry, header)
            seconds = last - first + 1 / header.frame_rate
            if seconds < config.min_seconds - _TINY:
                raise ClipError(
                    f"it is too short: {seconds:.2f} s, at least {config.min_seconds:g} are wanted"
                )
            num_frames = num_frames_at(entry, header, config.frame_rate)
        return choose_bucket(
            buckets,
            num_frames=num_frames,
            height=header.height,
            width=header.width,
            max_upscale=config.max_upscale,
        )

    def _check_kinds(self, num_unwanted: int) -> None:
        """Refuses a data set without what its `image_share` asks for; for looking at, anything will do."""
        share = self.config.image_share
        first = next((f"; the first, {name}: {why}" for name, why in self.skipped.items()), "")
        if not self.training:
            if not self.groups:
                raise ValueError(
                    f"no clip can be looked at: {len(self.skipped)} were left out for what they are{first}"
                )
            return
        kinds = {group.is_image for group in self.groups}
        for is_image, wanted, word in ((False, share < 1, "video"), (True, share > 0, "picture")):
            if wanted and is_image not in kinds:
                raise ValueError(
                    f"no {word} can be used, but image_share {share:g}, in a recipe the share of 1 among a phase's "
                    f"lengths, asks for some; add some, or ask for none: {len(self.skipped)} clips were left out for "
                    f"what they are, {num_unwanted} for the share{first}"
                )

    def _sample(
        self,
        item: int,
        bucket: Bucket,
        rng: np.random.Generator | None,
        skips: tuple[tuple[str, str], ...],
    ) -> ClipSample:
        entry, header = self._entries[item], self._headers[item]
        start = frame_rate = 0.0
        placement = place(header.height, header.width, bucket, rng)
        if entry.is_image:
            all_levels = iter([read_image(entry.file)])
        else:
            part = find_part(
                entry,
                header,
                num_frames=bucket.num_frames,
                frame_rate=self.config.frame_rate,
                rng=rng,
                avoid_cuts=self.config.avoid_cuts,
                tries=self.config.window_tries,
            )
            start, frame_rate = part.start, part.frame_rate
            all_levels = map(levels_from_image, part.images)
        # One frame after another: all of them at their own size might not fit in memory.
        frames = [fit_frames(frames_from_levels(levels), placement) for levels in all_levels]
        return ClipSample(
            pixels=torch.stack(frames),  # (F, 3, H, W)
            caption=entry.read_caption(),
            frame_rate=frame_rate,
            source=entry.source,
            name=entry.name,
            start=start,
            skips=skips,
        )


def _caption(entry: ClipEntry) -> str:
    try:
        return entry.read_caption()
    except (ClipError, OSError):  # for the same reason there will be no sample
        return ""


def _num_bytes(entries: Sequence[ClipEntry]) -> dict[ClipFile, str]:
    """How large the clips' files are; where no listing has told it, their file systems are asked, in threads."""

    def ask(file: ClipFile) -> str:
        system, path = file_system(file.url)
        return str(system.info(path).get("size"))

    # A stamp begins with the size, and goes on with what a copy does not keep.
    told = {e.file: str(e.file.size or e.stamp.partition(" ")[0]) for e in entries}
    untold = [file for file, size in told.items() if not size]
    return told | dict(zip(untold, read_in_threads(ask, untold, what="sizes", progress=False), strict=True))


def _check_frames(config: ClipsConfig, temporal_compression: int) -> None:
    """Refuses frame counts that are not one more than a multiple of the VAE's compression in time."""
    for bucket in config.video_buckets():
        over = (bucket.num_frames - 1) % temporal_compression
        if over:
            fewer = bucket.num_frames - over
            raise ValueError(
                f"a bucket's frames must be {temporal_compression}k+1, got {bucket}; try {fewer} or "
                f"{fewer + temporal_compression}"
            )
