"""Memory for batches that is used again when nobody holds the batch any more.

A batch of clips is tens of megabytes. Fresh memory of that size costs about as much as decoding a part of its frames:
the system hands it out page by page, zeroed. So the memory of a batch goes back to its pool when the last tensor that
looks at it is gone, and only then; a batch that is kept is never overwritten.
"""

import math
import weakref
from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidprep.load.types import as_frames, frames_in_memory

__all__ = ["BatchMemory"]


class BatchMemory:
    """A pool of memory for the frames of batches.

    Args:
        pin: page-locked memory, for asynchronous copies to a GPU. PyTorch's own pool serves it: it also waits for
            copies that are still under way.
        num_kept: batches whose memory is kept for the next ones.
    """

    def __init__(self, *, pin: bool, num_kept: int) -> None:
        self.is_pinned = pin
        # Its operations are atomic: memory comes back from whichever thread drops the last tensor.
        self._free: deque[NDArray[np.uint8]] = deque(maxlen=num_kept)

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Memory for frames (..., c, h, w), in the layout of `new_frames`; what is in it is of no importance."""
        in_memory = frames_in_memory(shape, dtype)
        if self.is_pinned:
            return as_frames(torch.empty(in_memory, dtype=dtype, pin_memory=True))
        memory = self._memory(math.prod(shape) * dtype.itemsize)
        # The tensor keeps `lent` alive as long as any view of it lives. NumPy's views keep their base, not each other:
        # `memory` itself stays ours.
        lent = memory[:]
        weakref.finalize(lent, self._free.append, memory).atexit = False
        return as_frames(torch.from_numpy(lent).view(dtype).view(in_memory))

    def _memory(self, num_bytes: int) -> NDArray[np.uint8]:
        while self._free:
            try:
                memory = self._free.pop()
            except IndexError:  # another thread took the last one
                break
            if len(memory) == num_bytes:
                return memory
        return np.empty(num_bytes, dtype=np.uint8)
