"""Clips listed in a table: CSV, JSON lines or Parquet, one clip a row.

Columns: `path` (or `file_name`), relative to the table's folder, an absolute path or a URL; `caption` (or `text`);
`start` and `end` in seconds, if a row is a part of a video; `score`, a person's or a network's judgement, where only
the better rows are wanted. Others are left alone.
"""

import csv
import importlib
import io
import json
import math
import posixpath
from collections.abc import Iterator, Sequence
from typing import Any

from flashvideo.data.clips.entries import (
    CAPTION_KEYS,
    IMAGE_SUFFIXES,
    ClipEntry,
    Listing,
    caption_of,
    suffix_of,
)
from flashvideo.data.clips.files import ClipFile, file_system, full_url

TABLE_SUFFIXES = (".csv", ".jsonl", ".parquet")
PATH_KEYS = ("path", "file_name")
USED_COLUMNS = (*PATH_KEYS, *CAPTION_KEYS, "start", "end", "score")


def list_table(url: str, *, source: str, least_score: float | None = None) -> Listing:
    """Lists the clips of a table; whether their files are there is not looked at.

    Args:
        url: Path or URL of the table.
        source: Name of the source.
        least_score: Rows of a lower score are left out.

    Raises:
        ValueError: If the table cannot be read, lacks a column, a row has no path, a wrong time or no score where one
            is asked for, or no row's score is high enough.
        ImportError: If it is a Parquet file and pyarrow is not installed.
    """
    columns, rows = read_table(url, used=USED_COLUMNS)
    for keys in (PATH_KEYS, CAPTION_KEYS):
        if not set(keys) & set(columns):
            found = ", ".join(columns) or "none"
            raise ValueError(
                f"{url} must have a column {keys[0]!r} (or {keys[1]!r}), got the columns {found}; rename one"
            )
    folder = posixpath.dirname(full_url(*file_system(url)))
    named = [(row, f"row {number} of {url}") for number, row in enumerate(rows, start=1)]
    if least_score is not None:
        scores = [_number(row, "score", math.nan, where, expected="a number") for row, where in named]
        _check_scores(url, scores, least_score)
        named = [pair for pair, score in zip(named, scores, strict=True) if score >= least_score]
    return Listing(entries=[_entry(row, where, folder, source) for row, where in named], problems={})


def _check_scores(url: str, scores: list[float], least: float) -> None:
    missing = [number for number, score in enumerate(scores, start=1) if math.isnan(score)]
    if missing:
        raise ValueError(
            f"row {missing[0]} of {url} has no score, expected one in each row, of which those below {least:g} are "
            "left out; fill in the column 'score', or drop least_score"
        )
    if scores and max(scores) < least:
        raise ValueError(
            f"{url} must have scores of at least {least:g}, got {max(scores):g} at most; lower least_score"
        )


def read_table(url: str, *, used: Sequence[str]) -> tuple[list[str], list[dict[str, Any]]]:
    """Names of the columns and rows of a table, whose suffix is one of `TABLE_SUFFIXES`.

    Args:
        url: Path or URL of the table.
        used: Columns that are wanted: of Parquet, whose others may be large, no more is read.

    Raises:
        ValueError: If it is not there, or cannot be read.
        ImportError: If it is a Parquet file and pyarrow is not installed.
    """
    system, path = file_system(url)
    if not system.isfile(path):
        raise ValueError(f"{url} does not exist, expected a table of clips; check the name")
    with system.open(path, "rb") as file:
        if suffix_of(url) == ".parquet":
            return _read_parquet(file, url, used)
        try:
            text = file.read().decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError(f"{url} must be text in UTF-8, which it is not; convert it") from None
    if suffix_of(url) == ".csv":
        try:
            reader = csv.DictReader(io.StringIO(text, newline=""))
            return list(reader.fieldnames or ()), list(reader)
        except csv.Error as error:
            raise ValueError(f"{url} must be a CSV table, which it is not: {error}") from None
    rows = list(_json_lines(url, text))
    return list(dict.fromkeys(key for row in rows for key in row)), rows


def _json_lines(url: str, text: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number} of {url} must be JSON, which it is not: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"line {number} of {url} must be a JSON object, got {type(row).__name__}")
        yield row


def _read_parquet(file: Any, url: str, used: Sequence[str]) -> tuple[list[str], list[dict[str, Any]]]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ImportError(
            f"pyarrow is not installed; {url} is a Parquet table, which needs it: pip install 'flashvideo[train]'"
        ) from None
    try:
        table = parquet.ParquetFile(file)
        columns = list(table.schema_arrow.names)
        return columns, table.read(columns=[name for name in columns if name in used]).to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's own errors are either
        reason = str(error).splitlines()[0]
        raise ValueError(f"{url} must be a Parquet table, which it is not: {reason}") from None


def _entry(row: dict[str, Any], where: str, folder: str, source: str) -> ClipEntry:
    """The clip of one row."""
    path = next((str(row[key]) for key in PATH_KEYS if row.get(key)), "")
    if not path:
        raise ValueError(f"{where} has no path, expected the name of a video or picture; fill it in")
    start, end = _number(row, "start", 0.0, where), _number(row, "end", math.inf, where)
    if not 0 <= start < end:
        raise ValueError(f"{where} must have 0 <= start < end, got start {start:g} and end {end:g}")
    url = path if "://" in path else posixpath.join(folder, path)
    inside = url.removeprefix(folder.rstrip("/") + "/")
    is_part = start > 0 or end < math.inf
    return ClipEntry(
        name=f"{url}#{start:g}-{end:g}" if is_part else url,
        key=posixpath.normpath(inside) if "://" not in inside else inside,
        file=ClipFile(url=url),
        source=source,
        is_image=suffix_of(path) in IMAGE_SUFFIXES,
        caption=caption_of(row).strip(),
        start=start,
        end=end,
    )


def _number(
    row: dict[str, Any], key: str, default: float, where: str, *, expected: str = "a number of seconds"
) -> float:
    value = row.get(key)
    if value is None or value == "":
        return default
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{where} must have {expected} as {key}, got {value!r}") from None
    return default if math.isnan(number) else number  # how tables often write "not given"
