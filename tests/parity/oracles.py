"""The larger set of the reference's tensors, which stays outside the repository: weights, inputs, noise and outputs.

The folder that `FLASHVIDEO_ORACLES` names holds one file per part of the reference, each with random weights of tiny
models under the reference's keys (`sd/...`). Latents of the transformers and samplers are (b, t, c, h, w), the VAE's
(b, c, t, h, w); frames255 are (t, h, w, 3) in [0, 255], not rounded.
"""

import dataclasses
import json
from functools import cached_property
from pathlib import Path

import torch
from diffusers import AutoencoderKLCogVideoX, FlowMatchEulerDiscreteScheduler
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from safetensors import safe_open

from flashvideo.models.convert import convert_transformer, convert_vae, transformer_config, vae_config
from flashvideo.models.transformer import FlashVideoTransformer3DModel
from flashvideo.pipelines.two_stage import FlashVideoPipeline
from flashvideo.presets import FLASHVIDEO, Preset
from flashvideo.schedule import FlashVideoScheduler
from flashvideo.text import build_word_tokenizer

# Largest absolute differences that count as equal, in float32. Some of the time features' 64 frequencies differ by one
# unit in the last place from one mathematical library to the next; at a timestep of 1000 that moves the embedding by
# 1e-5. Given the reference's own embedding, a transformer has to come closer.
TOLERANCES = {
    "Stage I transformer, LoRA merged": 3e-5,
    "Stage I transformer, LoRA as an adapter": 3e-5,
    "Stage II transformer": 3e-5,
    "transformers, given the time embedding": 5e-6,
    "merged weights": 1e-6,
    "time embedding": 5e-5,
    "rotary tables": 1e-6,
    "Stage I sampler": 1e-4,
    "Stage II sampler": 1e-4,
    "VAE": 2e-5,
    "VAE, frames of 0 to 255": 0.01,
    "both stages, latents": 2e-4,
    "both stages, frames of 0 to 255": 0.05,
}

PROMPT = "a lighthouse"


class LookupEncoder(ModelMixin, ConfigMixin):
    """A text encoder that looks its two answers up, by whether the prompt has Stage II's prefix."""

    @register_to_config
    def __init__(self, first_token_of_prompt: int = 0, num_tokens: int = 1, dim: int = 1) -> None:
        super().__init__()
        self.register_buffer("stage1", torch.zeros(1, num_tokens, dim))
        self.register_buffer("stage2", torch.zeros(1, num_tokens, dim))

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor]:
        plain = int(input_ids[0, 0]) == self.config.first_token_of_prompt
        return (self.stage1 if plain else self.stage2,)


class Oracles:
    """Reads the set, and builds our models of its weights.

    Args:
        folder: Where the files are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor `FILE/NAME`, without the file's suffix."""
        file, _, key = name.partition("/")
        with safe_open(self.folder / f"{file}.safetensors", "pt") as opened:
            return opened.get_tensor(key)

    def state(self, file: str, prefix: str = "sd/") -> dict[str, torch.Tensor]:
        """Weights under the reference's keys."""
        with safe_open(self.folder / f"{file}.safetensors", "pt") as opened:
            names = [name for name in opened.keys() if name.startswith(prefix)]  # noqa: SIM118 - it is not a dict
            return {name.removeprefix(prefix): opened.get_tensor(name) for name in names}

    @cached_property
    def config(self) -> dict:
        """Sizes of models and cases."""
        with safe_open(self.folder / "pipeline.safetensors", "pt") as opened:
            return json.loads(opened.metadata()["config"])

    def transformer(self, stage: str, *, adapter: bool = False) -> FlashVideoTransformer3DModel:
        """The transformer of "stage1" or "stage2"; Stage I's LoRA merged, or loaded by diffusers as an adapter."""
        conversion = convert_transformer(self.state(f"{stage}_dit"), merge_lora=not adapter)
        config = transformer_config(conversion.weights, max_text_seq_length=self.config["text_len"])
        model = FlashVideoTransformer3DModel(**config)
        conversion.load_into(model)
        if adapter:
            model.load_lora_adapter(conversion.lora, prefix=None, adapter_name="released")
        return model.eval()

    def vae(self) -> AutoencoderKLCogVideoX:
        """The VAE of both stages."""
        conversion = convert_vae(self.state("vae"))
        model = AutoencoderKLCogVideoX(**vae_config(conversion.weights))
        conversion.load_into(model)
        return model.eval()

    def preset(self) -> Preset:
        """The released model's numbers, but the sizes and steps of the set."""
        size1, size2 = self.config["e2e"]["hw1"], self.config["e2e"]["hw2"]
        text = {"max_text_tokens": self.config["text_len"]}
        return dataclasses.replace(
            FLASHVIDEO,
            stage1=dataclasses.replace(FLASHVIDEO.stage1, height=size1[0], width=size1[1], **text),
            stage2=dataclasses.replace(
                FLASHVIDEO.stage2,
                height=size2[0],
                width=size2[1],
                num_inference_steps=self.config["e2e"]["steps"],
                **text,
            ),
        )

    def pipeline(self, *, adapter: bool = False, shift: float | None = None) -> FlashVideoPipeline:
        """Both stages of converted weights; the text encoder knows `PROMPT`."""
        preset = self.preset()
        tokenizer = build_word_tokenizer([*PROMPT.split(), "medium", "motion", ","])
        first_token = tokenizer(PROMPT).input_ids[0]
        encoder = LookupEncoder(first_token, self.config["text_len"], self.config["text_dim"])
        encoder.stage1.copy_(self.tensor("pipeline/stage1/cond"))
        encoder.stage2.copy_(self.tensor("pipeline/stage2/cond"))
        pipeline = FlashVideoPipeline(
            tokenizer=tokenizer,
            text_encoder=encoder,
            vae=self.vae(),
            stage1_transformer=self.transformer("stage1", adapter=adapter),
            stage1_scheduler=FlashVideoScheduler(),
            stage2_transformer=self.transformer("stage2"),
            stage2_scheduler=FlowMatchEulerDiscreteScheduler(shift=shift or preset.stage2.shift),
            preset=preset,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def house(tensor: torch.Tensor) -> torch.Tensor:
    """(B, C, F, H, W), the reference's VAE, to (B, F, C, H, W), or back."""
    return rearrange(tensor, "b c f h w -> b f c h w")


def frames255(pixels: torch.Tensor) -> torch.Tensor:
    """(1, F, 3, H, W) in [-1, 1] to (F, H, W, 3) in [0, 255], not rounded."""
    return rearrange((pixels[0] + 1) / 2 * 255, "f c h w -> f h w c")


def used_draws(draws: torch.Tensor) -> list[torch.Tensor]:
    """The noise of Stage I's steps; the reference draws twice from the second step on and throws the first away."""
    return list(draws[::2])
