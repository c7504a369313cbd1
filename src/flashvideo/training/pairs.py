"""Pairs of a better and a worse video for preference alignment, made from a model's own samples.

Those of files are made by `flashvideo.training.own_pairs`; they are stored and read alike.

A folder of pairs has one file for each prompt, the latents of all its candidates and their scores, and a description
of what made them. Which of them make a pair is decided when they are read.

Shapes: frames (F, 3, H, W) in [-1, 1], latents (f, C, h, w).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from flashvideo.pipelines.tensor_file import SUFFIX, open_tensors, remove_leftovers, write_tensors
from flashvideo.pipelines.two_stage import FlashVideoPipeline
from flashvideo.training.descriptions import read_description, write_description
from flashvideo.training.draws import sample_seed
from flashvideo.vae import decode_latents, encode_pixels
from flashvideo.video import resize_video

logger = logging.getLogger(__name__)

Scorer: TypeAlias = Callable[[Tensor, str], float]
"""From frames (F, 3, H, W) in [-1, 1] and their prompt to a score, higher for better."""

HEADER = "flashvideo_candidates"
STAGES = ("stage1", "stage2")
DESCRIPTION = "candidates.json"


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """What one file holds.

    Attributes:
        prompt: What was asked for.
        latents: Clean latents of each candidate (N, f, C, h, w), as the stage's transformer sees them.
        scores: One for each, higher for better.
        low: For Stage II the encoded upscaled preview (f, C, h, w) that all of them were made from.
        source: Where they were made from files a hash of these.
    """

    prompt: str
    latents: Tensor
    scores: tuple[float, ...]
    low: Tensor | None = None
    source: str = ""


def write_candidates(path: Path, candidates: Candidates) -> None:
    """Write a file whole or not at all, latents in bfloat16."""
    tensors = {"latents": candidates.latents.to(torch.bfloat16).contiguous().cpu()}
    if candidates.low is not None:
        tensors["low"] = candidates.low.to(torch.bfloat16).contiguous().cpu()
    content = {"prompt": candidates.prompt, "scores": list(candidates.scores)}
    if candidates.source:
        content["source"] = candidates.source
    write_tensors(path, tensors, {HEADER: content})


def read_candidates(path: Path) -> Candidates:
    """Read what `write_candidates` wrote; latents in float32.

    Raises:
        ValueError: If the file is not one of candidates.
    """
    with open_candidates(path) as (file, content):
        return Candidates(
            prompt=content["prompt"],
            latents=file.get_tensor("latents").float(),
            scores=tuple(content["scores"]),
            low=file.get_tensor("low").float() if "low" in file.keys() else None,  # noqa: SIM118
            source=content.get("source", ""),
        )


def read_scores(path: Path) -> tuple[float, ...]:
    """The scores of a file of candidates alone.

    Raises:
        ValueError: If the file is not one of candidates.
    """
    with open_candidates(path) as (_, content):
        return tuple(content["scores"])


@contextlib.contextmanager
def open_candidates(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Opens a file of candidates; no latents are read yet.

    Yields:
        What `safetensors.safe_open` gives; prompt, scores and, if there is one, source by these names.

    Raises:
        ValueError: If the file is not one of candidates.
    """
    with open_tensors(path, key=HEADER, kind="candidates") as (file, content):
        if (
            content is None
            or "latents" not in file.keys()  # noqa: SIM118 - it is not a dict
            or len(content["scores"]) != file.get_slice("latents").get_shape()[0]
        ):
            raise ValueError(
                f"{path} must hold candidates and their scores, got another file; make it by 'flashvideo pairs'"
            )
        yield file, content


def make_candidates(
    pipeline: FlashVideoPipeline,
    prompts: Sequence[str],
    scorer: Scorer,
    output: Path,
    *,
    stage: str = "stage1",
    count: int = 4,
    seed: int = 0,
    about: Mapping[str, str] | None = None,
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
        about: What else decides candidates and scores, such as a hash of the weights and the scorer's name.

    Returns:
        The files.

    Raises:
        ValueError: If an argument makes no sense, or the folder holds candidates of anything else than what is asked.
    """
    check_stage(stage)
    if count < 2:
        raise ValueError(f"a pair needs at least 2 candidates, got {count}")
    if not prompts:
        raise ValueError("candidates need at least one prompt, got none")
    # Stage II's candidates are made from previews, whose settings count too.
    settings = {
        f"{part}.{name}": value
        for part in STAGES[: STAGES.index(stage) + 1]
        for name, value in pipeline.preset.to_dict()[part].items()
    }
    described = {"stage": stage, "count": count, "seed": seed, **settings, **(about or {})}
    files = prepare_folder(output, prompts, described)
    sample = _previews if stage == "stage1" else _enlargements
    for index, prompt in enumerate(tqdm(prompts, desc="candidates")):
        if not files[index].exists():
            seeds = [sample_seed(seed, index, i) for i in range(count)]
            write_candidates(files[index], sample(pipeline, prompt, scorer, seeds))
    return files


def check_stage(stage: str) -> None:
    """Refuses what is no stage.

    Raises:
        ValueError: If it is none of `STAGES`.
    """
    if stage not in STAGES:
        raise ValueError(f"stage must be one of {', '.join(STAGES)}, got {stage!r}")


def prepare_folder(folder: Path, prompts: Sequence[str], about: Mapping[str, Any]) -> list[Path]:
    """Makes a folder ready for candidates, or for more of them: described, and without what killed runs left.

    Args:
        folder: Of the files.
        prompts: One for each file.
        about: What made the candidates, as JSON can hold it; its `origin` is samples where it does not say.

    Returns:
        The files, which may be there already.

    Raises:
        ValueError: If the folder holds candidates of anything else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _describe(folder, about)
    files = [folder / f"{index:06}{SUFFIX}" for index in range(len(prompts))]
    _check_prompts(folder, dict(zip(files, prompts, strict=True)))
    for path in files:
        if not path.exists():
            remove_leftovers(path)
    return files


def _describe(folder: Path, about: Mapping[str, Any]) -> None:
    """Writes a folder's description; refuses a folder with another one, or with candidates and none."""
    path = folder / DESCRIPTION
    found = read_description(path, "flashvideo pairs")
    if found is None:
        if any(folder.glob(f"*{SUFFIX}")):
            raise ValueError(
                f"{folder} holds candidates, but no {DESCRIPTION} that tells what made them; choose another folder"
            )
        remove_leftovers(path)
        write_description(path, about)
        return
    wanted, there = ({"origin": "samples", **values} for values in (about, found))
    for name in {**wanted, **there}:
        if wanted.get(name) != there.get(name):
            raise ValueError(
                f"{folder} holds candidates of another {name}, {there.get(name)} instead of {wanted.get(name)}; "
                "choose another folder, or delete it"
            )


def _check_prompts(folder: Path, prompts: Mapping[Path, str]) -> None:
    """Refuses files of other prompts than theirs, and those of none."""
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        if path not in prompts:
            raise ValueError(
                f"{path} is beyond the {len(prompts)} prompts, and would be trained on too; give all prompts, or "
                "choose another folder"
            )
        with open_candidates(path) as (_, content):
            if content["prompt"] != prompts[path]:
                raise ValueError(
                    f"{path} holds candidates of another prompt, {content['prompt']!r} instead of {prompts[path]!r}; "
                    "choose another folder, or delete it"
                )


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
        with open_candidates(self.path) as (file, _):
            latents = file.get_slice("latents")
            better, worse = (latents[number].float() for number in (self.better, self.worse))
            has_low = "low" in file.keys()  # noqa: SIM118 - it is not a dict
            return better, worse, file.get_tensor("low").float() if has_low else torch.zeros_like(better)


def find_pairs(files: Sequence[Path], *, stage: str, least_margin: float = 0.0) -> list[Pair]:
    """The best and the worst candidate of each file, where their scores differ by more than `least_margin`.

    Args:
        files: Of candidates; no latents are read.
        stage: Whose samples they must be, "stage1" or "stage2".
        least_margin: Of their scores.

    Raises:
        ValueError: If a file is of the other stage, or none has such a pair.
    """
    pairs = []
    for path in files:
        with open_candidates(path) as (file, content):
            # What they were made from is there at Stage II alone.
            found = "stage2" if "low" in file.keys() else "stage1"  # noqa: SIM118 - it is not a dict
            scores: list[float] = content["scores"]
        if found != stage:
            raise ValueError(
                f"{path} holds candidates of {found}, but {stage} is trained; make them by 'flashvideo pairs --stage "
                f"{stage[-1]}', or change the recipe's stage"
            )
        better = max(range(len(scores)), key=scores.__getitem__)
        worse = min(range(len(scores)), key=scores.__getitem__)
        margin = scores[better] - scores[worse]
        if margin > least_margin:
            pairs.append(Pair(path=path, prompt=content["prompt"], better=better, worse=worse, margin=margin))
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
