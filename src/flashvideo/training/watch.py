"""What a Stage II run is watched by, since its loss shows no collapse: results at full size beside the truth.

Of fixed held-out clips, brought down and enhanced in 1, 2, 4 and 8 steps, by the number of steps n:

    steps<n>_gain      PSNR to the truth over bicubic's, dB
    steps<n>_bank      filter-bank distance to the truth, lower is better; bicubic_bank beside it
    steps<n>_energy    gradient energy over the truth's: 1 is right; floor_energy, bilinear's, is what no detail has
    steps<n>_fidelity  PSNR of the result, brought down again, to the input, dB

Shapes: pixels (F, 3, H, W) in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flashvideo.evaluation.metrics import (
    downsampled_psnr,
    filter_bank_distance,
    gradient_energy_ratio,
    psnr,
)
from flashvideo.video import contact_sheet, resize_video, save_image

WATCHED_STEPS = (1, 2, 4, 8)

MIN_FIDELITY = 26.0
"""Fidelity in dB below which a result is another video than its input."""

MAX_ENERGY = 1.5
MAX_FIDELITY_LOSS = 3.0

Enhance = Callable[[Tensor, str, Sequence[int]], list[Tensor]]
"""(small clip (F, 3, h, w), caption, numbers of steps) to a result (F, 3, H, W) for each of these."""


def watch(
    clips: Sequence[tuple[Tensor, str]], enhance: Enhance, *, scale: int, sheet: Path
) -> dict[str, float]:
    """Enhances held-out clips and compares them with the truth.

    Args:
        clips: Full-size clips and their captions.
        enhance: What is in training.
        scale: Factor that the clips are brought down by.
        sheet: PNG to write, a row per clip: input, 1 step, 4 steps, truth; the middle frame of each.

    Returns:
        Means over the clips, by the names above.
    """
    rows: list[Tensor] = []
    found: list[dict[str, float]] = []
    for truth, caption in clips:
        height, width = truth.shape[-2:]
        low = resize_video(truth, height // scale, width // scale)
        bilinear = resize_video(low, height, width)
        bicubic = torch.nn.functional.interpolate(
            low, size=(height, width), mode="bicubic", align_corners=False
        ).clamp(-1, 1)
        results = dict(zip(WATCHED_STEPS, enhance(low, caption, WATCHED_STEPS), strict=True))
        values = {
            "floor_energy": float(gradient_energy_ratio(bilinear, truth)),
            "bicubic_bank": float(filter_bank_distance(bicubic, truth).mean()),
        }
        for steps, result in results.items():
            values |= {
                f"steps{steps}_gain": float(psnr(result, truth).mean() - psnr(bicubic, truth).mean()),
                f"steps{steps}_bank": float(filter_bank_distance(result, truth).mean()),
                f"steps{steps}_energy": float(gradient_energy_ratio(result, truth)),
                f"steps{steps}_fidelity": float(downsampled_psnr(result, low).mean()),
            }
        found.append(values)
        middle = len(truth) // 2
        rows += [clip[middle] for clip in (bilinear, results[1], results[4], truth)]
    save_image(sheet, contact_sheet(torch.stack(rows), columns=4))
    return {name: float(np.mean([values[name] for values in found])) for name in found[0]}


def score(values: Mapping[str, float]) -> float:
    """How much nearer to the truth than bicubic four steps are, by the filter-bank distance; more is better.

    That costs blur as well as noise, and what is made up at the wrong places. It does not see colours: each dB of
    fidelity below `MIN_FIDELITY` costs a tenth.
    """
    shortfall = max(0.0, MIN_FIDELITY - values["steps4_fidelity"])
    return values["bicubic_bank"] - values["steps4_bank"] - 0.1 * shortfall


def collapse_warnings(values: Mapping[str, float], history: Sequence[Mapping[str, float]]) -> list[str]:
    """What looks like a collapse, in sentences.

    Args:
        values: The newest figures.
        history: Those before, in order.
    """
    energy, floor = values["steps4_energy"], values["floor_energy"]
    found = []
    if energy < floor:
        found.append(
            f"results have less detail than a bilinear enlargement, {energy:.3g} of the truth's against {floor:.3g}: "
            "the model blurs; lower the learning rate, or go back to the best weights"
        )
    if energy > MAX_ENERGY:
        found.append(
            f"results have {energy:.3g} times the truth's detail, more than {MAX_ENERGY}: noise or grids; look at the "
            "sheet, and narrow the noise steps or go back to the best weights"
        )
    fidelity = values["steps4_fidelity"]
    best = max((earlier["steps4_fidelity"] for earlier in history), default=fidelity)
    if fidelity < best - MAX_FIDELITY_LOSS:
        found.append(
            f"results brought down are at {fidelity:.3g} dB of their input, {best - fidelity:.2g} dB below the best: "
            "the model leaves its input; go back to the best weights"
        )
    if values["steps4_bank"] > values["steps1_bank"]:
        found.append(
            f"four steps are farther from the truth than one, {values['steps4_bank']:.3g} against "
            f"{values['steps1_bank']:.3g}: the steps' errors add up; train longer, or at later times (a smaller shift)"
        )
    return found
