"""VBench's list, and the videos that it wants: names, numbers, seeds."""

import json

import pytest

from flashvideo.evaluation.vbench.prompts import (
    STANDARD_ENTRIES,
    Entry,
    Sampling,
    check_distinct_names,
    choose_entries,
    not_comparable,
    plan_videos,
    read_info,
    video_name,
    video_seed,
    with_long_prompts,
)

RED = Entry(prompt="a red car", dimensions=("color",))
STILL = Entry(prompt="a bowl, frozen in time", dimensions=("temporal flickering",))
TWICE = Entry(prompt="a red car", dimensions=("imaging quality", "aesthetic quality"))


@pytest.fixture
def write_info(tmp_path):
    """`write_info(items)` writes a list; returns its path."""

    def write(items):
        path = tmp_path / "info.json"
        path.write_text(items if isinstance(items, str) else json.dumps(items), encoding="utf-8")
        return path

    return write


def item(prompt="a red car", dimension=("color",)):
    return {"prompt_en": prompt, "dimension": list(dimension), "auxiliary_info": {}}


def test_the_list_is_read_in_order_with_vbenchs_names_of_dimensions(write_info):
    entries = read_info(write_info([item(), item("a dog", ["human_action", "scene"])]))
    assert entries == (RED, Entry(prompt="a dog", dimensions=("human action", "scene")))


def test_names_keep_a_prompt_letter_by_letter(write_info):
    prompt = "A person is petting animal (not cat), Petra's façades: 100%."
    (entry,) = read_info(write_info([item(prompt)]))
    assert video_name(entry.prompt, 3) == prompt + "-3.mp4"


@pytest.mark.parametrize(
    ("items", "sentence"),
    [
        ("[", r"is not JSON \(.*\); expected VBench's list, VBench_full_info\.json"),
        ({}, "must hold a list of prompts as VBench's VBench_full_info.json, got dict"),
        ([item(), {"prompt": "a"}], "entry 2, must have the text prompt_en and the list dimension"),
        ([item(" ")], "entry 1, must have the text prompt_en"),
        ([item(dimension=["colour"])], "entry 1, names no dimension of VBench, got 'colour'"),
        ([item("1/2 of a pie")], "cannot be the name of a file, as VBench needs it, got '1/2 of a pie'"),
        ([item("ä" * 130)], "without / and at most 255 bytes long"),
    ],
)
def test_what_is_not_vbenchs_list_is_refused(write_info, items, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_info(write_info(items))


def test_a_list_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no\.json does not exist; expected VBench's list"):
        read_info(tmp_path / "no.json")


def test_five_videos_of_a_prompt_and_25_of_one_that_must_hold_still():
    videos = plan_videos([RED, STILL], Sampling(), seed=0)
    assert [video.name for video in videos[:5]] == [f"a red car-{i}.mp4" for i in range(5)]
    assert [video.name for video in videos[5:]] == [f"a bowl, frozen in time-{i}.mp4" for i in range(25)]


def test_a_prompt_that_is_listed_twice_has_one_set_of_videos():
    videos = plan_videos([RED, TWICE], Sampling(), seed=0)
    assert len(videos) == len({video.name for video in videos}) == 5


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        ({"samples": 6}, "samples must be 1 to 5, which is all that VBench reads, got 6"),
        ({"samples": 0}, "samples must be 1 to 5"),
        ({"samples": 3, "flicker_samples": 2}, "flicker_samples must be at least samples, 3, got 2"),
    ],
)
def test_numbers_that_vbench_does_not_read_are_refused(numbers, sentence):
    with pytest.raises(ValueError, match=sentence):
        Sampling(**numbers)


def test_a_seed_depends_on_prompt_index_and_seed_and_on_nothing_else():
    alone = plan_videos([STILL], Sampling(), seed=7)[0]
    beside = plan_videos([RED, STILL], Sampling(), seed=7)[5]
    assert alone == beside
    seeds = {video_seed(*args) for args in [(7, "a", 0), (8, "a", 0), (7, "b", 0), (7, "a", 1), (7, "a1", 0)]}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**53 for seed in seeds)


def test_a_seed_stays_what_it_is():
    assert video_seed(0, "a red car", 0) == 2697344925133618


def test_long_prompts_are_shown_to_the_model_and_short_ones_name_the_videos(tmp_path):
    (tmp_path / "long.txt").write_text("A shiny red car.\nA bowl that stands still. \n")
    entries = with_long_prompts([RED, STILL], tmp_path / "long.txt")
    first, still = (plan_videos(entries, Sampling(samples=1, flicker_samples=1), seed=0)[i] for i in (0, 1))
    assert (first.name, first.prompt) == ("a red car-0.mp4", "A shiny red car.")
    assert still.prompt == "A bowl that stands still."
    assert first.seed == plan_videos([RED], Sampling(), seed=0)[0].seed


def test_of_two_long_prompts_for_one_video_the_later_one_counts(tmp_path):
    (tmp_path / "long.txt").write_text("first\nsecond\n")
    entries = with_long_prompts([RED, TWICE], tmp_path / "long.txt")
    assert {video.prompt for video in plan_videos(entries, Sampling(), seed=0)} == {"second"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("one\n", "has 1 lines, expected 2, one for each entry of VBench's list in its order"),
        ("one\ntwo\nthree\n", "has 3 lines, expected 2"),
        ("one\n\n", "has no prompt on line 2, expected one on each; add it"),
    ],
)
def test_long_prompts_that_do_not_match_the_list_line_by_line_are_refused(tmp_path, text, sentence):
    (tmp_path / "long.txt").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        with_long_prompts([RED, STILL], tmp_path / "long.txt")


def test_dimensions_choose_their_prompts():
    assert choose_entries([RED, STILL, TWICE], ["color"]) == (RED,)
    assert choose_entries([RED, STILL, TWICE], ["aesthetic quality", "temporal flickering"]) == (STILL, TWICE)
    with pytest.raises(ValueError, match="VBench's list has no prompts for scene; choose other dimensions"):
        choose_entries([RED], ["color", "scene"])


def test_prompts_that_differ_in_a_capital_letter_need_a_file_system_that_tells_them_apart():
    videos = plan_videos([RED, Entry(prompt="A red car", dimensions=("scene",))], Sampling(), seed=0)
    check_distinct_names(videos, case_matters=True)
    with pytest.raises(
        ValueError, match=r"a red car-0\.mp4 and A red car-0\.mp4 are one file on this file system"
    ):
        check_distinct_names(videos, case_matters=False)


def test_fewer_videos_or_another_list_are_not_comparable():
    standard = [RED] * STANDARD_ENTRIES
    assert not_comparable(standard, Sampling()) == ()
    assert not_comparable(standard, Sampling(samples=1)) == ("1 of 5 videos of each prompt",)
    assert not_comparable([RED], Sampling()) == ("the list has 1 entries, VBench's has 946",)
