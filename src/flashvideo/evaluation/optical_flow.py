"""Optical flow of a clip, and how steady the clip is along it. Needs OpenCV (the `evaluate` extra).

The flow is that of dense inverse search (Kroeger et al., "Fast optical flow using dense inverse search", 2016), which
needs no weights; papers mostly use RAFT, so that their values of E*_warp are not to be set beside ours.

Shapes: F frames, H height, W width.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from flashvideo.evaluation.extras import import_extra
from flashvideo.evaluation.metrics import visible_mask, warping_error
from flashvideo.evaluation.metrics.frames import LEVELS, check_frames, luma

if TYPE_CHECKING:
    from flashvideo.evaluation.measures import Subject

LEAST_SIZE = 16
"""Pixels of height and width from which on flow is estimated: two patches of the search."""


def load_opencv() -> Any:
    """Returns OpenCV.

    Raises:
        ImportError: It is not installed, or lacks a library of the system.
    """
    return import_extra("cv2", "optical flow needs OpenCV", extra="evaluate")


def optical_flow(clip: Tensor) -> tuple[Tensor, Tensor]:
    """Estimates flow between neighbouring frames, from luma in 8 bits, with OpenCV's medium preset.

    Args:
        clip: ``(F, 3, H, W)`` in [-1, 1], with at least two frames of at least 16x16 pixels.

    Returns:
        Forward and backward flow, each ``(F-1, 2, H, W)`` float32 on the CPU, in pixels (across, down): from each frame
        to the next, and from that next frame back.

    Raises:
        ImportError: OpenCV is not installed.
        ValueError: The shape is not that of a clip, there is a single frame, or frames are too small.
    """
    cv2 = load_opencv()
    clip = check_frames("clip", clip, clip=True)
    if clip.ndim != 4 or len(clip) < 2 or min(clip.shape[-2:]) < LEAST_SIZE:
        raise ValueError(
            f"clip must have the shape (F, 3, H, W), F at least 2, H and W at least {LEAST_SIZE}, "
            f"got {tuple(clip.shape)}"
        )
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    frames = [_levels(frame) for frame in clip]

    def flow(now: np.ndarray, after: np.ndarray) -> Tensor:
        found = search.calc(now, after, None)  # no first guess
        return torch.from_numpy(np.asarray(found)).permute(2, 0, 1)  # (2, H, W)

    pairs = list(itertools.pairwise(frames))
    forward = torch.stack([flow(now, after) for now, after in pairs])
    backward = torch.stack([flow(after, now) for now, after in pairs])
    return forward, backward


def warping(subject: Subject) -> float | None:
    """E*_warp of a video, along the flow of its reference where there is one, otherwise along its own.

    Args:
        subject: The video and what is known of it.

    Returns:
        `warping_error`, lower is better; None for a single frame, for frames of less than 16x16 pixels, and where
        no pixel can be followed.

    Raises:
        ImportError: OpenCV is not installed.
    """
    frames, moving = subject.frames, subject.frames if subject.reference is None else subject.reference
    if len(frames) < 2 or min(frames.shape[-2:]) < LEAST_SIZE:
        return None
    errors = []
    # A pair at a time: the flow of a long clip in full size would fill gigabytes.
    for start in range(len(frames) - 1):
        forward, backward = optical_flow(moving[start : start + 2])
        visible = visible_mask(forward, backward)
        errors.append(warping_error(frames[start : start + 2].cpu(), forward, visible).item())
    known = [error for error in errors if not math.isnan(error)]
    return sum(known) / len(known) if known else None


def _levels(frame: Tensor) -> np.ndarray:
    """One frame ``(3, H, W)`` -> luma in 8 bits, ``(H, W)``."""
    levels = luma(frame[None])[0, 0] * LEVELS
    return levels.round().clamp(0, LEVELS).to(torch.uint8).cpu().numpy()
