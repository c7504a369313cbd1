"""The model that a command runs: loaded without the libraries' own chatter."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flashvideo.pipelines.settings import EnhanceSettings
    from flashvideo.pipelines.two_stage import FlashVideoPipeline


def open_pipeline(arguments: argparse.Namespace, *, stage1: str | None = None) -> FlashVideoPipeline:
    """Loads the pipeline that the options of `add_model_options` ask for; its own progress bars are off.

    Args:
        arguments: What was asked for.
        stage1: Another model to take Stage I from.

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
            stage1=stage1,
        )
    pipeline.set_progress_bar_config(disable=True)  # the command shows its own
    return pipeline


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
    from flashvideo.pipelines.settings import complete_settings
    from flashvideo.shapes import vae_factors

    if settings is None:
        settings = complete_settings((1, 1), preset=pipeline.preset, vae=pipeline.vae)
    temporal, _ = vae_factors(pipeline.vae.config)
    padded = 1 + -(-(num_frames - 1) // temporal) * temporal
    return 1 + max(0, -(-(padded - settings.window) // (settings.window - settings.overlap)))
