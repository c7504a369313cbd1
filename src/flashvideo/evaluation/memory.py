"""Are predicted footprints right? Each measure at several small sizes, predicted without data and measured on this CPU.

Measured is the process's own memory: its high-water mark (VmHWM of Linux) during the work, less what was resident
before. A first run, not counted, loads what libraries need.

    python -m flashvideo.evaluation.memory
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from flashvideo.evaluation.peaks import with_peak
from flashvideo.evaluation.phases import random_pipeline
from flashvideo.pipelines.footprint import Footprint, ModelConfigs, Peak
from flashvideo.pipelines.quantization import quantize
from flashvideo.vae import decode_latents, encode_pixels
from flashvideo.vae.layers import THRIFTS

MIB = 1024**2
SIZES = ((17, 128, 192), (9, 192, 256), (33, 128, 128))
"""Frames, height and width of the grid; as many frames as two chunks of the VAE, and fewer, and more."""

GUIDANCE_SCALE = 2.0


@dataclass(frozen=True, kw_only=True)
class MemoryCase:
    """One measure at one size."""

    work: str
    """`"text"`, `"denoise"`, `"encode"` or `"decode"`."""

    measure: str
    """Which measure, see `cases`."""

    size: tuple[int, int, int]
    """Frames, height and width."""

    dtype: str
    """Name of a dtype."""


def small_configs() -> ModelConfigs:
    """The released model with fewer channels and layers."""
    released = ModelConfigs.released()
    small = {"num_attention_heads": 8, "num_layers": 2, "text_embed_dim": 64, "max_text_seq_length": 64}
    return dataclasses.replace(
        released,
        text_encoder={**(released.text_encoder or {}), "d_model": 1024, "d_ff": 4096, "num_layers": 2},
        vae={**released.vae, "block_out_channels": (32, 64, 64, 128), "layers_per_block": 1},
        stage1_transformer={**released.stage1_transformer, **small},
        stage2_transformer={**(released.stage2_transformer or {}), **small},
    )


def cases() -> Iterator[MemoryCase]:
    """The grid."""
    for dtype in ("float32", "bfloat16"):
        yield MemoryCase(work="text", measure="none", size=SIZES[0], dtype=dtype)
        for size in SIZES:
            for measure in ("none", "two clips", "fp8", "in turn", "512 tokens", "in turn, 512 tokens"):
                yield MemoryCase(
                    work="denoise", measure=measure, size=(size[0], 2 * size[1], 2 * size[2]), dtype=dtype
                )
            for work in ("encode", "decode"):
                for measure in ("none", *THRIFTS):
                    yield MemoryCase(work=work, measure=measure, size=size, dtype=dtype)


def predict(case: MemoryCase) -> int:
    """Returns the bytes that the case should take, on device and host, which are one on a CPU."""
    footprint = Footprint(small_configs(), getattr(torch, case.dtype), weights=weights_of(case), on_host=True)
    if case.work == "text":
        peak = footprint.text()
    elif case.work == "denoise":
        peak = footprint.denoise(
            2,
            case.size,
            guided=True,
            sequential_guidance="in turn" in case.measure,
            chunk_size=512 if "512" in case.measure else None,
            batch_size=clips_of(case),
        )
    else:
        peak = getattr(footprint, case.work)(case.size, None if case.measure == "none" else case.measure)
    assert isinstance(peak, Peak)
    return peak.device_bytes + peak.host_bytes


@torch.no_grad()
def prepare(case: MemoryCase) -> Callable[[], object]:
    """Builds a network of random weights and its input; returns the work."""
    torch.manual_seed(0)
    configs, dtype = small_configs(), getattr(torch, case.dtype)
    pipeline = random_pipeline(configs, dtype)
    if case.work == "text":
        token_ids = torch.zeros(1, configs.preset.stage1.max_text_tokens, dtype=torch.long)
        return lambda: pipeline.text_encoder(token_ids)
    num_frames, height, width = case.size
    latent_shape = (clips_of(case), 1 + (num_frames - 1) // 4, 16, height // 8, width // 8)
    if case.work == "encode":
        pixels = torch.rand(1, num_frames, 3, height, width) * 2 - 1
        return lambda: encode_pixels(pipeline.vae, pixels, scale=1.0, thrift=thrift_of(case))
    if case.work == "decode":
        latents = torch.randn(latent_shape)
        return lambda: decode_latents(pipeline.vae, latents, scale=1.0, thrift=thrift_of(case))
    quantize(pipeline.stage2_transformer, weights_of(case))
    stage2 = pipeline.stage2
    if "in turn" in case.measure:
        stage2.enable_sequential_guidance()
    if "512" in case.measure:
        stage2.transformer.enable_forward_chunking(512)
    latents, text = torch.randn(latent_shape), torch.randn(clips_of(case), 64, 64).to(dtype)
    return lambda: stage2.predict_velocity(
        latents, text, torch.tensor(500.0), guidance_scale=GUIDANCE_SCALE, noise_step=675
    )


def thrift_of(case: MemoryCase) -> str | None:
    """The VAE's thrift of a case."""
    return None if case.measure == "none" else case.measure


def weights_of(case: MemoryCase) -> str:
    """How the transformer's weights are stored in a case."""
    return "fp8" if case.measure == "fp8" else "full"


def clips_of(case: MemoryCase) -> int:
    """Clips at once of a case."""
    return 2 if case.measure == "two clips" else 1


@torch.no_grad()
def measure(case: MemoryCase) -> int:
    """Returns the bytes that the case takes; in a process of its own, see `in_new_process`.

    Raises:
        ValueError: If the system does not tell.
    """
    work = prepare(case)
    work()
    _, memory = with_peak(work, torch.device("cpu"))
    if memory is None:
        raise ValueError("this system does not tell how much memory a process takes; measure on Linux")
    return memory.extra


def in_new_process(case: MemoryCase) -> int:
    """Measures a case in a process whose allocator gives back at once what is freed."""
    command = [
        sys.executable,
        "-m",
        "flashvideo.evaluation.memory",
        "--case",
        repr(dataclasses.astuple(case)),
    ]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def main() -> None:
    """Prints the grid as a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        import ast

        work, kind, size, dtype = ast.literal_eval(arguments.case)
        print(measure(MemoryCase(work=work, measure=kind, size=size, dtype=dtype)))
        return
    print("| work | measure | frames, height, width | dtype | predicted | measured | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    worst = 0.0
    for case in cases():
        predicted, measured = predict(case), in_new_process(case)
        ratio = predicted / measured
        worst = max(worst, abs(ratio - 1))
        print(
            f"| {case.work} | {case.measure} | {', '.join(map(str, case.size))} | {case.dtype} | "
            f"{predicted / MIB:.0f} MiB | {measured / MIB:.0f} MiB | {ratio:.2f} |",
            flush=True,
        )
    print(f"\nlargest deviation: {100 * worst:.0f} %")


if __name__ == "__main__":
    main()
