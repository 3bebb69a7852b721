"""Choosing tokens and gathering them."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.amp import is_autocast_available

__all__ = ["at_least_float32", "full_precision", "gather_rows"]


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """x[i, index[i, j]] for (n, s, ...) and (n, k): whole rows are copied, several times faster than a gather."""
    offsets = torch.arange(x.shape[0], device=index.device)[:, None] * x.shape[1]
    return x.flatten(0, 1).index_select(0, (index + offsets).flatten()).view(*index.shape, *x.shape[2:])


def full_precision(device_type: str) -> AbstractContextManager[Any]:
    """Without autocast, where there is one (the meta device has none): for decisions about tokens."""
    if torch.compiler.is_exporting():
        return nullcontext()  # nothing is under autocast there, and a file cannot hold the switch
    return torch.autocast(device_type, enabled=False) if is_autocast_available(device_type) else nullcontext()


def at_least_float32(x: Tensor) -> torch.dtype:
    """The type to decide in: float32, of float64 values float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
