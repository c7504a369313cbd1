"""The authors' three released files -> a folder of `FlashVideoPipeline`, tensor by tensor.

Stage I and Stage II transformers and the VAE come from the files, the text encoder from a folder of its own, schedulers
and settings from the preset. `flashvideo.pipelines.export` is the way back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import AutoencoderKLCogVideoX, FlowMatchEulerDiscreteScheduler
from transformers import AutoTokenizer, PreTrainedTokenizerBase, T5EncoderModel

from flashvideo.models.checkpoint import Checkpoint
from flashvideo.models.convert import (
    RELEASED_LORA_ALPHA,
    Plan,
    plan_transformer,
    plan_vae,
    transformer_config,
    vae_config,
)
from flashvideo.models.convert_back import check_complete, plan_reference_transformer, plan_reference_vae
from flashvideo.models.convert_text import (
    TextEncoderFiles,
    load_text_config,
    open_text_encoder,
    plan_text_encoder,
)
from flashvideo.models.lora import (
    ADAPTER_CONFIG,
    ADAPTER_STEM,
    LORA_FOLDER,
    PEFT_PREFIX,
    adapter_config,
    adapter_header,
    adapter_settings,
)
from flashvideo.models.recipe import Recipe, State, build_specs, empty_model
from flashvideo.models.shards import MAX_SHARD_BYTES, write_weights
from flashvideo.models.strictness import raise_if
from flashvideo.models.transformer import FlashVideoTransformer3DModel
from flashvideo.pipelines.new_folder import check_new, new_folder
from flashvideo.pipelines.two_stage import FlashVideoPipeline
from flashvideo.presets import (
    FLASHVIDEO,
    RELEASED_FILES,
    RELEASED_STAGE1_TRANSFORMER,
    RELEASED_STAGE2_TRANSFORMER,
)
from flashvideo.schedule import FlashVideoScheduler

STAGE1_FILE, STAGE2_FILE, VAE_FILE = RELEASED_FILES
LORA_MODES = ("merge", "keep")
DIFFUSERS_STEM, TRANSFORMERS_STEM = "diffusion_pytorch_model", "model"

OnProgress = Callable[[str, int, int], None]
"""`(part, bytes written, bytes in all)`, called after each tensor."""


@dataclass(frozen=True)
class ReleasedFiles:
    """The three files of the release.

    Attributes:
        stage1: Stage I's transformer with its LoRA, stage1.pt.
        stage2: Stage II's transformer, stage2.pt.
        vae: The VAE, 3d-vae.pt.
    """

    stage1: Path
    stage2: Path
    vae: Path

    @classmethod
    def find(cls, folder: str | Path) -> Self:
        """Find the files in a folder, under their own names.

        Raises:
            ValueError: If one is missing; all missing ones are named.
        """
        folder = Path(folder).expanduser()
        names = (STAGE1_FILE, STAGE2_FILE, VAE_FILE)
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder, expected one with {', '.join(names)}")
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise ValueError(
                f"{folder} lacks {', '.join(missing)}; download all of {', '.join(names)} into it"
            )
        return cls(*(folder / name for name in names))


@dataclass(frozen=True, kw_only=True)
class ConversionReport:
    """What a conversion did.

    Attributes:
        output: The folder that was made.
        num_bytes: Bytes of weights by part.
        dropped: By part, keys that were left out -> reason.
        notes: Sentences on what the user should know.
    """

    output: Path
    num_bytes: Mapping[str, int]
    dropped: Mapping[str, Mapping[str, str]]
    notes: tuple[str, ...]

    @property
    def num_dropped(self) -> int:
        """Number of keys that were left out."""
        return sum(len(keys) for keys in self.dropped.values())


@dataclass(frozen=True, kw_only=True)
class Part:
    """Weights of one model: how they are made, and of what.

    Attributes:
        name: Name of the part, which is also its folder's or its file's.
        sources: The tensors that recipes speak of.
        recipes: Name to write -> how it is made.
        specs: Name to write -> tensor without data.
        dropped: Source key that is left out -> reason.
        dtype: Dtype to write; the source's own if None.
        adapter: Rank, alpha and modules, if this is a LoRA.
    """

    name: str
    sources: Checkpoint
    recipes: Mapping[str, Recipe]
    specs: State
    dropped: Mapping[str, str]
    dtype: torch.dtype | None = None
    adapter: Mapping[str, Any] | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors."""
        return sum(tensor.nbytes for tensor in self.specs.values())

    def build(self, name: str) -> torch.Tensor:
        """Make one tensor."""
        return self.recipes[name].build(self.sources, self.dtype)


@dataclass
class Progress:
    """Counts bytes over all parts and tells a callback."""

    total: int
    callback: OnProgress | None
    done: int = 0

    def of(self, part: str) -> Callable[[int], None]:
        """A counter of one part's bytes."""

        def count(num_bytes: int) -> None:
            self.done += num_bytes
            if self.callback is not None:
                self.callback(part, self.done, self.total)

        return count


def convert_released(
    files: ReleasedFiles,
    output: str | Path,
    *,
    text_encoder: Path | None = None,
    dtype: torch.dtype | None = None,
    lora: str = "merge",
    on_progress: OnProgress | None = None,
) -> ConversionReport:
    """Convert the released files to a folder that `FlashVideoPipeline.from_pretrained` loads.

    All checks come first; then tensors are written one by one. The folder appears when it is complete.

    Args:
        files: The three files.
        output: The folder to make; it must not exist, or be empty.
        text_encoder: A local CogVideoX or T5 folder; None for a pipeline without a text encoder.
        dtype: Dtype of all weights; each file's own if None.
        lora: "merge" adds Stage I's LoRA to its weights; "keep" writes it beside them as an adapter.
        on_progress: Called after each tensor.

    Returns:
        What was written and what was left out.

    Raises:
        ValueError: If a file is not what it should be (with the keys that are missing, unknown or mis-shaped), the
            output holds something, or the disk has no room.
    """
    if lora not in LORA_MODES:
        raise ValueError(f"lora must be one of {', '.join(LORA_MODES)}, got {lora!r}")
    output = Path(output).expanduser()
    check_new(output.absolute())
    models: dict[str, Any] = {}
    stage1, adapter = _plan_stage(files.stage1, 1, models, dtype=dtype, merge_lora=lora == "merge")
    stage2, _ = _plan_stage(files.stage2, 2, models, dtype=dtype, merge_lora=True)
    parts = [stage1, *([adapter] if adapter else []), stage2, _plan_vae(files.vae, models, dtype)]
    tokenizer = None
    if text_encoder is not None:
        found = TextEncoderFiles.find(text_encoder)
        parts.append(_plan_text(found, models, dtype))
        tokenizer = AutoTokenizer.from_pretrained(found.tokenizer, trust_remote_code=False)
    _check_fit(models, text_encoder)
    pipeline = _describe(models, tokenizer, with_lora=adapter is not None)

    progress = Progress(sum(part.num_bytes for part in parts), on_progress)
    with new_folder(output, progress.total) as folder:
        for part in parts:
            _write_part(part, folder / part.name, models.get(part.name), progress)
        _write_rest(pipeline, folder)
    return ConversionReport(
        output=output,
        num_bytes={part.name: part.num_bytes for part in parts},
        dropped={part.name: part.dropped for part in parts if part.dropped},
        notes=(
            *_notes(stage1, adapter, text_encoder),
            *_unreleased_sizes(models, _lora_rank(stage1, adapter)),
        ),
    )


def _plan_stage(
    path: Path,
    stage: int,
    models: dict[str, Any],
    *,
    dtype: torch.dtype | None,
    merge_lora: bool,
) -> tuple[Part, Part | None]:
    """The transformer of a stage, whose model goes into `models`, and the LoRA that is kept apart."""
    sources = Checkpoint(path)
    try:
        plan = plan_transformer(sources.specs, merge_lora=merge_lora)
        settings = adapter_settings(build_specs(plan.lora, sources.specs), RELEASED_LORA_ALPHA)
        max_tokens = (FLASHVIDEO.stage1 if stage == 1 else FLASHVIDEO.stage2).max_text_tokens
        weights = build_specs(plan.weights, sources.specs)
        config = transformer_config(weights, max_text_seq_length=max_tokens)
        model = empty_model(FlashVideoTransformer3DModel, config)
        back = plan_reference_transformer(model.state_dict())
        check_complete(plan, sources.specs, model, back, "it")
        _check_num_layers(config)
        wanted = stage == 2
        if (config["noise_step_embed"], config["num_frames_embed"]) != (wanted, wanted):
            what = "lacks an embedder of Stage II" if wanted else "has an embedder of Stage II"
            raise ValueError(f"it {what}; were the files of the stages interchanged?")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    name = f"stage{stage}_transformer"
    models[name] = model
    part = _part(name, sources, plan, dtype)
    if settings is None:
        return part, None
    lora = {PEFT_PREFIX + key: recipe for key, recipe in plan.lora.items()}
    adapter = _part(LORA_FOLDER, sources, Plan(weights=lora, dropped={}), dtype)
    return part, dataclasses.replace(adapter, adapter=settings)


def _check_num_layers(config: Mapping[str, Any]) -> None:
    """Check a transformer of a released model's width for its depth; a lost last layer leaves no other trace."""
    sides = ("num_attention_heads", "attention_head_dim")
    for released in (RELEASED_STAGE1_TRANSFORMER, RELEASED_STAGE2_TRANSFORMER):
        if all(config[name] == released[name] for name in sides):
            found, expected = config["num_layers"], released["num_layers"]
            if found != expected:
                raise ValueError(
                    f"it has {found} layers of {config['num_attention_heads']} heads, expected {expected} as released; "
                    "download it again"
                )


def _plan_vae(path: Path, models: dict[str, Any], dtype: torch.dtype | None) -> Part:
    sources = Checkpoint(path)
    try:
        plan = plan_vae(sources.specs)
        config = vae_config(build_specs(plan.weights, sources.specs))
        model = empty_model(AutoencoderKLCogVideoX, config)
        check_complete(plan, sources.specs, model, plan_reference_vae(model.state_dict()), "it")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    models["vae"] = model
    return _part("vae", sources, plan, dtype)


def _plan_text(files: TextEncoderFiles, models: dict[str, Any], dtype: torch.dtype | None) -> Part:
    config = load_text_config(files.model)
    sources = open_text_encoder(files.model)
    plan = plan_text_encoder(sources.specs, config)
    if dtype is not None:
        config.dtype = dtype
    models["text_encoder"] = empty_model(T5EncoderModel, {"config": config})
    return _part("text_encoder", sources, plan, dtype)


def _part(name: str, sources: Checkpoint, plan: Plan, dtype: torch.dtype | None) -> Part:
    keys = dict.fromkeys(key for recipe in plan.weights.values() for key in recipe.sources)
    dtypes = {key: sources.specs[key].dtype for key in keys}
    raise_if(
        (
            f"{key} is of dtype {str(found).removeprefix('torch.')}"
            for key, found in dtypes.items()
            if not found.is_floating_point
        ),
        f"the weights of {sources} must be floating-point numbers",
    )
    specs = build_specs(plan.weights, sources.specs, dtype)
    return Part(
        name=name, sources=sources, recipes=plan.weights, specs=specs, dropped=plan.dropped, dtype=dtype
    )


def _check_fit(models: Mapping[str, Any], text_encoder: Path | None) -> None:
    """Check that the models fit one another."""
    first, second, vae = models["stage1_transformer"], models["stage2_transformer"], models["vae"]
    if "text_encoder" in models:
        width = models["text_encoder"].config.d_model
        if width != first.config.text_embed_dim:
            raise ValueError(
                f"the text encoder {text_encoder} makes embeddings of {width} channels, the transformers need "
                f"{first.config.text_embed_dim}; give the T5 that the release was trained with"
            )
    found = {first.config.in_channels, second.config.in_channels, vae.config.latent_channels}
    if len(found) > 1 or first.config.text_embed_dim != second.config.text_embed_dim:
        raise ValueError(
            "the three files do not belong together: their latents have "
            f"{first.config.in_channels}, {second.config.in_channels} and {vae.config.latent_channels} channels, "
            f"their texts {first.config.text_embed_dim} and {second.config.text_embed_dim}"
        )


def _describe(
    models: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None, *, with_lora: bool
) -> FlashVideoPipeline:
    """The pipeline, of models without data."""
    return FlashVideoPipeline(
        tokenizer=tokenizer,
        text_encoder=models.get("text_encoder"),
        vae=models["vae"],
        stage1_transformer=models["stage1_transformer"],
        stage1_scheduler=FlashVideoScheduler(),
        stage2_transformer=models["stage2_transformer"],
        stage2_scheduler=FlowMatchEulerDiscreteScheduler(shift=FLASHVIDEO.stage2.shift),
        preset=FLASHVIDEO,
        stage1_lora=LORA_FOLDER if with_lora else None,
    )


def _write_part(part: Part, folder: Path, model: Any, progress: Progress) -> None:
    folder.mkdir()
    stem, metadata, max_bytes = DIFFUSERS_STEM, {}, MAX_SHARD_BYTES
    if part.adapter is not None:
        (folder / ADAPTER_CONFIG).write_text(adapter_config(part.adapter), encoding="utf-8")
        # diffusers and peft look for a single file.
        stem, metadata, max_bytes = ADAPTER_STEM, adapter_header(part.adapter), part.num_bytes
    elif isinstance(model, T5EncoderModel):
        model.config.save_pretrained(folder)
        stem = TRANSFORMERS_STEM
    else:
        model.save_config(folder)
    write_weights(
        folder,
        stem,
        part.specs,
        part.build,
        on_bytes=progress.of(part.name),
        metadata=metadata,
        max_shard_bytes=max_bytes,
    )


def _write_rest(pipeline: FlashVideoPipeline, folder: Path) -> None:
    pipeline.stage1_scheduler.save_pretrained(folder / "stage1_scheduler")
    pipeline.stage2_scheduler.save_pretrained(folder / "stage2_scheduler")
    if pipeline.tokenizer is not None:
        pipeline.tokenizer.save_pretrained(folder / "tokenizer")
    pipeline.save_config(folder)  # last: without model_index.json nothing loads


def _notes(stage1: Part, adapter: Part | None, text_encoder: Path | None) -> tuple[str, ...]:
    notes = []
    if text_encoder is None:
        notes.append(
            "there is no text encoder in this folder, so it takes no prompts; give a CogVideoX or T5 folder for that"
        )
    if adapter is not None:
        notes.append(f"Stage I's LoRA lies in {LORA_FOLDER}, and loading the folder needs peft")
    elif not any(recipe.lora for recipe in stage1.recipes.values()):
        notes.append("Stage I's file holds no LoRA; its weights were taken as they are")
    return tuple(notes)


def _unreleased_sizes(models: Mapping[str, Any], rank: int | None) -> Iterator[str]:
    """What was read off the weights of transformers that are not of the released size, where nothing can check it."""
    for stage, released in ((1, RELEASED_STAGE1_TRANSFORMER), (2, RELEASED_STAGE2_TRANSFORMER)):
        config = models[f"stage{stage}_transformer"].config
        if config.num_attention_heads != released["num_attention_heads"]:
            lora = f" and a LoRA of rank {rank}" if stage == 1 and rank is not None else ""
            yield (
                f"Stage {'I' * stage} is not of the released size; its file has {config.num_layers} layers of "
                f"{config.num_attention_heads} heads{lora}, which should be all of them"
            )


def _lora_rank(stage1: Part, adapter: Part | None) -> int | None:
    if adapter is not None and adapter.adapter is not None:
        return int(adapter.adapter["r"])
    downs = (recipe.lora.down for recipe in stage1.recipes.values() if recipe.lora)
    return next((stage1.sources.specs[key].shape[0] for key in downs), None)
