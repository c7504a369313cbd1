"""What one training step allocates, found out by taking it on tensors that have a shape but no data.

The real networks run forward and backward, so activations, what autocast keeps of the weights and what checkpointing
recomputes are counted rather than guessed. Blocks follow one another, so few of them tell what all take. Gradients are
not counted here: they are dropped as they come, and `flashvideo.training.step_memory` adds them where they stay.

Shapes: B clips, F frames, H, W pixels; f, C, h, w of the latents; L text tokens, D channels of the text encoder.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import T5Config, T5EncoderModel

from flashvideo.models.transformer import FlashVideoTransformer3DModel
from flashvideo.pipelines.footprint import AllocationTracker, Footprint, ModelConfigs
from flashvideo.presets import FLASHVIDEO
from flashvideo.schedule import add_noise, velocity_target
from flashvideo.shapes import latent_shape
from flashvideo.training.config import LoRA
from flashvideo.training.lora import add_lora
from flashvideo.training.model_configs import RecipeConfigs
from flashvideo.training.stage2 import path_loss
from flashvideo.vae import decode_latents, encode_moments, encode_pixels
from flashvideo.vae.layers import THRIFTS

_FEW = 2
"""Blocks that are run, and once one more: the difference is what each further block takes."""

_TERMS = ("contrast_weight", "still_contrast_weight", "difference_weight")
"""Keys of a Stage II phase: weights of further terms of its loss, which take memory where they are not 0."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """One kind of step.

    Attributes:
        shape: (frames, height, width) of the clips.
        batch: B, each clip of which may count several times.
        checkpointed: whether blocks are recomputed in the backward pass.
        bf16: whether there is autocast to bfloat16.
        lora: the adapter, if one is trained.
        frozen: dtype of weights that are not trained, a name of torch's.
        keyframes: latent frames that are trained on; 0 for all.
        trains_text: whether the text encoder is in the backward pass too.
    """

    shape: tuple[int, int, int]
    batch: int
    checkpointed: bool
    bf16: bool
    lora: LoRA | None = None
    frozen: str = "float32"
    keyframes: int = 0
    trains_text: bool = False


class StepTracker(AllocationTracker):
    """Counts also what an accelerator's attention needs in its backward pass: the queries' gradient in 32 bits."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation and counts what it allocates."""
        if (
            func is torch.ops.prim.device.default
        ):  # two of three calls: tensors without data are asked where they are
            return func(*args, **kwargs or {})
        result = super().__torch_dispatch__(func, types, args, kwargs)
        backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
        if func is backward and not self._on_host:
            self.peak_bytes = max(self.peak_bytes, self._alive_bytes[0] + 4 * args[1].numel())
        return result


def norm_in_32_bits(module: nn.Module) -> None:
    """Has norms work in 32 bits, in place, as autocast does on CUDA devices and not on processors."""
    for part in module.modules():
        if isinstance(part, nn.LayerNorm | nn.GroupNorm):
            part.float().register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))


class StepWork:
    """Finds out what steps allocate beyond weights, gradients and the optimiser's state.

    Args:
        configs: What takes part.
        on_host: Whether the host's processor does it, rather than an accelerator.
    """

    def __init__(self, configs: RecipeConfigs, *, on_host: bool) -> None:
        self.configs, self.on_host = configs, on_host
        self._mode = FakeTensorMode()
        self._found: dict[Any, tuple[int, int]] = {}

    def transformer(
        self, *, lora: LoRA | None, frozen: torch.dtype, **changes: Any
    ) -> FlashVideoTransformer3DModel:
        """The transformer without data, with its adapter."""
        config = {**self.configs.transformer, **changes}
        with torch.device("meta"):
            model: FlashVideoTransformer3DModel = FlashVideoTransformer3DModel.from_config(config)
            model = model.type(torch.float32 if lora is None else frozen)
            if lora is not None:
                add_lora(model, lora)
        return model.train()

    def vae(self) -> AutoencoderKLCogVideoX:
        """The VAE without data."""
        with torch.device("meta"):
            model: AutoencoderKLCogVideoX = AutoencoderKLCogVideoX.from_config(dict(self.configs.vae))
        return model

    def text_encoder(self) -> T5EncoderModel:
        """The text encoder without data."""
        with torch.device("meta"):
            return T5EncoderModel(T5Config(**dict(self.configs.text_encoder or {}))).train()

    def backward(self, work: Work, stage: int, phase: Any) -> tuple[int, int]:
        """The most that forward and backward pass allocate, gradients left out.

        Args:
            work: The step.
            stage: 1 or 2.
            phase: Of the recipe; at Stage II its further terms of the loss count.

        Returns:
            Bytes of a model of all its blocks, and of one block: what is left at the end of the backward pass.
        """
        terms = [getattr(phase, name, 0.0) for name in _TERMS]
        key = (work, stage, *map(bool, terms))
        if key not in self._found:
            few, more = (self._run_transformer(work, stage, phase, n) for n in (_FEW, _FEW + 1))
            num_layers = int(self.configs.transformer["num_layers"])
            block = more - few
            self._found[key] = few + (num_layers - _FEW) * block, few - (_FEW - 1) * block
        return self._found[key]

    def _run_transformer(self, work: Work, stage: int, phase: Any, num_layers: int) -> int:
        """Forward and backward pass of so many blocks."""
        frozen = getattr(torch, work.frozen)
        model = self._without_data(
            self.transformer(lora=work.lora, frozen=frozen, num_layers=num_layers), bf16=work.bf16
        )
        if work.checkpointed:
            model.enable_gradient_checkpointing()
        encoder = self._without_data(self.text_encoder(), bf16=work.bf16) if work.trains_text else None
        config = model.config
        shape = latent_shape(*work.shape, vae_config=self.configs.vae)
        if work.keyframes:
            shape = dataclasses.replace(shape, num_frames=min(work.keyframes, shape.num_frames))
        length = config.max_text_seq_length

        def prepare() -> tuple[Tensor, ...]:
            latents = torch.empty(shape.as_tuple(work.batch))
            ids = torch.zeros(work.batch, length, dtype=torch.long)
            text = torch.empty(work.batch, length, config.text_embed_dim)
            return latents, ids if encoder is not None else text

        def step(latents: Tensor, text: Tensor) -> Tensor:
            t = torch.rand(work.batch)
            if encoder is not None:
                text = encoder(text)[0]
            if stage == 2:
                ends = torch.empty_like(latents), torch.empty_like(latents)
                noise_step = torch.zeros(work.batch, dtype=torch.long)
                return path_loss(model, ends, text * t[:, None, None], t, noise_step, phase)
            noise = torch.empty_like(latents)
            noisy = add_noise(latents, noise, t)
            output = model(noisy, text * t[:, None, None], t).sample
            return (output.float() - velocity_target(latents, noise, t)).square().flatten(1).mean()

        return self._peak(prepare, step, (model, encoder), bf16=work.bf16)

    def vae_backward(self, work: Work) -> int:
        """The most that a step of the VAE's own training allocates, gradients left out."""
        vae = self._without_data(self.vae().train(), bf16=work.bf16)

        def step(pixels: Tensor) -> Tensor:
            mean, log_variance = encode_moments(vae, pixels).transpose(1, 2).chunk(2, dim=2)
            latents = mean + torch.exp(0.5 * log_variance.clamp(-20, 10)) * torch.empty_like(mean)
            error = decode_latents(vae, latents, scale=1.0) - pixels
            loss = error.abs().mean() + mean.square().mean() + log_variance.exp().mean()
            for axis in (-1, -2, 1)[: 3 if pixels.shape[1] > 1 else 2]:
                loss = loss + error.diff(dim=axis).abs().mean()
            return loss

        frames, height, width = work.shape
        return self._peak(
            lambda: (torch.empty(work.batch, frames, 3, height, width),), step, (vae,), bf16=work.bf16
        )

    def encode(self, work: Work, *, strips: bool) -> int:
        """The most that encoding a batch of clips allocates, without gradients."""
        key = ("encode", dataclasses.replace(work, lora=None, checkpointed=False), strips)
        if key not in self._found:
            self._found[key] = self._encode(work, strips=strips), 0
        return self._found[key][0]

    def _encode(self, work: Work, *, strips: bool) -> int:
        """Encodes a batch of clips."""
        frames, height, width = work.shape
        if strips:
            return self._footprint(work).encode(work.shape, THRIFTS[0], work.batch).device_bytes
        vae = self.vae().eval().requires_grad_(False)
        vae = self._without_data(vae.type(getattr(torch, work.frozen)), bf16=work.bf16)
        return self._peak(
            lambda: (torch.empty(work.batch, frames, 3, height, width),),
            lambda pixels: encode_pixels(vae, pixels, scale=1.0),
            (vae,),
            bf16=work.bf16,
        )

    def decode(self, work: Work, *, strips: bool) -> int:
        """The most that decoding one clip allocates, without gradients."""
        footprint = self._footprint(work)
        if not strips:
            try:
                return footprint.decode(work.shape, None).device_bytes
            except RuntimeError as error:  # diffusers' own modules cannot take whole frames of 1080p
                if "Kernel size can't be greater" not in str(error):
                    raise
        return footprint.decode(work.shape, THRIFTS[0]).device_bytes

    def text(self, work: Work) -> int:
        """The most that encoding the batch's prompts allocates."""
        if self.configs.text_encoder is None:
            return 0
        return self._footprint(work).text(work.batch).device_bytes

    def _footprint(self, work: Work) -> Footprint:
        return _footprint(self.configs_for_footprint, work.frozen, self.on_host)

    @functools.cached_property
    def configs_for_footprint(self) -> ModelConfigs:
        """The configs as inference's footprint takes them."""
        return ModelConfigs(
            preset=FLASHVIDEO,
            text_encoder=self.configs.text_encoder,
            vae=self.configs.vae,
            stage1_transformer=self.configs.transformer,
            stage2_transformer=None,
        )

    def _peak(
        self,
        prepare: Callable[[], tuple[Tensor, ...]],
        step: Callable[..., Tensor],
        modules: tuple[nn.Module | None, ...],
        *,
        bf16: bool,
    ) -> int:
        """What a step allocates at its peak, beyond weights and what it was given; with a backward pass if it can."""
        for module in filter(None, modules):
            for parameter in module.parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(_drop_gradient)
        with self._mode:
            given = prepare()
            with StepTracker(on_host=self.on_host) as tracker:
                trains = any(p.requires_grad for m in modules if m is not None for p in m.parameters())
                with torch.set_grad_enabled(trains), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    result = step(*given)
                if result.requires_grad:
                    result.backward()
        return tracker.peak_bytes

    def _without_data(self, module: Any, *, bf16: bool) -> Any:
        """A module on the meta device with tensors that seem to be the processor's."""
        if bf16 and not self.on_host:
            norm_in_32_bits(module)
        with self._mode:
            for part in module.modules():
                for kind in _tensors_of(part):
                    for name, tensor in kind.items():
                        if tensor is not None:
                            empty = torch.empty(tensor.shape, dtype=tensor.dtype)
                            is_parameter = isinstance(tensor, nn.Parameter)
                            kind[name] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
        return module


def _tensors_of(part: nn.Module) -> Iterator[dict[str, Any]]:
    yield part._parameters
    yield part._buffers


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


@functools.lru_cache(maxsize=2)
def _footprint(configs: ModelConfigs, dtype: str, on_host: bool) -> Footprint:
    return Footprint(configs, getattr(torch, dtype), on_host=on_host)
