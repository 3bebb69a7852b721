import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from email.utils import formatdate
from pathlib import Path

import pytest

from tests.server import Behaviour, Server, serve
from vidprep import download
from vidprep.download import Retries, download_files, expand_lists, fetch_files, place, plan_downloads, url_name
from vidprep.engine import CannotWrite
from vidprep.errors import UsageError
from vidprep.types import RemoteFile

QUICK = Retries(num_attempts=6, first_seconds=0.001, longest_seconds=0.01, longest_asked_seconds=0.05)


def content_of(name: str, num_bytes: int) -> bytes:
    return random.Random(name).randbytes(num_bytes)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def remote(server: Server, path: str, *, is_published: bool = True) -> RemoteFile:
    content = server.files[path]
    return RemoteFile(
        url=server.url + path,
        sha256=sha256(content) if is_published else None,
        num_bytes=len(content) if is_published else None,
    )


def files_below(folder: Path) -> dict[str, bytes]:
    """All files but the hidden state."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and download.STATE_FOLDER not in path.parts
    }


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
def test_two_hundred_files_come_whole_from_a_server_that_drops_refuses_and_ignores(tmp_path: Path, seed: int) -> None:
    files = {f"/f/{index:03d}.bin": content_of(str(index), 1000 + 397 * index) for index in range(200)}
    wrong = {"/f/007.bin", "/f/042.bin", "/f/199.bin"}

    def behave(path: str, num_gets: int) -> Behaviour:
        if num_gets < 0:
            return Behaviour()
        lot = random.Random(f"{seed} {path} {num_gets}")
        if path == "/f/007.bin":
            return Behaviour(content=files[path][:-1] + bytes([files[path][-1] ^ 1]))
        if path == "/f/042.bin":
            return Behaviour(content=files[path] + b"more")
        if path == "/f/199.bin":
            return Behaviour(content=files[path] + b"more", has_length=False)
        # The third answer is always whole, so the run is bounded.
        kinds = ["drop", "chunked", "500", "429", "ignore", "good"]
        kind = lot.choice(kinds) if num_gets < 3 else "good"
        if kind == "chunked":
            return Behaviour(is_chunked=True, drop_after=lot.choice([None, lot.randrange(len(files[path]))]))
        if kind == "drop":
            return Behaviour(drop_after=lot.randrange(len(files[path])))
        if kind == "ignore":
            return Behaviour(ignores_ranges=True, drop_after=lot.randrange(len(files[path])))
        if kind == "500":
            return Behaviour(status=lot.choice([500, 502, 503]))
        return Behaviour(status=429, headers={"Retry-After": "0"}) if kind == "429" else Behaviour()

    with serve(files, behave) as server:
        wanted = [remote(server, path) for path in files]
        report = download_files(wanted, tmp_path, parallel=8, retries=QUICK)

        assert {one.path.name for one in report.failures} == {Path(path).name for path in wrong}
        there = files_below(tmp_path)
        good = {Path(path).name: content for path, content in files.items() if path not in wrong}
        # What is wrong never has its name, and what was taken of it lies aside; nothing else is left.
        assert {name: there[name] for name in good} == good
        assert set(there) - set(good) == {"007.bin.rejected", "199.bin.rejected"}
        reasons = {one.path.name: one.reason for one in report.failures}
        assert "its sha256 is" in reasons["007.bin"]
        assert "kept as" in reasons["007.bin"]
        assert f"offers {len(files['/f/042.bin']) + 4} bytes, published are" in reasons["042.bin"]
        assert "longer than the" in reasons["199.bin"]
        assert [one.path.name for one in report.fetched] == sorted(good)

        num_sent = server.num_sent()
        again = download_files([file for file in wanted if url_name(file.url) in good], tmp_path, retries=QUICK)
        assert not again.failures
        assert again.num_new_bytes == 0
        assert server.num_sent() == num_sent


def test_a_dropped_connection_goes_on_at_the_missing_byte(tmp_path: Path) -> None:
    content = content_of("a", 300_000)

    with serve({"/a.bin": content}, lambda path, num_gets: Behaviour(drop_after=100_000)) as server:
        report = download_files([remote(server, "/a.bin")], tmp_path, retries=QUICK)

        assert not report.failures
        assert (tmp_path / "a.bin").read_bytes() == content
        assert [request.range for request in server.gets()] == [None, "bytes=100000-", "bytes=200000-"]
        assert server.gets()[1].if_range == f'"{hashlib.md5(content).hexdigest()}"'
        assert server.num_sent() == len(content)


def test_a_body_in_chunks_that_lacks_its_end_is_asked_for_again(tmp_path: Path) -> None:
    content = content_of("a", 50_000)

    def behave(path: str, num_gets: int) -> Behaviour:
        return Behaviour(is_chunked=True, has_etag=False, drop_after=20_000 if num_gets < 2 else None)

    with serve({"/a.bin": content}, behave) as server:
        report = download_files([remote(server, "/a.bin", is_published=False)], tmp_path, retries=QUICK)
        assert len(server.gets()) == 3

    assert (tmp_path / "a.bin").read_bytes() == content
    assert (report.failures, report.notes) == ((), ())


def test_a_file_whose_end_nobody_says_is_taken_with_a_note(tmp_path: Path) -> None:
    content = content_of("a", 50_000)

    def behave(path: str, num_gets: int) -> Behaviour:
        return Behaviour(has_length=False, has_etag=False)

    with serve({"/a.bin": content, "/b.bin": content}, behave) as server:
        files = [remote(server, "/a.bin", is_published=False), remote(server, "/b.bin")]
        report = download_files(files, tmp_path, retries=QUICK)

    assert [one.num_bytes for one in report.fetched] == [len(content)] * 2
    [note] = report.notes
    assert note.startswith(
        f"{tmp_path / 'a.bin'}: length unknown: 50000 bytes came, but its server did not say how many"
    )


def test_a_length_that_was_said_beforehand_shows_a_cut(tmp_path: Path) -> None:
    content = content_of("a", 50_000)

    def behave(path: str, num_gets: int) -> Behaviour:
        if num_gets < 0:
            return Behaviour()
        return Behaviour(has_length=False, has_etag=False, drop_after=20_000 if num_gets == 0 else None)

    with serve({"/a.bin": content}, behave) as server:
        report = download_files([remote(server, "/a.bin", is_published=False)], tmp_path, retries=QUICK)
        assert len(server.gets()) == 2

    assert (tmp_path / "a.bin").read_bytes() == content
    assert (report.failures, report.notes) == ((), ())


def test_a_list_of_urls_whose_end_nobody_says_is_refused(tmp_path: Path) -> None:
    with serve({"/list.txt": b"http://a/b.tar\n"}, lambda path, num_gets: Behaviour(has_length=False)) as server:
        listing = RemoteFile(url=f"{server.url}/list.txt", kind="url_list")
        files, [failure] = expand_lists([listing], tmp_path, retries=QUICK)

    assert files == []
    assert "length unknown: 15 bytes came" in failure.reason
    assert "archives/list.txt.rejected, not used" in failure.reason


def test_without_validator_and_checksum_a_part_is_not_trusted(tmp_path: Path) -> None:
    content = content_of("a", 100_000)

    def behave(path: str, num_gets: int) -> Behaviour:
        return Behaviour(has_etag=False, drop_after=50_000 if num_gets == 0 else None)

    with serve({"/a.bin": content}, behave) as server:
        download_files([remote(server, "/a.bin", is_published=False)], tmp_path, retries=QUICK)
        assert [request.range for request in server.gets()] == [None, None]

    assert (tmp_path / "a.bin").read_bytes() == content


def test_a_server_that_ignores_ranges_is_asked_afresh(tmp_path: Path) -> None:
    content = content_of("a", 200_000)

    def behave(path: str, num_gets: int) -> Behaviour:
        return Behaviour(ignores_ranges=True, drop_after=120_000 if num_gets == 0 else None)

    with serve({"/a.bin": content}, behave) as server:
        report = download_files([remote(server, "/a.bin")], tmp_path, retries=QUICK)

        assert [request.status for request in server.gets()] == [200, 200]
        assert report.num_new_bytes == 320_000
    assert files_below(tmp_path) == {"a.bin": content}


def test_a_file_that_changed_between_two_runs_is_fetched_afresh(tmp_path: Path) -> None:
    old, new = content_of("old", 100_000), content_of("new", 100_000)
    with serve({"/a.bin": old}, lambda path, num_gets: Behaviour(drop_after=0 if num_gets else 60_000)) as server:
        file = remote(server, "/a.bin", is_published=False)
        assert download_files([file], tmp_path, retries=QUICK).failures
        assert (tmp_path / "a.bin.part").stat().st_size == 60_000
        server.files["/a.bin"] = new
        server.behave = lambda path, num_gets: Behaviour()

        assert not download_files([file], tmp_path, retries=QUICK).failures

    assert files_below(tmp_path) == {"a.bin": new}


def test_a_range_that_was_not_asked_for_is_refused(tmp_path: Path) -> None:
    def behave(path: str, num_gets: int) -> Behaviour:
        return Behaviour(drop_after=1000) if num_gets == 0 else Behaviour(shifts_range=5)

    with serve({"/a.bin": content_of("a", 5000)}, behave) as server:
        [failure] = download_files([remote(server, "/a.bin")], tmp_path, retries=QUICK).failures

    assert "Content-Range 'bytes 1005-4999/5000', asked for was all from byte 1000 on; refused" in failure.reason
    assert set(files_below(tmp_path)) == {"a.bin.part", "a.bin.part.json"}


@pytest.mark.parametrize("header", ["ETag", "Last-Modified"])
def test_the_rest_of_another_version_is_refused(tmp_path: Path, header: str) -> None:
    def behave(path: str, num_gets: int) -> Behaviour:
        headers = {header: f'"{num_gets}"'}
        if num_gets == 0:
            return Behaviour(drop_after=1000, has_etag=False, headers=headers)
        return Behaviour(has_etag=False, ignores_if_range=True, headers=headers)

    with serve({"/a.bin": content_of("a", 5000)}, behave) as server:
        [failure] = download_files([remote(server, "/a.bin")], tmp_path, retries=QUICK).failures

    assert 'of another version ("1", the part is of "0"); refused' in failure.reason
    assert set(files_below(tmp_path)) == {"a.bin.part", "a.bin.part.json"}


def test_a_server_that_stays_down_is_given_up_and_named(tmp_path: Path) -> None:
    with serve({"/a.bin": b"x"}, lambda path, num_gets: Behaviour(status=503)) as server:
        [failure] = download_files([remote(server, "/a.bin")], tmp_path, retries=QUICK).failures
        assert len(server.gets()) == QUICK.num_attempts

    assert "given up after 6 attempts without progress: status 503" in failure.reason


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_is_not_asked_again(tmp_path: Path, status: int) -> None:
    with serve({"/a.bin": b"x"}, lambda path, num_gets: Behaviour(status=status)) as server:
        [failure] = download_files([remote(server, "/a.bin")], tmp_path, retries=QUICK).failures
        assert len(server.gets()) == 1

    assert f"answers with status {status}" in failure.reason


def test_no_server_at_all_is_a_failure_with_its_reason(tmp_path: Path) -> None:
    with serve({}) as server:
        url = f"{server.url}/a.bin"

    [failure] = download_files([RemoteFile(url=url)], tmp_path, retries=QUICK).failures

    assert "given up after 6 attempts" in failure.reason
    assert "refused" in failure.reason


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_server_that_asks_to_wait_is_waited_for(tmp_path: Path, form: str) -> None:
    asked = "2" if form == "seconds" else formatdate(time.time() + 2, usegmt=True)

    def behave(path: str, num_gets: int) -> Behaviour:
        return Behaviour(status=429, headers={"Retry-After": asked}) if num_gets == 0 else Behaviour()

    with serve({"/a.bin": b"x"}, behave) as server:
        waits = Retries(num_attempts=3, first_seconds=0.0, longest_seconds=0.0, longest_asked_seconds=0.3)
        begin = time.monotonic()
        assert not download_files([remote(server, "/a.bin")], tmp_path, retries=waits).failures

    assert time.monotonic() - begin >= 0.3


@pytest.mark.parametrize("asked", ["²", "-3", "soon", "Fri, 99 Foo 2020 00:00:00 GMT"])
def test_a_wait_that_cannot_be_read_is_not_waited_for(tmp_path: Path, asked: str) -> None:
    def behave(path: str, num_gets: int) -> Behaviour:
        return Behaviour(status=429, headers={"Retry-After": asked}) if num_gets == 0 else Behaviour()

    with serve({"/a.bin": b"x"}, behave) as server:
        assert not download_files([remote(server, "/a.bin")], tmp_path, retries=QUICK).failures


def test_waits_double_up_to_a_bound_and_are_drawn() -> None:
    retries = Retries(first_seconds=1.0, longest_seconds=8.0)
    waits = [retries.wait_seconds(failures, None, random.Random(failures)) for failures in range(1, 8)]

    for wait, longest in zip(waits, [1, 2, 4, 8, 8, 8, 8], strict=True):
        assert longest / 2 <= wait <= longest
    assert len(set(waits)) == len(waits)


def test_a_login_page_is_not_taken_for_the_file(tmp_path: Path) -> None:
    page = Behaviour(content=b"<html>log in</html>", headers={"Content-Type": "text/html; charset=utf-8"})

    with serve({"/a.tar.gz": b""}, lambda path, num_gets: page) as server:
        [failure] = download_files([RemoteFile(url=f"{server.url}/a.tar.gz")], tmp_path, retries=QUICK).failures

    assert "a web page instead of a.tar.gz: a login" in failure.reason
    assert files_below(tmp_path) == {}


def test_an_empty_file_is_a_file(tmp_path: Path) -> None:
    with serve({"/a.txt": b""}) as server:
        assert not download_files([remote(server, "/a.txt")], tmp_path, retries=QUICK).failures

    assert files_below(tmp_path) == {"a.txt": b""}


def test_a_file_that_is_there_but_wrong_is_named_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"mine")
    (tmp_path / "b.bin").write_bytes(b"mine, too")
    with serve({"/a.bin": b"good", "/b.bin": b"good"}) as server:
        report = download_files([remote(server, "/a.bin"), remote(server, "/b.bin")], tmp_path, retries=QUICK)

    assert "is there, but its sha256 is" in report.failures[0].reason
    assert "is there with 9 bytes" in report.failures[1].reason
    assert files_below(tmp_path) == {"a.bin": b"mine", "b.bin": b"mine, too"}


def test_an_md5_is_checked_as_well(tmp_path: Path) -> None:
    with serve({"/a.bin": b"good"}) as server:
        file = RemoteFile(url=f"{server.url}/a.bin", md5=hashlib.md5(b"other").hexdigest())
        [failure] = download_files([file], tmp_path, retries=QUICK).failures

    assert "its md5 is" in failure.reason


def test_a_checksum_is_computed_once_per_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve({"/a.bin": b"good"}) as server:
        download_files([remote(server, "/a.bin")], tmp_path, retries=QUICK)
        monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("read again"))
        assert not download_files([remote(server, "/a.bin")], tmp_path, retries=QUICK).failures


def test_a_list_of_urls_is_expanded_whatever_its_line_ends(tmp_path: Path) -> None:
    with serve({"/val/part_0.tar.gz": b"zero", "/val/part_1.tar.gz": b"one"}) as server:
        urls = [f"{server.url}/val/part_{index}.tar.gz" for index in (0, 1, 1)]
        server.files["/k400_val_path.txt"] = b"\xef\xbb\xbf" + "\r\n".join(urls).encode()
        listing = RemoteFile(url=f"{server.url}/k400_val_path.txt", kind="url_list", split="val", unpack_to="val")
        report = download_files([listing], tmp_path, retries=QUICK)

        assert [(one.file.kind, one.file.split, one.file.unpack_to) for one in report.fetched] == [
            ("archive", "val", "val")
        ] * 2
        assert files_below(tmp_path / "archives" / "val") == {
            "k400_val_path.txt": server.files["/k400_val_path.txt"],
            "part_0.tar.gz": b"zero",
            "part_1.tar.gz": b"one",
        }
        num_requests = len(server.requests)
        assert not download_files([listing], tmp_path, retries=QUICK).failures
        assert len(server.requests) == num_requests


def test_a_list_with_something_else_in_it_is_refused_with_its_line(tmp_path: Path) -> None:
    with serve({"/list.txt": b"http://a/b.tar\n<html>\n"}) as server:
        listing = RemoteFile(url=f"{server.url}/list.txt", kind="url_list")
        with pytest.raises(download.FailedDownload, match=r"list.txt, line 2: '<html>': is no URL"):
            expand_lists([listing], tmp_path, retries=QUICK)


def test_two_urls_for_one_place_are_refused(tmp_path: Path) -> None:
    files = [RemoteFile(url="http://a/x.zip"), RemoteFile(url="http://b/x.zip")]
    with pytest.raises(UsageError, match=r"http://a/x.zip and http://b/x.zip would both be"):
        expand_lists(files, tmp_path)


def test_a_mirror_serves_the_same_paths(tmp_path: Path) -> None:
    with serve({"/mirror/kinetics/part_0.tar.gz": b"zero"}) as server:
        file = RemoteFile(url="https://publisher.invalid/kinetics/part_0.tar.gz", kind="archive")
        report = download_files([file], tmp_path, mirror=f"{server.url}/mirror/", retries=QUICK)

    assert [one.path for one in report.fetched] == [tmp_path / "archives" / "part_0.tar.gz"]


def test_a_mirror_that_is_no_server_is_refused_before_anything_begins(tmp_path: Path) -> None:
    files = [RemoteFile(url="https://publisher.invalid/a.bin", num_bytes=1)]
    with pytest.raises(UsageError, match="mirror: the address of a server such as http://host:8000, got 'foo'"):
        download_files(files, tmp_path / "out", mirror="foo")
    assert not (tmp_path / "out").exists()


def test_files_lie_where_they_say(tmp_path: Path) -> None:
    url = "https://publisher.invalid/a/part%200.tar.gz?version=1"
    assert place(RemoteFile(url=url), tmp_path) == tmp_path / "part 0.tar.gz"
    assert place(RemoteFile(url=url, filename="videos/x.mp4"), tmp_path) == tmp_path / "videos" / "x.mp4"
    archive = RemoteFile(url=url, kind="archive", unpack_to="train")
    assert place(archive, tmp_path) == tmp_path / "archives" / "train" / "part 0.tar.gz"


@pytest.mark.parametrize("url", ["ftp://a/b", "http://a/", "http://a/b/..", "http://a/%2e%2e", "no url", "http://[a/b"])
def test_a_url_that_names_no_file_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match=r"URL|ends in no file name"):
        url_name(url)


@pytest.mark.parametrize("filename", ["/etc/x", "../x", "a/../../x", "a\\b"])
def test_a_file_name_outside_the_target_is_refused(filename: str) -> None:
    with pytest.raises(ValueError, match="filename lies below the data root"):
        RemoteFile(url="http://a/b", filename=filename)


def test_a_plan_says_what_would_come_and_moves_nothing(tmp_path: Path) -> None:
    with serve({"/a.bin": bytes(1000), "/b.bin": bytes(500), "/c.bin": bytes(7)}) as server:
        (tmp_path / "b.bin").write_bytes(bytes(500))
        (tmp_path / "c.bin.part").write_bytes(bytes(3))
        files = [remote(server, path, is_published=False) for path in server.files]
        plan = plan_downloads([*files, RemoteFile(url=f"{server.url}/missing")], tmp_path)
        assert server.num_sent() == 0

    assert plan.num_missing == 1004
    assert "3 of 4 files to fetch: 1.0 kB (1004 bytes) and 1 files of unknown size; 1 are there." in plan.to_text()
    assert "(7 B, 3 B there)" in plan.to_text()
    assert "free." in plan.to_text()
    assert set(files_below(tmp_path)) == {"b.bin", "c.bin.part"}


def test_what_the_disk_has_no_room_for_is_not_begun(tmp_path: Path) -> None:
    with serve({"/a.bin": b""}) as server:
        file = RemoteFile(url=f"{server.url}/a.bin", num_bytes=10**18)
        with pytest.raises(CannotWrite, match=r"1000000.0 TB \(1000000000000000000 bytes\) are needed, .* are free"):
            download_files([file], tmp_path, retries=QUICK)
        assert not server.gets()


def test_a_disk_that_takes_no_more_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "taken").write_bytes(b"")
    with serve({"/a.bin": b"x"}) as server:
        file = RemoteFile(url=f"{server.url}/a.bin", filename="taken/a.bin")
        with pytest.raises(CannotWrite, match=r"taken/a.bin: cannot be written"):
            download_files([file], tmp_path, retries=QUICK)


def test_parallel_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="parallel must be at least 1, got 0"):
        download_files([], tmp_path, parallel=0)


def test_progress_is_said_in_plain_lines_where_there_is_no_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vidprep.console.SECONDS_BETWEEN_LINES", 0.0)
    with serve({"/a.bin": bytes(100_000)}) as server:
        download_files([remote(server, "/a.bin")], tmp_path, retries=QUICK, progress="download")

    assert "download 0/1 files, 100.0 kB so far" in capsys.readouterr().err


def test_bars_are_drawn_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with serve({"/a.bin": bytes(100_000), "/b.bin": b""}) as server:
        files = [remote(server, "/a.bin"), remote(server, "/b.bin")]
        assert not download_files(files, tmp_path, retries=QUICK, progress="download").failures
        assert not download_files(files, tmp_path, retries=QUICK, progress="download").failures


def test_closing_the_iterator_early_ends_the_threads_and_keeps_the_parts(tmp_path: Path) -> None:
    files = {"/a.bin": b"quick", "/b.bin": content_of("b", 1_000_000)}

    def behave(path: str, num_gets: int) -> Behaviour:
        return Behaviour(seconds_per_chunk=0.02 if path == "/b.bin" else 0.0)

    with serve(files, behave) as server:
        outcomes = fetch_files([remote(server, path) for path in files], tmp_path, parallel=2, retries=QUICK)
        assert next(outcomes).path.name == "a.bin"
        outcomes.close()
        server.behave = lambda path, num_gets: Behaviour()
        part_size = (tmp_path / "b.bin.part").stat().st_size
        [fetched] = download_files([remote(server, "/b.bin")], tmp_path, retries=QUICK).fetched

    assert fetched.num_new_bytes == 1_000_000 - part_size


PROGRAM = """
import json, sys
from pathlib import Path
from vidprep.download import Retries, download_files
from vidprep.types import RemoteFile
files = [RemoteFile(**facts) for facts in json.loads(sys.argv[1])]
report = download_files(files, Path(sys.argv[2]), parallel=3, retries=Retries(first_seconds=0.01))
print(len(report.fetched), report.num_new_bytes, [failure.reason for failure in report.failures])
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_after_a_kill_only_the_missing_bytes_travel(tmp_path: Path, end: signal.Signals) -> None:
    files = {f"/{index}.bin": content_of(str(index), 600_000) for index in range(6)}

    with serve(files, lambda path, num_gets: Behaviour(seconds_per_chunk=0.01)) as server:
        facts = json.dumps([{"url": server.url + path, "sha256": sha256(content)} for path, content in files.items()])
        command = [sys.executable, "-c", PROGRAM, facts, str(tmp_path)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and download._size(tmp_path / "4.bin.part") < 100_000:
            time.sleep(0.005)
        os.kill(process.pid, end)
        process.wait(timeout=10)

        there = {name: len(content) for name, content in files_below(tmp_path).items() if not name.endswith(".json")}
        num_there = sum(there.values())
        assert any(name.endswith(".part") and size for name, size in there.items())
        assert 0 < num_there < sum(map(len, files.values()))
        time.sleep(0.3)  # the server notices that nobody listens
        num_sent = server.num_sent()
        server.behave = lambda path, num_gets: Behaviour()
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)

        # Exactly what was not on the disk, no byte more: no tolerance is needed.
        assert server.num_sent() - num_sent == sum(map(len, files.values())) - num_there
        assert done.stdout.split() == ["6", str(server.num_sent() - num_sent), "[]"]
    assert files_below(tmp_path) == {path[1:]: content for path, content in files.items()}
