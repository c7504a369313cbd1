"""Pairs of one's own for preference alignment: a better and a worse video of a prompt, from files.

A table has a row for each pair: `prompt`, `better`, `worse` and for Stage II `low`, the small video that both were
enlarged from. They are encoded as training encodes its clips, and stored as `flashvideo.training.pairs` stores what a
model sampled, with the scores 1 and 0.

Shapes: frames (F, 3, H, W) in [-1, 1], latents (f, C, h, w).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from flashvideo.data.clips.buckets import Bucket, fit_frames, place, upscale
from flashvideo.data.clips.decoding import read_image, read_image_header
from flashvideo.data.clips.entries import IMAGE_SUFFIXES
from flashvideo.data.clips.files import ClipError, ClipFile
from flashvideo.data.clips.tables import TABLE_SUFFIXES, read_table
from flashvideo.pipelines.sizes import check_crop, crop_offset, upscale_factor
from flashvideo.pipelines.two_stage import FlashVideoPipeline
from flashvideo.shapes import vae_factors
from flashvideo.training.descriptions import DECODES_ONLY, weights_fingerprint
from flashvideo.training.pairs import (
    Candidates,
    check_stage,
    open_candidates,
    prepare_folder,
    write_candidates,
)
from flashvideo.training.starts import at_work
from flashvideo.vae import encode_pixels
from flashvideo.vae.layers import THRIFTS
from flashvideo.video import probe_video, read_video, resize_video
from flashvideo.video.colour import frames_from_levels

SCORES = (1.0, 0.0)
"""Of the better and the worse one."""

_SAME_RATE = 1.02
"""A video up to so many times as fast as the model's frame rate is taken as it is."""


@dataclass(frozen=True, kw_only=True)
class OwnPair:
    """A row of a table.

    Attributes:
        where: Which row, for sentences.
        prompt: What both show.
        videos: Videos or pictures by their columns: "better", "worse" and for Stage II "low".
    """

    where: str
    prompt: str
    videos: Mapping[str, Path]


@dataclass(frozen=True, kw_only=True)
class _Clip:
    """A file, looked at.

    Attributes:
        path: The file.
        size: (height, width).
        frames: Numbers of its frames at the model's rate.
    """

    path: Path
    size: tuple[int, int]
    frames: tuple[int, ...]

    def read(self, count: int) -> Tensor:
        """The first frames, `count` of them, (count, 3, H, W)."""
        if self.path.suffix.lower() in IMAGE_SUFFIXES:
            try:
                return frames_from_levels(read_image(ClipFile(url=str(self.path))))[None]
            except (ClipError, OSError) as error:
                raise ValueError(f"{self.path} cannot be read: {error}") from None
        wanted = self.frames[:count]
        return read_video(self.path, num_frames=wanted[-1] + 1).frames[list(wanted)]


def read_own_pairs(table: Path, *, stage: str = "stage1") -> list[OwnPair]:
    """Reads a table of pairs; no video is opened.

    Args:
        table: CSV, JSON lines or Parquet with the columns `prompt`, `better`, `worse` and for Stage II `low`; paths
            count from its folder. Other columns are left alone.
        stage: Which stage is to learn: "stage1" or "stage2".

    Raises:
        ValueError: If it cannot be read, or a row lacks something or names a file that is not there.
        ImportError: If it is a Parquet file and pyarrow is not installed.
    """
    check_stage(stage)
    if table.suffix.lower() not in TABLE_SUFFIXES:
        raise ValueError(
            f"a table of pairs must be a {', '.join(TABLE_SUFFIXES)} file, got {table}; convert it"
        )
    roles = ("better", "worse", "low")[: 2 if stage == "stage1" else 3]
    columns, rows = read_table(str(table), used=("prompt", *roles))
    for name in ("prompt", *roles):
        if name not in columns:
            hint = "the small video that both were enlarged from; add it" if name == "low" else "rename one"
            raise ValueError(
                f"{table} must have a column {name!r}, got the columns {', '.join(columns) or 'none'}; {hint}"
            )
    pairs = [
        _own_pair(row, f"row {number} of {table}", table.parent, roles) for number, row in enumerate(rows, 1)
    ]
    if not pairs:
        raise ValueError(f"{table} must have at least one pair, got none; write one in a row")
    return pairs


def _own_pair(row: Mapping[str, Any], where: str, folder: Path, roles: Sequence[str]) -> OwnPair:
    values: dict[str, str] = {}
    for name in ("prompt", *roles):
        value = row.get(name)
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{where} must have text as {name}, got {value!r}; fill it in")
        values[name] = value.strip()
    videos = {name: folder / values[name] for name in roles}
    for name, path in videos.items():
        if not path.is_file():
            raise ValueError(
                f"{where} must name a file as {name}, got {path}, which is not there; check the name"
            )
    if videos["better"] == videos["worse"]:
        raise ValueError(f"{where} must name two files as better and worse, got {videos['better']} twice")
    return OwnPair(where=where, prompt=values["prompt"], videos=videos)


def encode_own_pairs(
    pipeline: FlashVideoPipeline, pairs: Sequence[OwnPair], output: Path, *, stage: str = "stage1"
) -> list[Path]:
    """Encodes pairs of videos as files of candidates; what is there already is kept.

    Videos faster than the model's frame rate are brought to it by their nearest frames. Of each the first frames are
    taken, as many as the VAE packs without a rest and the model makes at most. Frames are resized to cover the stage's
    size and the middle is kept; a `low` is enlarged to its videos' size first, as inference does it.

    Args:
        pipeline: The model that is to learn, of which the VAE alone works.
        pairs: What `read_own_pairs` returned for the stage.
        output: Folder of the files, one for each pair, named by its number.
        stage: Which stage is to learn.

    Returns:
        The files.

    Raises:
        ValueError: If a video cannot be read or is too small, videos that belong together differ in length or size,
            or the folder holds candidates of anything else than these pairs.
    """
    check_stage(stage)
    if stage == "stage2":
        pipeline.check_has_stage2()
    clips = [_look_at(pair, pipeline, stage) for pair in pairs]
    num_frames = _common_length(pairs, clips, pipeline)
    prompts = [pair.prompt for pair in pairs]
    files = prepare_folder(output, prompts, _about(pipeline, stage, num_frames))
    sources = [_digest(pair) for pair in pairs]
    todo = [index for index, path in enumerate(files) if not _is_there(path, sources[index])]
    with at_work(pipeline.execution_device, pipeline.vae):
        for index in tqdm(todo, desc="pairs"):
            latents, low = _encode(clips[index], num_frames, pipeline, stage)
            write_candidates(
                files[index],
                Candidates(
                    prompt=pairs[index].prompt, latents=latents, scores=SCORES, low=low, source=sources[index]
                ),
            )
    return files


def _look_at(pair: OwnPair, pipeline: FlashVideoPipeline, stage: str) -> dict[str, _Clip]:
    """The files of a pair by their columns, which go together; none is decoded."""
    clips = {}
    for name, path in pair.videos.items():
        try:
            clips[name] = _clip(path, Fraction(pipeline.preset.stage1.frame_rate))
        except (ClipError, OSError) as error:
            raise ValueError(f"{path}, {name} in {pair.where}, cannot be read: {error}") from None
    better = clips["better"]
    for name, clip in clips.items():
        if len(clip.frames) != len(better.frames):
            raise ValueError(
                f"{pair.where} must have videos of one number of frames, got {len(better.frames)} as better and "
                f"{len(clip.frames)} as {name}; cut the longer one"
            )
    bucket = _bucket(pipeline, stage)
    for name in ("better", "worse"):
        height, width = clips[name].size
        if upscale(height, width, bucket) > 1:
            raise ValueError(
                f"{pair.where} must have videos that cover {bucket.width}x{bucket.height}, which {stage} makes, got "
                f"{width}x{height} as {name}; enlarged they would teach blur"
            )
    if "low" in clips:
        _check_low(pair, clips, pipeline)
    return clips


def _check_low(pair: OwnPair, clips: Mapping[str, _Clip], pipeline: FlashVideoPipeline) -> None:
    """Refuses videos that were not enlarged from one another, as far as sizes tell."""
    low, better, worse = (clips[name].size for name in ("low", "better", "worse"))
    if worse != better or low[0] > better[0] or low[1] > better[1]:
        sizes = ", ".join(f"{clip.size[1]}x{clip.size[0]} as {name}" for name, clip in clips.items())
        raise ValueError(
            f"{pair.where} must have better and worse of one size and low no larger, got {sizes}; both must be "
            "enlarged from low"
        )
    step = upscale_factor(pipeline.preset) * pipeline.preview_multiple
    try:
        check_crop(pipeline.enlarged_size(low, better), better, step=step)
    except ValueError as error:
        raise ValueError(f"{pair.where} must have low of its videos' shape: {error}") from None


def _clip(path: Path, frame_rate: Fraction) -> _Clip:
    if path.suffix.lower() in IMAGE_SUFFIXES:
        header = read_image_header(ClipFile(url=str(path)))
        return _Clip(path=path, size=(header.height, header.width), frames=(0,))
    info = probe_video(path)
    faster = info.frame_rate / frame_rate
    step = faster if faster > _SAME_RATE else Fraction(1)
    count = 1 + int((info.num_frames - 1) / step)
    return _Clip(
        path=path, size=(info.height, info.width), frames=tuple(round(i * step) for i in range(count))
    )


def _bucket(pipeline: FlashVideoPipeline, stage: str) -> Bucket:
    """What the stage makes."""
    preset = getattr(pipeline.preset, stage)
    return Bucket(num_frames=pipeline.preset.stage1.num_frames, height=preset.height, width=preset.width)


def _common_length(
    pairs: Sequence[OwnPair], clips: Sequence[Mapping[str, _Clip]], pipeline: FlashVideoPipeline
) -> int:
    """How many frames are taken of each video: those of one batch must be alike."""
    temporal = vae_factors(pipeline.vae.config)[0]
    most = pipeline.preset.stage1.num_frames
    lengths = [1 + (min(len(c["better"].frames), most) - 1) // temporal * temporal for c in clips]
    for pair, length in zip(pairs, lengths, strict=True):
        if length != lengths[0]:
            raise ValueError(
                f"pairs of one table are trained on together and must be of one length, got {lengths[0]} frames in "
                f"{pairs[0].where} and {length} in {pair.where}; cut the longer ones, or make two tables"
            )
    return lengths[0]


def _about(pipeline: FlashVideoPipeline, stage: str, num_frames: int) -> dict[str, Any]:
    """What beside the files decides the latents."""
    preset = getattr(pipeline.preset, stage)
    return {
        "stage": stage,
        "origin": "files",
        "num_frames": num_frames,
        "frame_rate": pipeline.preset.stage1.frame_rate,
        "height": preset.height,
        "width": preset.width,
        "latent_scale": preset.latent_scale,
        "vae": weights_fingerprint(pipeline.vae, without=DECODES_ONLY),
    }


def _digest(pair: OwnPair) -> str:
    """A hash of the files' contents."""
    digest = hashlib.sha256()
    for path in pair.videos.values():
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _is_there(path: Path, source: str) -> bool:
    if not path.exists():
        return False
    with open_candidates(path) as (_, content):
        if content.get("source") != source:
            raise ValueError(
                f"{path} was made from other videos than those of its row now; delete it, or choose another folder"
            )
    return True


@torch.no_grad()
def _encode(
    clips: Mapping[str, _Clip], num_frames: int, pipeline: FlashVideoPipeline, stage: str
) -> tuple[Tensor, Tensor | None]:
    """Latents (2, f, C, h, w) of the better and the worse one, and of what they were enlarged from (f, C, h, w)."""
    bucket, scale = _bucket(pipeline, stage), getattr(pipeline.preset, stage).latent_scale
    thrift = THRIFTS[0] if stage == "stage2" else None

    def encode(frames: Tensor) -> Tensor:
        height, width = frames.shape[-2:]
        fitted = fit_frames(frames, place(height, width, bucket, None))
        return encode_pixels(pipeline.vae, fitted[None], scale=scale, thrift=thrift)[0].cpu()

    latents = torch.stack([encode(clips[name].read(num_frames)) for name in ("better", "worse")])
    if "low" not in clips:
        return latents, None
    size = clips["better"].size
    enlarged = pipeline.enlarged_size(clips["low"].size, size)
    top, left = crop_offset(enlarged, size)
    low = resize_video(clips["low"].read(num_frames), *enlarged)
    return latents, encode(low[..., top : top + size[0], left : left + size[1]])
