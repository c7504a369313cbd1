"""Toy models: the real classes, small enough that a test takes a moment."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX

from flashvideo.models.transformer import FlashVideoTransformer3DModel

TINY_VAE = {
    "block_out_channels": (8, 8, 8),  # three levels: 4 times smaller in space, as nano's
    "down_block_types": ("CogVideoXDownBlock3D",) * 3,
    "up_block_types": ("CogVideoXUpBlock3D",) * 3,
    "latent_channels": 8,
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
TINY_TRANSFORMER = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 8,
    "out_channels": 8,
    "time_embed_dim": 16,
    "text_embed_dim": 12,
    "num_layers": 2,
    "patch_size": 2,
    "max_text_seq_length": 8,
}


@pytest.fixture
def tiny_vae() -> AutoencoderKLCogVideoX:
    """4 times smaller in space and in time, 8 latent channels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoencoderKLCogVideoX(**TINY_VAE).eval()


@pytest.fixture
def tiny_transformer() -> Callable[..., FlashVideoTransformer3DModel]:
    """`tiny_transformer(stage)` builds a transformer of stage 1 or 2 that fits `tiny_vae`; no parameter is zero."""

    def build(stage: int, **overrides: object) -> FlashVideoTransformer3DModel:
        stage2 = {"noise_step_embed": stage == 2, "num_frames_embed": stage == 2}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stage)
            model = FlashVideoTransformer3DModel(**TINY_TRANSFORMER | stage2 | overrides)
            for parameter in model.parameters():
                if not parameter.any():
                    torch.nn.init.normal_(parameter, std=0.3)
        return model.eval()

    return build


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def golden() -> ModuleType:
    """The module `parity/golden.py`."""
    path = Path(__file__).with_name("parity") / "golden.py"
    spec = importlib.util.spec_from_file_location("golden", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
