"""Windows: where they lie, what a clip's end looks like, how they are joined, and the noise that they share."""

import pytest
import torch

from flashvideo.pipelines.windows import (
    NoiseField,
    check_windows,
    cross_fade,
    iterate_windows,
    reflect_indices,
)


def numbered_frames(num_frames):
    """Frames (1, 1, 1, 1) whose only value is their position."""
    return (torch.full((1, 1, 1, 1), float(i)) for i in range(num_frames))


def windows_of(num_frames, *, window=9, overlap=5):
    return list(
        iterate_windows(numbered_frames(num_frames), window=window, overlap=overlap, temporal_factor=4)
    )


def positions(window):
    return window.frames.flatten().int().tolist()


@pytest.mark.parametrize("num_frames", [1, 5, 9])
def test_a_clip_that_fits_is_one_window_of_its_own_length(num_frames):
    (only,) = windows_of(num_frames)
    assert positions(only) == list(range(num_frames))
    assert (only.start, only.num_valid) == (0, num_frames)


@pytest.mark.parametrize(
    ("num_frames", "expected"),
    [(2, [0, 1, 0, 1, 0]), (3, [0, 1, 2, 1, 0]), (8, [0, 1, 2, 3, 4, 5, 6, 7, 6])],
)
def test_a_clip_is_mirrored_to_the_next_length_of_the_vae(num_frames, expected):
    (only,) = windows_of(num_frames)
    assert positions(only) == expected
    assert only.num_valid == num_frames


@pytest.mark.parametrize(
    ("num_frames", "starts"), [(10, [0, 4]), (13, [0, 4]), (14, [0, 4, 8]), (30, [0, 4, 8, 12, 16, 20, 24])]
)
def test_windows_start_on_the_time_grid_and_end_with_the_clip(num_frames, starts):
    windows = windows_of(num_frames)
    assert [window.start for window in windows] == starts
    assert all(window.frames.shape[1] == 9 for window in windows)
    assert windows[-1].start + windows[-1].num_valid == num_frames


def test_the_last_window_moves_back_rather_than_being_short():
    windows = windows_of(22, window=17, overlap=5)
    assert [window.start for window in windows] == [0, 8]
    assert positions(windows[1]) == [*range(8, 22), 20, 19, 18]
    assert windows[1].num_valid == 14


@pytest.mark.parametrize("num_frames", range(1, 60))
def test_joined_windows_are_the_clip(num_frames):
    windows = windows_of(num_frames, window=17, overlap=5)
    pieces = [(window.start, window.frames[:, : window.num_valid]) for window in windows]
    joined = torch.cat(list(cross_fade(pieces, overlap=5)), dim=1)
    torch.testing.assert_close(joined.flatten(), torch.arange(num_frames, dtype=torch.float32))


def test_windows_look_no_further_ahead_than_the_next_window():
    reached = 0

    def frames():
        nonlocal reached
        for frame in numbered_frames(1000):
            reached += 1
            yield frame

    windows = iterate_windows(frames(), window=17, overlap=5, temporal_factor=4)
    next(windows)
    assert reached <= 17 + 12 + 1
    next(windows)
    assert reached <= 17 + 24 + 1


def test_a_clip_without_frames_is_refused():
    with pytest.raises(ValueError, match="at least one frame"):
        windows_of(0)


@pytest.mark.parametrize(
    ("window", "overlap", "message"),
    [
        (16, 5, r"window must be 4k\+1 frames, .*got 16; try 17"),
        (17, 4, r"overlap must be 4k\+1 frames, .*got 4; try 5"),
        (17, 0, "got 0; try 1"),
        (5, 5, "overlap must be shorter than the window of 5 frames, got 5"),
    ],
)
def test_windows_off_the_time_grid_are_refused(window, overlap, message):
    with pytest.raises(ValueError, match=message):
        check_windows(window, overlap, temporal_factor=4)


def test_one_piece_fades_linearly_into_the_next():
    old, new = torch.zeros(1, 6, 1, 1, 1), torch.ones(1, 6, 1, 1, 1)
    joined = torch.cat(list(cross_fade([(0, old), (3, new)], overlap=3)), dim=1)
    torch.testing.assert_close(joined.flatten(), torch.tensor([0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1]))


def test_behind_the_fade_only_the_newer_piece_counts():
    old, new = torch.zeros(1, 6, 1, 1, 1), torch.ones(1, 6, 1, 1, 1)
    joined = torch.cat(list(cross_fade([(0, old), (2, new)], overlap=1)), dim=1)
    torch.testing.assert_close(joined.flatten(), torch.tensor([0, 0, 0.5, 1, 1, 1, 1, 1]))


def test_reflection_goes_back_and_forth():
    assert reflect_indices(3, 9) == [0, 1, 2, 1, 0, 1, 2, 1, 0]
    assert reflect_indices(1, 3) == [0, 0, 0]
    assert reflect_indices(4, 4) == [0, 1, 2, 3]


def test_windows_share_the_noise_of_the_latent_frames_that_they_share(generator):
    field, cpu = NoiseField(generator), torch.device("cpu")
    first = field.take(0, (1, 5, 2, 3, 4), device=cpu)
    second = field.take(3, (1, 5, 2, 3, 4), device=cpu)
    assert torch.equal(first[:, 3:], second[:, :2])
    assert not torch.equal(first[:, :3], second[:, 2:])


def test_noise_of_the_first_window_is_a_plain_draw(generator, seeded):
    noise = NoiseField(generator).take(0, (2, 5, 2, 3, 4), device=torch.device("cpu"))
    assert torch.equal(noise, torch.randn(2, 5, 2, 3, 4, generator=seeded(0)))
