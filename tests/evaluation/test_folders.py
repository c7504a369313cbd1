"""Folders of videos: what is found, what belongs together, what must not be mixed."""

import pytest
import torch

from flashvideo.evaluation.folders import (
    VideoFile,
    check_one_setting,
    find_videos,
    match,
    read_prompts,
    setting_of,
)
from flashvideo.video import generation_metadata, save_image, write_video


def _clip(num_frames: int = 3, height: int = 16, width: int = 24) -> torch.Tensor:
    return torch.linspace(-1, 1, num_frames).reshape(-1, 1, 1, 1).expand(num_frames, 3, height, width)


def _note(**changes) -> dict:
    settings = {"stage2": {"noise_step": 20}}
    return generation_metadata(
        **{"model": "nano", "version": "1", "seed": 0, "sizes": {}, "steps": {"stage2": 4}}
        | {"settings": settings, "prompt": "a ball"}
        | changes
    )


def test_video_files_pictures_and_folders_of_frames_are_videos(tmp_path):
    write_video(tmp_path / "film.mp4", _clip(), frame_rate=8)
    save_image(tmp_path / "still.png", _clip()[0])
    (tmp_path / "frames").mkdir()
    for number in (10, 2, 1):
        save_image(tmp_path / "frames" / f"{number}.png", torch.full((3, 16, 24), number / 10 - 0.5))
    (tmp_path / "notes.txt").write_text("not a video")
    (tmp_path / ".hidden.mp4").write_text("")
    videos = find_videos(tmp_path)
    assert list(videos) == ["film", "frames", "still"]
    assert videos["film"].read().shape == (3, 3, 16, 24)
    assert videos["still"].read().shape == (1, 3, 16, 24)
    levels = videos["frames"].read()[:, 0, 0, 0]
    assert torch.allclose(levels, torch.tensor([-0.4, -0.3, 0.5]), atol=0.01)  # 1, 2, 10


def test_two_videos_of_one_name_are_refused(tmp_path):
    write_video(tmp_path / "a.mp4", _clip(), frame_rate=8)
    save_image(tmp_path / "a.png", _clip()[0])
    with pytest.raises(ValueError, match=r"two videos called a, a\.mp4 and a\.png; rename or remove one"):
        find_videos(tmp_path)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("missing", "does not exist"), ("file", "is a file"), ("empty", "holds no video")],
)
def test_what_is_no_folder_of_videos_is_one_sentence(tmp_path, name, sentence):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=sentence):
        find_videos(tmp_path / name)


def test_a_broken_picture_is_named(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("no picture")
    with pytest.raises(ValueError, match=r"a\.png cannot be read as a picture"):
        VideoFile(name="a", paths=(path,)).read()


def test_frames_of_different_sizes_are_refused(tmp_path):
    for number, width in enumerate((8, 16)):
        save_image(tmp_path / f"{number}.png", torch.zeros(3, 8, width))
    frames = VideoFile(name="a", paths=(tmp_path / "0.png", tmp_path / "1.png"))
    with pytest.raises(ValueError, match="frames of a must have one size"):
        frames.read()


def test_references_belong_to_videos_by_name_whatever_their_kind(tmp_path):
    save_image(tmp_path / "a.png", _clip()[0])
    save_image(tmp_path / "b.png", _clip()[0])
    assert list(match(["a"], tmp_path, what="reference")) == ["a"]
    with pytest.raises(ValueError, match=r"has no reference for 1 of 2 videos \(c\)"):
        match(["a", "c"], tmp_path, what="reference")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("p.csv", 'name,prompt\na.mp4,"a ball, red"\nb,a star\n'),
        ("p.jsonl", '{"name": "a", "prompt": "a ball, red"}\n\n{"name": "b.png", "prompt": "a star"}\n'),
        ("p.json", '{"a": "a ball, red", "b.mp4": "a star"}'),
    ],
)
def test_prompts_are_read_by_name(tmp_path, file, text):
    path = tmp_path / file
    path.write_text(text)
    assert read_prompts(path) == {"a": "a ball, red", "b": "a star"}


@pytest.mark.parametrize(
    ("file", "text", "sentence"),
    [
        ("p.csv", "video,text\na,b\n", "has no name and prompt in its row 1"),
        ("p.csv", "", "has no prompts; write a name and a prompt in each row"),
        ("p.jsonl", "a ball\n", "has a line that is not JSON"),
        ("p.json", "[1, 2]", "must be one object of prompts by name, got list"),
        ("p.json", '{"a": 1}', "has no name and prompt in its row 1"),
        ("p.txt", "a ball", "must be a .csv or .jsonl file of prompts"),
    ],
)
def test_a_file_without_prompts_is_one_sentence(tmp_path, file, text, sentence):
    path = tmp_path / file
    path.write_text(text)
    with pytest.raises(ValueError, match=sentence):
        read_prompts(path)


def test_a_name_that_is_there_twice_is_refused(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("name,prompt\na.mp4,a ball\na,a star\n")
    with pytest.raises(ValueError, match="has the name 'a' twice; give each video one prompt"):
        read_prompts(path)


def test_prompts_from_a_spreadsheet_are_read(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text('\ufeffname,prompt\na,"a ball\nin two lines"\n', encoding="utf-8")
    assert read_prompts(path) == {"a": "a ball\nin two lines"}


def test_videos_of_one_setting_differ_in_prompt_and_seed_only(tmp_path):
    write_video(tmp_path / "a.mp4", _clip(), frame_rate=8, metadata=_note())
    write_video(tmp_path / "b.mp4", _clip(), frame_rate=8, metadata=_note(seed=1, prompt="a star"))
    setting = check_one_setting(find_videos(tmp_path), tmp_path)
    assert setting["steps.stage2"] == 4
    assert setting["settings.stage2.noise_step"] == 20


def test_mixed_settings_are_refused_by_name(tmp_path):
    write_video(tmp_path / "a.mp4", _clip(), frame_rate=8, metadata=_note())
    write_video(tmp_path / "b.mp4", _clip(), frame_rate=8, metadata=_note(steps={"stage2": 2}))
    with pytest.raises(ValueError, match=r"mixes settings: b and a differ in steps\.stage2"):
        check_one_setting(find_videos(tmp_path), tmp_path)


def test_enhanced_videos_may_be_of_any_size():
    sizes = [{"input": (3, side, side), "stage2": (3, 4 * side, 4 * side)} for side in (8, 16)]
    one, other = (setting_of(_note(sizes=size)) for size in sizes)
    assert one == other
    generated = [setting_of(_note(sizes={"stage2": (3, side, side)})) for side in (8, 16)]
    assert generated[0] != generated[1]


def test_notes_of_other_software_say_nothing():
    assert setting_of({"prompt": "a ball", "steps": 3}) == {}
