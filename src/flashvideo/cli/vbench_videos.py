"""The videos of `flashvideo evaluate vbench`: many prompts with one loaded model, resumed, never of mixed settings."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashvideo.cli.generate import choose_size, put_on_loras
from flashvideo.cli.generation import Generation
from flashvideo.cli.info import flatten
from flashvideo.cli.messages import progress_is_shown
from flashvideo.cli.model import open_pipeline
from flashvideo.cli.results import Phases

if TYPE_CHECKING:
    from flashvideo.evaluation.vbench.prompts import PlannedVideo
    from flashvideo.pipelines.embeds import PromptEmbeds
    from flashvideo.pipelines.two_stage import FlashVideoPipeline


def make_videos(
    arguments: argparse.Namespace, videos: Sequence[PlannedVideo], folder: Path, phases: Phases
) -> int:
    """Makes the videos that are not there yet.

    Args:
        arguments: What was asked for, with all that `Generation` reads.
        videos: What shall be there.
        folder: Where.
        phases: Time taken so far.

    Returns:
        How many were made.

    Raises:
        ValueError: If the model cannot make them, or one that is there was made by another model or otherwise.
    """
    from tqdm import tqdm

    with phases("load"):
        pipeline = open_pipeline(arguments, stage1=arguments.stage1)
        put_on_loras(pipeline, arguments.loras)
        pipeline.check_has_stage2()
        size = choose_size(arguments, pipeline, None)
    frame_rate = Fraction(pipeline.preset.stage1.frame_rate).limit_denominator(1001)

    def generation(video: PlannedVideo, embeds: PromptEmbeds | None) -> Generation:
        own = {**vars(arguments), "output": folder / video.name, "progress": False}
        return Generation(
            arguments=argparse.Namespace(**own),
            pipeline=pipeline,
            source=None,
            size=size,
            seed=video.seed,
            frame_rate=frame_rate,
            phases=phases,
            prompt=video.prompt,
            refinement=None,
            embeds=embeds,
            is_last=False,
        )

    with phases("check"):
        left = []
        for video in videos:
            if (folder / video.name).exists():
                check_made_so(folder / video.name, generation(video, None).expected_metadata())
            else:
                left.append(video)
    with phases("text"):
        texts = encode_texts(arguments, pipeline, [video.prompt for video in left])
    shown = progress_is_shown(arguments.progress)
    for video in tqdm(left, desc="videos", unit="video", disable=not shown, file=sys.stderr):
        generation(video, texts[video.prompt]).make_video(None)
    return len(left)


def encode_texts(
    arguments: argparse.Namespace, pipeline: FlashVideoPipeline, prompts: Sequence[str]
) -> dict[str, PromptEmbeds]:
    """Encodes each prompt once and frees the text encoder; the embeddings wait in the host's memory.

    Raises:
        ValueError: If the model has no text encoder.
    """
    import dataclasses

    texts: dict[str, PromptEmbeds] = {}
    for prompt in dict.fromkeys(prompts):
        embeds = pipeline.encode_prompt([prompt], prompt_prefix=arguments.motion_prefix)
        texts[prompt] = dataclasses.replace(embeds, stage1=embeds.stage1.cpu(), stage2=embeds.stage2.cpu())
    pipeline.give_up("text_encoder")
    return texts


def check_no_more(videos: Sequence[PlannedVideo], folder: Path) -> None:
    """Checks that there are no further videos of the same prompts, which VBench would judge too.

    Raises:
        ValueError: If there are.
    """
    names = {video.name for video in videos}
    prompts = {name.rpartition("-")[0] for name in names}
    paths = sorted(folder.glob("*.mp4"))
    more = [path.name for path in paths if path.name not in names and path.name.rpartition("-")[0] in prompts]
    if more:
        raise ValueError(
            f"{folder} has {len(more)} more videos of these prompts than were asked for, first {more[0]}, and VBench "
            "would judge them too; ask for as many with --samples or --flicker-samples, or remove them"
        )


def check_made_so(path: Path, expected: Mapping[str, Any]) -> None:
    """Checks that a video was made as it would be made now.

    Raises:
        ValueError: If it was not.
    """
    from flashvideo.video import read_metadata

    found = dict(flatten(read_metadata(path)))
    wanted = dict(flatten(json.loads(json.dumps(expected))))
    if not found:
        raise ValueError(f"{path} does not say how it was made; choose another --output, or remove it")
    if difference := first_difference(found, wanted):
        name, was, now = difference
        raise ValueError(
            f"{path} was made with {name} {was}, which is now {now}, and settings are never mixed; choose another "
            "--output, or remove it"
        )


def first_difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Returns name and both values of the first that differs, `"none"` for one that is not there; None if none does."""
    for name in {**wanted, **found}:
        if found.get(name, "none") != wanted.get(name, "none"):
            return name, found.get(name, "none"), wanted.get(name, "none")
    return None


def tells_capitals_apart(folder: Path) -> bool:
    """Returns whether a folder's file system tells capital letters from small ones."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix="case-") as file:
        path = Path(file.name)
        return not path.with_name(path.name.upper()).exists()
