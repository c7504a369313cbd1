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
from flashvideo.training.draws import Draws

logger = logging.getLogger(__name__)
CHECKPOINT = "checkpoint.pt"


class Task(Protocol):
    """One objective. `modules` hold everything that is trained."""

    modules: nn.ModuleDict

    def dataset(self, phase_index: int, clips_per_step: int) -> Dataset:
        """Samples of a phase: `dataset[step, place]` depends on these, the recipe's seed and the phase alone."""

    def loss(self, batch: Any, phase_index: int, draws: Draws) -> tuple[Tensor, dict[str, float]]:
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
    return (
        re.search(r"transformer_blocks.*(attn1|ff)|blocks?\..*(conv1|conv2|upsamplers|downsamplers)", name)
        is not None
    )


def build_optimizer(modules: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the hidden matrices and AdamW for the rest (`recipe.optimizer`).

    One optimiser for each kind and each of `recipe.rate_factors`, which its group holds as "factor".

    Raises:
        ValueError: if a factor is given for a module that the task does not train.
    """
    trained = [name for name, _ in modules.named_children()]
    for name in recipe.rate_factors:
        if name not in trained:
            raise ValueError(f"rate_factors must name one of {', '.join(trained)}, got {name!r}")
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in modules.named_parameters():
        if parameter.requires_grad:
            hidden = recipe.optimizer == "muon" and is_hidden(name, parameter)
            factor = recipe.rate_factors.get(name.partition(".")[0], 1.0)
            groups.setdefault((hidden, factor), []).append(parameter)
    adam: dict[str, Any] = {"lr": 1.0, "betas": (0.9, 0.98), "weight_decay": recipe.weight_decay}
    muon: dict[str, Any] = {"lr": 1.0, "weight_decay": recipe.weight_decay, "adjust_lr_fn": "match_rms_adamw"}
    optimizers: list[torch.optim.Optimizer] = []
    for (hidden, factor), parameters in sorted(groups.items(), key=lambda item: item[0]):
        optimizer = KernelMuon(parameters, **muon) if hidden else torch.optim.AdamW(parameters, **adam)
        optimizer.param_groups[0]["factor"] = factor
        optimizers.append(optimizer)
    return optimizers


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


class Run:
    """A task in training: everything that a checkpoint holds, and the steps that change it.

    Args:
        task: what is trained.
        recipe: its recipe; `recipe.output` receives `checkpoint.pt`, `curve.csv` and the trained folders.
        phases: `recipe.phases`.
    """

    def __init__(self, task: Task, recipe: Recipe, phases: Sequence[Phase]) -> None:
        self.task, self.recipe, self.phases = task, recipe, phases
        self.output = Path(recipe.output)
        self.output.mkdir(parents=True, exist_ok=True)
        self.device = next(task.modules.parameters()).device
        self.optimizers = build_optimizer(task.modules, recipe)
        self.average = Average(task.modules, recipe.ema_decay)
        self.state: dict[str, Any] = {"phase": 0, "step": 0, "total": 0, "seconds": 0.0}
        self.curve = Curve(self.output / "curve.csv", 0)
        self.last_checkpoint = self.last_validation = time.monotonic()

    def restore(self) -> None:
        """Continue from the checkpoint, if there is one: bit for bit on the same kind of device."""
        path = self.output / CHECKPOINT
        if not path.exists():
            return
        saved = torch.load(path, map_location=self.device, weights_only=True)
        self.task.modules.load_state_dict(saved["modules"])
        for optimizer, values in zip(self.optimizers, saved["optimizers"], strict=True):
            factor = optimizer.param_groups[0]["factor"]  # the recipe's counts, as all of its rates do
            optimizer.load_state_dict(values)
            optimizer.param_groups[0]["factor"] = factor
        for shadow, value in zip(self.average.shadow, saved["average"], strict=True):
            shadow.copy_(value)
        self.state = saved["state"]
        self.curve = Curve(self.output / "curve.csv", self.state["total"])
        logger.info("resumed %s at step %d", self.output, self.state["total"])

    def checkpoint(self) -> None:
        """Save all that `restore` reads."""
        saved = {
            "modules": self.task.modules.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "average": self.average.shadow,
            "state": self.state,
        }
        save_atomically(saved, self.output / CHECKPOINT)
        self.last_checkpoint = time.monotonic()

    def validate(self) -> None:
        """Judge and save the moving average's weights."""
        with self.average.swapped():
            values = self.task.validate()
            self.task.save(self.output)
        self.curve.add({"step": self.state["total"], "minutes": self.state["seconds"] / 60} | values)
        figures = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        logger.info("step %d: %s", self.state["total"], figures)
        self.last_validation = time.monotonic()

    def step(self, batch: Any) -> dict[str, float]:
        """One optimiser step; returns named values for the curve."""
        started, state, recipe = time.monotonic(), self.state, self.recipe
        rate = learning_rate(self.phases[state["phase"]], state["step"])
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["factor"]
        places = range(self.phases[state["phase"]].batch)
        draws = Draws(recipe.seed, state["total"], places, len(places), self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.bf16):
            loss, values = self.task.loss(batch, state["phase"], draws)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"loss is {loss.item()} at step {state['total']}; lower the learning rate"
            )
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.task.modules.parameters(), recipe.max_grad_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.average.update(state["total"])
        state["step"] += 1
        state["total"] += 1
        state["seconds"] += time.monotonic() - started
        return {"loss": loss.item(), "norm": norm.item(), "rate": rate} | values

    def run_phase(self, deadline: float) -> bool:
        """Train until the current phase ends or time is up; returns whether it ended."""
        state, index = self.state, self.state["phase"]
        phase = self.phases[index]
        batches = iter(
            _loader(self.task.dataset(index, phase.batch), phase, state["step"], self.recipe.workers)
        )
        title = f"phase {index + 1}/{len(self.phases)}"
        with tqdm(total=phase.steps, initial=state["step"], desc=title, mininterval=5) as bar:
            while state["step"] < phase.steps:
                values = self.step(next(batches))
                bar.update()
                if state["total"] % 20 == 0:
                    row = {"step": state["total"], "minutes": state["seconds"] / 60, "phase": index + 1}
                    self.curve.add(row | values)
                    bar.set_postfix_str(" ".join(f"{k}={v:.4g}" for k, v in values.items()))
                now = time.monotonic()
                if now - self.last_checkpoint > 60 * self.recipe.checkpoint_minutes:
                    self.checkpoint()
                if now - self.last_validation > 60 * self.recipe.validate_minutes:
                    self.validate()
                if now > deadline:
                    return False
        state["phase"], state["step"] = index + 1, 0
        return True


def train(
    task: Task, recipe: Recipe, phases: Sequence[Phase], *, resume: bool = False, max_minutes: float = 0.0
) -> Path:
    """Run a recipe's phases.

    Args:
        task: what is trained.
        recipe: its recipe.
        phases: `recipe.phases`.
        resume: continue from the checkpoint in the recipe's output; without one, start anew.
        max_minutes: stop after this time with a checkpoint, to be resumed; 0 for no limit.

    Returns:
        The folder of the saved moving-average weights.

    Raises:
        FloatingPointError: if the loss is not finite.
        Interrupted: on Ctrl-C, after saving.
    """
    run = Run(task, recipe, phases)
    if resume:
        run.restore()
    deadline = time.monotonic() + 60 * max_minutes if max_minutes else math.inf
    try:
        while run.state["phase"] < len(phases) and run.run_phase(deadline):
            pass
    except KeyboardInterrupt:
        run.checkpoint()
        where = run.output / CHECKPOINT
        raise Interrupted(f"stopped at step {run.state['total']}; saved to {where}") from None
    run.checkpoint()
    run.validate()
    return run.output


def _loader(dataset: Dataset, phase: Phase, first_step: int, workers: int) -> DataLoader:
    """Batches of a phase from `first_step` on, in the fixed order of their indices."""
    indices = [(step, place) for step in range(first_step, phase.steps) for place in range(phase.batch)]
    return DataLoader(
        dataset,
        batch_size=phase.batch,
        sampler=indices,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
    )
