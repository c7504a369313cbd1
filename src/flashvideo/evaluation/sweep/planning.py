"""What a sweep does: settings completed by the model, items and seeds, and what must be the same of all of its runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flashvideo.evaluation.machine import describe_machine, describe_software
from flashvideo.evaluation.measures import Measure, available_measures
from flashvideo.evaluation.sweep.files import Conditions, RunKey, model_fingerprint
from flashvideo.evaluation.sweep.grid import Setting, Value
from flashvideo.evaluation.sweep.items import Item, Kind
from flashvideo.pipelines.sizes import REFERENCE, named_size, upscale_factor
from flashvideo.pipelines.two_stage import FlashVideoPipeline


@dataclass(frozen=True, kw_only=True, eq=False)
class Sweep:
    """What is to be done."""

    kind: Kind
    """What items are."""

    items: tuple[Item, ...]
    """What every setting is tried on."""

    seeds: tuple[int, ...]
    """Seeds of the randomness; every item is made with each."""

    settings: tuple[Setting, ...]
    """The grid."""

    preview_only: bool = False
    """Whether to stop after Stage I."""

    num_frames: int | None = None
    """Frames of scenes and previews; the model's own if None."""

    consistency: bool | None = None
    """Whether results keep their source's coarse picture; the model's own if None."""

    measures: tuple[Measure, ...] = field(default_factory=available_measures)
    """What results are scored with."""

    @property
    def has_preview(self) -> bool:
        """Whether Stage I runs."""
        return self.preview_only or self.kind == "prompts"

    def run_keys(self) -> Iterator[RunKey]:
        """Yields every run, so that those which share a preview, or a rendered scene, follow one another."""
        sizes = dict.fromkeys(setting.size for setting in self.settings)
        for item, size, seed in itertools.product(self.items, sizes, self.seeds):
            for setting in self.settings:
                if setting.size == size:
                    yield item.name, seed, setting

    def about(self) -> dict[str, Any]:
        """Returns what may not change within a folder, as plain values."""
        return {
            "kind": self.kind,
            "preview_only": self.preview_only,
            "num_frames": self.num_frames,
            "consistency": self.consistency,
            "measures": [measure.key for measure in self.measures],
        }


def grid_values(
    given: Mapping[str, Sequence[Value] | None],
    pipeline: FlashVideoPipeline,
    *,
    kind: Kind,
    preview_only: bool = False,
    has_text: bool = True,
) -> dict[str, Sequence[Value]]:
    """Returns the values of each setting that applies; the model's own where none are given.

    Args:
        given: Values by the names of settings.
        pipeline: The model.
        kind: What is swept over.
        preview_only: Whether Stage II is left out.
        has_text: Whether there are prompts.
    """
    preset = pipeline.preset
    own: dict[str, Value] = {}
    if preview_only or kind == "prompts":
        own |= {"steps": preset.stage1.num_inference_steps, "guidance": preset.stage1.guidance_scale}
    if not preview_only:
        own |= {
            "detail_steps": preset.stage2.num_inference_steps,
            "noise_step": preset.stage2.noise_step,
            "shift": float(pipeline.stage2_scheduler.shift),
        }
        if has_text:
            own["detail_guidance"] = preset.stage2.guidance_scale
    size: Sequence[Value]
    if kind == "inputs":
        size = [str(one).strip().lower() for one in given.get("size") or (f"x{upscale_factor(preset)}",)]
    else:
        sizes = [named_size(str(one), preset=preset) for one in given.get("size") or (REFERENCE,)]
        size = [f"{width}x{height}" for height, width in sizes]
    return {"size": size, **{name: given.get(name) or (value,) for name, value in own.items()}}


def describe_conditions(
    pipeline: FlashVideoPipeline, sweep: Sweep, *, model: str, folder: Path, vram: float | None = None
) -> Conditions:
    """Returns what must be the same of all runs in a folder.

    Args:
        pipeline: The model.
        sweep: What is done.
        model: The model's name.
        folder: The folder that it was loaded from.
        vram: Memory in GiB that it may use, if that is limited.
    """
    machine, software = describe_machine(str(pipeline.execution_device)), describe_software()
    processor, accelerator = machine["processor"], machine["accelerator"]
    return Conditions(
        model={
            "name": model,
            "fingerprint": model_fingerprint(folder),
            "version": software["flashvideo"],
        },
        measurement=sweep.about(),
        machine={
            "device": pipeline.execution_device.type if accelerator is None else accelerator["name"],
            **{f"processor {name}": processor[name] for name in ("name", "cores", "threads")},
            **{name: software["packages"][name] for name in ("torch", "diffusers", "transformers")},
            "dtype": str(pipeline.dtype).removeprefix("torch."),
            "weights": pipeline.weights,
            "vram": vram,
        },
    )
