"""Pixels <-> scaled latents with a CogVideoX VAE (paper section 3; chunks as in the released code).

Time is cut into chunks that hand the causal convolutions' last frames to the next chunk; space optionally into tiles,
or, without a trace in the result, each layer into strips (`flashvideo.vae.layers`).
Nothing is set on the VAE itself, and gradients flow through, so training uses the same functions as inference.
"""

from flashvideo.vae.codec import (
    DECODE_LATENT_FRAMES_PER_CHUNK,
    ENCODE_FRAMES_PER_CHUNK,
    decode_latents,
    encode_moments,
    encode_pixels,
    time_chunks,
)
from flashvideo.vae.tiling import REFERENCE_TILES, Tiling, tile_spans

__all__ = [
    "DECODE_LATENT_FRAMES_PER_CHUNK",
    "ENCODE_FRAMES_PER_CHUNK",
    "REFERENCE_TILES",
    "Tiling",
    "decode_latents",
    "encode_moments",
    "encode_pixels",
    "tile_spans",
    "time_chunks",
]
