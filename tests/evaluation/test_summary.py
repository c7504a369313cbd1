"""Means with intervals, and differences of two systems."""

import pytest

from flashvideo.evaluation.summary import difference, estimate, summarise


def test_a_share_has_wilsons_interval():
    found = estimate([1.0] * 9 + [0.0], is_share=True)
    assert (found.mean, found.count) == (0.9, 10)
    assert (round(found.low, 3), round(found.high, 3)) == (0.596, 0.982)


def test_equal_values_that_are_no_share_have_no_width():
    found = estimate([1.0, 1.0])
    assert found.low == found.mean == found.high == 1


def test_a_single_value_has_no_width():
    found = estimate([0.3])
    assert found.low == found.mean == found.high == 0.3


def test_records_are_summarised_over_the_videos_that_have_the_number():
    summary = summarise([{"psnr": 20.0, "niqe": 5.0, "color": 1.0}, {"psnr": 30.0}], {"color"})
    assert summary["color"]["low"] < 1
    assert summary["psnr"]["mean"] == 25
    assert summary["niqe"]["count"] == 1


def test_a_constant_advantage_is_clear_however_the_videos_vary():
    theirs = [1.0, 20.0, 7.0, 3.0, 9.0, 4.0]
    found = difference([value + 0.5 for value in theirs], theirs, is_share=False)
    assert (found.mean, found.low, found.high) == (0.5, 0.5, 0.5)
    assert found.p_value == 0.03125
    assert found.is_clear


def test_fewer_than_six_videos_are_never_clear():
    assert not difference([2.0] * 5, [1.0] * 5, is_share=False).is_clear


def test_an_advantage_of_chance_is_not_clear():
    assert not difference([1.0, 2.0, 3.0, 4.0], [2.0, 1.0, 4.0, 3.0], is_share=False).is_clear


def test_shares_are_compared_by_mcnemar():
    found = difference([1.0] * 6, [0.0] * 6, is_share=True)
    assert found.p_value == 0.03125
    assert found.is_clear
    assert not difference([1.0] * 5, [0.0] * 5, is_share=True).is_clear


def test_one_video_tells_nothing():
    found = difference([2.0], [1.0], is_share=False)
    assert found.mean == 1
    assert found.low is found.high is None
    assert not found.is_clear


def test_numbers_of_different_videos_are_refused():
    with pytest.raises(ValueError, match="paired values must be of the same clips, got 2 and 3"):
        difference([1.0, 2.0], [1.0, 2.0, 3.0], is_share=False)
