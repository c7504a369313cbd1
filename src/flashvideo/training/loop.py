"""The training loop: phases, optimiser, moving average, checkpoints, resume, curves.

The loop knows nothing of what it trains: a `Task` gives it modules, data and a loss. Data is a function of
(seed, phase, index) alone, so a resumed run sees exactly the samples that the uninterrupted one would have seen.
"""

from __future__ import annotations

import contextlib
import csv
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from flashvideo.training.config import Phase, Recipe

logger = logging.getLogger(__name__)
CHECKPOINT = "checkpoint.pt"


class Task(Protocol):
    """One objective. `modules` hold everything that is trained."""

    modules: nn.ModuleDict

    def dataset(self, phase_index: int) -> Dataset:
        """Samples of a phase: `dataset[i]` depends on the recipe's seed, the phase and i alone."""

    def loss(self, batch: Any, phase_index: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Loss of one batch, and named values for the curve."""

    def validate(self) -> dict[str, float]:
        """Figures on fixed held-out clips, for the moving average's weights, which are loaded when it is called."""

    def save(self, folder: Path) -> None:
        """Write the modules, as they are, in diffusers layout."""


class Interrupted(KeyboardInterrupt):
    """The run was stopped by Ctrl-C after saving; resume continues it."""


class Average:
    """Exponential moving average of parameters, warmed up so that early weights are forgotten."""

    def __init__(self, modules: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = [p for p in modules.parameters() if p.requires_grad]
        self.shadow = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the current weights; the horizon grows with `step` up to `decay`."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self.parameters], 1 - decay)

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """Within the block the modules hold the averaged weights."""
        kept = [p.detach().clone() for p in self.parameters]
        with torch.no_grad():
            for p, s in zip(self.parameters, self.shadow, strict=True):
                p.copy_(s)
        try:
            yield
        finally:
            with torch.no_grad():
                for p, k in zip(self.parameters, kept, strict=True):
                    p.copy_(k)


class KernelMuon(torch.optim.Muon):
    """Muon for parameters of any rank above one: a kernel (out, in, ...) is updated as the matrix (out, in ...).

    Args:
        parameters: contiguous parameters; the optimiser updates them through views of their storage.
        options: of `torch.optim.Muon`.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], **options: Any) -> None:
        self.sources = list(parameters)
        super().__init__([nn.Parameter(p.detach().flatten(1)) for p in self.sources], **options)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update from the gradients of the parameters themselves."""
        for view, source in zip(self.param_groups[0]["params"], self.sources, strict=True):
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
    return re.search(r"transformer_blocks.*(attn1|ff)|blocks?\..*(conv1|conv2|upsamplers|downsamplers)", name) is not None


def build_optimizer(modules: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the hidden matrices and AdamW for the rest (`recipe.optimizer`)."""
    named = [(n, p) for n, p in modules.named_parameters() if p.requires_grad]
    adam: dict[str, Any] = {"lr": 1.0, "betas": (0.9, 0.98), "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "adamw":
        return [torch.optim.AdamW([p for _, p in named], **adam)]
    hidden = [p for n, p in named if is_hidden(n, p)]
    rest = [p for n, p in named if not is_hidden(n, p)]
    muon = KernelMuon(hidden, lr=1.0, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw")
    return [torch.optim.AdamW(rest, **adam), muon]


def learning_rate(phase: Phase, step: int) -> float:
    """Linear warm-up, then half a cosine from `learning_rate` to `final_learning_rate`, at `step` of the phase."""
    if step < phase.warmup:
        return phase.learning_rate * (step + 1) / phase.warmup
    progress = (step - phase.warmup) / max(1, phase.steps - phase.warmup)
    low = phase.final_learning_rate
    return low + (phase.learning_rate - low) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def save_atomically(value: Any, path: Path) -> None:
    """`torch.save` to a temporary name in the same folder, then move."""
    temporary = path.with_name(path.name + ".partial")
    torch.save(value, temporary)
    os.replace(temporary, path)


class Curve:
    """A CSV file of one row per logged step; columns grow as new names appear."""

    def __init__(self, path: Path, keep_until: int) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path.exists() and keep_until:
            with path.open() as file:
                self.rows = [r for r in csv.DictReader(file) if int(r["step"]) <= keep_until]

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row and write the file anew, atomically."""
        self.rows.append({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
        names = list(dict.fromkeys(k for r in self.rows for k in r))
        temporary = self.path.with_suffix(".partial")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows)
        os.replace(temporary, self.path)


def train(task: Task, recipe: Recipe, phases: Sequence[Phase], *, resume: bool = False, max_minutes: float = 0.0) -> Path:
    """Run a recipe's phases.

    Args:
        task: what is trained.
        recipe: its recipe; `recipe.output` receives `checkpoint.pt`, `curve.csv` and the trained folders.
        phases: `recipe.phases`.
        resume: continue from `checkpoint.pt`; without one, start anew.
        max_minutes: stop after this time with a checkpoint, to be resumed; 0 for no limit.

    Returns:
        The folder of the saved moving-average weights.

    Raises:
        ValueError: `resume` with a checkpoint of another recipe.
        Interrupted: on Ctrl-C, after saving.
    """
    output = Path(recipe.output)
    output.mkdir(parents=True, exist_ok=True)
    device = next(task.modules.parameters()).device
    optimizers = build_optimizer(task.modules, recipe)
    average = Average(task.modules, recipe.ema_decay)
    generator = torch.Generator(device).manual_seed(recipe.seed + 1)
    state: dict[str, Any] = {"phase": 0, "step": 0, "total": 0, "seconds": 0.0}
    if resume and (output / CHECKPOINT).exists():
        saved = torch.load(output / CHECKPOINT, map_location=device, weights_only=True)
        task.modules.load_state_dict(saved["modules"])
        for optimizer, values in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        for s, v in zip(average.shadow, saved["average"], strict=True):
            s.copy_(v)
        generator.set_state(saved["generator"].cpu())
        state = saved["state"]
        logger.info("resumed %s at step %d", output, state["total"])
    curve = Curve(output / "curve.csv", state["total"])
    start = time.monotonic()

    def checkpoint() -> None:
        save_atomically(
            {
                "modules": task.modules.state_dict(),
                "optimizers": [o.state_dict() for o in optimizers],
                "average": average.shadow,
                "generator": generator.get_state(),
                "state": state,
            },
            output / CHECKPOINT,
        )

    def validate() -> None:
        with average.swapped():
            values = task.validate()
            task.save(output)
        curve.add({"step": state["total"], "minutes": state["seconds"] / 60} | values)
        logger.info("step %d: %s", state["total"], ", ".join(f"{k} {v:.4g}" for k, v in values.items()))

    last_checkpoint = last_validation = time.monotonic()
    try:
        for index in range(state["phase"], len(phases)):
            phase = phases[index]
            batches = iter(_loader(task.dataset(index), phase, state["step"], recipe.workers))
            bar = tqdm(
                total=phase.steps, initial=state["step"], desc=f"phase {index + 1}/{len(phases)}", mininterval=5
            )
            while state["step"] < phase.steps:
                tick = time.monotonic()
                values = _step(task, next(batches), index, state, recipe, phase, optimizers, generator, device)
                average.update(state["total"])
                state["step"] += 1
                state["total"] += 1
                state["seconds"] += time.monotonic() - tick
                bar.update()
                if state["total"] % 20 == 0:
                    row = {"step": state["total"], "minutes": state["seconds"] / 60, "phase": index + 1}
                    curve.add(row | values)
                    bar.set_postfix_str(" ".join(f"{k}={v:.4g}" for k, v in values.items()))
                now = time.monotonic()
                if now - last_checkpoint > 60 * recipe.checkpoint_minutes:
                    checkpoint()
                    last_checkpoint = now
                if now - last_validation > 60 * recipe.validate_minutes:
                    validate()
                    last_validation = time.monotonic()
                if max_minutes and now - start > 60 * max_minutes:
                    checkpoint()
                    validate()
                    return output
            bar.close()
            state["phase"], state["step"] = index + 1, 0
    except KeyboardInterrupt:
        checkpoint()
        raise Interrupted(f"stopped at step {state['total']}; saved to {output / CHECKPOINT}") from None
    checkpoint()
    validate()
    return output


def _loader(dataset: Dataset, phase: Phase, first_step: int, workers: int) -> DataLoader:
    """Batches of a phase from `first_step` on, in the fixed order of their indices."""
    indices = range(first_step * phase.batch, phase.steps * phase.batch)
    return DataLoader(
        dataset,
        batch_size=phase.batch,
        sampler=indices,  # type: ignore[arg-type]
        num_workers=workers,
        prefetch_factor=4 if workers else None,
    )


def _step(
    task: Task,
    batch: Any,
    index: int,
    state: Mapping[str, Any],
    recipe: Recipe,
    phase: Phase,
    optimizers: Sequence[torch.optim.Optimizer],
    generator: torch.Generator,
    device: torch.device,
) -> dict[str, float]:
    """One optimiser step; returns named values for the curve."""
    rate = learning_rate(phase, state["step"])
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
    with torch.autocast(device.type, torch.bfloat16, enabled=recipe.bf16):
        loss, values = task.loss(batch, index, generator)
    if not torch.isfinite(loss):
        raise FloatingPointError(f"loss is {loss.item()} at step {state['total']}; lower the learning rate")
    loss.backward()
    norm = nn.utils.clip_grad_norm_(task.modules.parameters(), recipe.max_grad_norm)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {"loss": loss.item(), "norm": norm.item(), "rate": rate} | values
