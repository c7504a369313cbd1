"""`flashvideo sweep`."""

import json

import pytest

from flashvideo.cli import main

PROMPT = "a red circle moves left"


@pytest.fixture
def sweep(flashvideo):
    """`sweep(*words)` runs the command with the toy model and a few quick measures."""

    def run(*words):
        return flashvideo("sweep", *words, "--measures", "psnr,fidelity,flicker,gradient_energy")

    return run


def runs_of(folder):
    return [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]


def test_a_grid_over_scenes_is_scored_against_the_rendered_truth(sweep, tmp_path):
    outcome = sweep("--scenes", 2, "--detail-steps", "1,2", "--seed", "0,1", "-o", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    runs = runs_of(tmp_path / "out")
    assert len(runs) == 2 * 2 * 2
    assert {run["setting"]["detail_steps"] for run in runs} == {1, 2}
    assert set(runs[0]["scores"]) == {"psnr", "fidelity", "flicker", "gradient_energy"}
    print(outcome.out); print((tmp_path / "out" / "summary.md").read_text()); print(json.dumps(runs[0]))
