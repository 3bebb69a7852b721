"""`torch.compile`: whether it works here, and how to do without it for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from vidprep.errors import UsageError

__all__ = ["check_compiler", "uncompiled"]


def check_compiler(device: torch.device) -> None:
    """Compile and run a sum.

    Raises:
        UsageError: there is no compiler for the device, or it does not work.
    """

    def one_more(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    try:
        torch.compile(one_more)(torch.zeros(8, device=device))
    except Exception as error:  # PyTorch's compilers raise errors of many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        what = "a C++ compiler (g++, or what CXX names)" if device.type == "cpu" else "Triton"
        raise UsageError(
            f"train.compile needs {what}, and it does not work here ({reason}); "
            "install it, or train without: --set train.compile=false."
        ) from error


@contextmanager
def uncompiled() -> Iterator[None]:
    """Inside, compiled modules run as they are written."""
    with torch.compiler.set_stance("force_eager"):
        yield
