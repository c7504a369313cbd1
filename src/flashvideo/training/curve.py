"""The training curve, `curve.csv`: one row per logged step and one per validation."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TIMES = ("minutes", "samples_per_second", "memory_gib")
"""Columns that differ between two runs of one recipe; all others are the same, bit for bit, in one CPU process."""


class Curve:
    """A CSV file of one row per logged step; columns grow as new names appear.

    Args:
        path: the file.
        keep_until: rows of an earlier file up to this step are kept.
    """

    def __init__(self, path: Path, keep_until: int) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path.exists() and keep_until:
            with path.open(newline="") as file:
                self.rows = [r for r in csv.DictReader(file) if int(r["step"]) <= keep_until]

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row and write the file anew, atomically."""
        self.rows.append({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
        names = list(dict.fromkeys(k for r in self.rows for k in r))
        temporary = self.path.with_name(self.path.name + ".partial")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows)
        os.replace(temporary, self.path)
