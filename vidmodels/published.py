"""What authors report about a data set, beside which ours stands: charts and tables."""

from collections.abc import Sequence

from vidmodels.recipes import list_recipes, load_recipe
from vidmodels.types import Recipe
from vidprep import page
from vidprep.page import Cell, Column, Marker, Point, Section, Series

__all__ = ["MARKERS", "MARKER_NAMES", "METRICS", "published_recipes", "published_section", "published_series"]

MARKERS: dict[str, Marker] = {"trainable": "circle", "dynamic": "diamond", "only": "square", "exits": "plus"}
"""Form -> shape of its mark; "only" where there is no other form."""
MARKER_NAMES: dict[Marker, str] = {
    "circle": "trainable form: computes everything",
    "diamond": "dynamic form: really skips",
    "square": "the only form of its method",
    "plus": "videos leave early",
    "triangle": "published, in its authors' convention",
}
METRICS = {"top1": "top-1 accuracy (%)", "map": "mAP (%)", "map50": "mAP50 (%)"}


def published_recipes(dataset: str) -> list[Recipe]:
    """Recipes on this data set that come with the package and say what their authors report."""
    recipes = [load_recipe(name) for name in list_recipes()]
    return [recipe for recipe in recipes if recipe.data.dataset == dataset and recipe.published is not None]


def published_series(recipes: Sequence[Recipe], metric: str) -> list[Series]:
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


def published_section(dataset: str, recipes: Sequence[Recipe]) -> list[Section]:
    """A table of all that is published, as a section of its own; none where nothing is."""
    if not recipes:
        return []
    columns = [
        Column(name="recipe"),
        *(Column(name=name, is_number=True) for name in ("top-1", "top-5", "mAP", "mAP50", "GMACs", "parameters")),
        Column(name="convention", is_long=True),
        Column(name="source", is_long=True),
    ]
    rows: list[list[str | Cell]] = []
    for recipe in recipes:
        if recipe.published is None:
            continue
        figures = recipe.published
        values = (figures.top1, figures.top5, figures.map, figures.map50, figures.gmacs)
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
