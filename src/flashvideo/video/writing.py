"""Frames to video files and pictures, whole or not at all, with a note inside of how they were made.

Shapes: F frames, H height, W width.
"""

import contextlib
import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import torch
from av.codec.codec import UnknownCodecError
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from flashvideo.video.colour import declare_colour, image_from_levels
from flashvideo.video.errors import VideoError
from flashvideo.video.pixels import contact_sheet, to_uint8

# Container and encoder for each suffix that `write_video` knows.
_CONTAINERS = {
    ".mp4": ("mp4", "libx264"),
    ".mov": ("mov", "libx264"),
    ".mkv": ("matroska", "libx264"),
    ".webm": ("webm", "libvpx-vp9"),
}
# With x264's macroblock tree, two encodings of the same small clip now and then differ.
_ENCODER_OPTIONS = {
    "libx264": {"x264-params": "mbtree=0"},
    "libvpx-vp9": {"deadline": "good", "cpu-used": "4", "row-mt": "1"},
}
_MAX_CRF = {"libx264": 51, "libvpx-vp9": 63}
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def write_video(
    path: str | os.PathLike[str],
    frames: torch.Tensor | Iterable[torch.Tensor],
    *,
    frame_rate: int | float | Fraction,
    metadata: Mapping[str, Any] | None = None,
    crf: int = 16,
) -> Path:
    """Write frames to a video file: H.264 in mp4, mov and mkv, VP9 in webm.

    The file appears under its name only when it is complete; after a failure nothing is left. Even sizes are stored as
    yuv420p, which every player shows. Odd sizes, which H.264 cannot store so, become yuv444p: every pixel is kept, but
    some players do not show such files.

    Args:
        path: Output file; its suffix selects the container.
        frames: ``(F, 3, H, W)`` floats in [-1, 1] (values outside are clamped), or an iterable of such chunks or of
            single frames ``(3, H, W)``, which is consumed while writing.
        frame_rate: Frames per second, greater than 0.
        metadata: Written as JSON into the container's ``comment`` tag; see `generation_metadata`.
        crf: Constant rate factor of the encoder, 0 (best) to 51, or to 63 for webm.

    Returns:
        The path written.

    Raises:
        VideoError: The suffix is unknown, the output cannot be written, or the frames are not what they should be.
    """
    target = _output_path(path, tuple(_CONTAINERS))
    container_name, codec = _CONTAINERS[target.suffix.lower()]
    if not 0 <= crf <= _MAX_CRF[codec]:
        raise VideoError(f"crf must lie between 0 and {_MAX_CRF[codec]} for {codec}, got {crf}")
    if not 0 < frame_rate < math.inf:
        raise VideoError(f"frame_rate must be greater than 0, got {frame_rate}")
    rate = Fraction(frame_rate)
    if isinstance(frame_rate, float):
        rate = rate.limit_denominator(1001)  # the largest denominator in use, as in 30000/1001
    comment = None if metadata is None else json.dumps(dict(metadata), ensure_ascii=False, allow_nan=False)
    with _atomic(target) as temporary:
        encoder = _Encoder(temporary, target, container_name, codec, rate=rate, comment=comment, crf=crf)
        try:
            for frame in _single_frames(frames):
                encoder.add(frame)
            encoder.finish()
        finally:
            encoder.close()
    return target


class _Encoder:
    """One output file; opened at the first frame, whose size it takes."""

    def __init__(
        self,
        temporary: Path,
        target: Path,
        container: str,
        codec: str,
        *,
        rate: Fraction,
        comment: str | None,
        crf: int,
    ):
        self.temporary, self.target, self.container_name, self.codec = temporary, target, container, codec
        self.rate, self.comment, self.crf = rate, comment, crf
        self.container: OutputContainer | None = None
        self.count = 0

    def add(self, frame: torch.Tensor) -> None:
        """Encode one frame ``(3, H, W)``."""
        levels = to_uint8(frame).movedim(0, -1).contiguous().cpu().numpy()  # (H, W, 3)
        height, width = levels.shape[:2]
        with _write_errors(self.target):
            if self.container is None:
                self._open(height, width)
            elif (height, width) != (self.stream.height, self.stream.width):
                raise VideoError(
                    f"all frames must have one size: frame {self.count} is {height}x{width}, "
                    f"earlier ones {self.stream.height}x{self.stream.width}; use resize_video first"
                )
            image = image_from_levels(levels, self.pix_fmt)
            image.pts, image.time_base = self.count, 1 / self.rate
            self._mux(image)
        self.count += 1

    def finish(self) -> None:
        """Flush the encoder and complete the file."""
        if self.container is None:
            raise VideoError(f"there are no frames to write to {self.target}; give at least one")
        with _write_errors(self.target):
            self._mux(None)
            self.container.close()
            self.container = None

    def close(self) -> None:
        """Give up an unfinished file; does nothing after `finish`."""
        if self.container is not None:
            with contextlib.suppress(av.FFmpegError, OSError):
                self.container.close()

    def _open(self, height: int, width: int) -> None:
        # faststart: the index comes first, so that a browser can start before the file has arrived.
        mp4_options = {"movflags": "+faststart"} if self.container_name in ("mp4", "mov") else {}
        self.container = av.open(
            str(self.temporary.absolute()), "w", format=self.container_name, container_options=mp4_options
        )
        if self.comment is not None:
            self.container.metadata["comment"] = self.comment
        options = {"crf": str(self.crf), **_ENCODER_OPTIONS[self.codec]}
        try:
            stream = self.container.add_stream(self.codec, rate=self.rate, options=options)
        except UnknownCodecError:
            raise VideoError(
                f"{self.target} needs the encoder {self.codec}, which this FFmpeg lacks; install PyAV from PyPI"
            ) from None
        assert isinstance(stream, VideoStream)
        stream.width, stream.height = width, height
        stream.pix_fmt = self.pix_fmt = "yuv444p" if width % 2 or height % 2 else "yuv420p"
        declare_colour(stream)
        self.stream = stream

    def _mux(self, image: VideoFrame | None) -> None:
        assert self.container is not None
        for packet in self.stream.encode(image):
            self.container.mux(packet)


def generation_metadata(
    *,
    model: str,
    version: str,
    seed: int | None,
    sizes: Mapping[str, Sequence[int]],
    steps: Mapping[str, int],
    prompt: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Describe how a video was made, for `write_video`'s ``metadata``.

    Args:
        model: Name or path of the model, such as ``"nano"``.
        version: Version of this package.
        seed: The seed, or None if it is not known.
        sizes: For each stage that ran, (num_frames, height, width).
        steps: For each stage that ran, its number of network evaluations.
        prompt: The prompt; None leaves it out of the file.
        settings: Anything else worth keeping (JSON values).

    Returns:
        A JSON-ready dict, with ``"ai_generated": True``.

    Raises:
        ValueError: A size does not have three numbers.

    Example:
        >>> data = generation_metadata(model="nano", version="0.1", seed=1, sizes={"stage1": (17, 96, 160)}, steps={})
        >>> data["sizes"]["stage1"]["height"], data["ai_generated"]
        (96, True)
    """
    for stage, size in sizes.items():
        if len(size) != 3:
            raise ValueError(f"sizes[{stage!r}] must be (num_frames, height, width), got {tuple(size)}")
    data: dict[str, Any] = {
        "software": "flashvideo",
        "version": version,
        "ai_generated": True,
        "model": model,
        "seed": seed,
        "sizes": {
            stage: {"num_frames": int(size[0]), "height": int(size[1]), "width": int(size[2])}
            for stage, size in sizes.items()
        },
        "steps": {stage: int(count) for stage, count in steps.items()},
    }
    if prompt is not None:
        data["prompt"] = prompt
    if settings:
        data["settings"] = dict(settings)
    return data


def save_image(path: str | os.PathLike[str], image: Image.Image | torch.Tensor) -> Path:
    """Write a picture; like `write_video`, whole or not at all.

    Args:
        path: Output file ending in .png, .jpg, .jpeg or .webp.
        image: A Pillow image, or one frame ``(3, H, W)`` in [-1, 1].

    Returns:
        The path written.

    Raises:
        VideoError: The suffix is unknown or the output cannot be written.
    """
    target = _output_path(path, _IMAGE_SUFFIXES)
    picture = image if isinstance(image, Image.Image) else contact_sheet(image.unsqueeze(0), columns=1)
    file_format = {".png": "PNG", ".webp": "WEBP"}.get(target.suffix.lower(), "JPEG")
    options = {} if file_format == "PNG" else {"quality": 95}
    with _atomic(target) as temporary, _write_errors(target):
        picture.save(temporary, format=file_format, **options)
    return target


def _output_path(path: str | os.PathLike[str], suffixes: Sequence[str]) -> Path:
    path = Path(path)
    if path.is_dir():
        raise VideoError(
            f"{path} is a folder, expected a file to write; add a name such as {path / f'out{suffixes[0]}'}"
        )
    if path.suffix.lower() not in suffixes:
        raise VideoError(
            f"{path} has the suffix {path.suffix!r}, expected one of {', '.join(suffixes)}; rename it"
        )
    if not path.parent.is_dir():
        raise VideoError(
            f"{path} cannot be written: {path.parent} is not an existing folder; create it first"
        )
    return path


@contextlib.contextmanager
def _atomic(target: Path) -> Iterator[Path]:
    """Give a temporary name beside ``target``; rename it on success, remove it on any failure."""
    temporary = target.with_name(f".{target.stem[:64]}.{secrets.token_hex(4)}.part{target.suffix}")
    try:
        yield temporary
        with _write_errors(target):
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _write_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except VideoError:
        raise
    except (av.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(f"{target} cannot be written: {reason}; nothing was left behind") from None


def _single_frames(frames: torch.Tensor | Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield checked frames ``(3, H, W)`` from a clip, or from an iterable of clips and frames."""
    for chunk in [frames] if isinstance(frames, torch.Tensor) else frames:
        if chunk.ndim not in (3, 4) or chunk.shape[-3] != 3:
            raise VideoError(
                f"frames must have the shape (F, 3, H, W) or (3, H, W), got {tuple(chunk.shape)}"
            )
        if not chunk.is_floating_point():
            raise VideoError(f"frames must be floats in [-1, 1], got {chunk.dtype}; use levels / 127.5 - 1")
        for frame in chunk if chunk.ndim == 4 else [chunk]:
            if not torch.isfinite(frame).all():
                raise VideoError("frames hold NaN or infinite values, expected floats in [-1, 1]")
            yield frame
