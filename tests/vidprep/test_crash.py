"""Runs that are killed at random moments, and the shards that come out in the end."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.videos import write_numbered_video
from tests.vidprep import s3
from vidprep.verify import verify_shards

ROOT = Path(__file__).parents[2]
NUM_VIDEOS = 36


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos that take a while to check, in two classes; two of them are damaged."""
    root = tmp_path_factory.mktemp("crash") / "my videos"
    for name in ("running", "cooking"):
        (root / name).mkdir(parents=True)
    first = write_numbered_video(root / "running" / "-0.mp4", num_frames=200, width=160, height=120)
    for number in range(1, NUM_VIDEOS):
        path = root / ("running", "cooking")[number % 2] / f"{number}.mp4"
        path.write_bytes(first.read_bytes())
    (root / "cooking" / "5.mp4").write_bytes(b"")
    (root / "running" / "6.mp4").write_bytes(first.read_bytes()[:3000])
    return root


def start(data_root: Path, out: Path | str, *, workers: int, task: str | None = None) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", "import sys; from vidprep.cli import main; sys.exit(main())", "shard"]
    command += ["--dataset", "folder", "--data-root", str(data_root), "--out", str(out)]
    command += ["--samples-per-shard", "4", "--workers", str(workers)]
    command += [] if task is None else ["--task", task]
    return subprocess.Popen(
        command, cwd=ROOT, text=True, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(data_root: Path, out: Path | str, *, workers: int) -> str:
    process = start(data_root, out, workers=workers)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors  # two faults
    assert "Traceback" not in errors
    return output


def tars(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


@pytest.fixture(scope="module")
def undisturbed(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    finish(data_root, out, workers=1)
    assert len(tars(out)) == NUM_VIDEOS / 4
    return out


def wait_for_a_tar(out: Path, process: "subprocess.Popen[str]", *, more_than: int) -> None:
    deadline = time.monotonic() + 60
    while len(list(out.glob("*.tar"))) <= more_than and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def kill_and_restart(data_root: Path, out: Path, *, workers: int, num_kills: int, seed: int) -> None:
    """Kill the whole process group at random moments, from the start of the program to the last shard."""
    chance = random.Random(seed)
    for kill in range(num_kills):
        process = start(data_root, out, workers=workers)
        if kill % 2:
            # While shards are being written: at some moment after one more of them appeared.
            wait_for_a_tar(out, process, more_than=len(list(out.glob("*.tar"))))
            time.sleep(chance.uniform(0.0, 0.15))
        else:
            time.sleep(chance.uniform(0.2, 2.0))
        with suppress(ProcessLookupError):  # it may be finished already
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def assert_equal_to_undisturbed(out: Path, undisturbed: Path) -> None:
    assert tars(out) == tars(undisturbed)
    for name in ("all.json", "all.parquet", "all.faults.csv"):
        assert (out / name).read_bytes() == (undisturbed / name).read_bytes()
    assert not list(out.glob("*.part"))
    assert verify_shards(out).is_sound


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_runs_end_in_the_same_bytes(workers: int, data_root: Path, undisturbed: Path, tmp_path: Path) -> None:
    kill_and_restart(data_root, tmp_path, workers=workers, num_kills=3, seed=workers)
    output = finish(data_root, tmp_path, workers=workers)
    assert "2 of 36 videos are in no shard" in output
    assert_equal_to_undisturbed(tmp_path, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_25_kills_end_in_the_same_bytes(workers: int, data_root: Path, undisturbed: Path, tmp_path: Path) -> None:
    kill_and_restart(data_root, tmp_path, workers=workers, num_kills=25, seed=10 + workers)
    finish(data_root, tmp_path, workers=3 - workers)
    assert_equal_to_undisturbed(tmp_path, undisturbed)


@pytest.mark.slow
def test_tasks_that_are_killed_and_sent_again_end_in_the_same_bytes(
    data_root: Path, undisturbed: Path, tmp_path: Path
) -> None:
    chance = random.Random(3)
    for _ in range(8):
        tasks = [start(data_root, tmp_path, workers=1, task=f"{number}/3") for number in (3, 1, 2)]
        time.sleep(chance.uniform(1.0, 4.0))
        for task in tasks:
            with suppress(ProcessLookupError):
                os.killpg(task.pid, signal.SIGKILL)
            task.communicate()
    for number in (2, 3, 1):
        task = start(data_root, tmp_path, workers=1, task=f"{number}/3")
        _, errors = task.communicate(timeout=120)
        assert task.returncode in (0, 1), errors
    assert_equal_to_undisturbed(tmp_path, undisturbed)


@pytest.mark.slow
def test_25_kills_of_uploads_end_in_the_same_bytes(data_root: Path, undisturbed: Path, s3_url: str) -> None:
    chance = random.Random(4)
    for kill in range(25):
        process = start(data_root, s3_url, workers=1 + kill % 2)
        time.sleep(chance.uniform(1.0, 4.0))
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    finish(data_root, s3_url, workers=2)
    found = s3.contents(s3_url)
    for path in undisturbed.iterdir():
        if not path.name.endswith(".ledger.jsonl"):
            assert found[path.name] == path.read_bytes()
    assert verify_shards(s3_url).is_sound


@pytest.mark.parametrize("workers", [1, 2])
def test_interrupted_runs_leave_nothing_half_written(
    workers: int, data_root: Path, undisturbed: Path, tmp_path: Path
) -> None:
    process = start(data_root, tmp_path, workers=workers)
    wait_for_a_tar(tmp_path, process, more_than=0)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == "error: interrupted; the same command goes on where it stopped.\n"
    assert not list(tmp_path.glob("*.part"))
    output = finish(data_root, tmp_path, workers=workers)
    assert "written now" in output
    assert_equal_to_undisturbed(tmp_path, undisturbed)


def test_a_second_run_beside_the_first_is_refused(data_root: Path, tmp_path: Path) -> None:
    first = start(data_root, tmp_path, workers=1)
    wait_for_a_tar(tmp_path, first, more_than=0)
    second = start(data_root, tmp_path, workers=1)
    _, errors = second.communicate(timeout=30)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert second.returncode == 2
    assert "another vidprep shard is at work here; wait for it to end." in errors


def test_the_finished_command_again_says_so_quickly(data_root: Path, undisturbed: Path) -> None:
    started = time.monotonic()
    output = finish(data_root, undisturbed, workers=2)
    assert "all there already" in output
    assert "cooking/5.mp4: is empty (0 bytes); fetch it again" in output
    assert time.monotonic() - started < 10  # about one second on an idle machine


def test_a_shard_cut_short_is_named(undisturbed: Path, tmp_path: Path) -> None:
    for path in undisturbed.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    size = (tmp_path / "all-000003.tar").stat().st_size
    os.truncate(tmp_path / "all-000003.tar", 12_345)
    [problem] = verify_shards(tmp_path).splits[0].problems
    assert problem == f"all-000003.tar: cut short, 12345 of {size} bytes"
