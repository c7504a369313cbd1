"""How a sweep makes a result: text, preview and detail, each timed alone.

Shapes: F frames of H x W pixels in [-1, 1]; h x w of what goes into Stage II; L text tokens, D channels of the text
encoder.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from flashvideo.evaluation.peaks import timed, with_peak
from flashvideo.evaluation.records import write_json
from flashvideo.evaluation.sweep.files import Cost
from flashvideo.evaluation.sweep.grid import Setting
from flashvideo.evaluation.sweep.items import Item, render_pair
from flashvideo.pipelines.preview import PREVIEW_SUFFIX, PreviewState, load_preview, save_preview
from flashvideo.pipelines.settings import EnhanceSettings, complete_settings
from flashvideo.pipelines.sizes import crop_offset, named_size
from flashvideo.pipelines.two_stage import FlashVideoPipeline
from flashvideo.pipelines.workload import Workload

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a phase took."""

    seconds: float
    """Wall time."""

    peak_bytes: int | None
    """Most memory; None where it is not known."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Start:
    """What Stage II makes a result from."""

    pixels: Tensor
    """(F, 3, h, w): a preview, a rendered scene, or a video."""

    size: tuple[int, int]
    """H and W of the result."""

    enlarged: tuple[int, int] | None = None
    """Height and width that Stage II works at, of which the middle is kept; None for the result's."""

    reference: Tensor | None = None
    """The truth (F, 3, H, W), if it is known."""

    @property
    def source(self) -> Tensor | None:
        """What the result can be compared with; None where no whole pixels of it are what is kept, or it is larger."""
        height, width = self.size
        top, left, rows, columns = 0, 0, *self.pixels.shape[-2:]
        if self.enlarged is not None and self.enlarged != self.size:
            parts = [(self.enlarged[0], rows), (self.enlarged[1], columns)]
            if any(after % before for after, before in parts):
                return None
            scales = [after // before for after, before in parts]
            kept = [*crop_offset(self.enlarged, self.size), height, width]
            if any(side % scale for side, scale in zip(kept, scales * 2, strict=True)):
                return None
            top, left, rows, columns = (side // scale for side, scale in zip(kept, scales * 2, strict=True))
        if rows > height or columns > width:
            return None
        return self.pixels[..., top : top + rows, left : left + columns]


@dataclass(frozen=True, kw_only=True, eq=False)
class Text:
    """A prompt as both stages read it."""

    stage1: Tensor | None
    """(1, L, D); None where Stage I does not run."""

    stage2: Tensor | None
    """(1, L, D); None where Stage II does not run."""

    taken: Spent
    """What reading it took."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MadePreview:
    """A preview from which Stage II goes on as if it had never stopped."""

    pixels: Tensor
    """(F, 3, h, w)."""

    state: PreviewState
    """Its latents, and where its randomness stood."""

    taken: Spent
    """What it took when it was made."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Made:
    """A result with what it took."""

    start: Start
    """What it was made from; the preview itself, where that is the result."""

    frames: Tensor
    """(F, 3, H, W)."""

    cost: Cost
    """What it cost."""

    about: dict[str, Any]
    """Sizes, steps and settings, for its metadata."""


def spent(device: torch.device, work: Callable[[], T]) -> tuple[T, Spent]:
    """Does some work and says what it took."""
    (result, seconds), memory = with_peak(lambda: timed(work, device), device)
    return result, Spent(seconds=seconds, peak_bytes=None if memory is None else memory.most)


def read_text(pipeline: FlashVideoPipeline, prompt: str, *, stage1: bool, stage2: bool) -> Text:
    """Encodes a prompt for the stages that run."""

    def encode() -> tuple[Tensor | None, Tensor | None]:
        with pipeline.planned(Workload):
            return (
                pipeline.stage1.encode_prompt(prompt) if stage1 else None,
                pipeline.stage2.encode_prompt(prompt, 1) if stage2 else None,
            )

    (first, second), taken = spent(pipeline.execution_device, encode)
    return Text(stage1=first, stage2=second, taken=taken)


def make_preview(
    pipeline: FlashVideoPipeline,
    prompt: str,
    embeds: Tensor,
    setting: Setting,
    *,
    num_frames: int,
    seed: int,
) -> MadePreview:
    """Runs Stage I.

    Args:
        pipeline: The model.
        prompt: The prompt, which the preview notes.
        embeds: Its embeddings (1, L, D).
        setting: Size of the final video, steps and guidance.
        num_frames: F.
        seed: Seed of the randomness of both stages.
    """
    size = named_size(setting.size)
    made, taken = spent(
        pipeline.execution_device,
        lambda: pipeline.make_preview(
            prompt,
            (num_frames, *pipeline.preview_size(*size)),
            final=size,
            prompt_embeds=embeds,
            num_inference_steps=setting.steps,
            guidance_scale=setting.guidance,
            generator=torch.Generator().manual_seed(seed),
        ),
    )
    assert made.state is not None
    return MadePreview(pixels=made.pixels[0].float().cpu(), state=made.state, taken=taken)


def keep_preview(path: Path, preview: MadePreview) -> None:
    """Writes a preview, and beside it what it took; the second file is what says that both are there.

    Args:
        path: Where to, without suffix.
        preview: The preview.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    save_preview(_beside(path, PREVIEW_SUFFIX), preview.state)
    write_json(_beside(path, ".json"), vars(preview.taken))


def kept_preview(
    pipeline: FlashVideoPipeline, path: Path, prompt: str, setting: Setting, *, num_frames: int, seed: int
) -> MadePreview | None:
    """Reads what `keep_preview` wrote.

    Args:
        pipeline: The model.
        path: Where it would be, without suffix.
        prompt: What it must be of, as all that follows.
        setting: Size of the final video, steps and guidance.
        num_frames: F.
        seed: The seed.

    Returns:
        The preview; None if there is none.

    Raises:
        ValueError: If it is of something else.
    """
    taken = _beside(path, ".json")
    if not taken.exists():
        return None
    state = load_preview(_beside(path, PREVIEW_SUFFIX))
    made = state.settings
    height, width = pipeline.preview_size(*named_size(setting.size))
    wanted = {
        "prompts": (prompt,),
        "seed": seed,
        "height": height,
        "width": width,
        "num_frames": num_frames,
        "num_inference_steps": setting.steps,
        "guidance_scale": setting.guidance,
    }
    for name, value in wanted.items():
        if (found := getattr(made, name)) != value:
            raise ValueError(
                f"{_beside(path, PREVIEW_SUFFIX)} must be the preview of {name} {value}, got {found}; remove it and "
                f"{taken.name}"
            )
    preview = (made.num_frames, made.height, made.width)
    with pipeline.planned(lambda: Workload(preview=preview, stage1=False, text=False)):
        pixels = pipeline.stage1.decode_latents(state.latents.to(pipeline.execution_device))
    return MadePreview(
        pixels=pixels[0].float().cpu(), state=state, taken=Spent(**json.loads(taken.read_text()))
    )


def _beside(path: Path, suffix: str) -> Path:
    """The path with a suffix behind its whole name, in which there may be dots."""
    return path.with_name(path.name + suffix)


def start_from_preview(pipeline: FlashVideoPipeline, preview: MadePreview, size: str) -> Start:
    """Returns where Stage II starts from a preview."""
    final = named_size(size)
    preview_size = preview.pixels.shape[-2], preview.pixels.shape[-1]
    return Start(pixels=preview.pixels, size=final, enlarged=pipeline.enlarged_size(preview_size, final))


def start_from_scene(pipeline: FlashVideoPipeline, item: Item, size: str, num_frames: int) -> Start:
    """Renders a scene in the size of a preview, and its truth."""
    assert item.scene is not None
    final = named_size(size)
    small = pipeline.preview_size(*final)
    enlarged = pipeline.enlarged_size(small, final)
    pixels, truth = render_pair(item.scene, num_frames, small=small, enlarged=enlarged, final=final)
    return Start(pixels=pixels, size=final, enlarged=enlarged, reference=truth)


def start_from_video(pipeline: FlashVideoPipeline, item: Item, size: str) -> Start:
    """Reads a video and its reference, if it has one.

    Raises:
        ValueError: If the reference is not of the size that comes out, or has another number of frames.
    """
    assert item.video is not None
    pixels = item.video.read()
    reference = None if item.reference is None else item.reference.read()
    final = result_size(pipeline, size, (pixels.shape[-2], pixels.shape[-1]))
    if reference is not None:
        check_reference(item, size, (len(pixels), *final), (len(reference), *reference.shape[-2:]))
    return Start(pixels=pixels, size=final, reference=reference)


def check_reference(
    item: Item, size: str, expected: tuple[int, int, int], found: tuple[int, int, int]
) -> None:
    """Checks a reference against the result that it is for.

    Args:
        item: What both belong to.
        size: A `Setting`'s.
        expected: Frames, height and width of the result.
        found: Those of the reference.

    Raises:
        ValueError: If they differ.
    """
    if found != expected:
        assert item.reference is not None
        raise ValueError(
            f"{item.reference.paths[0]} must have {expected[0]} frames of {expected[2]}x{expected[1]}, as the result "
            f"of {item.name} at size {size}, got {found[0]} of {found[2]}x{found[1]}; give another size or leave out "
            "the references"
        )


def result_size(pipeline: FlashVideoPipeline, size: str, given: tuple[int, int]) -> tuple[int, int]:
    """Returns height and width that a video of one's own is enhanced to.

    Args:
        pipeline: The model, whose own size may be meant.
        size: A `Setting`'s.
        given: Height and width of the video.
    """
    if size.startswith("x"):
        return given[0] * int(size[1:]), given[1] * int(size[1:])
    return named_size(size, like=given, preset=pipeline.preset)


def complete_detail(
    pipeline: FlashVideoPipeline,
    given: tuple[int, int],
    final: tuple[int, int],
    setting: Setting,
    *,
    consistency: bool | None,
    enlarged: tuple[int, int] | None = None,
) -> EnhanceSettings:
    """Completes the settings of Stage II.

    Args:
        pipeline: The model.
        given: Height and width of what it starts from.
        final: H and W of the result.
        setting: How it is made.
        consistency: Whether the result keeps the coarse picture; the model's own if None.
        enlarged: Height and width to work at, of which the middle is kept; the result's if None.

    Raises:
        ValueError: In one sentence, what the model does not take.
    """
    return complete_settings(
        given,
        preset=pipeline.preset,
        vae=pipeline.vae,
        height=final[0],
        width=final[1],
        num_inference_steps=setting.detail_steps,
        guidance_scale=setting.detail_guidance,
        noise_step=setting.noise_step,
        shift=setting.shift,
        consistency=consistency,
        enlarged=enlarged,
    )


def make_detail(
    pipeline: FlashVideoPipeline,
    start: Start,
    embeds: Tensor | None,
    settings: EnhanceSettings,
    generator: torch.Generator,
) -> tuple[Tensor, Spent]:
    """Runs Stage II.

    Args:
        pipeline: The model.
        start: What to start from.
        embeds: Embeddings of the prompt (1, L, D); None for no text.
        settings: Complete settings.
        generator: Source of all randomness.

    Returns:
        The result (F, 3, H, W), and what it took.
    """

    def enhance() -> Tensor:
        stretches = pipeline.stage2.stream(
            start.pixels,
            settings=settings,
            num_frames=len(start.pixels),
            generator=generator,
            prompt_embeds=embeds,
        )
        return torch.cat(list(stretches)).float()

    return spent(pipeline.execution_device, enhance)
