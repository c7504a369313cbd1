"""Pixel degradation DEG_pixel (paper section 3.2): from a clean clip to what Stage II is given at inference.

Weak: antialiased down- and upsampling. Strong: the degradation of RealBasicVSR, brought back to the clip's size,

    twice (blur, resize, noise, JPEG, video compression), the second time without the compression,
    then in random order {video compression} and {resize to low resolution, sinc},

whose parameters drift slowly over the clip, so that the degradation is correlated in time. Shapes: pixels
(B, F, 3, H, W) in [-1, 1]; in a clip, frames (F, 3, H, W).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flashvideo.degradations.blur import random_blur
from flashvideo.degradations.codecs import random_jpeg, random_video
from flashvideo.degradations.draws import Bounds, ClipDraws
from flashvideo.degradations.noise import random_noise
from flashvideo.degradations.ranges import (
    FinalSincRange,
    OrderRange,
    ResizeRange,
    SecondOrderRange,
    VideoCodecRange,
    check_probability,
)
from flashvideo.degradations.resizing import draw_mode, random_resize, resize_frames
from flashvideo.video import resize_video


@dataclass(frozen=True, kw_only=True)
class PixelDegradation:
    """The whole degradation. The defaults are the published ones; see `flashvideo.degradations.ranges`.

    Attributes:
        strong: probability of the strong degradation; the other clips get the weak one.
        weak_factor: factor between the size and the low resolution of the weak degradation, drawn per clip (FlashVideo
            4 to 8).
        strong_factor: the same of the strong degradation (RealBasicVSR 4).
        low_multiple: the sides of the low resolution are the nearest multiples of this to H and W over the factor, at
            least one multiple. For an `at_low_resolution` that needs it, such as 8 for a VAE.
        first: first order.
        second: second order.
        final: sinc after the last resize.
        final_resize: of which only the shares of the interpolations count.
        video: last compression, before or after the last resize and sinc.
    """

    strong: float = 0.5
    weak_factor: Bounds = (4.0, 8.0)
    strong_factor: Bounds = (4.0, 4.0)
    low_multiple: int = 1
    first: OrderRange = field(default_factory=OrderRange)
    second: SecondOrderRange = field(default_factory=SecondOrderRange)
    final: FinalSincRange = field(default_factory=FinalSincRange)
    final_resize: ResizeRange = field(default_factory=ResizeRange)
    video: VideoCodecRange = field(default_factory=VideoCodecRange)

    def __post_init__(self) -> None:
        check_probability("strong", self.strong)
        for name in ("weak_factor", "strong_factor"):
            low, high = getattr(self, name)
            if not 1 <= low <= high:
                raise ValueError(f"{name} must rise from at least 1, got ({low:g}, {high:g})")
        if self.low_multiple < 1:
            raise ValueError(f"low_multiple must be at least 1, got {self.low_multiple}")

    def milder(self, strength: float) -> PixelDegradation:
        """The same degradation with the bad ends of all ranges moved towards the good ones.

        Args:
            strength: 1 changes nothing. At 0, blur, noise and compression keep the mildest values of their ranges and
                the orders keep sizes. Probabilities and the factors to low resolution stay.

        Returns:
            A new configuration.

        Raises:
            ValueError: if `strength` is not in 0 to 1.
        """
        check_probability("strength", strength)
        return dataclasses.replace(
            self,
            first=self.first.milder(strength),
            second=self.second.milder(strength),
            final=self.final.milder(strength),
            video=self.video.milder(strength),
        )


def degrade_pixels(
    pixels: Tensor,
    generator: torch.Generator,
    config: PixelDegradation,
    *,
    strong: bool | None = None,
    at_low_resolution: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Degrade a batch of clips, each with its own parameters.

    Of the generator only one seed per clip is drawn, so what happens to a clip does not depend on the others.

    Args:
        pixels: (B, F, 3, H, W) in [-1, 1]. H and W need not be multiples of any factor: sizes are rounded.
        generator: the source of all randomness, on the CPU or on the device of `pixels`.
        config: what to draw from.
        strong: whether the degradation is strong or weak; by default drawn for each clip.
        at_low_resolution: applied last to clips (b, F, 3, h, w) of low resolution, all those of one size together; for
            instance a VAE's round trip, which is what a generated preview has been through.

    Returns:
        (B, F, 3, H, W) in [-1, 1], in the dtype of `pixels`.

    Raises:
        ValueError: if the shape or dtype is another one.
    """
    if pixels.ndim != 5 or pixels.shape[2] != 3 or pixels.numel() == 0:
        raise ValueError(
            f"pixels must have the shape (B, F, 3, H, W), none of it 0, got {tuple(pixels.shape)}"
        )
    if not pixels.is_floating_point():
        raise ValueError(f"pixels must be floats in [-1, 1], got {pixels.dtype}; use levels / 127.5 - 1")
    height, width = pixels.shape[-2:]
    seeds = torch.randint(2**62, (len(pixels),), generator=generator, device=generator.device).tolist()
    small = [
        _to_low_resolution(clip.float(), config, ClipDraws(seed, pixels.device), strong)
        for clip, seed in zip(pixels, seeds, strict=True)
    ]
    result = torch.empty_like(pixels)
    for size in dict.fromkeys(clip.shape for clip in small):
        members = [i for i, clip in enumerate(small) if clip.shape == size]
        low = torch.stack([small[i] for i in members])
        if at_low_resolution is not None:
            low = at_low_resolution(low)
        result[members] = resize_video(low.clamp(-1, 1), height, width).clamp(-1, 1).to(pixels.dtype)
    return result


def _to_low_resolution(
    frames: Tensor, config: PixelDegradation, draws: ClipDraws, strong: bool | None
) -> Tensor:
    """Degraded frames (F, 3, h, w)."""
    drawn = draws.happens(config.strong)
    is_strong = drawn if strong is None else strong
    factor = draws.uniform(config.strong_factor if is_strong else config.weak_factor)
    multiple = config.low_multiple
    height, width = (max(1, round(side / factor / multiple)) * multiple for side in frames.shape[-2:])
    if not is_strong:
        return resize_video(frames, height, width)
    return _degrade_strongly(frames, config, draws, (height, width))


def _degrade_strongly(
    frames: Tensor, config: PixelDegradation, draws: ClipDraws, low_size: tuple[int, int]
) -> Tensor:
    """Both orders, then compression and low resolution in either order: (F, 3, h, w)."""
    clean_size = (frames.shape[-2], frames.shape[-1])
    for order in (config.first, config.second):
        frames = random_blur(frames, order.blur, draws)
        frames = random_resize(frames, order.resize, draws)
        frames = random_noise(frames, order.noise, draws)
        frames = random_jpeg(frames, order.jpeg, draws)
        frames = random_video(frames, order.video, clean_size, draws)
    compress_first = draws.happens(0.5)
    if compress_first:
        frames = random_video(frames, config.video, clean_size, draws)
    frames = resize_frames(frames, *low_size, draw_mode(config.final_resize, draws))
    frames = random_blur(frames, config.final, draws)
    if not compress_first:
        frames = random_video(frames, config.video, clean_size, draws)
    return frames
