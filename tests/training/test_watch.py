"""What Stage II is watched by: figures of known results, one score, and warnings of collapse."""

import pytest
import torch

from flashvideo.training.watch import WATCHED_STEPS, collapse_warnings, score, watch
from flashvideo.video import resize_video

GOOD = {
    "steps1_bank": 0.5,
    "steps4_bank": 0.4,
    "bicubic_bank": 0.8,
    "steps4_energy": 0.9,
    "floor_energy": 0.2,
    "steps4_fidelity": 35.0,
}


@pytest.fixture
def truth(generator):
    return torch.rand(1, 3, 32, 64, generator=generator) * 1.6 - 0.8


def test_results_are_compared_with_the_truth_by_their_number_of_steps(truth, tmp_path):
    seen = []

    def enhance(low, caption, steps):
        seen.append((low.shape[-2:], caption))
        # More steps come nearer to the truth from the bilinear enlargement.
        flat = resize_video(low, 32, 64)
        return [flat + (truth - flat) * (1 - 0.5**n) for n in steps]

    values = watch([(truth, "a red ball")], enhance, scale=4, sheet=tmp_path / "sheet.png")
    assert seen == [((8, 16), "a red ball")] and (tmp_path / "sheet.png").exists()
    for figure, rises in (("gain", True), ("bank", False), ("energy", True), ("fidelity", None)):
        of_steps = [values[f"steps{n}_{figure}"] for n in WATCHED_STEPS]
        assert rises is None or of_steps == sorted(of_steps, reverse=not rises)
    # An error halved as often as there are steps: 6.02 dB each.
    assert values["steps4_gain"] - values["steps2_gain"] == pytest.approx(2 * 6.0206, abs=1e-3)
    assert values["floor_energy"] < values["steps1_energy"] < 1


def test_the_score_is_the_distance_gained_on_bicubic_less_what_fidelity_lacks():
    assert score(GOOD) == pytest.approx(0.4)
    assert score(GOOD | {"steps4_bank": 0.9}) == pytest.approx(-0.1)
    assert score(GOOD | {"steps4_fidelity": 21.0}) == pytest.approx(0.4 - 0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps4_energy": 0.1}, "less detail than a bilinear enlargement, 0.1 of the truth's against 0.2"),
        ({"steps4_energy": 1.6}, "1.6 times the truth's detail, more than 1.5"),
        ({"steps4_fidelity": 31.9}, "31.9 dB of their input, 3.1 dB below the best"),
        ({"steps4_bank": 0.51}, "four steps are farther from the truth than one, 0.51 against 0.5"),
    ],
)
def test_each_kind_of_collapse_is_told(changes, message):
    assert collapse_warnings(GOOD, [GOOD]) == []
    (warning,) = collapse_warnings(GOOD | changes, [GOOD | {"steps4_fidelity": 30.0}, GOOD])
    assert message in warning
