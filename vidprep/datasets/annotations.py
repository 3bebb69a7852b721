"""Reading annotation files: text, JSON and lists in their many dialects, and gathering their rows into splits.

All readers take UTF-8 with or without byte-order mark, any line ends, with or without a final newline.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidprep.errors import UsageError, quote
from vidprep.splits import Split
from vidprep.types import DatasetInfo, Video

__all__ = [
    "YOUTUBE_ID",
    "Answers",
    "ListRow",
    "Rows",
    "is_number",
    "label_key",
    "line_numbers",
    "line_of",
    "read_class_names",
    "read_json",
    "read_lines",
    "read_list",
    "read_text",
    "sorted_ids",
    "split_of_list",
]

MAX_REPEATS_NAMED = 5
"""Of rows that repeat others; two files of one split (val.csv and val.txt of Kinetics-600) share thousands."""

YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]{11}")


def read_text(path: Path, *, expected: str) -> str:
    """The text of a file; `expected` ("CSV", "JSON") says in the error sentence what it should have been.

    Raises:
        UsageError: it cannot be read, or is not text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: not a text file in UTF-8 (byte {error.start}); expected {expected}, unpacked."
        ) from error


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, each with its number counted from 1, without the spaces around it.

    Raises:
        UsageError: the file cannot be read, is not text, or holds no line.
    """
    is_empty = True
    # not splitlines(): a form feed or U+2028 in a name ends no line
    for number, line in enumerate(re.split(r"\r\n|\n|\r", read_text(path, expected="text")), start=1):
        if line.strip():
            is_empty = False
            yield number, line.strip()
    if is_empty:
        raise UsageError(f"{path}, line 1: the file is empty; fetch it again.")


def read_json(path: Path, *, name: str) -> tuple[Any, str]:
    """The content of a JSON file, and its text for `line_of`; `name` is the file's official name.

    Raises:
        UsageError: it cannot be read, is cut short, or gives a key twice in one object.
    """
    text = read_text(path, expected="JSON")
    try:
        return json.loads(text, object_pairs_hook=_without_doubles, parse_constant=_refuse_constant), text
    except json.JSONDecodeError as error:
        raise UsageError(
            f"{path}, line {error.lineno}, column {error.colno}: not readable as JSON ({error.msg}); "
            f"is the file cut short, or not {name}?"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not readable as JSON ({error}).") from error


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's members; plain `json` would keep the last of two equal keys in silence."""
    members = dict(pairs)
    if len(members) < len(pairs):
        keys = [key for key, _ in pairs]
        double = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{quote(double)} is given twice in one object")
    return members


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def line_of(key: str, text: str) -> int:
    """Line of the first appearance of `"key"` in JSON; official files are one line, copies are often indented."""
    return text.count("\n", 0, max(text.find(f'"{key}"'), 0)) + 1


def line_numbers(text: str, pattern: str) -> dict[str, int]:
    """The line on which each text that the first group of `pattern` captures appears first, by one pass."""
    lines: dict[str, int] = {}
    line, position = 1, 0
    for found in re.finditer(pattern, text):
        line += text.count("\n", position, found.start())
        position = found.start()
        lines.setdefault(found[1], line)
    return lines


def is_number(text: str) -> bool:
    """Whether a text is digits 0-9 and nothing else; `isdigit` alone takes superscripts, too."""
    return text.isascii() and text.isdigit() and len(text) < 19


def label_key(name: str) -> str:
    """What is common to all spellings of a class: lower case, only a-z and 0-9; unique within each Kinetics."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def sorted_ids(classes: Sequence[str]) -> tuple[int, ...]:
    """Index of each class in plain sorted order: how TSM's list makers number Something-Something V1 and Jester."""
    rank = {name: index for index, name in enumerate(sorted(classes))}
    return tuple(rank[name] for name in classes)


def read_class_names(path: Path) -> tuple[str, ...]:
    """The names of a class file: one a line, or `id,name` with ids from 0 in order; a heading `action` is passed over.

    Raises:
        UsageError: the file cannot be read, its ids are not 0, 1, 2, ..., or a name repeats.
    """
    names: dict[str, int] = {}
    is_numbered: bool | None = None
    for line, text in read_lines(path):
        if text == "action" and not names:  # BSN's action_name.csv
            continue
        numbered = re.fullmatch(r"([0-9]{1,9}),(.+)", text)
        if is_numbered is None:
            is_numbered = numbered is not None
        if is_numbered and (numbered is None or int(numbered[1]) != len(names)):
            raise UsageError(f"{path}, line {line}: expected `{len(names)},name`, got {quote(text)}.")
        name = numbered[2].strip() if is_numbered and numbered else text
        if name in names:
            raise UsageError(f"{path}, line {line}: {quote(name)} is already given on line {names[name]}.")
        names[name] = line
    return tuple(names)


@dataclass
class Answers:
    """Labels of test videos that were published apart from the list of these videos."""

    labels: dict[str, tuple[int, str]] = field(default_factory=dict)
    """video_id -> class, and file and line."""

    def add(self, video_id: str, label: int, *, place: str) -> None:
        """Take one row.

        Raises:
            UsageError: an earlier row gives the same video another class.
        """
        earlier, earlier_place = self.labels.setdefault(video_id, (label, place))
        if label != earlier:
            raise UsageError(
                f"{place}: {video_id} has another class than in {earlier_place}; correct the row, or fetch the file "
                "again."
            )

    def add_tests(self, listed: Sequence[tuple[str, str]], rows: "Rows") -> None:
        """The test split: the videos `listed` (id; file and line), without them those of the answers.

        Videos without an answer stay unlabelled, answers for other videos are left out; both are noted.
        """
        tests = listed or [(video_id, place) for video_id, (_, place) in self.labels.items()]
        for video_id, place in tests:
            labels = (self.labels[video_id][0],) if video_id in self.labels else ()
            rows.add("test", Video(video_id=video_id, labels=labels), place=place)
        unlabelled = sum(video_id not in self.labels for video_id, _ in tests)
        if self.labels and unlabelled:
            rows.note("test", f"{unlabelled:,} of {len(tests):,} test videos are not in the answers; left unlabelled.")
        strangers = len(self.labels.keys() - {video_id for video_id, _ in tests})
        if strangers:
            rows.note("test", f"{strangers:,} answers are of videos that the test file does not list; left out.")


@dataclass(frozen=True, kw_only=True)
class ListRow:
    """One line of a training code's list: a folder of frames, their count and the class or classes."""

    place: str
    """File and line, to open an error sentence."""
    folder: str
    num_frames: int
    labels: tuple[int, ...]

    @property
    def name(self) -> str:
        """The last part of `folder`: the video."""
        return self.folder.rpartition("/")[2]


LIST_LINES = (
    re.compile(r"(?P<folder>[^;]+);(?P<frames>[0-9]{1,9});(?P<labels>[0-9]{1,9})"),
    re.compile(r"(?P<folder>[^,]+),(?P<frames>[0-9]{1,9}),(?P<labels>[0-9]{1,9}(?:,[0-9]{1,9}){0,2})"),
    re.compile(
        r"(?P<folder>.+) (?P<frames>[0-9]{1,9}) (?P<labels>[0-9]{1,9})"
    ),  # cut from the right: folders hold spaces
)


def read_list(path: Path, *, num_classes: int) -> list[ListRow]:
    """The rows of a list of TAPS, AR-Net, AdaFuse, AdaFocus or TSM: `folder frames class`.

    Separated by spaces (cut from the right), semicolons or commas; with commas up to three classes.

    Raises:
        UsageError: a line is not of this form, or a class is not below `num_classes`; names file and line.
    """
    rows: list[ListRow] = []
    for line, text in read_lines(path):
        place = f"{path}, line {line}"
        found = next((found for form in LIST_LINES if (found := form.fullmatch(text))), None)
        if found is None:
            raise UsageError(
                f"{place}: expected `folder frames class` (or folder,frames,class[,class[,class]]), got {quote(text)}; "
                "is the file cut short, or another kind of file?"
            )
        labels = tuple(dict.fromkeys(int(label) for label in found["labels"].split(",")))
        if max(labels) >= num_classes:
            raise UsageError(f"{place}: the classes count from 0 to {num_classes - 1}, got {max(labels)}.")
        rows.append(
            ListRow(place=place, folder=found["folder"].strip("/"), num_frames=int(found["frames"]), labels=labels)
        )
    return rows


def split_of_list(path: Path, folder: str = "") -> str:
    """The split of a list's line: by a folder called train, val or test in it, else by the name of the file.

    Raises:
        UsageError: neither says.
    """
    for part in folder.split("/")[:-1]:
        if part in ("train", "val", "test"):
            return part
    named = [split for split in ("train", "val", "test") if re.search(rf"(^|[^a-z]){split}", path.name.lower())]
    if len(named) != 1:
        raise UsageError(
            f"{path}: its name does not say of which split it is; expected train, val or test in it, as published."
        )
    return named[0]


@dataclass
class Rows:
    """Rows of annotation files on their way to splits, in the order of the files."""

    info: DatasetInfo
    classes: tuple[str, ...]
    noun_classes: tuple[str, ...] = ()
    videos: dict[str, dict[tuple[str, float | None, float | None, str], tuple[Video, str]]] = field(
        default_factory=dict
    )
    notes: dict[str, list[str]] = field(default_factory=dict)
    num_repeats: dict[str, int] = field(default_factory=dict)

    def add(self, split: str, video: Video, *, place: str, label: str = "") -> None:
        """Take one row; a repeated one is taken once and noted.

        Args:
            split: of the row.
            video: the row.
            place: file and line.
            label: as the file writes it, for the error sentence.

        Raises:
            UsageError: an earlier row gives the same video another label.
        """
        key = (video.video_id, video.start_seconds, video.end_seconds, video.segment_id)
        videos = self.videos.setdefault(split, {})
        if key not in videos:
            videos[key] = (video, place)
            return
        earlier, earlier_place = videos[key]
        if video.labels != earlier.labels:
            raise UsageError(
                f"{place}: {video.video_id} has label {quote(label or 'none')}, another one than in {earlier_place}; "
                "give only one of the two files, or correct the row."
            )
        self.num_repeats[split] = self.num_repeats.get(split, 0) + 1
        if self.num_repeats[split] <= MAX_REPEATS_NAMED:
            self.note(split, f"{place}: {video.video_id} repeats {earlier_place}; taken once.")

    def note(self, split: str, sentence: str) -> None:
        """Keep a sentence for `Split.notes`."""
        self.notes.setdefault(split, []).append(sentence)

    def to_splits(self) -> dict[str, Split]:
        """A split for each name that has rows."""
        for split, count in self.num_repeats.items():
            if count > MAX_REPEATS_NAMED:
                self.note(split, f"{count - MAX_REPEATS_NAMED:,} more rows repeat an earlier one; taken once.")
        return {
            split: Split(
                dataset=self.info.name,
                split=split,
                task=self.info.task,
                classes=self.classes,
                noun_classes=self.noun_classes,
                videos=tuple(video for video, _ in rows.values()),
                notes=tuple(self.notes.get(split, ())),
            )
            for split, rows in self.videos.items()
            if rows
        }
