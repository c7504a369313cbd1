"""Scores of folders of videos: every system's videos with the same measures, one record per video, kept as they come.

A record names what it was computed from by a hash: of the video, of what it was compared with, of its prompt and of the
measures. So a stopped run continues, a changed file is scored again, and nothing of other settings is ever mixed in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from flashvideo import __version__
from flashvideo.evaluation.dover import COLUMNS, dover_scores
from flashvideo.evaluation.folders import VideoFile, check_one_setting, find_videos, match
from flashvideo.evaluation.measures import MOST_FRAMES, Measure, Subject, score
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

    prompts: Mapping[str, str] | None = None
    """What they shall show; a video's own note if None."""

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
            prompts: By name.

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
        return cls(
            references=None if references is None else match(names, references, what="reference"),
            sources=None if sources is None else match(names, sources, what="input"),
            prompts=prompts,
        )

    def prompt(self, video: VideoFile) -> str | None:
        """Returns the prompt of a video: the given one, else its own note's."""
        found = video.note().get("prompt") if self.prompts is None else self.prompts[video.name]
        return found if isinstance(found, str) else None

    def subject(self, video: VideoFile) -> Subject:
        """Reads a video with all that is known of it.

        Raises:
            ValueError: If a file cannot be read, or they do not fit one another.
        """
        return Subject(
            frames=video.read(),
            reference=None if self.references is None else self.references[video.name].read(),
            source=None if self.sources is None else self.sources[video.name].read(),
            prompt=self.prompt(video),
        )

    def fingerprint(self, video: VideoFile, measures: Sequence[Measure]) -> str:
        """Returns a hash of all that a video's scores depend on."""
        parts = {
            "video": video.digest(),
            "reference": None if self.references is None else self.references[video.name].digest(),
            "source": None if self.sources is None else self.sources[video.name].digest(),
            "prompt": self.prompt(video),
            "measures": [measure.name + measure.variant for measure in measures],
            "frames": MOST_FRAMES,
            "version": __version__,
        }
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


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
    done = {record["fingerprint"]: record["scores"] for record in read_records(records)}
    scores: dict[str, dict[str, Record]] = {system.label: {} for system in systems}
    todo = [(system.label, video) for system in systems for video in system.videos.values()]
    for label, video in tqdm(todo, desc="scoring", unit="video", disable=not progress):
        fingerprint = known.fingerprint(video, measures)
        if fingerprint not in done:
            try:
                numbers = score(known.subject(video), measures)
            except ValueError as error:
                raise ValueError(f"{video.name} of {label}: {error}") from None
            done[fingerprint] = numbers
            append_record(
                records,
                {"system": label, "video": video.name, "fingerprint": fingerprint, "scores": numbers},
            )
        scores[label][video.name] = done[fingerprint]
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
        ValueError: If a video is pictures, or DOVER fails.
    """
    done = {record["fingerprint"]: record["scores"] for record in read_records(records)}
    scores: dict[str, dict[str, Record]] = {}
    for system in systems:
        _check_video_files(system.videos.values(), f"DOVER, and {system.label}")
        digests = {name: video.digest() for name, video in system.videos.items()}
        missing = [name for name, digest in digests.items() if digest not in done]
        if missing:
            paths = [system.videos[name].paths[0] for name in missing]
            found = dover_scores(paths, python=python, repository=repository, device=device)
            for name in missing:
                numbers = {column.name: found[name][column.name.removeprefix("dover_")] for column in COLUMNS}
                done[digests[name]] = numbers
                append_record(
                    records,
                    {"system": system.label, "video": name, "fingerprint": digests[name], "scores": numbers},
                )
        scores[system.label] = {name: done[digest] for name, digest in digests.items()}
    return scores


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
    _check_video_files(sources.values(), "an upscaler, and the inputs")
    sizes = {sources[name].paths[0]: video.size for name, video in system.videos.items()}
    outputs = upscale_folder(list(sizes), folder, lambda path: sizes[path], method, device=device)
    return System(
        label=method if method in CLASSICAL else Path(method).stem,
        videos={path.stem: VideoFile(name=path.stem, paths=(path,)) for path in outputs},
        setting={"upscaler": Path(method).name},
    )


def _check_video_files(videos: Iterable[VideoFile], what: str) -> None:
    for video in videos:
        if not video.is_video:
            raise ValueError(
                f"video files are needed for {what} have pictures: {video.name}; write them as mp4"
            )
