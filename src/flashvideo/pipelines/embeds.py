"""Text embeddings as a value that can be kept, so that the text encoder need not be in memory while a video is made.

The text encoder of the released model is as large as both transformers together, and is needed for a moment only:
prompts can be encoded once, stored, and used without it.

Shapes: B prompts; L text tokens of a stage, D channels of the text encoder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors import safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flashvideo.pipelines.inputs import log_cut, log_unknown_words
from flashvideo.pipelines.tensor_file import SUFFIX, read_tensors, write_tensors
from flashvideo.presets import Preset

EMBEDS_SUFFIX = SUFFIX
"""Suffix of a file of embeddings."""

_METADATA_KEY = "flashvideo_prompt_embeds"
_FORMAT = 1
_PLAIN_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptEmbeds:
    """What the text encoder makes of prompts, for both stages.

    Raises:
        ValueError: If the embeddings are not (B, L, D) of one B and D, B the number of prompts.
    """

    stage1: torch.Tensor
    """Stage I's embeddings (B, L, D)."""

    stage2: torch.Tensor
    """Stage II's embeddings (B, L, D), of prefix and prompt."""

    prompts: tuple[str, ...]
    """The B prompts, without a prefix."""

    prompt_prefix: str
    """What went before each prompt at Stage II."""

    model: str
    """Name of the preset of the model."""

    text_encoder: str
    """`text_encoder_id` of the encoder; empty if it is not known."""

    def __post_init__(self) -> None:
        """Checks that the parts belong together."""
        shapes = [tuple(stage.shape) for stage in (self.stage1, self.stage2)]
        batch, width = len(self.prompts), self.stage1.shape[-1]
        if not batch or any(len(s) != 3 or s[0] != batch or s[2] != width for s in shapes):
            raise ValueError(
                f"prompt embeddings must be (B, L, D) for B prompts at both stages, got {shapes[0]} and {shapes[1]} "
                f"for {batch} prompts; make them with FlashVideoPipeline.encode_prompt"
            )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the embeddings and the prompts; several processes may write the same file at once.

        Args:
            path: File to write, ending in `.safetensors`.

        Returns:
            The path written.

        Raises:
            ValueError: If the suffix is another one.
        """
        path = Path(path)
        if path.suffix != EMBEDS_SUFFIX:
            raise ValueError(
                f"prompt embeddings are saved as {EMBEDS_SUFFIX}, got {path.name!r}; change the suffix"
            )
        tensors = {
            name: stage.detach().cpu().contiguous()
            for name, stage in (("stage1", self.stage1), ("stage2", self.stage2))
        }
        content = {
            "format": _FORMAT,
            "model": self.model,
            "text_encoder": self.text_encoder,
            "prompts": self.prompts,
            "prompt_prefix": self.prompt_prefix,
            "text_tokens": [self.stage1.shape[1], self.stage2.shape[1]],
        }
        write_tensors(path, tensors, {_METADATA_KEY: content})
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads what `save` wrote. For which model they are is checked where they are used.

        Raises:
            ValueError: If the file is not there, or does not hold embeddings of this format.
        """
        path = Path(path)
        tensors, content = read_tensors(path, key=_METADATA_KEY, kind="prompt embeddings")
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ValueError(
                f"{path} does not hold prompt embeddings of format {_FORMAT}; expected a file that "
                "PromptEmbeds.save of this version wrote"
            )
        return cls(
            stage1=tensors["stage1"],
            stage2=tensors["stage2"],
            prompts=tuple(content["prompts"]),
            prompt_prefix=content["prompt_prefix"],
            model=content["model"],
            text_encoder=content["text_encoder"],
        )

    def check_fits(self, preset: Preset, *, width: int, text_encoder: str = "") -> None:
        """Checks that the embeddings were made for a model.

        Args:
            preset: The model's preset.
            width: D of its transformers.
            text_encoder: `text_encoder_id` of its encoder; empty if it has none or it is not known.

        Raises:
            ValueError: If they were made for another one.
        """
        expected = (preset.name, preset.stage1.max_text_tokens, preset.stage2.max_text_tokens, width)
        got = (self.model, self.stage1.shape[1], self.stage2.shape[1], self.stage1.shape[2])
        if got != expected:
            ours, theirs = (
                f"{name!r} ({one} and {two} tokens of {channels} channels)"
                for name, one, two, channels in (expected, got)
            )
            raise ValueError(
                f"prompt_embeds were made for the model {theirs}, but this is {ours}; "
                "encode the prompt with this model"
            )
        if text_encoder and self.text_encoder and text_encoder != self.text_encoder:
            raise ValueError(
                f"prompt_embeds were made by another text encoder ({self.text_encoder[:12]}) than this model "
                f"{preset.name!r} has ({text_encoder[:12]}); encode the prompt with this model"
            )


def text_encoder_id(text_encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """Identifies a text encoder by samples of its weights and its tokenizer's vocabulary, in any floating-point dtype.

    Returns:
        64 hexadecimal digits, the same as `stored_text_encoder_id` of its folder; empty if the weights cannot be read
        as they are, because they are quantised or offloaded.
    """
    weights = list(text_encoder.state_dict().values())
    if any(
        type(weight) is not torch.Tensor or weight.is_meta or weight.dtype not in _PLAIN_DTYPES
        for weight in weights
    ):
        return ""
    return _digest(
        ((tuple(weight.shape), weight if weight.ndim < 2 else weight[:1]) for weight in weights), tokenizer
    )


def stored_text_encoder_id(folder: str | os.PathLike[str], tokenizer: PreTrainedTokenizerBase) -> str:
    """Identifies the text encoder in a folder without loading it.

    Args:
        folder: The `text_encoder` folder of a model.
        tokenizer: Its tokenizer.

    Returns:
        What `text_encoder_id` returns for the loaded encoder.

    Raises:
        ValueError: If there are no weights as safetensors.
    """
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} holds no *.safetensors, expected the weights of a text encoder")
    samples = []
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is not a dict
                weight = file.get_slice(name)
                shape = tuple(weight.get_shape())
                samples.append((shape, file.get_tensor(name) if len(shape) < 2 else weight[:1]))
    return _digest(samples, tokenizer)


def _digest(
    samples: Iterable[tuple[tuple[int, ...], torch.Tensor]], tokenizer: PreTrainedTokenizerBase
) -> str:
    # As a set without names: weights that are shared have one name in a file and several in memory.
    # In bfloat16, so that the dtype in which the encoder was loaded does not matter.
    parts = {
        repr(shape).encode() + sample.detach().to(torch.bfloat16).cpu().view(torch.int16).numpy().tobytes()
        for shape, sample in samples
    }
    digest = hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode())
    for part in sorted(parts):
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def log_limits(
    prompts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    preset: Preset,
    *,
    prompt_prefix: str,
    stage1: bool = True,
    stage2: bool = True,
) -> None:
    """Logs what of the prompts a model does not know or does not read, naming the stage where both may cut elsewhere.

    Args:
        prompts: Prompts without a prefix.
        tokenizer: The model's tokenizer.
        preset: The model's preset.
        prompt_prefix: What goes before each prompt at Stage II.
        stage1: Whether Stage I reads them.
        stage2: Whether Stage II reads them.
    """
    first, second = preset.stage1.max_text_tokens, preset.stage2.max_text_tokens
    differ = bool(prompt_prefix) or first != second
    log_unknown_words(prompts, tokenizer, prefix=prompt_prefix if stage2 else "")
    if stage1:
        log_cut(prompts, tokenizer, max_text_tokens=first, stage="Stage I" if differ else "")
    # Where both stages read the same, once is enough.
    if stage2 and (differ or not stage1):
        name = "Stage II" if differ else ""
        log_cut(prompts, tokenizer, max_text_tokens=second, prefix=prompt_prefix, stage=name)
