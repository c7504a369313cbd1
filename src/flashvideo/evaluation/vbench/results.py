"""VBench's results as a table: all dimensions and the three totals, in percent, beside those that others published.

VBench writes `results_{time}_eval_results.json`: for each dimension `[score, [what it was for each video, ...], ...]`,
the score a fraction. (What stands there for each video is not always: imaging quality is from 0 to 100.)
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashvideo.evaluation.paper import quoted_rows
from flashvideo.evaluation.vbench.totals import DIMENSIONS, Totals, totals

RESULTS_PATTERN = "*_eval_results.json"
"""Names of the files that VBench writes its scores to."""

TOTAL_NAMES = tuple(field.name for field in dataclasses.fields(Totals))
_NAMES = tuple(dimension.name for dimension in DIMENSIONS)


@dataclass(frozen=True, kw_only=True)
class VBenchTable:
    """Scores of one system beside the published ones."""

    system: str
    """Name of the system."""

    scores: Mapping[str, float]
    """Percent by dimension; those that are missing are left out."""

    is_long: bool | None = None
    """Whether they are VBench-Long's, as the published ones are; None if that is not known."""

    reservations: Sequence[str] | None = ()
    """Why they cannot be compared with published ones; nothing if they can, None if that is not known."""

    @property
    def missing(self) -> tuple[str, ...]:
        """Dimensions without a score."""
        return tuple(name for name in _NAMES if name not in self.scores)

    @property
    def totals(self) -> Totals | None:
        """The three totals; None if a dimension is missing."""
        return None if self.missing else totals(self.scores)

    def as_data(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        found = self.totals
        return {
            "system": self.system,
            "vbench_long": self.is_long,
            "comparable": None if self.reservations is None else not self.reservations,
            "reservations": list(self.reservations or ()),
            "scores": dict(self.scores),
            "missing": list(self.missing),
            "totals": None if found is None else dataclasses.asdict(found),
            "quoted": [
                {"system": row.system, "source": row.source, "scores": dict(row.figures)}
                for row in quoted_rows("vbench_long")
            ],
        }

    def as_markdown(self) -> str:
        """Returns a Markdown table, a line per total and dimension, a column per system, and its notes."""
        quoted = quoted_rows("vbench_long")
        header = ["", f"**{self.system}**", *(f"{row.system} (quoted)" for row in quoted)]
        lines = [_row(header), _row(["---", *["---:"] * (len(quoted) + 1)])]
        own = self._figures()
        for name in (*TOTAL_NAMES, *_NAMES):
            lines.append(
                _row([name, _percent(own.get(name)), *(_percent(row.figures[name]) for row in quoted)])
            )
        return "\n".join(["# VBench", "", *lines, "", *(f"- {note}" for note in self.notes()), ""])

    def as_text(self) -> str:
        """Returns the same for a terminal: of the quoted systems the lowest and the highest."""
        quoted, own = quoted_rows("vbench_long"), self._figures()
        lines = [f"{'':<22}  {self.system:>8}  quoted"]
        for name in (*TOTAL_NAMES, *_NAMES):
            others = [row.figures[name] for row in quoted]
            width = max(8, len(self.system))
            lines.append(
                f"{name:<22}  {_percent(own.get(name)):>{width}}  {min(others):.2f} to {max(others):.2f}"
            )
        return "\n".join([*lines, *self.notes()])

    def notes(self) -> tuple[str, ...]:
        """Returns what must be read with the figures."""
        notes = [
            f"percent; quoted, not measured here: VBench-Long from {quoted_rows('vbench_long')[0].source}"
        ]
        if self.is_long is False:
            notes.append("not the same measure: these scores are VBench's, the quoted ones VBench-Long's")
        if self.missing:
            notes.append(f"no totals, since dimensions are missing: {', '.join(self.missing)}")
        if self.reservations:
            notes.append(f"not comparable with published scores: {'; '.join(self.reservations)}")
        if self.reservations is None:
            notes.append(
                "whether these scores can be compared is not known: how the videos were made is not on file"
            )
        return tuple(notes)

    def _figures(self) -> dict[str, float]:
        found = self.totals
        return {**self.scores, **({} if found is None else dataclasses.asdict(found))}


def read_results(folder: Path) -> dict[str, float]:
    """Reads all results of VBench in a folder and the folders in it.

    Args:
        folder: Where VBench wrote.

    Returns:
        Percent by `Dimension.name`, in VBench's order.

    Raises:
        ValueError: If a file is not VBench's, or two have different scores for a dimension.
    """
    scores: dict[str, float] = {}
    origins: dict[str, Path] = {}
    for path in sorted(folder.rglob(RESULTS_PATTERN)):
        for name, score in _read_file(path).items():
            if scores.setdefault(name, score) != score:
                raise ValueError(
                    f"{folder} has two scores for {name}, in {origins[name].name} and {path.name}; move one of them "
                    "elsewhere"
                )
            origins.setdefault(name, path)
    return {name: scores[name] for name in _NAMES if name in scores}


def _read_file(path: Path) -> dict[str, float]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}); run VBench again") from None
    if not isinstance(stored, dict):
        raise ValueError(
            f"{path} must map dimensions to scores as VBench's results, got {type(stored).__name__}"
        )
    return {
        key.replace("_", " "): _percent_of(key.replace("_", " "), value, path)
        for key, value in stored.items()
    }


def _percent_of(name: str, value: Any, path: Path) -> float:
    """Turns `[score, ...]` into percent."""
    if name not in _NAMES:
        raise ValueError(
            f"{path} has a score for {name!r}, which is no dimension of VBench; expected {_NAMES[0]!r}, ..."
        )
    score = value[0] if isinstance(value, list) and value else None
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise ValueError(
            f"{path} has no score for {name}, expected [score, ...], got {json.dumps(value)[:80]}"
        )
    if not 0 <= score <= 1:
        raise ValueError(
            f"{path} must have fractions from 0 to 1, as VBench writes them, got {score} for {name}"
        )
    return 100.0 * score


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
