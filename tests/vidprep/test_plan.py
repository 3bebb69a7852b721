import json
from pathlib import Path

import pytest

from tests.videos import write_numbered_video
from vidprep.cli import main
from vidprep.errors import UsageError, VidprepError
from vidprep.plan import Plan, make_plan
from vidprep.shard import shard
from vidprep.splits import Split
from vidprep.types import FrameFormat, Video


def make_split(*videos: Video) -> Split:
    return Split(dataset="folder", split="val", task="single_label", classes=("one",), videos=videos)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("videos")
    return {
        name: write_numbered_video(folder / f"{name}.mp4", num_frames=30 + number, fps=10, width=128, height=96)
        for number, name in enumerate("abcdef")
    }


def ways(plan: Plan) -> dict[str, tuple[float, int, float]]:
    return {way.name.split(",")[0]: (way.hours, way.num_bytes, way.clips_per_second) for way in plan.ways}


def test_the_plan_foretells_what_the_shards_will_hold(videos: dict[str, Path], tmp_path: Path) -> None:
    split = make_split(*(Video(video_id=name) for name in [*videos, "gone"]))
    settings = FrameFormat(fps=5.0, short_side=48)
    plan = make_plan(split, videos, settings=settings, folder=tmp_path / "not" / "there", workers=4, num_videos=3)
    assert (plan.num_samples, plan.num_missing, plan.num_measured) == (7, 1, 3)
    assert plan.source_bytes == sum(path.stat().st_size for path in videos.values())
    assert plan.video_hours * 3600 == pytest.approx(6 * 3.25, rel=0.1)
    assert list(tmp_path.iterdir()) == []
    report = shard(split, videos, out=tmp_path, content="frames", frames=settings)
    found = ways(plan)
    held = sum(facts.num_bytes for facts in report.manifest.shards)
    # The images themselves: what is around them in a tar, and fills it up, is not foretold.
    assert 0.3 * held < found["JPEG frames"][1] < held
    assert all(way.num_shards == len(report.manifest.shards) == 1 for way in plan.ways)
    assert found["files as they are"][1] == pytest.approx(plan.source_bytes, rel=0.01)
    # Frames take longer to prepare than copies, and load faster than anything that has to be decoded in order.
    assert found["JPEG frames"][0] > found["files as they are"][0]
    assert found["JPEG frames"][2] > found["short-GOP video"][2]
    assert all(way.fits for way in plan.ways)


def test_so_many_frames_of_each_are_foretold_for_long_videos_too(tmp_path: Path) -> None:
    paths = {
        name: write_numbered_video(tmp_path / f"{name}.mp4", num_frames=num_frames, fps=2, width=128, height=96)
        for name, num_frames in (("long", 120), ("short", 20))
    }
    split = make_split(*(Video(video_id=name) for name in paths))
    settings = FrameFormat(num_frames=6)
    plan = make_plan(split, paths, settings=settings, folder=tmp_path, num_videos=1)  # the long one, of a minute
    report = shard(split, paths, out=tmp_path / "out", content="frames", frames=settings)
    held = sum(facts.num_bytes for facts in report.manifest.shards)
    frames = next(way for way in plan.ways if way.name == "JPEG frames, 6 of each, their size")
    assert 0.3 * held < frames.num_bytes < held
    # Short-GOP video has all frames of them.
    every = make_plan(split, paths, settings=FrameFormat(), folder=tmp_path, num_videos=1)
    assert plan.ways[-1].num_bytes == every.ways[-1].num_bytes
    keys = make_plan(split, paths, settings=FrameFormat(keyframes_only=True, width=64, height=48), folder=tmp_path)
    assert keys.ways[1].name == "JPEG key frames, 64x48"
    assert 0 < keys.ways[1].num_bytes < every.ways[1].num_bytes


def test_segments_are_foretold_by_their_seconds(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "long.mp4", num_frames=100, fps=10)
    videos = [
        Video(video_id="long", start_seconds=float(start), end_seconds=start + 1.0, segment_id=f"s{start}")
        for start in range(9)
    ]
    plan = make_plan(make_split(*videos), {"long": path}, settings=FrameFormat(), folder=tmp_path, num_videos=2)
    assert plan.video_hours * 3600 == pytest.approx(9.0)
    assert plan.source_bytes == path.stat().st_size
    assert [way.name for way in plan.ways] == ["JPEG frames, their size", "short-GOP video, their size"]


def test_a_long_video_is_measured_on_its_beginning(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "long.mp4", num_frames=120, fps=2)
    plan = make_plan(
        make_split(Video(video_id="long")), {"long": path}, settings=FrameFormat(), folder=tmp_path, num_videos=1
    )
    assert plan.video_hours * 3600 == pytest.approx(60.0, rel=0.05)


def test_a_video_of_one_pixel_is_measured_like_any_other(videos: dict[str, Path], tmp_path: Path) -> None:
    plan = make_plan(
        make_split(Video(video_id="a")),
        videos,
        settings=FrameFormat(width=1, height=1),
        folder=tmp_path,
    )
    assert (plan.num_measured, plan.faults) == (1, {})


def test_videos_that_cannot_be_measured_are_named(videos: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    split = make_split(Video(video_id="text"), Video(video_id="a"))
    paths = {"text": tmp_path / "text.mp4", "a": videos["a"]}
    plan = make_plan(split, paths, settings=FrameFormat(), folder=tmp_path)
    assert list(plan.faults) == ["text"]
    assert "not measured: text: " in plan.to_text()
    with pytest.raises(VidprepError, match="none of the 1 videos that were tried can be measured"):
        make_plan(make_split(Video(video_id="text")), paths, settings=FrameFormat(), folder=tmp_path)
    with pytest.raises(UsageError, match="none of its 1 samples has a file; fetch them first"):
        make_plan(make_split(Video(video_id="gone")), paths, settings=FrameFormat(), folder=tmp_path)
    with pytest.raises(UsageError, match="num_videos must be at least 1, got 0"):
        make_plan(split, paths, settings=FrameFormat(), folder=tmp_path, num_videos=0)


def test_the_command_compares_the_ways_and_names_their_commands(
    videos: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root" / "one"
    root.mkdir(parents=True)
    for path in videos.values():
        (root / path.name).symlink_to(path)
    report = tmp_path / "plan.json"
    command = ["vidprep", "plan", "folder", "--data-root", str(root.parent), "-n", "2", "--short-side", "48"]
    monkeypatch.setattr("sys.argv", [*command, "--workers", "3", "--json", str(report)])
    assert main() == 0
    text = capsys.readouterr().out
    assert "folder/all: 6 of 6 samples have files" in text
    assert "JPEG frames, short side 48 will load fastest: " in text
    assert "--split all --content frames --short-side 48 --workers 3 --out DIR" in text
    assert "vidprep clips --dataset folder" in text
    assert "--split all --gop 8 --preset veryfast --short-side 48 --workers 3 --out DIR" in text
    assert json.loads(report.read_text())["workers"] == 3
    options = ["--num-frames", "4", "--size", "64x48", "--subsampling", "444"]
    monkeypatch.setattr("sys.argv", [*command[:-2], *options])
    assert main() == 0
    assert "--content frames --num-frames 4 --size 64x48 --subsampling 444" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", [*command, "--keyframes"])
    assert main() == 0
    assert "--content frames --short-side 48 --keyframes" in capsys.readouterr().out
