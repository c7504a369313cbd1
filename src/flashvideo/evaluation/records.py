"""Files that grow while something is measured, and such as appear whole."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Adds a line of JSON to a file, and returns when it is on the disk.

    Raises:
        ValueError: If a number of the record is infinite or not a number, which JSON does not have.
    """
    line = json.dumps(dict(record), ensure_ascii=False, allow_nan=False)
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_records(path: Path) -> list[dict[str, Any]]:
    """Reads what `append_record` wrote; a last line that an interruption tore is taken out of the file.

    Args:
        path: The file; none is there before the first record.

    Returns:
        The records, oldest first.

    Raises:
        ValueError: If another line is not a JSON object.
    """
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")  # a letter may be torn too
    whole, newline, torn = text.rpartition("\n")
    if torn:
        write_text(path, whole + newline)
    records: list[dict[str, Any]] = []
    if not whole:
        return records
    for number, line in enumerate(whole.split("\n"), 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            record = None
        if not isinstance(record, dict):
            raise ValueError(f"line {number} of {path} is not a record, got {line[:40]!r}; remove that line")
        records.append(record)
    return records


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Writes a JSON file whole or not at all.

    Raises:
        ValueError: If a number is infinite or not a number.
    """
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
