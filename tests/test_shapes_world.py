"""The procedural world: promises about its scenes, its rendering and its captions."""

import re

import numpy as np
import pytest

from flashvideo.data.backgrounds import BACKGROUNDS
from flashvideo.data.captions import caption, full_caption, vocabulary
from flashvideo.data.dead_leaves import render_leaves
from flashvideo.data.shapes_world import (
    ASPECT,
    COLORS,
    MOTIONS,
    SHAPES,
    TEXTURES,
    is_held_out,
    is_visible,
    object_mask,
    render,
    sample_scene,
    signed_distance,
)
from flashvideo.data.textures import hsv

SCENES = [sample_scene(seed) for seed in range(400)]
SINGLE = [s for s in SCENES if s.relation is None]


def test_the_vocabulary_is_all_used() -> None:
    things = [scene.things[0] for scene in SCENES]
    assert {t.color for t in things} == set(COLORS)
    assert {t.shape for t in things} == set(SHAPES)
    assert {t.texture for t in things} == set(TEXTURES)
    assert {s.motion for s in SCENES} == set(MOTIONS)
    assert {s.background for s in SCENES} == set(BACKGROUNDS)


def test_held_out_combinations_never_occur_in_training_and_always_on_request() -> None:
    assert not any(is_held_out(*s.combination) for s in SCENES)
    assert all(is_held_out(*sample_scene(seed, held_out=True).combination) for seed in range(100))


def test_a_narrow_spread_changes_no_word_and_leaves_places_at_their_middle() -> None:
    narrow = [sample_scene(seed, spread=0.25) for seed in range(len(SCENES))]
    assert [caption(s, np.random.default_rng(0)) for s in narrow] == [
        caption(s, np.random.default_rng(0)) for s in SCENES
    ]
    still = [(a, b) for a, b in zip(SCENES, narrow, strict=True) if a.motion == "growing" and not a.relation]
    assert len(still) > 20
    for wide, near in still:
        for axis, middle in enumerate((0.5 * ASPECT, 0.5)):
            offsets = [s.things[0].start[axis] - middle for s in (wide, near)]
            assert offsets[1] == pytest.approx(0.25 * offsets[0], abs=1e-9)
    assert all(s.things[0].angle[0] < s.things[0].angle[1] for s in narrow if s.motion == "spinning")


def test_about_one_combination_in_twelve_is_held_out() -> None:
    every = [(c, s, m) for c in COLORS for s in SHAPES for m in MOTIONS if is_visible(s, m)]
    assert 25 <= sum(is_held_out(*c) for c in every) <= 40


def test_a_seed_always_gives_the_same_video() -> None:
    a, b = render(sample_scene(5)), render(sample_scene(5))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, render(sample_scene(6)))


def test_a_crop_equals_that_part_of_the_whole_frame() -> None:
    scene = sample_scene(3)
    whole = render(scene, height=192, width=320, frames=slice(4, 6))
    part = render(scene, height=192, width=320, frames=slice(4, 6), crop=(40, 100, 64, 80))
    np.testing.assert_allclose(part, whole[:, :, 40:104, 100:180], atol=2e-3)


@pytest.mark.parametrize("seed", range(8))
def test_a_small_rendering_is_the_large_one_downsampled(seed: int) -> None:
    scene = sample_scene(seed)
    large = render(scene, height=384, width=640, frames=slice(8, 9))
    small = render(scene, height=96, width=160, frames=slice(8, 9))
    boxed = large.reshape(1, 3, 96, 4, 160, 4).mean((3, 5))
    assert np.sqrt(np.mean((boxed - small) ** 2)) < 0.09


def test_objects_cover_4_to_25_percent_of_the_frame() -> None:
    for scene in SCENES:
        for thing in scene.things:
            assert min(thing.size) ** 2 / ASPECT >= 0.04 and max(thing.size) ** 2 / ASPECT <= 0.25


def test_moving_objects_travel_far_enough_and_stay_in_view() -> None:
    for scene in SCENES:
        thing = scene.things[0]
        dx, dy = abs(thing.stop[0] - thing.start[0]), abs(thing.stop[1] - thing.start[1])
        if scene.motion in ("moving left", "moving right"):
            assert dx >= 0.15 * ASPECT
        if scene.motion in ("moving up", "moving down"):
            assert dy >= 0.20
        if scene.motion == "bouncing":
            assert 2 * thing.bounce[0] >= 0.20  # up and down
        for x, y in (thing.start, thing.stop):
            assert 0.08 < x < ASPECT - 0.08 and 0.08 < y < 0.94


def test_growth_changes_the_area_at_least_1_6_times() -> None:
    for scene in SCENES:
        first, last = scene.things[0].size
        ratio = (last / first) ** 2
        if scene.motion == "growing":
            assert ratio >= 1.6
        elif scene.motion == "shrinking":
            assert ratio <= 1 / 1.6
        else:
            assert ratio == pytest.approx(1.0)


def test_spinning_stays_under_a_quarter_turn_in_8_frames() -> None:
    for scene in SCENES:
        turn = abs(scene.things[0].angle[1] - scene.things[0].angle[0])
        assert np.rad2deg(turn) * 8 / 16 < 90
        assert (turn > 0) == (scene.motion == "spinning")


def _hue(rgb: np.ndarray) -> float:
    r, g, b = rgb
    spread = rgb.max() - rgb.min()
    if rgb.max() == r:
        return 60 * ((g - b) / spread % 6)
    return 60 * ((b - r) / spread + 2) if rgb.max() == g else 60 * ((r - g) / spread + 4)


def test_objects_have_their_nominal_hue_and_backgrounds_never_have_it() -> None:
    for scene in SCENES:
        ground = BACKGROUNDS[scene.background]
        for thing in scene.things:
            nominal = COLORS[thing.color]
            if nominal is None:
                bright = ground.value > 0.7 if thing.color == "white" else ground.value < 0.3
                assert not bright
                continue
            assert abs((_hue(np.array(thing.rgb)) - nominal + 180) % 360 - 180) < 5
            if ground.saturation:
                assert abs((ground.hue - nominal + 180) % 360 - 180) > 20


def test_backgrounds_are_clearly_less_saturated_than_objects() -> None:
    for name, ground in BACKGROUNDS.items():
        assert ground.saturation + 0.04 < 0.5, name
    for scene in SCENES:
        rgb = np.array(scene.things[0].rgb)
        if COLORS[scene.things[0].color] is not None:
            assert (rgb.max() - rgb.min()) / rgb.max() > 0.85


@pytest.mark.parametrize("texture", TEXTURES)
def test_a_texture_varies_brightness_but_not_hue(texture: str) -> None:
    scene = next(
        s for s in SINGLE if s.things[0].texture == texture and COLORS[s.things[0].color] not in (None, 0.0)
    )
    frame = render(scene, height=192, width=320, frames=slice(8, 9))[0]
    inside = object_mask(scene, height=192, width=320)[8] > 0.99
    pixels = (frame[:, inside].T + 1) / 2
    hues = np.array([_hue(p) for p in pixels[::7]])
    nominal = COLORS[scene.things[0].color]
    assert nominal is not None and np.abs(hues - nominal).max() < 6
    assert (pixels.max(1).std() > 0.05) == (texture != "plain")


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_has_unit_area_and_its_centroid_at_the_origin(shape: str) -> None:
    steps = np.linspace(-1.5, 1.5, 601)
    u, v = np.meshgrid(steps, steps)
    inside = signed_distance(shape, u, v) < 0
    assert inside.mean() * 9 == pytest.approx(1.0, rel=0.02)
    assert abs(u[inside].mean()) < 0.01 and abs(v[inside].mean()) < 0.012


def test_an_unknown_shape_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="ball, square"):
        signed_distance("cube", np.zeros(1), np.zeros(1))


@pytest.mark.parametrize("background", sorted(BACKGROUNDS))
def test_backgrounds_hold_at_least_15_percent_of_their_energy_above_the_previews_nyquist_limit(
    background: str,
) -> None:
    scene = next(s for s in SCENES if s.background == background and not s.pan)
    empty = type(scene)(**{**vars(scene), "things": ()})
    frame = render(empty, height=384, width=640, frames=slice(0, 1))[0].mean(0)
    spectrum = np.abs(np.fft.fft2((frame - frame.mean()) * np.outer(np.hanning(384), np.hanning(640)))) ** 2
    fy, fx = np.abs(np.fft.fftfreq(384))[:, None], np.abs(np.fft.fftfreq(640))[None]
    above = spectrum[(fy > 0.125) | (fx > 0.125)].sum() / spectrum.sum()
    assert above >= 0.15


def test_hsv_agrees_with_the_primary_colours() -> None:
    np.testing.assert_allclose(hsv(0, 1, 1), [1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(hsv(120, 1, 0.5), [0, 0.5, 0], atol=1e-6)
    np.testing.assert_allclose(hsv(240, 0.5, 1), [0.5, 0.5, 1], atol=1e-6)


def test_captions_use_only_the_vocabulary_and_fit_the_text_length() -> None:
    known = vocabulary()
    for seed, scene in enumerate(SCENES):
        for text in (caption(scene, np.random.default_rng(seed)), full_caption(scene)):
            words = re.findall(r"\w+|,", text)
            assert set(words) <= known and len(words) <= 27, text


def test_captions_vary_and_may_leave_attributes_out() -> None:
    scene = next(s for s in SINGLE if s.things[0].color == "red")
    texts = {caption(scene, np.random.default_rng(seed)) for seed in range(200)}
    assert len(texts) > 30
    assert any("red" not in text for text in texts) and any("red" in text for text in texts)


def test_the_plain_caption_names_every_attribute() -> None:
    for scene in SINGLE:
        thing = scene.things[0]
        text = full_caption(scene)
        assert all(word in text for word in (thing.color, thing.shape, scene.motion, scene.background))


def test_a_second_object_stands_where_the_relation_says() -> None:
    seen = set()
    for seed in range(300):
        scene = sample_scene(seed, second_object=1.0)
        first, second = scene.things
        if scene.relation == "left of":
            assert max(first.start[0], first.stop[0]) < second.start[0]
        elif scene.relation == "above":
            assert max(first.start[1], first.stop[1]) < second.start[1]
        assert first.color != second.color
        seen.add(scene.relation)
    assert seen == {"left of", "above", "behind"}


def test_dead_leaves_move_and_depend_on_the_seed_alone() -> None:
    clip = render_leaves(1, height=48, width=64, num_frames=9)
    assert clip.shape == (9, 3, 48, 64) and clip.dtype == np.float32
    assert clip.min() >= -1 and clip.max() <= 1
    assert np.array_equal(clip, render_leaves(1, height=48, width=64, num_frames=9))
    moved = [
        np.abs(np.diff(render_leaves(s, height=48, width=64, num_frames=5), axis=0)).mean() for s in range(6)
    ]
    assert sum(m > 0.004 for m in moved) >= 3


def test_dead_leaves_have_a_natural_spectrum() -> None:
    slopes = []
    for seed in range(12):
        frame = render_leaves(seed, height=128, width=128, num_frames=1)[0].mean(0)
        spectrum = np.abs(np.fft.fft2((frame - frame.mean()) * np.outer(np.hanning(128), np.hanning(128))))
        radius = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.fftfreq(128)[None]) * 128
        bands = [spectrum[(radius >= r) & (radius < 1.5 * r)].mean() for r in (4, 8, 16, 32)]
        slopes.append(np.polyfit(np.log([4, 8, 16, 32]), np.log(bands), 1)[0])
    assert -2.0 < np.mean(slopes) < -0.8  # photographs: about -1


def test_moments_after_the_end_of_the_course_run_back_through_it() -> None:
    scene = sample_scene(3, second_object=0.0)
    size = {"height": 24, "width": 40}
    there = render(scene, times=(0.0, 0.25, 1.0), **size)
    back = render(scene, times=(2.0, 1.75, 3.0), **size)
    np.testing.assert_allclose(there, back, atol=1e-5)


def test_moments_are_the_frames_of_a_clip_of_that_many() -> None:
    scene = sample_scene(4, pan=1.0)
    size = {"height": 24, "width": 40}
    frames = render(scene, num_frames=5, **size)
    np.testing.assert_allclose(frames, render(scene, times=(0, 0.25, 0.5, 0.75, 1), **size), atol=1e-6)


def test_leaves_at_twice_the_speed_are_every_second_of_the_usual_frames() -> None:
    size = {"height": 32, "width": 48}
    usual = render_leaves(7, num_frames=9, **size)
    fast = render_leaves(7, num_frames=5, speed=2.0, **size)
    # Both are centred on the middle of their clips, half a frame apart at most.
    np.testing.assert_allclose(fast[1:4].mean(), usual[2:8].mean(), atol=0.02)
    assert np.abs(np.diff(fast, axis=0)).mean() > 1.3 * np.abs(np.diff(usual, axis=0)).mean()
