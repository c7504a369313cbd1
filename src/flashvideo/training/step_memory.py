"""What a process of a training holds in memory, phase by phase, without doing it.

A step has four moments: latents and text are encoded, the forward pass has kept what the backward pass needs, the
backward pass ends with all gradients there, and the optimiser works. The most of them is the step's peak. What stays
from step to step is counted from the networks' parameters, what comes and goes by `flashvideo.training.step_work`.

With N processes under DDP each holds all, and a second copy of the gradients in buckets; under FSDP a part of weights,
gradients, optimiser state and average, and for a moment whole blocks.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from flashvideo.pipelines.devices import GIB
from flashvideo.pipelines.memory import DEVICE_RESERVE_BYTES, FRAGMENTATION
from flashvideo.shapes import latent_shape
from flashvideo.training.config import Phase, Recipe
from flashvideo.training.model_configs import RecipeConfigs
from flashvideo.training.optimizers import is_hidden
from flashvideo.training.pool import SHARD
from flashvideo.training.recipes import VAERecipe
from flashvideo.training.samples import shapes_of_phase
from flashvideo.training.stage_recipes import Stage1Phase, Stage1Recipe, Stage2Phase, Stage2Recipe
from flashvideo.training.starts import frozen_dtype, trains_text, transformer_dtype
from flashvideo.training.step_work import StepWork, Work

_GATHERED_BLOCKS = 3
"""Blocks that FSDP has whole at once: the current and the next one, and the buffer that one is gathered in."""

_GRADIENT_BLOCKS = 2
"""Blocks whose gradients it has whole: the current one's, and those that are being summed up."""


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Bytes of a process.

    Attributes:
        trained: weights of the networks that are trained, the frozen ones beside an adapter among them.
        frozen: weights of VAE and text encoder.
        average: the moving average.
        optimizer: the optimiser's state.
        data: encoded clips of the procedural world, which the host holds; counted where it does the work too.
        moments: the most that comes and goes, by moment: "encode", "forward", "backward", "update", and "validate" for
            the VAE's work at a validation.
        reserve: what drivers and allocator take beside.
    """

    trained: int
    frozen: int
    average: int
    optimizer: int
    data: int = 0
    moments: Mapping[str, int] = field(default_factory=dict)
    reserve: int = 0

    @property
    def resident(self) -> int:
        """What stays from step to step."""
        return self.trained + self.frozen + self.average + self.optimizer + self.data

    @property
    def peak(self) -> int:
        """The most at once."""
        return self.resident + self.reserve + max(self.moments.values(), default=0)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; sizes in GiB."""
        parts = {
            name: getattr(self, name)
            for name in ("trained", "frozen", "average", "optimizer", "data", "peak")
        }
        gib = {name: round(value / GIB, 3) for name, value in (parts | dict(self.moments)).items()}
        return {f"{name}_gib": value for name, value in gib.items()}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How many numbers the networks hold.

    Attributes:
        trained: parameters that are trained.
        total: parameters of the networks that are trained in whole or in part.
        vae: of a VAE that is not trained.
        text_encoder: of a text encoder that is not trained.
    """

    trained: int
    total: int
    vae: int
    text_encoder: int


class Estimate:
    """Estimates of one model, for any recipe that trains it.

    Args:
        configs: What takes part.
        device: Where: of accelerators "cuda" stands for all.
    """

    def __init__(self, configs: RecipeConfigs, device: torch.device) -> None:
        self.configs, self.device = configs, device
        self.work = StepWork(configs, on_host=device.type == "cpu")
        self._networks: dict[object, nn.ModuleDict] = {}

    def networks(self, recipe: Recipe) -> nn.ModuleDict:
        """What is trained, without data, by the names that tasks give it."""
        key: object = isinstance(recipe, VAERecipe) and recipe.freeze_encoder
        if isinstance(recipe, Stage1Recipe | Stage2Recipe):
            key = (recipe.lora, transformer_dtype(recipe, self.device), _trains_text(recipe))
        if key not in self._networks:
            self._networks[key] = self._build_networks(recipe)
        return self._networks[key]

    def _build_networks(self, recipe: Recipe) -> nn.ModuleDict:
        if isinstance(recipe, VAERecipe):
            vae = self.work.vae().float()
            if recipe.freeze_encoder:
                for module in filter(None, (vae.encoder, vae.quant_conv)):
                    module.requires_grad_(False)
            return nn.ModuleDict({"vae": vae})
        assert isinstance(recipe, Stage1Recipe | Stage2Recipe)
        frozen = transformer_dtype(recipe, self.device)
        networks = nn.ModuleDict({"transformer": self.work.transformer(lora=recipe.lora, frozen=frozen)})
        if _trains_text(recipe):
            networks["text_encoder"] = self.work.text_encoder()
        return networks

    @functools.cached_property
    def _num_vae(self) -> int:
        return _count(self.work.vae(), trained=False)

    @functools.cached_property
    def _num_text(self) -> int:
        return _count(self.work.text_encoder(), trained=False)

    def sizes(self, recipe: Recipe) -> Sizes:
        """How many parameters there are."""
        networks = self.networks(recipe)
        is_vae = isinstance(recipe, VAERecipe)
        has_text = self.configs.text_encoder is not None and "text_encoder" not in networks
        return Sizes(
            trained=_count(networks, trained=True),
            total=_count(networks, trained=False),
            vae=0 if is_vae else self._num_vae,
            text_encoder=self._num_text if has_text else 0,
        )

    def phase(self, recipe: Recipe, phase: Phase, *, processes: int = 1) -> StepMemory:
        """What each process holds in a phase.

        Args:
            recipe: The recipe.
            phase: One of its phases.
            processes: How many share the work.
        """
        networks = self.networks(recipe)
        sharded = recipe.is_sharded(processes)
        parts = processes if sharded else 1
        trained = list(_trained(networks))
        gradients = sum(parameter.nbytes for _, parameter in trained)
        encoders = self._encoders(recipe)
        moments = self._moments(recipe, phase, networks, gradients=gradients, processes=processes)
        slack = 1.0 if self.device.type == "cpu" else FRAGMENTATION
        return StepMemory(
            trained=sum(p.nbytes for p in networks.parameters()) // parts,
            frozen=encoders,
            average=gradients // parts if recipe.ema_decay else 0,
            optimizer=sum(optimizer_bytes(recipe.optimizer, n, p) for n, p in trained) // parts,
            data=self._pools(recipe),
            moments={name: int(slack * value) for name, value in moments.items()},
            reserve=0 if self.device.type == "cpu" else DEVICE_RESERVE_BYTES,
        )

    def _pools(self, recipe: Recipe) -> int:
        """Bytes of encoded procedural clips, 2 for each number; all are held, whatever the phase."""
        if self.device.type != "cpu" or not isinstance(recipe, Stage1Recipe) or recipe.data is not None:
            return 0
        numbers = 0
        for frames, count in recipe.clips.items():
            shape = latent_shape(frames, *recipe.size, vae_config=self.configs.vae)
            numbers += -(-count // SHARD) * SHARD * math.prod(shape.as_tuple(1))
        return 2 * numbers

    def _encoders(self, recipe: Recipe) -> int:
        """Bytes of VAE and text encoder while steps are taken."""
        if isinstance(recipe, VAERecipe):
            return 0
        assert isinstance(recipe, Stage1Recipe | Stage2Recipe)
        if recipe.precomputed and self.device.type != "cpu":
            return 0  # they wait on the host
        return self._idle_encoders(recipe)

    def _idle_encoders(self, recipe: Stage1Recipe | Stage2Recipe) -> int:
        itemsize = frozen_dtype(recipe, self.device).itemsize
        numbers = self._num_vae
        if self.configs.text_encoder is not None and not (_trains_text(recipe)):
            numbers += self._num_text
        return numbers * itemsize

    def _frozen(self, recipe: Recipe) -> str:
        return _dtype_name(frozen_dtype(recipe, self.device))

    def _moments(
        self, recipe: Recipe, phase: Phase, networks: nn.ModuleDict, *, gradients: int, processes: int
    ) -> dict[str, int]:
        """What comes and goes, moment by moment."""
        sharded = recipe.is_sharded(processes)
        parts = processes if sharded else 1
        buckets = gradients if processes > 1 and not sharded else 0
        # FSDP sums up the gradients of accumulated batches before it shares them out.
        kept = buckets + (gradients if phase.accumulate > 1 else 0)
        whole = _whole_blocks(networks, trained_only=False) * _GATHERED_BLOCKS if sharded else 0
        whole_gradients = _whole_blocks(networks, trained_only=True) * _GRADIENT_BLOCKS if sharded else 0
        whole += _outside_blocks(networks) if sharded else 0
        # Of several sizes the one of the most pixels takes the most.
        shape = max(phase_shapes(recipe, phase), key=math.prod)
        work = self._work(recipe, phase, shape)
        if isinstance(recipe, VAERecipe):
            peak = last = self.work.vae_backward(work)
        else:
            peak, last = self.work.backward(work, 1 if isinstance(recipe, Stage1Recipe) else 2, phase)
        there = max(kept, buckets + gradients // parts)
        moments = {
            "encode": kept + self._encode(recipe, phase, shape),
            "forward": kept + whole + whole_gradients + peak,
            "backward": there + whole + whole_gradients + last,
        }
        moments["update"] = there + self._update(recipe, networks) // parts
        moments["validate"] = self._validate(recipe)
        return moments

    def _work(self, recipe: Recipe, phase: Phase, shape: tuple[int, int, int]) -> Work:
        repeat = phase.times_per_clip if isinstance(phase, Stage2Phase) else 1
        return Work(
            shape=shape,
            batch=phase.batch * repeat,
            checkpointed=recipe.checkpoint_blocks,
            bf16=recipe.bf16,
            lora=recipe.lora if isinstance(recipe, Stage1Recipe | Stage2Recipe) else None,
            frozen=_dtype_name(transformer_dtype(recipe, self.device))
            if isinstance(recipe, Stage1Recipe | Stage2Recipe)
            else "float32",
            keyframes=phase.keyframes if isinstance(phase, Stage1Phase) else 0,
            trains_text=_trains_text(recipe),
        )

    def _encode(self, recipe: Recipe, phase: Phase, shape: tuple[int, int, int]) -> int:
        """What encoding a batch takes."""
        if isinstance(recipe, VAERecipe) or not isinstance(recipe, Stage1Recipe | Stage2Recipe):
            return 0
        is_stage1 = isinstance(recipe, Stage1Recipe)
        if recipe.precomputed or (is_stage1 and recipe.data is None):
            return 0  # read as latents
        work = Work(
            shape=shape, batch=phase.batch, checkpointed=False, bf16=recipe.bf16, frozen=self._frozen(recipe)
        )
        # Of Stage II the clean and the degraded pixels are there, and while one clip is degraded copies of it.
        clip = 4 * 3 * math.prod(shape)
        pixels = phase.batch * clip * (1 if is_stage1 else 2)
        degrading = 0 if is_stage1 else 3 * clip
        return pixels + max(degrading, self.work.encode(work, strips=recipe.vae_strips), self.work.text(work))

    def _update(self, recipe: Recipe, networks: nn.ModuleDict) -> int:
        """What the optimiser allocates for a moment."""
        sizes = [p.nbytes for _, p in _trained(networks)]
        at_once = self.device.type != "cpu" and recipe.optimizer in ("adamw", "adafactor")
        # On accelerators torch's optimisers work on all parameters together, elsewhere on one after another.
        return sum(sizes) if at_once else 3 * max(sizes, default=0)

    def _validate(self, recipe: Recipe) -> int:
        """What the VAE's work takes at a validation, where encoders come back that waited elsewhere."""
        if isinstance(recipe, Stage2Recipe):
            shape = (recipe.watch_frames, *recipe.size)
        elif isinstance(recipe, Stage1Recipe) and (recipe.data is None or recipe.prompts):
            lengths = [phase_shapes(recipe, phase) for phase in recipe.phases]
            shape = (max(f for shapes in lengths for f, *_ in shapes), *recipe.size)
        else:
            return 0
        work = Work(shape=shape, batch=1, checkpointed=False, bf16=recipe.bf16, frozen=self._frozen(recipe))
        back = self._idle_encoders(recipe) - self._encoders(recipe)
        return back + self.work.decode(work, strips=recipe.vae_strips)


def phase_shapes(recipe: Recipe, phase: Phase) -> tuple[tuple[int, int, int], ...]:
    """(frames, height, width) of all clips of a phase."""
    if isinstance(recipe, Stage1Recipe | Stage2Recipe):
        return shapes_of_phase(recipe, list(recipe.phases).index(phase))
    return ((phase.frames, *getattr(phase, "crop")),)  # noqa: B009


def optimizer_bytes(optimizer: str, name: str, parameter: nn.Parameter) -> int:
    """What an optimiser keeps of a parameter.

    Args:
        optimizer: As in recipes.
        name: The parameter's, with the network's before it.
        parameter: The parameter, in float32.
    """
    count = parameter.numel()
    if optimizer == "muon" and is_hidden(name, parameter):
        return 4 * count  # momentum
    if optimizer == "adamw8bit" and count >= 4096:
        return 2 * count + 2 * 4 * math.ceil(count / 256)  # a scale for each block of 256
    if optimizer == "adafactor":
        if parameter.ndim < 2:
            return 4 * count
        return 4 * (count // parameter.shape[-1] + count // parameter.shape[-2])
    return 8 * count


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _trains_text(recipe: Recipe) -> bool:
    return isinstance(recipe, Stage1Recipe) and trains_text(recipe)


def _trained(networks: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in networks.named_parameters() if p.requires_grad)


def _count(module: nn.Module, *, trained: bool) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)


def _blocks(networks: nn.ModuleDict) -> nn.ModuleList | None:
    blocks = (
        getattr(networks["transformer"], "transformer_blocks", None) if "transformer" in networks else None
    )
    return blocks if isinstance(blocks, nn.ModuleList) else None


def _whole_blocks(networks: nn.ModuleDict, *, trained_only: bool) -> int:
    """Bytes of one block."""
    blocks = _blocks(networks)
    if blocks is None:
        return 0
    return sum(p.nbytes for p in blocks[0].parameters() if p.requires_grad or not trained_only)


def _outside_blocks(networks: nn.ModuleDict) -> int:
    """Bytes of what belongs to no block, which FSDP has whole all through a step."""
    blocks = _blocks(networks)
    inside = 0 if blocks is None else sum(p.nbytes for p in blocks.parameters())
    return sum(p.nbytes for p in networks.parameters()) - inside
