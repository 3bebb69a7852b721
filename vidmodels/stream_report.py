"""The part of the page that is on detectors: precision against cost and time, classes, frames with what is found."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from markupsafe import Markup
from PIL import Image, ImageDraw

from vidmodels.breakdown import Naming, objects_per_class
from vidmodels.published import MARKER_NAMES, MARKERS, METRICS, published_recipes, published_section, published_series
from vidmodels.render import draw_boxes
from vidmodels.stream_comparison import ScoredStream, StreamComparison
from vidmodels.streams import FoundInFrame, fit_of
from vidmodels.types import Recipe
from vidprep import page
from vidprep.errors import UsageError
from vidprep.load.sequences import SequenceDataset, SequenceFrame
from vidprep.page import Cell, Column, Point, Section, Series

__all__ = ["stream_sections"]

FILM_FRAMES = 24
"""Of a sample sequence."""
MIN_SCORE = 0.5
"""Boxes with a lower score are not drawn."""


def stream_sections(
    comparison: StreamComparison,
    *,
    data: Path | None,
    split: str | None,
    num_clips: int,
    seed: int,
    has_others: bool,
) -> list[Section]:
    """The sections on detectors.

    Args:
        comparison: what `compare_streams` found.
        data: as given to `compare_streams`.
        split: as given to `compare_streams`.
        num_clips: films, at most; each shows a sequence with what one model finds.
        seed: of their choice.
        has_others: the page is on other models, too.

    Raises:
        UsageError: the shards are not those of the comparison.
    """
    groups: dict[tuple[str, str], list[ScoredStream]] = {}
    for scored in comparison.runs:
        recipe = scored.run.recipe
        groups.setdefault((recipe.data.dataset, split or recipe.data.val_split), []).append(scored)
    sections = []
    for (dataset, of_split), group in groups.items():
        suffix = "" if len(groups) == 1 and not has_others else f": {dataset}, {of_split}"
        published = published_recipes(dataset)
        num_timed = comparison.num_timed_frames
        sections.append(
            Section(title=f"Precision and cost{suffix}", body=_charts(group, published, num_timed=num_timed))
        )
        sections += _missing(group, suffix)
        sections.append(Section(title=f"All figures of detectors{suffix}", body=_figures(group, num_timed=num_timed)))
        sections += published_section(dataset, published)
        sections.append(Section(title=f"Classes of objects{suffix}", body=_classes(group)))
        if num_clips:
            films = _films(group, data, of_split, num_clips=num_clips, rng=np.random.default_rng(seed))
            sections.append(Section(title=f"Sample sequences{suffix}", body=films))
    sections.append(Section(title="Remarks on detectors", body=page.item_list(comparison.remarks)))
    return sections


def _charts(group: Sequence[ScoredStream], published: Sequence[Recipe], *, num_timed: int) -> Markup:
    if all(scored.result.scores is None for scored in group):
        return page.paragraph("This split has no boxes: nothing is scored.")
    families: dict[Path, list[ScoredStream]] = {}
    for scored in group:
        families.setdefault(scored.run.weights, []).append(scored)
    charts = []
    for against_time in (False, True):
        series = []
        for number, family in enumerate(families.values()):
            points = [_point(scored, num_timed, against_time=against_time) for scored in family]
            points.sort(key=lambda point: point.x)
            name = family[0].run.title if len(family) == 1 else family[0].run.name
            series.append(Series(name=name, points=points, is_joined=True, colour=number))
        theirs = [] if against_time else published_series(published, "map50")
        charts.append(
            page.scatter_chart(
                "Precision against measured time" if against_time else "Precision against multiply-accumulates",
                [*series, *theirs],
                x_label="ms per frame" if against_time else "GMACs per frame",
                y_label=METRICS["map50"],
                y_most=100.0,
                marker_names=MARKER_NAMES,
            )
        )
    note = (
        f"A line joins the settings of one model. GMACs and times are of the whole detector, mean of the first "
        f"{num_timed} frames of the first sequence, a key frame among them; bars reach from the "
        "shortest to the longest pass."
    )
    return page.figures(charts) + page.paragraph(note, is_note=True)


def _point(scored: ScoredStream, num_timed: int, *, against_time: bool) -> Point:
    times = scored.latency
    median, low, high = (value / num_timed for value in (times.median_ms, times.min_ms, times.max_ms))
    value = 0.0 if scored.result.scores is None else scored.result.scores.map50
    return Point(
        x=median if against_time else scored.gmacs_per_frame,
        y=value,
        tip=(
            f"{scored.run.title}\nmAP50 {value:.2f} %\n{scored.gmacs_per_frame:.4g} GMACs per frame\n"
            f"{median:.2f} ms per frame ({low:.2f} to {high:.2f})"
        ),
        marker=MARKERS["only"],
        x_low=low if against_time else None,
        x_high=high if against_time else None,
    )


def _missing(group: Sequence[ScoredStream], suffix: str) -> list[Section]:
    result = group[0].result
    if not result.missing:
        return []
    text = (
        f"{len(result.missing)} of the {len(result.missing) + result.num_sequences} videos of the split are in no "
        "shard and are not scored, so these figures are not those of the split. What they would do to the average "
        "precision is not known without their boxes."
    )
    columns = [Column(name="missing video"), Column(name="kind"), Column(name="reason", is_long=True)]
    rows = [[fault.video_id, fault.kind or "other", fault.reason] for fault in result.missing]
    table = page.table(columns, rows, caption="Missing videos")
    return [Section(title=f"Missing videos of detectors{suffix}", body=page.paragraph(text) + table)]


def _figures(group: Sequence[ScoredStream], *, num_timed: int) -> Markup:
    names = ("mAP50", "slow", "medium", "fast", "mAP", "mAP75", "GMACs/frame", "ms/frame", "min-max", "CPU ms/frame")
    columns = [Column(name="model"), Column(name="recipe"), *(Column(name=name, is_number=True) for name in names)]
    rows: list[list[str | Cell]] = []
    for scored in group:
        scores, times = scored.result.scores, scored.latency
        values: list[float | None] = [None] * 6
        if scores is not None:
            by_speed = [scores.map50_by_speed[speed] for speed in ("slow", "medium", "fast")]
            values = [scores.map50, *by_speed, scores.map, scores.map75]
        median, low, high, cpu = (
            value / num_timed for value in (times.median_ms, times.min_ms, times.max_ms, times.cpu_median_ms)
        )
        rows.append(
            [
                scored.run.title,
                f"{scored.run.recipe.method}/{scored.run.recipe.name}",
                *(Cell(text="" if value is None else f"{value:.2f}", value=value) for value in values),
                Cell(text=f"{scored.gmacs_per_frame:.4f}", value=scored.gmacs_per_frame),
                Cell(text=f"{median:.2f}", value=median),
                Cell(text=f"{low:.2f}-{high:.2f}", value=high - low),
                Cell(text=f"{cpu:.2f}", value=cpu),
            ]
        )
    return page.table(columns, rows, caption="Figures of all detectors")


def _classes(group: Sequence[ScoredStream]) -> Markup:
    """A row a class: how many objects it has, and the average precision of each model."""
    tables = [objects_per_class(scored.result, Naming(model=scored.run.title, form="stream")) for scored in group]
    columns = [
        Column(name="class"),
        Column(name="objects", is_number=True),
        *(Column(name=scored.run.title, is_number=True) for scored in group),
    ]
    rows: list[list[str | Cell]] = []
    for place, name in enumerate(tables[0]["class"]):
        count = int(tables[0]["objects"].iloc[place])
        cells = []
        for table in tables:
            value = table["map50"].iloc[place]
            cells.append(
                Cell(text="", value=None)
                if pd.isna(value)
                else Cell(text=f"{value:.1f} %", value=float(value), bar=float(value) / 100)
            )
        rows.append([name, Cell(text=f"{count:,}", value=count), *cells])
    caption = "Average precision of each class at an overlap of 0.5"
    note = page.paragraph(f"{caption}; objects are counted in every frame.", is_note=True)
    return page.table(columns, rows, caption=caption) + note


def _films(
    group: Sequence[ScoredStream], data: Path | None, split: str, *, num_clips: int, rng: np.random.Generator
) -> Markup:
    """Parts of some sequences, each once for every model, with what it finds."""
    first = group[0]
    folder = data or first.run.data
    if folder is None:
        raise UsageError(f"{first.run.weights}: say with --data which shards it was evaluated on.")
    sequences = SequenceDataset(folder, split, fit=fit_of(first.run.recipe))
    found = [{(frame.video_id, frame.number): frame for frame in scored.result.frames} for scored in group]
    chosen = rng.choice(len(sequences), size=min(len(sequences), max(1, num_clips // len(group))), replace=False)
    body = page.paragraph(
        f"Boxes with a score of at least {MIN_SCORE:g}, with class and score; thin white ones are where objects are. "
        f"Chosen by chance: {len(chosen)} of {len(sequences)} sequences."
    )
    for index in sorted(chosen.tolist()):
        sequence = sequences[index]
        start = int(rng.integers(0, max(1, len(sequence) - FILM_FRAMES + 1)))
        frames = list(sequence.part(start, start + FILM_FRAMES))
        films = []
        for scored, of_model in zip(group, found, strict=True):
            try:
                pictures = [_draw(frame, of_model[sequence.name, frame.number], scored) for frame in frames]
            except KeyError as error:
                raise UsageError(
                    f"{folder}: the split {split} does not hold the videos that {scored.run.title} was scored on."
                ) from error
            last = frames[-1].number
            caption = f"{sequence.name}, frames {frames[0].number} to {last}"
            films.append(
                page.clip(
                    pictures,
                    name=f"{sequence.name}, {scored.run.title}",
                    caption=scored.run.title,
                    lines=[(caption, None)],
                )
            )
        body += page.clips(films)
    return body


def _draw(frame: SequenceFrame, found: FoundInFrame, scored: ScoredStream) -> Image.Image:
    """The frame with the objects that are there, and over them those that the model finds."""
    picture = Image.fromarray(frame.picture)
    if found.targets is not None:
        draw = ImageDraw.Draw(picture)
        for box in (found.targets.boxes / found.scale).tolist():
            draw.rectangle(box, outline="white")
    certain = found.detections.scores >= MIN_SCORE
    boxes = found.detections.boxes[certain] / found.scale
    drawn = draw_boxes(
        np.asarray(picture),
        boxes.tolist(),
        found.detections.labels[certain].tolist(),
        found.detections.scores[certain].tolist(),
        scored.result.classes,
    )
    return Image.fromarray(drawn)
