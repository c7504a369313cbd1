"""Trainings in processes of their own, all forked from one that has imported everything: see `test_processes.py`.

python forked.py FOLDER: each run has its output in a folder of FOLDER, and `codes.json` tells how they ended.
"""

import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch._dynamo
import torch.distributed.checkpoint.state_dict
import torch.distributed.fsdp
import torch.distributed.tensor
from safetensors.torch import save_file
from torch import nn

from flashvideo.models.transformer import FlashVideoTransformer3DModel
from flashvideo.training.config import Phase, Recipe
from flashvideo.training.loop import Outcome, train
from flashvideo.training.stopping import Interrupted

MODEL = {
    "num_attention_heads": 1,
    "attention_head_dim": 16,
    "in_channels": 2,
    "out_channels": 2,
    "time_embed_dim": 8,
    "text_embed_dim": 6,
    "num_layers": 1,
}


@dataclass(frozen=True, kw_only=True)
class ToyRecipe(Recipe):
    phases: tuple[Phase, ...]


class Clips(torch.utils.data.Dataset):
    """Noise that is a function of step and place."""

    def __init__(self, clips_per_step: int) -> None:
        self.clips_per_step = clips_per_step

    def __getitem__(self, index: tuple[int, int]) -> tuple[torch.Tensor, int]:
        seed = index[0] * self.clips_per_step + index[1]
        return torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(seed)), seed % 7


class ToyTask:
    """A transformer and what embeds its text, trained together to predict noise."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        transformer = FlashVideoTransformer3DModel(**MODEL)
        self.modules = nn.ModuleDict({"transformer": transformer, "text": nn.Embedding(7, 5 * 6)})
        for parameter in transformer.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.1)

    def dataset(self, phase_index, clips_per_step):
        return Clips(clips_per_step)

    def loss(self, batch, phase_index, draws):
        latents, words = batch
        noise = draws.normal(latents.shape[1:])
        t = draws.stratified()
        text = self.modules["text"](words).unflatten(1, (5, 6))
        noisy = (1 - t.view(-1, 1, 1, 1, 1)) * latents + noise
        error = self.modules["transformer"](noisy, text, 1000 * t).sample - noise
        high = {"high": float(error.detach().square()[t > 0.5].mean())} if (t > 0.5).any() else {}
        return error.square().mean(), high

    def validate(self, folder):
        (folder / "note.txt").write_text("judged")
        text = self.modules["text"](torch.zeros(1, dtype=torch.long)).unflatten(1, (5, 6))
        output = self.modules["transformer"](torch.ones(1, 2, 2, 4, 4), text, torch.tensor([500.0])).sample
        return {"size": -float(output.square().mean())}

    def score(self, values):
        return values["size"]

    def warnings(self, values, history):
        return []

    def save(self, folder, modules=None):
        modules = modules or self.modules
        modules["transformer"].save_pretrained(folder / "transformer")
        save_file(modules["text"].state_dict(), folder / "text.safetensors")


def recipe(output: Path, *, batch: int = 4, accumulate: int = 1, **options: object) -> ToyRecipe:
    """Two phases of two steps; the second starts from the best weights of the first."""
    phase = Phase(steps=2, batch=batch, frames=1, learning_rate=3e-3, warmup=1, accumulate=accumulate)
    second = replace(phase, from_best=True)
    defaults = {
        "task": "toy",
        "phases": (phase, second),
        "workers": 0,
        "bf16": False,
        "ema_decay": 0.8,
        "log_steps": 1,
        "validate_steps": 2,
    }
    return ToyRecipe(**defaults | {"output": str(output)} | options)


def run(toy: ToyRecipe, task: ToyTask | None = None, **options: object) -> Outcome:
    return train(task or ToyTask(), toy, toy.phases, **options)


def forked(job: Callable[[], None], count: int = 1) -> list[int]:
    """Exit codes of processes that do a job together; 1 for one that fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(count):
        child = os.fork()
        if not child:
            if count > 1:
                names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
                os.environ |= {k: str(v) for k, v in names.items()}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            try:
                job()
            except Interrupted as interrupt:
                os._exit(interrupt.exit_code)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def killed_at(moment: int, toy: ToyRecipe) -> Callable[[], None]:
    """A training that dies just before the file or folder of this number gets its name."""

    def job() -> None:
        real, count = os.replace, 0

        def replace_or_die(*names: object) -> None:
            nonlocal count
            if count == moment:
                os._exit(9)
            count += 1
            real(*names)

        os.replace = replace_or_die  # in this process alone
        run(toy, resume=True)

    return job


def share(root: Path) -> dict[str, list[int]]:
    """The same steps by one process and by two, accumulated or not."""
    codes = {}
    for name, processes, batch, accumulate, more in (
        ("one", 1, 4, 1, {}),
        ("accumulated", 1, 2, 2, {}),
        ("ddp", 2, 2, 1, {"checkpoint_blocks": True}),
        ("one_muon", 1, 4, 1, {"optimizer": "muon"}),
        ("ddp_muon", 2, 1, 2, {"optimizer": "muon"}),
    ):
        toy = recipe(root / name, batch=batch, accumulate=accumulate, **more)
        codes[name] = forked(lambda toy=toy: run(toy), processes)
    return codes


def move(root: Path) -> dict[str, list[int]]:
    """Runs that stop after their first steps and go on, with another number of processes where that can be."""
    codes = {}
    for name, sharding, turns in (("ddp_moved", "ddp", (2, 1, 2)), ("fsdp", "fsdp", (2, 2))):
        for turn, processes in enumerate(turns):
            toy = recipe(
                root / name,
                batch=4 // processes // 2,
                accumulate=2,
                sharding=sharding,
                checkpoint_blocks=True,
            )
            minutes = 0.0 if turn == len(turns) - 1 else 1e-9  # stops after a step
            job = lambda toy=toy, minutes=minutes: run(toy, resume=True, max_minutes=minutes)  # noqa: E731
            codes[f"{name}_{turn}"] = forked(job, processes)
    for turn, decay in enumerate((0.0, 0.8)):  # an average that begins on the way
        toy = recipe(root / "begun", batch=2, sharding="fsdp", ema_decay=decay)
        codes[f"begun_{turn}"] = forked(lambda toy=toy: run(toy, resume=True, max_minutes=1e-9), 2)
    codes["fsdp_of_others"] = forked(lambda toy=toy: run(toy, with_other_words(), resume=True), 2)
    toy = recipe(root / "fsdp", batch=4)
    codes["fsdp_by_one"] = forked(lambda: run(toy, resume=True))
    return codes


def with_other_words() -> ToyTask:
    """A task whose weights fit no other's checkpoint."""
    task = ToyTask()
    task.modules["text"] = nn.Embedding(9, 5 * 6)
    return task


def tell_one(root: Path) -> dict[str, list[int]]:
    """A training of two processes, of which the second is told to stop in its first step."""

    def job() -> None:
        task = ToyTask()
        loss = task.loss

        def told(*arguments: object) -> tuple[torch.Tensor, dict[str, float]]:
            if os.environ["RANK"] == "1":
                signal.raise_signal(signal.SIGTERM)
            return loss(*arguments)

        task.loss = told
        run(recipe(root / "told", batch=2), task)

    return {"told": forked(job, 2)}


def kill(root: Path) -> dict[str, list[int]]:
    """Trainings that die once, each at another moment, and go on."""
    codes = {}
    for moment in range(0, 20, 3):
        toy = recipe(root / f"killed_{moment}", batch=4)
        dead, alive = forked(killed_at(moment, toy)), forked(lambda toy=toy: run(toy, resume=True))
        codes[f"killed_{moment}"] = dead + alive
    return codes


def main(root: Path) -> None:
    root.mkdir()
    codes = share(root) | move(root) | tell_one(root) | kill(root)
    (root / "codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
