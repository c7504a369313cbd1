"""Plots: which values are drawn, and that pictures come out of the suite's file and of a curve."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from flashvideo.evaluation.plots import PANELS, main, sweep_series

ENTRY = {"mean": 2.0, "low": 1.0, "high": 3.0, "count": 4}


def test_a_series_is_in_order_of_the_swept_value() -> None:
    summary = {"10_psnr": ENTRY, "2_psnr": ENTRY | {"mean": 1.5}, "2_edge_psnr": ENTRY}
    assert sweep_series(summary, "psnr") == [(2.0, 1.5, 1.0, 3.0), (10.0, 2.0, 1.0, 3.0)]


def test_pictures_of_sweeps_and_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    steps = {f"{n}_{panel}": ENTRY for n in (1, 4) for panel in PANELS}
    guidance = {f"{g}_{name}": ENTRY for g in (1, 4) for name in ("color", "all")} | {"seconds": ENTRY}
    figures = tmp_path / "figures.json"
    figures.write_text(
        json.dumps(
            {
                "summary": {
                    "steps": steps,
                    "guidance": guidance,
                    "preview_steps": guidance,
                    "vae": {"world_psnr": ENTRY},
                }
            }
        )
    )
    curve = tmp_path / "curve.csv"
    curve.write_text("step,minutes,loss,shape\n20,1,0.5,\n40,2,0.4,0.75\n")
    output = tmp_path / "images"
    monkeypatch.setattr(
        sys, "argv", ["plots", "--figures", str(figures), "--curve", f"s1={curve}", "--output", str(output)]
    )
    main()
    assert sorted(p.name for p in output.iterdir()) == [
        "curve_s1.png",
        "guidance.png",
        "preview_steps.png",
        "steps.png",
    ]
    for path in output.iterdir():
        with Image.open(path) as image:
            assert image.width > 300
