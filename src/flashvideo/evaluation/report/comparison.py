"""A comparison of systems as data and as Markdown: means, intervals, and paired tests against the first system."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from flashvideo import __version__
from flashvideo.evaluation.measures import Better, Column
from flashvideo.evaluation.paper import QuotedRow
from flashvideo.evaluation.scoring import Scores, System
from flashvideo.evaluation.summary import Difference, Record, difference, summarise

ARROWS: Mapping[Better, str] = {"higher": "↑", "lower": "↓", "one": "→ 1", "neither": ""}
"""How a table's header says which values are good."""
MOST_DIGITS = 6
SCHEMA = 1
"""Version of the report's layout."""

logger = logging.getLogger(__name__)

Report = dict[str, Any]


def build_report(
    systems: Sequence[System],
    scores: Scores,
    measures: Sequence[Column],
    quoted: Sequence[QuotedRow] = (),
) -> Report:
    """Puts a comparison together.

    Args:
        systems: The systems; the others are compared with the first.
        scores: Of their videos.
        measures: What they were scored with.
        quoted: Rows that others have published.

    Returns:
        JSON values: `measures`, `systems` with `figures` and the numbers of their `videos`, `comparisons`, `quoted`.

    Raises:
        ValueError: If a system has no video that the first one has.
    """
    of_systems = {system.label: list(scores[system.label].values()) for system in systems}
    present = {name for records in of_systems.values() for record in records for name in record}
    used = [measure for measure in measures if measure.name in present]
    shares = {column.name for column in used if column.is_share}
    baseline, *others = systems
    for system in others:
        _check_common(system, baseline)
    return {
        "schema": SCHEMA,
        "version": __version__,
        "measures": {
            measure.name: {
                "label": measure.label,
                "unit": measure.unit,
                "better": measure.better,
                "is_share": measure.is_share,
                "variant": measure.variant,
            }
            for measure in used
        },
        "systems": [
            {
                "label": system.label,
                "count": len(system.videos),
                "setting": dict(system.setting),
                "figures": summarise(of_systems[system.label], shares),
                "videos": {name: dict(record) for name, record in scores[system.label].items()},
            }
            for system in systems
        ],
        "comparisons": [
            {
                "system": system.label,
                "baseline": baseline.label,
                "figures": compare(scores[system.label], scores[baseline.label], used),
            }
            for system in others
        ],
        "quoted": [
            {"system": row.system, "source": row.source, "figures": dict(row.figures)} for row in quoted
        ],
    }


def _check_common(system: System, baseline: System) -> None:
    common = system.videos.keys() & baseline.videos.keys()
    if not common:
        raise ValueError(
            f"{system.label} has no video that {baseline.label} has, such as {next(iter(baseline.videos))}; videos "
            "belong together by their names without suffix, so rename them"
        )
    if len(common) < max(len(system.videos), len(baseline.videos)):
        logger.warning(
            "%d of the %d videos of %s and %d of %s have one name: they are compared, but means are of all",
            len(common),
            len(system.videos),
            system.label,
            len(baseline.videos),
            baseline.label,
        )


def compare(
    ours: Mapping[str, Record], theirs: Mapping[str, Record], measures: Sequence[Column]
) -> dict[str, dict[str, Any]]:
    """Compares two systems on the videos that both have.

    Args:
        ours: Numbers of one system, by video.
        theirs: Of the other.
        measures: What to compare.

    Returns:
        By measure the fields of `Difference`, ours less theirs, and a `verdict`: better, worse, different or unclear.
        Of a ratio that should be 1 the distance is compared, `|log x|`.
    """
    found = {}
    for measure in measures:
        pairs = [
            (_comparable(ours[name][measure.name], measure), _comparable(theirs[name][measure.name], measure))
            for name in ours
            if measure.name in ours[name] and measure.name in theirs.get(name, {})
        ]
        if pairs:
            change = difference(*zip(*pairs, strict=True), is_share=measure.is_share)
            found[measure.name] = asdict(change) | {"verdict": verdict(change, measure.better)}
    return found


def _comparable(value: float, measure: Column) -> float:
    return abs(math.log(max(value, 1e-9))) if measure.better == "one" else value


def verdict(change: Difference, better: Better) -> str:
    """Returns better, worse, different (where neither direction is good) or unclear."""
    if not change.is_clear:
        return "unclear"
    if better == "neither":
        return "different"
    return "better" if (change.mean > 0) == (better == "higher") else "worse"


def as_markdown(report: Report) -> str:
    """Returns the report for people: a table of systems, one of differences, and the quoted rows."""
    lines = ["# Evaluation", ""]
    if report["quoted"]:
        lines += ["## Measured here", ""]
    lines += table(*figures_table(report))
    for comparison in report["comparisons"]:
        lines += ["", f"## {comparison['system']} against {comparison['baseline']}", ""]
        lines += table(*differences_table(report, comparison))
    for source, content in quoted_tables(report):
        lines += ["", f"## Quoted from {source}, not measured here", "", *table(*content)]
    settings = [system for system in report["systems"] if system["setting"]]
    if settings:
        lines += ["", "## Settings", ""]
        lines += [f"- {system['label']}: {setting_text(system['setting'])}" for system in settings]
    return "\n".join(lines) + "\n"


Cells = list[list[str]]


def figures_table(report: Report) -> tuple[list[str], Cells]:
    """Returns header and rows: a measure a row, a system a column, with 95 % intervals."""
    systems = report["systems"]
    header = ["", *(f"{system['label']} ({system['count']})" for system in systems)]
    rows = []
    for name, measure in report["measures"].items():
        cells = [estimate_text(system["figures"].get(name), measure) for system in systems]
        rows.append([title(measure), *cells])
    return header, rows


def differences_table(report: Report, comparison: Mapping[str, Any]) -> tuple[list[str], Cells]:
    """Returns header and rows of one comparison."""
    rows = []
    for name, figure in comparison["figures"].items():
        measure = report["measures"][name]
        what = title(measure) + (", distance from 1 in logarithms" if measure["better"] == "one" else "")
        p_value = f"{figure['p_value']:.2g}"
        rows.append([what, estimate_text(figure, measure), p_value, str(figure["count"]), figure["verdict"]])
    return ["", "difference [95 %]", "p", "videos", "verdict"], rows


def _counted(figure: Mapping[str, Any] | None, measure: Mapping[str, Any], count: int) -> str:
    """A cell of the table of systems; in brackets the number of videos where not all have the figure."""
    text = estimate_text(figure, measure)
    return text if figure is None or figure["count"] == count else f"{text} ({figure['count']})"


def quoted_tables(report: Report) -> list[tuple[str, tuple[list[str], Cells]]]:
    """Returns of each publication its source, and header and rows of what it says."""
    tables = []
    for source in dict.fromkeys(row["source"] for row in report["quoted"]):
        rows = [row for row in report["quoted"] if row["source"] == source]
        names = list(dict.fromkeys(name for row in rows for name in row["figures"]))
        cells = [
            [
                f"{row['system']} (quoted)",
                *(f"{row['figures'][name]:g}" if name in row["figures"] else "" for name in names),
            ]
            for row in rows
        ]
        tables.append((source, (["", *names], cells)))
    return tables


def title(measure: Mapping[str, Any]) -> str:
    """Returns for example `PSNR, dB ↑`."""
    unit = "%" if measure["is_share"] else measure["unit"]
    unit = f", {unit}" if unit else ""
    variant = f" ({measure['variant']})" if measure["variant"] else ""
    arrow = ARROWS[measure["better"]]
    return f"{measure['label']}{variant}{unit} {arrow}".strip()


def estimate_text(figure: Mapping[str, Any] | None, measure: Mapping[str, Any]) -> str:
    """Returns a mean with its interval, to two digits of the interval, shares in percent; empty if there is none.

    >>> estimate_text({"mean": 27.347, "low": 26.91, "high": 27.62}, {"is_share": False})
    '27.35 [26.91, 27.62]'
    >>> estimate_text({"mean": 0.25, "low": 0.07, "high": 0.59}, {"is_share": True})
    '25 [7, 59]'
    >>> estimate_text({"mean": 0.25, "low": None, "high": None}, {"is_share": False})
    '0.250'
    """
    if figure is None:
        return ""
    values = [figure[key] for key in ("mean", "low", "high") if figure[key] is not None]
    values = [100 * value if measure["is_share"] else value for value in values]
    width = max(values) - min(values)
    if width > 0:
        digits = 2 - math.ceil(math.log10(width))
    else:
        digits = 3 - math.ceil(math.log10(abs(values[0]))) if values[0] else 0
    digits = 0 if measure["is_share"] else min(MOST_DIGITS, max(0, digits))
    # Adding 0.0 takes the sign from what is rounded to 0.
    texts = [f"{round(value, digits) + 0.0:.{digits}f}" for value in values]
    return texts[0] if width == 0 else f"{texts[0]} [{texts[1]}, {texts[2]}]"


def setting_text(setting: Mapping[str, Any]) -> str:
    """Returns a setting on one line."""
    return ", ".join(f"{key} {value}" for key, value in setting.items())


def table(header: Sequence[str], rows: Cells) -> list[str]:
    """Returns the lines of a Markdown table."""
    lines = (header, ["---"] * len(header), *rows)
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in lines]
