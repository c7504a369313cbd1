"""Preference alignment (paper section 3.3, Table 7): fine-tuning on what was liked, or on which of two was.

Fine-tuning on a curated set is the paper's way: the stage's own loss, on the better videos alone. Direct preference
optimisation learns from pairs against a frozen reference: with e the error of v or of the velocity, the same noise and
time for both videos of a pair,

    L = -log sigmoid(-beta / 2 ((e_better - e_better_ref) - (e_worse - e_worse_ref)))

(diffusion: arXiv 2311.12908, equation 14; flow matching with a constant beta: arXiv 2501.13918, equation 9).

Shapes: latents (B, f, C, h, w), text (B, L, D), errors (B,).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from flashvideo.degradations.latent import degrade_latents
from flashvideo.flow import flow_matching_loss, interpolate, network_timestep, shift_time
from flashvideo.models.lora import refuse_kept_lora
from flashvideo.models.transformer import FlashVideoTransformer3DModel
from flashvideo.pipelines.folders import model_folder
from flashvideo.pipelines.two_stage import FlashVideoPipeline
from flashvideo.schedule import FlashVideoScheduler, add_noise, velocity_target
from flashvideo.text import encode_prompts, with_prefix
from flashvideo.training.draws import Draws, sample_seed
from flashvideo.training.lora import add_lora, save_lora
from flashvideo.training.pairs import Pair, PairClips, find_pairs
from flashvideo.training.recipes import PreferencePhase, PreferenceRecipe
from flashvideo.training.rollout import visited_table
from flashvideo.training.stage1 import draw_timesteps
from flashvideo.training.starts import frozen_dtype, transformer_dtype
from flashvideo.training.task import fallen

_PLACES = 8
"""At so many times and noises each held-out pair is judged."""


def preference_loss(
    better: Tensor, worse: Tensor, better_reference: Tensor, worse_reference: Tensor, *, beta: float
) -> tuple[Tensor, Tensor]:
    """Direct preference optimisation of errors.

    Args:
        better: Errors of the trained network on the better videos (B,).
        worse: On the worse ones (B,).
        better_reference: Of the frozen reference on the better ones (B,).
        worse_reference: On the worse ones (B,).
        beta: How strongly a preference outweighs staying near the reference.

    Returns:
        The loss of each pair (B,), log 2 where nothing has been learned; and what its sigmoid is taken of (B,),
        positive where the pair is told apart better than by the reference.
    """
    advantage = -0.5 * beta * ((better - better_reference) - (worse - worse_reference))
    return -F.logsigmoid(advantage), advantage


def _load(recipe: PreferenceRecipe) -> FlashVideoPipeline:
    """The model to align.

    Raises:
        ValueError: If it lacks the stage or the text encoder, or Stage I is to learn and keeps a LoRA apart.
    """
    folder = model_folder(recipe.start)
    if recipe.stage == "stage1":
        refuse_kept_lora(folder)
    pipeline = FlashVideoPipeline.from_pretrained(folder, stage1_lora=None)
    if recipe.stage == "stage2" and pipeline.stage2_transformer is None:
        raise ValueError(
            f"the recipe's stage is stage2, which its start {recipe.start} does not have; give stage: stage1, or a "
            "model that has both"
        )
    if pipeline.text_encoder is None or pipeline.tokenizer is None:
        raise ValueError(
            f"the recipe's start must have the folders text_encoder and tokenizer, which read the pairs' prompts; "
            f"{recipe.start} has not"
        )
    return pipeline


def split_pairs(recipe: PreferenceRecipe) -> tuple[list[Pair], list[Pair]]:
    """The pairs held out for validation, and those to learn from; no latents are read, and no model.

    Raises:
        ValueError: If the folder has none, or too few.
    """
    files = sorted(Path(recipe.pairs).glob("*.safetensors"))
    if not files:
        raise ValueError(
            f"the recipe's pairs must be a folder of candidates, got {recipe.pairs}, which has none; "
            "make them by 'flashvideo pairs'"
        )
    pairs = find_pairs(files, stage=recipe.stage, least_margin=recipe.least_margin)
    held_out = max(1, round(recipe.held_out * len(pairs)))
    if held_out >= len(pairs):
        raise ValueError(f"training needs more pairs than the {held_out} held out, got {len(pairs)} in all")
    return pairs[:held_out], pairs[held_out:]


@torch.no_grad()
def _embed(
    pipeline: FlashVideoPipeline,
    prompts: set[str],
    recipe: PreferenceRecipe,
    device: torch.device,
    *,
    max_text_tokens: int,
) -> dict[str, Tensor]:
    """Text embeddings (L, D) of prompts, on the CPU: as the stage reads them at inference, Stage II with its prefix."""
    prefix = pipeline.preset.stage2.prompt_prefix if recipe.stage == "stage2" else ""
    encoder = pipeline.text_encoder.to(device, frozen_dtype(recipe, device))
    return {
        prompt: encode_prompts(
            [with_prefix(prompt, prefix)], pipeline.tokenizer, encoder, max_text_tokens=max_text_tokens
        )[0].cpu()
        for prompt in sorted(prompts)
    }


class Stage1Errors:
    """Errors of v at Stage I."""

    def __init__(self, recipe: PreferenceRecipe, scheduler: FlashVideoScheduler) -> None:
        self.sampler_steps = recipe.sampler_steps
        self.table = visited_table(scheduler, self.sampler_steps)

    def __call__(
        self, network: nn.Module, point: tuple[Tensor, Tensor], clean: Tensor, text: Tensor
    ) -> Tensor:
        """Mean squared errors (B,) at (timesteps, noise)."""
        timesteps, noise = point
        a = self.table.to(clean.device)[timesteps]
        v = network(add_noise(clean, noise, a), text, timesteps.float()).sample
        return (v.float() - velocity_target(clean, noise, a)).square().flatten(1).mean(1)

    def point(self, low: Tensor, phase: PreferencePhase, draws: Draws) -> tuple[Tensor, Tensor]:
        """Where a pair is compared: timesteps (B,) and noise."""
        timesteps = draw_timesteps(draws, phase.density, self.sampler_steps)
        return timesteps, draws.normal(low.shape[1:])


class Stage2Errors:
    """Errors of the velocity at Stage II."""

    def __init__(self, recipe: PreferenceRecipe, noise_step: int, shift: float) -> None:
        self.noise_step, self.shift = noise_step, shift

    def __call__(
        self, network: nn.Module, point: tuple[Tensor, Tensor], clean: Tensor, text: Tensor
    ) -> Tensor:
        """Mean squared errors (B,) at (times, degraded low quality)."""
        t, z_lq = point
        x = interpolate(z_lq, clean, t)
        v = network(x, text, network_timestep(t), noise_step=self.noise_step).sample
        return flow_matching_loss(v, z_lq, clean, reduction="none")

    def point(self, low: Tensor, phase: PreferencePhase, draws: Draws) -> tuple[Tensor, Tensor]:
        """Where a pair is compared: times (B,) and the degraded low quality that both start from."""
        t = shift_time(draws.stratified(), self.shift)
        return t, degrade_latents(low, self.noise_step, noise=draws.normal(low.shape[1:]))


class PreferenceTask:
    """One stage's transformer, aligned with preferences; the text encoder reads each prompt once, at the start."""

    def __init__(self, recipe: PreferenceRecipe, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        torch.manual_seed(recipe.seed)
        self.held_out, self.pairs = split_pairs(recipe)
        pipeline = _load(recipe)
        self.scheduler_folder = f"{recipe.stage}_scheduler"
        self.scheduler = getattr(pipeline, self.scheduler_folder)
        transformer = getattr(pipeline, f"{recipe.stage}_transformer")
        length = int(transformer.config.max_text_seq_length)
        prompts = {pair.prompt for pair in (*self.held_out, *self.pairs)}
        self.text = _embed(pipeline, prompts, recipe, device, max_text_tokens=length)
        transformer.type(transformer_dtype(recipe, device)).to(device)
        # An adapter that is switched off leaves the reference; without one it is a copy, in the dtype of what is
        # trained, so that at first the two tell the same.
        self.copy: FlashVideoTransformer3DModel | None = None
        if recipe.lora is not None:
            add_lora(transformer, recipe.lora)
        elif recipe.method == "dpo":
            self.copy = copy.deepcopy(transformer).eval().requires_grad_(False)
        self.transformer: FlashVideoTransformer3DModel = transformer.train()
        self.modules = nn.ModuleDict({"transformer": transformer})
        preset = pipeline.preset.stage2
        self.errors = (
            Stage1Errors(recipe, self.scheduler)
            if recipe.stage == "stage1"
            else Stage2Errors(recipe, preset.noise_step, preset.shift)
        )

    def dataset(self, phase_index: int, clips_per_step: int) -> Dataset:
        """Pairs of a phase."""
        seed = sample_seed(self.recipe.seed, 41, phase_index)
        return PairClips(self.pairs, seed=seed, pairs_per_step=clips_per_step)

    def loss(
        self, batch: tuple[Tensor, Tensor, Tensor, list[str]], phase_index: int, draws: Draws
    ) -> tuple[Tensor, dict[str, float]]:
        """Direct preference optimisation, or the stage's own loss on the better videos."""
        phase = self.recipe.phases[phase_index]
        better, worse, low = (x.to(self.device) for x in batch[:3])
        text = torch.stack([self.text[prompt] for prompt in batch[3]]).to(self.device)
        point = self.errors.point(low, phase, draws)
        # The last of the step's draws, so that without dropout all else is as it was.
        keep = draws.uniform() >= self.recipe.text_dropout
        text = text * keep[:, None, None]
        if self.recipe.method == "finetune":
            return self.errors(self.transformer, point, better, text).mean(), {}
        own, losses, advantage = self._compare(point, better, worse, text)
        loss = losses.mean() + self.recipe.better_weight * own.mean()
        told_apart = (advantage > 0).float().mean()
        return loss, {"told_apart": told_apart.item(), "better": own.mean().item()}

    @contextlib.contextmanager
    def _reference(self) -> Iterator[FlashVideoTransformer3DModel]:
        """The transformer as it was before training."""
        if self.copy is not None:
            yield self.copy
            return
        self.transformer.disable_adapters()
        try:
            yield self.transformer
        finally:
            self.transformer.enable_adapters()

    def _compare(
        self, point: tuple[Tensor, Tensor], better: Tensor, worse: Tensor, text: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The better videos' errors, and what `preference_loss` returns; each (B,)."""
        with torch.no_grad(), self._reference() as reference:
            references = [self.errors(reference, point, clean, text) for clean in (better, worse)]
        own, other = (self.errors(self.transformer, point, clean, text) for clean in (better, worse))
        return own, *preference_loss(own, other, *references, beta=self.recipe.beta)

    @torch.no_grad()
    def validate(self, folder: Path) -> dict[str, float]:
        """On held-out pairs: the better ones' error, and of preference optimisation the share told apart better."""
        told_apart, errors = [], []
        for index, pair in enumerate(self.held_out):
            own, advantage = self._judge(pair, index)
            errors.append(own.mean().item())
            if advantage is not None:
                told_apart.append(float(advantage.mean() > 0))
        figures = {"better_error": sum(errors) / len(errors)}
        return figures | ({"told_apart": sum(told_apart) / len(told_apart)} if told_apart else {})

    def _judge(self, pair: Pair, index: int) -> tuple[Tensor, Tensor | None]:
        """A held-out pair at several places: the better one's errors and, of preference optimisation, the advantages.

        As many places at once as a step takes pairs, so that a validation needs no more memory than a step.
        """
        phase = self.recipe.phases[-1]
        tensors = [x.to(self.device) for x in (*pair.read(), self.text[pair.prompt])]
        owns, advantages = [], []
        for first in range(0, _PLACES, phase.batch):
            places = range(first, min(first + phase.batch, _PLACES))
            draws = Draws(self.recipe.seed, index, places, _PLACES, self.device)
            better, worse, low, text = (x.expand(len(places), *x.shape) for x in tensors)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.bf16):
                point = self.errors.point(low, phase, draws)
                if self.recipe.method == "finetune":
                    owns.append(self.errors(self.transformer, point, better, text))
                    continue
                own, _, advantage = self._compare(point, better, worse, text)
            owns.append(own)
            advantages.append(advantage)
        return torch.cat(owns), torch.cat(advantages) if advantages else None

    def score(self, values: Mapping[str, float]) -> float:
        """Share told apart, less what the better ones' error is."""
        return values.get("told_apart", 0.0) - values["better_error"]

    def warnings(self, values: Mapping[str, float], history: Sequence[Mapping[str, float]]) -> list[str]:
        """Whether pairs were told apart better before."""
        return fallen(values, history, {"told_apart": 0.25} if "told_apart" in values else {})

    def save(self, folder: Path, modules: nn.ModuleDict | None = None) -> None:
        """Write the adapter alone, or transformer and scheduler folders."""
        transformer: Any = (modules or self.modules)["transformer"]
        if self.recipe.lora is not None:
            save_lora(transformer, folder)
            return
        transformer.save_pretrained(folder / f"{self.recipe.stage}_transformer")
        self.scheduler.save_pretrained(folder / self.scheduler_folder)
