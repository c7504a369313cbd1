"""The command line, called in this process, with a toy model in a folder: previews of 24x16, videos of 48x32 pixels."""

import signal

import pytest
import torch

from flashvideo.cli import main
from flashvideo.video import write_video

PROMPT = "a red circle moves left"


@pytest.fixture(scope="session")
def model_home(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def toy_model(model_home, request):
    """Folder of the toy model; written once, since only the fixtures that it is made of are anew for each test."""
    folder = model_home / "toy"
    if not folder.exists():
        request.getfixturevalue("toy_pipeline")(PROMPT.split()).save_pretrained(folder)
    return folder


class Outcome:
    """Exit code and what was written to stdout and stderr."""

    def __init__(self, code, captured):
        self.code, self.out, self.err = code, captured.out, captured.err


@pytest.fixture
def call(capsys):
    """`call(*words)` runs the command line as it is."""

    def run(*words):
        capsys.readouterr()
        code = main([str(word) for word in words])
        return Outcome(code, capsys.readouterr())

    return run


@pytest.fixture
def flashvideo(call, toy_model):
    """`flashvideo("generate", ...)` runs a command with the toy model."""

    def run(command, *words):
        return call(command, *words, "--model", toy_model, "--device", "cpu", "--dtype", "float32")

    return run


@pytest.fixture
def refusal(tmp_path):
    """`refusal(outcome, code)` is the one sentence that a wrong call was answered with; no file may have appeared."""
    before = []

    def check(run, *words, code=1):
        before[:] = sorted(tmp_path.rglob("*"))
        outcome = run(*words)
        assert outcome.code == code, outcome.err
        assert outcome.out == ""
        assert outcome.err.startswith("flashvideo: error: ")
        assert outcome.err.count("\n") == 1, outcome.err
        assert "Traceback" not in outcome.err
        assert sorted(tmp_path.rglob("*")) == before
        return outcome.err.removeprefix("flashvideo: error: ")

    return check


@pytest.fixture
def video_file(tmp_path):
    """`video_file(name, num_frames, frame_rate)` writes a smooth, moving clip of 24x16 pixels."""

    def write(name="in.mp4", num_frames=9, frame_rate=8):
        generator = torch.Generator().manual_seed(1)
        coarse = torch.rand(num_frames, 3, 4, 6, generator=generator) * 2 - 1
        frames = torch.nn.functional.interpolate(coarse, size=(16, 24), mode="bilinear")
        return write_video(tmp_path / name, frames, frame_rate=frame_rate)

    return write


@pytest.fixture(autouse=True)
def ctrl_c_interrupts():
    """A shell that starts the tests in the background has them ignore Ctrl-C; here it interrupts, as in a terminal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
