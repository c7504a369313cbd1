"""What a sweep found: for each setting the mean of every measure with its interval, what it cost, and which are best.

The Pareto front of a measure over a cost is what a choice should be made from: each other setting is beaten by one on
the front, which costs no more, is no worse, and is better in one of the two.

Intervals are over items: the values of an item's seeds are averaged first, since they are not independent.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from flashvideo.evaluation.measures import Better, Measure
from flashvideo.evaluation.records import write_json, write_text
from flashvideo.evaluation.report.comparison import estimate_text, table, title
from flashvideo.evaluation.summary import Estimate, estimate
from flashvideo.evaluation.sweep.files import Run
from flashvideo.evaluation.sweep.grid import AXES, Axis, Setting, varying_axes


@dataclass(frozen=True, kw_only=True)
class CostKind:
    """One way in which cost is counted."""

    name: str
    """Key in files."""

    label: str
    """For plots, with its unit."""

    heading: str
    """For the table."""

    unit: float
    """What one of the unit is in the file's numbers."""


COSTS: tuple[CostKind, ...] = (
    CostKind(name="seconds", label="wall time, seconds", heading="seconds", unit=1.0),
    CostKind(name="evaluations", label="network evaluations", heading="evaluations", unit=1.0),
    CostKind(name="flops", label="operations, TFLOP", heading="TFLOP", unit=1e12),
    CostKind(name="peak_bytes", label="peak memory, GiB", heading="peak GiB", unit=2.0**30),
)
"""In the order in which they are shown."""


GROUPS: Mapping[str, str] = MappingProxyType(
    {
        "": "The video alone",
        "reference": "Against the reference",
        "source": "Against what it was made from",
        "prompt": "What readers find of the prompt",
    }
)
"""Tables of measures by what they need."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one setting came to, over its items and seeds."""

    setting: Setting
    """The setting."""

    tried: frozenset[tuple[str, int]]
    """Item and seed of each run."""

    scores: dict[str, Estimate]
    """By the names of measures."""

    cost: dict[str, float]
    """Means by the names of `COSTS`; of memory the most."""

    @property
    def count(self) -> int:
        """So many runs."""
        return len(self.tried)

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values, for JSON."""
        return {
            "setting": self.setting.as_dict(),
            "count": self.count,
            "scores": {name: vars(found) for name, found in self.scores.items()},
            "cost": self.cost,
        }


def outcomes(runs: Sequence[Run], measures: Sequence[Measure]) -> list[Outcome]:
    """Summarises runs by their settings, in the order of their values."""
    shares = {measure.name for measure in measures if measure.is_share}
    groups: dict[Setting, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.setting, []).append(run)
    return [_outcome(setting, groups[setting], shares) for setting in sorted(groups, key=_order)]


def pareto_front(points: Sequence[tuple[float, float]], better: Better) -> list[int]:
    """Finds the points that no other one beats.

    One beats another if it costs no more and is no worse, and is not equal in both. Equal points stay together.

    Args:
        points: Cost and quality of each.
        better: Which qualities are good: `"higher"`, `"lower"`, or `"one"` for a ratio, best where |log x| is least.

    Returns:
        Their numbers, by cost.

    Raises:
        ValueError: If no quality is better than another.

    >>> pareto_front([(1, 20.0), (2, 25.0), (3, 24.0)], "higher")
    [0, 1]
    """
    ranked = [(cost, badness(quality, better)) for cost, quality in points]
    front = [
        number
        for number, (cost, bad) in enumerate(ranked)
        if not math.isnan(bad)
        and not any(c <= cost and b <= bad and (c < cost or b < bad) for c, b in ranked)
    ]
    return sorted(front, key=lambda number: ranked[number])


def badness(quality: float, better: Better) -> float:
    """Returns a number that is the smaller the better the quality is.

    Raises:
        ValueError: If no quality is better than another.
    """
    if better == "higher":
        return -quality
    if better == "lower":
        return quality
    if better == "one":
        return abs(math.log(quality)) if quality > 0 else math.inf
    raise ValueError(f"better must be higher, lower or one for a Pareto front, got {better!r}")


def fronts(found: Sequence[Outcome], measures: Sequence[Measure]) -> dict[str, dict[str, list[int]]]:
    """Returns the Pareto fronts as numbers of outcomes: by cost, then by measure."""
    return {
        kind.name: {
            measure.name: front
            for measure in measures
            if measure.better != "neither" and (front := _front(found, kind, measure))
        }
        for kind in COSTS
        if any(kind.name in one.cost for one in found)
    }


def write_summary(folder: Path, found: Sequence[Outcome], measures: Sequence[Measure]) -> None:
    """Writes `summary.json` and `summary.md` into a sweep's folder."""
    data = {"settings": [one.as_dict() for one in found], "pareto": fronts(found, measures)}
    write_json(folder / "summary.json", data)
    write_text(folder / "summary.md", as_markdown(found, measures))


def as_markdown(found: Sequence[Outcome], measures: Sequence[Measure]) -> str:
    """Returns what all settings share, and tables with a row per setting: costs, and means with their intervals.

    A star stands at means that are on the Pareto front over operations.
    """
    axes = varying_axes(one.setting for one in found)
    shared = [axis for axis in AXES if axis not in axes and found and found[0].setting.has(axis)]
    shown = [measure for measure in measures if any(measure.name in one.scores for one in found)]
    stars = fronts(found, shown).get("flops", {})
    costs = [kind for kind in COSTS if any(kind.name in one.cost for one in found)]
    names = [[one.setting.value_text(axis) for axis in axes] or ["all"] for one in found]
    first = [axis.label for axis in axes] or ["settings"]
    lines = ["# Sweep", ""]
    if shared:
        lines += [f"All with {found[0].setting.text(shared)}.", ""]
    rows = [
        [*name, str(one.count), *(_cost_text(one, kind) for kind in costs)]
        for name, one in zip(names, found, strict=True)
    ]
    lines += ["## Cost", "", *table([*first, "runs", *(kind.heading for kind in costs)], rows), ""]
    for need, heading in GROUPS.items():
        group = [measure for measure in shown if measure.needs == need]
        if not group:
            continue
        rows = [
            [*name, *(_cell(one, measure, star=i in stars.get(measure.name, ())) for measure in group)]
            for i, (name, one) in enumerate(zip(names, found, strict=True))
        ]
        lines += [
            f"## {heading}",
            "",
            *table([*first, *(title(vars(measure)) for measure in group)], rows),
            "",
        ]
    lines += [
        "Means with 95 % intervals over the items, the seeds of each averaged first: Wilson's of shares with one seed, "
        "in percent, the bootstrap's otherwise. Costs are means, of memory the most; loading and scoring do not count. "
        "* is on the Pareto front over operations: nothing cheaper is as good, and nothing of the same cost is better.",
    ]
    return "\n".join(lines) + "\n"


def are_uneven(found: Sequence[Outcome]) -> bool:
    """Whether some settings were tried on other items or with other seeds, so that means are not of the same videos."""
    return len({one.tried for one in found}) > 1


def _outcome(setting: Setting, runs: Sequence[Run], shares: Collection[str]) -> Outcome:
    names = dict.fromkeys(name for run in runs for name in run.scores)
    costs = [run.cost.totals() for run in runs]
    cost = {}
    for kind in COSTS:
        values = [one[kind.name] for one in costs if kind.name in one]
        if values:
            cost[kind.name] = max(values) if kind.name == "peak_bytes" else sum(values) / len(values)
    return Outcome(
        setting=setting,
        tried=frozenset((run.item, run.seed) for run in runs),
        scores={name: _estimate(runs, name, is_share=name in shares) for name in names},
        cost=cost,
    )


def _estimate(runs: Sequence[Run], name: str, *, is_share: bool) -> Estimate:
    """Mean and interval over items, of the means over their seeds."""
    items: dict[str, list[float]] = {}
    for run in runs:
        if name in run.scores:
            items.setdefault(run.item, []).append(run.scores[name])
    count = sum(map(len, items.values()))
    means = [sum(values) / len(values) for values in items.values()]
    return dataclasses.replace(estimate(means, is_share=is_share and count == len(items)), count=count)


def _front(found: Sequence[Outcome], kind: CostKind, measure: Measure) -> list[int]:
    """The Pareto front of one measure, as numbers of outcomes."""
    numbers = [i for i, one in enumerate(found) if measure.name in one.scores and kind.name in one.cost]
    points = [(found[i].cost[kind.name], found[i].scores[measure.name].mean) for i in numbers]
    return [numbers[i] for i in pareto_front(points, measure.better)]


def _order(setting: Setting) -> tuple[tuple[float, str], ...]:
    return tuple(_axis_order(setting, axis) for axis in AXES)


def _axis_order(setting: Setting, axis: Axis) -> tuple[float, str]:
    """Numbers by their size, sizes by their pixels."""
    value = setting.value(axis)
    if isinstance(value, str):
        width, _, height = value.partition("x")
        is_exact = width.isdecimal() and height.isdecimal()
        return (float(int(width) * int(height)) if is_exact else 0.0, value)
    return (-math.inf if value is None else float(value), "")


def _cost_text(one: Outcome, kind: CostKind) -> str:
    return f"{one.cost[kind.name] / kind.unit:.3g}" if kind.name in one.cost else "-"


def _cell(one: Outcome, measure: Measure, *, star: bool) -> str:
    found = one.scores.get(measure.name)
    if found is None:
        return "-"
    count = "" if found.count == one.count else f" ({found.count})"
    return f"{estimate_text(vars(found), vars(measure))}{count}{'*' if star else ''}"
