import base64
import dataclasses
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from markupsafe import Markup
from PIL import Image

from tests.videos import number_image, read_number
from vidprep import page
from vidprep.page import Cell, Column, ColumnBar, Point, Section, Series

WICKED = "<script>alert('x')</script>\"&"


def drawing(chart: Markup) -> ElementTree.Element:
    """The chart's SVG, which is well-formed XML."""
    return ElementTree.fromstring(chart[chart.index("<svg") : chart.index("</svg>") + 6])


def positions(chart: Markup) -> list[tuple[float, float]]:
    marks = [mark for mark in drawing(chart).iter("g") if mark.get("class") == "point"]
    return [tuple(map(float, re.findall(r"[-\d.]+", mark.get("transform", "")))) for mark in marks]  # type: ignore[misc]


def series(*places: tuple[float, float], name: str = "one", is_hollow: bool = False) -> Series:
    points = [Point(x=x, y=y, tip=f"{x} {y}") for x, y in places]
    return Series(name=name, points=points, is_hollow=is_hollow, is_joined=True)


def chart(*of: Series) -> Markup:
    return page.scatter_chart("title", of, x_label="GMACs", y_label="top-1 (%)")


def test_a_page_asks_for_nothing_from_outside() -> None:
    text = page.page("t", lead="l", sections=[Section(title="s", body=page.paragraph("p"))])
    assert "default-src 'none'" in text
    assert set(re.findall(r"(?:src|href)=(.)(.)", text)) == {('"', "#")}
    assert re.findall(r"https?:|@import", text) == []


def test_names_from_files_are_escaped_everywhere() -> None:
    parts = [
        page.paragraph(WICKED),
        page.item_list([WICKED]),
        page.facts([(WICKED, WICKED)]),
        page.details(WICKED, WICKED, pairs=[(WICKED, WICKED)]),
        page.table([Column(name=WICKED)], [[WICKED], [Cell(text=WICKED)]], caption=WICKED),
        page.scatter_chart(
            WICKED, [Series(name=WICKED, points=[Point(x=1, y=1, tip=WICKED)])], x_label=WICKED, y_label=WICKED
        ),
        page.matrix_chart(WICKED, [WICKED], [[1]], row_label=WICKED, column_label=WICKED),
        page.column_chart(WICKED, [ColumnBar(start=0, end=1, height=1, tip=WICKED)], x_label=WICKED, y_label=WICKED),
        page.clip([Image.new("RGB", (8, 8))], name=WICKED, caption=WICKED, lines=[(WICKED, True)]),
    ]
    text = page.page(WICKED, lead=WICKED, footer=WICKED, sections=[Section(title=WICKED, body=part) for part in parts])
    assert "alert('x')" not in text
    assert text.count("<script>") == 1


def test_points_lie_where_their_values_are() -> None:
    places = positions(chart(series((1, 50), (2, 60), (4, 40))))
    (x1, y1), (x2, y2), (x4, y4) = places
    assert x4 - x2 == pytest.approx(2 * (x2 - x1), abs=0.2)
    assert y1 - y2 == pytest.approx(y4 - y1, abs=0.2)
    assert y2 < y1 < y4, "a higher value lies further up"


def test_costs_that_differ_much_lie_on_a_logarithmic_axis() -> None:
    of = chart(series((1, 50), (10, 60), (100, 40)))
    (x1, _), (x10, _), (x100, _) = positions(of)
    assert x100 - x10 == pytest.approx(x10 - x1, abs=0.2)
    assert "GMACs, logarithmic" in of


def test_the_front_passes_by_what_is_worse_and_what_was_not_measured() -> None:
    of = chart(series((1, 50), (2, 40), (3, 60)), series((0.5, 90), name="published", is_hollow=True))
    front = next(path for path in drawing(of).iter("path") if path.get("class") == "front")
    assert len(re.findall("V", front.get("d", ""))) == 1, "from the first point to the third"


@pytest.mark.parametrize("values", [[5.0], [0.0, 0.0], [1e-4, 3e-4], [12.0, 95_000.0]])
def test_any_values_give_an_axis_with_round_ticks(values: list[float]) -> None:
    of = chart(series(*((value, value) for value in values)))
    labels = [text.text for text in drawing(of).iter("text") if text.get("transform") is None]
    assert len(labels) >= 4
    for x, y in positions(of):
        assert page.LEFT <= x <= page.WIDTH - page.RIGHT
        assert page.TOP <= y <= page.HEIGHT - page.BOTTOM


def test_no_tick_lies_above_what_a_value_can_be() -> None:
    of = page.scatter_chart("title", [series((1, 100), (2, 100))], x_label="GMACs", y_label="top-1 (%)", y_most=100.0)
    ticks = [text.text for text in drawing(of).iter("text") if text.get("text-anchor") == "end"]
    assert max(float(text) for text in ticks if text) == 100


def test_a_histogram_counts_every_value_once() -> None:
    values = [0.1, 0.2, 0.25, 3.0, 9.99, 10.0]
    of = page.histogram("title", values, x_label="duration", unit="s", counted="videos")
    tips = re.findall(r'data-tip="([^"]*)"', of)
    assert sum(int(tip.split("\n")[1].split()[0]) for tip in tips) == len(values)
    assert tips[0] == "0 to 0.5 s\n3 videos"
    assert tips[-1] == "9.5 to 10 s\n2 videos"


def test_cells_of_a_matrix_lie_in_rows_and_say_what_they_count() -> None:
    of = page.matrix_chart("t", ["up", "down"], [[3, 1], [0, 0]], row_label="class", column_label="taken for")
    cells = [cell for cell in drawing(of).iter("rect") if "cell" in cell.get("class", "")]
    assert [cell.get("class") for cell in cells] == ["cell same", "cell other", "cell other", "cell same"]
    assert cells[1].get("data-tip") == "up, taken for down 1 of 4 (25.0 %)"
    assert cells[2].get("data-tip") == "down, taken for up 0 of 0 (0.0 %)"
    places = [(float(cell.get("x", "")), float(cell.get("y", ""))) for cell in cells]
    assert places[0][1] == places[1][1] < places[2][1] == places[3][1]
    assert places[0][0] == places[2][0] < places[1][0] == places[3][0]
    assert [float(cell.get("fill-opacity", "")) for cell in cells] == [0.75, 0.25, 0.0, 0.0]
    assert [text.text for text in drawing(of).iter("text") if "count" in text.get("class", "")] == ["3", "1"]


@pytest.mark.parametrize("size", [1, 40])
def test_names_beside_a_matrix_stay_on_the_drawing(size: int) -> None:
    names = [f"a rather long name of a class, number {number}" for number in range(size)]
    of = page.matrix_chart("t", names, [[1] * size] * size, row_label="class", column_label="taken for")
    cells = [cell for cell in drawing(of).iter("rect") if "cell" in cell.get("class", "")]
    assert max(float(cell.get("x", "")) + float(cell.get("width", "")) for cell in cells) <= page.MATRIX_SIDE
    for text in drawing(of).iter("text"):
        if text.get("text-anchor") == "end":
            font = float(text.get("style", "").removeprefix("font-size:").removesuffix("px"))
            assert float(text.get("x", "")) > 0.6 * font * len(text.text or "")


def test_series_can_share_a_colour() -> None:
    one, other = series((1, 50)), series((2, 60), name="other")
    shared = page.scatter_chart("t", [one, dataclasses.replace(other, colour=0)], x_label="x", y_label="y")
    assert shared.count('<g class="series k0 filled">') == 2
    assert '<g class="series k1 filled">' in chart(one, other)


def test_counts_have_whole_ticks() -> None:
    of = page.column_chart("t", [ColumnBar(start=0, end=1, height=2, tip="t")], x_label="x", y_label="samples")
    labels = [text.text for text in drawing(of).iter("text") if text.get("text-anchor") == "end"]
    assert labels == ["0", "1", "2"]


def test_cells_bring_the_value_that_they_are_sorted_by() -> None:
    columns = [Column(name="class"), Column(name="share", is_number=True)]
    rows: list[list[str | Cell]] = [
        ["a", Cell(text="1,000", value=1000, bar=0.5)],
        ["b", Cell(text="", value=float("nan"))],
    ]
    text = page.table(columns, rows, caption="shares")
    assert text.count('aria-sort="none"') == 2
    assert 'data-value="1000.0" style="--f:50.0%">1,000<' in text
    assert 'data-value=""></td>' in text


def test_a_film_holds_its_frames_in_order() -> None:
    frames = [Image.fromarray(number_image(number, width=128, height=96)) for number in range(40)]
    film = page.clip(frames, name="v", caption="c")
    found = re.search(r"--n:(\d+);--w:(\d+);--h:(\d+);.*base64,([^)]+)\)", film)
    assert found is not None
    count, width, height = map(int, found.groups()[:3])
    strip = np.asarray(Image.open(io.BytesIO(base64.b64decode(found[4]))).convert("RGB"))
    assert strip.shape == (height, width * count, 3)
    numbers = [read_number(strip[:, place * width : (place + 1) * width]) for place in range(count)]
    assert numbers == [place * 40 // 32 for place in range(32)]


def test_a_single_frame_is_a_picture_without_a_button() -> None:
    assert "<button" not in page.clip([Image.new("RGB", (8, 8))], name="v", caption="c")


def test_the_environment_names_what_is_installed() -> None:
    found = dict(page.environment(["numpy", "no-such-package"]))
    assert found["numpy"] == np.__version__
    assert "no-such-package" not in found
    assert "cores" in found["processor"]
