"""The exact sparse decoder: every frame that it gives is the one that a plain decode gives, bit for bit."""

import gc
import io
import random
import shutil
import subprocess
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.videos import SecondStream, decode_plainly, number_image, read_number, write_numbered_video
from vidprep.decode.pyav import PyavReader
from vidprep.errors import CorruptVideo, MissingVideo

NUM_FRAMES = 45

# name -> (file, arguments of write_numbered_video, whether packets can be matched with frames)
VIDEOS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "h264": ("a.mp4", {}, True),
    "h264 without B-frames": ("a.mp4", {"bframes": 0}, True),
    "h264 open GOP": ("a.mp4", {"open_gop": True}, True),
    "h264 of one GOP": ("a.mkv", {"gop": 250}, True),
    "h264 in MPEG-TS": ("a.ts", {}, True),
    "h264 in FLV": ("a.flv", {}, True),
    "h264 in AVI": ("a.avi", {}, False),
    "h264 interlaced": ("a.mp4", {"options": {"flags": "+ildct+ilme"}}, False),
    "h264 intra refresh": ("a.mp4", {"bframes": 0, "options": {"intra-refresh": "1"}}, True),
    "h264 lossless 4:4:4": ("a.mp4", {"pixel_format": "yuv444p", "options": {"qp": "0"}}, True),
    "h264 variable rate": ("a.mp4", {"pts": [i * i for i in range(NUM_FRAMES)]}, True),
    "h264 late and large times": ("a.mkv", {"pts": [2**33 + 40 * i for i in range(NUM_FRAMES)]}, True),
    "h264 rotated 90": ("a.mp4", {"rotation": 90}, True),
    "h264 rotated 180": ("a.mp4", {"rotation": 180}, True),
    "h264 rotated 270": ("a.mov", {"rotation": 270}, True),
    "hevc": ("a.mp4", {"codec": "libx265"}, True),
    "hevc open GOP": ("a.mkv", {"codec": "libx265", "open_gop": True}, True),
    "hevc in MPEG-TS": ("a.ts", {"codec": "libx265"}, True),
    "vp8": ("a.webm", {"codec": "libvpx"}, True),
    "vp9": ("a.webm", {"codec": "libvpx-vp9"}, True),
    "vp9 in MP4": ("a.mp4", {"codec": "libvpx-vp9"}, True),
    "av1": ("a.mkv", {"codec": "libsvtav1"}, True),
    "av1 in MP4": ("a.mp4", {"codec": "libsvtav1"}, True),
    "mpeg4 in AVI": ("a.avi", {"codec": "mpeg4"}, False),
    "mpeg4 with B-frames in AVI": ("a.avi", {"codec": "mpeg4", "bframes": 2}, False),
    "mpeg4 in MP4": ("a.mp4", {"codec": "mpeg4", "bframes": 2}, False),
    "mpeg2 in MPEG-PS": ("a.mpg", {"codec": "mpeg2video", "bframes": 2}, False),
    "mjpeg": ("a.avi", {"codec": "mjpeg", "pixel_format": "yuvj420p"}, False),
}


@pytest.fixture(scope="module", params=VIDEOS, ids=lambda name: name.replace(" ", "-"))
def video(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bool]:
    file, arguments, is_mapped = VIDEOS[request.param]
    path = tmp_path_factory.mktemp("videos") / file
    return write_numbered_video(path, num_frames=NUM_FRAMES, **arguments), is_mapped


def write(tmp_path: Path, **arguments: Any) -> Path:
    return write_numbered_video(tmp_path / "video.mp4", **{"num_frames": NUM_FRAMES, **arguments})


def assert_exact(path: Path, indices: Sequence[int], **arguments: Any) -> None:
    truth = list(decode_plainly(path))
    with PyavReader(path, **arguments) as reader:
        assert reader.num_frames == len(truth)
        batch = reader.get_frames_at(indices)
    for picture, index in zip(batch.data, indices, strict=True):
        assert np.array_equal(picture, truth[index]), f"frame {index}"


def test_any_frames_in_any_order_are_those_of_a_plain_decode(video: tuple[Path, bool]) -> None:
    path, is_mapped = video
    rng = random.Random(0)
    truth = list(decode_plainly(path))
    with PyavReader(path) as reader:
        assert (reader.sequential_reason is None) == is_mapped, reader.sequential_reason
        assert reader.num_frames == NUM_FRAMES
        assert (reader.height, reader.width) == truth[0].shape[1:]
        for length in (1, 2, 5, 16, 60):
            indices = rng.choices(range(NUM_FRAMES), k=length)
            batch = reader.get_frames_at(indices)
            assert [read_number(picture) for picture in batch.data] == indices
            assert all(np.array_equal(picture, truth[at]) for picture, at in zip(batch.data, indices, strict=True))
            assert np.array_equal(batch.pts_seconds, reader.pts_seconds[indices])


def test_every_single_frame_is_exact(video: tuple[Path, bool]) -> None:
    path, is_mapped = video
    truth = list(decode_plainly(path))
    with PyavReader(path) as reader:
        for index in range(0, NUM_FRAMES, 1 if is_mapped else 11):
            assert np.array_equal(reader.get_frames_at([index]).data[0], truth[index]), f"frame {index}"


def test_times_ascend_and_are_those_of_the_file(video: tuple[Path, bool]) -> None:
    path, _ = video
    with PyavReader(path) as reader, av.open(str(path)) as container:
        stream = container.streams.best("video")
        assert isinstance(stream, av.VideoStream)
        stored = sorted(frame.time for frame in container.decode(stream))
        assert np.allclose(reader.pts_seconds, stored, rtol=1e-12, atol=1e-9)
        assert (np.diff(reader.pts_seconds) > 0).all()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_structures_are_exact(tmp_path: Path, data: st.DataObject) -> None:
    codec = data.draw(st.sampled_from(["libx264", "libx265"]))
    num_frames = data.draw(st.integers(1, 40))
    path = write_numbered_video(
        tmp_path / "random.mkv",
        num_frames=num_frames,
        codec=codec,
        gop=data.draw(st.integers(1, 20)),
        bframes=data.draw(st.integers(0, 5)),
        open_gop=data.draw(st.booleans()),
        width=64,
        height=64,
    )
    indices = data.draw(st.lists(st.integers(0, num_frames - 1), max_size=10))
    assert_exact(path, indices)


def test_only_the_needed_packets_are_decoded(tmp_path: Path) -> None:
    path = write(tmp_path, num_frames=120, gop=12)
    with PyavReader(path) as reader:
        assert reader._table is not None
        sent = [len(run.packets) for run in reader._table.plan([0, 100])]
    assert sent[0] == 1
    assert len(sent) == 2
    assert sent[1] <= 6


def test_open_gop_key_frames_are_no_entries(tmp_path: Path) -> None:
    path = write(tmp_path, open_gop=True)
    with PyavReader(path) as reader:
        assert reader._table is not None
        assert reader.num_keyframes == 4
        assert list(reader._table.entries) == [0]


def test_bytes_are_read_like_a_file(tmp_path: Path) -> None:
    path = write(tmp_path)
    with PyavReader(path.read_bytes()) as reader, PyavReader(path) as from_file:
        assert np.array_equal(reader.get_frames_at([3, 40]).data, from_file.get_frames_at([3, 40]).data)


def test_streams_too_large_to_keep_are_read_again(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert_exact(path, [44, 0, 17, 17, 20], kept_packet_bytes=100)


def test_the_best_of_two_streams_is_read(tmp_path: Path) -> None:
    second = SecondStream(num_frames=20, width=64, height=48, start=500, comes_first=True)
    path = write(tmp_path, num_frames=30, second_stream=second)
    with av.open(str(path)) as container:
        best = container.streams.best("video")
        assert best is not None
        expected = (500, 20) if best.index == 0 else (0, 30)
    with PyavReader(path) as reader:
        assert (read_number(reader.get_frames_at([0]).data[0]), reader.num_frames) == expected


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_mirrored_videos_are_shown_as_players_show_them(tmp_path: Path, rotation: int) -> None:
    path = write(tmp_path, num_frames=3, rotation=rotation, mirrored=True)
    with PyavReader(path) as reader:
        assert [read_number(picture) for picture in reader.get_frames_at([0, 1, 2]).data] == [0, 1, 2]


@pytest.mark.parametrize("rotation", [0, 90])
def test_frames_are_freed_as_they_are_passed(tmp_path: Path, rotation: int) -> None:
    path = write(tmp_path, rotation=rotation)
    gc.collect()
    gc.disable()
    try:
        before = count_stored_frames()
        with PyavReader(path) as reader:
            for picture in reader.iterate_frames(range(NUM_FRAMES)):
                del picture
                # The one that was just given, and those that the decoder gave together with it.
                assert count_stored_frames() - before <= 4
    finally:
        gc.enable()


def count_stored_frames() -> int:
    # Their types alone: to ask some objects of other packages what they are makes them warn.
    return sum(type(found) is av.VideoFrame for found in gc.get_objects())


def test_frames_before_the_start_of_an_edit_list_are_not_counted(tmp_path: Path) -> None:
    if shutil.which("ffmpeg") is None:
        pytest.skip("needs the ffmpeg command")
    path, cut = write(tmp_path), tmp_path / "cut.mp4"
    command = ["ffmpeg", "-v", "error", "-ss", "0.5", "-i", str(path), "-c", "copy", str(cut)]
    subprocess.run(command, check=True)
    with PyavReader(cut) as reader:
        assert reader.num_discarded_packets > 0
        assert reader.sequential_reason is None
        num_frames = reader.num_frames
    assert num_frames < NUM_FRAMES
    assert_exact(cut, range(num_frames))


def test_a_stream_that_starts_between_key_frames_is_decoded_in_order(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "whole.ts", num_frames=NUM_FRAMES, open_gop=True)
    cut = tmp_path / "cut.ts"
    with av.open(str(path)) as source, av.open(str(cut), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        for number, packet in enumerate(source.demux(stream)):
            if packet.dts is not None and number >= 5:
                packet.stream = copy
                target.mux(packet)
    with PyavReader(cut) as reader:
        assert reader.sequential_reason is not None
        numbers = [read_number(picture) for picture in reader.get_frames_at(range(reader.num_frames)).data]
    assert numbers == list(range(NUM_FRAMES - len(numbers), NUM_FRAMES))
    assert len(numbers) >= 20


def test_a_stream_whose_size_changes_is_refused_where_it_does(tmp_path: Path) -> None:
    small = write_numbered_video(tmp_path / "small.ts", num_frames=12, width=64, height=48, gop=12)
    large = write_numbered_video(tmp_path / "large.ts", num_frames=12, width=128, height=96, gop=12, start=12)
    path = tmp_path / "both.ts"
    with av.open(str(path), "w") as target:
        copy = None
        for number, part in enumerate((small, large)):
            with av.open(str(part)) as source:
                copy = copy or target.add_stream_from_template(source.streams.video[0])
                for packet in source.demux(video=0):
                    if packet.dts is None:
                        continue
                    packet.pts = (packet.pts or 0) + number * 60_000
                    packet.dts += number * 60_000
                    packet.stream = copy
                    target.mux(packet)
    with PyavReader(path) as reader:
        assert reader.sequential_reason == "the H.264 parameter sets change"
        assert [read_number(picture) for picture in reader.get_frames_at([0, 11]).data] == [0, 11]
        assert [read_number(picture) for picture in reader.get_frames_at([12, 23]).data] == [12, 23]
        with pytest.raises(CorruptVideo, match="frame 12 is 128x96 pixels, frames before it 64x48"):
            reader.get_frames_at([11, 12])


def test_duplicate_times_are_decoded_in_order(tmp_path: Path) -> None:
    path = tmp_path / "twice.mkv"
    source = write_numbered_video(tmp_path / "a.mkv", num_frames=20, bframes=0)
    with av.open(str(source)) as opened, av.open(str(path), "w") as target:
        copy = target.add_stream_from_template(opened.streams.video[0])
        for number, packet in enumerate(opened.demux(video=0)):
            if packet.dts is not None:
                packet.pts = packet.dts = number // 2 * 66
                packet.stream = copy
                target.mux(packet)
    with PyavReader(path) as reader:
        assert reader.sequential_reason == "several packets with one presentation time"
        assert [read_number(picture) for picture in reader.get_frames_at([0, 7, 19]).data] == [0, 7, 19]


def test_a_name_that_looks_like_a_protocol_or_an_option_is_a_name(tmp_path: Path) -> None:
    for name in ("concat:a.mp4", "-y.mp4", "http:x.mp4", "é%03d.mp4"):
        path = shutil.copy(write(tmp_path, num_frames=2), tmp_path / name)
        with PyavReader(path) as reader:
            assert reader.num_frames == 2


def test_no_frames_are_an_empty_batch(tmp_path: Path) -> None:
    with PyavReader(write(tmp_path, num_frames=2)) as reader:
        batch = reader.get_frames_at([])
    assert batch.data.shape == (0, 3, 96, 128)
    assert batch.pts_seconds.shape == (0,)


@pytest.mark.parametrize("index", [-1, NUM_FRAMES])
def test_an_index_outside_the_video_is_an_error(tmp_path: Path, index: int) -> None:
    with PyavReader(write(tmp_path)) as reader, pytest.raises(IndexError, match=f"frame {index} .* frames 0 to 44"):
        reader.get_frames_at([0, index])


def test_frames_are_iterated_in_one_pass(tmp_path: Path) -> None:
    with PyavReader(write(tmp_path)) as reader:
        assert [read_number(frame) for frame in reader.iterate_frames([0, 5, 44])] == [0, 5, 44]
        with pytest.raises(ValueError, match="ascending"):
            list(reader.iterate_frames([5, 5]))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingVideo, match=r"gone\.mp4: no such file"):
        PyavReader(tmp_path / "gone.mp4")


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "empty.mp4"
    path.touch()
    with pytest.raises(CorruptVideo, match=r"empty\.mp4: is empty \(0 bytes\)"):
        PyavReader(path)


def test_a_directory_is_no_video(tmp_path: Path) -> None:
    with pytest.raises(CorruptVideo, match="is a directory"):
        PyavReader(tmp_path)


def test_an_mp4_that_is_cut_short_misses_its_index(tmp_path: Path) -> None:
    content = write(tmp_path).read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(content[: content.index(b"moov") - 4])
    with pytest.raises(CorruptVideo, match=r"cut\.mp4: .*the moov atom\) is missing, the file is cut short"):
        PyavReader(cut)


def test_text_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "page.mp4"
    path.write_text("<html>404 not found</html>")
    with pytest.raises(CorruptVideo, match=r"page\.mp4: cannot be opened as a video: Invalid data"):
        PyavReader(path)


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(CorruptVideo, match=r"sound\.mp4: holds no video stream"):
        PyavReader(path)


def test_damage_in_the_stream_names_the_frame(tmp_path: Path) -> None:
    path = write(tmp_path, gop=10, bframes=0, num_frames=30)
    with av.open(str(path)) as container:
        place = next(packet.pos for packet in container.demux(video=0) if packet.pts == 10 * 512)
    assert place is not None
    content = bytearray(path.read_bytes())
    start = content.index(b"\x65", place)  # the IDR slice; its header becomes nonsense
    content[start + 1 : start + 40] = bytes(39)
    path.write_bytes(content)
    with PyavReader(path) as reader:
        assert read_number(reader.get_frames_at([3]).data[0]) == 3
        with pytest.raises(CorruptVideo, match="frame 12 of 30 does not"):
            reader.get_frames_at([12])


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.mkv", "libx265"), ("a.webm", "libvpx-vp9"), ("a.mkv", "libsvtav1"), ("a.avi", "mpeg4")],
)
def test_damaged_files_give_frames_or_an_error_that_says_so(tmp_path: Path, name: str, codec: str) -> None:
    content = write_numbered_video(tmp_path / name, num_frames=24, codec=codec).read_bytes()
    messages = []
    for seed in range(24):
        damaged = damage(content, random.Random(seed))
        try:
            with PyavReader(damaged) as reader:
                batch = reader.get_frames_at(np.linspace(0, reader.num_frames - 1, 6).astype(int))
            assert batch.data.shape[:2] == (6, 3)
        except CorruptVideo as error:
            messages.append(str(error))
    assert messages
    assert all(message.startswith("video of ") for message in messages)


def damage(content: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(content)
    kind = rng.randrange(3)
    if kind == 0:
        return bytes(damaged[: rng.randrange(1, len(damaged))])
    if kind == 1:
        start = rng.randrange(len(damaged))
        del damaged[start : start + rng.randrange(1, 200)]
        return bytes(damaged)
    for _ in range(rng.randrange(1, 20)):
        damaged[rng.randrange(len(damaged))] = rng.randrange(256)
    return bytes(damaged)


def test_readers_leave_no_files_open(tmp_path: Path) -> None:
    path = write(tmp_path)
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("needs /proc")

    def open_files() -> list[str]:
        return [str(link.readlink()) for link in folder.iterdir() if link.is_symlink()]

    with PyavReader(path, kept_packet_bytes=10) as reader:
        reader.get_frames_at([3, 20])
    assert str(path) not in open_files()


def test_a_video_made_of_pictures_of_any_size_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "odd.mkv"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(30000, 1001))
        stream.width, stream.height, stream.pix_fmt = 131, 97, "yuv444p"
        for number in range(5):
            picture = number_image(number, width=131, height=97)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    assert_exact(path, [4, 0, 2])
    with PyavReader(io.BytesIO(path.read_bytes()).getvalue()) as reader:
        assert (reader.width, reader.height) == (131, 97)
