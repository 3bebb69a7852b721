"""An evaluation taken apart: which videos it is of, what became of each class, and which class is taken for which."""

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from vidmodels.checkpoints import write_atomically
from vidmodels.evaluate import Result
from vidmodels.metrics import mean_average_precision
from vidmodels.runs import Run
from vidmodels.streams import StreamResult
from vidprep.errors import MissingPackage, UsageError
from vidprep.index import Fault, read_manifest
from vidprep.load.shards import ShardDataset

__all__ = [
    "Coverage",
    "Naming",
    "check_confusion_exists",
    "check_confusion_file",
    "check_table_file",
    "confusion_matrix",
    "confusion_pairs",
    "confusion_tables",
    "coverage_of",
    "figures_per_class",
    "objects_per_class",
    "write_confusion",
    "write_table",
]

MAX_NAMED = 5
"""Missing videos named in a remark; files and pages have all of them."""
MAX_DRAWN_NUMBERS = 20
"""Classes up to which a drawn matrix has its counts written into it."""
MAX_DRAWN_NAMES = 60
"""Classes up to which a drawn matrix has their names beside it."""


# Which videos


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Which videos of a split were scored, and which were not."""

    num_listed: int
    """Videos (segments) that the split's list has."""
    num_scored: int
    missing: tuple[Fault, ...] = ()
    """Those in no shard, and why."""
    num_too_short: int = 0
    """Those that the recipe leaves out, by `data.min_frames`."""

    @property
    def is_whole(self) -> bool:
        """Nothing is missing."""
        return self.num_scored == self.num_listed

    def if_wrong(self, percent: float) -> float:
        """An accuracy of the scored videos, if those that were not scored counted as wrong."""
        return percent * self.num_scored / self.num_listed

    @property
    def sentence(self) -> str:
        """What is missing; "" where nothing is."""
        if self.is_whole:
            return ""
        causes = []
        if self.missing:
            named = "; ".join(f"{fault.video_id} ({fault.reason})" for fault in self.missing[:MAX_NAMED])
            more = f"; and {len(self.missing) - MAX_NAMED} more" if len(self.missing) > MAX_NAMED else ""
            causes.append(f"{len(self.missing)} in no shard: {named}{more}")
        if self.num_too_short:
            causes.append(f"{self.num_too_short} shorter than data.min_frames")
        return (
            f"MISSING: {self.num_listed - self.num_scored} of the {self.num_listed} videos of the split are not "
            f"scored, so these figures are not those of the split ({'; '.join(causes)})"
        )

    def to_json(self) -> dict[str, Any]:
        """For a file, with every missing video."""
        return {
            "num_listed": self.num_listed,
            "num_scored": self.num_scored,
            "num_too_short": self.num_too_short,
            "missing": {fault.video_id: fault.reason for fault in self.missing},
        }


def coverage_of(dataset: ShardDataset) -> Coverage:
    """What the manifest of a split says about its list, beside what the recipe takes of the shards."""
    manifest = dataset.manifest
    in_shards = sum(shard.num_samples for shard in manifest.shards)
    return Coverage(
        num_listed=manifest.num_videos,
        num_scored=len(dataset),
        missing=manifest.faults,
        num_too_short=in_shards - len(dataset),
    )


# What became of each class


@dataclass(frozen=True, kw_only=True)
class Naming:
    """Whose figures a table has."""

    model: str
    form: str


def figures_per_class(
    result: Result, naming: Naming, *, classes: Sequence[str], nouns: Sequence[str] = ()
) -> pd.DataFrame:
    """A row a class, those without videos too.

    Args:
        result: of one form of one model.
        naming: whose it is, for the first columns.
        classes: their names; of verbs and nouns the verbs'.
        nouns: names of the nouns, where there are such.

    Returns:
        Columns `model`, `form`, `kind` ("class", or "verb" and "noun"), `label` (the class as a number), `class`,
        `videos` (of that class), `predicted` (videos that are taken for it; of several labels missing, as `top1` and
        `top5` are), `top1` and `top5` (per cent of its videos) and `average_precision` (per cent). What a class without
        videos would have is missing.
    """
    has_nouns = result.noun_labels is not None and result.noun_probabilities is not None
    kind = "verb" if nouns else "class"
    tables = [_per_class(result.labels, result.scores, result.probabilities, naming, kind, classes)]
    if has_nouns and result.noun_labels is not None and result.noun_probabilities is not None:
        scores = result.noun_probabilities
        tables.append(_per_class(result.noun_labels, scores, scores, naming, "noun", nouns))
    return pd.concat(tables, ignore_index=True)


def _per_class(
    labels: Tensor, scores: Tensor, probabilities: Tensor, naming: Naming, kind: str, classes: Sequence[str]
) -> pd.DataFrame:
    num_classes = len(classes)
    is_multi_label = labels.ndim == 2
    targets = labels.long() if is_multi_label else torch.nn.functional.one_hot(labels, num_classes)
    counts = targets.sum(0)
    average = mean_average_precision(probabilities, targets)[1]
    columns: dict[str, Any] = {
        "model": naming.model,
        "form": naming.form,
        "kind": kind,
        "label": list(range(num_classes)),
        "class": list(classes),
        "videos": counts.tolist(),
    }
    none: list[float | None] = [None] * num_classes
    predicted, top1, top5 = list(none), list(none), list(none)
    if not is_multi_label:
        order = scores.argsort(dim=1, descending=True, stable=True)
        predicted = torch.bincount(order[:, 0], minlength=num_classes).tolist()
        is_found = order == labels[:, None]
        top1, top5 = (
            _where_counted(100 * torch.bincount(labels[is_found[:, :k].any(1)], minlength=num_classes) / counts, counts)
            for k in (1, 5)
        )
    frame = pd.DataFrame(columns)
    frame["predicted"] = pd.array(predicted, dtype="Int64")
    frame["top1"] = pd.array(top1, dtype="Float64")
    frame["top5"] = pd.array(top5, dtype="Float64")
    frame["average_precision"] = pd.array(_where_counted(average, counts), dtype="Float64")
    return frame


def _where_counted(values: Tensor, counts: Tensor) -> list[float | None]:
    return [value if count else None for value, count in zip(values.tolist(), counts.tolist(), strict=True)]


def objects_per_class(result: StreamResult, naming: Naming) -> pd.DataFrame:
    """A row a class of a detector, those without objects too.

    Returns:
        Columns `model`, `form`, `kind` ("object"), `label`, `class`, `objects` (counted in every frame), `found`
        (detections of any score) and `map50` (per cent; missing where there is no object, or nothing is annotated).
    """
    objects: Counter[int] = Counter()
    found: Counter[int] = Counter()
    for frame in result.frames:
        if frame.targets is not None:
            objects.update(frame.targets.labels.tolist())
        found.update(frame.detections.labels.tolist())
    average = {} if result.scores is None else result.scores.map50_per_class
    labels = range(len(result.classes))
    table = pd.DataFrame(
        {
            "model": naming.model,
            "form": naming.form,
            "kind": "object",
            "label": list(labels),
            "class": list(result.classes),
            "objects": [objects[label] for label in labels],
            "found": [found[label] for label in labels],
        }
    )
    table["map50"] = pd.array([average.get(label) for label in labels], dtype="Float64")
    return table


TABLE_ENDINGS = (".csv", ".parquet", ".json")


def check_table_file(path: Path) -> None:
    """Raises UsageError where a table cannot be written to this name."""
    if path.suffix not in TABLE_ENDINGS or not path.absolute().parent.is_dir():
        raise UsageError(f"{path}: expected a name ending in {', '.join(TABLE_ENDINGS)}, in a folder that exists.")


def write_table(table: pd.DataFrame, path: Path) -> None:
    """All rows as `.csv`, `.parquet` or `.json`.

    Raises:
        UsageError: another ending, or no such folder.
    """
    check_table_file(path)
    buffer = io.BytesIO()
    if path.suffix == ".csv":
        buffer.write(table.to_csv(index=False, lineterminator="\n").encode())
    elif path.suffix == ".parquet":
        table.to_parquet(buffer, index=False)
    else:
        text = table.to_json(orient="records", indent=1, force_ascii=False)
        buffer.write((text + "\n").encode())
    write_atomically(path, lambda file: file.write(buffer.getvalue()))


# Which class is taken for which

SEVERAL_LABELS = (
    "videos with several labels have no confusion matrix: none of their classes is the one that another is taken for; "
    "--per-class has the average precision of each class."
)


def confusion_matrix(labels: Tensor, predicted: Tensor, *, num_classes: int) -> Tensor:
    """(k, k) counts: videos of the row's class that are taken for the column's.

    Args:
        labels: (n,) class indices.
        predicted: (n,) class indices.
        num_classes: k.

    Raises:
        UsageError: several labels a video: none of them is the one that another is taken for.
    """
    if labels.ndim != 1:
        raise UsageError(SEVERAL_LABELS)
    places = labels * num_classes + predicted
    return torch.bincount(places, minlength=num_classes**2).view(num_classes, num_classes)


def confusion_tables(result: Result, *, classes: Sequence[str], nouns: Sequence[str] = ()) -> dict[str, pd.DataFrame]:
    """Confusion matrices with the classes' names: "class", or "verb" and, where the model knows them, "noun".

    The index is the true class, the columns are the predicted ones.

    Raises:
        UsageError: several labels a video.
    """
    tables = {
        "verb" if nouns else "class": _named(
            confusion_matrix(result.labels, result.predictions, num_classes=len(classes)), classes
        )
    }
    if result.noun_labels is not None and result.noun_probabilities is not None:
        predicted = result.noun_probabilities.argsort(dim=1, descending=True, stable=True)[:, 0]
        tables["noun"] = _named(confusion_matrix(result.noun_labels, predicted, num_classes=len(nouns)), nouns)
    return tables


def _named(matrix: Tensor, classes: Sequence[str]) -> pd.DataFrame:
    times = Counter(classes)
    names = [name if times[name] == 1 else f"{name} ({label})" for label, name in enumerate(classes)]
    return pd.DataFrame(matrix.numpy(), index=pd.Index(names, name="label"), columns=names)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Videos of one class that are taken for another."""

    label: str
    predicted: str
    count: int
    share: float
    """Of the videos of that class, in 0 ... 1."""


def confusion_pairs(table: pd.DataFrame) -> list[Pair]:
    """All pairs of different classes that are confused, the most videos first; then the larger share."""
    matrix = torch.from_numpy(table.to_numpy(copy=True))
    totals = matrix.sum(1)
    names = list(table.columns)
    pairs = [
        Pair(
            label=names[row],
            predicted=names[column],
            count=int(matrix[row, column]),
            share=float(matrix[row, column] / totals[row]),
        )
        for row, column in matrix.nonzero().tolist()
        if row != column
    ]
    return sorted(pairs, key=lambda pair: (-pair.count, -pair.share))


CONFUSION_ENDINGS = (".png", ".csv", ".parquet")


def check_confusion_file(path: Path) -> None:
    """Raises UsageError where a matrix cannot be written to this name, MissingPackage where it cannot be drawn."""
    if path.suffix not in CONFUSION_ENDINGS or not path.absolute().parent.is_dir():
        raise UsageError(f"{path}: expected a name ending in {', '.join(CONFUSION_ENDINGS)}, in a folder that exists.")
    if path.suffix == ".png":
        try:
            import matplotlib  # noqa: F401
        except ImportError as error:
            raise MissingPackage("Drawing a matrix needs the `plots` extra: pip install 'vidprep[plots]'.") from error


def check_confusion_exists(run: Run, *, data: Path | None, split: str | None) -> None:
    """Whether a model's videos have one label each, before it is evaluated.

    Args:
        run: the model.
        data: its shards; None takes those of the run.
        split: None takes the recipe's validation split.

    Raises:
        UsageError: they have several labels, or boxes; or there are no such shards.
    """
    folder = data or run.data
    task = None if folder is None else read_manifest(folder, split or run.recipe.data.val_split).task
    if task == "detection" or run.recipe.eval.metric == "map50":
        raise UsageError(
            "a detector has no confusion matrix, what it finds may be no object at all; --per-class has the average "
            "precision of each class."
        )
    if task == "multi_label":
        raise UsageError(SEVERAL_LABELS)


def write_confusion(tables: dict[str, pd.DataFrame], path: Path, *, title: str) -> list[Path]:
    """Write each matrix: the first to `path`, further ones beside it, with their kind in the name; what was written.

    Raises:
        UsageError: another ending than .png, .csv or .parquet, or no such folder.
        MissingPackage: a picture, and there is no matplotlib.
    """
    check_confusion_file(path)
    written = []
    for number, (kind, table) in enumerate(tables.items()):
        target = path if not number else path.with_name(f"{path.stem}_{kind}{path.suffix}")
        buffer = io.BytesIO()
        if path.suffix == ".csv":
            buffer.write(table.to_csv(lineterminator="\n").encode())
        elif path.suffix == ".parquet":
            table.to_parquet(buffer)
        else:
            buffer.write(_draw(table, title if kind == "class" else f"{title}, {kind}s"))
        content = buffer.getvalue()
        write_atomically(target, lambda file, content=content: file.write(content))  # type: ignore[misc]
        written.append(target)
    return written


def _draw(table: pd.DataFrame, title: str) -> bytes:
    """A picture of the matrix: the darker a cell, the more of its row's videos it has."""
    from matplotlib.figure import Figure

    counts = table.to_numpy()
    size = len(counts)
    inches = min(24.0, max(6.0, 0.3 * size + 3.0))
    figure = Figure(figsize=(inches, inches), dpi=120, layout="constrained")
    axes = figure.subplots()
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    image = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(image, ax=axes, label="% of the videos of the class", shrink=0.7)
    axes.set_xlabel("taken for")
    axes.set_ylabel("class")
    axes.set_title(title)
    if size <= MAX_DRAWN_NAMES:
        axes.set_xticks(range(size), list(table.columns), rotation=90)
        axes.set_yticks(range(size), list(table.index))
    if size <= MAX_DRAWN_NUMBERS:
        for row in range(size):
            for column in range(size):
                if counts[row, column]:
                    colour = "white" if shares[row, column] > 0.5 else "black"
                    axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
