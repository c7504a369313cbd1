"""Models from the Hugging Face Hub: downloaded by `huggingface_hub` into its own cache, converted once into ours.

The authors' release is three checkpoints without a text encoder, which comes from a CogVideoX or T5 repository. What is
in diffusers' layout already is loaded from where it was downloaded. What was once looked up is remembered, so that a
model that is complete on this machine loads without the network; a commit instead of a branch asks for nothing at all.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import LocalEntryNotFoundError
from tqdm import tqdm

from flashvideo.models.checkpoint import read_json
from flashvideo.models.convert_text import (
    TextEncoderFiles,
    load_text_config,
    open_text_encoder,
    plan_text_encoder,
    text_encoder_weights,
)
from flashvideo.pipelines.cache import CACHE_VARIABLE, INDEX, cache_folder, file_name, make_once
from flashvideo.pipelines.hub_errors import (
    HubUnreachableError,
    check_free_space,
    check_free_space_of_both,
    explained,
    writing,
)
from flashvideo.presets import RELEASED_FILES, TEXT_ENCODER_REPOSITORY

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 10.0
"""How long the hub may take to say what a repository holds; `HF_HUB_ETAG_TIMEOUT` if that is more."""

PIPELINES = ("FlashVideoPipeline", "CogVideoXPipeline")
"""Classes whose folders can be loaded: ours, and diffusers' for CogVideoX-2B and 5B, which are a Stage I alone."""

TEXT_FOLDERS = ("text_encoder", "tokenizer")
"""Folders of a pipeline's text encoder; a repository of a T5 alone has everything at its top."""

# What diffusers takes as an argument and `huggingface_hub` otherwise.
_INSTEAD = {
    "cache_dir": "set HF_HOME",
    "token": "set HF_TOKEN",
    "use_auth_token": "set HF_TOKEN",
    "local_files_only": "set HF_HUB_OFFLINE=1",
    "force_download": "delete the repository's folder in the cache of huggingface_hub",
    "proxies": "set HTTPS_PROXY",
}
# A converted model has at least this share of its files' bytes; the rest is Stage I's LoRA, which is merged.
_LEAST_SHARE = 0.9
_COMMIT = re.compile(r"[0-9a-f]{40}")
# What a pipeline or a text encoder is loaded from; the same weights in other formats are left where they are.
_LOADED = re.compile(r".*\.(json|safetensors|model|txt)")


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What a repository holds.

    Attributes:
        repo: `owner/name`.
        commit: The commit that a branch or tag stood for.
        files: Names and sizes in bytes.
    """

    repo: str
    commit: str
    files: Mapping[str, int | None]


def fetch_model(
    repo: str,
    *,
    revision: str | None = None,
    text_encoder: str | Path | None = None,
    dtype: torch.dtype | None = None,
    pipeline: str | None = None,
) -> Path:
    """Makes a repository's model a folder on this machine.

    Args:
        repo: `owner/name` of released checkpoints, or of a pipeline in diffusers' layout.
        revision: Branch, tag or commit; the newest if None.
        text_encoder: Repository or folder of the text encoder, for released checkpoints; the presets' if None.
        dtype: Dtype to convert released checkpoints to; as they are if None.
        pipeline: A pipeline's class that is taken besides `PIPELINES`.

    Returns:
        The folder, which holds a `model_index.json`.

    Raises:
        ValueError: In one sentence, what is wrong with the repository, the network or the disk.
    """
    listing = look_up(repo, revision)
    if INDEX in listing.files:
        if text_encoder is not None:
            raise ValueError(f"text_encoder is for released checkpoints, but {repo} has its own; drop it")
        check_pipeline(download(listing, [INDEX]), repo, pipeline)
        return download(listing, [name for name in listing.files if _LOADED.fullmatch(name)])
    missing = [name for name in RELEASED_FILES if name not in listing.files]
    if missing:
        raise ValueError(
            f"{repo} must hold {INDEX}, as diffusers writes it, or {', '.join(RELEASED_FILES)}, as the "
            f"authors released them, but it lacks {INDEX} and {', '.join(missing)}"
        )
    return _converted(listing, text_encoder or TEXT_ENCODER_REPOSITORY, dtype)


def check_pipeline(folder: Path, name: str | Path, pipeline: str | None = None) -> str:
    """Checks that a folder's `model_index.json` is of a pipeline that can be loaded.

    Args:
        folder: The folder.
        name: How the user called it.
        pipeline: A class that is taken besides `PIPELINES`.

    Returns:
        The pipeline's class name.

    Raises:
        ValueError: If it is of another pipeline, or the file cannot be read.
    """
    found = read_json(folder / INDEX).get("_class_name")
    if found not in (*PIPELINES, pipeline) or found is None:
        raise ValueError(f"{name} must be a model of {' or '.join(PIPELINES)}, got one of {found}")
    return str(found)


def check_options(options: Mapping[str, Any]) -> None:
    """Checks that options of diffusers' own downloads, which are not done here, are not given in vain.

    Raises:
        ValueError: If one is given.
    """
    for name, instead in _INSTEAD.items():
        if options.get(name):  # the value may be a secret
            raise ValueError(f"{name} is not taken for a model of the hub; {instead} instead")


def look_up(repo: str, revision: str | None = None) -> Listing:
    """Asks the hub for a repository's commit and files; without an answer, what was remembered is taken.

    Args:
        repo: `owner/name`.
        revision: Branch, tag or commit; the newest if None.

    Returns:
        The files.

    Raises:
        HubUnreachableError: If the hub does not answer and nothing is remembered.
        ValueError: If the hub has no such repository or revision, or refuses it.
    """
    memory = cache_folder() / "listings" / f"{file_name(repo)}@{file_name(revision or 'main')}.json"
    if revision is not None and _COMMIT.fullmatch(revision) and (known := _read(memory)) is not None:
        return known
    try:
        with explained(repo, revision=revision):
            info = HfApi().model_info(
                repo,
                revision=revision,
                files_metadata=True,
                timeout=max(ANSWER_SECONDS, constants.HF_HUB_ETAG_TIMEOUT),
            )
    except HubUnreachableError as error:
        listing = _remembered(memory, repo, revision)
        if listing is None:
            raise
        logger.info("%s; going on with commit %s, which is here", error, listing.commit)
        return listing
    siblings = info.siblings or []
    assert info.sha is not None
    listing = Listing(repo=repo, commit=info.sha, files={file.rfilename: file.size for file in siblings})
    _write(memory, listing)
    return listing


def _remembered(memory: Path, repo: str, revision: str | None) -> Listing | None:
    """The listing of an earlier look, or else of what `huggingface_hub` has in its cache by itself."""
    if (known := _read(memory)) is not None:
        return known
    try:
        folder = Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    files = {
        str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()
    }
    whole = INDEX in files or files.keys() >= set(RELEASED_FILES)
    text = any(name.startswith(TEXT_FOLDERS) for name in files)
    return Listing(repo=repo, commit=folder.name, files=files) if whole or text else None


def _read(memory: Path) -> Listing | None:
    """A listing that was written; one that cannot be read counts as not there."""
    try:
        content = json.loads(memory.read_text())
        listing = Listing(**content)
        return listing if isinstance(listing.files, dict) else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        logger.info("%s cannot be read (%s); asking the hub again", memory, error)
        return None


def _write(memory: Path, listing: Listing) -> None:
    """Writes a listing; where that cannot be done, the hub is asked again by the next start."""
    unfinished = memory.with_suffix(f".{os.getpid()}")
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(asdict(listing)))
        unfinished.replace(memory)
    except OSError as error:
        logger.info("what %s holds is not remembered: %s", listing.repo, error)
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def download(listing: Listing, names: Iterable[str]) -> Path:
    """Downloads files of a repository into `huggingface_hub`'s cache; what is there already is not asked for again.

    Args:
        listing: The repository.
        names: The files, all of them in the listing.

    Returns:
        The folder that has the files under their names.

    Raises:
        ValueError: If the disk has no room for them, or one does not arrive whole.
    """
    repo, commit = listing.repo, listing.commit
    wanted = list(names)
    if num_bytes := num_missing_bytes(listing, wanted):
        check_free_space(
            Path(constants.HF_HUB_CACHE), num_bytes, f"the download of {repo}", variable="HF_HOME"
        )
    folder = None
    for name in wanted:
        with explained(repo, revision=commit, file=name):
            path = Path(hf_hub_download(repo, name, revision=commit))
        size, expected = path.stat().st_size, listing.files[name]
        if expected is not None and size != expected:
            raise ValueError(
                f"{name} of {repo} has {expected} bytes, but {path.resolve()} has {size}; delete it and start again"
            )
        folder = path.parents[name.count("/")]
    assert folder is not None
    return folder


def num_missing_bytes(listing: Listing, names: Iterable[str]) -> int:
    """Bytes of a repository's files that are not in `huggingface_hub`'s cache yet."""
    missing = [name for name in names if not isinstance(_cached(listing, name), str)]
    return sum(listing.files[name] or 0 for name in missing)


def _cached(listing: Listing, name: str) -> object:
    return try_to_load_from_cache(listing.repo, name, revision=listing.commit)


def _converted(listing: Listing, text_encoder: str | Path, dtype: torch.dtype | None) -> Path:
    """The folder of a release in our cache, which is made now if it is not there."""
    kind = "stored" if dtype is None else str(dtype).removeprefix("torch.")
    parts = [file_name(listing.repo), listing.commit, kind]
    if str(text_encoder) != TEXT_ENCODER_REPOSITORY:
        parts.append("text-" + _text_name(text_encoder))
    folder = cache_folder() / "--".join(parts)

    def make(output: Path) -> None:
        # Here and not above: what converts knows the pipeline, and the pipeline knows this module.
        from flashvideo.pipelines.released import ReleasedFiles, convert_released

        source = find_text_encoder(text_encoder)
        _check_room(listing, source, dtype)
        checkpoints = download(listing, RELEASED_FILES)
        text = source if isinstance(source, Path) else download(source.listing, source.names)
        logger.warning("converting %s into %s, once; this takes a while", listing.repo, folder)
        with (
            writing(f"{listing.repo}, converted,", cache_folder(), variable=CACHE_VARIABLE),
            _ConversionProgress() as progress,
        ):
            files = ReleasedFiles.find(checkpoints)
            convert_released(files, output, text_encoder=text, dtype=dtype, on_progress=progress)

    return make_once(folder, make, what=f"{listing.repo} in {kind}")


@dataclass(frozen=True, kw_only=True)
class RemoteTextEncoder:
    """A text encoder of a repository.

    Attributes:
        listing: The repository.
        names: Files of the text encoder and its tokenizer.
    """

    listing: Listing
    names: tuple[str, ...]


def find_text_encoder(source: str | Path) -> Path | RemoteTextEncoder:
    """Finds a text encoder and its tokenizer, and downloads nothing.

    Args:
        source: A folder, or a repository: of a pipeline with the folders `text_encoder` and `tokenizer`, or of a T5
            with both at its top.

    Returns:
        The folder, of which all but the numbers is checked; or the files of the repository.

    Raises:
        ValueError: If there is no such text encoder.
    """
    folder = Path(source).expanduser()
    if folder.is_dir() or isinstance(source, Path):
        model = TextEncoderFiles.find(folder).model
        plan_text_encoder(open_text_encoder(model).specs, load_text_config(model))
        return folder
    listing = look_up(source)
    inside = [name for name in listing.files if name.startswith(tuple(f"{part}/" for part in TEXT_FOLDERS))]
    candidates = inside or list(listing.files)
    names = [name for name in candidates if _LOADED.fullmatch(name)]
    if not any(name.endswith(".safetensors") for name in names):
        names += [name for name in candidates if name.endswith(".bin")]
    if not any(name.endswith((".safetensors", ".bin")) for name in names):
        raise ValueError(
            f"{source} must hold the weights of a text encoder, got none; use {TEXT_ENCODER_REPOSITORY}"
        )
    return RemoteTextEncoder(listing=listing, names=tuple(names))


def _check_room(listing: Listing, text: Path | RemoteTextEncoder, dtype: torch.dtype | None) -> None:
    """Checks that the disks have room for what is still to be downloaded, and for what is made of it."""
    sizes = [listing.files[name] or 0 for name in RELEASED_FILES]
    downloads = num_missing_bytes(listing, RELEASED_FILES)
    if isinstance(text, Path):
        sizes += [file.stat().st_size for file in text_encoder_weights(TextEncoderFiles.find(text).model)]
    else:
        sizes += [text.listing.files[name] or 0 for name in text.names]
        downloads += num_missing_bytes(text.listing, text.names)
    # The files tell their dtype when they are here: at most float32. A merged LoRA takes no room.
    share = _LEAST_SHARE if dtype is None else _LEAST_SHARE * min(1.0, dtype.itemsize / 4)
    check_free_space_of_both(
        (Path(constants.HF_HUB_CACHE), downloads, "HF_HOME"),
        (cache_folder(), int(sum(sizes) * share), CACHE_VARIABLE),
        f"the download and conversion of {listing.repo}",
    )


def _text_name(source: str | Path) -> str:
    """A part of a file name that tells text encoders apart; of a folder, also after its files have changed."""
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return file_name(str(source))
    facts = [
        (str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns)
        for path in TextEncoderFiles.find(folder).read
    ]
    return hashlib.sha256(repr((str(folder.resolve()), facts)).encode()).hexdigest()[:12]


class _ConversionProgress:
    """A progress bar over the bytes written, on a terminal only, as those of the downloads."""

    def __init__(self) -> None:
        self._bar: Any = tqdm(desc="converting", unit="B", unit_scale=True, disable=None)

    def __call__(self, part: str, done: int, total: int) -> None:
        self._bar.total = total
        self._bar.set_description(f"converting {part}", refresh=False)
        self._bar.update(done - self._bar.n)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()
