"""What every recipe has: phases, optimiser, precision, how a run is spread, saved, watched and shared.

A recipe is one file read top-down: what is trained, on what, in which phases. Each phase starts from where the
last one ended, or from its best weights; within a phase the learning rate warms up and then follows its schedule.
"""

from __future__ import annotations

from dataclasses import dataclass, field

OPTIMIZERS = ("adamw", "adamw8bit", "adafactor", "muon")
SHARDINGS = ("ddp", "fsdp")
TRACKERS = ("tensorboard", "wandb")


def check_least(owner: object, **least: float) -> None:
    """Refuse attributes that are below the least that makes sense.

    Raises:
        ValueError: for the first that is.
    """
    for name, value in least.items():
        if getattr(owner, name) < value:
            raise ValueError(f"{name} must be at least {value}, got {getattr(owner, name)}")


def check_positive(owner: object, *names: str) -> None:
    """Refuse attributes that are not above zero.

    Raises:
        ValueError: for the first that is not.
    """
    for name in names:
        if getattr(owner, name) <= 0:
            raise ValueError(f"{name} must be positive, got {getattr(owner, name)}")


def check_share(owner: object, *names: str) -> None:
    """Refuse attributes that are not within 0 to 1.

    Raises:
        ValueError: for the first that is not.
    """
    for name in names:
        if not 0 <= getattr(owner, name) <= 1:
            raise ValueError(f"{name} must be between 0 and 1, got {getattr(owner, name)}")


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What every phase has.

    Attributes:
        steps: optimiser steps.
        batch: clips per process and accumulated batch; a step has `batch * accumulate * processes`.
        frames: frames per clip, one more than a multiple of the VAE's compression in time.
        learning_rate: peak learning rate.
        final_learning_rate: what the cosine ends at; equal to `learning_rate` for a constant rate.
        warmup: steps of linear warm-up.
        accumulate: batches per step whose gradients are averaged.
        from_best: start from the best weights of the phase before, by the watch list, instead of its last; the
            optimiser starts anew. The first phase cannot.
    """

    steps: int
    batch: int
    frames: int
    learning_rate: float
    final_learning_rate: float = 0.0
    warmup: int = 20
    accumulate: int = 1
    from_best: bool = False

    def __post_init__(self) -> None:
        check_least(self, steps=1, batch=1, frames=1, accumulate=1, warmup=0, final_learning_rate=0)
        check_positive(self, "learning_rate")


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Low-rank adapters instead of full fine-tuning (arXiv 2106.09685).

    Attributes:
        rank: of the two factors; the released Stage I has 128.
        alpha: the adapter counts `alpha / rank`; 1 is the released value, `rank` the usual one.
        dropout: on the adapter's input.
        layers: kinds of linear layers that get one: "attention", "feed_forward", "adaptive_norm".
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    layers: tuple[str, ...] = ("attention", "feed_forward", "adaptive_norm")

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ValueError(
                f"lora needs a rank of at least 1 and a positive alpha, got {self.rank} and {self.alpha}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout must be in [0, 1), got {self.dropout}")
        known = ("attention", "feed_forward", "adaptive_norm")
        for name in self.layers:
            if name not in known:
                raise ValueError(f"lora.layers must be of {', '.join(known)}, got {name!r}")
        if not self.layers:
            raise ValueError(f"lora.layers must name at least one of {', '.join(known)}, got none")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What every recipe has.

    Attributes:
        task: which objective, a key of `flashvideo.training.recipes.RECIPES`.
        output: folder for checkpoints, curves and the trained weights.
        phases: in order.
        start: model folder whose weights to start from, or `nano`; empty for random weights.
        seed: of initial weights, data and noise.
        workers: processes that make training data.
        optimizer: "adamw"; "adamw8bit" (bitsandbytes, CUDA); "adafactor", whose state is factored and whose learning
            rates are relative to each parameter's root mean square; or "muon" for the hidden matrices with AdamW for
            the rest.
        rate_factors: by module, such as {text_encoder: 0.1}: its part of every learning rate.
        weight_decay, max_grad_norm: as in AdamW; gradient norm is clipped.
        ema_decay: of the exponential moving average of the weights, which is what is saved and validated; 0 keeps none.
        bf16: autocast to bfloat16.
        compile: fuse the transformer's blocks by torch.compile, for a quarter less time; needs a C++ compiler.
        checkpoint_blocks: recompute each block in the backward pass instead of keeping its activations: less memory,
            about a third more time.
        sharding: how several processes share the model: "ddp", a copy each, or "fsdp", a part each (FSDP2).
        max_skips: how many steps in a row may be left out since their loss or gradients are not finite before the run
            stops.
        log_steps: steps between rows of the curve.
        checkpoint_minutes: time between checkpoints.
        checkpoint_limit: how many checkpoints are kept.
        validate_minutes: time between validations; one always ends a phase.
        validate_steps: steps between validations instead, so that a run that was stopped judges at the same steps as
            one that was not; 0 goes by time.
        trackers: "tensorboard" and "wandb", besides the curve's CSV file.
        push_to_hub: repository on the Hugging Face Hub that the trained folder goes to at the end; empty for none.
    """

    task: str
    output: str
    phases: tuple[Phase, ...]
    start: str = ""
    seed: int = 0
    workers: int = 1
    optimizer: str = "adamw"
    rate_factors: dict[str, float] = field(default_factory=dict)
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    ema_decay: float = 0.995
    bf16: bool = True
    compile: bool = False
    checkpoint_blocks: bool = False
    sharding: str = "ddp"
    max_skips: int = 0
    log_steps: int = 20
    checkpoint_minutes: float = 3.0
    checkpoint_limit: int = 2
    validate_minutes: float = 10.0
    validate_steps: int = 0
    trackers: tuple[str, ...] = ()
    push_to_hub: str = ""

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}")
        if self.sharding not in SHARDINGS:
            raise ValueError(f"sharding must be one of {', '.join(SHARDINGS)}, got {self.sharding!r}")
        for name in self.trackers:
            if name not in TRACKERS:
                raise ValueError(f"trackers must be of {', '.join(TRACKERS)}, got {name!r}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}")
        if not self.phases:
            raise ValueError("phases must have at least one phase, got none")
        check_least(self, checkpoint_limit=1, log_steps=1, validate_steps=0, max_skips=0)
        check_least(self, workers=0, weight_decay=0, checkpoint_minutes=0, validate_minutes=0)
        check_positive(self, "max_grad_norm")
        for module, factor in self.rate_factors.items():
            if not isinstance(factor, int | float) or factor < 0:
                raise ValueError(f"rate_factors.{module} must be a number of at least 0, got {factor!r}")

    def is_sharded(self, num_processes: int) -> bool:
        """Whether each process holds a part of the weights; one that is alone holds them all."""
        return self.sharding == "fsdp" and num_processes > 1
