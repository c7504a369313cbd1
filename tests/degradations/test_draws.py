"""ClipDraws of one clip: walks keep to their steps and bounds."""

import pytest
import torch

from flashvideo.degradations.draws import ClipDraws


def _draws(seed: int = 0) -> ClipDraws:
    return ClipDraws(seed, torch.device("cpu"))


def test_a_drift_moves_by_at_most_its_step_and_stays_within_its_bounds() -> None:
    walks = torch.stack([_draws(seed).drift((1.0, 1.5), 0.2, 40) for seed in range(20)])
    assert walks.min() >= 1.0 and walks.max() <= 1.5
    assert walks.diff(dim=1).abs().max() <= 0.2
    assert walks.diff(dim=1).abs().mean() > 0.05


def test_a_drift_starts_where_it_is_told_to_and_without_a_step_stays_there() -> None:
    assert _draws().drift((0.0, 9.0), 0.0, 3, start=4.0).tolist() == [4.0, 4.0, 4.0]


def test_choices_come_in_proportion_to_their_weights() -> None:
    draws = _draws()
    counts = torch.bincount(torch.tensor([draws.choose((1.0, 0.0, 3.0)) for _ in range(2000)]))
    assert counts[1] == 0
    assert counts[2] / 2000 == pytest.approx(0.75, abs=0.04)


def test_what_is_certain_happens_and_what_is_impossible_does_not() -> None:
    draws = _draws()
    assert all(draws.happens(1.0) for _ in range(50)) and not any(draws.happens(0.0) for _ in range(50))


def test_one_seed_gives_one_sequence_of_numbers_and_of_fields() -> None:
    first, again, other = (_draws(seed) for seed in (5, 5, 6))
    assert first.uniform((0, 1)) == again.uniform((0, 1)) != other.uniform((0, 1))
    a, b, c = (torch.randn(3, generator=draws.fields) for draws in (first, again, other))
    assert torch.equal(a, b) and not torch.equal(a, c)
