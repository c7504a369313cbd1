"""What the recipes of Stage I and Stage II have, and their phases."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, field
from typing import Any

from flashvideo.data.shapes_world import COLORS, MOTIONS, SHAPES, TEXTURES
from flashvideo.degradations.pixel import PixelDegradation
from flashvideo.presets import NUM_TRAIN_TIMESTEPS
from flashvideo.training.clip_data import ClipData
from flashvideo.training.config import LoRA, Phase, Recipe, check_least, check_positive, check_share
from flashvideo.training.reading import build


@dataclass(frozen=True, kw_only=True)
class Stage1Phase(Phase):
    """A phase of Stage I training.

    Attributes:
        density: exponent p of the timestep density: k = 999 (1 - u^p); 1 is uniform, larger means noisier.
        sampler_steps: train only at the timesteps that a sampler of so many steps visits, each drawn timestep moved to
            the nearest of them; 0 for all timesteps.
        rollout: share of steps whose noisy latents the model's own sampler made on the way down from noisier clips, so
            that it learns to put right what it gets wrong; but for samples at the first two timesteps, which get plain
            noise. Needs sampler_steps, and two more passes without gradients.
        keyframes: latent frames drawn at random from each clip, at their own positions in time; 0 for all. Frames of
            one clip are much alike, so that a few of them teach almost as much as all.
        ends: share of steps whose keyframes are the first and the last latent frame, between which a motion shows most.
        lengths: frames per clip that steps alternate between, each a key of the recipe's `clips`; by default `frames`.
            Of clips of one's own each goes to the longest that it fills, and the share of 1 is that of pictures.
        sizes: (height, width) that clips of one's own go to by their aspect; by default the recipe's `size`.
    """

    density: float = 2.5
    sampler_steps: int = 0
    rollout: float = 0.0
    keyframes: int = 0
    ends: float = 0.0
    lengths: tuple[int, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.sampler_steps <= 1000:
            raise ValueError(f"sampler_steps must be 0 to 1000, got {self.sampler_steps}")
        check_share(self, "rollout")
        if self.rollout and self.sampler_steps < 3:
            raise ValueError(f"rollout needs sampler_steps of at least 3, got {self.sampler_steps}")
        if self.keyframes < 0 or not 0 <= self.ends <= 1:
            raise ValueError(
                f"keyframes must be at least 0 and ends in [0, 1], got {self.keyframes} and {self.ends}"
            )
        if self.ends and (self.keyframes != 2 or self.frames == 1):
            raise ValueError(
                f"ends needs keyframes: 2 of more than one frame, got {self.keyframes} of {self.frames}"
            )


@dataclass(frozen=True, kw_only=True)
class Stage1Recipe(Recipe):
    """Training of Stage I: v-prediction, zero-terminal SNR, text dropout.

    Attributes:
        start: as for every recipe: a run's output, a whole model, or a CogVideoX-2B or 5B in diffusers' layout, whose
            own noise schedule is kept. The latter two bring their VAE, tokenizer and text encoder along.
        vae: folder of the trained VAE; may be empty with a start that brings one.
        model: arguments of `FlashVideoTransformer3DModel`; with `start` they are those of the weights.
        text: arguments of the T5 text encoder, likewise.
        phases: in order.
        lora: train an adapter beside frozen weights; none trains all of them.
        train_text: train the text encoder too. By default on the procedural world alone, and not with `lora`, nor the
            one that a CogVideoX brings.
        size: (height, width) of the preview.
        text_dropout: share of samples trained with zeros for text, which is what sampling is guided against.
        data: clips of one's own to train on; by default the procedural world.
        precomputed: folder of latents and text embeddings that `flashvideo precompute` made of `data`; by default both
            are computed at every step.
        validation: others to validate on; by default a share of `data` that is never trained on.
        watch_clips: how many of those, whose loss at fixed timesteps and noise is the figure that is watched.
        prompts: what previews are made of at each validation, besides.
        preview_steps: steps of those; by default those of the start.
        clips: how many clips are rendered and encoded once, by their number of frames; each shows a whole motion.
        emphasis: how many times as often as others an attribute is drawn, such as {spinning: 3}: for what is hard.
        spread: of places, paths, sizes and leans in the procedural world, which no caption tells; narrow, below 1, it
            leaves a small model less to make up its mind about, and all that spins spins one way.
        vae_strips: run the VAE strip by strip, in a third of its memory.
    """

    phases: tuple[Stage1Phase, ...]
    vae: str = ""
    model: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=dict)
    lora: LoRA | None = None
    train_text: bool | None = None
    size: tuple[int, int] = (96, 160)
    text_dropout: float = 0.1
    data: ClipData | None = None
    precomputed: str = ""
    validation: ClipData | None = None
    watch_clips: int = 4
    prompts: tuple[str, ...] = ()
    preview_steps: int = 0
    clips: dict[int, int] = field(default_factory=lambda: {17: 4096})
    emphasis: dict[str, float] = field(default_factory=dict)
    spread: float = 1.0
    vae_strips: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data is None:
            self._check_procedural()
        _check_one_origin(self.start, self.model, "model")
        _check_one_origin(self.start, self.text, "text")
        _check_vae(self.vae, self.start)
        _check_lora(self.lora, self.start)
        check_share(self, "text_dropout", "spread")
        if self.lora is not None and self.train_text:
            raise ValueError("lora trains an adapter of the transformer alone; leave out train_text")
        check_least(self, watch_clips=1, preview_steps=0)
        _check_validation(self.data, self.validation)
        _check_precomputed(self.data, self.precomputed)
        if self.data is not None and not self.start:
            raise ValueError(
                "data needs a 'start' whose text encoder knows the words of its captions, got none; a new Stage I "
                "knows those of the procedural world alone"
            )

    def _check_procedural(self) -> None:
        for index, phase in enumerate(self.phases):
            for frames in phase.lengths or (phase.frames,):
                if frames != 1 and frames not in self.clips:
                    known = ", ".join(map(str, self.clips))
                    raise ValueError(
                        f"phases.{index} must have frames of clips, {known} (or 1), got {frames}"
                    )
            if phase.sizes:
                raise ValueError(f"phases.{index}.sizes is for clips of one's own, which 'data' names")
        words = [*COLORS, *TEXTURES, *SHAPES, *MOTIONS]
        for word, weight in self.emphasis.items():
            if word not in words:
                nearest = difflib.get_close_matches(word, words, n=1, cutoff=0)[0]
                raise ValueError(
                    f"emphasis must be of colours, textures, shapes or motions, got {word!r}; did you mean {nearest!r}?"
                )
            if not 0 < weight < math.inf:
                raise ValueError(f"emphasis.{word} must be a positive number, got {weight}")

    def shapes(self, phase_index: int) -> tuple[tuple[int, int, int], ...]:
        """(frames, height, width) of a phase's clips of one's own."""
        phase = self.phases[phase_index]
        lengths = dict.fromkeys(phase.lengths or (phase.frames,))
        return tuple((f, *size) for f in lengths for size in phase.sizes or (self.size,))


@dataclass(frozen=True, kw_only=True)
class Stage2Phase(Phase):
    """A phase of Stage II training.

    Attributes:
        crops: sizes (height, width) that steps alternate between; the full frame may be one of them.
        crops_by_frames: sizes of clips of some lengths instead, such as {1: [[384, 640]]}: what fits the memory.
        lengths: frames per clip that steps alternate between, 1 for images, such as [1, 17, 17]; by default `frames`.
            Each length meets each of its sizes. Of clips of one's own each goes to the longest and largest that it
            fills, by its aspect, and the share of 1 is that of pictures.
        natural: share of dead-leaves clips.
        speeds: of procedural clips, between these two, evenly in their logarithms; at 1 a scene's course takes two
            seconds, and one that ends runs back.
        noise_steps: range of latent degradation, drawn uniformly and stratified over the step.
        noise_steps_by_frames: ranges for clips of some lengths instead, such as {1: [600, 750]}: a still picture
            carries less than a clip, and the same noise hides more of it. The paper names none; nor is there a default.
        times_per_clip: how many flow times each encoded pair is trained at.
        text_dropout: share of samples trained with zeros for text; 1 trains without text.
        strong: share of clips with the strong pixel degradation, the others get the weak one.
        round_trip: share of clips that go through the VAE while they are small, as a generated preview has. Only for
            crops near the full frame: in much smaller ones the VAE shifts colours, and Stage II learns to shift back.
        contrast_weight: of the distance of local contrast between the clean latents that a velocity points to and the
            true ones. With little noise the flow alone learns the mean of what might be there, which is smooth.
        still_contrast_weight: of the same distance between their means over time: detail that stays, not flicker.
        difference_weight: of the L1 distance of these clean latents' differences in time, against flicker.
    """

    crops: tuple[tuple[int, int], ...]
    crops_by_frames: dict[int, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    lengths: tuple[int, ...] = ()
    natural: float = 0.4
    speeds: tuple[float, float] = (1.0, 1.0)
    noise_steps: tuple[int, int] = (0, 12)
    noise_steps_by_frames: dict[int, tuple[int, int]] = field(default_factory=dict)
    times_per_clip: int = 1
    text_dropout: float = 0.1
    strong: float = 0.2
    round_trip: float = 0.0
    contrast_weight: float = 0.0
    still_contrast_weight: float = 0.0
    difference_weight: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        used = self.lengths or (self.frames,)
        for name in ("still_contrast_weight", "difference_weight"):
            if getattr(self, name) and set(used) == {1}:
                raise ValueError(f"{name} needs more than one frame, got frames: 1; leave it out")
        check_share(self, "natural", "text_dropout", "strong", "round_trip")
        check_least(self, times_per_clip=1, contrast_weight=0, still_contrast_weight=0, difference_weight=0)
        if not 0 < self.speeds[0] <= self.speeds[1]:
            raise ValueError(f"speeds must be positive and rise, got {list(self.speeds)}")
        if min(used) < 1:
            raise ValueError(f"lengths must be at least 1, got {min(used)}")
        for low, high in (self.noise_steps, *self.noise_steps_by_frames.values()):
            if not 0 <= low <= high < NUM_TRAIN_TIMESTEPS:
                raise ValueError(
                    f"noise_steps must rise within 0 to {NUM_TRAIN_TIMESTEPS - 1}, got [{low}, {high}]"
                )
        for name in ("crops_by_frames", "noise_steps_by_frames"):
            for frames in getattr(self, name):
                if frames not in used:
                    known = ", ".join(map(str, dict.fromkeys(used)))
                    raise ValueError(f"{name} must be of lengths of the phase, {known}, got {frames}")
        if not all((self.crops, *self.crops_by_frames.values())):
            raise ValueError("crops must give at least one (height, width), got none")

    def sizes(self, frames: int) -> tuple[tuple[int, int], ...]:
        """Sizes (height, width) of clips of so many frames."""
        return self.crops_by_frames.get(frames, self.crops)

    def shape_at(self, step: int) -> tuple[int, int, int]:
        """(frames, height, width) of the clips of a step of the phase."""
        lengths = self.lengths or (self.frames,)
        cycle, slot = divmod(step, len(lengths))
        sizes = self.sizes(lengths[slot])
        return lengths[slot], *sizes[cycle % len(sizes)]

    def shapes(self) -> tuple[tuple[int, int, int], ...]:
        """(frames, height, width) of all its clips."""
        lengths = dict.fromkeys(self.lengths or (self.frames,))
        return tuple((frames, *size) for frames in lengths for size in self.sizes(frames))

    def noise_range(self, frames: int) -> tuple[int, int]:
        """First and last noise step of clips of so many frames."""
        return self.noise_steps_by_frames.get(frames, self.noise_steps)


@dataclass(frozen=True, kw_only=True)
class Stage2Recipe(Recipe):
    """Training of Stage II: flow matching from degraded low resolution to high resolution.

    Attributes:
        start: as for every recipe; or the folder of a CogVideoX-2B or 5B in diffusers' layout, whose transformer gets
            new embedders and the `positions` asked for. That, and a whole model, bring VAE and text encoder along.
        vae: folder of the trained VAE; may be empty with a start that brings one.
        text: folder of tokenizer and text encoder, which are frozen, such as a trained Stage I; empty trains without
            text, unless the start brings them.
        model: arguments of `FlashVideoTransformer3DModel`; with `start` they are those of the weights.
        positions: "rotary", or "absolute" for CogVideoX-2B's table of sines and cosines, which the paper compares with;
            by default what the model has, and rotary from a CogVideoX.
        lora: train an adapter beside frozen weights; none trains all of them.
        phases: in order, coarse to fine.
        data: clips of one's own to train on; by default the procedural world.
        precomputed: folder of latents and text embeddings that `flashvideo precompute` made of `data`; by default both
            are computed at every step.
        validation: others to validate on; by default a share of `data` that is never trained on.
        degradation: what differs from the defaults of `PixelDegradation`; factors that it does not name are `scale`.
            How often it is strong is for the phases to say.
        strength: of the strong degradation: 1 as it is, 0 the mildest of all its ranges.
        prompt_prefix: put before each caption, as at inference; the released model reads "medium motion,".
        size: (height, width) of the full frame.
        scale: factor between preview and full frame.
        shift: time shift s of training and sampling.
        watch_clips: held-out clips that are enhanced at full size for each validation.
        watch_frames: their frames; few are cheap.
        watch_noise_step: noise step there; by default the middle of the last phase's range.
        watch_guidance: guidance scale there; 1 is none.
        vae_strips: run the VAE strip by strip, in a third of its memory: for large frames.
    """

    phases: tuple[Stage2Phase, ...]
    vae: str = ""
    model: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    positions: str = ""
    lora: LoRA | None = None
    data: ClipData | None = None
    precomputed: str = ""
    validation: ClipData | None = None
    degradation: dict[str, Any] | None = None
    strength: float = 1.0
    prompt_prefix: str = ""
    size: tuple[int, int] = (384, 640)
    scale: int = 4
    shift: float = 2.5
    watch_clips: int = 4
    watch_frames: int = 5
    watch_noise_step: int | None = None
    watch_guidance: float = 1.0
    vae_strips: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_one_origin(self.start, self.model, "model")
        _check_vae(self.vae, self.start)
        _check_lora(self.lora, self.start)
        if self.positions not in ("", "rotary", "absolute"):
            raise ValueError(f"positions must be rotary or absolute, got {self.positions!r}")
        check_least(self, watch_clips=1, watch_frames=1, scale=1)
        check_positive(self, "shift")
        check_share(self, "strength")
        strong = (self.degradation or {}).get("strong")
        if strong is not None:
            raise ValueError(
                f"degradation.strong is for the phases to say, got {strong}; give each phase its 'strong'"
            )
        self.pixel_degradation()
        _check_validation(self.data, self.validation)
        _check_precomputed(self.data, self.precomputed)
        if self.data is None:
            self._check_procedural()
        if any(side % self.scale for side in self.size):
            raise ValueError(f"size must be multiples of scale {self.scale}, got {list(self.size)}")
        if self.watch_noise_step is not None and not 0 <= self.watch_noise_step < NUM_TRAIN_TIMESTEPS:
            raise ValueError(
                f"watch_noise_step must be 0 to {NUM_TRAIN_TIMESTEPS - 1}, got {self.watch_noise_step}"
            )

    def _check_procedural(self) -> None:
        for index, phase in enumerate(self.phases):
            for _, height, width in phase.shapes():
                if height > self.size[0] or width > self.size[1]:
                    raise ValueError(
                        f"phases.{index} must have crops within the recipe's size, {list(self.size)}, got "
                        f"{[height, width]}; raise size, or take smaller crops"
                    )

    def pixel_degradation(self) -> PixelDegradation:
        """What low quality is made by."""
        factor = [self.scale, self.scale]
        given = {name: value for name, value in (self.degradation or {}).items() if value is not None}
        values = {"weak_factor": factor, "strong_factor": factor, **given}
        return build(PixelDegradation, values, "degradation.").milder(self.strength)

    def noise_step_to_watch(self, frames: int | None = None) -> int:
        """Noise step of validation for clips of so many frames, by default `watch_frames`.

        For others, such as pictures where videos are missing, `watch_noise_step` counts within their own range alone.
        """
        low, high = self.phases[-1].noise_range(frames or self.watch_frames)
        given = self.watch_noise_step
        if given is not None and (frames in (None, self.watch_frames) or low <= given <= high):
            return given
        return (low + high) // 2


def image_share(phase: Stage1Phase | Stage2Phase) -> float:
    """Share of a phase's steps that are of single frames."""
    lengths = phase.lengths or (phase.frames,)
    return lengths.count(1) / len(lengths)


def _check_precomputed(data: ClipData | None, precomputed: str) -> None:
    if precomputed and data is None:
        raise ValueError(
            f"precomputed is of clips of one's own, got {precomputed} without them; give 'data', or leave it out"
        )


def _check_validation(data: ClipData | None, validation: ClipData | None) -> None:
    if validation is not None and data is None:
        raise ValueError("validation is for training on clips of one's own; give 'data' too, or leave it out")


def _check_vae(vae: str, start: str) -> None:
    if not vae and not start:
        raise ValueError("the recipe must give 'vae', which only a start may bring along, got neither")


def _check_lora(lora: LoRA | None, start: str) -> None:
    if lora is not None and not start:
        raise ValueError("lora adapts trained weights, which the recipe must name as 'start', got none")


def _check_one_origin(start: str, arguments: dict[str, Any], name: str) -> None:
    if bool(start) == bool(arguments):
        got = "both" if start else "neither"
        raise ValueError(f"the recipe must give either start or {name!r}, got {got}")
