"""The three pipelines of toy models: two layers, eight text tokens, previews of 16x24 pixels."""

import pytest
import torch

from flashvideo.pipelines.two_stage import FlashVideoPipeline

WORDS = ["a", "red", "blue", "circle", "square", "moves", "left", "slowly", ","]


@pytest.fixture
def pipeline(toy_pipeline) -> FlashVideoPipeline:
    both = toy_pipeline(WORDS, stage1={"max_text_tokens": 6}, stage2={"prompt_prefix": "slowly,"})
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
