"""What an enhanced clip keeps of the clip it was made from: its colours and shapes, and its stillness.

The network may shift what the input already shows, and the detail that it adds differs a little from frame to frame,
which is seen as flicker. Neither needs another network to mend: the first is a band of frequencies in which the input
is right, the second an average over frames in which the input stands still. An input's noise is not to be kept: it goes
the same way, by an average over frames in which the result stands still. Ours; not in the paper.

Shapes: B clips, N frames, H, W of the result, h, w of the input at its own level of detail; pixels in [-1, 1].
"""

from __future__ import annotations

import torch

from flashvideo.video import resize_video

STILLNESS = 0.04
"""Standard deviation of the stillness weights: a difference of 5 levels of 255, about a quiet camera's noise."""

NOISE_WIDTH = 2.0
"""Standard deviation of the weights that noise is averaged by, in those measured of the noise; at most `STILLNESS`."""

MIN_WIDTH = 1e-3
"""The least that it is, an eighth of a level of 255: clips without noise stay as they are."""

MAX_GAIN = 2.0
"""Most by which averaged detail is amplified: the average of mere noise stays well below the noise."""

TINY_ENERGY = 1e-6
"""Mean square, a tenth of a level of 255, below which averaged detail counts as none."""


@torch.no_grad()
def keep_consistent(result: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """Gives a result its input's coarse picture by `back_project`, then its stillness by `steady_detail`.

    Of the input's noise it keeps what `average_noise` leaves, which is all of it in a single frame.

    The coarse picture is the input, if it has at most half of the result's height and width. Of a larger one it is as
    much as half of them shows: the finest octave is always the model's, which would otherwise give its input back.

    Clips of several windows are treated one by one, and then cross-faded: detail is steady within a window.

    Args:
        result: Enhanced frames (B, N, 3, H, W).
        given: The frames that they were made from, (B, N, 3, any height, any width).

    Returns:
        (B, N, 3, H, W) in [-1, 1], float32.
    """
    sides = zip(given.shape[-2:], result.shape[-2:], strict=True)
    size = [max(1, min(before, after // 2)) for before, after in sides]
    result = result.float()
    coarse = resize_video(given.to(result.device, torch.float32), *size)
    coarse = average_noise(coarse, resize_video(result, *size))
    return steady_detail(back_project(result, coarse), coarse).clamp_(-1, 1)


def average_noise(coarse: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Averages each pixel of a noisy input over the frames in which the result looks the same there.

    The network has taken most of the noise out, and shows better than the input what stands still and what moves. How
    strong the noise is, is measured there: by how much more the input changes from frame to frame than the result, as
    the median of squares over pixels that change by less than `STILLNESS` in the result. Half of that is about its
    variance, rather less, since a median is. Weights are `exp(-e / (2 h^2))` with e as in `steady_detail`, but of the
    result, and h from the noise: a mean over similar places (Buades et al., "A non-local algorithm for image
    denoising", 2005) of which only those in time are taken. Without noise h is so small that nothing is averaged but
    what is equal.

    Args:
        coarse: The input, (B, N, 3, h, w), float32.
        seen: The result at that size, likewise.

    Returns:
        (B, N, 3, h, w); of one frame the input itself.
    """
    if coarse.shape[1] == 1:
        return coarse
    motion, change = (clip.diff(dim=1).square().mean(dim=2) for clip in (seen, coarse))
    excess = (change - motion).where(_around(motion, 3) < STILLNESS**2, torch.nan)
    variance = excess.flatten(1).nanmedian(dim=1).values.nan_to_num(0.0).clamp(min=0) / 2  # (B,)
    width = (NOISE_WIDTH * variance.sqrt()).clamp(MIN_WIDTH, STILLNESS)[:, None, None, None]
    mean = torch.empty_like(coarse)
    for t in range(coarse.shape[1]):
        mean[:, t] = (_alike(seen, t, width)[:, :, None] * coarse).sum(dim=1)
    return mean


def back_project(result: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
    """Makes a result look like its input where both are seen at the input's size.

    One iteration of back-projection (Irani and Peleg, "Improving resolution by image registration", 1991),
    `x + U(y - D x)`, with D the method's own resize and U bicubic interpolation.

    Args:
        result: x, (B, N, 3, H, W).
        coarse: y, (B, N, 3, h, w).

    Returns:
        (B, N, 3, H, W), not clamped.
    """
    missing = coarse - resize_video(result, *coarse.shape[-2:])
    return result + _enlarge(missing, result)


def steady_detail(result: torch.Tensor, coarse: torch.Tensor, stillness: float = STILLNESS) -> torch.Tensor:
    """Averages the detail of each pixel over the frames in which the input looks the same there.

    Detail is what the result has beyond the enlarged input. Its average is weighted by `exp(-e / (2 stillness^2))`,
    e being the mean squared difference between the input's frames in 3x3 of its pixels: a joint bilateral filter over
    time (Petschnigg et al., "Digital photography with flash and no-flash image pairs", 2004). What is seen to move in
    the input keeps its own detail, for no other frame resembles it; what moves where the input is flat is averaged too.
    An average of details that differ is fainter than they are, hence it is amplified to their root mean square,
    weighted alike, in 5x5 pixels of the input, at most `MAX_GAIN` times. Takes N^2 passes over a frame.

    Args:
        result: (B, N, 3, H, W), float32.
        coarse: (B, N, 3, h, w), float32.
        stillness: Standard deviation of the weights, in pixel values.

    Returns:
        (B, N, 3, H, W), not clamped.
    """
    enlarged = _enlarge(coarse, result)
    detail = result - enlarged
    energy = _energy(detail, coarse)
    steady = torch.empty_like(detail)
    for t in range(detail.shape[1]):
        weights = _alike(coarse, t, stillness)
        fine = torch.nn.functional.interpolate(weights, size=result.shape[-2:], mode="bilinear")
        # Frame by frame, because all weighted frames at once are as large as the clip.
        mean = torch.zeros_like(detail[:, t])
        for other in range(detail.shape[1]):
            mean.addcmul_(fine[:, other, None], detail[:, other])
        wanted = _around((weights * energy).sum(dim=1, keepdim=True), 5)
        left = _around(_energy(mean[:, None], coarse), 5)
        gain = (wanted / (left + TINY_ENERGY)).sqrt().clamp(1, MAX_GAIN)
        steady[:, t] = mean * torch.nn.functional.interpolate(gain, size=result.shape[-2:], mode="bilinear")
    return enlarged.add_(steady)


def _alike(clip: torch.Tensor, t: int, width: torch.Tensor | float) -> torch.Tensor:
    """How much each frame of (B, N, 3, h, w) looks like frame t at each pixel: (B, N, h, w), sums to 1 over frames."""
    difference = (clip - clip[:, t : t + 1]).square().mean(dim=2)
    weights = torch.exp(-_around(difference, 3) / (2 * width**2))
    return weights / weights.sum(dim=1, keepdim=True)


def _energy(detail: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
    """Mean square of detail (B, N, 3, H, W) at each pixel of the coarse picture: (B, N, h, w)."""
    return torch.nn.functional.interpolate(
        detail.square().mean(dim=2), size=coarse.shape[-2:], mode="bilinear", antialias=True
    )


def _around(values: torch.Tensor, size: int) -> torch.Tensor:
    """Mean of (B, N, h, w) in `size` x `size` pixels, fewer at borders."""
    return torch.nn.functional.avg_pool2d(values, size, 1, padding=size // 2, count_include_pad=False)


def _enlarge(coarse: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Bicubic interpolation of (B, N, 3, h, w) to the size of (B, N, 3, H, W)."""
    enlarged = torch.nn.functional.interpolate(
        coarse.flatten(0, 1), size=like.shape[-2:], mode="bicubic", align_corners=False
    )
    return enlarged.unflatten(0, coarse.shape[:2])
