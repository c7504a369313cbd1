"""Cuts are found; motion, however fast, and flashes are not taken for cuts."""

import functools

import numpy as np
import pytest

from flashvideo.data.clips.scene_cuts import find_cuts


@functools.cache
def scene(seed):
    """A large smooth picture to look at parts of, levels 0 to 255, (64, 400)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:64, :400]
    waves = [
        np.sin(rng.uniform(0.02, 0.2) * x + rng.uniform(-0.2, 0.2) * y + rng.uniform(0, 6)) for _ in range(8)
    ]
    return 128 + 40 * np.clip(sum(waves) / 2, -3, 3)


def pan(seed, speed, num_frames=12):
    return np.stack([scene(seed)[:32, k * speed : k * speed + 32] for k in range(num_frames)])


@pytest.mark.parametrize("speed", [0, 1, 2])
def test_a_cut_between_two_scenes_is_found_at_its_frame(speed):
    for seed in range(8):
        frames = np.concatenate([pan(seed, speed)[:7], pan(seed + 100, speed)])
        assert find_cuts(frames) == [7]


@pytest.mark.parametrize("speed", [1, 4, 12])
def test_fast_motion_is_no_cut(speed):
    assert all(find_cuts(pan(seed, speed)) == [] for seed in range(8))


def test_motion_that_sets_in_is_no_cut():
    for seed in range(8):
        moving = pan(seed, 6)
        assert find_cuts(np.concatenate([np.repeat(moving[:1], 8, axis=0), moving])) == []


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_flash_is_no_cut(length):
    frames = pan(0, 1)
    frames[5 : 5 + length] += 90
    assert find_cuts(frames) == []


def test_light_that_stays_on_is_taken_for_a_cut():
    frames = pan(0, 1)
    frames[5:] += 90
    assert find_cuts(frames) == [5]


def test_noise_is_no_cut_and_one_frame_has_none():
    noise = np.random.default_rng(0).normal(128, 20, (12, 32, 32))
    assert find_cuts(noise) == find_cuts(noise[:1]) == find_cuts(noise[:0]) == []
