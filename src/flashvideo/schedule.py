"""The zero-terminal-SNR noise schedule and the Stage I sampler (paper section 3.1).

With a = sqrt(alpha_bar): ``x = a x0 + sqrt(1 - a^2) eps`` and the network predicts ``v = a eps - sqrt(1 - a^2) x0``.
The schedule is rescaled so that a = 0 at the last step: sampling really starts from pure noise.

The sampler is a stochastic DPM-Solver++(2M). It differs from diffusers' ``CogVideoXDPMScheduler`` in where the
rescaling happens (after the sub-sampling of steps) and in the table that turns v into x0, which is why it exists.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor

from flashvideo.presets import GUIDANCE_SCHEDULES, NUM_TRAIN_TIMESTEPS

BETA_START = 0.00085
BETA_END = 0.012


def alphas_cumprod_sqrt_table(
    num_train_timesteps: int = NUM_TRAIN_TIMESTEPS,
    *,
    beta_start: float = BETA_START,
    beta_end: float = BETA_END,
    snr_shift_scale: float = 1.0,
) -> torch.Tensor:
    """a = sqrt(alpha_bar) of every training step, rescaled to end at zero.

    Betas are linear in their square roots; the rescaling is linear in a and keeps the first entry
    (arXiv 2305.08891, algorithm 1). Before it alpha_bar becomes ``alpha_bar / (s + (1 - s) alpha_bar)``, which divides
    the signal-to-noise ratio by s = ``snr_shift_scale``: 1 in CogVideoX-5B and FlashVideo, 3 in CogVideoX-2B.

    Returns:
        Float32 (num_train_timesteps,), from 0.9996 (clean) at index 0 down to 0 (pure noise).
    """
    alphas_cumprod = _alphas_cumprod(num_train_timesteps, beta_start, beta_end, snr_shift_scale)
    return _rescale_to_zero(alphas_cumprod.sqrt())


def add_noise(x0: torch.Tensor, eps: torch.Tensor, a: torch.Tensor | float) -> torch.Tensor:
    """Noisy latents ``a x0 + sqrt(1 - a^2) eps``.

    Args:
        x0: Clean latents (B, ...).
        eps: Noise, same shape.
        a: sqrt(alpha_bar) in [0, 1], a number, () or (B,).

    Returns:
        Same shape and dtype as ``x0``.
    """
    a, b = _signal_and_noise(a, x0)
    return a * x0 + b * eps


def velocity_target(x0: torch.Tensor, eps: torch.Tensor, a: torch.Tensor | float) -> torch.Tensor:
    """What the Stage I network learns: ``v = a eps - sqrt(1 - a^2) x0`` (arguments as in `add_noise`)."""
    a, b = _signal_and_noise(a, x0)
    return a * eps - b * x0


def clean_from_velocity(x: torch.Tensor, v: torch.Tensor, a: torch.Tensor | float) -> torch.Tensor:
    """The clean latents that v implies: ``x0 = a x - sqrt(1 - a^2) v`` (arguments as in `add_noise`)."""
    a, b = _signal_and_noise(a, x)
    return a * x - b * v


def velocity_towards(x0: torch.Tensor, x: torch.Tensor, a: torch.Tensor | float) -> torch.Tensor:
    """The v that leads from any latents x to clean ones: ``v = (a x - x0) / sqrt(1 - a^2)``, for a < 1.

    Where ``x = a x0 + sqrt(1 - a^2) eps`` it is `velocity_target`, whose arguments these are.
    """
    a, b = _signal_and_noise(a, x)
    return (a * x - x0) / b


def guidance_scale_at(schedule: str, scale: float, timestep: int, num_inference_steps: int) -> float:
    """Guidance scale of one step.

    "constant" is ``scale``. "reference" is ``1 + scale (1 - cos(pi ((N - timestep) / N)^5)) / 2``: the released code
    puts the timestep (999 to 19) where the formula meant the step index, so the value oscillates between 1 and
    1 + scale. It is kept because the released weights were tuned with it, at N = 51; use "constant" elsewhere.

    Args:
        schedule: "constant" or "reference".
        scale: Guidance scale of the preset.
        timestep: Training timestep of this step, an integer.
        num_inference_steps: Number of steps N.

    Returns:
        The scale w in ``v = v_uncond + w (v_cond - v_uncond)``.

    Raises:
        ValueError: If the schedule's name is unknown.
    """
    if schedule == "constant":
        return float(scale)
    if schedule == "reference":
        phase = ((num_inference_steps - timestep) / num_inference_steps) ** 5
        return 1 + scale * (1 - math.cos(math.pi * phase)) / 2
    raise ValueError(f"guidance_schedule must be one of {GUIDANCE_SCHEDULES}, got {schedule!r}")


@dataclass
class FlashVideoSchedulerOutput(BaseOutput):
    """Result of one sampler step.

    Attributes:
        prev_sample: Latents of the next, less noisy step, same shape as the input.
        pred_original_sample: The clean latents predicted at this step.
    """

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor


class FlashVideoScheduler(SchedulerMixin, ConfigMixin):
    """Stochastic DPM-Solver++(2M) on the zero-terminal-SNR schedule, for any number of steps.

    The timesteps are ``linspace(999, 0, N, endpoint=False)`` cut to integers; the last step returns the predicted clean
    latents. Start from standard normal noise.

    Args:
        num_train_timesteps: Length of the training schedule.
        beta_start: First beta.
        beta_end: Last beta.
        snr_shift_scale: What the signal-to-noise ratio is divided by, see `alphas_cumprod_sqrt_table`.

    Example:
        >>> import torch
        >>> scheduler = FlashVideoScheduler()
        >>> scheduler.set_timesteps(4)
        >>> scheduler.timesteps.tolist()
        [999, 749, 499, 249]
    """

    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = NUM_TRAIN_TIMESTEPS,
        beta_start: float = BETA_START,
        beta_end: float = BETA_END,
        snr_shift_scale: float = 1.0,
    ) -> None:
        self.table = alphas_cumprod_sqrt_table(
            num_train_timesteps, beta_start=beta_start, beta_end=beta_end, snr_shift_scale=snr_shift_scale
        )
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)
        self.alphas_cumprod_sqrt = torch.empty(0)
        self._step_index: int | None = None
        self._begin_index = 0
        self._previous_x0: torch.Tensor | None = None

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Prepare a run.

        Args:
            num_inference_steps: Network evaluations N, 1 to ``num_train_timesteps``.
            device: Where ``timesteps`` shall lie.

        Raises:
            ValueError: If ``num_inference_steps`` is out of range.
        """
        config = self.config
        if not 1 <= num_inference_steps <= config.num_train_timesteps:
            raise ValueError(
                f"num_inference_steps must be in 1..{config.num_train_timesteps}, got {num_inference_steps}"
            )
        steps = np.linspace(config.num_train_timesteps - 1, 0, num_inference_steps, endpoint=False).astype(
            np.int64
        )
        alphas_cumprod = _alphas_cumprod(
            config.num_train_timesteps, config.beta_start, config.beta_end, config.snr_shift_scale
        )
        # The reference rescales the chosen sub-sequence (clean first), not the whole table.
        rescaled = _rescale_to_zero(alphas_cumprod[torch.from_numpy(steps[::-1].copy())].sqrt()).flip(0)
        self.alphas_cumprod_sqrt = torch.cat((rescaled, rescaled.new_ones(1)))  # (N + 1,)
        self.timesteps = torch.from_numpy(steps).to(device)
        self.num_inference_steps = num_inference_steps
        self._step_index = self._previous_x0 = None
        self._begin_index = 0

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin a run at a later of its timesteps, from latents that are as noisy as there.

        Args:
            begin_index: Place in ``timesteps``; to be set after `set_timesteps`, which sets it to 0.

        Raises:
            ValueError: If there is no such place, or the run has begun.
        """
        if self._step_index is not None or not 0 <= begin_index < len(self.timesteps):
            begun = " after a step" if self._step_index is not None else ""
            raise ValueError(
                f"begin_index must be in 0..{len(self.timesteps) - 1} and come before the first step, got "
                f"{begin_index}{begun}"
            )
        self._begin_index = begin_index

    def scale_model_input(
        self, sample: torch.Tensor, timestep: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Return the sample unchanged (part of the diffusers scheduler contract)."""
        return sample

    def step(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor | int,
        sample: torch.Tensor,
        *,
        generator: torch.Generator | None = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> FlashVideoSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """One step towards clean latents.

        Args:
            model_output: Guided v prediction, same shape as ``sample``.
            timestep: The current entry of ``timesteps``.
            sample: Noisy latents.
            generator: Source of the step's noise.
            variance_noise: The noise itself, same shape; the generator is then not used.
            return_dict: Return an output object rather than a tuple.

        Returns:
            The next latents and the predicted clean latents.

        Raises:
            ValueError: If `set_timesteps` was not called or ``timestep`` is not of this run.
        """
        index = self._current_index(int(timestep))
        a, a_next = self.alphas_cumprod_sqrt[index].double(), self.alphas_cumprod_sqrt[index + 1].double()
        x0 = clean_from_velocity(sample, model_output, self.quantized_alpha(index))
        if index == len(self.timesteps) - 1:
            next_sample = x0
        else:
            h = _log_snr(a_next) - _log_snr(a)
            target = x0
            if self._previous_x0 is not None:
                r = (_log_snr(a) - _log_snr(self.alphas_cumprod_sqrt[index - 1].double())) / h
                target = x0 + (x0 - self._previous_x0) * float(1 / (2 * r))
            if variance_noise is None:
                variance_noise = randn_tensor(
                    sample.shape, generator=generator, device=sample.device, dtype=sample.dtype
                )
            noise_left, decay = (1 - a_next**2).sqrt(), torch.exp(-h)
            next_sample = (
                float(noise_left / (1 - a**2).sqrt() * decay) * sample
                - float(torch.expm1(-2 * h) * a_next) * target
                + float(noise_left * (-torch.expm1(-2 * h)).sqrt()) * variance_noise
            )
        self._previous_x0 = x0
        self._step_index = index + 1
        if not return_dict:
            return next_sample, x0
        return FlashVideoSchedulerOutput(prev_sample=next_sample, pred_original_sample=x0)

    def quantized_alpha(self, index: int) -> float:
        """The training table's entry nearest to step ``index``'s a; the network knows the table, or just these."""
        return float(self.table[(self.table - self.alphas_cumprod_sqrt[index]).abs().argmin()])

    def _current_index(self, timestep: int) -> int:
        if self.num_inference_steps is None:
            raise ValueError("call set_timesteps before step")
        if self._step_index is None:
            self._step_index = self._begin_index
        if self._step_index >= len(self.timesteps) or int(self.timesteps[self._step_index]) != timestep:
            raise ValueError(
                f"step {self._step_index} of this run does not belong to timestep {timestep}; steps must be taken in "
                "the order of scheduler.timesteps, call set_timesteps to start again"
            )
        return self._step_index

    def __len__(self) -> int:
        """Length of the training schedule."""
        return int(self.config.num_train_timesteps)


def _alphas_cumprod(
    num_train_timesteps: int, beta_start: float, beta_end: float, snr_shift_scale: float
) -> torch.Tensor:
    betas = torch.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps, dtype=torch.float64) ** 2
    alphas_cumprod = torch.cumprod(1 - betas, dim=0)
    if snr_shift_scale != 1:
        alphas_cumprod = alphas_cumprod / (snr_shift_scale + (1 - snr_shift_scale) * alphas_cumprod)
    return alphas_cumprod.to(torch.float32)  # float32 from here on, to equal the reference's bits


def _rescale_to_zero(alphas_cumprod_sqrt: torch.Tensor) -> torch.Tensor:
    first, last = alphas_cumprod_sqrt[0], alphas_cumprod_sqrt[-1]
    if len(alphas_cumprod_sqrt) == 1:  # a single step starts from pure noise
        return torch.zeros_like(alphas_cumprod_sqrt)
    return (alphas_cumprod_sqrt - last) * (first / (first - last))


def _log_snr(a: torch.Tensor) -> torch.Tensor:
    """lambda = log(a / sqrt(1 - a^2)); minus infinity at a = 0, which the step's formulas tolerate."""
    return torch.log(a / (1 - a**2).sqrt())


def _signal_and_noise(a: torch.Tensor | float, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """a and sqrt(1 - a^2), shaped to broadcast over (B, ...) latents."""
    a = torch.as_tensor(a, dtype=torch.float32, device=like.device).reshape(-1, *[1] * (like.ndim - 1))
    return a.to(like.dtype), (1 - a**2).sqrt().to(like.dtype)
