"""A folder of text embeddings: the text encoder is loaded for a prompt that is new, used, freed, and not loaded again.

One file per prompt, prefix, model, text encoder, dtype and kind of device; the file holds the prompt as plain text.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import T5EncoderModel

from flashvideo.pipelines.device_memory import HOST, DeviceMemory, release
from flashvideo.pipelines.embeds import EMBEDS_SUFFIX, PromptEmbeds, log_limits, stored_text_encoder_id
from flashvideo.pipelines.footprint import ModelConfigs, footprint_of
from flashvideo.pipelines.inputs import check_prompt, check_prompt_prefix, or_default

if TYPE_CHECKING:
    from flashvideo.pipelines.two_stage import FlashVideoPipeline

logger = logging.getLogger(__name__)


def cached_embeds(
    pipeline: FlashVideoPipeline,
    prompt: str | Sequence[str],
    *,
    cache: str | os.PathLike[str],
    model: str | os.PathLike[str],
    prompt_prefix: str | None = None,
) -> PromptEmbeds:
    """Returns what `encode_prompt` returns, from a folder if it was encoded before.

    Otherwise the model's text encoder is loaded, used and freed, and the result is stored.

    Args:
        pipeline: The model, with its tokenizer and transformers; its text encoder is not used and may be None.
        prompt: One prompt or B prompts, which are kept together.
        cache: Folder of the embeddings; made if it is not there. Several processes may use it at once.
        model: Folder of the model, from which its text encoder is loaded.
        prompt_prefix: Goes before each prompt at Stage II; the model's own if None.

    Returns:
        The embeddings; what of the prompt the model does not know or does not read is logged in either case.

    Raises:
        ValueError: If the prompt is empty, or the model's folder has no text encoder.
        OSError: If the folder cannot be made or written.
    """
    check_prompt(prompt)
    check_prompt_prefix(prompt_prefix, has_prompt=True)
    prefix = or_default(prompt_prefix, pipeline.preset.stage2.prompt_prefix)
    prompts = (prompt,) if isinstance(prompt, str) else tuple(prompt)
    encoder_folder = Path(model) / "text_encoder"
    encoder_id = stored_text_encoder_id(encoder_folder, pipeline.tokenizer)
    Path(cache).mkdir(parents=True, exist_ok=True)
    path = Path(cache) / (_key(pipeline, prompts, prefix, encoder_id) + EMBEDS_SUFFIX)
    stored = _read(path, pipeline, encoder_id)
    if stored is not None:
        log_limits(prompts, pipeline.tokenizer, pipeline.preset, prompt_prefix=prefix)
        return stored
    embeds = _encode(pipeline, encoder_folder, prompts, prefix)
    embeds.save(path)
    logger.info("text embeddings stored in %s", path)
    return embeds


def _key(pipeline: FlashVideoPipeline, prompts: Sequence[str], prefix: str, encoder_id: str) -> str:
    """Names all that the embeddings' bits depend on."""
    preset = pipeline.preset
    parts = {
        "model": preset.name,
        "text_encoder": encoder_id,
        "text_tokens": [preset.stage1.max_text_tokens, preset.stage2.max_text_tokens],
        "dtypes": [str(pipeline.stage1_transformer.dtype), str(pipeline.stage2_transformer.dtype)],
        "device": pipeline._execution_device.type,
        "prompts": prompts,
        "prompt_prefix": prefix,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read(path: Path, pipeline: FlashVideoPipeline, encoder_id: str) -> PromptEmbeds | None:
    """Returns stored embeddings; None if there are none that can be read, which is said of a file that is broken."""
    if not path.exists():
        return None
    try:
        embeds = PromptEmbeds.load(path)
        width = pipeline.stage2_transformer.config.text_embed_dim
        embeds.check_fits(pipeline.preset, width=width, text_encoder=encoder_id)
    except ValueError as error:
        logger.warning("the text is encoded anew, since its embeddings cannot be read: %s", error)
        return None
    logger.info("text embeddings read from %s", path)
    return embeds


def _encode(
    pipeline: FlashVideoPipeline, encoder_folder: Path, prompts: Sequence[str], prefix: str
) -> PromptEmbeds:
    """Encodes with a text encoder that is in memory only for that."""
    device, memory = pipeline._execution_device, pipeline._memory
    encoder = T5EncoderModel.from_pretrained(encoder_folder, dtype=pipeline.stage1_transformer.dtype)
    parts = {**pipeline.components, "text_encoder": encoder.eval()}
    reader = type(pipeline)(**parts, preset=pipeline.preset)
    if memory is None:
        encoder.to(device)
    else:
        memory.leave()
        footprint = footprint_of(
            ModelConfigs.of(reader), encoder.dtype, weights=pipeline.weights, on_host=device.type == HOST.type
        )
        reader._memory = DeviceMemory(
            {"text_encoder": encoder}, footprint, device, budget_bytes=memory.budget_bytes
        )
    embeds = reader.encode_prompt(prompts, prompt_prefix=prefix)
    del encoder, parts, reader
    release(device)  # what was freed is the transformers' now
    return embeds
