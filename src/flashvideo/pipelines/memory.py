"""Memory plans: what each phase of a run will need, and what is done so that it fits.

A run is a row of phases, and at each of them only one network is at work:

    text -> Stage I -> decode -> encode -> Stage II -> decode

For each phase there is a ladder of measures, the fastest first. A plan takes of every ladder the first rung that fits;
if the memory runs out all the same, the next one. No measure changes the result but by rounding, tiles by less than
half a level; what does more (weights in 8 bits) is never chosen here, see `flashvideo.pipelines.quantization`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from flashvideo.models.transformer import DEFAULT_CHUNK_SIZE
from flashvideo.pipelines.footprint import Footprint
from flashvideo.shapes import vae_factors
from flashvideo.vae import Tiling, tile_spans

GIB = 1024**3

PHASES: Mapping[str, str] = MappingProxyType(
    {
        "text": "text_encoder",
        "stage1": "stage1_transformer",
        "stage1_decode": "vae",
        "stage2_encode": "vae",
        "stage2": "stage2_transformer",
        "stage2_decode": "vae",
    }
)
"""The phases of a run, in order, each with the component that is at work."""

DEVICE_RESERVE_BYTES = GIB
"""What an accelerator's driver and libraries take beside torch's own tensors."""

FRAGMENTATION = 1.1
"""How much more than the tensors at work torch's allocator holds, since their sizes differ from step to step."""

TILE_SIDES = (160, 128, 96, 80, 64, 56, 48, 40, 32, 24)
"""Longest sides of the VAE's tiles that are tried, in latent pixels."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a run is asked for, as far as memory depends on it."""

    num_frames: int
    """Frames that are at work at once: of the clip, or of a window."""

    size: tuple[int, int]
    """Height and width at Stage II, in multiples that the models take."""

    preview_size: tuple[int, int] | None
    """Height and width at Stage I; None if only Stage II runs."""

    text: bool = True
    """Whether prompts are encoded."""

    stage2: bool = True
    """Whether Stage II runs."""

    guided: tuple[bool, bool] = (True, True)
    """Whether there is guidance at Stage I and at Stage II."""

    batch_size: int = 1
    """Clips at once."""

    def includes(self, part: Workload) -> bool:
        """Whether a run is a part of this one, so that its plan holds for it."""
        same = dataclasses.replace(
            part, preview_size=self.preview_size, text=self.text, stage2=self.stage2, size=self.size
        )
        return (
            same == self
            and (part.preview_size in (None, self.preview_size))
            and (not part.stage2 or (self.stage2 and part.size == self.size))
            and (not part.text or self.text)
        )


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What is done in one phase to save memory."""

    streamed_weights: bool = False
    """Weights are brought to the device block by block, the next one while the current one works."""

    sequential_guidance: bool = False
    """The two branches of guidance are evaluated one after another."""

    chunk_size: int | None = None
    """Tokens at a time outside attention."""

    tiling: Tiling | None = None
    """Tiles of the VAE."""

    def __str__(self) -> str:
        """For example `guidance in turn, 8192 tokens at a time`."""
        parts = []
        if self.sequential_guidance:
            parts.append("guidance in turn")
        if self.chunk_size is not None:
            parts.append(f"{self.chunk_size} tokens at a time")
        if self.tiling is not None:
            parts.append(f"{self.tiling.rows}x{self.tiling.columns} tiles")
        if self.streamed_weights:
            parts.append("weights block by block")
        return ", ".join(parts) or "none"


@dataclass(frozen=True, kw_only=True)
class PhasePlan:
    """One phase of a plan."""

    phase: str
    """A key of `PHASES`."""

    measures: Measures
    """What is done."""

    thriftier: tuple[Measures, ...]
    """What could be done beyond that, the least first."""

    weight_bytes: int
    """Weights on the device in this phase."""

    work_bytes: int
    """What the work allocates at its peak."""

    @property
    def peak_bytes(self) -> int:
        """What the device holds at the phase's peak."""
        return self.weight_bytes + self.work_bytes


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """A plan for all phases of a run."""

    phases: tuple[PhasePlan, ...]
    """In order."""

    resident: bool
    """Whether all weights stay on the device; otherwise each network is there while it works."""

    reserve_bytes: int
    """Memory that is taken beside the tensors."""

    budget_bytes: int
    """What the plan was made for."""

    @property
    def peak_bytes(self) -> int:
        """What the device holds at the peak of the run, reserve included."""
        return self.reserve_bytes + max(phase.peak_bytes for phase in self.phases)

    @property
    def fits(self) -> bool:
        """Whether the peak is within the budget."""
        return self.peak_bytes <= self.budget_bytes

    def phase(self, name: str) -> PhasePlan | None:
        """Returns the plan of a phase, None if the run has no such phase."""
        return next((phase for phase in self.phases if phase.phase == name), None)

    def thriftier(self, name: str) -> MemoryPlan | None:
        """Returns the plan to go on with when a phase has run out of memory; None if everything is done already."""
        failed = self.phase(name)
        if self.resident:
            return dataclasses.replace(self, resident=False)
        if failed is None or not failed.thriftier:
            return None
        measures, *rest = failed.thriftier
        changed = dataclasses.replace(failed, measures=measures, thriftier=tuple(rest))
        phases = tuple(changed if phase is failed else phase for phase in self.phases)
        return dataclasses.replace(self, phases=phases)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; sizes in GiB."""
        return {
            "budget_gib": round(self.budget_bytes / GIB, 2),
            "peak_gib": round(self.peak_bytes / GIB, 2),
            "fits": self.fits,
            "weights": "resident" if self.resident else "offloaded",
            "phases": [
                {
                    "phase": phase.phase,
                    "weights_gib": round(phase.weight_bytes / GIB, 2),
                    "work_gib": round(phase.work_bytes / GIB, 2),
                    "peak_gib": round((phase.peak_bytes + self.reserve_bytes) / GIB, 2),
                    "measures": str(phase.measures),
                }
                for phase in self.phases
            ],
        }

    def __str__(self) -> str:
        """A line per phase."""
        where = "all weights stay on the device" if self.resident else "one network at a time on the device"
        lines = [f"{'phase':14}  {'weights':>8}  {'work':>8}  {'peak':>8}  measures"]
        lines += [
            f"{phase.phase:14}  {_gib(phase.weight_bytes)}  {_gib(phase.work_bytes)}  "
            f"{_gib(phase.peak_bytes + self.reserve_bytes)}  {phase.measures}"
            for phase in self.phases
        ]
        return "\n".join([*lines, f"peak {_gib(self.peak_bytes).strip()}; {where}"])


def plan_memory(
    footprint: Footprint,
    workload: Workload,
    budget_bytes: int,
    *,
    may_offload: bool = True,
    reserve_bytes: int = DEVICE_RESERVE_BYTES,
) -> MemoryPlan:
    """Finds the fastest plan that fits.

    Args:
        footprint: What the model's work takes.
        workload: What is asked for.
        budget_bytes: Memory of the device that may be used, driver included.
        may_offload: Whether weights can be kept elsewhere while they are idle; not if the device is the host.
        reserve_bytes: Memory that is taken beside the tensors.

    Returns:
        The plan; if none fits, the thriftiest one, whose `fits` is false.
    """
    available = budget_bytes - reserve_bytes
    ways = (True, False) if may_offload else (True,)
    for resident in ways:
        phases = tuple(
            _plan_phase(footprint, workload, phase, available, resident=resident, may_offload=may_offload)
            for phase in _phases_of(workload, footprint)
        )
        if all(phase.peak_bytes <= available for phase in phases):
            break
    return MemoryPlan(
        phases=phases, resident=resident, reserve_bytes=reserve_bytes, budget_bytes=budget_bytes
    )


def _phases_of(workload: Workload, footprint: Footprint) -> Iterator[str]:
    if workload.text and footprint.configs.text_encoder is not None:
        yield "text"
    if workload.preview_size is not None:
        yield from ("stage1", "stage1_decode")
    if workload.stage2:
        yield from ("stage2_encode", "stage2", "stage2_decode")


def _plan_phase(
    footprint: Footprint,
    workload: Workload,
    phase: str,
    available: int,
    *,
    resident: bool,
    may_offload: bool,
) -> PhasePlan:
    """The first rung of a phase's ladder that fits, or the last one."""
    ladder = list(_ladder(footprint, workload, phase, streams=may_offload and not resident))
    plan: PhasePlan | None = None
    for rung, measures in enumerate(ladder, start=1):
        try:
            work = _work_bytes(footprint, workload, phase, measures)
        except RuntimeError:  # a kernel's own limit, such as of the VAE on whole frames of 1080p
            continue
        plan = PhasePlan(
            phase=phase,
            measures=measures,
            thriftier=tuple(ladder[rung:]),
            weight_bytes=_weight_bytes(footprint, phase, measures, resident=resident),
            work_bytes=int(work * FRAGMENTATION),
        )
        if plan.peak_bytes <= available:
            break
    assert plan is not None
    return plan


def _ladder(footprint: Footprint, workload: Workload, phase: str, *, streams: bool) -> Iterator[Measures]:
    """What can be done in a phase, the fastest first."""
    if phase == "text":
        yield Measures()
    elif phase in ("stage1", "stage2"):
        is_guided = workload.guided[0 if phase == "stage1" else 1]
        yield Measures()
        if is_guided:
            yield Measures(sequential_guidance=True)
        yield Measures(sequential_guidance=is_guided, chunk_size=DEFAULT_CHUNK_SIZE)
    else:
        yield from (Measures(tiling=tiling) for tiling in _tilings(footprint, _size(workload, phase)))
    if streams and PHASES[phase] != "vae":  # the VAE is small
        last = (
            Measures()
            if phase == "text"
            else Measures(sequential_guidance=is_guided, chunk_size=DEFAULT_CHUNK_SIZE)
        )
        yield dataclasses.replace(last, streamed_weights=True)


def _tilings(footprint: Footprint, size: tuple[int, int, int]) -> Iterator[Tiling | None]:
    """Whole frames, then ever smaller tiles."""
    _, spatial = vae_factors(footprint.configs.vae)
    height, width = size[1] // spatial, size[2] // spatial
    yield None
    tilings = (Tiling.to_fit(height, width, max_side=side) for side in TILE_SIDES)
    yield from dict.fromkeys(tiling for tiling in tilings if tiling.rows * tiling.columns > 1)


def _size(workload: Workload, phase: str) -> tuple[int, int, int]:
    """Frames, height and width of what a phase works on."""
    if phase in ("stage1", "stage1_decode"):
        assert workload.preview_size is not None
        return (workload.num_frames, *workload.preview_size)
    return (workload.num_frames, *workload.size)


def _weight_bytes(footprint: Footprint, phase: str, measures: Measures, *, resident: bool) -> int:
    if resident:
        return sum(footprint.weights.values())
    weights = footprint.streamed_weights if measures.streamed_weights else footprint.weights
    return weights[PHASES[phase]]


def _work_bytes(footprint: Footprint, workload: Workload, phase: str, measures: Measures) -> int:
    size = None if phase == "text" else _size(workload, phase)
    match phase:
        case "text":
            return footprint.text(workload.batch_size)
        case "stage1" | "stage2":
            stage = int(phase[-1])
            return footprint.denoise(
                stage,
                size,
                guided=workload.guided[stage - 1],
                sequential_guidance=measures.sequential_guidance,
                chunk_size=measures.chunk_size,
                batch_size=workload.batch_size,
            )
        case "stage2_encode":
            return footprint.encode(_largest_tile(footprint, size, measures.tiling), size[0])
        case _:
            temporal, _ = vae_factors(footprint.configs.vae)
            num_latent_frames = 1 + (size[0] - 1) // temporal
            return footprint.decode(_largest_tile(footprint, size, measures.tiling), num_latent_frames)


def _largest_tile(footprint: Footprint, size: tuple[int, int, int], tiling: Tiling | None) -> tuple[int, int]:
    """Latent height and width of the largest tile."""
    _, spatial = vae_factors(footprint.configs.vae)
    height, width = size[1] // spatial, size[2] // spatial
    if tiling is None:
        return height, width
    return tuple(
        max(span.stop - span.start for span in tile_spans(length, count, tiling.overlap))
        for length, count in ((height, tiling.rows), (width, tiling.columns))
    )


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:4.1f} GiB"
