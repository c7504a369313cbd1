"""Scores of folders of videos: every system's videos with the same measures, kept as they come.

A record names what it was computed from by a hash: of the video, of what it was compared with and of its prompt; each
of its numbers is known by its measure and by what else that depends on. So a stopped run continues, a changed file is
scored again, a measure that is added costs itself alone, and nothing of other settings is ever mixed in.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from flashvideo import __version__
from flashvideo.evaluation.dover import COLUMNS, dover_scores, dover_version
from flashvideo.evaluation.folders import VideoFile, check_one_setting, find_videos, match
from flashvideo.evaluation.measures import MOST_FRAMES, Column, Measure, Subject, score
from flashvideo.evaluation.records import append_record, read_records
from flashvideo.evaluation.summary import Record
from flashvideo.evaluation.upscalers import CLASSICAL, upscale_folder


@dataclass(frozen=True, kw_only=True)
class System:
    """One row: the videos that a system made with one setting."""

    label: str
    """What it is called."""

    videos: Mapping[str, VideoFile]
    """By name."""

    setting: Mapping[str, Any] = field(default_factory=dict)
    """What its files say of how they were made."""

    @classmethod
    def read(cls, folder: Path, label: str | None = None) -> System:
        """Finds a system's videos.

        Args:
            folder: Where they are.
            label: What it is called; the folder's name if None.

        Returns:
            The system.

        Raises:
            ValueError: If there are no videos, or not all are of one setting.
        """
        videos = find_videos(folder)
        return cls(
            label=label or folder.resolve().name, videos=videos, setting=check_one_setting(videos, folder)
        )


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of the videos beside them, by name; None where nothing is."""

    references: Mapping[str, VideoFile] | None = None
    """The truth."""

    sources: Mapping[str, VideoFile] | None = None
    """What the videos were made from."""

    prompts: Mapping[str, str] = field(default_factory=dict)
    """What they shall show, as far as that is known."""

    @classmethod
    def read(
        cls,
        systems: Sequence[System],
        *,
        references: Path | None = None,
        sources: Path | None = None,
        prompts: Mapping[str, str] | None = None,
    ) -> Known:
        """Finds what belongs to the videos of all systems.

        Args:
            systems: The systems.
            references: Folder of truths.
            sources: Folder of what the videos were made from.
            prompts: By name; if None, what the videos themselves note, or those of the same name.

        Returns:
            The files.

        Raises:
            ValueError: If a video lacks its own.
        """
        names = sorted({name for system in systems for name in system.videos})
        missing = [] if prompts is None else [name for name in names if name not in prompts]
        if missing:
            raise ValueError(
                f"there are no prompts for {len(missing)} of {len(names)} videos, such as {missing[0]}; "
                "prompts belong to videos by their names without suffix"
            )
        found = None if sources is None else match(names, sources, what="input")
        noted = [system.videos for system in systems] + ([found] if found is not None else [])
        return cls(
            references=None if references is None else match(names, references, what="reference"),
            sources=found,
            prompts=noted_prompts(noted) if prompts is None else prompts,
        )

    def subject(self, video: VideoFile) -> Subject:
        """Reads a video with all that is known of it.

        Raises:
            ValueError: If a file cannot be read, or they do not fit one another.
        """
        return Subject(
            frames=video.read(),
            reference=None if self.references is None else self.references[video.name].read(),
            source=None if self.sources is None else self.sources[video.name].read(),
            prompt=self.prompts.get(video.name),
        )

    def fingerprint(self, video: VideoFile) -> str:
        """Returns a hash of all that a video's scores depend on, but the measures."""
        parts = {
            "video": video.digest,
            "reference": None if self.references is None else self.references[video.name].digest,
            "source": None if self.sources is None else self.sources[video.name].digest,
            "prompt": self.prompts.get(video.name),
            "frames": MOST_FRAMES,
            "version": __version__,
        }
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def noted_prompts(folders: Iterable[Mapping[str, VideoFile]]) -> dict[str, str]:
    """Collects the prompts that videos note, by name: a video without a note has that of its namesakes.

    Raises:
        ValueError: If two of one name note different prompts.
    """
    prompts: dict[str, str] = {}
    for videos in folders:
        for name, video in videos.items():
            prompt = video.note().get("prompt")
            if isinstance(prompt, str) and prompts.setdefault(name, prompt) != prompt:
                raise ValueError(
                    f"the videos called {name} note two prompts, {prompts[name]!r} and {prompt!r}; videos of one name "
                    "must show the same, so rename one"
                )
    return prompts


C = TypeVar("C", bound=Column)

Scores = Mapping[str, Mapping[str, Record]]
"""Numbers by label of the system, name of the video, and name of the measure."""


def score_systems(
    systems: Sequence[System],
    known: Known,
    measures: Sequence[Measure],
    records: Path,
    *,
    progress: bool = True,
) -> Scores:
    """Scores all videos of all systems.

    Args:
        systems: The systems.
        known: What is known of their videos.
        measures: With what.
        records: JSON Lines; what it holds already is not computed again, every finished video is in it at once.
        progress: Show a bar.

    Returns:
        The scores.

    Raises:
        ValueError: If a video cannot be scored; those before it are kept.
    """
    kept = _KeptScores(records)
    scores: dict[str, dict[str, Record]] = {system.label: {} for system in systems}
    todo = [(system.label, video) for system in systems for video in system.videos.values()]
    for label, video in tqdm(todo, desc="scoring", unit="video", disable=not progress):
        fingerprint = known.fingerprint(video)
        missing = kept.missing(fingerprint, measures)
        if missing:
            try:
                numbers = score(known.subject(video), missing)
            except ValueError as error:
                raise ValueError(f"{video.name} of {label}: {error}") from None
            kept.add(fingerprint, missing, numbers, about={"system": label, "video": video.name})
        scores[label][video.name] = kept.numbers(fingerprint, measures)
    return scores


def score_with_dover(
    systems: Sequence[System], records: Path, *, python: Path, repository: Path, device: str
) -> Scores:
    """Scores all videos with DOVER; see `flashvideo.evaluation.dover`.

    Args:
        systems: The systems; their videos must be video files.
        records: JSON Lines; what it holds already is not computed again.
        python: The interpreter of DOVER's environment.
        repository: Folder of DOVER's repository.
        device: Where it runs.

    Returns:
        Numbers of the columns `flashvideo.evaluation.dover.COLUMNS`.

    Raises:
        ValueError: If a video is pictures, or DOVER fails, or cannot read a video; what it scored is kept.
    """
    for system in systems:
        check_video_files("DOVER", system.label, system.videos.values())
    kept, version = _KeptScores(records), dover_version(repository)
    columns = [dataclasses.replace(column, variant=version) for column in COLUMNS]
    scores: dict[str, dict[str, Record]] = {}
    for system in systems:
        digests = {name: video.digest for name, video in system.videos.items()}
        missing = [name for name, digest in digests.items() if kept.missing(digest, columns)]
        paths = [system.videos[name].paths[0] for name in missing]
        found = dover_scores(paths, python=python, repository=repository, device=device) if paths else {}
        for name in missing:
            if name in found:
                about = {"system": system.label, "video": name}
                kept.add(digests[name], columns, found[name], about=about)
        unread = [name for name in missing if name not in found]
        if unread:
            raise ValueError(
                f"DOVER could not read {', '.join(unread)} of {system.label}; write them anew as H.264, or leave them "
                "out"
            )
        scores[system.label] = {name: kept.numbers(digest, columns) for name, digest in digests.items()}
    return scores


class _KeptScores:
    """Numbers in a file of records, each known by a fingerprint, its measure's name and its variant."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: dict[str, dict[str, float | None]] = {}
        for record in read_records(path):
            self._found.setdefault(record["fingerprint"], {}).update(record["scores"])

    def missing(self, fingerprint: str, columns: Sequence[C]) -> list[C]:
        """Returns those columns of which nothing is kept."""
        found = self._found.get(fingerprint, {})
        return [column for column in columns if column.key not in found]

    def add(
        self, fingerprint: str, columns: Sequence[Column], numbers: Record, *, about: Mapping[str, str]
    ) -> None:
        """Keeps numbers, and of columns without one that they have none."""
        scores = {column.key: numbers.get(column.name) for column in columns}
        append_record(self.path, {**about, "fingerprint": fingerprint, "scores": scores})
        self._found.setdefault(fingerprint, {}).update(scores)

    def numbers(self, fingerprint: str, columns: Sequence[Column]) -> dict[str, float]:
        """Returns the numbers of columns that have one, by name."""
        found = self._found.get(fingerprint, {})
        numbers = {column.name: found.get(column.key) for column in columns}
        return {name: number for name, number in numbers.items() if number is not None}


def merged(one: Scores, other: Scores) -> Scores:
    """Returns the numbers of both."""
    return {
        label: {name: {**record, **other.get(label, {}).get(name, {})} for name, record in videos.items()}
        for label, videos in one.items()
    }


def upscale_inputs(system: System, known: Known, method: str, folder: Path, *, device: str) -> System:
    """Makes a system of an upscaler, from the inputs of another system's videos, in their sizes.

    Args:
        system: Its videos give names and sizes.
        known: With sources, which must be video files.
        method: For `flashvideo.evaluation.upscalers.load_upscaler`.
        folder: Where to; what it holds already is not made again.
        device: Where a network runs.

    Returns:
        The system, called by the method, or by the name of its file.

    Raises:
        ImportError: If spandrel is needed and missing.
        ValueError: If there are no sources, a source is not a video file, or the method is none.
    """
    if known.sources is None:
        raise ValueError("an upscaler needs what the videos were made from; give their inputs")
    sources = {name: known.sources[name] for name in system.videos}
    check_video_files("an upscaler", "the inputs", sources.values())
    sizes = {sources[name].paths[0]: video.size for name, video in system.videos.items()}
    outputs = upscale_folder(list(sizes), folder, lambda path: sizes[path], method, device=device)
    return System(
        label=upscaler_label(method),
        videos={path.stem: VideoFile(name=path.stem, paths=(path,)) for path in outputs},
        setting={"upscaler": Path(method).name},
    )


def upscaler_label(method: str) -> str:
    """Returns how the system of an upscaler is called: by the method, or by the name of its file."""
    return method if method in CLASSICAL else Path(method).stem


def check_video_files(reader: str, label: str, videos: Iterable[VideoFile]) -> None:
    """Checks that videos are video files.

    Raises:
        ValueError: If one is pictures.
    """
    for video in videos:
        if not video.is_video:
            raise ValueError(
                f"{reader} takes video files, but {video.name} of {label} is pictures; write it as mp4"
            )
