"""Pairs of a better and a worse video for preference alignment, made from a model's own samples or from files.

A folder of pairs has one file for each prompt: the latents of all its candidates and their scores. Which of them make
a pair is decided when they are read. Shapes: frames (F, 3, H, W) in [-1, 1], latents (f, C, h, w).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from flashvideo.pipelines.tensor_file import read_tensors, write_tensors
from flashvideo.pipelines.two_stage import FlashVideoPipeline
from flashvideo.training.draws import sample_seed
from flashvideo.vae import decode_latents, encode_pixels
from flashvideo.video import resize_video

logger = logging.getLogger(__name__)

Scorer: TypeAlias = Callable[[Tensor, str], float]
"""From frames (F, 3, H, W) in [-1, 1] and their prompt to a score, higher for better."""

HEADER = "flashvideo_candidates"
STAGES = ("stage1", "stage2")


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """What one file holds.

    Attributes:
        prompt: What was asked for.
        latents: Clean latents of each candidate (N, f, C, h, w), as the stage's transformer sees them.
        scores: One for each, higher for better.
        low: For Stage II the encoded upscaled preview (f, C, h, w) that all of them were made from.
    """

    prompt: str
    latents: Tensor
    scores: tuple[float, ...]
    low: Tensor | None = None


def write_candidates(path: Path, candidates: Candidates) -> None:
    """Write a file whole or not at all, latents in bfloat16."""
    tensors = {"latents": candidates.latents.to(torch.bfloat16).contiguous().cpu()}
    if candidates.low is not None:
        tensors["low"] = candidates.low.to(torch.bfloat16).contiguous().cpu()
    content = {"prompt": candidates.prompt, "scores": list(candidates.scores)}
    write_tensors(path, tensors, {HEADER: content})


def read_candidates(path: Path) -> Candidates:
    """Read what `write_candidates` wrote; latents in float32.

    Raises:
        ValueError: If the file is not one of candidates.
    """
    tensors, content = read_tensors(path, key=HEADER, kind="candidates")
    if content is None or "latents" not in tensors or len(content["scores"]) != len(tensors["latents"]):
        raise ValueError(
            f"{path} must hold candidates and their scores, got another file; make it by 'flashvideo pairs'"
        )
    low = tensors.get("low")
    return Candidates(
        prompt=content["prompt"],
        latents=tensors["latents"].float(),
        scores=tuple(content["scores"]),
        low=None if low is None else low.float(),
    )


def make_candidates(
    pipeline: FlashVideoPipeline,
    prompts: Sequence[str],
    scorer: Scorer,
    output: Path,
    *,
    stage: str = "stage1",
    count: int = 4,
    seed: int = 0,
) -> list[Path]:
    """Sample a model several times for each prompt and score what comes out; what is there already is kept.

    At Stage I candidates are previews. At Stage II they are enlargements of one preview, scored before the result is
    made consistent with its input, since it is the network that learns.

    Args:
        pipeline: The model, with its own settings.
        prompts: What to ask for.
        scorer: What decides.
        output: Folder of the files, one for each prompt, named by its number.
        stage: Which stage's samples: "stage1" or "stage2".
        count: Candidates for each prompt.
        seed: Of the first; each candidate has its own.

    Returns:
        The files.

    Raises:
        ValueError: If an argument makes no sense.
    """
    if stage not in STAGES:
        raise ValueError(f"stage must be one of {', '.join(STAGES)}, got {stage!r}")
    if count < 2:
        raise ValueError(f"a pair needs at least 2 candidates, got {count}")
    if not prompts:
        raise ValueError("candidates need at least one prompt, got none")
    output.mkdir(parents=True, exist_ok=True)
    sample = _previews if stage == "stage1" else _enlargements
    files = []
    for index, prompt in enumerate(tqdm(prompts, desc="candidates")):
        path = output / f"{index:06}.safetensors"
        if not path.exists():
            seeds = [sample_seed(seed, index, i) for i in range(count)]
            write_candidates(path, sample(pipeline, prompt, scorer, seeds))
        files.append(path)
    return files


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _previews(pipeline: FlashVideoPipeline, prompt: str, scorer: Scorer, seeds: Sequence[int]) -> Candidates:
    latents, scores = [], []
    for seed in seeds:
        result: Any = pipeline(prompt, preview_only=True, generator=_generator(seed), output_type="pt")
        latents.append(result.preview_latents[0])
        scores.append(float(scorer(result.preview_frames[0].float(), prompt)))
    return Candidates(prompt=prompt, latents=torch.stack(latents), scores=tuple(scores))


def _enlargements(
    pipeline: FlashVideoPipeline, prompt: str, scorer: Scorer, seeds: Sequence[int]
) -> Candidates:
    preview: Any = pipeline(prompt, preview_only=True, generator=_generator(seeds[0]), output_type="pt")
    pixels, stage2 = preview.preview_frames.float(), pipeline.stage2
    scale = pipeline.preset.stage2.latent_scale
    latents, scores = [], []
    for seed in seeds:
        result: Any = stage2(pixels, prompt, generator=_generator(seed), output_type="latent")
        latents.append(result.frames[0])
        frames = decode_latents(pipeline.vae, result.frames, scale=scale, clamp=True)[0].float()
        scores.append(float(scorer(frames, prompt)))
    return Candidates(
        prompt=prompt,
        latents=torch.stack(latents),
        scores=tuple(scores),
        low=_encode_low(pipeline, pixels, frames.shape[-2:])[0],
    )


@torch.no_grad()
def _encode_low(pipeline: FlashVideoPipeline, pixels: Tensor, size: Sequence[int]) -> Tensor:
    """The mean of what Stage II starts from, before its latent degradation."""
    enlarged = resize_video(pixels, size[0], size[1])
    return encode_pixels(pipeline.vae, enlarged, scale=pipeline.preset.stage2.latent_scale)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A better and a worse candidate of one file, by their numbers there.

    Attributes:
        path: The file.
        prompt: What its candidates were asked for.
        better: Number of the better one.
        worse: Number of the worse one.
        margin: By how much its score is higher.
    """

    path: Path
    prompt: str
    better: int
    worse: int
    margin: float

    def read(self) -> tuple[Tensor, Tensor, Tensor]:
        """The better one's latents, the worse one's, and what both were made from, zeros at Stage I; (f, C, h, w)."""
        candidates = read_candidates(self.path)
        better, worse = candidates.latents[self.better], candidates.latents[self.worse]
        return better, worse, torch.zeros_like(better) if candidates.low is None else candidates.low


def find_pairs(files: Sequence[Path], *, least_margin: float = 0.0) -> list[Pair]:
    """The best and the worst candidate of each file, where their scores differ by more than `least_margin`.

    Raises:
        ValueError: If no file has such a pair.
    """
    pairs = []
    for path in files:
        candidates = read_candidates(path)
        scores = candidates.scores
        better = max(range(len(scores)), key=scores.__getitem__)
        worse = min(range(len(scores)), key=scores.__getitem__)
        margin = scores[better] - scores[worse]
        if margin > least_margin:
            pairs.append(Pair(path=path, prompt=candidates.prompt, better=better, worse=worse, margin=margin))
    if not pairs:
        raise ValueError(
            f"pairs need candidates whose scores differ by more than {least_margin}, got none in {len(files)} files; "
            "make more candidates or lower the margin"
        )
    logger.info("%d of %d prompts make a pair", len(pairs), len(files))
    return pairs


class PairClips(Dataset):
    """Pairs in an order reshuffled every epoch.

    Args:
        pairs: What to draw from.
        seed: Of the order.
        pairs_per_step: Of all processes and accumulated batches.

    A sample is (better, worse, low, prompt), the first three (f, C, h, w); low is zeros at Stage I.
    """

    def __init__(self, pairs: Sequence[Pair], *, seed: int, pairs_per_step: int) -> None:
        self.pairs, self.seed, self.pairs_per_step = pairs, seed, pairs_per_step

    def __getitem__(self, index: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, str]:
        step, place = index
        epoch, number = divmod(step * self.pairs_per_step + place, len(self.pairs))
        order = torch.randperm(len(self.pairs), generator=_generator(sample_seed(self.seed, epoch)))
        pair = self.pairs[int(order[number])]
        return *pair.read(), pair.prompt
