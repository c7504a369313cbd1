"""The figures of a small model on the procedural world: what README and model card report.

Each section is a function of a pipeline that yields one record per clip; `run_suite` writes them to JSON as they
come, so an interrupted run continues where it stopped. Settings are tried against one another by `flashvideo sweep`.

    python -m flashvideo.evaluation.suite --output figures.json [--sections previews pairs] [--count N]

Shapes: clips (F, 3, H, W) in [-1, 1].
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from flashvideo.data.captions import full_caption
from flashvideo.data.dead_leaves import render_leaves
from flashvideo.data.shapes_world import FRAME_RATE, NUM_FRAMES, Scene, object_mask, render, sample_scene
from flashvideo.degradations.pixel import PixelDegradation, degrade_pixels
from flashvideo.evaluation.metrics import (
    downsampled_psnr,
    edge_psnr,
    filter_bank_distance,
    frame_difference_error,
    gmsd,
    gradient_energy_ratio,
    high_frequency_fraction,
    psnr,
)
from flashvideo.evaluation.readers import agreement, read_clip
from flashvideo.evaluation.records import write_json
from flashvideo.evaluation.summary import summarise
from flashvideo.evaluation.upscalers import upscale_clip
from flashvideo.pipelines.consistency import back_project, keep_consistent, steady_detail
from flashvideo.pipelines.loading import load_pipeline
from flashvideo.pipelines.sizes import upscale_factor
from flashvideo.pipelines.two_stage import FlashVideoPipeline
from flashvideo.vae import decode_latents, encode_pixels
from flashvideo.video import read_video, write_video

Record = dict[str, float]
Section = Callable[[FlashVideoPipeline, int], Record]
LENGTHS = (1, 5, 17, 33, 49)
"""Frames of the clips of sections that compare lengths."""
PREVIEW_SIZES = ((80, 128), (96, 160), (112, 176), (128, 208))
"""Heights and widths of previews, of a section that compares them; nano is made for the first three."""
SPEEDS = (1, 2, 4)
"""How many times as fast as usual the motion of clips is, of a section that compares speeds."""
FIRST_SEED = 1_000_000_000
"""Seeds from here on belong to evaluation; training derives its own by hashing and never meets them."""


def held_out_scene(index: int) -> Scene:
    """The scene of prompt `index`: a combination never trained on, one object, no pan."""
    return sample_scene(FIRST_SEED + index, held_out=True, second_object=0.0, pan=0.0)


def _generator(index: int) -> torch.Generator:
    return torch.Generator().manual_seed(FIRST_SEED + index)


def _sizes(pipeline: FlashVideoPipeline) -> tuple[tuple[int, int], tuple[int, int]]:
    preset = pipeline.preset
    return (preset.stage1.height, preset.stage1.width), (preset.stage2.height, preset.stage2.width)


def vae(pipeline: FlashVideoPipeline, index: int) -> Record:
    """Reconstruction of a held-out full-size clip; every fourth is dead leaves, the others scenes."""
    height, width = _sizes(pipeline)[1]
    if index % 4 == 3:
        truth = torch.from_numpy(render_leaves(FIRST_SEED + index, height=height, width=width))
        kind = "natural"
    else:
        scene = sample_scene(FIRST_SEED + index, held_out=True)
        truth, kind = torch.from_numpy(render(scene, height=height, width=width)), "world"
    latents = encode_pixels(pipeline.vae, truth[None], scale=1.0)
    result = decode_latents(pipeline.vae, latents, scale=1.0, clamp=True)[0].float()
    return {
        f"{kind}_psnr": clip_psnr(result, truth),
        f"{kind}_gradient_energy": gradient_energy_ratio(result, truth).item(),
    }


def clip_psnr(result: Tensor, truth: Tensor) -> float:
    """PSNR of the whole clip, from its mean squared error."""
    return float(10 * torch.log10(4 / (result - truth).square().mean()))


def _found(
    pipeline: FlashVideoPipeline,
    index: int,
    *,
    num_frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
) -> Record:
    """Which attributes of held-out prompt `index` the readers find in a preview: 1 or 0 each, and all of them.

    Sizes are those of the final video. One frame has no motion.
    """
    scene = held_out_scene(index)
    result: Any = pipeline(
        full_caption(scene),
        num_frames=num_frames,
        height=height,
        width=width,
        preview_only=True,
        generator=_generator(index),
        output_type="pt",
    )
    preview = result.preview_frames[0]
    found = dict(agreement(read_clip(preview), scene))
    if len(preview) == 1:
        del found["motion"]
    return {name: float(value) for name, value in found.items()} | {"all": float(all(found.values()))}


def previews(pipeline: FlashVideoPipeline, index: int) -> Record:
    """Which attributes of a held-out prompt the readers find in its preview."""
    return _found(pipeline, index)


def finals(pipeline: FlashVideoPipeline, index: int) -> Record:
    """Whether Stage II keeps the preview's content: attributes read alike, and PSNR of the downsampled result."""
    scene = held_out_scene(index)
    result: Any = pipeline(full_caption(scene), generator=_generator(index), output_type="pt")
    preview, final = result.preview_frames[0].float(), result.frames[0].float()
    before, after = vars(read_clip(preview)), vars(read_clip(final))
    alike = {f"same_{name}": float(before[name] == after[name]) for name in before}
    return alike | {
        "same_attributes": float(np.mean(list(alike.values()))),
        "fidelity": downsampled_psnr(final, preview).mean().item(),
    }


def readers(_: FlashVideoPipeline, index: int) -> Record:
    """Whether the readers read rendered truth right, raw and from an mp4 (x264, CRF 28): 1 or 0 each."""
    scene = sample_scene(FIRST_SEED + index, held_out=index % 2 == 0, second_object=0.0, pan=0.0)
    truth = torch.from_numpy(render(scene))
    with tempfile.TemporaryDirectory() as folder:
        path = write_video(Path(folder) / "truth.mp4", truth, frame_rate=FRAME_RATE, crf=28)
        clips = {"raw": truth, "mp4": read_video(path).frames}
    return {
        f"{kind}_{name}": float(right)
        for kind, clip in clips.items()
        for name, right in agreement(read_clip(clip), scene).items()
    }


def compare(result: Tensor, truth: Tensor, edges: Tensor | None = None) -> Record:
    """All with-reference figures of one clip, or still, against its truth; spatial ones on every fourth frame."""
    some, true = result[::4], truth[::4]
    figures = {
        "psnr": psnr(some, true).mean().item(),
        "gmsd": gmsd(some, true).mean().item(),
        "filter_bank": filter_bank_distance(some, true).mean().item(),
        "gradient_energy": gradient_energy_ratio(result, truth).item(),
    }
    if len(result) > 1:
        figures["frame_difference"] = frame_difference_error(result, truth).item()
    if edges is not None:
        figures["edge_psnr"] = edge_psnr(some, true, edges[::4]).mean().item()
    return figures


def _compare_each(outputs: Mapping[str, Tensor], truth: Tensor, edges: Tensor | None = None) -> Record:
    """Figures of several results, each behind its name."""
    return {
        f"{name}_{key}": value
        for name, output in outputs.items()
        for key, value in compare(output, truth, edges).items()
    }


def _pair(pipeline: FlashVideoPipeline, index: int) -> tuple[Scene, Tensor, Tensor, Tensor]:
    """A held-out scene, its exact small and full-size renderings, and where its object's edges are."""
    small_size, size = _sizes(pipeline)
    scene = sample_scene(FIRST_SEED + index, held_out=True)
    low = torch.from_numpy(render(scene, height=small_size[0], width=small_size[1]))
    truth = torch.from_numpy(render(scene, height=size[0], width=size[1]))
    mask = torch.from_numpy(object_mask(scene, height=size[0], width=size[1]))
    near = F.max_pool2d(mask, 7, 1, 3) - -F.max_pool2d(-mask, 7, 1, 3)
    return scene, low, truth, near > 0.5


def pairs(pipeline: FlashVideoPipeline, index: int) -> Record:
    """Stage II and the classical upscalers on an exact pair, prompt given."""
    scene, low, truth, edges = _pair(pipeline, index)
    result: Any = pipeline.stage2(
        low[None], full_caption(scene), generator=_generator(index), output_type="pt"
    )
    outputs = {"stage2": result.frames[0].float()}
    outputs |= {m: upscale_clip(low, truth.shape[-2], truth.shape[-1], m) for m in ("bicubic", "lanczos")}
    record = _compare_each(outputs, truth, edges)
    record["stage2_fidelity"] = downsampled_psnr(outputs["stage2"], low).mean().item()
    record["truth_high_frequency"] = high_frequency_fraction(truth[::8]).mean().item()
    return record


def consistency(pipeline: FlashVideoPipeline, index: int) -> Record:
    """What keeping the input's coarse picture, and its stillness, do to Stage II's result on an exact pair."""
    scene, low, truth, edges = _pair(pipeline, index)
    result: Any = pipeline.stage2(
        low[None], full_caption(scene), consistency=False, generator=_generator(index), output_type="pt"
    )
    raw, given = result.frames.float(), low[None]
    outputs = {
        "neither": raw,
        "coarse": back_project(raw, given),
        "still": steady_detail(raw, given),
        "both": keep_consistent(raw, given),
        "bicubic": upscale_clip(low, truth.shape[-2], truth.shape[-1], "bicubic")[None],
    }
    record: Record = {}
    for name, output in outputs.items():
        frames = output[0].clamp(-1, 1)
        record |= {f"{name}_{key}": value for key, value in compare(frames, truth, edges).items()}
        record[f"{name}_fidelity"] = downsampled_psnr(frames, low).mean().item()
    return record


def _clip(
    pipeline: FlashVideoPipeline, index: int, *, frames: int, speed: float = 1.0
) -> tuple[str, Tensor, Tensor]:
    """A held-out clip from the beginning of its course: prompt, and exact small and full-size renderings."""
    scene = sample_scene(FIRST_SEED + index, held_out=True)
    times = [speed * i / (NUM_FRAMES - 1) for i in range(frames)]
    low, truth = (
        torch.from_numpy(render(scene, height=height, width=width, times=times))
        for height, width in _sizes(pipeline)
    )
    return full_caption(scene), low, truth


def _enlarge(pipeline: FlashVideoPipeline, low: Tensor, prompt: str, truth: Tensor, index: int) -> Record:
    """Stage II and bicubic beside the truth."""
    height, width = truth.shape[-2:]
    result: Any = pipeline.stage2(
        low[None], prompt or None, height=height, width=width, generator=_generator(index), output_type="pt"
    )
    outputs = {
        "stage2": result.frames[0].float(),
        "bicubic": upscale_clip(low, height, width, "bicubic"),
    }
    return _compare_each(outputs, truth) | {
        "stage2_fidelity": downsampled_psnr(outputs["stage2"], low).mean().item()
    }


def degraded(pipeline: FlashVideoPipeline, index: int) -> Record:
    """Stage II on what blur, noise and compression leave of a clip, half as strong as published; every third leaves."""
    size = _sizes(pipeline)[1]
    prompt, _, truth = _clip(pipeline, index, frames=9)
    if index % 3 == 2:
        prompt = ""
        truth = torch.from_numpy(
            render_leaves(FIRST_SEED + index, height=size[0], width=size[1], num_frames=9)
        )
    small: list[Tensor] = []

    def keep(low: Tensor) -> Tensor:
        small.append(low[0].clamp(-1, 1))
        return low

    ranges = PixelDegradation(strong_factor=(4, 4)).milder(0.5)
    degrade_pixels(truth[None], _generator(index), ranges, strong=True, at_low_resolution=keep)
    return _enlarge(pipeline, small[0], prompt, truth, index)


def speeds(pipeline: FlashVideoPipeline, index: int) -> Record:
    """Stage II on exact pairs whose motion is 1, 2 and 4 times as fast."""
    record: Record = {}
    for speed in SPEEDS:
        prompt, low, truth = _clip(pipeline, index, frames=NUM_FRAMES, speed=speed)
        figures = _enlarge(pipeline, low, prompt, truth, index)
        record |= {f"speed{speed}_{name}": value for name, value in figures.items()}
    return record


def lengths(pipeline: FlashVideoPipeline, index: int) -> Record:
    """Stage II on exact pairs of 1 to 49 frames."""
    record: Record = {}
    for frames in LENGTHS:
        prompt, low, truth = _clip(pipeline, index, frames=frames)
        figures = _enlarge(pipeline, low, prompt, truth, index)
        record |= {f"frames{frames}_{name}": value for name, value in figures.items()}
    return record


def preview_lengths(pipeline: FlashVideoPipeline, index: int) -> Record:
    """Which attributes of a held-out prompt the readers find in previews of 1 to 49 frames."""
    record: Record = {}
    for frames in LENGTHS:
        found = _found(pipeline, index, num_frames=frames)
        record |= {f"frames{frames}_{name}": value for name, value in found.items()}
    return record


def preview_sizes(pipeline: FlashVideoPipeline, index: int) -> Record:
    """The same in previews of other sizes than the model's own."""
    record: Record = {}
    factor = upscale_factor(pipeline.preset)
    for height, width in PREVIEW_SIZES:
        found = _found(pipeline, index, height=factor * height, width=factor * width)
        record |= {f"size{height}x{width}_{name}": value for name, value in found.items()}
    return record


SECTIONS: Mapping[str, tuple[Section, int]] = {
    "readers": (readers, 500),
    "vae": (vae, 12),
    "previews": (previews, 256),
    "finals": (finals, 64),
    "pairs": (pairs, 24),
    "consistency": (consistency, 24),
    "degraded": (degraded, 24),
    "speeds": (speeds, 12),
    "lengths": (lengths, 6),
    "preview_lengths": (preview_lengths, 64),
    "preview_sizes": (preview_sizes, 64),
}
"""What can be measured, and on how many clips by default."""
SHARE_SECTIONS = ("readers", "previews", "finals", "preview_lengths", "preview_sizes")
"""Sections in which readers say right or wrong."""


def run_suite(
    pipeline: FlashVideoPipeline, output: Path, sections: Mapping[str, int], *, progress: bool = True
) -> dict[str, dict[str, Any]]:
    """Measure sections, continuing what `output` already holds.

    Args:
        pipeline: the model.
        output: a JSON file; every finished record is in it at once.
        sections: which ones, and on how many clips.
        progress: show a bar.

    Returns:
        The summary, which the file holds too.
    """
    data: dict[str, Any] = json.loads(output.read_text()) if output.exists() else {"records": {}}
    for name, count in sections.items():
        measure = SECTIONS[name][0]
        records = data["records"].setdefault(name, [])
        for index in tqdm(range(len(records), count), desc=name, disable=not progress):
            started = time.perf_counter()
            with torch.no_grad():
                record = measure(pipeline, index)
            records.append(record | {"seconds": time.perf_counter() - started})
            data["summary"] = {n: summarise(r, _shares(n, r)) for n, r in data["records"].items()}
            write_json(output, data)
    return data.get("summary", {})


def _shares(section: str, records: list[Record]) -> set[str]:
    """The figures of a section that are 0 or 1 of each clip."""
    if section not in SHARE_SECTIONS:
        return set()
    names = {name for record in records for name in record}
    return {name for name in names if {record[name] for record in records} <= {0.0, 1.0}}


def main() -> None:
    """Command line of the suite."""
    parser = argparse.ArgumentParser(description="Measure a model on the procedural world.")
    parser.add_argument("--model", default="nano", help="nano, or a model folder")
    parser.add_argument("--output", type=Path, required=True, help="JSON file; continued if it exists")
    parser.add_argument("--sections", nargs="+", default=list(SECTIONS), choices=list(SECTIONS))
    parser.add_argument("--count", type=int, help="clips per section; each section's own number by default")
    arguments = parser.parse_args()
    pipeline = load_pipeline(arguments.model)
    pipeline.set_progress_bar_config(disable=True)
    counts = {name: arguments.count or SECTIONS[name][1] for name in arguments.sections}
    summary = run_suite(pipeline, arguments.output, counts)
    for section in arguments.sections:
        for name, value in summary[section].items():
            print(f"{section:13} {name:28} {value['mean']:9.4f}  [{value['low']:.4f}, {value['high']:.4f}]")


if __name__ == "__main__":
    main()
