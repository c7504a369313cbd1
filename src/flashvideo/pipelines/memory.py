"""Memory plans: what each phase of a run will need, and what is done so that it fits.

A run is a row of phases, and at each of them only one network is at work:

    text -> Stage I -> decode -> encode -> Stage II -> decode

For each phase there is a ladder of measures, the fastest first. A plan takes of every ladder the first rung that fits;
if the memory runs out all the same, the next one. No measure changes the result but by rounding; what does more,
weights in 8 bits and tiles, is for the user to choose.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from flashvideo.models.transformer import DEFAULT_CHUNK_SIZE
from flashvideo.pipelines.devices import GIB
from flashvideo.pipelines.footprint import Footprint, Peak
from flashvideo.pipelines.workload import Workload
from flashvideo.vae.layers import THRIFTS

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

GROUPS = (("text",), ("stage1", "stage1_decode"), ("stage2_encode", "stage2", "stage2_decode"))
"""Phases that follow one upon another; those of Stage II come again with each window."""

DEVICE_RESERVE_BYTES = GIB
"""What an accelerator's driver and libraries take beside torch's own tensors."""

FRAGMENTATION = 1.1
"""How much more than the tensors at work torch's allocator holds, since their sizes differ from step to step."""

_THRIFT_WORDS = {
    "strips": "strip by strip",
    "caches": "strip by strip, caches on the host",
    "layers": "strip by strip, layers on the host",
}


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What is done in one phase to save memory."""

    streamed_weights: bool = False
    """Weights are brought to the device block by block, the next one while the current one works."""

    sequential_guidance: bool = False
    """The two branches of guidance are evaluated one after another."""

    chunk_size: int | None = None
    """Tokens at a time outside attention."""

    thrift: str | None = None
    """How thriftily the VAE goes about it, see `flashvideo.vae.layers.Workspace`; None for its own modules."""

    def __str__(self) -> str:
        """For example `guidance in turn, 8192 tokens at a time`."""
        parts = []
        if self.sequential_guidance:
            parts.append("guidance in turn")
        if self.chunk_size is not None:
            parts.append(f"{self.chunk_size} tokens at a time")
        if self.thrift is not None:
            parts.append(_THRIFT_WORDS[self.thrift])
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
    """What the work allocates there at its peak."""

    host_bytes: int
    """Weights and layers that wait on the host."""

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

    may_offload: bool
    """Whether weights can wait elsewhere."""

    reserve_bytes: int
    """Memory that is taken beside the tensors."""

    budget_bytes: int
    """What the plan was made for."""

    @property
    def peak_bytes(self) -> int:
        """What the device holds at the peak of the run, reserve included."""
        return self.reserve_bytes + max((phase.peak_bytes for phase in self.phases), default=0)

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
        if self.resident and self.may_offload:
            return dataclasses.replace(self, resident=False)
        if failed is None or not failed.thriftier:
            return None
        measures, *rest = failed.thriftier
        changed = dataclasses.replace(failed, measures=measures, thriftier=tuple(rest))
        phases = tuple(changed if phase is failed else phase for phase in self.phases)
        return dataclasses.replace(self, phases=phases)

    @property
    def host_bytes(self) -> int:
        """What waits on the host at most; frames and what python itself takes come on top."""
        return max((phase.host_bytes for phase in self.phases), default=0)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; sizes in GiB."""
        return {
            "budget_gib": round(self.budget_bytes / GIB, 2),
            "peak_gib": round(self.peak_bytes / GIB, 2),
            "host_gib": round(self.host_bytes / GIB, 2),
            "fits": self.fits,
            "weights": "resident" if self.resident else "offloaded",
            "phases": [
                {
                    "phase": phase.phase,
                    "weights_gib": round(phase.weight_bytes / GIB, 2),
                    "work_gib": round(phase.work_bytes / GIB, 2),
                    "peak_gib": round((phase.peak_bytes + self.reserve_bytes) / GIB, 2),
                    "host_gib": round(phase.host_bytes / GIB, 2),
                    "measures": str(phase.measures),
                }
                for phase in self.phases
            ],
        }

    def __str__(self) -> str:
        """A table with a row per phase."""
        where = "all weights stay on the device" if self.resident else "one network at a time on the device"
        rows = [("phase", "weights", "work", "peak", "host", "measures")]
        rows += [
            (
                phase.phase,
                as_gib(phase.weight_bytes),
                as_gib(phase.work_bytes),
                as_gib(phase.peak_bytes + self.reserve_bytes),
                as_gib(phase.host_bytes),
                str(phase.measures),
            )
            for phase in self.phases
        ]
        lines = [f"{name:14}{a:>10}{b:>10}{c:>10}{d:>10}  {text}" for name, a, b, c, d, text in rows]
        last = f"peak {as_gib(self.peak_bytes)} of {as_gib(self.budget_bytes)}"
        if self.reserve_bytes:
            last += f", {as_gib(self.reserve_bytes)} of it for what is not torch's"
        if self.host_bytes:
            last += f"; up to {as_gib(self.host_bytes)} wait on the host"
        return "\n".join([*lines, f"{last}; {where}"])


def plan_memory(
    footprint: Footprint,
    workload: Workload,
    budget_bytes: int,
    *,
    may_offload: bool = True,
    gone: Collection[str] = (),
    extra_bytes: Mapping[str, int] = MappingProxyType({}),
    single_run: bool = False,
    reserve_bytes: int = DEVICE_RESERVE_BYTES,
) -> MemoryPlan:
    """Finds the fastest plan that fits.

    Args:
        footprint: What the model's work takes.
        workload: What is asked for.
        budget_bytes: Memory of the device that may be used, driver included.
        may_offload: Whether weights can be kept elsewhere while they are idle; not if the device is the host.
        gone: Components whose weights were given up before.
        extra_bytes: What components have beside the weights that the footprint knows.
        single_run: Whether weights are given up that the run does not need any more.
        reserve_bytes: Memory that is taken beside the tensors.

    Returns:
        The plan; if none fits, the thriftiest one, whose `fits` is false.
    """
    available = budget_bytes - reserve_bytes
    phases = list(_phases_of(workload, footprint))
    there = tuple(name for name in footprint.weights if name not in gone)

    def plan(*, resident: bool) -> MemoryPlan:
        planned = tuple(
            _plan_phase(
                footprint,
                workload,
                phase,
                available,
                kept=kept_components(phase, phases) if single_run else there,
                extra_bytes=extra_bytes,
                resident=resident,
                may_offload=may_offload,
            )
            for phase in phases
        )
        return MemoryPlan(
            phases=planned,
            resident=resident,
            may_offload=may_offload,
            reserve_bytes=reserve_bytes,
            budget_bytes=budget_bytes,
        )

    if may_offload and set(phases) <= {"text"}:
        return plan(resident=False)  # only the text encoder has to be there yet
    resident = plan(resident=True)
    if not may_offload:
        return resident
    offloaded = plan(resident=False)
    # Weights stay where they need not move, but not at the cost of another measure.
    costs_nothing = [phase.measures for phase in resident.phases] == [
        phase.measures for phase in offloaded.phases
    ]
    return resident if resident.fits and costs_nothing else offloaded


def kept_components(phase: str, phases: Sequence[str]) -> tuple[str, ...]:
    """Returns the components that a phase, those of its group or a later one need."""
    group = next(i for i, group in enumerate(GROUPS) if phase in group)
    later = [name for group in GROUPS[group:] for name in group if name in phases]
    return tuple(dict.fromkeys(PHASES[name] for name in later))


def _phases_of(workload: Workload, footprint: Footprint) -> Iterator[str]:
    if workload.text and footprint.configs.text_encoder is not None:
        yield "text"
    if workload.preview is not None:
        yield from ("stage1", "stage1_decode") if workload.stage1 else ("stage1_decode",)
    if workload.video is not None:
        yield from ("stage2_encode", "stage2", "stage2_decode")


def _plan_phase(
    footprint: Footprint,
    workload: Workload,
    phase: str,
    available: int,
    *,
    kept: tuple[str, ...],
    extra_bytes: Mapping[str, int],
    resident: bool,
    may_offload: bool,
) -> PhasePlan:
    """The first rung of a phase's ladder that fits, or the last one."""
    ladder = list(_ladder(workload, phase, may_offload=may_offload))
    weights, streamed = (
        {name: num_bytes + extra_bytes.get(name, 0) for name, num_bytes in known.items()}
        for known in (footprint.weights, footprint.streamed_weights)
    )
    plan: PhasePlan | None = None
    for rung, measures in enumerate(ladder, start=1):
        if resident and measures.streamed_weights:
            break
        try:
            work = _work(footprint, workload, phase, measures)
        except RuntimeError as error:
            if "Kernel size can't be greater" not in str(error):  # diffusers' VAE on whole frames of 1080p
                raise
            continue
        at_work = streamed if measures.streamed_weights else weights
        waiting = [name for name in kept if measures.streamed_weights or name != PHASES[phase]]
        plan = PhasePlan(
            phase=phase,
            measures=measures,
            thriftier=tuple(ladder[rung:]),
            weight_bytes=sum(weights[name] for name in kept) if resident else at_work[PHASES[phase]],
            work_bytes=int(work.device_bytes * FRAGMENTATION),
            host_bytes=work.host_bytes + (0 if resident else sum(weights[name] for name in waiting)),
        )
        if plan.peak_bytes <= available:
            break
    assert plan is not None
    return plan


def _ladder(workload: Workload, phase: str, *, may_offload: bool) -> Iterator[Measures]:
    """What can be done in a phase, the fastest first."""
    yield Measures()
    last = Measures()
    if PHASES[phase] == "vae":
        yield from (Measures(thrift=thrift) for thrift in THRIFTS[: None if may_offload else 1])
        return
    if phase != "text":
        is_guided = workload.guided[0 if phase == "stage1" else 1]
        if is_guided:
            yield Measures(sequential_guidance=True)
        yield (last := Measures(sequential_guidance=is_guided, chunk_size=DEFAULT_CHUNK_SIZE))
    if may_offload:
        yield dataclasses.replace(last, streamed_weights=True)


def _work(footprint: Footprint, workload: Workload, phase: str, measures: Measures) -> Peak:
    if phase == "text":
        return footprint.text(workload.batch_size)
    size = workload.preview if phase in ("stage1", "stage1_decode") else workload.video
    assert size is not None
    if phase in ("stage1", "stage2"):
        stage = int(phase[-1])
        return footprint.denoise(
            stage,
            size,
            guided=workload.guided[stage - 1],
            sequential_guidance=measures.sequential_guidance,
            chunk_size=measures.chunk_size,
            batch_size=workload.batch_size,
        )
    code = footprint.encode if phase == "stage2_encode" else footprint.decode
    return code(size, measures.thrift, workload.batch_size)


def as_gib(num_bytes: int) -> str:
    """Returns a size for people, such as `1.25 GiB`."""
    return f"{num_bytes / GIB:.{1 if num_bytes >= 10 * GIB else 2}f} GiB"
