"""What each phase of a run really takes: seconds and memory, beside what its plan predicted.

Weights are random, since neither depends on them, so that nothing has to be downloaded:

    python -m flashvideo.evaluation.phases --size 1080p --vram 24

The peak is without the reserve for driver and libraries: on CUDA devices torch's own count
(`max_memory_allocated`). On the host it is the process's high-water mark, and so has in it Python, libraries and all
networks (`flashvideo.evaluation.peaks`).
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKLCogVideoX, FlowMatchEulerDiscreteScheduler
from torch import nn
from transformers import T5Config, T5EncoderModel

from flashvideo.evaluation.peaks import timed, with_peak
from flashvideo.models.transformer import FlashVideoTransformer3DModel
from flashvideo.pipelines.device_memory import DeviceMemory
from flashvideo.pipelines.devices import GIB, choose_device
from flashvideo.pipelines.embeds import PromptEmbeds
from flashvideo.pipelines.footprint import ModelConfigs
from flashvideo.pipelines.loading import choose_dtype
from flashvideo.pipelines.memory import Measures, PhasePlan, as_gib
from flashvideo.pipelines.sizes import REFERENCE, named_size
from flashvideo.pipelines.two_stage import FlashVideoPipeline
from flashvideo.pipelines.workload import Workload
from flashvideo.schedule import FlashVideoScheduler

T = TypeVar("T")


@dataclasses.dataclass(kw_only=True)
class Taken:
    """What a phase took so far."""

    seconds: float = 0.0
    """In all of its calls."""

    calls: int = 0
    """Calls, for example steps."""

    peak_bytes: int | None = None
    """The most that was allocated, weights included; None where it is not known."""

    planned: PhasePlan | None = None
    """What was planned, last."""


class Meter:
    """Measures every phase of a planned pipeline.

    Args:
        memory: The pipeline's memory; its `run` is called through the meter from now on.
    """

    def __init__(self, memory: DeviceMemory) -> None:
        self.taken: dict[str, Taken] = {}
        self._memory, self._run = memory, memory.run
        memory.run = self.run  # type: ignore[method-assign]

    def run(self, phase: str, work: Callable[[Measures], T], own: Measures | None = None) -> T:
        """Does the work of a phase and notes what it takes; bringing networks to the device counts."""
        device = self._memory.device
        (result, seconds), memory = with_peak(
            lambda: timed(lambda: self._run(phase, work, own), device), device
        )
        taken = self.taken.setdefault(phase, Taken())
        taken.seconds += seconds
        taken.calls += 1
        if memory is not None:
            taken.peak_bytes = max(taken.peak_bytes or 0, memory.most)
        taken.planned = None if self._memory.plan is None else self._memory.plan.phase(phase)
        return result


def random_pipeline(configs: ModelConfigs, dtype: torch.dtype) -> FlashVideoPipeline:
    """Builds a model of random weights on the host.

    Args:
        configs: The model.
        dtype: Of its weights.

    Returns:
        The pipeline, without a tokenizer: it takes `prompt_embeds`.
    """

    def build(make: Callable[[], nn.Module]) -> Any:
        with torch.device("meta"):
            module = make().to(dtype)
        module = module.to_empty(device="cpu").eval().requires_grad_(False)
        for parameter in module.parameters():
            parameter.normal_(std=0.02)
        return module

    transformers = [
        build(functools.partial(FlashVideoTransformer3DModel.from_config, config))
        for config in (configs.stage1_transformer, configs.stage2_transformer)
    ]
    encoder = configs.text_encoder
    return FlashVideoPipeline(
        tokenizer=None,
        text_encoder=None if encoder is None else build(lambda: T5EncoderModel(T5Config(**encoder))),
        vae=build(lambda: AutoencoderKLCogVideoX.from_config(dict(configs.vae))),
        stage1_transformer=transformers[0],
        stage1_scheduler=FlashVideoScheduler(),
        stage2_transformer=transformers[1],
        stage2_scheduler=FlowMatchEulerDiscreteScheduler(shift=configs.preset.stage2.shift),
        preset=configs.preset,
    )


@torch.no_grad()
def measure(
    pipeline: FlashVideoPipeline, size: tuple[int, int], num_frames: int, *, stage1_steps: int | None = None
) -> dict[str, Taken]:
    """Runs a planned pipeline once, from random text embeddings to pixels.

    Args:
        pipeline: The pipeline, with `enable_memory_plans`.
        size: Height and width of the video.
        num_frames: Its frames.
        stage1_steps: Steps of Stage I; the preset's if None.

    Returns:
        What each phase took.
    """
    memory = pipeline._memory
    assert memory is not None
    meter, preset = Meter(memory), pipeline.preset
    if pipeline.text_encoder is not None:
        length = preset.stage1.max_text_tokens
        token_ids = torch.zeros(1, length, dtype=torch.long)
        with pipeline.planned(Workload):
            meter.run("text", lambda _: pipeline.text_encoder(token_ids.to(memory.device))[0].cpu())
        pipeline.give_up("text_encoder")
    width = pipeline.stage1_transformer.config.text_embed_dim
    embeds = PromptEmbeds(
        stage1=torch.randn(1, preset.stage1.max_text_tokens, width),
        stage2=torch.randn(1, preset.stage2.max_text_tokens, width),
        prompts=("random",),
        prompt_prefix="",
        model=preset.name,
        text_encoder="",
    )
    pipeline(
        prompt_embeds=embeds,
        height=size[0],
        width=size[1],
        num_frames=num_frames,
        stage1_num_inference_steps=stage1_steps,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    )
    return meter.taken


def main() -> None:
    """Measures one plan and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", type=Path, help="folder of a model's configs (default: the released model)"
    )
    parser.add_argument("--size", default=REFERENCE, help="size of the video")
    parser.add_argument("--frames", type=int, help="its frames")
    parser.add_argument("--vram", type=float, help="memory in GiB that may be used (default: what is free)")
    parser.add_argument("--weights", default="full", help="full, fp8 or int8")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument(
        "--stage1-steps", type=int, help="fewer steps of Stage I than the preset's, to save time"
    )
    parser.add_argument("--output", type=Path, help="write the figures as JSON too")
    arguments = parser.parse_args()
    configs = ModelConfigs.released() if arguments.model is None else ModelConfigs.read(arguments.model)
    device = choose_device(arguments.device)
    pipeline = random_pipeline(configs, choose_dtype(arguments.dtype, device))
    pipeline.enable_memory_plans(
        device,
        budget_bytes=None if arguments.vram is None else int(arguments.vram * GIB),
        weights=arguments.weights,
    )
    size = named_size(arguments.size, preset=configs.preset)
    num_frames = arguments.frames or configs.preset.stage1.num_frames
    started = time.perf_counter()
    taken = measure(pipeline, size, num_frames, stage1_steps=arguments.stage1_steps)
    print(
        f"{size[1]}x{size[0]}, {num_frames} frames, {device}, {arguments.dtype}, weights {arguments.weights}"
    )
    print(
        "| phase | measures | predicted | measured | calls | seconds |\n| --- | --- | --- | --- | --- | --- |"
    )
    for phase, figures in taken.items():
        planned = figures.planned
        assert planned is not None
        measured = "?" if figures.peak_bytes is None else as_gib(figures.peak_bytes)
        sizes = f"{as_gib(planned.peak_bytes)} | {measured}"
        print(f"| {phase} | {planned.measures} | {sizes} | {figures.calls} | {figures.seconds:.1f} |")
    print(f"in all {time.perf_counter() - started:.1f} s")
    if arguments.output is not None:
        content = {phase: dataclasses.asdict(one) for phase, one in taken.items()}
        arguments.output.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
