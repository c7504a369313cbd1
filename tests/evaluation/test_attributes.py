"""What prompts of the procedural world say, and whether a rendered video agrees with them."""

import numpy as np
import pytest
import torch

from flashvideo.data.captions import caption, full_caption
from flashvideo.data.shapes_world import render, sample_scene
from flashvideo.evaluation.attributes import (
    AGREEMENTS,
    agreement_with_prompt,
    expected_words,
    outline_margin_to_prompt,
)
from flashvideo.evaluation.readers import NOTHING, outline_margin, read_pan


def _clip(scene) -> torch.Tensor:
    return torch.from_numpy(render(scene))


def test_every_wording_of_a_scene_is_understood():
    for seed in range(300):
        scene = sample_scene(seed, second_object=0.5)
        for prompt in (full_caption(scene), caption(scene, np.random.default_rng(seed), drop=0.0)):
            expected = expected_words(prompt)
            assert expected is not None
            assert [(t.color, t.shape) for t in expected.things] == [(t.color, t.shape) for t in scene.things]
            assert (expected.motion, expected.background, expected.relation) == (
                scene.motion,
                scene.background,
                scene.relation,
            )
            if "camera" in prompt:
                assert expected.camera == ("right" if scene.pan > 0 else "left")


def test_a_caption_that_leaves_words_out_expects_nothing_else():
    for seed in range(200):
        scene = sample_scene(seed, second_object=0.0)
        expected = expected_words(caption(scene, np.random.default_rng(seed), drop=0.5))
        if expected is None:
            continue
        assert expected.motion in (None, scene.motion)
        assert expected.background in (None, scene.background)
        assert expected.things[0].shape in (None, scene.things[0].shape)


@pytest.mark.parametrize("prompt", ["", "a red car drives along a beach", "a thing"])
def test_a_prompt_that_says_nothing_in_the_worlds_words_is_not_judged(prompt):
    assert expected_words(prompt) is None
    assert agreement_with_prompt(torch.zeros(3, 3, 96, 160), prompt) == {}


def test_rendered_scenes_agree_with_their_captions():
    for seed in range(12):
        scene = sample_scene(90_000 + seed, second_object=0.0, pan=0.0)
        found = agreement_with_prompt(_clip(scene), full_caption(scene))
        assert found == dict.fromkeys(("scene", "object_class", "color", "motion", "all_attributes"), True)


def test_two_objects_and_their_relation_are_read_from_rendered_scenes():
    right, relations = [], set()
    for seed in range(24):
        scene = sample_scene(95_000 + seed, second_object=1.0, pan=0.0)
        found = agreement_with_prompt(_clip(scene), full_caption(scene))
        assert ("multiple_objects" in found) == (scene.relation != "behind")
        right += found.values()
        relations.add(scene.relation)
    assert np.mean(right) >= 0.97  # 299 scenes of 300 have all right
    assert relations == {"left of", "above", "behind"}


def test_an_outlines_margin_is_of_prompts_with_a_shape_and_one_object():
    scene = sample_scene(3, second_object=0.0)
    clip = _clip(scene)
    assert outline_margin_to_prompt(clip, full_caption(scene)) == outline_margin(clip, scene.things[0].shape)
    assert outline_margin_to_prompt(clip, "a cat on a sofa") is None
    two = next(s for s in map(sample_scene, range(50)) if len(s.things) == 2)
    assert outline_margin_to_prompt(clip, full_caption(two)) is None


def test_the_camera_is_read_from_rendered_scenes():
    scenes = [sample_scene(200_000 + seed, second_object=0.0, pan=1.0) for seed in range(16)]
    for scene in scenes:
        side = "right" if scene.pan > 0 else "left"
        found = agreement_with_prompt(_clip(scene), f"a thing, the camera pans {side}")
        assert found["camera"]
        assert not agreement_with_prompt(_clip(scene).flip(-1), f"a thing, the camera pans {side}")["camera"]


def test_what_stands_still_pans_nowhere():
    clip = _clip(sample_scene(1, second_object=0.0, pan=0.0))[:1].repeat(5, 1, 1, 1)
    assert read_pan(clip) == NOTHING


def test_of_a_still_the_motion_is_not_judged():
    scene = sample_scene(5, second_object=0.0, pan=0.0)
    found = agreement_with_prompt(_clip(scene)[:1], full_caption(scene))
    assert "motion" not in found
    assert found["scene"]


def test_one_object_is_not_two_of_a_kind():
    scene = sample_scene(10, second_object=0.0, pan=0.0)
    shape = scene.things[0].shape
    found = agreement_with_prompt(_clip(scene), f"a {shape} left of a {shape}")
    assert found == {"multiple_objects": False, "spatial_relationship": False, "all_attributes": False}
    assert not agreement_with_prompt(_clip(scene), "an object behind a thing")["spatial_relationship"]


def test_exchanged_objects_do_not_stand_in_the_relation():
    scene = next(
        s
        for seed in range(99_000, 99_100)
        if (s := sample_scene(seed, second_object=1.0, pan=0.0)).relation == "left of"
    )
    mirrored = _clip(scene).flip(-1)
    found = agreement_with_prompt(mirrored, full_caption(scene))
    assert not found["spatial_relationship"]
    assert found["multiple_objects"]


def test_another_scene_does_not_agree():
    one, other = (sample_scene(seed, second_object=0.0, pan=0.0) for seed in (1, 2))
    assert one.background != other.background
    found = agreement_with_prompt(_clip(one), full_caption(other))
    assert not found["scene"]
    assert not found["all_attributes"]


def test_every_agreement_has_a_label():
    scenes = [sample_scene(95_000 + seed, second_object=float(seed % 2), pan=0.0) for seed in range(8)]
    prompts = {full_caption(scene) + ", the camera pans left": scene for scene in scenes}
    names = {
        name for prompt, scene in prompts.items() for name in agreement_with_prompt(_clip(scene), prompt)
    }
    assert names == set(AGREEMENTS)
