"""The CogVideoX VAE's encoder and decoder for inference, in a fraction of the memory that their own modules take.

The weights are the modules', the numbers too, up to rounding; but nothing of full size comes about that need not:

- Norm, modulation, activation and convolution run strip by strip, a strip being a few rows of all frames. The
  statistics of a group norm are gathered first, from the whole, so that strips, unlike tiles, leave no trace.
- Where a layer's input is not needed any more, its output takes its place.
- What the decoder's norms are modulated by is computed at the latents' resolution and enlarged afterwards, and frames
  that are doubled in time are convolved once.

Shapes: B clips, C channels, F frames of a chunk, H, W height and width of the layer; f, h, w of the latents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

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
from torch import nn
from torch.nn import functional as F

STRIP_BYTES = 256 * 1024**2
"""Size of a strip before its convolution: enough to keep an accelerator busy."""

Caches = dict[str, torch.Tensor]
"""The last frames before each causal convolution, by its name: what the next chunk goes on from."""

Prepare = Callable[[torch.Tensor, slice], torch.Tensor]
"""From a layer's input (B, C, F, H, W) and a slice of rows to those rows as the convolution takes them."""


def encode_chunk(encoder: CogVideoXEncoder3D, video: torch.Tensor, caches: Caches) -> torch.Tensor:
    """Encodes one chunk of frames; without gradients only.

    Args:
        encoder: The VAE's encoder.
        video: Pixels (B, 3, F, H, W).
        caches: Empty at the clip's first chunk; filled for the next one.

    Returns:
        Moments (B, 2 C, f, h, w).
    """
    x = _convolve(encoder.conv_in, _rows_of, video, caches, "conv_in")
    for i, block in enumerate(encoder.down_blocks):
        for j, resnet in enumerate(block.resnets):
            x = _resnet(resnet, x, None, caches, f"down_{i}_{j}")
        for downsampler in block.downsamplers or ():
            x = _downsample(downsampler, x)
    for j, resnet in enumerate(encoder.mid_block.resnets):
        x = _resnet(resnet, x, None, caches, f"mid_{j}")
    prepare = _Normalisation.of(encoder.norm_out, encoder.conv_act, x, None)
    return _convolve(encoder.conv_out, prepare, x, caches, "conv_out")


def decode_chunk(decoder: CogVideoXDecoder3D, latents: torch.Tensor, caches: Caches) -> torch.Tensor:
    """Decodes one chunk of latent frames; without gradients only.

    Args:
        decoder: The VAE's decoder.
        latents: (B, C, f, h, w).
        caches: Empty at the clip's first chunk; filled for the next one.

    Returns:
        Pixels (B, 3, F, H, W).
    """
    x = _convolve(decoder.conv_in, _rows_of, latents, caches, "conv_in")
    for j, resnet in enumerate(decoder.mid_block.resnets):
        x = _resnet(resnet, x, latents, caches, f"mid_{j}")
    for i, block in enumerate(decoder.up_blocks):
        for j, resnet in enumerate(block.resnets):
            x = _resnet(resnet, x, latents, caches, f"up_{i}_{j}")
        for upsampler in block.upsamplers or ():
            x = _upsample(upsampler, x)
    prepare = _Normalisation.of(decoder.norm_out, decoder.conv_act, x, latents)
    return _convolve(decoder.conv_out, prepare, x, caches, "conv_out")


def _resnet(
    block: CogVideoXResnetBlock3D, x: torch.Tensor, latents: torch.Tensor | None, caches: Caches, name: str
) -> torch.Tensor:
    prepare = _Normalisation.of(block.norm1, block.nonlinearity, x, latents)
    h = _convolve(block.conv1, prepare, x, caches, f"{name}_conv1")
    prepare = _Normalisation.of(block.norm2, block.nonlinearity, h, latents)
    h = _convolve(block.conv2, prepare, h, caches, f"{name}_conv2", in_place=True)
    if block.in_channels == block.out_channels:
        return h.add_(x)
    for rows in _strips(x):
        h[:, :, :, rows] += block.conv_shortcut(x[:, :, :, rows])
    return h


def _rows_of(x: torch.Tensor, rows: slice) -> torch.Tensor:
    return x[:, :, :, rows]


def _convolve(
    module: CogVideoXCausalConv3d,
    prepare: Prepare,
    x: torch.Tensor,
    caches: Caches,
    name: str,
    *,
    in_place: bool = False,
) -> torch.Tensor:
    """A causal convolution, strip by strip, of what `prepare` makes of its input.

    Args:
        module: The convolution.
        prepare: Makes a strip of the convolution's input.
        x: (B, C, F, H, W).
        caches: See `Caches`.
        name: The convolution's.
        in_place: Whether the result takes the place of x, which then has as many channels.

    Returns:
        (B, C', F, H, W).
    """
    convolution, halo, num_before = module.conv, module.height_pad, module.time_kernel_size - 1
    height = x.shape[3]
    cache, is_first = caches.get(name), name not in caches
    result = x if in_place else None
    above: torch.Tensor | None = None  # rows above the strip, kept since their places may have been taken
    for rows in _strips(x):
        bottom = min(rows.stop + halo, height)
        strip = prepare(x, slice(rows.start, bottom))  # (B, C, F, rows, W)
        if is_first:
            before = strip[:, :, :1].expand(-1, -1, num_before, -1, -1)
        else:
            before = cache[:, :, :, rows.start : bottom]
        strip = torch.cat((before, strip), dim=2)  # (B, C, k - 1 + F, rows, W)
        if cache is None:
            cache = strip.new_empty(*strip.shape[:2], num_before, height, strip.shape[4])
        cache[:, :, :, rows] = strip[:, :, -num_before:, : rows.stop - rows.start]
        top = rows.start
        if above is not None:
            top -= above.shape[3]
            strip = torch.cat((above, strip), dim=3)
        above = strip[:, :, :, max(0, rows.stop - halo - top) : rows.stop - top].clone()
        edges = (0, 0, halo - (rows.start - top), halo - (bottom - rows.stop))
        out = F.conv3d(
            F.pad(strip, edges) if any(edges) else strip,
            convolution.weight,
            convolution.bias,
            padding=(0, 0, module.width_pad),
        )
        if result is None:
            result = out.new_empty(*out.shape[:3], height, out.shape[4])
        result[:, :, :, rows] = out
    assert cache is not None
    assert result is not None
    caches[name] = cache
    return result


@dataclass(frozen=True, kw_only=True)
class _Normalisation:
    """Group norm with the statistics of the whole input, modulation by the latents, and activation, of any rows."""

    mean: torch.Tensor  # (B C,)
    variance: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    eps: float
    activation: nn.Module
    modulation: tuple[torch.Tensor, torch.Tensor] | None  # gain and offset (B, C, F, h, w)

    @classmethod
    def of(
        cls,
        norm: nn.GroupNorm | CogVideoXSpatialNorm3D,
        activation: nn.Module,
        x: torch.Tensor,
        latents: torch.Tensor | None,
    ) -> _Normalisation:
        """Gathers the statistics of x (B, C, F, H, W)."""
        modulation = None
        if isinstance(norm, CogVideoXSpatialNorm3D):
            assert latents is not None
            frames = _nearest_frames(latents.shape[2], x.shape[2]).to(x.device)
            gain, offset = (
                module.conv(latents).index_select(2, frames) for module in (norm.conv_y, norm.conv_b)
            )
            modulation, norm = (gain, offset), norm.norm_layer
        batch_size, num_channels = x.shape[:2]
        statistics = (
            values.repeat_interleave(num_channels // norm.num_groups, dim=1).flatten().float()
            for values in _statistics(x, norm.num_groups)
        )
        mean, variance = statistics
        return cls(
            mean=mean,
            variance=variance,
            weight=norm.weight.float().repeat(batch_size),
            bias=norm.bias.float().repeat(batch_size),
            eps=norm.eps,
            activation=activation,
            modulation=modulation,
        )

    def __call__(self, x: torch.Tensor, rows: slice) -> torch.Tensor:
        """(B, C, F, H, W) -> (B, C, F, rows, W)."""
        strip = x[:, :, :, rows]
        # With its statistics given, a group norm is a batch norm of one example with B C channels.
        normal = F.batch_norm(
            strip.reshape(1, -1, *strip.shape[2:]),
            self.mean,
            self.variance,
            self.weight,
            self.bias,
            eps=self.eps,
        ).view(strip.shape)
        if self.modulation is not None:
            height, width = x.shape[3:]
            gain, offset = (_enlarge(values, height, width, rows) for values in self.modulation)
            normal = normal.mul_(gain).add_(offset)
        return self.activation(normal)


def _statistics(x: torch.Tensor, num_groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance (B, groups) of x (B, C, F, H, W) over channels of a group, frames and space, in float64."""
    counts, means, variances = [], [], []
    for rows in _strips(x):
        strip = x[:, :, :, rows].float().reshape(len(x), num_groups, -1)
        variance, mean = torch.var_mean(strip, dim=-1, correction=0)
        counts.append(strip.shape[-1])
        means.append(mean.double())
        variances.append(variance.double())
    share = torch.tensor(counts, dtype=torch.float64, device=x.device) / sum(counts)
    all_means, all_variances = (
        torch.stack(means, dim=-1),
        torch.stack(variances, dim=-1),
    )  # (B, groups, strips)
    mean = (all_means * share).sum(dim=-1)
    variance = ((all_variances + (all_means - mean[..., None]).square()) * share).sum(dim=-1)
    return mean, variance


def _nearest_frames(num_latent_frames: int, num_frames: int) -> torch.Tensor:
    """Which latent frame modulates each frame: in an odd number the first one belongs to the first frame alone."""
    first = 1 if num_frames > 1 and num_frames % 2 else 0
    later = torch.arange(num_frames - first) * (num_latent_frames - first) // max(1, num_frames - first)
    return torch.cat((torch.zeros(first, dtype=torch.long), later + first))


def _enlarge(values: torch.Tensor, height: int, width: int, rows: slice) -> torch.Tensor:
    """Rows of (B, C, F, h, w), enlarged to H x W by repetition."""
    row_indices = torch.arange(rows.start, rows.stop, device=values.device) * values.shape[3] // height
    column_indices = torch.arange(width, device=values.device) * values.shape[4] // width
    return values.index_select(3, row_indices).index_select(4, column_indices)


def _upsample(module: CogVideoXUpsample3D, x: torch.Tensor) -> torch.Tensor:
    """Twice the size, and where time was compressed twice the frames, but for the first one of an odd number."""
    num_frames = x.shape[2]
    doubled = [
        module.compress_time and num_frames > 1 and not (num_frames % 2 and t == 0) for t in range(num_frames)
    ]
    result: torch.Tensor | None = None
    position = 0
    for t, is_doubled in enumerate(doubled):
        frame = module.conv(F.interpolate(x[:, :, t], scale_factor=2.0))  # (B, C', 2 H, 2 W)
        if result is None:
            total = num_frames + sum(doubled)
            result = frame.new_empty(*frame.shape[:2], total, *frame.shape[2:])
        count = 2 if is_doubled else 1
        result[:, :, position : position + count] = frame[:, :, None]
        position += count
    assert result is not None
    return result


def _downsample(module: CogVideoXDownsample3D, x: torch.Tensor) -> torch.Tensor:
    """Half the size, and where time is compressed the means of two frames, but for the first one of an odd number."""
    num_frames = x.shape[2]
    starts = [(t, 1) for t in range(num_frames)]
    if module.compress_time:
        first = num_frames % 2
        starts = [(0, 1)] * first + [(t, 2) for t in range(first, num_frames, 2)]
    result: torch.Tensor | None = None
    for position, (t, count) in enumerate(starts):
        frame = x[:, :, t] if count == 1 else (x[:, :, t] + x[:, :, t + 1]) / 2
        frame = module.conv(F.pad(frame, (0, 1, 0, 1)))  # (B, C', H / 2, W / 2)
        if result is None:
            result = frame.new_empty(*frame.shape[:2], len(starts), *frame.shape[2:])
        result[:, :, position] = frame
    assert result is not None
    return result


def _strips(x: torch.Tensor) -> Iterator[slice]:
    """Rows of (B, C, F, H, W), in strips of about `STRIP_BYTES` and of equal height."""
    height = x.shape[3]
    row_bytes = x[:, :, :, :1].numel() * x.element_size()
    num_strips = min(height, -(-height * row_bytes // STRIP_BYTES))
    for i in range(num_strips):
        yield slice(height * i // num_strips, height * (i + 1) // num_strips)
