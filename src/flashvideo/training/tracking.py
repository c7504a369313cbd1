"""TensorBoard and Weights & Biases beside the curve's file, through accelerate's trackers."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from PIL import Image

from flashvideo.training.config import Recipe

PROJECT = "flashvideo"


def check_trackers(recipe: Recipe) -> None:
    """Refuse trackers whose package is missing.

    Raises:
        ImportError: if one is.
    """
    for name in recipe.trackers:
        if importlib.util.find_spec(name) is None:
            raise ImportError(
                f"trackers: {name} needs the package {name}, which is missing; pip install 'flashvideo[track]'"
            )


class Tracking:
    """Figures and pictures for the recipe's trackers; without any it does nothing.

    Args:
        accelerator: whose main process logs.
        output: of the run; TensorBoard's files go into its folder `trackers`.
        settings: the recipe as text.
    """

    def __init__(self, accelerator: Accelerator, output: Path, settings: str) -> None:
        self.accelerator = accelerator
        if accelerator.log_with:
            accelerator.init_trackers(
                PROJECT,
                config={"recipe": settings},
                init_kwargs={"wandb": {"name": output.name, "dir": str(output)}},
            )

    def figures(self, row: Mapping[str, object], step: int, *, kind: str) -> None:
        """Log the numbers of a row of the curve.

        Args:
            row: the row.
            step: of the run.
            kind: "train" or "validation", what their names begin with.
        """
        if self.accelerator.trackers:
            values = {f"{kind}/{k}": v for k, v in row.items() if isinstance(v, int | float) and k != "step"}
            self.accelerator.log(values, step=step)

    def pictures(self, paths: Sequence[Path], step: int) -> None:
        """Log a validation's pictures, by their files' names."""
        paths = [path for path in paths if path.suffix in (".png", ".jpg", ".webp")]
        if not self.accelerator.trackers or not paths:
            return
        images = {
            f"validation/{p.stem}": np.asarray(Image.open(p).convert("RGB"))[None] for p in paths
        }  # (1, H, W, 3)
        for tracker in self.accelerator.trackers:
            options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images(images, step=step, **options)
