"""Frames that the tasks of a job array extract, or that a disk had no room for, and those of one run."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.videos import write_numbered_video
from tests.vidprep.test_tasks import held_elsewhere
from vidprep import extract as extract_module
from vidprep import journal as journal_module
from vidprep.engine import CannotWrite
from vidprep.errors import UsageError
from vidprep.extract import ExtractReport, FrameFacts, extract, read_frame_index
from vidprep.journal import Group
from vidprep.ledger import ledger_paths, read_ledger
from vidprep.splits import Split
from vidprep.tasks import ArrayTask, Held
from vidprep.types import FrameFormat, Video

NUM_VIDEOS = 7
SETTINGS = FrameFormat(fps=None, short_side=32)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("videos")
    paths = {
        f"{number}.mp4": write_numbered_video(folder / f"{number}.mp4", num_frames=3 + number, width=64, height=48)
        for number in range(NUM_VIDEOS)
    }
    paths["3.mp4"].write_bytes(b"")
    return paths


def run(videos: dict[str, Path], out: Path, task: str = "", *, workers: int = 1) -> ExtractReport:
    rows = tuple(Video(video_id=name) for name in videos)
    split = Split(dataset="folder", split="val", task="single_label", classes=(), videos=rows)
    number, _, count = task.partition("/")
    part = ArrayTask(number=int(number), count=int(count)) if task else None
    return extract(split, videos, out=out, settings=SETTINGS, task=part, workers=workers)


def results(out: Path) -> dict[str, bytes]:
    """All frames, the index and the list of faults."""
    found = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*.jpg")}
    for suffix in (".parquet", ".faults.csv"):
        found[suffix] = out.with_name(out.name + suffix).read_bytes()
    return found


@pytest.fixture(scope="module")
def in_one_go(videos: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("in one go") / "frames"
    assert run(videos, out).num_videos == NUM_VIDEOS - 1
    return results(out)


def test_tasks_in_any_order_and_repeated_extract_what_one_run_does(
    videos: dict[str, Path], in_one_go: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "frames"
    reports = [run(videos, out, task) for task in ("3/3", "1/3", "3/3", "2/3", "2/3")]
    assert [report.is_finished for report in reports] == [False, False, False, True, True]
    assert [report.num_new for report in reports] == [3, 2, 0, 1, 0]
    assert [report.num_missing for report in reports[:3]] == [4, 2, 2]
    assert [report.num_videos for report in reports] == [3, 2, 3, 6, 6]
    assert results(out) == in_one_go
    assert len(read_frame_index(out).frames) == NUM_VIDEOS - 1
    assert run(videos, out).num_new == 0
    assert not list(tmp_path.glob("*-of-*"))


def test_a_run_without_tasks_does_what_tasks_have_left(
    videos: dict[str, Path], in_one_go: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "frames"
    run(videos, out, "2/3")
    with pytest.raises(UsageError, match="no index of extracted frames"):
        read_frame_index(out)
    assert run(videos, out).num_new == NUM_VIDEOS - 1 - 1
    assert results(out) == in_one_go


def test_a_task_goes_on_where_it_was_killed_and_leaves_others_alone(
    videos: dict[str, Path], in_one_go: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "frames"
    run(videos, out, "1/3")
    with held_elsewhere(tmp_path / "frames.lock", range(2)):  # as a task that is killed does not come to its end
        run(videos, out, "3/3")
    own = tmp_path / "frames.3-of-3.journal"
    lines = own.read_bytes().splitlines(keepends=True)
    own.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])  # the line that it was writing
    for half in (".part-3-of-3", ".part-1-of-3"):
        (out / half / "half").mkdir(parents=True)
    assert run(videos, out, "3/3").num_new == 1
    assert not (out / ".part-3-of-3").exists()
    assert (out / ".part-1-of-3" / "half").exists()
    assert run(videos, out, "2/3").is_finished
    assert results(out) == in_one_go
    assert not list(out.glob(".part*"))


def test_a_task_beside_another_is_welcome_and_one_beside_itself_is_not(
    videos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "FINISH_PATIENCE_SECONDS", 0.2)
    out = tmp_path / "frames"
    run(videos, out, "1/3")
    with held_elsewhere(tmp_path / "frames.lock", range(4, 7)):  # task 3/3 is at work
        assert run(videos, out, "2/3").num_new == 1
        with pytest.raises(Held, match="another vidprep extract --task 3/3 is at work here; wait for it to end"):
            run(videos, out, "3/3")
        with pytest.raises(Held, match="another vidprep extract is at work here; wait for it to end"):
            run(videos, out)
    assert run(videos, out, "3/3").is_finished


def test_the_ledger_tells_of_all_tasks(videos: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "frames"
    run(videos, out, "1/3")
    with held_elsewhere(tmp_path / "frames.lock", range(4, 7)):
        run(videos, out, "2/3")
        [paths] = ledger_paths(out).values()
    assert [path.name for path in paths] == ["frames.journal", "frames.2-of-3.journal"]
    states = {entry.sample: entry.state for entry in read_ledger(paths)}
    done = {f"{number}.mp4": "done" for number in range(3)}
    assert states == {**done, "3.mp4": "failed", **{f"{number}.mp4": "pending" for number in range(4, 7)}}
    run(videos, out, "3/3")
    [paths] = ledger_paths(out).values()
    assert [entry.sample for entry in read_ledger(paths)] == list(videos)


def test_a_task_with_other_settings_is_refused(videos: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "frames"
    run(videos, out, "1/3")
    journal = tmp_path / "frames.journal"
    plan = json.loads(journal.read_text().splitlines()[0])
    journal.write_text(json.dumps({**plan, "short_side": 64}) + "\n")
    with pytest.raises(UsageError, match=r"holds frames of other settings \(short_side was 64, now 32\)"):
        run(videos, out, "2/3")
    assert not (tmp_path / "frames.2-of-3.journal").exists()


@pytest.mark.parametrize("options", ["ro", "size=60k"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_takes_no_more_ends_the_run_and_the_next_one_completes_it(
    options: str,
    workers: int,
    videos: dict[str, Path],
    in_one_go: dict[str, bytes],
    disk: tuple[Path, Callable[[str], Any]],
) -> None:
    folder, remount = disk
    out = folder / "frames"
    run(videos, out, "1/7")
    assert remount(options).returncode == 0
    message = {"ro": r"cannot be written \(Read-only file system\)", "size=60k": "no space left on the disk"}[options]
    with pytest.raises(CannotWrite, match=message):
        run(videos, out, workers=workers)
    assert remount("rw,size=4m").returncode == 0
    assert not list(out.glob(".part*"))
    assert run(videos, out, workers=workers).num_new >= 1
    assert results(out) == in_one_go


def test_videos_that_vanish_and_come_back_give_the_same_frames(
    videos: dict[str, Path], in_one_go: dict[str, bytes], tmp_path: Path
) -> None:
    root, out = tmp_path / "videos", tmp_path / "frames"
    shutil.copytree(videos["0.mp4"].parent, root)
    moved = {name: root / name for name in videos}
    run(moved, out, "1/3")
    root.rename(tmp_path / "elsewhere")
    report = run(moved, out)
    assert {fault.reason for fault in report.faults} == {"no such file"}
    assert report.num_videos == 2
    (tmp_path / "elsewhere").rename(root)
    assert run(moved, out).num_new == NUM_VIDEOS - 1 - 2
    found = results(out)
    assert {name: content for name, content in found.items() if name != ".faults.csv"} == {
        name: content for name, content in in_one_go.items() if name != ".faults.csv"
    }


def make_folders(group: Group, *, out: Path, **_: Any) -> list[dict[str, Any]]:
    """Instead of extracting: a folder and facts, with times that no file states for some."""
    entries = []
    for video in group.videos:
        number = int(video.video_id.rpartition("/")[2])
        (out / video.video_id).mkdir(parents=True, exist_ok=True)
        times = [math.nan, math.nan] if number % 5 == 0 else [number / 7, number / 3]
        facts = FrameFacts(
            folder=video.video_id,
            num_frames=2,
            fps=math.nan if number % 5 == 0 else 3.0,
            width=32,
            height=24,
            pts_seconds=tuple(times),
            source_num_frames=2,
            source_fps=3.0,
            source_width=64,
            source_height=48,
            source_duration_seconds=number / 7,
        )
        entries.append({"folder": facts.folder, "facts": dict(vars(facts))})
    return entries


def many(num_videos: int, tmp_path: Path, *, reverse: bool = False) -> tuple[Split, dict[str, Path]]:
    (tmp_path / "a.mp4").touch()
    names = [f"{'odd' if number % 2 else 'even'}/{number}" for number in range(num_videos)]
    rows = tuple(Video(video_id=name) for name in (reversed(names) if reverse else names))
    return Split(dataset="folder", split="val", task="single_label", classes=(), videos=rows), dict.fromkeys(
        names, tmp_path / "a.mp4"
    )


@pytest.fixture
def without_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extract_module, "_extract_group", make_folders)
    monkeypatch.setattr(extract_module._FrameTable, "NUM_ROWS", 16)


@pytest.mark.usefixtures("without_decoding")
def test_an_index_that_is_there_is_left_alone_and_one_that_is_not_whole_is_written_again(tmp_path: Path) -> None:
    split, paths = many(50, tmp_path)
    out, index = tmp_path / "frames", tmp_path / "frames.parquet"
    first = extract(split, paths, out=out, settings=SETTINGS)
    assert (first.num_videos, first.num_frames) == (50, 100)
    whole, before = results(out), index.stat()
    again = extract(split, paths, out=out, settings=SETTINGS)
    assert replace(again, num_new=50) == first
    assert index.stat().st_ino == before.st_ino
    for harm in (
        index.unlink,
        lambda: index.write_bytes(index.read_bytes()[:-9] + bytes(9)),
        tmp_path.joinpath("frames.faults.csv").unlink,
    ):
        harm()
        extract(split, paths, out=out, settings=SETTINGS)
        assert results(out) == whole
    # Another list of videos has another index.
    fewer, _ = many(30, tmp_path)
    assert extract(fewer, paths, out=out, settings=SETTINGS).num_videos == 30
    assert len(read_frame_index(out).frames) == 30
    turned, _ = many(50, tmp_path, reverse=True)
    extract(turned, paths, out=out, settings=SETTINGS)
    assert list(read_frame_index(out).frames)[:2] == ["odd/49", "even/48"]
    extract(split, paths, out=out, settings=SETTINGS)
    assert results(out) == whole


@pytest.mark.usefixtures("without_decoding")
@pytest.mark.parametrize("lost", [[0], [49], [15, 16, 17], [3, 20, 21, 48], list(range(50)), list(range(0, 50, 2))])
def test_folders_that_were_deleted_are_noticed_and_the_index_keeps_its_bytes(lost: list[int], tmp_path: Path) -> None:
    split, paths = many(50, tmp_path)
    out = tmp_path / "frames"
    extract(split, paths, out=out, settings=SETTINGS)
    whole = results(out)
    for number in lost:
        shutil.rmtree(out / split.videos[number].video_id)
    if len(lost) == 25:
        shutil.rmtree(out / "even")
    assert extract(split, paths, out=out, settings=SETTINGS).num_new == len(lost)
    assert results(out) == whole
    assert len(read_frame_index(out).frames) == 50


@pytest.mark.usefixtures("without_decoding")
def test_videos_that_vanish_and_come_back_change_the_index(tmp_path: Path) -> None:
    split, paths = many(50, tmp_path)
    some = {name: path for name, path in paths.items() if name not in ("odd/7", "even/40")}
    extract(split, some, out=tmp_path / "frames", settings=SETTINGS)
    assert len(read_frame_index(tmp_path / "frames").frames) == 48
    report = extract(split, paths, out=tmp_path / "frames", settings=SETTINGS)
    assert (report.num_videos, report.num_new, report.faults) == (50, 2, ())
    extract(split, paths, out=tmp_path / "at once", settings=SETTINGS)
    assert results(tmp_path / "frames") == results(tmp_path / "at once")
    shutil.rmtree(tmp_path / "frames" / "odd")
    gone = {name: path for name, path in paths.items() if name.startswith("even")}
    assert len(extract(split, gone, out=tmp_path / "frames", settings=SETTINGS).faults) == 25
    assert list(read_frame_index(tmp_path / "frames").frames)[:3] == ["even/0", "even/2", "even/4"]


@pytest.mark.usefixtures("without_decoding")
def test_an_index_is_not_believed_when_lines_were_taken_out_of_the_journal(tmp_path: Path) -> None:
    split, paths = many(50, tmp_path)
    extract(split, paths, out=tmp_path / "frames", settings=SETTINGS)
    whole = results(tmp_path / "frames")
    journal = tmp_path / "frames.journal"
    lines = [
        line for line in journal.read_bytes().splitlines(keepends=True) if b'"odd/9"' not in line or b"sha256" in line
    ]
    journal.write_bytes(b"".join(lines))
    assert extract(split, paths, out=tmp_path / "frames", settings=SETTINGS).num_new == 1
    assert results(tmp_path / "frames") == whole
