"""The page on a comparison: accuracy against cost and against time, per-class bars, sample clips, the settings.

Charts, tables and films are `vidprep.page`'s; here is what they show. Models on different data sets, or judged by
different metrics, get a part of the page each: their figures do not compare.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from vidmodels.comparison import Comparison, Form, ScoredRun
from vidmodels.data import open_test_split
from vidmodels.metrics import mean_average_precision
from vidmodels.recipes import dump_recipe, list_recipes, load_recipe
from vidmodels.types import Recipe
from vidprep import page
from vidprep.errors import UsageError
from vidprep.load.shards import ShardDataset
from vidprep.page import Cell, Column, Marker, Point, Section, Series

__all__ = ["comparison_page", "published_recipes"]

PACKAGES = ("vidprep", "torch", "torchvision", "timm", "numpy", "av")
MARKERS: dict[str, Marker] = {"trainable": "circle", "dynamic": "diamond"}
"""Form -> shape of its mark."""
MARKER_NAMES: dict[Marker, str] = {
    "circle": "trainable form: computes everything",
    "diamond": "dynamic form: really skips",
    "triangle": "published, in its authors' convention",
}
METRICS = {"top1": "top-1 accuracy (%)", "map": "mAP (%)"}


def comparison_page(
    comparison: Comparison, *, data: Path | None = None, split: str | None = None, num_clips: int = 8, seed: int = 0
) -> str:
    """The page as text.

    Args:
        comparison: what `compare_runs` found.
        data: as given to `compare_runs`: shards, or None for those that each model was trained on.
        split: as given to `compare_runs`.
        num_clips: sample clips of each data set, at most; half of them wrong where there are such. 0 shows none.
        seed: of their choice.

    Raises:
        UsageError: the shards are not those of the comparison.
        CorruptVideo: a sample clip does not decode.
    """
    entries = _entries(comparison, data, split)
    groups: dict[tuple[str, str, str], list[_Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.recipe.data.dataset, entry.split, entry.recipe.eval.metric), []).append(entry)
    sections = []
    for (dataset, of_split, metric), group in groups.items():
        suffix = f": {dataset}, {of_split}, by {METRICS[metric].removesuffix(' (%)')}" if len(groups) > 1 else ""
        published = published_recipes(dataset)
        sections += [
            Section(title=f"Accuracy and cost{suffix}", body=_charts(group, published, metric, comparison.timed_clips)),
            Section(title=f"All figures{suffix}", body=_figures_table(group, comparison.timed_clips)),
            *_published_section(dataset, published),
            Section(title=f"Classes{suffix}", body=_classes_table(group)),
        ]
        if num_clips:
            body = _sample_clips(group, num_clips, np.random.default_rng(seed))
            sections.append(Section(title=f"Sample clips{suffix}", body=body))
    sections.append(Section(title="Remarks", body=page.item_list(comparison.remarks)))
    sections.append(Section(title="Settings and versions", body=_settings(entries)))
    names = ", ".join(entry.name for entry in entries)
    return page.page(
        f"Accuracy against cost: {names}",
        lead=comparison.heading,
        sections=sections,
        footer=f"Written by `vidmodels report` on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.",
    )


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
    names = Counter(scored.run.name for scored in comparison.runs)
    seen: Counter[str] = Counter()
    entries = []
    for scored in comparison.runs:
        run = scored.run
        seen[run.name] += 1
        folder = data or run.data
        if folder is None:
            raise UsageError(f"{run.weights}: say with --data which shards it was evaluated on.")
        of_split = split or run.recipe.data.val_split
        dataset = open_test_split(run.recipe, folder, of_split)
        result = scored.forms["trainable"].result
        if [video.segment_id or video.video_id for video in dataset.videos] != list(result.video_id) and [
            video.video_id for video in dataset.videos
        ] != list(result.video_id):
            raise UsageError(f"{folder}: the split {of_split} does not hold the videos that {run.name} was scored on.")
        name = f"{run.name} ({seen[run.name]})" if names[run.name] > 1 else run.name
        entries.append(_Entry(name=name, scored=scored, dataset=dataset, split=of_split))
    return entries


# Accuracy against cost


def published_recipes(dataset: str) -> list[Recipe]:
    """Recipes on this data set that come with the package and say what their authors report."""
    recipes = [load_recipe(name) for name in list_recipes()]
    return [recipe for recipe in recipes if recipe.data.dataset == dataset and recipe.published is not None]


def _charts(entries: Sequence[_Entry], published: Sequence[Recipe], metric: str, timed_clips: int) -> Markup:
    ours = [_measured(entry, metric, timed_clips, against_time=False) for entry in entries]
    timed = [_measured(entry, metric, timed_clips, against_time=True) for entry in entries]
    against_macs = page.scatter_chart(
        "Accuracy against multiply-accumulates",
        [*ours, *_published_series(published, metric)],
        x_label="GMACs per clip",
        y_label=METRICS[metric],
        marker_names=MARKER_NAMES,
    )
    against_time = page.scatter_chart(
        "Accuracy against measured time",
        timed,
        x_label="ms per clip",
        y_label=METRICS[metric],
        marker_names=MARKER_NAMES,
    )
    note = (
        "A line joins the forms of one model. GMACs are counted from what ran, mean over all clips. Times are medians; "
        f"bars reach from the shortest to the longest call ({timed_clips} clip{'s' if timed_clips > 1 else ''} each). "
        "Point at a mark, touch it, or reach it with the Tab key, for its numbers."
    )
    return page.figures([against_macs, against_time]) + page.paragraph(note, is_note=True)


def _measured(entry: _Entry, metric: str, timed_clips: int, *, against_time: bool) -> Series:
    """The forms of a model. Further curves of a model, such as its exits, are further series like this one."""
    points = []
    for name, form in entry.scored.forms.items():
        accuracy, latency = form.result.metrics[metric], form.latency
        median, low, high = (value / timed_clips for value in (latency.median_ms, latency.min_ms, latency.max_ms))
        tip = (
            f"{entry.name}, {name} form\n{METRICS[metric].removesuffix(' (%)')} {accuracy:.2f} %\n"
            f"{form.gmacs_per_clip:.4g} GMACs per clip\n{median:.2f} ms per clip ({low:.2f} to {high:.2f})"
        )
        points.append(
            Point(
                x=median if against_time else form.gmacs_per_clip,
                y=accuracy,
                tip=tip,
                marker=MARKERS[name],
                x_low=low if against_time else None,
                x_high=high if against_time else None,
            )
        )
    return Series(name=entry.name, points=points, is_joined=True)


def _published_series(recipes: Sequence[Recipe], metric: str) -> list[Series]:
    """What is published with both an accuracy and a cost, a series a method."""
    by_method: dict[str, list[Point]] = {}
    for recipe in recipes:
        published = recipe.published
        accuracy = getattr(published, metric, None)
        if published is None or published.gmacs is None or accuracy is None:
            continue
        tip = (
            f"{recipe.method}/{recipe.name}, published\n{METRICS[metric].removesuffix(' (%)')} {accuracy:g} %\n"
            f"{published.gmacs:g} GMACs: {published.convention or 'convention not stated'}"
        )
        point = Point(x=published.gmacs, y=accuracy, tip=tip, marker="triangle")
        by_method.setdefault(recipe.method, []).append(point)
    return [Series(name=f"{method}, published", points=points, is_hollow=True) for method, points in by_method.items()]


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
                    name,
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


def _published_section(dataset: str, recipes: Sequence[Recipe]) -> list[Section]:
    if not recipes:
        return []
    columns = [
        Column(name="recipe"),
        *(Column(name=name, is_number=True) for name in ("top-1", "top-5", "mAP", "GMACs", "parameters")),
        Column(name="convention", is_long=True),
        Column(name="source", is_long=True),
    ]
    rows: list[list[str | Cell]] = []
    for recipe in recipes:
        if recipe.published is None:
            continue
        figures = recipe.published
        values = (figures.top1, figures.top5, figures.map, figures.gmacs)
        size = figures.num_params
        rows.append(
            [
                f"{recipe.method}/{recipe.name}",
                *(Cell(text="" if value is None else f"{value:g}", value=value) for value in values),
                Cell(text="" if size is None else f"{size / 1e6:.2f} M", value=size),
                figures.convention,
                recipe.source,
            ]
        )
    note = page.paragraph(
        "What the authors report, not measured here: hollow triangles in the chart. Their costs are counted as the "
        "convention says, which may be for a video, for a view, or for a frame.",
        is_note=True,
    )
    table = page.table(columns, rows, caption=f"Published figures on {dataset}")
    return [Section(title=f"Published on {dataset}", body=table + note)]


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


def _settings(entries: Sequence[_Entry]) -> Markup:
    body = page.facts(page.environment(PACKAGES))
    for entry in entries:
        run = entry.scored.run
        pairs = [("weights", str(run.weights)), ("shards", str(entry.dataset.folder)), ("split", entry.split)]
        pairs += _training_facts(run.weights.parent)
        body += page.details(
            f"{entry.name}: recipe {entry.recipe.method}/{entry.recipe.name}", dump_recipe(entry.recipe), pairs=pairs
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
