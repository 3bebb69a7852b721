import json
import os
import shutil
import subprocess
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.videos import read_number, write_numbered_video
from vidprep.decode.pyav import PyavReader
from vidprep.engine import CannotWrite
from vidprep.errors import CorruptVideo, UsageError, VidprepError
from vidprep.extract import (
    FrameFacts,
    RateMode,
    extract,
    frame_size,
    open_frames,
    read_frame_index,
    select_frames,
)
from vidprep.index import folder_name
from vidprep.splits import Split
from vidprep.types import FrameFormat, Subsampling, Video

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg program")


def make_split(*videos: Video) -> Split:
    return Split(dataset="folder", split="val", task="single_label", classes=("one",), videos=videos)


def numbers_in(folder: Path) -> list[int]:
    return [read_number(np.asarray(Image.open(path))) for path in sorted(folder.iterdir())]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("rate_mode", "fps", "expected_count", "expected_first"),
    [
        ("filter", 5, 50, [2, 8, 14, 20]),
        ("output", 5, 52, [0, 1, 5, 11, 17]),
        ("filter", 1, 10, [14, 44, 74]),
        ("output", 1, 12, [0, 1, 26, 56]),
        ("output", 25, 252, [0, 1, 2, 3]),
        ("filter", None, 300, [0, 1, 2]),
        ("output", None, 300, [0, 1, 2]),
    ],
)
def test_ten_seconds_at_30_fps_give_as_many_frames_as_ffmpeg_does(
    rate_mode: RateMode, fps: float | None, expected_count: int, expected_first: list[int]
) -> None:
    chosen = select_frames(np.arange(300) / 30, fps=fps, rate_mode=rate_mode, frame_rate=30)
    assert len(chosen) == expected_count
    assert chosen[: len(expected_first)].tolist() == expected_first


@pytest.mark.parametrize(("fps", "rate_mode", "expected"), [(1, "filter", 13), (5, "filter", 65), (1, "output", 15)])
def test_thirteen_seconds_give_as_many_frames_as_ffmpeg_does(fps: float, rate_mode: RateMode, expected: int) -> None:
    assert len(select_frames(np.arange(390) / 30, fps=fps, rate_mode=rate_mode)) == expected


VARIABLE_STEPS_MS = [33, 100, 40, 17, 300, 66]
CONSTANT: dict[str, tuple[int, Fraction]] = {
    "30": (60, Fraction(30)),
    "ntsc": (75, Fraction(30000, 1001)),
    "25": (50, Fraction(25)),
    "6": (25, Fraction(6)),
    "three": (3, Fraction(10)),
}


@needs_ffmpeg
@pytest.mark.parametrize("name", [*CONSTANT, "variable"])
def test_the_frames_are_those_that_ffmpeg_writes(name: str, tmp_path: Path) -> None:
    if name == "variable":
        pts = np.cumsum([0, *VARIABLE_STEPS_MS * 7]).tolist()
        path = write_numbered_video(tmp_path / "a.mkv", num_frames=len(pts), pts=pts)
    else:
        num_frames, rate = CONSTANT[name]
        path = write_numbered_video(tmp_path / "a.mp4", num_frames=num_frames, fps=rate)
    with PyavReader(path) as reader:
        pts_seconds, guessed = reader.pts_seconds, reader.stream.guessed_rate
        assert guessed is not None
    for fps in (1, 7.5, 25):
        for rate_mode, options in (("filter", f"-vf fps={fps}"), ("output", f"-vf scale=iw:ih -r {fps}")):
            folder = tmp_path / f"{rate_mode}-{fps}"
            folder.mkdir()
            command = ["ffmpeg", "-v", "error", "-i", str(path), *options.split(), str(folder / "%05d.png")]
            subprocess.run(command, check=True)
            mode: RateMode = "filter" if rate_mode == "filter" else "output"
            chosen = select_frames(pts_seconds, fps=fps, rate_mode=mode, frame_rate=float(guessed))
            written = numbers_in(folder)
            # FFmpeg may write none at all; ours always gives one.
            assert chosen.tolist() == written or (not written and len(chosen) == 1), (fps, rate_mode)


@needs_ffmpeg
@pytest.mark.real
@pytest.mark.parametrize(
    "name", ["mmaction2_test.mp4", "mmaction2_demo_skeleton.mp4", "-video-with-dash-.mp4", "mmcv_test.mp4"]
)
def test_real_videos_give_as_many_frames_as_ffmpeg_does(name: str, testdata: Path, tmp_path: Path) -> None:
    path = testdata / "videos" / name
    for fps, rate_mode, options in ((5, "filter", "-vf fps=5,scale=32:32"), (5, "output", "-vf scale=32:32 -r 5")):
        subprocess.run(
            ["ffmpeg", "-v", "error", "-i", f"./{name}", *options.split(), str(tmp_path / f"{rate_mode}%05d.jpg")],
            check=True,
            cwd=path.parent,
        )
        settings = FrameFormat(fps=fps, rate_mode="filter" if rate_mode == "filter" else "output")
        with open_frames(path, Video(video_id=name), settings) as (facts, _):
            assert facts.num_frames == len(list(tmp_path.glob(f"{rate_mode}*")))


@given(
    steps=st.lists(st.floats(0.001, 3), max_size=60),
    fps=st.floats(0.2, 60),
    rate_mode=st.sampled_from(["filter", "output"]),
)
def test_selected_frames_ascend_and_exist(steps: list[float], fps: float, rate_mode: RateMode) -> None:
    times = np.cumsum([5.0, *steps])
    chosen = select_frames(times, fps=fps, rate_mode=rate_mode)
    assert len(chosen) >= 1
    assert np.all(np.diff(chosen) >= 0)
    assert chosen[0] >= 0
    assert chosen[-1] < len(times)


def test_frames_that_cannot_be_ordered_are_refused() -> None:
    with pytest.raises(ValueError, match="without frames"):
        select_frames([], fps=1)
    with pytest.raises(ValueError, match="must ascend"):
        select_frames([0.0, 2.0, 1.0], fps=1)


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [
        ((340, 256), None, (340, 256)),
        ((340, 256), 350, (465, 350)),
        ((340, 256), 224, (298, 224)),
        ((320, 568), 350, (350, 621)),
        ((320, 568), 256, (256, 454)),
        ((1, 1), 64, (64, 64)),
    ],
)
def test_the_short_side_is_exact_and_the_other_rounded_as_by_ffmpeg(
    size: tuple[int, int], short_side: int | None, expected: tuple[int, int]
) -> None:
    assert frame_size(*size, short_side) == expected


def test_extracted_frames_are_those_asked_for_under_their_names(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", num_frames=60, fps=30)
    settings = FrameFormat(fps=5, rate_mode="output", short_side=48, template="image_{:05d}.jpg")
    out = tmp_path / "frames" / "val"
    report = extract(make_split(Video(video_id="a")), {"a": path}, out=out, settings=settings)
    chosen = select_frames(np.arange(60) / 30, fps=5, rate_mode="output", frame_rate=30)
    assert [file.name for file in sorted((out / "a").iterdir())] == [
        f"image_{number:05d}.jpg" for number in range(1, len(chosen) + 1)
    ]
    assert numbers_in(out / "a") == chosen.tolist()
    assert (report.num_videos, report.num_frames, report.num_new, report.faults) == (1, 12, 1, ())
    facts = read_frame_index(out).frames["a"]
    assert (facts.num_frames, facts.width, facts.height, facts.fps) == (12, 64, 48, 5)
    assert (facts.source_num_frames, facts.source_width) == (60, 128)
    assert facts.source_fps == pytest.approx(30)
    assert facts.pts_seconds == pytest.approx((chosen / 30).tolist())


def test_frames_of_a_segment_count_from_its_start(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", num_frames=60, fps=10)
    video = Video(video_id="a", start_seconds=2.0, end_seconds=4.0)
    with open_frames(path, video, FrameFormat(fps=2)) as (facts, images):
        numbers = [read_number(simplejpeg.decode_jpeg(image)) for image in images]
    assert numbers == [22, 27, 32, 37]
    assert facts.folder == folder_name(video) == "a@2.000-4.000"
    outside = Video(video_id="a", start_seconds=7.0, end_seconds=9.0)
    with (
        pytest.raises(VidprepError, match=r"the segment 7 to 9 s lies outside the video .* \(60 frames in 6.000 s\)"),
        open_frames(path, outside, FrameFormat()),
    ):
        pass


def read_images(path: Path, video: Video, settings: FrameFormat) -> tuple[FrameFacts, list[bytes]]:
    with open_frames(path, video, settings) as (facts, images):
        return facts, list(images)


def test_uniform_frames_are_the_middle_of_equal_parts(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", num_frames=80, fps=10)
    facts, images = read_images(path, Video(video_id="a"), FrameFormat(num_frames=8))
    assert [read_number(simplejpeg.decode_jpeg(image)) for image in images] == [5, 15, 25, 35, 45, 55, 65, 75]
    assert facts.fps == pytest.approx(1.0)
    segment = Video(video_id="a", start_seconds=2, end_seconds=4)
    facts, images = read_images(path, segment, FrameFormat(num_frames=4))
    assert [read_number(simplejpeg.decode_jpeg(image)) for image in images] == [22, 27, 32, 37]
    assert facts.pts_seconds == pytest.approx([2.2, 2.7, 3.2, 3.7])


def test_uniform_frames_of_a_short_video_repeat(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", num_frames=3)
    facts, images = read_images(path, Video(video_id="a"), FrameFormat(num_frames=6))
    assert facts.num_frames == len(images) == 6
    assert [read_number(simplejpeg.decode_jpeg(image)) for image in images] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.avi", "mpeg4")])
def test_key_frames_are_those_that_are_marked(name: str, codec: str, tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / name, num_frames=60, codec=codec, gop=10)
    with av.open(str(path)) as container:
        marked = [index for index, frame in enumerate(container.decode(video=0)) if frame.key_frame]
    facts, images = read_images(path, Video(video_id="a"), FrameFormat(keyframes_only=True))
    assert [read_number(simplejpeg.decode_jpeg(image)) for image in images] == marked
    assert len(marked) == 6
    assert np.isnan(facts.fps)
    between = Video(video_id="a", start_seconds=0.1, end_seconds=0.2)
    with pytest.raises(VidprepError, match=r"none of the \d+ frames is a key frame; choose frames by fps or by number"):
        read_images(path, between, FrameFormat(keyframes_only=True))


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        (FrameFormat(short_side=48), (64, 48)),
        (FrameFormat(height=60), (80, 60)),
        (FrameFormat(width=50, height=70), (50, 70)),
        (FrameFormat(), (128, 96)),
    ],
)
@pytest.mark.parametrize("subsampling", ["420", "422", "444"])
def test_images_have_the_size_and_subsampling_asked_for(
    settings: FrameFormat, size: tuple[int, int], subsampling: Subsampling, tmp_path: Path
) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", num_frames=2)
    facts, images = read_images(path, Video(video_id="a"), replace(settings, subsampling=subsampling))
    assert (facts.width, facts.height) == size
    for number, image in enumerate(images):
        assert simplejpeg.decode_jpeg_header(image) == (*size[::-1], "YCbCr", subsampling)
        assert read_number(simplejpeg.decode_jpeg(image)) == number


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"fps": 5.0, "num_frames": 8}, "frames are chosen by fps, by num_frames or as key frames, got fps 5.0"),
        ({"num_frames": 0}, "num_frames must be at least 1 or None, got 0"),
        ({"width": 320}, "width is 1 pixel or more and goes with height, got 320"),
        ({"subsampling": "411"}, "subsampling is one of 420, 422, 444, got '411'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        FrameFormat(**wrong)


def test_every_frame_of_a_rotated_video_is_upright(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mov", num_frames=5, rotation=90)
    with open_frames(path, Video(video_id="a"), FrameFormat()) as (facts, images):
        assert [read_number(simplejpeg.decode_jpeg(image)) for image in images] == [0, 1, 2, 3, 4]
    assert (facts.width, facts.height) == (96, 128)


def test_a_restart_does_only_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    paths = {name: write_numbered_video(tmp_path / f"{name}.mp4", num_frames=10) for name in ("a", "b/c", "-d e")}
    split = make_split(*(Video(video_id=name) for name in paths))
    out = tmp_path / "frames"
    first = extract(split, paths, out=out, settings=FrameFormat(), workers=2)
    assert first.num_new == 3
    whole = tree(out)
    assert extract(split, paths, out=out, settings=FrameFormat()).num_new == 0
    # What a killed run leaves: a folder without a line in the journal, half a line, half a folder. (The last line of
    # one that came to its end says so.)
    journal = tmp_path / "frames.journal"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:-2]) + lines[-2][:20])
    (out / ".part" / "17-x").mkdir(parents=True)
    (out / ".part" / "17-x" / "image_00001.jpg").touch()
    again = extract(split, paths, out=out, settings=FrameFormat(), workers=2)
    assert again.num_new == 1
    assert again.num_videos == 3
    assert tree(out) == whole
    assert len(read_frame_index(out).frames) == 3


def test_videos_without_frames_are_listed_with_their_reasons(tmp_path: Path) -> None:
    good = write_numbered_video(tmp_path / "a.mp4", num_frames=10)
    (tmp_path / "empty.mp4").touch()
    split = make_split(*(Video(video_id=name) for name in ("a", "empty", "gone")))
    paths = {"a": good, "empty": tmp_path / "empty.mp4"}
    out = tmp_path / "frames"
    report = extract(split, paths, out=out, settings=FrameFormat())
    assert [fault.video_id for fault in report.faults] == ["empty", "gone"]
    assert "is empty (0 bytes)" in report.faults[0].reason
    assert report.faults[1].reason == "no file found for it"
    assert (tmp_path / "frames.faults.csv").read_text().splitlines()[0] == "video_id,reason,path,kind"
    assert extract(split, paths, out=out, settings=FrameFormat()).faults == report.faults
    # A replaced file is tried again.
    shutil.copy(good, paths["empty"])
    mended = extract(split, paths, out=out, settings=FrameFormat())
    assert [fault.video_id for fault in mended.faults] == ["gone"]
    assert mended.num_new == 1


def test_a_video_that_stops_decoding_leaves_no_folder(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mkv", num_frames=100)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3000] = os.urandom(3000)
    path.write_bytes(data)
    report = extract(make_split(Video(video_id="a")), {"a": path}, out=tmp_path / "out", settings=FrameFormat())
    # Damage may hit bytes that nothing checks; where it is noticed there is no folder.
    assert len(report.faults) == 1 - (tmp_path / "out" / "a").exists()
    assert list((tmp_path / "out").rglob(".part")) == []


def test_other_settings_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", num_frames=10)
    split = make_split(Video(video_id="a"))
    extract(split, {"a": path}, out=tmp_path / "out", settings=FrameFormat(fps=5))
    with pytest.raises(UsageError, match=r"out: holds frames of other settings \(fps was 5, now None\)"):
        extract(split, {"a": path}, out=tmp_path / "out", settings=FrameFormat())


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    split = make_split(Video(video_id="a"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(UsageError, match="holds files that no `vidprep extract` recorded"):
        extract(split, {}, out=tmp_path / "out", settings=FrameFormat())
    with pytest.raises(UsageError, match="is a file; give --out the name of a folder"):
        extract(split, {}, out=tmp_path / "out" / "mine.txt", settings=FrameFormat())


@pytest.mark.parametrize("video_id", ["../evil", "/evil", "a/../../evil", "."])
def test_ids_cannot_write_outside_the_folder(video_id: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="would lie outside"):
        extract(make_split(Video(video_id=video_id)), {}, out=tmp_path / "out", settings=FrameFormat())


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="folder/val: the split is empty"):
        extract(make_split(), {}, out=tmp_path / "out", settings=FrameFormat())


def test_a_target_that_cannot_be_written_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CannotWrite, match="cannot be written"):
        extract(make_split(Video(video_id="a")), {}, out=tmp_path / "file" / "out", settings=FrameFormat())


def test_a_source_that_changes_while_it_is_read_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", num_frames=10)

    def change(*_: object, **__: object) -> bytes:
        path.touch()
        return b"jpeg"

    monkeypatch.setattr("vidprep.encode.JpegEncoder.encode", change)
    report = extract(make_split(Video(video_id="a")), {"a": path}, out=tmp_path / "out", settings=FrameFormat())
    assert "changed while it was read" in report.faults[0].reason


def test_an_index_that_is_missing_or_damaged_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no index of extracted frames; run `vidprep extract`"):
        read_frame_index(tmp_path / "out")
    (tmp_path / "out.journal").write_text(json.dumps({}))
    (tmp_path / "out.parquet").write_bytes(b"nonsense")
    with pytest.raises(VidprepError, match="not a readable index of frames"):
        read_frame_index(tmp_path / "out")


def test_corrupt_video_is_the_error_of_a_source_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"not a video" * 100)
    with (
        pytest.raises(CorruptVideo, match=r"a\.mp4"),
        open_frames(tmp_path / "a.mp4", Video(video_id="a"), FrameFormat()),
    ):
        pass
