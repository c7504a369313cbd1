"""The components of both stages as one model: loading and saving, each stage alone, sizes and memory plans.

`flashvideo.pipelines.two_stage` runs it.
"""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch

from flashvideo.models.lora import ADAPTER_NAME, adapter_folder, load_adapter
from flashvideo.pipelines.base import PlannedPipeline, StagePipeline
from flashvideo.pipelines.cogvideox import (
    COGVIDEOX_PIPELINE,
    check_cogvideox_options,
    cogvideox_components,
)
from flashvideo.pipelines.folders import is_repository, model_folder
from flashvideo.pipelines.hub import check_options, check_pipeline
from flashvideo.pipelines.inputs import check_count, or_default
from flashvideo.pipelines.preview import PreviewState
from flashvideo.pipelines.sizes import enlarged_size, final_size, preview_size
from flashvideo.pipelines.stage1 import FlashVideoStage1Pipeline
from flashvideo.pipelines.stage1_lora import Stage1LoraMixin
from flashvideo.pipelines.stage2 import FlashVideoEnhancePipeline
from flashvideo.pipelines.whole_weights import check_whole
from flashvideo.shapes import pixels_per_token

StageT = TypeVar("StageT", bound=StagePipeline)


class TwoStageModel(PlannedPipeline, Stage1LoraMixin):
    """What `FlashVideoPipeline` is, apart from what it does in a call."""

    model_cpu_offload_seq = "text_encoder->stage1_transformer->vae->stage2_transformer"
    _optional_components: ClassVar[list[str]] = [
        "tokenizer",
        "text_encoder",
        "stage2_transformer",
        "stage2_scheduler",
    ]
    _lora_loadable_modules: ClassVar[list[str]] = ["stage1_transformer"]

    weights = "full"
    """How the transformers' weights are stored, as `enable_memory_plans` was told."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        text_encoder_source: str | Path | None = None,
        **kwargs: Any,
    ) -> Self:
        """Loads a model by its name, its folder or its repository, and puts Stage I's LoRA on where it is kept apart.

        Args:
            pretrained_model_name_or_path: As `model` of `flashvideo.pipelines.folders.model_folder`.
            revision: Branch, tag or commit of a repository.
            text_encoder_source: Repository or folder of the text encoder, for released checkpoints.
            kwargs: Those of `DiffusionPipeline.from_pretrained`; `stage1_lora=None` leaves the LoRA out.

        Returns:
            The pipeline.

        Raises:
            ValueError: If the model cannot be had, is of another pipeline, or its LoRA is missing.
            ImportError: If there is one and peft is not installed.
        """
        given = pretrained_model_name_or_path
        if is_repository(given):
            check_options(kwargs)
        dtype = kwargs.get("dtype", kwargs.get("torch_dtype"))
        folder = model_folder(
            given if isinstance(given, str) else Path(given),
            revision=revision,
            text_encoder=text_encoder_source,
            dtype=dtype if isinstance(dtype, torch.dtype) else None,
            pipeline=cls.__name__,
        )
        kind = check_pipeline(folder, str(given), cls.__name__)
        if kwargs.get("variant") is None:  # those lie under other names, which diffusers knows
            check_whole(folder, given=kwargs)
        if kind == COGVIDEOX_PIPELINE:
            parts = inspect.signature(cls.__init__).parameters
            components = {name: value for name, value in kwargs.items() if name in parts}
            check_cogvideox_options({name: kwargs[name] for name in kwargs.keys() - parts.keys()})
            return cls(**cogvideox_components(folder, dtype=dtype, given=components))
        pipeline: Self = super().from_pretrained(folder, **kwargs)
        missing = pipeline.config.stage1_lora is not None and not pipeline.has_lora
        if missing and pipeline.stage1_transformer is not None:
            load_adapter(pipeline.stage1_transformer, adapter_folder(folder, pipeline.config.stage1_lora))
        return pipeline

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Saves the pipeline as every diffusers pipeline.

        Args:
            save_directory: The folder to write.
            kwargs: Those of `DiffusionPipeline.save_pretrained`.

        Raises:
            ValueError: If Stage I carries a LoRA, whose branches diffusers would save under names that do not load.
        """
        if getattr(self.stage1_transformer, "peft_config", None):
            raise ValueError(
                "Stage I carries a LoRA, and saved so it would not load; "
                "call stage1_transformer.fuse_lora() and stage1_transformer.unload_lora() first"
            )
        self.register_to_config(stage1_lora=None)
        super().save_pretrained(save_directory, **kwargs)

    @property
    def has_lora(self) -> bool:
        """Whether the LoRA that `from_pretrained` applies is on Stage I."""
        return ADAPTER_NAME in getattr(self.stage1_transformer, "peft_config", {})

    @property
    def stage1(self) -> FlashVideoStage1Pipeline:
        """Stage I alone, from the components that this pipeline has now; made anew at each access."""
        return self._stage(FlashVideoStage1Pipeline, self.stage1_transformer, self.stage1_scheduler)

    @property
    def stage2(self) -> FlashVideoEnhancePipeline:
        """Stage II alone, from the components that this pipeline has now; made anew at each access.

        Raises:
            ValueError: If the model has no Stage II.
        """
        self.check_has_stage2()
        return self._stage(FlashVideoEnhancePipeline, self.stage2_transformer, self.stage2_scheduler)

    def _stage(self, kind: type[StageT], transformer: object, scheduler: object) -> StageT:
        pipeline = kind(
            tokenizer=self.tokenizer,
            text_encoder=self.text_encoder,
            vae=self.vae,
            transformer=transformer,
            scheduler=scheduler,
            preset=self.config.preset,
        )
        pipeline.set_progress_bar_config(**getattr(self, "_progress_bar_config", {}))
        pipeline._memory = self._memory
        pipeline._sequential_guidance, pipeline._thrift = self._sequential_guidance, self._thrift
        return pipeline

    def check_has_stage2(self) -> None:
        """Checks that the model is more than a Stage I.

        Raises:
            ValueError: If it is not.
        """
        if self.stage2_transformer is None:
            raise ValueError(
                f"the model {self.preset.name!r} has only Stage I: stop at the preview (preview_only=True, "
                "--preview-only), or use it as the Stage I of a model that has both (stage1=, --stage1)"
            )

    def preview_size(self, height: int, width: int) -> tuple[int, int]:
        """Returns height and width of the preview of a video of this size, which may be any."""
        return preview_size(height, width, preset=self.preset, multiple=self.preview_multiple)

    @property
    def preview_multiple(self) -> int:
        """What the sides of a preview are multiples of: the VAE's compression times Stage I's patch size."""
        return pixels_per_token(self.vae.config, int(self.stage1_transformer.config.patch_size))

    def enlarged_size(self, preview: tuple[int, int], final: tuple[int, int]) -> tuple[int, int]:
        """Returns height and width that Stage II works at, from those of the preview and of the video."""
        return enlarged_size(preview, final, preset=self.preset, multiple=self.preview_multiple)

    def resolve_sizes(
        self,
        source: PreviewState | torch.Tensor | None,
        *,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> tuple[tuple[int, int, int], tuple[int, int]]:
        """Completes the final size and finds the preview's.

        Args:
            source: What `read_preview` returned.
            num_frames: Frames of a new preview; the preset's if None.
            height: Final height; None together with `width` for the model's own size; from a preview for the size that
                it was made for, or of pixels the preview's enlarged.
            width: Final width.

        Returns:
            Frames, height and width of the preview; final height and width.

        Raises:
            ValueError: If only one of the two is given, or is not a whole number of at least 1.
        """
        if (height is None) != (width is None):
            raise ValueError(
                f"height and width must be given both or not at all, got height={height}, width={width}"
            )
        for name, side in (("height", height), ("width", width)):
            if side is not None:
                check_count(name, side)
        preset = self.preset
        if source is None:
            if height is None or width is None:
                height, width = preset.stage2.height, preset.stage2.width
            num_frames = or_default(num_frames, preset.stage1.num_frames)
            return (num_frames, *self.preview_size(height, width)), (height, width)
        if isinstance(source, PreviewState):
            made = source.settings
            preview_shape = (made.num_frames, made.height, made.width)
            if height is None:
                height, width = made.final_height, made.final_width
        else:
            preview_shape = (source.shape[1], source.shape[-2], source.shape[-1])
        if height is None or width is None:
            height, width = final_size(*preview_shape[1:], preset=preset)
        return preview_shape, (height, width)

    def enable_memory_plans(
        self, device: torch.device | str, *, budget_bytes: int | None = None, weights: str = "full"
    ) -> None:
        """From now on plans the memory of every run, see `flashvideo.pipelines.memory`.

        Each network is brought to the device when it is its turn, and the fastest measures are taken with which the run
        fits; if the memory runs out all the same, the next thriftier ones, without doing again what is done. In the
        place of `to(device)` and of diffusers' own offloading.

        Args:
            device: Where networks work.
            budget_bytes: Memory of the device that may be used; what is free at the start of a run if None.
            weights: How to store the transformers' weights, see `flashvideo.pipelines.quantization`.

        Raises:
            ValueError: If the budget is not positive, there are no such weights, or this machine lacks the device.
            ImportError: If weights need torchao and it is not installed.
        """
        from flashvideo.pipelines.device_memory import DeviceMemory
        from flashvideo.pipelines.devices import choose_device
        from flashvideo.pipelines.footprint import ModelConfigs, footprint_of
        from flashvideo.pipelines.memory import PHASES
        from flashvideo.pipelines.quantization import quantize

        if budget_bytes is not None and budget_bytes <= 0:
            raise ValueError(f"budget_bytes must be positive, got {budget_bytes}; None is all that is free")
        if self.weights not in ("full", weights):
            raise ValueError(f"weights are in {self.weights} already, got {weights}; load the model anew")
        device = choose_device(device)
        if weights != self.weights:
            for transformer in (self.stage1_transformer, self.stage2_transformer):
                if transformer is not None:
                    quantize(transformer, weights)
        networks = {name: getattr(self, name) for name in dict.fromkeys(PHASES.values())}
        self.weights = weights
        self._memory = DeviceMemory(
            {name: network for name, network in networks.items() if network is not None},
            footprint_of(
                ModelConfigs.of(self),
                self.stage1_transformer.dtype,
                weights=weights,
                on_host=device.type == "cpu",
            ),
            device,
            budget_bytes=budget_bytes,
        )

    def disable_memory_plans(self) -> None:
        """Plans no more; networks stay where they are, to be moved by `to`."""
        self._memory = None

    def give_up(self, name: str) -> None:
        """Frees the weights of a network that will not be needed any more, where memory is planned.

        Args:
            name: `"text_encoder"` or `"stage1_transformer"`, for example.
        """
        if self._memory is not None:
            self._memory.give_up(name)
