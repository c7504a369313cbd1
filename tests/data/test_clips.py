"""The data set: what a sample is, that nothing ends a run, and that every run with one seed sees the same."""

import io
import pickle
import tarfile

import fsspec
import numpy as np
import pytest
import torch

from flashvideo.data.clips import ClipDataset
from flashvideo.data.clips.bucket_sampler import BucketBatches
from flashvideo.data.clips.config import ClipsConfig
from flashvideo.data.clips.samples import format_skipped
from flashvideo.data.clips.sources import ClipSource


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_counted, write_picture):
    """Six good videos and two pictures, and of each kind one that is not; captions for all but two."""
    path = tmp_path_factory.mktemp("clips")
    for number in range(6):
        write_counted(path / f"{number}.mp4")
        (path / f"{number}.txt").write_text(f"clip {number}")
    (path / "0.txt").unlink()
    write_picture(path / "a.png")
    write_picture(path / "b.jpg")
    (path / "b.txt").write_text("half red")
    (path / "text.mp4").write_text("this is no video")
    (path / "c.png").write_bytes((path / "a.png").read_bytes()[:20])
    return path


@pytest.fixture
def broken_later(tmp_path, write_counted):
    """Four videos, two of which are damaged after the data set was made: `broken_later(dataset)`."""
    for number in range(4):
        write_counted(tmp_path / f"{number}.mp4")

    def damage(*numbers):
        for number in numbers:
            (tmp_path / f"{number}.mp4").write_bytes(b"damaged")

    return tmp_path, damage


# --- Samples ----------------------------------------------------------------------------------------------------------


def test_a_sample_is_pixels_with_their_caption_and_rate(folder, make_dataset, count_of):
    dataset = make_dataset(folder, training=False)
    sample = dataset[1]
    assert (sample.pixels.shape, sample.pixels.dtype) == ((5, 3, 16, 24), torch.float32)
    assert sample.pixels.abs().max() <= 1
    assert count_of(sample.pixels) == [9, 10, 11, 12, 13]  # the middle
    assert (sample.caption, sample.frame_rate, sample.start) == ("clip 1", 24.0, 9 / 24)
    assert (sample.name, sample.source, sample.skips) == (f"{folder}/1.mp4", str(folder), ())
    assert (dataset.captions([1, 0]), dataset.num_without_caption) == (["clip 1", ""], 1)


def test_pictures_are_samples_of_one_frame(folder, make_dataset):
    dataset = make_dataset(folder, image_share=0.5, training=False)
    pictures = [sample for sample in dataset if sample.name.endswith(("png", "jpg"))]
    assert [sample.pixels.shape for sample in pictures] == [(1, 3, 16, 24)] * 2
    assert [(sample.caption, sample.frame_rate) for sample in pictures] == [("", 0.0), ("half red", 0.0)]
    assert pictures[0].pixels[0, 0, :, :10].min() > 0.9 > -0.9 > pictures[0].pixels[0, 0, :, 14:].max()


def test_clips_of_each_aspect_ratio_go_to_their_bucket(tmp_path, make_dataset, write_counted):
    write_counted(tmp_path / "wide.mp4", size=(48, 64))
    write_counted(tmp_path / "turned.mp4", size=(48, 64), quarter_turns=1)
    write_counted(tmp_path / "stretched.mp4", size=(32, 32), aspect=2)
    dataset = make_dataset(tmp_path, buckets=((5, 16, 24), (5, 24, 16), (5, 16, 32)), training=False)
    sizes = {sample.name.rpartition("/")[2]: sample.pixels.shape[-2:] for sample in dataset}
    assert sizes == {"wide.mp4": (16, 24), "turned.mp4": (24, 16), "stretched.mp4": (16, 32)}


def test_a_clip_in_a_tar_file_behind_a_url_is_trained_on(counted, make_dataset, count_of):
    with fsspec.open("memory://shards/0.tar", "wb") as file, tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in (("1.mp4", counted.read_bytes()), ("1.txt", b"counted"), ("2.mp4", b"no video")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    dataset = make_dataset("memory://shards/{0..0}.tar", training=False)
    sample = dataset[0]
    assert (sample.caption, count_of(sample.pixels)) == ("counted", [9, 10, 11, 12, 13])
    assert sample.name == "memory:///shards/0.tar/1.mp4"
    assert list(dataset.skipped) == ["memory:///shards/0.tar/2.mp4"]


# --- The same for everyone --------------------------------------------------------------------------------------------


def test_a_sample_depends_on_seed_and_index_alone(folder, make_dataset):
    one, other = make_dataset(folder, seed=1), make_dataset(folder, seed=1)
    _ = one[3]
    assert torch.equal(one[13].pixels, other[13].pixels)
    assert one[13].start == other[13].start
    starts = [one[1 + turn * len(one)].start for turn in range(6)]
    assert len(set(starts)) > 3  # other turns of the same clip show other parts
    assert [make_dataset(folder, seed=2)[1 + turn * 6].start for turn in range(6)] != starts


def test_validation_shows_the_same_at_each_turn(folder, make_dataset):
    dataset = make_dataset(folder, training=False)
    assert torch.equal(dataset[2].pixels, dataset[2 + 5 * len(dataset)].pixels)


def test_a_data_set_can_be_sent_to_another_process(folder, make_dataset):
    dataset = make_dataset(folder)
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[7].pixels, dataset[7].pixels)


def test_a_fingerprint_tells_whether_samples_are_the_same(folder, make_dataset):
    whole = make_dataset(folder).fingerprint()
    assert make_dataset(folder).fingerprint() == whole
    assert make_dataset(folder, seed=1).fingerprint() != whole
    assert make_dataset(folder, frame_rate=12.0).fingerprint() != whole
    assert make_dataset(folder, image_share=0.5).fingerprint() != whole


# --- Nothing ends a run -----------------------------------------------------------------------------------------------


def test_what_cannot_be_used_is_left_out_with_its_reason(folder, make_dataset):
    dataset = make_dataset(folder, image_share=0.5)
    assert len(dataset) == 8
    reasons = {name.removeprefix(f"{folder}/"): reason for name, reason in dataset.skipped.items()}
    assert set(reasons) == {"text.mp4", "c.png"}
    assert reasons["text.mp4"].startswith("it is no video that FFmpeg can read")
    assert reasons["c.png"].startswith("it is no picture that can be read")
    assert dataset.describe() == (
        "6 videos and 2 pictures (2 of 1x16x24, 6 of 5x16x24), 2 without a caption, 2 left out"
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"min_seconds": 1.5}, "it is too short: 1.00 s, at least 1.5 are wanted"),
        ({"min_frame_rate": 25.0}, "it is too slow: 24 fps, at least 25 are wanted"),
        ({"buckets": ((5, 96, 128),)}, "it is too small: 48x64 would be enlarged 2.00 times for 5x96x128"),
        ({"buckets": ((5, 16, 24),), "frame_rate": 3.0}, "it is too short: it gives 3 frames, 5 are wanted"),
    ],
)
def test_clips_that_do_not_do_are_left_out_and_none_left_is_one_error(
    counted, make_dataset, options, expected
):
    with pytest.raises(ValueError, match=r"\Ano video can be used.*the first, \S*counted.mp4: ") as caught:
        make_dataset(counted.parent, **options)
    assert expected in str(caught.value)


def test_a_clip_may_be_enlarged_as_far_as_is_said(counted, make_dataset):
    dataset = make_dataset(counted.parent, buckets=((5, 96, 128),), max_upscale=2.0)
    assert dataset[0].pixels.shape == (5, 3, 96, 128)


def test_a_clip_that_breaks_later_is_replaced_by_the_next_and_noted(broken_later, make_dataset, caplog):
    path, damage = broken_later
    dataset = make_dataset(path)
    damage(1, 2)
    sample = dataset[1]
    assert sample.name == f"{path}/3.mp4"
    assert [name for name, _ in sample.skips] == [f"{path}/1.mp4", f"{path}/2.mp4"]
    assert dataset.skipped == dict(sample.skips)
    assert caplog.text.count("is skipped: it is no video") == 2
    assert torch.equal(dataset[1].pixels, sample.pixels)
    assert dataset[0].skips == ()


def test_a_clip_that_has_gone_is_replaced_too(broken_later, make_dataset):
    path, _ = broken_later
    dataset = make_dataset(path)
    (path / "3.mp4").unlink()
    sample = dataset[3]
    assert (sample.name, sample.skips) == (f"{path}/0.mp4", ((f"{path}/3.mp4", "it does not exist"),))


def test_a_caption_that_is_no_text_is_a_reason_to_skip(broken_later, make_dataset):
    path, _ = broken_later
    (path / "0.txt").write_bytes(b"\xff\xfe\xff")
    assert "its caption cannot be read" in dict(make_dataset(path)[0].skips)[f"{path}/0.mp4"]


def test_a_bucket_of_which_all_clips_broke_is_one_error(broken_later, make_dataset):
    path, damage = broken_later
    dataset = make_dataset(path)
    damage(0, 1, 2, 3)
    with pytest.raises(ValueError, match="none of the 4 clips of bucket 5x16x24 can be read; the first is"):
        _ = dataset[2]


def test_skipped_clips_are_listed_for_people():
    assert format_skipped({}) == "No clip was skipped."
    assert format_skipped({"a.mp4": "it is empty"}) == "1 clip was skipped:\n  a.mp4: it is empty"
    many = format_skipped({f"{n}.mp4": "it is empty" for n in range(9)}, limit=2)
    assert many.splitlines()[::3] == ["9 clips were skipped:", "  and 7 more"]


# --- Headers are read once --------------------------------------------------------------------------------------------


def test_headers_are_read_once_and_again_for_a_file_that_changed(
    broken_later, make_dataset, write_counted, monkeypatch
):
    path, _ = broken_later
    cache = path / "headers.json"
    first = make_dataset(path, cache=cache)
    from flashvideo.data.clips import headers

    read, inner = [], headers.read_video_header
    monkeypatch.setattr(headers, "read_video_header", lambda file: read.append(file.url) or inner(file))
    assert make_dataset(path, cache=cache).fingerprint() == first.fingerprint()
    assert read == []
    write_counted(path / "2.mp4", num_frames=12)
    make_dataset(path, cache=cache)
    assert read == [f"{path}/2.mp4"]


def test_a_reading_that_is_interrupted_keeps_what_was_read(broken_later, make_dataset, monkeypatch):
    path, _ = broken_later
    from flashvideo.data.clips import headers

    read, inner = [], headers.read_video_header

    def interrupted(file):
        if file.url.endswith("3.mp4"):
            raise KeyboardInterrupt
        read.append(file.url)
        return inner(file)

    with monkeypatch.context() as patched:
        patched.setattr(headers, "read_video_header", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_dataset(path, cache=path / "headers.json")
    done, read[:] = set(read), []
    monkeypatch.setattr(headers, "read_video_header", lambda file: read.append(file.url) or inner(file))
    make_dataset(path, cache=path / "headers.json")
    assert done and not done & set(read)


def test_a_file_that_could_not_be_reached_is_tried_again(tmp_path, counted, make_dataset):
    table = tmp_path / "table.csv"
    table.write_text(f"path,caption\n{counted},a\nlate.mp4,b\n")
    first = make_dataset(table, cache=tmp_path / "cache.json")
    assert first.skipped == {f"{tmp_path}/late.mp4": "it does not exist"}
    (tmp_path / "late.mp4").write_bytes(counted.read_bytes())
    assert len(make_dataset(table, cache=tmp_path / "cache.json")) == 2


# --- Configs ----------------------------------------------------------------------------------------------------------

SETTINGS = {"sources": (ClipSource(path="clips"),), "buckets": ((17, 64, 96),), "frame_rate": 8.0}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"sources": ()}, "sources must have at least one entry, got none"),
        (
            {"buckets": ((64, 96),)},
            r"a bucket must be \(frames, height, width\), each at least 1, got \(64, 96\)",
        ),
        ({"buckets": ((1, 64, 96),)}, "buckets must have one of more than 1 frame unless image_share is 1"),
        ({"frame_rate": 0.0}, "frame_rate must be greater than 0, got 0.0"),
        ({"image_share": 1.5}, "image_share must be from 0 to 1, got 1.5"),
        ({"min_seconds": -1.0}, "min_seconds must be 0 or more, got -1.0"),
        ({"max_upscale": 0.0}, "max_upscale must be greater than 0, got 0.0"),
        ({"window_tries": 0}, "window_tries must be 1 or more, got 0"),
    ],
)
def test_a_config_that_makes_no_sense_is_one_sentence(options, expected):
    with pytest.raises(ValueError, match=expected):
        ClipsConfig(**SETTINGS | options)


def test_buckets_may_share_a_number_of_frames_and_pictures_take_their_sizes():
    config = ClipsConfig(**SETTINGS | {"buckets": ((17, 64, 96), (5, 96, 64))})
    assert list(map(str, config.video_buckets())) == ["17x64x96", "5x96x64"]
    assert list(map(str, config.image_buckets())) == ["1x64x96", "1x96x64"]
    own = ClipsConfig(**SETTINGS | {"buckets": ((17, 64, 96), (1, 128, 128))})
    assert list(map(str, own.image_buckets())) == ["1x128x128"]


def test_a_number_of_frames_that_the_vae_cannot_pack_is_one_sentence(counted):
    config = ClipsConfig(
        sources=(ClipSource(path=str(counted.parent)),), buckets=((6, 16, 24),), frame_rate=8.0
    )
    with pytest.raises(ValueError, match=r"a bucket's frames must be 4k\+1, got 6x16x24; try 5 or 9"):
        ClipDataset(config, temporal_compression=4)


def test_a_share_of_pictures_without_any_is_one_error(counted, make_dataset):
    with pytest.raises(ValueError, match=r"no picture can be used, but image_share 0\.2, .* asks for some"):
        make_dataset(counted.parent, image_share=0.2)


def test_sources_are_seen_by_their_weight(folder, counted):
    sources = (ClipSource(path=str(folder), weight=0.5), ClipSource(path=str(counted.parent), weight=3.0))
    config = ClipsConfig(sources=sources, buckets=((5, 16, 24),), frame_rate=24.0)
    dataset = ClipDataset(config, temporal_compression=4, progress=False)
    batches = BucketBatches(dataset.groups, num_items=len(dataset), batch_size=6)
    samples = [sample for number in range(10) for sample in batches.batch(number)]
    counts = np.bincount([sample % len(dataset) for sample in samples])
    assert counts[6] == 30 and counts[:6].sum() == 30
