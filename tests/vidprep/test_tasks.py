import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidprep.engine import CannotWrite
from vidprep.errors import UsageError
from vidprep.tasks import ArrayTask, Held, hold, parse_task

HOLDER = """
import sys
from pathlib import Path
from vidprep.tasks import hold
with hold(Path(sys.argv[1]), range(int(sys.argv[2]), int(sys.argv[3])), purpose="test"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_elsewhere(path: Path, units: range) -> Iterator["subprocess.Popen[str]"]:
    """Another process holds some units."""
    command = [sys.executable, "-c", HOLDER, str(path), str(units.start), str(units.stop)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@given(num_units=st.integers(0, 500), count=st.integers(1, 50))
def test_the_parts_of_all_tasks_are_all_units_each_once(num_units: int, count: int) -> None:
    parts = [ArrayTask(number=number, count=count).part_of(num_units) for number in range(1, count + 1)]
    assert [unit for part in parts for unit in part] == list(range(num_units))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_task_is_written_as_one_of_how_many() -> None:
    assert parse_task("2/3") == ArrayTask(number=2, count=3)
    assert str(parse_task("2/3")) == "2/3"
    for text in ("2", "2/", "/3", "a/b", "2/3/4", "-1/3", "2 / 3", ""):
        with pytest.raises(UsageError, match=r"expected I/N, such as 2/3 for the second of three, got"):
            parse_task(text)
    for text in ("0/3", "4/3", "0/0"):
        with pytest.raises(UsageError, match=f"the number of a task is 1 to {text[-1]}, got {text}"):
            parse_task(text)


def test_units_that_another_process_holds_are_refused_and_others_are_not(tmp_path: Path) -> None:
    path = tmp_path / "plan"
    path.write_text("{}")
    with held_elsewhere(path, range(3, 6)):
        for free in (range(3), range(6, 9), range(0)):
            with hold(path, free, purpose="vidprep shard"):
                pass
        for taken in (range(9), range(5, 7), range(3, 6)):
            with (
                pytest.raises(Held, match="another vidprep shard is at work here; wait for it to end"),
                hold(path, taken, purpose="vidprep shard"),
            ):
                pytest.fail("held twice")
    with hold(path, range(9), purpose="vidprep shard"):
        pass


def test_what_a_dead_process_held_is_free(tmp_path: Path) -> None:
    path = tmp_path / "plan"
    path.touch()
    with held_elsewhere(path, range(3)) as process:
        process.kill()
        process.wait()
        with hold(path, range(3), purpose="vidprep shard"):
            pass


def test_a_patient_process_waits_for_its_turn(tmp_path: Path) -> None:
    path = tmp_path / "plan"
    path.touch()
    with held_elsewhere(path, range(3)) as process:
        with pytest.raises(Held), hold(path, range(3), purpose="x", patience_seconds=0.2):
            pytest.fail("held twice")
        assert process.stdin is not None
        process.stdin.close()  # ends it
        with hold(path, range(3), purpose="x", patience_seconds=20):
            pass


def test_a_file_that_is_missing_cannot_be_held(tmp_path: Path) -> None:
    with pytest.raises(CannotWrite, match="plan: cannot be written"), hold(tmp_path / "plan", range(3), purpose="x"):
        pytest.fail("held nothing")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_where_nothing_can_be_written_nothing_is_held(tmp_path: Path) -> None:
    path = tmp_path / "plan"
    path.touch(mode=0o400)
    with hold(path, range(3), purpose="x"):
        pass
