"""The recipes: one frozen dataclass per task, read from YAML by `load_recipe`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from flashvideo.training.config import Phase, Recipe
from flashvideo.training.reading import apply_override, build


@dataclass(frozen=True, kw_only=True)
class VAEPhase(Phase):
    """A phase of VAE training.

    Attributes:
        crop: (height, width) of the training crops in pixels.
        natural: share of dead-leaves clips.
        contrast_weight: of the L1 distance of local root-mean-square spatial differences, which keeps detail that
            cannot be kept exactly from being blurred away.
    """

    crop: tuple[int, int]
    natural: float = 0.4
    contrast_weight: float = 0.0


@dataclass(frozen=True, kw_only=True)
class VAERecipe(Recipe):
    """Training of the causal video VAE.

    Attributes:
        model: arguments of `AutoencoderKLCogVideoX`; with `start` only what differs from the weights' own, such
            as the compression in time, which no shape depends on.
        phases: in order.
        kl_weight: of the KL term per latent element.
        gradient_weight: of the L1 distance of spatial differences.
        difference_weight: of the L1 distance of frame-to-frame differences.
        freeze_encoder: train the decoder alone: latents, and models trained on them, stay valid.
    """

    model: dict[str, Any]
    phases: tuple[VAEPhase, ...]
    kl_weight: float = 1e-4
    gradient_weight: float = 0.5
    difference_weight: float = 0.25
    freeze_encoder: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sharding == "fsdp":
            raise ValueError("sharding: fsdp is for transformers, got task vae; use sharding: ddp")


@dataclass(frozen=True, kw_only=True)
class Stage1Phase(Phase):
    """A phase of Stage I training.

    Attributes:
        density: exponent p of the timestep density: k = 999 (1 - u^p); 1 is uniform, larger means noisier.
        sampler_steps: train only at the timesteps that a sampler of so many steps visits, each drawn timestep moved to
            the nearest of them; 0 for all timesteps.
        keyframes: latent frames drawn at random from each clip, at their own positions in time; 0 for all. Frames of
            one clip are much alike, so that a few of them teach almost as much as all.
        ends: share of steps whose keyframes are the first and the last latent frame, between which a motion shows most.
        lengths: frames per clip that steps alternate between, each a key of the recipe's `clips`; by default `frames`.
    """

    density: float = 2.5
    sampler_steps: int = 0
    keyframes: int = 0
    ends: float = 0.0
    lengths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.sampler_steps <= 1000:
            raise ValueError(f"sampler_steps must be 0 to 1000, got {self.sampler_steps}")
        if self.keyframes < 0 or not 0 <= self.ends <= 1:
            raise ValueError(
                f"keyframes must be at least 0 and ends in [0, 1], got {self.keyframes} and {self.ends}"
            )
        if self.ends and (self.keyframes != 2 or self.frames == 1):
            raise ValueError(
                f"ends needs keyframes: 2 of more than one frame, got {self.keyframes} of {self.frames}"
            )


@dataclass(frozen=True, kw_only=True)
class Stage1Recipe(Recipe):
    """Training of Stage I with its text encoder: v-prediction, zero-terminal SNR, text dropout.

    Attributes:
        vae: folder of the trained VAE.
        model: arguments of `FlashVideoTransformer3DModel`; with `start` they are those of the weights.
        text: arguments of the T5 text encoder, likewise.
        phases: in order.
        size: (height, width) of the preview.
        text_dropout: share of samples trained with zeros for text.
        clips: how many clips are rendered and encoded once, by their number of frames; each shows a whole motion.
        emphasis: how many times as often as others an attribute is drawn, such as {spinning: 3}: for what is hard.
    """

    vae: str
    phases: tuple[Stage1Phase, ...]
    model: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=dict)
    size: tuple[int, int] = (96, 160)
    text_dropout: float = 0.1
    clips: dict[int, int] = field(default_factory=lambda: {17: 4096})
    emphasis: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        for index, phase in enumerate(self.phases):
            for frames in phase.lengths or (phase.frames,):
                if frames != 1 and frames not in self.clips:
                    known = ", ".join(map(str, self.clips))
                    raise ValueError(
                        f"phases.{index} must have frames of clips, {known} (or 1), got {frames}"
                    )
        _check_one_origin(self.start, self.model, "model")
        _check_one_origin(self.start, self.text, "text")


@dataclass(frozen=True, kw_only=True)
class Stage2Phase(Phase):
    """A phase of Stage II training.

    Attributes:
        crops: sizes (height, width) that batches alternate between; the full frame may be one of them.
        natural: share of dead-leaves clips.
        noise_steps: range of latent degradation, drawn uniformly.
        times_per_clip: how many flow times each encoded pair is trained at.
        text_dropout: share of samples trained with zeros for text; 1 trains without text.
        strong: share of clips with the strong pixel degradation, the others get the weak one.
        round_trip: share of clips that go through the VAE while they are small, as a generated preview has. Only for
            crops near the full frame: in much smaller ones the VAE shifts colours, and Stage II learns to shift back.
        contrast_weight: of the distance of local contrast between the clean latents that a velocity points to and the
            true ones. With little noise the flow alone learns the mean of what might be there, which is smooth.
        still_contrast_weight: of the same distance between their means over time: detail that stays, not flicker.
        difference_weight: of the L1 distance of these clean latents' differences in time, against flicker.
    """

    crops: tuple[tuple[int, int], ...]
    natural: float = 0.4
    noise_steps: tuple[int, int] = (0, 12)
    times_per_clip: int = 1
    text_dropout: float = 0.1
    strong: float = 0.2
    round_trip: float = 0.0
    contrast_weight: float = 0.0
    still_contrast_weight: float = 0.0
    difference_weight: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("still_contrast_weight", "difference_weight"):
            if getattr(self, name) and self.frames == 1:
                raise ValueError(f"{name} needs more than one frame, got frames: 1; leave it out")


@dataclass(frozen=True, kw_only=True)
class Stage2Recipe(Recipe):
    """Training of Stage II: flow matching from degraded low resolution to high resolution.

    Attributes:
        start: as for every recipe; or the folder of a CogVideoX-2B or 5B in diffusers' layout, whose transformer gets
            rotary positions and new embedders, and whose VAE and text encoder are taken where none are given.
        vae: folder of the trained VAE; may be empty with a CogVideoX start.
        text: folder of the trained Stage I (tokenizer and text encoder, frozen); empty trains without text, unless
            the start is a CogVideoX.
        model: arguments of `FlashVideoTransformer3DModel`; with `start` they are those of the weights.
        phases: in order, coarse to fine.
        size: (height, width) of the full frame.
        scale: factor between preview and full frame.
        shift: time shift s of training and sampling.
    """

    phases: tuple[Stage2Phase, ...]
    vae: str = ""
    model: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    size: tuple[int, int] = (384, 640)
    scale: int = 4
    shift: float = 2.5

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_one_origin(self.start, self.model, "model")
        if not self.vae and not self.start:
            raise ValueError(
                "the recipe must give 'vae', which only a CogVideoX start brings along, got neither"
            )


@dataclass(frozen=True, kw_only=True)
class PreferencePhase(Phase):
    """A phase of preference alignment; `batch` counts pairs, and `frames` are those of the candidates.

    Attributes:
        density: exponent of Stage I's timestep density, as in `Stage1Phase`.
    """

    density: float = 1.0


@dataclass(frozen=True, kw_only=True)
class PreferenceRecipe(Recipe):
    """Alignment of one stage with preferences, from a model folder and candidates with scores.

    Attributes:
        stage: which stage learns, "stage1" or "stage2".
        pairs: folder of candidates that `flashvideo pairs` made.
        phases: in order.
        method: "dpo", direct preference optimisation, or "finetune", on the better ones alone.
        beta: how strongly a preference outweighs staying near the reference. Errors are means over all elements of
            the latents, so it is large.
        better_weight: of the better videos' own error, which keeps a preference from being met by making both worse.
        least_margin: by how much scores must differ to make a pair.
        held_out: share of pairs kept for validation.
        sampler_steps: at Stage I compare only at the timesteps of a sampler of so many steps; 0 for all.
    """

    stage: str
    pairs: str
    phases: tuple[PreferencePhase, ...]
    method: str = "dpo"
    beta: float = 2000.0
    better_weight: float = 0.0
    least_margin: float = 0.0
    held_out: float = 0.1
    sampler_steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("stage", ("stage1", "stage2")), ("method", ("dpo", "finetune"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if not self.start:
            raise ValueError("preference alignment needs 'start', the model folder to align, got none")
        if self.beta <= 0 or not 0 < self.held_out < 1:
            raise ValueError(
                f"beta must be positive and held_out between 0 and 1, got {self.beta} and {self.held_out}"
            )


def _check_one_origin(start: str, arguments: dict[str, Any], name: str) -> None:
    if bool(start) == bool(arguments):
        got = "both" if start else "neither"
        raise ValueError(f"the recipe must give either start or {name!r}, got {got}")


RECIPES: dict[str, type[Recipe]] = {
    "vae": VAERecipe,
    "stage1": Stage1Recipe,
    "stage2": Stage2Recipe,
    "preference": PreferenceRecipe,
}
"""By the recipe's `task`."""


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: a YAML file.
        overrides: "key=value" or "phases.0.steps=10"; values are YAML.

    Raises:
        ValueError: for a missing file, text that is not YAML, an unknown key (the nearest known one is named), or
            a value of the wrong type.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"recipe must be a YAML file, got {path}, which does not exist or is a folder")
    try:
        data = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(
            f"recipe {path} must be YAML, got text that does not parse: {error}".split("\n")[0]
        ) from None
    if not isinstance(data, dict):
        raise ValueError(f"recipe {path} must be a mapping of keys to values, got {type(data).__name__}")
    for override in overrides:
        apply_override(data, override)
    task = data.get("task")
    if task not in RECIPES:
        raise ValueError(f"task must be one of {', '.join(RECIPES)}, got {task!r}")
    return build(RECIPES[task], data)
