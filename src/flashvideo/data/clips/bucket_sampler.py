"""Which samples make up which batch: a function of the seed and the batch's number alone, so a run resumes anywhere.

All samples of a batch are of one bucket. Batches come in cycles: a cycle has each bucket as often as its
clips ask for and pictures as often as their share, in an order drawn anew for each cycle. Each bucket deals its clips
out round by round, all of them in a new order every round, on across batches and cycles: none is dropped, and none
comes twice before all have come.

A sample is named by one number, ``turn * num_items + item``: the turn differs each time that an item comes up, and
with it what is random about the sample.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SHORTEST_CYCLE = 100
"""A cycle has at least so many batches, so that shares are right within one in a hundred."""
LONGEST_CYCLE = 1_000_000
"""It has up to so many where the share of a bucket is less than one batch of a shorter cycle."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """The items of one bucket.

    Attributes:
        items: (n,) their numbers.
        weights: (n,) how many times each comes up in a round; of those of weight 1.5 each comes once, and half of them,
            drawn anew each round, twice.
        is_image: Whether they are pictures.
    """

    items: np.ndarray
    weights: np.ndarray
    is_image: bool

    def round_length(self) -> int:
        """How many samples a round has."""
        return sum(total for _, total in self._totals)

    def deal(self, rng: np.random.Generator, num_items: int, most: int, number: int) -> np.ndarray:
        """The sample numbers of one round, in a drawn order, ``(round_length(),)``.

        Args:
            rng: Draws the order, and which items come up once more than others of their weight.
            num_items: Of the data set.
            most: An upper bound of how often an item comes up in a round.
            number: Of the round.
        """
        parts = []
        for weight, total in self._totals:
            same = self.items[self.weights == weight]
            copies = np.resize(rng.permutation(same), total)
            turns = number * most + np.arange(total) // len(same)
            parts.append(turns * num_items + copies)
        return rng.permutation(np.concatenate(parts))

    @functools.cached_property
    def _totals(self) -> list[tuple[float, int]]:
        """Each weight with how many samples items of this weight give in a round; counted once, not for every round."""
        weights, counts = np.unique(self.weights, return_counts=True)
        return [(w, max(1, round(w * n))) for w, n in zip(weights.tolist(), counts.tolist(), strict=True)]


class BucketBatches:
    """Batches of one bucket each, without an end.

    Args:
        groups: The buckets' items.
        num_items: Of the data set.
        batch_size: Samples of a batch, which several processes may share out.
        image_share: Share of the batches that are of pictures; 0 leaves pictures out, 1 leaves videos out.
        seed: Of all orders.

    Attributes:
        groups: Those of which there are batches.
        batches_per_pass: How many batches show each clip about once.
        counts: How many batches of each group a cycle has.

    Raises:
        ValueError: If a number is out of its range, or no group is left.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        *,
        num_items: int,
        batch_size: int,
        image_share: float = 0.0,
        seed: int = 0,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
        self.groups = [
            g for g in groups if len(g.items) and (image_share > 0 if g.is_image else image_share < 1)
        ]
        if not self.groups:
            raise ValueError("there is nothing to draw batches from; every group is empty or of share 0")
        self.num_items, self.batch_size, self.seed = num_items, batch_size, seed
        self._most = int(np.ceil(max(g.weights.max() for g in self.groups))) + 1
        self._lengths = [group.round_length() for group in self.groups]
        self.batches_per_pass, self.counts = self._plan(image_share)
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0))
        self._rounds: dict[int, tuple[int, np.ndarray]] = {}

    def group_of(self, number: int) -> int:
        """Which of `groups` batch `number` is of."""
        cycle, position = divmod(number, sum(self.counts))
        return int(self._cycle(cycle)[position])

    def batch(self, number: int) -> list[int]:
        """The sample numbers of batch `number`, ``batch_size`` of them; earlier batches are not made."""
        cycle, position = divmod(number, sum(self.counts))
        order = self._cycle(cycle)
        group = int(order[position])
        earlier = cycle * self.counts[group] + int(np.count_nonzero(order[:position] == group))
        first = earlier * self.batch_size
        return [self._sample(group, nth) for nth in range(first, first + self.batch_size)]

    def _plan(self, image_share: float) -> tuple[int, list[int]]:
        """How many batches see each clip about once, and how many batches of each group a cycle has."""
        videos = sum(n for n, g in zip(self._lengths, self.groups, strict=True) if not g.is_image)
        images = sum(self._lengths) - videos
        share = image_share if videos and images else float(bool(images))
        samples = videos / (1 - share) if videos else images
        one_pass = int(np.ceil(samples / self.batch_size))
        weights = [
            n * (share / images if g.is_image else (1 - share) / videos)
            for n, g in zip(self._lengths, self.groups, strict=True)
        ]
        whole_batches = min(LONGEST_CYCLE, int(np.ceil(1 / min(weights))))
        cycle = max(one_pass, SHORTEST_CYCLE, 2 * len(weights), whole_batches)
        return one_pass, _apportion(cycle, weights)

    def _cycle(self, cycle: int) -> np.ndarray:
        """The group of each batch of a cycle."""
        if self._order[0] != cycle:
            groups = np.repeat(np.arange(len(self.counts)), self.counts)
            self._order = cycle, np.random.default_rng([self.seed, 1, cycle]).permutation(groups)
        return self._order[1]

    def _sample(self, group: int, nth: int) -> int:
        """The nth sample that a group deals out."""
        number, position = divmod(nth, self._lengths[group])
        if group not in self._rounds or self._rounds[group][0] != number:
            rng = np.random.default_rng([self.seed, 2, group, number])
            samples = self.groups[group].deal(rng, self.num_items, self._most, number)
            self._rounds[group] = number, samples
        return int(self._rounds[group][1][position])


def _apportion(total: int, weights: Sequence[float]) -> list[int]:
    """Divides a whole number in proportion to weights whose sum is 1: at least 1 each, largest remainders first."""
    exact = np.maximum(1.0, total * np.asarray(weights))
    exact *= total / exact.sum()
    counts = np.maximum(1, np.floor(exact)).astype(int)
    for i in np.argsort(counts - exact, kind="stable")[: max(0, total - counts.sum())]:
        counts[i] += 1
    return counts.tolist()
