"""What a benchmark found, kept as JSON, shown as a table, and compared with an earlier one."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from flashvideo.evaluation.bench.rates import Rates
from flashvideo.evaluation.bench.running import Row

SCHEMA = 1
"""Version of the file's content: one more with each change that makes older files unreadable."""

_KIND = "flashvideo bench"
_NUM_RESAMPLES = 10_000
# What must be the same for two files to be of one measurement, each by its place in the file.
_MACHINE = (
    "machine.device",
    "machine.processor.name",
    "machine.processor.cores",
    "machine.processor.threads",
    "machine.accelerator.name",
)
_SUBJECT_PARTS = ("model", "weights", "size", "num_frames")
_SUBJECT = ("model", "weights", "size.height", "size.width", "num_frames")

Record = dict[str, Any]


def make_record(
    *,
    model: str,
    weights: str,
    size: tuple[int, int],
    num_frames: int,
    repeats: int,
    machine: Mapping[str, Any],
    software: Mapping[str, Any],
    load_average: float | None,
    default_dtype: str,
    rates: Mapping[str, Rates],
    rows: Sequence[Row],
    is_complete: bool = True,
) -> Record:
    """Puts together what is kept of a benchmark.

    Args:
        model: The model's name.
        weights: "trained" or "random".
        size: Height and width of the video.
        num_frames: Its frames.
        repeats: Repetitions of each phase.
        machine: As `flashvideo.evaluation.machine.describe_machine` tells.
        software: As `flashvideo.evaluation.machine.describe_software` tells.
        load_average: Before the measurement.
        default_dtype: Name of the dtype that a pipeline takes here by itself.
        rates: Measured rates by dtype.
        rows: What was found.
        is_complete: Whether that is all that was to be measured.

    Returns:
        Plain values, for JSON.
    """
    return {
        "kind": _KIND,
        "schema": SCHEMA,
        "complete": is_complete,
        "model": model,
        "weights": weights,
        "size": {"height": size[0], "width": size[1]},
        "num_frames": num_frames,
        "repeats": repeats,
        "machine": dict(machine),
        "software": dict(software),
        "load_average": load_average,
        "default_dtype": default_dtype,
        "rates": {
            name: {
                "flops_per_second": rate.flops,
                "convolution_flops_per_second": rate.convolution_flops,
                "bytes_per_second": rate.bytes,
            }
            for name, rate in rates.items()
        },
        "rows": [row.as_dict() for row in rows],
    }


def read_record(path: Path) -> Record:
    """Reads the file of what `make_record` made.

    Raises:
        ValueError: If the file is not there, is no benchmark, one of another schema, or lacks something.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist, expected the JSON file of a benchmark; check the name")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file ({error}); measure again") from None
    if not isinstance(record, dict) or record.get("kind") != _KIND:
        raise ValueError(f"{path} is not of a benchmark, expected what `flashvideo bench --output` wrote")
    if record.get("schema") != SCHEMA:
        raise ValueError(
            f"{path} has schema {record.get('schema')} of benchmarks, this version reads {SCHEMA}; measure again"
        )
    missing = sorted({*_SUBJECT_PARTS, "machine", "software", "rows"} - record.keys())
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}, which every benchmark has; measure again")
    if not isinstance(record["rows"], list) or not all(map(_is_row, record["rows"])):
        raise ValueError(f"{path} has rows that are not those of a benchmark; measure again")
    return record


def _is_row(row: object) -> bool:
    """Whether it has what a comparison reads."""
    if not isinstance(row, dict) or not {"phase", "dtype", "ours", "reference"} <= row.keys():
        return False
    sides = [row[side] for side in ("ours", "reference") if row[side] is not None]
    return all(isinstance(side, dict) and {"seconds", "median"} <= side.keys() for side in sides)


def as_table(record: Mapping[str, Any]) -> str:
    """Returns a record as lines of Markdown: what was measured, where, and a table of its phases."""
    return "\n".join([*_heading(record), "", *_table(record), "", *_remarks(record)])


def check_comparable(now: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Checks that two records are of the same model, size and machine.

    Raises:
        ValueError: If they are not; it names the first thing that differs.
    """
    for name in (*_SUBJECT, *_MACHINE):
        here, there = _look_up(now, name), _look_up(before, name)
        if name == "machine.device":  # the first of a kind has two names
            here, there = (str(device).removesuffix(":0") for device in (here, there))
        if here != there:
            what = name.removeprefix("machine.").replace(".", " ").replace("_", " ")
            raise ValueError(
                f"the earlier benchmark is of another {what}, got {there} there and {here} here; measure both alike, "
                "or compare all the same with --force"
            )


def compare(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[Record]:
    """Compares two records phase by phase.

    Args:
        now: One record.
        before: An earlier one.

    Returns:
        For each phase and dtype of both, under "ours" and "reference": medians, how many times as fast that side is as
        before, and the 95 % interval. Under "relative": the same of ours measured in times of the reference, pair by
        pair, from which the machine's and the libraries' part is gone.

    Raises:
        ValueError: If no phase was measured in the same dtype in both.
    """
    earlier = {(row["phase"], row["dtype"]): row for row in before["rows"]}
    found = []
    for row in now["rows"]:
        old = earlier.get((row["phase"], row["dtype"]))
        if old is None or row["ours"] is None or old["ours"] is None:
            continue
        entry: Record = {"phase": row["phase"], "dtype": row["dtype"], "reference": None, "relative": None}
        sides = ["ours"] if row["reference"] is None or old["reference"] is None else ["ours", "reference"]
        for side in sides:
            change = _change(row[side]["seconds"], old[side]["seconds"])
            entry[side] = {"before": old[side]["median"], "now": row[side]["median"], **change}
        if len(sides) == 2:
            entry["relative"] = _change(_in_reference_times(row), _in_reference_times(old))
        found.append(entry)
    if not found:
        raise ValueError(
            "the earlier benchmark has no phase in the same dtype in common with this one; measure the same phases"
        )
    return found


def check_phases(phases: Sequence[str], before: Mapping[str, Any]) -> None:
    """Checks that something of an earlier record will be measured again.

    Args:
        phases: What will be measured.
        before: The record.

    Raises:
        ValueError: If nothing will.
    """
    earlier = list(dict.fromkeys(row["phase"] for row in before["rows"]))
    if not set(earlier) & set(phases):
        raise ValueError(
            f"--phases must have one of the earlier benchmark's {', '.join(earlier) or 'none'}, got "
            f"{', '.join(phases)}; measure the same phases"
        )


def speedup(now: Sequence[float], before: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """How many times as fast something is as before: the ratio of geometric means of two independent samples.

    Args:
        now: Seconds.
        before: Seconds; as many or not.

    Returns:
        The ratio, and its 95 % percentile bootstrap interval, both samples being resampled.
    """
    generator = torch.Generator().manual_seed(0)

    def means(seconds: Sequence[float]) -> torch.Tensor:
        logs = torch.tensor(seconds, dtype=torch.float64).log()
        chosen = torch.randint(len(logs), (_NUM_RESAMPLES, len(logs)), generator=generator)
        return logs[chosen].mean(dim=1)

    spread = means(before) - means(now)
    low, high = torch.quantile(spread, torch.tensor([0.025, 0.975], dtype=torch.float64)).exp().tolist()
    factor = math.exp(
        statistics.fmean(math.log(one) for one in before) - statistics.fmean(math.log(one) for one in now)
    )
    return factor, (low, high)


def as_comparison_table(changes: Sequence[Mapping[str, Any]], before: Mapping[str, Any]) -> str:
    """Returns what `compare` found as lines of Markdown."""
    software = before["software"]
    lines = [
        f"Against flashvideo {software['flashvideo']} ({software['commit'] or 'no commit'}), "
        f"torch {software['packages']['torch']}, diffusers {software['packages']['diffusers']}; "
        "above 1 is faster than before. What the machine has to do with it, the reference shows too, and the last "
        "column leaves out. Intervals of few repetitions are too narrow.",
        "",
        "| phase | dtype | before | now | times as fast [95 %] | the reference | ours relative to it |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for change in changes:
        ours = change["ours"]
        lines.append(
            f"| {change['phase']} | {change['dtype']} | {_seconds(ours['before'])} | {_seconds(ours['now'])} | "
            f"{_factor(ours)} | {_factor(change['reference'])} | {_factor(change['relative'])} |"
        )
    return "\n".join(lines)


def _change(now: Sequence[float], before: Sequence[float]) -> Record:
    factor, interval = speedup(now, before)
    return {"times_as_fast": factor, "interval": interval}


def _in_reference_times(row: Mapping[str, Any]) -> list[float]:
    pairs = zip(row["ours"]["seconds"], row["reference"]["seconds"], strict=True)
    return [ours / reference for ours, reference in pairs]


def _heading(record: Mapping[str, Any]) -> Iterator[str]:
    machine, software = record["machine"], record["software"]
    processor, accelerator = machine["processor"], machine["accelerator"]
    packages = ", ".join(f"{name} {version}" for name, version in software["packages"].items())
    if not record["complete"]:
        yield "INCOMPLETE: the measurement was interrupted"
    yield (
        f"{record['model']} ({record['weights']} weights), {record['num_frames']} frames of "
        f"{record['size']['width']}x{record['size']['height']}, {record['repeats']} repetitions each, by turns"
    )
    yield (
        f"processor: {processor['name']} ({processor['features']}), {processor['cores']} cores, "
        f"{processor['threads']} threads, {processor['memory_gib']} GiB; load before: {record['load_average']}"
    )
    if accelerator is not None:
        yield (
            f"accelerator: {accelerator['name']}, {accelerator['memory_gib']} GiB, driver {accelerator['driver']}"
        )
    yield (
        f"software: flashvideo {software['flashvideo']} ({software['commit'] or 'no commit'}), "
        f"Python {software['python']}, {packages}, {machine['platform']}"
    )
    for dtype, rate in record["rates"].items():
        picked = ", what a pipeline takes here" if dtype == record["default_dtype"] else ""
        yield (
            f"{dtype}{picked}: {rate['flops_per_second'] / 1e9:.0f} GFLOP/s in matrix products, "
            f"{rate['bytes_per_second'] / 1e9:.1f} GB/s"
        )


def _table(record: Mapping[str, Any]) -> Iterator[str]:
    yield (
        "| phase | dtype | ours, median [least, most] | reference | times as fast [95 %] | largest difference | "
        "peak, ours and reference | floor | ours / floor |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for row in record["rows"]:
        ours, reference = row["ours"], row["reference"]
        cells = [row["phase"], row["dtype"], *(_side(side) for side in (ours, reference))]
        cells.append("" if row["ratio"] is None else _interval(row["ratio"], row["ratio_interval"]))
        if row["difference"] is None:
            cells.append("?")
        else:
            mark = "" if row["agrees"] else " (too large)"
            cells.append(f"{row['difference']:.1e} of {row['largest']:.1f}{mark}")
        cells.append(", ".join(_mib(side["peak_bytes"]) for side in (ours, reference) if side is not None))
        cells.append(_seconds(row["floor_seconds"]))
        cells.append("" if row["times_floor"] is None else f"{row['times_floor']:.1f}")
        yield f"| {' | '.join(cells)} |"


def _remarks(record: Mapping[str, Any]) -> Iterator[str]:
    yield (
        "The reference is diffusers' and transformers' own classes with the same weights and inputs. A stage is one "
        "step with guidance, without its sampler; peaks are beyond weights and inputs. Floor: operations and bytes of "
        "weights over the measured rates, whichever takes longer; of the VAE the faster of the rates of products and "
        "convolutions counts."
    )
    noted = [row for row in record["rows"] if row["note"] and row["dtype"] == record["rows"][0]["dtype"]]
    for row in noted:
        yield f"{row['phase']}: {row['note']}."


def _look_up(record: Mapping[str, Any], name: str) -> Any:
    value: Any = record
    for key in name.split("."):
        value = None if value is None else value.get(key)
    return value


def _side(side: Mapping[str, Any] | None) -> str:
    if side is None:
        return "none"
    return f"{_seconds(side['median'])} [{_seconds(side['least'])}, {_seconds(side['most'])}]"


def _factor(change: Mapping[str, Any] | None) -> str:
    if change is None:
        return "?"
    return _interval(change["times_as_fast"], change["interval"])


def _interval(factor: float, interval: Sequence[float]) -> str:
    low, high = interval
    return f"{factor:.2f} [{low:.2f}, {high:.2f}]"


def _seconds(seconds: float) -> str:
    """Three digits in the unit that suits.

    >>> _seconds(12.345), _seconds(0.012345), _seconds(0.000012345)
    ('12.3 s', '12.3 ms', '12.3 us')
    """
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * scale >= 1 or unit == "us":
            return f"{seconds * scale:.3g} {unit}"
    raise AssertionError


def _mib(num_bytes: int | None) -> str:
    return "?" if num_bytes is None else f"{num_bytes / 1024**2:.0f} MiB"
