"""One self-contained HTML page: tables that sort, charts that are drawn here as SVG, clips that play.

Nothing is fetched when the page is opened (its own policy forbids it), and without JavaScript all figures can still be
read. The parts are pure functions from values to `Markup`, which escapes whatever else is put into it.
"""

import base64
import io
import math
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from markupsafe import Markup

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "Cell",
    "Column",
    "ColumnBar",
    "Marker",
    "Point",
    "Section",
    "Series",
    "clip",
    "clips",
    "column_chart",
    "details",
    "environment",
    "facts",
    "figures",
    "histogram",
    "item_list",
    "matrix_chart",
    "page",
    "paragraph",
    "scatter_chart",
    "table",
]

Marker = Literal["circle", "diamond", "triangle", "square", "plus"]
NUM_COLOURS = 8
"""Of page.css; further series begin with the first one again."""

WIDTH, HEIGHT = 420, 320
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 14, 46
"""Units of a chart, which scales to the width that there is; small, so that its text stays large on a phone."""

MAX_WIDE_COLUMNS = 60
"""Of a chart with gaps between its columns, each of which the keyboard reaches."""

MAX_FILM_FRAMES = 32
FILM_HEIGHT = 128
MAX_FILM_WIDTH = 228
FRAMES_PER_SECOND = 6


# The page


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page, named in its list of contents."""

    title: str
    body: Markup


def page(title: str, *, lead: str, sections: Sequence[Section], footer: str = "") -> str:
    """The whole page as text.

    Args:
        title: of the page and of the browser's window.
        lead: what was looked at, in a sentence below the title.
        sections: in order.
        footer: who made it, and when.
    """
    contents = _joined(
        Markup('<a href="#part{}">{}</a>').format(number, section.title) for number, section in enumerate(sections)
    )
    body = _joined(
        Markup('<section id="part{}"><h2>{}</h2>\n{}</section>\n').format(number, section.title, section.body)
        for number, section in enumerate(sections)
    )
    text = Markup(
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n"
        "<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        '<header><h1>{title}</h1><p class="lead">{lead}</p><nav aria-label="Contents">{contents}</nav></header>\n'
        '<main>\n{body}</main>\n<footer><p class="note">{footer}</p></footer>\n'
        "<script>\n{script}</script>\n</body>\n</html>\n"
    ).format(
        title=title,
        style=_file("page.css"),
        lead=lead,
        contents=contents,
        body=body,
        footer=footer,
        script=_file("page.js"),
    )
    return str(text)


def _file(name: str) -> Markup:
    """A file beside this one, put into the page as it is."""
    return Markup(Path(__file__).with_name(name).read_text(encoding="utf-8"))  # noqa: S704 - our own text


def paragraph(text: str, *, is_note: bool = False) -> Markup:
    """A paragraph; a note is small and faint."""
    return Markup('<p class="{}">{}</p>\n').format("note" if is_note else "text", text)


def item_list(items: Iterable[str]) -> Markup:
    """Remarks, one line each; nothing where there are none."""
    lines = _joined(Markup("<li>{}</li>").format(item) for item in items)
    return Markup('<ul class="remarks">{}</ul>\n').format(lines) if lines else Markup("")


def facts(pairs: Iterable[tuple[str, str]]) -> Markup:
    """Names with their values."""
    lines = _joined(Markup("<dt>{}</dt><dd>{}</dd>").format(name, value) for name, value in pairs)
    return Markup("<dl>{}</dl>\n").format(lines)


def details(summary: str, text: str, *, pairs: Iterable[tuple[str, str]] = ()) -> Markup:
    """A text such as a file's, folded away below one line."""
    return Markup("<details><summary>{}</summary>{}<pre>{}</pre></details>\n").format(summary, facts(pairs), text)


def environment(packages: Sequence[str]) -> list[tuple[str, str]]:
    """This machine and the versions of these packages, by name; those that are not installed are left out."""
    found = [("Python", platform.python_version())]
    for name in packages:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            continue
    return [*found, ("system", platform.platform()), ("processor", f"{_processor()}, {os.cpu_count()} cores")]


def _processor() -> str:
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            name, colon, value = line.partition(":")
            if colon and name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _joined(parts: Iterable[Markup]) -> Markup:
    return Markup("").join(parts)


# Tables


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table."""

    name: str
    is_number: bool = False
    """To the right, and sorted by value; the largest first."""
    is_long: bool = False
    """Texts of several words, which may break."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A figure with what is written for it."""

    text: str
    value: float | None = None
    """What it is sorted by; None comes last."""
    bar: float | None = None
    """Length of a bar behind it, as a share of the cell; None: no bar."""


def table(columns: Sequence[Column], rows: Iterable[Sequence[str | Cell]], *, caption: str) -> Markup:
    """A table whose headers are buttons that sort it.

    Args:
        columns: from left to right.
        rows: as many cells as columns each; texts, or figures.
        caption: what it shows, for those who hear the page.
    """
    head = _joined(
        Markup('<th scope="col" aria-sort="none" class="{}"><button type="button">{}</button></th>').format(
            "number" if column.is_number else "text", column.name
        )
        for column in columns
    )
    body = _joined(
        Markup("<tr>{}</tr>\n").format(_joined(_cell(column, cell) for column, cell in zip(columns, row, strict=True)))
        for row in rows
    )
    return Markup(
        '<div class="scroll" tabindex="0" role="region" aria-label="{caption}"><table class="sortable" '
        'aria-label="{caption}"><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>\n'
    ).format(caption=caption, head=head, body=body)


def _cell(column: Column, cell: str | Cell) -> Markup:
    kind = "number" if column.is_number else "long" if column.is_long else "text"
    if isinstance(cell, str):
        return Markup('<td class="{}">{}</td>').format(kind, cell)
    value = "" if cell.value is None or not math.isfinite(cell.value) else repr(float(cell.value))
    if cell.bar is None:
        return Markup('<td class="{}" data-value="{}">{}</td>').format(kind, value, cell.text)
    share = f"{100 * min(max(cell.bar, 0.0), 1.0):.1f}%"
    return Markup('<td class="{} bar" data-value="{}" style="--f:{}">{}</td>').format(kind, value, share, cell.text)


# Charts


@dataclass(frozen=True, kw_only=True)
class Point:
    """A mark of a scatter chart."""

    x: float
    y: float
    tip: str
    """Name and numbers, shown when it is pointed at; lines."""
    marker: Marker = "circle"
    x_low: float | None = None
    x_high: float | None = None
    """Ends of a whisker: the spread of what was measured."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points of one colour: a model in its forms, a method's published figures, the exits of a model."""

    name: str
    points: Sequence[Point]
    is_hollow: bool = False
    """Not measured here; such points take no part in the front."""
    is_joined: bool = False
    """A line runs through the points, in their order."""
    colour: int | None = None
    """Number of its colour, to share another series'; None: that of its place among the series."""


def scatter_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    y_most: float = math.inf,
    marker_names: dict[Marker, str] | None = None,
) -> Markup:
    """Points with their names in a legend; a dotted line is the front: nothing measured is better and takes less.

    The horizontal axis is logarithmic where the largest value is five times the smallest one or more.

    Args:
        title: above the chart.
        series: at least one point in all; of those without points only the name would show, and they are left out.
        x_label: what is spent, with its unit.
        y_label: what it gives, with its unit.
        y_most: what it can be at the most; the axis is labelled up to there.
        marker_names: what the shapes of the marks mean.
    """
    series = [one for one in series if one.points]
    points = [point for one in series for point in one.points]
    lows = [point.x if point.x_low is None else point.x_low for point in points]
    highs = [point.x if point.x_high is None else point.x_high for point in points]
    x_axis = _Axis.around(min(lows), max(highs), LEFT, WIDTH - RIGHT, may_be_logarithmic=True)
    values = [point.y for point in points]
    y_axis = replace(_Axis.around(min(values), max(values), HEIGHT - BOTTOM, TOP), last_tick=y_most)
    parts = [_axes(x_axis, y_axis, x_label, y_label)]
    front = _front([point for one in series if not one.is_hollow for point in one.points])
    if len(front) > 1:
        steps = f"M{x_axis.place(front[0].x):.1f} {y_axis.place(front[0].y):.1f}"
        steps += "".join(f"H{x_axis.place(point.x):.1f}V{y_axis.place(point.y):.1f}" for point in front[1:])
        parts.append(Markup('<path class="front" d="{}"/>').format(steps))
    colours = [(number if one.colour is None else one.colour) % NUM_COLOURS for number, one in enumerate(series)]
    parts += [_draw_series(one, colour, x_axis, y_axis) for colour, one in zip(colours, series, strict=True)]
    legend = [
        _legend_entry(_shape(one.points[0].marker), f"k{colour}", one.name, is_hollow=one.is_hollow)
        for colour, one in zip(colours, series, strict=True)
    ]
    used = {point.marker for point in points}
    legend += [
        _legend_entry(_shape(marker), "k7", name, is_hollow=True)
        for marker, name in (marker_names or {}).items()
        if marker in used
    ]
    if len(front) > 1:
        legend.append(_legend_entry(Markup('<path class="front" d="M-8 0H8"/>'), "k7", "front of what was measured"))
    return _figure(title, _joined(parts), f"{y_label} against {x_label}", _joined(legend))


@dataclass(frozen=True, kw_only=True)
class ColumnBar:
    """A column of a chart, from one place of the horizontal axis to another."""

    start: float
    end: float
    height: float
    tip: str


def column_chart(title: str, columns: Sequence[ColumnBar], *, x_label: str, y_label: str) -> Markup:
    """Columns on a numbered axis: a histogram, or counts by rank.

    Args:
        title: above the chart.
        columns: at least one.
        x_label: with its unit.
        y_label: what the heights count.
    """
    x_axis = _Axis(columns[0].start, columns[-1].end, LEFT, WIDTH - RIGHT)
    y_axis = _Axis(0.0, 1.05 * max(1e-9, *(column.height for column in columns)), HEIGHT - BOTTOM, TOP, least_step=1.0)
    are_wide = len(columns) <= MAX_WIDE_COLUMNS
    gap = 1.0 if are_wide else 0.0
    # Hundreds of columns would be hundreds of stops of the Tab key; a table says the same.
    focus = Markup(' tabindex="0"') if are_wide else Markup("")
    marks = _joined(
        Markup(
            '<rect class="column"{focus} role="img" aria-label="{tip}" data-tip="{tip}" x="{x}" y="{y}" '
            'width="{width}" height="{height}"><title>{tip}</title></rect>'
        ).format(
            focus=focus,
            tip=column.tip,
            x=f"{x_axis.place(column.start) + gap / 2:.2f}",
            y=f"{y_axis.place(column.height):.2f}",
            width=f"{max(0.5, x_axis.place(column.end) - x_axis.place(column.start) - gap):.2f}",
            height=f"{y_axis.place(0) - y_axis.place(column.height):.2f}",
        )
        for column in columns
    )
    return _figure(title, _axes(x_axis, y_axis, x_label, y_label) + marks, f"{y_label} against {x_label}")


def histogram(title: str, values: Sequence[float], *, x_label: str, unit: str, counted: str) -> Markup:
    """How many values lie where, in columns of a round width.

    Args:
        title: above the chart.
        values: finite, at least one.
        x_label: what they are.
        unit: of the values, for the axis.
        counted: what is counted, in the plural: "videos".
    """
    low, high = min(values), max(values)
    step = _round_step((high - low) / 20 or max(abs(high), 1.0) / 20)
    first = math.floor(low / step + 1e-9)
    counts = [0] * (max(math.ceil(high / step - 1e-9), first + 1) - first)
    for value in values:
        counts[min(max(math.floor(value / step + 1e-9) - first, 0), len(counts) - 1)] += 1
    columns = [
        ColumnBar(
            start=(first + place) * step,
            end=(first + place + 1) * step,
            height=count,
            tip=f"{(first + place) * step:g} to {(first + place + 1) * step:g} {unit}\n{count:,} {counted}",
        )
        for place, count in enumerate(counts)
    ]
    return column_chart(title, columns, x_label=f"{x_label} ({unit})", y_label=counted)


MATRIX_SIDE = 420
MAX_WRITTEN_CELLS = 12
"""Rows of a matrix up to which its counts are written into the cells."""


def matrix_chart(
    title: str, names: Sequence[str], counts: Sequence[Sequence[int]], *, row_label: str, column_label: str
) -> Markup:
    """A square of cells, the fuller the larger their share of their row: what was taken for what.

    Args:
        title: above the chart.
        names: of the rows, and of the columns in the same order.
        counts: one row each; at least one.
        row_label: what a row is.
        column_label: what a column is.
    """
    size = len(names)
    longest = max(len(name) for name in names)
    edge = min(0.36 * MATRIX_SIDE, 7.2 * longest + 30.0)  # room for the names, at some 7 units a letter of 12
    step = (MATRIX_SIDE - edge - 4) / size
    font = min(12.0, 0.9 * step, 12.0 * (edge - 24) / (7.2 * longest))
    parts = [
        Markup('<text x="{}" y="11" text-anchor="middle">{}</text>').format((edge + MATRIX_SIDE) / 2, column_label),
        Markup('<text transform="translate(11 {}) rotate(-90)" text-anchor="middle">{}</text>').format(
            (edge + MATRIX_SIDE) / 2, row_label
        ),
    ]
    for row, name in enumerate(names):
        place = edge + (row + 0.5) * step
        style = f"font-size:{font:.1f}px"
        parts.append(
            Markup('<text x="{}" y="{:.1f}" dy=".35em" text-anchor="end" style="{}">{}</text>').format(
                f"{edge - 4:.1f}", place, style, name
            )
        )
        parts.append(
            Markup('<text transform="translate({:.1f} {:.1f}) rotate(-90)" dy=".35em" style="{}">{}</text>').format(
                place, edge - 4, style, name
            )
        )
    for row, of_row in enumerate(counts):
        total = sum(of_row)
        for column, count in enumerate(of_row):
            share = count / total if total else 0.0
            tip = f"{names[row]}, taken for {names[column]}\n{count:,} of {total:,} ({100 * share:.1f} %)"
            x, y = edge + column * step, edge + row * step
            parts.append(
                Markup(
                    '<rect class="cell {kind}" data-tip="{tip}" x="{x:.2f}" y="{y:.2f}" width="{w:.2f}" '
                    'height="{w:.2f}" fill-opacity="{share:.3f}"><title>{tip}</title></rect>'
                ).format(
                    kind="same" if row == column else "other",
                    tip=tip,
                    x=x,
                    y=y,
                    w=step - min(1.0, 0.1 * step),
                    share=max(share, 0.15) if count else 0.0,
                )
            )
            if count and size <= MAX_WRITTEN_CELLS:
                parts.append(
                    Markup(
                        '<text class="count{}" x="{:.1f}" y="{:.1f}" dy=".35em" text-anchor="middle">{}</text>'
                    ).format(" full" if share > 0.5 else "", x + step / 2, y + step / 2, count)
                )
    return _figure(title, _joined(parts), f"{row_label} against {column_label}", view_box=(MATRIX_SIDE, MATRIX_SIDE))


@dataclass(frozen=True)
class _Axis:
    """Values from `low` to `high` on the places from `start` to `end` of a chart."""

    low: float
    high: float
    start: float
    end: float
    is_logarithmic: bool = False
    least_step: float = 0.0
    """Between two ticks; 1 for what is counted."""
    last_tick: float = math.inf

    @staticmethod
    def around(low: float, high: float, start: float, end: float, *, may_be_logarithmic: bool = False) -> "_Axis":
        """An axis with some room at both ends."""
        if may_be_logarithmic and low > 0 and high / low >= 5:
            room = (high / low) ** 0.06
            return _Axis(low / room, high * room, start, end, is_logarithmic=True)
        if may_be_logarithmic and low >= 0:
            return _Axis(0.0, 1.08 * high or 1.0, start, end)
        room = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
        return _Axis(low - room, high + room, start, end)

    def place(self, value: float) -> float:
        if self.is_logarithmic:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values on the axis."""
        if self.is_logarithmic:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for mantissas in ((1, 2, 5), (1, 3), (1,)):
                found = [mantissa * 10.0**decade for decade in decades for mantissa in mantissas]
                found = [value for value in found if self.low <= value <= self.high]
                if len(found) <= 7:
                    break
            return found
        step = max(_round_step((self.high - self.low) / 6), self.least_step)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(min(self.high, self.last_tick) / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


def _round_step(least: float) -> float:
    """1, 2 or 5 times a power of ten, at least as long as given."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def _axes(x_axis: _Axis, y_axis: _Axis, x_label: str, y_label: str) -> Markup:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for value in y_axis.ticks():
        y = f"{y_axis.place(value):.1f}"
        parts.append(Markup('<path class="grid" d="M{} {}H{}"/>').format(LEFT, y, right))
        parts.append(
            Markup('<text x="{}" y="{}" dy="4.5" text-anchor="end">{}</text>').format(LEFT - 6, y, _tick(value))
        )
    for value in x_axis.ticks():
        x = f"{x_axis.place(value):.1f}"
        parts.append(Markup('<path class="grid" d="M{} {}V{}"/>').format(x, TOP, bottom))
        parts.append(Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(x, bottom + 17, _tick(value)))
    scale = ", logarithmic" if x_axis.is_logarithmic else ""
    parts.append(Markup('<path class="axis" fill="none" d="M{} {}V{}H{}"/>').format(LEFT, TOP, bottom, right))
    parts.append(
        Markup('<text x="{}" y="{}" text-anchor="middle">{}{}</text>').format(
            (LEFT + right) / 2, HEIGHT - 9, x_label, scale
        )
    )
    parts.append(
        Markup('<text transform="translate(13 {}) rotate(-90)" text-anchor="middle">{}</text>').format(
            (TOP + bottom) / 2, y_label
        )
    )
    return _joined(parts)


def _tick(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{round(value, 9):g}"


def _front(points: Sequence[Point]) -> list[Point]:
    """The points than which none is both higher and further left, from left to right."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.x, -point.y)):
        if not front or point.y > front[-1].y:
            front.append(point)
    return front


def _draw_series(series: Series, colour: int, x_axis: _Axis, y_axis: _Axis) -> Markup:
    parts = []
    if series.is_joined and len(series.points) > 1:
        line = "L".join(f"{x_axis.place(point.x):.1f} {y_axis.place(point.y):.1f}" for point in series.points)
        parts.append(Markup('<path class="joined" d="M{}"/>').format(line))
    for point in series.points:
        x, y = x_axis.place(point.x), y_axis.place(point.y)
        whisker = Markup("")
        if point.x_low is not None and point.x_high is not None:
            whisker = Markup('<path class="whisker" d="M{} 0H{}"/>').format(
                f"{x_axis.place(point.x_low) - x:.1f}", f"{x_axis.place(point.x_high) - x:.1f}"
            )
        parts.append(
            Markup(
                '<g class="point" tabindex="0" role="img" aria-label="{tip}" data-tip="{tip}" '
                'transform="translate({x} {y})"><title>{tip}</title>{whisker}'
                '<circle class="hit" r="11"/>{shape}</g>'
            ).format(tip=point.tip, x=f"{x:.1f}", y=f"{y:.1f}", whisker=whisker, shape=_shape(point.marker))
        )
    kind = "hollow" if series.is_hollow else "filled"
    return Markup('<g class="series k{} {}">{}</g>').format(colour, kind, _joined(parts))


def _shape(marker: Marker) -> Markup:
    outlines: dict[Marker, str] = {
        "circle": "M-6.5 0a6.5 6.5 0 1 0 13 0a6.5 6.5 0 1 0 -13 0Z",
        "diamond": "M0 -6L6 0L0 6L-6 0Z",
        "triangle": "M0 -6.5L6.5 5.5L-6.5 5.5Z",
        "square": "M-5 -5H5V5H-5Z",
        "plus": "M-2 -6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z",
    }
    assert set(outlines) == set(get_args(Marker))  # noqa: S101 - each marker has its outline
    return Markup('<path class="mark" d="{}"/>').format(outlines[marker])


def _legend_entry(shape: Markup, colour: str, name: str, *, is_hollow: bool = False) -> Markup:
    return Markup(
        '<li class="{} {}"><svg viewBox="-8 -8 16 16" aria-hidden="true">{}</svg><span>{}</span></li>'
    ).format(colour, "hollow" if is_hollow else "filled", shape, name)


def _figure(
    title: str,
    drawing: Markup,
    description: str,
    legend: Markup | None = None,
    *,
    view_box: tuple[int, int] = (WIDTH, HEIGHT),
) -> Markup:
    listed = Markup('<ul class="legend">{}</ul>').format(legend) if legend else Markup("")
    return Markup(
        '<figure class="chart"><figcaption>{}</figcaption>'
        '<svg viewBox="0 0 {} {}" role="group" aria-label="{}">{}</svg>{}</figure>\n'
    ).format(title, *view_box, description, drawing, listed)


def figures(charts: Iterable[Markup]) -> Markup:
    """Charts beside each other, or below on a narrow screen."""
    return Markup('<div class="figures">{}</div>\n').format(_joined(charts))


# Clips


def clip(
    frames: "Sequence[Image.Image]", *, name: str, caption: str, lines: Sequence[tuple[str, bool | None]] = ()
) -> Markup:
    """A short film of frames of one size, which a click plays and pauses: they lie beside each other in one WebP image.

    Args:
        frames: at least one; of more than 32 as many at equal distances are kept.
        name: of the video, for those who hear the page.
        caption: below it.
        lines: further lines below it, each marked as right (True), wrong (False) or neither (None).
    """
    from PIL import Image

    count = min(len(frames), MAX_FILM_FRAMES)
    chosen = [frames[place * len(frames) // count] for place in range(count)]
    scale = min(FILM_HEIGHT / chosen[0].height, MAX_FILM_WIDTH / chosen[0].width)
    width, height = max(1, round(chosen[0].width * scale)), max(1, round(chosen[0].height * scale))
    strip = Image.new("RGB", (width * count, height))
    for place, frame in enumerate(chosen):
        strip.paste(frame.convert("RGB").resize((width, height), Image.Resampling.LANCZOS), (place * width, 0))
    encoded = io.BytesIO()
    strip.save(encoded, format="WEBP", quality=70, method=4)
    picture = base64.b64encode(encoded.getvalue()).decode()
    style = f"--n:{count};--w:{width};--h:{height};--s:{count / FRAMES_PER_SECOND:.2f}s;"
    style += f"background-image:url(data:image/webp;base64,{picture})"
    marks = {True: ("right", "\u2713 "), False: ("wrong", "\u2717 "), None: ("text", "")}
    listed = _joined(
        Markup('<li><span class="{}">{}</span>{}</li>').format(*marks[is_right], line) for line, is_right in lines
    )
    if count == 1:
        film = Markup('<div class="film still" role="img" aria-label="{}" style="{}"></div>').format(name, style)
    else:
        film = Markup(
            '<button type="button" class="film" aria-pressed="false" aria-label="Play {}" style="{}"></button>'
        ).format(name, style)
    return Markup('<figure class="clip">{}<figcaption><strong>{}</strong><ul>{}</ul></figcaption></figure>\n').format(
        film, caption, listed
    )


def clips(films: Sequence[Markup]) -> Markup:
    """Films beside each other, with a button that plays all of them."""
    return Markup(
        '<div class="player"><div class="controls"><button type="button" class="play-all" aria-pressed="false">Play all'
        '</button></div><div class="clips">{}</div></div>\n'
    ).format(_joined(films))
