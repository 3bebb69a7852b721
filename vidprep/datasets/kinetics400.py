"""Kinetics-400: 400 human actions, one label a clip, clips of about 10 s cut from YouTube."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

from vidprep.errors import UsageError
from vidprep.splits import Split, read_classes, read_table
from vidprep.types import DatasetInfo, FrameFormat, Video

__all__ = ["INFO", "build_splits"]

INFO = DatasetInfo(
    name="kinetics400",
    title="Kinetics-400",
    task="single_label",
    num_classes=400,
    splits={"train": 246_534, "val": 19_906, "test": 39_805},
    video_paths=(
        "replacement/**/{video_id}.*",  # re-cut clips for corrupt ones in train/, to be taken first
        "replacement_for_corrupted_k400/**/{video_id}.*",
        "{split}/**/{video_id}.*",  # flat, in class folders of any spelling, in part_N/
        "videos/{split}/**/{video_id}.*",
        "videos_{split}/**/{video_id}.*",
        "**/{video_id}.*",
    ),
    frames=FrameFormat(short_side=256, template="img_{:05d}.jpg"),
    instructions=(
        "Fetch the archives listed at https://s3.amazonaws.com/kinetics/400/{train,val,test}/k400_{...}_path.txt and "
        "unpack them to ROOT/{train,val,test}; fetch https://s3.amazonaws.com/kinetics/400/annotations/"
        "{train,val,test}.csv and run `vidprep split kinetics400 --annotations FILE --data-root ROOT`."
    ),
    homepage="https://github.com/cvdfoundation/kinetics-dataset",
    licence="annotations CC BY 4.0; videos under their uploaders' rights",
    paper="https://arxiv.org/abs/1705.06950",
)

SPLIT_NAMES = {"train": "train", "val": "val", "validate": "val", "test": "test"}
"""How annotation files name the splits; DeepMind's own say "validate"."""

YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]{11}")


def build_splits(annotations: Sequence[Path]) -> dict[str, Split]:
    """All splits that official annotation files hold, each video in the order of the files.

    The files are CSV, `label,youtube_id,time_start,time_end,split,is_cc`, of which `is_cc` and (in the public test
    file) `label` may be missing. A video is called `{youtube_id}_{start:06d}_{end:06d}`, as its file is. Rows that
    repeat another are dropped with a note.

    Raises:
        UsageError: a file is not of this form or not of Kinetics-400, or two rows contradict each other.
    """
    classes = read_classes(INFO.name)
    class_index = {label_key(name): index for index, name in enumerate(classes)}
    rows: dict[str, dict[str, tuple[tuple[int, ...], str]]] = {}  # split -> video_id -> labels, place
    notes: dict[str, list[str]] = {}
    for path in annotations:
        table = read_table(
            path, required=("youtube_id", "time_start", "time_end", "split"), optional=("label", "is_cc")
        )
        for line, row in table:
            place = f"{path}, line {line}"
            split, video_id, labels = _parse_row(row, class_index, place=place)
            videos = rows.setdefault(split, {})
            if video_id not in videos:
                videos[video_id] = (labels, place)
                continue
            earlier_labels, earlier_place = videos[video_id]
            if labels != earlier_labels:
                raise UsageError(
                    f"{place}: {video_id} has label {row.get('label') or 'none'!r}, another one than in "
                    f"{earlier_place}; give only one of the two files, or correct the row."
                )
            notes.setdefault(split, []).append(f"{place}: {video_id} repeats {earlier_place}; taken once.")
    return {
        split: Split(
            dataset=INFO.name,
            split=split,
            task=INFO.task,
            classes=classes,
            videos=tuple(Video(video_id=video_id, labels=labels) for video_id, (labels, _) in videos.items()),
            notes=tuple(notes.get(split, ())),
        )
        for split, videos in rows.items()
    }


def _parse_row(row: dict[str, str], class_index: dict[str, int], *, place: str) -> tuple[str, str, tuple[int, ...]]:
    youtube_id, split = row["youtube_id"].strip(), row["split"].strip()
    if not YOUTUBE_ID.fullmatch(youtube_id):
        raise UsageError(f"{place}: a youtube_id is 11 letters, digits, - or _, got {youtube_id!r}.")
    if split not in SPLIT_NAMES:
        raise UsageError(f"{place}: expected split {', '.join(SPLIT_NAMES)}, got {split!r}.")
    if row.get("is_cc", "0").strip() not in ("0", "1"):
        raise UsageError(f"{place}: expected is_cc 0 or 1, got {row['is_cc']!r}; is the file cut short?")
    start, end = (_whole_seconds(row[name], place=place) for name in ("time_start", "time_end"))
    if not 0 <= start < end:
        raise UsageError(f"{place}: a clip needs 0 <= time_start < time_end, got {start} and {end}.")
    labels: tuple[int, ...] = ()
    if "label" in row:
        if label_key(row["label"]) not in class_index:
            raise UsageError(
                f"{place}: {row['label']!r} is no class of Kinetics-400; is the file of another Kinetics release?"
            )
        labels = (class_index[label_key(row["label"])],)
    return SPLIT_NAMES[split], f"{youtube_id}_{start:06d}_{end:06d}", labels


def _whole_seconds(text: str, *, place: str) -> int:
    try:
        seconds = float(text)  # some copies hold "417.0"; clip names use the integer part
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise UsageError(f"{place}: a time is a number of seconds, got {text!r}.")
    return int(seconds)


def label_key(name: str) -> str:
    """What is common to all spellings of a class: lower case, only a-z and 0-9; unique within Kinetics-400."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
