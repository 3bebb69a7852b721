"""The page on a comparison: accuracy against cost and against time, classes, confusions, sample clips, the settings.

Charts, tables and films are `vidprep.page`'s; here is what they show. Models on different data sets, or judged by
different metrics, get a part of the page each: their figures do not compare. Detectors are `stream_report`'s.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from vidmodels.breakdown import Coverage, confusion_pairs
from vidmodels.comparison import Comparison, Form, ScoredRun
from vidmodels.data import open_test_split
from vidmodels.early_exit import Curve, MeasuredPoint, is_curve_of
from vidmodels.metrics import mean_average_precision
from vidmodels.published import (
    MARKER_NAMES,
    MARKERS,
    METRICS,
    published_recipes,
    published_section,
    published_series,
)
from vidmodels.recipes import dump_recipe
from vidmodels.runs import Run
from vidmodels.stream_comparison import StreamComparison
from vidmodels.stream_report import stream_sections
from vidmodels.types import Recipe
from vidprep import page
from vidprep.errors import UsageError
from vidprep.load.shards import ShardDataset
from vidprep.page import Cell, Column, Point, Section, Series

__all__ = ["comparison_page", "published_recipes"]

PACKAGES = ("vidprep", "torch", "torchvision", "timm", "numpy", "av")
MAX_MATRIX_CLASSES = 40
"""Up to which confusions are drawn as a matrix."""
MAX_PAIRS = 20
"""Of a model, in the table of confusions."""
MAX_NAMES = 5
"""In the page's title."""


def comparison_page(
    comparison: Comparison | None,
    *,
    curves: Sequence[Curve] = (),
    streams: StreamComparison | None = None,
    data: Path | None = None,
    split: str | None = None,
    num_clips: int = 8,
    seed: int = 0,
) -> str:
    """The page as text.

    Args:
        comparison: what `compare_runs` found; None: there are detectors only.
        curves: what early exit does to some of these models.
        streams: what `compare_streams` found.
        data: as given to `compare_runs`: shards, or None for those that each model was trained on.
        split: as given to `compare_runs`.
        num_clips: sample clips of each data set, at most; half of them wrong where there are such. 0 shows none.
        seed: of their choice.

    Raises:
        UsageError: the shards are not those of the comparison.
        CorruptVideo: a sample clip does not decode.
    """
    sections: list[Section] = []
    entries: list[_Entry] = []
    runs: list[tuple[str, Run, list[tuple[str, str]]]] = []
    if comparison is not None:
        entries = _entries(comparison, data, split)
        sections += _classifier_sections(
            entries,
            curves,
            timed_clips=comparison.timed_clips,
            num_clips=num_clips,
            seed=seed,
            has_others=streams is not None,
        )
        sections.append(Section(title="Remarks", body=page.item_list(comparison.remarks)))
        runs += [
            (entry.name, entry.scored.run, [("shards", str(entry.dataset.folder)), ("split", entry.split)])
            for entry in entries
        ]
    elif curves:
        raise UsageError("curves of early exits are of classifiers, and there is none among the models.")
    if streams is not None:
        sections += stream_sections(
            streams, data=data, split=split, num_clips=num_clips, seed=seed, has_others=comparison is not None
        )
        runs += [(scored.run.title, scored.run, []) for scored in streams.runs]
    sections.append(Section(title="Settings and versions", body=_settings(runs)))
    names = list(dict.fromkeys(run.name if run.variant else name for name, run, _ in runs))
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return page.page(
        f"Accuracy against cost: {', '.join(names[:MAX_NAMES])}{more}",
        lead=" \u00b7 ".join(of.heading for of in (comparison, streams) if of is not None),
        sections=sections,
        footer=f"Written by `vidmodels report` on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.",
    )


def _classifier_sections(
    entries: "Sequence[_Entry]",
    curves: Sequence[Curve],
    *,
    timed_clips: int,
    num_clips: int,
    seed: int,
    has_others: bool,
) -> list[Section]:
    groups: dict[tuple[str, str, str], list[_Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.recipe.data.dataset, entry.split, entry.recipe.eval.metric), []).append(entry)
    sections = []
    left = list(curves)
    for (dataset, of_split, metric), group in groups.items():
        is_alone = len(groups) == 1 and not has_others
        suffix = "" if is_alone else f": {dataset}, {of_split}, by {METRICS[metric].removesuffix(' (%)')}"
        published = published_recipes(dataset)
        exits = [(curve, of) for curve in curves if (of := _find_entry(curve, group)) is not None]
        left = [curve for curve in left if all(curve is not found for found, _ in exits)]
        sections.append(
            Section(title=f"Accuracy and cost{suffix}", body=_charts(group, exits, published, metric, timed_clips))
        )
        sections += _missing_section(group, suffix)
        sections.append(Section(title=f"All figures{suffix}", body=_figures_table(group, timed_clips)))
        if exits:
            sections.append(Section(title=f"Early exit{suffix}", body=_exits_table([curve for curve, _ in exits])))
        sections += published_section(dataset, published)
        sections.append(Section(title=f"Classes{suffix}", body=_classes_table(group)))
        sections.append(Section(title=f"Confusions{suffix}", body=_confusions(group)))
        if num_clips:
            body = _sample_clips(group, num_clips, np.random.default_rng(seed))
            sections.append(Section(title=f"Sample clips{suffix}", body=body))
    if left:
        raise UsageError(
            f"the curve of {left[0].name} ({left[0].recipe.data.dataset} {left[0].split}) belongs to none of the "
            "models: it was measured with other weights or settings, or on another split; run `vidmodels curve` again."
        )
    return sections


def _find_entry(curve: Curve, group: "Sequence[_Entry]") -> "_Entry | None":
    for found in group:
        if (curve.recipe.data.dataset, curve.split) == (found.recipe.data.dataset, found.split) and is_curve_of(
            curve, found.scored.run
        ):
            return found
    return None


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """A model of the comparison, with what is needed to show it."""

    name: str
    """Different for each."""
    scored: ScoredRun
    dataset: ShardDataset
    split: str

    @property
    def recipe(self) -> Recipe:
        return self.scored.run.recipe

    @property
    def form(self) -> Form:
        """What people would run: the dynamic form where there is one."""
        return list(self.scored.forms.values())[-1]

    @cached_property
    def videos(self) -> dict[tuple[str, int], int]:
        """(video_id, which of its segments) -> place in the results."""
        seen: Counter[str] = Counter()
        places = {}
        for place, video_id in enumerate(self.form.result.video_id):
            places[video_id, seen[video_id]] = place
            seen[video_id] += 1
        return places

    @property
    def targets(self) -> Tensor:
        """(n, k) of zeros and ones."""
        labels = self.form.result.labels
        return labels if labels.ndim == 2 else torch.nn.functional.one_hot(labels, self.form.result.scores.shape[1])

    @cached_property
    def is_right(self) -> list[bool]:
        """Of each video: the predicted class is its label, or one of them."""
        predicted = self.form.result.predictions
        return (self.targets.gather(1, predicted[:, None])[:, 0] > 0).tolist()


def _entries(comparison: Comparison, data: Path | None, split: str | None) -> list[_Entry]:
    names = Counter(scored.run.title for scored in comparison.runs)
    seen: Counter[str] = Counter()
    entries = []
    for scored in comparison.runs:
        run = scored.run
        seen[run.title] += 1
        folder = data or run.data
        if folder is None:
            raise UsageError(f"{run.weights}: say with --data which shards it was evaluated on.")
        of_split = split or run.recipe.data.val_split
        dataset = open_test_split(run.recipe, folder, of_split)
        result = scored.forms["trainable"].result
        if [video.segment_id or video.video_id for video in dataset.videos] != list(result.video_id) and [
            video.video_id for video in dataset.videos
        ] != list(result.video_id):
            raise UsageError(f"{folder}: the split {of_split} does not hold the videos that {run.title} was scored on.")
        name = f"{run.title} ({seen[run.title]})" if names[run.title] > 1 else run.title
        entries.append(_Entry(name=name, scored=scored, dataset=dataset, split=of_split))
    return entries


# Accuracy against cost


def _charts(
    entries: Sequence[_Entry],
    exits: "Sequence[tuple[Curve, _Entry]]",
    published: Sequence[Recipe],
    metric: str,
    timed_clips: int,
) -> Markup:
    families: dict[Path, list[_Entry]] = {}
    for entry in entries:
        families.setdefault(entry.scored.run.weights, []).append(entry)
    colours = {entry.name: number for number, family in enumerate(families.values()) for entry in family}
    macs, times = (
        [
            _measured(family, metric, timed_clips, against_time=against_time, colour=number)
            for number, family in enumerate(families.values())
        ]
        for against_time in (False, True)
    )
    macs += [one for curve, entry in exits for one in _exit_series(curve, entry, metric, colour=colours[entry.name])]
    theirs = [
        replace(one, colour=len(families) + number) for number, one in enumerate(published_series(published, metric))
    ]
    charts = [
        page.scatter_chart(
            "Accuracy against multiply-accumulates",
            [*macs, *theirs],
            x_label="GMACs per clip",
            y_label=METRICS[metric],
            y_most=100.0,
            marker_names=MARKER_NAMES,
        ),
        page.scatter_chart(
            "Accuracy against measured time",
            times,
            x_label="ms per clip",
            y_label=METRICS[metric],
            y_most=100.0,
            marker_names=MARKER_NAMES,
        ),
    ]
    charts += [
        page.scatter_chart(
            f"Early exit of {entry.name}: accuracy against time",
            _exit_series(curve, entry, metric, colour=colours[entry.name], against_time=True),
            x_label=f"{curve.clock} per video, network only",
            y_label=METRICS[metric],
            y_most=100.0,
            marker_names=MARKER_NAMES,
        )
        for curve, entry in exits
    ]
    note = (
        "A line joins the forms of one model, or its settings. GMACs are counted from what ran, mean over all clips. "
        "Times are medians; bars reach from the shortest to the longest call "
        f"({timed_clips} clip{'s' if timed_clips > 1 else ''} each). "
        "Point at a mark, touch it, or reach it with the Tab key, for its numbers."
    )
    body = page.figures(charts) + page.paragraph(note, is_note=True)
    for curve, _ in exits:
        body += page.paragraph(
            f"Early exit of {curve.name}: {curve.heading}. Its times are means of a video in whole batches, not those "
            "of single calls, so they have a chart of their own.",
            is_note=True,
        )
    return body


def _measured(family: Sequence[_Entry], metric: str, timed_clips: int, *, against_time: bool, colour: int) -> Series:
    """The settings of one model's weights by what they cost; with them, what the trainable form of the first costs."""
    points = []
    for number, entry in enumerate(family):
        forms = list(entry.scored.forms.items())
        for name, form in forms if not number else forms[-1:]:
            accuracy, latency = form.result.metrics[metric], form.latency
            median, low, high = (value / timed_clips for value in (latency.median_ms, latency.min_ms, latency.max_ms))
            tip = (
                f"{entry.name}, {name if len(forms) > 1 else 'only'} form\n"
                f"{METRICS[metric].removesuffix(' (%)')} {accuracy:.2f} %\n"
                f"{form.gmacs_per_clip:.4g} GMACs per clip\n{median:.2f} ms per clip ({low:.2f} to {high:.2f})"
            )
            points.append(
                Point(
                    x=median if against_time else form.gmacs_per_clip,
                    y=accuracy,
                    tip=tip,
                    marker=MARKERS[name if len(forms) > 1 else "only"],
                    x_low=low if against_time else None,
                    x_high=high if against_time else None,
                )
            )
    if len(family) > 1:
        points.sort(key=lambda point: -point.x)
    name = family[0].name if len(family) == 1 else family[0].scored.run.name
    return Series(name=name, points=points, is_joined=True, colour=colour)


def _exit_series(curve: Curve, entry: _Entry, metric: str, *, colour: int, against_time: bool = False) -> list[Series]:
    """A line for each way to tell how sure an exit is, from the cheapest setting to the run that nobody leaves."""
    full = curve.points[0]
    criteria = list(dict.fromkeys(point.setting.criterion for point in curve.points[1:]))

    def mark(point: MeasuredPoint) -> Point:
        leaving = ", ".join(f"{100 * share:.0f} %" for share in point.exit_shares)
        time = curve.time_of(point)
        tip = (
            f"{entry.name}, early exit: {point.setting.name}\n"
            f"{METRICS[metric].removesuffix(' (%)')} {getattr(point, metric):.2f} %\n"
            f"{point.gmacs:.4g} GMACs per video\n"
            f"{time:.2f} {curve.clock} per video, network only\nleaving at each exit: {leaving}"
        )
        return Point(
            x=time if against_time else point.gmacs,
            y=getattr(point, metric),
            tip=tip,
            marker=MARKERS["exits" if point.setting.thresholds else "dynamic"],
        )

    return [
        Series(
            name=f"{entry.name}, leaving by {criterion}",
            points=[
                mark(point)
                for point in sorted(
                    (one for one in curve.points if one is full or one.setting.criterion == criterion),
                    key=lambda one: (one is full, curve.time_of(one) if against_time else one.gmacs),
                )
            ],
            is_joined=True,
            colour=colour + 4 * number,
        )
        for number, criterion in enumerate(criteria)
    ]


def _missing_section(entries: Sequence[_Entry], suffix: str) -> list[Section]:
    """Which videos of the split are not scored, and what that may do to the accuracies; none where all are."""
    coverages: dict[Coverage, list[_Entry]] = {}
    for entry in entries:
        coverages.setdefault(entry.scored.coverage, []).append(entry)
    body = Markup("")
    for coverage, group in coverages.items():
        if coverage.is_whole:
            continue
        body += page.paragraph(coverage.sentence + ".")
        columns = [
            Column(name="model"),
            Column(name="form"),
            Column(name="top-1 of the scored", is_number=True),
            Column(name="if the missing were wrong", is_number=True),
        ]
        rows: list[list[str | Cell]] = []
        for entry in group:
            for name, form in entry.scored.forms.items():
                figures = (form.result.top1, coverage.if_wrong(form.result.top1))
                rows.append([entry.name, name, *(Cell(text=f"{value:.2f}", value=value) for value in figures)])
        body += page.table(columns, rows, caption="Accuracy with the missing videos as wrong ones")
        listed = [[fault.video_id, fault.kind or "other", fault.reason] for fault in coverage.missing]
        if listed:
            columns = [Column(name="missing video"), Column(name="kind"), Column(name="reason", is_long=True)]
            body += page.table(columns, listed, caption="Missing videos")
    return [Section(title=f"Missing videos{suffix}", body=body)] if body else []


# Tables


def _figures_table(entries: Sequence[_Entry], timed_clips: int) -> Markup:
    columns = [
        Column(name="model"),
        Column(name="form"),
        Column(name="recipe"),
        *(Column(name=name, is_number=True) for name in ("top-1", "top-5", "mAP", "GMACs/clip", "of promised")),
        *(Column(name=name, is_number=True) for name in ("ms/clip", "min-max", "CPU ms/clip", "videos x views")),
    ]
    rows: list[list[str | Cell]] = []
    for entry in entries:
        promised = entry.scored.promised_gmacs
        for name, form in entry.scored.forms.items():
            result, latency = form.result, form.latency
            share = form.gmacs_per_clip / promised if promised and name == "dynamic" else None
            median, low, high, cpu = (
                value / timed_clips
                for value in (latency.median_ms, latency.min_ms, latency.max_ms, latency.cpu_median_ms)
            )
            num_videos = len(result.video_id)
            rows.append(
                [
                    entry.name,
                    name if len(entry.scored.forms) > 1 else "only",
                    f"{entry.recipe.method}/{entry.recipe.name}",
                    *(Cell(text=f"{value:.2f}", value=value) for value in (result.top1, result.top5, result.map)),
                    Cell(text=f"{form.gmacs_per_clip:.4f}", value=form.gmacs_per_clip),
                    Cell(text="" if share is None else f"{100 * share:.2f} %", value=share),
                    Cell(text=f"{median:.2f}", value=median),
                    Cell(text=f"{low:.2f}-{high:.2f}", value=high - low),
                    Cell(text=f"{cpu:.2f}", value=cpu),
                    Cell(text=f"{num_videos:,} x {result.num_clips // num_videos}", value=result.num_clips),
                ]
            )
    return page.table(columns, rows, caption="Figures of all models and forms")


def _classes_table(entries: Sequence[_Entry]) -> Markup:
    """A row a class: how many videos it has, and how many of them each model gets right."""
    is_multi_label = entries[0].form.result.labels.ndim == 2
    by_class: dict[str, list[Cell]] = {name: [] for entry in entries for name in entry.dataset.manifest.classes}
    counts: dict[str, int] = dict.fromkeys(by_class, 0)
    for entry in entries:
        targets = entry.targets
        if is_multi_label:
            shares = mean_average_precision(entry.form.result.probabilities, targets)[1] / 100
        else:
            right = torch.tensor(entry.is_right, dtype=torch.float64)
            shares = (targets * right[:, None]).sum(0) / targets.sum(0).clamp(min=1)
        found = dict.fromkeys(by_class, Cell(text="", value=None))
        for name, share, count in zip(
            entry.dataset.manifest.classes, shares.tolist(), targets.sum(0).tolist(), strict=True
        ):
            counts[name] = max(counts[name], int(count))
            if count:
                found[name] = Cell(text=f"{100 * share:.1f} %", value=share, bar=share)
        for name, cell in found.items():
            by_class[name].append(cell)
    columns = [
        Column(name="class"),
        Column(name="videos", is_number=True),
        *(Column(name=entry.name, is_number=True) for entry in entries),
    ]
    rows: list[list[str | Cell]] = [
        [name, Cell(text=str(counts[name]), value=counts[name]), *cells] for name, cells in by_class.items()
    ]
    what = "Average precision of each class" if is_multi_label else "Videos of each class that are classified right"
    note = page.paragraph(f"{what}, by the dynamic form where a model has one.", is_note=True)
    return page.table(columns, rows, caption=what) + note


def _exits_table(curves: Sequence[Curve]) -> Markup:
    """A row a setting of each curve."""
    columns = [
        Column(name="model"),
        Column(name="exits"),
        *(
            Column(name=name, is_number=True)
            for name in ("top-1", "mAP", "GMACs", "of full", "frames", "network ms", "of full time", "ms with decoding")
        ),
        Column(name="leave at each exit (%)"),
    ]
    rows: list[list[str | Cell]] = []
    for curve in curves:
        full = curve.points[0]
        for point in curve.points:
            time, share = curve.time_of(point), point.gmacs / full.gmacs
            rows.append(
                [
                    curve.name,
                    point.setting.name,
                    Cell(text=f"{point.top1:.2f}", value=point.top1),
                    Cell(text=f"{point.map:.2f}", value=point.map),
                    Cell(text=f"{point.gmacs:.4f}", value=point.gmacs),
                    Cell(text=f"{100 * share:.1f} %", value=share, bar=share),
                    Cell(text=f"{point.frames:.1f}", value=point.frames),
                    Cell(text=f"{time:.2f}", value=time),
                    Cell(text=f"{100 * time / curve.time_of(full):.1f} %", value=time / curve.time_of(full)),
                    Cell(text=f"{point.ms:.2f}", value=point.ms),
                    ", ".join(f"{100 * one:.0f}" for one in point.exit_shares),
                ]
            )
    note = " ".join(dict.fromkeys(remark for curve in curves for remark in curve.remarks))
    return page.table(columns, rows, caption="Early exits") + page.paragraph(note, is_note=True)


def _confusions(entries: Sequence[_Entry]) -> Markup:
    """Matrices of small sets of classes, and the pairs that are confused most."""
    if entries[0].form.result.labels.ndim == 2:
        return page.paragraph(
            "Videos with several labels have no confusion matrix: none of their classes is the one that another is "
            "taken for. The average precision of each class stands above."
        )
    charts, rows = [], list[list[str | Cell]]()
    for entry in entries:
        for kind, table in entry.scored.confusion(list(entry.scored.forms)[-1]).items():
            title = entry.name if kind == "class" else f"{entry.name}, {kind}s"
            if len(table) <= MAX_MATRIX_CLASSES:
                charts.append(
                    page.matrix_chart(
                        title, list(table.columns), table.to_numpy().tolist(), row_label=kind, column_label="taken for"
                    )
                )
            for pair in confusion_pairs(table)[:MAX_PAIRS]:
                counted = Cell(text=f"{pair.count:,}", value=pair.count)
                share = Cell(text=f"{100 * pair.share:.1f} %", value=pair.share, bar=pair.share)
                rows.append([title, pair.label, pair.predicted, counted, share])
    body = page.figures(charts) if charts else Markup("")
    if not rows:
        return body + page.paragraph("No video is taken for another class by any model.")
    columns = [
        Column(name="model"),
        Column(name="class"),
        Column(name="taken for"),
        Column(name="videos", is_number=True),
        Column(name="of the class", is_number=True),
    ]
    note = f"At most {MAX_PAIRS} pairs of a model, by its dynamic form where it has one."
    return body + page.table(columns, rows, caption="Most confused pairs") + page.paragraph(note, is_note=True)


# Sample clips


def _sample_clips(entries: Sequence[_Entry], num_clips: int, rng: np.random.Generator) -> Markup:
    """Films of some videos as the first model sees them, each with what all models make of it."""
    first = entries[0]
    common = [key for key in first.videos if all(key in entry.videos for entry in entries)]
    if not common:
        return page.paragraph("The models were scored on different videos; there is no clip that all of them saw.")
    faults = [key for key in common if not all(entry.is_right[entry.videos[key]] for entry in entries)]
    successes = [key for key in common if all(entry.is_right[entry.videos[key]] for entry in entries)]
    num_faults = min(len(faults), max((num_clips + 1) // 2, num_clips - len(successes)))
    num_successes = min(len(successes), num_clips - num_faults)
    films = {}
    for title, keys, count in (("wrong", faults, num_faults), ("right", successes, num_successes)):
        chosen = sorted(rng.choice(len(keys), size=count, replace=False).tolist()) if count else []
        films[title] = [_film(entries, keys[place]) for place in chosen]
    body = page.paragraph(
        f"{len(successes):,} of {len(common):,} videos are classified right by all models"
        f" ({', '.join(entry.name for entry in entries)}). Chosen by chance; the frames are what {first.name} "
        "sees."
    )
    for title, heading in (("wrong", "Wrong by at least one"), ("right", "Right by all")):
        if films[title]:
            body += Markup("<h3>{}</h3>\n").format(heading) + page.clips(films[title])
    return body


def _film(entries: Sequence[_Entry], key: tuple[str, int]) -> Markup:
    first = entries[0]
    place = first.videos[key]
    classes = first.dataset.manifest.classes
    labels = [classes[index] for index in first.targets[place].nonzero()[:, 0].tolist()]
    lines: list[tuple[str, bool | None]] = [(key[0], None)]
    for entry in entries:
        at, result = entry.videos[key], entry.form.result
        predicted = int(result.predictions[at])
        name, share = entry.dataset.manifest.classes[predicted], float(result.probabilities[at, predicted])
        lines.append((f"{entry.name}: {name}, {100 * share:.0f}\N{NO-BREAK SPACE}%", entry.is_right[at]))
    return page.clip(_frames(first, place), name=key[0], caption=", ".join(labels) or "(no label)", lines=lines)


def _frames(entry: _Entry, place: int) -> list[Image.Image]:
    """The middle view of a video, as pixels."""
    views = entry.dataset[place].frames
    clip = views[len(views) // 2]
    data = entry.recipe.data
    pixels = clip * torch.tensor(data.std).view(3, 1, 1) + torch.tensor(data.mean).view(3, 1, 1)
    rounded = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(frame) for frame in rounded]


# Settings


def _settings(runs: Sequence[tuple[str, Run, list[tuple[str, str]]]]) -> Markup:
    body = page.facts(page.environment(PACKAGES))
    for name, run, facts in runs:
        pairs = [("weights", str(run.weights)), *facts, *_training_facts(run.weights.parent)]
        body += page.details(
            f"{name}: recipe {run.recipe.method}/{run.recipe.name}", dump_recipe(run.recipe), pairs=pairs
        )
    return body


def _training_facts(folder: Path) -> list[tuple[str, str]]:
    """What a finished run notes beside its weights: epochs and hours; nothing for weights from elsewhere."""
    path = folder / "result.json"
    if not path.is_file():
        return []
    noted = json.loads(path.read_text(encoding="utf-8"))
    return [
        ("trained for", f"{noted['epochs']} epochs, {noted['seconds'] / 3600:.2f} h"),
        ("best epoch", str(noted["best_epoch"] + 1)),
    ]
