"""The model that a command runs: loaded without the libraries' own chatter."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flashvideo.pipelines.embeds import PromptEmbeds
    from flashvideo.pipelines.settings import EnhanceSettings
    from flashvideo.pipelines.two_stage import FlashVideoPipeline


def open_pipeline(
    arguments: argparse.Namespace, *, stage1: str | None = None, reads_text: bool = True
) -> FlashVideoPipeline:
    """Loads the pipeline that the options of `add_model_options` ask for; its own progress bars are off.

    Args:
        arguments: What was asked for.
        stage1: Another model to take Stage I from.
        reads_text: Whether the text encoder is needed.

    With `--text-cache` the text encoder is left out: `encode_text` loads it when it is needed.

    Raises:
        ValueError: If there is no such model, device or dtype, or the other Stage I does not fit.
    """
    from flashvideo.pipelines.loading import load_pipeline

    with ExitStack() as stack:
        if not arguments.debug:
            stack.enter_context(quiet_libraries())
        pipeline = load_pipeline(
            arguments.model,
            device=arguments.device,
            dtype=arguments.dtype,
            revision=arguments.revision,
            text_encoder=arguments.text_encoder,
            load_text_encoder=reads_text and arguments.text_cache is None,
            vram=arguments.vram,
            weights=arguments.weights,
            stage1=stage1,
        )
    pipeline.set_progress_bar_config(disable=True)  # the command shows its own
    return pipeline


def encode_text(
    arguments: argparse.Namespace, pipeline: FlashVideoPipeline, prompts: Sequence[str]
) -> PromptEmbeds | None:
    """Encodes prompts before all else, or takes them from the folder of `--text-cache`, and frees the text encoder.

    Returns:
        The embeddings; None without prompts.

    Raises:
        ValueError: If the model has no text encoder.
    """
    from flashvideo.pipelines.text_cache import cached_embeds

    if not prompts:
        return None
    if arguments.text_cache is None:
        embeds = pipeline.encode_prompt(list(prompts), prompt_prefix=arguments.motion_prefix)
        pipeline.give_up("text_encoder")
        return embeds
    with ExitStack() as stack:
        if not arguments.debug:
            stack.enter_context(quiet_libraries())
        return cached_embeds(
            pipeline,
            prompts,
            cache=arguments.text_cache,
            model=pipeline.config._name_or_path,
            prompt_prefix=arguments.motion_prefix,
        )


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Within the block, diffusers and transformers show neither progress bars nor warnings."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    with ExitStack() as stack:
        for library in (diffusers_logging, transformers_logging):
            stack.callback(library.set_verbosity, library.get_verbosity())
            library.set_verbosity_error()
            if library.is_progress_bar_enabled():
                stack.callback(library.enable_progress_bar)
                library.disable_progress_bar()
        yield


@contextmanager
def use_threads(num_threads: int | None) -> Iterator[None]:
    """Within the block, torch works with so many threads; None leaves them as they are."""
    if num_threads is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def model_label(model: str) -> str:
    """Returns how a model is named in a file's metadata: its name, or its folder's without the way to it.

    >>> model_label("/home/ada/models/my-nano"), model_label("nano")
    ('my-nano', 'nano')
    """
    return Path(model).expanduser().absolute().name


def count_windows(
    pipeline: FlashVideoPipeline, num_frames: int, settings: EnhanceSettings | None = None
) -> int:
    """Returns how many windows a clip goes through at Stage II; with the model's own window where None is given."""
    from flashvideo.pipelines.settings import complete_windows
    from flashvideo.shapes import next_num_frames

    if settings is None:
        window, overlap = complete_windows(None, None, preset=pipeline.preset, vae_config=pipeline.vae.config)
    else:
        window, overlap = settings.window, settings.overlap
    padded = next_num_frames(num_frames, vae_config=pipeline.vae.config)
    return 1 + max(0, -(-(padded - window) // (window - overlap)))
