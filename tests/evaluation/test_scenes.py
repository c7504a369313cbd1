"""Held-out scenes as files."""

import json

from flashvideo.evaluation.folders import find_videos
from flashvideo.evaluation.scenes import write_scenes
from flashvideo.evaluation.sweep.items import scene_items


def test_scenes_become_inputs_references_and_prompts(tmp_path):
    write_scenes(tmp_path, 2, small=(24, 40), large=(48, 80))
    inputs, references = (find_videos(tmp_path / name) for name in ("inputs", "references"))
    assert list(inputs) == list(references) == ["scene_0000", "scene_0001"]
    assert inputs["scene_0000"].size == (24, 40)
    assert references["scene_0001"].size == (48, 80)
    prompts = json.loads((tmp_path / "prompts.json").read_text())
    assert prompts == {item.name: item.prompt for item in scene_items(2)}


def test_more_scenes_leave_the_first_ones_alone(tmp_path):
    write_scenes(tmp_path, 1, small=(24, 40), large=(48, 80))
    path = tmp_path / "inputs" / "scene_0000.mp4"
    path.write_bytes(b"kept")
    write_scenes(tmp_path, 2, small=(24, 40), large=(48, 80))
    assert path.read_bytes() == b"kept"
    assert (tmp_path / "references" / "scene_0001.mp4").exists()
