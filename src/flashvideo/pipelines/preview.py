"""A preview as a file: the Stage I latents, the settings that made them, and where the randomness stood.

Between the two stages a user looks at the preview and decides whether to pay for Stage II. What is kept of it is what
continuing needs: Stage II draws from the generator exactly as Stage I left it, so a run that was stopped, saved, loaded
and continued gives, bit for bit, the video of a run that was never stopped.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flashvideo.pipelines.inputs import to_pixels
from flashvideo.pipelines.tensor_file import SUFFIX, read_tensors, write_tensors
from flashvideo.video import read_video

logger = logging.getLogger(__name__)

PREVIEW_SUFFIX = SUFFIX
"""Suffix of a preview's file of latents; it lies beside the preview video under the same name."""

_METADATA_KEY = "flashvideo_preview"
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class PreviewSettings:
    """What made a preview."""

    model: str
    """Name of the preset of the model."""

    version: str
    """Version of flashvideo."""

    prompts: tuple[str, ...]
    """One prompt per clip."""

    seed: int
    """The seed that the generator was last given."""

    height: int
    """Height of the preview in pixels."""

    width: int
    """Width of the preview in pixels."""

    num_frames: int
    """Frames of the preview."""

    num_inference_steps: int
    """Network evaluations of Stage I."""

    guidance_scale: float
    """Guidance scale of Stage I."""

    guidance_schedule: str
    """Guidance schedule of Stage I."""

    final_height: int | None = None
    """Height of the video that the preview was made for; None together with `final_width` for the model's own."""

    final_width: int | None = None
    """Width of the video that the preview was made for."""

    original_prompt: str | None = None
    """The prompt before it was refined, see `flashvideo.refine`; None if it was not."""

    refined_by: str | None = None
    """The model that refined it."""

    loras: tuple[str, ...] = ()
    """LoRAs that were on Stage I, as `name:scale`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PreviewState:
    """All that it takes to continue from a preview."""

    latents: torch.Tensor
    """Scaled Stage I latents (B, f, C, h, w), float32."""

    generator_state: torch.Tensor
    """`torch.Generator.get_state()` after Stage I."""

    generator_device: str
    """Type of the device that the generator lives on, `"cpu"` or `"cuda"`; states do not carry over."""

    settings: PreviewSettings
    """What made the preview."""

    def generator(self) -> torch.Generator:
        """Returns a new generator that stands where Stage I left it.

        Raises:
            ValueError: If its kind of device is not there.
        """
        try:
            generator = torch.Generator(self.generator_device)
        except RuntimeError as error:
            raise ValueError(
                f"this preview was made with a generator on {self.generator_device!r}, which this machine lacks; "
                "pass another generator to continue, with other random detail"
            ) from error
        return generator.set_state(self.generator_state)


def save_preview(path: str | os.PathLike[str], preview: PreviewState) -> Path:
    """Writes a preview's latents and settings.

    Args:
        path: File to write, ending in `.safetensors`; give it the name of the preview video, so that
            `latents_beside` finds it.
        preview: For example `FlashVideoPipelineOutput.preview`.

    Returns:
        The path written.

    Raises:
        ValueError: If the suffix is another one.
    """
    path = Path(path)
    if path.suffix != PREVIEW_SUFFIX:
        raise ValueError(
            f"a preview's latents are saved as {PREVIEW_SUFFIX}, got {path.name!r}; change the suffix"
        )
    tensors = {"latents": preview.latents.cpu().contiguous(), "generator_state": preview.generator_state}
    content = {
        "format": _FORMAT,
        "generator_device": preview.generator_device,
        "settings": dataclasses.asdict(preview.settings),
    }
    write_tensors(path, tensors, {_METADATA_KEY: content})
    return path


def load_preview(path: str | os.PathLike[str]) -> PreviewState:
    """Reads what `save_preview` wrote.

    Raises:
        ValueError: If the file is not there, or is not a preview of this format.
    """
    path = Path(path)
    tensors, content = read_tensors(path, key=_METADATA_KEY, kind="a preview")
    if content is None or content.get("format") != _FORMAT:
        found = "no preview" if content is None else f"a preview of format {content.get('format')}"
        raise ValueError(
            f"{path} holds {found}, expected format {_FORMAT}; was it written by another version?"
        )
    settings = _read_settings(path, content["settings"])
    return PreviewState(
        latents=tensors["latents"],
        generator_state=tensors["generator_state"],
        generator_device=content["generator_device"],
        settings=settings,
    )


def latents_beside(video_path: str | os.PathLike[str]) -> Path | None:
    """Returns the file of latents that lies beside a preview video under the same name; None if there is none."""
    path = Path(video_path).with_suffix(PREVIEW_SUFFIX)
    return path if path.is_file() else None


def read_preview(
    preview: PreviewState | str | os.PathLike[str] | torch.Tensor | Sequence[Any] | None,
) -> PreviewState | torch.Tensor | None:
    """Reads a preview in any of the forms that a call takes.

    Args:
        preview: A state, its file, a video file (its latents are used if they lie beside it under the same name),
            pixels or a list of frames as in `to_pixels`, or None.

    Returns:
        The state if there is one, otherwise pixels (B, F, 3, H, W), or None for None. Pixels are logged: latents are
        lost with them, and continuing from an encoded video is not the same as never having stopped.

    Raises:
        ValueError: If it is none of these or cannot be read.
    """
    if preview is None or isinstance(preview, PreviewState):
        return preview
    if not isinstance(preview, str | os.PathLike):
        return to_pixels(preview)
    path = Path(preview)
    if path.suffix == PREVIEW_SUFFIX:
        return load_preview(path)
    if (latents := latents_beside(path)) is not None:
        return load_preview(latents)
    frames = read_video(path).frames[None]
    logger.warning(
        "no %s file lies beside %s: continuing from its pixels, which differs from an unbroken run",
        PREVIEW_SUFFIX,
        path,
    )
    return frames


def _read_settings(path: Path, stored: dict[str, Any]) -> PreviewSettings:
    fields = dataclasses.fields(PreviewSettings)
    known = {field.name for field in fields}
    required = {field.name for field in fields if field.default is dataclasses.MISSING}
    if wrong := (set(stored) - known) | (required - set(stored)):
        raise ValueError(f"{path} holds other settings than this version knows: {sorted(wrong)}")
    lists = {"prompts": tuple(stored["prompts"]), "loras": tuple(stored.get("loras", ()))}
    return PreviewSettings(**{**stored, **lists})
