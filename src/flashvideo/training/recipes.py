"""The recipes: one frozen dataclass per task, read from YAML by `load_recipe`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from flashvideo.pipelines.folders import NANO_PATH
from flashvideo.presets import NANO
from flashvideo.training.config import LoRA, Phase, Recipe, check_least, check_share
from flashvideo.training.reading import apply_override, build
from flashvideo.training.stage_recipes import Stage1Phase, Stage1Recipe, Stage2Phase, Stage2Recipe

__all__ = [
    "RECIPES",
    "RECIPE_FILE",
    "PreferencePhase",
    "PreferenceRecipe",
    "Stage1Phase",
    "Stage1Recipe",
    "Stage2Phase",
    "Stage2Recipe",
    "VAEPhase",
    "VAERecipe",
    "load_recipe",
    "recipe_text",
]

RECIPE_FILE = "recipe.yaml"
"""In a run's output: the recipe that it was run by."""


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

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, contrast_weight=0)


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
        check_least(self, kl_weight=0, gradient_weight=0, difference_weight=0)
        if self.sharding == "fsdp":
            raise ValueError("sharding: fsdp is for transformers, got task vae; use sharding: ddp")


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
        text_dropout: share of pairs trained with zeros for text, whatever the method: all of the weights move, and
            what sampling is guided against shall stay in step with what it is guided to. Both videos of a pair, and
            the reference, are without text together, as in the training code of Diffusion-DPO (arXiv 2311.12908).
            Validation keeps all text. 0 suits a model that is sampled without guidance.
        sampler_steps: at Stage I compare only at the timesteps of a sampler of so many steps; 0 for all.
        lora: train an adapter beside frozen weights, which then are the reference; none trains all of them.
    """

    stage: str
    pairs: str
    phases: tuple[PreferencePhase, ...]
    method: str = "dpo"
    beta: float = 2000.0
    better_weight: float = 0.0
    least_margin: float = 0.0
    held_out: float = 0.1
    text_dropout: float = 0.1
    sampler_steps: int = 0
    lora: LoRA | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, better_weight=0, sampler_steps=0)
        check_share(self, "text_dropout")
        for name, known in (("stage", ("stage1", "stage2")), ("method", ("dpo", "finetune"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if not self.start:
            raise ValueError("preference alignment needs 'start', the model folder to align, got none")
        if self.beta <= 0 or not 0 < self.held_out < 1:
            raise ValueError(
                f"beta must be positive and held_out between 0 and 1, got {self.beta} and {self.held_out}"
            )


RECIPES: dict[str, type[Recipe]] = {
    "vae": VAERecipe,
    "stage1": Stage1Recipe,
    "stage2": Stage2Recipe,
    "preference": PreferenceRecipe,
}
"""By the recipe's `task`."""


SHIPPED: dict[str, Path] = {"start": NANO_PATH, "text": NANO_PATH, "vae": NANO_PATH / "vae"}
"""What the name of the model inside the package stands for, by a recipe's key; as everywhere `./nano` is a folder."""


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe; `nano` in its `start`, `vae` or `text` is the model inside the package.

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
    return build(RECIPES[task], name_shipped(data))


def name_shipped(data: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's values with the folders that `nano` stands for."""
    shipped = {key: str(folder) for key, folder in SHIPPED.items() if data.get(key) == NANO.name}
    return {**data, **shipped}


def recipe_text(recipe: Recipe) -> str:
    """What `load_recipe` reads as this recipe: YAML of all its keys, with the shipped model by its name."""
    data = json.loads(json.dumps(asdict(recipe)))
    for key, folder in SHIPPED.items():
        if data.get(key) == str(folder):
            data[key] = NANO.name
    return yaml.safe_dump(data, sort_keys=False)
