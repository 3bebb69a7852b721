import contextlib
import ctypes
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from vidprep import engine
from vidprep.engine import CannotWrite, Outcome, WorkerDied, differences, lock, publish, run, sweep, writing
from vidprep.errors import CorruptVideo, UsageError, VidprepError
from vidprep.workers import Death, begin_part


def double(number: int) -> int:
    if number == 13:
        raise CorruptVideo("13: unlucky")
    return 2 * number


def die_on(mortal: set[int], scratch: Path, number: int) -> int:
    (scratch / f"{number}-{time.monotonic_ns()}").touch()
    if number in mortal:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def die_once(scratch: Path, number: int) -> int:
    mark = scratch / str(number)
    if number == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGSEGV)
    return number


def fill_disk(number: int) -> int:
    if number == 2:
        with writing(Path("out.tar")):
            raise OSError(errno.ENOSPC, "No space left on device")
    return number


class Unportable(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def raise_unportable(number: int) -> int:
    raise Unportable(number, number)


def loaded_modules(_: int) -> list[str]:
    import vidprep.extract
    import vidprep.shard
    import vidprep.verify  # noqa: F401

    return [name for name in ("torch", "torchvision") if name in sys.modules]


@pytest.mark.parametrize("workers", [1, 2])
def test_every_unit_has_one_outcome_and_errors_stay_with_their_unit(workers: int) -> None:
    outcomes = {outcome.unit: outcome for outcome in run(list(range(20)), double, workers=workers)}
    assert len(outcomes) == 20
    assert isinstance(outcomes[13].error, CorruptVideo)
    assert outcomes.pop(13).result is None
    assert all(outcome == Outcome(unit=unit, result=2 * unit) for unit, outcome in outcomes.items())


def test_a_worker_that_dies_loses_only_the_unit_that_kills_it(tmp_path: Path) -> None:
    outcomes = {
        outcome.unit: outcome
        for outcome in run(list(range(12)), partial(die_on, {1, 7}, tmp_path), workers=2, retries=2)
    }
    assert sorted(outcomes) == list(range(12))
    for unit, outcome in outcomes.items():
        if unit in (1, 7):
            assert isinstance(outcome.error, WorkerDied)
            assert "died 3 times (SIGKILL(-9)): killed from outside, as the system" in str(outcome.error)
            assert (outcome.error.kind, outcome.num_attempts) == ("out_of_memory", 3)
            # Once among others, then twice alone.
            assert len(list(tmp_path.glob(f"{unit}-*"))) == 3
        else:
            assert outcome.result == unit
            assert len(list(tmp_path.glob(f"{unit}-*"))) == 1


def hang_on(mortal: set[int], number: int) -> int:
    """As a decoder that holds on to Python's lock for good: nothing inside of the process can end it."""
    begin_part("its head")
    if number in mortal:
        begin_part("its tail")
        libc = ctypes.PyDLL(None)
        while True:
            libc.pause()
    return number


def crash_on(mortal: set[int], number: int) -> int:
    begin_part(f"part {number}")
    if number in mortal:
        ctypes.string_at(0)
    return number


@pytest.mark.parametrize("workers", [1, 2])
def test_a_unit_that_hangs_is_given_up_at_the_time_limit(workers: int) -> None:
    started = time.monotonic()
    outcomes = {
        outcome.unit: outcome
        for outcome in run(list(range(8)), partial(hang_on, {2, 5}), workers=workers, time_limit_seconds=0.7)
    }
    assert time.monotonic() - started < 20
    for unit, outcome in outcomes.items():
        if unit in (2, 5):
            assert isinstance(outcome.error, WorkerDied)
            assert str(outcome.error) == "took longer than the time limit of 0.7 s; its worker process was ended"
            assert (outcome.error.kind, outcome.error.part, outcome.num_attempts) == ("hung", "its tail", 1)
        else:
            assert outcome.result == unit


def test_the_time_limit_is_for_each_part_of_a_unit() -> None:
    [outcome] = run([12], work_in_parts, time_limit_seconds=2.5)
    assert outcome.result == 12
    assert outcome.seconds > 2.5


def work_in_parts(num_parts: int) -> int:
    for number in range(num_parts):
        begin_part(str(number))
        time.sleep(0.25)
    return num_parts


def test_a_crash_is_told_with_its_signal_and_its_part() -> None:
    outcomes = {outcome.unit: outcome for outcome in run([0, 1, 2], partial(crash_on, {1}), workers=2)}
    error = outcomes[1].error
    assert isinstance(error, WorkerDied)
    assert str(error) == (
        "its worker process died 2 times (SIGSEGV(-11)): a crash inside the decoder, or too little memory"
    )
    assert (error.kind, error.part) == ("crashed", "part 1")
    assert [outcomes[0].result, outcomes[2].result] == [0, 2]


def test_a_time_limit_must_be_positive() -> None:
    with pytest.raises(UsageError, match="the time limit must be above 0 seconds, got 0"):
        run([1], double, time_limit_seconds=0)


def test_a_unit_whose_worker_died_once_is_done_in_the_second_attempt(tmp_path: Path) -> None:
    outcomes = sorted(run(list(range(6)), partial(die_once, tmp_path), workers=2), key=lambda outcome: outcome.unit)
    assert [outcome.result for outcome in outcomes] == list(range(6))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_ends_the_run(workers: int) -> None:
    with pytest.raises(CannotWrite, match=r"out.tar: no space left on the disk; free some and run the same command"):
        list(run(list(range(50)), fill_disk, workers=workers))


def test_an_error_that_does_not_travel_arrives_as_text() -> None:
    [one, _] = run([1, 2], raise_unportable, workers=2)
    assert isinstance(one.error, RuntimeError)
    assert "Unportable" in str(one.error)


def test_workers_do_not_load_torch() -> None:
    assert [outcome.result for outcome in run([0, 1], loaded_modules, workers=2)] == [[], []]


def test_no_units_are_no_work() -> None:
    assert list(run([], double, workers=2)) == []


def test_workers_must_be_positive() -> None:
    with pytest.raises(UsageError, match="workers must be at least 1, got 0"):
        run([1], double, workers=0)


def test_a_closed_run_ends_its_workers() -> None:
    started = time.monotonic()
    with closing(run([0.1, *[30.0] * 5], _sleep, workers=2)) as outcomes:
        assert next(outcomes).unit == 0.1
    assert time.monotonic() - started < 20


def _sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def test_interrupt_ends_the_workers_without_their_tracebacks() -> None:
    script = (
        "import time\n"
        "from vidprep.engine import run\n"
        "from tests.vidprep.test_engine import _sleep\n"
        "try:\n"
        "    for outcome in run([0.1] * 2 + [60.0] * 4, _sleep, workers=2):\n"
        "        print('one', flush=True)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=Path(__file__).parents[2],
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "one\n"
        os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert "interrupted" in output
    assert errors == ""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="finds the starting workers in /proc")
@pytest.mark.parametrize("delay_seconds", [0.05, 0.15, 0.25])
def test_interrupt_while_the_workers_start_shows_no_traceback_of_theirs(delay_seconds: float) -> None:
    script = (
        "from vidprep.engine import run\n"
        "from tests.vidprep.test_engine import _sleep\n"
        "try:\n"
        "    list(run([60.0] * 4, _sleep, workers=2))\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=Path(__file__).parents[2],
    ) as process:
        deadline = time.monotonic() + 30
        while not _has_workers(process.pid) and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(delay_seconds)  # Python is up and imports
        os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert "interrupted" in output
    assert errors == ""


def _has_workers(parent: int) -> bool:
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            is_child = f"PPid:\t{parent}\n" in (folder / "status").read_text()
            if is_child and b"popen_loky" in (folder / "cmdline").read_bytes():
                return True
    return False


def test_a_published_file_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"

    def fail_half_way() -> None:
        with publish(path) as stream:
            stream.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert list(tmp_path.iterdir()) == []
    with publish(path) as stream:
        stream.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [path]


def test_a_target_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(CannotWrite, match=r"gone/a.tar: cannot be written \(No such file or directory\)"),
        publish(tmp_path / "gone" / "a.tar"),
    ):
        pass


def test_sweeping_removes_only_half_written_files_of_that_name(tmp_path: Path) -> None:
    for name in ("val-000000.tar.17.part", "val-000000.tar", "val2-000000.tar.17.part", "notes.part"):
        (tmp_path / name).touch()
    sweep(tmp_path, r"val-\d{6}\.tar")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "notes.part",
        "val-000000.tar",
        "val2-000000.tar.17.part",
    ]
    sweep(tmp_path / "missing", ".*")


def test_one_run_at_a_time_holds_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "plan"
    path.touch()
    with (
        lock(path, purpose="vidprep shard"),
        pytest.raises(UsageError, match="another vidprep shard is at work here"),
        lock(path, purpose="vidprep shard"),
    ):
        pass
    with lock(path, purpose="vidprep shard"):
        pass


def test_differences_are_named_with_both_values() -> None:
    assert differences({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}) == "b was 2, now 3; c was None, now 4"
    assert differences({"a": 1}, {"a": 1}) == ""
    many = {f"setting_{number}": number for number in range(9)}
    assert differences({"frames": many}, {"frames": many | {"setting_8": 0}}) == "frames.setting_8 was 8, now 0"
    assert differences({"frames": None}, {"frames": {"fps": 5}}) == "frames was None, now {'fps': 5}"


def test_a_cluster_that_is_lost_during_the_second_attempt_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pool:
        check_seconds = 0.01
        num_submitted = 0

        def capacity(self) -> int:
            return 1

        def submit(self, work: Callable[[int], int], unit: int) -> "Future[Any]":
            self.num_submitted += 1
            future: Future[Any] = Future()  # of the second attempt nobody hears again
            if self.num_submitted == 1:
                future.set_result(Death(kind="crashed", reason="SIGSEGV", part=None, seconds=0.0))
            return future

        def check(self) -> None:
            if self.num_submitted == 2:
                raise VidprepError("the scheduler is gone")

    monkeypatch.setattr(engine, "open_pool", lambda *_, **__: contextlib.nullcontext(Pool()))
    with pytest.raises(VidprepError, match="the scheduler is gone"):
        list(run([1], abs, scheduler="tcp://nowhere:1"))
