"""A sweep: every setting of a grid tried on the same items with the same seeds, scored and costed run by run.

    item -> size -> seed -> preview (once for all that follows) -> Stage II settings -> scores

Finished runs are in the folder at once (`flashvideo.evaluation.sweep.files`), so a sweep that was stopped goes on where
it stood, and its grid may grow.

Shapes: F frames of H x W pixels in [-1, 1].
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from flashvideo.evaluation.measures import Subject, score
from flashvideo.evaluation.sweep.cost import Counted, add_counts, detail_cost, preview_cost
from flashvideo.evaluation.sweep.files import Cost, Run, SweepFolder
from flashvideo.evaluation.sweep.grid import Setting
from flashvideo.evaluation.sweep.items import Item
from flashvideo.evaluation.sweep.keeping import keep_video, preview_path
from flashvideo.evaluation.sweep.making import (
    Made,
    MadePreview,
    Spent,
    Start,
    Text,
    complete_detail,
    keep_preview,
    kept_preview,
    make_detail,
    make_preview,
    read_text,
    start_from_preview,
    start_from_scene,
    start_from_video,
)
from flashvideo.evaluation.sweep.planning import Sweep
from flashvideo.pipelines.footprint import ModelConfigs
from flashvideo.pipelines.inputs import or_default
from flashvideo.pipelines.settings import EnhanceSettings, complete_windows
from flashvideo.pipelines.sizes import named_size
from flashvideo.pipelines.two_stage import FlashVideoPipeline

logger = logging.getLogger(__name__)

Progress = Callable[[int], None]
"""Called with the number of runs that are done."""


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

    Before the first of them each stage works for one step in every shape, which is not measured: a first run loads
    libraries, and chooses kernels. A result that is not finite is recorded without scores; where the
    preview is not finite, that is the result.

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
    maker.warm_up([(items[name], seed, setting) for name, seed, setting in pending])
    for done, (name, seed, setting) in enumerate(pending, len(keys) - len(pending) + 1):
        item = items[name]
        made = maker.make(item, seed, setting)
        scores: dict[str, float] = {}
        video = None
        if made.frames.isfinite().all():
            scores = _scores(sweep, item, setting, made)
            if save_videos:
                video = keep_video(
                    folder.path,
                    sweep,
                    made,
                    pipeline=pipeline,
                    item=item,
                    seed=seed,
                    setting=setting,
                    model=model,
                )
        else:
            logger.warning(
                "the result of %s with seed %d and %s is not finite; it is recorded without scores",
                name,
                seed,
                setting.text(),
            )
        folder.append(Run(item=name, seed=seed, setting=setting, scores=scores, cost=made.cost, video=video))
        progress(done)


def _scores(sweep: Sweep, item: Item, setting: Setting, made: Made) -> dict[str, float]:
    source = None if sweep.preview_only else made.start.source
    if source is None and not sweep.preview_only:
        logger.warning(
            "results of size %s are not compared with their source: it is larger, or it cannot be cut to what is "
            "kept of it",
            setting.size,
        )
    subject = Subject(frames=made.frames, reference=made.start.reference, source=source, prompt=item.prompt)
    return dict(score(subject, sweep.measures))


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
    def warm_up(self, runs: Iterable[tuple[Item, int, Setting]]) -> None:
        """Makes a result in one step of each stage, once for each shape that the networks will see, and forgets it.

        Of a clip one window at most is enhanced: all windows are of one shape.

        Args:
            runs: Items with seeds and settings.
        """
        seen = set()
        for item, seed, setting in runs:
            size = None if item.video is None else item.video.size
            scales = (setting.guidance, setting.detail_guidance)
            guided = tuple(scale is not None and scale != 1 for scale in scales)
            shape = (setting.size, size, item.prompt is not None, guided)
            if shape not in seen:
                seen.add(shape)
                self._warm_up(item, seed, setting)
        self._texts.clear()

    def _warm_up(self, item: Item, seed: int, setting: Setting) -> None:
        quick = dataclasses.replace(
            setting, steps=setting.steps and 1, detail_steps=setting.detail_steps and 1
        )
        text = self._text(item)
        preview = self._new_preview(item, seed, quick, text) if self.sweep.has_preview else None
        if not self.sweep.preview_only:
            start = self._start(item, quick, preview)
            window, _ = complete_windows(
                None, None, preset=self.pipeline.preset, vae_config=self.pipeline.vae.config
            )
            start = dataclasses.replace(start, pixels=start.pixels[:window].nan_to_num())
            self._detail(start, seed, quick, text, preview)

    @torch.no_grad()
    def make(self, item: Item, seed: int, setting: Setting) -> Made:
        """Makes one result.

        Args:
            item: From what.
            seed: With which seed.
            setting: How.
        """
        text = self._text(item)
        taken: dict[str, Spent] = {} if text is None else {"text": text.taken}
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
        if (
            not self.sweep.preview_only and frames.isfinite().all()
        ):  # of what is not finite there is no detail
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
        path = preview_path(self.folder.path, item.name, seed, (*size, setting.steps, setting.guidance))
        if path.name not in self._previews:
            assert item.prompt is not None
            preview = kept_preview(
                self.pipeline, path, item.prompt, setting, num_frames=self.num_frames, seed=seed
            )
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
    ) -> tuple[Tensor, Spent, Counted, EnhanceSettings]:
        settings = complete_detail(
            self.pipeline,
            (start.pixels.shape[-2], start.pixels.shape[-1]),
            start.size,
            setting,
            consistency=self.sweep.consistency,
            enlarged=start.enlarged,
        )
        generator = torch.Generator().manual_seed(seed) if preview is None else preview.state.generator()
        embeds = None if text is None else text.stage2
        frames, taken = make_detail(self.pipeline, start, embeds, settings, generator)
        counted = detail_cost(self.configs, settings, num_frames=len(frames), has_text=embeds is not None)
        return frames, taken, counted, settings


def _cost(taken: Mapping[str, Spent], counts: list[Counted]) -> Cost:
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
