"""What the pipelines of both stages have in common: their preset, the state of a run, and the end of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from diffusers import DiffusionPipeline

from flashvideo.flow import guided_velocity
from flashvideo.pipelines.inputs import read_preset
from flashvideo.presets import Preset
from flashvideo.text import encode_prompts, unconditional_like
from flashvideo.vae.layers import check_thrift

if TYPE_CHECKING:
    from flashvideo.pipelines.device_memory import DeviceMemory
    from flashvideo.pipelines.memory import Measures
    from flashvideo.pipelines.workload import Workload

T = TypeVar("T")

Callback = Callable[
    [DiffusionPipeline, int, torch.Tensor, dict[str, torch.Tensor]], dict[str, torch.Tensor] | None
]
"""`(pipeline, step, timestep, tensors) -> tensors to replace`, called at the end of each step."""


class PlannedPipeline(DiffusionPipeline):
    """A pipeline with a preset, that can be interrupted, and whose work may follow a memory plan."""

    _callback_tensor_inputs: ClassVar[list[str]] = ["latents", "prompt_embeds"]
    _interrupt = False
    _memory: DeviceMemory | None = None
    _sequential_guidance = False
    _thrift: str | None = None

    def enable_sequential_guidance(self) -> None:
        """Evaluates the two branches of guidance one after another: half of the memory, and the same result."""
        self._sequential_guidance = True

    def disable_sequential_guidance(self) -> None:
        """Evaluates the two branches of guidance in one batch again."""
        self._sequential_guidance = False

    def enable_vae_strips(self, thrift: str = "strips") -> None:
        """Lets the VAE work strip by strip: the same result up to rounding, in a third of the memory or less.

        Args:
            thrift: `"strips"`, `"caches"` or `"layers"`, see `flashvideo.vae.layers.Workspace`.

        Raises:
            ValueError: If it is none of them.
        """
        check_thrift(thrift)
        self._thrift = thrift

    def disable_vae_strips(self) -> None:
        """Lets the VAE work by its own modules again."""
        self._thrift = None

    @property
    def preset(self) -> Preset:
        """Defaults and constants of the model."""
        return read_preset(self.config.preset)

    @property
    def interrupt(self) -> bool:
        """Whether a callback asked to stop, by setting `_interrupt` to true."""
        return self._interrupt

    @property
    def _execution_device(self) -> torch.device:
        if self._memory is not None:
            return self._memory.device
        device: torch.device = super()._execution_device
        return device

    @property
    def execution_device(self) -> torch.device:
        """Where networks work, which is not where they lie while they are idle."""
        return self._execution_device

    def run_phase(self, phase: str, work: Callable[[Measures], T]) -> T:
        """Does the work of a phase as the memory plan says, if there is one.

        Args:
            phase: A key of `flashvideo.pipelines.memory.PHASES`.
            work: Does it, given the measures that save memory; may be called again if the memory runs out.

        Returns:
            What the work returns.
        """
        from flashvideo.pipelines.memory import Measures

        own = Measures(thrift=self._thrift)
        return work(own) if self._memory is None else self._memory.run(phase, work, own)

    @contextmanager
    def planned(self, workload: Callable[[], Workload]) -> Iterator[None]:
        """Within the block a memory plan holds, if there are to be plans; `workload` says what the run is asked for.

        A block inside, of a part of the run, follows the same plan.
        """
        if self._memory is None:
            yield
        else:
            with self._memory.planned(workload()):
                yield


class StagePipeline(PlannedPipeline):
    """One stage: a diffusers pipeline with a preset, whose steps can be watched and interrupted.

    Args:
        preset: Defaults and constants of the model, or their `to_dict()`; stored in `model_index.json`.
        components: What the stage consists of, by the names of the subclass's arguments.

    Raises:
        ValueError: If the preset is missing or not valid.
    """

    _optional_components: ClassVar[list[str]] = ["tokenizer", "text_encoder"]

    # Order of the guidance batch. It changes the result only by rounding; it is the released code's.
    _unconditional_first: ClassVar[bool]

    # Name of the denoising phase in memory plans.
    _phase: ClassVar[str]

    def __init__(self, preset: Mapping[str, Any] | Preset | None, **components: object) -> None:
        super().__init__()
        self.register_modules(**components)
        self.register_to_config(preset=read_preset(preset).to_dict())
        self._guidance_scale = 1.0
        self._num_timesteps = 0
        self._current_timestep: torch.Tensor | None = None

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

    @torch.no_grad()
    def embed(self, prompts: Sequence[str], max_text_tokens: int) -> torch.Tensor:
        """Encodes prompts as they are.

        Args:
            prompts: B prompts, with their prefix.
            max_text_tokens: L.

        Returns:
            Embeddings (B, L, D) in the transformer's dtype; in the text encoder's if there is no transformer.

        Raises:
            ValueError: If the pipeline was made without a text encoder.
        """
        if self.tokenizer is None or self.text_encoder is None:
            raise ValueError(
                "this model has no text encoder; name one with text_encoder (--text-encoder), or give "
                "prompt_embeds instead of a prompt"
            )
        device = self._execution_device
        embeds = self.run_phase(
            "text",
            lambda _: encode_prompts(
                prompts, self.tokenizer, self.text_encoder, max_text_tokens=max_text_tokens, device=device
            ),
        )
        return embeds if self.transformer is None else embeds.to(device, self.transformer.dtype)

    def predict_velocity(
        self,
        latents: torch.Tensor,
        prompt_embeds: torch.Tensor,
        timestep: torch.Tensor,
        *,
        guidance_scale: float,
        noise_step: int | None = None,
    ) -> torch.Tensor:
        """Evaluates the network; with guidance on a batch of (text, no text) in the stage's own order, or in turn.

        Args:
            latents: (B, f, C, h, w), float32.
            prompt_embeds: Text embeddings (B, L, D).
            timestep: The network's time, 0-dimensional.
            guidance_scale: w in `v = v_uncond + w (v_cond - v_uncond)`; at 1 only the text is evaluated.
            noise_step: Step of the latent degradation, for networks that take it.

        Returns:
            v (B, f, C, h, w), float32.
        """
        return self.run_phase(
            self._phase,
            lambda measures: self._predict_velocity(
                latents,
                prompt_embeds,
                timestep,
                guidance_scale,
                noise_step,
                in_turn=measures.sequential_guidance or self._sequential_guidance,
            ),
        )

    def _predict_velocity(
        self,
        latents: torch.Tensor,
        prompt_embeds: torch.Tensor,
        timestep: torch.Tensor,
        guidance_scale: float,
        noise_step: int | None,
        *,
        in_turn: bool,
    ) -> torch.Tensor:
        if guidance_scale == 1:
            return self.evaluate(latents, prompt_embeds, timestep, noise_step)
        no_text = unconditional_like(prompt_embeds)
        if in_turn:
            v_cond, v_uncond = (
                self.evaluate(latents, text, timestep, noise_step) for text in (prompt_embeds, no_text)
            )
            return guided_velocity(v_cond, v_uncond, guidance_scale)
        texts = [no_text, prompt_embeds] if self._unconditional_first else [prompt_embeds, no_text]
        both = self.evaluate(torch.cat([latents, latents]), torch.cat(texts), timestep, noise_step)
        first, second = both.chunk(2)
        v_cond, v_uncond = (second, first) if self._unconditional_first else (first, second)
        return guided_velocity(v_cond, v_uncond, guidance_scale)

    def evaluate(
        self,
        latents: torch.Tensor,
        prompt_embeds: torch.Tensor,
        timestep: torch.Tensor,
        noise_step: int | None = None,
    ) -> torch.Tensor:
        """Evaluates the network once.

        Args:
            latents: (B, f, C, h, w), float32.
            prompt_embeds: Text embeddings (B, L, D).
            timestep: The network's time, 0-dimensional.
            noise_step: Step of the latent degradation, for networks that take it.

        Returns:
            v (B, f, C, h, w), float32.
        """
        v: torch.Tensor = self.transformer(
            latents.to(self.transformer.dtype),
            prompt_embeds,
            timestep.expand(latents.shape[0]),
            noise_step=noise_step,
            return_dict=False,
        )[0]
        return v.float()
