"""The one tree of errors: everything vidprep raises on purpose is a `VidprepError`.

A message says what was given, what was expected, where, and what to do about it, in one line:
the command line prints it as it is and exits with status 2 (`UsageError`: the question was wrong)
or 1 (the data were wrong).
"""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Literal

__all__ = [
    "ChecksumMismatch",
    "CorruptShard",
    "CorruptVideo",
    "EmptyVideo",
    "FaultKind",
    "MissingPackage",
    "MissingVideo",
    "UnknownDataset",
    "UnknownName",
    "UsageError",
    "VidprepError",
    "WrongLength",
    "kind_of",
    "quote",
    "suggest",
]


FaultKind = Literal[
    "missing", "empty", "damaged", "wrong_length", "unreadable", "crashed", "out_of_memory", "hung", "other"
]
"""Why a sample could not be made, in one word: what ledgers count and `--retry` names."""


class VidprepError(Exception):
    """Base of all errors that vidprep raises on purpose."""

    kind: FaultKind = "other"


class UsageError(VidprepError):
    """The question was wrong: an argument, a name, a folder that does not exist."""


class UnknownName(UsageError):
    """A name that is none of the known ones; the message lists the nearest."""


class UnknownDataset(UnknownName):
    """No data set of this name."""


class MissingPackage(UsageError):
    """An optional package is not installed; the message names the extra that brings it."""


class MissingVideo(VidprepError):
    """A split lists a video that has no file."""

    kind = "missing"


class CorruptVideo(VidprepError):
    """A file that is there but does not decode, wholly or in part."""

    kind: FaultKind = "damaged"


class EmptyVideo(CorruptVideo):
    """A file of no bytes."""

    kind = "empty"


class WrongLength(CorruptVideo):
    """A video that is shorter than its header, its list or its annotation says."""

    kind = "wrong_length"


class CorruptShard(VidprepError):
    """A shard that is not what its index says: cut short, changed, or without its index."""


class ChecksumMismatch(VidprepError):
    """A file's checksum is not the published or recorded one."""


def quote(value: object) -> str:
    """A value from a file, as an error sentence shows it: in quotes, and no more than its first 80 characters."""
    text = repr(value)
    return text if len(text) <= 84 else f"{text[:80]}..."


def kind_of(error: BaseException) -> FaultKind:
    """Why a sample could not be made, in one word."""
    if isinstance(error, VidprepError):
        return error.kind
    if isinstance(error, MemoryError):
        return "out_of_memory"
    return "unreadable" if isinstance(error, OSError) else "other"


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of an error sentence: the nearest known names, or all of them when none is near."""
    names = sorted(known)
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names) or 'none'}."
