"""What a model costs: multiply-accumulates counted from the operators that ran, and time measured apart from it."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vidmodels.types import Cost

__all__ = ["LatencyStats", "MacCounter", "compare_latency", "count_cost", "counting_macs", "measure_latency"]
__all__ += ["Timing", "time_in_turns"]


@dataclass(frozen=True, kw_only=True)
class LatencyStats:
    """Time of one call, over some runs, in milliseconds."""

    median_ms: float
    min_ms: float
    max_ms: float
    cpu_median_ms: float
    """CPU time of the whole process, all threads; steadier than wall clock on a busy machine."""
    runs: int


def count_cost(model: nn.Module, *inputs: Any) -> Cost:
    """Multiply-accumulates of one call in evaluation mode, and the number of parameters.

    Counted are convolutions and matrix products that really ran (FlopCounterMode, which counts 2 per MAC, halved):
    skipped work is not seen, and elementwise operations, norms, pooling and gathers count 0. Fused attention is taken
    apart while counting, since its fast paths on the CPU have no rule.

    Args:
        model: returned in the mode (training or evaluation) it came in.
        inputs: arguments of `forward`; the cost is that of the whole batch.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), counting_macs() as counter:
            model(*inputs)
    finally:
        model.train(was_training)
    return Cost(
        macs=counter.macs,
        num_params=sum(parameter.numel() for parameter in model.parameters()),
        by_operator=counter.by_operator,
    )


class MacCounter:
    """Multiply-accumulates of all that has run inside a `counting_macs` block."""

    def __init__(self, flops: FlopCounterMode) -> None:
        self._flops = flops

    @property
    def macs(self) -> int:
        """All operators together."""
        return self._flops.get_total_flops() // 2

    @property
    def by_operator(self) -> dict[str, int]:
        """Operator's name ("convolution", "addmm") -> MACs."""
        counts: Mapping[Any, int] = self._flops.get_flop_counts().get("Global", {})
        return {str(operator).removeprefix("aten."): int(count) // 2 for operator, count in counts.items()}


@contextmanager
def counting_macs() -> Iterator[MacCounter]:
    """Count what runs inside the block; attention takes its plain path there."""
    had_fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as flops:
            yield MacCounter(flops)
    finally:
        torch.backends.mha.set_fastpath_enabled(had_fastpath)


def measure_latency(model: nn.Module, *inputs: Any, warmup: int = 2, runs: int = 10) -> LatencyStats:
    """Time of `model(*inputs)` without gradients, in the mode the model is in."""
    return compare_latency({"model": lambda: model(*inputs)}, warmup=warmup, runs=runs)["model"]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Every measured run of one call, in milliseconds."""

    wall_ms: tuple[float, ...]
    cpu_ms: tuple[float, ...]
    """CPU time of the whole process, all threads."""

    def summary(self) -> LatencyStats:
        """Medians and spread."""
        return LatencyStats(
            median_ms=statistics.median(self.wall_ms),
            min_ms=min(self.wall_ms),
            max_ms=max(self.wall_ms),
            cpu_median_ms=statistics.median(self.cpu_ms),
            runs=len(self.wall_ms),
        )


def compare_latency(
    calls: Mapping[str, Callable[[], object]], *, warmup: int = 2, runs: int = 10
) -> dict[str, LatencyStats]:
    """Time several calls against each other: see `time_in_turns`."""
    return {name: timing.summary() for name, timing in time_in_turns(calls, warmup=warmup, runs=runs).items()}


def time_in_turns(calls: Mapping[str, Callable[[], object]], *, warmup: int = 2, runs: int = 10) -> dict[str, Timing]:
    """Time several calls in one process, taking turns, so that other load hits all of them alike.

    Args:
        calls: name -> what is timed; run without gradients. The order rotates: none always follows the same one.
        warmup: rounds before the measured ones.
        runs: measured rounds, at least 1.
    """
    if runs < 1 or warmup < 0:
        raise ValueError(f"expected runs >= 1 and warmup >= 0, got {runs} and {warmup}")
    wall_ms: dict[str, list[float]] = {name: [] for name in calls}
    cpu_ms: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    with torch.no_grad():
        for turn in range(warmup + runs):
            first = turn % len(names)
            for name in [*names[first:], *names[:first]]:
                _finish_queue()
                wall, cpu = time.perf_counter(), time.process_time()
                calls[name]()
                _finish_queue()
                if turn >= warmup:
                    wall_ms[name].append(1e3 * (time.perf_counter() - wall))
                    cpu_ms[name].append(1e3 * (time.process_time() - cpu))
    return {name: Timing(wall_ms=tuple(wall_ms[name]), cpu_ms=tuple(cpu_ms[name])) for name in calls}


def _finish_queue() -> None:
    """A GPU works behind the program's back; wait for it before looking at the clock."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
