"""The toy task of `forked.py`, for trainings in the test's own process too, and clips on disk."""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch

from flashvideo.video import save_image, write_video


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    """The module `forked.py`: `toy.recipe(output, batch=...)`, `toy.ToyTask()`, `toy.run(recipe)`."""
    path = Path(__file__).with_name("forked.py")
    spec = importlib.util.spec_from_file_location("forked", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["forked"] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory) -> Callable[[Sequence[str]], Path]:
    """`clip_folder(captions)`: six videos of 9 frames with these captions, and two pictures without, all 32x48."""

    def make(captions: Sequence[str]) -> Path:
        folder = tmp_path_factory.mktemp("clips")
        generator = torch.Generator().manual_seed(0)
        frames = torch.nn.functional.interpolate(
            torch.rand(8 * 9, 3, 4, 6, generator=generator) * 2 - 1, size=(32, 48), mode="bilinear"
        ).unflatten(0, (8, 9))
        for i, caption in enumerate(captions):
            write_video(folder / f"clip{i}.mp4", frames[i], frame_rate=8)
            (folder / f"clip{i}.txt").write_text(caption)
        for i in (6, 7):
            save_image(folder / f"photo{i}.png", frames[i, 0])
        return folder

    return make
