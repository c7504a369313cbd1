"""Steadiness along the motion: each frame against the next one, warped back by optical flow.

Flow is an argument, in pixels: ``flow[t, :, y, x] = (u, v)`` says that what frame t shows at (x, y) lies at
(x + u, y + v) in frame t + 1. Shapes: F frames, H height, W width.
"""

import math

import torch
import torch.nn.functional as F

from flashvideo.evaluation.metrics.frames import PIXEL_RANGE, check_frames, check_size

# Sundaram et al. 2010: how far flows may disagree, and how fast a flow may change, in squared pixels.
_RELATIVE, _DISAGREEMENT, _GRADIENT = 0.01, 0.5, 0.002
_SCALE = 1000.0  # E*_warp is in thousandths
_LEAST = 2  # pixels: a flow of one row has no gradient


def warping_error(clip: torch.Tensor, flow: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """E*_warp: mean squared difference of a frame and the next one warped back, over visible pixels, times 1000.

    ``E_warp = mean over t of sum(m[t] (x[t] - w(x[t+1]))^2) / sum(m[t])`` (Lai et al., "Learning blind video temporal
    consistency", 2018) with frames in [0, 1], per pixel and channel as their code has it (their formula adds the three
    channels up), w sampling bilinearly and m being 1 where a pixel is visible in both frames. Video enhancers are
    compared by ``E*_warp``, which is E_warp in units of 0.001.

    Compare it among results of one size with the flow of one video. A blurred clip always warps well, and sampling
    between pixels alone costs a sharp one something, so that a low value means little without a measure of detail.

    Args:
        clip: ``(..., F, 3, H, W)`` in [-1, 1] with at least two frames, at least 2x2 pixels.
        flow: ``(..., F-1, 2, H, W)``, from each frame to the next.
        visible: Bool, ``(..., F-1, H, W)``; see `visible_mask`.

    Returns:
        ``(...)``, lower is better; 0 for a clip that moves along its flow by whole pixels. A pair of frames without a
        visible pixel is left out; NaN if none has one.

    Raises:
        ValueError: The shapes do not fit, or there is a single frame.
    """
    clip = check_frames("clip", clip, clip=True)
    check_size(clip, _LEAST, "warping_error")
    if clip.shape[-4] < 2:
        raise ValueError("warping_error needs at least 2 frames, got 1")
    leading, (height, width) = (*clip.shape[:-4], clip.shape[-4] - 1), clip.shape[-2:]
    flow = _check_flow("flow", flow, (*leading, 2, height, width)).to(clip)
    if visible.dtype != torch.bool or visible.shape != (*leading, height, width):
        raise ValueError(
            f"visible must be of type torch.bool and of the shape {(*leading, height, width)}, "
            f"got {visible.dtype} and {tuple(visible.shape)}; use visible_mask"
        )

    def of_pair(
        now: torch.Tensor, after: torch.Tensor, flow: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        squares = ((now - _warp(after, flow)) / PIXEL_RANGE).square().mean(dim=-3)  # (H, W)
        return squares[mask].mean()  # NaN where nothing is visible

    # One pair at a time, so that memory does not grow with the clip.
    pairs = (clip[..., :-1, :, :, :], clip[..., 1:, :, :, :], flow, visible)
    flat = [values.flatten(0, len(leading) - 1) for values in pairs]
    errors = torch.stack([of_pair(*pair) for pair in zip(*flat, strict=True)])
    return _SCALE * errors.reshape(leading).nanmean(dim=-1)


def visible_mask(forward: torch.Tensor, backward: torch.Tensor) -> torch.Tensor:
    """Which pixels of each frame can be followed into the next one: not occluded, not out of the frame.

    A pixel counts where flow there and back returns to it, ``|f + b(x + f)|^2 <= 0.01 (|f|^2 + |b(x + f)|^2) + 0.5``,
    and where the flow has no boundary of motion, ``|du|^2 + |dv|^2 <= 0.01 |f|^2 + 0.002`` (Sundaram et al., "Dense
    point trajectories by GPU-accelerated large displacement optical flow", 2010; forward differences, as Lai et al.
    2018 take them), and where ``x + f`` lies within the frame.

    Args:
        forward: ``(..., F-1, 2, H, W)`` in pixels, from each frame to the next; at least 2x2.
        backward: Same shape, from that next frame back to each.

    Returns:
        Bool, ``(..., F-1, H, W)``, in the place of the earlier frames.

    Raises:
        ValueError: The shapes differ or are not those of flows.
    """
    shape = forward.shape
    if len(shape) < 4 or shape[-3] != 2 or min(shape[-2:]) < _LEAST:
        raise ValueError(f"forward must have the shape (..., F-1, 2, H, W), at least 2x2, got {tuple(shape)}")
    forward = _check_flow("forward", forward, tuple(shape))
    backward = _check_flow("backward", backward, tuple(shape)).to(forward)

    def of_pair(there: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
        back = _warp(back, there)  # (2, H, W), in the place of the earlier frame
        disagreement = (there + back).square().sum(dim=0)
        lengths = there.square().sum(dim=0)
        returns = disagreement <= _RELATIVE * (lengths + back.square().sum(dim=0)) + _DISAGREEMENT
        across = F.pad(there.diff(dim=-1), (0, 1)).square().sum(dim=0)
        down = F.pad(there.diff(dim=-2), (0, 0, 0, 1)).square().sum(dim=0)
        smooth = across + down <= _RELATIVE * lengths + _GRADIENT
        return returns & smooth & _is_inside(there)

    pairs = zip(forward.flatten(0, -4), backward.flatten(0, -4), strict=True)
    return torch.stack([of_pair(*pair) for pair in pairs]).reshape(*shape[:-3], *shape[-2:])


def _warp(values: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """Samples values ``(C, H, W)`` at the ends of a flow ``(2, H, W)``, bilinearly; outside is the nearest edge."""
    x, y = _targets(flow)
    height, width = flow.shape[-2:]
    grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], dim=-1)  # (H, W, 2)
    warped = F.grid_sample(values[None], grid[None], padding_mode="border", align_corners=True)
    return warped[0]


def _is_inside(flow: torch.Tensor) -> torch.Tensor:
    x, y = _targets(flow)
    height, width = flow.shape[-2:]
    return (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)


def _targets(flow: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where a flow ``(2, H, W)`` ends: columns and rows, each ``(H, W)``."""
    height, width = flow.shape[-2:]
    columns = torch.arange(width, dtype=flow.dtype, device=flow.device)
    rows = torch.arange(height, dtype=flow.dtype, device=flow.device)
    return columns + flow[0], rows[:, None] + flow[1]


def _check_flow(name: str, flow: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    if not flow.is_floating_point() or flow.shape != shape:
        raise ValueError(
            f"{name} must be floats of the shape {shape}, got {flow.dtype} and {tuple(flow.shape)}"
        )
    if not math.isfinite(flow.abs().sum().item()):
        raise ValueError(f"{name} holds NaN or infinite values, expected pixels")
    return flow.detach().to(torch.promote_types(flow.dtype, torch.float32))
