"""Run idempotent units of work in many processes: a worker that dies is not the end, and nothing is half-written.

A unit may be run again at any time: it writes under another name and gives the result its name at the very end
(`publish`), so a run that is killed at any moment goes on where it stopped when the same command is run again.
"""

import errno
import os
import pickle
import re
import signal
import threading
import time
import traceback
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from multiprocessing import resource_tracker
from pathlib import Path
from typing import IO, Any, Generic, TypeAlias, TypeVar

from vidprep.errors import UsageError, VidprepError

__all__ = [
    "CannotWrite",
    "Outcome",
    "WorkerDied",
    "differences",
    "lock",
    "publish",
    "run",
    "source_state",
    "sweep",
    "writing",
]

U = TypeVar("U")
R = TypeVar("R")

NUM_ATTEMPTS = 2
"""How often a unit that killed a worker is tried alone, unless the caller says otherwise."""


class CannotWrite(VidprepError):
    """The target takes no more: full, read-only, gone. Ends a run at once, since no other unit would fare better."""


class WorkerDied(VidprepError):
    """A unit ended its worker process each time it was tried, alone: a crash inside a decoder, or memory ran out."""


@dataclass(frozen=True, kw_only=True)
class Outcome(Generic[U, R]):
    """What became of one unit: a result, or the error that it ended with."""

    unit: U
    result: R | None = None
    error: Exception | None = None


Outcomes: TypeAlias = Generator[Outcome[U, R], None, None]
Done: TypeAlias = tuple[int, R | None, Exception | None]
"""The position of a unit, its result, its error."""


def run(
    units: Sequence[U],
    work: Callable[[U], R],
    *,
    workers: int = 1,
    progress: str | None = None,
    retries: int = NUM_ATTEMPTS,
) -> Outcomes[U, R]:
    """Do `work` on every unit; outcomes come in the order in which they are ready, one for each unit.

    When a worker process dies, everything that was under way is done again, unit by unit, each alone; one that ends
    its worker `retries` times is given up as a `WorkerDied`, all others get their results.

    Args:
        units: what to work on; picklable.
        work: a function of a module (or a `functools.partial` of one) that may run twice on the same unit.
        workers: processes; 1 works in this very process.
        progress: what is being done, in a word or two, to show how far it is; None shows nothing.
        retries: attempts, alone, for a unit whose worker died.

    Raises:
        UsageError: `workers` is below 1.
        CannotWrite: raised by a unit; the others are stopped.
        KeyboardInterrupt: Ctrl-C; the workers are ended before it goes on. Close the iterator (`contextlib.closing`)
            before tidying up, so that no worker is left that writes.
    """
    if workers < 1:
        raise UsageError(f"workers must be at least 1, got {workers}.")
    outcomes = _run_here(units, work) if workers == 1 else _run_apart(units, work, workers, retries)
    if progress is not None:
        return _tracked(outcomes, progress, len(units))
    return outcomes


def _tracked(outcomes: Outcomes[U, R], progress: str, total: int) -> Outcomes[U, R]:
    from vidprep.console import track

    with closing(outcomes):
        yield from track(outcomes, description=progress, total=total)


def _run_here(units: Sequence[U], work: Callable[[U], R]) -> Outcomes[U, R]:
    for index, unit in enumerate(units):
        _, result, error = _attempt(work, index, unit)
        yield _outcome(unit, result, error)


def _run_apart(units: Sequence[U], work: Callable[[U], R], workers: int, retries: int) -> Outcomes[U, R]:
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    waiting, suspects = list(range(len(units))), list[int]()
    while waiting:
        # With a dead worker the pool breaks; what it had been given and not handed back is suspect.
        given, back = set[int](), set[int]()
        try:
            with closing(_pool(units, waiting, work, workers, given)) as results:
                for index, result, error in results:
                    back.add(index)
                    yield _outcome(units[index], result, error)
        except TerminatedWorkerError:
            suspects += sorted(given - back)
        waiting = [index for index in waiting if index not in given]
    for index in suspects:
        yield _run_alone(units, index, work, retries)


def _run_alone(units: Sequence[U], index: int, work: Callable[[U], R], retries: int) -> Outcome[U, R]:
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    death = ""
    for _ in range(retries):
        try:
            [(_, result, error)] = _pool(units, [index], work, 1, set())
            return _outcome(units[index], result, error)
        except TerminatedWorkerError as broken:
            found = re.search(r"exit codes of the workers are \{(.*)\}", str(broken))
            death = found.group(1) if found else "exit code unknown"
    reason = f"its worker process died {retries} times ({death}): a crash inside the decoder, or too little memory"
    return Outcome(unit=units[index], error=WorkerDied(reason))


def _pool(
    units: Sequence[U], indices: Sequence[int], work: Callable[[U], R], workers: int, given: set[int]
) -> Generator[Done[R], None, None]:
    """One life of a pool of processes; `given` grows by each index that is handed to it.

    The pool is joblib's own, asked directly: `joblib.Parallel` would not say which units were lost with a worker.
    """
    from joblib.externals.loky import get_reusable_executor

    # Python's tracker (up to 3.12) unblocks interrupts once it has started: it must have started before the workers.
    resource_tracker.ensure_running()
    pool = get_reusable_executor(max_workers=workers, timeout=60, initializer=_leave_interrupts_to_the_parent)
    pending: set[Future[Done[R]]] = set()
    queue = iter(indices)
    try:
        while True:
            # Two units a worker: one that it works on, one that lies ready.
            for index in islice(queue, 2 * workers - len(pending)):
                given.add(index)
                with _interrupts_blocked():
                    pending.add(pool.submit(_attempt, work, index, units[index]))
            if not pending:
                return
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            # What got done comes before what broke, so that it is not taken for lost.
            for future in sorted(done, key=lambda future: future.exception() is not None):
                yield future.result()
    except BaseException:
        _stop(pool, pending)
        raise


def _stop(pool: Any, pending: Collection[Future[Any]]) -> None:
    # The pool's own thread stumbles (with a traceback) over units that it has not yet passed on when it is stopped.
    deadline = time.monotonic() + 1.0
    while not all(future.running() or future.done() for future in pending) and time.monotonic() < deadline:
        time.sleep(0.01)
    pool.shutdown(wait=True, kill_workers=True)


def _leave_interrupts_to_the_parent() -> None:
    """A terminal sends Ctrl-C to all processes; workers are ended by the one that started them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Interrupts wait until the block ends.

    Processes that are started inside inherit that, until they leave interrupts to their parent for good.
    """
    held: list[int] = []
    handler = signal.getsignal(signal.SIGINT)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    # The mask is this thread's own. Another one (NumPy has some) takes the signal meanwhile, and Python interrupts the
    # main thread all the same: so it is told to wait, too.
    is_held = threading.current_thread() is threading.main_thread() and handler is not None
    if is_held:
        signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if is_held:
            signal.signal(signal.SIGINT, handler)
        if held:
            signal.raise_signal(signal.SIGINT)


def _attempt(work: Callable[[U], R], index: int, unit: U) -> Done[R]:
    try:
        return index, work(unit), None
    except Exception as error:
        error.add_note(traceback.format_exc())
        return index, None, _portable(error)


def _portable(error: Exception) -> Exception:
    """The error itself where it survives the way between processes, else its text."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - made one expression before
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _outcome(unit: U, result: R | None, error: Exception | None) -> Outcome[U, R]:
    if isinstance(error, CannotWrite):
        raise error
    return Outcome(unit=unit, result=result, error=error)


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


@contextmanager
def publish(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that appears at `path` when the block ends, whole and on the disk, or not at all.

    Read nothing inside the block that may fail by itself: every OSError in it counts as one of writing.

    Raises:
        CannotWrite: no space, no permission.
    """
    # The process in its name: a worker that outlived its killed run must not write into the file of the next run.
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
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
    pattern = re.compile(rf"(?:{name})\.\d+\.part")
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
