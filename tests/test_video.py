"""Video files, resizing and pictures."""

import itertools
import logging
import weakref
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

from flashvideo.video import (
    VideoError,
    contact_sheet,
    generation_metadata,
    iter_frames,
    probe_video,
    read_metadata,
    read_video,
    resize_video,
    save_image,
    to_uint8,
    write_video,
    writing,
)

SUFFIXES = [".mp4", ".mov", ".mkv", ".webm"]


@pytest.fixture
def clip():
    """17 smooth, moving frames of 48x64, (F, 3, H, W)."""
    time, y, x = torch.meshgrid(torch.arange(17), torch.arange(48), torch.arange(64), indexing="ij")
    waves = [torch.sin(0.1 * x + 0.2 * time), torch.cos(0.15 * y + 0.1 * time), torch.sin(0.05 * (x + y))]
    return 0.8 * torch.stack(waves, dim=1)


@pytest.fixture
def noise():
    """Frames that compress badly, so that a file has bytes to cut off."""
    return torch.rand(17, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1


def psnr(result, truth):
    return (10 * torch.log10(4 / (result - truth).square().mean())).item()


def cut(path, keep):
    """A copy of a file that ends early; `keep` is the fraction kept."""
    data = path.read_bytes()
    short = path.with_name(f"cut{path.suffix}")
    short.write_bytes(data[: int(len(data) * keep)])
    return short


def message_of(function, *args, **kwargs):
    with pytest.raises(VideoError) as caught:
        function(*args, **kwargs)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- A clip through a file --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_clip_survives_every_container(tmp_path, clip, suffix):
    path = write_video(tmp_path / f"clip{suffix}", clip, frame_rate=8)
    video = read_video(path)
    assert video.frames.shape == clip.shape
    assert video.frames.dtype == torch.float32
    assert video.frame_rate == 8
    assert psnr(video.frames, clip) > 36


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_probing_tells_size_length_and_rate(tmp_path, clip, suffix):
    path = write_video(tmp_path / f"clip{suffix}", clip, frame_rate=8)
    info = probe_video(path)
    assert (info.num_frames, info.height, info.width, info.frame_rate) == (17, 48, 64, 8)
    assert info.duration == pytest.approx(17 / 8)
    assert info.codec == ("vp9" if suffix == ".webm" else "h264")
    assert info.path == path
    assert info.metadata == {}
    assert info.pixel_aspect_ratio == 1


@pytest.mark.parametrize(
    ("rate", "stored"),
    [(30000 / 1001, Fraction(30000, 1001)), (Fraction(25, 2), Fraction(25, 2)), (29.97, Fraction(2997, 100))],
)
def test_fractional_frame_rates_are_kept(tmp_path, clip, rate, stored):
    path = write_video(tmp_path / "clip.mp4", clip, frame_rate=rate)
    assert probe_video(path).frame_rate == stored


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("size", [(47, 64), (48, 63), (47, 63)])
def test_odd_sizes_keep_every_pixel(tmp_path, clip, suffix, size):
    odd = clip[:3, :, : size[0], : size[1]]
    frames = read_video(write_video(tmp_path / f"odd{suffix}", odd, frame_rate=8)).frames
    assert frames.shape == odd.shape
    assert psnr(frames, odd) > 36


@pytest.mark.parametrize("size", [(32, 32), (33, 33), (32, 31)])
def test_flat_colours_come_back_without_a_shift(tmp_path, size):
    levels = torch.tensor(list(itertools.product([0, 51, 128, 204, 255], repeat=3)), dtype=torch.float32)
    flat = (levels / 127.5 - 1)[:, :, None, None].expand(-1, -1, *size)
    frames = read_video(write_video(tmp_path / "flat.mp4", flat, frame_rate=8, crf=1)).frames
    error = (frames - flat).mean(dim=(2, 3)) * 127.5  # levels, for each colour and channel
    assert error.abs().mean(dim=0).max() < 1
    assert error.mean(dim=0).abs().max() < 0.25  # no channel drifts to one side
    assert error.abs().max() <= 3


@pytest.mark.parametrize(
    ("matrix", "height", "declared"),
    [("ITU709", 64, 1), ("ITU601", 64, 6), ("ITU601", 64, 2), ("ITU709", 720, 2)],
    ids=["BT.709", "BT.601", "undeclared and small", "undeclared and large"],
)
def test_foreign_files_are_read_with_their_own_colour_matrix(tmp_path, matrix, height, declared):
    colour = (200, 40, 90)
    path = tmp_path / "foreign.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, height, "yuv420p"
        stream.codec_context.colorspace = declared
        image = av.VideoFrame.from_ndarray(np.full((height, 64, 3), colour, np.uint8), format="rgb24")
        image = image.reformat(format="yuv420p", dst_colorspace=matrix, dst_color_range="MPEG")
        container.mux(stream.encode(image))
        container.mux(stream.encode(None))
    frames = read_video(path).frames
    mean = (frames.mean(dim=(0, 2, 3)) + 1) * 127.5
    assert mean.tolist() == pytest.approx(colour, abs=3)  # the other matrix is off by more than 10


def test_written_files_declare_bt709_limited_range(tmp_path, clip):
    path = write_video(tmp_path / "clip.mp4", clip, frame_rate=8)
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc) == (1, 1, 1)
        assert context.color_range == 1
        assert context.pix_fmt == "yuv420p"


def test_a_rotated_clip_is_read_upright(tmp_path, clip):
    path = tmp_path / "phone.mp4"
    levels = to_uint8(clip).permute(0, 2, 3, 1).contiguous().numpy()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.set_display_rotation(90)  # counterclockwise
        for frame in levels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    frames = read_video(path).frames
    assert frames.shape == (17, 3, 64, 48)
    assert psnr(frames, torch.rot90(clip, 1, dims=(2, 3))) > 25
    info = probe_video(path)
    assert (info.height, info.width) == (64, 48)


def test_pixels_that_are_not_square_are_reported(tmp_path, clip, caplog):
    path = tmp_path / "wide.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.sample_aspect_ratio = Fraction(4, 3)
        container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(stream.encode(None))
    assert probe_video(path).pixel_aspect_ratio == Fraction(4, 3)
    with caplog.at_level(logging.WARNING):
        read_video(path)
    assert "pixels of aspect 4/3" in caplog.text


def test_a_lower_crf_is_closer_to_the_original(tmp_path, noise):
    grey = noise[:, :1].expand_as(noise)  # colour is stored at half the resolution whatever the crf
    for suffix, worst in [(".mp4", 51), (".webm", 63)]:
        good, bad = (
            read_video(write_video(tmp_path / f"{crf}{suffix}", grey, frame_rate=8, crf=crf)).frames
            for crf in (4, worst)
        )
        assert psnr(good, grey) > psnr(bad, grey) + 5


def test_values_outside_the_range_are_clamped(tmp_path):
    frames = torch.stack([torch.full((3, 32, 32), 7.0), torch.full((3, 32, 32), -7.0)])
    back = read_video(write_video(tmp_path / "clip.mp4", frames, frame_rate=8, crf=1)).frames
    assert back[0].min() > 0.98
    assert back[1].max() < -0.98


# --- Parts and streams ------------------------------------------------------------------------------------------------


def test_a_part_of_a_clip_equals_that_part_of_the_whole(tmp_path, clip):
    path = write_video(tmp_path / "clip.mp4", clip, frame_rate=8)
    whole = read_video(path).frames
    assert torch.equal(read_video(path, start=5, num_frames=4).frames, whole[5:9])
    assert torch.equal(read_video(path, start=12).frames, whole[12:])


def test_frames_read_one_by_one_equal_the_whole(tmp_path, clip):
    path = write_video(tmp_path / "clip.mp4", clip, frame_rate=8)
    assert torch.equal(torch.stack(list(iter_frames(path))), read_video(path).frames)
    assert torch.equal(
        torch.stack(list(iter_frames(path, start=3, num_frames=2))), read_video(path).frames[3:5]
    )


def test_chunks_and_single_frames_write_the_same_file_as_the_whole_clip(tmp_path, clip):
    chunks = [clip[:4], clip[4], clip[5:5], clip[5:]]
    whole = write_video(tmp_path / "whole.mp4", clip, frame_rate=8)
    streamed = write_video(tmp_path / "streamed.mp4", iter(chunks), frame_rate=8)
    assert streamed.read_bytes() == whole.read_bytes()


def test_writing_keeps_one_chunk_in_memory_at_a_time(tmp_path, clip):
    given, alive = [], []

    def chunks():
        for frame in clip:
            chunk = frame.clone()
            given.append(weakref.ref(chunk))
            yield chunk
            del chunk
            alive.append(sum(reference() is not None for reference in given))

    write_video(tmp_path / "clip.mp4", chunks(), frame_rate=8)
    assert max(alive) <= 1


@pytest.mark.parametrize("asked", [{"start": 17}, {"start": 10, "num_frames": 8}, {"num_frames": 18}])
def test_asking_for_more_frames_than_there_are_says_how_many_there_are(tmp_path, clip, asked):
    path = write_video(tmp_path / "clip.mp4", clip, frame_rate=8)
    assert "has 17 frames" in message_of(read_video, path, **asked)


@pytest.mark.parametrize("asked", [{"start": -1}, {"num_frames": 0}])
def test_impossible_parts_are_refused(tmp_path, clip, asked):
    path = write_video(tmp_path / "clip.mp4", clip, frame_rate=8)
    assert "or more, got" in message_of(read_video, path, **asked)


# --- Metadata ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_metadata_comes_back_from_every_container(tmp_path, clip, suffix):
    metadata = generation_metadata(
        model="nano",
        version="0.1.0",
        seed=7,
        sizes={"stage1": (17, 96, 160), "stage2": (17, 384, 640)},
        steps={"stage1": 20, "stage2": 4},
        prompt='a "red" ball; x = 1 # \\ n\nréd 圆 🎈' + " and more" * 300,
        settings={"shift": 2.5},
    )
    path = write_video(tmp_path / f"clip{suffix}", clip[:2], frame_rate=8, metadata=metadata)
    assert read_metadata(path) == metadata
    assert probe_video(path).metadata == metadata


def test_generation_metadata_says_what_made_the_video():
    data = generation_metadata(
        model="nano",
        version="0.1.0",
        seed=7,
        sizes={"stage2": (17, 384, 640)},
        steps={"stage2": 4},
        prompt="a ball",
    )
    assert data == {
        "software": "flashvideo",
        "version": "0.1.0",
        "ai_generated": True,
        "model": "nano",
        "seed": 7,
        "sizes": {"stage2": {"num_frames": 17, "height": 384, "width": 640}},
        "steps": {"stage2": 4},
        "prompt": "a ball",
    }


def test_the_prompt_may_be_left_out():
    data = generation_metadata(model="nano", version="0.1.0", seed=None, sizes={}, steps={})
    assert "prompt" not in data
    assert "settings" not in data
    assert data["ai_generated"] is True


def test_a_size_without_three_numbers_is_refused():
    with pytest.raises(ValueError, match=r"num_frames, height, width.*got \(96, 160\)"):
        generation_metadata(model="nano", version="0", seed=1, sizes={"stage1": (96, 160)}, steps={})


@pytest.mark.parametrize("comment", [None, "filmed on holiday", "[1, 2]", "3"])
def test_a_foreign_comment_is_no_metadata(tmp_path, comment):
    path = tmp_path / "foreign.mkv"
    with av.open(str(path), "w") as container:
        if comment:
            container.metadata["comment"] = comment
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        container.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(stream.encode(None))
    assert read_metadata(path) == {}


# --- Files that cannot be read ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "read", [probe_video, read_video, read_metadata, lambda path: next(iter_frames(path))]
)
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.touch(), r"is empty (0 bytes)"),
        (lambda path: path.write_text("not a video\n" * 50), "is not a video"),
    ],
    ids=["missing", "folder", "empty", "text"],
)
def test_what_is_no_video_is_one_clear_sentence(tmp_path, read, make, expected):
    path = tmp_path / "clip.mp4"
    make(path)
    message = message_of(read, path)
    assert str(path) in message
    assert expected in message


def test_a_file_of_sound_alone_is_refused(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    assert "no video stream" in message_of(read_video, path)


def test_an_mp4_without_its_index_is_called_cut_off(tmp_path):
    path = tmp_path / "cut.mp4"
    path.write_bytes(b"\x00\x00\x00\x20ftypisom" + bytes(500))
    assert "index (moov) is missing" in message_of(read_video, path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("keep", [0.5, 0.8])
def test_a_file_that_is_cut_off_says_how_many_frames_are_left(tmp_path, noise, suffix, keep):
    short = cut(write_video(tmp_path / f"clip{suffix}", noise, frame_rate=8), keep)
    message = message_of(read_video, short)
    left = int(message.split("cut off: ")[1].split()[0])
    assert 0 < left < 17
    assert f"{left} of its 17 frames can be decoded" in message
    assert read_video(short, num_frames=left).frames.shape[0] == left


def test_of_a_file_that_is_cut_off_every_whole_frame_is_streamed_first(tmp_path, noise):
    path = write_video(tmp_path / "clip.mp4", noise, frame_rate=8)
    whole = read_video(path).frames
    short = cut(path, 0.6)
    with av.open(str(path)) as container:
        entries = container.streams.video[0].index_entries
        left = sum(entry.pos + entry.size <= short.stat().st_size for entry in entries)
    frames = []
    with pytest.raises(VideoError, match="cut off"):
        frames.extend(iter_frames(short))
    assert len(frames) == left
    assert torch.equal(torch.stack(frames), whole[:left])


def test_damage_in_the_middle_is_one_clear_sentence(tmp_path, noise):
    path = write_video(tmp_path / "clip.mp4", noise, frame_rate=8)
    with av.open(str(path)) as container:
        entry = container.streams.video[0].index_entries[8]
    data = bytearray(path.read_bytes())
    data[entry.pos : entry.pos + 4] = b"\xff\xff\xff\xff"  # the length of a unit that is longer than the file
    path.write_bytes(data)
    message = message_of(read_video, path)
    assert "is damaged" in message
    assert "of its 17 frames" in message


# --- Files that cannot be written -------------------------------------------------------------------------------------


def test_an_unknown_suffix_names_the_known_ones(tmp_path, clip):
    message = message_of(write_video, tmp_path / "clip.gif", clip, frame_rate=8)
    assert "'.gif'" in message
    assert ".mp4, .mov, .mkv, .webm" in message


@pytest.mark.parametrize("save", [lambda path, clip: write_video(path, clip, frame_rate=8), save_image])
def test_an_output_that_is_a_folder_is_refused(tmp_path, clip, save):
    assert "is a folder" in message_of(save, tmp_path, clip)


@pytest.mark.parametrize("folder", ["missing", "a_file"])
def test_an_output_without_a_folder_is_refused(tmp_path, clip, folder):
    (tmp_path / "a_file").touch()
    assert "create it first" in message_of(write_video, tmp_path / folder / "clip.mp4", clip, frame_rate=8)


def test_an_output_that_cannot_be_created_is_refused(tmp_path, clip, monkeypatch):
    def refuse(*args, **kwargs):
        raise av.error.PermissionError(13, "Permission denied")

    monkeypatch.setattr("flashvideo.video.writing.av.open", refuse)
    assert "cannot be written: Permission denied" in message_of(
        write_video, tmp_path / "clip.mp4", clip, frame_rate=8
    )
    assert list(tmp_path.iterdir()) == []


def test_a_missing_encoder_is_named(tmp_path, clip, monkeypatch):
    monkeypatch.setitem(writing._CONTAINERS, ".mp4", ("mp4", "libnone"))
    monkeypatch.setitem(writing._MAX_CRF, "libnone", 51)
    monkeypatch.setitem(writing._ENCODER_OPTIONS, "libnone", {})
    assert "needs the encoder libnone" in message_of(write_video, tmp_path / "a.mp4", clip, frame_rate=8)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_rename_leaves_nothing_behind(tmp_path, clip, monkeypatch):
    def refuse(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flashvideo.video.writing.os.replace", refuse)
    assert "No space left on device" in message_of(write_video, tmp_path / "clip.mp4", clip, frame_rate=8)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_midway_keeps_the_older_file(tmp_path, clip):
    path = write_video(tmp_path / "clip.mp4", clip, frame_rate=8)
    before = path.read_bytes()

    def chunks():
        yield clip
        raise RuntimeError("the model stopped")

    with pytest.raises(RuntimeError, match="the model stopped"):
        write_video(path, chunks(), frame_rate=8)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_existing_file_is_replaced(tmp_path, clip):
    path = write_video(tmp_path / "clip.mp4", clip, frame_rate=8)
    write_video(path, clip[:4], frame_rate=8)
    assert probe_video(path).num_frames == 4


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (torch.zeros(2, 4, 32, 32), r"shape (F, 3, H, W) or (3, H, W), got (2, 4, 32, 32)"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "got torch.uint8"),
        (torch.full((2, 3, 32, 32), torch.nan), "NaN"),
        (torch.zeros(0, 3, 32, 32), "no frames"),
        ([], "no frames"),
        ([torch.zeros(2, 3, 32, 32), torch.zeros(2, 3, 32, 34)], "frame 2 is 32x34"),
    ],
)
def test_frames_that_are_not_frames_are_refused(tmp_path, frames, expected):
    assert expected in message_of(write_video, tmp_path / "clip.mp4", frames, frame_rate=8)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("frame_rate", [0, -8, float("inf"), float("nan")])
def test_an_impossible_frame_rate_is_refused(tmp_path, clip, frame_rate):
    assert "frame_rate must be" in message_of(write_video, tmp_path / "clip.mp4", clip, frame_rate=frame_rate)


@pytest.mark.parametrize(("suffix", "crf"), [(".mp4", 52), (".webm", 64), (".mp4", -1)])
def test_a_crf_outside_the_encoders_scale_is_refused(tmp_path, clip, suffix, crf):
    assert "crf must lie between 0 and" in message_of(
        write_video, tmp_path / f"a{suffix}", clip, frame_rate=8, crf=crf
    )


# --- Pixels -----------------------------------------------------------------------------------------------------------


def test_resizing_is_bilinear_with_antialias():
    frames = torch.rand(2, 5, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    small = resize_video(frames, 6, 8)
    assert small.shape == (2, 5, 3, 6, 8)
    # A triangle as wide as two output pixels: 1, 3, 5, 7, 7, 5, 3, 1 over 32 for a factor of 4.
    weights = torch.tensor([1.0, 3, 5, 7, 7, 5, 3, 1]) / 32
    inner = frames[..., 2:10, 2:10]  # what output pixel (1, 1) sees
    expected = torch.einsum("...hw,h,w->...", inner, weights, weights)
    torch.testing.assert_close(small[..., 1, 1], expected)


def test_resizing_up_and_down_keeps_a_flat_colour():
    frames = torch.tensor([0.3, -0.6, 0.9])[:, None, None].expand(3, 30, 40)
    for size in [(120, 160), (7, 9), (31, 20)]:
        torch.testing.assert_close(resize_video(frames, *size), frames[:, :1, :1].expand(3, *size))


def test_resizing_keeps_the_dtype():
    assert resize_video(torch.zeros(2, 3, 8, 8, dtype=torch.bfloat16), 16, 16).dtype == torch.bfloat16


def test_resizing_to_the_same_size_changes_nothing():
    frames = torch.rand(2, 3, 9, 11)
    assert torch.equal(resize_video(frames, 9, 11), frames)


@pytest.mark.parametrize(
    ("shape", "size"),
    [((2, 4, 8, 8), (4, 4)), ((8, 8), (4, 4)), ((2, 3, 8, 8), (0, 4)), ((0, 3, 8, 8), (4, 4))],
)
def test_resizing_refuses_wrong_shapes(shape, size):
    with pytest.raises(ValueError, match=r"frames must have the shape|height and width must be"):
        resize_video(torch.zeros(shape), *size)


def test_resizing_refuses_integers():
    with pytest.raises(ValueError, match=r"got torch\.uint8"):
        resize_video(torch.zeros(3, 8, 8, dtype=torch.uint8), 4, 4)


def test_levels_round_and_clamp():
    frames = torch.tensor([-2.0, -1.0, -0.999, 0.0, 1.0, 1.5])
    assert to_uint8(frames).tolist() == [0, 0, 0, 128, 255, 255]
    levels = torch.arange(256)
    assert torch.equal(to_uint8(levels / 127.5 - 1), levels.to(torch.uint8))


def test_a_contact_sheet_lays_frames_out_by_rows():
    frames = torch.linspace(-1, 1, 5)[:, None, None, None].expand(5, 3, 4, 6)
    sheet = np.asarray(contact_sheet(frames, columns=3))
    assert sheet.shape == (8, 18, 3)
    assert sheet[::4, ::6, 0].tolist() == [[0, 64, 128], [191, 255, 0]]  # the last cell is empty


def test_a_contact_sheet_keeps_pixels_in_place():
    frames = torch.rand(2, 3, 4, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    sheet = np.asarray(contact_sheet(frames, columns=2))
    assert np.array_equal(sheet[:, 6:], to_uint8(frames[1]).permute(1, 2, 0).numpy())


def test_a_contact_sheet_without_columns_is_refused():
    with pytest.raises(ValueError, match="columns must be 1 or more"):
        contact_sheet(torch.zeros(2, 3, 4, 4), columns=0)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".PNG"])
def test_a_picture_is_saved_in_the_format_of_its_suffix(tmp_path, clip, suffix):
    path = save_image(tmp_path / f"frame{suffix}", clip[0])
    with Image.open(path) as picture:
        levels = torch.from_numpy(np.asarray(picture.convert("RGB")).copy()).permute(2, 0, 1)
    assert psnr(levels / 127.5 - 1, clip[0]) > 30
    assert list(tmp_path.iterdir()) == [path]


def test_a_png_is_exact(tmp_path, clip):
    sheet = contact_sheet(clip, columns=5)
    with Image.open(save_image(tmp_path / "sheet.png", sheet)) as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(sheet))


def test_a_picture_with_an_unknown_suffix_is_refused(tmp_path, clip):
    assert ".png, .jpg" in message_of(save_image, tmp_path / "frame.mp4", clip[0])


def test_a_failed_picture_leaves_nothing_behind(tmp_path, monkeypatch):
    def stop(self, file, **options):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    picture = contact_sheet(torch.zeros(1, 3, 4, 4), columns=1)
    monkeypatch.setattr(Image.Image, "save", stop)
    assert "No space left" in message_of(save_image, tmp_path / "frame.png", picture)
    assert list(tmp_path.iterdir()) == []
