"""How sure a figure is: intervals of a mean and of a proportion."""

import math
import statistics
from collections.abc import Sequence

import torch

_DRAWS_AT_ONCE = 1_000_000  # 8 MB
_EXACT_CLIPS, _RANDOM_SIGNS = 16, 20_000


def bootstrap_interval(
    values: torch.Tensor | Sequence[float],
    confidence: float = 0.95,
    seed: int = 0,
    *,
    num_resamples: int = 10_000,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean, such as of one value per clip.

    Args:
        values: ``(n,)`` finite numbers from independent clips.
        confidence: Probability that the interval is to cover, in (0, 1).
        seed: Seed of the resampling.
        num_resamples: Number of resampled means.

    Returns:
        Lower and upper end.

    Raises:
        ValueError: There are no values, or not all are finite, or `confidence` is not in (0, 1).
    """
    sample = torch.as_tensor(values, dtype=torch.float64).cpu()
    if sample.ndim != 1 or sample.numel() == 0:
        raise ValueError(f"values must have the shape (n,) with n of at least 1, got {tuple(sample.shape)}")
    if not torch.isfinite(sample).all():
        raise ValueError("values must be finite; leave out identical clips, whose PSNR is infinite")
    _check_confidence(confidence)
    generator = torch.Generator().manual_seed(seed)
    n = sample.numel()
    parts = torch.arange(num_resamples).split(max(1, _DRAWS_AT_ONCE // n))
    means = torch.cat(
        [sample[torch.randint(n, (len(part), n), generator=generator)].mean(dim=1) for part in parts]
    )
    tail = (1 - confidence) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


def paired_interval(
    ours: torch.Tensor | Sequence[float],
    theirs: torch.Tensor | Sequence[float],
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Bootstrap interval of a mean difference between two systems on the same clips; off 0 it is one to believe in.

    Args:
        ours: ``(n,)`` finite numbers, one per clip.
        theirs: ``(n,)``, of the same clips in the same order.
        confidence: Probability that the interval is to cover, in (0, 1).
        seed: Seed of the resampling.

    Returns:
        Lower and upper end of the mean of `ours - theirs`.

    Raises:
        ValueError: The two differ in length, or `bootstrap_interval` cannot be.
    """
    one, other = (torch.as_tensor(values, dtype=torch.float64).cpu() for values in (ours, theirs))
    if one.shape != other.shape:
        raise ValueError(f"paired values must be of the same clips, got {one.numel()} and {other.numel()}")
    return bootstrap_interval(one - other, confidence, seed)


def sign_flip(
    ours: torch.Tensor | Sequence[float], theirs: torch.Tensor | Sequence[float], seed: int = 0
) -> float:
    """Sign-flip permutation test: how likely two equally good systems differ so much in their means.

    If neither is better, every difference might as well have the other sign: the p value is the share of the ``2^n``
    choices of signs whose mean is at least as far from 0. Up to 16 clips all are tried, beyond that 20,000 at random
    and the observed one. Fewer than six clips can never give a p value below 0.05.

    Args:
        ours: ``(n,)`` finite numbers, one per clip.
        theirs: ``(n,)``, of the same clips in the same order.
        seed: Of the random signs.

    Returns:
        The two-sided p value; 1 if they never differ.

    Raises:
        ValueError: The two differ in length, or there are none.

    Example:
        >>> sign_flip([2.0] * 6, [1.0] * 6)
        0.03125
    """
    one, other = (torch.as_tensor(values, dtype=torch.float64).cpu() for values in (ours, theirs))
    if one.shape != other.shape or one.numel() == 0:
        raise ValueError(
            f"paired values must be of the same clips, at least one, got {one.numel()} and {other.numel()}"
        )
    differences, n = one - other, one.numel()
    if n <= _EXACT_CLIPS:
        bits = torch.arange(2**n).unsqueeze(1) >> torch.arange(n) & 1  # (2^n, n)
    else:
        generator = torch.Generator().manual_seed(seed)
        bits = torch.randint(2, (_RANDOM_SIGNS + 1, n), generator=generator)
        bits[0] = 1
    sums = ((2 * bits - 1).double() @ differences).abs()
    # Sums of the same numbers in another order differ by rounding.
    least = differences.sum().abs() - 1e-9 * differences.abs().sum()
    return (sums >= least).double().mean().item()


def mcnemar(ours: Sequence[bool], theirs: Sequence[bool]) -> float:
    """Exact McNemar test: how likely two equally good systems differ so much in which prompts they get right.

    Of the b + c prompts that one of them alone gets right, ``p = 2 sum_{k <= min(b, c)} C(b + c, k) / 2^(b + c)``.

    Args:
        ours: n outcomes, one per prompt.
        theirs: n outcomes of the same prompts in the same order.

    Returns:
        The two-sided p value, at most 1; 1 if they never differ.

    Raises:
        ValueError: The two differ in length.

    Example:
        >>> mcnemar([True] * 6, [False] * 6)
        0.03125
    """
    if len(ours) != len(theirs):
        raise ValueError(f"outcomes must be of the same prompts, got {len(ours)} and {len(theirs)}")
    wins = sum(one and not other for one, other in zip(ours, theirs, strict=True))
    losses = sum(other and not one for one, other in zip(ours, theirs, strict=True))
    n = wins + losses
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(min(wins, losses) + 1)) / 2**n)


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion, such as of prompts whose colour came out right.

    ``(p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)``, p = successes / n, z the normal quantile.

    Args:
        successes: Number of successes, from 0 to n.
        n: Number of trials, at least 1.
        confidence: Probability that the interval is to cover, in (0, 1).

    Returns:
        Lower and upper end, within [0, 1].

    Raises:
        ValueError: The counts are impossible or `confidence` is not in (0, 1).

    Example:
        >>> low, high = wilson_interval(9, 10)
        >>> round(low, 3), round(high, 3)
        (0.596, 0.982)
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"successes must lie between 0 and n, and n be at least 1, got {successes} of {n}")
    _check_confidence(confidence)
    z = statistics.NormalDist().inv_cdf(0.5 + confidence / 2)
    p = successes / n
    centre = p + z**2 / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    # Rounding must not leave the proportion itself outside.
    return min(p, max(0.0, (centre - half) / scale)), max(p, min(1.0, (centre + half) / scale))


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}; 0.95 is usual")
