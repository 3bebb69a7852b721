"""Memory of a process: what it frees stays with it, as evaluation needs it again at once; and how much a call takes."""

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = ["PeakMemory", "keep_freed_memory", "measure_peak_memory"]

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


@dataclass(frozen=True, kw_only=True)
class PeakMemory:
    """Of one call, in MiB."""

    peak_mib: float
    """The most that the process (on a GPU: PyTorch there) held during the call, weights and inputs among it."""
    rise_mib: float
    """Above what it held before the call: activations and work space."""


def measure_peak_memory(call: Callable[[], object], device: torch.device) -> PeakMemory | None:
    """Run a call and look at the high-water mark.

    On a GPU it is that of PyTorch's allocator, on a CPU the resident pages of the process, whose mark Linux lets a
    process reset. None where there is no such mark; the call is run all the same.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return _in_mib(before, torch.cuda.max_memory_allocated(device))
    if device.type != "cpu" or not _reset_high_water():
        call()
        return None
    before = _status_bytes("VmRSS")
    call()
    return _in_mib(before, _status_bytes("VmHWM"))


def _reset_high_water() -> bool:
    """Set VmHWM to what is resident now; whether that could be done."""
    if not sys.platform.startswith("linux"):
        return False
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)  # or pages that were freed before would not count as risen
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc(5)
    except OSError:  # a kernel or a container that does not let it
        return False
    return True


def _in_mib(before: int, peak: int) -> PeakMemory:
    return PeakMemory(peak_mib=peak / 2**20, rise_mib=max(0, peak - before) / 2**20)


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
