"""One process or many, with the same loop: what accelerate sets up, and how a step is shared out.

Under DDP each process holds all weights, under FSDP2 a part of each. A task calls its networks as if it were alone: DDP
wraps a module whose forward pass is the task's loss, and `fully_shard` changes the networks in place. FSDP2 is torch's
own, since accelerate's does without it on processors (it stays at plain DDP there, and says nothing).
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration
from torch import Tensor, nn

from flashvideo.training.config import Phase, Recipe
from flashvideo.training.draws import Draws

if TYPE_CHECKING:
    from flashvideo.training.task import Task

PATIENCE = datetime.timedelta(hours=3)
"""How long processes wait for another: one judges or makes data while the others wait."""


def start_processes(recipe: Recipe, device: torch.device) -> Accelerator:
    """Join the processes that a launcher started, if one did.

    Args:
        recipe: whose trackers are to be told of the run.
        device: where to run; with several GPUs each process takes its own.

    Raises:
        ValueError: if the launcher was told of another way to share the weights, to compute or to compile.
    """
    _check_launcher(recipe)
    accelerator = Accelerator(
        mixed_precision="no",  # the loop's own autocast covers the loss, and validation
        dynamo_backend="no",
        cpu=device.type == "cpu",
        device_placement=False,
        log_with=list(recipe.trackers) or None,
        project_config=ProjectConfiguration(logging_dir=str(Path(recipe.output) / "trackers")),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    if accelerator.distributed_type in OTHER_ENGINES:
        raise ValueError(
            f"the launcher asks for {accelerator.distributed_type.value}, but how weights are shared is for the "
            "recipe's sharding to say; launch by torchrun, or by accelerate without an engine"
        )
    return accelerator


def _check_launcher(recipe: Recipe) -> None:
    """Refuse what `accelerate launch` asks for by these variables, and the recipe does not say."""
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if precision not in ("no", "bf16" if recipe.bf16 else "no"):
        raise ValueError(
            f"the launcher asks for mixed precision {precision}, but bf16 of the recipe says what is computed in, got "
            f"{str(recipe.bf16).lower()}; launch with --mixed_precision no"
        )
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if backend != "no":
        raise ValueError(
            f"the launcher asks for the dynamo backend {backend}, but compile of the recipe says whether blocks are "
            "compiled; launch with --dynamo_backend no"
        )


def process_device(accelerator: Accelerator, device: torch.device) -> torch.device:
    """The device of this process: the given one when it is alone, its own GPU otherwise."""
    if accelerator.num_processes == 1 or device.type == "cpu":
        return device
    own: torch.device = accelerator.device
    return own


OTHER_ENGINES = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


class Objective(nn.Module):
    """A task's loss as the forward pass of a module that holds the trained networks."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.networks = task.modules
        self.task = task

    def forward(self, batch: Any, phase_index: int, draws: Draws) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch, and named values."""
        return self.task.loss(batch, phase_index, draws)


def shard(modules: nn.Module, accelerator: Accelerator) -> None:
    """Leave each process a part of every parameter, in place; before optimisers are made.

    The weights of each block are gathered together when it is called, and so are those of the rest of the network.
    Each network can be called alone, as validation does.
    """
    from torch.distributed import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for network in modules.children():
        # Of ours what repeats is the blocks alone; transformers' networks name no more than those as unsplit.
        names = (
            getattr(network, "_repeated_blocks", None) or getattr(network, "_no_split_modules", None) or ()
        )
        # Inner modules first, as fully_shard asks for.
        for module in reversed(list(network.modules())):
            if type(module).__name__ in set(names):
                fully_shard(module, mesh=mesh)
        fully_shard(network, mesh=mesh)


def share_loss(task: Task, accelerator: Accelerator, *, sharded: bool) -> nn.Module:
    """A module whose forward pass is the task's loss, and whose backward pass averages over the processes."""
    objective = Objective(task)
    wrapped: nn.Module = objective if sharded else accelerator.prepare(objective)
    return wrapped


@contextlib.contextmanager
def without_sync(accelerator: Accelerator, wrapped: nn.Module, *, when: bool) -> Iterator[None]:
    """Within the block gradients stay in their process, if `when`."""
    from torch.distributed.fsdp import FSDPModule

    sharded = [
        network for network in unwrapped(wrapped).networks.children() if isinstance(network, FSDPModule)
    ]
    for network in sharded:
        network.set_requires_gradient_sync(not when)
    with accelerator.no_sync(wrapped) if when else contextlib.nullcontext():
        yield


def trained_parameters(modules: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters with gradients, by name."""
    return {name: p for name, p in modules.named_parameters() if p.requires_grad}


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: all of it, or its shard; shares the tensor's storage."""
    from torch.distributed.tensor import DTensor

    value: Tensor = tensor.detach()
    return value.to_local() if isinstance(value, DTensor) else value


def scalar(tensor: Tensor) -> float:
    """A scalar, put together from the processes' parts if it is sharded."""
    from torch.distributed.tensor import DTensor

    return float(tensor.full_tensor() if isinstance(tensor, DTensor) else tensor)


def places_of(phase: Phase, micro_batch: int, accelerator: Accelerator) -> range:
    """This process's places among all samples of a step: one process with twice the batch has those of two."""
    first = (micro_batch * accelerator.num_processes + accelerator.process_index) * phase.batch
    return range(first, first + phase.batch)


def clips_per_step(phase: Phase, accelerator: Accelerator) -> int:
    """Samples of a step over all processes and accumulated batches."""
    return int(phase.batch * phase.accumulate * accelerator.num_processes)


def add_up(values: Sequence[float], accelerator: Accelerator) -> list[float]:
    """Sums of numbers over all processes; what a process adds to a sum decides for all."""
    if accelerator.num_processes == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float32, device=accelerator.device)
    return [float(value) for value in accelerator.reduce(tensor, reduction="sum")]


def outline(modules: nn.ModuleDict) -> nn.ModuleDict:
    """The modules without memory for their parameters: what whole weights are put into for saving."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in modules.parameters()
    }
    return copy.deepcopy(modules, memo)


def gather_whole(modules: nn.ModuleDict, target: nn.ModuleDict | None) -> nn.ModuleDict:
    """The networks with whole weights in the main process, which is the only one that gives a target.

    All processes must call it.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    whole = get_model_state_dict(modules, options=options)
    if target is None:
        return modules
    target.load_state_dict(whole, assign=True)
    return target


@torch.no_grad()
def put_whole(parameter: Tensor, value: Tensor) -> None:
    """Set a parameter to a whole value; of a sharded one each process takes its part. All processes must call it."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    value = value.to(parameter.device)
    if isinstance(parameter, DTensor):
        value = distribute_tensor(value, parameter.device_mesh, parameter.placements)
    parameter.copy_(value)


def unwrapped(wrapped: nn.Module) -> Objective:
    """What `share_loss` put into a wrapper, if it did."""
    from torch.nn.parallel import DistributedDataParallel

    objective = wrapped.module if isinstance(wrapped, DistributedDataParallel) else wrapped
    assert isinstance(objective, Objective)
    return objective
