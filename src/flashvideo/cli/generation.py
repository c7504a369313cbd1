"""The work of `flashvideo generate`, once the request is checked and the model is loaded.

Shapes: F frames of H x W pixels in [-1, 1].
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from flashvideo.cli.arguments import DEFAULT_MODEL
from flashvideo.cli.files import LATENTS_SUFFIX
from flashvideo.cli.messages import StepProgress, progress_is_shown
from flashvideo.cli.metadata import two_stage_metadata
from flashvideo.cli.model import count_windows
from flashvideo.cli.results import Phases, Result, describe_clip

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from flashvideo.cli.refinement import Refinement
    from flashvideo.pipelines.embeds import PromptEmbeds
    from flashvideo.pipelines.outputs import FlashVideoPipelineOutput
    from flashvideo.pipelines.preview import PreviewState
    from flashvideo.pipelines.two_stage import FlashVideoPipeline

KEPT_OPTIONS: Mapping[str, Any] = MappingProxyType(
    {
        "model": DEFAULT_MODEL,
        "revision": None,
        "text_encoder": None,
        "stage1": None,
        "device": "auto",
        "dtype": "auto",
        "vram": None,
        "weights": "full",
        "detail_steps": None,
        "detail_guidance": None,
        "noise_step": None,
        "shift": None,
        "motion_prefix": None,
        "text_cache": None,
        "threads": None,
    }
)
"""Options, with their defaults, that matter after the preview too."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Generation:
    """A checked request with the model loaded."""

    arguments: argparse.Namespace
    """What was asked for."""

    pipeline: FlashVideoPipeline
    """The model."""

    source: PreviewState | torch.Tensor | None
    """The preview to continue from: with its latents, as pixels (B, F, 3, H, W), or none."""

    size: tuple[int, int] | None
    """Height and width of the video; None for the model's own, or the one that the preview is for."""

    seed: int | None
    """Seed of this run; None where a preview's own randomness goes on."""

    frame_rate: Fraction
    """Frames per second of the video."""

    phases: Phases
    """Time taken so far."""

    prompt: str | None
    """The prompt of this command, refined if that was asked for; None if the preview's applies."""

    refinement: Refinement | None
    """How the prompt was refined, if it was."""

    embeds: PromptEmbeds | None
    """Embeddings of the prompt, or of the preview's; None if they are still to be made."""

    is_last: bool = True
    """Whether nothing else is made with the model, so that its networks may go once they have done their part."""

    def make_video(self, preview_path: Path | None) -> Result:
        """Makes and writes the preview, if there is none yet, and the video, if it is wanted."""
        from flashvideo.video import write_video

        source, data = self.source, {}
        if source is None:
            assert self.seed is not None
            preview, frames = self.make_preview(self.seed)
            source = preview
            if preview_path is not None:
                with self.phases("write"):
                    self.write_preview(preview_path, preview, frames)
                data = {
                    "preview": str(preview_path),
                    "latents": str(preview_path.with_suffix(LATENTS_SUFFIX)),
                }
            if self.arguments.preview_only:
                assert preview_path is not None
                return self.preview_result(data, preview_path, preview, frames)
            if self.is_last:
                self.pipeline.give_up("stage1_transformer")
        output = self.make_detail(source)
        frames = cast("torch.Tensor", output.frames)[0]
        with self.phases("write"):
            note = self.metadata(output.preview, tuple(frames.shape))
            write_video(self.arguments.output, frames, frame_rate=self.frame_rate, metadata=note)
        clip = describe_clip(frames.shape[0], frames.shape[2], frames.shape[3], self.frame_rate)
        lines = [f"wrote {data['preview']} (the preview)"] if data else []
        lines += [f"wrote {self.arguments.output}: {clip}, seed {note['seed']}", self.phases.as_text()]
        data = {"output": str(self.arguments.output), **data, **self.facts(note)}
        return Result(data=data, text="\n".join(lines))

    def make_candidates(self, paths: list[Path]) -> Result:
        """Makes previews with consecutive seeds, each a file, and a contact sheet of them."""
        from flashvideo.video import save_image

        *video_paths, sheet_path = paths
        assert self.seed is not None
        candidates, clips, lines = [], [], []
        for i, path in enumerate(video_paths):
            preview, frames = self.make_preview(self.seed + i, label=f"preview {i + 1}/{len(video_paths)}")
            with self.phases("write"):
                self.write_preview(path, preview, frames)
            clips.append(frames)
            latents = str(path.with_suffix(LATENTS_SUFFIX))
            candidates.append({"preview": str(path), "latents": latents, "seed": self.seed + i})
            lines.append(f"wrote {path}, seed {self.seed + i}")
        with self.phases("write"):
            save_image(sheet_path, candidate_sheet(clips))
        lines += [
            f"wrote {sheet_path}: a row per preview, its first, middle and last frame",
            f"to continue from one of them: {self.continue_command(video_paths[0])}",
            self.phases.as_text(),
        ]
        data = {
            "candidates": candidates,
            "contact_sheet": str(sheet_path),
            "prompt": self.prompt,
            **({} if self.refinement is None else {"original_prompt": self.refinement.original}),
            "seconds": self.phases.as_data(),
        }
        return Result(data=data, text="\n".join(lines))

    def make_preview(self, seed: int, label: str = "preview") -> tuple[PreviewState, torch.Tensor]:
        """Runs Stage I; returns what it takes to continue, and the frames (F, 3, H, W)."""
        import torch

        arguments = self.arguments
        steps = arguments.steps or self.pipeline.preset.stage1.num_inference_steps
        shown = progress_is_shown(arguments.progress)
        with self.phases("preview"), StepProgress(label, steps, shown=shown) as progress:
            output: FlashVideoPipelineOutput = self.pipeline(  # type: ignore[assignment]  # not a tuple by default
                **self.text(self.prompt),
                **self.detail_settings(),  # checked now, although they are used later
                num_frames=arguments.frames,
                stage1_num_inference_steps=arguments.steps,
                stage1_guidance_scale=arguments.guidance,
                generator=torch.Generator().manual_seed(seed),
                preview_only=True,
                output_type="pt",
                stage1_callback_on_step_end=progress,
            )
        assert output.preview is not None
        preview = output.preview
        if self.refinement is not None:
            settings = self.refinement.note_in(preview.settings)
            preview = dataclasses.replace(preview, settings=settings)
        return preview, cast("torch.Tensor", output.preview_frames)[0]

    def make_detail(self, source: PreviewState | torch.Tensor) -> FlashVideoPipelineOutput:
        """Runs Stage II on a preview."""
        import torch

        prompt = self.prompt if self.source is not None else None
        generator = None  # the preview's own
        if self.source is not None and self.seed is not None:
            generator = torch.Generator().manual_seed(self.seed)
        settings = self.detail_settings()
        steps = settings["num_inference_steps"] or self.pipeline.preset.stage2.num_inference_steps
        windows = count_windows(self.pipeline, preview_shape(source)[0])
        shown = progress_is_shown(self.arguments.progress)
        with self.phases("detail"), StepProgress("detail", windows * steps, shown=shown) as progress:
            output: FlashVideoPipelineOutput = self.pipeline(  # type: ignore[assignment]  # not a tuple by default
                **self.text(prompt),
                **settings,
                preview=source,
                generator=generator,
                output_type="pt",
                callback_on_step_end=progress,
            )
        return output

    def text(self, prompt: str | None) -> dict[str, Any]:
        """Returns the pipeline's arguments for the text: a prompt, or its embeddings where they are there already."""
        if self.embeds is not None:
            return {"prompt_embeds": self.embeds}
        return {"prompt": prompt, "prompt_prefix": self.arguments.motion_prefix}

    def detail_settings(self) -> dict[str, Any]:
        """Returns the pipeline's arguments for Stage II, None where the model's own apply."""
        arguments = self.arguments
        height, width = self.size or (None, None)
        continues = arguments.from_preview is not None
        return {
            "height": height,
            "width": width,
            "num_inference_steps": arguments.detail_steps or (arguments.steps if continues else None),
            "guidance_scale": arguments.detail_guidance or (arguments.guidance if continues else None),
            "noise_step": arguments.noise_step,
            "shift": arguments.shift,
            "consistency": arguments.consistency,
            "reference_rounding": arguments.reference_rounding,
        }

    def write_preview(self, path: Path, preview: PreviewState, frames: torch.Tensor) -> None:
        """Writes a preview's video and latents: both or neither."""
        from flashvideo.pipelines.preview import save_preview
        from flashvideo.video import write_video

        latents = save_preview(path.with_suffix(LATENTS_SUFFIX), preview)
        try:
            write_video(path, frames, frame_rate=self.frame_rate, metadata=self.metadata(preview, None))
        except BaseException:
            latents.unlink(missing_ok=True)
            raise

    def metadata(self, preview: PreviewState | None, shape: tuple[int, ...] | None) -> dict[str, Any]:
        """Returns what a file says about its making.

        Args:
            preview: The preview with its settings, if it is known.
            shape: (F, 3, H, W) of the final video; None for the preview's own file.
        """
        enlarged, source = None, preview if preview is not None else self.source
        if shape is not None and source is not None:
            enlarged = self.pipeline.enlarged_size(preview_shape(source)[1:], (shape[2], shape[3]))
        return two_stage_metadata(
            self.pipeline,
            preview=preview,
            shape=shape,
            enlarged=enlarged,
            detail={**self.detail_settings(), "prompt_prefix": self.arguments.motion_prefix},
            model=self.arguments.model,
            stage1=self.arguments.stage1,
            prompt=self.prompt,
            refinement=self.refinement,
            seed=self.seed if shape is not None or preview is None else preview.settings.seed,
            with_prompt=self.arguments.prompt_metadata,
        )

    def expected_metadata(self) -> dict[str, Any]:
        """Returns what the video of a prompt will say about its making, before it is made."""
        import torch

        from flashvideo.pipelines.preview import PreviewState

        assert self.prompt is not None
        assert self.seed is not None
        pipeline, (height, width) = self.pipeline, self.size or (None, None)
        shape, final = pipeline.resolve_sizes(
            None, num_frames=self.arguments.frames, height=height, width=width
        )
        settings = pipeline.preview_settings(
            self.prompt,
            shape,
            final=final,
            seed=self.seed,
            num_inference_steps=self.arguments.steps,
            guidance_scale=self.arguments.guidance,
        )
        nothing = torch.empty(0)
        preview = PreviewState(
            latents=nothing, generator_state=nothing, generator_device="cpu", settings=settings
        )
        return self.metadata(preview, (shape[0], 3, *final))

    def facts(self, note: dict[str, Any]) -> dict[str, Any]:
        """Returns what `--json` says about a run: what the file says, and the time it took."""
        original = {} if self.refinement is None else {"original_prompt": self.refinement.original}
        return {
            **note,
            "prompt": self.prompt or note.get("prompt"),
            **original,
            "frame_rate": float(self.frame_rate),
            "seconds": self.phases.as_data(),
        }

    def preview_result(
        self, data: dict[str, Any], path: Path, preview: PreviewState, frames: torch.Tensor
    ) -> Result:
        """Returns the outcome of `--preview-only`, with the command that continues."""
        num_frames, _, height, width = frames.shape
        lines = [
            f"wrote {path}: {describe_clip(num_frames, height, width, self.frame_rate)}, seed {self.seed}",
            f"to continue: {self.continue_command(path)}",
            self.phases.as_text(),
        ]
        return Result(data={**data, **self.facts(self.metadata(preview, None))}, text="\n".join(lines))

    def continue_command(self, preview: Path) -> str:
        """Returns the command that makes the video from a preview."""
        arguments = self.arguments
        output = arguments.output if arguments.output not in (None, preview) else "OUT.mp4"
        words = ["flashvideo", "generate", "--from-preview", str(preview), "-o", str(output)]
        for name, default in KEPT_OPTIONS.items():
            if (value := getattr(arguments, name)) != default:
                words += ["--" + name.replace("_", "-"), str(value)]
        if arguments.consistency is not None:
            words.append("--consistency" if arguments.consistency else "--no-consistency")
        if arguments.reference_rounding:
            words.append("--reference-rounding")
        if not arguments.prompt_metadata:
            words.append("--no-prompt-metadata")
        return shlex.join(words)


def preview_shape(source: PreviewState | torch.Tensor) -> tuple[int, int, int]:
    """Returns frames, height and width of a preview with its latents, or of its pixels (B, F, 3, H, W)."""
    from flashvideo.pipelines.preview import PreviewState

    if isinstance(source, PreviewState):
        return source.settings.num_frames, source.settings.height, source.settings.width
    return source.shape[1], source.shape[3], source.shape[4]


def candidate_sheet(clips: list[torch.Tensor]) -> Image.Image:
    """Lays out the first, middle and last frame of each clip (F, 3, H, W), a numbered row per clip."""
    import torch
    from PIL import ImageDraw

    from flashvideo.video import contact_sheet

    height = clips[0].shape[-2]
    frames = torch.stack([clip[i] for clip in clips for i in (0, len(clip) // 2, -1)])
    sheet = contact_sheet(frames.cpu(), columns=3)
    draw = ImageDraw.Draw(sheet)
    for row in range(len(clips)):
        draw.text((4, row * height + 4), str(row + 1), fill="white", stroke_fill="black", stroke_width=1)
    return sheet
