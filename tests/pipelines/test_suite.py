"""The measurement suite on the toy pipeline: every section, resuming, summaries."""

import json

import numpy as np
import pytest
import torch

from flashvideo.data.shapes_world import is_held_out
from flashvideo.evaluation.readers import read_clip
from flashvideo.evaluation.suite import SECTIONS, compare, held_out_scene, run_suite


@pytest.mark.parametrize("section", list(SECTIONS))
def test_a_section_measures_finite_figures_and_repeats(pipeline, section, monkeypatch):
    monkeypatch.setattr("flashvideo.evaluation.suite.LENGTHS", (1, 5))
    monkeypatch.setattr("flashvideo.evaluation.suite.SPEEDS", (4,))
    monkeypatch.setattr("flashvideo.evaluation.suite.PREVIEW_SIZES", ((32, 48),))
    measure = SECTIONS[section][0]
    with torch.no_grad():
        first, again = measure(pipeline, 0), measure(pipeline, 0)
    assert first == again and first
    assert all(np.isfinite(value) for value in first.values())


def test_previews_are_read_in_the_sizes_that_figures_are_named_by(pipeline, monkeypatch):
    sizes = []

    def read(preview):
        sizes.append(tuple(preview.shape[-2:]))
        return read_clip(preview)

    monkeypatch.setattr("flashvideo.evaluation.suite.PREVIEW_SIZES", ((32, 48), (48, 32)))
    monkeypatch.setattr("flashvideo.evaluation.suite.read_clip", read)
    with torch.no_grad():
        record = SECTIONS["preview_sizes"][0](pipeline, 0)
    assert sizes == [(32, 48), (48, 32)]
    assert {"size32x48_all", "size48x32_motion"} <= set(record)


def test_readers_are_measured_on_truth_raw_and_compressed(pipeline):
    record = SECTIONS["readers"][0](pipeline, 0)
    assert record == dict.fromkeys(record, 1.0)
    assert {"raw_shape", "mp4_shape"} <= set(record)


def test_an_interrupted_suite_goes_on_where_it_stopped(pipeline, tmp_path, monkeypatch):
    calls = []

    def measure(_, index):
        calls.append(index)
        return {"value": float(index)}

    monkeypatch.setitem(SECTIONS, "fake", (measure, 4))
    output = tmp_path / "figures.json"
    run_suite(pipeline, output, {"fake": 2}, progress=False)
    summary = run_suite(pipeline, output, {"fake": 4}, progress=False)
    assert calls == [0, 1, 2, 3]
    assert summary["fake"]["value"]["mean"] == 1.5
    assert json.loads(output.read_text())["summary"]["fake"]["value"]["count"] == 4


def test_every_prompt_of_the_suite_is_held_out():
    assert all(is_held_out(*held_out_scene(i).combination) for i in range(256))


def test_a_clip_compared_with_itself_is_perfect():
    clip = torch.rand(5, 3, 40, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    figures = compare(clip, clip)
    assert (figures["gmsd"], figures["filter_bank"], figures["frame_difference"]) == (0, 0, 0)
    assert figures["gradient_energy"] == 1
