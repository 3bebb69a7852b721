"""How fast is what a method leaves out? Its dynamic form against its dense forms, beside what their MACs promise.

For each recipe and number of clips: count the multiply-accumulates that run, look at the memory of one call, then let
all forms take turns in one process. A form's speed-up is that of CPU time on a CPU, all threads, and of wall clock
behind a synchronised queue on a GPU.
"""

import gc
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from vidmodels.cost import Timing, counting_macs, time_in_turns
from vidmodels.data import known_classes
from vidmodels.evaluate import choose_device
from vidmodels.forms import BENCH_RECIPES, Amounts, Form, make_forms
from vidmodels.measuring import Ratio, compare, machine_facts
from vidmodels.memory import PeakMemory, keep_freed_memory, measure_peak_memory
from vidmodels.methods import METHODS
from vidmodels.recipes import load_recipe
from vidmodels.runs import find_run, load_model
from vidmodels.types import Recipe
from vidprep.errors import UsageError

__all__ = ["PACKAGES", "Measured", "MeasuredForm", "Precision", "SpeedUp", "bench_recipe", "bench_recipes", "facts"]

PACKAGES = ("torch", "torchvision", "numpy")
Precision = Literal["float32", "bf16", "fp16"]
FLOAT32_ONLY = ("rgtp_vitdet",)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class MeasuredForm:
    """One form; times are of one unit (clip or frame), in milliseconds."""

    name: str
    what: str
    gmacs: float
    """Counted from what ran, of one unit."""
    median_ms: float
    min_ms: float
    max_ms: float
    """Wall clock."""
    cpu_median_ms: float
    cpu_min_ms: float
    cpu_max_ms: float
    """CPU time of the whole process, all threads."""
    memory: PeakMemory | None
    """Of one call with all clips; None where it cannot be measured."""


@dataclass(frozen=True, kw_only=True)
class SpeedUp:
    """One form against another."""

    form: str
    against: str
    by_macs: float
    """The other's MACs over its own: what is promised."""
    by_time: Ratio
    """Measured, round by round."""

    @property
    def time_over_macs(self) -> Ratio:
        """Measured over promised; 1: the time follows the MACs."""
        return self.by_time.over(self.by_macs)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """All forms of a recipe with so many clips a call."""

    recipe: str
    unit: Literal["clip", "frame"]
    amount: str
    """What is dropped, in words."""
    num_clips: int
    device: str
    precision: Precision
    rounds: int
    forms: tuple[MeasuredForm, ...]
    speed_ups: tuple[SpeedUp, ...]
    """The method's own comparison comes first."""

    @property
    def heading(self) -> str:
        """What was measured, in a line."""
        calls = f"{self.num_clips} {'stream' if self.unit == 'frame' else 'clip'}{'s' if self.num_clips > 1 else ''}"
        return (
            f"{self.recipe}, {calls} a call, {self.device}, {self.precision}, "
            f"{self.rounds} round{'s' if self.rounds > 1 else ''}; "
            f"dropped: {self.amount}"
        )

    @property
    def table(self) -> list[list[str]]:
        """A row a form, the header first."""
        rows = [["form", f"GMACs/{self.unit}", f"ms/{self.unit} (min-max)", f"CPU ms/{self.unit} (min-max)"]]
        rows[0] += ["peak MiB", "of it the call's"]
        for form in self.forms:
            memory = form.memory
            rows.append(
                [
                    form.name,
                    f"{form.gmacs:.4f}",
                    f"{form.median_ms:.1f} ({form.min_ms:.1f}-{form.max_ms:.1f})",
                    f"{form.cpu_median_ms:.1f} ({form.cpu_min_ms:.1f}-{form.cpu_max_ms:.1f})",
                    "-" if memory is None else f"{memory.peak_mib:.0f}",
                    "-" if memory is None else f"{memory.rise_mib:.0f}",
                ]
            )
        return rows

    @property
    def comparisons(self) -> list[list[str]]:
        """A row a comparison, the header first."""
        rows = [["form", "against", "by MACs", "by time (min-max)", "time over MACs"]]
        for one in self.speed_ups:
            ratio = one.by_time
            rows.append(
                [
                    one.form,
                    one.against,
                    f"{one.by_macs:.2f}",
                    f"{ratio.median:.2f} ({ratio.min:.2f}-{ratio.max:.2f})",
                    f"{one.time_over_macs.median:.2f}",
                ]
            )
        return rows

    def to_json(self) -> dict[str, Any]:
        """All figures, for a file."""
        content = asdict(self)
        for one, entry in zip(self.speed_ups, content["speed_ups"], strict=True):
            entry["time_over_macs"] = asdict(one.time_over_macs)
        return content


def bench_recipes(
    names: Sequence[str] = (),
    *,
    checkpoint: Path | None = None,
    overrides: Sequence[str] = (),
    clips: Sequence[int] = (4,),
    device: str | None = None,
    threads: int | None = None,
    precision: Precision = "float32",
    rounds: int = 5,
    amounts: Amounts | None = None,
    num_classes: int | None = None,
) -> Iterator[Measured]:
    """Measure recipes one after another, so that one model is in memory at a time.

    Args:
        names: of recipes; none takes a published setting of every method.
        checkpoint: weights, or the folder of a run, for a single recipe; None: random ones.
        overrides: changes to each recipe, as for `load_recipe`.
        clips: numbers of clips (of detectors: streams) of a call, each measured.
        device: None takes a GPU where there is one.
        threads: of a CPU; None leaves PyTorch's choice.
        precision: "bf16" and "fp16" run under autocast.
        rounds: timed calls of each form.
        amounts: how much is dropped where random clips cannot decide it.
        num_classes: where a recipe does not say.

    Raises:
        UsageError: no such recipe, one that drops nothing, or a number that makes no sense.
        CheckpointError: weights that do not fit.
    """
    if not clips or min(clips) < 1:
        raise UsageError(f"--clips are numbers of at least 1, got {', '.join(map(str, clips)) or 'none'}.")
    if rounds < 1 or (threads is not None and threads < 1):
        raise UsageError(f"--rounds and --threads must be at least 1, got {rounds} and {threads}.")
    chosen = choose_device(device)
    if precision == "fp16" and chosen.type == "cpu":
        raise UsageError("--precision fp16 is for GPUs; a CPU takes float32 or bf16.")
    if checkpoint is not None and len(names) > 1:
        raise UsageError(f"--checkpoint holds the weights of one recipe, got {len(names)} recipes.")
    if checkpoint is not None:
        run = find_run(checkpoint, recipe=names[0] if names else None, overrides=overrides)
        recipes = [run.recipe]
    else:
        run = None
        recipes = [load_recipe(name, overrides) for name in names or BENCH_RECIPES.values()]
    keep_freed_memory()
    with _threads(threads):
        for recipe in recipes:
            k = num_classes or known_classes(recipe.data)
            if k is None:
                raise UsageError(
                    f"recipe {recipe.name} does not say how many classes {recipe.data.dataset} has; add --classes."
                )
            for num_clips in clips:
                model = (
                    _random_model(recipe, k, chosen) if run is None else load_model(run, num_classes=k, device=chosen)
                )
                yield bench_recipe(
                    recipe,
                    model,
                    num_clips=num_clips,
                    device=chosen,
                    precision=precision,
                    rounds=rounds,
                    amounts=amounts,
                    is_trained=run is not None,
                )
                del model
                gc.collect()


def bench_recipe(
    recipe: Recipe,
    model: nn.Module,
    *,
    num_clips: int,
    device: torch.device,
    precision: Precision = "float32",
    rounds: int = 5,
    amounts: Amounts | None = None,
    is_trained: bool = False,
) -> Measured:
    """Measure the forms of one model; see `bench_recipes` and `forms.make_forms`."""
    if precision != "float32" and recipe.method in FLOAT32_ONLY:
        raise UsageError(
            f"{recipe.method} keeps what it computed of earlier frames in float32; leave --precision {precision} out."
        )
    made = make_forms(recipe, model, num_clips=num_clips, device=device, amounts=amounts, is_trained=is_trained)
    macs = {form.name: _macs(form) for form in made.forms}
    calls = {form.name: _prepared(form.run, device, precision) for form in made.forms}
    memory = {name: measure_peak_memory(call, device) for name, call in calls.items()}
    timings = time_in_turns(calls, warmup=0, runs=rounds)  # looking at their memory has warmed them up
    forms = tuple(_measured(form, macs[form.name], timings[form.name], memory[form.name]) for form in made.forms)
    units = {form.name: form.num_units for form in made.forms}

    def rates(name: str) -> list[float]:
        timing = timings[name]
        return [units[name] / ms for ms in (timing.cpu_ms if device.type == "cpu" else timing.wall_ms)]

    return Measured(
        recipe=f"{recipe.method}/{recipe.name}",
        unit=made.unit,
        amount=made.amount,
        num_clips=num_clips,
        device=_say(device),
        precision=precision,
        rounds=rounds,
        forms=forms,
        speed_ups=tuple(
            SpeedUp(
                form=fast,
                against=dense,
                by_macs=macs[dense] / macs[fast],
                by_time=compare(rates(fast), rates(dense)),
            )
            for fast, dense in made.pairs
        ),
    )


def facts() -> dict[str, object]:
    """The machine, for a file."""
    about = machine_facts(PACKAGES)
    if torch.cuda.is_available():
        about["gpu"] = torch.cuda.get_device_name()
        about["cuda"] = torch.version.cuda
        about["float32_matmul_precision"] = torch.get_float32_matmul_precision()
    return about


def _random_model(recipe: Recipe, num_classes: int, device: torch.device) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = METHODS[recipe.method].build(recipe.model, num_classes).eval()
        for module in model.modules():
            if isinstance(module, nn.Linear) and module.out_features == num_classes:
                nn.init.normal_(module.weight)  # or all answers of a new network are alike
    return model.to(device)


def _macs(form: Form) -> float:
    """Of one unit."""
    run, units = (form.run_one, 1) if form.run_one is not None else (form.run, form.num_units)
    with torch.no_grad(), counting_macs() as counter:
        run()
    return counter.macs / units


def _prepared(run: Callable[[], object], device: torch.device, precision: Precision) -> Callable[[], object]:
    return partial(_run, run, device, precision)


def _run(run: Callable[[], object], device: torch.device, precision: Precision) -> None:
    dtype = DTYPES.get(precision)
    with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        run()


def _measured(form: Form, macs: float, timing: Timing, memory: PeakMemory | None) -> MeasuredForm:
    wall, cpu = ([ms / form.num_units for ms in values] for values in (timing.wall_ms, timing.cpu_ms))
    return MeasuredForm(
        name=form.name,
        what=form.what,
        gmacs=macs / 1e9,
        median_ms=statistics.median(wall),
        min_ms=min(wall),
        max_ms=max(wall),
        cpu_median_ms=statistics.median(cpu),
        cpu_min_ms=min(cpu),
        cpu_max_ms=max(cpu),
        memory=memory,
    )


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _say(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type} with {threads} thread{'s' if threads > 1 else ''}"
