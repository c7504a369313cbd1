"""Stage II training: flow matching from degraded low resolution to high resolution (paper section 3.2).

    z_hq = Encode(x),  z_lq = DEG_latent(Encode(DEG_pixel(x))),  z_t = (1 - t) z_lq + t z_hq,  v = z_hq - z_lq

Shapes: pixels (B, F, 3, H, W) in [-1, 1], latents (B, f, C, h, w), text (B, L, D).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import AutoTokenizer, T5EncoderModel

from flashvideo.data.captions import caption
from flashvideo.data.dead_leaves import render_leaves
from flashvideo.data.shapes_world import NUM_FRAMES, render, sample_scene
from flashvideo.degradations.latent import degrade_latents
from flashvideo.degradations.pixel import PixelDegradation, degrade_pixels
from flashvideo.evaluation.metrics import gradient_energy, psnr
from flashvideo.flow import (
    euler,
    flow_matching_loss,
    interpolate,
    network_timestep,
    path_end,
    shift_time,
    time_grid,
    velocity,
)
from flashvideo.models.cogvideox import is_cogvideox, start_stage2_from_cogvideox
from flashvideo.models.initialization import init_for_training
from flashvideo.models.transformer import FlashVideoTransformer3DModel
from flashvideo.presets import NANO
from flashvideo.text import encode_prompts
from flashvideo.training.draws import Draws, sample_seed
from flashvideo.training.recipes import Stage2Phase, Stage2Recipe
from flashvideo.training.task import fallen
from flashvideo.training.vae import contrast_distance, held_out_clips
from flashvideo.vae import decode_latents, encode_pixels
from flashvideo.video import contact_sheet, resize_video, save_image


class CaptionedCrops(Dataset):
    """Crops of full-size scenes with captions, mixed with dead leaves, which have none.

    All samples of a step share one crop size: size k serves every k-th step.
    """

    def __init__(self, seed: int, phase: Stage2Phase, size: tuple[int, int]) -> None:
        self.seed, self.phase, self.size = seed, phase, size

    def __getitem__(self, index: tuple[int, int]) -> tuple[Tensor, str]:
        seed = sample_seed(self.seed, *index)
        rng = np.random.default_rng(seed)
        phase = self.phase
        h, w = phase.crops[index[0] % len(phase.crops)]
        if rng.random() < phase.natural:
            return torch.from_numpy(render_leaves(seed, height=h, width=w, num_frames=phase.frames)), ""
        scene = sample_scene(seed, pan=0.15)
        height, width = self.size
        # Multiples of 16 keep crops on the grid of the tokens that they would be in a whole frame.
        top = int((height - h) * rng.beta(1.5, 1.5)) // 16 * 16
        left = int((width - w) * rng.beta(1.5, 1.5)) // 16 * 16
        first = int(rng.integers(0, NUM_FRAMES - phase.frames + 1))
        clip = render(
            scene,
            height=height,
            width=width,
            frames=slice(first, first + phase.frames),
            crop=(top, left, h, w),
        )
        return torch.from_numpy(clip), caption(scene, rng)


def frozen_folders(recipe: Stage2Recipe) -> tuple[Path, Path | None]:
    """Folders of the VAE, and of the parent of text encoder and tokenizer if there are any.

    Raises:
        ValueError: If there is no VAE.
    """
    start = Path(recipe.start) if recipe.start and is_cogvideox(Path(recipe.start)) else None
    if not recipe.vae and start is None:
        raise ValueError(
            f"the recipe must give 'vae', since its start {recipe.start} is no CogVideoX in diffusers' layout"
        )
    vae = Path(recipe.vae) if recipe.vae or start is None else start / "vae"
    text = Path(recipe.text) if recipe.text else start
    return vae, text


class Stage2Task:
    """The Stage II transformer; VAE and text encoder are frozen."""

    def __init__(self, recipe: Stage2Recipe, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        torch.manual_seed(recipe.seed)
        vae_folder, text_folder = frozen_folders(recipe)
        self.vae = AutoencoderKLCogVideoX.from_pretrained(vae_folder).to(device).eval().requires_grad_(False)
        self.scale = float(self.vae.config.scaling_factor)
        if recipe.start and is_cogvideox(Path(recipe.start)):
            transformer = start_stage2_from_cogvideox(Path(recipe.start) / "transformer")
        elif recipe.start:
            transformer = FlashVideoTransformer3DModel.from_pretrained(
                Path(recipe.start) / "stage2_transformer"
            )
        else:
            transformer = FlashVideoTransformer3DModel(**recipe.model)
            init_for_training(transformer, *self._examples())
            # Until the first text arrives, a prompt has no effect rather than a random one.
            nn.init.zeros_(transformer.patch_embed.text_proj.weight)
        self.transformer = transformer
        self.modules = nn.ModuleDict({"transformer": transformer}).float().to(device).train()
        self.tokenizer: Any = None
        self.text_encoder: T5EncoderModel | None = None
        if text_folder is not None:
            self.tokenizer = AutoTokenizer.from_pretrained(text_folder / "tokenizer", trust_remote_code=False)
            encoder = T5EncoderModel.from_pretrained(text_folder / "text_encoder")
            self.text_encoder = encoder.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def _examples(self, count: int = 48) -> tuple[Tensor, Tensor]:
        """Points on paths of the first phase and their velocities: what a new transformer starts from."""
        first = self.recipe.phases[0]
        phase = dataclasses.replace(first, crops=first.crops[:1], times_per_clip=1)
        crops = CaptionedCrops(sample_seed(self.recipe.seed, 32), phase, self.recipe.size)
        points, velocities = [], []
        for i in range(count):
            draws = Draws(sample_seed(self.recipe.seed, 33), 0, (i,), count, self.device)
            z_hq, z_lq = self._pair(crops[0, i][0][None].to(self.device), phase, draws)
            z_lq, t, _ = self._draw(z_lq, phase, draws)
            points.append(interpolate(z_lq, z_hq, t).cpu())
            velocities.append(velocity(z_lq, z_hq).cpu())
        return torch.cat(points), torch.cat(velocities)

    def dataset(self, phase_index: int, clips_per_step: int) -> Dataset:
        """Clean crops and captions of a phase."""
        seed = sample_seed(self.recipe.seed, 31, phase_index)
        return CaptionedCrops(seed, self.recipe.phases[phase_index], self.recipe.size)

    def encode_text(self, prompts: list[str]) -> Tensor:
        """Embeddings (B, L, D); zeros where a prompt is empty or there is no text encoder."""
        config = self.transformer.config
        length = int(config.max_text_seq_length)
        if self.text_encoder is None:
            return torch.zeros(len(prompts), length, config.text_embed_dim, device=self.device)
        text = encode_prompts(prompts, self.tokenizer, self.text_encoder, max_text_tokens=length)
        given = torch.tensor([bool(p) for p in prompts], device=self.device)
        return text.float() * given[:, None, None]

    def _round_trip(self, pixels: Tensor) -> Tensor:
        """What the VAE makes of a small clip; generated previews have been through its decoder."""
        latents = encode_pixels(self.vae, pixels, scale=1.0)
        return decode_latents(self.vae, latents, scale=1.0, clamp=True).float()

    @torch.no_grad()
    def _pair(self, pixels: Tensor, phase: Stage2Phase, draws: Draws) -> tuple[Tensor, Tensor]:
        """(z_hq, z_lq before latent degradation) of a batch."""
        low = torch.cat([self._degrade(p[None], phase, g) for p, g in zip(pixels, draws.each, strict=True)])
        # The target is the posterior's mean; the input is a sample, as at inference.
        z_hq = encode_pixels(self.vae, pixels, scale=self.scale)
        noise = draws.normal(z_hq.shape[1:])
        z_lq = encode_pixels(self.vae, low, scale=self.scale, posterior_noise=noise)
        return z_hq.float(), z_lq.float()

    def _degrade(self, pixels: Tensor, phase: Stage2Phase, generator: torch.Generator) -> Tensor:
        """What a clip (1, F, 3, H, W) is made from."""
        round_trip = float(torch.rand((), generator=generator)) < phase.round_trip
        factor = (float(self.recipe.scale), float(self.recipe.scale))
        return degrade_pixels(
            pixels,
            generator,
            PixelDegradation(strong=phase.strong, weak_factor=factor, strong_factor=factor),
            at_low_resolution=self._round_trip if round_trip else None,
        )

    def _draw(self, z_lq: Tensor, phase: Stage2Phase, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """Latents degraded `times_per_clip` times, and for each sample a time and the noise step."""
        repeat, (low, high) = phase.times_per_clip, phase.noise_steps
        noise_step = low + ((high - low + 1) * draws.stratified(repeat=repeat)).long()
        noise = draws.normal(z_lq.shape[1:], repeat=repeat)
        z_lq = degrade_latents(z_lq.repeat(repeat, 1, 1, 1, 1), noise_step, noise=noise)
        return z_lq, shift_time(draws.stratified(repeat=repeat), self.recipe.shift), noise_step

    def loss(
        self, batch: tuple[Tensor, list[str]], phase_index: int, draws: Draws
    ) -> tuple[Tensor, dict[str, float]]:
        """Flow-matching loss, each encoded pair at several times."""
        pixels, prompts = batch
        phase = self.recipe.phases[phase_index]
        repeat = phase.times_per_clip
        z_hq, z_lq = self._pair(pixels.to(self.device), phase, draws)
        z_lq, t, noise_step = self._draw(z_lq, phase, draws)
        z_hq = z_hq.repeat(repeat, 1, 1, 1, 1)
        text = self.encode_text(list(prompts)).repeat(repeat, 1, 1)
        keep = draws.uniform(repeat=repeat) >= phase.text_dropout
        x = interpolate(z_lq, z_hq, t)
        v = self.transformer(x, text * keep[:, None, None], network_timestep(t), noise_step=noise_step).sample
        loss = flow_matching_loss(v, z_lq, z_hq)
        clean = path_end(x, v.float(), t)
        if phase.contrast_weight:
            loss = loss + phase.contrast_weight * contrast_distance(clean, z_hq)
        if phase.still_contrast_weight:
            means = clean.mean(dim=1, keepdim=True), z_hq.mean(dim=1, keepdim=True)
            loss = loss + phase.still_contrast_weight * contrast_distance(*means)
        if phase.difference_weight:
            loss = loss + phase.difference_weight * (clean - z_hq).diff(dim=1).abs().mean()
        return loss, {}

    @torch.no_grad()
    def enhance(self, low: Tensor, *, steps: int, noise_step: int, seed: int = 0) -> Tensor:
        """Small clips (B, F, 3, h, w) to `scale` times the size, without text, by the bare equations."""
        generator = torch.Generator(self.device).manual_seed(seed)
        height, width = (s * self.recipe.scale for s in low.shape[-2:])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.bf16):
            z = encode_pixels(self.vae, resize_video(low, height, width), scale=self.scale)
            text = self.encode_text([""] * len(low))
            z = degrade_latents(z.float(), noise_step, generator)
            step = torch.full((len(low),), noise_step, device=self.device)

            def predict(x: Tensor, t: Tensor) -> Tensor:
                times = network_timestep(t).expand(len(x)).to(self.device)
                return self.transformer(x, text, times, noise_step=step).sample.float()

            z = euler(predict, z, time_grid(steps, self.recipe.shift))
            return decode_latents(self.vae, z, scale=self.scale, clamp=True).float()

    @torch.no_grad()
    def validate(self, folder: Path) -> dict[str, float]:
        """The watch list at full size: PSNR to truth, detail energy, fidelity to the input; writes a sheet."""
        values: dict[str, list[float]] = {}
        sheet = []
        for natural in (False, True):
            for clip in held_out_clips(
                2, height=self.recipe.size[0], width=self.recipe.size[1], natural=natural
            ):
                low = resize_video(clip[None], *(s // self.recipe.scale for s in self.recipe.size))
                bicubic = torch.nn.functional.interpolate(
                    low[0], size=self.recipe.size, mode="bicubic", align_corners=False
                ).clamp(-1, 1)
                output = self.enhance(low, steps=4, noise_step=NANO.stage2.noise_step)[0]
                kind = "natural" if natural else "world"
                down = resize_video(output, *low.shape[-2:])
                figures = {
                    f"{kind}_gain": float(psnr(output, clip).mean() - psnr(bicubic, clip).mean()),
                    f"{kind}_energy": float((gradient_energy(output) / gradient_energy(clip)).mean()),
                    f"{kind}_fidelity": float(psnr(down, low[0]).mean()),
                }
                for name, value in figures.items():
                    values.setdefault(name, []).append(value)
                sheet += [bicubic[8], output[8], clip[8]]
        save_image(folder / "validation.png", contact_sheet(torch.stack(sheet), columns=3))
        return {name: float(np.mean(v)) for name, v in values.items()}

    def score(self, values: Mapping[str, float]) -> float:
        """Mean gain over bicubic in decibels; one counts as much as an eighth of truth's gradient energy."""
        gains = [values["world_gain"], values["natural_gain"]]
        return float(np.mean(gains)) + 8 * min(values["world_energy"], 1.0)

    def warnings(self, values: Mapping[str, float], history: Sequence[Mapping[str, float]]) -> list[str]:
        """Whether detail or fidelity to the input became much less than they were."""
        return fallen(values, history, {"world_energy": 0.2, "world_fidelity": 3.0})

    def save(self, folder: Path, modules: nn.ModuleDict | None = None) -> None:
        """Write transformer and scheduler folders."""
        transformer: Any = (modules or self.modules)["transformer"]
        transformer.save_pretrained(folder / "stage2_transformer")
        FlowMatchEulerDiscreteScheduler(shift=self.recipe.shift).save_pretrained(folder / "stage2_scheduler")
