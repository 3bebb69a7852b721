"""Measurements of sides that take turns: rates over rates round by round, and what machine they were made on."""

import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from os import cpu_count
from pathlib import Path

__all__ = ["Ratio", "compare", "machine_facts"]


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How many times the rate of another side ours is."""

    median: float
    min: float
    max: float
    runs: tuple[float, ...]

    def over(self, divisor: float) -> "Ratio":
        """Every run divided by a number, such as what was promised."""
        return _summarised([run / divisor for run in self.runs])


def compare(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Our rates over theirs, round by round."""
    return _summarised([mine / other for mine, other in zip(ours, theirs, strict=True)])


def machine_facts(packages: Sequence[str]) -> dict[str, object]:
    """What the numbers were measured on."""
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "cpu": _cpu_model(),
        "num_cores": cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": versions,
    }


def _summarised(runs: Sequence[float]) -> Ratio:
    return Ratio(median=statistics.median(runs), min=min(runs), max=max(runs), runs=tuple(runs))


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
