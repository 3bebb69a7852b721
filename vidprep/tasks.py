"""One run cut into parts for a job array: `--task 2/3` does the second of three, anywhere, in any order, repeatedly."""

import errno
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vidprep.engine import writing
from vidprep.errors import UsageError

__all__ = ["ArrayTask", "Held", "hold", "parse_task"]


class Held(UsageError):
    """Another process is at work on the same units."""


@dataclass(frozen=True, kw_only=True)
class ArrayTask:
    """Which of how many parts of a run."""

    number: int
    """Counted from 1."""
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise UsageError(f"--task: the number of a task is 1 to {self.count}, got {self.number}/{self.count}.")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def part_of(self, num_units: int) -> range:
        """Positions of the units that are this task's: neighbours, and as many as any other task has, or one more.

        10 units, 3 tasks -> 0 1 2, 3 4 5, 6 7 8 9. The parts of all tasks are all units, each once.
        """
        return range((self.number - 1) * num_units // self.count, self.number * num_units // self.count)


def parse_task(text: str) -> ArrayTask:
    """The task that "2/3" names.

    Raises:
        UsageError: it is none.
    """
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if found is None:
        raise UsageError(f"--task: expected I/N, such as 2/3 for the second of three, got {text!r}.")
    return ArrayTask(number=int(found[1]), count=int(found[2]))


@contextmanager
def hold(path: Path, units: range, *, purpose: str, patience_seconds: float = 0.0) -> Iterator[None]:
    """Hold some units of a run in the name of this process, by locking as many bytes of a file that exists.

    The system lets go of them when the process ends, however it ends. Locks of byte ranges hold between machines that
    share a disk (NFS 3 with its lock daemon, NFS 4, Lustre with `flock`), and of several tasks each has its own range.
    Open the file nowhere else inside the block: closing it there would give up the lock. Where nothing can be
    written, nothing is held.

    Args:
        path: the file.
        units: positions of the units.
        purpose: what holds them, for the error's text.
        patience_seconds: how long to wait for another process that holds some of them.

    Raises:
        Held: another process holds some of them.
    """
    import fcntl

    if not units:
        yield
        return
    try:
        stream = path.open("r+b")
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            with writing(path):
                raise
        yield
        return
    with stream:
        deadline = time.monotonic() + patience_seconds
        while True:
            try:
                fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB, len(units), units.start)
                break
            except (BlockingIOError, PermissionError) as error:
                if time.monotonic() >= deadline:
                    raise Held(f"{path.parent}: another {purpose} is at work here; wait for it to end.") from error
            time.sleep(0.1)
        yield
