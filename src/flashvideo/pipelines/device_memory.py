"""A memory plan at work: which network lies where, and how a run goes on when the memory runs out."""

from __future__ import annotations

import dataclasses
import gc
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar, cast

import psutil
import torch
from diffusers.hooks import apply_group_offloading
from torch import nn

from flashvideo.models.transformer import FlashVideoTransformer3DModel
from flashvideo.pipelines.footprint import Footprint
from flashvideo.pipelines.memory import (
    DEVICE_RESERVE_BYTES,
    PHASES,
    Measures,
    MemoryPlan,
    as_gib,
    plan_memory,
)
from flashvideo.pipelines.quantization import stored_bytes
from flashvideo.pipelines.workload import Workload

T = TypeVar("T")

logger = logging.getLogger(__name__)

# As the host, CUDA, cuBLAS and cuDNN say it.
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "alloc_failed", "allocation_failed")

HOST, GONE = torch.device("cpu"), torch.device("meta")


class DeviceMemory:
    """The memory of a device, planned for the runs of one model.

    Args:
        components: The model's networks by name, those of `PHASES`.
        footprint: What their work takes.
        device: Where they work. Weights that are idle lie on the host, unless there is room for all.
        budget_bytes: Memory that may be used; what is free if None.
    """

    def __init__(
        self,
        components: Mapping[str, nn.Module],
        footprint: Footprint,
        device: torch.device,
        *,
        budget_bytes: int | None = None,
    ) -> None:
        self.device = device
        self.plan: MemoryPlan | None = None
        """The plan of the current or last run."""

        self.budget_bytes = budget_bytes
        """Memory that may be used; None if it is what is free."""

        self._components = components
        self._footprint = footprint
        self._gone: set[str] = set()
        self._workload: Workload | None = None
        self._streamed: set[str] = set()
        self._chunked: set[str] = set()

    @contextmanager
    def planned(self, workload: Workload) -> Iterator[None]:
        """Within the block the plan of a run holds; that of the block around it, if the run is a part of that one.

        If none fits, it is the thriftiest one, with a warning.

        Args:
            workload: What is asked for.
        """
        around, plan = self._workload, self.plan
        if around is not None and around.includes(workload):
            yield
            return
        self._workload, self.plan = workload, self.plan_for(workload)
        self._log(self.plan)
        try:
            yield
        finally:
            self._workload = around
            if around is not None:
                self.plan = plan

    def _log(self, plan: MemoryPlan) -> None:
        logger.info("memory plan:\n%s", plan)
        if not plan.fits:
            logger.warning(
                "this will need about %s, and %s may be used; it may run out of memory, a smaller size or fewer frames "
                "need less",
                as_gib(plan.peak_bytes),
                as_gib(plan.budget_bytes),
            )
        self._check_host(plan)

    def _check_host(self, plan: MemoryPlan) -> None:
        """Warns if what waits on the host will not fit there."""
        there = sum(
            stored_bytes(module)
            for module in self._components.values()
            if next(module.parameters()).device.type == HOST.type
        )
        needed, free = plan.host_bytes - there, free_bytes(HOST)
        if self.device.type != HOST.type and needed > free:
            logger.warning(
                "about %s will wait in the host's memory, of which %s are free; a smaller size or fewer frames need "
                "less",
                as_gib(needed),
                as_gib(free),
            )

    def plan_for(self, workload: Workload) -> MemoryPlan:
        """Returns the fastest plan for a run that fits this device."""
        budget = self.budget_bytes
        is_host = self.device.type == HOST.type
        if budget is None:
            on_device = sum(
                stored_bytes(module)
                for module in self._components.values()
                if _is_on(next(module.parameters()), self.device)
            )
            budget = free_bytes(self.device) + on_device
        return plan_memory(
            self._footprint,
            workload,
            budget,
            may_offload=not is_host,
            gone=self._gone,
            extra_bytes=self._extra_bytes(),
            reserve_bytes=host_reserve(workload) if is_host else DEVICE_RESERVE_BYTES,
        )

    def _extra_bytes(self) -> dict[str, int]:
        """What networks have beside the weights that their configs tell of: LoRAs."""
        known = self._footprint.weights
        present = {name: module for name, module in self._components.items() if name not in self._gone}
        return {name: max(0, stored_bytes(module) - known[name]) for name, module in present.items()}

    def run(self, phase: str, work: Callable[[Measures], T], own: Measures | None = None) -> T:
        """Does the work of a phase, with the network where it is needed; if the memory runs out, more thriftily.

        Args:
            phase: A key of `PHASES`.
            work: Does it, with the plan's measures; may be called again.
            own: Measures that the user asked for, and that are taken where the plan has none.

        Returns:
            What the work returns.
        """
        while True:
            try:
                measures = self.enter(phase)
                if measures.thrift is None and own is not None:
                    measures = dataclasses.replace(measures, thrift=own.thrift)
                return work(measures)
            except (RuntimeError, MemoryError) as error:
                thriftier = self.plan and self.plan.thriftier(phase)
                if thriftier is None or not is_out_of_memory(error):
                    raise
            # Only here, outside of the handler, are the failed work's tensors free.
            stays = self.plan is not None and self.plan.resident == thriftier.resident
            self.plan = thriftier
            planned = thriftier.phase(phase)
            assert planned is not None
            logger.warning(
                "out of memory at %s; going on with %s",
                phase,
                planned.measures if stays else "one network at a time on the device",
            )
            release(self.device)

    def enter(self, phase: str) -> Measures:
        """Brings a phase's network to the device, and all others away if the plan says so.

        Returns:
            The measures of the phase; none if no plan was made.

        Raises:
            ValueError: If the network was given up.
        """
        planned = None if self.plan is None else self.plan.phase(phase)
        measures = Measures() if planned is None else planned.measures
        worker = PHASES[phase]
        if worker in self._gone:
            raise ValueError(f"{worker} was given up and is needed again; load the model anew")
        if measures.streamed_weights and worker not in self._streamed:
            self._stream(worker)
        self._place(worker)
        if phase in ("stage1", "stage2"):
            transformer = cast("FlashVideoTransformer3DModel", self._components[worker])
            if measures.chunk_size is not None:
                transformer.enable_forward_chunking(measures.chunk_size)
                self._chunked.add(worker)
            elif worker in self._chunked:  # chunks that the user asked for stay
                transformer.disable_forward_chunking()
                self._chunked.remove(worker)
        return measures

    def _place(self, worker: str) -> None:
        """Puts every network where the plan wants it while one of them is at work; what leaves goes first."""
        is_resident = self.plan is not None and self.plan.resident
        networks = self._movable()
        targets = {name: self.device if is_resident or name == worker else HOST for name in networks}
        for name in sorted(targets, key=lambda name: targets[name] != HOST):
            tensors = (*networks[name].parameters(), *networks[name].buffers())
            if any(not _is_on(tensor, targets[name]) for tensor in tensors):
                networks[name].to(targets[name])

    def leave(self) -> None:
        """Lets all networks wait on the host, but for what streamed ones have on the device."""
        for module in self._movable().values():
            module.to(HOST)
        release(self.device)

    def _movable(self) -> dict[str, nn.Module]:
        """The networks that are moved as a whole: neither given up nor brought piece by piece."""
        fixed = self._gone | self._streamed
        return {name: module for name, module in self._components.items() if name not in fixed}

    def give_up(self, name: str) -> None:
        """Frees the weights of a network, if there is one, that will not be needed any more; its config stays."""
        if name not in self._components:
            return
        module = self._components[name]
        for part in module.modules():
            hooks = getattr(part, "_diffusers_hook", None)
            if hooks is not None:
                hooks.remove_hook("group_offloading", recurse=False)
        nn.Module.to(module, GONE)
        self._gone.add(name)
        release(self.device)

    def _stream(self, name: str) -> None:
        """From now on brings a network's weights to the device piece by piece."""
        module = self._components[name].to(HOST)
        # The text encoder's layers lie too deep for diffusers to find them as blocks.
        by_block = {"offload_type": "block_level", "num_blocks_per_group": 1}
        apply_group_offloading(
            module,
            onload_device=self.device,
            offload_device=HOST,
            use_stream=self.device.type == "cuda",
            low_cpu_mem_usage=True,
            **({"offload_type": "leaf_level"} if name == "text_encoder" else by_block),
        )
        self._streamed.add(name)


def release(device: torch.device) -> None:
    """Gives memory that is no longer used back to a device."""
    gc.collect()
    if device.type == "mps":
        torch.mps.empty_cache()
    elif device.type != HOST.type:
        torch.accelerator.empty_cache()


def _is_on(tensor: torch.Tensor, device: torch.device) -> bool:
    same_index = device.index is None or tensor.device.index == device.index
    return tensor.device.type == device.type and same_index


def free_bytes(device: torch.device) -> int:
    """Returns the memory of a device that nothing else uses; of the host, what processes can still get."""
    if device.type == HOST.type:
        return int(psutil.virtual_memory().available)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    free, _ = torch.accelerator.get_memory_info(device)
    cached = torch.accelerator.memory_reserved(device) - torch.accelerator.memory_allocated(device)
    return int(free + cached)


def host_reserve(workload: Workload) -> int:
    """Returns what a run on the host takes beside networks: the window's frames, enlarged, made and written."""
    num_frames, height, width = workload.video or workload.preview or (0, 0, 0)
    return 3 * workload.batch_size * num_frames * 3 * height * width * torch.float32.itemsize


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory has run out; torch has a class for it on some devices only."""
    message = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(words in message for words in _OUT_OF_MEMORY)
    )
