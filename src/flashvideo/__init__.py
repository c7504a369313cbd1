"""Two-stage text-to-video generation and video enhancement.

The names below are the public interface. They are imported when they are first used, so that `import flashvideo` and
the command's `--help` do not wait for torch.

>>> import flashvideo
>>> flashvideo.PRESETS["nano"].stage2.num_inference_steps
4
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flashvideo.degradations.latent import degrade_latents
    from flashvideo.models.transformer import FlashVideoTransformer3DModel
    from flashvideo.pipelines.loading import load_pipeline
    from flashvideo.pipelines.sizes import named_size
    from flashvideo.pipelines.stage1 import FlashVideoStage1Pipeline
    from flashvideo.pipelines.stage2 import FlashVideoEnhancePipeline
    from flashvideo.pipelines.two_stage import FlashVideoPipeline
    from flashvideo.presets import PRESETS, Preset
    from flashvideo.schedule import FlashVideoScheduler
    from flashvideo.video import read_video, write_video

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "FlashVideoEnhancePipeline",
    "FlashVideoPipeline",
    "FlashVideoScheduler",
    "FlashVideoStage1Pipeline",
    "FlashVideoTransformer3DModel",
    "Preset",
    "__version__",
    "degrade_latents",
    "load_pipeline",
    "named_size",
    "read_video",
    "write_video",
]

_HOME_OF = {
    "PRESETS": "flashvideo.presets",
    "FlashVideoEnhancePipeline": "flashvideo.pipelines.stage2",
    "FlashVideoPipeline": "flashvideo.pipelines.two_stage",
    "FlashVideoScheduler": "flashvideo.schedule",
    "FlashVideoStage1Pipeline": "flashvideo.pipelines.stage1",
    "FlashVideoTransformer3DModel": "flashvideo.models.transformer",
    "Preset": "flashvideo.presets",
    "degrade_latents": "flashvideo.degradations.latent",
    "load_pipeline": "flashvideo.pipelines.loading",
    "named_size": "flashvideo.pipelines.sizes",
    "read_video": "flashvideo.video",
    "write_video": "flashvideo.video",
}


def __getattr__(name: str) -> object:
    """Imports a public name from the module that defines it."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
