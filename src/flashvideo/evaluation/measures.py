"""What one video is scored with: one table, the same for every system.

A `Subject` is a video with what is known of it; a `Measure` makes one number of it. Measures of single frames take the
mean over at most `MOST_FRAMES` of them, evenly spaced; measures of motion take all frames.

Shapes: F frames of H x W pixels in [-1, 1]; h x w of what a video was made from.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flashvideo.evaluation.attributes import (
    AGREEMENTS,
    Agreement,
    agreement_with_prompt,
    outline_margin_to_prompt,
)
from flashvideo.evaluation.metrics import (
    OCTAVES,
    band_energy,
    downsampled_psnr,
    filter_bank_distance,
    flicker,
    frame_difference_error,
    gmsd,
    gradient_energy_ratio,
    high_frequency_fraction,
    niqe,
    psnr,
    ssim,
    structure_change,
    temporal_flickering,
)
from flashvideo.evaluation.metrics.niqe import BLOCK, Pristine
from flashvideo.evaluation.optical_flow import load_opencv, warping

logger = logging.getLogger(__name__)

MOST_FRAMES = 8
"""So many frames of a video are looked at one by one."""
MOST_DECIBELS = 100.0
"""What equal frames get, so that means exist."""

Need = Literal["", "reference", "source", "prompt"]
Better = Literal["higher", "lower", "one", "neither"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """A video and what is known of it."""

    frames: Tensor
    """(F, 3, H, W) in [-1, 1]."""

    reference: Tensor | None = None
    """The truth, of the same shape."""

    source: Tensor | None = None
    """What the video was made from: (F, 3, h, w), not larger than it."""

    prompt: str | None = None
    """What it shall show."""

    def __post_init__(self) -> None:
        if self.frames.ndim != 4 or self.frames.shape[1] != 3 or not self.frames.numel():
            raise ValueError(f"frames must be (frames, 3, height, width), got {tuple(self.frames.shape)}")
        if self.reference is not None and self.reference.shape != self.frames.shape:
            raise ValueError(
                f"reference must have the shape of the video, {tuple(self.frames.shape)}, got "
                f"{tuple(self.reference.shape)}; resize or cut one of them"
            )
        if self.source is None:
            return
        if len(self.source) != len(self.frames):
            raise ValueError(
                f"source must have as many frames as the video, {len(self.frames)}, got {len(self.source)}; "
                "cut one of them"
            )
        size, own = tuple(self.source.shape[-2:]), tuple(self.frames.shape[-2:])
        if size[0] > own[0] or size[1] > own[1]:
            raise ValueError(
                f"source must not be larger than the video, {own[1]}x{own[0]}, got {size[1]}x{size[0]}; what a video "
                "was made from is smaller"
            )

    @functools.cached_property
    def band_energies(self) -> list[float]:
        """Detail energy in each band of `OCTAVES`."""
        return band_energy(some(self.frames)).mean(0).tolist()

    @functools.cached_property
    def agreement(self) -> Agreement:
        """What readers find of the prompt's words; empty without a prompt."""
        return {} if self.prompt is None else agreement_with_prompt(self.frames, self.prompt)


@dataclass(frozen=True, kw_only=True)
class Column:
    """A number of videos, as tables and plots show it."""

    name: str
    """Key in files, such as `niqe`."""

    label: str
    """For tables and plots, such as `NIQE`."""

    better: Better
    """Which values are good; `neither` where that depends on what is shown."""

    unit: str = ""
    """Of the number, if it has one."""

    is_share: bool = False
    """Whether it is 0 or 1 of each video, and so a share of several."""

    variant: str = ""
    """What else its numbers depend on, such as the parameters of a model: numbers of two variants are never mixed."""

    @property
    def key(self) -> str:
        """Name and variant."""
        return f"{self.name} {self.variant}".strip()


@dataclass(frozen=True, kw_only=True)
class Measure(Column):
    """One number that a video gets here."""

    compute: Callable[[Subject], float | None]
    """The number; None where it means nothing, as motion of a single frame."""

    needs: Need = ""
    """What must be known beside the video."""

    def applies_to(self, subject: Subject) -> bool:
        """Whether all that is needed is known."""
        return not self.needs or getattr(subject, self.needs) is not None


def score(subject: Subject, measures: Sequence[Measure] | None = None) -> dict[str, float]:
    """Scores a video.

    Args:
        subject: The video.
        measures: With what; all that are there if None.

    Returns:
        A number by the name of each measure that applies.
    """
    numbers = {}
    with torch.no_grad():
        for measure in available_measures() if measures is None else measures:
            if measure.applies_to(subject) and (number := measure.compute(subject)) is not None:
                numbers[measure.name] = number
    return numbers


def some(frames: Tensor) -> Tensor:
    """Returns at most `MOST_FRAMES` of (F, 3, H, W), evenly spaced, first and last among them."""
    count = min(len(frames), MOST_FRAMES)
    return frames[torch.linspace(0, len(frames) - 1, count).round().long()]


def _finite(value: Tensor) -> float | None:
    return value.item() if value.isfinite() else None


def _decibels(metric: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """The metric, at most `MOST_DECIBELS`: equal frames have infinitely many."""
    return lambda one, other: metric(one, other).clamp(max=MOST_DECIBELS)


def _alone(metric: Callable[[Tensor], Tensor], *, least_size: int = 1) -> Callable[[Subject], float | None]:
    """Of single frames, (F, 3, H, W) -> (F)."""

    def compute(subject: Subject) -> float | None:
        if min(subject.frames.shape[-2:]) < least_size:
            return None
        return _finite(metric(some(subject.frames)).mean())

    return compute


def _in_time(metric: Callable[[Tensor], Tensor], *, least_frames: int) -> Callable[[Subject], float | None]:
    """Of a clip, (F, 3, H, W) -> ()."""

    def compute(subject: Subject) -> float | None:
        return _finite(metric(subject.frames)) if len(subject.frames) >= least_frames else None

    return compute


def _to_reference(
    metric: Callable[[Tensor, Tensor], Tensor], *, least_size: int = 1
) -> Callable[[Subject], float | None]:
    """Of pairs of frames, twice (F, 3, H, W) -> (F)."""

    def compute(subject: Subject) -> float | None:
        assert subject.reference is not None
        if min(subject.frames.shape[-2:]) < least_size:
            return None
        return _finite(metric(some(subject.frames), some(subject.reference)).mean())

    return compute


def _to_source(metric: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Subject], float | None]:
    def compute(subject: Subject) -> float | None:
        assert subject.source is not None
        return _finite(metric(some(subject.frames), some(subject.source)).mean())

    return compute


def _band(number: int) -> Callable[[Subject], float | None]:
    def compute(subject: Subject) -> float | None:
        return subject.band_energies[number] if min(subject.frames.shape[-2:]) >= 8 else None

    return compute


def niqe_measure(pristine: Pristine | None = None, *, variant: str = "") -> Measure:
    """Returns NIQE with a model of pristine photographs; the package's own if None.

    Args:
        pristine: The model.
        variant: What tells its numbers from another model's.
    """

    def compute(subject: Subject) -> float | None:
        rows, columns = (side // BLOCK for side in subject.frames.shape[-2:])
        if rows * columns < 2:
            return None
        return _finite(niqe(some(subject.frames), pristine).nanmean())  # black frames have none

    return Measure(name="niqe", label="NIQE", better="lower", compute=compute, variant=variant)


def _gradient_energy(subject: Subject) -> float | None:
    assert subject.reference is not None
    return _finite(gradient_energy_ratio(subject.frames, subject.reference))


def _frame_differences(subject: Subject) -> float | None:
    assert subject.reference is not None
    if len(subject.frames) < 2:
        return None
    return _finite(frame_difference_error(subject.frames, subject.reference))


def _own_warping(subject: Subject) -> float | None:
    """Along its own flow, which blur and stillness make easy: only where there is no reference."""
    return warping(subject) if subject.reference is None else None


def _outline_margin(subject: Subject) -> float | None:
    assert subject.prompt is not None
    return outline_margin_to_prompt(subject.frames, subject.prompt)


def _read(name: str) -> Callable[[Subject], float | None]:
    def compute(subject: Subject) -> float | None:
        found = subject.agreement.get(name)
        return None if found is None else float(found)

    return compute


MEASURES: tuple[Measure, ...] = (
    niqe_measure(),
    *(
        Measure(
            name=f"energy_1_{round(1 / edge)}",
            label=f"detail energy to 1/{round(1 / edge)} cycle/px",
            better="neither",
            unit="levels²",
            compute=_band(number),
        )
        for number, edge in enumerate(OCTAVES)
    ),
    Measure(
        name="high_frequency",
        label="energy beyond a preview 4 times smaller",
        better="neither",
        compute=_alone(high_frequency_fraction, least_size=8),
    ),
    Measure(
        name="flicker",
        label="flicker",
        better="lower",
        unit="levels",
        compute=_in_time(flicker, least_frames=3),
    ),
    Measure(
        name="temporal_flickering",
        label="temporal flickering (VBench)",
        better="higher",
        compute=_in_time(temporal_flickering, least_frames=2),
    ),
    Measure(
        name="own_warping",
        label="warping error along its own flow (10⁻³)",
        better="neither",
        compute=_own_warping,
    ),
    Measure(
        name="warping",
        label="warping error E* (10⁻³)",
        better="lower",
        needs="reference",
        compute=warping,
    ),
    Measure(
        name="psnr",
        label="PSNR",
        better="higher",
        unit="dB",
        needs="reference",
        compute=_to_reference(_decibels(psnr)),
    ),
    Measure(
        name="ssim",
        label="SSIM",
        better="higher",
        needs="reference",
        compute=_to_reference(ssim, least_size=11),
    ),
    Measure(
        name="gmsd",
        label="GMSD",
        better="lower",
        needs="reference",
        compute=_to_reference(gmsd, least_size=8),
    ),
    Measure(
        name="filter_bank",
        label="filter-bank distance",
        better="lower",
        needs="reference",
        compute=_to_reference(filter_bank_distance, least_size=32),
    ),
    Measure(
        name="gradient_energy",
        label="gradient energy / truth",
        better="one",
        needs="reference",
        compute=_gradient_energy,
    ),
    Measure(
        name="frame_difference",
        label="error of frame differences",
        better="lower",
        needs="reference",
        compute=_frame_differences,
    ),
    Measure(
        name="fidelity",
        label="downsampled PSNR to the source",
        better="higher",
        unit="dB",
        needs="source",
        compute=_to_source(_decibels(downsampled_psnr)),
    ),
    Measure(
        name="structure_change",
        label="change of structure",
        better="lower",
        needs="source",
        compute=_to_source(structure_change),
    ),
    *(
        Measure(name=name, label=label, better="higher", needs="prompt", is_share=True, compute=_read(name))
        for name, label in AGREEMENTS.items()
    ),
    Measure(
        name="outline_margin",
        label="margin of the shape's outline",
        better="higher",
        needs="prompt",
        compute=_outline_margin,
    ),
)
"""All that is computed without a network's weights."""


def available_measures() -> tuple[Measure, ...]:
    """Returns `MEASURES`, without warping errors where OpenCV is not there, which is warned of."""
    try:
        load_opencv()
    except ImportError as error:
        logger.warning("warping errors are left out: %s", error)
        return tuple(measure for measure in MEASURES if measure.compute not in (warping, _own_warping))
    return MEASURES
