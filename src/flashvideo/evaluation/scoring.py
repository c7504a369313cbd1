"""Scores of folders of videos: every system's videos with the same measures, one record per video, kept as they come.

A record names what it was computed from by a hash: of the video, of what it was compared with, of its prompt and of the
measures. So a stopped run continues, a changed file is scored again, and nothing of other settings is ever mixed in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from flashvideo import __version__
from flashvideo.evaluation.folders import VideoFile, check_one_setting, find_videos, match
from flashvideo.evaluation.measures import MOST_FRAMES, Measure, Subject, score
from flashvideo.evaluation.records import append_record, read_records
from flashvideo.evaluation.summary import Record


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
