"""The measurement of phases, on a toy model: every phase is seen, with its calls."""

import pytest
import torch

from flashvideo.evaluation.phases import measure, random_pipeline
from flashvideo.pipelines.footprint import ModelConfigs
from flashvideo.pipelines.memory import PHASES


@pytest.mark.parametrize("weights", ["full", "fp8"])
def test_every_phase_of_a_run_is_planned_and_measured(pipeline, weights):
    built = random_pipeline(ModelConfigs.of(pipeline), torch.float32)
    built.set_progress_bar_config(disable=True)
    built.enable_memory_plans("cpu", weights=weights)
    taken = measure(built, (32, 48), 5)
    assert list(taken) == list(PHASES)
    assert {phase: figures.calls for phase, figures in taken.items()} == {
        "text": 1,
        "stage1": 2,
        "stage1_decode": 1,
        "stage2_encode": 1,
        "stage2": 2,
        "stage2_decode": 1,
    }
    assert all(figures.seconds > 0 for figures in taken.values())
    assert [figures.planned.phase for figures in taken.values()] == list(PHASES)
