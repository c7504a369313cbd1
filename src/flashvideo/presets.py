"""Every number of the released and of the shipped models, with its source: their one home."""

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Any, Self

NUM_TRAIN_TIMESTEPS = 1000
"""Length of the noise schedule and range of the network's time input, from CogVideoX."""

RELEASED_REPOSITORY = "FoundationVision/FlashVideo"
"""Repository of the authors' released weights on the Hugging Face Hub."""

RELEASED_FILES = ("stage1.pt", "stage2.pt", "3d-vae.pt")
"""Its files: the transformers of both stages and the VAE; the text encoder is not among them."""

TEXT_ENCODER_REPOSITORY = "zai-org/CogVideoX-2b"
"""Where the released models' text encoder and tokenizer (T5-v1.1-XXL) lie, in folders of those names."""

COGVIDEOX_GUIDANCE_SCALE = 6.0
"""Constant guidance scale of CogVideoX-2B and 5B, which as Stage I have no preset of their own."""

GUIDANCE_SCHEDULES = ("constant", "reference")
"""Names that `flashvideo.schedule.guidance_scale_at` knows."""


def _check_keys(cls: type, values: Mapping[str, Any]) -> None:
    """Reject unknown keys and name the nearest known one."""
    known = [field.name for field in fields(cls)]
    for key in values:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"known keys: {', '.join(known)}"
            raise ValueError(f"unknown key {key!r} for {cls.__name__}; {hint}")
    missing = [name for name in known if name not in values]
    if missing:
        raise ValueError(f"{cls.__name__} lacks {', '.join(missing)}")


def _check_positive(preset: object, *names: str) -> None:
    for name in names:
        value = getattr(preset, name)
        if value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")


@dataclass(frozen=True, kw_only=True)
class Stage1Preset:
    """Numbers of Stage I (fidelity). "FlashVideo" below means the authors' released inference code.

    Attributes:
        height: Preview rows; FlashVideo 256 (270p floored to a multiple of 16).
        width: Preview columns; FlashVideo 480.
        num_frames: Video frames; FlashVideo 49, from CogVideoX.
        frame_rate: Frames per second; FlashVideo 8, from CogVideoX.
        num_inference_steps: Network evaluations; FlashVideo 51 (paper: 50).
        guidance_scale: FlashVideo 8 (stage1.yaml, DynamicCFG).
        guidance_schedule: "constant" or "reference", see `flashvideo.schedule.guidance_scale_at`.
        latent_scale: Factor between VAE output and latents; FlashVideo 0.7 (CogVideoX-5B).
        max_text_tokens: Text length after padding; FlashVideo 226 (CogVideoX).
    """

    height: int
    width: int
    num_frames: int
    frame_rate: float
    num_inference_steps: int
    guidance_scale: float
    guidance_schedule: str
    latent_scale: float
    max_text_tokens: int

    def __post_init__(self) -> None:
        """Check the numbers."""
        _check_positive(
            self,
            "height",
            "width",
            "num_frames",
            "frame_rate",
            "num_inference_steps",
            "latent_scale",
            "max_text_tokens",
        )
        if self.guidance_schedule not in GUIDANCE_SCHEDULES:
            raise ValueError(
                f"guidance_schedule must be one of {GUIDANCE_SCHEDULES}, got {self.guidance_schedule!r}"
            )


@dataclass(frozen=True, kw_only=True)
class Stage2Preset:
    """Numbers of Stage II (detail). "FlashVideo" below means the authors' released inference code.

    Attributes:
        height: Output rows; FlashVideo 1072 (1080p floored to a multiple of 16).
        width: Output columns; FlashVideo 1920.
        num_inference_steps: Euler steps; paper 4 (the released script runs 5, useful range 4 to 6).
        guidance_scale: Paper and FlashVideo 13 (useful range 10 to 13); 1 means no guidance and half the cost.
        noise_step: Step of the latent degradation, 0 to 999; FlashVideo 675 (useful range 650 to 750).
        shift: Time shift s of the sampling grid; FlashVideo 2.5 (useful range 2 to 3.5).
        latent_scale: Factor between VAE output and latents; FlashVideo 1.15258426 (CogVideoX-2B).
        prompt_prefix: Put before the prompt, without a space; FlashVideo "medium motion,".
        max_text_tokens: Text length after padding; FlashVideo 226 (CogVideoX).
        consistency: Whether results keep their input's coarse picture and stillness, see
            `flashvideo.pipelines.consistency`; FlashVideo does not.
    """

    height: int
    width: int
    num_inference_steps: int
    guidance_scale: float
    noise_step: int
    shift: float
    latent_scale: float
    prompt_prefix: str
    max_text_tokens: int
    consistency: bool

    def __post_init__(self) -> None:
        """Check the numbers."""
        _check_positive(
            self, "height", "width", "num_inference_steps", "shift", "latent_scale", "max_text_tokens"
        )
        if not 0 <= self.noise_step < NUM_TRAIN_TIMESTEPS:
            raise ValueError(f"noise_step must be in 0..{NUM_TRAIN_TIMESTEPS - 1}, got {self.noise_step}")


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Both stages' numbers.

    Attributes:
        name: Short name, a key of `PRESETS` or a model folder's own.
        stage1: Stage I.
        stage2: Stage II.
    """

    name: str
    stage1: Stage1Preset
    stage2: Stage2Preset

    def to_dict(self) -> dict[str, Any]:
        """A nested dictionary of plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote.

        Raises:
            ValueError: If a key is unknown (the nearest known one is named) or missing, or a value is out of range.
        """
        _check_keys(cls, values)
        _check_keys(Stage1Preset, values["stage1"])
        _check_keys(Stage2Preset, values["stage2"])
        return cls(
            name=values["name"],
            stage1=Stage1Preset(**values["stage1"]),
            stage2=Stage2Preset(**values["stage2"]),
        )


FLASHVIDEO = Preset(
    name="flashvideo",
    stage1=Stage1Preset(
        height=256,
        width=480,
        num_frames=49,
        frame_rate=8,
        num_inference_steps=51,
        guidance_scale=8.0,
        guidance_schedule="reference",
        latent_scale=0.7,
        max_text_tokens=226,
    ),
    stage2=Stage2Preset(
        height=1072,
        width=1920,
        num_inference_steps=4,
        guidance_scale=13.0,
        noise_step=675,
        shift=2.5,
        latent_scale=1.15258426,
        prompt_prefix="medium motion,",
        max_text_tokens=226,
        consistency=False,
    ),
)
"""The authors' released weights (arXiv 2502.05179)."""

NANO = Preset(
    name="nano",
    stage1=Stage1Preset(
        height=96,
        width=160,
        num_frames=17,
        frame_rate=8,
        num_inference_steps=6,
        guidance_scale=1.0,
        guidance_schedule="constant",
        latent_scale=1.0,
        max_text_tokens=28,
    ),
    stage2=Stage2Preset(
        height=384,
        width=640,
        num_inference_steps=4,
        guidance_scale=1.0,
        noise_step=8,
        shift=2.5,
        latent_scale=1.0,
        prompt_prefix="",
        max_text_tokens=28,
        consistency=True,
    ),
)
"""Our own small weights, shipped with the package; chosen by sweeps on held-out procedural videos."""

PRESETS: Mapping[str, Preset] = MappingProxyType({preset.name: preset for preset in (NANO, FLASHVIDEO)})
"""Presets by name."""


@dataclass(frozen=True, kw_only=True)
class TrainedRange:
    """What a model was trained on, or has been seen to do well: each a (least, most).

    Attributes:
        preview_height: Rows of Stage I.
        preview_width: Columns of Stage I.
        num_frames: Frames of Stage I; Stage II takes longer clips in windows.
        video_height: Rows that Stage II works at.
        video_width: Columns that Stage II works at.

    Raises:
        ValueError: If a range is empty.
    """

    preview_height: tuple[int, int]
    preview_width: tuple[int, int]
    num_frames: tuple[int, int]
    video_height: tuple[int, int]
    video_width: tuple[int, int]

    def __post_init__(self) -> None:
        """Check the ranges."""
        for field in fields(self):
            least, most = getattr(self, field.name)
            if not 0 < least <= most:
                raise ValueError(f"{field.name} must be (least, most), both positive, got {(least, most)}")


TRAINED_RANGES: Mapping[str, TrainedRange] = MappingProxyType(
    {
        # Stage I: 96x160 and 1 to 49 frames (recipes/nano_stage1_*.yaml), and sizes beside it at which readers find as
        # much. Stage II: from the smallest crops of recipes/nano_stage2_*.yaml to the largest video of docs/real.md.
        NANO.name: TrainedRange(
            preview_height=(80, 112),
            preview_width=(128, 176),
            num_frames=(1, 49),
            video_height=(96, 720),
            video_width=(96, 1280),
        ),
        # Paper, section 3: 270p and 1080p, floored or raised to multiples of 16, and 49 frames; table 5: up to 2K by
        # extrapolation of the position embedding.
        FLASHVIDEO.name: TrainedRange(
            preview_height=(256, 272),
            preview_width=(480, 480),
            num_frames=(49, 49),
            video_height=(1072, 1472),
            video_width=(1920, 2560),
        ),
    }
)
"""Training ranges by the name of the preset; a model of another name has none."""

RELEASED_STAGE1_TRANSFORMER: Mapping[str, Any] = MappingProxyType(
    {
        "num_attention_heads": 48,
        "attention_head_dim": 64,
        "in_channels": 16,
        "out_channels": 16,
        "time_embed_dim": 512,
        "text_embed_dim": 4096,
        "num_layers": 42,
        "patch_size": 2,
        "max_text_seq_length": FLASHVIDEO.stage1.max_text_tokens,
        "noise_step_embed": False,
        "num_frames_embed": False,
    }
)
"""Config of Stage I's transformer, CogVideoX-5B (stage1.yaml)."""

RELEASED_STAGE2_TRANSFORMER: Mapping[str, Any] = MappingProxyType(
    {
        **RELEASED_STAGE1_TRANSFORMER,
        "num_attention_heads": 30,
        "num_layers": 30,
        "noise_step_embed": True,
        "num_frames_embed": True,
    }
)
"""Config of Stage II's transformer, CogVideoX-2B with two more embedders (stage2.yaml)."""

RELEASED_STAGE1_LORA_RANK = 128
"""Rank of Stage I's LoRA (stage1.yaml; paper section 3.1); its alpha is 1."""

RELEASED_VAE: Mapping[str, Any] = MappingProxyType(
    {
        "block_out_channels": (128, 256, 256, 512),
        "down_block_types": ("CogVideoXDownBlock3D",) * 4,
        "up_block_types": ("CogVideoXUpBlock3D",) * 4,
        "latent_channels": 16,
        "layers_per_block": 3,
    }
)
"""Config of the VAE of both stages, CogVideoX's; what is not named here is diffusers' default."""

RELEASED_TEXT_ENCODER: Mapping[str, Any] = MappingProxyType(
    {
        "vocab_size": 32128,
        "d_model": 4096,
        "d_kv": 64,
        "d_ff": 10240,
        "num_layers": 24,
        "num_heads": 64,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-6,
        "tie_word_embeddings": False,
    }
)
"""Config of the text encoder of both stages, T5-v1.1-XXL."""
