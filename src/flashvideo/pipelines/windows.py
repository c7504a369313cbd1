"""Any clip as a row of overlapping windows, and back again.

Stage II is trained on a fixed number of frames; a longer clip is enhanced window by window. Windows start on the
VAE's time grid, so that the latent frames which two windows share mean the same instants, and can be given the same
noise (`NoiseField`); what remains of a difference is cross-faded in pixels. Only a window or two are in memory at a
time, however long the clip is.

Shapes: B clips, F frames, N frames of one window, C channels, H, W height and width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from diffusers.utils.torch_utils import randn_tensor


@dataclass(frozen=True, kw_only=True)
class Window:
    """A stretch of a clip."""

    start: int
    """Position of the first frame in the clip."""

    frames: torch.Tensor
    """(B, N, C, H, W); frames beyond the clip's end mirror those before it."""

    num_valid: int
    """How many of the N frames belong to the clip; more than N - (temporal factor)."""


def reflect_indices(length: int, total: int) -> list[int]:
    """Indices that continue a row of `length` things to `total` by mirroring, without repeating the edge.

    A row shorter than the padding is mirrored back and forth; a single thing is repeated.

    >>> reflect_indices(4, 6)
    [0, 1, 2, 3, 2, 1]
    >>> reflect_indices(2, 5)
    [0, 1, 0, 1, 0]
    """
    period = max(1, 2 * (length - 1))
    return [min(i % period, period - i % period) if length > 1 else 0 for i in range(total)]


def check_windows(window: int, overlap: int, *, temporal_factor: int) -> None:
    """Checks that windows and their overlap lie on the VAE's time grid.

    Raises:
        ValueError: If either is not a multiple of the temporal factor plus one, or the overlap is too long.
    """
    for name, value in (("window", window), ("overlap", overlap)):
        if value < 1 or value % temporal_factor != 1 % temporal_factor:
            nearest = max(0, round((value - 1) / temporal_factor)) * temporal_factor + 1
            raise ValueError(
                f"{name} must be {temporal_factor}k+1 frames, the VAE's time grid, got {value}; try {nearest}"
            )
    if overlap >= window:
        raise ValueError(f"overlap must be shorter than the window of {window} frames, got {overlap}")


def iterate_windows(
    frames: Iterable[torch.Tensor], *, window: int, overlap: int, temporal_factor: int
) -> Iterator[Window]:
    """Cuts a clip of any length into windows, looking ahead no further than the next window.

    The clip is continued by reflection to the next length that the VAE takes. Windows start `window - overlap` frames
    apart; the last one is moved back so that it ends where the clip ends, and so may overlap more. A clip that is not
    longer than `window` is a single window of its own (padded) length.

    Args:
        frames: F frames, each (B, C, H, W).
        window: Frames of one window, a multiple of `temporal_factor` plus one.
        overlap: Frames shared by neighbours, a multiple of `temporal_factor` plus one, less than `window`.
        temporal_factor: Frames per latent frame, of the VAE.

    Yields:
        Windows in order; their starts are multiples of `temporal_factor`.

    Raises:
        ValueError: If there are no frames, or window and overlap do not fit the VAE's time grid.
    """
    check_windows(window, overlap, temporal_factor=temporal_factor)
    stride = window - overlap
    start = 0
    kept: list[torch.Tensor] = []  # frames from position `start` on
    for frame in frames:
        # A whole window is only cut off once it is known that the clip goes on behind it.
        if len(kept) == window + stride:
            yield Window(start=start, frames=torch.stack(kept[:window], dim=1), num_valid=window)
            start, kept = start + stride, kept[stride:]
        kept.append(frame)
    if not kept:
        raise ValueError("video must have at least one frame, got none")
    num_latent = math.ceil((len(kept) - 1) / temporal_factor)
    padded = [kept[i] for i in reflect_indices(len(kept), 1 + num_latent * temporal_factor)]
    if len(padded) > window:
        yield Window(start=start, frames=torch.stack(padded[:window], dim=1), num_valid=window)
    last = max(0, len(padded) - window)
    yield Window(start=start + last, frames=torch.stack(padded[last:], dim=1), num_valid=len(kept) - last)


def cross_fade(pieces: Iterable[tuple[int, torch.Tensor]], *, overlap: int) -> Iterator[torch.Tensor]:
    """Joins overlapping pieces of a clip; where two meet, one fades linearly into the other.

    Frame j of the `overlap` frames of the fade is (1 - w) old + w new, with w = (j + 1) / (overlap + 1). Behind the
    fade only the newer piece counts, also where the pieces overlap further.

    Args:
        pieces: Pairs (start, frames (B, N, C, H, W)) in order of their starts, without gaps.
        overlap: Greatest number of frames of a fade.

    Yields:
        Frames (B, n, C, H, W) that no later piece can change; together the whole clip.
    """
    held_start, held = 0, None
    for start, frames in pieces:
        if held is not None:
            settled = start - held_start
            yield held[:, :settled]
            before = held[:, settled : settled + overlap]
            num_faded = before.shape[1]
            weights = torch.arange(1, num_faded + 1, device=frames.device, dtype=frames.dtype) / (
                num_faded + 1
            )
            faded = before.lerp(frames[:, :num_faded], weights.view(1, -1, 1, 1, 1))
            frames = torch.cat([faded, frames[:, num_faded:]], dim=1)
        held_start, held = start, frames
    if held is not None:
        yield held


class NoiseField:
    """Gaussian noise over an endless row of latent frames, drawn once and forgotten when it has been passed.

    Windows that share latent frames receive the same noise there, and so invent the same detail.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self._start = 0  # position of the first latent frame that is still kept
        self._kept: torch.Tensor | None = None

    def take(self, start: int, shape: Sequence[int], *, device: torch.device) -> torch.Tensor:
        """Returns the noise of the latent frames from `start` on.

        Args:
            start: Position of the first latent frame; must not go back behind an earlier `start`.
            shape: (B, f, C, h, w), with f the number of latent frames wanted.
            device: Where the noise is wanted.

        Returns:
            Standard Gaussian noise of that shape, float32.
        """
        batch, num_frames, *rest = shape
        kept = self._kept if self._kept is not None else torch.empty(batch, 0, *rest, device=device)
        kept = kept[:, start - self._start :]
        missing = num_frames - kept.shape[1]
        if missing > 0:
            new = randn_tensor((batch, missing, *rest), generator=self.generator, device=device)
            kept = torch.cat([kept, new], dim=1)
        self._start, self._kept = start, kept
        return kept[:, :num_frames]
