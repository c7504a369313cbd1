"""Latents and text embeddings computed once: what is stored, how training reads it, and that stale ones are refused."""

import dataclasses
import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import AutoencoderKLCogVideoX
from safetensors.torch import load_file
from torch.utils.data import default_collate
from transformers import T5Config, T5EncoderModel

from flashvideo.cli import main
from flashvideo.data.clips.entries import ClipEntry
from flashvideo.data.clips.sources import ClipSource
from flashvideo.models.transformer import FlashVideoTransformer3DModel
from flashvideo.text import build_word_tokenizer
from flashvideo.training import precompute as making
from flashvideo.training import precomputed as reading
from flashvideo.training import precomputed_description as description
from flashvideo.training.clip_data import ClipData, is_held_out
from flashvideo.training.draws import Draws
from flashvideo.training.dry_run import dry_run
from flashvideo.training.first_batch import first_batch
from flashvideo.training.model_configs import recipe_configs
from flashvideo.training.precompute import Extent, Outcome, precompute
from flashvideo.training.precomputed import StepLatents, shard_header
from flashvideo.training.recipes import Stage1Phase, Stage1Recipe, Stage2Phase, Stage2Recipe
from flashvideo.training.stage1 import Stage1Task
from flashvideo.training.stage2 import Stage2Task
from flashvideo.training.step_memory import Estimate
from flashvideo.training.stopping import Interrupted

TINY_TRANSFORMER = {
    "num_attention_heads": 1,
    "attention_head_dim": 16,
    "in_channels": 8,
    "out_channels": 8,
    "time_embed_dim": 8,
    "text_embed_dim": 12,
    "num_layers": 1,
    "patch_size": 2,
    "max_text_seq_length": 8,
}
CPU = torch.device("cpu")
SMALL = Extent(versions=2, shard_bytes=6000)
HELD_OUT = 0.4


@pytest.fixture(scope="module")
def folder(clip_folder) -> Path:
    """Six videos of 9 frames, one of them broken, and two pictures, all 32x48."""
    words = ("a red circle", "moves left", "")
    return clip_folder([*words, *words[:2], words[0]])


@pytest.fixture(scope="module")
def start(tmp_path_factory, tiny_vae_config) -> Path:
    """Parts of both stages, as runs leave them."""
    folder = tmp_path_factory.mktemp("start")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoencoderKLCogVideoX(**tiny_vae_config).save_pretrained(folder / "vae")
        T5EncoderModel(
            T5Config(vocab_size=16, d_model=12, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
        ).save_pretrained(folder / "text_encoder")
        for stage in (1, 2):
            own = {"noise_step_embed": stage == 2, "num_frames_embed": stage == 2}
            FlashVideoTransformer3DModel(**TINY_TRANSFORMER | own).save_pretrained(
                folder / f"stage{stage}_transformer"
            )
    words = ["a", "red", "circle", "moves", "left", "slow", ","]
    build_word_tokenizer(words).save_pretrained(folder / "tokenizer")
    return folder


@pytest.fixture(scope="module")
def stage2(folder, start) -> Stage2Recipe:
    phase = Stage2Phase(
        steps=2,
        batch=2,
        frames=5,
        learning_rate=1e-3,
        lengths=(1, 5),
        crops=((16, 24),),
        strong=0.2,
        noise_steps=(0, 0),
    )
    return Stage2Recipe(
        task="stage2",
        output=str(folder.parent / "run2"),
        start=str(start),
        data=ClipData(sources=(ClipSource(path=str(folder)),), held_out=HELD_OUT),
        phases=(phase, dataclasses.replace(phase, learning_rate=1e-4)),
        size=(32, 48),
        prompt_prefix="slow,",
        watch_clips=1,
        workers=0,
        bf16=False,
    )


@pytest.fixture(scope="module")
def made(stage2, tmp_path_factory) -> tuple[Stage2Recipe, Outcome]:
    """The recipe with what was computed for it."""
    folder = tmp_path_factory.mktemp("computed") / "latents"
    outcome = precompute(stage2, folder, SMALL, CPU)
    return dataclasses.replace(stage2, precomputed=str(folder)), outcome


def _content(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.rglob("*.safetensors"))
    return {f"{f.parent.name}.{name}": tensor for f in files for name, tensor in load_file(f).items()}


def test_phases_that_are_alike_share_a_folder_and_prompts_are_encoded_once(made, folder):
    recipe, outcome = made
    latents = Path(recipe.precomputed)
    about = json.loads((latents / "precomputed.json").read_text())
    assert {phase["folder"] for phase in about["phases"].values()} == {"phase_1"}
    assert not (latents / "phase_2").exists() and outcome.missing == 0 and outcome.shards == outcome.made
    prompts = [json.loads(shard_header(path)["prompts"]) for path in sorted((latents / "text").iterdir())]
    kept = [path for path in folder.glob("*.mp4") if not is_held_out(path.name, HELD_OUT)]
    captions = {path.with_suffix(".txt").read_text() for path in kept} - {""}
    assert sorted(prompt for shard in prompts for prompt in shard) == sorted("slow," + c for c in captions)


def test_what_is_stored_is_what_training_would_have_computed(made):
    recipe, _ = made
    task = Stage2Task(dataclasses.replace(recipe, precomputed=""), CPU)
    stored = Stage2Task(recipe, CPU)
    dataset = stored.dataset(0, 2)
    assert isinstance(dataset, StepLatents)
    lengths = set()
    for step in range(4):
        batch = default_collate([dataset[step, place] for place in range(2)])
        lengths.add(batch[0].shape[2])
        z_hq, z_lq = stored._pair(batch[0], recipe.phases[0], None)
        for i in range(2):
            number = dataset.sampler.batch(step)[i] % len(dataset.clips)
            sample = dataset.clips[number]
            clean = task.pairs.encode(sample.pixels[None])
            assert torch.allclose(z_hq[i], clean[0], atol=1e-6)
            assert not torch.allclose(z_lq[i], clean[0], atol=1e-2)
            expected = task.encode_text([sample.caption])
            assert torch.allclose(batch[1][i], expected[0], atol=1e-6)
        loss, _ = stored.loss(batch, 0, Draws(0, step, range(2), 2))
        assert torch.isfinite(loss)
    assert lengths == {1, 2}


def test_each_version_is_a_degradation_of_its_own_and_says_whether_it_is_strong(made):
    folder = Path(made[0].precomputed) / "phase_1"
    for path in folder.iterdir():
        samples = json.loads(shard_header(path)["samples"])
        tensors = load_file(path)
        for number, about in samples.items():
            first, second = tensors[f"{number}.degraded"]
            assert len(about["strong"]) == 2 and not torch.equal(first, second)


def test_samples_are_a_function_of_step_and_place_and_leave_out_what_is_held_out(made):
    recipe, _ = made
    task = Stage2Task(recipe, CPU)
    once, again = task.dataset(0, 3), task.dataset(0, 3)
    steps = [(step, place) for step in range(6) for place in range(3)]
    drawn = {index: again[index] for index in reversed(steps)}
    assert all(torch.equal(once[index][0], drawn[index][0]) for index in steps)
    names = {once.clips.name(number % len(once.clips)) for s in range(20) for number in once.sampler.batch(s)}
    assert names == {
        once.clips.name(i) for i in range(len(once.clips)) if not is_held_out(once.clips.key(i), HELD_OUT)
    }


def test_two_parts_and_an_interruption_give_what_one_uninterrupted_process_gives(
    made, stage2, tmp_path, monkeypatch
):
    folder = tmp_path / "parts"
    original, calls = making._Maker.__call__, []

    def interrupted(maker, sample, number):
        calls.append(number)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(maker, sample, number)

    with monkeypatch.context() as patch:
        patch.setattr(making._Maker, "__call__", interrupted)
        with pytest.raises(Interrupted, match="the same command goes on"):
            precompute(stage2, folder, SMALL, CPU)
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert kept and not list(folder.rglob("*.part"))
    leftovers = [folder / "phase_1" / f"0000{n}.safetensors.1-abcd.part" for n in (2, 3)]
    for leftover in leftovers:
        leftover.touch()
    first = precompute(stage2, folder, dataclasses.replace(SMALL, part=(0, 2)), CPU)
    assert [leftover.exists() for leftover in leftovers] == [False, True]  # the other part may be at work
    assert first.missing > 0
    unfinished = dataclasses.replace(stage2, precomputed=str(folder))
    with pytest.raises(ValueError, match="run flashvideo precompute again to finish it"):
        Stage2Task(unfinished, CPU).dataset(0, 2)
    second = precompute(stage2, folder, dataclasses.replace(SMALL, part=(1, 2)), CPU)
    assert second.missing == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    ours, theirs = _content(folder), _content(Path(made[0].precomputed))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": 1}, "seed, 0 instead of 1"),
        ({"prompt_prefix": "fast,"}, "prompt_prefix, slow, instead of fast,"),
        ({"bf16": True}, "dtype"),
        ({"scale": 2, "size": (32, 48)}, "pixel degradation"),
    ],
)
def test_what_was_computed_for_another_recipe_is_refused_by_both(made, changes, told):
    recipe = dataclasses.replace(made[0], **changes)
    with pytest.raises(ValueError, match=f"holds what was computed for another recipe .*{told}"):
        precompute(recipe, Path(recipe.precomputed), SMALL, CPU)
    if "bf16" not in changes:  # a bf16 task trains on CPU likewise; one refusal is enough
        with pytest.raises(ValueError, match=f"computed for another recipe .*{told}"):
            Stage2Task(recipe, CPU).dataset(0, 2)


def test_another_vae_other_sizes_and_more_versions_are_refused(made, tmp_path, start):
    recipe = made[0]
    phase = dataclasses.replace(recipe.phases[0], crops=((24, 24),))
    other_size = dataclasses.replace(recipe, phases=(phase,))
    with pytest.raises(ValueError, match="phase 1: clips, or a size"):
        Stage2Task(other_size, CPU).dataset(0, 2)
    with pytest.raises(ValueError, match="number of versions, 2 instead of 3"):
        precompute(recipe, Path(recipe.precomputed), dataclasses.replace(SMALL, versions=3), CPU)
    task = Stage2Task(recipe, CPU)
    with torch.no_grad():
        next(task.vae.encoder.parameters()).add_(0.5)
    with pytest.raises(ValueError, match=r"another recipe \(VAE\)"):
        task.dataset(0, 2)


def test_captions_that_were_edited_afterwards_are_refused_and_moved_clips_are_not(stage1, folder, tmp_path):
    clips = tmp_path / "clips"
    shutil.copytree(folder, clips)
    data = ClipData(sources=(ClipSource(path=str(clips)),), held_out=HELD_OUT)
    recipe = dataclasses.replace(stage1, data=data, precomputed=str(tmp_path / "latents"))
    precompute(recipe, tmp_path / "latents", SMALL, CPU)
    clips.rename(tmp_path / "moved")
    moved = ClipData(sources=(ClipSource(path=str(tmp_path / "moved"), weight=2.0),), held_out=HELD_OUT)
    recipe = dataclasses.replace(recipe, data=moved)
    Stage1Task(recipe, CPU).dataset(0, 2)
    for path in (tmp_path / "moved").glob("*.txt"):
        path.write_text("left a circle")
    with pytest.raises(ValueError, match=r"computed for another recipe \(phase 1: captions\)"):
        Stage1Task(recipe, CPU).dataset(0, 2)
    with pytest.raises(ValueError, match=r"computed for another recipe \(phase 1: captions\)"):
        precompute(recipe, tmp_path / "latents", SMALL, CPU)


def test_without_a_text_encoder_prompts_are_no_text(stage2, start, tmp_path):
    wordless = tmp_path / "start"
    shutil.copytree(start, wordless, ignore=shutil.ignore_patterns("text_encoder", "tokenizer"))
    recipe = dataclasses.replace(stage2, start=str(wordless))
    precompute(recipe, tmp_path / "latents", dataclasses.replace(SMALL, versions=1), CPU)
    dataset = Stage2Task(dataclasses.replace(recipe, precomputed=str(tmp_path / "latents")), CPU).dataset(
        0, 2
    )
    text = torch.stack([dataset[step, place][1] for step in range(3) for place in range(2)])
    assert any(dataset._captions.values()) and torch.equal(text, torch.zeros(6, 8, 12))


def test_weights_are_hashed_once_for_all_phases(made, monkeypatch):
    hashed = []
    monkeypatch.setattr(description, "weights_fingerprint", lambda module, **_: hashed.append(module) or "")
    monkeypatch.setattr("flashvideo.training.precomputed.difference", lambda *_: "")
    task = Stage2Task(made[0], CPU)
    task.dataset(0, 2)
    count = len(hashed)
    task.dataset(1, 2)
    assert count == len(hashed) > 0


def test_captions_are_read_in_threads_and_once_for_all_phases(made, monkeypatch):
    read, original = [], ClipEntry.read_caption

    def count(entry):
        read.append((entry.name, threading.current_thread()))
        return original(entry)

    task = Stage2Task(made[0], CPU)
    monkeypatch.setattr(ClipEntry, "read_caption", count)
    task.dataset(0, 2)
    in_files = {name for name, thread in read if thread is not threading.main_thread()}
    assert in_files and all(name.endswith("mp4") for name in in_files)
    task.dataset(1, 2)
    assert all([name for name, _ in read].count(name) == 1 for name in in_files)


def test_a_dry_run_draws_what_is_stored(made, tmp_path):
    recipe, _ = made
    found = dry_run(recipe, CPU, output=tmp_path)
    assert found.picture is not None and [note for note in found.notes if "not checked" not in note] == []
    assert len(found.notes) == 1 and found.phases[0].samples == 5
    task = Stage2Task(recipe, CPU)
    dataset = task.dataset(0, 2)
    rows = first_batch(recipe, Estimate(recipe_configs(recipe), CPU), 2, dataset)
    for place, row in enumerate(rows):
        z_hq, z_lq = dataset[0, place][0]
        assert torch.allclose(z_hq, task.pairs.encode(row.pixels[None])[0], atol=1e-6)
        draws = reading.version_draws(recipe, *dataset.choose((0, place)), 2)
        assert torch.equal(
            row.degraded, task.pairs.degrade(row.pixels[None], recipe.phases[0], draws.each[0])[0]
        )
        noise = draws.normal(z_lq.shape)
        assert torch.allclose(z_lq, task.pairs.encode(row.degraded[None], noise=noise)[0], atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": 1}, "computed for another recipe (seed, 0 instead of 1)"),
        ({"precomputed": "nowhere"}, "must be a folder that flashvideo precompute made, got nowhere"),
    ],
)
def test_a_dry_run_tells_that_training_will_refuse_what_is_stored(made, tmp_path, changes, told):
    found = dry_run(dataclasses.replace(made[0], **changes), CPU, output=tmp_path)
    assert any(note.startswith("training will be refused: ") and told in note for note in found.notes)
    assert found.picture is None and found.phases[0].samples is not None


def test_a_folder_that_holds_nothing_is_refused(made, tmp_path):
    recipe = dataclasses.replace(made[0], precomputed=str(tmp_path))
    with pytest.raises(ValueError, match="must be a folder that flashvideo precompute made"):
        Stage2Task(recipe, CPU).dataset(0, 2)


@pytest.fixture
def stage1(stage2, start, tmp_path) -> Stage1Recipe:
    return Stage1Recipe(
        task="stage1",
        output=str(tmp_path / "run"),
        start=str(start),
        train_text=False,
        data=stage2.data,
        phases=(Stage1Phase(steps=2, batch=2, frames=5, learning_rate=1e-3),),
        size=(16, 24),
        workers=0,
        watch_clips=1,
        bf16=False,
    )


def test_corrupt_clips_are_left_out_and_listed(stage1, folder, tmp_path):
    clips = tmp_path / "clips"
    shutil.copytree(folder, clips)
    data = ClipData(sources=(ClipSource(path=str(clips)),), held_out=0.0)
    recipe = dataclasses.replace(stage1, data=data, validation=data)
    broken = clips / "clip1.mp4"
    content = bytearray(broken.read_bytes())
    middle = content.index(b"mdat")
    # The first frame, which headers are read with, stays whole.
    content[middle + 2000 : middle + 2500] = bytes(500)
    broken.write_bytes(content)
    outcome = precompute(recipe, tmp_path / "latents", SMALL, CPU)
    assert list(outcome.skipped) == [str(broken)]
    task = Stage1Task(dataclasses.replace(recipe, precomputed=str(tmp_path / "latents")), CPU)
    dataset = task.dataset(0, 2)
    assert len(dataset.clips) == 6  # its header was no reason to leave it out
    names = {dataset.clips.name(n % len(dataset.clips)) for s in range(20) for n in dataset.sampler.batch(s)}
    assert str(broken) not in names and len(names) == 5
    assert str(broken) in dataset.clips.skipped


def test_stage_1_reads_means_and_embeddings_and_is_watched_on_pixels(stage1, tmp_path):
    precompute(stage1, tmp_path / "latents", SMALL, CPU)
    recipe = dataclasses.replace(stage1, precomputed=str(tmp_path / "latents"))
    task = Stage1Task(recipe, CPU)
    dataset = task.dataset(0, 2)
    batch = default_collate([dataset[0, place] for place in range(2)])
    sample = dataset.clips[dataset.sampler.batch(0)[0] % len(dataset.clips)]
    assert torch.allclose(batch[0][0], task._latents(sample.pixels[None])[0], atol=1e-6)
    expected = task.encode([sample.caption])[0] if sample.caption else torch.zeros(8, 12)
    assert torch.allclose(batch[1][0], expected, atol=1e-6)
    loss, _ = task.loss(batch, 0, Draws(0, 0, range(2), 2))
    assert torch.isfinite(loss) and torch.isfinite(torch.tensor(task.validate(tmp_path)["held_out_loss"]))


def test_a_text_encoder_in_training_gets_captions_instead_of_embeddings(stage1, tmp_path):
    recipe = dataclasses.replace(stage1, train_text=True, precomputed=str(tmp_path / "latents"))
    precompute(recipe, tmp_path / "latents", SMALL, CPU)
    assert not (tmp_path / "latents" / "text").exists()
    dataset = Stage1Task(recipe, CPU).dataset(0, 2)
    assert {dataset[0, place][1] for place in range(2)} <= {"", "a red circle", "moves left"}


def test_precomputed_needs_clips_of_ones_own(stage2):
    with pytest.raises(ValueError, match="precomputed is of clips of one's own"):
        dataclasses.replace(stage2, data=None, precomputed="x")
    with pytest.raises(ValueError, match="precompute is for clips of one's own"):
        precompute(dataclasses.replace(stage2, data=None), Path("nowhere"), SMALL, CPU)


def test_the_command_computes_its_part_and_tells_what_is_left(stage1, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(dataclasses.asdict(stage1)))))
    command = ["precompute", str(path), "-o", str(tmp_path / "latents"), "--shard-mib", "1", "--json"]
    assert main([*command, "--shard", "2/2"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["shards"], told["made"], told["missing"]) == (2, 0, 2)  # one of text, one of latents
    assert main(command) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["made"], told["missing"], told["skipped"]) == (2, 0, {})
    assert main(["precompute", str(path)]) == 1
    assert "needs a folder to write to" in capsys.readouterr().err
    assert main([*command, "--shard", "3/2"]) == 2
