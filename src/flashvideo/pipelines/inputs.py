"""What the pipelines accept: checks that say what is wrong in one sentence, and the forms that a clip may have.

Shapes: B clips, F frames, H, W height and width; pixels are in [-1, 1].
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase

from flashvideo.presets import PRESETS, Preset
from flashvideo.text import truncated_text, unknown_words, with_prefix

T = TypeVar("T")

logger = logging.getLogger(__name__)

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
"""Forms in which the pipelines return frames."""

# Decoders and resizing overshoot a little; a clip with levels from 0 to 255 overshoots a lot.
_MAX_OVERSHOOT = 1.5


def read_preset(preset: Preset | Mapping[str, Any] | None) -> Preset:
    """Returns a preset from what a pipeline was given or has stored.

    Raises:
        ValueError: If there is none, or it is not a valid one.
    """
    if preset is None:
        names = ", ".join(repr(name) for name in PRESETS)
        raise ValueError(
            f"preset must be a Preset or its to_dict(), got None; pass one of flashvideo.PRESETS ({names})"
        )
    return preset if isinstance(preset, Preset) else Preset.from_dict(dict(preset))


def or_default(value: T | None, default: T) -> T:
    """Returns the value, or the default where there is none; zero is a value."""
    return default if value is None else value


def check_prompt(prompt: object) -> None:
    """Checks for one prompt or a list of them, none of them empty.

    Raises:
        ValueError: If it is anything else.
    """
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, list | tuple) or not prompts or not all(isinstance(p, str) for p in prompts):
        raise ValueError(f"prompt must be a string or a non-empty list of strings, got {prompt!r}")
    if not all(p.strip() for p in prompts):
        raise ValueError(f"prompt must not be empty, got {prompt!r}; describe what the video shall show")


def check_count(name: str, value: object, *, least: int = 1) -> None:
    """Checks for a whole number of at least `least`.

    Raises:
        ValueError: If it is anything else.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def check_guidance(name: str, value: float) -> None:
    """Checks for a finite guidance scale of at least 1.

    Raises:
        ValueError: If it is anything else.
    """
    if not math.isfinite(value) or value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}; 1 means no guidance and halves the work")


def check_shift(name: str, value: float | None) -> None:
    """Checks for a finite time shift greater than 0, or none.

    Raises:
        ValueError: If it is anything else.
    """
    if value is not None and not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a number greater than 0, got {value}; 1 spaces the steps evenly")


def check_output_type(output_type: str) -> None:
    """Checks for one of `OUTPUT_TYPES`.

    Raises:
        ValueError: If it is anything else.
    """
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}")


def check_callback_inputs(names: Sequence[str], allowed: Sequence[str]) -> None:
    """Checks the names of the tensors that a callback asks for.

    Raises:
        ValueError: If a pipeline does not have one of them.
    """
    unknown = [name for name in names if name not in allowed]
    if unknown:
        raise ValueError(
            f"callback_on_step_end_tensor_inputs must be among {', '.join(allowed)}, got {', '.join(unknown)}"
        )


def check_generator(generator: object) -> None:
    """Checks for one generator, or none.

    Raises:
        ValueError: If it is anything else, such as a seed or a list.
    """
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ValueError(
            f"generator must be one torch.Generator, got {type(generator).__name__}; "
            "write torch.Generator().manual_seed(seed), and call once per prompt for one seed per prompt"
        )


def generator_or_fresh(generator: torch.Generator | None) -> torch.Generator:
    """Returns the generator, or a new one on the CPU whose seed comes from torch's own.

    So every run has a seed that can be written down, and `torch.manual_seed` still repeats a run.
    """
    if generator is not None:
        return generator
    seed = int(torch.randint(2**63 - 1, ()).item())
    return torch.Generator().manual_seed(seed)


def check_pixels(name: str, pixels: torch.Tensor) -> None:
    """Checks for RGB pixels (..., 3, H, W) as floats in [-1, 1].

    Raises:
        ValueError: If shape, dtype or values are different.
    """
    if pixels.ndim < 3 or pixels.shape[-3] != 3 or pixels.numel() == 0:
        raise ValueError(
            f"{name} must have the shape (B, F, 3, H, W) or (F, 3, H, W), none of it 0, got {tuple(pixels.shape)}"
        )
    if not pixels.is_floating_point():
        raise ValueError(f"{name} must be floats in [-1, 1], got {pixels.dtype}; use levels / 127.5 - 1")
    peak = pixels.abs().max().item()
    if not peak <= _MAX_OVERSHOOT:  # also true for NaN
        raise ValueError(f"{name} must lie in [-1, 1], got values up to {peak:g}; use levels / 127.5 - 1")


def to_pixels(video: torch.Tensor | Sequence[Any]) -> torch.Tensor:
    """Turns a clip into pixels (B, F, 3, H, W).

    Args:
        video: Floats (B, F, 3, H, W) or (F, 3, H, W) in [-1, 1]; or a list of frames of one size, each a Pillow image,
            a uint8 array (H, W, 3) or floats (3, H, W) in [-1, 1].

    Returns:
        The same tensor with a batch axis, or the frames as float32.

    Raises:
        ValueError: If it is none of these, or its values are not in [-1, 1].
    """
    if isinstance(video, torch.Tensor):
        pixels = video
    elif isinstance(video, list | tuple) and video:
        frames = [_frame_to_pixels(frame) for frame in video]
        sizes = sorted({tuple(frame.shape[-2:]) for frame in frames})
        if len(sizes) > 1:
            raise ValueError(f"video must have frames of one size, got {sizes}; resize them first")
        pixels = torch.stack(frames)
    else:
        raise ValueError(
            f"video must be a tensor (B, F, 3, H, W) or a non-empty list of frames, got {type(video).__name__}"
        )
    check_pixels("video", pixels)
    if pixels.ndim not in (4, 5):
        raise ValueError(
            f"video must have the shape (B, F, 3, H, W) or (F, 3, H, W), got {tuple(pixels.shape)}; "
            "a picture is a video of one frame: picture[None]"
        )
    return pixels if pixels.ndim == 5 else pixels[None]


def peek(frames: Iterable[torch.Tensor]) -> tuple[torch.Tensor, Iterator[torch.Tensor]]:
    """Looks at the first of many frames.

    Args:
        frames: Frames (3, H, W) in [-1, 1], read one after the other.

    Returns:
        The first frame, and all frames, each checked when it is reached.

    Raises:
        ValueError: If there are no frames, or one is not RGB in [-1, 1] or of another size than the first.
    """
    iterator = iter(frames)
    first = next(iterator, None)
    if first is None:
        raise ValueError("video must have at least one frame, got none")

    def checked() -> Iterator[torch.Tensor]:
        for frame in itertools.chain([first], iterator):
            check_pixels("frames", frame)
            if frame.shape != first.shape:
                raise ValueError(
                    f"frames must be (3, H, W) of one size, got {tuple(first.shape)} and {tuple(frame.shape)}"
                )
            yield frame

    check_pixels("frames", first)
    return first, checked()


def _frame_to_pixels(frame: object) -> torch.Tensor:
    if isinstance(frame, torch.Tensor) and frame.ndim == 3:
        return frame
    if isinstance(frame, Image.Image):
        frame = np.asarray(frame.convert("RGB"))
    if isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3:
        return torch.from_numpy(frame.copy()).permute(2, 0, 1).float() / 127.5 - 1  # (H, W, 3) -> (3, H, W)
    shape = f" {frame.dtype} {tuple(frame.shape)}" if isinstance(frame, np.ndarray | torch.Tensor) else ""
    raise ValueError(
        "video frames must be Pillow images, uint8 arrays (H, W, 3) or float tensors (3, H, W), "
        f"got {type(frame).__name__}{shape}"
    )


def log_prompt_limits(
    prompts: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_text_tokens: int,
    prefix: str = "",
) -> None:
    """Logs a warning for words that the model does not know, and for the end of a prompt that is cut off.

    Args:
        prompts: Prompts without their prefix.
        tokenizer: Tokenizer of the text encoder.
        max_text_tokens: Tokens that the model reads, of prefix and prompt together.
        prefix: What goes before each prompt.
    """
    log_unknown_words(prompts, tokenizer, prefix=prefix)
    log_cut(prompts, tokenizer, max_text_tokens=max_text_tokens, prefix=prefix)


def log_unknown_words(
    prompts: Iterable[str], tokenizer: PreTrainedTokenizerBase, *, prefix: str = ""
) -> None:
    """Logs a warning for the words of prompts, and of what goes before each, that the model does not know."""
    for text in (prefix, *prompts):
        if words := unknown_words(text, tokenizer):
            logger.warning("this model has no word for %s; it ignores them in %r", ", ".join(words), text)


def log_cut(
    prompts: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_text_tokens: int,
    prefix: str = "",
    stage: str = "",
) -> None:
    """Logs a warning for the end of a prompt that is cut off, as `log_prompt_limits` does.

    Args:
        prompts: Prompts without their prefix.
        tokenizer: Tokenizer of the text encoder.
        max_text_tokens: Tokens that the model reads, of prefix and prompt together.
        prefix: What goes before each prompt.
        stage: Named in the message where the other stage cuts at another word.
    """
    subject = f"at {stage} the prompt" if stage else "the prompt"
    subject += f" with its prefix {prefix!r}" if prefix else ""
    for prompt in prompts:
        if cut := truncated_text(with_prefix(prompt, prefix), tokenizer, max_text_tokens):
            logger.warning("%s is longer than %d tokens, this is cut off: %s", subject, max_text_tokens, cut)


def log_negative_prompt(negative_prompt: str | Sequence[str] | None) -> None:
    """Logs a warning for a negative prompt that says something: it has no effect."""
    given = [negative_prompt] if isinstance(negative_prompt, str) else negative_prompt or ()
    if any(given):
        logger.warning(
            "the negative prompt has no effect: these models are guided against no text at all; say in the prompt "
            "itself what the video shall show"
        )


def check_embeds_tensor(prompt_embeds: object) -> None:
    """Checks for one stage's text embeddings, or none.

    Raises:
        ValueError: If they are anything else than a tensor (B, L, D), such as both stages' `PromptEmbeds`.
    """
    if prompt_embeds is None or (isinstance(prompt_embeds, torch.Tensor) and prompt_embeds.ndim == 3):
        return
    shape = f" {tuple(prompt_embeds.shape)}" if isinstance(prompt_embeds, torch.Tensor) else ""
    raise ValueError(
        f"prompt_embeds of one stage must be a tensor (B, L, D), got {type(prompt_embeds).__name__}{shape}; "
        "pass its stage1 or stage2 if it is a PromptEmbeds"
    )


def check_prompt_prefix(prompt_prefix: str | None, *, has_prompt: bool) -> None:
    """Checks for a prefix that is text and goes before a prompt, or none.

    Raises:
        ValueError: If it is anything else.
    """
    if prompt_prefix is None:
        return
    if not isinstance(prompt_prefix, str):
        raise ValueError(f'prompt_prefix must be a string, got {prompt_prefix!r}; "" is for none')
    if not has_prompt:
        raise ValueError(
            f"prompt_prefix goes before a prompt and there is none here, got {prompt_prefix!r}; pass prompt too"
        )
