"""What the two-stage pipeline reads: checks of its text, and its encoding for the stages that are to run.

Shapes: B prompts; L text tokens of a stage, D channels of the text encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from flashvideo.pipelines.embeds import PromptEmbeds, log_limits, text_encoder_id
from flashvideo.pipelines.inputs import check_prompt, check_prompt_prefix, or_default
from flashvideo.pipelines.preview import PreviewState
from flashvideo.text import with_prefix

if TYPE_CHECKING:
    from flashvideo.pipelines.two_stage import FlashVideoPipeline


def check_text(
    pipeline: FlashVideoPipeline,
    prompt: str | list[str] | None,
    source: PreviewState | torch.Tensor | None,
    *,
    prompt_prefix: str | None = None,
    prompt_embeds: PromptEmbeds | None = None,
) -> None:
    """Checks what a call is given to read, as `check_inputs` does.

    Raises:
        ValueError: If there is nothing to read, it contradicts itself, or was made for another model.
    """
    if prompt_embeds is not None:
        if prompt is not None or prompt_prefix is not None:
            name = "prompt" if prompt is not None else "prompt_prefix"
            raise ValueError(f"{name} is in prompt_embeds already; pass one of the two")
        check_prompt_embeds(pipeline, prompt_embeds)
        return
    if source is None or prompt is not None:
        check_prompt(prompt)
    has_prompt = prompt is not None or isinstance(source, PreviewState)
    check_prompt_prefix(prompt_prefix, has_prompt=has_prompt)


def check_prompt_embeds(pipeline: FlashVideoPipeline, prompt_embeds: object) -> None:
    """Checks that embeddings were made by `encode_prompt` of this model.

    Raises:
        ValueError: If they were not.
    """
    if not isinstance(prompt_embeds, PromptEmbeds):
        raise ValueError(
            f"prompt_embeds must be a PromptEmbeds, got {type(prompt_embeds).__name__}; make it with encode_prompt"
        )
    encoder, tokenizer = pipeline.text_encoder, pipeline.tokenizer
    prompt_embeds.check_fits(
        pipeline.preset,
        width=(pipeline.stage2_transformer or pipeline.stage1_transformer).config.text_embed_dim,
        text_encoder="" if encoder is None or tokenizer is None else text_encoder_id(encoder, tokenizer),
    )


def embed_for_stages(
    pipeline: FlashVideoPipeline,
    prompts: Sequence[str],
    *,
    prompt_prefix: str | None = None,
    stage1: bool = True,
    stage2: bool = True,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Encodes prompts for the stages that are to run; what the model does not know or does not read is logged.

    Returns:
        Embeddings (B, L, D) of Stage I and of Stage II; None for a stage that does not run.
    """
    preset = pipeline.preset
    prefix = or_default(prompt_prefix, preset.stage2.prompt_prefix)
    prefixed = [with_prefix(one, prefix) for one in prompts]
    # Either stage can encode for both; a model may have the first one alone, or neither.
    encoder = pipeline.stage1 if pipeline.stage2_transformer is None else pipeline.stage2
    embeds = (
        pipeline.stage1.embed(prompts, preset.stage1.max_text_tokens) if stage1 else None,
        encoder.embed(prefixed, preset.stage2.max_text_tokens) if stage2 else None,
    )
    log_limits(prompts, pipeline.tokenizer, preset, prompt_prefix=prefix, stage1=stage1, stage2=stage2)
    return embeds


def prepare_text(
    pipeline: FlashVideoPipeline,
    prompt: str | list[str] | None,
    source: PreviewState | torch.Tensor | None,
    *,
    prompt_prefix: str | None = None,
    prompt_embeds: PromptEmbeds | None = None,
    preview_only: bool = False,
) -> tuple[tuple[str, ...], torch.Tensor | None, torch.Tensor | None]:
    """Encodes the text of all that is to run before any of it runs, so that the encoder is needed only once.

    Args:
        pipeline: The pipeline.
        prompt: The call's prompt.
        source: What `read_preview` returned; a preview's own prompt stands in for one that is not given.
        prompt_prefix: The call's prefix.
        prompt_embeds: The call's embeddings, instead.
        preview_only: Whether to stop at the preview.

    Returns:
        The prompts, none for no text; embeddings (B, L, D) of Stage I and of Stage II, None where they are not
        needed or there is no text.
    """
    if prompt_embeds is not None:
        device = pipeline._execution_device
        stage1 = prompt_embeds.stage1.to(device, pipeline.stage1_transformer.dtype)
        stage2 = None
        if pipeline.stage2_transformer is not None:
            stage2 = prompt_embeds.stage2.to(device, pipeline.stage2_transformer.dtype)
        return prompt_embeds.prompts, stage1, stage2
    if prompt is not None:
        prompts = (prompt,) if isinstance(prompt, str) else tuple(prompt)
    else:
        prompts = source.settings.prompts if isinstance(source, PreviewState) else ()
    if not prompts:
        return (), None, None
    return prompts, *embed_for_stages(
        pipeline, prompts, prompt_prefix=prompt_prefix, stage1=source is None, stage2=not preview_only
    )
