"""Where units of work are done: processes of this machine, or the workers of a Dask cluster.

Both do a unit in a process of its own (`workers.attempt_apart`), so a crash, a hang or memory running out is told apart
and costs one unit in either place; a Dask worker that is lost as a whole costs nothing: its units are done elsewhere.
"""

import logging
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from vidprep.errors import MissingPackage, UsageError, VidprepError
from vidprep.workers import Death, Done, attempt_apart, end_idle, end_run

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Pool", "open_pool"]

U = TypeVar("U")
R = TypeVar("R")

CONNECT_SECONDS = 8
"""For a scheduler to answer."""

_log = logging.getLogger(__name__)


class Pool(Protocol):
    """Takes units and hands back what became of them."""

    check_seconds: float | None
    """How often `check` is to be called, while nothing else happens; None: never."""

    def capacity(self) -> int:
        """Units that it should be given at the same time."""
        ...

    def submit(self, work: Callable[[U], R], unit: U) -> "Future[Done[R] | Death]":
        """Begin a unit."""
        ...

    def check(self) -> None:
        """See whether it is still there.

        Raises:
            VidprepError: it is not.
        """
        ...


@contextmanager
def open_pool(scheduler: str | None, *, workers: int, time_limit_seconds: float | None) -> Iterator[Pool]:
    """A pool for one run; when the block is left by an error or by Ctrl-C, none of its processes goes on working.

    Args:
        scheduler: address of a Dask scheduler; None: `workers` processes of this machine.
        workers: not used with a scheduler.
        time_limit_seconds: for a unit, or for each of its parts.

    Raises:
        UsageError: Dask is not installed, or no scheduler answers at the address.
    """
    run = uuid.uuid4().hex
    begin = partial(attempt_apart, run=run, limit_seconds=time_limit_seconds)
    if scheduler is None:
        with _local_pool(workers, begin, run) as local:
            yield local
    else:
        with _dask_pool(scheduler, begin, run) as remote:
            yield remote


# This machine


class _LocalPool:
    check_seconds: float | None = None

    def __init__(self, threads: ThreadPoolExecutor, workers: int, begin: Callable[..., Any]) -> None:
        self._threads, self._workers, self._begin = threads, workers, begin

    def capacity(self) -> int:
        return self._workers

    def submit(self, work: Callable[[U], R], unit: U) -> "Future[Done[R] | Death]":
        return self._threads.submit(self._begin, work, unit)

    def check(self) -> None:
        return


@contextmanager
def _local_pool(workers: int, begin: Callable[..., Any], run: str) -> Iterator[Pool]:
    # Python's tracker (up to 3.12) unblocks interrupts once it has started: it must have started before the workers.
    resource_tracker.ensure_running()
    # One thread a process: it hands over a unit and waits for what becomes of it.
    threads = ThreadPoolExecutor(
        workers, thread_name_prefix="vidprep", initializer=_leave_interrupts_to_the_main_thread
    )
    try:
        yield _LocalPool(threads, workers, begin)
    except BaseException:
        end_run(run)
        raise
    finally:
        threads.shutdown(wait=True, cancel_futures=True)


def _leave_interrupts_to_the_main_thread() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


# A cluster


class _DaskPool:
    check_seconds: float | None = 5.0

    def __init__(self, client: "Client", scheduler: str, begin: Callable[..., Any]) -> None:
        self._client, self._scheduler, self._begin = client, scheduler, begin
        self._num_threads, self._counted, self._is_told = 0, -60.0, False
        self.futures: set[Any] = set()

    def capacity(self) -> int:
        """Two units a thread of the cluster: one that it works on, one that lies ready. Workers come and go."""
        if time.monotonic() - self._counted > 1.0:
            self._num_threads = sum(self._client.nthreads().values())
            self._counted = time.monotonic()
            if self._num_threads == 0 and not self._is_told:
                _log.info("%s: no workers at the moment; waiting for them.", self._scheduler)
            self._is_told = self._num_threads == 0
        return max(2 * self._num_threads, 1)

    def submit(self, work: Callable[[U], R], unit: U) -> "Future[Done[R] | Death]":
        answer: Future[Done[R] | Death] = Future()
        remote = self._client.submit(self._begin, work, unit, pure=False)
        self.futures.add(remote)
        remote.add_done_callback(partial(self._hand_back, answer))
        return answer

    def _hand_back(self, answer: "Future[Done[R] | Death]", remote: Any) -> None:
        from distributed import KilledWorker

        try:
            found = remote.result()
        except KilledWorker as error:
            # Dask has given it to several workers already, and each was lost while it had it.
            answer.set_result(Death(kind="crashed", reason=f"Dask worker {error.last_worker}", part=None, seconds=0.0))
        except BaseException as error:
            lost = VidprepError(f"{self._scheduler}: the cluster lost the work ({type(error).__name__}: {error}).")
            answer.set_exception(error if isinstance(error, Exception) else lost)
        else:
            answer.set_result(found)
        self.futures.discard(remote)

    def check(self) -> None:
        if self._client.status != "running":
            raise VidprepError(
                f"{self._scheduler}: the scheduler is gone (the client is {self._client.status}); start it and run the "
                "same command again, it goes on where it stopped."
            )


@contextmanager
def _dask_pool(scheduler: str, begin: Callable[..., Any], run: str) -> Iterator[Pool]:
    try:
        from distributed import Client
    except ImportError as error:
        raise MissingPackage("A cluster needs the `dask` extra: pip install 'vidprep[dask]'.") from error
    try:
        client = Client(scheduler, timeout=CONNECT_SECONDS, set_as_default=False, name="vidprep")
    except (OSError, ValueError, TimeoutError) as error:
        raise UsageError(
            f"{scheduler}: no Dask scheduler answers ({type(error).__name__}); start one with `dask scheduler` and "
            "give its address as tcp://HOST:8786."
        ) from error
    pool = _DaskPool(client, scheduler, begin)
    try:
        _refuse_other_versions(client, scheduler)
        yield pool
    except BaseException:
        # What is running does not notice that it was cancelled: its processes are ended.
        with suppress(OSError, TimeoutError):
            client.cancel(list(pool.futures), force=True)
            client.run(end_run, run, on_error="ignore")
        raise
    finally:
        with suppress(OSError, TimeoutError):
            client.run(end_idle, on_error="ignore")
        client.close(timeout=CONNECT_SECONDS)


def _refuse_other_versions(client: "Client", scheduler: str) -> None:
    from vidprep import __version__

    try:
        found = client.run(_version)
    except Exception as error:
        raise UsageError(
            f"{scheduler}: its workers cannot run vidprep ({type(error).__name__}: {error}); install vidprep "
            f"{__version__} in their environment."
        ) from error
    others = {address: version for address, version in found.items() if version != __version__}
    if others:
        address, version = next(iter(others.items()))
        raise UsageError(
            f"{scheduler}: the worker {address} has vidprep {version}, this is {__version__}; install one."
        )


def _version() -> str:
    from vidprep import __version__

    return __version__
