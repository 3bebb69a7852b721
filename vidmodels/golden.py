"""Golden cases: the methods' published numbers without their weights, run through our code and compared.

A case is `NAME.json` with `NAME.npz` beside it (the format: tests/golden/README.md). It lists a published checkpoint's
keys and shapes; every value is filled from its key's name, converted by the method's own converter, loaded strictly,
run and compared. Which function runs is decided by the case's method and component, never by its name.
"""

import json
import logging
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidmodels.cases import Array, Component
from vidmodels.methods.rgtp import golden as rgtp_golden
from vidmodels.methods.rgtp import vitdet_golden, vitdet_metrics_golden
from vidmodels.methods.sta import golden as sta_golden
from vidmodels.methods.tam import golden as tam_golden
from vidmodels.methods.taps import golden as taps_golden
from vidmodels.methods.uni_adafocus import golden as uni_adafocus_golden
from vidprep.errors import UsageError, VidprepError, suggest

__all__ = ["Case", "CaseResult", "GoldenError", "compare", "fill_input", "fill_smooth", "fill_tensor", "verify"]
__all__ += ["verify_command"]

COMPONENTS: Mapping[str, Mapping[str, Component]] = {
    "taps": taps_golden.COMPONENTS,
    "sta": sta_golden.COMPONENTS,
    "rgtp_vivit": rgtp_golden.COMPONENTS,
    "tam": tam_golden.COMPONENTS,
    "uni_adafocus": uni_adafocus_golden.COMPONENTS,
    "rgtp_vitdet": {**vitdet_golden.COMPONENTS, **vitdet_metrics_golden.COMPONENTS},
}
"""Method -> component -> the function that runs it."""

logger = logging.getLogger(__name__)


class GoldenError(VidprepError):
    """A case that cannot be read or run."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One golden case as its file states it."""

    name: str
    method: str
    component: str
    config: Mapping[str, Any]
    inputs: Mapping[str, Mapping[str, Any]]
    scales: Mapping[str, float]
    shapes: Mapping[str, Sequence[int]]
    """Published key -> shape."""
    int64: frozenset[str]
    rules: Mapping[str, Mapping[str, Any]]
    """Output -> how it must agree."""
    arrays: Mapping[str, Array]
    """What the npz holds: expected outputs, and inputs that are given as arrays."""


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """How a case ended."""

    name: str
    faults: tuple[str, ...]
    """What failed, a sentence each; () = passed."""
    worst: float = 0.0
    """Largest error over its tolerance; at most 1 in a case that passed."""
    worst_output: str = ""
    error: float = 0.0
    tolerance: float = 0.0
    """Of the worst output, absolute."""
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether every output agreed."""
        return not self.faults

    def line(self) -> str:
        """The case in one line, whatever its name and its faults hold."""
        head = f"{'ok' if self.passed else 'FAIL':<4}  {_flat(self.name)}"
        measured = ""
        if self.worst_output:
            measured = (
                f"  largest error {self.error:.2g}, tolerance {self.tolerance:.2g} ({self.worst_output}: "
                f"{self.worst:.2g} of it)"
            )
        faults = "" if self.passed else "  " + _flat("; ".join(self.faults[:3]))
        more = f"; and {len(self.faults) - 3} more" if len(self.faults) > 3 else ""
        return f"{head}{measured}{faults}{more}  [{self.seconds:.1f} s]"


def verify_command(paths: Sequence[Path]) -> int:
    """Verify cases and print one line each, and `N passed, M failed`; the exit status is 1 if any failed.

    Raises:
        UsageError: see `verify`.
    """

    def show(result: CaseResult) -> None:
        sys.stdout.write(result.line() + "\n")
        sys.stdout.flush()

    results = verify(paths, report=show)
    num_passed = sum(result.passed for result in results)
    sys.stdout.write(f"{num_passed} passed, {len(results) - num_passed} failed\n")
    return 0 if num_passed == len(results) else 1


def verify(paths: Sequence[Path], *, report: Callable[[CaseResult], None] | None = None) -> list[CaseResult]:
    """Run cases one after another, on the CPU.

    Args:
        paths: case files (either of the two), or folders that are searched for them with their sub-folders.
        report: called with each result as it comes.

    Raises:
        UsageError: a path does not exist, or there is no case.
    """
    results = []
    for path in dict.fromkeys(_case_files(paths)):
        result = run_case(path)
        if report is not None:
            report(result)
        results.append(result)
    return results


def run_case(path: Path) -> CaseResult:
    """Read, run and compare one case; whatever goes wrong on the way is its fault, and said in its result."""
    start = time.perf_counter()
    name = path.stem
    try:
        case = read_case(path)
        name = f"{case.method}/{case.component} {case.name}"
        outputs = _produce(case)
        result = _compare_all(case, outputs)
    except VidprepError as error:
        result = CaseResult(name=name, faults=(str(error),))
    except Exception as error:  # the code under test may fail in any way; the other cases still want to run
        logger.debug("case %s failed", name, exc_info=True)
        result = CaseResult(name=name, faults=(f"{type(error).__name__}: {error}",))
    return CaseResult(
        name=name,
        faults=result.faults,
        worst=result.worst,
        worst_output=result.worst_output,
        error=result.error,
        tolerance=result.tolerance,
        seconds=time.perf_counter() - start,
    )


def read_case(path: Path) -> Case:
    """A case from its two files.

    Raises:
        GoldenError: not a case, or its npz is missing or broken.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GoldenError(f"{path}: not a readable JSON file ({error}).") from error
    needed = ("case", "method", "component", "config", "inputs", "outputs")
    absent = needed if not isinstance(content, dict) else [key for key in needed if key not in content]
    if absent:
        raise GoldenError(f"{path}: not a golden case: it has no {', '.join(absent)}.")
    npz = path.with_suffix(".npz")
    try:
        with npz.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise GoldenError(f"{npz}: no readable arrays beside {path.name} ({error}).") from error
    return Case(
        name=content["case"],
        method=content["method"],
        component=content["component"],
        config=content["config"],
        inputs=content["inputs"],
        scales=content.get("scales") or {},
        shapes=content.get("state_dict") or {},
        int64=frozenset(content.get("int64") or ()),
        rules=content["outputs"],
        arrays=arrays,
    )


def _flat(text: str) -> str:
    return " ".join(text.split())


def _case_files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            found = sorted(path.rglob("*.json"))
            if not found:
                raise UsageError(f"{path}: no golden cases (*.json with *.npz) in this folder.")
            yield from found
        elif path.is_file():
            yield path.with_suffix(".json") if path.suffix == ".npz" else path
        else:
            raise UsageError(f"{path}: no such golden case or folder.")


def _produce(case: Case) -> Mapping[str, Array]:
    if case.method not in COMPONENTS:
        raise GoldenError(f"no method {case.method!r} to run the case with; {suggest(case.method, COMPONENTS)}")
    components = COMPONENTS[case.method]
    if case.component not in components:
        raise GoldenError(
            f"{case.method} has no golden component {case.component!r}; {suggest(case.component, components)}"
        )
    inputs = {name: make_input(spec, case.arrays) for name, spec in case.inputs.items()}
    wanted = [name for name, rule in case.rules.items() if "info" not in rule]
    return components[case.component](case.config, inputs, make_state(case), wanted)


# ---- what a case is filled with ----


def fill_tensor(key: str, shape: Sequence[int]) -> Array:
    """The value of a checkpoint entry, from its name and shape alone: the same bits everywhere.

    By the last part of the key, and the number of dimensions:

        num_batches_tracked   zeros (int64)
        running_mean          N(0, 1) / 10
        running_var           uniform in [0.5, 1.5)
        two or more dims      N(0, 1) * sqrt(2 / fan_in), fan_in = all but the first
        weight, one dim       1 + N(0, 1) / 10
        other                 N(0, 1) / 50
    """
    last = key.rpartition(".")[2]
    shape = tuple(shape)
    if last == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    draws = _draws(key)
    if last == "running_var":
        return draws.uniform(0.5, 1.5, shape).astype(np.float32)
    normal = draws.standard_normal(shape)
    if last == "running_mean":
        normal *= 0.1
    elif len(shape) >= 2:
        normal *= np.sqrt(2.0 / np.prod(shape[1:]))
    elif last == "weight" and len(shape) == 1:
        normal = 1.0 + 0.1 * normal
    else:
        normal = 0.02 * normal
    return np.asarray(normal, dtype=np.float32)


def fill_input(name: str, shape: Sequence[int]) -> Array:
    """N(0, 1) float32, seeded by the name."""
    return np.asarray(_draws("input:" + name).standard_normal(tuple(shape)), dtype=np.float32)


def fill_smooth(name: str, shape: Sequence[int]) -> Array:
    """(..., t, c, h, w): frame 0 is N(0, 1), each later one adds 0.15 N(0, 1) to the frame before it."""
    *lead, num_frames, channels, height, width = shape
    draws = _draws("smooth:" + name)
    frame = draws.standard_normal((*lead, channels, height, width))
    frames = [frame]
    for _ in range(num_frames - 1):
        frame = frame + 0.15 * draws.standard_normal(frame.shape)
        frames.append(frame)
    return np.stack(frames, axis=-4).astype(np.float32)


def _draws(name: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))


def make_state(case: Case) -> dict[str, Tensor]:
    """The case's published state dict, filled and scaled."""
    state = {}
    for key, shape in case.shapes.items():
        value = fill_tensor(key, shape)
        if key in case.int64:
            value = value.astype(np.int64)
        for pattern, factor in case.scales.items():
            if fnmatchcase(key, pattern):
                value *= value.dtype.type(factor)
        state[key] = torch.from_numpy(value)
    return state


def make_input(spec: Mapping[str, Any], arrays: Mapping[str, Array]) -> Any:
    """One input of a case: an array, or None where the case gives none.

    Raises:
        GoldenError: no such array, filling or transform.
    """
    if "array" in spec:
        if spec["array"] not in arrays:
            raise GoldenError(f"an input wants the array {spec['array']!r}, which the npz does not hold.")
        value = arrays[spec["array"]]
    elif "value" in spec:
        if spec["value"] is None:
            return None
        value = np.asarray(spec["value"])
    else:
        fills = {"fill_input": fill_input, "fill_smooth": fill_smooth}
        fill = fills.get(spec.get("fn", ""))
        if fill is None:
            raise GoldenError(f"no filling {spec.get('fn')!r} for an input; known: {', '.join(fills)}.")
        value = fill(spec["name"], spec["shape"])
    steps = spec.get("then") or []
    for step in [steps] if isinstance(steps, str) else steps:
        value = transform(value, step)
    return value


def transform(v: Array, step: str) -> Array:
    """Apply one named transform, e.g. `mul:0.5`; what each does is in the table of tests/golden/README.md.

    Raises:
        GoldenError: no such transform.
    """
    name, _, argument = step.partition(":")
    if name not in TRANSFORMS:
        raise GoldenError(f"no transform {name!r} for an input; {suggest(name, TRANSFORMS)}")
    return TRANSFORMS[name](v, argument)


def _softmax(v: Array, _: str) -> Array:
    powers = np.exp(v - v.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def _ties_2x2_row1(v: Array, _: str) -> Array:
    tied, side = v.copy(), round(v.shape[1] ** 0.5)
    corners = v[1].reshape(side, side)[::2, ::2]
    tied[1] = corners.repeat(2, axis=0).repeat(2, axis=1)[:side, :side].reshape(-1)
    return tied


def _roll_odd_frames(v: Array, _: str) -> Array:
    rolled = v.copy()
    rolled[1::2] = np.roll(v[1::2], (1, -1), axis=(-2, -1))
    return rolled


def _drift_right_16(v: Array, _: str) -> Array:
    return np.stack([np.roll(frame, 16 * (t // 2), axis=-1) for t, frame in enumerate(v)])


def _repeat_cells(v: Array, argument: str) -> Array:
    times, height, width = (int(part) for part in argument.split(":"))
    return v.repeat(times, axis=0).repeat(times, axis=1)[:height, :width]


def _add_input(v: Array, argument: str) -> Array:
    factor, _, name = argument.partition(":")
    return np.asarray(v + np.float32(factor) * fill_input(name, v.shape))


TRANSFORMS: Mapping[str, Callable[[Array, str], Array]] = {
    "permute_tc": lambda v, _: np.ascontiguousarray(v.swapaxes(1, 2)),
    "abs": lambda v, _: np.abs(v),
    "mul": lambda v, a: np.float32(a) * v,
    "add": lambda v, a: v + np.float32(a),
    "greater": lambda v, a: (v > np.float32(a)).astype(np.float32),
    "softmax": _softmax,
    "sum_to_one": lambda v, _: v / v.sum(axis=-1, keepdims=True),
    "drop_last_axis": lambda v, _: v[..., 0],
    "uint8_128_48": lambda v, _: np.clip(np.rint(128 + 48 * v), 0, 255).astype(np.uint8),
    "ties_2x2_row1": _ties_2x2_row1,
    "roll_odd_frames": _roll_odd_frames,
    "grid_to_tokens": lambda v, _: np.ascontiguousarray(v.reshape(*v.shape[:2], -1).swapaxes(1, 2)),
    "clip_0_1": lambda v, _: np.clip(v, 0, 1),
    "drift_right_16": _drift_right_16,
    "uint8_trunc_127_40": lambda v, _: np.clip(127.5 + 40 * v, 0, 255).astype(np.float32).astype(np.uint8),
    "relu": lambda v, _: np.maximum(v, 0),
    "uint8": lambda v, _: np.clip(np.rint(v), 0, 255).astype(np.uint8),
    "repeat_cells": _repeat_cells,
    "add_input": _add_input,
}


# ---- how it is compared ----


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How far an output is from the stored one."""

    ratio: float
    """Error over tolerance: at most 1 agrees; infinite where there is no measure of how far."""
    error: float = 0.0
    tolerance: float = 0.0
    fault: str = field(default="")


def _compare_all(case: Case, outputs: Mapping[str, Array]) -> CaseResult:
    faults, worst, worst_output = [], Comparison(ratio=0.0), ""
    if all("info" in rule for rule in case.rules.values()):
        faults.append("outputs: none of them is to be compared, so the case proves nothing")
    for name, rule in case.rules.items():
        if "info" in rule:
            continue
        if name not in case.arrays:
            faults.append(f"{name}: the npz holds no such array")
            continue
        if name not in outputs:
            faults.append(f"{name}: not produced")
            continue
        comparison = compare(outputs[name], case.arrays[name], rule)
        if comparison.fault:
            faults.append(f"{name}: {comparison.fault}")
        if comparison.ratio > worst.ratio or not worst_output:
            worst, worst_output = comparison, name
    return CaseResult(
        name=case.name,
        faults=tuple(faults),
        worst=worst.ratio,
        worst_output=worst_output,
        error=worst.error,
        tolerance=worst.tolerance,
    )


def compare(ours: Array, stored: Array, rule: Mapping[str, Any]) -> Comparison:
    """Compare an output by its rule: `exact`, `abs` and/or `rel` (either is enough), `sets`, `boxes`.

    Raises:
        GoldenError: a rule of another kind.
    """
    ours, stored = np.asarray(ours), np.asarray(stored)
    if "boxes" in rule:
        return _compare_boxes(ours, stored, **rule["boxes"])
    if ours.shape != stored.shape:
        return Comparison(ratio=float("inf"), fault=f"shape {ours.shape}, expected {stored.shape}")
    if rule.get("exact"):
        # Counts are integers here and float32 there: brought to the stored type before the comparison.
        same = ours.astype(stored.dtype) == stored if np.issubdtype(stored.dtype, np.floating) else ours == stored
        num_different = int(same.size - np.count_nonzero(same))
        if not num_different:
            return Comparison(ratio=0.0)
        error = float(np.abs(ours.astype(np.float64) - stored.astype(np.float64)).max())
        fault = f"{num_different} of {same.size} values differ, by up to {error:.3g}; expected equal ones"
        return Comparison(ratio=float("inf"), error=error, fault=fault)
    if rule.get("sets"):
        rows = zip(ours.reshape(-1, ours.shape[-1]), stored.reshape(-1, stored.shape[-1]), strict=True)
        num_different = sum(set(mine.tolist()) != set(theirs.tolist()) for mine, theirs in rows)
        fault = f"{num_different} sets differ" if num_different else ""
        return Comparison(ratio=float("inf") if fault else 0.0, fault=fault)
    if "abs" not in rule and "rel" not in rule:
        raise GoldenError(f"no way to compare by the rule {dict(rule)!r}; known: exact, abs, rel, sets, boxes, info.")
    difference = np.abs(ours.astype(np.float64) - stored.astype(np.float64))
    error = float(difference.max(initial=0.0))
    magnitude = float(np.abs(stored.astype(np.float64)).max(initial=0.0))
    tolerance = max(float(rule.get("abs", 0.0)), float(rule.get("rel", 0.0)) * magnitude)
    if error <= tolerance:
        return Comparison(ratio=error / tolerance if tolerance else 0.0, error=error, tolerance=tolerance)
    # Not a number compares false with everything, and so ends here as well.
    ratio = error / tolerance if tolerance and np.isfinite(error) else float("inf")
    fault = f"off by {error:.3g}, tolerance {tolerance:.3g}"
    return Comparison(ratio=ratio, error=error, tolerance=tolerance, fault=fault)


def _compare_boxes(ours: Array, stored: Array, *, box: float, score: float, share: float) -> Comparison:
    """Match rows (x1, y1, x2, y2, score[, label]) for each leading index; enough of them must find a partner."""
    if ours.shape[:-2] != stored.shape[:-2] or ours.shape[-1] != stored.shape[-1]:
        fault = f"shape {ours.shape}, expected {stored.shape} with any number of rows"
        return Comparison(ratio=float("inf"), fault=fault)
    pairs = zip(
        ours.reshape(-1, *ours.shape[-2:]).astype(np.float64),
        stored.reshape(-1, *stored.shape[-2:]).astype(np.float64),
        strict=True,
    )
    num_matched, num_needed, fault = 0, 0, ""
    for index, (mine, theirs) in enumerate(pairs):
        matched, total = _match_boxes(mine, theirs, box=box, score=score)
        num_matched, num_needed = num_matched + matched, num_needed + total
        if matched < share * total and not fault:
            fault = f"{matched} of {total} boxes match at index {index}, {share:g} of them must"
    error = 1.0 - num_matched / num_needed if num_needed else 0.0
    ratio = float("inf") if fault else (error / (1.0 - share) if share < 1.0 else 0.0)
    return Comparison(ratio=ratio, error=error, tolerance=1.0 - share, fault=fault)


def _match_boxes(mine: Array, theirs: Array, *, box: float, score: float) -> tuple[int, int]:
    has_label = mine.shape[-1] == 6
    if has_label:
        mine, theirs = mine[mine[:, 5] >= 0], theirs[theirs[:, 5] >= 0]
    free = np.ones(len(mine), dtype=bool)
    num_matched = 0
    for row in theirs:
        distance = np.abs(mine[:, :4] - row[:4]).max(axis=1, initial=0.0)
        fits = free & (distance <= box) & (np.abs(mine[:, 4] - row[4]) <= score)
        if has_label:
            fits &= mine[:, 5] == row[5]
        if fits.any():
            free[np.where(fits, distance, np.inf).argmin()] = False
            num_matched += 1
    return num_matched, max(len(mine), len(theirs))
