"""The grid of a sweep."""

import pytest

from flashvideo.evaluation.sweep.grid import AXES, Setting, make_grid, varying_axes

SIZE = "640x384"


def test_a_grid_is_the_product_of_its_values_with_the_last_axis_fastest():
    grid = make_grid({"detail_guidance": [1.0, 2.0], "size": [SIZE], "detail_steps": [1, 4]})
    assert [(one.detail_steps, one.detail_guidance) for one in grid] == [(1, 1), (1, 2), (4, 1), (4, 2)]
    assert {one.size for one in grid} == {SIZE}


def test_one_at_a_time_varies_each_axis_around_the_first_values():
    values = {"size": [SIZE], "detail_steps": [4, 1, 8], "shift": [2.5, 5.0]}
    grid = make_grid(values, one_at_a_time=True)
    assert [(one.detail_steps, one.shift) for one in grid] == [(4, 2.5), (1, 2.5), (8, 2.5), (4, 5)]


def test_a_value_given_twice_is_refused():
    with pytest.raises(ValueError, match="size must have each value once, got 640x384,640x384"):
        make_grid({"size": [SIZE, SIZE]})


def test_an_axis_without_values_is_refused():
    with pytest.raises(ValueError, match="steps needs at least one value"):
        make_grid({"size": [SIZE], "steps": []})


def test_a_setting_comes_back_from_its_dictionary_without_what_does_not_apply():
    setting = Setting(size=SIZE, noise_step=0)
    assert setting.as_dict() == {"size": SIZE, "noise_step": 0}
    assert Setting.from_dict(setting.as_dict()) == setting


def test_a_setting_of_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="got detail"):
        Setting.from_dict({"size": SIZE, "detail": 4})


def test_only_axes_with_several_values_vary():
    grid = make_grid({"size": [SIZE], "noise_step": [0, 2]})
    assert [axis.name for axis in varying_axes(grid)] == ["noise_step"]
    assert grid[1].text(varying_axes(grid)) == "noise step 2"


def test_every_axis_is_a_field_of_a_setting():
    assert {axis.name for axis in AXES} == set(vars(Setting(size=SIZE)))
