"""What the command lines of both packages share: errors as one line and an exit status, progress on any output."""

import errno
import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TextIO, TypeVar

import typer

from vidprep.errors import UsageError, VidprepError

__all__ = ["INTERRUPTED", "run_app", "track"]

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells count it: 128 + SIGINT."""

SECONDS_BETWEEN_LINES = 10.0

T = TypeVar("T")


def run_app(app: typer.Typer) -> int:
    """Run a command line and turn its errors into one line on stderr and an exit status.

    Returns:
        0 done; 1 the data were wrong; 2 the question was wrong; 130 interrupted. A fault of the program itself
        still ends in its traceback.
    """
    try:
        with _printed_log():
            app()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except VidprepError as error:
        _complain(str(error))
        return 2 if isinstance(error, UsageError) else 1
    except OSError as error:
        if error.errno is None:
            raise
        if error.errno == errno.ENOSPC:
            where = f" ({error.filename})" if error.filename else ""
            _complain(f"no space left on the disk{where}; free some and run the same command again.")
        else:
            _complain(str(error))
        return 1
    else:
        status = 0
    if status == INTERRUPTED:
        _complain("interrupted; the same command goes on where it stopped.")
    return status


class _PrintingHandler(logging.StreamHandler[TextIO]):
    """Prints what is logged; a reader that has seen enough (`head`) ends the program, as with any other output."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            raise
        super().handleError(record)


@contextmanager
def _printed_log() -> Iterator[None]:
    """What both packages log, from INFO on, goes to stdout as plain lines."""
    handler = _PrintingHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    loggers = [logging.getLogger(name) for name in ("vidprep", "vidmodels")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)


def _complain(sentence: str) -> None:
    typer.echo(f"error: {' '.join(sentence.split())}", err=True)


def track(items: Iterable[T], *, description: str, total: int | None = None) -> Iterator[T]:
    """Hand the items on while showing how far they are: a bar on a terminal, else a line every ten seconds.

    Args:
        items: what is gone through.
        description: what is being done, in a word or two.
        total: number of items, where `len(items)` does not know it.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    return _bar(items, description, total) if sys.stderr.isatty() else _lines(items, description, total)


def _bar(items: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(description, total=total)
        for item in items:
            yield item
            progress.advance(task)


def _lines(items: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    last = time.monotonic()
    of_total = "" if total is None else f"/{total}"
    for count, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            typer.echo(f"{description} {count}{of_total}", err=True)
