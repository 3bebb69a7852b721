import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.videos import write_numbered_video
from tests.vidprep.fatal import measure_fatally
from vidprep import verify as verify_module
from vidprep.cli import app
from vidprep.errors import UnknownName, UsageError
from vidprep.index import read_samples, samples_to_frame
from vidprep.shard import shard
from vidprep.splits import Split
from vidprep.types import Video
from vidprep.verify import verify_shards, verify_videos


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("videos")
    return {
        name: write_numbered_video(folder / f"{name}.mp4", num_frames=10, width=64, height=48)
        for name in ("-a", "b", "c")
    }


def make_split(*names: str) -> Split:
    videos = tuple(Video(video_id=name) for name in names)
    return Split(dataset="folder", split="val", task="single_label", classes=(), videos=videos)


@pytest.fixture
def folder(videos: dict[str, Path], tmp_path: Path) -> Path:
    shard(make_split(*videos), videos, out=tmp_path, samples_per_shard=2)
    return tmp_path


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[3000] ^= 1
    path.write_bytes(data)


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "val-000001.tar: missing"),
        (lambda path: os.truncate(path, 100), "val-000001.tar: cut short, 100 of 10240 bytes"),
        (lambda path: os.truncate(path, 0), "val-000001.tar: cut short, 0 of 10240 bytes"),
        (append, "val-000001.tar: 10244 bytes, 10240 expected; something was appended"),
        (flip_bit, "val-000001.tar: changed, SHA-256"),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_damaged_shard_is_named_with_what_is_wrong(
    damage: Callable[[Path], None], message: str, workers: int, folder: Path
) -> None:
    assert verify_shards(folder, workers=workers).is_sound
    size = (folder / "val-000001.tar").stat().st_size
    damage(folder / "val-000001.tar")
    report = verify_shards(folder, workers=workers)
    assert not report.is_sound
    [problem] = report.splits[0].problems
    assert problem.startswith(message.replace("10240", str(size)).replace("10244", str(size + 4)))
    assert "damaged" in report.to_text()
    # Another run sees by its size that a shard is to be written again; this one has the right size.
    assert ("`vidprep repair` rebuilds it" in problem) == (damage is flip_bit)


def test_a_table_that_does_not_fit_its_shards_is_named(folder: Path) -> None:
    rows = read_samples(folder, "val")
    samples_to_frame(rows[:2]).to_parquet(folder / "val.parquet")
    problems = verify_shards(folder).splits[0].problems
    assert problems[0] == "val.parquet: 2 samples and 0 faults, the split has 3 videos"
    assert problems[1] == "val-000001.tar: 2 members, the table of samples lists 0"


def test_damaged_indexes_are_problems_too(folder: Path) -> None:
    (folder / "val.json").write_text("{")
    [problem] = verify_shards(folder).splits[0].problems
    assert "not a readable manifest" in problem


def test_faults_are_told_and_are_no_problem_of_the_shards(videos: dict[str, Path], tmp_path: Path) -> None:
    shard(make_split(*videos, "gone"), videos, out=tmp_path)
    report = verify_shards(tmp_path)
    assert report.is_sound
    assert "1 of 4 videos are in no shard:\n  gone: no file found for it" in report.to_text()
    as_json = json.loads(report.to_json())
    assert as_json["is_sound"] is True
    assert as_json["splits"][0]["faults"][0]["video_id"] == "gone"


def test_folders_that_hold_no_shards_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        verify_shards(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no shards here"):
        verify_shards(tmp_path / "empty")
    with pytest.raises(UnknownName, match="no split 'train'"):
        verify_shards(folder, "train")


def test_annotated_lengths_do_not_change_the_plan_of_shards(videos: dict[str, Path], tmp_path: Path) -> None:
    split = make_split(*videos)
    with_lengths = replace(split, videos=tuple(replace(video, duration_seconds=1.0) for video in split.videos))
    for name, chosen in (("plain", split), ("lengths", with_lengths)):
        shard(chosen, videos, out=tmp_path / name)
    plain, lengths = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir() if "ledger" not in path.name}
        for name in ("plain", "lengths")
    )  # a ledger tells times
    assert plain == lengths
    assert "val.plan.json" in plain


@pytest.mark.parametrize("workers", [1, 2])
def test_videos_are_verified_and_counted(workers: int, videos: dict[str, Path], tmp_path: Path) -> None:
    cut = tmp_path / "cut.mp4"
    whole = videos["b"].read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.mp4").touch()
    paths = {**videos, "cut": cut, "empty": tmp_path / "empty.mp4"}
    report = verify_videos(
        make_split("cut", *videos, "gone", "empty"), paths, num_published=19_906, workers=workers, check="decode"
    )
    assert report.coverage == "folder/val: 3 of 6 listed videos (50.0 %); published: 19906"
    assert report.num_frames == 30
    assert [fault.video_id for fault in report.faults] == ["cut", "gone", "empty"]
    assert report.faults[1].reason == "no file found for it"
    assert report.faults[2].reason == "is empty (0 bytes); fetch it again"
    assert report.to_text().splitlines()[-1] == report.coverage
    assert json.loads(report.to_json())["num_sound"] == 3


def test_opening_is_enough_when_asked(videos: dict[str, Path]) -> None:
    assert verify_videos(make_split(*videos), videos, check="open").faults == ()


def test_a_video_that_hangs_is_a_fault_and_says_so(
    videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(verify_module, "_measure", measure_fatally)
    paths = {**videos, "hang": videos["b"], "crash": videos["c"]}
    report = verify_videos(make_split("hang", *videos, "crash"), paths, workers=2, time_limit_seconds=4.0)
    assert report.num_sound == 3
    assert {fault.video_id: fault.kind for fault in report.faults} == {"hang": "hung", "crash": "crashed"}
    assert report.faults[0].reason == "took longer than the time limit of 4 s; its worker process was ended"
    # The file may be sound: nothing is moved away.
    assert report.damaged == ()
    assert '"kind": "hung"' in report.to_json()
    with pytest.raises(UsageError, match="--time-limit: for videos"):
        app(["verify", str(tmp_path), "--time-limit", "3"], standalone_mode=False)


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(UsageError, match="the split is empty"):
        verify_videos(make_split(), {})


@pytest.mark.real
def test_the_damaged_real_videos_are_found(testdata: Path) -> None:
    names = ["decord_corrupted.mp4", "mmcv_test.mp4", "moviepy_zero_bytes.webm"]
    report = verify_videos(make_split(*names), {name: testdata / "videos" / name for name in names})
    assert [fault.video_id for fault in report.faults] == ["decord_corrupted.mp4", "moviepy_zero_bytes.webm"]
