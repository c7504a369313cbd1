"""How much memory a model's work takes, found out by doing it on tensors that have a shape but no data.

The real code runs, so what is counted is what will happen; a network of billions of parameters takes a moment, on any
machine. Counted are the tensors that torch allocates and, for convolutions, the copies that their kernels make.

Shapes: B clips, F frames, H, W pixels; f, C, h, w of the latents; L text tokens, D channels of the text encoder.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import T5Config, T5EncoderModel

from flashvideo.models.transformer import FlashVideoTransformer3DModel
from flashvideo.pipelines.stage1 import FlashVideoStage1Pipeline
from flashvideo.pipelines.stage2 import FlashVideoEnhancePipeline
from flashvideo.presets import Preset
from flashvideo.schedule import FlashVideoScheduler
from flashvideo.shapes import latent_shape, vae_factors
from flashvideo.vae import (
    DECODE_LATENT_FRAMES_PER_CHUNK,
    ENCODE_FRAMES_PER_CHUNK,
    decode_latents,
    encode_pixels,
)


class AllocationTracker(TorchDispatchMode):
    """Within its block, adds up the tensors that are alive; those from before the block do not count.

    Example:
        >>> import torch
        >>> with AllocationTracker() as tracker:
        ...     x = torch.zeros(10)
        ...     del x
        ...     y = torch.zeros(5)
        >>> tracker.peak_bytes
        40
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak_bytes = 0
        """The most that was alive at once."""

        self._alive_bytes = 0
        self._known: dict[int, Any] = {}  # address of a storage -> what notices its end

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation and counts what it allocates."""
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        for tensor in inputs:
            self._note(tensor, is_new=False)
        result = func(*args, **kwargs or {})
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        for tensor in outputs:
            self._note(tensor, is_new=True)
        if func is torch.ops.aten.convolution.default:
            # Kernels rearrange input and output into blocks of channels, in copies of their own.
            copies = inputs[0].nbytes + outputs[0].nbytes
            self.peak_bytes = max(self.peak_bytes, self._alive_bytes + copies)
        return result

    def __exit__(self, *error: Any) -> None:
        """Ends the counting."""
        super().__exit__(*error)
        for notice in self._known.values():
            notice.detach()

    def _note(self, tensor: torch.Tensor, *, is_new: bool) -> None:
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self._known:
            return
        num_bytes = storage.nbytes() if is_new else 0
        self._known[address] = weakref.finalize(storage, self._forget, address, num_bytes)
        self._alive_bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self._alive_bytes)

    def _forget(self, address: int, num_bytes: int) -> None:
        self._alive_bytes -= num_bytes
        del self._known[address]


@dataclass(frozen=True, kw_only=True)
class ModelConfigs:
    """What a two-stage model consists of: enough to know its memory, without its weights."""

    preset: Preset
    """Defaults and constants."""

    text_encoder: Mapping[str, Any] | None
    """Config of the T5 encoder; None if there is none."""

    vae: Mapping[str, Any]
    """Config of the VAE."""

    stage1_transformer: Mapping[str, Any]
    """Config of Stage I's transformer."""

    stage2_transformer: Mapping[str, Any]
    """Config of Stage II's transformer."""

    @classmethod
    def of(cls, pipeline: DiffusionPipeline) -> ModelConfigs:
        """Reads the configs of a loaded two-stage pipeline."""
        encoder = pipeline.text_encoder
        return cls(
            preset=pipeline.preset,
            text_encoder=None if encoder is None else encoder.config.to_dict(),
            vae=dict(pipeline.vae.config),
            stage1_transformer=dict(pipeline.stage1_transformer.config),
            stage2_transformer=dict(pipeline.stage2_transformer.config),
        )


class Footprint:
    """Predicts what each part of a model's work allocates.

    Args:
        configs: The model.
        dtype: What its weights and activations are stored in.
    """

    def __init__(self, configs: ModelConfigs, dtype: torch.dtype) -> None:
        self.configs = configs
        self.dtype = dtype
        self._mode = FakeTensorMode()

    @functools.cached_property
    def weights(self) -> dict[str, int]:
        """Bytes of each component's weights."""
        with torch.device("meta"):
            parts = {
                "vae": self._build_vae(),
                "stage1_transformer": self._build_transformer(self.configs.stage1_transformer),
                "stage2_transformer": self._build_transformer(self.configs.stage2_transformer),
            }
            if self.configs.text_encoder is not None:
                parts["text_encoder"] = self._build_text_encoder()
        return {name: self._bytes_of(part) for name, part in parts.items()}

    @functools.cached_property
    def streamed_weights(self) -> dict[str, int]:
        """Bytes of each component's weights that are on the device at once when they are brought there piece by piece.

        That is the current and the next piece: of a transformer a block, of the text encoder a layer.
        """
        with torch.device("meta"):
            parts = {}
            for name in ("stage1_transformer", "stage2_transformer"):
                transformer = self._build_transformer(getattr(self.configs, name))
                blocks = transformer.transformer_blocks
                rest = self._bytes_of(transformer) - self._bytes_of(blocks)
                parts[name] = rest + 2 * self._bytes_of(blocks[0])
            if self.configs.text_encoder is not None:
                leaves = (part for part in self._build_text_encoder().modules() if not list(part.children()))
                parts["text_encoder"] = 2 * max(self._bytes_of(leaf) for leaf in leaves)
        return parts

    def text(self, batch_size: int = 1) -> int:
        """Encoding B prompts."""
        length = max(self.configs.preset.stage1.max_text_tokens, self.configs.preset.stage2.max_text_tokens)
        encoder = self._text_encoder
        return self._peak(
            lambda: torch.zeros(batch_size, length, dtype=torch.long), lambda token_ids: encoder(token_ids)
        )

    @functools.cache  # noqa: B019 - as long-lived as what it caches
    def denoise(
        self,
        stage: int,
        size: tuple[int, int, int],
        *,
        guided: bool,
        sequential_guidance: bool = False,
        chunk_size: int | None = None,
        batch_size: int = 1,
    ) -> int:
        """One step of a stage: the evaluations of its network, and what guidance makes of them.

        Args:
            stage: 1 or 2.
            size: Frames, height and width of the clip.
            guided: Whether there is guidance.
            sequential_guidance: Whether its branches are evaluated one after another.
            chunk_size: Tokens at a time outside attention; None for all.
            batch_size: B.
        """
        pipeline = self._stage1 if stage == 1 else self._stage2
        transformer = pipeline.transformer
        shape = latent_shape(*size, vae_config=self.configs.vae).as_tuple(batch_size)
        text_shape = (
            batch_size,
            transformer.config.max_text_seq_length,
            transformer.config.text_embed_dim,
        )
        pipeline._sequential_guidance = sequential_guidance
        transformer._set_chunk_size(chunk_size)
        noise_step = self.configs.preset.stage2.noise_step if transformer.config.noise_step_embed else None
        return self._peak(
            lambda: (torch.empty(shape), torch.empty(text_shape, dtype=self.dtype)),
            lambda given: pipeline.predict_velocity(
                *given, torch.tensor(0.0), guidance_scale=2.0 if guided else 1.0, noise_step=noise_step
            ),
        )

    @functools.cache  # noqa: B019
    def decode(self, tile: tuple[int, int], num_latent_frames: int) -> int:
        """Decoding latents (1, f, C, h, w), or a tile of them.

        Args:
            tile: Latent height and width.
            num_latent_frames: f; all chunks after the second take as much as that.
        """
        shape = (1, min(num_latent_frames, 1 + 2 * DECODE_LATENT_FRAMES_PER_CHUNK), self._channels, *tile)
        vae = self._vae
        return self._peak(
            lambda: torch.empty(shape), lambda latents: decode_latents(vae, latents, scale=1.0, clamp=True)
        )

    @functools.cache  # noqa: B019
    def encode(self, tile: tuple[int, int], num_frames: int) -> int:
        """Encoding pixels (1, F, 3, H, W), or a tile of them.

        Args:
            tile: Latent height and width.
            num_frames: F; all chunks after the second take as much as that.
        """
        _, spatial = vae_factors(self.configs.vae)
        num_frames = min(num_frames, 1 + 2 * ENCODE_FRAMES_PER_CHUNK)
        shape = (1, num_frames, 3, tile[0] * spatial, tile[1] * spatial)
        vae = self._vae
        return self._peak(lambda: torch.empty(shape), lambda pixels: encode_pixels(vae, pixels, scale=1.0))

    def _peak(self, prepare: Callable[[], Any], work: Callable[[Any], object]) -> int:
        """Bytes that the work allocates at its peak, beyond the weights and what it was given."""
        with self._mode, torch.no_grad():
            given = prepare()
            with AllocationTracker() as tracker:
                work(given)
        return tracker.peak_bytes

    @property
    def _channels(self) -> int:
        return int(self.configs.vae["latent_channels"])

    def _bytes_of(self, module: nn.Module) -> int:
        tensors = (*module.parameters(), *module.buffers())
        return sum(tensor.numel() for tensor in tensors) * self.dtype.itemsize

    def _build_transformer(
        self, config: Mapping[str, Any], **overrides: object
    ) -> FlashVideoTransformer3DModel:
        return FlashVideoTransformer3DModel.from_config({**config, **overrides})

    def _build_vae(self) -> AutoencoderKLCogVideoX:
        return AutoencoderKLCogVideoX.from_config(dict(self.configs.vae))

    def _build_text_encoder(self, **overrides: object) -> T5EncoderModel:
        return T5EncoderModel(T5Config(**{**(self.configs.text_encoder or {}), **overrides}))

    def _without_data(self, build: Callable[[], nn.Module]) -> Any:
        """Builds a module whose tensors have no data."""
        with torch.device("meta"):
            module = build()
        with self._mode:
            for part in module.modules():
                for kind in (part._parameters, part._buffers):
                    for name, tensor in kind.items():
                        if tensor is not None:
                            empty = torch.empty(
                                tensor.shape, dtype=self.dtype if tensor.is_floating_point() else tensor.dtype
                            )
                            is_parameter = isinstance(tensor, nn.Parameter)
                            kind[name] = nn.Parameter(empty, requires_grad=False) if is_parameter else empty
        return module.eval()

    # What a step allocates does not depend on the number of layers, as one follows another.

    @functools.cached_property
    def _text_encoder(self) -> T5EncoderModel:
        return self._without_data(lambda: self._build_text_encoder(num_layers=1))

    @functools.cached_property
    def _vae(self) -> AutoencoderKLCogVideoX:
        return self._without_data(self._build_vae)

    @functools.cached_property
    def _stage1(self) -> FlashVideoStage1Pipeline:
        config = self.configs.stage1_transformer
        return FlashVideoStage1Pipeline(
            tokenizer=None,
            text_encoder=None,
            vae=self._vae,
            transformer=self._without_data(lambda: self._build_transformer(config, num_layers=1)),
            scheduler=FlashVideoScheduler(),
            preset=self.configs.preset,
        )

    @functools.cached_property
    def _stage2(self) -> FlashVideoEnhancePipeline:
        config = self.configs.stage2_transformer
        return FlashVideoEnhancePipeline(
            tokenizer=None,
            text_encoder=None,
            vae=self._vae,
            transformer=self._without_data(lambda: self._build_transformer(config, num_layers=1)),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=self.configs.preset.stage2.shift),
            preset=self.configs.preset,
        )
