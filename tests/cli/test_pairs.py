"""`flashvideo pairs`: samples of each prompt, scored by a measure or by one's own function."""

import json

import pytest
import torch

from flashvideo.cli.pairs import load_scorer
from flashvideo.training.pairs import read_candidates


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a red circle moves left\nred\n")
    return path


def test_each_prompt_gets_its_candidates_and_their_scores(flashvideo, prompts, tmp_path, monkeypatch):
    (tmp_path / "own_scorer.py").write_text(
        "def score(frames, prompt):\n    return frames.mean() + len(prompt)\n"
    )
    (tmp_path / "length.py").write_text("def score(frames, prompt):\n    return len(prompt)\n")
    monkeypatch.syspath_prepend(tmp_path)
    output = tmp_path / "candidates"
    words = ("--prompts", prompts, "--scorer", "own_scorer:score", "--candidates", 2, "-o", output, "--json")
    outcome = flashvideo("pairs", *words)
    assert outcome.code == 0, outcome.err
    data = json.loads(outcome.out)
    assert (data["prompts"], data["pairs"]) == (2, 2)
    first, second = (read_candidates(path) for path in sorted(output.glob("*.safetensors")))
    assert (first.prompt, second.prompt) == ("a red circle moves left", "red")
    refused = flashvideo("pairs", *("length:score" if w == "own_scorer:score" else w for w in words))
    assert (
        refused.code == 1 and "holds candidates of another scorer, own_scorer:score instead of" in refused.out
    )
    assert first.scores == pytest.approx([23, 23], abs=1) and second.scores == pytest.approx([3, 3], abs=1)


def test_a_measure_scores_higher_for_better():
    frames = torch.zeros(5, 3, 96, 96)
    noise = 0.5 * torch.randn(5, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    still, flickering = (load_scorer("flicker")(f.clamp(-1, 1), "a ball") for f in (frames, noise))
    assert still > flickering  # of flicker less is better


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("psnr", "scorer must be one of"),
        ("nowhere:score", "importable module:function, got 'nowhere:score'"),
        ("math:best", "importable module:function, got 'math:best'"),
    ],
)
def test_a_scorer_that_cannot_be_had_is_one_sentence(flashvideo, refusal, prompts, tmp_path, name, sentence):
    words = ("--prompts", prompts, "--scorer", name, "-o", tmp_path / "candidates")
    assert sentence in refusal(lambda *w: flashvideo("pairs", *w), *words)


def test_a_measure_that_says_nothing_of_a_clip_is_an_error():
    with pytest.raises(ValueError, match="says nothing of a clip of 1 frames"):
        load_scorer("flicker")(torch.zeros(1, 3, 16, 16), "a ball")
