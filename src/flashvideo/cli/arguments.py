"""Arguments that several commands share, and the checks that need no model: what fails here is wrong usage, exit 2."""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from flashvideo.pipelines.sizes import REFERENCE, named_size
from flashvideo.presets import NANO, RELEASED_REPOSITORY, TEXT_ENCODER_REPOSITORY

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "nano"
MAX_SEED = 2**63 - 1


class UsageError(ValueError):
    """Arguments that contradict one another or lack one another."""


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one sentence and not a page of usage before it."""

    def error(self, message: str) -> NoReturn:
        """Writes the sentence and exits with 2."""
        self.exit(2, f"flashvideo: error: {message} (see `{self.prog} --help`)\n")


def whole_number(*, least: int = 1, most: int | None = None) -> Callable[[str], int]:
    """Returns a converter of text to a whole number in a range."""
    expected = (
        f"a whole number of at least {least}" if most is None else f"a whole number from {least} to {most}"
    )

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"must be {expected}, got {text!r}")
        return value

    return convert


def number(*, least: float | None = None, above: float = -math.inf) -> Callable[[str], float]:
    """Returns a converter of text to a finite number of at least `least`, greater than `above`."""
    expected = f"a number greater than {above:g}" if least is None else f"a number of at least {least:g}"

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value <= above or (least is not None and value < least):
            raise argparse.ArgumentTypeError(f"must be {expected}, got {text!r}")
        return value

    return convert


def size(text: str) -> str:
    """Refuses what is neither the name of a size nor WIDTHxHEIGHT; what a name means, the model or the input tells.

    >>> size("640x384"), size("2K")
    ('640x384', '2K')
    """
    try:
        named_size(text, preset=NANO)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("size ")) from None
    return text


def check_portrait(arguments: argparse.Namespace) -> None:
    """Refuses `--portrait` beside a size that stands otherwise.

    Raises:
        UsageError: If they contradict.
    """
    if arguments.size is not None and arguments.portrait:
        try:
            named_size(arguments.size, portrait=True, preset=NANO)
        except ValueError as error:
            raise UsageError(f"--{error}") from None


def log_odd_size(height: int, width: int) -> None:
    """Warns of a size that the usual 4:2:0 video cannot have."""
    if height % 2 or width % 2:
        logger.warning("%dx%d is an odd size, which some players do not show", width, height)


def lora(text: str) -> tuple[Path, float]:
    """Converts `FILE` or `FILE:SCALE` to file and scale.

    >>> lora("anime.safetensors:0.8")[1], lora("anime.safetensors")[1]
    (0.8, 1.0)
    """
    name, _, scale = text.rpartition(":")
    try:
        value = float(scale)
    except ValueError:
        if name and Path(name).exists() and not Path(text).exists():
            raise argparse.ArgumentTypeError(f"SCALE must be a number, got {scale!r} in {text!r}") from None
        name, value = text, 1.0
    if not name or not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be FILE or FILE:SCALE, got {text!r}")
    return Path(name), value


def prompt(text: str) -> str:
    """Refuses a prompt without any words."""
    if not text.strip():
        raise argparse.ArgumentTypeError(
            f"must not be empty, got {text!r}; describe what the video shall show"
        )
    return text


def add_recipe(parser: argparse.ArgumentParser, which: str) -> None:
    """Adds a recipe, and values of it to replace; `which` goes on after "a YAML file"."""
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help=f"a YAML file {which}")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="replaces a value of the recipe, e.g. phases.0.steps=10",
    )


def add_seed(parser: argparse._ActionsContainer, *, default: int | None = None) -> None:
    """Adds `--seed`."""
    shown = "another one each time, which is reported" if default is None else default
    parser.add_argument(
        "--seed",
        type=whole_number(least=0, most=MAX_SEED),
        default=default,
        metavar="N",
        help=f"source of all randomness (default: {shown})",
    )


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Adds which model runs, and on what."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        metavar="NAME|DIR|REPO",
        help=f"a model's name, its folder, or its repository on the Hugging Face Hub such as {RELEASED_REPOSITORY}, "
        "which is downloaded and converted once (default: %(default)s, which is inside the package)",
    )
    group.add_argument(
        "--revision", metavar="NAME", help="branch, tag or commit of the repository (default: its newest)"
    )
    group.add_argument(
        "--text-encoder",
        metavar="DIR|REPO",
        help=f"text encoder of a release, which comes without one (default: that of {TEXT_ENCODER_REPOSITORY})",
    )
    add_device(group)
    add_vram(group)
    add_weights(group)
    group.add_argument(
        "--dtype",
        default="auto",
        metavar="TYPE",
        help="float32, bfloat16 or float16 (default: bfloat16 where a short probe finds it faster, else float32)",
    )


def add_reference_size(parser: argparse._ActionsContainer) -> None:
    """Adds `--size`, the model's own where it is not given, and `--portrait`."""
    parser.add_argument(
        "--size",
        type=size,
        default=REFERENCE,
        metavar="SIZE",
        help="size of the final video, as in `generate` (default: the model's own)",
    )
    parser.add_argument("--portrait", action="store_true", help="upright, for a size by name")


def add_vram(parser: argparse._ActionsContainer) -> None:
    """Adds `--vram`."""
    parser.add_argument(
        "--vram",
        type=number(above=0),
        metavar="GIB",
        help="memory of the device that may be used (default: what is free)",
    )


def add_weights(parser: argparse._ActionsContainer) -> None:
    """Adds `--weights`."""
    parser.add_argument(
        "--weights",
        default="full",
        metavar="KIND",
        help="full, or fp8 or int8: transformers in about half of the memory, with slightly other results "
        "(default: %(default)s)",
    )


def add_device(parser: argparse._ActionsContainer) -> None:
    """Adds `--device` and `--threads`."""
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, mps, ... (default: the best one that is there)"
    )
    parser.add_argument(
        "--threads", type=whole_number(), metavar="N", help="processor threads to use (default: all cores)"
    )


def add_consistency(parser: argparse._ActionsContainer) -> None:
    """Adds `--consistency` and `--no-consistency`."""
    parser.add_argument(
        "--consistency",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="keep the coarse picture of what is enhanced, and its stillness (default: the model's own)",
    )


def add_shift(parser: argparse._ActionsContainer) -> None:
    """Adds `--shift`."""
    parser.add_argument(
        "--shift",
        type=number(above=0),
        metavar="S",
        help="time shift of the detail's steps: above 1 more of them lie near the start (default: the model's own)",
    )


def add_reference_rounding(parser: argparse._ActionsContainer) -> None:
    """Adds `--reference-rounding`."""
    parser.add_argument(
        "--reference-rounding",
        action="store_true",
        help="round the detail's time grid and noise step as the released code does in bfloat16, to repeat its results",
    )


def add_motion_prefix(parser: argparse._ActionsContainer) -> None:
    """Adds `--motion-prefix`."""
    parser.add_argument(
        "--motion-prefix",
        metavar="TEXT",
        help='goes before the prompt of the detail, such as "medium motion,"; "" is none (default: the model\'s own)',
    )


def add_text_cache(parser: argparse._ActionsContainer) -> None:
    """Adds `--text-cache`."""
    parser.add_argument(
        "--text-cache",
        type=Path,
        metavar="DIR",
        help="keep text embeddings in this folder, so that the text encoder is loaded for new prompts only; its files "
        "hold the prompts",
    )


def add_progress(parser: argparse.ArgumentParser) -> None:
    """Adds `--progress` and `--no-progress`."""
    parser.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="show each step and the time left on stderr (default: if it is a terminal)",
    )


def add_prompt_metadata(parser: argparse.ArgumentParser) -> None:
    """Adds `--no-prompt-metadata`."""
    parser.add_argument(
        "--no-prompt-metadata",
        dest="prompt_metadata",
        action="store_false",
        help="leave the prompt out of the video file's metadata",
    )


def add_common(parser: argparse.ArgumentParser) -> None:
    """Adds what every command has."""
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.add_argument("--verbose", "-v", action="store_true", help="say what is being done")
    parser.add_argument("--debug", action="store_true", help="show everything, and the traceback of an error")
