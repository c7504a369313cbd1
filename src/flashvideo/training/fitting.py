"""Whether a training fits some GPUs, and the least that has to change for it to fit.

A measure is a change of the recipe. Those that change nothing but memory and time come first; an optimiser with a
smaller state and an adapter instead of all weights change what is learned, and come last.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from flashvideo.pipelines.devices import GIB
from flashvideo.presets import RELEASED_STAGE1_LORA_RANK
from flashvideo.training.config import LoRA, Recipe
from flashvideo.training.optimizers import check_optimizer
from flashvideo.training.stage_recipes import Stage1Recipe, Stage2Recipe
from flashvideo.training.starts import takes_adapter, trains_text
from flashvideo.training.step_memory import Estimate, StepMemory

COSTS = {
    "vae_strips": 1,
    "precomputed": 2,
    "checkpoint_blocks": 3,
    "sharding: fsdp": 3,
    "optimizer: adamw8bit": 10,
    "optimizer: adafactor": 12,
    "lora": 30,
}
"""The measures, each with how unwelcome it is; of two sets the one of the lower sum is taken."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How a phase fits.

    Attributes:
        number: of the phase, from 1.
        as_it_is: memory of the recipe as it is.
        alone: peak in bytes with one measure at a time.
        measures: the smallest set that makes it fit; empty if it fits as it is; None if no set does.
        with_them: memory with that set, or with the thriftiest one.
    """

    number: int
    as_it_is: StepMemory
    alone: dict[str, int]
    measures: tuple[str, ...] | None
    with_them: StepMemory

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; sizes in GiB."""
        return {
            "phase": self.number,
            "fits": self.measures == (),
            "peak_gib": round(self.as_it_is.peak / GIB, 2),
            "with_one_measure_gib": {name: round(peak / GIB, 2) for name, peak in self.alone.items()},
            "measures": None if self.measures is None else list(self.measures),
            "peak_with_measures_gib": round(self.with_them.peak / GIB, 2),
        }


def fit(recipe: Recipe, estimate: Estimate, *, gpus: int, vram_bytes: int) -> list[Fit]:
    """How each phase fits, and what makes it fit.

    Args:
        recipe: The recipe.
        estimate: Of its model, on CUDA devices.
        gpus: How many share the work, one process each.
        vram_bytes: Memory of one.

    Raises:
        ValueError: If the recipe's optimiser cannot work on them.
    """
    refusal = _refusal(recipe, gpus)
    if refusal is not None:
        raise refusal
    measures = dict(_measures(recipe, gpus))

    def change(names: tuple[str, ...]) -> Recipe:
        changed = recipe
        for name in names:
            changed = measures[name](changed)
        return changed

    def memory(index: int, names: tuple[str, ...]) -> StepMemory:
        changed = change(names)
        return estimate.phase(changed, changed.phases[index], processes=gpus)

    allowed = [names for names in _sets(list(measures)) if _refusal(change(names), gpus) is None]
    sets = sorted(allowed, key=lambda names: (sum(COSTS[name] for name in names), len(names)))
    fits = []
    for index in range(len(recipe.phases)):
        found: tuple[str, ...] | None = None
        thriftiest: StepMemory | None = None
        for names in sets:
            tried = memory(index, names)
            if tried.peak <= vram_bytes:
                found, thriftiest = names, tried
                break
            if thriftiest is None or tried.peak < thriftiest.peak:
                thriftiest = tried
        assert thriftiest is not None
        alone = {name: memory(index, (name,)).peak for name in measures if (name,) in allowed}
        fits.append(
            Fit(
                number=index + 1,
                as_it_is=memory(index, ()),
                alone=alone,
                measures=found,
                with_them=thriftiest,
            )
        )
    return fits


def _refusal(recipe: Recipe, gpus: int) -> ValueError | None:
    """Why training would refuse the optimiser on so many GPUs; a missing package can be installed."""
    try:
        check_optimizer(recipe, torch.device("cuda"), sharded=recipe.is_sharded(gpus))
    except ValueError as error:
        return error
    except ImportError:
        pass
    return None


def _measures(recipe: Recipe, gpus: int) -> Iterator[tuple[str, Callable[[Recipe], Recipe]]]:
    """What could still be changed."""

    def change(**values: Any) -> Callable[[Recipe], Recipe]:
        return lambda recipe: dataclasses.replace(recipe, **values)

    if isinstance(recipe, Stage1Recipe | Stage2Recipe):
        if not recipe.vae_strips:
            yield "vae_strips", change(vae_strips=True)
        if recipe.data is not None and not recipe.precomputed:
            yield "precomputed", change(precomputed="latents")
        if not recipe.checkpoint_blocks:
            yield "checkpoint_blocks", change(checkpoint_blocks=True)
        if gpus > 1 and recipe.sharding != "fsdp":
            yield "sharding: fsdp", change(sharding="fsdp")
        if (
            takes_adapter(recipe)
            and recipe.lora is None
            and not (isinstance(recipe, Stage1Recipe) and trains_text(recipe))
        ):
            lora = LoRA(rank=RELEASED_STAGE1_LORA_RANK, alpha=float(RELEASED_STAGE1_LORA_RANK))
            yield "lora", change(lora=lora)
    if recipe.optimizer in ("adamw", "muon"):
        for optimizer in ("adamw8bit", "adafactor"):
            yield f"optimizer: {optimizer}", change(optimizer=optimizer)


def _sets(names: list[str]) -> Iterator[tuple[str, ...]]:
    """All sets of measures that go together."""
    for count in range(len(names) + 1):
        for chosen in itertools.combinations(names, count):
            optimizers = [name for name in chosen if name.startswith("optimizer")]
            # Strips matter only where the VAE works.
            if len(optimizers) <= 1 and not {"vae_strips", "precomputed"} <= set(chosen):
                yield chosen
