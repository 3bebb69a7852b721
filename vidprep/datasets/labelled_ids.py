"""The annotation files of Jester and Something-Something V1: `id;Class name`, a list of classes, ids of the test set.

Both have two numberings of their classes: that of their own labels.csv (OpenMMLab, AdaFuse, TAPS), which vidprep takes,
and plain sorted order (lists made with TSM's script, Uni-AdaFocus-TSM).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from vidprep.datasets.annotations import (
    Answers,
    ListRow,
    Rows,
    is_number,
    read_lines,
    read_list,
    sorted_ids,
    split_of_list,
)
from vidprep.errors import UsageError, quote, suggest
from vidprep.splits import Split, read_classes
from vidprep.types import DatasetInfo, Video

__all__ = ["build_splits"]


def build_splits(annotations: Sequence[Path], *, info: DatasetInfo, known: Mapping[str, int]) -> dict[str, Split]:
    """The splits that official files, or lists of training codes (`34870 37 24`), hold.

    Files of `id;Class name` are told apart by their names; a file of ids alone is the test set, and a file called
    `test-answers` labels it. A file of class names is compared with the classes.

    A list in sorted numbering is recognised by a clip whose class is known, and renumbered with a note. A file of ids
    alone says nothing of its data set but by its name and by how high the ids go: both number their clips from 1.

    Args:
        annotations: the files.
        info: of the data set.
        known: video_id -> class, of some clips of each split, that tell the two numberings apart.

    Raises:
        UsageError: a file is of none of these forms or of another data set; names file, line and reason.
    """
    rows = Rows(info, read_classes(info.name))
    answers = Answers()
    tests: list[tuple[str, str]] = []
    for path in annotations:
        lines = list(read_lines(path))
        first = lines[0][1]
        if ";" in first:
            _read_labelled(path, lines, rows, answers)
        elif is_number(first):
            tests += _read_ids(path, lines, info)
        elif is_number(first.split(" ")[-1]):
            _read_list(path, rows, known)
        else:
            _check_classes(path, lines, rows)
    answers.add_tests(tests, rows)
    return rows.to_splits()


def _read_labelled(path: Path, lines: Sequence[tuple[int, str]], rows: Rows, answers: Answers) -> None:
    class_index = {name: index for index, name in enumerate(rows.classes)}
    split = split_of_list(path)
    for line, text in lines:
        place = f"{path}, line {line}"
        video_id, _, name = text.partition(";")
        if not is_number(video_id) or not name:
            raise UsageError(f"{place}: expected `id;Class name`, got {quote(text)}; is the file cut short?")
        if name not in class_index:
            raise UsageError(f"{place}: {quote(name)} is no class of {rows.info.title}; {suggest(name, class_index)}")
        if split == "test":
            answers.add(video_id, class_index[name], place=place)
        else:
            rows.add(split, Video(video_id=video_id, labels=(class_index[name],)), place=place, label=name)


def _read_ids(path: Path, lines: Sequence[tuple[int, str]], info: DatasetInfo) -> list[tuple[str, str]]:
    places: list[tuple[str, str]] = []
    other = {"jester": "something-something", "something_v1": "jester"}[info.name]
    if other in path.name.lower():
        raise UsageError(f"{path}: is called as a file of another data set ({other}); give that of {info.title}.")
    highest = sum(count or 0 for count in info.splits.values())
    for line, text in lines:
        if not is_number(text):
            raise UsageError(f"{path}, line {line}: expected the id of a test video, got {quote(text)}.")
        if not 1 <= int(text) <= highest:
            raise UsageError(
                f"{path}, line {line}: the ids of {info.title} go from 1 to {highest}, got {text}; is the file of "
                "another data set?"
            )
        places.append((text, f"{path}, line {line}"))
    return places


def _check_classes(path: Path, lines: Sequence[tuple[int, str]], rows: Rows) -> None:
    """A copy of labels.csv in another order is refused: lists made with it have other numbers."""
    for index, (line, name) in enumerate(lines):
        if name not in rows.classes:
            raise UsageError(
                f"{path}, line {line}: {quote(name)} is no class of {rows.info.title}; "
                f"{suggest(name[:80], rows.classes)}"
            )
        if rows.classes[index] != name:
            raise UsageError(
                f"{path}, line {line}: expected {rows.classes[index]!r} as class {index}, got {quote(name)}; copies of "
                "this file in other orders circulate. vidprep needs no class file: leave it out."
            )
    if len(lines) != len(rows.classes):
        raise UsageError(f"{path}: expected {len(rows.classes)} classes, got {len(lines)}; is the file cut short?")


def _read_list(path: Path, rows: Rows, known: Mapping[str, int]) -> None:
    listed = read_list(path, num_classes=len(rows.classes))
    to_sorted = sorted_ids(rows.classes)
    is_sorted = _is_sorted(path, listed, known, to_sorted)
    for row in listed:
        label = to_sorted.index(row.labels[0]) if is_sorted else row.labels[0]
        split = split_of_list(path, row.folder)
        # The folders of frames are taken as they were published, so the list's count is the length of the clip.
        video = Video(video_id=row.name, labels=(label,), num_frames=row.num_frames or None)
        rows.add(split, video, place=row.place, label=str(row.labels[0]))
    split = split_of_list(path, listed[0].folder)
    if is_sorted:
        rows.note(split, f"{path}: its classes were numbered in sorted order (TSM's script); renumbered.")
    elif is_sorted is None:
        rows.note(
            split,
            f"{path}: nothing in it tells in which of two orders its classes are numbered; taken for the official one.",
        )


def _is_sorted(
    path: Path, listed: Sequence[ListRow], known: Mapping[str, int], to_sorted: Sequence[int]
) -> bool | None:
    """Whether a list is numbered in sorted order; None when no known clip is in it."""
    for row in listed:
        label = known.get(row.name)
        if label is None:
            continue
        if row.labels[0] not in (label, to_sorted[label]):
            raise UsageError(
                f"{row.place}: {row.name} is class {label} officially and {to_sorted[label]} in sorted order, got "
                f"{row.labels[0]}; is the list of another data set?"
            )
        return row.labels[0] != label
    return None
