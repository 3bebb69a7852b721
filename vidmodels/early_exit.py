"""Early exit, really run: thresholds solved on one split, applied to another; accuracy against cost and against time.

logits of all exits, one split -- thresholds of a budget -- the form that stops, other split -- a row of the table
"""

import csv
import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vidmodels.breakdown import Coverage, coverage_of
from vidmodels.checkpoints import write_atomically
from vidmodels.cost import counting_macs
from vidmodels.data import open_test_split
from vidmodels.evaluate import choose_device
from vidmodels.methods import METHODS
from vidmodels.methods.uni_adafocus.exits import (
    Criterion,
    exit_counts,
    exit_shares,
    exit_values,
    expected_macs,
    q_of_budget,
    solve_thresholds,
)
from vidmodels.metrics import mean_average_precision, topk_accuracy
from vidmodels.recipes import dump_recipe, read_recipe
from vidmodels.runs import Run, load_model
from vidmodels.types import EarlyExit, Recipe
from vidprep.console import track
from vidprep.errors import MissingPackage, UsageError
from vidprep.index import Fault
from vidprep.load.loader import make_loader, worker_threads
from vidprep.load.on_demand import ClipsOnDemand
from vidprep.load.shards import ShardDataset

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "Curve",
    "MeasuredPoint",
    "Setting",
    "check_plots",
    "draw_curve",
    "evaluate_thresholds",
    "is_curve_of",
    "measure_curve",
    "read_curve",
    "read_thresholds",
    "run_settings",
    "write_curve",
]

Criteria = Literal["confidence", "entropy", "both"]
CURVE_FORMAT = "vidmodels-curve 1"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where videos leave."""

    name: str
    """"full", or the criterion and the share of the full cost that the thresholds were solved for."""
    criterion: Criterion = "confidence"
    thresholds: tuple[float, ...] | None = None
    """(e,); None: nobody leaves early."""
    q: float | None = None
    """The budget; see `exits.exit_shares`."""
    solved_share: float = 1.0
    """Mean cost over the full one's, on the split that the thresholds were solved on."""


@dataclass(frozen=True, kw_only=True)
class MeasuredPoint:
    """A setting, run on a split."""

    setting: Setting
    top1: float
    """Per cent."""
    map: float
    """Per cent."""
    gmacs: float
    """Counted from what ran, mean of a video."""
    gmacs_published: float
    """The same by the method's published convention."""
    frames: float
    """Frames of a video that were decoded, mean."""
    ms: float
    """Wall clock of a video, decoding included, mean."""
    cpu_ms: float
    """The same as CPU time of all threads: steadier on a busy machine."""
    network_ms: float
    """Wall clock of a video without decoding, mean."""
    network_cpu_ms: float
    """The same as CPU time."""
    exit_shares: tuple[float, ...]
    """(e,) of the videos that leave at each exit."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """All settings on one split; the first one is the full run."""

    name: str
    """Of the model."""
    weights_sha256: str
    """Of the model's file: whose curve this is."""
    recipe: Recipe
    split: str
    solve_split: str
    """"" where thresholds were given."""
    num_videos: int
    coverage: Coverage
    """Which videos of the split the figures are of."""
    whole_frames: float
    """Frames of a video that a loader of whole clips decodes, mean."""
    device: str
    points: tuple[MeasuredPoint, ...]

    @property
    def metric(self) -> Literal["top1", "map", "map50"]:
        """What the recipe goes by."""
        return self.recipe.eval.metric

    @property
    def clock(self) -> Literal["CPU ms", "ms"]:
        """What the network's time is measured in: on a CPU its threads' time, which other programs disturb less."""
        return "CPU ms" if self.device.startswith("cpu") else "ms"

    def time_of(self, point: MeasuredPoint) -> float:
        """The network's time for a video, by that clock."""
        return point.network_cpu_ms if self.clock == "CPU ms" else point.network_ms

    @property
    def heading(self) -> str:
        """What was measured, in a line or two."""
        solved = f", thresholds solved on {self.solve_split}" if self.solve_split else ""
        return (
            f"{self.recipe.data.dataset} {self.split}: {self.num_videos} videos{solved}; {self.device}, batches of "
            f"{self.recipe.eval.batch_size}, settings take turns batch by batch"
        )

    @property
    def table(self) -> list[list[str]]:
        """Rows of text, the header first. Shares are of the full run."""
        full = self.points[0]
        rows = [
            [
                "exits",
                "top-1",
                "mAP",
                "GMACs",
                "of full",
                "frames",
                "of full",
                *_two(f"network {self.clock}"),
                *_two("ms"),
            ]
        ]
        for point in self.points:
            rows.append(
                [
                    point.setting.name,
                    f"{point.top1:.2f}",
                    f"{point.map:.2f}",
                    f"{point.gmacs:.4f}",
                    f"{100 * point.gmacs / full.gmacs:.1f} %",
                    f"{point.frames:.2f}",
                    f"{100 * point.frames / full.frames:.1f} %",
                    f"{self.time_of(point):.2f}",
                    f"{100 * self.time_of(point) / self.time_of(full):.1f} %",
                    f"{point.ms:.2f}",
                    f"{100 * point.ms / full.ms:.1f} %",
                ]
            )
        return rows

    @property
    def remarks(self) -> list[str]:
        """What the table does not say."""
        missing = [self.coverage.sentence] if self.coverage.sentence else []
        return [
            *missing,
            f"All figures are means of a video. network {self.clock}: without decoding; ms: with it, wall clock. "
            f"frames: decoded, each once; a loader of whole clips decodes {self.whole_frames:.2f}.",
        ]

    def rows(self) -> list[dict[str, Any]]:
        """All figures, a row a point."""
        return [
            {
                "exits": point.setting.name,
                "criterion": point.setting.criterion if point.setting.thresholds else "",
                "q": "" if point.setting.q is None else point.setting.q,
                "solved_share": point.setting.solved_share,
                "top1": point.top1,
                "map": point.map,
                "gmacs": point.gmacs,
                "gmacs_published": point.gmacs_published,
                "network_ms": point.network_ms,
                "network_cpu_ms": point.network_cpu_ms,
                "ms": point.ms,
                "cpu_ms": point.cpu_ms,
                "frames_decoded": point.frames,
                "frames_of_clip": self.whole_frames,
                "exit_shares": " ".join(f"{share:.4f}" for share in point.exit_shares),
            }
            for point in self.points
        ]


def measure_curve(
    run: Run,
    *,
    data: Path | None = None,
    solve_split: str | None = None,
    split: str | None = None,
    criteria: Criteria = "both",
    num_points: int = 7,
    budgets: Sequence[float] = (0.5,),
    rounds: int = 1,
    device: str | None = None,
    workers: int | None = None,
) -> Curve:
    """Solve thresholds for published budgets and named ones on one split, and run them all on another.

    Args:
        run: of a method with exits.
        data: shards; None takes those of the run.
        solve_split: None takes the recipe's training split; its videos are seen as in evaluation.
        split: None takes the recipe's validation split.
        criteria: which ways to tell how sure an exit is.
        num_points: published budgets of each criterion, evenly chosen by cost.
        budgets: further ones, as shares of the full cost in (0, 1); those below the first exit's cost are refused.
        rounds: timed passes over each batch.
        device: None takes a GPU where there is one.
        workers: threads that decode; None: one a CPU.

    Raises:
        UsageError: a method without exits, several views, or no such split or budget.
    """
    exits, recipe = _exits_of(run), run.recipe
    chosen = choose_device(device)
    folder = _folder(run, data)
    solve_split, split = solve_split or recipe.data.train_split, split or recipe.data.val_split
    dataset, solve_on = open_test_split(recipe, folder, split), open_test_split(recipe, folder, solve_split)
    num_classes = len(dataset.manifest.classes)
    macs = exits.macs(recipe.model, num_classes)
    for budget in budgets:
        if not macs[0] / macs[-1] < budget < 1:
            raise UsageError(
                f"a budget is a share of the full cost above that of the first exit ({macs[0] / macs[-1]:.3f}) and "
                f"below 1, got {budget:g}."
            )
    model = load_model(run, num_classes=num_classes, device=chosen)
    logits = _collect(model, exits, solve_on, batch_size=recipe.eval.batch_size, device=chosen, workers=workers)
    names: list[Criterion] = ["confidence", "entropy"] if criteria == "both" else [criteria]
    settings = [Setting(name="full")]
    for criterion in names:
        values = exit_values(logits, criterion)
        qs = {q_of_budget(budget * macs[-1], macs, len(values)) for budget in budgets}
        qs.update(_spread(exits.budgets(recipe.model), macs, len(values), num_points))
        for q in sorted(qs):
            share = expected_macs(q, macs, len(values)) / macs[-1]
            thresholds = solve_thresholds(values, exit_counts(exit_shares(q, len(macs)), len(values)))
            settings.append(
                Setting(
                    name=f"{criterion} {share:.2f}",
                    criterion=criterion,
                    thresholds=tuple(thresholds.tolist()),
                    q=q,
                    solved_share=share,
                )
            )
    return run_settings(
        run, model, dataset, settings, solve_split=solve_split, rounds=rounds, device=chosen, workers=workers
    )


def run_settings(
    run: Run,
    model: nn.Module,
    dataset: ShardDataset,
    settings: Sequence[Setting],
    *,
    solve_split: str = "",
    rounds: int = 1,
    device: torch.device | str = "cpu",
    workers: int | None = None,
) -> Curve:
    """Run settings on a split, taking turns batch by batch: first counting, then timed.

    Args:
        run: whose recipe says how large batches are.
        model: the trainable form.
        dataset: as `open_test_split` gives it.
        settings: the first one is the full run that shares are of.
        solve_split: where thresholds come from, for the heading.
        rounds: timed passes over each batch.
        device: where the model is.
        workers: threads that decode; None: one a CPU.

    Raises:
        UsageError: the recipe evaluates several views of a video.
    """
    exits, recipe = _exits_of(run), run.recipe
    forms = [exits.make(model, thresholds=setting.thresholds, criterion=setting.criterion) for setting in settings]
    tallies = [_Tally() for _ in settings]
    first = torch.as_tensor(forms[0].first_frames).tolist()
    num_workers = len(os.sched_getaffinity(0)) if workers is None else workers
    size = recipe.eval.batch_size
    batches = [range(start, min(start + size, len(dataset))) for start in range(0, len(dataset), size)]
    labels, num_distinct, turn = [], 0, 0
    with worker_threads(num_workers) if num_workers else nullcontext() as pool:
        for indices in track(batches, description="early exit"):
            open_batch = partial(ClipsOnDemand, dataset, indices, first=first, pool=pool)
            for form, tally in zip(forms, tallies, strict=True):
                with open_batch() as clips:
                    with counting_macs() as counter:
                        output = form(clips)
                    tally.logits.append(output.logits.float().cpu())
                    tally.steps.append(output.aux["exit_steps"].cpu())
                    tally.macs += counter.macs
                    tally.num_frames += clips.num_decoded
                    if tally is tallies[0]:
                        labels.append(clips.labels)
                        num_distinct += clips.num_distinct
            for _ in range(rounds):
                # The order rotates: no setting always follows the same one.
                order = [(turn + place) % len(forms) for place in range(len(forms))]
                turn += 1
                for at in order:
                    tallies[at].times.append(_time(forms[at], open_batch))
    all_labels = torch.cat(labels)
    macs = torch.tensor(exits.macs(recipe.model, len(dataset.manifest.classes)), dtype=torch.float64) / 1e9
    points = [
        _point(setting, tally, all_labels, macs, rounds, renumber=recipe.eval.renumber_present_classes)
        for setting, tally in zip(settings, tallies, strict=True)
    ]
    kind = torch.device(device).type
    where = torch.cuda.get_device_name(device) if kind == "cuda" else f"{kind} with {torch.get_num_threads()} threads"
    return Curve(
        name=run.title,
        weights_sha256=_digest(run.weights),
        recipe=recipe,
        split=dataset.manifest.split,
        solve_split=solve_split,
        num_videos=len(dataset),
        coverage=coverage_of(dataset),
        whole_frames=num_distinct / len(dataset),
        device=where,
        points=tuple(points),
    )


class _Tally:
    """What a setting did so far."""

    def __init__(self) -> None:
        self.logits: list[Tensor] = []
        self.steps: list[Tensor] = []
        self.macs = 0
        self.num_frames = 0
        self.times: list[_Seconds] = []
        """Of every batch, all rounds of it one after another."""


class _Seconds(NamedTuple):
    """What a batch took."""

    wall: float
    cpu: float
    network_wall: float
    network_cpu: float


def _time(form: nn.Module, open_batch: Callable[[], ClipsOnDemand]) -> _Seconds:
    """Run a batch; frames are decoded while nothing else runs, so that the network's time is its own."""
    started = time.perf_counter(), time.process_time()
    with open_batch() as clips:
        clips.num_decoded  # noqa: B018 - waits for the first frames
        decoded = time.perf_counter(), time.process_time()
        form(clips).logits.cpu()
        done = time.perf_counter(), time.process_time()
        return _Seconds(
            wall=done[0] - started[0],
            cpu=done[1] - started[1],
            network_wall=done[0] - decoded[0] - clips.seconds_waited,
            network_cpu=done[1] - decoded[1] - clips.cpu_seconds_waited,
        )


def _point(
    setting: Setting, tally: _Tally, labels: Tensor, macs: Tensor, rounds: int, *, renumber: bool
) -> MeasuredPoint:
    logits, steps = torch.cat(tally.logits).double(), torch.cat(tally.steps)
    num_videos, num_classes = logits.shape
    is_multi_label = labels.ndim == 2
    targets = labels if is_multi_label else torch.nn.functional.one_hot(labels, num_classes)
    shares = torch.bincount(steps, minlength=len(macs)).double() / num_videos
    # Of the rounds over a batch the median counts: what other programs do meanwhile shows in some of them.
    times = np.median(np.array(tally.times).reshape(-1, rounds, len(_Seconds._fields)), axis=1).sum(0)
    ms = dict(zip(_Seconds._fields, (1e3 / num_videos * times).tolist(), strict=True))
    return MeasuredPoint(
        setting=setting,
        top1=topk_accuracy(logits, labels.argmax(1) if is_multi_label else labels, 1),
        map=mean_average_precision(logits.softmax(1), targets, renumber_present_classes=renumber)[0],
        gmacs=tally.macs / 1e9 / num_videos,
        gmacs_published=float(macs[steps].mean()),
        frames=tally.num_frames / num_videos,
        ms=ms["wall"],
        cpu_ms=ms["cpu"],
        network_ms=ms["network_wall"],
        network_cpu_ms=ms["network_cpu"],
        exit_shares=tuple(shares.tolist()),
    )


@torch.no_grad()
def _collect(
    model: nn.Module,
    exits: EarlyExit,
    dataset: ShardDataset,
    *,
    batch_size: int,
    device: torch.device,
    workers: int | None,
) -> Tensor:
    """Logits of all exits (n, e, k) over a split."""
    if dataset.make.settings.num_clips * dataset.make.settings.num_crops > 1:
        raise UsageError("early exit takes one view of a video; add --set eval.num_clips=1 --set eval.num_crops=1.")
    loader = make_loader(dataset, batch_size=batch_size, workers=workers)
    parts = [
        exits.logits(model, model(batch.frames[:, 0].to(device, non_blocking=True))).float().cpu()
        for batch in track(loader, description=f"all exits, {dataset.manifest.split}")
    ]
    return torch.cat(parts)


def _spread(budgets: Sequence[float], macs: Sequence[int], num_videos: int, num_points: int) -> list[float]:
    """So many of the budgets, evenly spaced in cost from the cheapest to the dearest."""
    costs = torch.tensor([expected_macs(q, macs, num_videos) for q in budgets], dtype=torch.float64)
    wanted = torch.linspace(float(costs.min()), float(costs.max()), num_points, dtype=torch.float64)
    return sorted({budgets[int((costs - cost).abs().argmin())] for cost in wanted})


def _exits_of(run: Run) -> EarlyExit:
    exits = METHODS[run.recipe.method].early_exit
    if exits is None:
        having = ", ".join(name for name, method in METHODS.items() if method.early_exit is not None)
        raise UsageError(f"{run.recipe.method} has no exits; early exit is for {having}.")
    return exits


def _folder(run: Run, data: Path | None) -> Path:
    folder = data or run.data
    if folder is None:
        raise UsageError(f"{run.weights}: say with --data which shards to evaluate on.")
    return folder


def evaluate_thresholds(
    run: Run,
    thresholds: Path,
    *,
    data: Path | None = None,
    split: str | None = None,
    rounds: int = 1,
    device: str | None = None,
    workers: int | None = None,
) -> Curve:
    """The full run and the one with the thresholds of a file, side by side.

    Raises:
        UsageError: as `measure_curve`, or thresholds of another network.
    """
    _exits_of(run)
    chosen = choose_device(device)
    dataset = open_test_split(run.recipe, _folder(run, data), split or run.recipe.data.val_split)
    setting = read_thresholds(thresholds, run, num_classes=len(dataset.manifest.classes))
    model = load_model(run, num_classes=len(dataset.manifest.classes), device=chosen)
    return run_settings(
        run, model, dataset, [Setting(name="full"), setting], rounds=rounds, device=chosen, workers=workers
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_curve_of(curve: Curve, run: Run) -> bool:
    """Whether the curve was measured with these weights, by a recipe that sees the same."""
    same = (curve.recipe.method, curve.recipe.model) == (run.recipe.method, run.recipe.model)
    return same and curve.weights_sha256 == _digest(run.weights)


def write_curve(curve: Curve, out: Path) -> list[Path]:
    """Write `curve.csv`, `curve.png`, `thresholds/NAME.json` of each point, and `curve.json`; what was written.

    Raises:
        MissingPackage: there is no matplotlib.
    """
    (out / "thresholds").mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    rows = curve.rows()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files = {out / "curve.csv": text.getvalue().encode(), out / "curve.png": draw_curve(curve)}
    for point in curve.points:
        setting = point.setting
        if setting.thresholds is None:
            continue
        content = {
            "method": curve.recipe.method,
            "recipe": curve.recipe.name,
            "criterion": setting.criterion,
            "thresholds": setting.thresholds,
            "q": setting.q,
            "solved_on": f"{curve.recipe.data.dataset} {curve.solve_split}",
            "solved_share": setting.solved_share,
        }
        path = out / "thresholds" / f"{setting.name.replace(' ', '-')}.json"
        files[path] = (json.dumps(content, indent=1) + "\n").encode()
    everything = {"format": CURVE_FORMAT, **asdict(curve), "recipe": dump_recipe(curve.recipe)}
    files[out / "curve.json"] = (json.dumps(everything, indent=1) + "\n").encode()
    for path, content_bytes in files.items():
        _write(path, content_bytes)
    return list(files)


def read_curve(folder: Path) -> Curve:
    """The curve that `write_curve` wrote.

    Raises:
        UsageError: no such folder, or no `curve.json` of this version in it.
    """
    path = folder / "curve.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if (found := content.pop("format")) != CURVE_FORMAT:
            raise UsageError(f"{path}: expected {CURVE_FORMAT!r}, got {found!r}; measure the curve again.")
        coverage = content.pop("coverage")
        coverage["missing"] = tuple(Fault(**fault) for fault in coverage["missing"])
        points = []
        for point in content.pop("points"):
            setting = point.pop("setting")
            if setting["thresholds"] is not None:
                setting["thresholds"] = tuple(setting["thresholds"])
            point["exit_shares"] = tuple(point["exit_shares"])
            points.append(MeasuredPoint(setting=Setting(**setting), **point))
        recipe = read_recipe(content.pop("recipe"), source_file=str(path), name=content["name"])
        return Curve(recipe=recipe, coverage=Coverage(**coverage), points=tuple(points), **content)
    except FileNotFoundError as error:
        raise UsageError(f"{folder}: no curve.json here; give what `vidmodels curve --out` wrote.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: not a curve as `vidmodels curve` writes it ({error}); measure it again.") from error


def _write(path: Path, content: bytes) -> None:
    write_atomically(path, lambda file: file.write(content))


def read_thresholds(path: Path, run: Run, *, num_classes: int) -> Setting:
    """The setting that `write_curve` wrote.

    Raises:
        UsageError: no such file, no thresholds, or those of another method or number of exits.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        setting = Setting(
            name=path.stem.replace("-", " "),
            criterion=content["criterion"],
            thresholds=tuple(float(value) for value in content["thresholds"]),
            q=content["q"],
            solved_share=float(content["solved_share"]),
        )
        method = content["method"]
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file; `vidmodels curve` writes thresholds.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: not thresholds as `vidmodels curve` writes them ({error!r}).") from error
    num_exits = len(_exits_of(run).macs(run.recipe.model, num_classes))
    given = len(setting.thresholds or ())
    if method != run.recipe.method or given != num_exits or setting.criterion not in ("confidence", "entropy"):
        raise UsageError(
            f"{path}: thresholds of {method} with {given} exits and the criterion {setting.criterion!r}, but "
            f"{run.name} is {run.recipe.method} with {num_exits}; solve them with `vidmodels curve`."
        )
    return setting


def check_plots() -> None:
    """Raises MissingPackage where there is no matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingPackage("Drawing curves needs the `plots` extra: pip install 'vidprep[plots]'.") from error


def draw_curve(curve: Curve) -> bytes:
    """Two panels, as PNG: accuracy against multiply-adds, and against measured time.

    Raises:
        MissingPackage: there is no matplotlib.
    """
    check_plots()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), dpi=120, layout="constrained")
    by_cost, by_time = figure.subplots(1, 2, sharey=True)
    _panel(by_cost, curve, lambda point: point.gmacs, "GMACs of a video, counted from what ran")
    _panel(by_time, curve, curve.time_of, f"{curve.clock} of a video, network only ({curve.device})")
    name = {"top1": "top-1, %", "map": "mAP, %"}[curve.metric]
    by_cost.set_ylabel(f"{name} on {curve.recipe.data.dataset} {curve.split}")
    by_cost.legend(loc="lower right", title="at a point: % of the full cost, solved for", title_fontsize=8, fontsize=9)
    scores = [getattr(point, curve.metric) for point in curve.points]
    margin = max(1.0, 0.1 * (max(scores) - min(scores)))
    by_cost.set_ylim(min(scores) - 3 * margin, max(scores) + margin)  # room for the legend below
    figure.suptitle(
        f"{curve.recipe.method}/{curve.recipe.name}: early exit, thresholds solved on {curve.solve_split or 'a file'}; "
        f"{curve.num_videos} videos",
        fontsize=11,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _two(name: str) -> tuple[str, str]:
    return name, "of full"


def _panel(axes: "Axes", curve: Curve, x: Callable[[MeasuredPoint], float], label: str) -> None:
    full = curve.points[0]
    for criterion, marker, label_height in (("confidence", "o", 6), ("entropy", "s", -13)):
        points = [p for p in curve.points if p.setting.thresholds and p.setting.criterion == criterion]
        points.sort(key=lambda point: point.gmacs)
        if not points:
            continue
        places = [x(point) for point in points]
        heights = [getattr(point, curve.metric) for point in points]
        axes.plot(places, heights, marker=marker, markersize=5, label=f"leaves by {criterion}")
        for point, place, height in zip(points, places, heights, strict=True):
            share = f"{100 * point.setting.solved_share:.0f}"
            axes.annotate(
                share, (place, height), (0, label_height), textcoords="offset points", ha="center", fontsize=7
            )
    axes.plot([x(full)], [getattr(full, curve.metric)], "k*", markersize=13, label="nobody leaves early", zorder=3)
    unit = x(full) / 100
    top = axes.secondary_xaxis("top", functions=(partial(np.multiply, 1 / unit), partial(np.multiply, unit)))
    top.set_xlabel("% of the full run")
    axes.set_xlabel(label)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
