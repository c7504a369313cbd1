"""How much memory a model's work takes, found out by doing it on tensors that have a shape but no data.

The real code runs, so what is counted is what will happen; a network of billions of parameters takes a moment, on any
machine. Counted are the tensors that torch allocates and, for convolutions, the copies that their kernels make.

Shapes: B clips, F frames, H, W pixels; f, C, h, w of the latents; L text tokens, D channels of the text encoder.
"""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    SchedulerMixin,
)
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import T5Config, T5EncoderModel

from flashvideo.models.checkpoint import read_json
from flashvideo.models.transformer import FlashVideoTransformer3DModel
from flashvideo.pipelines.quantization import quantize, stored_bytes
from flashvideo.pipelines.stage1 import FlashVideoStage1Pipeline
from flashvideo.pipelines.stage2 import FlashVideoEnhancePipeline
from flashvideo.presets import (
    FLASHVIDEO,
    RELEASED_STAGE1_TRANSFORMER,
    RELEASED_STAGE2_TRANSFORMER,
    RELEASED_TEXT_ENCODER,
    RELEASED_VAE,
    Preset,
)
from flashvideo.schedule import FlashVideoScheduler
from flashvideo.shapes import latent_shape
from flashvideo.vae import DECODE_LATENT_FRAMES_PER_CHUNK, ENCODE_FRAMES_PER_CHUNK, time_chunks
from flashvideo.vae.layers import Workspace, decode_chunk, encode_chunk


class AllocationTracker(TorchDispatchMode):
    """Within its block, adds up the tensors that are alive; those from before the block do not count.

    Args:
        on_host: Whether to count what the processor's attention kernel copies.

    Example:
        >>> import torch
        >>> with AllocationTracker() as tracker:
        ...     x = torch.zeros(10)
        ...     del x
        ...     y = torch.zeros(5)
        >>> tracker.peak_bytes
        40
    """

    def __init__(self, *, on_host: bool = False) -> None:
        super().__init__()
        self._on_host = on_host
        self.peak_bytes = 0
        """The most that was alive at once."""

        self.elsewhere_bytes = 0
        """The most that was alive at once of what was allocated within `elsewhere`."""

        self._alive_bytes = [0, 0]  # here and elsewhere
        self._place = 0
        self._known: dict[int, Any] = {}  # address of a storage -> what notices its end

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """Within the block, new tensors are taken to lie in another memory."""
        self._place = 1
        try:
            yield
        finally:
            self._place = 0

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
            # Kernels rearrange their input into blocks of channels, in a copy of its own; in 16 bits the output too.
            copies = inputs[0].nbytes + (outputs[0].nbytes if outputs[0].itemsize == 2 else 0)
            self.peak_bytes = max(self.peak_bytes, self._alive_bytes[0] + copies)
        elif func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default and self._on_host:
            # In 16 bits the processor's kernel packs keys and values anew.
            copies = sum(tensor.nbytes for tensor in inputs[1:3]) if inputs[1].itemsize == 2 else 0
            self.peak_bytes = max(self.peak_bytes, self._alive_bytes[0] + copies)
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
        num_bytes, place = storage.nbytes() if is_new else 0, self._place
        self._known[address] = weakref.finalize(storage, self._forget, address, num_bytes, place)
        self._alive_bytes[place] += num_bytes
        self.peak_bytes = max(self.peak_bytes, self._alive_bytes[0])
        self.elsewhere_bytes = max(self.elsewhere_bytes, self._alive_bytes[1])

    def _forget(self, address: int, num_bytes: int, place: int) -> None:
        self._alive_bytes[place] -= num_bytes
        del self._known[address]


@dataclass(frozen=True, kw_only=True)
class Peak:
    """What some work allocates at its peak."""

    device_bytes: int
    """Where it is done."""

    host_bytes: int = 0
    """On the host, of what waits there."""


@dataclass(kw_only=True)
class _TrackedWorkspace(Workspace):
    """A workspace whose host is elsewhere, though all of its tensors are of one kind, without data."""

    tracker: AllocationTracker

    def strips(self, shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[slice]:
        """The first, the second and the last of them: what the others take is what the second one takes."""
        strips = list(super().strips(shape, dtype))
        yield from strips[:2]
        yield from strips[2:][-1:]

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype, *, on_host: bool) -> torch.Tensor:
        if not on_host:
            return torch.empty(shape, dtype=dtype, device=self.device)
        with self.tracker.elsewhere():
            return torch.empty(shape, dtype=dtype, device=self.device)


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

    stage2_transformer: Mapping[str, Any] | None
    """Config of Stage II's transformer; None if there is none."""

    def __hash__(self) -> int:
        """Equal configs have equal hashes; dictionaries have none."""
        return hash(self.preset.name)

    @classmethod
    def released(cls) -> ModelConfigs:
        """The authors' released model."""
        return cls(
            preset=FLASHVIDEO,
            text_encoder=RELEASED_TEXT_ENCODER,
            vae=_complete(AutoencoderKLCogVideoX, RELEASED_VAE),
            stage1_transformer=RELEASED_STAGE1_TRANSFORMER,
            stage2_transformer=RELEASED_STAGE2_TRANSFORMER,
        )

    @classmethod
    def read(cls, folder: Path) -> ModelConfigs:
        """Reads the configs of a model's folder, without its weights.

        Raises:
            ValueError: If it is not the folder of a two-stage model.
        """
        index = read_json(folder / "model_index.json")
        if "preset" not in index:
            raise ValueError(f"{folder} is a {index.get('_class_name')}, expected a FlashVideoPipeline")

        def config(name: str) -> dict[str, Any] | None:
            path = folder / name / "config.json"
            return read_json(path) if path.is_file() else None

        vae, stage1 = config("vae"), config("stage1_transformer")
        if vae is None or stage1 is None:
            raise ValueError(f"{folder} lacks the config of its vae or its stage1_transformer; save it again")
        return cls(
            preset=Preset.from_dict(index["preset"]),
            text_encoder=config("text_encoder"),
            vae=_complete(AutoencoderKLCogVideoX, vae),
            stage1_transformer=_complete(FlashVideoTransformer3DModel, stage1),
            stage2_transformer=config("stage2_transformer"),
        )

    @classmethod
    def of(cls, pipeline: DiffusionPipeline) -> ModelConfigs:
        """Reads the configs of a loaded two-stage pipeline."""
        encoder, stage2 = pipeline.text_encoder, pipeline.stage2_transformer
        return cls(
            preset=pipeline.preset,
            text_encoder=None if encoder is None else encoder.config.to_dict(),
            vae=dict(pipeline.vae.config),
            stage1_transformer=dict(pipeline.stage1_transformer.config),
            stage2_transformer=None if stage2 is None else dict(stage2.config),
        )


def _complete(model: type[Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with the model's defaults filled in."""
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(model.__init__).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    return {**defaults, **config}


@functools.lru_cache(maxsize=4)
def footprint_of(configs: ModelConfigs, dtype: torch.dtype, *, weights: str, on_host: bool) -> Footprint:
    """The footprint of a model, one and the same for equal models: what it has found out once, it knows."""
    return Footprint(configs, dtype, weights=weights, on_host=on_host)


P = ParamSpec("P")


def _remembered(
    find: Callable[Concatenate[Footprint, P], Peak],
) -> Callable[Concatenate[Footprint, P], Peak]:
    """Lets a footprint find each peak once, one at a time since its networks are set up for it."""

    @functools.wraps(find)
    def look_up(self: Footprint, *args: P.args, **kwargs: P.kwargs) -> Peak:
        key = (find.__name__, args, tuple(sorted(kwargs.items())))
        with self._lock:
            if key not in self._peaks:
                self._peaks[key] = find(self, *args, **kwargs)
            return self._peaks[key]

    return look_up


class Footprint:
    """Predicts what each part of a model's work allocates.

    Args:
        configs: The model.
        dtype: What its weights and activations are stored in.
        weights: How the transformers' weights are stored, see `flashvideo.pipelines.quantization.WEIGHTS`.
        on_host: Whether the work is done by the host's processor, whose kernels make copies of their own.
    """

    def __init__(
        self, configs: ModelConfigs, dtype: torch.dtype, *, weights: str = "full", on_host: bool = False
    ) -> None:
        self.configs = configs
        self._on_host = on_host
        self.dtype = dtype
        self._kind = weights
        self._mode = FakeTensorMode()
        self._peaks: dict[Any, Peak] = {}
        self._lock = threading.RLock()

    @functools.cached_property
    def weights(self) -> dict[str, int]:
        """Bytes of each component's weights."""
        return {name: self._bytes_of(part) for name, part in self._parts.items()}

    @functools.cached_property
    def streamed_weights(self) -> dict[str, int]:
        """Bytes of each component's weights that are on the device at once when they are brought there piece by piece.

        That is the current and the next piece: of a transformer a block, of the text encoder a layer.
        """
        streamed = {}
        for name, part in self._parts.items():
            if isinstance(part, FlashVideoTransformer3DModel):
                blocks = part.transformer_blocks
                rest = self._bytes_of(part) - self._bytes_of(blocks)
                streamed[name] = rest + 2 * self._bytes_of(blocks[0])
            else:
                leaves = (leaf for leaf in part.modules() if not list(leaf.children()))
                streamed[name] = 2 * max(self._bytes_of(leaf) for leaf in leaves)
        return streamed

    @functools.cached_property
    def _parts(self) -> dict[str, nn.Module]:
        """Every component at its full depth, without data."""
        configs = self.configs
        with torch.device("meta"):
            parts: dict[str, nn.Module] = {
                "vae": self._build_vae(),
                "stage1_transformer": self._build_transformer(configs.stage1_transformer),
            }
            if configs.stage2_transformer is not None:
                parts["stage2_transformer"] = self._build_transformer(configs.stage2_transformer)
            for transformer in parts.values():
                if isinstance(transformer, FlashVideoTransformer3DModel):
                    quantize(transformer, self._kind)
            if configs.text_encoder is not None:
                parts["text_encoder"] = self._build_text_encoder()
        return parts

    @_remembered
    def text(self, batch_size: int = 1) -> Peak:
        """Encoding B prompts."""
        length = max(self.configs.preset.stage1.max_text_tokens, self.configs.preset.stage2.max_text_tokens)
        encoder = self._text_encoder
        return self._peak(
            lambda: torch.zeros(batch_size, length, dtype=torch.long), lambda token_ids: encoder(token_ids)
        )

    @_remembered
    def denoise(
        self,
        stage: int,
        size: tuple[int, int, int],
        *,
        guided: bool,
        sequential_guidance: bool = False,
        chunk_size: int | None = None,
        batch_size: int = 1,
    ) -> Peak:
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
                given[0],
                given[1],
                torch.tensor(0.0),
                guidance_scale=2.0 if guided else 1.0,
                noise_step=noise_step,
            ),
        )

    @_remembered
    def decode(self, size: tuple[int, int, int], thrift: str | None, batch_size: int = 1) -> Peak:
        """Decoding B clips of (frames, height, width), with the result elsewhere."""
        num_latent_frames, *latent_size = self._latent_size(size)
        chunks = time_chunks(num_latent_frames, DECODE_LATENT_FRAMES_PER_CHUNK)
        return self._coding(
            self._vae.decoder, decode_chunk, (batch_size, self._channels), chunks, latent_size, thrift
        )

    @_remembered
    def encode(self, size: tuple[int, int, int], thrift: str | None, batch_size: int = 1) -> Peak:
        """Encoding B clips of (frames, height, width) that lie elsewhere."""
        num_frames, *pixel_size = size
        chunks = time_chunks(num_frames, ENCODE_FRAMES_PER_CHUNK)
        return self._coding(self._vae.encoder, encode_chunk, (batch_size, 3), chunks, pixel_size, thrift)

    def _coding(
        self,
        network: nn.Module,
        by_strips: Callable[[Any, torch.Tensor, Workspace], torch.Tensor],
        shape: tuple[int, int],
        chunks: Sequence[slice],
        size: Sequence[int],
        thrift: str | None,
    ) -> Peak:
        """The first two chunks through the VAE; later ones take as much as the second."""
        given = (
            torch.empty(*shape, chunk.stop - chunk.start, *size, dtype=self.dtype, device="meta")
            for chunk in chunks[:2]
        )
        with torch.no_grad(), AllocationTracker() as tracker:
            if thrift is None:
                last_frames = None
                for chunk in given:
                    _, last_frames = network(chunk, conv_cache=last_frames)
            else:
                workspace = _TrackedWorkspace(device=torch.device("meta"), thrift=thrift, tracker=tracker)
                for chunk in given:
                    by_strips(network, chunk, workspace)
        return Peak(device_bytes=tracker.peak_bytes, host_bytes=tracker.elsewhere_bytes)

    def _latent_size(self, size: tuple[int, int, int]) -> tuple[int, int, int]:
        shape = latent_shape(*size, vae_config=self.configs.vae)
        return shape.num_frames, shape.height, shape.width

    def _peak(self, prepare: Callable[[], Any], work: Callable[[Any], object]) -> Peak:
        """What the work allocates at its peak, beyond the weights and what it was given."""
        with self._mode, torch.no_grad():
            given = prepare()
            with AllocationTracker(on_host=self._on_host) as tracker:
                work(given)
        return Peak(device_bytes=tracker.peak_bytes)

    @property
    def _channels(self) -> int:
        return int(self.configs.vae["latent_channels"])

    def _bytes_of(self, module: nn.Module) -> int:
        return stored_bytes(module, dtype=self.dtype)

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
                kinds: tuple[dict[str, Any], ...] = (part._parameters, part._buffers)
                for kind in kinds:
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
        with torch.device("meta"):
            vae: AutoencoderKLCogVideoX = self._build_vae().eval().requires_grad_(False)
        for part in (*vae.parameters(), *vae.buffers()):
            part.data = part.data.to(self.dtype)
        return vae

    @functools.cached_property
    def _stage1(self) -> FlashVideoStage1Pipeline:
        return self._stage(FlashVideoStage1Pipeline, self.configs.stage1_transformer, FlashVideoScheduler())

    @functools.cached_property
    def _stage2(self) -> FlashVideoEnhancePipeline:
        config = self.configs.stage2_transformer
        assert config is not None
        scheduler = FlowMatchEulerDiscreteScheduler(shift=self.configs.preset.stage2.shift)
        return self._stage(FlashVideoEnhancePipeline, config, scheduler)

    def _stage(self, kind: type[Any], config: Mapping[str, Any], scheduler: SchedulerMixin) -> Any:
        return kind(
            tokenizer=None,
            text_encoder=None,
            vae=self._vae,
            transformer=self._without_data(lambda: self._build_transformer(config, num_layers=1)),
            scheduler=scheduler,
            preset=self.configs.preset,
        )
