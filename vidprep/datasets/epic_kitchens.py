"""EPIC-KITCHENS-100: unscripted cooking seen by the cook; each annotated segment has a verb and a noun."""

import ast
import csv
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from vidprep.datasets.annotations import Rows, is_number
from vidprep.errors import UsageError, quote
from vidprep.splits import Split, parse_seconds, read_classes, read_packaged, read_table
from vidprep.types import DatasetInfo, FrameFormat, RemoteFile, Video

__all__ = ["INFO", "build_splits", "frame_rate", "list_files"]

ANNOTATIONS = "https://raw.githubusercontent.com/epic-kitchens/epic-kitchens-100-annotations/master"
BASES = {
    55: "https://data.bris.ac.uk/datasets/3h91syskeag572hl6tvuovwv4d",
    100: "https://data.bris.ac.uk/datasets/2g1n6qdydwa9u22shpxqzp0t8m",
}
"""The EPIC-55 part (two-digit videos) and the extension (three-digit videos)."""

INFO = DatasetInfo(
    name="epic_kitchens",
    title="EPIC-KITCHENS-100",
    description="100 h of cooking seen by the cook, 700 videos in 45 kitchens; segments with a verb and a noun each.",
    task="verb_noun",
    num_classes=97,
    num_noun_classes=300,
    splits={"train": 67_217, "val": 9_668, "test": 13_092},
    video_paths=("videos/**/{video_id}.*", "**/videos/{video_id}.*", "**/{video_id}.*"),
    frames=FrameFormat(short_side=256, template="frame_{:010d}.jpg"),
    access="open",
    files=tuple(
        RemoteFile(url=f"{ANNOTATIONS}/{name}", filename=f"annotations/{name}", split=split)
        for name, split in (
            ("EPIC_100_train.csv", "train"),
            ("EPIC_100_validation.csv", "val"),
            ("EPIC_100_test_timestamps.csv", "test"),
            ("EPIC_100_video_info.csv", None),
        )
    ),
    traps=(
        "Clips are cut by seconds. The published frames are at 60 fps (EPIC-55) and 50 fps (extension) whatever the "
        "video's own rate, so its frame numbers say nothing about the video's frames.",
        "The suffix is .MP4 in capitals; videos of the extension (P01_101) are HEVC, of EPIC-55 (P01_01) H.264.",
        "The train and test folders on the server are EPIC-55's old split, not this one's.",
        "all_nouns and all_noun_classes are Python literals with commas; narration_timestamp may be empty.",
        "Classes of EPIC-55 have other numbers; EPIC_100_noun_classes_v2 (305) is not for these labels.",
        "P01_10 comes before P01_101 before P01_11 when sorted as text; segments overlap.",
        "The first frame archives of P01_109 and P27_103 were wrong; P09_06.MP4 is said never to match its md5.",
    ),
    instructions=(
        "No form. `vidprep download epic_kitchens` fetches the annotations and all 700 videos (about 740 GB, checked "
        "by their md5); videos that you have may lie anywhere below ROOT. Then run `vidprep split epic_kitchens "
        "--annotations EPIC_100_train.csv "
        "--annotations EPIC_100_validation.csv --annotations EPIC_100_test_timestamps.csv --annotations "
        "EPIC_100_video_info.csv --data-root ROOT` (the last one says how long each video is, for `vidprep verify`)."
    ),
    homepage="https://epic-kitchens.github.io",
    licence="CC BY-NC 4.0",
    paper="https://arxiv.org/abs/2006.13256",
)

TEST_COLUMNS = (
    "narration_id",
    "participant_id",
    "video_id",
    "narration_timestamp",
    "start_timestamp",
    "stop_timestamp",
    "start_frame",
    "stop_frame",
)
COLUMNS = (
    *TEST_COLUMNS,
    "narration",
    "verb",
    "verb_class",
    "noun",
    "noun_class",
    "all_nouns",
    "all_noun_classes",
)
SPLIT_COLUMNS = {"ar_train": "train", "ar_val": "val", "ar_test": "test"}
"""Columns of epic_100_splits.csv for action recognition."""

VIDEO_ID = re.compile(r"(P\d\d)_(\d\d|1\d\d)")
TIMESTAMP = re.compile(r"(\d\d):([0-5]\d):([0-5]\d(?:\.\d+)?)")


def frame_rate(video_id: str) -> Literal[50, 60]:
    """Rate of the published frames, whatever that of the video: 50 of the extension (P01_101), 60 of EPIC-55 (P01_01).

    Raises:
        UsageError: no video of EPIC-KITCHENS-100.
    """
    found = VIDEO_ID.fullmatch(video_id)
    if found is None:
        raise UsageError(f"a video of EPIC-KITCHENS-100 is called P01_01 or P01_101, got {quote(video_id)}.")
    return 50 if len(found[2]) == 3 else 60


def list_files() -> tuple[RemoteFile, ...]:
    """All 700 videos with their md5, as the download scripts of EPIC-KITCHENS list them; about 740 GB.

    They go to videos/P01/P01_01.MP4 below the data root.
    """
    files: list[RemoteFile] = []
    for line in read_packaged(INFO.name, "md5.txt").splitlines():
        md5, path = line.split("  ")
        name = path.rpartition("/")[2]
        base = BASES[55 if frame_rate(name.removesuffix(".MP4")) == 60 else 100]
        files.append(RemoteFile(url=f"{base}/{path}", md5=md5, filename=f"videos/{name[:3]}/{name}"))
    return tuple(files)


def build_splits(annotations: Sequence[Path]) -> dict[str, Split]:
    """The splits that EPIC_100_train.csv, EPIC_100_validation.csv and EPIC_100_test_timestamps.csv hold.

    A row is an annotated segment, in seconds; its `segment_id` is the narration_id. Train and validation have the same
    columns: their file names tell them apart, or epic_100_splits.csv among the files, by which each row is then
    checked, too. EPIC_100_video_info.csv among them gives the length of each video, and notes on segments that end
    after it; EPIC_100_verb_classes.csv and EPIC_100_noun_classes.csv are compared with the classes.

    Raises:
        UsageError: a file is of none of these forms, of EPIC-55, or a row contradicts itself; names file, line, reason.
    """
    rows = Rows(INFO, read_classes(INFO.name, "verbs.txt"), read_classes(INFO.name, "nouns.txt"))
    split_of_video: dict[str, str] = {}
    durations: dict[str, float] = {}
    tables: list[tuple[Path, bool]] = []
    for path in annotations:
        header = _read_header(path)
        if "ar_train" in header:
            split_of_video |= _read_videos_of_splits(path)
        elif "resolution" in header:
            durations |= _read_durations(path)
        elif {"key", "instances"} <= set(header):
            _check_classes(path, rows)
        else:
            tables.append((path, "verb_class" in header))
    for path, is_labelled in tables:
        _read_segments(path, rows, split_of_video, durations, is_labelled=is_labelled)
    return rows.to_splits()


def _read_header(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return [name.strip() for name in next(csv.reader(file), [])]
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}).") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: not a CSV file in UTF-8 ({error}).") from error


def _read_segments(
    path: Path,
    rows: Rows,
    split_of_video: Mapping[str, str],
    durations: Mapping[str, float],
    *,
    is_labelled: bool,
) -> None:
    for line, row in read_table(path, required=COLUMNS if is_labelled else TEST_COLUMNS):
        place = f"{path}, line {line}"
        video_id = row["video_id"]
        if not VIDEO_ID.fullmatch(video_id) or not row["narration_id"].startswith(f"{video_id}_"):
            raise UsageError(
                f"{place}: expected a video P01_01 or P01_101 and a narration_id that begins with it, "
                f"got {quote(video_id)} and {quote(row['narration_id'])}."
            )
        split = _split_of(path, is_labelled=is_labelled) if not split_of_video else split_of_video.get(video_id, "")
        if not split or (split == "test") == is_labelled:
            raise UsageError(
                f"{place}: {video_id} is a video of {split or 'no split'}, but the file has "
                f"{'labels' if is_labelled else 'no labels'}; is the file of another split?"
            )
        start, stop = (_read_seconds(row[f"{end}_timestamp"], place=place) for end in ("start", "stop"))
        labels = _read_labels(row, rows, place=place) if is_labelled else ()
        try:
            video = Video(
                video_id=video_id,
                labels=labels,
                start_seconds=start,
                end_seconds=stop,
                segment_id=row["narration_id"],
                duration_seconds=durations.get(video_id),
            )
        except ValueError as error:
            raise UsageError(f"{place}: {error}.") from error
        if stop > durations.get(video_id, math.inf):
            rows.note(split, f"{place}: {row['narration_id']} ends at {stop} s, its video at {durations[video_id]} s.")
        rows.add(split, video, place=place, label=f"{row.get('verb_class')}|{row.get('noun_class')}")


def _split_of(path: Path, *, is_labelled: bool) -> str:
    if not is_labelled:
        return "test"
    name = path.name.lower()
    found = [split for split, word in (("train", "_train"), ("val", "_val")) if word in name]
    if len(found) != 1:
        raise UsageError(
            f"{path}: train and validation have the same columns; call the file EPIC_100_train.csv or "
            "EPIC_100_validation.csv as published, or give epic_100_splits.csv, too."
        )
    return found[0]


def _read_seconds(text: str, *, place: str) -> float:
    found = TIMESTAMP.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"{place}: a timestamp is HH:MM:SS.ss, got {quote(text)}.")
    return round(int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3]), 3)


def _read_labels(row: Mapping[str, str], rows: Rows, *, place: str) -> tuple[int, int]:
    labels: list[int] = []
    for column, names in (("verb_class", rows.classes), ("noun_class", rows.noun_classes)):
        text = row[column].strip()
        if not is_number(text) or int(text) >= len(names):
            raise UsageError(f"{place}: {column} is a number from 0 to {len(names) - 1}, got {quote(text)}.")
        labels.append(int(text))
    nouns = _read_literal(row, "all_nouns", str, place=place)
    noun_classes = _read_literal(row, "all_noun_classes", int, place=place)
    if len(nouns) != len(noun_classes) or labels[1] not in noun_classes:
        raise UsageError(
            f"{place}: noun_class {labels[1]}, all_nouns {quote(nouns)} and all_noun_classes {quote(noun_classes)} "
            "do not agree; is the file damaged?"
        )
    return labels[0], labels[1]


def _read_literal(row: Mapping[str, str], column: str, kind: type, *, place: str) -> list[object]:
    """A list that is written as Python writes it: "['plate', 'cup']"."""
    try:
        value = ast.literal_eval(row[column])
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise UsageError(
            f"{place}: {column} is a Python list, got {quote(row[column])}; is the file cut short?"
        ) from error
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        raise UsageError(f"{place}: {column} is a list of {kind.__name__}, got {quote(row[column])}.")
    return value


def _read_videos_of_splits(path: Path) -> dict[str, str]:
    split_of_video: dict[str, str] = {}
    header = _read_header(path)
    if not {"video_id", *SPLIT_COLUMNS} <= set(header):
        raise UsageError(f"{path}, line 1: expected video_id,ar_train,ar_val,ar_test, got {','.join(header)[:80]}.")
    for line, row in read_table(path, required=header):
        named = [split for column, split in SPLIT_COLUMNS.items() if row[column].strip().upper() == "TRUE"]
        if len(named) != 1:
            raise UsageError(
                f"{path}, line {line}: {row['video_id']} is in {len(named)} of {', '.join(SPLIT_COLUMNS)}."
            )
        split_of_video[row["video_id"]] = named[0]
    return split_of_video


def _read_durations(path: Path) -> dict[str, float]:
    durations: dict[str, float] = {}
    for line, row in read_table(path, required=("video_id", "duration", "fps", "resolution")):
        seconds = parse_seconds(row["duration"], place=f"{path}, line {line}")
        if seconds is None or seconds <= 0:
            raise UsageError(f"{path}, line {line}: a duration is a number of seconds, got {quote(row['duration'])}.")
        durations[row["video_id"]] = seconds
    return durations


def _check_classes(path: Path, rows: Rows) -> None:
    read = [
        (line, row["id"], row["key"]) for line, row in read_table(path, required=("id", "key", "instances", "category"))
    ]
    is_verbs = len(read) > 0 and read[0][2] == rows.classes[0]
    names = rows.classes if is_verbs else rows.noun_classes
    for index, (line, number, key) in enumerate(read):
        if index >= len(names) or number != str(index) or key != names[index]:
            raise UsageError(
                f"{path}, line {line}: {number[:80]} {quote(key)} is none of the {len(names)} "
                f"{'verbs' if is_verbs else 'nouns'} of EPIC-KITCHENS-100; is the file of "
                "EPIC-55, or EPIC_100_noun_classes_v2.csv (305 nouns, not for these labels)?"
            )
    if len(read) != len(names):
        raise UsageError(f"{path}: expected {len(names)} classes, got {len(read)}; is the file cut short?")
