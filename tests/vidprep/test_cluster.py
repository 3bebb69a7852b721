"""A real Dask scheduler and two worker processes on this machine."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tests.videos import write_numbered_video
from tests.vidprep.fatal import check_slowly
from vidprep import shard as shard_module
from vidprep.engine import WorkerDied, run
from vidprep.errors import CorruptVideo, UsageError
from vidprep.extract import extract
from vidprep.ledger import ledger_paths, read_ledger
from vidprep.shard import shard
from vidprep.splits import Split
from vidprep.types import FrameFormat, Video

pytest.importorskip("distributed", reason="needs the dask extra")

ROOT = Path(__file__).parents[2]


class Cluster:
    """A scheduler and its workers, each a process group of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "scheduler.json"
        self._scheduler = self._start("scheduler", "--port", "0")
        deadline = time.monotonic() + 60
        while not self._file.is_file():
            assert self._scheduler.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        self.workers = [self.add_worker() for _ in range(2)]

    def add_worker(self) -> "subprocess.Popen[bytes]":
        return self._start("worker", "--nthreads", "1", "--local-directory", str(self._folder), "--death-timeout", "60")

    def _start(self, what: str, *options: str) -> "subprocess.Popen[bytes]":
        with (self._folder / f"{what}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "dask", what, "--scheduler-file", str(self._file), "--no-dashboard", *options],
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                start_new_session=True,
            )

    @property
    def address(self) -> str:
        import json

        address: str = json.loads(self._file.read_text())["address"]
        return address

    def kill(self, process: "subprocess.Popen[bytes]") -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def close(self) -> None:
        for process in (*self.workers, self._scheduler):
            self.kill(process)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("dask"))
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("videos")
    return {
        name: write_numbered_video(folder / f"{name}.mp4", num_frames=10 + number, fps=10, width=64, height=48)
        for number, name in enumerate("abcdefghijkl")
    }


def make_split(names: list[str]) -> Split:
    videos = tuple(Video(video_id=name) for name in names)
    return Split(dataset="folder", split="val", task="single_label", classes=("one",), videos=videos)


def tars(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


def do_or_die(mortal: int, number: int) -> int:
    if number == mortal:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == mortal + 1:
        raise CorruptVideo("broken")
    return 2 * number


def sleep(scratch: Path, number: int) -> int:
    (scratch / f"{number}.begun").touch()
    time.sleep(3.0)
    (scratch / f"{number}.ended").touch()
    return number


def test_crashes_hangs_and_errors_on_a_cluster_stay_with_their_unit(cluster: Cluster) -> None:
    outcomes = {outcome.unit: outcome for outcome in run(range(10), partial(do_or_die, 3), scheduler=cluster.address)}
    assert sorted(outcomes) == list(range(10))
    assert isinstance(outcomes[3].error, WorkerDied)
    assert "its worker process died 2 times (SIGSEGV(-11))" in str(outcomes[3].error)
    assert isinstance(outcomes[4].error, CorruptVideo)
    assert all(outcome.result == 2 * unit for unit, outcome in outcomes.items() if unit not in (3, 4))
    [hung] = run([30.0], time.sleep, scheduler=cluster.address, time_limit_seconds=0.5)
    assert isinstance(hung.error, WorkerDied)
    assert hung.error.kind == "hung"


def test_a_run_that_is_closed_leaves_nothing_running_on_the_cluster(cluster: Cluster, tmp_path: Path) -> None:
    outcomes = run(range(8), partial(sleep, tmp_path), scheduler=cluster.address)
    next(outcomes)
    deadline = time.monotonic() + 20
    while len(list(tmp_path.glob("*.begun"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    outcomes.close()
    num_ended = len(list(tmp_path.glob("*.ended")))
    time.sleep(3.5)
    assert len(list(tmp_path.glob("*.ended"))) == num_ended < len(list(tmp_path.glob("*.begun")))
    # The cluster is there for the next run.
    assert [outcome.result for outcome in run([1], partial(do_or_die, 3), scheduler=cluster.address)] == [2]


def test_a_cluster_extracts_the_same_frames(cluster: Cluster, videos: dict[str, Path], tmp_path: Path) -> None:
    split = make_split([*videos, "gone"])
    for name, scheduler in (("here", None), ("there", cluster.address)):
        extract(split, videos, out=tmp_path / name, settings=FrameFormat(fps=5.0), scheduler=scheduler)
    here, there = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.jpg")}
        for name in ("here", "there")
    )
    assert here == there
    assert (tmp_path / "here.faults.csv").read_text() == (tmp_path / "there.faults.csv").read_text()


def test_a_worker_killed_in_the_middle_costs_nothing(
    cluster: Cluster, videos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = make_split([*videos, "gone"])
    shard(split, videos, out=tmp_path / "loky", samples_per_shard=2, workers=2)
    killed: list[object] = []

    def kill_in_the_middle(*places: object, **options: object) -> object:
        for count, outcome in enumerate(run(*places, **options)):  # type: ignore[arg-type,var-annotated]
            if count == 1 and not killed:
                killed.append(cluster.workers[0])
                cluster.kill(cluster.workers[0])
            yield outcome

    monkeypatch.setattr(shard_module, "_decode_all", check_slowly)
    monkeypatch.setattr(shard_module, "run", kill_in_the_middle)
    report = shard(split, videos, out=tmp_path / "dask", samples_per_shard=2, scheduler=cluster.address)
    assert killed
    assert [fault.video_id for fault in report.manifest.faults] == ["gone"]
    assert tars(tmp_path / "dask") == tars(tmp_path / "loky")
    for name in ("val.json", "val.parquet", "val.faults.csv"):
        assert (tmp_path / "dask" / name).read_bytes() == (tmp_path / "loky" / name).read_bytes()
    [paths] = ledger_paths(tmp_path / "dask").values()
    assert [entry.state for entry in read_ledger(paths)] == ["done"] * 12 + ["failed"]
    cluster.workers[0] = cluster.add_worker()


def test_a_scheduler_that_does_not_answer_is_named_within_seconds() -> None:
    started = time.monotonic()
    with pytest.raises(UsageError, match=r"tcp://127\.0\.0\.1:9: no Dask scheduler answers"):
        list(run([1], abs, scheduler="tcp://127.0.0.1:9"))
    with pytest.raises(UsageError, match="no Dask scheduler answers"):
        list(run([1], abs, scheduler="not an address"))
    assert time.monotonic() - started < 30
