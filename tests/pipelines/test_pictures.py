"""The picture of previews and finals, on the toy pipeline."""

import numpy as np
import pytest
import torch
from PIL import Image

from flashvideo.data.dead_leaves import render_leaves
from flashvideo.evaluation import pictures
from flashvideo.evaluation.suite import FIRST_SEED
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


def test_dead_leaves_stand_between_bicubic_and_the_truth(pipeline, monkeypatch, tmp_path):
    monkeypatch.setattr(pictures, "load_pipeline", lambda model: pipeline)
    output = tmp_path / "leaves.png"
    size = pipeline.preset.stage2.height, pipeline.preset.stage2.width
    words = ["pictures", "--leaves", "3", "7", "--output", str(output), "--width", str(size[1])]
    monkeypatch.setattr("sys.argv", words)
    pictures.main()
    with Image.open(output) as image:
        levels = np.asarray(image).reshape(2, size[0], 3, size[1], 3)
    for row, index in enumerate((3, 7)):
        truth = torch.from_numpy(render_leaves(FIRST_SEED + index, height=size[0], width=size[1]))
        expected = to_uint8(truth[len(truth) // 2 :][:1])[0].permute(1, 2, 0)
        assert np.abs(levels[row, :, 2].astype(int) - expected.numpy()).max() <= 1
        assert not np.array_equal(levels[row, :, 0], levels[row, :, 1])


@pytest.mark.parametrize("words", [[], ["a red ball", "--leaves", "3"]])
def test_a_picture_is_of_prompts_or_of_leaves(words, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["pictures", *words, "--output", str(tmp_path / "frames.png")])
    with pytest.raises(SystemExit):
        pictures.main()
