"""`--refine-prompt`: the prompt is rewritten before anything else happens, and both forms are kept."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from flashvideo.cli.arguments import UsageError
from flashvideo.presets import NANO

if TYPE_CHECKING:
    from flashvideo.pipelines.preview import PreviewSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """How a prompt was refined."""

    prompt: str
    """The refined prompt."""

    original: str
    """What the user wrote."""

    model: str
    """The chat model's name; of a folder its last part."""

    @classmethod
    def of_preview(cls, settings: PreviewSettings) -> Self | None:
        """Returns how a preview's prompt was refined; None if it was not."""
        if settings.original_prompt is None or settings.refined_by is None:
            return None
        return cls(prompt=settings.prompts[0], original=settings.original_prompt, model=settings.refined_by)

    def note_in(self, settings: PreviewSettings) -> PreviewSettings:
        """Returns a preview's settings with this noted."""
        return dataclasses.replace(settings, original_prompt=self.original, refined_by=self.model)

    def as_note(self, *, with_prompt: bool) -> dict[str, str]:
        """Returns what a file's metadata says of it; the original prompt only if prompts are wanted there."""
        return {"model": self.model, **({"original_prompt": self.original} if with_prompt else {})}


def add_refinement(parser: argparse.ArgumentParser) -> None:
    """Adds `--refine-prompt` and what it needs."""
    group = parser.add_argument_group("longer prompt")
    group.add_argument(
        "--refine-prompt",
        action="store_true",
        help="have a chat model rewrite PROMPT as the long description that large models were trained on; the prompt "
        "is sent to --refine-endpoint unless the model is a folder",
    )
    group.add_argument(
        "--refine-model",
        metavar="NAME|DIR",
        help="the chat model: its name at the endpoint, or a folder that transformers loads",
    )
    group.add_argument(
        "--refine-endpoint",
        metavar="URL",
        help="OpenAI-compatible service, such as http://localhost:8000/v1 (default: $OPENAI_BASE_URL; its key is "
        "$OPENAI_API_KEY)",
    )


def check_refinement(arguments: argparse.Namespace) -> None:
    """Checks the options against one another.

    Raises:
        UsageError: If one is missing.
    """
    if arguments.refine_prompt:
        if arguments.prompt is None:
            raise UsageError("--refine-prompt rewrites a PROMPT, and there is none; add one")
        return
    for name in ("refine_model", "refine_endpoint"):
        if getattr(arguments, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} is for --refine-prompt; add that")


def refine(arguments: argparse.Namespace) -> Refinement | None:
    """Has the prompt rewritten and shows it on stderr.

    Returns:
        Both prompts; None if the prompt was left as it is.

    Raises:
        ValueError: In one sentence, why there is no refined prompt.
    """
    from flashvideo.pipelines.loading import choose_device
    from flashvideo.refine import refine_prompt

    model, original = arguments.refine_model, arguments.prompt
    if arguments.model == NANO.name:
        logger.warning(
            "%s knows only the words of its own small world; most of a long prompt is lost on it", NANO.name
        )
    refined = refine_prompt(
        original,
        endpoint=arguments.refine_endpoint,
        model=model,
        device=str(choose_device(arguments.device)),
    )
    if refined == original:
        return None
    print(f"flashvideo: refined prompt: {refined}", file=sys.stderr)
    label = os.path.basename(os.path.abspath(model)) if Path(model).is_dir() else model
    return Refinement(prompt=refined, original=original, model=label)
