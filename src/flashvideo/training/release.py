"""From finished runs to one model folder, which every command takes: in diffusers' layout, in bfloat16.

python -m flashvideo.training.release --stage2 runs/enhancer --output my_enhancer
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKLCogVideoX, FlowMatchEulerDiscreteScheduler
from torch import nn
from transformers import AutoTokenizer, T5EncoderModel

from flashvideo.models.transformer import FlashVideoTransformer3DModel
from flashvideo.pipelines.folders import model_folder
from flashvideo.pipelines.new_folder import new_folder
from flashvideo.pipelines.two_stage import FlashVideoPipeline
from flashvideo.presets import NANO
from flashvideo.schedule import FlashVideoScheduler
from flashvideo.training.config import Recipe
from flashvideo.training.lora import LORA_FILE, merge_lora
from flashvideo.training.origins import (
    check_adapted,
    check_same_latents,
    check_text,
    check_vae,
    run_recipe,
    with_settings,
)

DTYPE = torch.bfloat16


def assemble(
    base: str | Path = NANO.name,
    *,
    vae: Path | None = None,
    stage1: Path | None = None,
    stage2: Path | None = None,
) -> FlashVideoPipeline:
    """Puts what runs have trained in the place of a model's own parts.

    Args:
        base: The model that gives all other parts, and its preset: `nano`, a folder, or a repository of the hub.
        vae: Output folder of a run. A stage that stays the base's keeps its latent scale, and needs the same latents.
        stage1: Likewise, of weights, or of an adapter that was trained on the base, which is merged.
        stage2: Likewise; shift and prompt prefix become the run's, and the noise step, if it was not trained with it.

    Returns:
        The pipeline, in bfloat16.

    Raises:
        ValueError: If a run has not written its weights yet, is of another part, or was trained on weights that are
            not the model's.
    """
    folder = model_folder(base)
    pipeline = FlashVideoPipeline.from_pretrained(folder, dtype=DTYPE)
    preset, parts = pipeline.preset, dict(pipeline.components)
    if vae is not None:
        run_recipe(vae, "vae")
        parts["vae"] = AutoencoderKLCogVideoX.from_pretrained(_part(vae, "vae"), torch_dtype=DTYPE)
        scale = float(parts["vae"].config.scaling_factor)
        for stage, run in (("stage1", stage1), ("stage2", stage2)):
            if run is not None:
                numbers = dataclasses.replace(getattr(preset, stage), latent_scale=scale)
                preset = dataclasses.replace(preset, **{stage: numbers})
            elif parts.get(name := f"{stage}_transformer") is not None:
                check_same_latents(name, pipeline.vae, parts["vae"], folder)
    text_folder = folder
    if stage1 is not None and (stage1 / "text_encoder").is_dir():
        text_folder = stage1
        parts["tokenizer"] = AutoTokenizer.from_pretrained(stage1 / "tokenizer", trust_remote_code=False)
        parts["text_encoder"] = T5EncoderModel.from_pretrained(stage1 / "text_encoder", torch_dtype=DTYPE)
    for stage, run in (("stage1", stage1), ("stage2", stage2)):
        if run is None:
            continue
        recipe, name = run_recipe(run, stage), f"{stage}_transformer"
        if run != text_folder:
            check_text(recipe, parts["text_encoder"], text_folder)
        preset = with_settings(preset, recipe, check_vae(recipe, parts["vae"]))
        parts[name] = _transformer(run, recipe, name, parts[name], folder)
    if stage1 is not None and (stage1 / "stage1_scheduler").is_dir():
        parts["stage1_scheduler"] = FlashVideoScheduler.from_pretrained(stage1 / "stage1_scheduler")
    if stage2 is not None:
        parts["stage2_scheduler"] = FlowMatchEulerDiscreteScheduler(shift=preset.stage2.shift)
    return FlashVideoPipeline(**parts, preset=preset)


def _part(run: Path, name: str) -> Path:
    if not (run / name).is_dir():
        raise ValueError(f"{run} must be a finished training run, got a folder without {name}")
    return run / name


def _transformer(
    run: Path, recipe: Recipe, name: str, own: FlashVideoTransformer3DModel | None, base: Path
) -> FlashVideoTransformer3DModel:
    """A run's transformer, or the base's own with the run's adapter in it."""
    if not (run / LORA_FILE).is_file():
        model: FlashVideoTransformer3DModel = FlashVideoTransformer3DModel.from_pretrained(
            _part(run, name), torch_dtype=DTYPE
        )
        return model
    if (run / name).is_dir():
        raise ValueError(
            f"{run} must hold an adapter or whole weights, got both {LORA_FILE} and {name}; move away what is not meant"
        )
    if own is None:
        raise ValueError(
            f"{base} has no {name} that the adapter in {run} could be merged into; give another --base"
        )
    check_adapted(recipe, own, name, base)
    merge_lora(own, run / LORA_FILE)
    return own


def save(pipeline: FlashVideoPipeline, output: Path) -> None:
    """Writes a pipeline to a new folder that does not tell where its parts came from.

    Raises:
        ValueError: If the folder holds something, or cannot be made.
    """
    modules = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    size = sum(tensor.nbytes for module in modules for tensor in module.state_dict().values())
    with new_folder(output, size) as folder:
        pipeline.save_pretrained(folder)
        for path in folder.rglob("*.json"):
            config = json.loads(path.read_text())
            if isinstance(config, dict) and config.pop("_name_or_path", None) is not None:
                path.write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description="Makes a model folder of a model and what runs have trained of it.", allow_abbrev=False
    )
    parser.add_argument("--base", default=NANO.name, help="model of all other parts (default: nano)")
    for name in ("vae", "stage1", "stage2"):
        parser.add_argument(f"--{name}", type=Path, metavar="RUN", help="output folder of a finished run")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="the new folder")
    arguments = parser.parse_args()
    try:
        pipeline = assemble(
            arguments.base, vae=arguments.vae, stage1=arguments.stage1, stage2=arguments.stage2
        )
        save(pipeline, arguments.output)
    except ValueError as error:
        parser.exit(1, f"release: error: {error}\n")


if __name__ == "__main__":
    main()
