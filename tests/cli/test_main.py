"""What all commands share: help, exit codes, errors, messages."""

import json
import logging
import os
import subprocess
import sys
import time

import pytest

from flashvideo import __version__
from flashvideo.cli import build_parser, info
from flashvideo.cli.messages import one_sentence
from flashvideo.cli.results import Phases, Result

COMMANDS = ["generate", "enhance", "train", "convert", "plan", "bench", "info", "doctor"]


@pytest.fixture
def failing(monkeypatch, tmp_path):
    """`failing(error)` makes `flashvideo info` fail so; returns the words of a call."""

    def fail_with(error):
        def run(arguments):
            raise error

        monkeypatch.setattr(info, "run", run)
        return ["info", tmp_path / "a.mp4"]

    return fail_with


def test_help_takes_less_than_a_second_of_the_processor_and_imports_nothing_heavy():
    program = (
        "import sys; from flashvideo.cli import main; code = main(['--help']); "
        "heavy = {'torch', 'numpy', 'diffusers', 'transformers', 'av', 'PIL', 'tqdm', 'yaml'} & set(sys.modules); "
        "print('heavy:', sorted(heavy)); sys.exit(code)"
    )
    before = os.times()
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    after = os.times()
    assert result.returncode == 0, result.stderr
    assert "heavy: []" in result.stdout
    assert all(command in result.stdout for command in COMMANDS)
    # Processor time and not time: the machine may be busy with something else.
    assert after.children_user + after.children_system - before.children_user - before.children_system < 1


def test_the_package_runs_as_a_module():
    words = [sys.executable, "-m", "flashvideo", "--version"]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, f"flashvideo {__version__}\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(call, command):
    outcome = call(command, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith(f"usage: flashvideo {command}")


@pytest.mark.parametrize("words", [[], ["produce"], ["info"], ["info", "a.mp4", "--wrong"]])
def test_wrong_usage_is_one_sentence_and_exit_2(call, refusal, words):
    assert "--help`)" in refusal(call, *words, code=2)


def test_arguments_come_from_the_process_where_none_are_given(capsys, monkeypatch):
    from flashvideo.cli import main

    monkeypatch.setattr(sys, "argv", ["flashvideo", "--version"])
    assert main() == 0
    assert capsys.readouterr().out == f"flashvideo {__version__}\n"


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (ValueError("a is wrong;\n  try b"), 1, "a is wrong; try b"),
        (PermissionError(13, "Permission denied", "a.mp4"), 1, "a.mp4: Permission denied"),
        (ImportError("install flashvideo[train]"), 1, "install flashvideo[train]"),
        (KeyboardInterrupt(), 130, "interrupted; no unfinished file is left"),
        (KeyError("x"), 1, "unexpected KeyError: 'x'; add --debug for the traceback"),
        (MemoryError(), 1, "out of memory; use a smaller --size or fewer frames (MemoryError)"),
    ],
)
def test_an_error_is_one_sentence_with_its_exit_code(call, refusal, failing, error, code, sentence):
    assert refusal(call, *failing(error), code=code) == sentence + "\n"


def test_an_error_is_one_json_object_too_where_json_is_asked_for(call, failing):
    outcome = call(*failing(ValueError("wrong")), "--json")
    assert json.loads(outcome.out) == {"error": "wrong", "warnings": [], "exit_code": 1}
    assert outcome.err == "flashvideo: error: wrong\n"


def test_debug_shows_the_traceback(call, failing):
    outcome = call(*failing(KeyError("x")), "--debug")
    assert outcome.code == 1
    assert "Traceback" in outcome.err


def test_errors_without_a_message_are_named(capsys):
    assert one_sentence(RuntimeError()) == "RuntimeError"


def test_messages_are_shown_by_level_each_once_and_the_logger_is_left_as_it_was(call, monkeypatch):
    logger = logging.getLogger("flashvideo.test")
    before = logging.getLogger("flashvideo").level, list(logging.getLogger("flashvideo").handlers)

    def run(arguments):
        for _ in range(2):
            logger.warning("a warning")
            logger.info("a note")
        return Result(data={}, text="done")

    monkeypatch.setattr(info, "run", run)
    assert call("info", "a").err == "flashvideo: warning: a warning\n"
    assert call("info", "a", "-v").err == "flashvideo: warning: a warning\nflashvideo: a note\n"
    assert json.loads(call("info", "a", "--json").out)["warnings"] == ["a warning"]
    assert (logging.getLogger("flashvideo").level, logging.getLogger("flashvideo").handlers) == before


def test_phases_add_up_and_are_timed_also_when_they_fail():
    phases = Phases()
    with phases("load"):
        pass
    with pytest.raises(ValueError, match="wrong"), phases("load"):
        raise ValueError("wrong")
    with phases("write"):
        time.sleep(0.01)
    seconds = phases.as_data()
    assert list(seconds) == ["load", "write", "total"]
    assert seconds["total"] >= seconds["write"] >= 0.01
    assert phases.as_text().startswith("seconds: load 0.0, write ")


def test_every_command_can_be_parsed_with_its_least_arguments():
    parser = build_parser()
    for words in (
        ["generate", "a circle", "-o", "a.mp4"],
        ["enhance", "a.mp4", "-o", "b.mp4"],
        ["sweep", "--scenes", "1", "-o", "a"],
        ["train", "a.yaml"],
        ["bench"],
        ["info", "a.mp4"],
        ["doctor"],
    ):
        assert callable(parser.parse_args(words).run)
