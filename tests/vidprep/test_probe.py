import math
from pathlib import Path
from typing import Any

import pytest

from tests.videos import write_numbered_video
from vidprep.errors import CorruptVideo, MissingVideo
from vidprep.probe import check, probe


def write(tmp_path: Path, name: str = "video.mp4", **arguments: Any) -> Path:
    return write_numbered_video(tmp_path / name, **{"num_frames": 30, **arguments})


def test_facts_are_measured(tmp_path: Path) -> None:
    path = write(tmp_path, fps=25, gop=10)
    facts = probe(path)
    assert (facts.num_frames, facts.width, facts.height, facts.rotation) == (30, 128, 96, 0)
    assert facts.fps == pytest.approx(25)
    assert facts.duration_seconds == pytest.approx(1.2)
    assert (facts.codec, facts.pixel_format) == ("h264", "yuv420p")
    assert (facts.num_keyframes, facts.is_variable_rate) == (3, False)
    assert facts.num_bytes == path.stat().st_size
    assert probe(path.read_bytes()) == facts == check(path)


def test_size_is_that_of_the_upright_picture(tmp_path: Path) -> None:
    facts = probe(write(tmp_path, rotation=90))
    assert (facts.width, facts.height, facts.rotation) == (96, 128, 90)


def test_variable_rate_is_told_from_rounded_times(tmp_path: Path) -> None:
    rounded = probe(write(tmp_path, "a.webm", codec="libvpx"))  # 0 33 67 100 ms
    assert not rounded.is_variable_rate
    assert rounded.fps == pytest.approx(30, rel=0.01)
    pauses = probe(write(tmp_path, "b.mkv", pts=[40 * i + 400 * (i > 15) for i in range(30)]))
    assert pauses.is_variable_rate
    assert pauses.fps == pytest.approx(29 / (29 * 0.04 + 0.4))


def test_rate_of_a_single_frame_is_unknown(tmp_path: Path) -> None:
    facts = probe(write(tmp_path, num_frames=1, fps=10))
    assert math.isnan(facts.fps)
    assert facts.duration_seconds == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.avi", "mpeg4"), ("a.avi", "libx264"), ("a.ts", "libx264"), ("a.mkv", "libsvtav1"), ("a.webm", "libvpx-vp9")],
)
def test_sound_files_pass_the_check(tmp_path: Path, name: str, codec: str) -> None:
    assert check(write(tmp_path, name, codec=codec)).num_frames == 30


def test_interlaced_files_pass_the_check(tmp_path: Path) -> None:
    assert check(write(tmp_path, options={"flags": "+ildct+ilme"})).num_frames == 30


def test_a_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "a.mp4", container_options={"movflags": "faststart"})
    content = path.read_bytes()
    for share in (0.55, 0.8, 0.98):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(CorruptVideo, match=r"a\.mp4: "):
            check(path)


def test_damage_that_a_player_would_paint_over_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, width=320, height=240, options={"qp": "1"})
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    path.write_bytes(content)
    with pytest.raises(CorruptVideo, match=r"video\.mp4: "):
        check(path)


def test_missing_and_empty_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.webm").touch()
    for measure in (probe, check):
        with pytest.raises(MissingVideo, match=r"gone\.mp4: no such file"):
            measure(tmp_path / "gone.mp4")
        with pytest.raises(CorruptVideo, match=r"empty\.webm: is empty"):
            measure(tmp_path / "empty.webm")
