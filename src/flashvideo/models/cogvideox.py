"""CogVideoX-2B and 5B transformers as diffusers stores them -> our transformer.

Stage I of the paper is CogVideoX-5B; Stage II started from CogVideoX-2B, its absolute position embedding replaced by
3D RoPE (sections 3.1 and 3.2). Parameters have the same names, the config has others in part. Version 1.5 and the
image-to-video models compute something else, and are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from flashvideo.models.checkpoint import Checkpoint, read_json, weight_files
from flashvideo.models.strictness import misfits, raise_if
from flashvideo.models.transformer import FlashVideoTransformer3DModel

COGVIDEOX_CLASS = "CogVideoXTransformer3DModel"
WEIGHTS = "diffusion_pytorch_model.safetensors"

SHARED_CONFIG_KEYS = (
    "num_attention_heads",
    "attention_head_dim",
    "in_channels",
    "out_channels",
    "flip_sin_to_cos",
    "freq_shift",
    "time_embed_dim",
    "text_embed_dim",
    "num_layers",
    "dropout",
    "attention_bias",
    "patch_size",
    "max_text_seq_length",
    "activation_fn",
    "timestep_activation_fn",
    "norm_elementwise_affine",
    "norm_eps",
    "patch_bias",
    "use_rotary_positional_embeddings",
    "spatial_interpolation_scale",
    "temporal_interpolation_scale",
)
"""Config keys of diffusers' class that are ours too, by the same name."""

# The size that a model was trained at: what it is, not what it computes.
_SIZES = ("sample_width", "sample_height", "sample_frames", "temporal_compression_ratio")
# Defaults of diffusers' class where they differ from ours, and the one epsilon that it uses for all layer norms.
_DEFAULTS = {"use_rotary_positional_embeddings": False, "norm_eps": 1e-5}
_UNSUPPORTED = {
    "patch_size_t": "patches in time (CogVideoX 1.5)",
    "ofs_embed_dim": "an offset embedding (CogVideoX 1.5 image-to-video)",
    "use_learned_positional_embeddings": "learned positions (CogVideoX-5B image-to-video)",
}


def is_cogvideox(folder: Path) -> bool:
    """Whether a folder is a CogVideoX pipeline in diffusers' layout."""
    index = folder / "model_index.json"
    return index.is_file() and read_json(index).get("_class_name") == "CogVideoXPipeline"


def read_cogvideox_config(folder: Path) -> dict[str, Any]:
    """Reads a transformer's config.

    Args:
        folder: The transformer's own folder, with `config.json`.

    Returns:
        The config as it is stored.

    Raises:
        ValueError: If the folder holds no CogVideoX transformer.
    """
    path = folder / "config.json"
    config = read_json(path) if path.is_file() else {}
    if config.get("_class_name") != COGVIDEOX_CLASS:
        found = f"a {config['_class_name']}" if "_class_name" in config else "no config.json"
        raise ValueError(f"{folder} must hold a {COGVIDEOX_CLASS} in diffusers' layout, got {found}")
    return config


def cogvideox_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Translates the config of a CogVideoX transformer.

    Args:
        config: As `read_cogvideox_config` returns it.

    Returns:
        Keyword arguments for `FlashVideoTransformer3DModel`.

    Raises:
        ValueError: If the model is of a kind that ours does not compute, or a key is unknown.
    """
    for name, what in _UNSUPPORTED.items():
        if config.get(name):
            raise ValueError(
                f"this CogVideoX transformer has {what}, {name}={config[name]!r}, which is not supported; "
                "use CogVideoX-2b or CogVideoX-5b"
            )
    known = {*SHARED_CONFIG_KEYS, *_SIZES, *_UNSUPPORTED}
    unknown = sorted(name for name in config if name not in known and not name.startswith("_"))
    if unknown:
        raise ValueError(f"the config of a CogVideoX transformer has unknown keys: {', '.join(unknown)}")
    ours = _DEFAULTS | {name: config[name] for name in SHARED_CONFIG_KEYS if name in config}
    channels = ours.get("in_channels"), ours.get("out_channels")
    if channels[0] != channels[1]:
        raise ValueError(
            f"a CogVideoX transformer must predict as many channels as it takes, got {channels[0]} in and "
            f"{channels[1]} out, as image-to-video models have; use CogVideoX-2b or CogVideoX-5b"
        )
    return ours | {"norm_out_eps": ours["norm_eps"]}


def load_cogvideox_transformer(
    folder: Path, *, dtype: torch.dtype | None = None
) -> FlashVideoTransformer3DModel:
    """Loads a CogVideoX transformer as it is, to be Stage I.

    Args:
        folder: The transformer's own folder.
        dtype: Dtype of the weights; as stored if None.

    Returns:
        The transformer, for evaluation.

    Raises:
        ValueError: If the folder holds no such transformer, or its weights do not fit its config.
    """
    config = cogvideox_config(read_cogvideox_config(folder))
    with torch.device("meta"):
        model = FlashVideoTransformer3DModel(**config)
    _load_weights(model, folder, dtype=dtype, new=frozenset(), assign=True)
    return model.eval()


def start_stage2_from_cogvideox(folder: Path, *, rotary: bool = True) -> FlashVideoTransformer3DModel:
    """Makes a new Stage II transformer of a CogVideoX transformer (paper section 3.2).

    Positions become rotary, or a fixed table, whatever they were: neither has weights. The embedders of the noise step
    and of the number of frames are new: they output zero until they are trained.

    Args:
        folder: The transformer's own folder.
        rotary: 3D RoPE, as in the paper; otherwise CogVideoX-2B's sines and cosines, which the paper compares with.

    Returns:
        The transformer, float32, for training.

    Raises:
        ValueError: As `load_cogvideox_transformer`.
    """
    config = cogvideox_config(read_cogvideox_config(folder))
    config |= {
        "use_rotary_positional_embeddings": rotary,
        "noise_step_embed": True,
        "num_frames_embed": True,
    }
    model = FlashVideoTransformer3DModel(**config)
    new = frozenset(
        name
        for name in model.state_dict()
        if name.startswith(("noise_step_embedding.", "num_frames_embedding."))
    )
    _load_weights(model, folder, dtype=torch.float32, new=new, assign=False)
    return model.train()


def _load_weights(
    model: FlashVideoTransformer3DModel,
    folder: Path,
    *,
    dtype: torch.dtype | None,
    new: frozenset[str],
    assign: bool,
) -> None:
    """Loads the weights of all parameters but the `new` ones; strict about every name.

    With `assign` they take the place of the model's, otherwise they are copied into those, one by one.
    """
    weights = Checkpoint(*weight_files(folder, WEIGHTS))
    expected = {name: tensor for name, tensor in model.state_dict().items() if name not in new}
    raise_if(misfits(weights.specs, expected), f"the weights in {folder} do not fit its config")
    if assign:
        loaded = {name: weights[name].to(dtype or tensor.dtype) for name, tensor in weights.specs.items()}
        model.load_state_dict(loaded, strict=False, assign=True)
        return
    own = model.state_dict()
    for name in weights:
        own[name].copy_(weights[name])
