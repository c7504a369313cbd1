"""Held-out scenes of the procedural world as files: for any system that enhances videos, with truth and prompts.

    python -m flashvideo.evaluation.scenes --output scenes --count 12

writes `inputs`, `references` and `prompts.json`, of the names and sizes that `flashvideo sweep --scenes` has. They are
compressed, the references hardly, so a score against them is not quite that of a sweep.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tqdm import tqdm

from flashvideo.data.shapes_world import FRAME_RATE, render
from flashvideo.evaluation.records import write_json
from flashvideo.evaluation.sweep.items import scene_items
from flashvideo.presets import NANO
from flashvideo.video import write_video

REFERENCE_CRF = 4
"""Of references: fine enough that compression does not count."""


def write_scenes(folder: Path, count: int, *, small: tuple[int, int], large: tuple[int, int]) -> None:
    """Writes scenes; those that are there already are not written again.

    Args:
        folder: Where to.
        count: How many; more of them begin with fewer.
        small: Height and width of the inputs.
        large: Height and width of the references.
    """
    items = scene_items(count)
    for name, (height, width), crf in (("inputs", small, 16), ("references", large, REFERENCE_CRF)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for item in tqdm(items, desc=name):
            path = folder / name / f"{item.name}.mp4"
            if not path.exists():
                assert item.scene is not None
                clip = torch.from_numpy(render(item.scene, height=height, width=width))
                write_video(path, clip, frame_rate=FRAME_RATE, crf=crf)
    write_json(folder / "prompts.json", {item.name: item.prompt for item in items})


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write held-out scenes with their truth and prompts.")
    parser.add_argument("--output", type=Path, required=True, help="folder")
    parser.add_argument("--count", type=int, default=12, help="scenes")
    arguments = parser.parse_args()
    one, two = NANO.stage1, NANO.stage2
    write_scenes(
        arguments.output, arguments.count, small=(one.height, one.width), large=(two.height, two.width)
    )


if __name__ == "__main__":
    main()
