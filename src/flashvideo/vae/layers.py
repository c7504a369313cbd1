"""The CogVideoX VAE's encoder and decoder for inference, in a fraction of the memory that their own modules take.

The weights are the modules', the numbers too, up to rounding; but nothing of full size comes about that need not:

- Norm, modulation, activation, convolution and residual run strip by strip, a strip being a few rows of all frames. A
  group norm's statistics are gathered from the whole layer, while its strips are made,

      mean = sum_i n_i mean_i / N,   variance = sum_i n_i (variance_i + (mean_i - mean)^2) / N,   N = sum_i n_i

  so that strips, unlike tiles, leave no trace.
- Where a layer's input is not needed any more, its output takes its place.
- What the decoder's norms are modulated by is computed at the latents' resolution and enlarged afterwards, and frames
  that are doubled in time are convolved once.
- What is not at work may lie on the host.

Shapes: B clips, C channels, F frames of a chunk, H, W height and width of the layer; f, h, w of the latents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import (
    CogVideoXCausalConv3d,
    CogVideoXDecoder3D,
    CogVideoXEncoder3D,
    CogVideoXResnetBlock3D,
    CogVideoXSpatialNorm3D,
)
from diffusers.models.downsampling import CogVideoXDownsample3D
from diffusers.models.upsampling import CogVideoXUpsample3D
from einops import rearrange
from torch import nn
from torch.nn import functional as F

STRIP_BYTES = 256 * 1024**2
"""Size of a strip before its convolution: enough to keep an accelerator busy."""

HOST = torch.device("cpu")
THRIFTS = ("strips", "caches", "layers")
"""How thriftily these functions go about it, see `Workspace.thrift`."""

Moments = tuple[int, torch.Tensor, torch.Tensor]
"""Number of values per group, and their mean and variance, each (B, groups)."""


def check_thrift(thrift: str) -> None:
    """Checks that it is one of `THRIFTS`.

    Raises:
        ValueError: If it is not.
    """
    if thrift not in THRIFTS:
        raise ValueError(f"thrift must be one of {', '.join(THRIFTS)}, got {thrift!r}")


@dataclass(kw_only=True)
class Workspace:
    """Where the work on one clip lies, and what its chunks leave to one another.

    Raises:
        ValueError: If `thrift` is none of `THRIFTS`.
    """

    device: torch.device
    """Where strips are computed."""

    thrift: str = "strips"
    """`"strips"`: everything lies on the device. `"caches"`: the last frames before each convolution, about half of
    all, wait on the host, and enlarged layers are not stored but computed anew wherever they are read. `"layers"`: so
    do whole layers, and on the device there are strips alone."""

    strip_bytes: int = STRIP_BYTES
    """Size of a strip."""

    caches: dict[str, torch.Tensor] = field(default_factory=dict)
    """The last frames before each causal convolution, by its name."""

    def __post_init__(self) -> None:
        """Checks the thrift."""
        check_thrift(self.thrift)

    def new_layer(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """An empty layer, where layers lie."""
        return self._empty(shape, dtype, on_host=self.thrift == "layers")

    def new_cache(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """An empty cache, where caches lie."""
        return self._empty(shape, dtype, on_host=self.thrift != "strips")

    def strips(self, shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[slice]:
        """Rows of a layer (B, C, F, H, W), in strips of equal height and of at most about `strip_bytes`."""
        batch_size, num_channels, num_frames, height, width = shape
        total_bytes = batch_size * num_channels * num_frames * height * width * dtype.itemsize
        num_strips = max(1, min(height, -(-total_bytes // self.strip_bytes)))
        for i in range(num_strips):
            yield slice(height * i // num_strips, height * (i + 1) // num_strips)

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype, *, on_host: bool) -> torch.Tensor:
        # Not pinned: torch rounds such memory up to a power of two and keeps it, and asynchronous copies would have to
        # be waited for.
        return torch.empty(shape, dtype=dtype, device=HOST if on_host else self.device)


class Layer(Protocol):
    """An activation of full size, of which strips are read."""

    workspace: Workspace
    shape: tuple[int, ...]  # (B, C, F, H, W)
    dtype: torch.dtype

    def rows(self, rows: slice) -> torch.Tensor:
        """(B, C, F, rows, W), on the device."""


class StoredLayer:
    """A layer that lies somewhere as a whole."""

    def __init__(self, values: torch.Tensor, workspace: Workspace) -> None:
        self.values = values
        self.workspace = workspace
        self.shape: tuple[int, ...] = tuple(values.shape)
        self.dtype = values.dtype

    def rows(self, rows: slice) -> torch.Tensor:
        """(B, C, F, rows, W), on the device."""
        return self.values[:, :, :, rows].to(self.workspace.device)

    def put(self, rows: slice, strip: torch.Tensor) -> None:
        """Replaces some rows."""
        self.values[:, :, :, rows].copy_(strip)


class EnlargedLayer:
    """What an upsampler makes of a layer, computed where it is read.

    Twice the size, and where time was compressed twice the frames, but for the first one of an odd number.
    """

    def __init__(self, module: CogVideoXUpsample3D, source: Layer) -> None:
        self.workspace = source.workspace
        self.dtype = source.dtype
        self._source, self._convolution = source, module.conv
        batch_size, _, num_frames, height, width = source.shape
        counts = torch.ones(num_frames, dtype=torch.long)
        if module.compress_time and num_frames > 1:
            counts[num_frames % 2 :] = 2
        self._frames = torch.arange(num_frames).repeat_interleave(counts).to(self.workspace.device)
        self.shape: tuple[int, ...] = (
            batch_size,
            self._convolution.out_channels,
            len(self._frames),
            2 * height,
            2 * width,
        )

    def rows(self, rows: slice) -> torch.Tensor:
        """(B, C, F, rows, W), on the device."""
        batch_size, _, _, height, _ = self.shape
        above, below = max(0, rows.start - 1), min(height, rows.stop + 1)  # what a 3x3 kernel sees
        first = above // 2
        source = self._source.rows(slice(first, -(-below // 2)))
        enlarged = F.interpolate(rearrange(source, "b c f h w -> (b f) c h w"), scale_factor=2.0)
        enlarged = enlarged[:, :, above - 2 * first : below - 2 * first]
        edges = (0, 0, 1 - (rows.start - above), 1 - (below - rows.stop))
        out = F.conv2d(
            F.pad(enlarged, edges), self._convolution.weight, self._convolution.bias, padding=(0, 1)
        )
        return rearrange(out, "(b f) c h w -> b c f h w", b=batch_size).index_select(2, self._frames)

    def stored(self) -> StoredLayer:
        """The same, computed once."""
        layer = StoredLayer(self.workspace.new_layer(self.shape, self.dtype), self.workspace)
        for rows in self.workspace.strips(self.shape, self.dtype):
            layer.put(rows, self.rows(rows))
        return layer


def encode_chunk(encoder: CogVideoXEncoder3D, video: torch.Tensor, workspace: Workspace) -> torch.Tensor:
    """Encodes one chunk of frames; without gradients only.

    Args:
        encoder: The VAE's encoder.
        video: Pixels (B, 3, F, H, W).
        workspace: Of this clip; new at its first chunk.

    Returns:
        Moments (B, 2 C, f, h, w), on the device.
    """
    x = _convolve(encoder.conv_in, None, StoredLayer(video, workspace), "conv_in")
    for i, block in enumerate(encoder.down_blocks):
        for j, resnet in enumerate(block.resnets):
            x = _resnet(resnet, x, None, f"down_{i}_{j}")
        for downsampler in block.downsamplers or ():
            x = _downsample(downsampler, x)
    for j, resnet in enumerate(encoder.mid_block.resnets):
        x = _resnet(resnet, x, None, f"mid_{j}")
    prepare = _Normalisation.of(encoder.norm_out, encoder.conv_act, x, None)
    return _convolve(encoder.conv_out, prepare, x, "conv_out").values.to(workspace.device)


def decode_chunk(decoder: CogVideoXDecoder3D, latents: torch.Tensor, workspace: Workspace) -> torch.Tensor:
    """Decodes one chunk of latent frames; without gradients only.

    Args:
        decoder: The VAE's decoder.
        latents: (B, C, f, h, w).
        workspace: Of this clip; new at its first chunk.

    Returns:
        Pixels (B, 3, F, H, W), on the device.
    """
    x: Layer = _convolve(decoder.conv_in, None, StoredLayer(latents, workspace), "conv_in")
    for j, resnet in enumerate(decoder.mid_block.resnets):
        x = _resnet(resnet, x, latents, f"mid_{j}")
    for i, block in enumerate(decoder.up_blocks):
        for j, resnet in enumerate(block.resnets):
            x = _resnet(resnet, x, latents, f"up_{i}_{j}")
        for upsampler in block.upsamplers or ():
            enlarged = EnlargedLayer(upsampler, x)
            x = enlarged.stored() if workspace.thrift == "strips" else enlarged
    prepare = _Normalisation.of(decoder.norm_out, decoder.conv_act, x, latents)
    return _convolve(decoder.conv_out, prepare, x, "conv_out").values.to(workspace.device)


def _resnet(block: CogVideoXResnetBlock3D, x: Layer, latents: torch.Tensor | None, name: str) -> StoredLayer:
    """A residual block."""

    def residual(rows: slice) -> torch.Tensor:
        strip = x.rows(rows)
        return strip if block.in_channels == block.out_channels else block.conv_shortcut(strip)

    prepare = _Normalisation.of(block.norm1, block.nonlinearity, x, latents)
    h = _convolve(block.conv1, prepare, x, f"{name}_conv1")
    prepare = _Normalisation.of(block.norm2, block.nonlinearity, h, latents)
    return _convolve(block.conv2, prepare, h, f"{name}_conv2", in_place=True, residual=residual)


def _convolve(
    module: CogVideoXCausalConv3d,
    prepare: _Normalisation | None,
    x: Layer,
    name: str,
    *,
    in_place: bool = False,
    residual: Callable[[slice], torch.Tensor] | None = None,
) -> StoredLayer:
    """A causal convolution, strip by strip.

    Args:
        module: The convolution.
        prepare: What a strip goes through before it.
        x: Its input.
        name: Its name.
        in_place: Whether the result takes the place of x, which then is stored and has as many channels.
        residual: What is added to rows of the result.

    Returns:
        (B, C', F, H, W).
    """
    workspace, convolution = x.workspace, module.conv
    halo, num_before, height = module.height_pad, module.time_kernel_size - 1, x.shape[3]
    result = x if in_place and isinstance(x, StoredLayer) else None
    cache, is_first = workspace.caches.get(name), name not in workspace.caches
    above: torch.Tensor | None = None  # rows above the strip, kept since their places may have been taken
    widest = (x.shape[0], max(x.shape[1], convolution.out_channels), *x.shape[2:])
    for rows in workspace.strips(widest, x.dtype):
        bottom = min(rows.stop + halo, height)
        strip = x.rows(slice(rows.start, bottom))  # (B, C, F, rows, W)
        if prepare is not None:
            strip = prepare(strip, rows.start)
        before = strip[:, :, :1].expand(-1, -1, num_before, -1, -1)
        if cache is None:
            shape = (*strip.shape[:2], num_before, height, strip.shape[4])
            cache = workspace.new_cache(shape, strip.dtype)
        elif not is_first:
            before = cache[:, :, :, rows.start : bottom].to(strip.device)
        strip = torch.cat((before, strip), dim=2)  # (B, C, k - 1 + F, rows, W)
        last = strip[:, :, -num_before:, : rows.stop - rows.start]
        cache[:, :, :, rows].copy_(last)
        top = rows.start
        if above is not None:
            top -= above.shape[3]
            strip = torch.cat((above, strip), dim=3)
        above = strip[:, :, :, max(0, rows.stop - halo - top) : rows.stop - top].clone()
        edges = (0, 0, halo - (rows.start - top), halo - (bottom - rows.stop))
        strip = F.pad(strip, edges) if any(edges) else strip
        out = F.conv3d(strip, convolution.weight, convolution.bias, padding=(0, 0, module.width_pad))
        if residual is not None:
            out += residual(rows)
        if result is None:
            shape = (*out.shape[:3], height, out.shape[4])
            result = StoredLayer(workspace.new_layer(shape, out.dtype), workspace)
        result.put(rows, out)
    assert cache is not None
    assert result is not None
    workspace.caches[name] = cache
    return result


@dataclass(frozen=True, kw_only=True)
class _Modulation:
    """What the latents make of a layer behind a norm: a gain and an offset per latent pixel, enlarged by repetition."""

    gain: torch.Tensor  # (B, C, F, h, w)
    offset: torch.Tensor
    rows: torch.Tensor  # (H,): which of the h rows is the nearest
    columns: torch.Tensor  # (W,): which of the w columns

    @classmethod
    def of(cls, norm: CogVideoXSpatialNorm3D, x: Layer, latents: torch.Tensor) -> _Modulation:
        """Each of the norm's convolutions sees one latent pixel, so they may come before the enlargement."""
        device = x.workspace.device
        frames = _nearest_frames(latents.shape[2], x.shape[2]).to(device)
        gain, offset = (module.conv(latents).index_select(2, frames) for module in (norm.conv_y, norm.conv_b))
        rows, columns = (
            torch.arange(x.shape[axis], device=device) * latents.shape[axis] // x.shape[axis]
            for axis in (3, 4)
        )
        return cls(gain=gain, offset=offset, rows=rows, columns=columns)

    def apply_(self, strip: torch.Tensor, start: int) -> None:
        """Changes (B, C, F, rows, W) from row ``start`` on in place."""
        rows = self.rows[start : start + strip.shape[3]]
        gain, offset = (
            values.index_select(3, rows).index_select(4, self.columns) for values in (self.gain, self.offset)
        )
        strip.mul_(gain).add_(offset)


@dataclass(frozen=True, kw_only=True)
class _Normalisation:
    """Group norm with the statistics of a whole layer, modulation by the latents, and activation, of its strips."""

    mean: torch.Tensor  # (B C,)
    variance: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    eps: float
    activation: nn.Module
    modulation: _Modulation | None

    @classmethod
    def of(
        cls,
        norm: nn.GroupNorm | CogVideoXSpatialNorm3D,
        activation: nn.Module,
        x: Layer,
        latents: torch.Tensor | None,
    ) -> _Normalisation:
        """Gathers the statistics of a layer."""
        device = x.workspace.device
        modulation = None
        if isinstance(norm, CogVideoXSpatialNorm3D):
            assert latents is not None
            modulation, norm = _Modulation.of(norm, x, latents), norm.norm_layer
        batch_size, num_channels = x.shape[:2]
        _, *statistics = pool_moments(
            [_moments(x.rows(rows), norm.num_groups) for rows in x.workspace.strips(x.shape, x.dtype)]
        )
        mean, variance = (
            values.to(device, torch.float32)
            .repeat_interleave(num_channels // norm.num_groups, dim=1)
            .flatten()
            for values in statistics
        )
        return cls(
            mean=mean,
            variance=variance,
            weight=norm.weight.float().repeat(batch_size),
            bias=norm.bias.float().repeat(batch_size),
            eps=norm.eps,
            activation=activation,
            modulation=modulation,
        )

    def __call__(self, strip: torch.Tensor, start: int) -> torch.Tensor:
        """(B, C, F, rows, W) from row ``start`` on -> the same shape."""
        # With its statistics given, a group norm is a batch norm of one example with B C channels.
        flat = strip.reshape(1, -1, *strip.shape[2:])
        normal = F.batch_norm(flat, self.mean, self.variance, self.weight, self.bias, eps=self.eps)
        normal = normal.view(strip.shape)
        if self.modulation is not None:
            self.modulation.apply_(normal, start)
        return self.activation(normal)


def _moments(strip: torch.Tensor, num_groups: int) -> Moments:
    """Of the groups of (B, C, F, rows, W)."""
    flat = strip.float().reshape(len(strip), num_groups, -1)
    variance, mean = torch.var_mean(flat, dim=-1, correction=0)
    exact = HOST if strip.device.type == "mps" else strip.device  # which has no float64
    return flat.shape[-1], mean.to(exact, torch.float64), variance.to(exact, torch.float64)


def pool_moments(parts: list[Moments]) -> Moments:
    """Moments of a whole from those of its parts; the equation is in the module's docstring."""
    counts, means, variances = zip(*parts, strict=True)
    total = sum(counts)
    mean, variance = torch.stack(means), torch.stack(variances)  # (parts, B, groups)
    shares = [count / total for count in counts]
    share = torch.tensor(shares, dtype=mean.dtype, device=mean.device).view(-1, 1, 1)
    whole = (mean * share).sum(0)
    return total, whole, ((variance + (mean - whole).square()) * share).sum(0)


def _nearest_frames(num_latent_frames: int, num_frames: int) -> torch.Tensor:
    """Which latent frame modulates each frame: in an odd number the first one belongs to the first frame alone."""
    first = 1 if num_frames > 1 and num_frames % 2 else 0
    later = torch.arange(num_frames - first) * (num_latent_frames - first) // max(1, num_frames - first)
    return torch.cat((torch.zeros(first, dtype=torch.long), later + first))


def _downsample(module: CogVideoXDownsample3D, x: StoredLayer) -> StoredLayer:
    """Half the size, and where time is compressed the means of two frames, but for the first one of an odd number."""
    num_frames, workspace = x.shape[2], x.workspace
    first = num_frames % 2
    starts = [(t, 1) for t in range(num_frames)]
    if module.compress_time:
        starts = [(0, 1)] * first + [(t, 2) for t in range(first, num_frames, 2)]
    result: StoredLayer | None = None
    for position, (t, count) in enumerate(starts):
        frames = x.values[:, :, t : t + count].to(workspace.device)
        frame = frames[:, :, 0] if count == 1 else (frames[:, :, 0] + frames[:, :, 1]) / 2
        frame = module.conv(F.pad(frame, (0, 1, 0, 1)))  # (B, C', H / 2, W / 2)
        if result is None:
            shape = (*frame.shape[:2], len(starts), *frame.shape[2:])
            result = StoredLayer(workspace.new_layer(shape, frame.dtype), workspace)
        result.values[:, :, position].copy_(frame)
    assert result is not None
    return result
