"""Models from the hub, against a small one on this machine (see conftest.py); concurrent starts are beside this."""

import errno
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants

from flashvideo.cli import main
from flashvideo.pipelines import hub as hub_module
from flashvideo.pipelines import hub_errors
from flashvideo.pipelines.cache import cache_folder
from flashvideo.pipelines.folders import model_folder
from flashvideo.pipelines.hub import fetch_model, look_up
from flashvideo.pipelines.loading import load_pipeline, load_stage1
from flashvideo.pipelines.two_stage import FlashVideoPipeline
from flashvideo.presets import FLASHVIDEO, RELEASED_FILES, RELEASED_REPOSITORY, TEXT_ENCODER_REPOSITORY

FLOAT32 = torch.float32


def fetch(**options: object) -> Path:
    return fetch_model(RELEASED_REPOSITORY, **options)


def test_the_release_is_downloaded_converted_and_loaded(hub):
    pipeline = load_pipeline("flashvideo", device="cpu", dtype="float32")
    assert pipeline.preset == FLASHVIDEO
    for name in ("text_encoder", "vae", "stage1_transformer", "stage2_transformer"):
        assert next(getattr(pipeline, name).parameters()).dtype is FLOAT32
    assert sorted(name for name in hub.downloads() if name.endswith(".pt")) == sorted(RELEASED_FILES)


def test_its_repository_is_a_name_for_from_pretrained_too(hub):
    pipeline = FlashVideoPipeline.from_pretrained(RELEASED_REPOSITORY, dtype=FLOAT32)
    assert pipeline.stage2_transformer.config.noise_step_embed


def test_the_converted_folder_is_named_after_repository_commit_and_dtype(hub):
    names = {fetch(dtype=dtype).name for dtype in (FLOAT32, torch.bfloat16, None)}
    commit = hub.repositories[RELEASED_REPOSITORY].commit
    kinds = ("float32", "bfloat16", "stored")
    assert names == {f"FoundationVision--FlashVideo--{commit}--{kind}" for kind in kinds}


def test_a_second_start_converts_and_downloads_nothing(hub):
    folder = fetch()
    modified = (folder / "model_index.json").stat().st_mtime_ns
    hub.requests.clear()
    assert fetch() == folder
    assert (folder / "model_index.json").stat().st_mtime_ns == modified
    assert hub.requests == [f"info {RELEASED_REPOSITORY}"]


def test_a_commit_that_is_here_needs_no_request_and_the_downloads_may_be_gone(hub):
    commit = hub.repositories[RELEASED_REPOSITORY].commit
    folder = fetch(revision=commit)
    shutil.rmtree(constants.HF_HUB_CACHE)
    hub.requests.clear()
    assert fetch(revision=commit) == folder
    assert hub.requests == []


def test_a_new_commit_is_converted_beside_the_old_one(hub):
    old = fetch()
    hub.repositories[RELEASED_REPOSITORY].commit = "d" * 40
    new = fetch()
    assert new != old and old.is_dir()


def test_without_the_network_what_is_here_is_used(hub, dead_url, monkeypatch):
    folder = fetch(revision="v1")
    monkeypatch.setattr(constants, "ENDPOINT", dead_url)
    assert fetch(revision="v1") == folder


def test_a_complete_model_loads_from_a_cache_that_cannot_be_written(hub, caplog):
    caplog.set_level("INFO", logger="flashvideo")
    folder = fetch()
    shutil.rmtree(cache_folder() / "listings")
    (cache_folder() / "listings").write_text("in the way")
    assert fetch() == folder
    assert "is not remembered" in caplog.text


@pytest.mark.parametrize("text", ["", "{", "[]", '{"repo": 1}', '{"repo": "a/b", "commit": "c", "files": 0}'])
def test_a_listing_that_cannot_be_read_counts_as_not_there(hub, text):
    commit = hub.repositories[RELEASED_REPOSITORY].commit
    look_up(RELEASED_REPOSITORY, commit)
    (listing,) = (cache_folder() / "listings").iterdir()
    listing.write_text(text)
    assert "stage1.pt" in look_up(RELEASED_REPOSITORY, commit).files
    assert json.loads(listing.read_text())["commit"] == commit


def test_a_cache_that_cannot_be_made_is_one_sentence(hub, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FLASHVIDEO_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(
        ValueError, match=r"FlashVideo in stored cannot be stored in .*cache: Not a directory"
    ):
        fetch()
    assert hub.downloads() == []


def test_what_another_program_has_downloaded_is_found_without_the_network(hub, monkeypatch):
    from huggingface_hub import hf_hub_download

    for name in RELEASED_FILES:
        hf_hub_download(RELEASED_REPOSITORY, name)
    listing = look_up(TEXT_ENCODER_REPOSITORY)
    hub_module.download(listing, [name for name in listing.files if "text" in name or "tokenizer" in name])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert (fetch() / "model_index.json").is_file()
    assert hub.requests == []


def test_a_pipeline_in_diffusers_layout_is_downloaded_and_loaded(hub, toy_pipeline, tmp_path):
    toy_pipeline(["a", "red"]).save_pretrained(tmp_path / "mine")
    files = {str(p.relative_to(tmp_path / "mine")): p.read_bytes() for p in (tmp_path / "mine").rglob("*.*")}
    hub.repositories["me/mine"] = type(hub.repositories[RELEASED_REPOSITORY])({**files, "film.mp4": b"large"})
    pipeline = load_pipeline("me/mine", device="cpu", dtype="float32")
    assert pipeline.preset.name == "toy"
    assert "film.mp4" not in hub.downloads()
    assert load_stage1("me/mine", device="cpu", dtype="float32").preset.name == "toy"


def test_a_cogvideox_of_the_hub_is_called_after_its_repository(hub, cogvideox_folder):
    folder = cogvideox_folder(rotary=True)
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.*")}
    hub.repositories["zai-org/Toy-5b"] = type(hub.repositories[RELEASED_REPOSITORY])(files)
    assert load_stage1("zai-org/Toy-5b", device="cpu", dtype="float32").preset.name == "Toy-5b"


def test_a_pipeline_of_another_kind_is_refused_before_its_weights_are_downloaded(hub):
    files = {"model_index.json": b'{"_class_name": "WanPipeline"}', "vae/model.safetensors": b"large"}
    hub.repositories["other/video"] = type(hub.repositories[RELEASED_REPOSITORY])(files)
    with pytest.raises(ValueError, match="other/video must be a model of FlashVideoPipeline or CogVideoX"):
        fetch_model("other/video")
    assert hub.downloads() == ["model_index.json"]


def test_a_repository_that_holds_neither_is_told_what_it_lacks(hub):
    del hub.repositories[RELEASED_REPOSITORY].files["stage2.pt"]
    with pytest.raises(ValueError, match=r"it lacks model_index\.json and stage2\.pt$"):
        fetch()


def test_another_text_encoder_makes_another_folder(hub, text_folder):
    folder = fetch(text_encoder=text_folder)
    assert "--text-" in folder.name and folder != fetch()
    assert not any("tokenizer" in name for name in hub.downloads()[: len(RELEASED_FILES)])


def test_a_text_cache_takes_the_text_encoder_that_was_asked_for_and_converts_once(hub, text_folder, tmp_path):
    options = "--preview-only --size 128x128 --frames 1 --steps 1 --device cpu --dtype float32"
    words = [
        "generate",
        "a red circle",
        "-o",
        tmp_path / "out.mp4",
        *options.split(),
        "--model",
        "flashvideo",
    ]
    words += ["--revision", "v1", "--text-encoder", text_folder, "--text-cache", tmp_path / "text"]
    assert main([str(word) for word in words]) == 0
    folders = [path for path in cache_folder().glob("FoundationVision*") if path.is_dir()]
    assert len(folders) == 1
    assert f"info {TEXT_ENCODER_REPOSITORY}" not in hub.requests


def test_a_text_encoder_of_its_own_repository_may_lie_at_the_top(hub, text_folder):
    files = {
        path.name: path.read_bytes()
        for part in ("tokenizer", "text_encoder")
        for path in (text_folder / part).iterdir()
    }
    hub.repositories["me/t5"] = type(hub.repositories[RELEASED_REPOSITORY])(files, commit="f" * 40)
    assert fetch(text_encoder="me/t5").name.endswith("--text-me--t5")


@pytest.mark.parametrize(
    ("refusal", "sentence"),
    [
        ((401, "GatedRepo"), r"is gated: accept its terms on http.*, then log in with `hf auth login`"),
        ((403, "GatedRepo"), r"is gated: accept its terms"),
        ((401, ""), r"was refused \(401\): it is private, gated or does not exist.*`hf auth login`"),
        ((403, ""), r"was refused \(403\)"),
        ((404, "RepoNotFound"), r"there is no repository FoundationVision/FlashVideo on http"),
        ((503, ""), r"cannot serve FoundationVision/FlashVideo now \(503\); try again later"),
    ],
)
def test_a_refusal_is_one_sentence(hub, refusal, sentence):
    hub.repositories[RELEASED_REPOSITORY].refusal = refusal
    with pytest.raises(ValueError, match=sentence):
        fetch()


def test_an_unknown_revision_is_named(hub):
    with pytest.raises(ValueError, match="has no revision 'v9'; see http"):
        fetch(revision="v9")


def test_a_file_that_has_gone_is_named(hub):
    listing = look_up(RELEASED_REPOSITORY)
    del hub.repositories[RELEASED_REPOSITORY].files["stage1.pt"]
    with pytest.raises(ValueError, match=r"stage1\.pt of FoundationVision/FlashVideo does not exist"):
        hub_module.download(listing, ["stage1.pt"])


def test_a_file_that_comes_short_is_refused_and_leaves_nothing(hub):
    hub.cut_at["stage2.pt"] = 1000
    with pytest.raises(ValueError, match=r"download of stage2\.pt of .* is not complete"):
        fetch()
    assert not [path for path in cache_folder().iterdir() if path.is_dir() and path.name != "listings"]
    assert (fetch() / "model_index.json").is_file()


def test_a_cached_file_of_the_wrong_size_is_named(hub):
    listing = look_up(RELEASED_REPOSITORY)
    folder = hub_module.download(listing, ["stage1.pt"])
    (folder / "stage1.pt").resolve().write_bytes(b"short")
    with pytest.raises(ValueError, match=r"has \d+ bytes, but .* has 5; delete it and start again"):
        hub_module.download(listing, ["stage1.pt"])


def test_a_connection_that_breaks_off_is_taken_up_again(hub):
    hub.broken_off["stage1.pt"] = 500_000
    hub.seconds_per_chunk = 0.01
    assert (fetch() / "model_index.json").is_file()
    assert hub.downloads().count("stage1.pt") == 2


def test_a_hub_that_does_not_answer_is_called_slow(hub, monkeypatch):
    monkeypatch.setattr(hub_module, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    hub.silent = True
    with pytest.raises(ValueError, match=r"is too slow: no answer in time for FoundationVision/FlashVideo"):
        fetch()


def test_no_network_and_nothing_here_is_one_sentence(hub, dead_url, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", dead_url)
    with pytest.raises(ValueError, match=r"cannot reach http://.*, which is not on this machine yet"):
        fetch()


def test_offline_with_nothing_here_names_the_switch(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE forbids"):
        fetch()
    assert hub.requests == []


def test_a_disk_without_room_is_noticed_before_the_download(hub, monkeypatch):
    monkeypatch.setattr(hub_errors.shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    with pytest.raises(ValueError, match=r"needs \d\d\.\d MB of disk in .*, which has 1\.0 MB left.*HF_HOME"):
        fetch()
    assert hub.downloads() == []


def test_the_room_for_the_conversion_is_noticed_before_the_download_too(hub, monkeypatch):
    listing = look_up(RELEASED_REPOSITORY)
    free = 1_000_000 + sum(listing.files[name] for name in RELEASED_FILES)
    monkeypatch.setattr(hub_errors.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    with pytest.raises(ValueError, match=r"download and conversion of .* HF_HOME or FLASHVIDEO_CACHE"):
        fetch()
    assert hub.downloads() == []


def test_two_disks_are_looked_at_one_by_one(hub, monkeypatch, tmp_path):
    disks = {tmp_path / "hf": 1, tmp_path / "cache": 2}
    for disk in disks:
        disk.mkdir()
    monkeypatch.setattr(
        hub_errors, "_existing", lambda folder: SimpleNamespace(stat=lambda: SimpleNamespace(st_dev=folder))
    )
    monkeypatch.setattr(hub_errors.shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    one, other = [(folder, num_bytes * 8, folder.name) for folder, num_bytes in disks.items()]
    with pytest.raises(ValueError, match=r"needs 0\.0 MB of disk in .*cache, .* or set cache to"):
        hub_errors.check_free_space_of_both(one, other, "it")


@pytest.mark.parametrize("source", ["runs/t5/encoder", "no such place", "nobody/nothing"])
def test_a_text_encoder_that_is_not_there_is_noticed_before_the_download(hub, source):
    with pytest.raises(ValueError, match=r"no folder on this machine, nor|there is no repository nobody/"):
        fetch(text_encoder=source)
    assert hub.downloads() == []


def test_a_text_folder_that_is_not_whole_is_noticed_before_the_download(hub, text_folder, tmp_path):
    folder = shutil.copytree(text_folder, tmp_path / "text")
    (folder / "text_encoder" / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match="no whole safetensors file"):
        fetch(text_encoder=folder)
    assert hub.downloads() == []


def test_a_text_folder_is_told_by_what_is_read_of_it(hub, text_folder, tmp_path, monkeypatch):
    folder = shutil.copytree(text_folder, tmp_path / "text")
    first = fetch(text_encoder=folder)
    (folder / "README.md").write_text("about it")
    monkeypatch.chdir(tmp_path)
    for spelling in ("text", "./text/../text", Path("text"), folder / "tokenizer" / ".."):
        assert fetch(text_encoder=spelling) == first
    config = folder / "text_encoder" / "config.json"
    config.write_text(config.read_text() + "\n")
    assert fetch(text_encoder=folder) != first


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ("flashvideo.pipelines.hub.hf_hub_download", r"disk is full, stage1\.pt of .*set HF_HOME"),
        (
            "flashvideo.pipelines.released.convert_released",
            r"disk is full, .*, converted,.*set FLASHVIDEO_CACHE",
        ),
    ],
)
def test_a_disk_that_fills_up_meanwhile_is_one_sentence_and_leaves_nothing(hub, monkeypatch, place, sentence):
    def fill(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(place, fill)
        with pytest.raises(ValueError, match=sentence):
            fetch()
    assert not list(cache_folder().glob("FoundationVision*/*"))


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ("Data processing error: connection reset", r"stage1\.pt of .* failed \(Data .*HF_HUB_DISABLE_XET=1"),
        (
            "I/O error: No space left on device (os error 28)",
            r"the disk is full, stage1\.pt of .*set HF_HOME",
        ),
    ],
)
def test_what_goes_wrong_in_the_library_for_large_files_is_one_sentence(hub, monkeypatch, message, sentence):
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr("flashvideo.pipelines.hub.hf_hub_download", fail)
    with pytest.raises(ValueError, match=sentence):
        fetch()


def test_an_interrupted_conversion_leaves_nothing_and_a_killed_one_is_swept_away(hub, monkeypatch):
    def interrupt(files: object, output: Path, **options: object) -> None:
        output.mkdir()
        (output / "model_index.json").write_text("{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("flashvideo.pipelines.released.convert_released", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetch()
    assert not list(cache_folder().rglob("model_index.json"))
    commit = hub.repositories[RELEASED_REPOSITORY].commit
    name = f"FoundationVision--FlashVideo--{commit}--stored"
    leftover = cache_folder() / f"{name}.unfinished" / name
    leftover.mkdir(parents=True)
    (leftover / "half.safetensors").write_text("half of it")
    assert (fetch() / "stage1_transformer").is_dir()
    assert not leftover.parent.exists()


def test_a_word_that_could_be_nothing_is_answered_with_what_could_be_meant(hub):
    for word in ("micro", "a/b/c", "./runs/nano", "-x/y"):
        with pytest.raises(
            ValueError, match=r"model must be one of 'nano', 'flashvideo', a folder .* or a repo"
        ):
            model_folder(word)
    assert hub.requests == []


def test_options_of_the_hub_are_refused_for_a_folder(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match="revision is for models of the hub"):
        model_folder(tmp_path, revision="v1")


@pytest.mark.parametrize(
    ("option", "instead"),
    [
        ({"token": "secret"}, "set HF_TOKEN"),
        ({"force_download": True}, "delete the repository's folder"),
        ({"proxies": {"https": "secret"}}, "set HTTPS_PROXY"),
        ({"local_files_only": True}, "set HF_HUB_OFFLINE=1"),
    ],
)
def test_options_of_diffusers_own_downloads_name_what_counts_and_no_secret(hub, option, instead):
    with pytest.raises(ValueError, match=f"is not taken for a model of the hub; {instead}") as error:
        FlashVideoPipeline.from_pretrained(RELEASED_REPOSITORY, **option)
    assert "secret" not in str(error.value)


def test_what_is_on_this_machine_loads_with_local_files_only(toy_pipeline, tmp_path, monkeypatch):
    toy_pipeline(["a"]).save_pretrained(tmp_path / "mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    for model in ("nano", "~/mine"):
        assert FlashVideoPipeline.from_pretrained(model, local_files_only=True).preset


class OwnPipeline(FlashVideoPipeline):
    """Somebody's own."""


def test_a_subclass_loads_what_it_saved_and_what_others_saved(toy_pipeline, tmp_path, hub):
    toy_pipeline(["a"]).save_pretrained(tmp_path / "ours")
    own = OwnPipeline.from_pretrained(tmp_path / "ours")
    assert type(own) is OwnPipeline
    own.save_pretrained(tmp_path / "theirs")
    assert type(OwnPipeline.from_pretrained(tmp_path / "theirs")) is OwnPipeline
    files = {
        str(p.relative_to(tmp_path / "theirs")): p.read_bytes() for p in (tmp_path / "theirs").rglob("*.*")
    }
    hub.repositories["me/own"] = type(hub.repositories[RELEASED_REPOSITORY])(files)
    assert type(OwnPipeline.from_pretrained("me/own")) is OwnPipeline


def test_a_part_of_the_release_in_another_programs_cache_is_not_taken_for_all_of_it(hub, monkeypatch):
    from huggingface_hub import hf_hub_download

    hf_hub_download(RELEASED_REPOSITORY, "stage1.pt")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="is not on this machine yet, and HF_HUB_OFFLINE forbids"):
        fetch()
