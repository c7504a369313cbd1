"""Files of records: appended, read back, repaired."""

import pytest

from flashvideo.evaluation.records import append_record, read_records, write_json


def test_records_come_back_in_order(tmp_path):
    path = tmp_path / "records.jsonl"
    assert read_records(path) == []
    for number in range(3):
        append_record(path, {"number": number, "name": "Käfer\u2028"})
    assert [record["number"] for record in read_records(path)] == [0, 1, 2]


def test_a_torn_last_line_is_dropped_and_the_file_can_grow_on(tmp_path):
    path = tmp_path / "records.jsonl"
    append_record(path, {"number": 0})
    with path.open("a") as file:
        file.write('{"number": 1, "na')
    assert read_records(path) == [{"number": 0}]
    append_record(path, {"number": 2})
    assert read_records(path) == [{"number": 0}, {"number": 2}]


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text('{"number": 0}\nnonsense\n{"number": 1}\n')
    with pytest.raises(ValueError, match=r"line 2 of .*records.jsonl is not a record, got 'nonsense'"):
        read_records(path)


def test_what_json_has_no_word_for_is_refused_and_nothing_is_written(tmp_path):
    path = tmp_path / "records.jsonl"
    with pytest.raises(ValueError, match="JSON"):
        append_record(path, {"number": float("nan")})
    assert read_records(path) == []
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "all.json", {"number": float("inf")})
    assert not (tmp_path / "all.json").exists()
