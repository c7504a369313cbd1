"""What training starts from: nothing, an earlier run's output, a whole model, or a CogVideoX in diffusers' layout.

A whole model is a folder that `flashvideo generate --model` takes: nano, the converted released one, one's own. It
and a CogVideoX bring VAE, tokenizer and text encoder along, and their own latent scale, noise schedule and sampling.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLCogVideoX
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, T5Config, T5EncoderModel

from flashvideo.data.captions import vocabulary
from flashvideo.models.checkpoint import read_json
from flashvideo.models.cogvideox import (
    is_cogvideox,
    load_cogvideox_transformer,
    start_stage2_from_cogvideox,
)
from flashvideo.models.lora import refuse_kept_lora
from flashvideo.models.transformer import FlashVideoTransformer3DModel
from flashvideo.pipelines.cogvideox import cogvideox_preset, cogvideox_scheduler
from flashvideo.presets import NANO, Preset
from flashvideo.schedule import FlashVideoScheduler
from flashvideo.text import build_word_tokenizer
from flashvideo.training.config import Recipe
from flashvideo.training.recipes import PreferenceRecipe
from flashvideo.training.stage_recipes import Stage1Recipe, Stage2Recipe


@dataclass(kw_only=True)
class Start:
    """The parts that a task begins with.

    Attributes:
        transformer: What is trained, or gets an adapter.
        vae: Frozen; its config's scaling factor is the stage's latent scale.
        tokenizer: None to train without text.
        text_encoder: Likewise.
        scheduler: Stage I's noise schedule and sampler.
        preset: Where it comes from a whole model or a CogVideoX, that one's numbers; otherwise nano's.
    """

    transformer: FlashVideoTransformer3DModel
    vae: AutoencoderKLCogVideoX
    tokenizer: PreTrainedTokenizerBase | None
    text_encoder: T5EncoderModel | None
    scheduler: FlashVideoScheduler
    preset: Preset


def frozen_dtype(recipe: Recipe, device: torch.device) -> torch.dtype:
    """What weights that are not trained lie in: half of the memory on an accelerator, where that is fast too."""
    return torch.bfloat16 if recipe.bf16 and device.type != "cpu" else torch.float32


def transformer_dtype(
    recipe: Stage1Recipe | Stage2Recipe | PreferenceRecipe, device: torch.device
) -> torch.dtype:
    """What a transformer's own weights lie in: float32 where they are trained.

    Beside an adapter, which is in float32, they are frozen; but parts that are spread over processes must be alike.
    """
    if recipe.lora is None or recipe.sharding == "fsdp":
        return torch.float32
    return frozen_dtype(recipe, device)


def stage1_start(recipe: Stage1Recipe, device: torch.device) -> Start:
    """Loads or makes the parts of Stage I; new ones get their weights from torch's global generator.

    Raises:
        ValueError: If a part is missing, or the start keeps a LoRA apart.
    """
    dtype = transformer_dtype(recipe, device)
    folder = Path(recipe.start) if recipe.start else None
    preset = start_preset(folder)
    vae = start_vae(recipe, device)
    tokenizer, text_encoder = start_text(recipe, device)
    scheduler = FlashVideoScheduler()
    if folder is None:
        tokenizer = build_word_tokenizer(vocabulary())
        words = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
        text_encoder = T5EncoderModel(T5Config(**words, **recipe.text))
        width = text_encoder.config.d_model
        transformer = FlashVideoTransformer3DModel(text_embed_dim=width, **recipe.model)
    elif text_encoder is None:
        raise ValueError(f"the recipe's start must have the folder text_encoder, {folder} has none")
    elif is_cogvideox(folder):
        transformer = load_cogvideox_transformer(folder / "transformer", dtype=dtype)
        scheduler = cogvideox_scheduler(folder)
    else:
        refuse_kept_lora(folder)
        transformer = _load_transformer(folder / "stage1_transformer", dtype)
    return Start(
        transformer=transformer,
        vae=vae,
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        scheduler=scheduler,
        preset=preset or NANO,
    )


def trains_text(recipe: Stage1Recipe) -> bool:
    """Whether the text encoder is trained too."""
    if recipe.train_text is not None:
        return recipe.train_text
    from_cogvideox = bool(recipe.start) and is_cogvideox(Path(recipe.start))
    return recipe.lora is None and recipe.data is None and not from_cogvideox


def takes_adapter(recipe: Recipe) -> bool:
    """Whether a recipe's start has all the weights that an adapter leaves as they are.

    A CogVideoX has not for Stage II: of the new embedders there is nothing but a start that says nothing.
    """
    from_cogvideox = bool(recipe.start) and is_cogvideox(Path(recipe.start))
    return bool(recipe.start) and not (isinstance(recipe, Stage2Recipe) and from_cogvideox)


def stage2_start(recipe: Stage2Recipe, device: torch.device) -> Start:
    """Loads or makes the parts of Stage II; a new transformer gets its weights from torch's global generator.

    Raises:
        ValueError: If a part is missing, the start has other positions than the recipe, or an adapter is not enough.
    """
    dtype = transformer_dtype(recipe, device)
    folder = Path(recipe.start) if recipe.start else None
    preset = start_preset(folder)
    if folder is None:
        wanted = {"use_rotary_positional_embeddings": recipe.positions != "absolute"}
        transformer = FlashVideoTransformer3DModel(**wanted | recipe.model)
    elif is_cogvideox(folder):
        preset = None  # of the CogVideoX there is a Stage I only
        if recipe.lora is not None and not takes_adapter(recipe):
            raise ValueError(
                f"lora cannot make a Stage II of the CogVideoX {folder}, whose new embedders it would leave untrained; "
                "leave out lora, or start from a Stage II"
            )
        rotary = recipe.positions != "absolute"
        transformer = start_stage2_from_cogvideox(folder / "transformer", rotary=rotary).type(dtype)
    else:
        transformer = _load_transformer(folder / "stage2_transformer", dtype)
    positions = "rotary" if transformer.config.use_rotary_positional_embeddings else "absolute"
    if recipe.positions not in ("", positions):
        raise ValueError(
            f"positions of the recipe must be those of its model, {positions}, got {recipe.positions}"
        )
    tokenizer, text_encoder = start_text(recipe, device)
    return Start(
        transformer=transformer,
        vae=start_vae(recipe, device),
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        scheduler=FlashVideoScheduler(),
        preset=preset or NANO,
    )


def start_vae(recipe: Stage1Recipe | Stage2Recipe, device: torch.device) -> AutoencoderKLCogVideoX:
    """Loads the VAE; its config's scaling factor is the stage's latent scale.

    Raises:
        ValueError: If there is none.
    """
    folder = Path(recipe.start) if recipe.start else None
    preset = start_preset(folder)
    scale: float | None = None
    if preset is not None and isinstance(recipe, Stage1Recipe):
        scale = preset.stage1.latent_scale
    elif preset is not None and folder is not None and not is_cogvideox(folder):
        scale = preset.stage2.latent_scale  # of a CogVideoX there is a Stage I only
    return _load_vae(recipe.vae, folder, scale, frozen_dtype(recipe, device))


def start_text(
    recipe: Stage1Recipe | Stage2Recipe, device: torch.device
) -> tuple[PreTrainedTokenizerBase | None, T5EncoderModel | None]:
    """Loads tokenizer and text encoder, if the start, or a Stage II recipe's `text`, has any.

    Raises:
        ValueError: If `text` has none.
    """
    frozen = frozen_dtype(recipe, device)
    if isinstance(recipe, Stage1Recipe):
        folder = Path(recipe.start) if recipe.start else None
        return _load_text(folder, torch.float32 if trains_text(recipe) else frozen)
    named = recipe.text or recipe.start
    tokenizer, text_encoder = _load_text(Path(named) if named else None, frozen)
    if recipe.text and text_encoder is None:
        raise ValueError(f"the recipe's text must have the folder text_encoder, {recipe.text} has none")
    return tokenizer, text_encoder


def start_preset(folder: Path | None) -> Preset | None:
    """The numbers of a whole model or of a CogVideoX; None for a run's output, and without a start."""
    if folder is None or not (folder / "model_index.json").is_file():
        return None
    if is_cogvideox(folder):
        return cogvideox_preset(folder)
    values = read_json(folder / "model_index.json").get("preset")
    return Preset.from_dict(values) if isinstance(values, dict) else None


def _load_transformer(folder: Path, dtype: torch.dtype) -> FlashVideoTransformer3DModel:
    if not folder.is_dir():
        raise ValueError(f"the recipe's start must have the folder {folder.name}, {folder.parent} has none")
    model: FlashVideoTransformer3DModel = FlashVideoTransformer3DModel.from_pretrained(
        folder, torch_dtype=dtype
    )
    return model


def _load_vae(
    vae: str, start: Path | None, latent_scale: float | None, dtype: torch.dtype
) -> AutoencoderKLCogVideoX:
    """The recipe's VAE or the start's; the latter's latent scale is what the start's preset says."""
    own = None if start is None else start / "vae"
    if not vae and (own is None or not own.is_dir()):
        raise ValueError(f"the recipe must give 'vae', since its start {start} has no folder of that name")
    folder = Path(vae) if vae else own
    model: AutoencoderKLCogVideoX = AutoencoderKLCogVideoX.from_pretrained(folder, torch_dtype=dtype)
    if latent_scale is not None and own is not None and folder is not None and _same(folder, own):
        model.register_to_config(scaling_factor=latent_scale)
    return model


def _same(one: Path, other: Path) -> bool:
    return other.exists() and one.samefile(other)


def _load_text(
    folder: Path | None, dtype: torch.dtype
) -> tuple[PreTrainedTokenizerBase | None, T5EncoderModel | None]:
    """Tokenizer and text encoder of a folder, if it has any."""
    if folder is None or not (folder / "text_encoder").is_dir():
        return None, None
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", trust_remote_code=False)
    return tokenizer, T5EncoderModel.from_pretrained(folder / "text_encoder", dtype=dtype)


def compile_blocks(transformer: FlashVideoTransformer3DModel) -> None:
    """Fuses the operations of each block, in place: names of parameters and saved files stay as they are."""
    for block in transformer.transformer_blocks:
        block.compile()


def freeze(module: nn.Module, device: torch.device) -> None:
    """Puts a module that is not trained on its device, in place."""
    module.to(device).eval().requires_grad_(False)


@contextlib.contextmanager
def at_work(device: torch.device, *modules: nn.Module | None) -> Iterator[None]:
    """Within the block modules that rest elsewhere are on the device."""
    resting = [(m, next(m.parameters()).device) for m in modules if m is not None]
    moved = [(module, place) for module, place in resting if place.type != device.type]
    try:
        for module, _ in moved:
            module.to(device)
        yield
    finally:
        for module, place in moved:
            module.to(place)
