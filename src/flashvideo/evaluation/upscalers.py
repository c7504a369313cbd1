"""Upscalers to compare with: classical ones, and any image super-resolution network, frame by frame.

Networks are read by `spandrel` (the `upscale` extra), which knows the architecture by the names in the file of weights.

Shapes: F frames, H and W height and width of the output, h and w of the input.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from flashvideo.evaluation.extras import first_line, import_extra
from flashvideo.evaluation.folders import content_digest
from flashvideo.video import iter_frames, probe_video, resize_video, write_video

CLASSICAL = ("bilinear", "bicubic", "lanczos")
"""Methods without weights. None antialiases: they enlarge."""
Upscaler = Callable[[Tensor, int, int], Tensor]
"""From frames (F, 3, h, w) in [-1, 1], a height and a width to (F, 3, height, width), float32 in [-1, 1]."""
_NOTE = "upscaler"  # of a video's metadata: what made it


def upscale_clip(
    frames: Tensor,
    height: int,
    width: int,
    method: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Enlarges a clip.

    Args:
        frames: ``(F, 3, h, w)`` in [-1, 1].
        height: Of the output, in pixels.
        width: Of the output.
        method: "bilinear", "bicubic", "lanczos", or a network's file of weights; see `load_upscaler`.
        device: Where a network runs.

    Returns:
        ``(F, 3, height, width)`` float32 in [-1, 1].

    Raises:
        ImportError: As `load_upscaler`.
        ValueError: As `load_upscaler`.
    """
    return load_upscaler(method, device=device)(frames, height, width)


def load_upscaler(method: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> Upscaler:
    """Makes a function that enlarges clips.

    A network enlarges by its own factor, padding what its architecture needs; where that is not the size asked for, its
    result is resized as between the stages (bilinear, antialiased).

    Args:
        method: "bilinear", "bicubic", "lanczos", or the file of weights (.pth, .pt, .ckpt, .safetensors) of an image
            super-resolution network of an architecture that spandrel knows.
        device: Where a network runs.

    Returns:
        The function.

    Raises:
        ImportError: A file of weights is given and spandrel is not installed.
        ValueError: The method is unknown, or the file does not hold such a network.
    """
    if method == "lanczos":
        return _lanczos
    if method in ("bilinear", "bicubic"):
        return lambda frames, height, width: _interpolate(frames, height, width, str(method))
    return _load_network(Path(method), torch.device(device))


def upscale_folder(
    inputs: Sequence[Path],
    output_folder: Path,
    size_of: Callable[[Path], tuple[int, int]],
    method: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
) -> list[Path]:
    """Enlarges video files into a folder, as mp4 under the same names; those that are there are not made again.

    A file appears when it is whole, and notes what made it of which input, so that nothing is mixed in one folder. One
    frame is in memory at a time.

    Args:
        inputs: Video files, no two of one name without suffix.
        output_folder: Made if it is missing.
        size_of: From an input to the height and width of its output.
        method: As for `load_upscaler`.
        device: Where a network runs.

    Returns:
        The outputs, in the order of the inputs.

    Raises:
        ImportError: As `load_upscaler`.
        ValueError: As `load_upscaler`; or two inputs have one name, an input lies in the output folder, a file there
            was made otherwise or in another size, or a video cannot be read or written.
    """
    output_folder = Path(output_folder)
    outputs = [output_folder / f"{Path(path).stem}.mp4" for path in inputs]
    _check_outputs(inputs, outputs)
    upscaler, how = load_upscaler(method, device=device), _describe(method)
    output_folder.mkdir(parents=True, exist_ok=True)
    for path, output in zip(inputs, outputs, strict=True):
        height, width = size_of(path)
        note = f"{how} of {content_digest(path)}"
        if output.exists():
            _check_made_alike(output, note, height, width)
            continue
        frames = (upscaler(frame[None], height, width) for frame in iter_frames(path))
        write_video(output, frames, frame_rate=probe_video(path).frame_rate, metadata={_NOTE: note})
    return outputs


def _interpolate(frames: Tensor, height: int, width: int, mode: str) -> Tensor:
    resized = F.interpolate(frames.float(), size=(height, width), mode=mode, align_corners=False)
    return resized.clamp(-1, 1)


def _lanczos(frames: Tensor, height: int, width: int) -> Tensor:
    planes = [
        [
            np.asarray(Image.fromarray(plane.numpy()).resize((width, height), Image.Resampling.LANCZOS))
            for plane in frame
        ]
        for frame in frames.float().cpu()
    ]
    return torch.from_numpy(np.array(planes)).clamp(-1, 1)


def _load_network(path: Path, device: torch.device) -> Upscaler:
    if not path.is_file():
        raise ValueError(
            f"{str(path)!r} is neither one of {', '.join(CLASSICAL)} nor a file; check the name of the weights"
        )
    spandrel = import_extra("spandrel", "an upscaling network needs it", extra="upscale")
    try:
        network = spandrel.ModelLoader(device=device).load_from_file(path)
    except Exception as error:  # spandrel lets through what torch, pickle and the architectures raise
        raise ValueError(f"{path} holds no network that spandrel can read: {first_line(error)}") from None
    if not isinstance(network, spandrel.ImageModelDescriptor) or network.scale < 2:
        raise ValueError(
            f"{path} holds {network.architecture.name}, which does not enlarge images; give another file"
        )
    if (network.input_channels, network.output_channels) != (3, 3):
        raise ValueError(f"{path} enlarges pictures of {network.input_channels} channels, expected 3 (RGB)")
    network.eval()

    def upscale(frames: Tensor, height: int, width: int) -> Tensor:
        enlarged: Iterator[Tensor] = (network(frame) for frame in _as_pictures(frames, device))
        # Resized one by one: a clip four times too large may not fit.
        return torch.cat([resize_video(2 * frame.float().cpu() - 1, height, width) for frame in enlarged])

    return upscale


def _as_pictures(frames: Tensor, device: torch.device) -> Iterator[Tensor]:
    """Frames ``(F, 3, h, w)`` in [-1, 1] as single pictures ``(1, 3, h, w)`` in [0, 1]."""
    for frame in frames:
        yield ((frame[None].float().to(device) + 1) / 2).clamp(0, 1)


def _describe(method: str | os.PathLike[str]) -> str:
    """A method's name; of weights the file's name and the start of its SHA-256."""
    if method in CLASSICAL:
        return str(method)
    return f"{Path(method).name} {content_digest(Path(method))}"


def _check_outputs(inputs: Sequence[Path], outputs: Sequence[Path]) -> None:
    names = [output.name for output in outputs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"several inputs are named {twice[0]}, as their outputs would be; upscale them apart"
        )
    for path, output in zip(inputs, outputs, strict=True):
        if Path(path).absolute().parent == output.absolute().parent:
            raise ValueError(f"{path} lies in the output folder already; choose another output folder")


def _check_made_alike(output: Path, note: str, height: int, width: int) -> None:
    info = probe_video(output)
    found = (info.metadata.get(_NOTE, "unknown"), info.height, info.width)
    if found != (note, height, width):
        raise ValueError(
            f"{output} was made by {found[0]} in {found[1]}x{found[2]}, not by {note} in {height}x{width}; "
            "choose another output folder"
        )
