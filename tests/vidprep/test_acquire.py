import hashlib
import io
import json
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.server import Behaviour, serve
from vidprep import acquire
from vidprep.acquire import download_dataset, plan_dataset, take_dataset
from vidprep.cli import app
from vidprep.datasets import DATASETS
from vidprep.download import Retries
from vidprep.engine import CannotWrite, lock
from vidprep.errors import UsageError
from vidprep.types import DatasetInfo, RemoteFile

QUICK = Retries(num_attempts=6, first_seconds=0.001, longest_seconds=0.01)
BASE = "https://publisher.invalid"

INFO = DatasetInfo(
    name="example",
    title="Example",
    task="single_label",
    num_classes=2,
    splits={"train": 3, "val": 1},
    video_paths=("{split}/{video_id}.*",),
    files=(
        RemoteFile(url=f"{BASE}/train.csv", filename="annotations/train.csv", split="train"),
        RemoteFile(
            url=f"{BASE}/train_path.txt", filename="archives/train", kind="url_list", split="train", unpack_to="train"
        ),
        RemoteFile(url=f"{BASE}/val_path.txt", filename="archives/val", kind="url_list", split="val", unpack_to="val"),
        RemoteFile(url=f"{BASE}/more-00", filename="archives/more-00", kind="archive"),
        RemoteFile(url=f"{BASE}/more-01", filename="archives/more-01", kind="archive"),
    ),
    archives=("part_*.tar.gz", "more-??"),
)


def tar_of(files: dict[str, bytes]) -> bytes:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return plain.getvalue()


MORE = tar_of({"more/x": b"x" * 1000})

SERVED = {
    "/train.csv": b"video_id,label\n",
    "/train_path.txt": f"{BASE}/train/part_0.tar.gz\n{BASE}/train/part_1.tar.gz".encode(),
    "/val_path.txt": f"{BASE}/val/part_0.tar.gz\n".encode(),
    "/train/part_0.tar.gz": tar_of({"a.mp4": b"a", "b.mp4": b"b"}),
    "/train/part_1.tar.gz": tar_of({"c.mp4": b"c"}),
    "/val/part_0.tar.gz": tar_of({"d.mp4": b"d"}),
    "/more-00": MORE[:60],
    "/more-01": MORE[60:],
}

WHOLE = {
    "annotations/train.csv": b"video_id,label\n",
    "train/a.mp4": b"a",
    "train/b.mp4": b"b",
    "train/c.mp4": b"c",
    "val/d.mp4": b"d",
    "more/x": b"x" * 1000,
}


def files_of(root: Path, *, with_archives: bool = False) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
        and ".vidprep" not in path.parts
        and (with_archives or path.relative_to(root).parts[0] != "archives")
    }


def test_a_data_set_comes_whole_and_nothing_is_asked_for_twice(tmp_path: Path) -> None:
    with serve(dict(SERVED)) as server:
        report = download_dataset(INFO, tmp_path, mirror=server.url, retries=QUICK)

        assert report.failures == ()
        assert files_of(tmp_path) == WHOLE
        assert Counter(request.path for request in server.gets()) == dict.fromkeys(SERVED, 1)
        num_requests = len(server.requests)

        again = download_dataset(INFO, tmp_path, mirror=server.url, retries=QUICK)

        assert len(server.requests) == num_requests
        assert [one.is_new for one in again.unpacked] == [False] * 4
        assert again.num_new_bytes == 0


def test_a_split_brings_only_its_own(tmp_path: Path) -> None:
    with serve(dict(SERVED)) as server:
        download_dataset(INFO, tmp_path, split="val", mirror=server.url, retries=QUICK)

    assert files_of(tmp_path) == {name: WHOLE[name] for name in ("val/d.mp4", "more/x")}
    with pytest.raises(UsageError, match="example has no split 'test'; it has train, val"):
        download_dataset(INFO, tmp_path, split="test")


def test_freed_archives_are_not_fetched_again(tmp_path: Path) -> None:
    with serve(dict(SERVED)) as server:
        download_dataset(INFO, tmp_path, mirror=server.url, delete_archives=True, retries=QUICK)

        assert files_of(tmp_path) == WHOLE
        assert sorted(path.name for path in (tmp_path / "archives").rglob("*") if path.is_file()) == [
            "train_path.txt",
            "val_path.txt",
        ]
        num_requests = len(server.requests)

        again = download_dataset(INFO, tmp_path, mirror=server.url, delete_archives=True, retries=QUICK)

        assert len(server.requests) == num_requests
        assert (again.num_files, len(again.unpacked)) == (6, 4)
        plan, _ = plan_dataset(INFO, tmp_path, mirror=server.url)
        assert plan.num_missing == 0


def test_parts_that_a_killed_run_had_not_freed_yet_are_freed_by_the_next(tmp_path: Path) -> None:
    with serve(dict(SERVED)) as server:
        download_dataset(INFO, tmp_path, mirror=server.url, retries=QUICK)
        num_requests = len(server.requests)
        (tmp_path / "archives" / "more-01").unlink()

        report = download_dataset(INFO, tmp_path, mirror=server.url, delete_archives=True, retries=QUICK)

        assert report.failures == ()
        assert len(report.unpacked) == 4
        assert len(server.requests) == num_requests
    assert not list((tmp_path / "archives").glob("more-*"))
    assert files_of(tmp_path) == WHOLE


def test_a_failure_leaves_the_rest_whole_and_the_next_run_mends_it(tmp_path: Path) -> None:
    served = {**SERVED, "/train/part_0.tar.gz": SERVED["/train/part_0.tar.gz"][:-5]}

    def behave(path: str, num_gets: int) -> Behaviour:
        return Behaviour(status=404 if path == "/more-01" else None)

    with serve(served, behave) as server:
        report = download_dataset(INFO, tmp_path, mirror=server.url, delete_archives=True, retries=QUICK)

        assert len(report.failures) == 2
        assert any("more-01: " in failure and "status 404" in failure for failure in report.failures)
        assert any("part_0.tar.gz.rejected; the next run fetches it anew" in failure for failure in report.failures)
        assert set(files_of(tmp_path)) == set(WHOLE) - {"train/a.mp4", "train/b.mp4", "more/x"}

        assert (tmp_path / "archives" / "train" / "part_0.tar.gz.rejected").is_file()
        server.files.update(SERVED)
        server.behave = lambda path, num_gets: Behaviour()
        num_gets = len(server.gets())
        assert not download_dataset(INFO, tmp_path, mirror=server.url, retries=QUICK).failures
        assert {request.path for request in server.gets()[num_gets:]} == {"/train/part_0.tar.gz", "/more-01"}
    assert files_of(tmp_path) == WHOLE


def test_a_plan_counts_bytes_and_fetches_lists_alone(tmp_path: Path) -> None:
    with serve(dict(SERVED)) as server:
        plan, failures = plan_dataset(INFO, tmp_path, mirror=server.url)

        assert failures == []
        assert {request.path for request in server.gets()} == {"/train_path.txt", "/val_path.txt"}
    archives = {path: content for path, content in SERVED.items() if not path.endswith(".txt")}
    assert plan.num_missing == sum(map(len, archives.values()))


def test_the_room_is_for_the_archives_and_what_is_in_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    num_bytes = sum(len(content) for path, content in SERVED.items() if not path.endswith(".txt"))
    monkeypatch.setattr("vidprep.download.free_bytes", lambda _: num_bytes + 10)
    with serve(dict(SERVED)) as server:
        with pytest.raises(CannotWrite, match=r"for the archives and what is in them.* With --delete-archives"):
            download_dataset(INFO, tmp_path, mirror=server.url, retries=QUICK)
        report = download_dataset(INFO, tmp_path, mirror=server.url, delete_archives=True, retries=QUICK)
    assert report.failures == ()


def test_what_is_unpacked_needs_no_room_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(dict(SERVED)) as server:
        download_dataset(INFO, tmp_path, mirror=server.url, retries=QUICK)
        monkeypatch.setattr("vidprep.download.free_bytes", lambda _: 0)
        assert not download_dataset(INFO, tmp_path, mirror=server.url, retries=QUICK).failures


def test_two_downloads_do_not_share_a_folder(tmp_path: Path) -> None:
    (tmp_path / ".vidprep").mkdir()
    (tmp_path / ".vidprep" / "lock").touch()
    with (
        lock(tmp_path / ".vidprep" / "lock", purpose="download"),
        pytest.raises(UsageError, match="another download is at work here"),
    ):
        download_dataset(INFO, tmp_path)


def give(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


LAYOUTS = {
    "as downloaded": ("archives/train/part_{}.tar.gz", "archives/val/part_0.tar.gz", "archives/", "annotations/"),
    "by split": ("train/part_{}.tar.gz", "val/part_0.tar.gz", "", "annotations/"),
    "split in the name": ("part_train_{}.tar.gz", "part_val_0.tar.gz", "", ""),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_the_user_has_is_taken_from_any_layout(tmp_path: Path, layout: str) -> None:
    train, val, more, annotations = LAYOUTS[layout]
    source = give(
        tmp_path / "mine",
        {
            train.format(0): SERVED["/train/part_0.tar.gz"],
            train.format(1): SERVED["/train/part_1.tar.gz"],
            val: SERVED["/val/part_0.tar.gz"],
            f"{more}more-00": SERVED["/more-00"],
            f"{more}more-01": SERVED["/more-01"],
            f"{annotations}train.csv": SERVED["/train.csv"],
            "train_path.txt": SERVED["/train_path.txt"],
            ".hidden": b"",
            "x.part": b"",
        },
    )
    before = files_of(source, with_archives=True)

    report = take_dataset(INFO, source, tmp_path / "root")

    assert (report.failures, report.num_files) == ((), 5)
    assert files_of(tmp_path / "root") == WHOLE
    assert files_of(source, with_archives=True) == before
    assert [one.is_new for one in take_dataset(INFO, source, tmp_path / "root").unpacked] == [False] * 4


def test_taken_archives_are_freed_only_when_asked_and_other_files_never(tmp_path: Path) -> None:
    source = give(tmp_path / "mine", {"val/part_0.tar.gz": SERVED["/val/part_0.tar.gz"], "annotations/val.csv": b"1"})

    take_dataset(INFO, source, tmp_path / "root", delete_archives=True)

    assert set(files_of(source)) == {"annotations/val.csv"}
    assert set(files_of(tmp_path / "root")) == {"val/d.mp4", "annotations/val.csv"}


def test_the_same_command_after_the_last_archive_was_freed_finds_all_in_place(tmp_path: Path) -> None:
    source = give(tmp_path / "mine", {"val/part_0.tar.gz": SERVED["/val/part_0.tar.gz"]})
    take_dataset(INFO, source, tmp_path / "root", delete_archives=True)

    again = take_dataset(INFO, source, tmp_path / "root", delete_archives=True)

    assert [(one.name, one.num_files, one.is_new) for one in again.unpacked] == [("part_0.tar.gz", 1, False)]
    assert (again.failures, again.num_files) == ((), 1)


def test_taking_one_split_leaves_the_others(tmp_path: Path) -> None:
    source = give(
        tmp_path / "mine",
        {f"{split}/part_0.tar.gz": SERVED[f"/{split}/part_0.tar.gz"] for split in ("train", "val")},
    )

    take_dataset(INFO, source, tmp_path / "root", split="val")

    assert files_of(tmp_path / "root") == {"val/d.mp4": b"d"}


def test_loose_videos_go_where_their_folder_says_and_known_ones_to_their_place(tmp_path: Path) -> None:
    loose = {"archives/yoga/a.mp4": b"a", "beach/b.avi": b"b"}
    take_dataset(INFO, give(tmp_path / "mine", loose), tmp_path / "root")
    assert files_of(tmp_path / "root") == {"yoga/a.mp4": b"a", "beach/b.avi": b"b"}

    epic = give(tmp_path / "epic", {"archives/videos/train/P01/P01_01.MP4": b"1", "EPIC_100_train.csv": b"2"})
    take_dataset(DATASETS["epic_kitchens"], epic, tmp_path / "root_epic")
    assert files_of(tmp_path / "root_epic") == {"videos/P01/P01_01.MP4": b"1", "annotations/EPIC_100_train.csv": b"2"}


def test_all_700_videos_of_epic_are_offered_with_their_md5(tmp_path: Path) -> None:
    with serve({}) as server:
        plan, _ = plan_dataset(DATASETS["epic_kitchens"], tmp_path, mirror=server.url)

    videos = [planned for planned in plan.files if planned.path.suffix == ".MP4"]
    assert len({planned.path for planned in videos}) == 700
    assert all(planned.file.md5 for planned in videos)


def test_a_bad_archive_is_named_and_the_others_are_taken(tmp_path: Path) -> None:
    source = give(
        tmp_path / "mine", {"train/part_0.tar.gz": b"<html>", "val/part_0.tar.gz": SERVED["/val/part_0.tar.gz"]}
    )

    [failure] = take_dataset(INFO, source, tmp_path / "root").failures

    assert "mine/train/part_0.tar.gz: cannot be unpacked" in failure
    assert files_of(tmp_path / "root") == {"val/d.mp4": b"d"}


def test_a_file_that_is_there_with_another_size_stays(tmp_path: Path) -> None:
    source = give(tmp_path / "mine", {"annotations/train.csv": b"theirs, longer"})
    give(tmp_path / "root", {"annotations/train.csv": b"mine"})

    [failure] = take_dataset(INFO, source, tmp_path / "root").failures

    assert "is there with 4 bytes" in failure
    assert files_of(tmp_path / "root") == {"annotations/train.csv": b"mine"}


def test_files_on_another_disk_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(acquire.os, "link", refuse)  # type: ignore[attr-defined]
    source = give(tmp_path / "mine", {"annotations/train.csv": b"1"})

    take_dataset(INFO, source, tmp_path / "root")

    assert files_of(tmp_path / "root") == {"annotations/train.csv": b"1"}


@pytest.mark.parametrize("prefix", ["", "Copy of "])
def test_an_archive_that_is_not_the_published_one_is_refused_by_name(
    tmp_path: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = tar_of({"v1-2/val/v_a.mp4": b"a"})
    info = replace(DATASETS["activitynet"], archive_md5={"v1-2_val.tar.gz": hashlib.md5(good).hexdigest()})
    source = give(tmp_path / "mine", {f"{prefix}v1-2_val.tar.gz": tar_of({"v1-2/val/v_b.mp4": b"b"})})

    report = take_dataset(info, source, tmp_path / "root", delete_archives=True)

    [failure] = report.failures
    assert f"mine/{prefix}v1-2_val.tar.gz: its md5 is " in failure
    assert f"published is {hashlib.md5(good).hexdigest()}; nothing of it was taken" in failure
    assert files_of(tmp_path / "root") == {}

    path = source / f"{prefix}v1-2_val.tar.gz"
    path.rename(source / "mine.tar.gz")
    path.write_bytes(good)
    assert not take_dataset(info, source, tmp_path / "root").failures
    assert files_of(tmp_path / "root") == {"v1-2/val/v_a.mp4": b"a", "v1-2/val/v_b.mp4": b"b"}

    monkeypatch.setattr(acquire, "wrong_checksum", lambda *_: pytest.fail("read again"))
    assert [one.is_new for one in take_dataset(info, source, tmp_path / "root").unpacked] == [False, False]


def test_an_archive_with_a_checksum_among_its_files_is_compared_as_well(tmp_path: Path) -> None:
    source = give(tmp_path / "mine", {"ILSVRC2015_VID.tar.gz": tar_of({"ILSVRC2015/x": b"x"})})
    [failure] = take_dataset(DATASETS["imagenet_vid"], source, tmp_path / "root").failures
    assert "its md5 is" in failure
    assert files_of(tmp_path / "root") == {}


def test_the_archives_of_a_miniature_differ_with_a_note(tmp_path: Path) -> None:
    content = {"dataset": "activitynet", "seed": 0, "annotations": [], "splits": {}, "traps": {}}
    mini = give(tmp_path / "mini", {"archives/v1-2_val.tar.gz": tar_of({"v_a.mp4": b"a"})})
    (mini / "expected.json").write_text(json.dumps(content))

    report = take_dataset(DATASETS["activitynet"], mini / "archives", tmp_path / "root")

    assert report.failures == ()
    assert report.notes == (
        f"{mini}/archives: a miniature, so not what was published under these names: v1-2_val.tar.gz.",
    )
    assert "note: " in report.to_text()

    (mini / "expected.json").write_text(json.dumps(content | {"dataset": "fcvid"}))
    assert take_dataset(DATASETS["activitynet"], mini / "archives", tmp_path / "other").failures


def test_a_file_whose_end_nobody_says_is_noted_but_not_an_archive(tmp_path: Path) -> None:
    def behave(path: str, num_gets: int) -> Behaviour:
        return Behaviour(has_length=path.endswith(".txt"))

    with serve(dict(SERVED), behave) as server:
        report = download_dataset(INFO, tmp_path, mirror=server.url, retries=QUICK)

    assert files_of(tmp_path) == WHOLE
    [note] = report.notes
    assert note.startswith(f"{tmp_path}/annotations/train.csv: length unknown: 15 bytes came")


def test_folders_that_cannot_be_taken_from_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder; --from names the one that holds the archives of example"):
        take_dataset(INFO, tmp_path / "nothing", tmp_path / "root")
    with pytest.raises(UsageError, match="holds the data root"):
        take_dataset(INFO, tmp_path, tmp_path / "root")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no files"):
        take_dataset(INFO, tmp_path / "empty", tmp_path / "root")


# The command


COMMAND = [sys.executable, "-c", "import sys; from vidprep.cli import main; sys.exit(main())"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASETS, "example", INFO)


@pytest.mark.usefixtures("example")
def test_the_command_says_what_it_would_do_and_then_does_it(tmp_path: Path) -> None:
    with serve(dict(SERVED)) as server:
        arguments = ["download", "example", "--data-root", str(tmp_path), "--mirror", server.url]
        dry = CliRunner().invoke(app, [*arguments, "--dry-run"])
        assert dry.exit_code == 0
        assert "6 of 6 files to fetch" in dry.output
        assert "free." in dry.output
        assert files_of(tmp_path) == {}

        done = CliRunner().invoke(app, [*arguments, "--delete-archives", "--parallel", "2"])
        assert done.exit_code == 0
        assert "6 files and archives" in done.output
        assert files_of(tmp_path) == WHOLE


@pytest.mark.usefixtures("example")
def test_the_command_names_failures_and_ends_with_one(tmp_path: Path) -> None:
    with serve({path: content for path, content in SERVED.items() if path != "/train.csv"}) as server:
        done = CliRunner().invoke(app, ["download", "example", "--data-root", str(tmp_path), "--mirror", server.url])

    assert done.exit_code == 1
    assert "1 failed:" in done.output
    assert f"{BASE}/train.csv: the server answers with status 404" in done.output


def test_ctrl_c_ends_the_command_in_one_line_and_the_next_one_goes_on(tmp_path: Path) -> None:
    videos = {"/kinetics/400/val/part_0.tar.gz": tar_of({"a.mp4": random.Random(0).randbytes(2_000_000)})}
    served = {
        **videos,
        "/kinetics/400/annotations/val.csv": b"label\n",
        "/kinetics/400/val/k400_val_path.txt": b"https://s3.amazonaws.com/kinetics/400/val/part_0.tar.gz",
    }
    part = tmp_path / "archives" / "val" / "part_0.tar.gz.part"

    def behave(path: str, num_gets: int) -> Behaviour:
        if "replacement" in path:
            return Behaviour(content=tar_of({"replacement_for_corrupted_k400/b.mp4": b"b"}))
        return Behaviour(seconds_per_chunk=0.03 if path in videos and num_gets == 0 else 0.0)

    with serve(served, behave) as server:
        arguments = [*COMMAND, "download", "kinetics400", "--data-root", str(tmp_path), "--split", "val"]
        arguments += ["--mirror", server.url]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not (part.exists() and part.stat().st_size > 200_000):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 130
        assert errors == "error: interrupted; the same command goes on where it stopped.\n"

        num_there = part.stat().st_size
        done = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=30)

        [path] = videos
        assert server.gets(path)[-1].range == f"bytes={num_there}-"
        assert "unpacked now" in done.stdout
    assert (tmp_path / "val" / "a.mp4").stat().st_size == 2_000_000


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("end", "is_freed", "num_runs"),
    [
        (signal.SIGKILL, False, 2),
        (signal.SIGINT, True, 2),
        pytest.param(signal.SIGKILL, True, 6, marks=SLOW),
        pytest.param(signal.SIGINT, False, 6, marks=SLOW),
    ],
)
def test_a_run_that_ends_while_it_unpacks_leaves_nothing_half_written(
    tmp_path: Path, end: signal.Signals, is_freed: bool, num_runs: int
) -> None:
    chance = random.Random(f"{end} {is_freed}")
    packed = {f"part_{part}": {f"{part}_{index}.mp4": chance.randbytes(3000) for index in range(1000)} for part in "ab"}
    source = give(tmp_path / "mine", {f"val/{name}.tar.gz": tar_of(files) for name, files in packed.items()})
    whole = {f"val/{name}": content for files in packed.values() for name, content in files.items()}
    root = tmp_path / "root"
    arguments = [*COMMAND, "download", "kinetics400", "--data-root", str(root), "--from", str(source)]
    arguments += ["--delete-archives"] if is_freed else []

    for _ in range(num_runs):
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 20
        while process.poll() is None and not list(root.glob("val/.unpacking-*")):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(chance.uniform(0.0, 0.3))
        process.send_signal(end)
        _, errors = process.communicate(timeout=20)
        # It may have ended by itself.
        assert process.returncode in ((-signal.SIGKILL, 0) if end == signal.SIGKILL else (130, 0))
        assert errors == "" or errors == "error: interrupted; the same command goes on where it stopped.\n"
        # What is in sight is whole.
        seen = {name: content for name, content in files_of(root).items() if "/." not in name}
        assert whole.items() >= seen.items()
        if end == signal.SIGINT:
            assert not list(root.glob("val/.*"))

    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert files_of(root) == whole
    assert is_freed or "(2000 files in all)" in done.stdout
    assert len(list(source.rglob("*.gz"))) == (0 if is_freed else 2)


def test_a_set_behind_a_form_says_what_to_sign(tmp_path: Path) -> None:
    done = run("download", "something_v2", "--data-root", str(tmp_path))

    assert done.returncode == 1
    assert "research licence" in done.stdout
    assert f"vidprep download something_v2 --from DIR --data-root {tmp_path}" in done.stdout
    assert not list(tmp_path.iterdir())


def test_toy_is_generated(tmp_path: Path) -> None:
    done = run("download", "toy", "--data-root", str(tmp_path))

    assert done.returncode == 2
    assert f"make it: `vidprep toy --data-root {tmp_path}`" in done.stderr


@pytest.mark.parametrize(
    "case", ["--from . --dry-run", "--from . --mirror http://a", "--retry gone", "--youtube --from ."]
)
def test_options_that_do_not_go_together_are_refused(tmp_path: Path, case: str) -> None:
    done = run("download", "kinetics400", "--data-root", str(tmp_path), *case.split())

    assert done.returncode == 2
    assert done.stderr.startswith("error: --")
