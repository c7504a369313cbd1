"""Community LoRAs for CogVideoX on Stage I, loaded as diffusers' users know it: `pipeline.load_lora_weights(file)`.

Files are read by diffusers. What it would pass over in silence is an error here: keys of other models, halves of pairs,
shapes that do not fit. A file's own alphas, which diffusers' CogVideoX loader does not know, are applied.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import CogVideoXLoraLoaderMixin
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from torch import nn

from flashvideo.models.lora import ADAPTER_NAME, adapter_stage
from flashvideo.models.transformer import FlashVideoTransformer3DModel

_PREFIX = "transformer."
_KEY = re.compile(r"(?:transformer\.)?(.+)\.(lora_A|lora_B|lora\.down|lora\.up|lora_down|lora_up)\.weight")
_ALPHA = re.compile(r"(?:transformer\.)?(.+)\.alpha")
_DOWN = ("lora_A", "lora.down", "lora_down")


class Stage1LoraMixin(CogVideoXLoraLoaderMixin):
    """Loads LoRAs into a pipeline's Stage I transformer, which is its first `_lora_loadable_modules`.

    Of diffusers' methods `set_adapters`, `get_active_adapters`, `delete_adapters`, `disable_lora` and `enable_lora`
    work as they are. A LoRA that belongs to the model itself stays in effect throughout.
    """

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike[str] | dict[str, torch.Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        """Puts a LoRA on Stage I.

        Args:
            pretrained_model_name_or_path_or_dict: A file, a folder, a repository of the hub, or the tensors themselves,
                under diffusers' names: `transformer.transformer_blocks.0.attn1.to_k.lora_A.weight` and so on.
            adapter_name: What to call it.
            hotswap: Whether to replace the adapter of that name in place.
            kwargs: Those of diffusers' `lora_state_dict`, for example `weight_name`, `revision` or `token`.

        Raises:
            ValueError: If the file cannot be read, does not fit this transformer, or, unless it comes from the hub,
                says that it is of Stage II.
            ImportError: If peft is not installed.
        """
        try:
            import peft  # noqa: F401 - diffusers' own message does not name the extra
        except ImportError as error:
            raise ImportError(
                "LoRAs need peft, which is not installed; install 'flashvideo[train]'"
            ) from error
        if getattr(self, "weights", "full") != "full":
            raise ValueError(
                f"a LoRA needs full weights, got weights in {self.weights}; load the model with weights='full'"
            )
        given = pretrained_model_name_or_path_or_dict
        if isinstance(given, os.PathLike):
            given = os.fspath(given)
        try:
            state, metadata = self.lora_state_dict(given, return_lora_metadata=True, **kwargs)
        except OSError as error:
            # Of a file, diffusers' own message does not say what is wrong.
            if isinstance(given, str) and os.path.isfile(given):
                raise ValueError(f"the LoRA {given} cannot be read, is it a safetensors file?") from error
            raise
        if isinstance(given, str) and adapter_stage(_local_file(given, kwargs)) == "stage2":
            raise ValueError(
                f"a LoRA must be one of Stage I, got {given}, which was trained on Stage II; merge it into the model "
                "with python -m flashvideo.training.release"
            )
        transformer = self._lora_transformer
        source = "the LoRA" if isinstance(given, dict) else f"the LoRA {given}"
        weights = read_lora(state, transformer, source=source, has_metadata=metadata is not None)
        with warnings.catch_warnings():
            # Several LoRAs at once are meant.
            warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
            self.load_lora_into_transformer(
                weights,
                transformer=transformer,
                adapter_name=adapter_name,
                metadata=metadata,
                _pipeline=self,
                hotswap=hotswap,
            )
        if ADAPTER_NAME in transformer.peft_config:
            active = transformer.active_adapters()
            transformer.set_adapters(active if ADAPTER_NAME in active else [ADAPTER_NAME, *active])

    def unload_lora_weights(self) -> None:
        """Takes all LoRAs off, except one that belongs to the model itself."""
        transformer = self._lora_transformer
        if ADAPTER_NAME not in getattr(transformer, "peft_config", {}):
            transformer.unload_lora()
            return
        transformer.delete_adapters([name for name in transformer.peft_config if name != ADAPTER_NAME])
        transformer.set_adapters([ADAPTER_NAME])

    def set_lora_scales(self, scales: Mapping[str, float]) -> None:
        """Lets these LoRAs be in effect, each with its scale, and no others but one that belongs to the model itself.

        Args:
            scales: Name and scale.
        """
        transformer = self._lora_transformer
        own = {ADAPTER_NAME: 1.0} if ADAPTER_NAME in transformer.peft_config else {}
        chosen = {**own, **scales}
        transformer.set_adapters(list(chosen), list(chosen.values()))

    def lora_scales(self) -> dict[str, float]:
        """Returns name and scale of the LoRAs that are in effect, without one that belongs to the model itself."""
        scales: dict[str, float] = {}
        for module in self._lora_transformer.modules():
            if not hasattr(module, "lora_A") or module.disable_adapters:
                continue
            for name in module.active_adapters:
                if name != ADAPTER_NAME and name in module.scaling:
                    own = module.lora_alpha[name] / module.r[name]
                    scales[name] = round(float(module.scaling[name] / own), 6)
        return scales

    @property
    def _lora_transformer(self) -> FlashVideoTransformer3DModel:
        transformer: FlashVideoTransformer3DModel = getattr(self, self._lora_loadable_modules[0])
        return transformer


def _local_file(given: str, kwargs: Mapping[str, Any]) -> Path:
    """The file that diffusers reads where it is given a file or a folder."""
    path = Path(given)
    if not path.is_dir():
        return path
    return path / (kwargs.get("subfolder") or "") / (kwargs.get("weight_name") or LORA_WEIGHT_NAME_SAFE)


def read_lora(
    state: Mapping[str, torch.Tensor],
    transformer: FlashVideoTransformer3DModel,
    *,
    source: str = "the LoRA",
    has_metadata: bool = False,
) -> dict[str, torch.Tensor]:
    """Checks a LoRA against a transformer and brings it into PEFT's form.

    Args:
        state: Its tensors: pairs `X.lora_A.weight` (r, in) and `X.lora_B.weight` (out, r), or `lora.down` and
            `lora.up`, and `X.alpha` where the scale alpha / r is not 1; all with or without `transformer.` before.
        transformer: What it is for.
        source: What to call it in sentences.
        has_metadata: Whether the file's header tells the scales.

    Returns:
        `transformer.X.lora_A.weight` and `transformer.X.lora_B.weight`, alpha / r multiplied into the latter.

    Raises:
        ValueError: If a key is unknown, lacks its other half, or has a shape that does not fit; all are named.
    """
    linears = {
        name.removesuffix(".base_layer"): (module.in_features, module.out_features)
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and ".lora_" not in name
    }
    down: dict[str, torch.Tensor] = {}
    up: dict[str, torch.Tensor] = {}
    alphas: dict[str, float] = {}
    problems = []
    for key, tensor in state.items():
        if (match := _KEY.fullmatch(key)) and match[1] in linears:
            (down if match[2] in _DOWN else up)[match[1]] = tensor
        elif (match := _ALPHA.fullmatch(key)) and match[1] in linears:
            alphas[match[1]] = float(tensor)
        else:
            problems.append(f"unknown {key}")
    problems += [f"half of a pair for {name}" for name in sorted(down.keys() ^ up.keys())]
    problems += [f"an alpha without a pair for {name}" for name in sorted(alphas.keys() - down.keys())]
    for name in sorted(down.keys() & up.keys()):
        given = (down[name].shape[-1], up[name].shape[0])
        if given != linears[name] or down[name].shape[0] != up[name].shape[-1]:
            problems.append(
                f"{given[0]} -> {given[1]} for {name}, which is {linears[name][0]} -> {linears[name][1]}"
            )
    if not state:
        problems.append("no tensors")
    if alphas and has_metadata:
        problems.append("alphas twice, as tensors and in its header")
    if problems:
        shown = "; ".join(problems[:3]) + (f" and {len(problems) - 3} more" if len(problems) > 3 else "")
        raise ValueError(
            f"{source} does not fit this model's Stage I, it has {shown}; is it one for CogVideoX?"
        )
    weights = {}
    for name in down:
        scale = alphas[name] / down[name].shape[0] if name in alphas else 1.0
        weights[f"{_PREFIX}{name}.lora_A.weight"] = down[name]
        weights[f"{_PREFIX}{name}.lora_B.weight"] = up[name] * scale
    return weights


def adapter_name_of(path: Path) -> str:
    """Returns a file's name as the name of an adapter, in which PEFT allows no dots.

    >>> adapter_name_of(Path("loras/anime.v2.safetensors"))
    'anime_v2'
    """
    return path.name.removesuffix(".safetensors").replace(".", "_")
