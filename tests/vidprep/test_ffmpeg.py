import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.videos import read_number, write_numbered_video
from vidprep.errors import UsageError
from vidprep.extract import ExtractReport, extract, read_frame_index
from vidprep.ffmpeg import FfmpegOptions
from vidprep.splits import Split
from vidprep.types import FrameFormat, Video
from vidprep.workers import end_idle

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg program")


def run(
    path: Path, out: Path, settings: FrameFormat, options: FfmpegOptions | None, video: Video | None = None
) -> ExtractReport:
    video = video or Video(video_id="a")
    split = Split(dataset="folder", split="val", task="single_label", classes=("one",), videos=(video,))
    return extract(split, {"a": path}, out=out, settings=settings, ffmpeg=options)


def numbers_in(folder: Path) -> list[int]:
    return [read_number(np.asarray(Image.open(path))) for path in sorted(folder.iterdir())]


@needs_ffmpeg
@pytest.mark.parametrize(
    ("chosen", "size"),
    [
        ({}, {}),
        ({"fps": 5.0, "rate_mode": "filter"}, {}),
        ({"fps": 5.0, "rate_mode": "output"}, {}),
        ({"num_frames": 8}, {"short_side": 48}),
        ({"num_frames": 100}, {"height": 60}),
        ({"keyframes_only": True}, {"width": 50, "height": 70}),
    ],
)
def test_the_program_writes_the_frames_that_pyav_does(chosen: Any, size: Any, tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", num_frames=60, fps=30, gop=20)
    settings = FrameFormat(**chosen, **size, template="img_{:03d}.jpg", first_index=0)
    report = run(path, tmp_path / "theirs", settings, FfmpegOptions())
    assert report.faults == ()
    run(path, tmp_path / "ours", settings, None)
    names = [image.name for image in sorted((tmp_path / "theirs" / "a").iterdir())]
    assert names == [image.name for image in sorted((tmp_path / "ours" / "a").iterdir())]
    assert numbers_in(tmp_path / "theirs" / "a") == numbers_in(tmp_path / "ours" / "a")
    [theirs], [ours] = (read_frame_index(tmp_path / side).frames.values() for side in ("theirs", "ours"))
    assert (theirs.num_frames, theirs.width, theirs.height) == (ours.num_frames, ours.width, ours.height)
    assert (theirs.source_num_frames, theirs.source_width) == (60, 128)
    if "fps" not in chosen:  # there the program tells the times of its ticks, not of the frames
        assert theirs.pts_seconds == pytest.approx(ours.pts_seconds, abs=1e-4)


@needs_ffmpeg
def test_a_segment_is_counted_from_its_start(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", num_frames=60, fps=10)
    video = Video(video_id="a", start_seconds=2.0, end_seconds=4.0)
    run(path, tmp_path / "out", FrameFormat(num_frames=4), FfmpegOptions(), video)
    assert numbers_in(tmp_path / "out" / "a@2.000-4.000") == [22, 27, 32, 37]
    [facts] = read_frame_index(tmp_path / "out").frames.values()
    assert facts.pts_seconds == pytest.approx([2.2, 2.7, 3.2, 3.7])


@needs_ffmpeg
@pytest.mark.parametrize("template", ["{:05d}.jpg", "{:05d}.png"])
def test_filters_of_the_user_change_the_pictures(template: str, tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", num_frames=4)
    options = FfmpegOptions(filter="crop=64:48:0:0,negate", qscale=5)
    run(path, tmp_path / "out", FrameFormat(template=template, subsampling="444"), options)
    with Image.open(tmp_path / "out" / "a" / template.format(1)) as image:
        assert image.size == (64, 48)
        cropped = np.asarray(image.convert("L")).astype(int)
    plain = run(path, tmp_path / "plain", FrameFormat(template="{:05d}.png"), FfmpegOptions())
    assert plain.num_frames == 4
    with Image.open(tmp_path / "plain" / "a" / "00001.png") as image:
        whole = np.asarray(image.convert("L")).astype(int)
    assert np.abs(255 - cropped - whole[:48, :64]).mean() < 8
    with pytest.raises(UsageError, match=r"holds frames of other settings \(ffmpeg.qscale was 5, now 2\)"):
        run(
            path,
            tmp_path / "out",
            FrameFormat(template=template, subsampling="444"),
            FfmpegOptions(filter=options.filter),
        )


@needs_ffmpeg
def test_what_the_program_complains_of_is_the_reason(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", num_frames=4)
    [fault] = run(path, tmp_path / "filter", FrameFormat(), FfmpegOptions(filter="crop=6400:6400")).faults
    assert "ffmpeg ends with an error" in fault.reason
    (tmp_path / "b.mp4").write_bytes(b"not a video" * 100)
    [fault] = run(tmp_path / "b.mp4", tmp_path / "file", FrameFormat(), FfmpegOptions()).faults
    assert "ffprobe does not open it: " in fault.reason
    assert "Invalid data found" in fault.reason
    assert not list((tmp_path / "file").rglob("*.jpg"))
    [fault] = run(path, tmp_path / "none", FrameFormat(), FfmpegOptions(filter="select=0")).faults
    assert "the program wrote no frame of it" in fault.reason
    (tmp_path / "empty.mp4").touch()
    [fault] = run(tmp_path / "empty.mp4", tmp_path / "empty", FrameFormat(), FfmpegOptions()).faults
    assert (fault.kind, fault.reason) == ("empty", "is empty (0 bytes); fetch it again")  # as the other backend says


@needs_ffmpeg
@pytest.mark.parametrize(
    ("filters", "found"), [("nonsense=3", "No such filter: 'nonsense'"), ("crop=qq=3", "Option 'qq' not found")]
)
def test_a_filter_that_the_program_does_not_know_is_refused_before_the_run(
    filters: str, found: str, tmp_path: Path
) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", num_frames=4)
    with pytest.raises(UsageError, match=f"--filter {filters}: {found}; `ffmpeg -filters` lists them"):
        run(path, tmp_path / "out", FrameFormat(), FfmpegOptions(filter=filters))
    assert not (tmp_path / "out").exists()


@needs_ffmpeg
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a program with the process that started it")
def test_a_program_that_hangs_ends_with_its_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs, mark = tmp_path / "programs", tmp_path / "pid"
    programs.mkdir()
    (programs / "ffprobe").write_text(f"#!/bin/sh\necho $$ > '{mark}'\nexec sleep 60\n")
    (programs / "ffprobe").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    path = write_numbered_video(tmp_path / "a.mp4", num_frames=4)
    split = Split(dataset="folder", split="val", task="single_label", classes=("one",), videos=(Video(video_id="a"),))
    end_idle()  # processes that wait for work know another PATH
    report = extract(
        split,
        {"a": path},
        out=tmp_path / "out",
        settings=FrameFormat(),
        ffmpeg=FfmpegOptions(),
        time_limit_seconds=2.0,
    )
    end_idle()
    assert [fault.kind for fault in report.faults] == ["hung"]
    status = Path(f"/proc/{int(mark.read_text())}/status")
    deadline = time.monotonic() + 5
    while status.exists() and "(zombie)" not in status.read_text():
        assert time.monotonic() < deadline, "the program is still running"
        time.sleep(0.05)


def test_a_missing_program_is_said_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"needs the program ffmpeg .* on the PATH: apt install ffmpeg"):
        run(tmp_path / "a.mp4", tmp_path / "out", FrameFormat(), FfmpegOptions())


def test_a_quality_that_the_program_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match="qscale lies between 2 and 31, got 1"):
        FfmpegOptions(qscale=1)
