"""Figures that others have published, as rows beside one's own; they are quoted, not measured here."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

QUOTED_PATH = Path(__file__).parents[1] / "assets" / "quoted"


@dataclass(frozen=True, kw_only=True)
class QuotedRow:
    """What a publication says of one system."""

    system: str
    """Name of the system, as printed."""

    figures: Mapping[str, float]
    """Value by metric."""

    source: str
    """Where it is printed."""


SOURCES: Mapping[str, str] = MappingProxyType(
    {
        "vbench_long": "FlashVideo, arXiv:2502.05179, Table 1",
        "enhancers": "FlashVideo, arXiv:2502.05179, Table 3",
    }
)
"""The tables that there are, each with its source."""


def quoted_rows(table: str) -> tuple[QuotedRow, ...]:
    """Returns the rows of a published table.

    Args:
        table: A key of `SOURCES`: `"vbench_long"`, percent in all dimensions and totals of VBench-Long, in which the
            source prints the same figures for LTX-Video and OpenSora-1.2; or `"enhancers"`, video enhancers on the
            previews of FlashVideo's Stage I.

    Returns:
        The rows, in the source's order.

    Raises:
        ValueError: If there is no such table.
    """
    if table not in SOURCES:
        raise ValueError(f"table must be one of {', '.join(SOURCES)}, got {table!r}")
    with (QUOTED_PATH / f"{table}.csv").open(encoding="utf-8", newline="") as file:
        return tuple(
            QuotedRow(
                system=row.pop("system"),
                figures=MappingProxyType({name: float(value) for name, value in row.items()}),
                source=SOURCES[table],
            )
            for row in csv.DictReader(file)
        )
