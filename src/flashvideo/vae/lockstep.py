"""Tiles that walk through the network side by side, so that each group norm can see the whole frame.

A group norm of a lone tile takes the mean and variance of that tile, and tiles come out with steps of brightness and
detail between them. Here every tile stops before every norm; the moments of all cores, which partition the frame,
together give the moments of the frame, and with these each tile goes on:

    mean = sum_i n_i mean_i / N,   variance = sum_i n_i (variance_i + (mean_i - mean)^2) / N,   N = sum_i n_i

What remains of a difference from whole frames is the convolutions' padding at the borders of tiles, which the overlap
keeps away. A waiting tile consists of two activations and its convolutions' last frames, which may wait elsewhere.

The order of layers is that of diffusers' `CogVideoXEncoder3D` and `CogVideoXDecoder3D`, written out because their
`forward` cannot stop in the middle; the layers themselves are theirs, and nothing is set on them.

Shapes: B batch, C channels, F frames, H and W height and width of an activation, G groups of a norm.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TypeAlias

import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import (
    CogVideoXCausalConv3d,
    CogVideoXDecoder3D,
    CogVideoXEncoder3D,
    CogVideoXResnetBlock3D,
    CogVideoXSpatialNorm3D,
)
from torch import nn

from flashvideo.vae.tiling import Tile

Moments: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""Mean and variance of the groups of a norm, each (B, G), float32."""

Walk: TypeAlias = Generator[int, Moments, None]
"""A walker's way through a network: it stops before every norm, says the number of groups and is sent the moments."""


class Walker:
    """One tile on its way through one network, chunk of time after chunk of time.

    Args:
        tile: The tile.
        device: Where the network is.
        waiting_room: Where the tile waits for the others.
    """

    def __init__(self, tile: Tile, device: torch.device, waiting_room: torch.device) -> None:
        self.tile = tile
        self.device = device
        self.waiting_room = waiting_room
        self.x: torch.Tensor | None = None
        """Current activation (B, C, F, H, W)."""
        self.skip: torch.Tensor | None = None
        """What the residual block that the tile is in started from."""
        self._last_frames: dict[str, torch.Tensor] = {}  # of each causal convolution, for the next chunk

    def take(self) -> torch.Tensor:
        """Hands over the activation, so that it can be freed as early as possible."""
        x, self.x = self.x, None
        assert x is not None
        return x

    def convolve(self, conv: CogVideoXCausalConv3d, x: torch.Tensor, name: str) -> torch.Tensor:
        """Applies a causal convolution, with the last frames that it saw of this tile before it."""
        last_frames = self._last_frames.pop(name, None)
        if last_frames is not None:
            last_frames = last_frames.to(self.device)
        result, last_frames = conv(x, conv_cache=last_frames)
        self._last_frames[name] = last_frames.to(self.waiting_room)
        return result

    def wait(self) -> None:
        """Leaves the device."""
        self._move(self.waiting_room)

    def go_on(self) -> None:
        """Comes back to the device."""
        self._move(self.device)

    def _move(self, device: torch.device) -> None:
        same = self.skip is self.x  # at a block's start; moved as one
        self.x = None if self.x is None else self.x.to(device)
        self.skip = self.x if same else None if self.skip is None else self.skip.to(device)


def walk_together(
    walkers: Sequence[Walker],
    sources: Sequence[Callable[[], torch.Tensor]],
    walk: Callable[[Walker], Walk],
) -> Iterator[torch.Tensor]:
    """Takes one chunk of time of all tiles through a network.

    Args:
        walkers: The tiles; their cores partition the frame.
        sources: For each tile what gives its input (B, C, F, H, W), on the network's device.
        walk: `encoder_walk` or `decoder_walk` of the network.

    Yields:
        For each tile the network's result, on the network's device.
    """
    walks: list[Walk] = []
    stops: list[tuple[int, Moments]] = []  # for each tile the size of its core, and the core's moments
    for walker, source in zip(walkers, sources, strict=True):
        walker.x = source()
        walks.append(walk(walker))
        stops.append(_stop(walker, next(walks[-1])))
    while True:
        _, moments = pool_moments(stops)
        stops = []
        for walker, steps in zip(walkers, walks, strict=True):
            walker.go_on()
            try:
                num_groups = steps.send(moments)
            except StopIteration:
                yield walker.take()
            else:
                stops.append(_stop(walker, num_groups))
        if not stops:
            return


def encoder_walk(encoder: CogVideoXEncoder3D) -> Callable[[Walker], Walk]:
    """The way through an encoder, from pixels to moments of the posterior."""

    def walk(walker: Walker) -> Walk:
        walker.x = walker.convolve(encoder.conv_in, walker.take(), "conv_in")
        for number, block in enumerate(encoder.down_blocks):
            yield from _resnets(block.resnets, walker, f"down.{number}")
            for downsampler in block.downsamplers or ():
                walker.x = downsampler(walker.take())
        yield from _resnets(encoder.mid_block.resnets, walker, "mid")
        moments = yield from _stop_at(encoder.norm_out)
        _norm(encoder.norm_out, walker, moments)
        walker.x = walker.convolve(encoder.conv_out, encoder.conv_act(walker.take()), "conv_out")

    return walk


def decoder_walk(decoder: CogVideoXDecoder3D) -> Callable[[Walker], Walk]:
    """The way through a decoder, from latents to pixels."""

    def walk(walker: Walker) -> Walk:
        latents = walker.take()
        walker.x = walker.convolve(decoder.conv_in, latents, "conv_in")
        yield from _resnets(decoder.mid_block.resnets, walker, "mid", latents)
        for number, block in enumerate(decoder.up_blocks):
            yield from _resnets(block.resnets, walker, f"up.{number}", latents)
            for upsampler in block.upsamplers or ():
                walker.x = upsampler(walker.take())
        moments = yield from _stop_at(decoder.norm_out)
        _norm(decoder.norm_out, walker, moments, latents)
        walker.x = walker.convolve(decoder.conv_out, decoder.conv_act(walker.take()), "conv_out")

    return walk


def _resnets(
    blocks: Sequence[CogVideoXResnetBlock3D], walker: Walker, name: str, latents: torch.Tensor | None = None
) -> Walk:
    for number, block in enumerate(blocks):
        yield from _resnet(block, walker, f"{name}.{number}", latents)


def _resnet(block: CogVideoXResnetBlock3D, walker: Walker, name: str, latents: torch.Tensor | None) -> Walk:
    walker.skip = walker.x
    moments = yield from _stop_at(block.norm1)
    if (
        block.in_channels != block.out_channels
    ):  # before the norm, because afterwards there are fewer channels to keep
        assert walker.skip is not None
        if block.use_conv_shortcut:
            walker.skip = walker.convolve(block.conv_shortcut, walker.skip, f"{name}.conv_shortcut")
        else:
            walker.skip = block.conv_shortcut(walker.skip)
    _norm(block.norm1, walker, moments, latents)
    walker.x = walker.convolve(block.conv1, block.nonlinearity(walker.take()), f"{name}.conv1")
    moments = yield from _stop_at(block.norm2)
    _norm(block.norm2, walker, moments, latents)
    hidden = block.dropout(block.nonlinearity(walker.take()))
    walker.x = walker.convolve(block.conv2, hidden, f"{name}.conv2")
    del hidden
    skip, walker.skip = walker.skip, None
    assert skip is not None
    walker.x = walker.take() + skip


def _stop_at(norm: nn.GroupNorm | CogVideoXSpatialNorm3D) -> Generator[int, Moments, Moments]:
    """Stops for the moments of a norm's groups."""
    return (yield _group_norm(norm).num_groups)


def _group_norm(norm: nn.GroupNorm | CogVideoXSpatialNorm3D) -> nn.GroupNorm:
    group_norm = norm.norm_layer if isinstance(norm, CogVideoXSpatialNorm3D) else norm
    assert isinstance(group_norm, nn.GroupNorm)
    return group_norm


def _norm(
    norm: nn.GroupNorm | CogVideoXSpatialNorm3D,
    walker: Walker,
    moments: Moments,
    latents: torch.Tensor | None = None,
) -> None:
    """Normalises, and in a decoder modulates by the latents."""
    walker.x = normalise(walker.take(), *moments, _group_norm(norm))
    if isinstance(norm, CogVideoXSpatialNorm3D):
        assert latents is not None
        size = walker.x.shape[2:]
        # These convolutions see one latent pixel at a time, so they may come before the enlargement.
        walker.x = walker.take() * _enlarge(norm.conv_y.conv(latents), size)
        walker.x = walker.take() + _enlarge(norm.conv_b.conv(latents), size)


def normalise(
    x: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor, norm: nn.GroupNorm
) -> torch.Tensor:
    """Group norm with given moments, `(x - mean) / sqrt(variance + eps) * weight + bias`.

    Args:
        x: (B, C, F, H, W).
        mean: Of each group, (B, G), float32.
        variance: Likewise, without Bessel's correction.
        norm: Where weight, bias and eps come from.

    Returns:
        (B, C, F, H, W), of the dtype of `x`.
    """
    batch_size, num_channels = x.shape[:2]
    per_group = num_channels // norm.num_groups
    weight = norm.weight.float().repeat(batch_size)  # (B C,)
    bias = norm.bias.float().repeat(batch_size)
    means = mean.flatten().repeat_interleave(per_group)
    variances = variance.flatten().repeat_interleave(per_group)
    if torch.is_grad_enabled():  # batch_norm takes moments for constants
        scale = weight * (variances + norm.eps).rsqrt()
        shape = (batch_size, num_channels, 1, 1, 1)
        return (x * scale.view(shape) + (bias - means * scale).view(shape)).to(x.dtype)
    flat = x.reshape(1, batch_size * num_channels, *x.shape[2:])
    return nn.functional.batch_norm(flat, means, variances, weight, bias, eps=norm.eps).view(x.shape)


def _enlarge(latents: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Nearest neighbours of (B, C, f, h, w) at size (F, H, W); of an odd number of frames the first stands alone."""
    if size[0] > 1 and size[0] % 2 == 1:
        first = nn.functional.interpolate(latents[:, :, :1], size=(1, *size[1:]))
        rest = nn.functional.interpolate(latents[:, :, 1:], size=(size[0] - 1, *size[1:]))
        return torch.cat([first, rest], dim=2)
    return nn.functional.interpolate(latents, size=tuple(size))


def _stop(walker: Walker, num_groups: int) -> tuple[int, Moments]:
    """Takes the moments of a walker's core, (n, (mean, variance)), and lets it wait."""
    assert walker.x is not None
    core = walker.tile.core_of(walker.x)
    # Frame by frame, because in float32 the core of all frames may be twice as large as the tile.
    frames = [
        torch.var_mean(frame.float().reshape(len(frame), num_groups, -1), dim=2, correction=0)
        for frame in core.unbind(2)
    ]
    size = core[0, :, 0].numel() // num_groups
    stop = pool_moments([(size, (mean, variance)) for variance, mean in frames])
    walker.wait()
    return stop


def pool_moments(parts: Sequence[tuple[int, Moments]]) -> tuple[int, Moments]:
    """Size and moments of a whole from those of its parts."""
    sizes = [size for size, _ in parts]
    means = torch.stack([mean for _, (mean, _) in parts])  # (parts, B, G)
    variances = torch.stack([variance for _, (_, variance) in parts])
    weights = (means.new_tensor(sizes) / sum(sizes)).view(-1, 1, 1)
    mean = (weights * means).sum(dim=0)
    variance = (weights * (variances + (means - mean).square())).sum(dim=0)
    return sum(sizes), (mean, variance)
