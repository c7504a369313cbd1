"""Frames, heights and widths <-> latent sizes, read from the models' own configs.

The causal VAE keeps the first frame and packs every following ``temporal`` frames into one latent frame:
``f = 1 + (F - 1) / temporal``; space shrinks by ``spatial`` on both sides (paper section 3).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class LatentShape:
    """Size of one video's latents.

    Attributes:
        num_frames: Latent frames f.
        channels: Latent channels C.
        height: Latent rows h.
        width: Latent columns w.
    """

    num_frames: int
    channels: int
    height: int
    width: int

    def as_tuple(self, batch_size: int = 1) -> tuple[int, int, int, int, int]:
        """The tensor shape (B, f, C, h, w)."""
        return batch_size, self.num_frames, self.channels, self.height, self.width

    def num_tokens(self, patch_size: int) -> int:
        """Video tokens of the transformer, ``f * h / p * w / p``."""
        return self.num_frames * (self.height // patch_size) * (self.width // patch_size)


def vae_factors(vae_config: Mapping[str, Any]) -> tuple[int, int]:
    """Compression of a CogVideoX VAE.

    Args:
        vae_config: ``vae.config``.

    Returns:
        ``(temporal, spatial)``, for the released VAE (4, 8).
    """
    return int(vae_config["temporal_compression_ratio"]), 2 ** (len(vae_config["block_out_channels"]) - 1)


def pixels_per_token(vae_config: Mapping[str, Any], patch_size: int) -> int:
    """Pixels along a side of what one token stands for: spatial compression times patch size."""
    return vae_factors(vae_config)[1] * patch_size


def next_multiple(number: int, step: int) -> int:
    """The least multiple of ``step`` that is no less than ``number``."""
    return -(-number // step) * step


def next_num_frames(num_frames: int, *, vae_config: Mapping[str, Any]) -> int:
    """The least count that is no less than ``num_frames`` and one more than a multiple of temporal compression."""
    return 1 + next_multiple(num_frames - 1, vae_factors(vae_config)[0])


def latent_shape(
    num_frames: int, height: int, width: int, *, vae_config: Mapping[str, Any], patch_size: int = 1
) -> LatentShape:
    """Latent size of a video.

    Args:
        num_frames: Video frames F.
        height: Pixel rows.
        width: Pixel columns.
        vae_config: ``vae.config``.
        patch_size: The transformer's patch size; sizes are checked against it too.

    Returns:
        The latent shape.

    Raises:
        ValueError: If a size does not fit, with the nearest valid one.
    """
    check_num_frames(num_frames, vae_config=vae_config)
    check_size(height, width, vae_config=vae_config, patch_size=patch_size)
    temporal, spatial = vae_factors(vae_config)
    return LatentShape(
        num_frames=1 + (num_frames - 1) // temporal,
        channels=int(vae_config["latent_channels"]),
        height=height // spatial,
        width=width // spatial,
    )


def check_num_frames(num_frames: int, *, vae_config: Mapping[str, Any]) -> None:
    """Check that ``num_frames`` is one more than a multiple of the temporal compression.

    Raises:
        ValueError: If it is not, with the nearest valid count.
    """
    temporal, _ = vae_factors(vae_config)
    if num_frames < 1 or (num_frames - 1) % temporal:
        nearest = 1 + temporal * max(0, round((num_frames - 1) / temporal))
        raise ValueError(f"num_frames must be {temporal}k+1, got {num_frames}; try {nearest}")


def check_size(height: int, width: int, *, vae_config: Mapping[str, Any], patch_size: int = 1) -> None:
    """Check that height and width are multiples of spatial compression times patch size.

    Raises:
        ValueError: If one is not, with the nearest valid size.
    """
    multiple = pixels_per_token(vae_config, patch_size)
    if height < multiple or width < multiple or height % multiple or width % multiple:
        nearest = tuple(multiple * max(1, round(side / multiple)) for side in (height, width))
        raise ValueError(
            f"height and width must be multiples of {multiple}, got {height}x{width}; try {nearest[0]}x{nearest[1]}"
        )
