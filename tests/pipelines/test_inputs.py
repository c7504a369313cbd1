"""What the pipelines accept, and what they say to the rest."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from flashvideo.pipelines.inputs import generator_or_fresh, log_prompt_limits, peek, read_preset, to_pixels
from flashvideo.pipelines.outputs import postprocess_frames
from flashvideo.presets import NANO
from flashvideo.text import build_word_tokenizer


def test_a_batch_of_clips_is_taken_as_it_is():
    pixels = torch.zeros(2, 5, 3, 4, 6)
    assert to_pixels(pixels) is pixels


def test_one_clip_becomes_a_batch_of_one():
    assert to_pixels(torch.zeros(5, 3, 4, 6)).shape == (1, 5, 3, 4, 6)


@pytest.mark.parametrize(
    "frame",
    [
        Image.new("RGB", (6, 4), (255, 0, 51)),
        np.tile(np.array([255, 0, 51], dtype=np.uint8), (4, 6, 1)),
        torch.tensor([1.0, -1.0, -0.6]).view(3, 1, 1).expand(3, 4, 6),
    ],
    ids=["Pillow image", "uint8 array", "float tensor"],
)
def test_a_list_of_frames_becomes_pixels(frame):
    pixels = to_pixels([frame, frame])
    assert pixels.shape == (1, 2, 3, 4, 6)
    torch.testing.assert_close(pixels[0, 1, :, 0, 0], torch.tensor([1.0, -1.0, -0.6]))


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (
            torch.zeros(5, 3, 4, 6, dtype=torch.uint8),
            r"floats in \[-1, 1\], got torch.uint8; use levels / 127.5 - 1",
        ),
        (torch.full((5, 3, 4, 6), 255.0), r"must lie in \[-1, 1\], got values up to 255"),
        (torch.full((5, 3, 4, 6), float("nan")), "got values up to nan"),
        (torch.zeros(5, 4, 6, 3), r"shape \(B, F, 3, H, W\) or .*got \(5, 4, 6, 3\)"),
        (torch.zeros(3, 4, 6), r"a picture is a video of one frame"),
        (torch.zeros(0, 3, 4, 6), "none of it 0"),
        ([], "non-empty list of frames"),
        ("clip.mp4", "got str"),
        ([np.zeros((4, 6, 3), dtype=np.float32)], r"got ndarray float32 \(4, 6, 3\)"),
        ([Image.new("RGB", (6, 4)), Image.new("RGB", (4, 4))], "frames of one size"),
    ],
)
def test_what_is_not_a_video_is_refused(video, message):
    with pytest.raises(ValueError, match=message):
        to_pixels(video)


def test_a_look_at_the_first_frame_loses_none():
    first, frames = peek(torch.full((3, 2, 2), float(i) / 4) for i in range(4))
    assert first.max() == 0
    assert [frame.max().item() for frame in frames] == [0, 0.25, 0.5, 0.75]


def test_a_frame_of_another_size_is_refused_when_it_comes():
    _, frames = peek([torch.zeros(3, 2, 2), torch.zeros(3, 2, 4)])
    next(frames)
    with pytest.raises(ValueError, match=r"of one size, got \(3, 2, 2\) and \(3, 2, 4\)"):
        next(frames)


def test_a_given_generator_is_used_and_a_fresh_one_follows_the_global_seed(generator):
    assert generator_or_fresh(generator) is generator
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        first = generator_or_fresh(None).initial_seed()
        second = generator_or_fresh(None).initial_seed()
        torch.manual_seed(3)
        assert generator_or_fresh(None).initial_seed() == first != second


def test_unknown_words_and_what_is_cut_are_logged(caplog):
    tokenizer = build_word_tokenizer(["a", "red", "circle"])
    with caplog.at_level(logging.WARNING):
        log_prompt_limits(["a red zebra"], tokenizer, max_text_tokens=3)
    assert [record.message for record in caplog.records] == [
        "this model has no word for zebra; it ignores them in 'a red zebra'",
        "the prompt is longer than 3 tokens, this is cut off: zebra",
    ]


def test_a_preset_is_read_from_what_it_was_stored_as():
    assert read_preset(NANO) is NANO
    assert read_preset(NANO.to_dict()) == NANO
    with pytest.raises(ValueError, match="preset must be a Preset"):
        read_preset(None)


def test_frames_come_in_the_form_asked_for():
    pixels = torch.tensor([1.0, -1.0, 0.2]).view(1, 1, 3, 1, 1).expand(2, 5, 3, 4, 6)
    assert postprocess_frames(pixels, "pt") is pixels
    array = postprocess_frames(pixels, "np")
    assert array.shape == (2, 5, 4, 6, 3)
    np.testing.assert_allclose(array[0, 0, 0, 0], [1, 0, 0.6], atol=1e-6)
    clips = postprocess_frames(pixels, "pil")
    assert (len(clips), len(clips[0]), clips[0][0].size) == (2, 5, (6, 4))
    assert clips[1][4].getpixel((0, 0)) == (255, 0, 153)
