"""Pixels <-> scaled latents with a CogVideoX VAE (paper section 3; chunks as in the released code).

Time is cut into chunks that hand the causal convolutions' last frames to the next chunk, space optionally into tiles.
Nothing is set on the VAE itself, and gradients flow through, so training uses the same functions as inference.

Shapes: B batch, F frames, H and W pixels, f = 1 + (F - 1) / temporal latent frames, C latent channels, h and w latent
height and width. Pixels (B, F, 3, H, W) in [-1, 1]; latents (B, f, C, h, w), multiplied by the stage's scale. Inside
this file ``video`` and ``vae_latents`` are in diffusers' layout, channels before time.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKLCogVideoX
from diffusers.utils.accelerate_utils import apply_forward_hook
from diffusers.utils.torch_utils import randn_tensor
from einops import rearrange

from flashvideo.shapes import check_num_frames, check_size, vae_factors

ENCODE_FRAMES_PER_CHUNK = 16
DECODE_LATENT_FRAMES_PER_CHUNK = 2
LOG_VARIANCE_RANGE = (-30.0, 20.0)


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """A grid of overlapping spatial tiles, processed one after the other to save memory.

    The latent plane is divided evenly into ``rows x columns`` cores; each tile is its core grown by ``overlap`` on
    every side that has a neighbour, so neighbours share ``2 * overlap`` latent pixels.

    Attributes:
        rows: Tiles along the height.
        columns: Tiles along the width.
        overlap: Growth of each core, in latent pixels.
        blend: Cross-fade linearly over the shared strip; otherwise cut hard in its middle, as the reference does.
    """

    rows: int = 1
    columns: int = 1
    overlap: int = 8
    blend: bool = True

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.rows < 1 or self.columns < 1 or self.overlap < 0:
            raise ValueError(
                f"tiling needs rows, columns >= 1 and overlap >= 0, got {self.rows}, {self.columns}, {self.overlap}"
            )

    @classmethod
    def to_fit(cls, height: int, width: int, *, max_side: int, overlap: int = 8) -> "Tiling":
        """The fewest tiles whose sides do not exceed ``max_side`` latent pixels.

        Args:
            height: Latent rows h.
            width: Latent columns w.
            max_side: Longest side of a tile, overlap included.
            overlap: Growth of each core.

        Returns:
            The tiling; 1 x 1 if everything fits.

        Raises:
            ValueError: If ``max_side`` leaves no room for the overlap.
        """
        if max_side <= 2 * overlap:
            raise ValueError(f"max_side must exceed twice the overlap ({2 * overlap}), got {max_side}")
        rows, columns = (
            1 if side <= max_side else max(2, -(-side // (max_side - 2 * overlap)))
            for side in (height, width)
        )
        return cls(rows=rows, columns=columns, overlap=overlap)


REFERENCE_TILES = Tiling(columns=2, overlap=16, blend=False)
"""The released code's memory-saving decoder: two halves of the width, each 16 latent pixels wider, cut hard."""


@dataclass(frozen=True)
class TileSpan:
    """One tile along one axis, in latent pixels: it covers start..stop; its core is core_start..core_stop."""

    start: int
    stop: int
    core_start: int
    core_stop: int

    def scaled(self, factor: int) -> slice:
        """The tile's extent in pixels ``factor`` times finer."""
        return slice(self.start * factor, self.stop * factor)


def tile_spans(length: int, num_tiles: int, overlap: int) -> list[TileSpan]:
    """Cut one axis into tiles.

    Args:
        length: Latent pixels along the axis.
        num_tiles: Tiles wanted.
        overlap: Growth of each core towards its neighbours.

    Returns:
        The tiles in order; cores partition the axis.

    Raises:
        ValueError: If a core would be empty or smaller than the overlap.
    """
    edges = [length * i // num_tiles for i in range(num_tiles + 1)]
    shortest = length // num_tiles
    if num_tiles > 1 and shortest < max(1, overlap):
        most = max(1, length // max(1, overlap))
        raise ValueError(
            f"{num_tiles} tiles with overlap {overlap} do not fit {length} latent pixels; at most {most} do"
        )
    return [
        TileSpan(max(0, low - overlap), min(length, high + overlap), low, high)
        for low, high in zip(edges[:-1], edges[1:], strict=True)
    ]


def encode_pixels(
    vae: AutoencoderKLCogVideoX,
    pixels: torch.Tensor,
    *,
    scale: float,
    generator: torch.Generator | None = None,
    posterior_noise: torch.Tensor | None = None,
    frames_per_chunk: int | None = None,
    tiling: Tiling | None = None,
) -> torch.Tensor:
    """Encode a video to scaled latents, ``scale * (mean + std * eps)``.

    Args:
        vae: The autoencoder.
        pixels: (B, F, 3, H, W) in [-1, 1].
        scale: The stage's latent scale.
        generator: Source of eps; without it (and without ``posterior_noise``) the posterior mean is returned.
        posterior_noise: eps itself, (B, f, C, h, w).
        frames_per_chunk: See `encode_moments`.
        tiling: See `encode_moments`.

    Returns:
        Latents (B, f, C, h, w), float32.

    Raises:
        ValueError: If a size does not fit the VAE.
    """
    moments = encode_moments(vae, pixels, frames_per_chunk=frames_per_chunk, tiling=tiling)
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
) -> torch.Tensor:
    """Mean and log variance of the posterior: raw VAE output, not scaled, channels before time.

    Args:
        vae: The autoencoder.
        pixels: (B, F, 3, H, W) in [-1, 1].
        frames_per_chunk: Frames per time chunk, a multiple of the temporal compression; the first chunk has one more.
            Default 16 (chunks of 17, 16, 16 for 49 frames). It changes the result: group norms see one chunk.
        tiling: Spatial tiles; None encodes whole frames.

    Returns:
        (B, 2 C, f, h, w), float32: C channels of means, then C of log variances.

    Raises:
        ValueError: If a size does not fit the VAE, or ``frames_per_chunk`` is no multiple of the compression.
    """
    _, num_frames, _, height, width = pixels.shape
    check_num_frames(num_frames, vae_config=vae.config)
    check_size(height, width, vae_config=vae.config)
    temporal, spatial = vae_factors(vae.config)
    per_chunk = ENCODE_FRAMES_PER_CHUNK if frames_per_chunk is None else frames_per_chunk
    if per_chunk < 1 or per_chunk % temporal:
        raise ValueError(f"frames_per_chunk must be a positive multiple of {temporal}, got {per_chunk}")

    video = rearrange(pixels, "b f c h w -> b c f h w")
    if tiling is None:
        return _encode_chunks(vae, video, per_chunk)
    return _map_tiles(
        lambda tile: _encode_chunks(vae, tile, per_chunk),
        video,
        tiling,
        latent_size=(height // spatial, width // spatial),
        in_factor=spatial,
        out_factor=1,
    )


def decode_latents(
    vae: AutoencoderKLCogVideoX,
    latents: torch.Tensor,
    *,
    scale: float,
    latent_frames_per_chunk: int | None = None,
    tiling: Tiling | None = None,
    clamp: bool = False,
) -> torch.Tensor:
    """Decode scaled latents to pixels.

    Args:
        vae: The autoencoder.
        latents: (B, f, C, h, w), multiplied by ``scale``.
        scale: The stage's latent scale.
        latent_frames_per_chunk: Latent frames per time chunk, even; the first chunk has one more. Default 2: chunks
            of 3, 2, 2 and so on.
        tiling: Spatial tiles; None decodes whole frames.
        clamp: Limit the result to [-1, 1]. Not for training: a clamp has no gradient outside.

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
    _, spatial = vae_factors(vae.config)

    vae_latents = rearrange(latents / scale, "b f c h w -> b c f h w")
    if tiling is None:
        video = _decode_chunks(vae, vae_latents, per_chunk)
    else:
        video = _map_tiles(
            lambda tile: _decode_chunks(vae, tile, per_chunk),
            vae_latents,
            tiling,
            latent_size=(vae_latents.shape[3], vae_latents.shape[4]),
            in_factor=1,
            out_factor=spatial,
        )
    pixels = rearrange(video, "b c f h w -> b f c h w")
    return pixels.clamp(-1, 1) if clamp else pixels


def time_chunks(num_frames: int, per_chunk: int) -> list[slice]:
    """Causal chunks: ``1 + per_chunk`` frames, then ``per_chunk`` each, the last one what is left.

    Example:
        >>> [chunk.stop - chunk.start for chunk in time_chunks(49, 16)]
        [17, 16, 16]
    """
    starts = [0, *range(1 + per_chunk, num_frames, per_chunk)]
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], num_frames], strict=True)]


@apply_forward_hook  # lets model offloading bring the VAE to its device first
def _encode_chunks(vae: AutoencoderKLCogVideoX, video: torch.Tensor, per_chunk: int) -> torch.Tensor:
    """(B, 3, F, H, W) -> moments (B, 2 C, f, h, w), float32."""
    cache, chunks = None, []
    for chunk in time_chunks(video.shape[2], per_chunk):
        moments, cache = vae.encoder(video[:, :, chunk].to(vae.device, vae.dtype), conv_cache=cache)
        chunks.append((moments if vae.quant_conv is None else vae.quant_conv(moments)).float())
    return torch.cat(chunks, dim=2)


@apply_forward_hook
def _decode_chunks(vae: AutoencoderKLCogVideoX, vae_latents: torch.Tensor, per_chunk: int) -> torch.Tensor:
    """(B, C, f, h, w) -> (B, 3, F, H, W), float32."""
    temporal, _ = vae_factors(vae.config)
    num_latent_frames = vae_latents.shape[2]
    wanted = 1 + temporal * (num_latent_frames - 1)
    if num_latent_frames % 2 == 0:
        # The decoder tells first chunks (odd) from later ones (even) by their length, so the total has to be odd:
        # repeat the last latent frame and drop the pixels that it adds.
        vae_latents = torch.cat((vae_latents, vae_latents[:, :, -1:]), dim=2)
    cache, chunks = None, []
    for chunk in time_chunks(vae_latents.shape[2], per_chunk):
        z = vae_latents[:, :, chunk].to(vae.device, vae.dtype)
        video, cache = vae.decoder(
            z if vae.post_quant_conv is None else vae.post_quant_conv(z), conv_cache=cache
        )
        chunks.append(video.float())
    return torch.cat(chunks, dim=2)[:, :, :wanted]


def _map_tiles(
    function: Callable[[torch.Tensor], torch.Tensor],
    source: torch.Tensor,
    tiling: Tiling,
    *,
    latent_size: tuple[int, int],
    in_factor: int,
    out_factor: int,
) -> torch.Tensor:
    """Apply ``function`` to every tile of (B, C, F, H, W) and put the results together."""
    height, width = latent_size
    rows = tile_spans(height, tiling.rows, tiling.overlap)
    columns = tile_spans(width, tiling.columns, tiling.overlap)
    row_weights = _tile_weights(rows, height, out_factor, blend=tiling.blend)
    column_weights = _tile_weights(columns, width, out_factor, blend=tiling.blend)
    result: torch.Tensor | None = None
    for row, row_weight in zip(rows, row_weights, strict=True):
        for column, column_weight in zip(columns, column_weights, strict=True):
            tile = function(source[..., row.scaled(in_factor), column.scaled(in_factor)])
            if result is None:
                result = tile.new_zeros(*tile.shape[:3], height * out_factor, width * out_factor)
            weight = (row_weight[:, None] * column_weight).to(tile.device)
            result[..., row.scaled(out_factor), column.scaled(out_factor)] += tile * weight
    assert result is not None
    return result


def _tile_weights(spans: list[TileSpan], length: int, factor: int, *, blend: bool) -> list[torch.Tensor]:
    """Weights of every tile along one axis, in output pixels; over all tiles they sum to one everywhere."""
    centres = (torch.arange(length * factor, dtype=torch.float32) + 0.5) / factor  # in latent pixels
    weights = []
    for index, span in enumerate(spans):
        if not blend:
            weight = ((centres > span.core_start) & (centres < span.core_stop)).float()
        else:
            weight = ((centres > span.start) & (centres < span.stop)).float()
            if index > 0 and (strip := spans[index - 1].stop - span.start):  # shared with the tile before
                weight = weight * ((centres - span.start) / strip).clamp(0, 1)
            if index < len(spans) - 1 and (strip := span.stop - spans[index + 1].start):
                weight = weight * ((span.stop - centres) / strip).clamp(0, 1)
        weights.append(weight)
    total = torch.stack(weights).sum(dim=0)  # not one where three tiles meet
    return [(weight / total)[span.scaled(factor)] for weight, span in zip(weights, spans, strict=True)]
