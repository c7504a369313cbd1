"""Where one scene ends and another begins, from small grey pictures of the frames.

A cut is a jump that stands out: the mean absolute difference of two neighbours is larger than `FLOOR` grey levels and
than `RATIO` times the median of the differences around it. Fast motion and shaking raise the differences around it
too. A flash jumps up and back: if the picture after a jump, or one of the next `FLASH_FRAMES`, is again like the one
before it, nothing was cut. Dissolves and cuts between scenes that look alike at this size are not found.

Shapes: N frames, h and w of the small pictures.
"""

import numpy as np

GREY_SIZE = (32, 32)
"""Of the small pictures: width and height."""
CONTEXT = 6
"""How many differences on either side of one are compared with it."""
FLOOR = 8.0
"""Below so many levels of 255 nothing is a cut."""
RATIO = 3.0
"""How many times as large as the median around it a cut's difference is."""
FLASH_FRAMES = 3
"""As many frames a flash may last."""
RETURN = 0.5
"""A picture is again like an earlier one, if they differ by less than this part of the jump between."""


def find_cuts(grey: np.ndarray) -> list[int]:
    """Finds scene cuts.

    Args:
        grey: ``(N, h, w)`` levels 0 to 255.

    Returns:
        Indices of the frames with which a new scene begins.
    """
    if len(grey) < 2:
        return []
    small = grey.astype(np.float32)
    jumps = np.abs(np.diff(small, axis=0)).mean(axis=(1, 2))  # (N - 1,), jumps[i] is from i to i + 1
    found = []
    for i, jump in enumerate(jumps):
        around = np.concatenate([jumps[max(0, i - CONTEXT) : i], jumps[i + 1 : i + 1 + CONTEXT]])
        usual = float(np.median(around)) if len(around) else 0.0
        if jump > max(FLOOR, RATIO * usual) and not _returns(small, i, RETURN * jump):
            found.append(i + 1)
    return found


def _returns(small: np.ndarray, i: int, limit: float) -> bool:
    """Whether the jump from frame i to i + 1 is the beginning or the end of a flash."""
    for length in range(1, FLASH_FRAMES + 1):
        for one, other in ((i, i + 1 + length), (i - length, i + 1)):
            if one >= 0 and other < len(small) and np.abs(small[one] - small[other]).mean() < limit:
                return True
    return False
