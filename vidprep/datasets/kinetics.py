"""What all Kinetics releases share: where their files lie, and the reader of their annotation files."""

import csv
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidprep.datasets.annotations import (
    YOUTUBE_ID,
    Rows,
    label_key,
    line_numbers,
    read_json,
    read_lines,
    read_text,
    split_of_list,
)
from vidprep.errors import UsageError, quote
from vidprep.splits import Split, read_classes, read_table
from vidprep.types import DatasetInfo, RemoteFile, Video

__all__ = ["VIDEO_PATHS", "Clip", "build_splits", "offered_files", "read_clips"]

VIDEO_PATHS = (
    "replacement/**/{video_id}.*",  # re-cut clips for corrupt ones in train/, to be taken first ...
    "replacement_for_corrupted_k400/**/{video_id}.*",
    "replacement/**/{video_id:.11}_*.*",  # ... also those whose times differ from the list's
    "replacement_for_corrupted_k400/**/{video_id:.11}_*.*",
    "{split}/**/{video_id}.*",  # flat, in class folders of any spelling, in part_N/
    "videos/{split}/**/{video_id}.*",
    "videos_{split}/**/{video_id}.*",
    "**/{video_id}.*",
    "{split}/**/{video_id:.11}_{start_seconds}.*",  # the old crawler: start without zeros, no end
    "**/{video_id:.11}_{start_seconds}.*",
    "{split}/**/{video_id:.11}.*",  # copies that keep the YouTube id alone, which is unique within a split
    "videos_{split}/**/{video_id:.11}.*",
)

SPLIT_NAMES = {"train": "train", "val": "val", "validate": "val", "validation": "val", "test": "test"}
"""How annotation files name the splits; DeepMind's own say "validate"."""

TITLES = {"kinetics400": "Kinetics-400", "kinetics600": "Kinetics-600", "kinetics700": "Kinetics-700"}

COLUMNS = ("youtube_id", "time_start", "time_end")
OPTIONAL_COLUMNS = ("label", "split", "is_cc")


def offered_files(folder: str, prefix: str, *, annotations: Sequence[tuple[str, str | None]]) -> tuple[RemoteFile, ...]:
    """CVDF's annotation files (name, split) and its lists of archives; no checksums are published."""
    base = f"https://s3.amazonaws.com/kinetics/{folder}"
    return (
        *(
            RemoteFile(url=f"{base}/annotations/{name}", filename=f"annotations/{name}", split=split)
            for name, split in annotations
        ),
        *(
            RemoteFile(
                url=f"{base}/{split}/{prefix}_{split}_path.txt",
                filename=f"archives/{split}",
                kind="url_list",
                split=split,
                unpack_to=split,
            )
            for split in ("train", "val", "test")
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One row of a Kinetics annotation file."""

    place: str
    """File and line, to open an error sentence."""
    youtube_id: str
    start_seconds: int
    end_seconds: int
    split: str
    label: str
    """The class name as the file writes it; "" in files without labels."""

    @property
    def video_id(self) -> str:
        """The name of the clip's file, without suffix."""
        return f"{self.youtube_id}_{self.start_seconds:06d}_{self.end_seconds:06d}"

    @property
    def duration_seconds(self) -> float:
        """Length of the clip as its times say; nearly always 10."""
        return float(self.end_seconds - self.start_seconds)


def build_splits(annotations: Sequence[Path], *, info: DatasetInfo) -> dict[str, Split]:
    """All splits that official annotation files hold, each video in the order of the files.

    A video is called `{youtube_id}_{start:06d}_{end:06d}`, as its file is. Rows that repeat another are dropped with
    a note. For the forms of the files see `read_clips`.

    Raises:
        UsageError: a file is not of this form or not of this release, or two rows contradict each other.
    """
    rows = Rows(info, read_classes(info.name))
    class_index = {label_key(name): index for index, name in enumerate(rows.classes)}
    for path in annotations:
        for clip in read_clips(path):
            labels: tuple[int, ...] = ()
            if clip.label:
                labels = (find_class(clip, class_index, info),)
            video = Video(video_id=clip.video_id, labels=labels, duration_seconds=clip.duration_seconds)
            rows.add(clip.split, video, place=clip.place, label=clip.label)
    return rows.to_splits()


def find_class(clip: Clip, class_index: dict[str, int], info: DatasetInfo) -> int:
    """The index of a clip's class, whatever the spelling.

    Raises:
        UsageError: no class of this release; says which release has it.
    """
    index = class_index.get(label_key(clip.label))
    if index is None:
        others = [
            title
            for name, title in TITLES.items()
            if name != info.name and label_key(clip.label) in map(label_key, read_classes(name))
        ]
        known = f"it is one of {', '.join(others)}" if others else "no release has it"
        raise UsageError(
            f"{clip.place}: {quote(clip.label)} is no class of {info.title} ({known}); give the annotation file of "
            f"{info.title}."
        )
    return index


def read_clips(path: Path) -> Iterator[Clip]:
    """The rows of an annotation file in any of the forms in circulation.

    - CSV with a header: `label,youtube_id,time_start,time_end,split,is_cc`, of which `label` (public test files),
      `split` and `is_cc` may be missing; labels quoted where needed; times are integers, or floats whose integer part
      names the clip;
    - the same columns without a header, separated by commas, tabs or semicolons (train.txt and val.txt of K600);
    - DeepMind's JSON, `{youtube_id: {"annotations": {"label", "segment"}, "subset"}}`.

    Without a column `split`, the name of the file says it.

    Raises:
        UsageError: the file cannot be read, or a row is not of this form; names file and line.
    """
    text = read_text(path, expected="CSV")
    first = text.lstrip()[:2000].splitlines()[:1]
    if text.lstrip().startswith(("{", "[")):
        rows = _read_json_rows(path)
    elif first and "youtube_id" not in first[0].lower() and _guess_separator(first[0]):
        rows = _read_headless_rows(path, _guess_separator(first[0]))
    elif first and "," not in first[0] and "\t" in first[0]:
        rows = _read_tabbed_rows(path)
    else:
        rows = read_table(path, required=COLUMNS, optional=OPTIONAL_COLUMNS)
    for line, row in rows:
        yield _parse_row(row, path=path, place=f"{path}, line {line}")


def _read_json_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    content, text = read_json(path, name="DeepMind's train.json, validate.json or test.json")
    entries = content if isinstance(content, dict) else {}
    if not entries or not all(
        isinstance(entry, dict) and isinstance(entry.get("annotations"), dict) for entry in entries.values()
    ):
        raise UsageError(
            f"{path}, line 1: expected the header {','.join((*COLUMNS, *OPTIONAL_COLUMNS))} or DeepMind's JSON "
            '({youtube_id: {"annotations": {"label", "segment"}, "subset"}}), got another JSON file.'
        )
    lines = line_numbers(text, r'"([A-Za-z0-9_-]{11})"\s*:')
    for youtube_id, entry in entries.items():
        segment: Any = entry["annotations"].get("segment")
        start, end = segment if isinstance(segment, list) and len(segment) == 2 else ("", "")
        row = {"youtube_id": youtube_id, "time_start": str(start), "time_end": str(end)}
        row["label"] = str(entry["annotations"].get("label") or "")
        if "subset" in entry:
            row["split"] = str(entry["subset"])
        yield lines.get(youtube_id, 1), row


def _guess_separator(line: str) -> str:
    """What separates the columns of a first line that is a row, not a header; "" when it is none."""
    for separator in (",", "\t", ";"):
        if _find_id(next(csv.reader([line], delimiter=separator), [])) is not None:
            return separator
    return ""


def _find_id(fields: Sequence[str]) -> int | None:
    """The column of a YouTube id that two times follow."""
    for index in range(len(fields) - 2):
        if YOUTUBE_ID.fullmatch(fields[index].strip()) and all(map(_is_time, fields[index + 1 : index + 3])):
            return index
    return None


def _is_time(text: str) -> bool:
    return re.fullmatch(r"[0-9]+(\.[0-9]*)?", text.strip()) is not None


def _read_headless_rows(path: Path, separator: str) -> Iterator[tuple[int, dict[str, str]]]:
    width = 0
    id_column = 0
    for line, text in read_lines(path):
        fields = _read_fields(text, separator, place=f"{path}, line {line}")
        if not width:
            width, id_column = len(fields), _find_id(fields) or 0
            names = ["label", *COLUMNS, "split", "is_cc"][1 - id_column :][:width] if id_column < 2 else []
            if len(names) != width:
                raise UsageError(
                    f"{path}, line {line}: expected [label,]youtube_id,time_start,time_end[,split[,is_cc]], "
                    f"got {quote(text)}."
                )
        if len(fields) != width:
            raise UsageError(
                f"{path}, line {line}: expected {width} fields ({','.join(names)}), got {len(fields)}; is the file cut "
                "short?"
            )
        yield line, dict(zip(names, fields, strict=True))


def _read_tabbed_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    header: list[str] = []
    for line, text in read_lines(path):
        fields = _read_fields(text, "\t", place=f"{path}, line {line}")
        if not header:
            header = fields
            if not set(COLUMNS) <= set(header) <= {*COLUMNS, *OPTIONAL_COLUMNS}:
                raise UsageError(f"{path}, line {line}: expected the header {' '.join(COLUMNS)}, got {quote(text)}.")
            continue
        if len(fields) != len(header):
            raise UsageError(
                f"{path}, line {line}: expected {len(header)} fields ({' '.join(header)}), got {len(fields)}; is the "
                "file cut short?"
            )
        yield line, dict(zip(header, fields, strict=True))


def _read_fields(text: str, separator: str, *, place: str) -> list[str]:
    try:  # strict: an unfinished quote is an error, not a part of the field
        return [field.strip() for field in next(csv.reader([text], delimiter=separator, strict=True))]
    except csv.Error as error:
        raise UsageError(f"{place}: not readable as columns ({error}); is the file damaged?") from error


def _parse_row(row: dict[str, str], *, path: Path, place: str) -> Clip:
    youtube_id = row["youtube_id"].strip()
    if not YOUTUBE_ID.fullmatch(youtube_id):
        raise UsageError(f"{place}: a youtube_id is 11 letters, digits, - or _, got {quote(youtube_id)}.")
    split = row["split"].strip() if "split" in row else split_of_list(path)  # a name such as kinetics_val.csv
    if split not in SPLIT_NAMES:
        raise UsageError(f"{place}: expected split {', '.join(SPLIT_NAMES)}, got {quote(split)}.")
    if row.get("is_cc", "0").strip() not in ("0", "1"):
        raise UsageError(f"{place}: expected is_cc 0 or 1, got {quote(row['is_cc'])}; is the file cut short?")
    start, end = (_whole_seconds(row[name], place=place) for name in ("time_start", "time_end"))
    if not 0 <= start < end:
        raise UsageError(f"{place}: a clip needs 0 <= time_start < time_end, got {start} and {end}.")
    label = row.get("label", "").strip()
    if "label" in row and not label and SPLIT_NAMES[split] != "test":
        raise UsageError(f"{place}: {youtube_id} has no label; is the file cut short?")
    return Clip(
        place=place,
        youtube_id=youtube_id,
        start_seconds=start,
        end_seconds=end,
        split=SPLIT_NAMES[split],
        label=label,
    )


def _whole_seconds(text: str, *, place: str) -> int:
    try:
        seconds = float(text)  # some copies hold "417.0"; clip names use the integer part
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise UsageError(f"{place}: a time is a number of seconds, got {quote(text)}.")
    return int(seconds)
