"""One run in several processes, as torchrun starts them: who this is, and what all of them agree on.

    torchrun --nproc-per-node 4 --module vidmodels.cli train taps --recipe ... --data ... --out ...

Without torchrun there is one process, and every function here is the identity.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from vidprep.errors import UsageError

__all__ = ["ALONE", "World", "are_several", "joined_world", "mean_over_ranks", "sum_over_ranks"]

T = TypeVar("T")

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
"""What torchrun sets for each process."""


@dataclass(frozen=True, kw_only=True)
class World:
    """The processes of a run, and which of them this one is."""

    rank: int = 0
    local_rank: int = 0
    """Among those on this machine; also the number of its GPU."""
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and prints."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.size > 1:
            dist.barrier()

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in the order of their ranks; anything that pickles."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def gather_in_turn(self, values: Sequence[T]) -> list[T]:
        """The values of all processes, where value k of process r is the one at k * n + r of what they share."""
        parts = self.gather(list(values))
        longest = max(len(part) for part in parts)
        return [part[place] for place in range(longest) for part in parts if place < len(part)]

    def of_first(self, make: Callable[[], T]) -> T:
        """What the first process makes, while the others wait for it."""
        return self.gather(make() if self.is_main else None)[0]  # type: ignore[return-value]  # the first one's

    def device(self, chosen: torch.device) -> torch.device:
        """Of several processes each one's own GPU, where a GPU is chosen."""
        return torch.device("cuda", self.local_rank) if self.size > 1 and chosen.type == "cuda" else chosen

    def mean(self, values: Mapping[str, float], device: torch.device) -> dict[str, float]:
        """Mean of each named value over the processes, the same in all of them; names must be the same."""
        if self.size == 1:
            return dict(values)
        total = torch.tensor([values[name] for name in sorted(values)], dtype=torch.float64, device=device)
        dist.all_reduce(total)
        means = (total / self.size).tolist()
        return dict(zip(sorted(values), means, strict=True))


ALONE = World()


def are_several() -> bool:
    """Whether torchrun started this process as one of several."""
    return "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


@contextlib.contextmanager
def joined_world(*, on_gpu: bool) -> Iterator[World]:
    """The processes that torchrun started, joined while the block runs; alone without torchrun.

    Args:
        on_gpu: they exchange tensors of their GPUs (NCCL) rather than of the CPU (gloo).

    Raises:
        UsageError: a part of torchrun's variables is missing or no number, or there are fewer GPUs than processes.
    """
    given = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    if not given:
        yield ALONE
        return
    if len(given) < len(VARIABLES) or not all(value.isdigit() for value in given.values()):
        raise UsageError(
            f"a process of several needs {', '.join(VARIABLES)} as numbers, found {given}; start it with torchrun."
        )
    rank, local_rank, size = (int(given[name]) for name in VARIABLES)
    if on_gpu:
        if local_rank >= torch.cuda.device_count():
            raise UsageError(
                f"process {local_rank} of this machine has no GPU of its own, there are {torch.cuda.device_count()}; "
                "start fewer with --nproc-per-node, or choose --device cpu."
            )
        torch.cuda.set_device(local_rank)
    if size == 1:
        yield World(rank=rank, local_rank=local_rank, size=size)
        return
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield World(rank=rank, local_rank=local_rank, size=size)
    finally:
        dist.destroy_process_group()


class _SumOverRanks(torch.autograd.Function):
    """Sum of all processes' tensors; the gradient of each is the sum of all processes' gradients."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        total = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def sum_over_ranks(x: Tensor) -> Tensor:
    """Sum of a tensor of one shape over all processes, with its gradient; any shape, `x` itself in a single process."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return x
    total: Tensor = _SumOverRanks.apply(x)
    return total


def mean_over_ranks(x: Tensor) -> Tensor:
    """Mean over all processes, with its gradient: for losses that are no mean over clips, such as a squared mean.

    DistributedDataParallel averages the gradients of the processes, so that a loss of this mean has the gradient that
    the whole batch would have in one process.
    """
    total = sum_over_ranks(x)
    return total if total is x else total / dist.get_world_size()
