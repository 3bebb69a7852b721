"""A unit of work in a process of its own, which may crash, run out of memory or hang without taking others along.

Each slot holds one process of joblib's loky. One slot serves one unit at a time, so a process that dies names the unit
that killed it: no other unit is lost, and none is suspected.
"""

import atexit
import faulthandler
import json
import os
import pickle
import re
import signal
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from vidprep.errors import FaultKind, VidprepError

__all__ = [
    "Death",
    "DeathKind",
    "Done",
    "WorkerDied",
    "attempt",
    "attempt_apart",
    "begin_part",
    "end_idle",
    "end_run",
    "is_apart",
]

U = TypeVar("U")
R = TypeVar("R")

DeathKind = Literal["crashed", "out_of_memory", "hung"]

IDLE_SECONDS = 60
"""A process without work ends itself after so long; until then the next run finds it with everything imported."""


class WorkerDied(VidprepError):
    """A unit ended its worker process each time it was tried, or took longer than it may."""

    kind: FaultKind = "crashed"
    part: str | None = None
    """The part of the unit (see `begin_part`) that was at work each time; None: none, or not always the same."""
    num_deaths: int = 1


@dataclass(frozen=True, kw_only=True)
class Done(Generic[R]):
    """What a process made of a unit."""

    result: R | None = None
    error: Exception | None = None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Death:
    """A process that ended before its unit did."""

    kind: DeathKind
    reason: str
    """The signal, or the exit code."""
    part: str | None
    seconds: float


# In the worker process


class _Watch:
    """What the process is working on, written where the parent finds it, and the time that it may take."""

    def __init__(self, mark: Path, limit_seconds: float | None) -> None:
        self.mark, self.limit_seconds = mark, limit_seconds

    def begin(self, part: str | None) -> None:
        # Without the mark (a full /tmp) a death is laid at the door of the whole unit, which is then tried in parts.
        with suppress(OSError):
            self.mark.write_text(json.dumps(part), encoding="utf-8")
        if self.limit_seconds is not None:
            # The alarm's default action ends the process from outside of Python: no decoder can hold it up.
            signal.setitimer(signal.ITIMER_REAL, self.limit_seconds)


_watch: _Watch | None = None


def begin_part(part: str) -> None:
    """Say which part of its unit a process begins: the time limit counts anew, and a death is this part's.

    Where nothing is watched (work in the very process of the run) it does nothing.
    """
    if _watch is not None:
        _watch.begin(part)


def is_apart() -> bool:
    """Whether this is such a process, at work: it may be ended at any moment."""
    return _watch is not None


def attempt(work: Callable[[U], R], unit: U) -> Done[R]:
    """Do the work here; an error is part of the answer."""
    started = time.perf_counter()
    try:
        result = work(unit)
    except Exception as error:
        error.add_note(traceback.format_exc())
        return Done(error=_portable(error), seconds=time.perf_counter() - started)
    return Done(result=result, seconds=time.perf_counter() - started)


def _attempt_watched(work: Callable[[U], R], unit: U, mark: Path, limit_seconds: float | None) -> Done[R]:
    global _watch
    # A crash is told in the ledger, by its signal and its sample, not by a page of stacks on the terminal.
    faulthandler.disable()
    _watch = _Watch(mark, limit_seconds)
    _watch.begin(None)
    try:
        return attempt(work, unit)
    finally:
        _watch = None
        signal.setitimer(signal.ITIMER_REAL, 0)


def _portable(error: Exception) -> Exception:
    """The error itself where it survives the way between processes, else its text."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - made one expression before
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _prepare_process() -> None:
    """A terminal sends Ctrl-C to all processes; workers are ended by the one that started them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    # When memory runs out, the system ends a worker (one unit) before the process that drives the run.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")


# In the parent


class _Slot:
    """One process, and a new one after it died."""

    def __init__(self) -> None:
        self._pool: Any = None
        self._future: Future[Any] | None = None

    def submit(self, function: Callable[..., R], *args: Any) -> "Future[R]":
        from joblib.externals.loky import ProcessPoolExecutor

        if self._pool is None:
            # Before loky's own, and while its modules are still there.
            atexit.unregister(end_idle)
            atexit.register(end_idle)
            self._pool = ProcessPoolExecutor(max_workers=1, timeout=IDLE_SECONDS, initializer=_prepare_process)
        with _interrupts_blocked(), _allowed_children():
            future: Future[R] = self._pool.submit(function, *args)
        self._future = future
        return future

    def end(self) -> None:
        """End the process, whatever it is doing."""
        if self._pool is None:
            return
        # The pool's own thread stumbles (with a traceback) over a unit that it has not yet passed on when it is ended.
        deadline = time.monotonic() + 1.0
        while self._future is not None and not (self._future.running() or self._future.done()):
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        self._pool.shutdown(wait=True, kill_workers=True)
        self._pool = None


_lock = threading.Lock()
_idle: list[_Slot] = []
_busy: dict[str, set[_Slot]] = {}
_ended: set[str] = set()
# A forked child has none of its parent's processes.
os.register_at_fork(after_in_child=lambda: (_idle.clear(), _busy.clear()))  # type: ignore[func-returns-value]


def attempt_apart(work: Callable[[U], R], unit: U, *, run: str, limit_seconds: float | None) -> Done[R] | Death:
    """Do the work in a process of its own; waits for it. May be called by several threads at the same time.

    Args:
        work: a function of a module, or a `functools.partial` of one.
        unit: picklable.
        run: a name of the run that this belongs to, for `end_run`.
        limit_seconds: the process is ended when the unit, or a part of it (`begin_part`), takes longer; None: never.
    """
    with _lock:
        # Imported by one thread at a time: joblib imports itself in a circle, which two threads break.
        from joblib.externals.loky.process_executor import ShutdownExecutorError, TerminatedWorkerError

        if run in _ended:
            return Death(kind="crashed", reason="the run was ended", part=None, seconds=0.0)
        slot = _idle.pop() if _idle else _Slot()
        _busy.setdefault(run, set()).add(slot)
    started = time.perf_counter()
    mark = _new_mark()
    is_alive = False
    try:
        done = slot.submit(_attempt_watched, work, unit, mark, limit_seconds).result()
        is_alive = True
    except (TerminatedWorkerError, ShutdownExecutorError) as error:
        return _death(error, mark, limit_seconds, time.perf_counter() - started)
    else:
        return done
    finally:
        with suppress(OSError):
            mark.unlink()
        if not is_alive:
            slot.end()
        with _lock:
            _busy.get(run, set()).discard(slot)
            if is_alive and run not in _ended:
                _idle.append(slot)


def _new_mark() -> Path:
    try:
        folder = tempfile.gettempdir()
    except FileNotFoundError:  # every candidate is full or read-only
        folder = "/tmp"  # noqa: S108 - the name is nobody else's
    return Path(folder) / f"vidprep-{uuid.uuid4().hex}.mark"


def end_run(run: str) -> None:
    """End all processes that work for a run, now; none starts for it any more."""
    with _lock:
        _ended.add(run)
        slots = _busy.pop(run, set())
    for slot in slots:
        slot.end()


def end_idle() -> None:
    """End the processes that wait for work."""
    with _lock:
        slots = list(_idle)
        _idle.clear()
    for slot in slots:
        slot.end()


def _death(error: Exception, mark: Path, limit_seconds: float | None, seconds: float) -> Death:
    found = re.search(r"exit codes of the workers are \{(.*)\}", str(error))
    reason = found.group(1) if found else "exit code unknown"
    kind: DeathKind = "crashed"
    if "SIGALRM" in reason and limit_seconds is not None:
        kind = "hung"
    elif "SIGKILL" in reason:
        kind = "out_of_memory"
    try:
        part = json.loads(mark.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        part = None
    return Death(kind=kind, reason=reason, part=part, seconds=seconds)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Processes that are started inside inherit the block, until they leave interrupts to their parent for good."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _allowed_children() -> Iterator[None]:
    """Dask's worker processes are daemons, which Python's multiprocessing forbids to start processes."""
    import multiprocessing

    settings: dict[str, Any] = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    is_daemon = settings.pop("daemon", None)
    try:
        yield
    finally:
        if is_daemon is not None:
            settings["daemon"] = is_daemon
