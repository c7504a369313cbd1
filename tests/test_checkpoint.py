"""Checkpoints are read one tensor at a time, and nothing in them is run."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from flashvideo.models import checkpoint
from flashvideo.models.checkpoint import Checkpoint, weight_files

TENSORS = {
    "matrix": torch.arange(6.0).reshape(2, 3),
    "half": torch.arange(4.0).bfloat16(),
    "number": torch.tensor(7),
}


def save(path, tensors=TENSORS):
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)
    return path


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_names_shapes_and_dtypes_are_there_without_data(tmp_path, name):
    specs = Checkpoint(save(tmp_path / name)).specs
    assert {key: (spec.shape, spec.dtype) for key, spec in specs.items()} == {
        key: (tensor.shape, tensor.dtype) for key, tensor in TENSORS.items()
    }
    assert all(spec.is_meta for spec in specs.values())


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_each_tensor_is_read_by_its_name(tmp_path, name):
    opened = Checkpoint(save(tmp_path / name))
    assert len(opened) == len(TENSORS)
    assert all(opened[key].equal(TENSORS[key]) for key in opened)


def test_transposed_and_shared_tensors_are_read_as_they_were(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    torch.save({"module": {"base": base, "rows": base[1:], "turned": base.T}}, tmp_path / "a.pt")
    opened = Checkpoint(tmp_path / "a.pt")
    assert opened["rows"].equal(base[1:])
    assert opened["turned"].equal(base.T)


@pytest.mark.parametrize("key", ["module", "state_dict", None])
def test_a_state_dict_is_found_under_the_references_keys(tmp_path, key):
    torch.save(TENSORS if key is None else {key: TENSORS, "step": 3}, tmp_path / "a.pt")
    assert Checkpoint(tmp_path / "a.pt").keys() == TENSORS.keys()


def test_several_files_are_one_checkpoint(tmp_path):
    opened = Checkpoint(
        save(tmp_path / "1.pt", {"a": torch.ones(1)}), save(tmp_path / "2.safetensors", {"b": torch.zeros(1)})
    )
    assert [opened[key].item() for key in ("a", "b", "a")] == [1, 0, 1]


def test_a_name_in_two_files_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"matrix is in .*1\.pt and in .*2\.pt|half|number"):
        Checkpoint(save(tmp_path / "1.pt"), save(tmp_path / "2.pt"))


def test_the_mapping_is_renewed_while_reading(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "RENEW_AFTER_BYTES", 10)
    openings = []
    real = checkpoint._open
    monkeypatch.setattr(checkpoint, "_open", lambda path: openings.append(path) or real(path))
    opened = Checkpoint(save(tmp_path / "a.pt"))
    for _ in range(3):
        assert opened["matrix"].equal(TENSORS["matrix"])  # 24 bytes each
    assert len(openings) == 1 + 3


@pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's account of memory")
def test_memory_does_not_grow_with_the_file(tmp_path):
    tensors = {f"{i}": torch.ones(2**20) for i in range(40)}  # 160 MiB
    paths = [str(save(tmp_path / name, tensors)) for name in ("a.pt", "a.safetensors")]
    program = f"""
import re
from flashvideo.models import checkpoint
checkpoint.RENEW_AFTER_BYTES = 16 * 2**20
def most():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
for path in {paths!r}:
    opened = checkpoint.Checkpoint(path)
    opened["0"].sum()
    before = most()
    for key in opened:
        opened[key].sum()
    print((most() - before) // 1024)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert all(int(mebibytes) < 64 for mebibytes in run.stdout.split())


class Surprise:
    """Something that unpickling would have to construct."""


def cut(path):
    path.write_bytes(path.read_bytes()[:-50])


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        (
            "a.pt",
            lambda path: torch.save({"module": {"a": Surprise()}}, path),
            r"holds something other .*Surprise",
        ),
        ("a.pt", lambda path: cut(save(path)), "is cut off or damaged"),
        ("a.safetensors", lambda path: cut(save(path)), "is no whole safetensors file"),
        ("a.safetensors", lambda path: path.write_bytes(b""), "is no whole safetensors file"),
        ("a.pt", lambda path: path.write_bytes(b""), "is not a torch checkpoint"),
        ("a.pt", lambda path: path.write_text("<html>"), "is not a torch checkpoint"),
        ("a.pt", lambda path: path.mkdir(), "is no file"),
        ("a.pt", lambda path: None, "does not exist"),
        (
            "a.pt",
            lambda path: torch.save(TENSORS, path, _use_new_zipfile_serialization=False),
            r"format from before version 1\.6",
        ),
        ("a.pt", lambda path: torch.save({}, path), "holds no state dict"),
        ("a.pt", lambda path: torch.save({"step": 3}, path), "holds no state dict"),
        ("a.pt", lambda path: torch.save([1, 2], path), "holds no state dict"),
        ("a.pt", lambda path: torch.save({"module": {"a": 3}}, path), "holds no state dict"),
    ],
)
def test_what_is_no_whole_checkpoint_is_refused_in_one_sentence(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(ValueError, match=message) as error:
        Checkpoint(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_may_not_be_read_says_so(tmp_path):
    path = save(tmp_path / "a.pt")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("the superuser may read everything")
    with pytest.raises(PermissionError):
        Checkpoint(path)


def test_weights_are_found_in_one_file_or_by_their_index(tmp_path):
    (tmp_path / "b.bin").touch()
    assert weight_files(tmp_path, "a.safetensors", "b.bin") == (tmp_path / "b.bin",)
    (tmp_path / "a-1.safetensors").touch()
    (tmp_path / "a-2.safetensors").touch()
    weight_map = {"x": "a-2.safetensors", "y": "a-1.safetensors", "z": "a-1.safetensors"}
    (tmp_path / "a.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    names = [path.name for path in weight_files(tmp_path, "a.safetensors", "b.bin")]
    assert names == ["a-1.safetensors", "a-2.safetensors"]


def test_missing_weights_and_shards_are_named(tmp_path):
    with pytest.raises(
        ValueError, match=re.escape(f"{tmp_path} holds no weights, expected a.safetensors or b.bin")
    ):
        weight_files(tmp_path, "a.safetensors", "b.bin")
    index = tmp_path / "a.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "a-1.safetensors"}}))
    with pytest.raises(ValueError, match=r"lacks a-1\.safetensors"):
        weight_files(tmp_path, "a.safetensors")
    index.write_text("[]")
    with pytest.raises(ValueError, match="is not an index"):
        weight_files(tmp_path, "a.safetensors")


@pytest.mark.parametrize("root", ["module", None])
def test_what_is_no_tensor_among_tensors_is_named(tmp_path, root):
    state = {"weight": torch.zeros(1), "step": 3}
    torch.save(state if root is None else {root: state}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="must hold tensors under names, got int under 'step'; save"):
        Checkpoint(tmp_path / "a.pt")
