"""Time and memory of work."""

import sys

import pytest
import torch

from flashvideo.evaluation import peaks
from flashvideo.evaluation.peaks import MemoryUse, timed, with_peak

CPU, MIB = torch.device("cpu"), 2**20


def test_work_gives_its_result_and_its_seconds(monkeypatch):
    clock = iter([1.0, 3.5])
    monkeypatch.setattr(peaks.time, "perf_counter", lambda: next(clock))
    assert timed(lambda: "done", CPU) == ("done", 2.5)


def test_an_accelerator_is_waited_for_before_and_after(monkeypatch):
    told = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: told.append("wait"))
    timed(lambda: told.append("work"), torch.device("cuda"))
    assert told == ["wait", "work", "wait"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_the_peak_is_of_the_work_and_not_of_what_was_before():
    before = torch.ones(400 * MIB, dtype=torch.uint8)
    del before
    result, memory = with_peak(lambda: torch.ones(100 * MIB, dtype=torch.uint8).numel(), CPU)
    assert result == 100 * MIB
    assert 90 * MIB < memory.extra < 250 * MIB
    assert MemoryUse(before=3, most=10).extra == 7


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_what_the_allocator_keeps_does_not_hide_what_the_work_takes():
    def small_pieces() -> list[bytearray]:
        return [bytearray(b"1") * 60_000 for _ in range(2000)]

    kept = small_pieces()
    last = kept.pop()  # beneath it the allocator keeps what is free
    kept.clear()
    _, memory = with_peak(small_pieces, CPU)
    assert len(last) == 60_000
    assert memory.extra > 80 * MIB


@pytest.mark.parametrize("name", ["_RESET", "_STATUS"])
def test_where_the_system_does_not_tell_the_peak_is_unknown(tmp_path, monkeypatch, name):
    monkeypatch.setattr(peaks, name, tmp_path / "none" / "file")
    assert with_peak(lambda: 1, CPU) == (1, None)


def test_a_status_without_a_high_water_mark_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "status").write_text("Name:\tpython\nVmRSS:\t5 kB\n")
    monkeypatch.setattr(peaks, "_STATUS", tmp_path / "status")
    assert with_peak(lambda: 1, CPU) == (1, None)
