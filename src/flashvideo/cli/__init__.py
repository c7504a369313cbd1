"""The `flashvideo` command: one module per subcommand, and here what they share: parsing, errors, exit codes.

Results go to stdout, as lines for people or as one JSON object with `--json`; everything else goes to stderr. Nothing
heavy is imported before a command runs, so that `--help` is immediate.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from flashvideo import __version__
from flashvideo.cli import (
    bench,
    convert,
    doctor,
    enhance,
    evaluate,
    evaluate_vbench,
    generate,
    info,
    pairs,
    plan,
    precompute,
    sweep,
    train,
)
from flashvideo.cli.arguments import OneLineParser, UsageError
from flashvideo.cli.messages import messages_to_stderr, one_sentence
from flashvideo.cli.results import Result

EXIT_OK, EXIT_FAILURE, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130

COMMANDS = (
    generate,
    enhance,
    evaluate,
    evaluate_vbench,
    sweep,
    bench,
    pairs,
    train,
    precompute,
    convert,
    plan,
    info,
    doctor,
)


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the whole command line; `arguments.run` is the function of the chosen command."""
    parser = OneLineParser(
        prog="flashvideo",
        description="Two-stage text-to-video generation and video enhancement.",
        epilog="`flashvideo COMMAND --help` explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"flashvideo {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: Arguments without the program's name; those of the process if None.

    Returns:
        The exit code: 0 success, 1 failure, 2 wrong usage, 130 interrupted by Ctrl-C, and 143 a
        training that SIGTERM stopped.
    """
    try:
        arguments = parse_arguments(argv)
    except SystemExit as stop:  # argparse's way of saying that it has answered already
        return stop.code if isinstance(stop.code, int) else EXIT_OK
    with messages_to_stderr(verbose=arguments.verbose, debug=arguments.debug) as messages:
        result = _run(arguments)
        warnings = list(messages.warnings)
    if arguments.json:
        print(
            json.dumps(
                {**result.data, "warnings": warnings, "exit_code": result.exit_code}, ensure_ascii=False
            )
        )
    elif result.text:
        print(result.text)
    return result.exit_code


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses a command line.

    Args:
        argv: Arguments without the program's name; those of the process if None.

    Returns:
        The options; `run` is the function of the chosen command.

    Raises:
        SystemExit: If they are wrong, or help was asked for, and answered.
    """
    parser = build_parser()
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:2] == ["evaluate", "vbench"]:  # a folder of that name is ./vbench
        words[:2] = [evaluate_vbench.COMMAND]
    arguments, rest = parser.parse_known_args(words)
    # argparse gives up on a list of positionals once an option has stood between them.
    more = [word for word in rest if not word.startswith("-")]
    if hasattr(arguments, "overrides"):
        more = [word for word in more if "=" in word]
        arguments.overrides += more
    elif hasattr(arguments, "systems"):
        arguments.systems += more
    else:
        more = []
    rest = [word for word in rest if word not in more]
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


def _run(arguments: argparse.Namespace) -> Result:
    """Runs the command; whatever goes wrong becomes one sentence on stderr and an exit code."""
    try:
        result: Result = arguments.run(arguments)
        return result
    except KeyboardInterrupt as interrupt:
        # A training that SIGTERM stopped says so.
        exit_code = getattr(interrupt, "exit_code", EXIT_INTERRUPTED)
        return _failure(arguments, str(interrupt) or "interrupted; no unfinished file is left", exit_code)
    except UsageError as error:
        return _failure(arguments, str(error), EXIT_USAGE)
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        return _failure(arguments, one_sentence(error), EXIT_FAILURE)
    except Exception as error:
        return _failure(arguments, _unexpected(error), EXIT_FAILURE)


def _failure(arguments: argparse.Namespace, sentence: str, exit_code: int) -> Result:
    if arguments.debug:
        traceback.print_exc(file=sys.stderr)
    print(f"flashvideo: error: {sentence}", file=sys.stderr)
    data: dict[str, Any] = {"error": sentence}
    return Result(data=data, text="", exit_code=exit_code)


def _unexpected(error: Exception) -> str:
    name = type(error).__name__
    if isinstance(error, MemoryError) or name == "OutOfMemoryError":  # the second one is torch's
        return f"out of memory; use a smaller --size or fewer frames ({one_sentence(error)})"
    return f"unexpected {name}: {one_sentence(error)}; add --debug for the traceback"
