import csv
import json
import time
import uuid
from collections import Counter
from pathlib import Path

import pytest

from tests.videos import write_numbered_video
from tests.vidprep.fatal import cut_fatally, die_by_frames, extract_fatally
from vidprep import clips as clips_module
from vidprep import extract as extract_module
from vidprep import shard as shard_module
from vidprep.cli import app, main
from vidprep.clips import ClipFormat, clips
from vidprep.datasets import get
from vidprep.errors import EmptyVideo, MissingVideo, UsageError, VidprepError, kind_of
from vidprep.extract import extract
from vidprep.ledger import Entry, Ledger, LedgerReport, check_retry, ledger_paths, open_ledgers, read_ledger
from vidprep.shard import shard
from vidprep.splits import Split
from vidprep.store import local_or_url
from vidprep.tasks import ArrayTask
from vidprep.types import FrameFormat, Video

LIMIT_SECONDS = 4.0
"""For a video of some frames: generous, as machines that run tests are busy."""


def make_split(*videos: Video) -> Split:
    return Split(dataset="folder", split="val", task="single_label", classes=("one",), videos=videos)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Named after what they do to a decoder that dies; of 12 frames and more."""
    folder = tmp_path_factory.mktemp("videos")
    return {
        name: write_numbered_video(folder / f"{name}.mp4", num_frames=12 + number, fps=10, width=64, height=48)
        for number, name in enumerate(["good", "hang", "crash", "kill", "last"])
    }


def entries_of(folder: Path) -> dict[str, Entry]:
    [paths] = ledger_paths(folder).values()
    return {entry.sample: entry for entry in read_ledger(paths)}


def tars(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


def assert_each_cost_one_sample(entries: dict[str, Entry]) -> None:
    assert {name: (entry.state, entry.kind) for name, entry in entries.items()} == {
        "good": ("done", ""),
        "hang": ("failed", "hung"),
        "crash": ("failed", "crashed"),
        "kill": ("failed", "out_of_memory"),
        "last": ("done", ""),
    }
    assert entries["hang"].reason == "took longer than the time limit of 4 s; its worker process was ended"
    assert entries["crash"].reason.startswith("its worker process died 2 times (SIGSEGV(-11)): a crash inside the")
    assert entries["kill"].reason.startswith("its worker process died 2 times (SIGKILL(-9)): killed from outside")
    assert [entries[name].attempts for name in ("good", "hang", "crash", "kill")] == [1, 1, 2, 2]


def test_a_crash_a_kill_and_a_hang_cost_an_extraction_one_video_each(
    videos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = make_split(*(Video(video_id=name) for name in videos))
    out = tmp_path / "frames"
    with monkeypatch.context() as patch:
        patch.setattr(extract_module, "_extract_group", extract_fatally)
        report = extract(split, videos, out=out, settings=FrameFormat(), workers=2, time_limit_seconds=LIMIT_SECONDS)
        assert {fault.video_id: fault.kind for fault in report.faults} == {
            "hang": "hung",
            "crash": "crashed",
            "kill": "out_of_memory",
        }
        assert_each_cost_one_sample(entries_of(out))
        # They are not tried again: a second run ends well before the time limit.
        started = time.monotonic()
        extract(split, videos, out=out, settings=FrameFormat(), workers=2, time_limit_seconds=LIMIT_SECONDS)
        assert time.monotonic() - started < LIMIT_SECONDS
    # With a decoder that does not die only what is asked for is tried again.
    mended = extract(split, videos, out=out, settings=FrameFormat(), retry=["hung", "crashed"])
    assert [fault.video_id for fault in mended.faults] == ["kill"]
    entries = entries_of(out)
    assert [entries[name].attempts for name in ("good", "hang", "crash", "kill")] == [1, 2, 3, 2]
    assert extract(split, videos, out=out, settings=FrameFormat(), retry=["failed"]).faults == ()


def test_a_segment_that_kills_the_process_leaves_the_others_of_its_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_numbered_video(tmp_path / "long.mp4", num_frames=40, fps=10)
    segments = [
        Video(video_id="long", start_seconds=float(number), end_seconds=number + 1.0, segment_id=name)
        for number, name in enumerate(["one", "crash", "three"])
    ]
    monkeypatch.setattr(extract_module, "_extract_group", extract_fatally)
    report = extract(make_split(*segments), {"long": path}, out=tmp_path / "out", settings=FrameFormat(), workers=2)
    assert [fault.video_id for fault in report.faults] == ["crash"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["one", "three"]


def test_a_segment_that_kills_the_process_leaves_the_other_clips_of_its_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_numbered_video(tmp_path / "long.mp4", num_frames=40, fps=10)
    segments = [
        Video(video_id="long", start_seconds=float(number), end_seconds=number + 1.0, segment_id=name)
        for number, name in enumerate(["one", "crash", "three"])
    ]
    split, info = make_split(*segments), get("folder")
    with monkeypatch.context() as patch:
        patch.setattr(clips_module, "_cut_group", cut_fatally)
        report = clips(info, split, {"long": path}, out=tmp_path / "out", settings=ClipFormat(), workers=2)
    assert [(fault.video_id, fault.kind) for fault in report.faults] == [("crash", "crashed")]
    assert report.num_clips == 2
    entries = entries_of(tmp_path / "out")
    assert [(name, entry.state, entry.attempts) for name, entry in entries.items()] == [
        ("one", "done", 1),
        ("crash", "failed", 2),
        ("three", "done", 1),
    ]
    assert clips(info, split, {"long": path}, out=tmp_path / "out", settings=ClipFormat()).num_new == 0
    mended = clips(info, split, {"long": path}, out=tmp_path / "out", settings=ClipFormat(), retry=["crashed"])
    assert (mended.num_new, mended.faults) == (1, ())


def test_a_crash_a_kill_and_a_hang_cost_the_shards_one_video_each(
    videos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = make_split(*(Video(video_id=name) for name in videos))
    with monkeypatch.context() as patch:
        patch.setattr(shard_module, "_decode_all", die_by_frames)
        shard(split, videos, out=tmp_path / "a", samples_per_shard=3, workers=2, time_limit_seconds=LIMIT_SECONDS)
        assert_each_cost_one_sample(entries_of(tmp_path / "a"))
        # A shard that is lost is written again without the videos that are known to end the process.
        (tmp_path / "a" / "val-000000.jsonl").unlink()
        started = time.monotonic()
        shard(split, videos, out=tmp_path / "a", samples_per_shard=3, workers=2, time_limit_seconds=LIMIT_SECONDS)
        assert time.monotonic() - started < LIMIT_SECONDS
        assert_each_cost_one_sample({**entries_of(tmp_path / "a"), "good": entries_of(tmp_path / "a")["last"]})
    # What is left is what a data set without these videos gives.
    others = {name: path for name, path in videos.items() if name in ("good", "last")}
    shard(split, others, out=tmp_path / "b", samples_per_shard=3)
    assert tars(tmp_path / "a") == tars(tmp_path / "b")
    # Tried again with a decoder that is mended.
    mended = shard(split, videos, out=tmp_path / "a", samples_per_shard=3, retry=["failed"])
    assert mended.manifest.faults == ()
    shard(split, videos, out=tmp_path / "c", samples_per_shard=3)
    assert tars(tmp_path / "a") == tars(tmp_path / "c")


def test_what_a_killed_run_had_not_noted_is_noted_by_the_next(videos: dict[str, Path], tmp_path: Path) -> None:
    split = make_split(*(Video(video_id=name) for name in [*videos, "gone"]))
    shard(split, videos, out=tmp_path, samples_per_shard=2)
    ledger = tmp_path / "val.ledger.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    ledger.write_text("".join(lines[:3]) + lines[3][:40])  # killed while it wrote the third sample
    (tmp_path / "val.json").unlink()
    assert Counter(entry.state for entry in entries_of(tmp_path).values()) == {"done": 2, "pending": 4}
    assert shard(split, videos, out=tmp_path, samples_per_shard=2).num_new_shards == 0
    entries = entries_of(tmp_path)
    assert Counter(entry.state for entry in entries.values()) == {"done": 5, "failed": 1}
    assert (entries["gone"].kind, entries["gone"].reason) == ("missing", "no file found for it")


def test_the_ledgers_of_tasks_are_read_as_one(videos: dict[str, Path], tmp_path: Path) -> None:
    split = make_split(*(Video(video_id=name) for name in videos))
    for number in (2, 1):
        shard(split, videos, out=tmp_path, samples_per_shard=2, task=ArrayTask(number=number, count=2))
    assert len(ledger_paths(tmp_path)["val"]) == 2
    assert [entry.sample for entry in read_ledger(ledger_paths(tmp_path)["val"])] == list(videos)
    assert not (tmp_path / "val.ledger.jsonl").exists()


def test_tasks_that_have_noted_nothing_are_named(
    videos: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    split = make_split(*(Video(video_id=name) for name in videos))
    monkeypatch.setattr("sys.argv", ["vidprep", "ledger", str(tmp_path)])
    for number, said in (
        (2, "that have noted nothing yet: 1/3, 3/3\n"),
        (1, "yet: 3/3\n"),
        (3, "pending               0\n"),
    ):
        shard(split, videos, out=tmp_path, samples_per_shard=2, task=ArrayTask(number=number, count=3))
        assert main() == 0
        assert capsys.readouterr().out.endswith(said)


@pytest.mark.parametrize("scheme", ["file", "memory", "s3"])
def test_the_ledger_of_a_store_is_read_where_it_lies(
    scheme: str,
    videos: dict[str, Path],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if scheme == "s3":
        url = f"{request.getfixturevalue('s3_url')}/ledger"
    else:
        url = f"file://{tmp_path}/shards" if scheme == "file" else f"memory://{uuid.uuid4().hex}"
    split = make_split(*(Video(video_id=name) for name in ["good", "last", "gone"]))
    shard(split, videos, out=local_or_url(url))
    monkeypatch.setattr("sys.argv", ["vidprep", "ledger", url, "--csv", str(tmp_path / "a.csv")])
    assert main() == 0
    assert "done                  2\n  failed                1\n    missing             1" in capsys.readouterr().out
    with (tmp_path / "a.csv").open(newline="") as stream:
        assert [row["sample"] for row in csv.DictReader(stream)] == ["good", "last", "gone"]
    monkeypatch.setattr("sys.argv", ["vidprep", "ledger", url, "--split", "vla"])
    assert main() == 2
    assert "no ledger of 'vla'; did you mean val" in capsys.readouterr().err


def test_the_command_counts_states_and_reasons_and_exports_them(
    videos: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video")
    split = make_split(*(Video(video_id=name) for name in ("good", "last", "empty", "text", "gone")))
    paths = {**videos, "empty": tmp_path / "empty.mp4", "text": tmp_path / "text.mp4"}
    extract(split, paths, out=tmp_path / "frames", settings=FrameFormat(), workers=2)
    command = ["ledger", str(tmp_path / "frames"), "--csv", str(tmp_path / "a.csv"), "--json", str(tmp_path / "a.json")]
    with pytest.raises(SystemExit) as end:
        app(command)
    assert end.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("frames: 5 samples, 5 attempts, ")
    assert [line.split()[:2] for line in lines[1:]] == [
        ["done", "2"],
        ["failed", "3"],
        ["damaged", "1"],
        ["empty", "1"],
        ["missing", "1"],
        ["pending", "0"],
    ]
    [counts] = json.loads((tmp_path / "a.json").read_text())
    assert counts["kinds"] == {"empty": 1, "damaged": 1, "missing": 1}
    with (tmp_path / "a.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["sample"] for row in rows] == ["good", "last", "empty", "text", "gone"]
    assert float(rows[0]["seconds"]) > 0
    assert rows[2]["reason"] == "is empty (0 bytes); fetch it again"


def test_a_half_written_line_is_no_entry_and_the_next_run_begins_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "val.ledger.jsonl"
    samples = [("0", "a"), ("1", "b")]
    with Ledger(path, samples) as ledger:
        ledger.add([Entry(key="0", sample="a", state="done", attempts=1), Entry(key="1", sample="b", state="done")])
    path.write_text(path.read_text()[:-30])
    with Ledger(path, samples) as ledger:
        assert ledger.attempts == {"0": 1}
        ledger.add([Entry(key="1", sample="b", state="failed", kind="hung", reason="too long", attempts=1)])
    with Ledger(path, samples) as ledger:
        assert ledger.attempts == {"0": 1, "1": 1}
        assert ledger.deaths["1"].reason == "too long"
    assert path.read_text().count("samples_sha256") == 1
    report = LedgerReport(split="val")
    for entry in read_ledger([path]):
        report.count(entry)
    assert "hung                1   b: too long" in report.to_text()


def test_kinds_of_faults_are_told_apart() -> None:
    assert kind_of(MissingVideo("a")) == "missing"
    assert kind_of(EmptyVideo("a")) == "empty"
    assert kind_of(VidprepError("a")) == "other"
    assert kind_of(MemoryError()) == "out_of_memory"
    assert kind_of(PermissionError()) == "unreadable"
    assert kind_of(ValueError()) == "other"


def test_wrong_questions_are_answered_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--retry: no reason is called 'hanging'; did you mean"):
        check_retry(["hanging"])
    with pytest.raises(UsageError, match="no ledger here"):
        ledger_paths(tmp_path)
    with pytest.raises(UsageError, match="no such folder; give what `vidprep shard` or `vidprep extract` wrote"):
        ledger_paths(tmp_path / "none")
    with pytest.raises(UsageError, match="give URLs as text, Path"), open_ledgers(Path("s3://bucket/shards")):
        pass
    with pytest.raises(UsageError, match="memory://none: no ledger here"), open_ledgers("memory://none"):
        pass
    (tmp_path / "val.ledger.jsonl").write_text('{"key": "0", "state": "done"}\n')
    with pytest.raises(UsageError, match="no ledger of 'vla'; did you mean val"):
        ledger_paths(tmp_path, "vla")
    with pytest.raises(VidprepError, match="does not say which samples there are"):
        list(read_ledger([tmp_path / "val.ledger.jsonl"]))
