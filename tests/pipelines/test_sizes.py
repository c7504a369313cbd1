"""Sizes: their names, the preview that belongs to each, and that a video has exactly the size asked for."""

import dataclasses
import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashvideo.pipelines.consistency import keep_consistent
from flashvideo.pipelines.preview import load_preview, save_preview
from flashvideo.pipelines.settings import EnhanceSettings, complete_settings
from flashvideo.pipelines.sizes import (
    SHORT_SIDES,
    crop_offset,
    enlarged_size,
    final_size,
    named_size,
    preview_size,
    upscale_factor,
)
from flashvideo.presets import FLASHVIDEO, NANO

PROMPT = "a red circle moves left"
SIDES = st.integers(min_value=1, max_value=4096)
EXAMPLES = settings(max_examples=100, deadline=None, database=None)


def factor_of(factor):
    """A preset that enlarges so many times."""
    stage1 = dataclasses.replace(NANO.stage1, height=96, width=160)
    stage2 = dataclasses.replace(NANO.stage2, height=96 * factor, width=160 * factor)
    return dataclasses.replace(NANO, stage1=stage1, stage2=stage2)


def warnings_of(caplog):
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


# --- Names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("270p", (270, 480)),
        ("480p", (480, 854)),
        ("720p", (720, 1280)),
        ("1080p", (1080, 1920)),
        ("1080P", (1080, 1920)),
        ("2k", (1440, 2560)),
        ("1440p", (1440, 2560)),
        ("4K", (2160, 3840)),
        ("1000x700", (700, 1000)),
        ("853×480", (480, 853)),  # noqa: RUF001 - people paste it
    ],
)
def test_a_name_is_a_height_and_a_width(name, size):
    assert named_size(name) == size


@pytest.mark.parametrize("name", SHORT_SIDES)
def test_a_portrait_is_the_landscape_turned(name):
    assert named_size(name, portrait=True) == named_size(name)[::-1]


@pytest.mark.parametrize(("preset", "size"), [(FLASHVIDEO, (1072, 1920)), (NANO, (384, 640))])
def test_reference_is_the_models_own_size(preset, size):
    assert named_size("reference", preset=preset) == size
    assert named_size("reference", portrait=True, preset=preset) == size[::-1]


@EXAMPLES
@given(name=st.sampled_from(sorted(SHORT_SIDES)), like=st.tuples(SIDES, SIDES))
def test_a_name_like_something_has_its_shape_to_even_numbers(name, like):
    height, width = named_size(name, like=like)
    assert min(height, width) == SHORT_SIDES[name]
    assert height % 2 == width % 2 == 0
    assert (height > width) <= (like[0] > like[1])
    assert abs(height * like[1] - width * like[0]) <= max(like)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"size": "1081p"},
            "size must be 270p, .*, 4k, reference or WIDTHxHEIGHT such as 640x384, got '1081p'",
        ),
        ({"size": "0x10"}, "got '0x10'"),
        ({"size": 1080}, "got 1080"),
        ({"size": "reference"}, "size 'reference' is a model's own, got no preset"),
        ({"size": "720p", "portrait": True, "like": (3, 4)}, "drop one of the two"),
        ({"size": "8x6", "portrait": True}, "got the landscape size 8x6; try 6x8"),
    ],
)
def test_what_is_no_size_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        named_size(**arguments)


# --- The preview of each size -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "size", "preview"),
    [
        (FLASHVIDEO, (1072, 1920), (256, 480)),
        (FLASHVIDEO, (1088, 1920), (272, 480)),
        (NANO, (384, 640), (96, 160)),
        (NANO, (256, 384), (64, 96)),
    ],
)
def test_sizes_that_their_preview_fills_have_it_as_ever(preset, size, preview):
    assert preview_size(*size, preset=preset, multiple=16) == preview
    assert final_size(*preview, preset=preset) == size
    assert enlarged_size(preview, size, preset=preset, multiple=16) == size


@pytest.mark.parametrize(
    ("size", "preview", "enlarged"),
    [
        ((1080, 1920), (272, 480), (1088, 1920)),
        ((1920, 1080), (480, 272), (1920, 1088)),
        ((700, 1000), (176, 256), (704, 1024)),
        ((480, 853), (128, 224), (512, 896)),
        # The preset's own preview, but not its own size: nothing is stretched.
        ((1020, 1920), (256, 480), (1024, 1920)),
    ],
)
def test_the_smallest_preview_that_covers_a_size_is_enlarged_and_cut(size, preview, enlarged):
    assert preview_size(*size, preset=FLASHVIDEO, multiple=16) == preview
    assert enlarged_size(preview, size, preset=FLASHVIDEO, multiple=16) == enlarged


@EXAMPLES
@given(size=st.tuples(SIDES, SIDES), factor=st.integers(1, 6), multiple=st.sampled_from([1, 4, 8, 16, 32]))
def test_a_preview_enlarged_covers_any_size_with_less_than_a_step_of_excess(size, factor, multiple):
    preset = factor_of(factor)
    assert upscale_factor(preset) == factor
    preview = preview_size(*size, preset=preset, multiple=multiple)
    enlarged = enlarged_size(preview, size, preset=preset, multiple=multiple)
    assert all(side % multiple == 0 for side in preview)
    for before, after, wanted in zip(preview, enlarged, size, strict=True):
        assert after == factor * before or (preview, size) == ((96, 160), (96 * factor, 160 * factor))
        assert 0 <= after - wanted < factor * multiple
    top, left = crop_offset(enlarged, size)
    assert 0 <= top <= enlarged[0] - size[0] - top <= top + 1
    assert 0 <= left <= enlarged[1] - size[1] - left <= left + 1


@EXAMPLES
@given(preview=st.tuples(SIDES, SIDES), size=st.tuples(SIDES, SIDES))
def test_a_preview_for_another_size_is_enlarged_in_its_own_shape(preview, size):
    height, width = enlarged_size(preview, size, preset=factor_of(4), multiple=16)
    assert height >= size[0] and width >= size[1]
    assert abs(height * preview[1] - width * preview[0]) <= sum(preview) / 2
    if preview != preview_size(*size, preset=factor_of(4), multiple=16):
        assert height == size[0] or width == size[1]


# --- Both stages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "preview"),
    [
        ((31, 47), (16, 24)),
        ((33, 48), (24, 24)),
        ((50, 30), (32, 16)),
        ((1, 1), (8, 8)),
        ((17, 90), (16, 48)),
    ],
)
def test_a_video_has_exactly_the_size_asked_for_and_its_preview_is_whole(pipeline, generator, size, preview):
    result = pipeline(PROMPT, height=size[0], width=size[1], generator=generator, output_type="pt")
    assert result.frames.shape[-2:] == size
    assert result.preview_frames.shape[-2:] == preview
    again = pipeline(preview=result.preview, output_type="pt")
    assert torch.equal(again.frames, result.frames)


def test_continuing_from_a_file_is_bit_identical_at_odd_sizes_too(pipeline, seeded, tmp_path):
    size = {"height": 45, "width": 31}
    whole = pipeline(PROMPT, **size, generator=seeded(), output_type="pt").frames
    stopped = pipeline(PROMPT, **size, preview_only=True, generator=seeded())
    path = save_preview(tmp_path / "preview.safetensors", stopped.preview)
    assert torch.equal(pipeline(preview=path, output_type="pt").frames, whole)
    assert torch.equal(pipeline(preview=path, **size, output_type="pt").frames, whole)


def test_the_middle_of_the_enlarged_preview_is_kept(pipeline, seeded):
    whole = pipeline(PROMPT, height=48, width=64, generator=seeded(), output_type="pt").frames
    cut = pipeline(PROMPT, height=43, width=60, generator=seeded(), output_type="pt").frames
    assert torch.equal(cut, whole[..., 2:45, 2:62])


def test_what_is_cut_off_still_counts_for_consistency(pipeline, seeded):
    size = {"height": 43, "width": 60, "output_type": "pt"}
    plain = pipeline(PROMPT, height=48, width=64, consistency=False, generator=seeded(), output_type="pt")
    expected = keep_consistent(plain.frames, plain.preview_frames)[..., 2:45, 2:62]
    assert torch.equal(pipeline(PROMPT, **size, consistency=True, generator=seeded()).frames, expected)


def test_the_models_own_size_is_made_without_a_cut(pipeline, seeded, caplog):
    with caplog.at_level(logging.INFO, logger="flashvideo"):
        own = pipeline(PROMPT, generator=seeded(), output_type="pt")
    assert "cut off" not in caplog.text
    named = pipeline(PROMPT, height=32, width=48, generator=seeded(), output_type="pt")
    assert torch.equal(own.frames, named.frames)
    enhanced = complete_settings((16, 24), preset=pipeline.preset, vae=pipeline.vae)
    assert enhanced.working_size == (32, 48)


def test_the_cut_that_a_size_needs_is_a_note_and_a_larger_one_a_warning(pipeline, generator, caplog):
    with caplog.at_level(logging.INFO, logger="flashvideo"):
        result = pipeline(PROMPT, height=45, width=64, generator=generator)
        assert warnings_of(caplog) == []
        assert (
            "3 of 48 rows and 0 of 64 columns are cut off, since previews come in steps of 16" in caplog.text
        )
        frames = pipeline(preview=result.preview, height=64, width=48, output_type="pt").frames
    assert frames.shape[-2:] == (64, 48)
    assert warnings_of(caplog) == [
        "the preview was made for another shape: 0 of 64 rows and 37 of 85 columns are cut off"
    ]
    with pytest.raises(
        ValueError, match="0 of 64 rows and 53 of 85 columns would be cut off; make a preview for"
    ):
        pipeline(preview=result.preview, height=64, width=32)


def test_a_preview_of_before_the_final_size_was_noted_is_continued_at_the_models_own(
    pipeline, seeded, tmp_path
):
    made = pipeline(PROMPT, generator=seeded(), output_type="pt")
    settings = dataclasses.asdict(made.preview.settings)
    assert (settings.pop("final_height"), settings.pop("final_width")) == (32, 48)
    path = save_preview(tmp_path / "preview.safetensors", made.preview)
    content = path.read_bytes().replace(
        b', \\"final_height\\": 32, \\"final_width\\": 48',
        b" " * len(b', \\"final_height\\": 32, \\"final_width\\": 48'),
    )
    path.write_bytes(content)
    assert load_preview(path).settings.final_height is None
    assert torch.equal(pipeline(preview=path, output_type="pt").frames, made.frames)


@pytest.mark.parametrize("num_frames", [1, 5, 97])
def test_one_to_many_frames_go_through_both_stages_and_from_the_preview(pipeline, generator, num_frames):
    cheap = {"num_inference_steps": 1, "consistency": False, "output_type": "pt"}
    made = pipeline(PROMPT, num_frames=num_frames, height=15, width=15, generator=generator, **cheap)
    assert made.preview_frames.shape == (1, num_frames, 3, 8, 8)
    assert made.frames.shape == (1, num_frames, 3, 15, 15)
    assert torch.equal(pipeline(preview=made.preview, **cheap).frames, made.frames)


def test_an_enlarged_size_that_does_not_cover_the_target_is_refused():
    numbers = {"num_inference_steps": 1, "guidance_scale": 1, "noise_step": 0, "window": 5, "overlap": 1}
    with pytest.raises(ValueError, match="enlarged must cover the height and width of 32x48, got 31x48"):
        EnhanceSettings(height=32, width=48, **numbers, consistency=False, enlarged=(31, 48))


# --- Stage II alone ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ((16, 24), (33, 49), None),
        ((272, 480), (1088, 1920), None),
        ((272, 480), (1080, 1920), "changes its shape, from 480x272 to 1920x1080: it is stretched"),
        ((16, 24), (32, 32), "changes its shape, from 24x16 to 32x32: it is stretched"),
        ((32, 48), (16, 24), "shrinks, from 48x32 to 24x16: what it shows is lost"),
    ],
)
def test_nothing_is_stretched_or_shrunk_in_silence(pipeline, caplog, before, after, message):
    complete_settings(before, preset=pipeline.preset, vae=pipeline.vae, height=after[0], width=after[1])
    assert warnings_of(caplog) == ([] if message is None else [f"the video {message}"])


def test_the_presets_own_change_of_shape_is_no_news(pipeline, caplog):
    preset = dataclasses.replace(
        pipeline.preset, stage2=dataclasses.replace(pipeline.preset.stage2, height=28, width=48)
    )
    complete_settings((16, 24), preset=preset, vae=pipeline.vae, height=28, width=48)
    assert warnings_of(caplog) == []
