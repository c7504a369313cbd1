"""The three pipelines of toy models: two layers, eight text tokens, previews of 16x24 pixels."""

import dataclasses

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from transformers import T5Config, T5EncoderModel

from flashvideo.pipelines.two_stage import FlashVideoPipeline
from flashvideo.presets import NANO, Preset
from flashvideo.schedule import FlashVideoScheduler
from flashvideo.text import build_word_tokenizer

WORDS = ["a", "red", "blue", "circle", "square", "moves", "left", "slowly", ","]


@pytest.fixture
def toy_preset() -> Preset:
    """Previews of 5 frames of 16x24, enlarged twice; 2 steps each."""
    return Preset(
        name="toy",
        stage1=dataclasses.replace(
            NANO.stage1,
            height=16,
            width=24,
            num_frames=5,
            num_inference_steps=2,
            guidance_scale=3.0,
            max_text_tokens=6,
        ),
        stage2=dataclasses.replace(
            NANO.stage2,
            height=32,
            width=48,
            num_inference_steps=2,
            prompt_prefix="slowly,",
            max_text_tokens=8,
        ),
    )


@pytest.fixture
def toy_text_encoder() -> T5EncoderModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = T5Config(vocab_size=16, d_model=12, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
        return T5EncoderModel(config).eval().requires_grad_(False)


@pytest.fixture
def pipeline(tiny_vae, tiny_transformer, toy_text_encoder, toy_preset) -> FlashVideoPipeline:
    both = FlashVideoPipeline(
        tokenizer=build_word_tokenizer(WORDS),
        text_encoder=toy_text_encoder,
        vae=tiny_vae,
        stage1_transformer=tiny_transformer(1),
        stage1_scheduler=FlashVideoScheduler(),
        stage2_transformer=tiny_transformer(2),
        stage2_scheduler=FlowMatchEulerDiscreteScheduler(shift=toy_preset.stage2.shift),
        preset=toy_preset,
    )
    both.set_progress_bar_config(disable=True)
    return both


@pytest.fixture
def stage1(pipeline):
    return pipeline.stage1


@pytest.fixture
def stage2(pipeline):
    return pipeline.stage2


@pytest.fixture
def clip() -> torch.Tensor:
    """`clip` pixels (1, 9, 3, 16, 24): smooth, within [-1, 1]."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(9, 3, 4, 6, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=(16, 24), mode="bilinear")[None]


@pytest.fixture
def seeded():
    """`seeded(n)` is a new generator with seed n."""
    return lambda seed=0: torch.Generator().manual_seed(seed)
