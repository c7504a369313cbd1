"""Weights written tensor by tensor: safetensors shards as diffusers and transformers read them, and torch files.

The headers are written from shapes and dtypes alone, so that never more than one tensor is in memory.
"""

import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.serialization import skip_data

from flashvideo.models.checkpoint import SAFETENSORS_DTYPES
from flashvideo.models.recipe import State

MAX_SHARD_BYTES = 2 * 10**9
_DTYPE_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}

Build = Callable[[str], torch.Tensor]
"""Makes the tensor of a name."""

OnBytes = Callable[[int], None]
"""Called with the bytes of each tensor that was written."""


def write_weights(
    folder: Path,
    stem: str,
    specs: State,
    build: Build,
    *,
    on_bytes: OnBytes,
    metadata: Mapping[str, str] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a model's weights: one file, or shards with an index if they are too large for one.

    Args:
        folder: An existing folder.
        stem: File name without suffix, "diffusion_pytorch_model" or "model".
        specs: Name -> tensor without data.
        build: Makes each tensor, called once per name.
        on_bytes: Progress.
        metadata: Texts for the header of each file.
        max_shard_bytes: Data of a shard at most; a larger tensor has a shard of its own.
    """
    split = split_torch_state_dict_into_shards(
        dict(specs), filename_pattern=stem + "{suffix}.safetensors", max_shard_size=max_shard_bytes
    )
    for file, names in split.filename_to_tensors.items():
        shard = {name: specs[name] for name in names}
        write_safetensors(folder / file, shard, build, on_bytes=on_bytes, metadata=metadata)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        path = folder / f"{stem}.safetensors.index.json"
        path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_safetensors(
    path: Path, specs: State, build: Build, *, on_bytes: OnBytes, metadata: Mapping[str, str] | None = None
) -> None:
    """Write one safetensors file, a tensor at a time.

    Args:
        path: The file.
        specs: Name -> tensor without data.
        build: Makes each tensor.
        on_bytes: Progress.
        metadata: Texts for the header; "format" is added, without which transformers refuses the file.
    """
    # Wide dtypes first keep every tensor aligned to its own width.
    names = sorted(specs, key=lambda name: (-specs[name].itemsize, name))
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for name in names:
        tensor, start = specs[name], end
        end += tensor.nbytes
        header[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with _writing(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(_bytes_of(build(name), specs[name]))
            on_bytes(specs[name].nbytes)


def write_torch_file(path: Path, root: str, specs: State, build: Build, *, on_bytes: OnBytes) -> None:
    """Write ``torch.save({root: state_dict})``, a tensor at a time.

    Args:
        path: The file.
        root: Key that the state dict lies under.
        specs: Name -> tensor without data.
        build: Makes each tensor.
        on_bytes: Progress.
    """
    with FakeTensorMode():
        empty = {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in specs.items()}
    with skip_data(materialize_fake_tensors=True):  # leaves room for the data, which follows
        torch.save({root: empty}, path)
    places = _places(path)
    with _writing(path, "r+b") as file:
        for nth, (name, tensor) in enumerate(specs.items()):  # torch numbers its records in this order
            data, entry = places[f"data/{nth}"]
            content = _bytes_of(build(name), tensor)
            file.seek(data)
            file.write(content)
            if content:  # the checksum stands behind the data and in the archive's directory
                checksum = zlib.crc32(content).to_bytes(4, "little")
                for place in (data + tensor.nbytes + 4, entry + 16):
                    file.seek(place)
                    file.write(checksum)
            on_bytes(tensor.nbytes)


def _places(path: Path) -> dict[str, tuple[int, int]]:
    """Where each record's data and its entry in the directory begin, in bytes from the file's start."""
    places = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        entry = archive.start_dir
        for info in archive.infolist():
            file.seek(info.header_offset + 26)
            data = info.header_offset + 30 + sum(struct.unpack("<2H", file.read(4)))  # name and padding vary
            places[info.filename.partition("/")[2]] = (data, entry)
            file.seek(entry + 28)
            entry += 46 + sum(struct.unpack("<3H", file.read(6)))
    return places


def _bytes_of(tensor: torch.Tensor, expected: torch.Tensor) -> memoryview:
    assert (tensor.shape, tensor.dtype) == (expected.shape, expected.dtype)
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


@contextmanager
def _writing(path: Path, mode: str) -> Iterator[BinaryIO]:
    """Open a file whose bytes have reached the disk when the block ends; errors name it."""
    try:
        with path.open(mode) as file:
            yield file  # type: ignore[misc]
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.filename is None:  # a full disk does not tell what was being written
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
