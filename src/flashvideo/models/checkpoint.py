"""Checkpoints read one tensor at a time, without running anything that they contain.

A torch file or a safetensors file is mapped into memory; pages that were read count as the process's memory, so the
mapping is renewed after every gibibyte.
"""

import json
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from flashvideo.models.recipe import spec, specs_of

STATE_DICT_KEYS = ("module", "state_dict")
"""Where a state dict may lie inside a torch file."""

SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Names of dtypes in a safetensors header."""

RENEW_AFTER_BYTES = 2**30
_ZIP_START, _LEGACY_START = b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF"
_POINTER_START = b"version https://git-lfs"

_Read = Callable[[str], torch.Tensor]


class Checkpoint(Mapping[str, torch.Tensor]):
    """The tensors of one or several files, each read when it is asked for.

    Args:
        paths: Files in safetensors format (by their suffix) or torch's zip format, whose state dict may lie under
            "module" or "state_dict".

    Attributes:
        specs: Name -> tensor on the meta device: shapes and dtypes.

    Raises:
        ValueError: If a file is cut off, is of another format, holds anything but tensors, or two hold the same name.
    """

    def __init__(self, *paths: str | Path) -> None:
        self.specs: dict[str, torch.Tensor] = {}
        self._home: dict[str, Path] = {}
        self._opened: tuple[Path, _Read] | None = None
        self._bytes_read = 0
        for path in map(Path, paths):
            found, _ = _open(path)
            for name in found.keys() & self.specs.keys():
                raise ValueError(
                    f"{name} is in {self._home[name]} and in {path}; one of the files is superfluous"
                )
            self.specs |= found
            self._home |= dict.fromkeys(found, path)

    def __getitem__(self, name: str) -> torch.Tensor:
        path = self._home[name]
        if self._opened is None or self._opened[0] != path or self._bytes_read >= RENEW_AFTER_BYTES:
            self._opened = None
            self._opened, self._bytes_read = (path, _open(path)[1]), 0
        self._bytes_read += self.specs[name].nbytes
        return self._opened[1](name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def __str__(self) -> str:
        return " and ".join(dict.fromkeys(map(str, self._home.values())))


def read_json(path: Path) -> dict[str, Any]:
    """Read a small file of a model, an index or a config.

    Raises:
        ValueError: If it is not there, or is no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is not there; download or convert the model again") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); download or convert the model again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {content!r:.80}; download the model again")
    return content


def weight_files(folder: Path, *names: str) -> tuple[Path, ...]:
    """Find a model's weights, in one file or in the shards that an index lists.

    Args:
        folder: The model's folder.
        names: File names such as "model.safetensors"; the first that is there, or has an index, counts.

    Returns:
        The files.

    Raises:
        ValueError: If there are none, or some of the shards are missing.
    """
    for name in names:
        if (folder / name).is_file():
            return (folder / name,)
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _shards(index)
    raise ValueError(
        f"{folder} holds no weights, expected {' or '.join(names)}, or the same in shards with an index"
    )


def _shards(index: Path) -> tuple[Path, ...]:
    try:
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{index} is not an index of weights; download it again") from None
    missing = [file for file in files if not (index.parent / file).is_file()]
    if missing:
        raise ValueError(
            f"{index.parent} lacks {', '.join(missing)}, which its index lists; download it again"
        )
    return tuple(index.parent / file for file in files)


def _open(path: Path) -> tuple[dict[str, torch.Tensor], _Read]:
    """Specs of a file's tensors, and a function that reads one."""
    if not path.is_file():
        raise ValueError(
            f"{path} {'is no file' if path.exists() else 'does not exist'}, expected a checkpoint"
        )
    with path.open("rb") as file:
        if file.read(len(_POINTER_START)) == _POINTER_START:
            raise ValueError(
                f"{path} is a pointer of Git LFS and not the file itself; get it with `git lfs pull`, or download it"
            )
    return _open_safetensors(path) if path.suffix == ".safetensors" else _open_torch(path)


def _open_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], _Read]:
    try:
        file = safe_open(path, "pt")
        names = file.keys()
        slices = {name: file.get_slice(name) for name in names}
    except SafetensorError as error:
        raise ValueError(f"{path} is no whole safetensors file ({error}); download it again") from None
    dtypes = {name: part.get_dtype() for name, part in slices.items()}
    if unknown := sorted(set(dtypes.values()) - SAFETENSORS_DTYPES.keys()):
        raise ValueError(f"{path} holds tensors of dtype {', '.join(unknown)}, which cannot be converted")
    specs = {name: spec(part.get_shape(), SAFETENSORS_DTYPES[dtypes[name]]) for name, part in slices.items()}
    return specs, file.get_tensor


def _open_torch(path: Path) -> tuple[dict[str, torch.Tensor], _Read]:
    state = _state_dict(path, _load_mapped(path))
    return specs_of(state), state.__getitem__


def _load_mapped(path: Path) -> object:
    with path.open("rb") as file:
        start = file.read(8)
    if start.startswith(_LEGACY_START):
        raise ValueError(
            f"{path} is in torch's format from before version 1.6, which cannot be read tensor by tensor; "
            "load it with torch.load(weights_only=True) and save it again with torch.save"
        )
    if not start.startswith(_ZIP_START):
        raise ValueError(f"{path} is not a torch checkpoint; download it again")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f", {found[1]}," if found else ""
        raise ValueError(
            f"{path} holds something other than tensors{what} and is refused, since loading that would run code; "
            "save the tensors alone"
        ) from None
    except RuntimeError as error:  # how torch says that the archive's end is missing
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is cut off or damaged ({reason}); download it again") from None


def _state_dict(path: Path, content: object) -> dict[str, torch.Tensor]:
    for key in STATE_DICT_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = content if isinstance(content, Mapping) else {}
    if not any(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise ValueError(
            f"{path} holds no state dict, neither at its top nor under {' or '.join(STATE_DICT_KEYS)}"
        )
    for key, value in tensors.items():
        if not isinstance(value, torch.Tensor) or not isinstance(key, str):
            raise ValueError(
                f"the state dict of {path} must hold tensors under names, got {type(value).__name__} under {key!r}; "
                "save the tensors alone"
            )
    return dict(tensors)
