"""Run idempotent units of work in many processes: a worker that dies is not the end, and nothing is half-written.

A unit may be run again at any time: it writes under another name and gives the result its name at the very end
(`publish`), so a run that is killed at any moment goes on where it stopped when the same command is run again.
"""

import errno
import os
import re
import secrets
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any, Generic, TypeAlias, TypeVar

from vidprep.cluster import open_pool
from vidprep.errors import UsageError, VidprepError
from vidprep.workers import Death, Done, WorkerDied, attempt

__all__ = [
    "CannotWrite",
    "Outcome",
    "Outcomes",
    "WorkerDied",
    "differences",
    "lock",
    "media_state",
    "publish",
    "run",
    "run_all",
    "source_state",
    "sweep",
    "unique_name",
    "writing",
]

U = TypeVar("U")
R = TypeVar("R")

NUM_RETRIES = 1
"""How often a unit that killed a worker is tried again, alone, unless the caller says otherwise."""


class CannotWrite(VidprepError):
    """The target takes no more: full, read-only, gone. Ends a run at once, since no other unit would fare better."""


@dataclass(frozen=True, kw_only=True)
class Outcome(Generic[U, R]):
    """What became of one unit: a result, or the error that it ended with."""

    unit: U
    result: R | None = None
    error: Exception | None = None
    seconds: float = field(default=0.0, compare=False)
    """That the last attempt took."""
    num_attempts: int = field(default=1, compare=False)


Outcomes: TypeAlias = Generator[Outcome[U, R], None, None]


def run(
    units: Sequence[U],
    work: Callable[[U], R],
    *,
    workers: int = 1,
    progress: str | None = None,
    retries: int = NUM_RETRIES,
    time_limit_seconds: float | None = None,
    scheduler: str | None = None,
) -> Outcomes[U, R]:
    """Do `work` on every unit; outcomes come in the order in which they are ready, one for each unit.

    Every worker process has one unit at a time. A unit whose process dies is tried again when all others are done,
    alone; one that ends its process each time is given up as a `WorkerDied`. A unit that takes longer than the time
    limit is given up at once. All others get their results.

    Args:
        units: what to work on; picklable.
        work: a function of a module (or a `functools.partial` of one) that may run twice on the same unit.
        workers: processes on this machine; 1 without a time limit works in this very process.
        progress: what is being done, in a word or two, to show how far it is; None shows nothing.
        retries: further attempts, alone, for a unit whose process died.
        time_limit_seconds: for a unit, or for each of its parts (`workers.begin_part`); None: as long as it takes.
        scheduler: address of a Dask scheduler, tcp://HOST:8786: its workers do the work, not this machine; they see
            the same files under the same paths.

    Raises:
        UsageError: `workers` is below 1, the time limit is not positive, Dask is not installed, no scheduler answers.
        CannotWrite: raised by a unit; the others are stopped.
        KeyboardInterrupt: Ctrl-C; the workers are ended before it goes on. Close the iterator (`contextlib.closing`)
            before tidying up, so that no worker is left that writes.
    """
    if workers < 1:
        raise UsageError(f"workers must be at least 1, got {workers}.")
    if time_limit_seconds is not None and not time_limit_seconds > 0:
        raise UsageError(f"the time limit must be above 0 seconds, got {time_limit_seconds:g}.")
    if scheduler is None and workers == 1 and time_limit_seconds is None:
        outcomes = _run_here(units, work)
    else:
        outcomes = _run_apart(units, work, workers, retries, time_limit_seconds, scheduler)
    if progress is not None:
        return _tracked(outcomes, progress, len(units))
    return outcomes


def run_all(units: Sequence[U], work: Callable[[U], R], *, workers: int = 1, progress: str | None = None) -> None:
    """Do `work` on every unit, for what must not fail: the first failure ends the run, and is raised.

    Args:
        units: as for `run`, as the rest.
        work: what it returns is dropped.
        workers: processes.
        progress: what is being done, in a word or two.
    """
    with closing(run(units, work, workers=workers, progress=progress)) as outcomes:
        for outcome in outcomes:
            if outcome.error is not None:
                raise outcome.error


def _tracked(outcomes: Outcomes[U, R], progress: str, total: int) -> Outcomes[U, R]:
    from vidprep.console import track

    with closing(outcomes):
        yield from track(outcomes, description=progress, total=total)


def _run_here(units: Sequence[U], work: Callable[[U], R]) -> Outcomes[U, R]:
    for unit in units:
        yield _outcome(unit, attempt(work, unit))


def _run_apart(
    units: Sequence[U],
    work: Callable[[U], R],
    workers: int,
    retries: int,
    time_limit_seconds: float | None,
    scheduler: str | None,
) -> Outcomes[U, R]:
    if not units:
        return
    with open_pool(scheduler, workers=min(workers, len(units)), time_limit_seconds=time_limit_seconds) as pool:
        waiting, deaths = iter(range(len(units))), dict[int, list[Death]]()
        pending: dict[Future[Done[R] | Death], int] = {}
        while True:
            for index in islice(waiting, max(0, pool.capacity() - len(pending))):
                pending[pool.submit(work, units[index])] = index
            if not pending:
                break
            finished, _ = wait(pending, return_when=FIRST_COMPLETED, timeout=pool.check_seconds)
            pool.check()
            for future in finished:
                index, found = pending.pop(future), future.result()
                if isinstance(found, Done):
                    yield _outcome(units[index], found)
                elif found.kind == "hung":
                    yield _given_up(units[index], [found], time_limit_seconds)
                else:
                    deaths[index] = [found]
        for index, of_unit in deaths.items():
            again: Done[R] | Death | None = None
            for _ in range(retries):
                future = pool.submit(work, units[index])
                while not wait([future], timeout=pool.check_seconds).done:
                    pool.check()
                again = future.result()
                if isinstance(again, Done):
                    break
                of_unit.append(again)
                if again.kind == "hung":
                    break
            if isinstance(again, Done):
                yield _outcome(units[index], again, num_attempts=len(of_unit) + 1)
            else:
                yield _given_up(units[index], of_unit, time_limit_seconds)


def _outcome(unit: U, done: Done[R], *, num_attempts: int = 1) -> Outcome[U, R]:
    if isinstance(done.error, CannotWrite):
        raise done.error
    return Outcome(unit=unit, result=done.result, error=done.error, seconds=done.seconds, num_attempts=num_attempts)


def _given_up(unit: U, deaths: Sequence[Death], time_limit_seconds: float | None) -> Outcome[U, R]:
    last = deaths[-1]
    if last.kind == "hung":
        text = f"took longer than the time limit of {time_limit_seconds:g} s; its worker process was ended"
    else:
        cause = {
            "crashed": "a crash inside the decoder, or too little memory",
            "out_of_memory": "killed from outside, as the system does when memory runs out",
        }[last.kind]
        text = f"its worker process died {len(deaths)} times ({last.reason}): {cause}"
    error = WorkerDied(text)
    error.kind, error.num_deaths = last.kind, len(deaths)
    parts = {death.part for death in deaths if death.kind == last.kind}
    error.part = parts.pop() if len(parts) == 1 else None
    return Outcome(unit=unit, error=error, seconds=last.seconds, num_attempts=len(deaths))


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn the system's refusals to write inside the block into a `CannotWrite` that names `target`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            what = {errno.ENOSPC: "no space left", errno.EDQUOT: "quota used up", errno.EFBIG: "file too large"}
            sentence = f"{target}: {what[error.errno]} on the disk; free some and run the same command again."
        else:
            sentence = f"{target}: cannot be written ({error.strerror or error}); see to it and run the command again."
        raise CannotWrite(sentence) from error


def unique_name() -> str:
    """For something half-written: "4711-9f3a61c2", by the process and by chance.

    A worker that outlived its killed run, or one on another machine, must not write into the file of this one.
    """
    return f"{os.getpid()}-{secrets.token_hex(4)}"


@contextmanager
def publish(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that appears at `path` when the block ends, whole and on the disk, or not at all.

    Read nothing inside the block that may fail by itself: every OSError in it counts as one of writing.

    Raises:
        CannotWrite: no space, no permission.
    """
    part = path.with_name(f"{path.name}.{unique_name()}.part")
    with writing(path):
        try:
            with part.open("wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(path)
            _sync_folder(path.parent)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def sweep(folder: Path, name: str) -> None:
    """Remove what killed runs left half-written of the files whose names match the regular expression `name`."""
    if not folder.is_dir():
        return
    pattern = re.compile(rf"(?:{name})\.\d+(?:-[0-9a-f]+)?\.part")
    with writing(folder):
        for path in folder.iterdir():
            if pattern.fullmatch(path.name):
                path.unlink(missing_ok=True)


@contextmanager
def lock(path: Path, *, purpose: str) -> Iterator[None]:
    """Hold an existing file for one run; the system lets go of it when the process ends, however it ends.

    Raises:
        UsageError: another process holds it.
    """
    import fcntl

    with path.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"{path.parent}: another {purpose} is at work here; wait for it to end.") from error
        yield


def source_state(path: Path | None) -> list[int] | None:
    """Size and time of change of a file, to see whether it was replaced; None for a missing one."""
    try:
        status = path.stat() if path is not None else None
    except OSError:
        return None
    return None if status is None else [status.st_size, status.st_mtime_ns]


def media_state(path: Path | None) -> list[int] | None:
    """As `source_state`; of a folder of frames the sum of sizes and the latest change of all its files."""
    if path is None or not path.is_dir():
        return source_state(path)
    states = [state for entry in (path, *path.iterdir()) if (state := source_state(entry)) is not None]
    return [sum(size for size, _ in states), max(change for _, change in states)]


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In words, where two sets of settings differ: "samples_per_shard was 64, now 32"; empty where they do not."""
    return "; ".join(f"{name} was {_short(old)}, now {_short(new)}" for name, old, new in _differing(before, now))


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, object, object]]:
    for name in {**before, **now}:
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from ((f"{name}.{inner}", older, newer) for inner, older, newer in _differing(old, new))
        elif old != new:
            yield name, old, new


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
