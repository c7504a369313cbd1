"""How strongly clips are degraded: the ranges that each operation draws from, all of them plain fields.

The defaults are those published for RealBasicVSR (Chan et al., CVPR 2022; its training configuration), which carry
Real-ESRGAN's (Wang et al., ICCVW 2021) over to video; where these two differ the field says so. A `step` is the
largest change of a parameter between neighbouring frames.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Self

from flashvideo.degradations.draws import Bounds

_PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")


@dataclass(frozen=True, kw_only=True)
class KernelMix:
    """Shares of the kinds of blur kernel, in proportion (both sources).

    Attributes:
        iso: Gaussian, equally wide in all directions.
        aniso: Gaussian, wider in one direction, at any angle.
        generalized_iso: exp(-q^shape / 2), where q is the squared distance in units of sigma.
        generalized_aniso: the same, wider in one direction.
        plateau_iso: 1 / (1 + q^shape).
        plateau_aniso: the same, wider in one direction.
        sinc: ideal low-pass, which rings.
    """

    iso: float = 0.405
    aniso: float = 0.225
    generalized_iso: float = 0.108
    generalized_aniso: float = 0.027
    plateau_iso: float = 0.108
    plateau_aniso: float = 0.027
    sinc: float = 0.1

    def __post_init__(self) -> None:
        _check_weights("kernels", dataclasses.asdict(self))


@dataclass(frozen=True, kw_only=True)
class BlurRange:
    """Blur by a kernel of one kind and size per clip, whose parameters drift.

    Attributes:
        probability: of any blur at all.
        kernels: shares of the kinds of kernel.
        sizes: kernel sizes in pixels, odd, equally probable.
        sigma: width in pixels, along either axis.
        angle: of the first axis, in radians.
        generalized_shape: exponent of generalised Gaussians; half of the draws lie below 1, where that is in range.
        plateau_shape: exponent of plateaus, drawn in the same way.
        cutoff: of the sinc, in radians per pixel (pi is all that pixels can carry).
        small_cutoff: the same for kernels smaller than 13 pixels (Real-ESRGAN), which hold less of the ringing; None is
            as of the others.
        sigma_step: as are all steps below, the largest change per frame.
        angle_step: in radians.
        generalized_step: of the exponent.
        plateau_step: of the exponent.
        cutoff_step: in radians per pixel.
    """

    probability: float = 1.0
    kernels: KernelMix = field(default_factory=KernelMix)
    sizes: tuple[int, ...] = (7, 9, 11, 13, 15, 17, 19, 21)
    sigma: Bounds = (0.2, 3.0)
    angle: Bounds = (-math.pi, math.pi)
    generalized_shape: Bounds = (0.5, 4.0)
    plateau_shape: Bounds = (1.0, 2.0)
    cutoff: Bounds = (math.pi / 5, math.pi)
    small_cutoff: Bounds | None = (math.pi / 3, math.pi)
    sigma_step: float = 0.02
    angle_step: float = 0.1 * math.pi
    generalized_step: float = 0.05
    plateau_step: float = 0.1
    cutoff_step: float = 0.02 * math.pi

    def __post_init__(self) -> None:
        check_probability("probability", self.probability)
        if not self.sizes or any(size < 1 or size % 2 == 0 for size in self.sizes):
            raise ValueError(f"sizes of blur kernels must be odd and positive, got {self.sizes}")
        for name in ("sigma", "generalized_shape", "plateau_shape"):
            _check_bounds(name, getattr(self, name), 0.01, math.inf)
        _check_bounds("angle", self.angle, -math.inf, math.inf)
        _check_bounds("cutoff", self.cutoff, 0.01, math.pi)
        if self.small_cutoff is not None:
            _check_bounds("small_cutoff", self.small_cutoff, 0.01, math.pi)
        _check_steps(self)

    def milder(self, strength: float) -> Self:
        """Narrower kernels and higher cutoffs; see `PixelDegradation.milder`."""
        return dataclasses.replace(
            self,
            sigma=_lower_top(self.sigma, strength),
            cutoff=_raise_bottom(self.cutoff, strength),
            small_cutoff=None if self.small_cutoff is None else _raise_bottom(self.small_cutoff, strength),
        )


@dataclass(frozen=True, kw_only=True)
class ResizeRange:
    """Resizing up, down or not at all, by interpolation without antialiasing, so that clips also alias.

    Attributes:
        up: share of clips that are enlarged.
        down: share of clips that are made smaller.
        keep: share of clips that keep their size.
        factor: smallest and largest factor; 1 lies between them.
        step: largest change of the factor per frame. Frames come back to the size of the first, as an encoder needs.
        bilinear: share of bilinear interpolation.
        area: share of averages over areas.
        bicubic: share of bicubic interpolation.
    """

    up: float = 0.2
    down: float = 0.7
    keep: float = 0.1
    factor: Bounds = (0.15, 1.5)
    step: float = 0.015
    bilinear: float = 1.0
    area: float = 1.0
    bicubic: float = 1.0

    def __post_init__(self) -> None:
        _check_weights("up, down, keep", {name: getattr(self, name) for name in ("up", "down", "keep")})
        _check_weights(
            "bilinear, area, bicubic", {name: getattr(self, name) for name in ("bilinear", "area", "bicubic")}
        )
        _check_bounds("factor", self.factor, 0.01, 16.0)
        if not self.factor[0] <= 1 <= self.factor[1]:
            raise ValueError(f"factor must go from at most 1 to at least 1, got {self.factor}")
        _check_steps(self)

    def milder(self, strength: float) -> Self:
        """Factors nearer to 1; see `PixelDegradation.milder`."""
        low, high = (_between(1.0, factor, strength) for factor in self.factor)
        return dataclasses.replace(self, factor=(low, high))


@dataclass(frozen=True, kw_only=True)
class NoiseRange:
    """Noise, drawn anew for each frame, of a strength that drifts.

    Attributes:
        probability: of any noise at all.
        gaussian: share of Gaussian noise.
        poisson: share of Poisson noise, which grows with brightness.
        grey: probability of one and the same noise in all three colours.
        sigma: standard deviation of the Gaussian, in levels of 255.
        scale: factor on Poisson noise.
        photons: expected count at full brightness of Poisson noise of scale 1, so that its standard deviation there is
            255 / sqrt(photons) levels. 256 is Real-ESRGAN's for 8-bit pictures; RealBasicVSR applies the same formula
            to levels rather than to parts of 1, which makes its noise 16 times weaker.
        sigma_step: in levels of 255.
        scale_step: of the factor.
    """

    probability: float = 1.0
    gaussian: float = 0.5
    poisson: float = 0.5
    grey: float = 0.4
    sigma: Bounds = (1.0, 30.0)
    scale: Bounds = (0.05, 3.0)
    photons: float = 256.0
    sigma_step: float = 0.1
    scale_step: float = 0.005

    def __post_init__(self) -> None:
        for name in ("probability", "grey"):
            check_probability(name, getattr(self, name))
        _check_weights("gaussian, poisson", {"gaussian": self.gaussian, "poisson": self.poisson})
        for name in ("sigma", "scale"):
            _check_bounds(name, getattr(self, name), 0.0, math.inf)
        if self.photons <= 0:
            raise ValueError(f"photons must be positive, got {self.photons}")
        _check_steps(self)

    def milder(self, strength: float) -> Self:
        """Less noise; see `PixelDegradation.milder`."""
        return dataclasses.replace(
            self, sigma=_lower_top(self.sigma, strength), scale=_lower_top(self.scale, strength)
        )


@dataclass(frozen=True, kw_only=True)
class JpegRange:
    """JPEG, frame by frame, of a quality that drifts.

    Attributes:
        probability: of any JPEG at all.
        quality: 1 (worst) to 100; 75 is what most programs write.
        quality_step: largest change per frame; qualities are rounded to integers.
    """

    probability: float = 1.0
    quality: Bounds = (30.0, 95.0)
    quality_step: float = 3.0

    def __post_init__(self) -> None:
        check_probability("probability", self.probability)
        _check_bounds("quality", self.quality, 1.0, 100.0)
        _check_steps(self)

    def milder(self, strength: float) -> Self:
        """Better qualities; see `PixelDegradation.milder`."""
        return dataclasses.replace(self, quality=_raise_bottom(self.quality, strength))


@dataclass(frozen=True, kw_only=True)
class VideoCodecRange:
    """Video compression by a real encoder.

    Attributes:
        probability: of any video compression at all.
        libx264: share of H.264 (two of the published three equal shares are this encoder under two names).
        mpeg4: share of MPEG-4 part 2.
        bits_per_frame: for a clean clip of 256x256 pixels. It is scaled with the clean clip's area, and a rate per
            frame does not depend on the frame rate. Published: 1e4 to 1e5 bits per second at one frame per second.
        preset: effort of libx264, "ultrafast" to "veryslow". Published is its default, "medium", which takes twice the
            time of "veryfast" for nearly the same picture.
    """

    probability: float = 1.0
    libx264: float = 2.0
    mpeg4: float = 1.0
    bits_per_frame: Bounds = (1e4, 1e5)
    preset: str = "veryfast"

    def __post_init__(self) -> None:
        check_probability("probability", self.probability)
        _check_weights("libx264, mpeg4", {"libx264": self.libx264, "mpeg4": self.mpeg4})
        _check_bounds("bits_per_frame", self.bits_per_frame, 100.0, 1e9)
        if self.preset not in _PRESETS:
            raise ValueError(f"preset must be one of {', '.join(_PRESETS)}, got {self.preset!r}")

    def milder(self, strength: float) -> Self:
        """Higher rates; see `PixelDegradation.milder`."""
        low, high = self.bits_per_frame
        # Rounded, the power may come to lie below the range.
        return dataclasses.replace(self, bits_per_frame=(max(low, high * (low / high) ** strength), high))


@dataclass(frozen=True, kw_only=True)
class OrderRange:
    """One order of degradation, in the order of its fields; the defaults are those of the first.

    Attributes:
        blur: of lenses and motion.
        resize: of one copy to another.
        noise: of sensors.
        jpeg: compression of single frames.
        video: compression of the clip.
    """

    blur: BlurRange = field(default_factory=BlurRange)
    resize: ResizeRange = field(default_factory=ResizeRange)
    noise: NoiseRange = field(default_factory=NoiseRange)
    jpeg: JpegRange = field(default_factory=JpegRange)
    video: VideoCodecRange = field(default_factory=VideoCodecRange)

    def milder(self, strength: float) -> Self:
        """Every part milder; see `PixelDegradation.milder`."""
        parts = {f.name: getattr(self, f.name).milder(strength) for f in dataclasses.fields(self)}
        return dataclasses.replace(self, **parts)


# The ranges of the other places are classes of their own, so that a recipe that gives one value of a part keeps the
# published values of that place for the others.


@dataclass(frozen=True, kw_only=True)
class SecondBlurRange(BlurRange):
    """Blur of the second order: narrower, and not of every clip."""

    probability: float = 0.8
    sigma: Bounds = (0.2, 1.5)


@dataclass(frozen=True, kw_only=True)
class SecondResizeRange(ResizeRange):
    """Resizing of the second order: nearer to 1, relative to the size that the first left."""

    up: float = 0.3
    down: float = 0.4
    keep: float = 0.3
    factor: Bounds = (0.3, 1.2)
    step: float = 0.03


@dataclass(frozen=True, kw_only=True)
class SecondNoiseRange(NoiseRange):
    """Noise of the second order: a little less."""

    sigma: Bounds = (1.0, 25.0)
    scale: Bounds = (0.05, 2.5)


@dataclass(frozen=True, kw_only=True)
class SecondVideoRange(VideoCodecRange):
    """No video compression in the second order: it has its place in the last step."""

    probability: float = 0.0


@dataclass(frozen=True, kw_only=True)
class SecondOrderRange(OrderRange):
    """The second order."""

    blur: SecondBlurRange = field(default_factory=SecondBlurRange)
    resize: SecondResizeRange = field(default_factory=SecondResizeRange)
    noise: SecondNoiseRange = field(default_factory=SecondNoiseRange)
    video: SecondVideoRange = field(default_factory=SecondVideoRange)


@dataclass(frozen=True, kw_only=True)
class SincMix(KernelMix):
    """Nothing but sinc kernels."""

    iso: float = 0.0
    aniso: float = 0.0
    generalized_iso: float = 0.0
    generalized_aniso: float = 0.0
    plateau_iso: float = 0.0
    plateau_aniso: float = 0.0
    sinc: float = 1.0


@dataclass(frozen=True, kw_only=True)
class FinalSincRange(BlurRange):
    """Sinc of the last step, whose cutoff does not depend on the kernel's size."""

    probability: float = 0.8
    kernels: SincMix = field(default_factory=SincMix)
    cutoff: Bounds = (math.pi / 3, math.pi)
    small_cutoff: Bounds | None = None


def check_probability(name: str, value: float) -> None:
    """Refuse what is no probability.

    Raises:
        ValueError: if the value is not in 0 to 1.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be between 0 and 1, got {value}")


def _check_bounds(name: str, bounds: Bounds, lowest: float, highest: float) -> None:
    low, high = bounds
    if not lowest <= low <= high <= highest:
        raise ValueError(
            f"{name} must rise and lie between {lowest:g} and {highest:g}, got ({low:g}, {high:g})"
        )


def _check_weights(name: str, weights: dict[str, float]) -> None:
    if any(not 0 <= weight < math.inf for weight in weights.values()) or sum(weights.values()) <= 0:
        raise ValueError(f"shares of {name} must be at least 0 and not all 0, got {tuple(weights.values())}")


def _check_steps(config: object) -> None:
    for name, value in vars(config).items():
        if name.endswith("step") and not 0 <= value < math.inf:
            raise ValueError(f"{name} must be at least 0, got {value}")


def _between(start: float, end: float, share: float) -> float:
    """A share of the way from one number to another; never beyond either, exactly those at 0 and 1."""
    if share < 0.5:
        return start + share * (end - start)
    return end - (1 - share) * (end - start)


def _lower_top(bounds: Bounds, strength: float) -> Bounds:
    low, high = bounds
    return low, _between(low, high, strength)


def _raise_bottom(bounds: Bounds, strength: float) -> Bounds:
    low, high = bounds
    return _between(high, low, strength), high
