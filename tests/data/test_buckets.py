"""Which bucket a clip goes to, how it is cut to it, and which samples make up which batch."""

import numpy as np
import pytest
import torch

from flashvideo.data.clips.bucket_sampler import BucketBatches, Group
from flashvideo.data.clips.buckets import Bucket, choose_bucket, fit_frames, place
from flashvideo.data.clips.files import ClipError


def bucket(num_frames, height, width):
    return Bucket(num_frames=num_frames, height=height, width=width)


WIDE, TALL, SQUARE = bucket(17, 64, 112), bucket(17, 112, 64), bucket(17, 80, 80)


def chosen(buckets, height, width, num_frames=100, max_upscale=1.0):
    return choose_bucket(buckets, num_frames=num_frames, height=height, width=width, max_upscale=max_upscale)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(1080, 1920, WIDE), (1920, 1080, TALL), (500, 600, SQUARE), (600, 500, SQUARE), (200, 400, WIDE)],
)
def test_a_clip_goes_to_the_bucket_nearest_in_aspect_ratio(height, width, expected):
    assert chosen([WIDE, TALL, SQUARE], height, width) == expected


def test_of_equally_near_buckets_it_is_the_largest_that_the_clip_fills():
    small, large, long = bucket(17, 64, 112), bucket(17, 128, 224), bucket(49, 96, 168)
    every = [small, large, long]
    assert chosen(every, 1080, 1920) == long
    assert chosen(every, 1080, 1920, num_frames=48) == large
    assert chosen(every, 100, 180, num_frames=48) == small
    assert chosen(every, 64, 112) == small


def test_a_clip_that_fills_no_bucket_is_left_out_with_a_reason():
    with pytest.raises(
        ClipError, match=r"too small: 32x56 would be enlarged 2\.00 times for 17x64x112, at most 1\.5"
    ):
        chosen([WIDE, SQUARE], 32, 56, max_upscale=1.5)
    assert chosen([WIDE, SQUARE], 32, 56, max_upscale=2.0) == WIDE
    with pytest.raises(ClipError, match="too short: it gives 16 frames, 17 are wanted"):
        chosen([WIDE], 1080, 1920, num_frames=16)


@pytest.mark.parametrize(("height", "width"), [(64, 112), (65, 112), (90, 130), (300, 200), (31, 57)])
def test_a_frame_covers_its_bucket_and_no_more_than_it_must(height, width):
    for seed in (None, 0, 1):
        placed = place(height, width, WIDE, None if seed is None else np.random.default_rng(seed))
        assert placed.resized[0] == 64 or placed.resized[1] == 112
        assert fit_frames(torch.zeros(2, 3, height, width), placed).shape == (2, 3, 64, 112)
        if seed is None:
            assert (placed.top, placed.left) == (
                (placed.resized[0] - 64) // 2,
                (placed.resized[1] - 112) // 2,
            )


def test_crops_are_drawn_from_all_that_are_possible():
    rng = np.random.default_rng(0)
    tops = {place(67, 112, WIDE, rng).top for _ in range(50)}
    assert tops == {0, 1, 2, 3}


def test_a_frame_is_not_stretched():
    frame = torch.zeros(1, 3, 100, 300)
    frame[..., 100:200] = 1.0  # a square of 100 in the middle
    fitted = fit_frames(frame, place(100, 300, bucket(1, 50, 100), None))
    assert fitted[0, 0, 25].gt(0.5).sum() == 50


# --- Batches ----------------------------------------------------------------------------------------------------------


def group(start, count, *, is_image=False, weights=1.0):
    return Group(items=np.arange(start, start + count), weights=np.full(count, weights), is_image=is_image)


def sampler(groups, **options):
    settings = {"batch_size": 4, "seed": 3} | options
    return BucketBatches(groups, **{"num_items": sum(len(g.items) for g in groups)} | settings)


def group_of(groups, sample, num_items):
    return next(i for i, g in enumerate(groups) if sample % num_items in g.items)


MIXED = [group(0, 60), group(60, 21), group(81, 9, is_image=True), group(90, 10, is_image=True)]


def test_all_samples_of_a_batch_are_of_one_bucket():
    batches = sampler(MIXED, image_share=0.3)
    for number in range(150):
        groups = {group_of(MIXED, sample, 100) for sample in batches.batch(number)}
        assert groups == {batches.group_of(number)}


def test_batches_depend_on_the_seed_alone_and_a_run_resumes_at_any_of_them():
    first, resumed = sampler(MIXED, image_share=0.3), sampler(MIXED, image_share=0.3)
    other = sampler(MIXED, image_share=0.3, seed=4)
    whole = [first.batch(number) for number in range(250)]
    assert [resumed.batch(number) for number in range(171, 250)] == whole[171:]
    assert [other.batch(number) for number in range(250)] != whole


def test_no_sample_ever_comes_twice_and_no_clip_again_before_all_of_its_bucket():
    samples = {0: [], 1: [], 2: [], 3: []}
    batches = sampler(MIXED, image_share=0.3)
    for number in range(200):
        samples[batches.group_of(number)] += batches.batch(number)
    every = [sample for dealt in samples.values() for sample in dealt]
    assert len(set(every)) == len(every) == 800
    for number, g in enumerate(MIXED):
        dealt = [sample % 100 for sample in samples[number]]
        for start in range(0, len(dealt) - len(g.items) + 1, len(g.items)):
            assert sorted(dealt[start : start + len(g.items)]) == g.items.tolist()
    assert samples[0][:60] != [sample % 100 for sample in samples[0][60:120]]  # in another order each time


def test_pictures_have_their_share_of_the_batches_and_buckets_that_of_their_clips():
    batches = sampler(MIXED, image_share=0.3)
    counts = np.bincount([batches.group_of(number) for number in range(1000)], minlength=4)
    assert counts[2:].sum() == 300
    assert np.allclose(counts / 1000, [0.7 * 60 / 81, 0.7 * 21 / 81, 0.3 * 9 / 19, 0.3 * 10 / 19], atol=0.01)


@pytest.mark.parametrize(("share", "groups"), [(0.0, {0, 1}), (1.0, {2, 3})])
def test_a_share_of_none_or_all_leaves_the_others_out(share, groups):
    batches = sampler(MIXED, image_share=share)
    samples = [sample for number in range(120) for sample in batches.batch(number)]
    assert {group_of(MIXED, sample, 100) for sample in samples} == groups


def test_clips_of_twice_the_weight_come_twice_as_often():
    weights = np.concatenate([np.full(10, 1.0), np.full(10, 2.0), np.full(10, 1.5)])
    batches = sampler(
        [Group(items=np.arange(30), weights=weights, is_image=False)], batch_size=45, num_items=30
    )
    samples = [sample for number in range(4) for sample in batches.batch(number)]
    assert len(set(samples)) == len(samples)
    counts = np.bincount([sample % 30 for sample in samples])
    assert counts[:10].tolist() == [4] * 10
    assert counts[10:20].tolist() == [8] * 10
    assert counts[20:].sum() == 60 and counts[20:].min() >= 4


def test_the_draws_of_a_seed_are_these():
    # A run that is resumed with a later version goes on with the samples that it would have seen.
    groups = [Group(items=np.arange(4), weights=np.array([1, 2, 1, 1.5]), is_image=False), group(4, 2)]
    batches = sampler(groups, batch_size=6)
    assert [batches.batch(number) for number in range(5)] == [
        [1, 0, 3, 2, 7, 9],
        [18, 19, 25, 21, 27, 20],
        [39, 43, 38, 36, 45, 37],
        [4, 5, 22, 23, 40, 41],
        [59, 58, 76, 77, 95, 94],
    ]


def test_fewer_clips_than_a_batch_still_fill_it_with_samples_that_differ():
    tiny = [group(0, 3), group(3, 1)]
    batches = sampler(tiny, batch_size=16)
    for number in range(30):
        assert len(set(batches.batch(number))) == 16


def test_a_clip_alone_in_its_bucket_comes_as_often_as_the_others():
    batches = sampler([group(0, 600), group(600, 1)], batch_size=64)
    lone = [number for number in range(601) if batches.group_of(number) == 1]
    assert len(lone) == 1  # of 64 samples, as each of the others has in 601 batches


def test_one_pass_is_as_many_batches_as_show_each_clip_once():
    assert sampler([group(0, 60)]).batches_per_pass == 15
    assert sampler([group(0, 60), group(60, 40, is_image=True)], image_share=0.5).batches_per_pass == 30


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"image_share": 1.0}, "there is nothing to draw batches from"),
    ],
)
def test_numbers_out_of_their_range_are_one_sentence(options, expected):
    with pytest.raises(ValueError, match=expected):
        sampler([group(0, 5)], **options)
