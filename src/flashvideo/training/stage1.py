"""Stage I training: v-prediction with zero-terminal SNR, the text encoder trained jointly.

Shapes: latents (B, f, C, h, w), text (B, L, D). Equations: `flashvideo.schedule`.
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
from transformers import T5Config, T5EncoderModel

from flashvideo.data.captions import caption, full_caption, vocabulary
from flashvideo.data.shapes_world import NUM_FRAMES, Scene, sample_scene
from flashvideo.evaluation.readers import agreement, read_clip
from flashvideo.models.initialization import init_for_training
from flashvideo.models.lora import refuse_kept_lora
from flashvideo.models.transformer import FlashVideoTransformer3DModel
from flashvideo.presets import NANO
from flashvideo.schedule import FlashVideoScheduler, add_noise, alphas_cumprod_sqrt_table, velocity_target
from flashvideo.shapes import latent_shape
from flashvideo.text import build_word_tokenizer, encode_prompts
from flashvideo.training.draws import Draws, sample_seed
from flashvideo.training.pool import build_pool, load_pool, pool_scene
from flashvideo.training.recipes import Stage1Phase, Stage1Recipe
from flashvideo.training.task import fallen
from flashvideo.vae import decode_latents
from flashvideo.video import contact_sheet, save_image


class PoolClips(Dataset):
    """Clips of a phase in an order reshuffled every epoch, each time with another caption.

    Args:
        pools: encoded clips (N, f, C, h, w) by their number of frames.
        recipe: whose seed and emphasis made the pools.
        phase_index: which phase of the recipe.
        clips_per_step: of all processes and accumulated batches.
        temporal: the VAE's compression in time.

    A sample is (latents, caption, latent frames of the whole clip).
    """

    def __init__(
        self,
        pools: Mapping[int, Tensor],
        recipe: Stage1Recipe,
        phase_index: int,
        clips_per_step: int,
        temporal: int,
    ) -> None:
        self.pools, self.recipe, self.temporal = pools, recipe, temporal
        self.clips_per_step = clips_per_step
        phase = recipe.phases[phase_index]
        self.lengths = phase.lengths or (phase.frames,)
        self.seed = sample_seed(recipe.seed, phase_index)

    def __getitem__(self, index: tuple[int, int]) -> tuple[Tensor, str, int]:
        step, place = index
        cycle, slot = divmod(step, len(self.lengths))
        frames = self.lengths[slot]
        # How many steps of this length came before this one.
        before = cycle * self.lengths.count(frames) + self.lengths[:slot].count(frames)
        # Single frames are the first ones of clips.
        source = (
            frames if frames in self.pools else max(self.pools, key=lambda length: len(self.pools[length]))
        )
        pool = self.pools[source]
        epoch, place = divmod(before * self.clips_per_step + place, len(pool))
        clip = int(np.random.default_rng(sample_seed(self.seed, epoch)).permutation(len(pool))[place])
        scene = pool_scene(sample_seed(self.recipe.seed, source), clip, self.recipe.emphasis)
        text = caption(scene, np.random.default_rng(sample_seed(self.seed, 5, *index)))
        latents = pool[clip, : 1 + (frames - 1) // self.temporal]
        return latents, text, len(latents)


def held_out_scenes(count: int, *, first: int = 0) -> list[Scene]:
    """Fixed scenes of combinations never trained on; one object, no pan: what prompts are judged by."""
    return [
        sample_scene(sample_seed(424_242, i), held_out=True, second_object=0.0, pan=0.0)
        for i in range(first, first + count)
    ]


def noisy_timesteps(u: Tensor, density: float) -> Tensor:
    """Training timesteps k = 999 (1 - u^p) for u in [0, 1), (B,); p = 1 is uniform, larger is noisier. Int64."""
    return (999 * (1 - u**density)).round().long()


def keyframes(num_frames: int, phase: Stage1Phase, generator: torch.Generator) -> Tensor | None:
    """Positions of the latent frames that a step trains on, in order; None for all."""
    if not phase.keyframes:
        return None
    order = torch.randperm(num_frames, generator=generator)
    if phase.ends and float(torch.rand((), generator=generator)) < phase.ends:
        order = torch.tensor((0, num_frames - 1))
    return order[: phase.keyframes].sort().values


def nearest_visited(timesteps: Tensor, num_inference_steps: int) -> Tensor:
    """Moves timesteps (B,) to the nearest of those that the sampler visits in so many steps."""
    scheduler = FlashVideoScheduler()
    scheduler.set_timesteps(num_inference_steps, timesteps.device)
    distances = (timesteps[:, None] - scheduler.timesteps).abs()
    return scheduler.timesteps[distances.argmin(dim=1)]


def compile_blocks(transformer: FlashVideoTransformer3DModel) -> None:
    """Fuse the operations of each block, in place: names of parameters and saved files stay as they are."""
    for block in transformer.transformer_blocks:
        block.compile()


class Stage1Task:
    """The Stage I transformer and its text encoder."""

    def __init__(self, recipe: Stage1Recipe, device: torch.device) -> None:
        self.recipe = recipe
        torch.manual_seed(recipe.seed)
        self.vae = AutoencoderKLCogVideoX.from_pretrained(recipe.vae).to(device).eval().requires_grad_(False)
        self.tokenizer = build_word_tokenizer(vocabulary())
        if recipe.start:
            start = Path(recipe.start)
            refuse_kept_lora(start)
            transformer = FlashVideoTransformer3DModel.from_pretrained(start / "stage1_transformer")
            text_encoder = T5EncoderModel.from_pretrained(start / "text_encoder")
        else:
            words = {"vocab_size": len(self.tokenizer), "pad_token_id": self.tokenizer.pad_token_id}
            text_encoder = T5EncoderModel(T5Config(**words, **recipe.text))
            width = text_encoder.config.d_model
            transformer = FlashVideoTransformer3DModel(text_embed_dim=width, **recipe.model)
        self.transformer, self.text_encoder = transformer, text_encoder
        self.modules = nn.ModuleDict({"transformer": transformer, "text_encoder": text_encoder})
        self.modules.float().to(device).train()
        self.max_text_tokens = int(transformer.config.max_text_seq_length)
        self.table = alphas_cumprod_sqrt_table().to(device)
        self.temporal = int(self.vae.config.temporal_compression_ratio)
        self.pools = {frames: self._pool(frames, count) for frames, count in recipe.clips.items()}
        if not recipe.start:
            init_for_training(transformer, *self._examples())
        if recipe.compile:
            compile_blocks(transformer)

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
        a = self.table.cpu()[timesteps]
        noise = torch.randn(latents.shape, generator=generator)
        return add_noise(latents, noise, a), velocity_target(latents, noise, a)

    def dataset(self, phase_index: int, clips_per_step: int) -> Dataset:
        """Latents and captions of a phase."""
        return PoolClips(self.pools, self.recipe, phase_index, clips_per_step, self.temporal)

    def encode(self, prompts: list[str]) -> Tensor:
        """Text embeddings (B, L, D) of prompts."""
        return encode_prompts(
            prompts, self.tokenizer, self.text_encoder, max_text_tokens=self.max_text_tokens
        )

    def loss(
        self, batch: tuple[Tensor, list[str], Tensor], phase_index: int, draws: Draws
    ) -> tuple[Tensor, dict[str, float]]:
        """Mean squared error of v, text dropped for guidance."""
        latents, prompts, num_frames = batch
        phase = self.recipe.phases[phase_index]
        latents = latents.to(draws.device).float()
        positions = keyframes(latents.shape[1], phase, draws.shared)
        if positions is not None:
            latents = latents[:, positions]
        text = self.encode(list(prompts))
        text = text * (draws.uniform() >= self.recipe.text_dropout)[:, None, None]
        timesteps = noisy_timesteps(draws.stratified(), phase.density)
        if phase.sampler_steps:
            timesteps = nearest_visited(timesteps, phase.sampler_steps)
        a = self.table[timesteps]
        noise = draws.normal(latents.shape[1:])
        noisy = add_noise(latents, noise, a)
        output = self.transformer(
            noisy, text, timesteps.float(), frame_positions=positions, num_frames=int(num_frames[0])
        ).sample
        error = (output.float() - velocity_target(latents, noise, a)).square().flatten(1).mean(1)
        high = timesteps > 800
        named = {"high": float(error[high].mean().detach())} if high.any() else {}
        return error.mean(), named

    @torch.no_grad()
    def sample(
        self, prompts: list[str], *, steps: int, guidance: float, frames: int, seed: int = 0
    ) -> Tensor:
        """Previews (B, F, 3, H, W) in [-1, 1], without the pipeline's bookkeeping."""
        device = self.vae.device
        generator = torch.Generator(device).manual_seed(seed)
        scheduler = FlashVideoScheduler()
        scheduler.set_timesteps(steps, device)
        latents = self._noise(len(prompts), frames, generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.recipe.bf16):
            text = self.encode(prompts)
            both = torch.cat((torch.zeros_like(text), text))
            for timestep in scheduler.timesteps:
                times = timestep.float().expand(2 * len(prompts))
                output = self.transformer(latents.repeat(2, 1, 1, 1, 1), both, times).sample.float()
                unconditional, conditional = output.chunk(2)
                v = unconditional + guidance * (conditional - unconditional)
                latents = scheduler.step(v, timestep, latents, generator=generator).prev_sample
            return self._decode(latents)

    @torch.no_grad()
    def guess(self, prompts: list[str], *, frames: int, seed: int = 0) -> Tensor:
        """The first guess from pure noise, (B, F, 3, H, W) in [-1, 1]: the mean of all clips that fit a prompt.

        It shows what the text has taught: where two prompts look alike here, the model takes them for the same.
        """
        generator = torch.Generator(self.vae.device).manual_seed(seed)
        noise = self._noise(1, frames, generator).expand(len(prompts), -1, -1, -1, -1)
        with torch.autocast(self.vae.device.type, torch.bfloat16, enabled=self.recipe.bf16):
            last = torch.full((len(prompts),), float(len(self.table) - 1), device=self.vae.device)
            # At the last step a is 0, and v is minus the clean latents.
            return self._decode(-self.transformer(noise, self.encode(prompts), last).sample.float())

    def _noise(self, count: int, frames: int, generator: torch.Generator) -> Tensor:
        shape = latent_shape(frames, *self.recipe.size, vae_config=self.vae.config)
        return torch.randn(shape.as_tuple(count), generator=generator, device=generator.device)

    def _decode(self, latents: Tensor) -> Tensor:
        scale = float(self.vae.config.scaling_factor)
        clips = [decode_latents(self.vae, x[None], scale=scale, clamp=True) for x in latents]
        return torch.cat(clips).float().clamp(-1, 1)

    @torch.no_grad()
    def validate(self, folder: Path, count: int = 32) -> dict[str, float]:
        """What share of held-out prompts' attributes the readers find in the previews.

        Writes contact sheets of previews and of first guesses, three frames of each.
        """
        scenes = held_out_scenes(count)
        prompts = [full_caption(s) for s in scenes]
        steps, guidance = NANO.stage1.num_inference_steps, NANO.stage1.guidance_scale
        clips = self.sample(prompts, steps=steps, guidance=guidance, frames=NUM_FRAMES)
        found = [agreement(read_clip(clip), scene) for clip, scene in zip(clips, scenes, strict=True)]
        guesses = self.guess(prompts[:16], frames=NUM_FRAMES)
        for name, shown in (("validation", clips[:16]), ("guess", guesses)):
            frames = torch.stack([clip[i] for clip in shown for i in (0, NUM_FRAMES // 2, NUM_FRAMES - 1)])
            save_image(folder / f"{name}.png", contact_sheet(frames, columns=6))
        values = {name: float(np.mean([f[name] for f in found])) for name in found[0]}
        return values | {"all": float(np.mean([all(f.values()) for f in found]))}

    def score(self, values: Mapping[str, float]) -> float:
        """Mean share of attributes that are right."""
        return float(np.mean([values[name] for name in ("color", "shape", "motion", "background")]))

    def warnings(self, values: Mapping[str, float], history: Sequence[Mapping[str, float]]) -> list[str]:
        """Whether an attribute that was right more often is not any more."""
        return fallen(values, history, dict.fromkeys(("color", "shape", "motion", "background"), 0.25))

    def save(self, folder: Path, modules: nn.ModuleDict | None = None) -> None:
        """Write transformer, text encoder, tokenizer and scheduler folders."""
        networks: Any = modules or self.modules
        networks["transformer"].save_pretrained(folder / "stage1_transformer")
        networks["text_encoder"].save_pretrained(folder / "text_encoder")
        self.tokenizer.save_pretrained(folder / "tokenizer")
        FlashVideoScheduler().save_pretrained(folder / "stage1_scheduler")
