"""VAE training: reconstruction of procedural and natural-statistics clips.

Shapes: pixels (B, F, 3, H, W) in [-1, 1]. GroupNorm's statistics depend on the crop and on the chunk, so phases end
on large crops, and clips go through the same causal chunks as at inference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor, nn
from torch.utils.data import Dataset

from flashvideo.data.dead_leaves import render_leaves
from flashvideo.data.shapes_world import NUM_FRAMES, render, sample_scene
from flashvideo.evaluation.metrics import gradient_energy_ratio
from flashvideo.training.draws import Draws, sample_seed
from flashvideo.training.recipes import VAERecipe
from flashvideo.training.task import fallen
from flashvideo.vae import decode_latents, encode_moments, encode_pixels

FULL_SIZE = (384, 640)


class Crops(Dataset):
    """Random crops of full-size scenes, mixed with dead leaves: (F, 3, h, w) float32 in [-1, 1]."""

    def __init__(self, seed: int, *, crop: tuple[int, int], frames: int, natural: float) -> None:
        self.seed, self.crop, self.frames, self.natural = seed, crop, frames, natural

    def __getitem__(self, index: tuple[int, int]) -> Tensor:
        seed = sample_seed(self.seed, *index)
        rng = np.random.default_rng(seed)
        h, w = self.crop
        if rng.random() < self.natural:
            return torch.from_numpy(render_leaves(seed, height=h, width=w, num_frames=self.frames))
        scene = sample_scene(seed, pan=0.15)
        scale = float(rng.choice((0.25, 0.5, 1.0), p=(0.25, 0.1, 0.65)))
        height, width = max(h, int(FULL_SIZE[0] * scale)), max(w, int(FULL_SIZE[1] * scale))
        # Crops lean to the middle, where the objects are.
        top = int((height - h) * rng.beta(1.5, 1.5))
        left = int((width - w) * rng.beta(1.5, 1.5))
        first = int(rng.integers(0, NUM_FRAMES - self.frames + 1))
        frames = slice(first, first + self.frames)
        return torch.from_numpy(
            render(scene, height=height, width=width, frames=frames, crop=(top, left, h, w))
        )


def held_out_clips(count: int, *, height: int, width: int, natural: bool = False) -> Tensor:
    """Fixed clips that no training seed reaches, of held-out combinations: (count, 17, 3, height, width)."""
    clips = []
    for i in range(count):
        seed = sample_seed(990_000, i)
        if natural:
            clips.append(render_leaves(seed, height=height, width=width))
        else:
            clips.append(render(sample_scene(seed, held_out=True), height=height, width=width))
    return torch.from_numpy(np.stack(clips))


def _clips_to_judge(natural: bool) -> Tensor:
    return held_out_clips(3, height=FULL_SIZE[0], width=FULL_SIZE[1], natural=natural)


def local_contrast(difference: Tensor) -> Tensor:
    """Root mean square of differences (..., H, W) in windows of 8x8, (..., H // 8, W // 8)."""
    energy = torch.nn.functional.avg_pool2d(difference.square().flatten(0, -4), 8)
    return (energy + 1e-4).sqrt()


def contrast_distance(ours: Tensor, true: Tensor) -> Tensor:
    """L1 distance of `local_contrast`, the mean of both directions; (B, F, C, H, W) to a scalar.

    It tells how much detail there is where, not where its lines run.
    """
    distances = [
        (local_contrast(ours.diff(dim=axis)) - local_contrast(true.diff(dim=axis))).abs().mean()
        for axis in (-1, -2)
    ]
    return (distances[0] + distances[1]) / 2


class VAETask:
    """The VAE and its loss: L1 in pixels, in spatial differences and in frame differences, local contrast, and KL."""

    def __init__(self, recipe: VAERecipe, device: torch.device) -> None:
        self.recipe = recipe
        torch.manual_seed(recipe.seed)
        if recipe.start:
            self.vae = AutoencoderKLCogVideoX.from_pretrained(Path(recipe.start) / "vae", **recipe.model)
        else:
            self.vae = AutoencoderKLCogVideoX(**recipe.model)
        self.vae.float().to(device).train()
        if recipe.freeze_encoder:
            for module in filter(None, (self.vae.encoder, self.vae.quant_conv)):
                module.requires_grad_(False)
        self.modules = nn.ModuleDict({"vae": self.vae})
        self.has_scale = recipe.freeze_encoder

    def dataset(self, phase_index: int, clips_per_step: int) -> Dataset:
        """Crops of a phase."""
        phase = self.recipe.phases[phase_index]
        seed = sample_seed(self.recipe.seed, phase_index)
        return Crops(seed, crop=phase.crop, frames=phase.frames, natural=phase.natural)

    def loss(self, batch: Tensor, phase_index: int, draws: Draws) -> tuple[Tensor, dict[str, float]]:
        """Reconstruction and KL of pixels (B, F, 3, H, W)."""
        recipe, phase = self.recipe, self.recipe.phases[phase_index]
        pixels = batch.to(self.vae.device)
        mean, log_variance = encode_moments(self.vae, pixels).transpose(1, 2).chunk(2, dim=2)
        log_variance = log_variance.clamp(-20, 10)
        noise = draws.normal(mean.shape[1:])
        latents = mean + torch.exp(0.5 * log_variance) * noise
        output = decode_latents(self.vae, latents, scale=1.0)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        error = output - pixels
        loss = error.abs().mean() + recipe.kl_weight * kl
        for axis in (-1, -2):
            ours, true = output.diff(dim=axis), pixels.diff(dim=axis)
            loss = loss + recipe.gradient_weight * 0.5 * (ours - true).abs().mean()
        if phase.contrast_weight:
            loss = loss + phase.contrast_weight * contrast_distance(output, pixels)
        if pixels.shape[1] > 1:
            loss = loss + recipe.difference_weight * error.diff(dim=1).abs().mean()
        mse = error.detach().square().mean()
        return loss, {"psnr": float(10 * torch.log10(4 / mse)), "kl": kl.item()}

    @torch.no_grad()
    def validate(self, folder: Path) -> dict[str, float]:
        """PSNR and gradient energy on full-size held-out clips, of both kinds; sets a trained encoder's scale."""
        result: dict[str, float] = {}
        deviations = []
        for name, natural in (("world", False), ("natural", True)):
            psnr, energy = [], []
            for clip in _clips_to_judge(natural):
                latents = self._encode(clip)
                with torch.autocast(self.vae.device.type, torch.bfloat16, enabled=self.recipe.bf16):
                    pixels = decode_latents(self.vae, latents, scale=1.0, clamp=True, output_device="cpu")
                output = pixels[0].float()  # beside the true clip, which is not on a GPU
                deviations.append(latents.float().std().item())
                psnr.append(10 * torch.log10(4 / (output - clip).square().mean()).item())
                energy.append(gradient_energy_ratio(output, clip).item())
            result |= {f"{name}_psnr": float(np.mean(psnr)), f"{name}_energy": float(np.mean(energy))}
        self._set_scale(deviations)
        return result

    def _set_scale(self, deviations: Sequence[float]) -> None:
        """The latent scale of a trained encoder, from its latents' standard deviations on the held-out clips."""
        if not self.recipe.freeze_encoder:
            self.vae.register_to_config(scaling_factor=round(1 / float(np.mean(deviations)), 4))
            self.has_scale = True

    def _encode(self, clip: Tensor) -> Tensor:
        with torch.autocast(self.vae.device.type, torch.bfloat16, enabled=self.recipe.bf16):
            return encode_pixels(self.vae, clip[None], scale=1.0)

    def score(self, values: Mapping[str, float]) -> float:
        """Mean PSNR in decibels; one counts as much as an eighth of truth's gradient energy."""
        kinds = ("world", "natural")
        return float(np.mean([values[f"{k}_psnr"] + 8 * min(values[f"{k}_energy"], 1.0) for k in kinds]))

    def warnings(self, values: Mapping[str, float], history: Sequence[Mapping[str, float]]) -> list[str]:
        """Whether reconstructions became much worse than they were."""
        return fallen(values, history, {"world_psnr": 3.0, "natural_psnr": 3.0})

    @torch.no_grad()
    def save(self, folder: Path, modules: nn.ModuleDict | None = None) -> None:
        """Write the VAE folder, with its latent scale."""
        if (
            not self.has_scale
        ):  # of a run that was resumed after its last validation: checkpoints hold weights alone
            clips = (clip for natural in (False, True) for clip in _clips_to_judge(natural))
            self._set_scale([self._encode(clip).float().std().item() for clip in clips])
        vae: Any = (modules or self.modules)["vae"]
        vae.save_pretrained(folder / "vae")
