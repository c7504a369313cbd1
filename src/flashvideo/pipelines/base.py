"""What the pipelines of both stages have in common: their preset, the state of a run, and the end of a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline

from flashvideo.pipelines.inputs import read_preset
from flashvideo.presets import Preset

Callback = Callable[
    [DiffusionPipeline, int, torch.Tensor, dict[str, torch.Tensor]], dict[str, torch.Tensor] | None
]
"""`(pipeline, step, timestep, tensors) -> tensors to replace`, called at the end of each step."""


class StagePipeline(DiffusionPipeline):
    """One stage: a diffusers pipeline with a preset, whose steps can be watched and interrupted.

    Args:
        preset: Defaults and constants of the model, or their `to_dict()`; stored in `model_index.json`.
        components: What the stage consists of, by the names of the subclass's arguments.

    Raises:
        ValueError: If the preset is missing or not valid.
    """

    _optional_components: ClassVar[list[str]] = ["tokenizer", "text_encoder"]
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents", "prompt_embeds"]

    def __init__(self, preset: Mapping[str, Any] | Preset | None, **components: object) -> None:
        super().__init__()
        self.register_modules(**components)
        self.register_to_config(preset=read_preset(preset).to_dict())
        self._interrupt = False
        self._guidance_scale = 1.0
        self._num_timesteps = 0
        self._current_timestep: torch.Tensor | None = None

    @property
    def preset(self) -> Preset:
        """Defaults and constants of the model."""
        return read_preset(self.config.preset)

    @property
    def guidance_scale(self) -> float:
        """Guidance scale of the current or last step; 1 means none."""
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        """Steps of the current or last run; at Stage II, per window."""
        return self._num_timesteps

    @property
    def current_timestep(self) -> torch.Tensor | None:
        """Timestep of the current step, None between runs."""
        return self._current_timestep

    @property
    def interrupt(self) -> bool:
        """Whether a callback asked to stop, by setting `_interrupt` to true."""
        return self._interrupt

    def end_step(
        self,
        callback: Callback | None,
        names: Sequence[str],
        step: int,
        timestep: torch.Tensor,
        tensors: dict[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """Calls the callback with the tensors that it asked for.

        Returns:
            All tensors, with those that the callback returned in place of the old ones.
        """
        if callback is None:
            return tensors
        replaced = callback(self, step, timestep, {name: tensors[name] for name in names}) or {}
        return {name: replaced.get(name, tensor) for name, tensor in tensors.items()}
