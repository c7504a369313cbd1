"""Optimisers, and the learning rate over a phase.

"muon" is Muon (Jordan et al. 2024) for hidden matrices and kernels with AdamW for the rest; "adafactor" (arXiv
1804.04235) keeps row and column sums instead of second moments, and its rate is relative to each parameter's size;
"adamw8bit" (arXiv 2110.02861) keeps both moments in 8 bits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from flashvideo.training.config import Phase, Recipe


class KernelMuon(torch.optim.Muon):
    """Muon for parameters of any rank above one: a kernel (out, in, ...) is updated as the matrix (out, in ...).

    Args:
        groups: contiguous parameters as "params", and options of theirs; the optimiser updates them through views of
            their storage.
        options: of `torch.optim.Muon`.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], **options: Any) -> None:
        self.sources: list[nn.Parameter] = [p for group in groups for p in group["params"]]
        views = [
            group | {"params": [nn.Parameter(p.detach().flatten(1)) for p in group["params"]]}
            for group in groups
        ]
        super().__init__(views, **options)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update from the gradients of the parameters themselves."""
        views = [view for group in self.param_groups for view in group["params"]]
        for view, source in zip(views, self.sources, strict=True):
            view.grad = None if source.grad is None else source.grad.flatten(1)
        return super().step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        super().zero_grad(set_to_none)
        for source in self.sources:
            source.grad = None


def is_hidden(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is a hidden matrix or kernel: what Muon is for.

    First and last layers, embeddings, modulations from the time embedding, gains and biases are not.
    """
    if parameter.ndim < 2 or min(parameter.shape[0], parameter[0].numel()) < 2:
        return False
    return (
        re.search(r"transformer_blocks.*(attn1|ff)|blocks?\..*(conv1|conv2|upsamplers|downsamplers)", name)
        is not None
    )


def check_optimizer(recipe: Recipe, device: torch.device, *, sharded: bool) -> None:
    """Refuse an optimiser that cannot work on this device, or with each process holding a part of the weights.

    Raises:
        ValueError: if it cannot.
        ImportError: if its package is missing.
    """
    if sharded and recipe.optimizer != "adamw":  # torch's Adafactor fails on parts of a matrix
        raise ValueError(
            f"optimizer {recipe.optimizer} needs whole weights, got sharding: fsdp, which gives each process a part; "
            "use sharding: ddp, or optimizer: adamw"
        )
    if recipe.optimizer == "adamw8bit":
        if device.type != "cuda":
            raise ValueError(f"optimizer adamw8bit needs a CUDA device, got {device.type}; use adafactor")
        try:
            import bitsandbytes  # noqa: F401
        except ImportError:
            raise ImportError(
                "optimizer adamw8bit needs bitsandbytes, which is missing; pip install 'flashvideo[adamw8bit]'"
            ) from None


def build_optimizers(modules: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """The recipe's optimiser for all that is trained.

    One optimiser for each kind, with a group for each network in their order, which holds its part of the rate as
    "factor". So moments find their parameters again when a run goes on with other factors.

    Args:
        modules: the trained networks by name, as children.
        recipe: whose optimiser, weight decay and factors count.

    Raises:
        ValueError: if a factor is given for a module that the task does not train.
    """
    trained = [name for name, _ in modules.named_children()]
    for name in recipe.rate_factors:
        if name not in trained:
            raise ValueError(f"rate_factors must name one of {', '.join(trained)}, got {name!r}")
    kinds: dict[bool, dict[str, list[nn.Parameter]]] = {False: {}, True: {}}
    for name, parameter in modules.named_parameters():
        if parameter.requires_grad:
            hidden = recipe.optimizer == "muon" and is_hidden(name, parameter)
            kinds[hidden].setdefault(name.partition(".")[0], []).append(parameter)
    return [
        _build(
            [{"params": p, "factor": recipe.rate_factors.get(name, 1.0)} for name, p in networks.items()],
            recipe,
            hidden=hidden,
        )
        for hidden, networks in kinds.items()
        if networks
    ]


def _build(groups: list[dict[str, Any]], recipe: Recipe, *, hidden: bool) -> torch.optim.Optimizer:
    """One optimiser; the rates of its groups are set at each step."""
    adam: dict[str, Any] = {"lr": 1.0, "betas": (0.9, 0.98), "weight_decay": recipe.weight_decay}
    if hidden:
        return KernelMuon(groups, lr=1.0, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw")
    if recipe.optimizer == "adafactor":
        return torch.optim.Adafactor(groups, lr=1.0, weight_decay=recipe.weight_decay)
    if recipe.optimizer == "adamw8bit":
        import bitsandbytes

        optimizer: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(groups, **adam)
        return optimizer
    return torch.optim.AdamW(groups, **adam)


def learning_rate(phase: Phase, step: int) -> float:
    """Linear warm-up, then half a cosine from `learning_rate` to `final_learning_rate`, at `step` of the phase."""
    if step < phase.warmup:
        return phase.learning_rate * (step + 1) / phase.warmup
    progress = (step - phase.warmup) / max(1, phase.steps - phase.warmup)
    low = phase.final_learning_rate
    return low + (phase.learning_rate - low) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def set_rate(optimizers: Sequence[torch.optim.Optimizer], rate: float) -> None:
    """Give every group its part of a learning rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"]


def forget(optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Drop all moments, as for a new start from other weights."""
    for optimizer in optimizers:
        optimizer.state.clear()
