"""Warping error against closed forms, with flows that are given and flows that OpenCV estimates."""

import sys

import pytest
import torch

from flashvideo.evaluation import metrics
from flashvideo.evaluation.measures import Subject
from flashvideo.evaluation.optical_flow import optical_flow, warping


def texture(height, width, *, seed=0):
    """A smooth random picture (3, H, W), whose detail is about four pixels wide."""
    noise = torch.rand(1, 3, height // 4, width // 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    resized = torch.nn.functional.interpolate(noise, (height, width), mode="bicubic", align_corners=False)
    return resized[0].clamp(-1, 1)


def moving(right, down, *, num_frames=3, height=64, width=96):
    """A clip whose whole picture moves by whole pixels per frame, with new content at the edges."""
    picture = texture(height + 32, width + 32)
    starts = [(16 - t * down, 16 - t * right) for t in range(num_frames)]
    return torch.stack([picture[:, y : y + height, x : x + width] for y, x in starts])


def constant_flow(right, down, num_pairs, height, width):
    return torch.tensor([right, down], dtype=torch.float32)[None, :, None, None].expand(
        num_pairs, 2, height, width
    )


def everywhere(flow):
    return torch.ones(*flow.shape[:-3], *flow.shape[-2:], dtype=torch.bool)


# --- flow that is given -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("right", "down"), [(2, 1), (-3, 2)])
def test_a_clip_that_follows_its_flow_has_no_error(right, down):
    clip = moving(right, down)
    flow = constant_flow(right, down, 2, 64, 96)
    visible = metrics.visible_mask(flow, -flow)
    assert metrics.warping_error(clip, flow, visible).item() == pytest.approx(0, abs=1e-6)
    assert metrics.warping_error(clip, -flow, metrics.visible_mask(-flow, flow)).item() > 1


def test_flicker_without_motion_has_the_square_of_its_amplitude_in_thousandths():
    steps = torch.tensor([0.0, 0.2, 0.0, 0.2])[:, None, None, None]  # 0.1 where frames are in [0, 1]
    clip = texture(16, 24) * 0.5 + steps
    flow = torch.zeros(3, 2, 16, 24)
    assert metrics.warping_error(clip, flow, everywhere(flow)).item() == pytest.approx(10, rel=1e-4)


def test_a_ramp_is_sampled_between_pixels():
    ramp = torch.linspace(-1, 1, 41).expand(3, 8, 41)  # 0.025 per pixel where frames are in [0, 1]
    flow = constant_flow(0.5, 0, 1, 8, 41)
    visible = metrics.visible_mask(flow, -flow)
    error = metrics.warping_error(torch.stack([ramp, ramp]), flow, visible)
    assert error.item() == pytest.approx(1000 * 0.0125**2, rel=1e-4)


def test_clips_of_a_batch_are_measured_one_by_one():
    clips = torch.stack([moving(2, 1), moving(2, 1) * 0.5, texture(64, 96).expand(3, 3, 64, 96)])
    flow = constant_flow(2, 1, 2, 64, 96).expand(3, 2, 2, 64, 96)
    visible = metrics.visible_mask(flow, -flow)
    together = metrics.warping_error(clips, flow, visible)
    alone = [metrics.warping_error(*parts) for parts in zip(clips, flow, visible, strict=True)]
    torch.testing.assert_close(together, torch.stack(alone))
    assert together.shape == (3,)


def test_only_visible_pixels_count():
    clip = torch.zeros(2, 3, 8, 8)
    clip[1, :, :, :4] = 2.0
    flow = torch.zeros(1, 2, 8, 8)
    visible = torch.zeros(1, 8, 8, dtype=torch.bool)
    visible[..., 4:] = True
    assert metrics.warping_error(clip, flow, visible).item() == 0
    assert metrics.warping_error(clip, flow, ~visible).item() == 1000


def test_a_pair_without_a_visible_pixel_is_left_out():
    clip = torch.zeros(3, 3, 8, 8)
    clip[2] = 2.0
    flow = torch.zeros(2, 2, 8, 8)
    visible = everywhere(flow)
    visible[0] = False
    assert metrics.warping_error(clip, flow, visible).item() == 1000
    assert metrics.warping_error(clip, flow, torch.zeros_like(visible)).isnan()


def test_pixels_that_leave_the_frame_are_not_visible():
    flow = constant_flow(3, -2, 1, 16, 24)
    expected = torch.zeros(1, 16, 24, dtype=torch.bool)
    expected[:, 2:, :-3] = True
    assert torch.equal(metrics.visible_mask(flow, -flow), expected)


def test_pixels_whose_flow_does_not_return_are_not_visible():
    forward = torch.zeros(1, 2, 16, 24)
    backward = forward.clone()
    backward[..., :8] = 0.8  # its square, of both directions, is more than half a pixel
    visible = metrics.visible_mask(forward, backward)
    assert not visible[..., :8].any()
    assert visible[..., 8:].all()


def test_the_way_back_is_that_of_the_place_where_a_pixel_went():
    forward, backward = torch.zeros(2, 1, 2, 16, 24)
    forward[:, 0, :, 4:8] = 4
    backward[:, 0, :, 8:12] = -4
    visible = metrics.visible_mask(forward, backward)
    assert visible[..., 4:7].all()
    assert not visible[..., 8:12].any()  # covered by what went there


def test_pixels_at_a_boundary_of_motion_are_not_visible():
    flow = torch.zeros(1, 2, 16, 24)
    flow[:, 0, :, 12:] = 0.3  # both directions agree to half a pixel everywhere
    visible = metrics.visible_mask(flow, -flow)
    assert not visible[..., 11].any()
    assert visible[..., :11].all() and visible[..., 12:-1].all()


@pytest.mark.parametrize(
    ("clip", "flow", "visible", "message"),
    [
        ((1, 3, 8, 8), (0, 2, 8, 8), (0, 8, 8), "at least 2 frames, got 1"),
        ((3, 3, 8, 8), (3, 2, 8, 8), (2, 8, 8), r"flow must be floats of the shape \(2, 2, 8, 8\)"),
        (
            (3, 3, 8, 8),
            (2, 2, 8, 8),
            (2, 8, 9),
            r"visible must be of type torch\.bool and of the shape \(2, 8, 8\)",
        ),
        ((3, 3, 1, 8), (2, 2, 1, 8), (2, 1, 8), "at least 2x2 pixels, got 1x8"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(clip, flow, visible, message):
    with pytest.raises(ValueError, match=message):
        metrics.warping_error(torch.zeros(clip), torch.zeros(flow), torch.zeros(visible, dtype=torch.bool))


def test_flows_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="forward must have the shape"):
        metrics.visible_mask(torch.zeros(2, 8, 8), torch.zeros(2, 8, 8))
    with pytest.raises(ValueError, match="backward must be floats of the shape"):
        metrics.visible_mask(torch.zeros(1, 2, 8, 8), torch.zeros(2, 2, 8, 8))
    with pytest.raises(ValueError, match="flow holds NaN or infinite values"):
        metrics.warping_error(
            torch.zeros(2, 3, 8, 8),
            torch.full((1, 2, 8, 8), torch.nan),
            torch.ones(1, 8, 8, dtype=torch.bool),
        )


# --- flow that OpenCV estimates ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("right", "down"), [(2, 1), (3, -2)])
def test_the_flow_of_a_translation_is_the_translation(right, down):
    pytest.importorskip("cv2")
    forward, backward = optical_flow(moving(right, down))
    expected = torch.tensor([right, down], dtype=torch.float32)
    assert forward.shape == backward.shape == (2, 2, 64, 96)
    torch.testing.assert_close(forward.mean(dim=(0, 2, 3)), expected, atol=0.05, rtol=0)
    torch.testing.assert_close(backward.mean(dim=(0, 2, 3)), -expected, atol=0.05, rtol=0)


def test_a_translation_hardly_has_an_error_and_flicker_has_its_closed_form():
    pytest.importorskip("cv2")
    clip = moving(2, 1, num_frames=4) * 0.5
    assert warping(Subject(frames=clip)) < 0.02
    flickering = clip + torch.tensor([0.0, 0.2, 0.0, 0.2])[:, None, None, None]
    assert warping(Subject(frames=flickering, reference=clip)) == pytest.approx(10, rel=0.02)
    assert warping(Subject(frames=flickering)) == pytest.approx(10, rel=0.02)


def test_what_a_moving_object_uncovers_does_not_count():
    pytest.importorskip("cv2")
    ground, thing = texture(64, 96), texture(24, 24, seed=1)
    clip = ground.repeat(2, 1, 1, 1)
    for time, left in enumerate((30, 38)):
        clip[time, :, 20:44, left : left + 24] = thing
    forward, backward = optical_flow(clip)
    visible = metrics.visible_mask(forward, backward)
    assert visible[0, 24:40, 55:61].float().mean() < 0.25  # covered in the second frame
    assert visible.float().mean() > 0.8
    masked = metrics.warping_error(clip, forward, visible)
    assert masked < 0.2 * metrics.warping_error(clip, forward, everywhere(forward))


def test_the_flow_is_the_references_where_there_is_one():
    pytest.importorskip("cv2")
    clip = moving(3, 0)
    standing = clip[:1].expand(3, -1, -1, -1)
    assert warping(Subject(frames=standing)) == pytest.approx(0, abs=0.01)
    assert warping(Subject(frames=standing, reference=clip)) > 1


@pytest.mark.parametrize("shape", [(1, 3, 64, 96), (3, 3, 15, 96)])
def test_single_and_small_frames_have_no_warping_error(shape):
    assert warping(Subject(frames=torch.zeros(shape))) is None


def test_a_clip_without_a_pixel_to_follow_has_no_warping_error(monkeypatch):
    pytest.importorskip("cv2")
    nothing = torch.zeros(1, 64, 96, dtype=torch.bool)
    monkeypatch.setattr("flashvideo.evaluation.optical_flow.visible_mask", lambda forward, backward: nothing)
    assert warping(Subject(frames=moving(2, 1))) is None


def test_clips_without_flow_are_refused():
    pytest.importorskip("cv2")
    for shape in [(1, 3, 64, 96), (3, 3, 64, 12), (1, 3, 3, 64, 96)]:
        with pytest.raises(ValueError, match="F at least 2, H and W at least 16"):
            optical_flow(torch.zeros(shape))


def test_a_missing_opencv_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r"needs OpenCV.*pip install 'flashvideo\[evaluate\]'"):
        optical_flow(moving(2, 1))
