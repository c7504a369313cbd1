"""The picture of the degradation's range."""

from pathlib import Path

import numpy as np
import pytest
import torch

from flashvideo.degradations.sheet import main, sheet


def test_every_cell_shows_something_else() -> None:
    clips = torch.rand(2, 6, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    clips = torch.nn.functional.interpolate(clips.flatten(0, 1), size=(48, 52)).unflatten(0, (2, 6))
    picture = np.asarray(sheet(*clips, cell=40))
    cells = picture.reshape(8, picture.shape[0] // 8, 6, picture.shape[1] // 6, 3)[:, 15:-2, :, :-2]
    flat = cells.transpose(0, 2, 1, 3, 4).reshape(48, -1)
    assert flat.std(axis=1).min() > 5
    assert len(np.unique(flat, axis=0)) == 48


def test_a_picture_of_another_kind_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--output", str(tmp_path / "sheet.png")])
    assert "--output must end in .jpg" in capsys.readouterr().err
