"""A sweep: every setting of a grid tried on the same items with the same seeds, scored and costed run by run.

    item -> size -> seed -> preview (once for all that follows) -> Stage II settings -> scores

Finished runs are in the folder at once (`flashvideo.evaluation.sweep.files`), so a sweep that was stopped goes on where
it stood, and its grid may grow.

Shapes: F frames of H x W pixels in [-1, 1].
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flashvideo import __version__
from flashvideo.evaluation.measures import Measure, Subject, available_measures, score
from flashvideo.evaluation.sweep.cost import Counted, add_counts, detail_cost, preview_cost
from flashvideo.evaluation.sweep.files import Cost, Run, RunKey, SweepFolder, short_hash
from flashvideo.evaluation.sweep.grid import Setting
from flashvideo.evaluation.sweep.items import Item, Kind
from flashvideo.evaluation.sweep.making import (
    MadePreview,
    Start,
    Taken,
    Text,
    detail_settings,
    keep_preview,
    kept_preview,
    make_detail,
    make_preview,
    read_text,
    start_from_preview,
    start_from_scene,
    start_from_video,
)
from flashvideo.pipelines.footprint import ModelConfigs
from flashvideo.pipelines.inputs import or_default
from flashvideo.pipelines.settings import EnhanceSettings
from flashvideo.pipelines.sizes import named_size
from flashvideo.pipelines.two_stage import FlashVideoPipeline
from flashvideo.video import generation_metadata, write_video

logger = logging.getLogger(__name__)

Progress = Callable[[int], None]
"""Called with the number of runs that are done."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sweep:
    """What is to be done."""

    kind: Kind
    """What items are."""

    items: tuple[Item, ...]
    """What every setting is tried on."""

    seeds: tuple[int, ...]
    """Seeds of the randomness; every item is made with each."""

    settings: tuple[Setting, ...]
    """The grid."""

    preview_only: bool = False
    """Whether to stop after Stage I."""

    num_frames: int | None = None
    """Frames of scenes and previews; the model's own if None."""

    consistency: bool | None = None
    """Whether results keep their source's coarse picture; the model's own if None."""

    measures: tuple[Measure, ...] = field(default_factory=available_measures)
    """What results are scored with."""

    @property
    def has_preview(self) -> bool:
        """Whether Stage I runs."""
        return self.preview_only or self.kind == "prompts"

    def run_keys(self) -> Iterator[RunKey]:
        """Yields every run, so that those which share a preview, or a rendered scene, follow one another."""
        sizes = dict.fromkeys(setting.size for setting in self.settings)
        for item, size, seed in itertools.product(self.items, sizes, self.seeds):
            for setting in self.settings:
                if setting.size == size:
                    yield item.name, seed, setting

    def about(self) -> dict[str, Any]:
        """Returns what may not change within a folder, as plain values."""
        return {
            "kind": self.kind,
            "preview_only": self.preview_only,
            "num_frames": self.num_frames,
            "consistency": self.consistency,
            "measures": [f"{measure.name} {measure.variant}".strip() for measure in self.measures],
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Made:
    """A result with what it took."""

    start: Start
    """What it was made from; the preview itself, where that is the result."""

    frames: Tensor
    """(F, 3, H, W)."""

    cost: Cost
    """What it cost."""

    about: dict[str, Any]
    """Sizes, steps and settings, for its metadata."""


def run_sweep(
    pipeline: FlashVideoPipeline,
    sweep: Sweep,
    folder: SweepFolder,
    *,
    model: str,
    save_videos: bool = False,
    on_run: Progress | None = None,
) -> None:
    """Does the runs that the folder lacks.

    Before the first of them each stage works for one step, which is not measured: a first run loads libraries.

    Args:
        pipeline: The model.
        sweep: What is to be done.
        folder: Where to, from `open_folder`.
        model: How the model is named in the metadata of videos.
        save_videos: Whether to keep the results.
        on_run: Called after each run.

    Raises:
        ValueError: In one sentence, what is wrong with a setting or an item.
    """
    finished = {run.key for run in folder.runs}
    keys = list(sweep.run_keys())
    pending = [key for key in keys if key not in finished]
    items = {item.name: item for item in sweep.items}
    progress: Progress = on_run or (lambda done: None)
    maker = Maker(pipeline, sweep, folder)
    if pending:
        name, seed, setting = pending[0]
        maker.warm_up(items[name], seed, setting)
    for done, (name, seed, setting) in enumerate(pending, len(keys) - len(pending) + 1):
        item = items[name]
        made = maker.make(item, seed, setting)
        source = None if sweep.preview_only else made.start.source
        if source is None and not sweep.preview_only:
            logger.warning(
                "results of size %s are not compared with what they are made from: they are smaller, or whole pixels "
                "of it are not what is kept",
                setting.size,
            )
        subject = Subject(
            frames=made.frames, reference=made.start.reference, source=source, prompt=item.prompt
        )
        scores = score(subject, sweep.measures)
        video = None
        if save_videos:
            parts = [name, seed, setting.as_dict()]
            video = f"videos/{_file_name(name)}-seed{seed}-{short_hash(parts)}.mp4"
            keep_video(folder.path / video, made, pipeline=pipeline, item=item, seed=seed, model=model)
        folder.append(Run(item=name, seed=seed, setting=setting, scores=scores, cost=made.cost, video=video))
        progress(done)


class Maker:
    """Makes results one after another, and keeps in memory what the next one is made from too.

    Args:
        pipeline: The model.
        sweep: What is done.
        folder: Where previews are kept.
    """

    def __init__(self, pipeline: FlashVideoPipeline, sweep: Sweep, folder: SweepFolder) -> None:
        self.pipeline, self.sweep, self.folder = pipeline, sweep, folder
        self.configs = ModelConfigs.of(pipeline)
        self.num_frames = or_default(sweep.num_frames, pipeline.preset.stage1.num_frames)
        self._texts: dict[str, Text] = {}
        self._starts: dict[tuple[str, str], Start] = {}
        self._previews: dict[str, MadePreview] = {}

    @torch.no_grad()
    def warm_up(self, item: Item, seed: int, setting: Setting) -> None:
        """Makes a result in one step of each stage, and forgets it."""
        quick = dataclasses.replace(
            setting, steps=setting.steps and 1, detail_steps=setting.detail_steps and 1
        )
        text = self._text(item)
        preview = None
        if self.sweep.has_preview:
            preview = self._new_preview(item, seed, quick, text)
        if not self.sweep.preview_only:
            self._detail(self._start(item, quick, preview), seed, quick, text, preview)
        self._texts.clear()

    @torch.no_grad()
    def make(self, item: Item, seed: int, setting: Setting) -> Made:
        """Makes one result.

        Args:
            item: From what.
            seed: With which seed.
            setting: How.
        """
        text = self._text(item)
        taken: dict[str, Taken] = {} if text is None else {"text": text.taken}
        counts: list[Counted] = []
        about: dict[str, Any] = {"sizes": {}, "steps": {}, "settings": {}}
        preview = None
        if self.sweep.has_preview:
            preview = self._preview(item, seed, setting, text)
            taken["preview"] = preview.taken
            assert setting.steps is not None
            assert setting.guidance is not None
            counts.append(
                preview_cost(
                    self.configs,
                    named_size(setting.size),
                    num_frames=self.num_frames,
                    steps=setting.steps,
                    guidance=setting.guidance,
                )
            )
            about["sizes"]["stage1"] = _size_of(preview.pixels)
            about["steps"]["stage1"] = setting.steps
            about["settings"]["stage1"] = {"guidance_scale": setting.guidance}
        start = self._start(item, setting, preview)
        frames = start.pixels
        if not self.sweep.preview_only:
            frames, taken["detail"], counted, stage2 = self._detail(start, seed, setting, text, preview)
            counts.append(counted)
            if preview is None:
                about["sizes"]["input"] = _size_of(start.pixels)
            about["sizes"]["stage2"] = _size_of(frames)
            about["steps"]["stage2"] = stage2.num_inference_steps
            about["settings"]["stage2"] = {
                "guidance_scale": 1.0 if text is None else stage2.guidance_scale,
                "noise_step": stage2.noise_step,
                "shift": setting.shift,
                "consistency": stage2.consistency,
            }
        return Made(start=start, frames=frames, cost=_cost(taken, counts), about=about)

    def _text(self, item: Item) -> Text | None:
        """The prompt of the item at hand, read once."""
        if item.prompt is None:
            return None
        if item.name not in self._texts:
            text = read_text(
                self.pipeline,
                item.prompt,
                stage1=self.sweep.has_preview,
                stage2=not self.sweep.preview_only,
            )
            self._texts = {item.name: text}
        return self._texts[item.name]

    def _preview(self, item: Item, seed: int, setting: Setting, text: Text | None) -> MadePreview:
        """The preview of a run: the one at hand, one that is kept, or a new one."""
        size = self.pipeline.preview_size(*named_size(setting.size))
        parts = [item.name, seed, *size, setting.steps, setting.guidance]
        path = self.folder.path / "previews" / f"{_file_name(item.name)}-seed{seed}-{short_hash(parts)}"
        if path.name not in self._previews:
            preview = kept_preview(self.pipeline, path)
            if preview is None:
                preview = self._new_preview(item, seed, setting, text)
                keep_preview(path, preview)
            self._previews = {path.name: preview}
        return self._previews[path.name]

    def _new_preview(self, item: Item, seed: int, setting: Setting, text: Text | None) -> MadePreview:
        assert item.prompt is not None
        assert text is not None
        assert text.stage1 is not None
        return make_preview(
            self.pipeline, item.prompt, text.stage1, setting, num_frames=self.num_frames, seed=seed
        )

    def _start(self, item: Item, setting: Setting, preview: MadePreview | None) -> Start:
        """What Stage II starts from; what is rendered or read stays at hand."""
        if preview is not None:
            return start_from_preview(self.pipeline, preview, setting.size)
        key = item.name, setting.size
        if key not in self._starts:
            if self.sweep.kind == "scenes":
                start = start_from_scene(self.pipeline, item, setting.size, self.num_frames)
            else:
                start = start_from_video(self.pipeline, item, setting.size)
            self._starts = {key: start}
        return self._starts[key]

    def _detail(
        self,
        start: Start,
        seed: int,
        setting: Setting,
        text: Text | None,
        preview: MadePreview | None,
    ) -> tuple[Tensor, Taken, Counted, EnhanceSettings]:
        settings = detail_settings(self.pipeline, start, setting, consistency=self.sweep.consistency)
        generator = torch.Generator().manual_seed(seed) if preview is None else preview.state.generator()
        embeds = None if text is None else text.stage2
        frames, taken = make_detail(self.pipeline, start, embeds, settings, generator)
        counted = detail_cost(self.configs, settings, num_frames=len(frames), has_text=embeds is not None)
        return frames, taken, counted, settings


def keep_video(
    path: Path, made: Made, *, pipeline: FlashVideoPipeline, item: Item, seed: int, model: str
) -> None:
    """Writes a result with what made it in its metadata."""
    rate = Fraction(pipeline.preset.stage1.frame_rate).limit_denominator(1001)
    if item.video is not None:
        rate = item.video.frame_rate
    note = generation_metadata(model=model, version=__version__, seed=seed, prompt=item.prompt, **made.about)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, made.frames, frame_rate=rate, metadata=note)


def _cost(taken: Mapping[str, Taken], counts: list[Counted]) -> Cost:
    counted = add_counts(counts)
    peaks = [part.peak_bytes for part in taken.values() if part.peak_bytes is not None]
    return Cost(
        seconds={name: part.seconds for name, part in taken.items()},
        evaluations=counted.evaluations,
        flops=counted.flops,
        peak_bytes=max(peaks, default=None),
    )


def _size_of(clip: Tensor) -> tuple[int, int, int]:
    """Frames, height and width of (F, 3, H, W)."""
    return clip.shape[0], clip.shape[2], clip.shape[3]


def _file_name(name: str) -> str:
    """An item's name with only such characters as every file system takes."""
    return re.sub(r"[^\w.-]+", "_", name)[:60]
