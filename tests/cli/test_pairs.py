"""`flashvideo pairs`: samples of each prompt, scored by a measure or by one's own function, or videos of one's own."""

import json

import pytest
import torch
from transformers import T5EncoderModel

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


def test_pairs_of_ones_own_are_encoded_without_the_text_encoder(
    flashvideo, video_file, tmp_path, monkeypatch
):
    video_file("good.mp4")
    video_file("bad.mp4")
    table = tmp_path / "pairs.csv"
    table.write_text("prompt,better,worse\na red circle moves left,good.mp4,bad.mp4\n")
    loaded = []
    monkeypatch.setattr(T5EncoderModel, "from_pretrained", lambda *_, **__: loaded.append(1))
    outcome = flashvideo("pairs", "--table", table, "-o", tmp_path / "pairs", "--json")
    assert outcome.code == 0 and not loaded, outcome.err
    assert json.loads(outcome.out)["pairs"] == 1
    (path,) = (tmp_path / "pairs").glob("*.safetensors")
    assert read_candidates(path).scores == (1.0, 0.0)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--table", "t.csv", "--prompts", "p.txt"), "--prompts is for samples, and --table has videos"),
        (("--table", "t.csv", "--scorer", "niqe"), "--scorer is for samples"),
        (("--table", "t.csv", "--candidates", 3), "--candidates is for samples"),
        (("--table", "t.csv", "--seed", 3), "--seed is for samples"),
        (
            ("--scorer", "niqe"),
            "--prompts is missing; give --prompts and --scorer, or pairs of your own by --table",
        ),
        (("--prompts", "p.txt"), "--scorer is missing"),
    ],
)
def test_samples_and_a_table_exclude_one_another(flashvideo, refusal, tmp_path, words, sentence):
    assert sentence in refusal(lambda *w: flashvideo("pairs", *w), "-o", tmp_path / "pairs", *words, code=2)


def test_a_table_that_is_not_there_is_one_sentence(flashvideo, refusal, tmp_path):
    words = ("--table", tmp_path / "t.csv", "-o", tmp_path / "pairs")
    assert "t.csv does not exist" in refusal(lambda *w: flashvideo("pairs", *w), *words)
