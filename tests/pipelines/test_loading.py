"""Finding a model's folder, a device and a dtype; the pipelines themselves have their own tests."""

import pytest
import torch

from flashvideo.pipelines import folders, loading


@pytest.fixture
def model_at(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    return tmp_path


def test_nano_is_a_folder_of_the_package():
    assert folders.NANO_PATH.parent.parent.name == "flashvideo"
    assert folders.MODELS["nano"] == folders.NANO_PATH


def test_a_folder_with_a_model_index_is_taken_as_it_is(model_at):
    assert folders.model_folder(model_at) == model_at
    assert folders.model_folder(str(model_at)) == model_at


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_saved_pipeline_is_loaded_in_the_dtype_asked_for_with_its_preset(pipeline, tmp_path, dtype):
    pipeline.save_pretrained(tmp_path)
    loaded = loading.load_pipeline(tmp_path, device="cpu", dtype=dtype)
    assert loaded.preset == pipeline.preset
    for name in ("text_encoder", "vae", "stage1_transformer", "stage2_transformer"):
        saved = getattr(pipeline, name).state_dict()
        for key, weight in getattr(loaded, name).state_dict().items():
            assert weight.dtype is loading.DTYPES[dtype], key
            assert torch.equal(weight, saved[key].to(weight.dtype)), key


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(
        ValueError,
        match=r"one of 'nano', 'flashvideo', a folder.* or a repository.*got 'micro', and there is no such folder",
    ):
        folders.model_folder("micro")


def test_a_folder_that_holds_no_pipeline_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"which has no model_index\.json"):
        folders.model_folder(tmp_path)


def test_auto_prefers_cuda_to_mps_and_mps_to_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert loading.choose_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert loading.choose_device("auto") == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert loading.choose_device("auto") == torch.device("cuda")


def test_a_device_that_the_machine_lacks_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="got 'cuda', which this machine lacks"):
        loading.choose_device("cuda")


def test_a_cuda_device_beyond_the_last_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert loading.choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ValueError, match="got 'cuda:2', which this machine lacks"):
        loading.choose_device("cuda:2")


def test_a_word_that_is_no_device_is_refused():
    with pytest.raises(ValueError, match=r"device must be one of 'auto', .*'cpu', got 'toaster'"):
        loading.choose_device("toaster")


@pytest.mark.parametrize("asked", ["float16", torch.float16])
def test_a_dtype_is_asked_for_by_name_or_as_itself(asked):
    assert loading.choose_dtype(asked, "cpu") is torch.float16


@pytest.mark.parametrize("asked", ["half", torch.int8])
def test_a_dtype_that_no_model_runs_in_is_refused(asked):
    with pytest.raises(ValueError, match="dtype must be one of 'auto', 'float32'"):
        loading.choose_dtype(asked, "cpu")


@pytest.mark.parametrize(
    ("float32_seconds", "bfloat16_seconds", "expected"),
    [
        (3.0, 2.0, torch.bfloat16),  # exactly MIN_SPEEDUP
        (3.0, 2.01, torch.float32),
        (1.0, float("inf"), torch.float32),  # no bfloat16 kernels
    ],
)
def test_bfloat16_is_chosen_only_where_it_is_clearly_faster(float32_seconds, bfloat16_seconds, expected):
    seconds = {torch.float32: float32_seconds, torch.bfloat16: bfloat16_seconds}
    assert loading.faster_dtype(seconds) is expected


def test_the_probe_runs_once_and_its_choice_follows_from_its_times():
    loading.probe_dtype.cache_clear()
    probe = loading.probe_dtype("cpu")
    assert 0 < probe.seconds[torch.float32] < 5
    assert probe.dtype is loading.faster_dtype(probe.seconds)
    assert loading.probe_dtype("cpu") is probe
    assert loading.choose_dtype("auto", torch.device("cpu")) is probe.dtype


def test_a_device_without_kernels_for_a_dtype_counts_as_infinitely_slow(monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("not implemented for 'BFloat16'")

    monkeypatch.setattr(torch.nn.functional, "conv3d", refuse)
    assert loading._probe_seconds(torch.device("cpu"), torch.bfloat16) == float("inf")


def test_the_probe_leaves_the_number_of_threads_as_it_was():
    before = torch.get_num_threads()
    loading._probe_seconds(torch.device("cpu"), torch.float32, num_repeats=1)
    assert torch.get_num_threads() == before
