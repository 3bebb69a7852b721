"""Who is in which split: the value `Split`, its CSV file, and the lists that come with vidprep.

video_id,label                                  one line a video; labels are class indices, counted from 0
aCbHx1yGnNE_000010_000020,17
QOlSCBRmfWY,14|93                               several labels are joined by "|"; an empty label means unlabelled
                                                (verb_noun: verb|noun, each counted in its own list)

video_id,label,start_seconds,end_seconds        the same for annotated segments
video_id,label,start_seconds,end_seconds,segment_id         ... that have names of their own

Where the annotations state how long the whole video is, a column `duration_seconds` or `num_frames` follows.
"""

import csv
import hashlib
import io
import math
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vidprep.errors import ChecksumMismatch, UsageError, VidprepError, quote
from vidprep.types import Task, Video

__all__ = [
    "LABEL_SEPARATOR",
    "Split",
    "parse_seconds",
    "read_checksums",
    "read_classes",
    "read_packaged",
    "read_split",
    "read_table",
    "split_path",
    "split_to_csv",
    "write_split",
]

LABEL_SEPARATOR = "|"
SEGMENT_COLUMNS = ("start_seconds", "end_seconds", "segment_id")
LENGTH_COLUMNS = ("duration_seconds", "num_frames")


@dataclass(frozen=True, kw_only=True)
class Split:
    """The videos of one split, in a fixed order, with the names of their classes."""

    dataset: str
    split: str
    task: Task
    classes: tuple[str, ...]
    """Class names by index; () when nothing is labelled. Of verb_noun: the verbs."""
    videos: tuple[Video, ...]
    noun_classes: tuple[str, ...] = ()
    """The nouns by index, of verb_noun only."""
    notes: tuple[str, ...] = ()
    """What its maker repaired or passed over, one sentence each; not kept in the split file."""

    def __post_init__(self) -> None:
        place = f"{self.dataset}/{self.split}"
        for names in (self.classes, self.noun_classes):
            if len(set(names)) != len(names):
                raise ValueError(f"{place}: class names repeat")
        if self.noun_classes and self.task != "verb_noun":
            raise ValueError(f"{place}: noun_classes are for verb_noun, the task is {self.task}")
        seen: set[tuple[str, float | None, float | None, str]] = set()
        for video in self.videos:
            self._check_labels(video, place)
            if _key(video) in seen:
                raise ValueError(f"{place}: {video.video_id} is listed twice with the same start and end")
            seen.add(_key(video))

    def _check_labels(self, video: Video, place: str) -> None:
        fault = _find_fault(video.labels, task=self.task)
        if fault:
            raise ValueError(f"{place}: {video.video_id} has labels {video.labels}, {fault}")
        sizes = _sizes(self.task, self.classes, self.noun_classes, num_labels=len(video.labels))
        if any(label >= size for label, size in zip(video.labels, sizes, strict=True)):
            counts = f"{len(self.classes)} classes" + (f", {len(self.noun_classes)} nouns" if self.noun_classes else "")
            raise ValueError(f"{place}: {video.video_id} has labels {video.labels}, of {counts}")


def _key(video: Video) -> tuple[str, float | None, float | None, str]:
    """What tells a row of a split from all others."""
    return video.video_id, video.start_seconds, video.end_seconds, video.segment_id


def _find_fault(labels: Sequence[int], *, task: Task) -> str:
    """What is wrong with the number of a video's labels; "" when nothing is."""
    if task == "single_label" and len(labels) > 1:
        return "the task is single_label"
    if task == "multi_label" and len(set(labels)) < len(labels):
        return "labels repeat"
    if task == "verb_noun" and len(labels) not in (0, 2):
        return "the task is verb_noun: a verb and a noun, or none"
    if task == "detection" and labels:
        return "the task is detection: its labels are those of its boxes"
    return ""


def _sizes(task: Task, classes: Sequence[str], nouns: Sequence[str], *, num_labels: int) -> tuple[int, ...]:
    """The number of classes that each label of a video is one of."""
    return (len(classes), len(nouns))[:num_labels] if task == "verb_noun" else (len(classes),) * num_labels


def write_split(split: Split, path: Path) -> None:
    """Write the split's CSV file at once or not at all; equal splits give equal bytes.

    Raises:
        VidprepError: the file cannot be written.
    """
    _write_atomically(path, split_to_csv(split).encode("utf-8"))


def _write_atomically(path: Path, content: bytes) -> None:
    """Put a file in place whole or not at all: written as NAME.part, then renamed.

    Raises:
        VidprepError: the file cannot be written (no space, no permission).
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(content)
            os.replace(part, path)  # noqa: PTH105 - the name that says it replaces
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise VidprepError(f"{path}: cannot be written ({error.strerror}).") from error


def split_to_csv(split: Split) -> str:
    """The text of the split's CSV file; columns of segments and of lengths are there when any video has one."""
    has_names = any(video.segment_id for video in split.videos)
    has_segments = has_names or any(
        video.start_seconds is not None or video.end_seconds is not None for video in split.videos
    )
    lengths = [name for name in LENGTH_COLUMNS if any(getattr(video, name) is not None for video in split.videos)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    quoting_writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(["video_id", "label", *SEGMENT_COLUMNS[: 3 * has_names or 2 * has_segments], *lengths])
    for video in split.videos:
        row = [video.video_id, LABEL_SEPARATOR.join(map(str, video.labels))]
        if has_segments:  # repr of a float reads back as the same float
            row += ["" if x is None else repr(float(x)) for x in (video.start_seconds, video.end_seconds)]
        if has_names:
            row.append(video.segment_id)
        row += ["" if (length := getattr(video, name)) is None else repr(length) for name in lengths]
        # of itself the writer quotes \n, but not \r, which ends a line for the reader
        (quoting_writer if "\r" in video.video_id + video.segment_id else writer).writerow(row)
    return text.getvalue()


def read_split(
    path: Path,
    *,
    dataset: str,
    split: str,
    task: Task,
    classes: Sequence[str],
    noun_classes: Sequence[str] = (),
) -> Split:
    """Read a file that `write_split` wrote.

    Raises:
        UsageError: the file cannot be read, or a line is not as this module describes; names file and line.
    """
    videos: list[Video] = []
    first_line: dict[tuple[str, float | None, float | None, str], int] = {}
    for line, row in read_table(path, required=("video_id", "label"), optional=(*SEGMENT_COLUMNS, *LENGTH_COLUMNS)):
        place = f"{path}, line {line}"
        texts = row["label"].split(LABEL_SEPARATOR) if row["label"] else []
        if task == "single_label" and len(texts) > 1:
            raise UsageError(f"{place}: {dataset} has one label a video, got {quote(row['label'])}.")
        if task == "verb_noun" and len(texts) not in (0, 2):
            raise UsageError(f"{place}: {dataset} has a verb and a noun (verb|noun), got {quote(row['label'])}.")
        sizes = _sizes(task, classes, noun_classes, num_labels=len(texts))
        labels = tuple(
            _parse_label(text, num_classes=size, place=place) for text, size in zip(texts, sizes, strict=True)
        )
        fault = _find_fault(labels, task=task)
        if fault:
            raise UsageError(f"{place}: {row['video_id']}: {fault}, got {quote(row['label'])}.")
        start, end, duration = (
            parse_seconds(row.get(name, ""), place=place)
            for name in ("start_seconds", "end_seconds", "duration_seconds")
        )
        try:
            video = Video(
                video_id=row["video_id"],
                labels=labels,
                start_seconds=start,
                end_seconds=end,
                segment_id=row.get("segment_id", ""),
                duration_seconds=duration,
                num_frames=_parse_count(row.get("num_frames", ""), place=place),
            )
        except ValueError as error:
            raise UsageError(f"{place}: {error}.") from error
        if _key(video) in first_line:
            raise UsageError(
                f"{place}: {video.video_id} is already listed on line {first_line[_key(video)]}; keep one."
            )
        first_line[_key(video)] = line
        videos.append(video)
    return Split(
        dataset=dataset,
        split=split,
        task=task,
        classes=tuple(classes),
        noun_classes=tuple(noun_classes),
        videos=tuple(videos),
    )


def _parse_label(text: str, *, num_classes: int, place: str) -> int:
    label = int(text) if text.isascii() and text.isdigit() else -1
    if not 0 <= label < num_classes:
        raise UsageError(f"{place}: a label is a class index from 0 to {num_classes - 1}, got {quote(text)}.")
    return label


def _parse_count(text: str, *, place: str) -> int | None:
    if text and not (text.isascii() and text.isdigit() and len(text) < 19):
        raise UsageError(f"{place}: num_frames is a number of frames, got {quote(text)}.")
    return int(text) if text else None


def parse_seconds(text: str, *, place: str) -> float | None:
    """A time in seconds; an empty text is None. `place` (file and line) opens the error sentence."""
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise UsageError(f"{place}: a time is a number of seconds, got {quote(text)}.")
    return seconds


def read_table(
    path: Path, *, required: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a CSV file with a header line, each with the number of its (last) line, counted from 1.

    UTF-8 with or without byte-order mark, any line ends, fields quoted where needed; blank lines are passed over.
    Columns are found by name, in any order.

    Raises:
        UsageError: no such file, not text, a column missing or unknown, a row cut short; names file and line.
    """
    expected = ",".join(required) + "".join(f"[,{name}]" for name in optional)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)  # strict: an unfinished quote is an error, not a long field
            header = [name.strip() for name in next(reader, [])]
            if not set(required) <= set(header) <= {*required, *optional} or len(set(header)) < len(header):
                given = ",".join(header)
                given = f"{given[:80]}..." if len(given) > 80 else given
                raise UsageError(f"{path}, line 1: expected the header {expected}, got {given or 'nothing'!r}.")
            for fields in reader:
                if not fields:
                    continue
                if len(fields) != len(header):
                    raise UsageError(
                        f"{path}, line {reader.line_num}: expected {len(header)} fields ({','.join(header)}), "
                        f"got {len(fields)}; is the file cut short?"
                    )
                yield reader.line_num, dict(zip(header, fields, strict=True))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not a text file in UTF-8 (byte {error.start}); expected CSV, unpacked.") from error
    except csv.Error as error:
        raise UsageError(f"{path}, line {reader.line_num}: not readable as CSV ({error}).") from error


def split_path(name: str, file: str) -> Path:
    """Where a list that comes with vidprep lies: `split_path("toy", "train.csv")`.

    In an installed wheel the lists are in the package, in a checkout beside it.
    """
    return _lists_folder() / name / file


def _lists_folder() -> Path:
    package = Path(__file__).parent
    installed = package / "_splits"
    return installed if installed.is_dir() else package.parent / "splits"


def read_checksums() -> Mapping[str, Mapping[str, int | str]]:
    """splits/checksums.toml: for each list ("toy/train.csv") its `rows` and `sha256`.

    Raises:
        VidprepError: the file is missing or damaged.
    """
    path = _lists_folder() / "checksums.toml"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VidprepError(f"{path}: cannot be read ({error}); install vidprep again.") from error


def read_packaged(name: str, file: str) -> str:
    """The text of a list that comes with vidprep, checked against checksums.toml.

    Raises:
        ChecksumMismatch: the list was changed.
        VidprepError: there is no such list, or it cannot be read.
    """
    recorded = read_checksums().get(f"{name}/{file}")
    path = split_path(name, file)
    if recorded is None:
        raise VidprepError(f"{path}: not among the lists of {_lists_folder() / 'checksums.toml'}.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise VidprepError(f"{path}: cannot be read ({error.strerror}); install vidprep again.") from error
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != recorded["sha256"]:
        raise ChecksumMismatch(
            f"{path}: expected SHA-256 {recorded['sha256']}, got {sha256}; restore the file or install vidprep again."
        )
    return content.decode("utf-8")


def read_classes(name: str, file: str = "classes.txt") -> tuple[str, ...]:
    """The class names of a data set, by index, from splits/NAME/classes.txt (or verbs.txt, nouns.txt).

    Raises:
        ChecksumMismatch: the list was changed.
        VidprepError: there is no such list, or it cannot be read.
    """
    return tuple(read_packaged(name, file).splitlines())
