"""Stage II training: flow matching from degraded low resolution to high resolution (paper section 3.2).

    z_hq = Encode(x),  z_lq = DEG_latent(Encode(DEG_pixel(x))),  z_t = (1 - t) z_lq + t z_hq,  v = z_hq - z_lq

Shapes: pixels (B, F, 3, H, W) in [-1, 1], latents (B, f, C, h, w), text (B, L, D).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn
from torch.utils.data import Dataset

from flashvideo.data.clips.files import ClipFile
from flashvideo.degradations.latent import degrade_latents
from flashvideo.flow import (
    euler,
    flow_matching_loss,
    guided_velocity,
    interpolate,
    network_timestep,
    path_end,
    shift_time,
    time_grid,
    velocity,
)
from flashvideo.models.initialization import init_for_training
from flashvideo.models.transformer import FlashVideoTransformer3DModel
from flashvideo.shapes import latent_shape, vae_factors
from flashvideo.text import encode_prompts, unconditional_like, with_prefix
from flashvideo.training.clip_data import StepClips
from flashvideo.training.draws import Draws, sample_seed
from flashvideo.training.latent_pairs import LatentPairs
from flashvideo.training.lora import add_lora, save_lora
from flashvideo.training.precomputed import step_latents
from flashvideo.training.precomputed_description import describe_models
from flashvideo.training.samples import clips_to_watch, crops_of_phase, own_samples
from flashvideo.training.stage_recipes import Stage2Phase, Stage2Recipe
from flashvideo.training.starts import at_work, compile_blocks, freeze, stage2_start
from flashvideo.training.vae import contrast_distance, held_out_clips
from flashvideo.training.watch import collapse_warnings, score, watch
from flashvideo.training.world import CaptionedCrops
from flashvideo.vae import decode_latents
from flashvideo.vae.layers import THRIFTS
from flashvideo.video import resize_video


def path_loss(
    network: nn.Module,
    ends: tuple[Tensor, Tensor],
    text: Tensor,
    t: Tensor,
    noise_step: Tensor,
    phase: Stage2Phase,
) -> Tensor:
    """The flow-matching loss at times t (B,) of paths between latents (z_lq, z_hq), and a phase's further terms."""
    z_lq, z_hq = ends
    x = interpolate(z_lq, z_hq, t)
    v = network(x, text, network_timestep(t), noise_step=noise_step).sample
    loss = flow_matching_loss(v, z_lq, z_hq)
    clean = path_end(x, v.float(), t)
    has_time = clean.shape[1] > 1
    if phase.contrast_weight:
        loss = loss + phase.contrast_weight * contrast_distance(clean, z_hq)
    if phase.still_contrast_weight and has_time:
        means = clean.mean(dim=1, keepdim=True), z_hq.mean(dim=1, keepdim=True)
        loss = loss + phase.still_contrast_weight * contrast_distance(*means)
    if phase.difference_weight and has_time:
        loss = loss + phase.difference_weight * (clean - z_hq).diff(dim=1).abs().mean()
    return loss


class Stage2Task:
    """The Stage II transformer, or an adapter on it; VAE and text encoder are frozen."""

    def __init__(self, recipe: Stage2Recipe, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        torch.manual_seed(recipe.seed)
        start = stage2_start(recipe, device)
        self.transformer, self.vae = start.transformer, start.vae
        self.tokenizer, self.text_encoder = start.tokenizer, start.text_encoder
        self.scale = float(self.vae.config.scaling_factor)
        self.thrift = THRIFTS[0] if recipe.vae_strips else None
        self.pairs = LatentPairs(self.vae, recipe.pixel_degradation(), thrift=self.thrift)
        for module in filter(None, (self.vae, self.text_encoder)):
            # What was computed before has no work for them but at validations.
            freeze(module, torch.device("cpu") if recipe.precomputed else device)
        self._check_shapes()
        self.step_clips: StepClips | None = None
        self._captions: dict[ClipFile, str] = {}  # of phases made so far
        # Procedural ones are rendered when they are first looked at; of one's own it shows now whether there are any.
        self.watched = self._clips_to_watch() if recipe.data else []
        if not recipe.start:
            init_for_training(self.transformer, *self._examples())
            # Until the first text arrives, a prompt has no effect rather than a random one.
            nn.init.zeros_(self.transformer.patch_embed.text_proj.weight)
        if recipe.lora is not None:
            add_lora(self.transformer, recipe.lora)
        self.modules = nn.ModuleDict({"transformer": self.transformer}).to(device).train()
        if recipe.compile:
            compile_blocks(self.transformer)

    def _check_shapes(self) -> None:
        """Refuses sizes that VAE and transformer cannot take, before any work."""
        recipe, patch_size = self.recipe, self.transformer.config.patch_size
        shapes = [shape for phase in recipe.phases for shape in phase.shapes()]
        for frames, height, width in (*shapes, (recipe.watch_frames, *recipe.size)):
            latent_shape(frames, height, width, vae_config=self.vae.config, patch_size=patch_size)

    def _clips_to_watch(self) -> list[tuple[Tensor, str]]:
        """Held-out clips at full size with their captions; of the procedural world half are dead leaves, without."""
        recipe, count = self.recipe, self.recipe.watch_clips
        height, width = recipe.size
        if recipe.data is None:
            kinds = ((count + 1) // 2, False), (count // 2, True)
            return [
                (clip[: recipe.watch_frames].clone(), "")
                for number, natural in kinds
                for clip in (
                    held_out_clips(number, height=height, width=width, natural=natural) if number else ()
                )
            ]
        return clips_to_watch(recipe, vae_factors(self.vae.config)[0])

    @torch.no_grad()
    def _examples(self, count: int = 48) -> tuple[Tensor, Tensor]:
        """Points on paths of the first phase and their velocities: what a new transformer starts from."""
        phase = dataclasses.replace(self.recipe.phases[0], times_per_clip=1)
        dataset = (
            CaptionedCrops(sample_seed(self.recipe.seed, 32), phase, self.recipe.size)
            if self.recipe.data is None
            else self.dataset(0, count)
        )
        points, velocities = [], []
        for i in range(count):
            draws = Draws(sample_seed(self.recipe.seed, 33), 0, (i,), count, self.device)
            z_hq, z_lq = self._pair(dataset[0, i][0][None].to(self.device), phase, draws)
            z_lq, t, _ = self._draw(z_lq, phase, draws)
            points.append(interpolate(z_lq, z_hq, t).cpu())
            velocities.append(velocity(z_lq, z_hq).cpu())
        return torch.cat(points), torch.cat(velocities)

    @functools.cached_property
    def _models(self) -> dict[str, Any]:
        """What latents and embeddings that were computed before must have been made by."""
        return describe_models(
            self.recipe,
            vae=self.vae,
            text_encoder=self.text_encoder,
            max_text_tokens=int(self.transformer.config.max_text_seq_length),
        )

    def dataset(self, phase_index: int, clips_per_step: int) -> Dataset:
        """Clean crops or clips of a phase, and their captions."""
        recipe = self.recipe
        if recipe.data is None:
            return crops_of_phase(recipe, phase_index)
        if recipe.precomputed:
            return step_latents(
                recipe,
                phase_index,
                clips_per_step,
                models=self._models,
                has_text=self.text_encoder is not None,
                captions=self._captions,
                temporal=vae_factors(self.vae.config)[0],
                text_channels=int(self.transformer.config.text_embed_dim),
            )
        temporal = vae_factors(self.vae.config)[0]
        self.step_clips = own_samples(recipe, phase_index, clips_per_step, temporal)
        return self.step_clips

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings (B, L, D); zeros where a prompt is empty or there is no text encoder."""
        config = self.transformer.config
        length = int(config.max_text_seq_length)
        if self.text_encoder is None or self.tokenizer is None:
            return torch.zeros(len(prompts), length, config.text_embed_dim, device=self.device)
        texts = [with_prefix(prompt, self.recipe.prompt_prefix) for prompt in prompts]
        text = encode_prompts(texts, self.tokenizer, self.text_encoder, max_text_tokens=length)
        given = torch.tensor([bool(p) for p in prompts], device=self.device)
        return text.float() * given[:, None, None]

    def _pair(self, clips: Tensor, phase: Stage2Phase, draws: Draws) -> tuple[Tensor, Tensor]:
        """(z_hq, z_lq before latent degradation) of clips, or of both as they were computed once."""
        if self.recipe.precomputed:
            z_hq, z_lq = clips.float().unbind(1)
            return z_hq, z_lq
        return self.pairs(clips, phase, draws)

    def _draw(self, z_lq: Tensor, phase: Stage2Phase, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """Latents degraded `times_per_clip` times, and for each sample a time and the noise step."""
        repeat = phase.times_per_clip
        low, high = phase.noise_range(1 + (z_lq.shape[1] - 1) * vae_factors(self.vae.config)[0])
        noise_step = (low + ((high - low + 1) * draws.stratified(repeat=repeat)).long()).clamp(max=high)
        noise = draws.normal(z_lq.shape[1:], repeat=repeat)
        z_lq = degrade_latents(z_lq.repeat(repeat, 1, 1, 1, 1), noise_step, noise=noise)
        return z_lq, shift_time(draws.stratified(repeat=repeat), self.recipe.shift), noise_step

    def loss(self, batch: Sequence[Any], phase_index: int, draws: Draws) -> tuple[Tensor, dict[str, float]]:
        """Flow-matching loss, each encoded pair at several times."""
        pixels, prompts, *notes = batch
        if notes and self.step_clips is not None:
            self.step_clips.record(notes[0])
        phase = self.recipe.phases[phase_index]
        repeat = phase.times_per_clip
        z_hq, z_lq = self._pair(pixels.to(self.device), phase, draws)
        z_lq, t, noise_step = self._draw(z_lq, phase, draws)
        z_hq = z_hq.repeat(repeat, 1, 1, 1, 1)
        text = prompts.to(self.device) if isinstance(prompts, Tensor) else self.encode_text(list(prompts))
        text = text.repeat(repeat, 1, 1)
        keep = draws.uniform(repeat=repeat) >= phase.text_dropout
        text = text * keep[:, None, None]
        return path_loss(self.transformer, (z_lq, z_hq), text, t, noise_step, phase), {}

    @torch.no_grad()
    def enhance(
        self,
        low: Tensor,
        prompts: Sequence[str],
        *,
        steps: Sequence[int],
        noise_step: int,
        guidance: float = 1.0,
        seed: int = 0,
    ) -> list[Tensor]:
        """Small clips (B, F, 3, h, w) to `scale` times the size by the bare equations, for each number of steps."""
        generator = torch.Generator(self.device).manual_seed(seed)
        height, width = (s * self.recipe.scale for s in low.shape[-2:])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.bf16):
            z = self.pairs.encode(resize_video(low.to(self.device), height, width))
            text = self.encode_text(prompts)
            z = degrade_latents(z, noise_step, generator)
            step = torch.full((len(low),), noise_step, device=self.device)

            def predict(x: Tensor, t: Tensor) -> Tensor:
                times = network_timestep(t).expand(len(x)).to(self.device)

                def of(text: Tensor) -> Tensor:
                    return self.transformer(x, text, times, noise_step=step).sample.float()

                if guidance == 1:
                    return of(text)
                return guided_velocity(of(text), of(unconditional_like(text)), guidance)

            ends = (euler(predict, z, time_grid(n, self.recipe.shift)) for n in steps)
            return [
                decode_latents(self.vae, end, scale=self.scale, clamp=True, thrift=self.thrift).float()
                for end in ends
            ]

    @torch.no_grad()
    def validate(self, folder: Path) -> dict[str, float]:
        """The watch list at full size, see `flashvideo.training.watch`.

        Args:
            folder: Gets the sheet.
        """
        recipe = self.recipe
        self.watched = self.watched or self._clips_to_watch()

        def enhance(low: Tensor, caption: str, steps: Sequence[int]) -> list[Tensor]:
            results = self.enhance(
                low[None],
                [caption],
                steps=steps,
                noise_step=recipe.noise_step_to_watch(len(low)),
                guidance=recipe.watch_guidance,
            )
            return [result[0].cpu() for result in results]

        with at_work(self.device, self.vae, self.text_encoder):
            return watch(self.watched, enhance, scale=recipe.scale, sheet=folder / "validation.png")

    def score(self, values: Mapping[str, float]) -> float:
        """How good weights with such figures are, see `flashvideo.training.watch.score`."""
        return score(values)

    def warnings(self, values: Mapping[str, float], history: Sequence[Mapping[str, float]]) -> list[str]:
        """What looks like a collapse in the newest figures, in sentences; `history` are those before."""
        return collapse_warnings(values, history)

    def save(self, folder: Path, modules: nn.ModuleDict | None = None) -> None:
        """Write the adapter alone, or transformer and scheduler folders.

        Args:
            folder: Where to.
            modules: What to write instead of the task's own modules.
        """
        transformer = (self.modules if modules is None else modules)["transformer"]
        assert isinstance(transformer, FlashVideoTransformer3DModel)
        if self.recipe.lora is not None:
            save_lora(transformer, folder)
            return
        transformer.save_pretrained(folder / "stage2_transformer")
        FlowMatchEulerDiscreteScheduler(shift=self.recipe.shift).save_pretrained(folder / "stage2_scheduler")
