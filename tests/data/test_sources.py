"""Folders, tables and tar shards: which clips they list, and what is said of those that are not right."""

import io
import json
import sys
import tarfile

import fsspec
import pytest

from flashvideo.data.clips.cache import FileCache
from flashvideo.data.clips.shards import expand_braces
from flashvideo.data.clips.sources import ClipSource, list_source


def listed(path, cache=None):
    return list_source(ClipSource(path=str(path)), cache=cache or FileCache(), progress=False)


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"any")


def write_tar(path, members):
    """Writes a tar file to any URL."""
    with fsspec.open(str(path), "wb") as file, tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def test_a_key_is_the_path_as_seen_from_the_source_and_that_of_all_parts_of_a_video(tmp_path):
    touch(tmp_path / "s0" / "video.mp4", tmp_path / "s1" / "video.mp4", tmp_path / "clip#1.mp4")
    (tmp_path / "t.csv").write_text(
        f"path,caption,start,end\ns0/video.mp4,,0,1\n{tmp_path}/s0/video.mp4,,1,2\nhttp://host/a.mp4,,,\n"
    )
    (tmp_path / "tars").mkdir()
    for name in ("s0", "s1"):
        write_tar(tmp_path / "tars" / f"{name}.tar", {"video.mp4": b"any"})

    def keys(path):
        return [entry.key for entry in listed(path).entries]

    assert keys(tmp_path) == ["clip#1.mp4", "s0/video.mp4", "s1/video.mp4"]
    assert keys(tmp_path / "t.csv") == ["s0/video.mp4"] * 2 + ["http://host/a.mp4"]
    shards = ["s0.tar/video.mp4", "s1.tar/video.mp4"]
    assert keys(tmp_path / "tars") == keys(tmp_path / "tars" / "s{0..1}.tar") == shards
    assert keys(tmp_path / "tar*" / "s0.tar") == ["tars/s0.tar/video.mp4"]


# --- Folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_is_read_with_the_folders_in_it_and_captions_of_the_same_stem(tmp_path):
    touch(tmp_path / "b.mp4", tmp_path / "deep" / "a.one.JPG", tmp_path / "c.webm", tmp_path / ".hidden.mp4")
    (tmp_path / "b.txt").write_text(" a boat \n", encoding="utf-8-sig")
    (tmp_path / "deep" / "a.one.txt").write_text("an apple")
    (tmp_path / "notes.md").write_text("not a clip")
    entries = listed(tmp_path).entries
    told = [(e.name.removeprefix(f"{tmp_path}/"), e.is_image, e.read_caption()) for e in entries]
    assert told == [
        ("b.mp4", False, "a boat"),
        ("c.webm", False, ""),
        ("deep/a.one.JPG", True, "an apple"),
    ]
    assert [entry.has_caption for entry in entries] == [True, False, True]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "missing",
            "missing does not exist, expected a folder, a table (.csv, .jsonl, .parquet) or tar shards",
        ),
        ("clip.mp4", "clip.mp4 is a file of another kind, expected a folder, a table"),
        ("empty", "empty holds no video, no picture and no tar file"),
        ("shards.tar.gz", "is a compressed tar file, in which no sample can be reached alone"),
        ("no*.tar", "matches no file, expected tar shards"),
        ("table.csv", "table.csv does not exist, expected a table of clips"),
        ("nosuch://clips", "nosuch://clips must be a path or a URL that fsspec knows"),
    ],
)
def test_a_source_that_is_none_is_one_sentence(tmp_path, name, expected):
    touch(tmp_path / "clip.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        listed(name if "://" in name else tmp_path / name)
    assert expected in str(caught.value)


def test_a_weight_must_be_positive():
    with pytest.raises(ValueError, match="weight of a source must be greater than 0 and at most 1000, got 0"):
        ClipSource(path="clips", weight=0)


# --- Tables -----------------------------------------------------------------------------------------------------------


def test_a_csv_table_names_files_beside_it_and_parts_of_them(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text(
        "path,caption,start,end,score\nclips/a.mp4,a cat,1.5,3,9\n/far/b.png,,,,\ns3://bucket/c.mp4,a car,,,\n"
    )
    entries = listed(table).entries
    assert [e.name for e in entries] == [f"{tmp_path}/clips/a.mp4#1.5-3", "/far/b.png", "s3://bucket/c.mp4"]
    assert [(e.start, e.end) for e in entries] == [(1.5, 3), (0, float("inf")), (0, float("inf"))]
    assert [e.read_caption() for e in entries] == ["a cat", "", "a car"]
    assert [e.has_caption for e in entries] == [True, False, True]
    assert [e.is_image for e in entries] == [False, True, False]


def test_a_table_of_json_lines_may_use_the_names_that_data_sets_on_the_hub_have(tmp_path):
    table = tmp_path / "metadata.jsonl"
    table.write_text('{"file_name": "a.mp4", "text": "a cat"}\n\n{"file_name": "b.mp4", "text": null}\n')
    entries = listed(table).entries
    assert [(e.name, e.caption) for e in entries] == [
        (f"{tmp_path}/a.mp4", "a cat"),
        (f"{tmp_path}/b.mp4", ""),
    ]


def test_a_parquet_table_is_read(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {
        "path": ["a.mp4", "b.mp4"],
        "caption": ["a cat", None],
        "end": [2.0, None],
        "blob": [b"x", b"y"],
    }
    parquet.write_table(sys.modules["pyarrow"].table(columns), tmp_path / "table.parquet")
    entries = listed(tmp_path / "table.parquet").entries
    assert [(e.name, e.caption) for e in entries] == [
        (f"{tmp_path}/a.mp4#0-2", "a cat"),
        (f"{tmp_path}/b.mp4", ""),
    ]


def test_a_parquet_table_without_pyarrow_is_one_sentence_with_the_extra(tmp_path, monkeypatch):
    touch(tmp_path / "table.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"pyarrow is not installed.*pip install 'flashvideo\[train\]'"):
        listed(tmp_path / "table.parquet")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "t.csv",
            "video,caption\na,b\n",
            "must have a column 'path' (or 'file_name'), got the columns video, capt",
        ),
        (
            "t.csv",
            "path,words\na,b\n",
            "must have a column 'caption' (or 'text'), got the columns path, words",
        ),
        ("t.jsonl", "", "must have a column 'path' (or 'file_name'), got the columns none"),
        ("t.csv", "path,caption\na.mp4,b\n,c\n", "row 2 of"),
        ("t.csv", "path,caption,start\na.mp4,b,soon\n", "must have a number of seconds as start, got 'soon'"),
        (
            "t.csv",
            "path,caption,start,end\na.mp4,b,3,2\n",
            "must have 0 <= start < end, got start 3 and end 2",
        ),
        ("t.jsonl", '{"path": "a.mp4", "text": ""}\n{"path"\n', "line 2 of"),
        ("t.jsonl", "[1]\n", "must be a JSON object, got list"),
    ],
)
def test_a_table_that_is_not_right_is_one_sentence(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        listed(tmp_path / name)
    assert expected in str(caught.value)


def scored(path, least):
    entries = list_source(
        ClipSource(path=str(path), least_score=least), cache=FileCache(), progress=False
    ).entries
    return [entry.caption for entry in entries]


def test_of_a_table_with_scores_the_better_rows_can_be_taken(tmp_path):
    for name, text in (
        ("t.csv", "path,caption,score\na.mp4,a,4.5\nb.mp4,b,3\nc.mp4,c,5\n"),
        ("t.jsonl", '{"path": "a", "text": "a", "score": 9}\n{"path": "b", "text": "b", "score": 2.5}\n'),
    ):
        (tmp_path / name).write_text(text)
    assert scored(tmp_path / "t.csv", 4.5) == ["a", "c"]
    assert scored(tmp_path / "t.jsonl", 4.5) == ["a"]
    assert scored(tmp_path / "t.csv", None) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("t.csv", "path,caption,score\na.mp4,a,6\nb.mp4,b,\n", "row 2 of .* has no score"),
        ("t.csv", "path,caption\na.mp4,a\n", "row 1 of .* has no score"),
        ("t.csv", "path,caption,score\na.mp4,a,good\n", "must have a number as score, got 'good'"),
        ("t.csv", "path,caption,score\na.mp4,a,4\n", "must have scores of at least 5, got 4 at most"),
        ("a.mp4", "any", "least_score is for a table"),
    ],
)
def test_scores_that_are_not_there_are_one_sentence(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text)
    path = tmp_path if name == "a.mp4" else tmp_path / name
    with pytest.raises(ValueError, match=expected):
        scored(path, 5.0)


# --- Tar shards -------------------------------------------------------------------------------------------------------


def test_members_that_share_a_name_are_one_sample(tmp_path):
    shard = write_tar(
        tmp_path / "0.tar",
        {
            "a/0001.mp4": b"video",
            "a/0001.txt": b"a cat",
            "a/0002.json": json.dumps({"caption": "a dog", "width": 3}).encode(),
            "a/0002.jpg": b"picture",
            "b/0001.mp4": b"other",
            "b/0003.txt": b"no clip",
        },
    )
    entries = listed(shard).entries
    assert [e.name for e in entries] == [f"{shard}/a/0001.mp4", f"{shard}/a/0002.jpg", f"{shard}/b/0001.mp4"]
    assert [e.read_caption() for e in entries] == ["a cat", "a dog", ""]
    assert [e.has_caption for e in entries] == [True, True, False]
    assert [e.file.read() for e in entries] == [b"video", b"picture", b"other"]


def test_a_member_is_a_file_that_can_be_searched_and_ends_where_it_ends(tmp_path):
    shard = write_tar(tmp_path / "0.tar", {"1.mp4": b"first", "2.mp4": b"0123456789", "3.mp4": b"third"})
    with listed(shard).entries[1].file.open() as file:
        assert file.seek(-3, 2) == 7
        assert file.read() == b"789"
        file.seek(2)
        assert (file.read(4), file.tell()) == (b"2345", 6)
        assert file.read(100) == b"6789"


def test_braces_stars_and_folders_of_shards_name_the_same_shards(tmp_path):
    for number in range(3):
        write_tar(tmp_path / f"{number:03}.tar", {f"{number}.mp4": b"video"})
    (tmp_path / "000_stats.json").write_text("{}")
    every = [entry.name for entry in listed(tmp_path / "{000..002}.tar").entries]
    assert every == [f"{tmp_path}/00{n}.tar/{n}.mp4" for n in range(3)]
    assert [entry.name for entry in listed(tmp_path / "*.tar").entries] == every
    assert [entry.name for entry in listed(tmp_path).entries] == every


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("{8..10}", ["8", "9", "10"]),
        ("{a,b}{1..2}", ["a1", "a2", "b1", "b2"]),
        ("{02..01}", ["02", "01"]),
        ("plain", ["plain"]),
    ],
)
def test_braces_are_written_out_as_a_shell_does(pattern, expected):
    assert expand_braces(pattern) == expected


def test_shards_that_are_cut_off_damaged_or_missing_are_noted_and_the_rest_is_read(tmp_path):
    whole = write_tar(tmp_path / "0.tar", {"1.mp4": b"a" * 600, "2.mp4": b"b" * 6000})
    (tmp_path / "1.tar").write_bytes((tmp_path / "0.tar").read_bytes()[:3000])
    (tmp_path / "2.tar").write_bytes(b"no tar file" * 100)
    listing = listed(tmp_path / "{0..3}.tar")
    assert [entry.name for entry in listing.entries] == [
        f"{whole}/1.mp4",
        f"{whole}/2.mp4",
        f"{tmp_path}/1.tar/1.mp4",
    ]
    reasons = [listing.problems[f"{tmp_path}/{n}.tar"] for n in (1, 2, 3)]
    assert reasons[0] == "the shard is cut off after 1 files"
    assert reasons[1].startswith("the shard is no sound tar file")
    assert reasons[2].startswith("the shard cannot be read (FileNotFoundError")


def test_a_shard_is_indexed_once_until_it_changes(tmp_path, monkeypatch):
    shard = write_tar(tmp_path / "0.tar", {"1.mp4": b"one"})
    cache = FileCache(tmp_path / "cache.json")
    first = listed(shard, cache)
    cache.save()
    with monkeypatch.context() as patched:
        patched.setattr(tarfile, "open", lambda *args, **kwargs: pytest.fail("the shard was read again"))
        assert listed(shard, FileCache(tmp_path / "cache.json")) == first
    write_tar(tmp_path / "0.tar", {"1.mp4": b"one", "2.mp4": b"a second" * 2000})
    assert len(listed(shard, FileCache(tmp_path / "cache.json")).entries) == 2


def test_everything_may_lie_behind_a_url():
    write_tar("memory://sources/shards/0.tar", {"1.mp4": b"in a shard", "1.txt": b"shard"})
    with fsspec.open("memory://sources/folder/deep/a.mp4", "wb") as file:
        file.write(b"in a folder")
    with fsspec.open("memory://sources/folder/deep/a.txt", "wb") as file:
        file.write(b"folder")
    with fsspec.open("memory://sources/folder/table.csv", "wb") as file:
        file.write(b"path,caption\ndeep/a.mp4,table\n")
    for path, data, caption in (
        ("memory://sources/shards/{0..0}.tar", b"in a shard", "shard"),
        ("memory://sources/folder", b"in a folder", "folder"),
        ("memory://sources/folder/table.csv", b"in a folder", "table"),
    ):
        (entry,) = listed(path).entries
        assert (entry.file.read(), entry.read_caption()) == (data, caption)


# --- The cache --------------------------------------------------------------------------------------------------------


def test_a_cache_forgets_what_was_learned_from_another_stamp(tmp_path):
    cache = FileCache(tmp_path / "new folder" / "cache.json")
    cache.put("a", "1", [1, 2])
    cache.save()
    again = FileCache(tmp_path / "new folder" / "cache.json")
    assert (again.get("a", "1"), again.get("a", "2"), again.get("b", "1")) == ([1, 2], None, None)
    assert [path.name for path in (tmp_path / "new folder").iterdir()] == ["cache.json"]


@pytest.mark.parametrize("text", ["{not JSON", '{"version": 0, "facts": {"a": ["1", 2]}}', "[]"])
def test_a_damaged_cache_or_one_of_another_version_is_not_believed(tmp_path, text, caplog):
    (tmp_path / "cache.json").write_text(text)
    assert FileCache(tmp_path / "cache.json").get("a", "1") is None
    assert "what it held is learned anew" in caplog.text
