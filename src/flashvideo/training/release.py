r"""From finished runs to one model folder: the parts of both stages in diffusers layout, in bfloat16.

python -m flashvideo.training.release --vae runs/nano_vae_3 --stage1 runs/nano_stage1_4 \
        --stage2 runs/nano_stage2_6 --output src/flashvideo/assets/nano
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKLCogVideoX, FlowMatchEulerDiscreteScheduler
from transformers import AutoTokenizer, T5EncoderModel

from flashvideo.models.transformer import FlashVideoTransformer3DModel
from flashvideo.pipelines.two_stage import FlashVideoPipeline
from flashvideo.presets import NANO, Preset
from flashvideo.schedule import FlashVideoScheduler


def assemble(vae: Path, stage1: Path, stage2: Path, preset: Preset = NANO) -> FlashVideoPipeline:
    """Put the parts of three runs together.

    Args:
        vae, stage1, stage2: output folders of the runs.
        preset: defaults of the model; the latent scales are the VAE's own.

    Returns:
        The pipeline, in bfloat16.

    Raises:
        ValueError: if a run has not written its weights yet.
    """
    for run, part in ((vae, "vae"), (stage1, "stage1_transformer"), (stage2, "stage2_transformer")):
        if not (run / part).is_dir():
            raise ValueError(f"{run} must be a finished training run, got a folder without {part}")
    dtype = torch.bfloat16
    autoencoder = AutoencoderKLCogVideoX.from_pretrained(vae / "vae", torch_dtype=dtype)
    scale = float(autoencoder.config.scaling_factor)
    preset = dataclasses.replace(
        preset,
        stage1=dataclasses.replace(preset.stage1, latent_scale=scale),
        stage2=dataclasses.replace(preset.stage2, latent_scale=scale),
    )
    return FlashVideoPipeline(
        tokenizer=AutoTokenizer.from_pretrained(stage1 / "tokenizer", trust_remote_code=False),
        text_encoder=T5EncoderModel.from_pretrained(stage1 / "text_encoder", torch_dtype=dtype),
        vae=autoencoder,
        stage1_transformer=FlashVideoTransformer3DModel.from_pretrained(
            stage1 / "stage1_transformer", torch_dtype=dtype
        ),
        stage1_scheduler=FlashVideoScheduler.from_pretrained(stage1 / "stage1_scheduler"),
        stage2_transformer=FlashVideoTransformer3DModel.from_pretrained(
            stage2 / "stage2_transformer", torch_dtype=dtype
        ),
        stage2_scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(stage2 / "stage2_scheduler"),
        preset=preset,
    )


def save(pipeline: FlashVideoPipeline, output: Path) -> None:
    """Write a pipeline to a folder that does not tell where its parts came from."""
    pipeline.save_pretrained(output)
    for path in output.rglob("*.json"):
        config = json.loads(path.read_text())
        if isinstance(config, dict) and config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Put the parts of finished runs into one model folder.")
    for name in ("vae", "stage1", "stage2", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    arguments = parser.parse_args()
    save(assemble(arguments.vae, arguments.stage1, arguments.stage2), arguments.output)


if __name__ == "__main__":
    main()
