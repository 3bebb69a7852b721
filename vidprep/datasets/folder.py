"""`folder`: the user's own videos, described by where they lie or by a CSV file.

    ROOT/cooking/a.mp4, ROOT/running/b.mkv               classes are sub-folders; the split is "all"
    ROOT/train/cooking/a.mp4, ROOT/val/running/b.mkv     splits train, val, test; classes are those of all splits
    ROOT/a.mp4, ROOT/b.webm                              unlabelled
    ROOT/train.csv, ROOT/val.csv  or the CSV itself      video,label[,start_seconds,end_seconds]

A video is called by its path below ROOT (below the CSV's folder), suffix included, so two files never share a name.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vidprep.datasets.files import is_video_name
from vidprep.errors import UnknownName, UsageError, suggest
from vidprep.splits import LABEL_SEPARATOR, Split, parse_seconds, read_table
from vidprep.types import DatasetInfo, Video

__all__ = ["INFO", "find_videos", "list_splits", "load_split"]

INFO = DatasetInfo(
    name="folder",
    title="Your own videos",
    description="Videos of your own, described by where they lie or by a CSV file.",
    access="own",
    task="single_label",
    num_classes=None,
    splits={"all": None, "train": None, "val": None, "test": None},
    video_paths=("{video_id}",),
    instructions=(
        "Lay the videos out as ROOT/CLASS/*.mp4, as ROOT/{train,val,test}/CLASS/*.mp4 or flat (unlabelled), or write "
        "CSV files ROOT/{train,val,test}.csv with the header video,label[,start_seconds,end_seconds]."
    ),
)

ALL = "all"
SPLIT_FOLDERS = ("train", "val", "test")
CLASSES_FILE = "classes.txt"
MAX_CLASSES = 100_000


def list_splits(data_root: Path) -> list[str]:
    """Names of the splits that `load_split` finds at `data_root`.

    Raises:
        UsageError: nothing there, or a layout that could mean two things.
    """
    return sorted(_find_tables(data_root) or _find_folders(data_root))


def load_split(split: str, data_root: Path) -> Split:
    """The videos at `data_root`, sorted by path, or in the order of the CSV file.

    Rows of a CSV file may name files that are missing: that is for `find_videos` to tell.

    Raises:
        UnknownName: there is no such split; the message names those there are.
        UsageError: nothing there, a layout that could mean two things, or a malformed line of a CSV file.
    """
    tables = _find_tables(data_root, split)
    places = tables or _find_folders(data_root)
    if split not in places:
        raise UnknownName(f"{data_root}: no split {split!r}; there are: {', '.join(sorted(places))}.")
    return _load_table(split, tables) if tables else _load_folder(split, places, data_root)


def find_videos(split: Split, data_root: Path) -> dict[str, Path]:
    """The file of each video; videos without a file are absent."""
    base = data_root.parent if data_root.is_file() else data_root
    ids = dict.fromkeys(video.video_id for video in split.videos)
    # A path that was looked at keeps its text, too: a hundred bytes of each.
    return {name: base / name for name in ids if os.path.isfile(os.path.join(base, name))}  # noqa: PTH113, PTH118


# Folders


@dataclass(frozen=True, kw_only=True)
class _Listing:
    """What lies in one folder of videos."""

    videos: tuple[tuple[str, str], ...]
    """(path below the folder, class folder or "") of each video, sorted by path."""
    notes: tuple[str, ...]


def _find_folders(data_root: Path) -> dict[str, Path]:
    """Split -> the folder of its videos; only "all" where no sub-folder is called like a split."""
    loose, folders, _ = _list_folder(data_root)
    splits = [name for name in folders if name in SPLIT_FOLDERS]
    if not splits:
        return {ALL: data_root}
    others = [f"{name}/" for name in folders if name not in SPLIT_FOLDERS and _holds_videos(data_root / name)]
    others += loose
    if others:
        raise UsageError(
            f"{data_root}: has folders called like splits ({', '.join(splits)}) beside other videos "
            f"({', '.join(others[:3])}); move the others away, or list the videos in CSV files video,label."
        )
    return {name: data_root / name for name in splits}


def _load_folder(split: str, places: Mapping[str, Path], data_root: Path) -> Split:
    listings = {name: _scan(folder) for name, folder in places.items()}
    classes = tuple(sorted({label for listing in listings.values() for _, label in listing.videos if label}))
    labels_of: dict[str, tuple[int, ...]] = {name: (index,) for index, name in enumerate(classes)}
    below = "" if split == ALL else f"{split}/"
    return Split(
        dataset=INFO.name,
        split=split,
        task=INFO.task,
        classes=classes,
        videos=tuple(
            Video(video_id=below + path, labels=labels_of.get(label, ())) for path, label in listings[split].videos
        ),
        notes=listings[split].notes,
    )


def _scan(folder: Path) -> _Listing:
    loose, folders, passed_over = _list_folder(folder)
    videos = [(name, "") for name in loose]
    notes = _name_passed_over(folder, passed_over)
    for name in folders:
        inside, deeper, passed_over = _list_folder(folder / name)
        videos += [(f"{name}/{video}", name) for video in inside]
        notes += _name_passed_over(folder / name, passed_over)
        if not inside and not any(_holds_videos(folder / name / below) for below in deeper):
            notes.append(f"{folder / name}: holds no videos, so it is no class.")
        for below in deeper:
            if _holds_videos(folder / name / below):
                raise UsageError(
                    f"{folder / name / below}: videos two folders down; class folders hold videos directly "
                    f"({folder}/CLASS/*.mp4): move them up, or list them in a CSV file video,label."
                )
    if loose and len(videos) > len(loose):
        labelled = next(path for path, label in videos if label)
        raise UsageError(
            f"{folder}: holds both loose videos ({loose[0]}) and class folders with videos ({labelled}); "
            "move the loose ones into a class folder, or list the videos in a CSV file video,label."
        )
    return _Listing(videos=tuple(sorted(videos)), notes=tuple(notes))


def _list_folder(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """Names of the videos, of the folders and of everything else in `folder`, each sorted.

    A broken link called like a video is listed as a video, so that it is missed later, not overlooked.
    """
    videos: list[str] = []
    folders: list[str] = []
    others: list[str] = []
    has_ledger = (folder / "quarantine.csv").is_file()  # of damaged videos that `vidprep verify` put aside
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or (entry.name == "quarantine" and has_ledger):
                    others.append(entry.name)
                elif entry.is_dir():
                    folders.append(_as_text(entry.name, folder))
                elif is_video_name(entry.name):
                    videos.append(_as_text(entry.name, folder))
                else:
                    others.append(entry.name)
    except OSError as error:
        raise UsageError(
            f"{folder}: cannot be read ({error.strerror}); give a folder of videos or a CSV file."
        ) from error
    return sorted(videos), sorted(folders), sorted(others)


def _as_text(name: str, folder: Path) -> str:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"{folder}: the name {name!a} is not UTF-8; rename it.") from error
    return name


def _holds_videos(folder: Path) -> bool:
    """Whether there is a video at any depth below `folder` (links to folders are not followed)."""
    return any(is_video_name(name) for _, _, names in os.walk(folder) for name in names)


def _name_passed_over(folder: Path, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    shown = ", ".join(ascii(name)[1:-1] for name in names[:3]) + (", ..." if len(names) > 3 else "")
    return [f"{folder}: {len(names)} entries are hidden or no videos by their suffix and are passed over ({shown})."]


# CSV files


@dataclass(frozen=True, kw_only=True)
class _Row:
    place: str
    video_id: str
    labels: tuple[str, ...]
    start_seconds: float | None
    end_seconds: float | None


def _find_tables(data_root: Path, split: str = "") -> dict[str, Path]:
    """Split -> its CSV file: the one given, or those in the folder that have the columns video and label.

    The file called like the wanted `split` counts whatever its columns, so that reading it says what is wrong.
    """
    if data_root.is_file():
        return {ALL: data_root, data_root.stem: data_root}
    if not data_root.is_dir():
        raise UsageError(f"{data_root}: no such folder or file; give a folder of videos or a CSV file video,label.")
    tables = (path for path in sorted(data_root.glob("*.csv")) if path.is_file())
    return {path.stem: path for path in tables if path.stem == split or _has_columns(path)}


def _has_columns(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            header = {name.strip().strip('"') for name in file.readline().split(",")}
    except OSError:
        return True  # reading it in full will say what is wrong
    return {"video", "label"} <= header


def _load_table(split: str, tables: Mapping[str, Path]) -> Split:
    path = tables[split]
    rows = {table: _read_rows(table) for table in set(tables.values())}
    labelled = [row for table in sorted(rows) for row in rows[table] if row.labels]
    classes, labels_of = _resolve_labels(labelled, path.parent / CLASSES_FILE)
    is_multi = any(len(row.labels) > 1 for row in labelled)
    videos: list[Video] = []
    first_place: dict[tuple[str, float | None, float | None], str] = {}
    for row in rows[path]:
        labels = tuple(dict.fromkeys(labels_of[label] for label in row.labels))
        try:
            video = Video(
                video_id=row.video_id, labels=labels, start_seconds=row.start_seconds, end_seconds=row.end_seconds
            )
        except ValueError as error:
            raise UsageError(f"{row.place}: {error}.") from error
        key = (video.video_id, video.start_seconds, video.end_seconds)
        if key in first_place:
            raise UsageError(f"{row.place}: {video.video_id} is already listed in {first_place[key]}; keep one.")
        first_place[key] = row.place
        videos.append(video)
    return Split(
        dataset=INFO.name,
        split=split,
        task="multi_label" if is_multi else "single_label",
        classes=classes,
        videos=tuple(videos),
    )


def _read_rows(path: Path) -> list[_Row]:
    rows: list[_Row] = []
    table = read_table(path, required=("video", "label"), optional=("start_seconds", "end_seconds"))
    for line, row in table:
        place = f"{path}, line {line}"
        if not row["video"]:
            raise UsageError(f"{place}: the video is empty; expected the path of a file.")
        labels = tuple(label.strip() for label in row["label"].split(LABEL_SEPARATOR)) if row["label"].strip() else ()
        if not all(labels):
            raise UsageError(f"{place}: expected labels joined by {LABEL_SEPARATOR!r}, got {row['label']!r}.")
        start, end = (parse_seconds(row.get(name, ""), place=place) for name in ("start_seconds", "end_seconds"))
        video_id = Path(os.path.normpath(row["video"])).as_posix()  # ./a.mp4 and a.mp4 are one video
        rows.append(_Row(place=place, video_id=video_id, labels=labels, start_seconds=start, end_seconds=end))
    return rows


def _resolve_labels(rows: Sequence[_Row], classes_file: Path) -> tuple[tuple[str, ...], dict[str, int]]:
    """Class names by index, and the index of each label as the rows write it.

    With classes.txt (one name a line) labels are its names or indices into it; without, they are all names (indexed
    in sorted order) or all indices.
    """
    written = dict.fromkeys(label for row in rows for label in row.labels)
    indices = {label: int(label) for label in written if label.isascii() and label.isdigit()}
    if classes_file.is_file():
        classes = _read_classes(classes_file)
        labels_of = {**indices, **{name: index for index, name in enumerate(classes)}}
        for row in rows:
            for label in row.labels:
                if labels_of.get(label, len(classes)) >= len(classes):
                    raise UsageError(
                        f"{row.place}: {label!r} is none of the {len(classes)} classes of {classes_file}; "
                        f"{suggest(label, classes)}"
                    )
        return classes, labels_of
    if not indices:
        classes = tuple(sorted(written))
        return classes, {name: index for index, name in enumerate(classes)}
    for row in rows:
        for label in row.labels:
            if label not in indices:
                raise UsageError(
                    f"{row.place}: label {label!r} is a name, but {next(iter(indices))!r} elsewhere is a number; use "
                    f"one kind, or list the class names in {classes_file}."
                )
            if indices[label] >= MAX_CLASSES:
                raise UsageError(f"{row.place}: a class index lies below {MAX_CLASSES}, got {label}.")
    return tuple(str(index) for index in range(max(indices.values()) + 1)), indices


def _read_classes(path: Path) -> tuple[str, ...]:
    try:
        classes = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as text in UTF-8 ({error}).") from error
    if len(set(classes)) < len(classes):
        double = next(name for name in classes if classes.count(name) > 1)
        raise UsageError(f"{path}: the class {double!r} is listed twice.")
    return classes
