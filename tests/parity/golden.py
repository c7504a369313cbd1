"""The reference's outputs, and the formula that makes its weights and inputs again.

`golden.safetensors` holds what the public reference code computed, in float32 on a CPU, with tiny models. Neither
weights nor inputs are stored: each is a hash of its name and of the element's index, mapped to a uniform number of
mean 0 and standard deviation 1. The metadata holds the configuration and, for each model, its keys and shapes.
"""

import dataclasses
import json
import math
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX, FlowMatchEulerDiscreteScheduler
from safetensors import safe_open

from flashvideo.flow import guided_velocity
from flashvideo.models.convert import convert_transformer, convert_vae, transformer_config, vae_config
from flashvideo.models.transformer import FlashVideoTransformer3DModel
from flashvideo.pipelines.stage1 import FlashVideoStage1Pipeline
from flashvideo.pipelines.stage2 import FlashVideoEnhancePipeline
from flashvideo.presets import FLASHVIDEO
from flashvideo.schedule import FlashVideoScheduler, guidance_scale_at

FILE = Path(__file__).with_name("golden.safetensors")

# Largest absolute differences that count as equal. The mathematical library alone moves an output by up to 1.5e-5,
# a mistake by at least 1.8e-4.
TRANSFORMER = 3e-5
MERGE = 1e-5
HIDDEN = 1e-5
EMBEDDING = 5e-5
TABLE = 1e-6  # relative
STAGE1_ANALYTIC = 2e-5
STAGE1_SAMPLER = 1e-4
STAGE2_SAMPLER = 2e-4
VAE = 3e-5
FRAMES255 = 5e-3

# Spread of a weight matrix in units of 1 / sqrt(inputs), by the first part of the name that fits.
MATRIX_GAINS = {
    "query_key_value": 0.1,
    "patch_embed": 0.1,
    "attention.dense": 2.0,
    "dense_4h_to_h": 0.2,
    "adaLN_modulation": 0.5,
    "conv_y": 0.3,
    "conv_b": 0.3,
    "conv_in": 0.1,
    "conv1": 0.1,
    "conv2": 0.1,
}


@cache
def metadata() -> dict:
    with safe_open(FILE, "pt") as file:
        return {name: json.loads(text) for name, text in file.metadata().items()}


def expected(name: str) -> torch.Tensor:
    """What the reference computed."""
    with safe_open(FILE, "pt") as file:
        return file.get_tensor(name)


def _mix(values: np.ndarray) -> np.ndarray:
    """A 32-bit integer hash, in 64-bit arithmetic."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        values = values ^ (values >> np.uint64(shift))
        values = values * np.uint64(factor) & np.uint64(0xFFFFFFFF)
    return values ^ (values >> np.uint64(16))


def formula(name: str, shape: Sequence[int], *, base: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    """The tensor called `name`."""
    index = np.arange(math.prod(shape), dtype=np.uint64)
    bits = _mix(_mix(index) ^ np.uint64(zlib.crc32(name.encode())))
    unit = 2.0 * ((bits.astype(np.float64) + 0.5) / 2.0**32) - 1.0
    return torch.from_numpy((base + scale * (unit * math.sqrt(3.0))).astype(np.float32)).reshape(*shape)


def weight(model: str, key: str, shape: Sequence[int]) -> torch.Tensor:
    """One weight of the reference's tiny `model` ("stage1", "stage2" or "vae")."""
    fan_in = math.prod(shape[1:])
    if key.endswith("transformer.final_layernorm.weight"):
        base, scale = 0.1, 0.02
    elif key.endswith("conv_y.conv.bias") or (len(shape) == 1 and key.endswith(".weight")):
        base, scale = 1.0, 0.1
    elif len(shape) == 1:
        base, scale = 0.0, 0.02
    elif ".matrix_B." in key:
        base, scale = 0.0, 0.2
    else:
        gains = (gain for part, gain in MATRIX_GAINS.items() if part in key and ".matrix_A." not in key)
        base, scale = 0.0, next(gains, 1.0) / math.sqrt(fan_in)
    return formula(f"{model}:{key}", shape, base=base, scale=scale)


def state_dict(model: str) -> dict[str, torch.Tensor]:
    """All weights of a tiny reference model, under the reference's keys."""
    return {key: weight(model, key, shape) for key, shape in metadata()["keys"][model].items()}


def difference(actual: torch.Tensor, name: str) -> float:
    """Largest absolute difference to the reference."""
    reference = expected(name)
    assert actual.shape == reference.shape, (actual.shape, reference.shape)
    return float((actual.detach().double() - reference.double()).abs().max())


def relative_difference(actual: torch.Tensor, name: str) -> float:
    """Largest difference to the reference, relative to the entry's size (absolute near zero)."""
    reference = expected(name).double()
    assert actual.shape == reference.shape, (actual.shape, reference.shape)
    return float(((actual.double() - reference).abs() / reference.abs().clamp(min=1e-3)).max())


LATENT_SHAPES = {"a": (2, 3, 16, 4, 6), "b": (1, 2, 16, 6, 10)}
TEXT_TOKENS = 8


def build_transformer(
    stage: str, state: dict[str, torch.Tensor] | None = None
) -> FlashVideoTransformer3DModel:
    """Our transformer with the tiny reference model's weights (LoRA merged), or with a changed state dict."""
    conversion = convert_transformer(state_dict(stage) if state is None else state)
    config = transformer_config(conversion.weights, max_text_seq_length=TEXT_TOKENS)
    model = FlashVideoTransformer3DModel(**config)
    conversion.load_into(model)
    return model.eval()


def build_vae() -> AutoencoderKLCogVideoX:
    """The CogVideoX VAE with the tiny reference model's weights."""
    conversion = convert_vae(state_dict("vae"))
    model = AutoencoderKLCogVideoX(**vae_config(conversion.weights))
    conversion.load_into(model)
    return model.eval()


def _preset() -> dict:
    """The released model's numbers, with the tiny models' text length."""
    stages = {
        name: dataclasses.replace(getattr(FLASHVIDEO, name), max_text_tokens=TEXT_TOKENS)
        for name in ("stage1", "stage2")
    }
    return dataclasses.replace(FLASHVIDEO, **stages).to_dict()


def build_stage1_pipeline() -> FlashVideoStage1Pipeline:
    """The public Stage I pipeline of the converted tiny models; text comes as embeddings."""
    pipeline = FlashVideoStage1Pipeline(
        tokenizer=None,
        text_encoder=None,
        vae=build_vae(),
        transformer=build_transformer("stage1"),
        scheduler=FlashVideoScheduler(),
        preset=_preset(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def build_enhance_pipeline(shift: float = FLASHVIDEO.stage2.shift) -> FlashVideoEnhancePipeline:
    """The public Stage II pipeline of the converted tiny models, likewise."""
    pipeline = FlashVideoEnhancePipeline(
        tokenizer=None,
        text_encoder=None,
        vae=build_vae(),
        transformer=build_transformer("stage2"),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        preset=_preset(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def transformer_inputs(stage: str, case: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and text embeddings of case "a" or "b"."""
    shape = LATENT_SHAPES[case]
    text = formula(f"{stage}_dit/{case}/context", (shape[0], TEXT_TOKENS, 32))
    return formula(f"{stage}_dit/{case}/x", shape), text


def transformer_calls(stage: str) -> list[tuple[str, str, torch.Tensor, int | None]]:
    """Every recorded call: tensor name without its last part, case, timesteps, noise step."""
    timesteps = metadata()["config"]["timesteps"]
    return [
        (f"{stage}_dit/{case}/t{i}" + (f"_ref{step}" if step else ""), case, torch.tensor(times), step)
        for case in LATENT_SHAPES
        for i, times in enumerate(timesteps[case])
        for step in ((675, 650) if stage == "stage2" else (None,))
    ]


@torch.no_grad()
def transformer_differences(model: FlashVideoTransformer3DModel, stage: str, out: str) -> dict[str, float]:
    """Largest difference to the reference's output, call by call."""
    differences = {}
    for name, case, timesteps, noise_step in transformer_calls(stage):
        latents, text = transformer_inputs(stage, case)
        sample = model(latents, text, timesteps, noise_step=noise_step).sample
        differences[name] = difference(sample, f"{name}/{out}")
    return differences


def analytic_network(x: torch.Tensor, timestep: float, text: torch.Tensor) -> torch.Tensor:
    """The stand-in network of the reference's Stage I sampler run, for one sample."""
    return 0.3 * x + 0.1 * math.sin(timestep) + 0.05 * text.mean()


@torch.no_grad()
def run_stage1(
    network: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor], guidance_scale: float = 8.0
) -> list[torch.Tensor]:
    """Our Stage I sampler on the reference's noise: the state after each of 51 steps.

    Args:
        network: (latents, timesteps, text) -> v, on a batch of [without text, with text].
        guidance_scale: 8 in the reference.
    """
    shape = tuple(metadata()["config"]["stage1_sampler_shape"])
    text = formula("stage1_sampler/cond", (1, TEXT_TOKENS, 32), base=0.7)
    both = torch.cat((torch.zeros_like(text), text))
    x = formula("stage1_sampler/randn/0", shape)
    scheduler = FlashVideoScheduler()
    scheduler.set_timesteps(51)
    states, draw = [], 0
    for step, timestep in enumerate(scheduler.timesteps.tolist()):
        v_uncond, v_cond = network(x.repeat(2, 1, 1, 1, 1), torch.full((2,), float(timestep)), both).chunk(2)
        v = guided_velocity(v_cond, v_uncond, guidance_scale_at("reference", guidance_scale, timestep, 51))
        if 0 < step < 50:
            draw += 1  # the reference draws twice from the second step on and throws the first away
        noise = formula(f"stage1_sampler/randn_like/{draw}", shape) if step < 50 else None
        draw += 1
        x = scheduler.step(v, timestep, x, variance_noise=noise).prev_sample
        states.append(x)
    return states


def run_stage1_analytic(guidance_scale: float = 8.0) -> list[torch.Tensor]:
    """`run_stage1` with the analytic network."""

    def network(x: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        rows = zip(x, timesteps.tolist(), text, strict=True)
        return torch.stack([analytic_network(*row) for row in rows])

    return run_stage1(network, guidance_scale)
