"""The folder of a sweep: what was measured how, one line for every finished run, and the previews that runs share.

sweep.json     the model, how it is measured, the machine, and what the sweep is made over; written first
runs.jsonl     a line per finished run
previews/      previews with what they cost, from which any Stage II settings go on
videos/        the results, where they are kept, in a folder for each setting
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from flashvideo.evaluation.records import append_record, read_records, write_json
from flashvideo.evaluation.sweep.grid import Setting

logger = logging.getLogger(__name__)

FORMAT = 1
ABOUT, RUNS, LOCK = "sweep.json", "runs.jsonl", ".lock"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".json", ".model")
"""Files of a model's folder that make it what it is."""

RunKey = tuple[str, int, Setting]
"""Item, seed and setting: a run is done once."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one run cost, without loading the model and without scoring."""

    seconds: Mapping[str, float]
    """Wall time of `text`, `preview` and `detail`, as far as they ran; a shared preview counts in each run."""

    evaluations: Mapping[str, int]
    """Evaluations of the transformers of `stage1` and `stage2`; guidance counts two."""

    flops: Mapping[str, int]
    """Operations by phase, by formula."""

    peak_bytes: int | None
    """Most memory at once: of CUDA what torch allocated, otherwise all of the process; None where it is not known."""

    def totals(self) -> dict[str, float]:
        """Returns the sums: `seconds`, `evaluations`, `flops`, and `peak_bytes` where it is known."""
        peak = {} if self.peak_bytes is None else {"peak_bytes": float(self.peak_bytes)}
        sums = {
            name: float(sum(getattr(self, name).values())) for name in ("seconds", "evaluations", "flops")
        }
        return sums | peak


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run."""

    item: str
    """Name of what it was made from."""

    seed: int
    """Its seed."""

    setting: Setting
    """Its settings."""

    scores: Mapping[str, float]
    """What it scored, by the names of measures."""

    cost: Cost
    """What it cost."""

    video: str | None = None
    """Its file in the folder, if it was kept."""

    @property
    def key(self) -> RunKey:
        """What makes it this run."""
        return self.item, self.seed, self.setting

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values, for JSON."""
        video = {} if self.video is None else {"video": self.video}
        return {
            "item": self.item,
            "seed": self.seed,
            "setting": self.setting.as_dict(),
            "scores": dict(self.scores),
            "cost": {name: _plain(value) for name, value in vars(self.cost).items()},
            **video,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Reads what `as_dict` wrote."""
        return cls(
            item=values["item"],
            seed=values["seed"],
            setting=Setting.from_dict(values["setting"]),
            scores=values["scores"],
            cost=Cost(**values["cost"]),
            video=values.get("video"),
        )


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Under what a sweep measures; only runs under the same may stand beside one another."""

    model: Mapping[str, Any]
    """Name, fingerprint of the weights, and version of the package."""

    measurement: Mapping[str, Any]
    """What is done and how it is scored."""

    machine: Mapping[str, Any]
    """On what; times depend on it."""

    def facts(self) -> dict[str, Any]:
        """Returns all by names for people, such as `model's version`."""
        return {
            name if part == "measurement" else f"{part}'s {name}": value
            for part, values in vars(self).items()
            for name, value in values.items()
        }


@dataclass
class SweepFolder:
    """An opened folder; made by `open_folder`."""

    path: Path
    """The folder."""

    runs: list[Run] = field(default_factory=list)
    """All finished runs, in the order in which they were done."""

    def append(self, run: Run) -> None:
        """Writes a finished run so that a loss of power does not lose it."""
        append_record(self.path / RUNS, run.as_dict())
        self.runs.append(run)


@contextmanager
def open_folder(
    path: Path, conditions: Conditions, items: Sequence[Mapping[str, Any]]
) -> Iterator[SweepFolder]:
    """Opens the folder of a sweep, new or to be continued; more items may join those that are there.

    Within the block no other process can open it.

    Args:
        path: The folder; made if it is not there.
        conditions: Under what is measured.
        items: `Item.as_dict` of each.

    Yields:
        The folder with the runs that are finished. A last line that an interruption tore is dropped.

    Raises:
        ValueError: If it holds another sweep, measured under other conditions or with other items of the same names,
            or another process has it open.
    """
    about = path / ABOUT
    if not about.exists() and path.is_dir() and any(one.name != LOCK for one in path.iterdir()):
        raise ValueError(f"{path} is not empty and holds no sweep; choose a new folder")
    path.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(FileLock(path / LOCK, timeout=0))
        except Timeout:
            raise ValueError(
                f"another sweep is at work in {path}; wait for it, or choose another folder"
            ) from None
        known: list[Mapping[str, Any]] = []
        if about.exists():
            stored = _read_about(about)
            _check_same(path, stored, conditions)
            known = stored["items"]
        merged = _merge_items(path, known, items)
        write_json(about, {"format": FORMAT, **vars(conditions), "items": merged})
        yield SweepFolder(path, read_runs(path))


def read_runs(path: Path) -> list[Run]:
    """Reads the finished runs of a sweep's folder; of one that is there twice the first counts.

    Raises:
        ValueError: If a line is not that of a run.
    """
    runs: dict[RunKey, Run] = {}
    for number, record in enumerate(read_records(path / RUNS), 1):
        try:
            run = Run.from_dict(record)
        except (ValueError, TypeError, KeyError):
            raise ValueError(f"line {number} of {path / RUNS} is not a run; remove that line") from None
        if runs.setdefault(run.key, run) is not run:
            logger.warning(
                "line %d of %s is of a run that is there already; the first counts", number, path / RUNS
            )
    return list(runs.values())


def model_fingerprint(folder: Path) -> str:
    """Returns a digest of the files of a model's folder, so that the same name with other weights is noticed.

    Args:
        folder: As `save_pretrained` writes it.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in WEIGHT_SUFFIXES and path.is_file():
            digest.update(path.relative_to(folder).as_posix().encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def short_hash(parts: object) -> str:
    """Returns eight hexadecimal digits that stand for plain values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]


def _read_about(path: Path) -> dict[str, Any]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["format"] == FORMAT:
            return dict(stored)
    except (ValueError, TypeError, KeyError):
        pass
    raise ValueError(f"{path} is not what this version writes (format {FORMAT}); choose a new folder")


def _check_same(path: Path, stored: Mapping[str, Any], conditions: Conditions) -> None:
    names = list(vars(conditions))
    before = Conditions(**{name: stored[name] for name in names}).facts()
    now = json.loads(json.dumps(conditions.facts()))
    for name in {**before, **now}:
        if before.get(name) != now.get(name):
            raise ValueError(
                f"{path} was measured with {_short(before.get(name))} as {name}, and not with "
                f"{_short(now.get(name))}; choose a new folder"
            )


def _merge_items(
    path: Path, known: Iterable[Mapping[str, Any]], items: Iterable[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    merged = {item["name"]: item for item in known}
    for item in items:
        before = merged.setdefault(item["name"], item)
        if before != item:
            raise ValueError(
                f"{path} was measured with another {item['name']} than the one given now (its text or file has "
                "changed); choose a new folder"
            )
    return list(merged.values())


def _short(value: object) -> str:
    if isinstance(value, list):
        value = ",".join(map(str, value))
    return "none" if value is None else str(value)


def _plain(value: object) -> object:
    return dict(value) if isinstance(value, Mapping) else value
