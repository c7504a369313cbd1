"""Placeholder of the conversion, for tests until it is there."""

from dataclasses import dataclass
from pathlib import Path
import torch
from diffusers import AutoencoderKLCogVideoX, FlowMatchEulerDiscreteScheduler
from transformers import AutoTokenizer, T5EncoderModel


@dataclass
class ReleasedFiles:
    stage1: Path
    stage2: Path
    vae: Path


def convert_released(files, output, *, text_encoder=None, dtype=None, lora="merge", on_progress=None):
    from flashvideo.models.convert import (
        read_checkpoint,
        convert_transformer,
        convert_vae,
        transformer_config,
        vae_config,
    )
    from flashvideo.models.transformer import FlashVideoTransformer3DModel
    from flashvideo.pipelines.two_stage import FlashVideoPipeline
    from flashvideo.schedule import FlashVideoScheduler
    from flashvideo.presets import FLASHVIDEO

    def tr(path):
        c = convert_transformer(read_checkpoint(path))
        m = FlashVideoTransformer3DModel(**transformer_config(c.weights, max_text_seq_length=226))
        c.load_into(m)
        return m

    c = convert_vae(read_checkpoint(files.vae))
    vae = AutoencoderKLCogVideoX(**vae_config(c.weights))
    c.load_into(vae)
    p = FlashVideoPipeline(
        tokenizer=AutoTokenizer.from_pretrained(text_encoder / "tokenizer"),
        text_encoder=T5EncoderModel.from_pretrained(text_encoder / "text_encoder"),
        vae=vae,
        stage1_transformer=tr(files.stage1),
        stage1_scheduler=FlashVideoScheduler(),
        stage2_transformer=tr(files.stage2),
        stage2_scheduler=FlowMatchEulerDiscreteScheduler(shift=2.5),
        preset=FLASHVIDEO,
    )
    if dtype is not None:
        p.to(dtype=dtype)
    p.save_pretrained(output)
