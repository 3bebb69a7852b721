"""Sides are measured alternately in one process after a warm-up, so that both see the same machine."""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vidmodels.measuring import Ratio, compare, machine_facts

__all__ = ["Ratio", "Side", "compare", "machine_facts", "measure", "print_rates", "print_ratios", "write_json"]


@dataclass(frozen=True, kw_only=True)
class Side:
    """One way of doing the work."""

    name: str
    run: Callable[[], int]
    """Does the work once; returns how many units (frames, clips, samples) it did."""


def measure(
    sides: Sequence[Side], *, rounds: int, warmups: int = 1, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """Units per second of each side in each round.

    The clock is CPU time of the whole process, all threads, so that other work on the machine does not count.
    """
    rates: dict[str, list[float]] = {side.name: [] for side in sides}
    for number in range(-warmups, rounds):
        # The order rotates: no side always follows the same one.
        shift = number % len(sides)
        for side in [*sides[shift:], *sides[:shift]]:
            start = clock()
            units = side.run()
            seconds = clock() - start
            if number >= 0:
                rates[side.name].append(units / seconds)
    return rates


def print_rates(title: str, rates: Mapping[str, Sequence[float]], *, unit: str) -> None:
    """A table of the rates of each side."""
    table = Table(title=title, title_justify="left")
    table.add_column("side")
    for heading in (f"median {unit}", "min", "max"):
        table.add_column(heading, justify="right")
    for name, values in rates.items():
        table.add_row(name, *(f"{value:.1f}" for value in (statistics.median(values), min(values), max(values))))
    Console().print(table)


def print_ratios(title: str, ratios: Mapping[str, Ratio]) -> None:
    """A table of ratios."""
    table = Table(title=title, title_justify="left")
    table.add_column("ratio")
    for heading in ("median", "min", "max"):
        table.add_column(heading, justify="right")
    for name, ratio in ratios.items():
        table.add_row(name, *(f"{value:.2f}" for value in (ratio.median, ratio.min, ratio.max)))
    Console().print(table)


def write_json(
    path: Path,
    *,
    ratios: Mapping[str, Ratio],
    machine: Mapping[str, object],
    measured: Mapping[str, object] | None = None,
) -> None:
    """Write the results for a machine to read; `measured`: further figures, where there are such."""
    content = {"ratios": {name: asdict(ratio) for name, ratio in ratios.items()}, "machine": machine}
    if measured is not None:
        content["measured"] = measured
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
