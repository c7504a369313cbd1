"""What a sweep is made over."""

import json

import pytest
import torch

from flashvideo.data.shapes_world import render
from flashvideo.evaluation.sweep.items import input_items, prompt_items, render_pair, scene_items
from flashvideo.evaluation.sweep.making import Start
from flashvideo.video import write_video


def clip(value, height=16, width=24):
    return torch.full((1, 3, height, width), value)


def test_more_scenes_begin_with_fewer():
    few, more = scene_items(2), scene_items(3)
    assert [item.as_dict() for item in few] == [item.as_dict() for item in more[:2]]
    assert all(item.prompt and item.scene for item in more)


def test_scenes_for_previews_have_one_object_and_no_pan():
    for item in scene_items(5, preview_only=True):
        assert len(item.scene.things) == 1
        assert item.scene.pan == 0


def test_a_scene_is_rendered_small_and_as_the_middle_of_what_stage_2_works_at():
    (item,) = scene_items(1)
    low, truth = render_pair(item.scene, 3, small=(16, 24), enlarged=(32, 48), final=(28, 40))
    assert low.shape == (3, 3, 16, 24)
    whole = torch.from_numpy(render(item.scene, height=32, width=48, num_frames=3))
    torch.testing.assert_close(truth, whole[..., 2:30, 4:44], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("p.txt", "a red ball\n\n  a star \n", [("prompt_0001", "a red ball"), ("prompt_0002", "a star")]),
        ("p.csv", 'name,prompt\nx,"a red,\nround ball"\n', [("x", "a red,\nround ball")]),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": "b", "name": "n"}\n', [("prompt_0001", "a"), ("n", "b")]),
    ],
)
def test_prompts_are_read_from_text_csv_and_json_lines(tmp_path, name, text, expected):
    path = tmp_path / name
    path.write_text(text)
    assert [(item.name, item.prompt) for item in prompt_items(path)] == expected


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("p.doc", b"a", "must be a .txt or .csv or .jsonl file"),
        ("p.txt", None, "does not exist"),
        ("p.txt", b"\n", "has no prompts"),
        ("p.txt", b"\xff\xfe\xff", "is not UTF-8 text"),
        ("p.csv", b"text\na\n", "has no prompt in its row 1"),
        ("p.csv", b"name,prompt\nx,a\nx,b\n", "has the name 'x' twice"),
        ("p.jsonl", b'{"prompt": "a"}\n{\n', "has a line that is not JSON"),
        ("p.jsonl", b'["a"]\n', "has no prompt in its row 1"),
    ],
)
def test_a_file_without_prompts_is_refused(tmp_path, name, content, sentence):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        prompt_items(path)


def test_videos_get_their_prompts_and_references_by_name(tmp_path):
    for folder, suffix in (("in", ".mp4"), ("true", ".mkv")):
        (tmp_path / folder).mkdir()
        for name in ("a", "b"):
            write_video(tmp_path / folder / f"{name}{suffix}", clip(0.1), frame_rate=8)
    items = input_items(tmp_path / "in", references=tmp_path / "true", prompts={"b": "a ball"})
    assert [(item.name, item.prompt) for item in items] == [("a", None), ("b", "a ball")]
    assert [item.reference.paths[0].name for item in items] == ["a.mkv", "b.mkv"]
    about = items[0].as_dict()
    assert json.loads(json.dumps(about)) == about
    write_video(tmp_path / "in" / "a.mp4", clip(0.9), frame_rate=8)
    assert input_items(tmp_path / "in")[0].as_dict()["video"] != about["video"]


def test_a_prompt_for_no_video_is_refused(tmp_path):
    write_video(tmp_path / "a.mp4", clip(0.1), frame_rate=8)
    with pytest.raises(ValueError, match="has no video 'c', for which there is a prompt"):
        input_items(tmp_path, prompts={"c": "a ball"})


def test_a_missing_reference_is_refused(tmp_path):
    for folder, name in (("in", "a"), ("true", "b")):
        (tmp_path / folder).mkdir()
        write_video(tmp_path / folder / f"{name}.mp4", clip(0.1), frame_rate=8)
    with pytest.raises(ValueError, match="has no reference for 1 of 1 videos"):
        input_items(tmp_path / "in", references=tmp_path / "true")


def test_a_result_is_compared_with_the_part_of_its_source_that_is_kept():
    pixels = torch.rand(2, 3, 16, 24)
    whole = Start(pixels=pixels, size=(64, 96), enlarged=(64, 96))
    assert whole.source.equal(pixels)
    cut = Start(pixels=pixels, size=(56, 80), enlarged=(64, 96))
    assert cut.source.equal(pixels[..., 1:15, 2:22])


def test_where_no_whole_pixels_are_kept_or_it_is_larger_there_is_no_source():
    pixels = torch.rand(2, 3, 16, 24)
    assert Start(pixels=pixels, size=(58, 96), enlarged=(64, 96)).source is None
    assert Start(pixels=pixels, size=(8, 12)).source is None
