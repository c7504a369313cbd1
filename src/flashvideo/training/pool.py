"""A pool of rendered and encoded clips: Stage I trains on latents that were made once.

Shards of a fixed number of clips lie in one folder beside a description of the VAE and the renderer settings that
made them; a pool made by another VAE is refused, an interrupted one is continued. Shapes: latents (f, C, h, w).
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from flashvideo.data.shapes_world import Scene, render, sample_scene
from flashvideo.pipelines.tensor_file import remove_leftovers, write_tensors
from flashvideo.training.descriptions import (
    DECODES_ONLY,
    read_description,
    weights_fingerprint,
    write_description,
)
from flashvideo.training.draws import sample_seed
from flashvideo.vae import encode_pixels

logger = logging.getLogger(__name__)
SHARD = 128


def pool_scene(
    seed: int, index: int, emphasis: Mapping[str, float] | None = None, spread: float = 1.0
) -> Scene:
    """The scene of clip `index` of the pool with this seed.

    Args:
        seed: of the pool.
        index: of the clip.
        emphasis: by colour, texture, shape or motion: how many times as often as others it is drawn.
        spread: as in `sample_scene`.
    """
    emphasis = emphasis or {}
    most = math.prod(max(1.0, weight) for weight in emphasis.values())
    for attempt in itertools.count():
        scene = sample_scene(sample_seed(seed, 77, index, attempt), spread=spread)
        thing = scene.things[0]
        words = (thing.color, thing.texture, thing.shape, scene.motion)
        weight = math.prod(emphasis.get(word, 1.0) for word in words)
        if np.random.default_rng(sample_seed(seed, 78, index, attempt)).random() * most < weight:
            return scene
    raise AssertionError("unreachable")


@torch.no_grad()
def build_pool(
    folder: Path,
    vae: AutoencoderKLCogVideoX,
    *,
    seed: int,
    count: int,
    frames: int,
    size: tuple[int, int],
    emphasis: Mapping[str, float],
    spread: float,
    bf16: bool,
) -> None:
    """Render and encode `count` clips into `folder`, skipping shards that are already there.

    What killed processes left of other shards is removed.

    Raises:
        ValueError: if the folder holds a pool of another VAE, latent scale or settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scale = float(vae.config.scaling_factor)
    about = {
        "vae": weights_fingerprint(vae, without=DECODES_ONLY, dtype=torch.float32),
        "latent_scale": scale,
        "seed": seed,
        "frames": frames,
        "size": list(size),
        "emphasis": dict(emphasis),
        "spread": spread,
    }
    description = folder / "pool.json"
    found = read_description(description, "training")
    if found is not None:
        found = {"spread": 1.0} | found  # which pools had that do not tell
    if found not in (None, about):
        raise ValueError(
            f"{folder} holds clips of another VAE, latent scale, seed, size, emphasis or spread; delete it to make "
            "them anew"
        )
    paths = [folder / f"{shard:05}.safetensors" for shard in range((count + SHARD - 1) // SHARD)]
    if found is None:
        remove_leftovers(description)
        write_description(description, about)
    for path in paths:
        if not path.exists():
            remove_leftovers(path)
    for shard, path in enumerate(tqdm(paths, desc=f"encode {frames} frames", mininterval=5)):
        if path.exists():
            continue
        latents = []
        for i in range(shard * SHARD, (shard + 1) * SHARD):
            scene = pool_scene(seed, i, emphasis, spread)
            clip = torch.from_numpy(render(scene, height=size[0], width=size[1], num_frames=frames))[None]
            with torch.autocast(vae.device.type, torch.bfloat16, enabled=bf16):
                encoded = encode_pixels(vae, clip.to(vae.device), scale=vae.config.scaling_factor)
            latents.append(encoded[0].to(torch.bfloat16).cpu())
        write_tensors(path, {"latents": torch.stack(latents)}, {})


def load_pool(folder: Path, count: int) -> Tensor:
    """All clips of a pool, (count, f, C, h, w) bfloat16."""
    shards = sorted(folder.glob("*.safetensors"))[: (count + SHARD - 1) // SHARD]
    return torch.cat([load_file(s)["latents"] for s in shards])[:count]
