"""The public API is a short list, and a change of it is a change of this file."""

import types

import pytest

import flashvideo

PUBLIC = [
    "FlashVideoEnhancePipeline",
    "FlashVideoPipeline",
    "FlashVideoScheduler",
    "FlashVideoStage1Pipeline",
    "FlashVideoTransformer3DModel",
    "PRESETS",
    "Preset",
    "__version__",
    "degrade_latents",
    "load_pipeline",
    "named_size",
    "read_video",
    "write_video",
]


def test_the_public_names_are_these():
    assert sorted(flashvideo.__all__) == sorted(PUBLIC)
    assert dir(flashvideo) == sorted(flashvideo.__all__)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there(name):
    assert getattr(flashvideo, name) is not None


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_class_and_function_explains_itself(name):
    member = getattr(flashvideo, name)
    if isinstance(member, type | types.FunctionType):
        assert member.__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'flashvideo' has no attribute 'FlashVideo'"):
        _ = flashvideo.FlashVideo


def test_the_version_is_that_of_the_newest_release_or_the_one_being_prepared():
    major, minor, patch = flashvideo.__version__.split(".")
    assert all(part.isdecimal() for part in (major, minor, patch))
