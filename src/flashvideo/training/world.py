"""The procedural world as training data of both stages: encoded clips for Stage I, crops of full frames for Stage II.

Shapes: pixels (F, 3, h, w) in [-1, 1], latents (f, C, h, w).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from flashvideo.data.captions import caption
from flashvideo.data.dead_leaves import render_leaves
from flashvideo.data.shapes_world import NUM_FRAMES, Scene, render, sample_scene
from flashvideo.training.draws import sample_seed
from flashvideo.training.pool import pool_scene
from flashvideo.training.stage_recipes import Stage1Recipe, Stage2Phase


class PoolClips(Dataset):
    """Clips of a phase in an order reshuffled every epoch, each time with another caption.

    Args:
        pools: encoded clips (N, f, C, h, w) by their number of frames.
        recipe: whose seed, emphasis and spread made the pools.
        phase_index: which phase of the recipe.
        clips_per_step: of all processes and accumulated batches.
        temporal: the VAE's compression in time.

    A sample is (latents, caption, latent frames of the whole clip).
    """

    def __init__(
        self,
        pools: Mapping[int, Tensor],
        recipe: Stage1Recipe,
        phase_index: int,
        clips_per_step: int,
        temporal: int,
    ) -> None:
        self.pools, self.recipe, self.temporal = pools, recipe, temporal
        self.clips_per_step = clips_per_step
        phase = recipe.phases[phase_index]
        self.lengths = phase.lengths or (phase.frames,)
        self.seed = sample_seed(recipe.seed, phase_index)

    def choose(self, index: tuple[int, int]) -> tuple[int, int, int]:
        """Which clip a sample is of: the frames of its pool, its number there, and how many of its frames."""
        step, place = index
        cycle, slot = divmod(step, len(self.lengths))
        frames = self.lengths[slot]
        # How many steps of this length came before this one.
        before = cycle * self.lengths.count(frames) + self.lengths[:slot].count(frames)
        # Single frames are the first ones of clips.
        source = (
            frames if frames in self.pools else max(self.pools, key=lambda length: len(self.pools[length]))
        )
        epoch, place = divmod(before * self.clips_per_step + place, len(self.pools[source]))
        order = np.random.default_rng(sample_seed(self.seed, epoch)).permutation(len(self.pools[source]))
        return source, int(order[place]), frames

    def describe(self, index: tuple[int, int]) -> tuple[Scene, str]:
        """Scene and caption of a sample."""
        source, clip, _ = self.choose(index)
        recipe = self.recipe
        scene = pool_scene(sample_seed(recipe.seed, source), clip, recipe.emphasis, recipe.spread)
        return scene, caption(scene, np.random.default_rng(sample_seed(self.seed, 5, *index)))

    def __getitem__(self, index: tuple[int, int]) -> tuple[Tensor, str, int]:
        source, clip, frames = self.choose(index)
        latents = self.pools[source][clip, : 1 + (frames - 1) // self.temporal]
        return latents, self.describe(index)[1], len(latents)


class CaptionedCrops(Dataset):
    """Crops of full-size scenes with captions, mixed with dead leaves, which have none.

    All samples of a step share one length and one crop size.
    """

    def __init__(self, seed: int, phase: Stage2Phase, size: tuple[int, int]) -> None:
        self.seed, self.phase, self.size = seed, phase, size

    def __getitem__(self, index: tuple[int, int]) -> tuple[Tensor, str]:
        seed = sample_seed(self.seed, *index)
        rng = np.random.default_rng(seed)
        phase = self.phase
        frames, h, w = phase.shape_at(index[0])
        slow, fast = (math.log(speed) for speed in phase.speeds)
        speed = math.exp(rng.uniform(slow, fast))
        if rng.random() < phase.natural:
            return torch.from_numpy(
                render_leaves(seed, height=h, width=w, num_frames=frames, speed=speed)
            ), ""
        scene = sample_scene(seed, pan=0.15)
        height, width = self.size
        # Multiples of 16 keep crops on the grid of the tokens that they would be in a whole frame.
        top = int((height - h) * rng.beta(1.5, 1.5)) // 16 * 16
        left = int((width - w) * rng.beta(1.5, 1.5)) // 16 * 16
        step = speed / (NUM_FRAMES - 1)
        start = rng.uniform(0, max(0.0, 1 - step * (frames - 1)))
        times = [start + step * i for i in range(frames)]
        clip = render(scene, height=height, width=width, times=times, crop=(top, left, h, w))
        return torch.from_numpy(clip), caption(scene, rng)


def held_out_scenes(count: int, *, first: int = 0) -> list[Scene]:
    """Fixed scenes of combinations never trained on; one object, no pan: what prompts are judged by."""
    return [
        sample_scene(sample_seed(424_242, i), held_out=True, second_object=0.0, pan=0.0)
        for i in range(first, first + count)
    ]
