"""The picture of previews and finals, on the toy pipeline."""

import pytest
from PIL import Image

from flashvideo.evaluation import pictures


def test_each_prompt_has_a_column_with_its_preview_above_and_its_final_below(pipeline, monkeypatch, tmp_path):
    monkeypatch.setattr(pictures, "load_pipeline", lambda model: pipeline)
    output = tmp_path / "frames.png"
    monkeypatch.setattr(
        "sys.argv", ["pictures", "a red ball", "a star", "--output", str(output), "--width", "30"]
    )
    pictures.main()
    preset = pipeline.preset.stage2
    with Image.open(output) as image:
        assert image.size == (60, 2 * round(30 * preset.height / preset.width))


def test_a_picture_needs_a_prompt(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["pictures", "--output", str(tmp_path / "frames.png")])
    with pytest.raises(SystemExit):
        pictures.main()
