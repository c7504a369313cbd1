"""Upscalers: the classical ones, networks through a stand-in that is called as spandrel is, and folders of videos."""

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from flashvideo.evaluation.upscalers import CLASSICAL, load_upscaler, upscale_clip, upscale_folder
from flashvideo.video import probe_video, read_video, write_video


@dataclass
class ImageModelDescriptor:
    """A network that repeats every pixel; it has spandrel's name and what is used of it."""

    scale: int = 2
    input_channels: int = 3
    output_channels: int = 3
    architecture = SimpleNamespace(name="Repeater")

    def eval(self):
        return self

    def __call__(self, image):
        assert image.shape[0] == 1 and image.min() >= 0 and image.max() <= 1
        return image.repeat_interleave(self.scale, -2).repeat_interleave(self.scale, -1)


@pytest.fixture
def spandrel(monkeypatch):
    """The stand-in; `network` is what its loader gives, or raises."""
    module = ModuleType("spandrel")
    module.network = ImageModelDescriptor()
    module.loaded = []

    class ModelLoader:
        def __init__(self, device=None):
            self.device = device

        def load_from_file(self, path):
            module.loaded.append((path, self.device))
            if isinstance(module.network, Exception):
                raise module.network
            return module.network

    module.ModelLoader, module.ImageModelDescriptor = ModelLoader, ImageModelDescriptor
    monkeypatch.setitem(sys.modules, "spandrel", module)
    return module


@pytest.fixture
def weights(tmp_path) -> Path:
    path = tmp_path / "repeater.pth"
    path.write_bytes(b"weights")
    return path


def random_clip(num_frames=2, height=8, width=12):
    return torch.rand(num_frames, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


# --- clips ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", CLASSICAL)
def test_classical_upscalers_keep_a_flat_clip_flat(method):
    flat = torch.full((2, 3, 8, 12), 0.3)
    torch.testing.assert_close(
        upscale_clip(flat, 32, 48, method), torch.full((2, 3, 32, 48), 0.3), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("method", CLASSICAL)
def test_classical_upscalers_stay_in_range_and_bring_back_what_they_enlarged(method):
    clip = torch.nn.functional.avg_pool2d(random_clip(height=32, width=48), 4)
    large = upscale_clip(clip, 32, 48, method)
    assert large.abs().max() <= 1
    back = torch.nn.functional.avg_pool2d(large, 4)
    assert (back - clip).abs().mean() < 0.5 * (clip - clip.mean()).abs().mean()


def test_the_longer_the_classical_kernel_the_better_it_follows_a_wave():
    def wave(positions):
        return (0.8 * torch.sin(2 * torch.pi / 5 * positions)).expand(1, 3, 4, len(positions))

    small, large = wave(torch.arange(40.0)), wave((torch.arange(160) + 0.5) / 4 - 0.5)[..., 16:-16]
    errors = [
        (upscale_clip(small, 4, 160, method)[..., 16:-16] - large).abs().mean().item() for method in CLASSICAL
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.02


def test_a_network_enlarges_every_frame(spandrel, weights):
    clip = random_clip()
    expected = clip.repeat_interleave(2, -2).repeat_interleave(2, -1)
    torch.testing.assert_close(upscale_clip(clip, 16, 24, weights), expected)
    assert spandrel.loaded == [(weights, torch.device("cpu"))]


@pytest.mark.usefixtures("spandrel")
@pytest.mark.parametrize("size", [(12, 18), (32, 48)])
def test_where_the_factor_differs_the_networks_result_is_resized(weights, size):
    clip = torch.full((2, 3, 8, 12), 0.3)
    torch.testing.assert_close(upscale_clip(clip, *size, weights), torch.full((2, 3, *size), 0.3))


@pytest.mark.usefixtures("spandrel")
def test_values_outside_the_range_are_clamped_before_a_network_sees_them(weights):
    assert upscale_clip(torch.full((1, 3, 8, 12), 1.5), 16, 24, str(weights)).max() == 1


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (ImageModelDescriptor(scale=1), "holds Repeater, which does not enlarge images"),
        (
            SimpleNamespace(scale=2, architecture=SimpleNamespace(name="Painter")),
            "holds Painter, which does not",
        ),
        (ImageModelDescriptor(input_channels=1), "enlarges pictures of 1 channels, expected 3"),
        (RuntimeError("unknown keys\nand more"), "holds no network that spandrel can read: unknown keys$"),
    ],
)
def test_files_without_an_upscaling_network_are_refused(spandrel, weights, network, message):
    spandrel.network = network
    with pytest.raises(ValueError, match=message):
        load_upscaler(weights)


def test_an_unknown_method_names_the_known_ones():
    with pytest.raises(ValueError, match="'bicubik' is neither one of bilinear, bicubic, lanczos nor a file"):
        load_upscaler("bicubik")


def test_a_missing_spandrel_is_one_sentence(monkeypatch, weights):
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(
        ImportError,
        match=r"spandrel is not installed; an upscaling network needs it.*pip install 'flashvideo\[upscale\]'",
    ):
        load_upscaler(weights)


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def inputs(tmp_path) -> list[Path]:
    folder = tmp_path / "inputs"
    folder.mkdir()
    clip = torch.linspace(-0.8, 0.8, 3)[:, None, None, None].expand(3, 3, 16, 24)
    return [write_video(folder / name, clip, frame_rate=8) for name in ("a.mp4", "b.mkv")]


def test_a_folder_is_enlarged_under_the_same_names(inputs, tmp_path):
    outputs = upscale_folder(inputs, tmp_path / "out" / "bicubic", lambda path: (32, 48), "bicubic")
    assert [path.name for path in outputs] == ["a.mp4", "b.mp4"]
    for output in outputs:
        info = probe_video(output)
        assert (info.num_frames, info.height, info.width, info.frame_rate) == (3, 32, 48, 8)
        assert info.metadata["upscaler"].startswith("bicubic of ")
        levels = read_video(output).frames.mean(dim=(1, 2, 3))
        torch.testing.assert_close(levels, torch.linspace(-0.8, 0.8, 3), atol=0.02, rtol=0)


def test_outputs_that_are_there_are_not_made_again(inputs, tmp_path):
    folder = tmp_path / "out"
    upscale_folder(inputs[:1], folder, lambda path: (32, 48), "bicubic")
    made = (folder / "a.mp4").stat().st_mtime_ns
    upscale_folder(inputs, folder, lambda path: (32, 48), "bicubic")
    assert (folder / "a.mp4").stat().st_mtime_ns == made
    assert sorted(path.name for path in folder.iterdir()) == ["a.mp4", "b.mp4"]


def test_outputs_of_another_input_are_not_taken_for_this_ones(inputs, tmp_path):
    upscale_folder(inputs, tmp_path / "out", lambda path: (32, 48), "bicubic")
    write_video(inputs[0], torch.zeros(3, 3, 16, 24), frame_rate=8)
    with pytest.raises(ValueError, match=r"a\.mp4 was made by bicubic of .*choose another output folder"):
        upscale_folder(inputs, tmp_path / "out", lambda path: (32, 48), "bicubic")


def test_a_network_is_loaded_once_and_noted_with_its_weights(spandrel, inputs, weights, tmp_path):
    (output, _) = upscale_folder(inputs, tmp_path / "out", lambda path: (32, 48), weights)
    assert len(spandrel.loaded) == 1
    digest = hashlib.sha256(b"weights").hexdigest()
    assert probe_video(output).metadata["upscaler"].startswith(f"repeater.pth {digest[:16]} of ")


@pytest.mark.parametrize(
    ("method", "size", "message"),
    [
        (
            "lanczos",
            (32, 48),
            "made by bicubic of .* in 32x48, not by lanczos of .* in 32x48; choose another output folder",
        ),
        ("bicubic", (48, 72), "made by bicubic of .* in 32x48, not by bicubic of .* in 48x72"),
    ],
)
def test_two_settings_are_never_mixed_in_one_folder(inputs, tmp_path, method, size, message):
    upscale_folder(inputs, tmp_path / "out", lambda path: (32, 48), "bicubic")
    with pytest.raises(ValueError, match=message):
        upscale_folder(inputs, tmp_path / "out", lambda path: size, method)


def test_an_interrupted_run_leaves_nothing_that_looks_finished(spandrel, inputs, weights, tmp_path):
    class Interrupted(ImageModelDescriptor):
        calls = 0

        def __call__(self, image):
            Interrupted.calls += 1
            if Interrupted.calls == 3:
                raise KeyboardInterrupt
            return super().__call__(image)

    spandrel.network = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        upscale_folder(inputs, tmp_path / "out", lambda path: (32, 48), weights)
    assert not list((tmp_path / "out").iterdir())


def test_inputs_that_would_overwrite_one_another_or_themselves_are_refused(inputs, tmp_path):
    with pytest.raises(ValueError, match=r"several inputs are named a\.mp4"):
        upscale_folder([inputs[0], tmp_path / "a.mp4"], tmp_path / "out", lambda path: (32, 48), "bicubic")
    with pytest.raises(ValueError, match="lies in the output folder already"):
        upscale_folder(inputs, inputs[0].parent, lambda path: (32, 48), "bicubic")
