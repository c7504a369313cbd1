"""Plots of training curves."""

import sys
from pathlib import Path

import pytest
from PIL import Image

from flashvideo.evaluation.plots import main


def test_a_curve_becomes_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    curve = tmp_path / "curve.csv"
    curve.write_text("step,minutes,loss,shape\n20,1,0.5,\n40,2,0.4,0.75\n")
    output = tmp_path / "images"
    monkeypatch.setattr(sys, "argv", ["plots", "--curve", f"s1={curve}", "--output", str(output)])
    main()
    with Image.open(output / "curve_s1.png") as image:
        assert image.width > 300
