"""Files to frames: what a header says, any frame at any time, frame rates, files that are not right."""

import dataclasses
import errno
import io
import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flashvideo.data.clips.decoding import (
    ClipHeader,
    decode_window,
    read_image,
    read_image_header,
    read_video_header,
)
from flashvideo.data.clips.entries import ClipEntry
from flashvideo.data.clips.files import ClipError, ClipFile
from flashvideo.data.clips.windows import find_part, num_frames_at, usable_span
from flashvideo.video import read_video
from flashvideo.video.colour import frames_from_levels, levels_from_image


def clip_file(path: Path) -> ClipFile:
    return ClipFile(url=str(path))


def frames_at(path, times, header=None):
    """Frames nearest to times, (F, 3, H, W)."""
    header = header or read_video_header(clip_file(path))
    window = decode_window(clip_file(path), times, header=header, cuts=False)
    return torch.stack([frames_from_levels(levels_from_image(image)) for image in window.images])


def entry_of(path, **options):
    return ClipEntry(
        name=str(path), key=path.name, file=clip_file(path), source="s", is_image=False, **options
    )


def part_of(path, num_frames, frame_rate, *, rng=None, avoid_cuts=False, tries=4, **options):
    part = find_part(
        entry_of(path, **options),
        read_video_header(clip_file(path)),
        num_frames=num_frames,
        frame_rate=frame_rate,
        rng=rng,
        avoid_cuts=avoid_cuts,
        tries=tries,
    )
    return part, torch.stack([frames_from_levels(levels_from_image(image)) for image in part.images])


# --- Headers ----------------------------------------------------------------------------------------------------------


def test_a_header_tells_size_length_and_rate(counted):
    assert read_video_header(clip_file(counted)) == ClipHeader(
        height=48, width=64, num_frames=24, frame_rate=24.0
    )


def test_a_header_has_the_size_as_shown(tmp_path, write_counted):
    turned = write_counted(tmp_path / "turned.mp4", num_frames=2, quarter_turns=1)
    wide = write_counted(tmp_path / "wide.mp4", num_frames=2, aspect=Fraction(4, 3))
    headers = [read_video_header(clip_file(path)) for path in (turned, wide)]
    assert [(header.height, header.width) for header in headers] == [(64, 48), (48, 85)]


def cut_off(path):
    """A copy of a file that lacks its last third."""
    short = path.with_name(f"short{path.suffix}")
    short.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    return short


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("index_last.mp4", "it is cut off: its index (moov) is missing"),
        ("index_first.mp4", "it is cut off: it ends before its own index or header says"),
        ("clip.mkv", "it is cut off: it ends before its own index or header says"),
        ("text.mp4", "it is no video that FFmpeg can read"),
        ("empty.mp4", "it is empty (0 bytes)"),
    ],
)
def test_a_file_that_is_cut_off_or_no_video_is_one_reason(tmp_path, write_counted, name, expected):
    path = tmp_path / name
    if name == "text.mp4":
        path.write_text("this is not a video")
    elif name == "empty.mp4":
        path.touch()
    else:
        options = {"movflags": "+faststart"} if name == "index_first.mp4" else {}
        path = cut_off(write_counted(path, num_frames=8, noise=255, container_options=options))
    with pytest.raises(ClipError) as caught:
        read_video_header(clip_file(path))
    assert expected in str(caught.value)


def test_a_playlist_reaches_no_other_file(tmp_path, write_counted):
    write_counted(tmp_path / "counted.ts")
    assert read_video_header(clip_file(tmp_path / "counted.ts")).num_frames == 24
    playlist = tmp_path / "list.mp4"
    for text in (
        "ffconcat version 1.0\nfile counted.ts\n",
        f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{tmp_path}/counted.ts\n#EXT-X-ENDLIST\n",
    ):
        playlist.write_text(text)
        with pytest.raises(ClipError, match="it is no video that FFmpeg can read"):
            read_video_header(clip_file(playlist))


# --- Any frame at any time --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("closed.mp4", {"bf": "3"}),
        ("open.mp4", {"bf": "3", "x264-params": "open-gop=1:keyint=8:min-keyint=8:scenecut=0"}),
        ("open.mkv", {"bf": "3", "x264-params": "open-gop=1:keyint=8:min-keyint=8:scenecut=0"}),
        ("transport.ts", {"bf": "2"}),
        ("entered_anywhere.ts", {"codec": "mpeg4"}),
        ("program.mpg", {"codec": "mpeg2video", "bf": "2"}),
        ("late.avi", {"codec": "mpeg4", "bf": "2"}),
        ("ten_bit.mp4", {"pix_fmt": "yuv422p10le"}),
        ("odd.mp4", {"pix_fmt": "yuv444p", "size": (47, 63)}),
    ],
)
def test_a_frame_reached_alone_is_the_frame_reached_in_order(tmp_path, write_counted, name, options):
    path = write_counted(tmp_path / name, noise=60, **options)
    truth = read_video(path).frames
    header = read_video_header(clip_file(path))
    assert len(truth) == 24
    for k in (0, 1, 6, 7, 8, 9, 15, 16, 17, 22, 23):
        assert torch.equal(frames_at(path, [k / 24], header)[0], truth[k]), k


def test_a_frame_near_the_end_does_not_need_the_beginning(tmp_path, write_counted, monkeypatch):
    path = write_counted(tmp_path / "clip.mp4", num_frames=40, gop=4)
    header = read_video_header(clip_file(path))
    decoded = []
    from flashvideo.data.clips import decoding

    inner = decoding._decode
    counting = lambda *args: (decoded.append(image) or image for image in inner(*args))  # noqa: E731
    monkeypatch.setattr(decoding, "_decode", counting)
    frames_at(path, [37 / 24], header)
    assert 1 <= len(decoded) <= 8


@pytest.mark.parametrize(
    ("name", "codec", "expected"),
    [
        ("clip.mp4", "libx264", "it cannot be decoded"),
        ("clip.avi", "mpeg4", "it is damaged at"),
        ("clip.mkv", "libx264", "it is damaged at"),
    ],
)
def test_damage_in_the_middle_is_one_reason_and_the_rest_is_read(
    tmp_path, write_counted, name, codec, expected
):
    path = write_counted(tmp_path / name, noise=255, codec=codec, num_frames=32, b="2M")
    header = read_video_header(clip_file(path))
    truth = frames_at(path, [0.0, 31 / 24], header)
    data = bytearray(path.read_bytes())
    middle, length = len(data) // 2, len(data) // 4
    data[middle : middle + length] = np.random.default_rng(0).bytes(length)
    path.write_bytes(data)
    with pytest.raises(ClipError, match=expected):
        frames_at(path, [k / 24 for k in range(8, 24)], header)
    assert torch.equal(frames_at(path, [0.0], header)[0], truth[0])
    assert torch.equal(frames_at(path, [31 / 24], header)[0], truth[1])


def test_a_gap_between_frames_is_one_reason(tmp_path, write_counted):
    path = write_counted(tmp_path / "gap.mkv", pause=6)  # seven periods from frame 11 to frame 12
    header = dataclasses.replace(read_video_header(clip_file(path)), frame_rate=24.0)
    with pytest.raises(ClipError, match="frames are missing at"):
        frames_at(path, [k / 24 for k in range(8, 20)], header)
    assert len(frames_at(path, [k / 24 for k in range(2, 12)], header)) == 10


# --- Frame rates ------------------------------------------------------------------------------------------------------


def test_a_film_at_8_frames_per_second_has_the_frames_nearest_to_each_eighth(
    tmp_path, write_counted, count_of
):
    rate = Fraction(24000, 1001)
    path = write_counted(tmp_path / "film.mp4", num_frames=40, rate=rate)
    part, frames = part_of(path, 13, 8.0)
    first = round(part.start * rate)
    nearest = [
        min(range(40), key=lambda k: abs(float(k / rate) - part.start - i / 8)) for i in range(13)
    ]  # ties do not come up
    assert (part.frame_rate, count_of(frames)) == (8.0, nearest)
    assert (first, nearest[-1]) == (1, 37)  # the middle of 40 frames; 12 / 8 s is 35.96 of them


def test_every_second_frame_is_taken_at_half_the_rate_and_ties_go_one_way(counted, count_of):
    assert count_of(part_of(counted, 5, 12.0, end=9 / 24)[1]) == [0, 2, 4, 6, 8]
    assert count_of(part_of(counted, 5, 16.0, end=7 / 24)[1]) == [0, 1, 3, 4, 6]


def test_a_video_slower_than_wanted_keeps_its_own_rate(counted, count_of):
    part, frames = part_of(counted, 9, 60.0)
    assert part.frame_rate == 24.0
    assert count_of(frames) == list(range(7, 16))  # none comes twice


def test_a_part_of_a_video_is_not_left(counted, count_of):
    entry = entry_of(counted, start=0.25, end=0.75)
    header = read_video_header(clip_file(counted))
    assert usable_span(entry, header) == (6 / 24, 17 / 24)
    assert [num_frames_at(entry, header, rate) for rate in (24, 12, 60)] == [12, 6, 12]
    rng = np.random.default_rng(0)
    drawn = [count_of(part_of(counted, 9, 24.0, rng=rng, start=0.25, end=0.75)[1]) for _ in range(20)]
    assert {frames[0] for frames in drawn} == {6, 7, 8, 9}
    assert all(frames == list(range(frames[0], frames[0] + 9)) for frames in drawn)


def test_a_video_that_ends_before_it_says_gives_what_it_has(counted, count_of):
    entry, true = entry_of(counted), read_video_header(clip_file(counted))
    boastful = dataclasses.replace(true, num_frames=60)
    rng = np.random.default_rng(3)
    for _ in range(8):
        part = find_part(entry, boastful, num_frames=9, frame_rate=24.0, rng=rng, avoid_cuts=False, tries=2)
        assert part.start <= 15 / 24
    with pytest.raises(ClipError, match="it is too short: 49 frames at 24 fps are wanted"):
        find_part(entry, boastful, num_frames=49, frame_rate=24.0, rng=None, avoid_cuts=False, tries=2)


# --- Cuts -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_scenes(tmp_path_factory, write_counted) -> Path:
    """24 frames, of which the second scene begins with frame 9."""
    return write_counted(tmp_path_factory.mktemp("cut") / "cut.mp4", cut=9)


def test_no_part_straddles_a_cut(two_scenes):
    for seed in range(12):
        part, _ = part_of(two_scenes, 9, 24.0, rng=np.random.default_rng(seed), avoid_cuts=True)
        assert part.start == 0 or part.start >= 9 / 24 - 1e-6


def test_the_scene_before_a_cut_is_tried_too(tmp_path, write_counted):
    path = write_counted(tmp_path / "cut.mp4", cut=18)  # the second scene is too short for 13 frames
    for seed in range(8):
        part, _ = part_of(path, 13, 24.0, rng=np.random.default_rng(seed), avoid_cuts=True, tries=2)
        assert part.start <= 5 / 24 + 1e-6


def test_a_part_may_straddle_a_cut_where_cuts_are_not_looked_for(two_scenes):
    assert part_of(two_scenes, 9, 24.0)[0].start == pytest.approx(7 / 24)


def test_the_middle_moves_to_the_longer_scene(two_scenes):
    assert part_of(two_scenes, 9, 24.0, avoid_cuts=True)[0].start == pytest.approx((9 + 3) / 24)


def test_a_cut_between_frames_that_are_left_out_counts(two_scenes):
    part, _ = part_of(two_scenes, 3, 6.0, avoid_cuts=True)  # spans 9 frames, too
    assert part.start >= 9 / 24 - 1e-6


def test_a_cut_right_behind_the_last_frame_does_no_harm(tmp_path, write_counted, count_of):
    path = write_counted(tmp_path / "cut.mp4", cut=5)
    _, frames = part_of(path, 4, 16.0, avoid_cuts=True, tries=1, end=6 / 24)
    assert count_of(frames) == [0, 1, 3, 4]  # of frames 4 and 5, as near to the last time, the earlier


def test_scenes_that_are_all_too_short_are_one_reason(two_scenes):
    with pytest.raises(ClipError, match="no 17 frames without a scene cut were found"):
        part_of(two_scenes, 17, 24.0, avoid_cuts=True)


# --- Pictures ---------------------------------------------------------------------------------------------------------


def test_a_picture_is_turned_upright(tmp_path, write_picture):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: what is on the left comes to the top
    path = write_picture(tmp_path / "phone.jpg", exif=exif, quality=95)
    assert read_image_header(clip_file(path)) == ClipHeader(height=64, width=48)
    levels = read_image(clip_file(path))
    assert levels.shape == (64, 48, 3)
    assert levels[:30, :, 0].min() > 200 > 50 > levels[34:, :, 0].max()


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("L", 100, (100, 100, 100)),
        ("I;16", 257 * 100, (100, 100, 100)),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("LA", (40, 255), (40, 40, 40)),
        ("1", 1, (255, 255, 255)),
    ],
)
def test_pictures_of_every_kind_become_rgb(tmp_path, mode, value, expected):
    Image.new(mode, (4, 3), value).save(tmp_path / "picture.png")
    levels = read_image(clip_file(tmp_path / "picture.png"))
    assert levels.shape == (3, 4, 3)
    assert np.array_equal(np.unique(levels.reshape(-1, 3), axis=0), [expected])


def test_a_picture_that_is_cut_off_or_none_is_one_reason(tmp_path, write_picture):
    short = cut_off(write_picture(tmp_path / "whole.png"))
    with pytest.raises(ClipError, match="it is no picture that can be read"):
        read_image(clip_file(short))
    short.write_text("no picture")
    with pytest.raises(ClipError, match="it is no picture that can be read"):
        read_image_header(clip_file(short))


def test_a_picture_that_could_not_be_read_for_now_is_not_called_a_bad_one(
    tmp_path, write_picture, monkeypatch
):
    picture = clip_file(write_picture(tmp_path / "whole.png"))

    class Failing(io.BytesIO):
        def read(self, size=-1):
            raise OSError(errno.EIO, "Input/output error")

    for read in (read_image, read_image_header):
        with monkeypatch.context() as patched:
            patched.setattr(ClipFile, "open", lambda self: Failing())
            with pytest.raises(OSError, match="Input/output error"):
                read(picture)
        read(picture)


def test_a_file_inside_a_shard_is_decoded_where_it_lies(tmp_path, counted, count_of):
    data = counted.read_bytes()
    (tmp_path / "shard").write_bytes(bytes(1000) + data + bytes(1000))
    file = ClipFile(url=str(tmp_path / "shard"), offset=1000, size=len(data))
    window = decode_window(file, [20 / 24], header=read_video_header(file), cuts=False)
    assert count_of(frames_from_levels(levels_from_image(i)) for i in window.images) == [20]
    assert list(itertools.chain(window.cuts)) == []
