"""Pairs of a better and a worse video of one's own, encoded for preference alignment."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from flashvideo.pipelines.two_stage import FlashVideoPipeline
from flashvideo.training import own_pairs, pairs
from flashvideo.training.loop import train
from flashvideo.training.own_pairs import encode_own_pairs, read_own_pairs
from flashvideo.training.pairs import make_candidates, read_candidates
from flashvideo.training.preference import PreferenceTask
from flashvideo.training.recipes import PreferencePhase, PreferenceRecipe
from flashvideo.vae import encode_pixels
from flashvideo.video import read_video, resize_video, save_image, to_uint8, write_video

CPU = torch.device("cpu")
SIZES = {"stage1": (16, 24), "stage2": (32, 48)}
BFLOAT16 = {"rtol": 1e-2, "atol": 2e-2}


@pytest.fixture
def pipeline(toy_pipeline) -> FlashVideoPipeline:
    made: FlashVideoPipeline = toy_pipeline(
        ["a", "red", "blue", "ball"],
        stage1={"num_frames": 9, "latent_scale": 0.7},
        stage2={"latent_scale": 1.3},
    )
    made.set_progress_bar_config(disable=True)
    return made


def _frames(seed: int, count: int, size: tuple[int, int]) -> torch.Tensor:
    coarse = torch.rand(count, 3, 4, 6, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return resize_video(coarse, *size)


def _file(
    folder: Path, name: str, size: tuple[int, int], *, seed: int = 0, count: int = 5, rate: int = 8
) -> str:
    """Writes a picture or a video, by the name's suffix."""
    frames = _frames(seed, count, size)
    if name.endswith(".png"):
        save_image(folder / name, frames[0])
    else:
        write_video(folder / name, frames, frame_rate=rate)
    return name


def _rows(folder: Path, stage: str, count: int = 3, suffix: str = "mp4") -> list[dict[str, str]]:
    rows = []
    for i in range(count):
        row = {"prompt": f"a {('red', 'blue')[i % 2]} ball"}
        row |= {
            name: _file(folder, f"{name}{i}.{suffix}", SIZES[stage], seed=2 * i + place)
            for place, name in enumerate(("better", "worse"))
        }
        rows.append(row)
        if stage == "stage2":
            row["low"] = _file(folder, f"low{i}.{suffix}", SIZES["stage1"], seed=2 * i)
    return rows


def _table(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_videos_of_ones_own_become_pairs_that_are_trained_on(
    pipeline: FlashVideoPipeline, tmp_path: Path, stage: str
) -> None:
    found = read_own_pairs(_table(tmp_path, _rows(tmp_path, stage)), stage=stage)
    files = encode_own_pairs(pipeline, found, tmp_path / "pairs", stage=stage)
    first = read_candidates(files[0])
    assert (first.prompt, first.scores) == ("a red ball", (1.0, 0.0))
    scale = getattr(pipeline.preset, stage).latent_scale
    for latents, name in zip(first.latents, ("better0", "worse0"), strict=True):
        pixels = read_video(tmp_path / f"{name}.mp4").frames[None]
        torch.testing.assert_close(latents, encode_pixels(pipeline.vae, pixels, scale=scale)[0], **BFLOAT16)
    pipeline.save_pretrained(tmp_path / "model")
    recipe = PreferenceRecipe(
        task="preference",
        stage=stage,
        start=str(tmp_path / "model"),
        pairs=str(tmp_path / "pairs"),
        output=str(tmp_path / "run"),
        phases=(PreferencePhase(steps=1, batch=2, frames=5, learning_rate=1e-3),),
        workers=0,
    )
    train(PreferenceTask(recipe, CPU), recipe, recipe.phases)
    assert (tmp_path / "run" / f"{stage}_transformer").is_dir()


def test_what_both_were_enlarged_from_is_encoded_as_that_of_a_models_own_samples(
    pipeline: FlashVideoPipeline, tmp_path: Path
) -> None:
    (row,) = _rows(tmp_path, "stage2", 1, "png")
    low = to_uint8(_frames(9, 1, (16, 24))).float() / 127.5 - 1
    save_image(tmp_path / row["low"], low[0])
    (path,) = encode_own_pairs(
        pipeline, read_own_pairs(_table(tmp_path, [row]), stage="stage2"), tmp_path / "pairs", stage="stage2"
    )
    expected = pairs._encode_low(pipeline, low[None], (32, 48))
    torch.testing.assert_close(read_candidates(path).low, expected[0], **BFLOAT16)


def test_frames_cover_the_stages_size_and_the_middle_is_kept(
    pipeline: FlashVideoPipeline, tmp_path: Path
) -> None:
    (row,) = _rows(tmp_path, "stage1", 1, "png")
    frames = _frames(5, 1, (20, 24))
    save_image(tmp_path / row["better"], frames[0])
    (path,) = encode_own_pairs(pipeline, read_own_pairs(_table(tmp_path, [row])), tmp_path / "pairs")
    middle = to_uint8(frames[..., 2:18, :]).float()[None] / 127.5 - 1
    expected = encode_pixels(pipeline.vae, middle, scale=pipeline.preset.stage1.latent_scale)
    torch.testing.assert_close(read_candidates(path).latents[0], expected[0], **BFLOAT16)


def test_what_was_enlarged_and_cut_to_size_keeps_its_place_over_the_low_one(
    pipeline: FlashVideoPipeline, tmp_path: Path
) -> None:
    (row,) = _rows(tmp_path, "stage2", 1, "png")
    # For 36x48 the preview is 24x24 (multiples of 8), which enlarged is 48x48: six rows are cut off on either side.
    low = to_uint8(_frames(3, 1, (24, 24))).float() / 127.5 - 1
    save_image(tmp_path / row["low"], low[0])
    for name in ("better", "worse"):
        _file(tmp_path, row[name], (36, 48))
    (path,) = encode_own_pairs(
        pipeline, read_own_pairs(_table(tmp_path, [row]), stage="stage2"), tmp_path / "pairs", stage="stage2"
    )
    middle = resize_video(low, 48, 48)[..., 8:40, :]
    expected = encode_pixels(pipeline.vae, middle[None], scale=pipeline.preset.stage2.latent_scale)
    torch.testing.assert_close(read_candidates(path).low, expected[0], **BFLOAT16)


# At the model's rate they are 7 and 15 frames; it makes 9 at most.
@pytest.mark.parametrize(("count", "taken"), [(14, 5), (30, 9)])
def test_faster_videos_are_brought_to_the_models_rate_and_cut_to_what_the_vae_packs(
    pipeline: FlashVideoPipeline, tmp_path: Path, count: int, taken: int
) -> None:
    row = {"prompt": "a ball"}
    for seed, name in enumerate(("better", "worse")):
        row[name] = _file(tmp_path, f"{name}.mp4", (16, 24), seed=seed, count=count, rate=16)
    (path,) = encode_own_pairs(pipeline, read_own_pairs(_table(tmp_path, [row])), tmp_path / "pairs")
    pixels = read_video(tmp_path / "better.mp4").frames[: 2 * taken : 2]
    expected = encode_pixels(pipeline.vae, pixels[None], scale=pipeline.preset.stage1.latent_scale)
    torch.testing.assert_close(read_candidates(path).latents[0], expected[0], **BFLOAT16)


def test_an_interrupted_encoding_goes_on_and_changed_videos_or_other_candidates_are_refused(
    pipeline: FlashVideoPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, output = _rows(tmp_path, "stage1", 3, "png"), tmp_path / "pairs"
    found = read_own_pairs(_table(tmp_path, rows))
    encode, calls = own_pairs._encode, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(*arguments)

    monkeypatch.setattr(own_pairs, "_encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encode_own_pairs(pipeline, found, output)
    assert sorted(path.name for path in output.iterdir()) == ["000000.safetensors", "candidates.json"]
    killed = output / "000001.safetensors.7-0123abcd.part"
    killed.touch()
    assert len(encode_own_pairs(pipeline, found, output)) == 3 and len(calls) == 4
    assert not killed.exists()
    with pytest.raises(ValueError, match="beyond the 2 prompts"):
        encode_own_pairs(pipeline, found[:2], output)
    with pytest.raises(ValueError, match="candidates of another origin, files instead of samples"):
        make_candidates(pipeline, ["a ball"], lambda *_: 0.0, output)
    _file(tmp_path, rows[1]["worse"], (16, 24), seed=77)
    with pytest.raises(
        ValueError, match=r"000001.safetensors was made from other videos than those of its row"
    ):
        encode_own_pairs(pipeline, found, output)


def test_a_table_may_be_csv_or_parquet(tmp_path: Path) -> None:
    (row,) = _rows(tmp_path, "stage1", 1, "png")
    (expected,) = read_own_pairs(_table(tmp_path, [row]))
    (tmp_path / "pairs.csv").write_text("better,note,worse,prompt\nbetter0.png,x,worse0.png,a red ball\n")
    (found,) = read_own_pairs(tmp_path / "pairs.csv")
    assert (found.prompt, found.videos) == (expected.prompt, expected.videos)
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {name: [value] for name, value in row.items()}
    parquet.write_table(sys.modules["pyarrow"].table(columns), tmp_path / "pairs.parquet")
    (found,) = read_own_pairs(tmp_path / "pairs.parquet")
    assert (found.prompt, found.videos) == (expected.prompt, expected.videos)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.txt", "", r"must be a .csv, .jsonl, .parquet file, got .*t.txt"),
        ("t.csv", "prompt,better\n", "must have a column 'worse', got the columns prompt, better"),
        ("t.csv", "prompt,better,worse\n", "must have at least one pair, got none"),
        ("t.csv", "prompt,better,worse\n ,t.csv,t.csv\n", "row 1 of .* must have text as prompt, got ' '"),
        ("t.csv", "prompt,better,worse\na,t.csv\n", "row 1 of .* must have text as worse, got None"),
        (
            "t.csv",
            "prompt,better,worse\na,t.csv,x.mp4\n",
            "must name a file as worse, got .*x.mp4, which is not",
        ),
        (
            "t.csv",
            "prompt,better,worse\na,t.csv,t.csv\n",
            "must name two files as better and worse, got .*twice",
        ),
        ("t.jsonl", '{"prompt": "a", "better": 1, "worse": "b"}\n', "must have text as better, got 1"),
    ],
)
def test_a_table_that_is_not_right_is_one_sentence(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_own_pairs(tmp_path / name)


def test_a_pair_for_stage_2_needs_what_it_was_enlarged_from(tmp_path: Path) -> None:
    table = _table(tmp_path, _rows(tmp_path, "stage1", 1, "png"))
    with pytest.raises(
        ValueError, match=r"must have a column 'low', .* the small video that both were enlarged"
    ):
        read_own_pairs(table, stage="stage2")


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        ("stage1", {"worse": ("w.mp4", (16, 24), 9)}, "one number of frames, got 5 as better and 9 as worse"),
        (
            "stage1",
            {"worse": ("w.mp4", (12, 24), 5)},
            "that cover 24x16, which stage1 makes, got 24x12 as worse",
        ),
        ("stage2", {"worse": ("w.mp4", (40, 48), 5)}, "better and worse of one size .* 48x40 as worse"),
        ("stage2", {"low": ("l.mp4", (36, 48), 5)}, "low no larger, got .* 48x36 as low"),
        ("stage2", {"low": ("l.mp4", (24, 8), 5)}, "must have low of its videos' shape"),
        ("stage2", {"low": ("l.mp4", (16, 24), 1)}, "got 5 as better and 1 as low"),
    ],
)
def test_videos_that_do_not_go_together_are_one_sentence(
    pipeline: FlashVideoPipeline, tmp_path: Path, stage: str, changes: dict[str, Any], message: str
) -> None:
    (row,) = _rows(tmp_path, stage, 1)
    for role, (name, size, count) in changes.items():
        row[role] = _file(tmp_path, name, size, count=count)
    found = read_own_pairs(_table(tmp_path, [row]), stage=stage)
    with pytest.raises(ValueError, match=message) as caught:
        encode_own_pairs(pipeline, found, tmp_path / "pairs", stage=stage)
    assert "\n" not in str(caught.value) and not (tmp_path / "pairs").exists()


def test_pairs_of_several_lengths_and_broken_files_are_one_sentence(
    pipeline: FlashVideoPipeline, tmp_path: Path
) -> None:
    rows = [*_rows(tmp_path, "stage1", 1, "png"), *_rows(tmp_path, "stage1", 1, "mp4")]
    with pytest.raises(ValueError, match=r"of one length, got 1 frames in row 1 of .* and 5 in row 2"):
        encode_own_pairs(pipeline, read_own_pairs(_table(tmp_path, rows)), tmp_path / "pairs")
    for broken in (rows[0]["worse"], rows[1]["worse"]):
        (tmp_path / broken).write_bytes(b"nothing")
        row = next(row for row in rows if row["worse"] == broken)
        with pytest.raises(ValueError, match=f"{broken}.* (cannot be read|is not a video)"):
            encode_own_pairs(pipeline, read_own_pairs(_table(tmp_path, [row])), tmp_path / "pairs")
