"""Fetch files over HTTP so that nothing is lost, doubled or wrong: whatever interrupts it, only missing bytes travel.

A file grows as `NAME.part`, beside `NAME.part.json` that says what it is a part of; it gets its name when its length
and its checksum are right and it is on the disk. What is wrong is set aside as `NAME.rejected` and named.
"""

import email.utils
import hashlib
import json
import os
import queue
import random
import re
import shutil
import sys
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit, urlunsplit

from vidprep.engine import CannotWrite, writing
from vidprep.errors import ChecksumMismatch, UsageError, VidprepError
from vidprep.types import RemoteFile

if TYPE_CHECKING:
    import httpx
    from rich.progress import Progress, TaskID

__all__ = [
    "DownloadReport",
    "FailedDownload",
    "Failure",
    "Fetched",
    "Plan",
    "PlannedFile",
    "Retries",
    "download_files",
    "expand_lists",
    "fetch_files",
    "plan_downloads",
    "require_space",
]

STATE_FOLDER = ".vidprep"
"""Below the target: what was received and unpacked, for the next run; hidden, so never searched for videos."""

TIMEOUT_SECONDS = 30.0
LONGEST_LIST_BYTES = 64 * 1024 * 1024


class FailedDownload(VidprepError):
    """A file that its server does not give, or that is not what was published."""


@dataclass(frozen=True, kw_only=True)
class Retries:
    """When to try again, and when to give up; a drawn part of each wait keeps many clients from knocking at once."""

    num_attempts: int = 8
    """In a row that bring a file no further; any new byte starts the count again."""
    first_seconds: float = 0.5
    """Wait after the first failure; doubled after each further one, then multiplied by a number in [0.5, 1] by lot."""
    longest_seconds: float = 60.0
    longest_asked_seconds: float = 600.0
    """Of a wait that the server asks for (Retry-After)."""

    def __post_init__(self) -> None:
        if self.num_attempts < 1 or self.first_seconds < 0 or self.longest_seconds < 0:
            raise UsageError(f"retries need at least 1 attempt and waits of 0 s or more, got {self}.")

    def wait_seconds(self, num_failures: int, asked_seconds: float | None, rng: random.Random) -> float:
        """How long to wait after the `num_failures`-th failure in a row."""
        if asked_seconds is not None:
            return min(asked_seconds, self.longest_asked_seconds)
        longest = min(self.longest_seconds, self.first_seconds * 2.0 ** min(num_failures - 1, 30))
        return longest * rng.uniform(0.5, 1.0)


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A file that lies in its place, whole and right."""

    file: RemoteFile
    path: Path
    num_bytes: int
    num_new_bytes: int
    """That travelled in this run, repeated ones included; 0 for a file that was there."""
    doubt: str = ""
    """Why it may be cut short and nobody could tell, a sentence; "" for nearly all files."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A file that did not come, and why."""

    file: RemoteFile
    path: Path
    reason: str


@dataclass(frozen=True, kw_only=True)
class DownloadReport:
    """What became of every file."""

    folder: Path
    fetched: tuple[Fetched, ...]
    failures: tuple[Failure, ...]

    @property
    def num_new_bytes(self) -> int:
        """Bytes that travelled in this run for the files that came."""
        return sum(one.num_new_bytes for one in self.fetched)

    @property
    def notes(self) -> tuple[str, ...]:
        """One sentence for each file that came, of which nothing says whether it came whole."""
        return tuple(f"{one.path}: {one.doubt}" for one in self.fetched if one.doubt)


@dataclass(frozen=True, kw_only=True)
class PlannedFile:
    """What would be fetched of one file."""

    file: RemoteFile
    path: Path
    num_bytes: int | None
    """Published, or as its server says; None: neither."""
    num_there: int
    """Bytes on the disk already; all of them for a file that is complete."""
    is_complete: bool

    @property
    def num_missing(self) -> int:
        """Bytes still to travel, as far as known."""
        return 0 if self.is_complete else max(0, (self.num_bytes or 0) - self.num_there)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a download would do."""

    folder: Path
    files: tuple[PlannedFile, ...]
    num_free: int
    """Bytes free on the disk of `folder`."""

    @property
    def num_missing(self) -> int:
        """Bytes to fetch, as far as known."""
        return sum(planned.num_missing for planned in self.files)

    def to_text(self) -> str:
        """One line per file that is missing, and what it comes to."""
        lines = []
        for planned in self.files:
            if not planned.is_complete:
                size = "size unknown" if planned.num_bytes is None else human_bytes(planned.num_bytes)
                there = f", {human_bytes(planned.num_there)} there" if planned.num_there else ""
                lines.append(f"  {planned.file.url} -> {planned.path} ({size}{there})")
        num_complete = sum(planned.is_complete for planned in self.files)
        num_unknown = sum(planned.num_bytes is None and not planned.is_complete for planned in self.files)
        unknown = f" and {num_unknown} files of unknown size" if num_unknown else ""
        return "\n".join(
            [
                *lines,
                f"{len(self.files) - num_complete} of {len(self.files)} files to fetch: "
                f"{human_bytes(self.num_missing)} ({self.num_missing} bytes){unknown}; {num_complete} are there.",
                f"{self.folder}: {human_bytes(self.num_free)} free.",
            ]
        )


def download_files(
    files: Sequence[RemoteFile],
    target: Path,
    *,
    parallel: int = 4,
    mirror: str | None = None,
    retries: Retries | None = None,
    progress: str | None = None,
) -> DownloadReport:
    """Fetch files below `target`; run again, it fetches what is missing and no more.

    Args:
        files: what to fetch; lists of URLs are read and expanded first. Where each goes: see `place`.
        target: folder that they go below; made when missing.
        parallel: files at the same time.
        mirror: address of a server that offers the same paths as the publishers' ("http://host:port[/prefix]").
        retries: how often and when to try again after 408, 425, 429, 5xx and lost connections.
        progress: what is being done, in a word or two, to show how far it is; None shows nothing.

    Raises:
        UsageError: two files for one place, no URL, `parallel` below 1.
        CannotWrite: the disk has not the room, or takes no more.
        KeyboardInterrupt: Ctrl-C; what has come stays, and the next run goes on from there.
    """
    if parallel < 1:
        raise UsageError(f"parallel must be at least 1, got {parallel}.")
    wanted, failures = expand_lists(files, target, mirror=mirror, retries=retries)
    plan = plan_downloads(wanted, target, mirror=mirror)
    require_space(plan.folder, plan.num_missing)
    fetched = []
    with closing(
        fetch_files(wanted, target, parallel=parallel, mirror=mirror, retries=retries, progress=progress, plan=plan)
    ) as outcomes:
        for outcome in outcomes:
            if isinstance(outcome, Failure):
                failures.append(outcome)
            else:
                fetched.append(outcome)
    order = {place(file, target): index for index, file in enumerate(wanted)}
    return DownloadReport(
        folder=target,
        fetched=tuple(sorted(fetched, key=lambda one: order[one.path])),
        failures=tuple(sorted(failures, key=lambda one: order.get(one.path, -1))),
    )


def place(file: RemoteFile, target: Path) -> Path:
    """Where a file goes: `filename` below the target; else the last part of its URL, archives in `archives/`."""
    folder = "/".join(part for part in ("archives", file.unpack_to) if part)
    if file.kind == "url_list":
        return target / (file.filename or folder) / url_name(file.url)
    if file.filename is not None:
        return target / file.filename
    return target / folder / url_name(file.url) if file.kind == "archive" else target / url_name(file.url)


def url_name(url: str) -> str:
    """The file name that a URL ends in.

    Raises:
        UsageError: not http(s), or it ends in no name.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise UsageError(f"{url!r}: is no URL ({error}).") from error
    name = unquote(parts.path).rpartition("/")[2]
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UsageError(f"{url!r}: is no URL that can be fetched; it begins with http:// or https://.")
    if name in ("", ".", "..") or "\\" in name or "\0" in name:
        raise UsageError(f"{url!r}: ends in no file name; say where it goes with `filename`.")
    return name


def expand_lists(
    files: Sequence[RemoteFile], target: Path, *, mirror: str | None = None, retries: Retries | None = None
) -> tuple[list[RemoteFile], list[Failure]]:
    """Every list of URLs replaced by the archives that it names, each in the place and split that the list has.

    A list is fetched unless it lies in its place; so a target that has everything needs no network.

    Returns:
        The files, and the lists that could not be had.

    Raises:
        UsageError: a line that is no URL, with its number; two files for one place.
    """
    lists = [file for file in files if file.kind == "url_list"]
    failures = []
    with closing(fetch_files(lists, target, mirror=mirror, retries=retries, expands=False)) as outcomes:
        failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    wanted: dict[Path, RemoteFile] = {}
    for file in files:
        path = place(file, target)
        if file.kind != "url_list":
            named = [file]
        elif path.is_file():
            named = _read_list(file, path, target)
        else:
            continue
        for one in named:
            other = wanted.setdefault(place(one, target), one)
            if other.url != one.url:
                raise UsageError(f"{other.url} and {one.url} would both be {place(one, target)}; keep one of them.")
    return list(wanted.values()), failures


def _read_list(file: RemoteFile, path: Path, target: Path) -> list[RemoteFile]:
    if path.stat().st_size > LONGEST_LIST_BYTES:
        raise FailedDownload(f"{path}: a list of URLs of {path.stat().st_size} bytes; is it one?")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise FailedDownload(f"{path}: is no text with one URL per line ({error}); remove it and try again.") from error
    named = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                name = url_name(line.strip())
            except UsageError as error:
                raise FailedDownload(f"{path}, line {number}: {error} Remove the list to fetch it anew.") from error
            named.append(
                RemoteFile(
                    url=line.strip(),
                    filename=(path.parent.relative_to(target) / name).as_posix(),
                    kind="archive",
                    split=file.split,
                    unpack_to=file.unpack_to,
                )
            )
    if not named:
        raise FailedDownload(f"{path}: a list of URLs without a single one; remove it and try again.")
    return named


def plan_downloads(
    files: Sequence[RemoteFile], target: Path, *, mirror: str | None = None, asks_sizes: bool = True
) -> Plan:
    """What would be fetched: sizes as published, else as the servers say (no byte of a file travels), and the room.

    A server that does not answer within a try leaves the size unknown; the download itself tries harder.
    """
    found = [(file, place(file, target)) for file in files]
    sizes: dict[Path, int | None] = {path: file.num_bytes for file, path in found}
    unknown = [(file, path) for file, path in found if file.num_bytes is None and not path.is_file()]
    if unknown and asks_sizes:
        with _client(8) as client, ThreadPoolExecutor(8) as pool:
            answers = pool.map(lambda one: _ask_size(client, with_mirror(one[0].url, mirror)), unknown)
            sizes.update({path: answer for (_, path), answer in zip(unknown, answers, strict=True)})
    planned = []
    for file, path in found:
        is_complete = path.is_file()
        planned.append(
            PlannedFile(
                file=file,
                path=path,
                num_bytes=_size(path) if is_complete else sizes[path],
                num_there=_size(path) if is_complete else _size(_part(path)),
                is_complete=is_complete,
            )
        )
    return Plan(folder=target, files=tuple(planned), num_free=free_bytes(target))


def _ask_size(client: "httpx.Client", url: str) -> int | None:
    import httpx

    try:
        answer = client.head(url, headers={"Accept-Encoding": "identity"})
    except (httpx.HTTPError, httpx.InvalidURL):
        return None
    length = answer.headers.get("Content-Length", "")
    return int(length) if answer.status_code == 200 and length.isdigit() else None


def free_bytes(folder: Path) -> int:
    """Bytes free on the disk that holds `folder`, or will."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free


def require_space(folder: Path, num_bytes: int, *, what: str = "", cure: str = "") -> None:
    """Refuse to begin what the disk has no room for.

    Raises:
        CannotWrite: fewer than `num_bytes` are free.
    """
    free = free_bytes(folder)
    if num_bytes > free:
        raise CannotWrite(
            f"{folder}: {human_bytes(num_bytes)} ({num_bytes} bytes) are needed{what}, {human_bytes(free)} are free on "
            f"the disk; free some or choose another.{cure}"
        )


def fetch_files(
    files: Sequence[RemoteFile],
    target: Path,
    *,
    parallel: int = 4,
    mirror: str | None = None,
    retries: Retries | None = None,
    progress: str | None = None,
    plan: Plan | None = None,
    expands: bool = True,
) -> Generator[Fetched | Failure, None, None]:
    """Fetch files in the background; each is handed on as soon as it is there, or is given up.

    At most `parallel` files wait to be taken, so what is done with one (unpacked, removed) bounds the room that is
    needed. Close the iterator (`contextlib.closing`) to end it early.

    Args:
        files: what to fetch; lists of URLs are fetched as files.
        target: folder that they go below.
        parallel: files at the same time.
        mirror: as `download_files`.
        retries: as `download_files`.
        progress: what is being done; None shows nothing.
        plan: sizes of the files, for the bars.
        expands: False for the lists of URLs themselves.

    Raises:
        UsageError: `parallel` is below 1, or a list of URLs among files that should be expanded.
        CannotWrite: the disk takes no more.
    """
    if parallel < 1:
        raise UsageError(f"parallel must be at least 1, got {parallel}.")
    if expands and any(file.kind == "url_list" for file in files):
        raise UsageError("a list of URLs is expanded with `expand_lists` first.")
    if not files:
        return
    # Before a thread begins: one that ends with an error of its own would be waited for for ever.
    url_of = {place(file, target): with_mirror(file.url, mirror) for file in files}
    with writing(target):
        (target / STATE_FOLDER).mkdir(parents=True, exist_ok=True)
    sizes = {planned.path: planned.num_bytes for planned in plan.files} if plan else {}
    waiting: queue.SimpleQueue[RemoteFile] = queue.SimpleQueue()
    for file in files:
        waiting.put(file)
    done: queue.Queue[Fetched | Failure | BaseException | None] = queue.Queue(maxsize=parallel)
    stop = threading.Event()
    receipts = _Receipts(target)
    with _client(parallel) as client, _display(progress, num_files=len(files), plan=plan) as display:

        def work() -> None:
            while not stop.is_set():
                try:
                    file = waiting.get_nowait()
                except queue.Empty:
                    break
                path = place(file, target)
                transfer = _Transfer(
                    file=file,
                    path=path,
                    url=url_of[path],
                    client=client,
                    retries=retries or Retries(),
                    stop=stop,
                    display=display,
                    receipts=receipts,
                    num_bytes_likely=sizes.get(path),
                )
                try:
                    hand_over(transfer.run())
                except CannotWrite as error:
                    hand_over(error)
                except VidprepError as error:
                    hand_over(Failure(file=file, path=path, reason=str(error)))
                except _Stopped:
                    break
                except BaseException as error:
                    hand_over(error)
            hand_over(None)

        def hand_over(outcome: Fetched | Failure | BaseException | None) -> None:
            while not stop.is_set():
                try:
                    done.put(outcome, timeout=0.1)
                except queue.Full:
                    continue
                return

        # Daemons: one that waits for a silent server must not hold up Ctrl-C; a part is right at every moment.
        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(parallel, len(files)))]
        try:
            for thread in threads:
                thread.start()
            num_working = len(threads)
            while num_working:
                try:
                    outcome = done.get(timeout=0.5)
                except queue.Empty:
                    continue
                if outcome is None:
                    num_working -= 1
                elif isinstance(outcome, BaseException):
                    raise outcome
                else:
                    yield outcome
        finally:
            stop.set()
            deadline = time.monotonic() + 2.0
            for thread in threads:
                if thread.is_alive():
                    thread.join(max(0.0, deadline - time.monotonic()))


class _Stopped(Exception):
    """The run ends; the part stays for the next one."""


class _Passing(Exception):
    """A fault that may be gone the next time."""

    def __init__(self, reason: str, *, wait_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


@dataclass(frozen=True, kw_only=True)
class _PartState:
    """What a part is a part of; written before its first byte."""

    url: str
    etag: str | None
    last_modified: str | None
    num_bytes: int | None


@dataclass(kw_only=True)
class _Transfer:
    """One file on its way."""

    file: RemoteFile
    path: Path
    url: str
    client: "httpx.Client"
    retries: Retries
    stop: threading.Event
    display: "_Display"
    receipts: "_Receipts"
    num_bytes_likely: int | None
    num_travelled: int = 0
    is_end_known: bool = True
    """Whether a length or the form of the answer says where the file ends; else the connection just closed."""
    rng: random.Random = field(default_factory=random.Random)

    @property
    def part(self) -> Path:
        return _part(self.path)

    @property
    def state_path(self) -> Path:
        return self.path.with_name(f"{self.path.name}.part.json")

    def run(self) -> Fetched:
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.is_file():
            self._check_there()
            # A kill between the last two steps of an earlier run may have left it.
            self.state_path.unlink(missing_ok=True)
            self.display.end(self.path, _size(self.path))
            return Fetched(file=self.file, path=self.path, num_bytes=_size(self.path), num_new_bytes=0)
        self.display.begin(self.path, self.num_bytes_likely)
        num_there = _size(self.part)
        try:
            self._bring()
            self._check_part()
            doubt = self._find_doubt()
            if doubt and self.file.kind == "url_list":
                # What a list cut short no longer names would never be missed.
                raise FailedDownload(f"{self.file.url}: {doubt} It is kept as {self._set_aside()}, not used.")
            self._give_name()
        finally:
            self.display.end(self.path, num_there)
        return Fetched(
            file=self.file,
            path=self.path,
            num_bytes=_size(self.path),
            num_new_bytes=self.num_travelled,
            doubt=doubt,
        )

    def _find_doubt(self) -> str:
        if self.is_end_known or self.file.sha256 or self.file.md5:
            return ""
        return (
            f"length unknown: {_size(self.part)} bytes came, but its server did not say how many there are, and "
            "nothing is published to compare; look whether it is whole."
        )

    def _check_there(self) -> None:
        """A file under its own name is right when this run's forerunners brought it, or it is checked now."""
        size = _size(self.path)
        if self.file.num_bytes not in (None, size):
            raise FailedDownload(
                f"{self.path}: is there with {size} bytes, but {self.file.url} was published with "
                f"{self.file.num_bytes}; move it away to fetch it."
            )
        if self.receipts.has(self.path, self.file):
            return
        wrong = wrong_checksum(self.file, self.path)
        if wrong:
            raise ChecksumMismatch(f"{self.path}: is there, but {wrong}; move it away to fetch it.")
        self.receipts.add(self.path, self.file)

    def _bring(self) -> None:
        """Request after request, until the part has the whole length."""
        num_failures, furthest = 0, _size(self.part)
        while True:
            try:
                self._receive()
            except _Passing as fault:
                size = _size(self.part)
                num_failures = 1 if size > furthest else num_failures + 1
                furthest = max(size, furthest)
                if num_failures >= self.retries.num_attempts:
                    raise FailedDownload(
                        f"{self.file.url}: given up after {num_failures} attempts without progress: {fault}; "
                        f"{size} bytes are kept, the same command goes on from there."
                    ) from fault
                if self.stop.wait(self.retries.wait_seconds(num_failures, fault.wait_seconds, self.rng)):
                    raise _Stopped from None
            else:
                return

    def _receive(self) -> None:
        """One request: what the part lacks, or all of it."""
        import httpx

        state = self._read_state()
        num_there = _size(self.part) if state else 0
        if state and num_there and num_there == state.num_bytes:
            self.display.set(self.path, num_there, num_there)
            return
        headers = {"Accept-Encoding": "identity"}
        if state and num_there:
            headers["Range"] = f"bytes={num_there}-"
            validator = state.etag or state.last_modified
            if validator:
                headers["If-Range"] = validator
        try:
            with self.client.stream("GET", self.url, headers=headers) as response:
                start, total = self._understand(response, state, num_there)
                if start == 0:
                    self._begin_part(response, total)
                self.display.set(self.path, start, total)
                self._append(response, start, total)
        except httpx.UnsupportedProtocol as error:
            raise FailedDownload(f"{self.file.url}: {error}") from error
        except httpx.TransportError as error:
            raise _Passing(str(error) or type(error).__name__) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise FailedDownload(f"{self.file.url}: {error}") from error

    def _understand(
        self, response: "httpx.Response", state: _PartState | None, num_there: int
    ) -> tuple[int, int | None]:
        """From which byte on the answer has the file, and how long the file is, if it says."""
        status, url = response.status_code, self.file.url
        if status == 416 and num_there:
            # The file has become shorter than the part: it is another one.
            self._drop_part()
            raise _Passing(f"the server has no byte {num_there} of it any more (status 416)")
        if status in (408, 425, 429) or status >= 500:
            raise _Passing(f"status {status}", wait_seconds=_retry_after(response.headers.get("Retry-After")))
        if status not in (200, 206):
            raise FailedDownload(f"{url}: the server answers with status {status} {response.reason_phrase}.")
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding != "identity":
            raise FailedDownload(f"{url}: sent with Content-Encoding {encoding}, though asked for as it is.")
        if response.headers.get("Content-Type", "").startswith("text/html") and self.path.suffix not in (
            ".html",
            ".htm",
        ):
            raise FailedDownload(
                f"{url}: the server answers with a web page instead of {self.path.name}: a login, or an error; "
                f"open it in a browser to see."
            )
        length = response.headers.get("Content-Length", "")
        start, total = 0, int(length) if length.isdigit() else None
        if status == 206:
            start, total = self._understand_range(response, state, num_there)
        published = self.file.num_bytes
        if total is not None and published is not None and total != published:
            raise FailedDownload(
                f"{url}: the server offers {total} bytes, published are {published}; nothing of it was taken."
            )
        return start, total

    def _understand_range(
        self, response: "httpx.Response", state: _PartState | None, num_there: int
    ) -> tuple[int, int]:
        said = response.headers.get("Content-Range", "")
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", said.strip())
        problem = ""
        if not state or not num_there:
            problem = "though the whole file was asked for"
        elif not found:
            problem = "which cannot be read"
        else:
            start, last, total = (int(number) for number in found.groups())
            if start != num_there or last != total - 1:
                problem = f"asked for was all from byte {num_there} on"
            elif state.num_bytes not in (None, total):
                problem = f"but the first {num_there} bytes are of a file of {state.num_bytes}"
            else:
                name, before = ("ETag", state.etag) if state.etag else ("Last-Modified", state.last_modified)
                now = response.headers.get(name, before)
                if now == before or before is None:
                    return start, total
                problem = f"of another version ({now}, the part is of {before})"
        raise FailedDownload(
            f"{self.file.url}: the server answers with Content-Range {said!r}, {problem}; refused. The part stays; "
            f"remove {self.part} to start afresh."
        )

    def _begin_part(self, response: "httpx.Response", total: int | None) -> None:
        etag = response.headers.get("ETag")
        state = _PartState(
            url=self.url,
            etag=etag if etag and not etag.startswith("W/") else None,
            last_modified=response.headers.get("Last-Modified"),
            num_bytes=total if total is not None else self.file.num_bytes,
        )
        require_space(self.path.parent, total or 0, what=f" for {self.path.name}")
        # In this order, a kill at any moment leaves no bytes beside a state that they are not of.
        self._drop_part()
        with writing(self.state_path):
            self.state_path.write_text(json.dumps(asdict(state)))

    def _append(self, response: "httpx.Response", start: int, total: int | None) -> None:
        size, limit = start, total if total is not None else self.file.num_bytes
        # A body in chunks has an end mark, without which it is a lost connection.
        is_chunked = "chunked" in response.headers.get("Transfer-Encoding", "").lower()
        self.is_end_known = limit is not None or is_chunked
        with self._opened_part(start) as stream:
            for chunk in response.iter_raw():
                if self.stop.is_set():
                    raise _Stopped
                with writing(self.part):
                    view = memoryview(chunk)
                    while view:
                        view = view[os.write(stream, view) :]
                size += len(chunk)
                self.num_travelled += len(chunk)
                self.display.advance(self.path, len(chunk))
                if limit is not None and size > limit:
                    aside = self._set_aside()
                    raise FailedDownload(
                        f"{self.file.url}: longer than the {limit} bytes it should have; what came is kept as {aside}."
                    )
        if not self.is_end_known and self.num_bytes_likely is not None:
            # Said when it was asked for the size only.
            limit, self.is_end_known = self.num_bytes_likely, size >= self.num_bytes_likely
        if limit is not None and size < limit:
            raise _Passing(f"the connection ended after {size} of {limit} bytes")

    @contextmanager
    def _opened_part(self, start: int) -> Iterator[int]:
        with writing(self.part):
            descriptor = os.open(self.part, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _read_state(self) -> _PartState | None:
        """What the part is of, if more can be appended to it; the part is dropped if not."""
        try:
            state = _PartState(**json.loads(self.state_path.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            state = None
        has_proof = state and (state.etag or state.last_modified or self.file.sha256 or self.file.md5)
        is_whole = state and state.num_bytes is not None and _size(self.part) == state.num_bytes
        if state and state.url == self.url and (has_proof or is_whole):
            return state
        return None

    def _drop_part(self) -> None:
        with writing(self.part):
            self.part.unlink(missing_ok=True)
            self.state_path.unlink(missing_ok=True)

    def _check_part(self) -> None:
        wrong = wrong_checksum(self.file, self.part)
        if wrong:
            aside = self._set_aside()
            raise ChecksumMismatch(f"{self.file.url}: {wrong}; what came is kept as {aside}, not used.")

    def _set_aside(self) -> Path:
        aside = self.path.with_name(f"{self.path.name}.rejected")
        with writing(aside):
            self.part.replace(aside)
            self.state_path.unlink(missing_ok=True)
        return aside

    def _give_name(self) -> None:
        with writing(self.path):
            descriptor = os.open(self.part, os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            self.part.replace(self.path)
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
            self.state_path.unlink(missing_ok=True)
        self.receipts.add(self.path, self.file)


class _Receipts:
    """Which files were found right, so that a checksum is computed once: one JSON line each, appended."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._path = target / STATE_FOLDER / "received.jsonl"
        self._lock = threading.Lock()
        self._known: set[str] = set()
        if self._path.is_file():
            self._known = set(self._path.read_text(encoding="utf-8").splitlines())

    def has(self, path: Path, file: RemoteFile) -> bool:
        return self._line(path, file) in self._known

    def add(self, path: Path, file: RemoteFile) -> None:
        line = self._line(path, file)
        with self._lock, writing(self._path):
            self._known.add(line)
            # A line of its own even after a torn one.
            with self._path.open("a+b") as stream:
                is_torn = stream.tell() > 0 and not _ends_line(self._path)
                stream.write(f"{chr(10) if is_torn else ''}{line}\n".encode())

    def _line(self, path: Path, file: RemoteFile) -> str:
        status = path.stat()
        facts = {
            "path": path.relative_to(self._target).as_posix(),
            "num_bytes": status.st_size,
            "mtime_ns": status.st_mtime_ns,
            "sha256": file.sha256,
            "md5": file.md5,
        }
        return json.dumps(facts)


def _ends_line(path: Path) -> bool:
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) == b"\n"


def wrong_checksum(file: RemoteFile, path: Path) -> str:
    """What is wrong with a file's bytes, in words; empty where nothing is, or nothing was published."""
    for algorithm, published in (("sha256", file.sha256), ("md5", file.md5)):
        if published is not None:
            with path.open("rb") as stream:
                found = hashlib.file_digest(stream, algorithm).hexdigest()
            if found != published:
                return f"its {algorithm} is {found}, published is {published}"
    return ""


def _retry_after(text: str | None) -> float | None:
    """Seconds that a server asks to wait, given as such or as a date."""
    if text is None:
        return None
    if re.fullmatch(r"[0-9]+", text.strip()):
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


def with_mirror(url: str, mirror: str | None) -> str:
    """The same path on another server."""
    if mirror is None:
        return url
    parts = urlsplit(url)
    base = urlsplit(mirror)
    if base.scheme not in ("http", "https") or not base.netloc:
        raise UsageError(f"mirror: the address of a server such as http://host:8000, got {mirror!r}.")
    return urlunsplit((base.scheme, base.netloc, base.path.rstrip("/") + parts.path, parts.query, ""))


def _client(num_connections: int) -> "httpx.Client":
    import httpx

    from vidprep import __version__

    return httpx.Client(
        follow_redirects=True,
        timeout=httpx.Timeout(TIMEOUT_SECONDS),
        limits=httpx.Limits(max_connections=num_connections + 1),
        headers={"User-Agent": f"vidprep/{__version__}"},
    )


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return 0


def human_bytes(num_bytes: int) -> str:
    """A number of bytes as people say it: 436.2 GB."""
    size = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


class _Display:
    """Shows how far the files are, asked from several threads: bars on a terminal, else a line every ten seconds."""

    def __init__(self, description: str, *, num_files: int, plan: Plan | None, bars: "Progress | None") -> None:
        self._description = description
        self._num_files = num_files
        self._bars = bars
        self._lock = threading.Lock()
        self._tasks: dict[str, TaskID] = {}
        self._num_done = 0
        self._num_bytes = 0
        self._last = time.monotonic()
        sizes = [planned.num_bytes for planned in plan.files] if plan else [None]
        total = None if None in sizes else sum(size or 0 for size in sizes)
        self._whole = bars.add_task(self._title(), total=total) if bars is not None else None

    def begin(self, path: Path, num_bytes: int | None) -> None:
        if self._bars is not None:
            name = f"{path.parent.name}/{path.name}"
            self._tasks[str(path)] = self._bars.add_task(name, total=num_bytes)

    def set(self, path: Path, num_there: int, num_bytes: int | None) -> None:
        if self._bars is not None:
            self._bars.update(self._tasks[str(path)], completed=num_there, total=num_bytes)

    def advance(self, path: Path, num_bytes: int) -> None:
        with self._lock:
            self._num_bytes += num_bytes
        if self._bars is not None:
            self._bars.advance(self._tasks[str(path)], num_bytes)
            if self._whole is not None:
                self._bars.advance(self._whole, num_bytes)
        else:
            self._say()

    def end(self, path: Path, num_there: int = 0) -> None:
        """The file is done with; `num_there` bytes of it did not travel in this run."""
        with self._lock:
            self._num_done += 1
        if self._bars is not None:
            if str(path) in self._tasks:
                self._bars.remove_task(self._tasks.pop(str(path)))
            if self._whole is not None:
                self._bars.update(self._whole, advance=num_there, description=self._title())

    def _title(self) -> str:
        return f"{self._description} {self._num_done}/{self._num_files}"

    def _say(self) -> None:
        from vidprep.console import SECONDS_BETWEEN_LINES

        with self._lock:
            now = time.monotonic()
            if not self._description or now - self._last < SECONDS_BETWEEN_LINES:
                return
            self._last = now
            text = f"{self._title()} files, {human_bytes(self._num_bytes)} so far"
        print(text, file=sys.stderr, flush=True)  # noqa: T201 - progress, as console.track shows it


@contextmanager
def _display(description: str | None, *, num_files: int, plan: Plan | None) -> Iterator[_Display]:
    if description is None or not sys.stderr.isatty():
        yield _Display(description or "", num_files=num_files, plan=plan, bars=None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bars:
        yield _Display(description, num_files=num_files, plan=plan, bars=bars)
