"""The table of what a video is scored with."""

import math

import pytest
import torch

from flashvideo.data.captions import full_caption
from flashvideo.data.shapes_world import render, sample_scene
from flashvideo.evaluation.measures import MEASURES, Subject, score, some

SCENE = sample_scene(7, second_object=0.0, pan=0.0)
LARGE = torch.from_numpy(render(SCENE, height=192, width=320))
SMALL = torch.from_numpy(render(SCENE, height=96, width=160))


def test_names_are_unique():
    assert len({measure.name for measure in MEASURES}) == len(MEASURES)


def test_without_more_than_the_video_only_what_needs_nothing_is_computed():
    expected = {measure.name for measure in MEASURES if not measure.needs}
    assert set(score(Subject(frames=LARGE))) == expected


def test_with_all_that_can_be_known_all_is_computed():
    numbers = score(Subject(frames=LARGE, reference=LARGE, source=SMALL, prompt=full_caption(SCENE)))
    others = {"multiple_objects", "spatial_relationship", "camera", "own_warping"}
    assert set(numbers) == {measure.name for measure in MEASURES} - others
    assert all(math.isfinite(number) for number in numbers.values())


def test_the_truth_itself_is_perfect():
    numbers = score(Subject(frames=LARGE, reference=LARGE, prompt=full_caption(SCENE)))
    assert numbers["psnr"] == 100  # in place of infinity
    assert numbers["ssim"] == pytest.approx(1)
    assert numbers["gmsd"] == numbers["filter_bank"] == numbers["frame_difference"] == 0
    assert numbers["gradient_energy"] == 1
    assert numbers["all_attributes"] == 1


def test_a_single_small_frame_is_scored_with_what_has_a_meaning():
    names = set(score(Subject(frames=SMALL[:1])))
    assert "high_frequency" in names
    assert not names & {"niqe", "flicker", "temporal_flickering"}


def test_frames_without_contrast_leave_out_what_is_no_number():
    assert "niqe" not in score(Subject(frames=torch.zeros(2, 3, 192, 192)))


def test_black_frames_do_not_take_the_others_niqe():
    faded = LARGE.clone()
    faded[0] = -1
    assert score(Subject(frames=faded))["niqe"] > 0


def test_some_frames_are_spread_over_the_clip():
    clip = torch.arange(100.0).reshape(100, 1, 1, 1)
    chosen = some(clip).flatten().tolist()
    assert len(chosen) == 8
    assert (chosen[0], chosen[-1]) == (0, 99)
    assert some(clip[:3]).flatten().tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("known", "sentence"),
    [
        ({"reference": SMALL}, "reference must have the shape of the video"),
        (
            {"source": torch.zeros(17, 3, 193, 320)},
            "source must not be larger than the video, 320x192, got 320x193",
        ),
        ({"source": SMALL[:5]}, "source must have as many frames as the video, 17, got 5"),
    ],
)
def test_what_does_not_fit_the_video_is_one_sentence(known, sentence):
    with pytest.raises(ValueError, match=sentence):
        Subject(frames=LARGE, **known)
