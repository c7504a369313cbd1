"""A folder of `FlashVideoPipeline` -> the three files of the release, tensor by tensor."""

from __future__ import annotations

from pathlib import Path

from diffusers import AutoencoderKLCogVideoX

from flashvideo.models.checkpoint import read_json, weight_files
from flashvideo.models.convert import RELEASED_LORA_ALPHA, plan_transformer
from flashvideo.models.convert_back import check_all_used, plan_reference_transformer, plan_reference_vae
from flashvideo.models.lora import ADAPTER_FILE, adapter_folder, read_adapter_alpha
from flashvideo.models.recipe import build_specs
from flashvideo.models.shards import write_torch_file
from flashvideo.models.transformer import FlashVideoTransformer3DModel
from flashvideo.pipelines.new_folder import check_new, new_folder
from flashvideo.pipelines.released import (
    STAGE1_FILE,
    STAGE2_FILE,
    VAE_FILE,
    ConversionReport,
    OnProgress,
    Part,
    Progress,
)
from flashvideo.pipelines.whole_weights import open_whole

# What a state dict lies under in each of the files.
_ROOTS = {STAGE1_FILE: "module", STAGE2_FILE: "module", VAE_FILE: "state_dict"}


def export_released(
    folder: str | Path, output_dir: str | Path, *, on_progress: OnProgress | None = None
) -> ConversionReport:
    """Write a model's weights under the reference's names: stage1.pt, stage2.pt and 3d-vae.pt.

    A LoRA that is kept apart goes back as one. A merged one stays merged, under plain names, which the reference
    reads as well.

    Args:
        folder: The model's folder.
        output_dir: The folder to make; it must not exist, or be empty.
        on_progress: Called after each tensor.

    Returns:
        What was written and what was left out.

    Raises:
        ValueError: If the folder is not that of a model, the reference has no place for a tensor or misses one, the
            output holds something, or the disk has no room.
    """
    folder = Path(folder).expanduser()
    output = Path(output_dir).expanduser()
    check_new(output.absolute())
    lora = _lora_folder(folder)
    parts = [
        _transformer(folder / "stage1_transformer", STAGE1_FILE, lora),
        _transformer(folder / "stage2_transformer", STAGE2_FILE, None),
        _vae(folder / "vae"),
    ]
    progress = Progress(sum(part.num_bytes for part in parts), on_progress)
    with new_folder(output, progress.total) as unfinished:
        for part in parts:
            root, on_bytes = _ROOTS[part.name], progress.of(part.name)
            write_torch_file(unfinished / part.name, root, part.specs, part.build, on_bytes=on_bytes)
    return ConversionReport(
        output=output,
        num_bytes={part.name: part.num_bytes for part in parts},
        dropped={},
        notes=("the text encoder, schedulers and settings have no place in these files",),
    )


def _lora_folder(folder: Path) -> Path | None:
    """The folder of a LoRA that the model keeps apart."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise ValueError(f"{folder} is not the folder of a model, it has no model_index.json")
    name = read_json(index).get("stage1_lora")
    if name is None:
        return None
    lora = adapter_folder(folder, name)
    if (alpha := read_adapter_alpha(lora)) != RELEASED_LORA_ALPHA:
        raise ValueError(
            f"the LoRA in {lora} has alpha {alpha:g}, the reference knows {RELEASED_LORA_ALPHA:g} only; merge it first"
        )
    return lora


def _transformer(folder: Path, name: str, lora: Path | None) -> Part:
    adapter = () if lora is None else weight_files(lora, ADAPTER_FILE)
    sources = open_whole(folder, FlashVideoTransformer3DModel, *adapter)
    recipes = plan_reference_transformer(sources.specs)
    check_all_used(recipes, sources.specs, str(folder))
    specs = build_specs(recipes, sources.specs)
    plan_transformer(specs, merge_lora=False)  # checks that a LoRA's matrices fit its weights
    return Part(name=name, sources=sources, recipes=recipes, specs=specs, dropped={})


def _vae(folder: Path) -> Part:
    sources = open_whole(folder, AutoencoderKLCogVideoX)
    recipes = plan_reference_vae(sources.specs)
    check_all_used(recipes, sources.specs, str(folder))
    specs = build_specs(recipes, sources.specs)
    return Part(name=VAE_FILE, sources=sources, recipes=recipes, specs=specs, dropped={})
