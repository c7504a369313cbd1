"""README's Python runs as printed; a toy model stands in for nano so that it takes a moment."""

import re
from pathlib import Path

import flashvideo
from flashvideo import read_video

README = Path(__file__).parents[2] / "README.md"


def test_the_python_in_readme_writes_a_video_of_the_models_size(pipeline, monkeypatch, tmp_path):
    (block,) = re.findall(
        r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    monkeypatch.setattr(flashvideo, "load_pipeline", {"nano": pipeline}.__getitem__)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    video = read_video("star.mp4")
    preset = pipeline.preset
    assert video.frames.shape == (preset.stage1.num_frames, 3, preset.stage2.height, preset.stage2.width)
