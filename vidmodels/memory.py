"""Memory that a process frees stays with it: what evaluation needs again at once."""

import ctypes
import sys

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""glibc's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD, malloc.h."""
LARGEST_KEPT_BYTES = 32 * 2**20
"""Blocks up to this size are kept: glibc allows no larger ones."""
KEPT_BYTES = 2**30
"""What may lie unused before any goes back to the system."""


def keep_freed_memory() -> bool:
    """Let freed memory be used again instead of giving it back to the system, in all of this process.

    glibc gives large blocks back as soon as they are free, and the system then has to clear their pages for the next
    activation of the same size: a third of a small network's time on a CPU. Elsewhere than on Linux with glibc nothing
    happens.

    Returns:
        Whether it could be set.
    """
    if not sys.platform.startswith("linux"):
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        return False
    return bool(set_option(_MMAP_THRESHOLD, LARGEST_KEPT_BYTES)) and bool(set_option(_TRIM_THRESHOLD, KEPT_BYTES))
