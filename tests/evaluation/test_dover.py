"""The adapter of DOVER, against a script that takes the same arguments and writes the same table."""

import os
import sys
from pathlib import Path

import pytest

from flashvideo.evaluation.dover import SCRIPT, dover_scores, dover_version

# The arguments, the header and the format of the rows are those of DOVER's script. A video's scores are the numbers in
# it; one that holds no number is skipped without a word, as a damaged one is there.
STAND_IN = """\
import argparse, os
parser = argparse.ArgumentParser()
parser.add_argument("-o", "--opt", type=str, default="./dover.yml")
parser.add_argument("-in", "--input_video_dir", type=str, default="./demo")
parser.add_argument("-out", "--output_result_csv", type=str, default="./dover_predictions/demo.csv")
parser.add_argument("-d", "--device", type=str, default="cuda")
arguments = parser.parse_args()
open(arguments.opt)
with open(arguments.output_result_csv, "w") as table:
    table.write("path, aesthetic score, technical score, overall/final score\\n")
open("device", "w").write(arguments.device + " " + os.environ.get("PYTHONPATH", "nothing"))
for name in sorted(os.listdir(arguments.input_video_dir)):
    path = os.path.join(arguments.input_video_dir, name)
    text = open(path).read()
    if name.endswith(".mp4") and text:
        aesthetic, technical, overall = map(float, text.split())
        with open(arguments.output_result_csv, "a") as table:
            table.write(f"{path}, {aesthetic*100:4f}, {technical*100:4f},{overall*100:4f}\\n")
"""


@pytest.fixture
def repository(tmp_path) -> Path:
    folder = tmp_path / "DOVER"
    folder.mkdir()
    (folder / SCRIPT).write_text(STAND_IN)
    (folder / "dover.yml").touch()
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "a red ball, moving left.mp4").write_text("0.25 0.5 0.4")
    (folder / "plain.mp4").write_text("0.1 0.2 0.3")
    return folder


@pytest.fixture
def videos(folder) -> list[Path]:
    return sorted(folder.iterdir())


def test_scores_are_named_by_the_stems_of_videos(repository, videos):
    assert dover_scores(videos, python=Path(sys.executable), repository=repository) == {
        "a red ball, moving left": pytest.approx({"dover_aesthetic": 25, "dover_technical": 50}),
        "plain": pytest.approx({"dover_aesthetic": 10, "dover_technical": 20}),
    }


def test_files_can_be_named_one_by_one_whatever_their_container(repository, tmp_path):
    (tmp_path / "one.mkv").write_text("0.5 0.5 0.5")
    scores = dover_scores([tmp_path / "one.mkv"], python=Path(sys.executable), repository=repository)
    assert scores == {"one": pytest.approx({"dover_aesthetic": 50, "dover_technical": 50})}


def test_paths_may_be_relative(repository, videos, monkeypatch):
    monkeypatch.chdir(videos[0].parents[1])
    paths = [path.relative_to(Path.cwd()) for path in videos]
    scores = dover_scores(paths, python=Path(sys.executable), repository=Path("DOVER"))
    assert len(scores) == 2


def test_the_script_runs_in_the_repository_on_the_device_without_this_processs_packages(
    repository, videos, monkeypatch
):
    monkeypatch.setenv("PYTHONPATH", os.fspath(repository))
    dover_scores(videos, python=Path(sys.executable), repository=repository, device="cuda:1")
    assert (repository / "device").read_text() == "cuda:1 nothing"


def test_a_failing_script_is_one_sentence_with_the_end_of_its_message(repository, videos):
    (repository / "dover.yml").unlink()
    with pytest.raises(ValueError, match=r"failed with exit status 1: .*No such file.*dover\.yml") as failure:
        dover_scores(videos, python=Path(sys.executable), repository=repository)
    assert "\n" not in str(failure.value)
    assert len(str(failure.value)) < 400


def test_a_script_with_other_arguments_is_one_sentence(repository, videos):
    (repository / SCRIPT).write_text(STAND_IN.replace('"-in"', '"-dir"'))
    with pytest.raises(ValueError, match=r"exit status 2: .*(expected one argument|unrecognized arguments)"):
        dover_scores(videos, python=Path(sys.executable), repository=repository)


def test_a_video_that_the_script_cannot_read_is_left_out(repository, videos, folder):
    (folder / "damaged.mp4").touch()
    paths = [*videos, folder / "damaged.mp4"]
    scores = dover_scores(paths, python=Path(sys.executable), repository=repository)
    assert list(scores) == [path.stem for path in videos]


def test_the_version_tells_other_weights(repository):
    before = dover_version(repository)
    assert dover_version(repository) == before
    (repository / "pretrained_weights").mkdir()
    (repository / "pretrained_weights" / "DOVER.pth").write_text("weights")
    assert dover_version(repository) != before


def test_another_table_is_not_read_as_scores(repository, videos):
    (repository / SCRIPT).write_text(STAND_IN.replace("{path}, {aesthetic*100:4f},", "{path},"))
    with pytest.raises(ValueError, match="expected a path and three scores"):
        dover_scores(videos, python=Path(sys.executable), repository=repository)


def test_a_script_that_writes_no_table_is_an_error(repository, videos):
    (repository / SCRIPT).write_text("pass")
    with pytest.raises(ValueError, match="wrote no table"):
        dover_scores(videos, python=Path(sys.executable), repository=repository)


def test_what_is_missing_is_named(repository, videos, folder, tmp_path):
    (tmp_path / "plain.mov").touch()
    python = Path(sys.executable)
    for paths, options, message in [
        (
            videos,
            {"python": tmp_path / "none", "repository": repository},
            "none cannot be run .*give the python",
        ),
        (videos, {"python": python, "repository": folder}, "has no evaluate_a_set_of_videos.py"),
        ([folder / "none.mp4"], {"python": python, "repository": repository}, r"none\.mp4 does not exist"),
        (
            [folder / "plain.mp4", tmp_path / "plain.mov"],
            {"python": python, "repository": repository},
            "several videos are named plain",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            dover_scores(paths, **options)
