"""Random numbers of a step: the same however its samples are shared out."""

import pytest
import torch

from flashvideo.training.draws import Draws


def _all(draws: Draws) -> list[torch.Tensor]:
    return [
        draws.normal((2, 3)),
        draws.stratified(),
        draws.uniform(repeat=2).view(2, -1).T,
        draws.normal((4,)),
    ]


def test_two_processes_draw_what_one_with_twice_the_batch_draws() -> None:
    whole = _all(Draws(7, 3, range(6), 6))
    parts = [_all(Draws(7, 3, places, 6)) for places in ((0, 2, 4), (1, 3, 5))]
    for one, first, second in zip(whole, *parts, strict=True):
        assert torch.equal(one[0::2], first) and torch.equal(one[1::2], second)


def test_seed_step_and_place_each_change_the_numbers() -> None:
    numbers = [
        Draws(*key).normal((4,))
        for key in ((0, 0, (0,), 2), (1, 0, (0,), 2), (0, 1, (0,), 2), (0, 0, (1,), 2))
    ]
    assert len({tuple(n.flatten().tolist()) for n in numbers}) == 4


@pytest.mark.parametrize("repeat", [1, 3])
def test_stratified_numbers_of_a_step_fall_in_different_equal_slices(repeat: int) -> None:
    drawn = torch.cat([Draws(0, 5, (place,), 4).stratified(repeat=repeat) for place in range(4)])
    slices = (drawn * 4 * repeat).long()
    assert sorted(slices.tolist()) == list(range(4 * repeat))


def test_shared_numbers_are_alike_for_all_samples_of_a_step() -> None:
    first, second = (torch.rand(3, generator=Draws(0, 1, (place,), 2).shared) for place in range(2))
    assert torch.equal(first, second)


def test_normal_numbers_are_normal() -> None:
    drawn = Draws(0, 0, range(8), 8).normal((4000,))
    assert abs(drawn.mean().item()) < 0.02 and abs(drawn.std().item() - 1) < 0.02
    assert drawn.flatten().unique().numel() > 31000  # no two samples alike


def test_a_place_that_the_step_does_not_have_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"places must be in 0\.\.1, got \[2\]"):
        Draws(0, 0, (2,), 2)
