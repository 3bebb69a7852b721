"""Every method at its published size: its dynamic form against its dense form, by time and by MACs.

    METHOD_time_over_macs    speed-up over the dense form optimised the same way, measured over what MACs promise
    taps_vs_plain, taps_vs_optimised, tam_vs_plain    measured speed-ups

One model is in memory at a time. CPU time of all threads, float32, 2 threads, random weights and clips; what decides
how much is dropped is set (`vidmodels/forms.py`) and printed. docs/speed.md says how to read it.
"""

import gc
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from scripts.benchmarks.runner import Ratio, print_ratios
from vidmodels.bench import Measured, bench_recipes, facts
from vidmodels.forms import Amounts

__all__ = ["CASES", "ROUNDS", "Case", "measure_cases", "ratios_of", "run", "to_json"]

ROUNDS = 2
"""Enough for CPU time, which other programs hardly disturb."""
NUM_THREADS = 2


@dataclass(frozen=True, kw_only=True)
class Case:
    """One setting."""

    name: str
    """What its ratios are called after."""
    recipe: str
    num_clips: int
    """Of detectors: streams."""
    amounts: Amounts = field(default_factory=Amounts)


CASES = (
    Case(name="uni_adafocus", recipe="uni_adafocus/activitynet_p128", num_clips=8),
    Case(name="taps", recipe="taps/mini_kinetics_online", num_clips=4),
    Case(name="tam", recipe="tam/something_v1_r50_8f", num_clips=4),
    Case(name="rgtp_vitdet", recipe="rgtp_vitdet/imagenet_vid_672_keep196", num_clips=1),
    Case(name="sta", recipe="sta/something_v2_vit_base_r64", num_clips=4),
    Case(name="rgtp_vivit", recipe="rgtp_vivit/kinetics400_keep_0215", num_clips=4),
    Case(name="rgtp_vivit_keep_0066", recipe="rgtp_vivit/kinetics400_keep_0066", num_clips=4),
    Case(name="rgtp_vitdet_keep512", recipe="rgtp_vitdet/imagenet_vid_672_keep512", num_clips=1),
    Case(name="taps_masks_by_clip", recipe="taps/mini_kinetics_online", num_clips=4, amounts=Amounts(masks="clip")),
    Case(name="taps_masks_by_frame", recipe="taps/mini_kinetics_online", num_clips=4, amounts=Amounts(masks="frame")),
)
"""A detector takes frame after frame: its batch is a stream of 8, and more streams would be more of the same."""


def run(*, rounds: int) -> tuple[dict[str, Ratio], dict[str, object], dict[str, Any]]:
    """Measure and print; the ratios, the machine, and all figures."""
    ratios: dict[str, Ratio] = {}
    measured: dict[str, Measured] = {}
    for case, one in measure_cases(rounds):
        measured[case.name] = one
        ratios |= ratios_of(case, one)
    print_ratios("time over MACs, and speed-ups", ratios)
    return ratios, facts(), to_json(measured)


def measure_cases(rounds: int) -> Iterator[tuple[Case, Measured]]:
    """One case after another, each printed."""
    console = Console(soft_wrap=True)
    for case in CASES:
        for one in bench_recipes(
            [case.recipe],
            clips=[case.num_clips],
            device="cpu",
            threads=NUM_THREADS,
            rounds=rounds,
            amounts=case.amounts,
        ):
            console.print(one.heading)
            for speed_up in one.speed_ups:
                console.print(
                    f"  {speed_up.form} against {speed_up.against}: {speed_up.by_time.median:.2f} by time, "
                    f"{speed_up.by_macs:.2f} by MACs: {speed_up.time_over_macs.median:.2f}"
                )
            yield case, one
        gc.collect()


def ratios_of(case: Case, one: Measured) -> dict[str, Ratio]:
    """What the case is for, by name."""
    by_dense = {(speed_up.form, speed_up.against): speed_up for speed_up in one.speed_ups}
    if case.name.startswith(("taps", "tam")):
        return {f"{case.name}_vs_{dense}": speed_up.by_time for (_, dense), speed_up in by_dense.items()}
    ratios = {f"{case.name}_time_over_macs": one.speed_ups[0].time_over_macs}
    if ("full", "optimised") in by_dense:
        ratios[f"{case.name}_full_time_over_macs"] = by_dense["full", "optimised"].time_over_macs
    return ratios


def to_json(measured: dict[str, Measured]) -> dict[str, Any]:
    """All figures by the names of the cases."""
    return {name: one.to_json() for name, one in measured.items()}
