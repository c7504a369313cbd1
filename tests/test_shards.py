"""Weights written tensor by tensor are what the libraries read."""

import errno
import json
import zipfile

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from flashvideo.models.recipe import specs_of
from flashvideo.models.shards import write_safetensors, write_torch_file, write_weights

TENSORS = {
    "b": torch.arange(6.0).reshape(2, 3),
    "a": torch.arange(3.0).bfloat16(),
    "turned": torch.arange(8.0, dtype=torch.float64).reshape(2, 4).T,
    "number": torch.tensor(7),
    "empty": torch.zeros(0, 3),
    "flag": torch.tensor([True, False, True]),
}


def write(function, *arguments, tensors=TENSORS, **keywords):
    written = []
    function(*arguments, specs_of(tensors), tensors.__getitem__, on_bytes=written.append, **keywords)
    return written


def test_a_written_file_is_read_back_by_safetensors(tmp_path):
    write(write_safetensors, tmp_path / "a.safetensors", metadata={"note": "x"})
    loaded = load_file(tmp_path / "a.safetensors")
    assert loaded.keys() == TENSORS.keys()
    assert all(
        loaded[name].equal(tensor) and loaded[name].dtype == tensor.dtype for name, tensor in TENSORS.items()
    )
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "note": "x"}


def test_a_written_torch_file_is_read_back_by_torch(tmp_path):
    write(write_torch_file, tmp_path / "a.pt", "module")
    loaded = torch.load(tmp_path / "a.pt", weights_only=True)["module"]
    assert list(loaded) == list(TENSORS)
    assert all(
        loaded[name].equal(tensor) and loaded[name].dtype == tensor.dtype for name, tensor in TENSORS.items()
    )


def test_a_written_torch_file_is_a_whole_archive_for_other_readers_too(tmp_path):
    write(write_torch_file, tmp_path / "a.pt", "module")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        assert archive.testzip() is None


def test_progress_counts_every_byte_once(tmp_path):
    total = sum(tensor.nbytes for tensor in TENSORS.values())
    assert sum(write(write_safetensors, tmp_path / "a.safetensors")) == total
    assert sum(write(write_torch_file, tmp_path / "a.pt", "module")) == total


def test_small_weights_are_one_file_without_an_index(tmp_path):
    write(write_weights, tmp_path, "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_large_weights_are_shards_with_an_index(tmp_path):
    tensors = {f"t{i}": torch.full((10,), float(i)) for i in range(5)}
    write(write_weights, tmp_path, "model", tensors=tensors, max_shard_bytes=80)
    files = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == files
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 200
    for name, file in index["weight_map"].items():
        assert load_file(tmp_path / file)[name].equal(tensors[name])


def test_one_tensor_at_a_time_is_made(tmp_path):
    alive = []

    def build(name):
        alive.append(name)
        return TENSORS[name]

    write_safetensors(
        tmp_path / "a.safetensors", specs_of(TENSORS), build, on_bytes=lambda _: alive.append("written")
    )
    assert alive[1::2] == ["written"] * len(TENSORS)
    assert sorted(alive[::2]) == sorted(TENSORS)


def test_a_full_disk_names_the_file(tmp_path):
    def build(name):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: '.*a\.safetensors'"):
        write_safetensors(tmp_path / "a.safetensors", specs_of(TENSORS), build, on_bytes=lambda _: None)
