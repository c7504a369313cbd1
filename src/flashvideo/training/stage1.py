"""Stage I training: v-prediction with zero-terminal SNR, of a new model, an own one or CogVideoX (paper section 3.1).

The loss is the plain mean squared error of v. CogVideoX's public training code weighs that of the clean latents by
1 / (1 - alpha_bar), which is the same, since x0 = a x - sqrt(1 - a^2) v.

"No text" is zeros, which sampling is guided against here. So it is in CogVideoX's own code (`sat`): it multiplies the
embedding of one sample in ten by zero (`ucg_rate: 0.1` of the public configs) and guides against zeros. diffusers does
otherwise: its CogVideoX pipeline guides against the encoding of "", and its example of a LoRA training drops no text.

Shapes: pixels (B, F, 3, H, W), latents (B, f, C, h, w), text (B, L, D). Equations: `flashvideo.schedule`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate
from transformers import T5EncoderModel

from flashvideo.data.captions import full_caption
from flashvideo.data.clips.files import ClipFile
from flashvideo.data.shapes_world import NUM_FRAMES
from flashvideo.evaluation.readers import agreement, read_clip
from flashvideo.models.initialization import init_for_training
from flashvideo.models.transformer import FlashVideoTransformer3DModel
from flashvideo.schedule import add_noise, velocity_target, velocity_towards
from flashvideo.text import encode_prompts
from flashvideo.training.clip_data import StepClips
from flashvideo.training.draws import Draws, sample_seed
from flashvideo.training.lora import add_lora, save_lora
from flashvideo.training.pool import build_pool, load_pool
from flashvideo.training.precomputed import step_latents
from flashvideo.training.precomputed_description import describe_models
from flashvideo.training.previews import Previews
from flashvideo.training.rollout import nearest_visited, roll_out, visited_table
from flashvideo.training.samples import clips_to_watch, own_samples
from flashvideo.training.stage_recipes import Stage1Phase, Stage1Recipe
from flashvideo.training.starts import (
    at_work,
    compile_blocks,
    freeze,
    stage1_start,
    start_preset,
    trains_text,
)
from flashvideo.training.task import fallen
from flashvideo.training.world import PoolClips, held_out_scenes
from flashvideo.vae import encode_pixels
from flashvideo.vae.layers import THRIFTS
from flashvideo.video import contact_sheet, save_image

ATTRIBUTES = ("color", "shape", "motion", "background")
"""What readers look for in previews of the procedural world."""


def noisy_timesteps(u: Tensor, density: float) -> Tensor:
    """Training timesteps k = 999 (1 - u^p) for u in [0, 1), (B,); p = 1 is uniform, larger is noisier. Int64."""
    return (999 * (1 - u**density)).round().long()


def draw_timesteps(draws: Draws, density: float, sampler_steps: int) -> Tensor:
    """A step's training timesteps (B,), of a sampler's alone unless `sampler_steps` is 0."""
    return nearest_visited(noisy_timesteps(draws.stratified(), density), sampler_steps)


def keyframes(num_frames: int, phase: Stage1Phase, generator: torch.Generator) -> Tensor | None:
    """Positions of the latent frames that a step trains on, in order; None for all."""
    if not phase.keyframes:
        return None
    order = torch.randperm(num_frames, generator=generator)
    # A picture, where lengths alternate, has no two ends.
    if num_frames > 1 and phase.ends and float(torch.rand((), generator=generator)) < phase.ends:
        order = torch.tensor((0, num_frames - 1))
    return order[: phase.keyframes].sort().values


class Stage1Task:
    """The Stage I transformer, or an adapter on it, and where it is trained too its text encoder."""

    def __init__(self, recipe: Stage1Recipe, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        torch.manual_seed(recipe.seed)
        start = stage1_start(recipe, device)
        assert start.tokenizer is not None
        assert start.text_encoder is not None
        self.transformer, self.vae, self.preset = start.transformer, start.vae, start.preset
        self.tokenizer, self.text_encoder = start.tokenizer, start.text_encoder
        self.scheduler = start.scheduler
        self.tables: dict[int, Tensor] = {}
        self.thrift = THRIFTS[0] if recipe.vae_strips else None
        # What was computed before has no work for VAE and text encoder but at validations.
        resting = torch.device("cpu") if recipe.precomputed else device
        freeze(self.vae, resting)
        if recipe.lora is not None:
            add_lora(self.transformer, recipe.lora)
        self.modules = nn.ModuleDict({"transformer": self.transformer})
        self.trains_text = trains_text(recipe)
        if self.trains_text:
            self.modules["text_encoder"] = self.text_encoder
        else:
            freeze(self.text_encoder, resting)
        self.modules.to(device).train()
        self.max_text_tokens = int(self.transformer.config.max_text_seq_length)
        self.temporal = int(self.vae.config.temporal_compression_ratio)
        self.step_clips: StepClips | None = None
        self._captions: dict[ClipFile, str] = {}  # of phases made so far
        self.pools: dict[int, Tensor] = {}
        self.watched: list[tuple[Tensor, str]] = []
        if recipe.data is None:
            self.pools = {frames: self._pool(frames, count) for frames, count in recipe.clips.items()}
        else:
            self.watched = clips_to_watch(recipe, self.temporal)
        if not recipe.start:
            init_for_training(self.transformer, *self._examples())
        if recipe.compile:
            compile_blocks(self.transformer)
        self.previews = Previews(
            self.transformer,
            self.vae,
            self.scheduler,
            self.encode,
            size=recipe.size,
            bf16=recipe.bf16,
            thrift=self.thrift,
        )

    def _pool(self, frames: int, count: int) -> Tensor:
        """Encoded clips of one length, made if they are not there yet."""
        recipe = self.recipe
        folder = Path(recipe.output) / "pool" / str(frames)
        build_pool(
            folder,
            self.vae,
            seed=sample_seed(recipe.seed, frames),
            count=count,
            frames=frames,
            size=recipe.size,
            emphasis=recipe.emphasis,
            spread=recipe.spread,
            bf16=recipe.bf16,
        )
        return load_pool(folder, count)

    def _examples(self, count: int = 512) -> tuple[Tensor, Tensor]:
        """Noisy latents of single frames and their v: what a new transformer starts from."""
        generator = torch.Generator().manual_seed(self.recipe.seed)
        clips = max(self.pools.values(), key=len)[:count]
        frame = torch.randint(0, clips.shape[1], (len(clips),), generator=generator)
        latents = clips[torch.arange(len(clips)), frame].unsqueeze(1).float()
        u = torch.rand(len(clips), generator=generator)
        timesteps = noisy_timesteps(u, self.recipe.phases[0].density)
        a = self.scheduler.table[timesteps]
        noise = torch.randn(latents.shape, generator=generator)
        return add_noise(latents, noise, a), velocity_target(latents, noise, a)

    @functools.cached_property
    def _models(self) -> dict[str, Any]:
        """What latents and embeddings that were computed before must have been made by."""
        return describe_models(
            self.recipe,
            vae=self.vae,
            text_encoder=None if self.trains_text else self.text_encoder,
            max_text_tokens=int(self.transformer.config.max_text_seq_length),
        )

    def dataset(self, phase_index: int, clips_per_step: int) -> Dataset:
        """What a phase is trained on: encoded procedural clips, or pixels of one's own."""
        recipe = self.recipe
        if recipe.data is None:
            return PoolClips(self.pools, recipe, phase_index, clips_per_step, self.temporal)
        if recipe.precomputed:
            return step_latents(
                recipe,
                phase_index,
                clips_per_step,
                models=self._models,
                has_text=self.text_encoder is not None,
                captions=self._captions,
                temporal=self.temporal,
                text_channels=int(self.transformer.config.text_embed_dim),
            )
        self.step_clips = own_samples(recipe, phase_index, clips_per_step, self.temporal)
        return self.step_clips

    def _levels(self, sampler_steps: int) -> Tensor:
        """a by timestep (1000,), on the device."""
        if sampler_steps not in self.tables:
            self.tables[sampler_steps] = visited_table(self.scheduler, sampler_steps).to(self.device)
        return self.tables[sampler_steps]

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Text embeddings (B, L, D) of prompts."""
        return encode_prompts(
            prompts, self.tokenizer, self.text_encoder, max_text_tokens=self.max_text_tokens
        )

    @torch.no_grad()
    def _latents(self, pixels: Tensor) -> Tensor:
        """The posterior's means of clips (B, F, 3, H, W)."""
        scale = float(self.vae.config.scaling_factor)
        return encode_pixels(self.vae, pixels.to(self.device), scale=scale, thrift=self.thrift).float()

    def loss(self, batch: Sequence[Any], phase_index: int, draws: Draws) -> tuple[Tensor, dict[str, float]]:
        """Mean squared error of v, text dropped for guidance; a clip without a caption counts as dropped."""
        clips, prompts, *notes = batch
        if notes and self.step_clips is not None:
            self.step_clips.record(notes[0])
        phase = self.recipe.phases[phase_index]
        in_pixels = self.recipe.data is not None and not self.recipe.precomputed
        latents = self._latents(clips) if in_pixels else clips.to(self.device).float()
        num_frames = latents.shape[1]
        positions = keyframes(num_frames, phase, draws.shared)
        if positions is not None:
            latents = latents[:, positions]
        keep = draws.uniform() >= self.recipe.text_dropout
        if isinstance(prompts, Tensor):  # embeddings, of no caption zeros
            text = prompts.to(self.device)
        else:
            text = self.encode(list(prompts))
            keep = keep & torch.tensor([bool(prompt) for prompt in prompts], device=text.device)
        text = text * keep[:, None, None]
        timesteps = draw_timesteps(draws, phase.density, phase.sampler_steps)
        a = self._levels(phase.sampler_steps)[timesteps]

        def predict(noisy: Tensor, times: Tensor) -> Tensor:
            output = self.transformer(
                noisy, text, times.float(), frame_positions=positions, num_frames=num_frames
            )
            return output.sample.float()

        rolls = self.transformer.training and bool(
            phase.rollout
        )  # held-out clips are judged alike whatever the phase
        if rolls and float(torch.rand((), generator=draws.shared)) < phase.rollout:
            noisy = roll_out(
                latents, timesteps, draws, predict, scheduler=self.scheduler, steps=phase.sampler_steps
            )
            target = velocity_towards(latents, noisy, a)
        else:
            noise = draws.normal(latents.shape[1:])
            noisy, target = add_noise(latents, noise, a), velocity_target(latents, noise, a)
        error = (predict(noisy, timesteps) - target).square().flatten(1).mean(1)
        high = timesteps > 800
        named = {"high": float(error[high].mean().detach())} if high.any() else {}
        return error.mean(), named

    @torch.no_grad()
    def validate(self, folder: Path, *, count: int = 32) -> dict[str, float]:
        """Of the procedural world what readers find in previews of held-out prompts, else the held-out clips' loss.

        Args:
            folder: Gets contact sheets of previews, three frames of each, and of the procedural world's first guesses.
            count: Prompts of the procedural world.
        """
        if self.recipe.data is None:
            return self._judge(count, folder)
        with at_work(self.device, self.vae, self.text_encoder):
            return self._watch(folder)

    def _watch(self, folder: Path) -> dict[str, float]:
        """The held-out clips' loss; writes previews of the recipe's prompts."""
        losses = []
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.bf16):
            for place, sample in enumerate(self.watched):
                draws = Draws(0, 0, [place], len(self.watched), self.device)
                clips, prompts = default_collate([sample])
                if self.recipe.precomputed:
                    clips = self._latents(clips)
                losses.append(float(self.loss((clips, prompts), len(self.recipe.phases) - 1, draws)[0]))
        if self.recipe.prompts:
            frames = max(frames for frames, *_ in self.recipe.shapes(len(self.recipe.phases) - 1))
            clips = [self._sample(prompt, frames) for prompt in self.recipe.prompts]
            _write_sheet(folder / "validation.png", torch.cat(clips))
        return {"held_out_loss": float(np.mean(losses))}

    def _judge(self, count: int, folder: Path) -> dict[str, float]:
        """What share of held-out prompts' attributes the readers find in the previews."""
        scenes = held_out_scenes(count)
        prompts = [full_caption(s) for s in scenes]
        clips = torch.cat([self._sample(prompt, NUM_FRAMES, seed=i) for i, prompt in enumerate(prompts)])
        found = [agreement(read_clip(clip), scene) for clip, scene in zip(clips, scenes, strict=True)]
        _write_sheet(folder / "validation.png", clips[:16])
        _write_sheet(folder / "guess.png", self.previews.guess(prompts[:16], frames=NUM_FRAMES))
        values = {name: float(np.mean([f[name] for f in found])) for name in found[0]}
        return values | {"all": float(np.mean([all(f.values()) for f in found]))}

    def _sample(self, prompt: str, frames: int, seed: int = 0) -> Tensor:
        """A preview (1, F, 3, H, W) by the preset's own settings."""
        numbers = self.preset.stage1
        return self.previews.sample(
            [prompt],
            steps=self.recipe.preview_steps or numbers.num_inference_steps,
            guidance=numbers.guidance_scale,
            guidance_schedule=numbers.guidance_schedule,
            frames=frames,
            seed=seed,
        )

    def score(self, values: Mapping[str, float]) -> float:
        """Mean share of attributes that are right; with clips of one's own minus the held-out clips' loss."""
        if self.recipe.data is not None:
            return -values["held_out_loss"]
        return float(np.mean([values[name] for name in ATTRIBUTES]))

    def warnings(self, values: Mapping[str, float], history: Sequence[Mapping[str, float]]) -> list[str]:
        """What the newest figures show to be going wrong, in sentences; `history` are those before."""
        if self.recipe.data is None:
            return fallen(values, history, dict.fromkeys(ATTRIBUTES, 0.25))
        best = min((earlier["held_out_loss"] for earlier in history), default=float("inf"))
        now = values["held_out_loss"]
        if now <= 1.1 * best:
            return []
        return [
            f"the loss of held-out clips is {now:.4g}, more than a tenth above its best, {best:.4g}: the model learns "
            "the training clips by heart; stop, take the best weights, or add clips"
        ]

    def save(self, folder: Path, modules: nn.ModuleDict | None = None) -> None:
        """Write the adapter alone, or transformer, text encoder, tokenizer and scheduler folders.

        A text encoder that stays what it was in a whole model, or in a CogVideoX, is not written again.

        Args:
            folder: Where to.
            modules: What to write instead of the task's own modules.
        """
        modules = self.modules if modules is None else modules
        transformer = modules["transformer"]
        assert isinstance(transformer, FlashVideoTransformer3DModel)
        if self.recipe.lora is not None:
            save_lora(transformer, folder)
            return
        transformer.save_pretrained(folder / "stage1_transformer")
        self.scheduler.save_pretrained(folder / "stage1_scheduler")
        start = Path(self.recipe.start) if self.recipe.start else None
        if self.trains_text or start_preset(start) is None:
            text_encoder = modules["text_encoder"] if self.trains_text else self.text_encoder
            assert isinstance(text_encoder, T5EncoderModel)
            text_encoder.save_pretrained(folder / "text_encoder")
            self.tokenizer.save_pretrained(folder / "tokenizer")


def _write_sheet(path: Path, clips: Tensor) -> None:
    """Three frames of each clip, two clips a row."""
    last = clips.shape[1] - 1
    frames = torch.stack([clip[i] for clip in clips for i in (0, (last + 1) // 2, last)])
    save_image(path, contact_sheet(frames, columns=3 * min(2, len(clips))))
