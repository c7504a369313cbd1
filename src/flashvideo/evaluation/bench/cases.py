"""The phases of a run as both sides of a benchmark do them: same inputs, same weights.

`flashvideo.evaluation.bench.running` measures them; the reference is `flashvideo.evaluation.bench.plain`.

Shapes: F frames, H, W pixels; f, C, h, w of the latents; L text tokens, D channels of the text encoder.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flashvideo.evaluation.bench.plain import PlainModel, plain_chunks
from flashvideo.evaluation.cost import PhaseCost, run_cost
from flashvideo.pipelines.embeds import PromptEmbeds
from flashvideo.pipelines.footprint import ModelConfigs
from flashvideo.pipelines.memory import PHASES
from flashvideo.pipelines.sizes import enlarged_size
from flashvideo.pipelines.two_stage import FlashVideoPipeline
from flashvideo.shapes import latent_shape, pixels_per_token, vae_factors
from flashvideo.vae import DECODE_LATENT_FRAMES_PER_CHUNK, ENCODE_FRAMES_PER_CHUNK, time_chunks

WHOLE = "whole"
BENCH_PHASES = (*PHASES, WHOLE)
"""What can be measured, in order."""

PROMPT = "a striped red star spinning over grass"
_GUIDANCE_SCALE = 2.0  # of a step of a model that has no guidance of its own
_TIMESTEP = 500.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """One phase as both sides do it."""

    phase: str
    """One of `BENCH_PHASES`."""

    ours: Callable[[], Tensor]
    """Our computation."""

    reference: Callable[[], Tensor] | None
    """Theirs; None where it computes something else, so that the two cannot be compared."""

    costs: Mapping[str, PhaseCost]
    """What it costs by formula, by phase; of a whole run, of each of its phases."""

    note: str = ""
    """What the reference leaves out, or why there is none."""


def cases(
    pipeline: FlashVideoPipeline, size: tuple[int, int], num_frames: int, phases: Sequence[str]
) -> Iterator[Case]:
    """The phases as both sides do them, in order, each made when it is asked for.

    Yields:
        A case for each of the phases that the model has.

    Raises:
        ValueError: If the model cannot be measured so.
    """
    work = Workbench(pipeline, size, num_frames)
    makers: Mapping[str, Callable[[], Case | None]] = {
        "text": work.text,
        "stage1": functools.partial(work.step, 1),
        "stage1_decode": functools.partial(work.decode, 1),
        "stage2_encode": work.encode,
        "stage2": functools.partial(work.step, 2),
        "stage2_decode": functools.partial(work.decode, 2),
        WHOLE: work.whole,
    }
    for phase in BENCH_PHASES:
        case = makers[phase]() if phase in phases else None
        if case is not None:
            yield case


class Workbench:
    """Inputs of all phases, and what each side does with them.

    Args:
        pipeline: The model.
        size: Height and width of the video.
        num_frames: Its frames.

    Raises:
        ValueError: If the model has no Stage II, or the clip takes more than one window.
    """

    def __init__(self, pipeline: FlashVideoPipeline, size: tuple[int, int], num_frames: int) -> None:
        if pipeline.stage2_transformer is None:
            raise ValueError(
                f"bench measures models of two stages, but {pipeline.preset.name!r} has no Stage II; take another"
            )
        self.pipeline, self.size, self.num_frames = pipeline, size, num_frames
        preset = self.preset = pipeline.preset
        if num_frames > preset.stage1.num_frames:
            raise ValueError(
                f"bench measures one window of Stage II, at most {preset.stage1.num_frames} frames of this model, "
                f"got {num_frames}"
            )
        self.configs = ModelConfigs.of(pipeline)
        self.cost = functools.partial(
            run_cost, self.configs, height=size[0], width=size[1], num_frames=num_frames
        )
        whole = self.whole_cost = self.cost()
        assert whole.window is not None
        self.shapes = tuple(
            latent_shape(*clip, vae_config=pipeline.vae.config).as_tuple()
            for clip in (whole.preview, whole.window)
        )
        multiple = pixels_per_token(pipeline.vae.config, pipeline.stage1_transformer.config.patch_size)
        self.enlarged = enlarged_size(whole.preview[1:], size, preset=preset, multiple=multiple)
        self.plain = PlainModel(pipeline)
        self.device, self.dtype = pipeline.vae.device, pipeline.vae.dtype
        self._generator = torch.Generator().manual_seed(0)
        self.step_scales = tuple(
            stage.guidance_scale if stage.guidance_scale != 1 else _GUIDANCE_SCALE
            for stage in (preset.stage1, preset.stage2)
        )
        self.step_costs = self.cost(
            num_inference_steps=1,
            guidance_scale=self.step_scales[1],
            stage1_num_inference_steps=1,
            stage1_guidance_scale=self.step_scales[0],
            stage1_guidance_schedule="constant",
        ).phases
        self._embeds = self._texts()

    def text(self) -> Case | None:
        """One prompt for Stage I, from its tokens."""
        pipeline = self.pipeline
        if pipeline.text_encoder is None:
            return None
        token_ids = self._token_ids(self.preset.stage1.max_text_tokens, PROMPT)
        return Case(
            phase="text",
            ours=lambda: pipeline.stage1.run_phase("text", lambda _: pipeline.text_encoder(token_ids)[0]),
            reference=lambda: self.plain.encode_text(token_ids),
            costs={"text": self.cost(preview_only=True).phases["text"]},
            note="both sides are transformers' own class: how far their times are apart is the noise of measurement",
        )

    def step(self, stage: int) -> Case:
        """One step of a stage with guidance, without its sampler."""
        latents, text = self._noise(self.shapes[stage - 1]), self._embeds[stage - 1]
        pipeline = self.pipeline.stage1 if stage == 1 else self.pipeline.stage2
        theirs = self.plain.stage1 if stage == 1 else self.plain.stage2
        scale, timestep = self.step_scales[stage - 1], torch.tensor(_TIMESTEP, device=self.device)
        noise_step = None
        if pipeline.transformer.config.noise_step_embed:
            noise_step = self.preset.stage2.noise_step
        batch, text_at = self.plain.texts(stage, text, guided=True)
        theirs.prepare(latents, batch)
        return Case(
            phase=f"stage{stage}",
            ours=lambda: pipeline.predict_velocity(
                latents, text, timestep, guidance_scale=scale, noise_step=noise_step
            ),
            reference=lambda: theirs.guided(latents, batch, timestep, scale, text_at=text_at),
            costs={f"stage{stage}": self.step_costs[f"stage{stage}"]},
            note=self._spared([*theirs.left_out, *theirs.prepared]),
        )

    def decode(self, stage: int) -> Case:
        """Latents to pixels."""
        latents = self._noise(self.shapes[stage - 1])
        phase = f"stage{stage}_decode"
        if stage == 1:
            scale = self.preset.stage1.latent_scale
            ours = functools.partial(self.pipeline.stage1.decode_latents, latents)
        else:
            scale = self.preset.stage2.latent_scale
            _, spatial = vae_factors(self.pipeline.vae.config)
            height, width = (side * spatial for side in latents.shape[3:])
            ours = functools.partial(self.pipeline.stage2.decode_latents, latents, height, width)
        differs = self._other_chunks(phase)
        return Case(
            phase=phase,
            ours=ours,
            reference=None if differs else lambda: self.plain.decode(latents, scale),
            costs={phase: self.step_costs[phase]},
            note=differs,
        )

    def encode(self) -> Case:
        """A preview, where Stage I leaves it, to degraded latents of the enlarged video."""
        shape, preset, stage2 = self.shapes[1], self.preset, self.pipeline.stage2
        preview = self._noise((1, *self.whole_cost.preview[:1], 3, *self.whole_cost.preview[1:])).clamp(-1, 1)
        posterior_noise, noise = self._noise(shape), self._noise(shape)
        _, spatial = vae_factors(self.pipeline.vae.config)
        padded = (shape[3] * spatial, shape[4] * spatial)

        def ours() -> Tensor:
            pixels = stage2.prepare_pixels(preview, *self.enlarged)
            return stage2.prepare_latents(
                pixels, preset.stage2.noise_step, posterior_noise=posterior_noise, noise=noise
            )

        differs = self._other_chunks("stage2_encode")
        return Case(
            phase="stage2_encode",
            ours=ours,
            reference=None
            if differs
            else lambda: self.plain.encode(
                preview, self.enlarged, padded, posterior_noise=posterior_noise, noise=noise
            ),
            costs={"stage2_encode": self.step_costs["stage2_encode"]},
            note=differs,
        )

    def whole(self) -> Case:
        """A run with the model's own settings; from embeddings where there is no text encoder with its tokenizer."""
        pipeline, (height, width) = self.pipeline, self.size
        reads = self._reads_text
        embeds = PromptEmbeds(
            stage1=self._embeds[0],
            stage2=self._embeds[1],
            prompts=(PROMPT,),
            prompt_prefix="",
            model=self.preset.name,
            text_encoder="",
        )

        def ours() -> Tensor:
            result: Any = pipeline(
                PROMPT if reads else None,
                prompt_embeds=None if reads else embeds,
                height=height,
                width=width,
                num_frames=self.num_frames,
                consistency=False,
                generator=torch.Generator().manual_seed(0),
                output_type="pt",
            )
            frames: Tensor = result.frames
            return frames

        def reference() -> Tensor:
            _, spatial = vae_factors(pipeline.vae.config)
            return self.plain.run(
                self._texts(),
                (self.shapes[0], self.shapes[1]),
                self.enlarged,
                self.size,
                spatial,
                torch.Generator().manual_seed(0),
            ).cpu()

        costs = {phase: cost for phase, cost in self.whole_cost.phases.items() if reads or phase != "text"}
        left_out = self._spared([*self.plain.stage1.left_out, *self.plain.stage2.left_out])
        differs = self._other_chunks("stage2_decode") or self._other_chunks("stage2_encode")
        note = "; ".join(filter(None, (differs or left_out, "" if reads else "from embeddings")))
        return Case(phase=WHOLE, ours=ours, reference=None if differs else reference, costs=costs, note=note)

    def _other_chunks(self, phase: str) -> str:
        """Says where diffusers' VAE cuts a clip of these frames otherwise than ours; empty where it does not."""
        is_decode = phase.endswith("decode")
        count = self.shapes[1][1] if is_decode else self.num_frames
        per_chunk = DECODE_LATENT_FRAMES_PER_CHUNK if is_decode else ENCODE_FRAMES_PER_CHUNK
        ours = [chunk.stop - chunk.start for chunk in time_chunks(count, per_chunk)]
        theirs = plain_chunks(count, per_chunk)
        # Ours repeats the last of an even number of latent frames, where diffusers makes frames that are not there.
        if ours == theirs and not (is_decode and count % 2 == 0):
            return ""
        what = "latent frames" if is_decode else "frames"
        return (
            f"cannot be compared, since diffusers takes {count} {what} in chunks of {', '.join(map(str, theirs))}, "
            "and so makes something else"
        )

    @property
    def _reads_text(self) -> bool:
        return self.pipeline.text_encoder is not None and self.pipeline.tokenizer is not None

    def _texts(self) -> tuple[Tensor, Tensor]:
        """Embeddings (1, L, D) of both stages, by the reference; random ones without an encoder and its tokenizer."""
        prefix = self.preset.stage2.prompt_prefix
        lengths = (self.preset.stage1.max_text_tokens, self.preset.stage2.max_text_tokens)
        if self._reads_text:
            one, other = (
                self.plain.encode_text(self._token_ids(length, prompt)).to(self.dtype)
                for length, prompt in zip(lengths, (PROMPT, prefix + PROMPT), strict=True)
            )
            return one, other
        generator = torch.Generator().manual_seed(1)
        width = self.pipeline.stage1_transformer.config.text_embed_dim
        one, other = (
            torch.randn(1, length, width, generator=generator).to(self.device, self.dtype)
            for length in lengths
        )
        return one, other

    def _token_ids(self, length: int, prompt: str) -> Tensor:
        tokenizer = self.pipeline.tokenizer
        if tokenizer is None:
            return torch.zeros(1, length, dtype=torch.long, device=self.device)
        tokens = tokenizer(
            [prompt], padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        return tokens.input_ids.to(self.device)

    def _noise(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(*shape, generator=self._generator).to(self.device)

    @staticmethod
    def _spared(parts: Sequence[str]) -> str:
        names = ", ".join(dict.fromkeys(parts))
        return f"the reference is spared the work of {names}" if names else ""
