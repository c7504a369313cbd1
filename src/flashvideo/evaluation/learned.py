"""Metrics that a network learned from people's opinions, through `pyiqa` (the `metrics` extra).

pyiqa is under the PolyForm Noncommercial licence, and parts of it under others: see whether yours is a use that they
permit. It downloads the weights of a metric when the metric is first made, into ``$TORCH_HOME/hub/pyiqa`` and
``$TORCH_HOME/hub/checkpoints``, and MANIQA's backbone into ``$HF_HOME``. Files that lie there already are used as they
are, so a machine without network takes a copy of those folders.

Shapes: F frames, H height, W width.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import pickle
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flashvideo.evaluation.extras import first_line, import_extra
from flashvideo.evaluation.folders import content_digest
from flashvideo.evaluation.measures import MEASURES, Measure, Subject, some

LEARNED = ("musiq", "maniqa", "clipiqa", "lpips", "dists")
"""pyiqa's names of the metrics that video enhancers are mostly compared by; the last two need a reference."""
NEED_REFERENCE = ("lpips", "dists")
"""Those two."""
LEAST_SIZE = 32
"""Pixels of height and width below which no figure is given: the networks halve their input up to five times."""
_LABELS = {
    "musiq": "MUSIQ",
    "maniqa": "MANIQA",
    "clipiqa": "CLIP-IQA",
    "lpips": "LPIPS",
    "dists": "DISTS",
}
_OWN = frozenset(measure.name for measure in MEASURES)
# Those for which pyiqa 0.1 takes a file of the kind that it publishes itself.
_TAKES_FILE = ("musiq", "lpips", "dists")


def learned_measures(
    names: Sequence[str] = LEARNED, device: str | torch.device = "cpu", *, weights: Path | None = None
) -> tuple[Measure, ...]:
    """Makes measures of pyiqa's metrics, each the mean over `some` frames, which it sees one at a time, in [0, 1].

    Args:
        names: pyiqa's names, such as those of `LEARNED`.
        device: Where the networks run.
        weights: A folder with pyiqa's file of each metric under the metric's name, such as ``musiq.pth``. pyiqa takes
            files for "musiq", "lpips" and "dists" alone, and reads them as pickles: use those that you trust. The
            backbones of the latter two come from torchvision all the same. None takes what pyiqa has downloaded, or
            downloads it.

    Returns:
        One measure per name, in the order of the names.

    Raises:
        ImportError: pyiqa is not installed.
        ValueError: A name is not one of pyiqa's, `weights` does not have its file, or weights cannot be downloaded.
    """
    pyiqa = import_extra(
        "pyiqa",
        "learned metrics need it, for noncommercial use (PolyForm Noncommercial licence)",
        extra="metrics",
    )
    _check_names(names, pyiqa.list_models())
    if taken := [name for name in names if name in _OWN]:
        raise ValueError(f"{taken[0]} is measured without pyiqa already; leave it out")
    files = [None if weights is None else _weights_file(name, weights) for name in names]
    create = functools.partial(pyiqa.create_metric, device=torch.device(device))
    return tuple(
        _measure(name, _create(create, name, file), _variant(pyiqa, file))
        for name, file in zip(names, files, strict=True)
    )


def _variant(pyiqa: Any, file: Path | None) -> str:
    """What a metric's numbers depend on: pyiqa's version, and its weights if they are given."""
    version = f"pyiqa {pyiqa.__version__}"
    return version if file is None else f"{version}, {file.name} {content_digest(file)}"


def _check_names(names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0)
            raise ValueError(
                f"pyiqa has no metric {name!r}; did you mean {nearest[0]!r}? pyiqa.list_models() gives all"
            )


def _weights_file(name: str, folder: Path) -> Path:
    if name not in _TAKES_FILE:
        raise ValueError(
            f"pyiqa takes no file of weights for {name}, only for {', '.join(_TAKES_FILE)}; leave weights out and "
            "place pyiqa's own downloads under $TORCH_HOME/hub"
        )
    path = folder / f"{name}.pth"
    if not path.is_file():
        raise ValueError(f"{path} does not exist, expected pyiqa's weights of {name}; copy them there")
    return path


def _create(create: Callable[..., Any], name: str, file: Path | None) -> Any:
    """Has pyiqa make a metric, with weights from a file or those that it finds or downloads itself."""
    options = {} if file is None else {"pretrained_model_path": str(file)}
    try:
        # What pyiqa tells of its weights does not belong among results.
        with contextlib.redirect_stdout(sys.stderr):
            return create(name, **options)
    except OSError as error:  # of urllib, requests and huggingface_hub, all of which it uses
        raise ValueError(
            f"pyiqa could not get its weights of {name} ({first_line(error)}); connect to the network once, or copy "
            "the folders $TORCH_HOME/hub and $HF_HOME from a machine that has them"
        ) from None
    except (RuntimeError, LookupError, pickle.UnpicklingError) as error:
        if file is None:
            raise
        raise ValueError(f"{file} does not hold pyiqa's weights of {name}: {first_line(error)}") from None


def _measure(name: str, metric: Any, variant: str) -> Measure:
    needs_reference = metric.metric_mode == "FR"  # full reference

    def compute(subject: Subject) -> float | None:
        if min(subject.frames.shape[-2:]) < LEAST_SIZE:
            return None
        clips = [some(subject.frames)]
        if needs_reference:
            assert subject.reference is not None
            clips.append(some(subject.reference))
        return _mean(metric, clips)

    return Measure(
        name=name,
        label=_LABELS.get(name, name.upper()),
        better="lower" if metric.lower_better else "higher",
        compute=compute,
        needs="reference" if needs_reference else "",
        variant=variant,
    )


def _mean(metric: Callable[..., Tensor], clips: Sequence[Tensor]) -> float:
    """Mean over frames of a metric that takes pictures ``(1, 3, H, W)`` in [0, 1]."""
    values = []
    with torch.no_grad():
        for frames in zip(*clips, strict=True):
            # pyiqa refuses values outside, which a file could not hold either.
            pictures = [((frame[None].float() + 1) / 2).clamp(0, 1) for frame in frames]
            values.append(metric(*pictures).item())
    return sum(values) / len(values)
