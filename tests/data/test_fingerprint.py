"""What tells whether clips are still those that something was computed of, and files that several processes share."""

import dataclasses
import os
import shutil
from pathlib import Path

import pytest

from flashvideo.data.clips import ClipDataset
from flashvideo.data.clips.cache import FileCache
from flashvideo.data.clips.config import ClipsConfig
from flashvideo.data.clips.sources import ClipSource
from flashvideo.pipelines.tensor_file import partial_path

CONFIG = ClipsConfig(sources=(ClipSource(path="clips"),), buckets=((5, 16, 24),), frame_rate=24.0)


def _fingerprint(source: Path, **changes) -> str:
    config = dataclasses.replace(CONFIG, sources=(ClipSource(path=str(source), **changes),))
    return ClipDataset(config, temporal_compression=4, progress=False).fingerprint()


@pytest.fixture
def folder(tmp_path, write_counted):
    """Two videos, and a table of two parts of the first."""
    (tmp_path / "clips").mkdir()
    for name in ("a", "b"):
        write_counted(tmp_path / "clips" / f"{name}.mp4", num_frames=12)
    return tmp_path / "clips"


def test_a_folder_may_move_and_a_weight_may_change(folder, tmp_path):
    before = _fingerprint(folder)
    assert _fingerprint(folder, weight=2.0, name="mine") == before
    shutil.copytree(folder, tmp_path / "elsewhere" / "deeper")
    assert _fingerprint(tmp_path / "elsewhere" / "deeper") == before
    (folder / "a.mp4").rename(folder / "c.mp4")
    assert _fingerprint(folder) != before


def test_a_video_that_was_overwritten_by_one_of_the_same_length_is_noticed(folder, write_counted):
    before = _fingerprint(folder)
    write_counted(folder / "a.mp4", num_frames=12, noise=200)
    assert _fingerprint(folder) != before


@pytest.mark.parametrize("end", ["0.3000001", "0.4"])
def test_a_tables_parts_count_with_all_their_digits_and_their_files_bytes(folder, write_counted, end):
    table = folder / "clips.csv"
    table.write_text("path,caption,start,end\na.mp4,x,0.01,0.3\n")
    before = _fingerprint(table)
    table.write_text(f"path,caption,start,end\na.mp4,x,0.01,{end}\n")
    assert _fingerprint(table) != before
    table.write_text("path,caption,start,end\na.mp4,x,0.01,0.3\n")
    assert _fingerprint(table) == before
    write_counted(folder / "a.mp4", num_frames=12, noise=200)
    assert _fingerprint(table) != before


def test_processes_of_one_number_on_two_machines_do_not_write_the_same_unfinished_file(tmp_path, monkeypatch):
    moved, replace = [], os.replace
    monkeypatch.setattr(os, "getpid", lambda: 7)
    monkeypatch.setattr(os, "replace", lambda a, b: (moved.append(Path(a)), replace(a, b)))
    for _ in range(2):
        cache = FileCache(tmp_path / "clips.json")
        cache.put("a.mp4", "1", {})
        cache.save()
    assert moved[0] != moved[1] and [path.name for path in tmp_path.iterdir()] == ["clips.json"]
    assert partial_path(tmp_path / "a") != partial_path(tmp_path / "a")
