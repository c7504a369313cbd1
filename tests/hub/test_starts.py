"""Whole processes against the small hub, which they know from their environment alone, as users' do."""

import os
import subprocess
import sys
import time

import pytest
import torch

from flashvideo.pipelines.hub import fetch_model
from flashvideo.presets import RELEASED_FILES, RELEASED_REPOSITORY

PREVIEW = ["generate", "a red circle", "--preview-only", "--size", "128x128", "--frames", "1", "--steps", "1"]
PREVIEW += ["--model", "flashvideo", "--device", "cpu", "--dtype", "float32"]

# Several commands in one process: torch is imported once. Each is answered with its exit code.
SEVERAL = """
import sys
from flashvideo.cli import main
for words in {commands!r}:
    print("exit", main(words), file=sys.stderr, flush=True)
"""


@pytest.fixture
def start(hub, environment):
    """`start(words, **variables)` starts a Python process that sees the hub."""

    def run(words, **variables):
        return subprocess.Popen(
            [sys.executable, *words],
            env=os.environ | environment(hub.url) | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return run


def several(*commands):
    return ["-c", SEVERAL.format(commands=commands)]


def sentences(process):
    """What a process wrote to stderr, without the warnings about the toy's sizes."""
    lines = process.communicate(timeout=120)[1].splitlines()
    return [line for line in lines if "is outside what flashvideo is made for" not in line]


@pytest.mark.slow  # two processes that import torch
def test_failed_concurrent_and_later_starts(hub, start, tmp_path, caplog):
    """A process fails three times, then makes the model while this one waits for it; another one needs no hub."""
    out = ["-o", str(tmp_path / "out.mp4")]
    unknown = ["generate", "a", *out, "--model", "no/where"]
    hub.cut_at["3d-vae.pt"] = 10
    hub.seconds_per_chunk = 0.1  # so that there is time to come second
    first = start(several(unknown, [*PREVIEW, *out, "--revision", "v9"], [*PREVIEW, *out], [*PREVIEW, *out]))
    while hub.downloads().count("3d-vae.pt") < 2 and first.poll() is None:
        time.sleep(0.05)
    folder = fetch_model(RELEASED_REPOSITORY, dtype=torch.float32)
    assert (
        "waiting for another process, which is making FoundationVision/FlashVideo in float32" in caplog.text
    )
    assert "converting" not in caplog.text and (folder / "model_index.json").is_file()

    lines = sentences(first)
    assert lines[1::2] == ["exit 1"] * 3 + ["exit 0"], lines
    assert "error: there is no repository no/where on http" in lines[0]
    assert "error: FoundationVision/FlashVideo has no revision 'v9'" in lines[2]
    assert "error: the download of 3d-vae.pt of FoundationVision/FlashVideo is not complete" in lines[4]
    assert "converting FoundationVision/FlashVideo into" in lines[6] and len(lines) == 8
    assert [hub.downloads().count(name) for name in RELEASED_FILES] == [1, 1, 2]

    hub.requests.clear()
    later = start(several([*PREVIEW, *out], unknown), HF_HUB_OFFLINE="1")
    lines = sentences(later)
    assert [lines[0], *lines[2:]] == ["exit 0", "exit 1"], lines
    assert lines[1].startswith("flashvideo: error: no/where is not on this machine yet, and HF_HUB_OFFLINE")
    assert hub.requests == []
