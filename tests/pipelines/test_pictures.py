"""The picture of previews and finals, on the toy pipeline."""

import numpy as np
import pytest
from PIL import Image

from flashvideo.evaluation import pictures
from flashvideo.video import resize_video, to_uint8


def test_each_prompt_has_a_column_with_its_preview_above_and_its_final_below(pipeline, monkeypatch, tmp_path):
    monkeypatch.setattr(pictures, "load_pipeline", lambda model: pipeline)
    output = tmp_path / "frames.png"
    monkeypatch.setattr(
        "sys.argv", ["pictures", "a red ball", "a star", "--output", str(output), "--width", "30"]
    )
    pictures.main()
    height = round(30 * pipeline.preset.stage2.height / pipeline.preset.stage2.width)
    with Image.open(output) as image:
        assert image.size == (60, 2 * height)
        levels = np.asarray(image).reshape(2, height, 2, 30, 3)
    for column, prompt in enumerate(("a red ball", "a star")):
        for row, frame in enumerate(pictures.preview_and_final(pipeline, prompt)):
            expected = to_uint8(resize_video(frame[None], height, 30))[0].permute(1, 2, 0)
            assert np.abs(levels[row, :, column].astype(int) - expected.numpy()).max() <= 1


def test_a_picture_needs_a_prompt(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["pictures", "--output", str(tmp_path / "frames.png")])
    with pytest.raises(SystemExit):
        pictures.main()
