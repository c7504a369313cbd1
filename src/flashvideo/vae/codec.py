"""Encoding and decoding, chunk by chunk of time and tile by tile.

On the VAE's device there is only what is in work: one chunk of time of one tile. Inputs may lie elsewhere, and results
are moved to where they are wanted as they are made.

Shapes: B batch, F frames, H and W pixels, f = 1 + (F - 1) / temporal latent frames, C latent channels, h and w latent
height and width. Pixels (B, F, 3, H, W) in [-1, 1]; latents (B, f, C, h, w), multiplied by the stage's scale. Inside
this file ``video`` and ``vae_latents`` are in diffusers' layout, channels before time.
"""

from collections.abc import Callable, Sequence

import torch
from diffusers import AutoencoderKLCogVideoX
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXDecoder3D, CogVideoXEncoder3D
from diffusers.utils.accelerate_utils import apply_forward_hook
from diffusers.utils.torch_utils import randn_tensor
from einops import rearrange
from torch import nn

from flashvideo.shapes import check_num_frames, check_size, vae_factors
from flashvideo.vae.layers import THRIFTS, Workspace, decode_chunk, encode_chunk
from flashvideo.vae.tiling import Canvas, Tile, Tiling

ENCODE_FRAMES_PER_CHUNK = 16
DECODE_LATENT_FRAMES_PER_CHUNK = 2
LOG_VARIANCE_RANGE = (-30.0, 20.0)


def encode_pixels(
    vae: AutoencoderKLCogVideoX,
    pixels: torch.Tensor,
    *,
    scale: float,
    generator: torch.Generator | None = None,
    posterior_noise: torch.Tensor | None = None,
    frames_per_chunk: int | None = None,
    tiling: Tiling | None = None,
    thrift: str | None = None,
) -> torch.Tensor:
    """Encode a video to scaled latents, ``scale * (mean + std * eps)``.

    Args:
        vae: The autoencoder.
        pixels: (B, F, 3, H, W) in [-1, 1], on any device.
        scale: The stage's latent scale.
        generator: Source of eps; without it (and without ``posterior_noise``) the posterior mean is returned.
        posterior_noise: eps itself, (B, f, C, h, w).
        frames_per_chunk: See `encode_moments`.
        tiling: See `encode_moments`.
        thrift: See `encode_moments`.

    Returns:
        Latents (B, f, C, h, w), float32, on the VAE's device.

    Raises:
        ValueError: If a size does not fit the VAE.
    """
    moments = encode_moments(vae, pixels, frames_per_chunk=frames_per_chunk, tiling=tiling, thrift=thrift)
    latents, log_variance = rearrange(moments, "b c f h w -> b f c h w").chunk(2, dim=2)
    if posterior_noise is None and generator is not None:
        posterior_noise = randn_tensor(
            latents.shape, generator=generator, device=latents.device, dtype=latents.dtype
        )
    if posterior_noise is not None:
        std = torch.exp(0.5 * log_variance.clamp(*LOG_VARIANCE_RANGE))
        latents = latents + std * posterior_noise
    return latents * scale


def encode_moments(
    vae: AutoencoderKLCogVideoX,
    pixels: torch.Tensor,
    *,
    frames_per_chunk: int | None = None,
    tiling: Tiling | None = None,
    thrift: str | None = None,
) -> torch.Tensor:
    """Mean and log variance of the posterior: raw VAE output, not scaled, channels before time.

    Args:
        vae: The autoencoder.
        pixels: (B, F, 3, H, W) in [-1, 1], on any device.
        frames_per_chunk: Frames per time chunk, a multiple of the temporal compression; the first chunk has one more.
            Default 16 (chunks of 17, 16, 16 for 49 frames). It changes the result: group norms see one chunk.
        tiling: Spatial tiles; None encodes whole frames.
        thrift: Strip by strip, with `"strips"`, `"caches"` or `"layers"` as in `flashvideo.vae.layers.Workspace`: the
            same in a third of the memory or less, up to rounding. None for the VAE's own modules. Without gradients
            only.

    Returns:
        (B, 2 C, f, h, w), float32, on the VAE's device: C channels of means, then C of log variances.

    Raises:
        ValueError: If a size does not fit the VAE, or ``frames_per_chunk`` is no multiple of the compression.
    """
    _, num_frames, _, height, width = pixels.shape
    check_num_frames(num_frames, vae_config=vae.config)
    check_size(height, width, vae_config=vae.config)
    temporal, _ = vae_factors(vae.config)
    per_chunk = ENCODE_FRAMES_PER_CHUNK if frames_per_chunk is None else frames_per_chunk
    if per_chunk < 1 or per_chunk % temporal:
        raise ValueError(f"frames_per_chunk must be a positive multiple of {temporal}, got {per_chunk}")
    return _encode(vae, pixels, per_chunk, _several(tiling), thrift)


def decode_latents(
    vae: AutoencoderKLCogVideoX,
    latents: torch.Tensor,
    *,
    scale: float,
    latent_frames_per_chunk: int | None = None,
    tiling: Tiling | None = None,
    thrift: str | None = None,
    clamp: bool = False,
    output_device: torch.device | str | None = None,
) -> torch.Tensor:
    """Decode scaled latents to pixels.

    Args:
        vae: The autoencoder.
        latents: (B, f, C, h, w), multiplied by ``scale``, on any device.
        scale: The stage's latent scale.
        latent_frames_per_chunk: Latent frames per time chunk, even; the first chunk has one more. Default 2: chunks
            of 3, 2, 2 and so on.
        tiling: Spatial tiles; None decodes whole frames.
        thrift: Strip by strip, with `"strips"`, `"caches"` or `"layers"` as in `flashvideo.vae.layers.Workspace`: the
            same in a third of the memory or less, up to rounding. None for the VAE's own modules. Without gradients
            only.
        clamp: Limit the result to [-1, 1]. Not for training: a clamp has no gradient outside.
        output_device: Where the pixels are wanted; each finished piece is moved there. None for the VAE's device.

    Returns:
        Pixels (B, 1 + temporal (f - 1), 3, H, W), float32; the decoder may leave [-1, 1] a little.

    Raises:
        ValueError: If the channels do not fit the VAE, or ``latent_frames_per_chunk`` is not a positive even number.
    """
    if latents.ndim != 5 or latents.shape[2] != vae.config.latent_channels:
        raise ValueError(
            f"latents must be (batch, frames, {vae.config.latent_channels}, height, width), got {tuple(latents.shape)}"
        )
    per_chunk = DECODE_LATENT_FRAMES_PER_CHUNK if latent_frames_per_chunk is None else latent_frames_per_chunk
    if per_chunk < 1 or per_chunk % 2:
        raise ValueError(f"latent_frames_per_chunk must be a positive even number, got {per_chunk}")
    video = _decode(vae, latents, scale, per_chunk, _several(tiling), thrift, output_device)
    pixels = rearrange(video, "b c f h w -> b f c h w")
    return pixels.clamp_(-1, 1) if clamp else pixels


def time_chunks(num_frames: int, per_chunk: int) -> list[slice]:
    """Causal chunks: ``1 + per_chunk`` frames, then ``per_chunk`` each, the last one what is left.

    Example:
        >>> [chunk.stop - chunk.start for chunk in time_chunks(49, 16)]
        [17, 16, 16]
    """
    starts = [0, *range(1 + per_chunk, num_frames, per_chunk)]
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], num_frames], strict=True)]


def _several(tiling: Tiling | None) -> Tiling | None:
    """None for a single tile, so that it gives exactly what whole frames give."""
    return None if tiling is None or tiling.rows == tiling.columns == 1 else tiling


@apply_forward_hook  # lets model offloading bring the VAE to its device first
def _encode(
    vae: AutoencoderKLCogVideoX,
    pixels: torch.Tensor,
    per_chunk: int,
    tiling: Tiling | None,
    thrift: str | None,
) -> torch.Tensor:
    """(B, F, 3, H, W) -> moments (B, 2 C, f, h, w), float32."""
    temporal, spatial = vae_factors(vae.config)
    video = rearrange(pixels, "b f c h w -> b c f h w")
    batch_size, _, num_frames, height, width = video.shape
    latent_size = (height // spatial, width // spatial)
    shape = (batch_size, 2 * vae.config.latent_channels, 1 + (num_frames - 1) // temporal, *latent_size)
    canvas = Canvas(shape, tiling, 1, vae.device)

    def read(chunk: slice, tile: Tile | None) -> torch.Tensor:
        piece = video[:, :, chunk]
        return (piece if tile is None else tile.cut(piece, spatial)).to(vae.device, vae.dtype)

    def write(moments: torch.Tensor, start: int, tile: Tile | None) -> None:
        canvas.add(moments if vae.quant_conv is None else vae.quant_conv(moments), start, tile)

    tiles = [None] if tiling is None else tiling.tiles(*latent_size)
    chunks = time_chunks(num_frames, per_chunk)
    largest = (height, width) if tiling is None else _pixels(tiling.largest_tile(*latent_size), spatial)
    thrift = _choose_thrift(
        vae.encoder,
        thrift,
        vae.config.block_out_channels[0],
        largest,
        [chunk.stop - chunk.start for chunk in chunks],
    )
    _run(vae, vae.encoder, read, write, chunks, tiles, thrift)
    return canvas.video


@apply_forward_hook
def _decode(
    vae: AutoencoderKLCogVideoX,
    latents: torch.Tensor,
    scale: float,
    per_chunk: int,
    tiling: Tiling | None,
    thrift: str | None,
    output_device: torch.device | str | None,
) -> torch.Tensor:
    """(B, f, C, h, w) -> (B, 3, F, H, W), float32."""
    temporal, spatial = vae_factors(vae.config)
    vae_latents = rearrange(latents, "b f c h w -> b c f h w")
    batch_size, _, num_frames, height, width = vae_latents.shape
    latent_size = (height, width)
    shape = (batch_size, vae.config.out_channels, 1 + temporal * (num_frames - 1))
    device = vae.device if output_device is None else torch.device(output_device)
    canvas = Canvas((*shape, height * spatial, width * spatial), tiling, spatial, device)
    if num_frames % 2 == 0:
        # The decoder tells first chunks (odd) from later ones (even) by their length, so the total has to be odd:
        # repeat the last latent frame; the canvas drops the pixels that it adds.
        vae_latents = torch.cat((vae_latents, vae_latents[:, :, -1:]), dim=2)

    def read(chunk: slice, tile: Tile | None) -> torch.Tensor:
        piece = vae_latents[:, :, chunk]
        z = ((piece if tile is None else tile.cut(piece, 1)) / scale).to(vae.device, vae.dtype)
        return z if vae.post_quant_conv is None else vae.post_quant_conv(z)

    tiles = [None] if tiling is None else tiling.tiles(*latent_size)
    chunks = time_chunks(vae_latents.shape[2], per_chunk)
    largest = _pixels(latent_size if tiling is None else tiling.largest_tile(*latent_size), spatial)
    lengths = [temporal * (chunk.stop - chunk.start) for chunk in chunks]
    widest = max(vae.config.block_out_channels[:2])  # what the last level of the decoder begins with
    thrift = _choose_thrift(vae.decoder, thrift, widest, largest, lengths)
    _run(vae, vae.decoder, read, canvas.add, chunks, tiles, thrift)
    return canvas.video


def _run(
    vae: AutoencoderKLCogVideoX,
    network: CogVideoXEncoder3D | CogVideoXDecoder3D,
    read: Callable[[slice, Tile | None], torch.Tensor],
    write: Callable[[torch.Tensor, int, Tile | None], None],
    chunks: Sequence[slice],
    tiles: Sequence[Tile | None],
    thrift: str | None,
) -> None:
    """Takes one tile after the other, and of each one chunk after the other, through a network.

    Tiles come first, because each needs the last frames before all its convolutions from chunk to chunk.
    """
    work = encode_chunk if isinstance(network, CogVideoXEncoder3D) else decode_chunk
    for tile in tiles:
        start, last_frames = 0, None
        workspace = None if thrift is None else Workspace(device=vae.device, thrift=thrift)
        for chunk in chunks:
            if workspace is not None:
                result = work(network, read(chunk, tile), workspace)
            else:
                result, last_frames = network(read(chunk, tile), conv_cache=last_frames)
            write(result, start, tile)
            start += result.shape[2]


def _choose_thrift(
    network: CogVideoXEncoder3D | CogVideoXDecoder3D,
    thrift: str | None,
    num_channels: int,
    size: tuple[int, int],
    chunk_lengths: Sequence[int],
) -> str | None:
    """The thrift to use: strips also where the modules themselves fail."""
    is_too_large = _modules_fail(num_channels, size, chunk_lengths)
    if thrift is None and not is_too_large:
        return None
    if torch.is_grad_enabled():
        if thrift is not None:
            raise ValueError(
                f"thrift is for work without gradients, got {thrift!r}; call it under torch.no_grad()"
            )
        return None
    if _has_hooks(network):  # strips go by the layers' weights and would not trigger them
        if is_too_large:
            raise ValueError(
                f"frames of {size[1]}x{size[0]} need the VAE strip by strip, which hooks on its layers do not allow; "
                "leave its layers where they are, or pass a tiling"
            )
        return None
    return thrift or THRIFTS[0]


def _modules_fail(num_channels: int, size: tuple[int, int], chunk_lengths: Sequence[int]) -> bool:
    """Whether diffusers' convolutions would split a chunk of full size into pieces that are shorter than their kernels.

    They split time so that no piece holds more than 2^30 values; the last frames of the chunk before come on top.
    """
    kernel_size = 3
    for length in chunk_lengths:
        num_frames = length + kernel_size - 1
        num_pieces = num_channels * num_frames * size[0] * size[1] // 2**30 + 1
        if -(-num_frames // num_pieces) < kernel_size:
            return True
    return False


def _pixels(latent_size: tuple[int, int], spatial: int) -> tuple[int, int]:
    return latent_size[0] * spatial, latent_size[1] * spatial


def _has_hooks(network: nn.Module) -> bool:
    """Whether diffusers or accelerate bring its layers to the device one by one, which only their own calls notice."""
    return any(hasattr(part, "_diffusers_hook") or hasattr(part, "_hf_hook") for part in network.modules())
