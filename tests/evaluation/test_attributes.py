"""What prompts of the procedural world say, and whether a rendered video agrees with them."""

import numpy as np
import pytest
import torch

from flashvideo.data.captions import caption, full_caption
from flashvideo.data.shapes_world import render, sample_scene
from flashvideo.evaluation.attributes import AGREEMENTS, agreement_with_prompt, expected_words


def _clip(scene) -> torch.Tensor:
    return torch.from_numpy(render(scene))


def test_every_wording_of_a_scene_is_understood():
    for seed in range(400):
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
    for seed in range(20):
        scene = sample_scene(90_000 + seed, second_object=0.0, pan=0.0)
        found = agreement_with_prompt(_clip(scene), full_caption(scene))
        assert found == dict.fromkeys(("scene", "object_class", "color", "motion", "all_attributes"), True)


def test_two_objects_and_their_relation_are_read_from_rendered_scenes():
    right, relations = [], set()
    for seed in range(40):
        scene = sample_scene(95_000 + seed, second_object=1.0, pan=0.0)
        found = agreement_with_prompt(_clip(scene), full_caption(scene))
        assert ("multiple_objects" in found) == (scene.relation != "behind")
        right += found.values()
        relations.add(scene.relation)
    assert np.mean(right) >= 0.97  # 299 scenes of 300 have all right
    assert relations == {"left of", "above", "behind"}


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
    names = {name for scene in scenes for name in agreement_with_prompt(_clip(scene), full_caption(scene))}
    assert names == set(AGREEMENTS)
