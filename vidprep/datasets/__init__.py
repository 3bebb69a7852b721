"""The data sets vidprep knows. A data set is one file here and one entry in `DATASETS`."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from vidprep.datasets import (
    activitynet,
    epic_kitchens,
    fcvid,
    files,
    folder,
    imagenet_vid,
    jester,
    kinetics400,
    kinetics600,
    kinetics700,
    mini_kinetics,
    mini_kinetics_xie2018,
    something_v1,
    something_v2,
    toy,
    toy_detection,
)
from vidprep.datasets.info import describe
from vidprep.errors import UnknownDataset, UnknownName, UsageError, suggest
from vidprep.splits import Split, read_checksums, read_classes, read_split, split_path
from vidprep.types import DatasetInfo, FrameAnnotation

__all__ = [
    "BOX_READERS",
    "DATASETS",
    "build_split",
    "build_splits",
    "class_names",
    "get",
    "info_text",
    "list_path",
    "load_split",
    "locate",
    "note_count",
]

DATASETS: dict[str, DatasetInfo] = {
    "toy": toy.INFO,
    "toy_detection": toy_detection.INFO,
    "folder": folder.INFO,
    "kinetics400": kinetics400.INFO,
    "kinetics600": kinetics600.INFO,
    "kinetics700": kinetics700.INFO,
    "mini_kinetics": mini_kinetics.INFO,
    "mini_kinetics_xie2018": mini_kinetics_xie2018.INFO,
    "something_v2": something_v2.INFO,
    "something_v1": something_v1.INFO,
    "jester": jester.INFO,
    "activitynet": activitynet.INFO,
    "fcvid": fcvid.INFO,
    "epic_kitchens": epic_kitchens.INFO,
    "imagenet_vid": imagenet_vid.INFO,
}

BUILDERS: dict[str, Callable[[Sequence[Path]], dict[str, Split]]] = {
    "kinetics400": kinetics400.build_splits,
    "kinetics600": kinetics600.build_splits,
    "kinetics700": kinetics700.build_splits,
    "mini_kinetics": mini_kinetics.build_splits,
    "mini_kinetics_xie2018": mini_kinetics_xie2018.build_splits,
    "something_v2": something_v2.build_splits,
    "something_v1": something_v1.build_splits,
    "jester": jester.build_splits,
    "activitynet": activitynet.build_splits,
    "fcvid": fcvid.build_splits,
    "epic_kitchens": epic_kitchens.build_splits,
    "imagenet_vid": imagenet_vid.build_splits,
}
"""Data sets whose lists the user builds from the official annotation files."""

BOX_READERS: dict[str, Callable[[Path], Sequence[FrameAnnotation]]] = {
    "toy_detection": toy_detection.read_annotations,
    "imagenet_vid": imagenet_vid.read_annotations,
}
"""Data sets with boxes -> what reads those of a video, frame by frame, from its folder of XML files."""


def get(name: str) -> DatasetInfo:
    """The data set called `name`.

    Raises:
        UnknownDataset: there is none; the message lists the nearest.
    """
    if name not in DATASETS:
        raise UnknownDataset(f"no data set {name!r}; {suggest(name, DATASETS)}")
    return DATASETS[name]


def info_text(name: str) -> str:
    """One screen about a data set: what it is, counts, licence, how to get it, its traps, the commands.

    Raises:
        UnknownDataset: there is none of this name; the message lists the nearest.
    """
    return describe(get(name), is_built_from_annotations=name in BUILDERS)


def class_names(info: DatasetInfo) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The classes of a data set by index, and its nouns (of verb_noun; else ()).

    Raises:
        ChecksumMismatch: a list was changed.
        VidprepError: a list is missing.
    """
    if info.task == "verb_noun":
        return read_classes(info.name, "verbs.txt"), read_classes(info.name, "nouns.txt")
    return read_classes(info.name), ()


def load_split(name: str, split: str, *, data_root: Path) -> Split:
    """The videos of one split: from vidprep's own list, from the one `vidprep split` wrote, or from the folder itself.

    Raises:
        UnknownName: no such data set or split; the message lists the nearest.
        UsageError: no such data root, no list in it yet, a malformed line, or a split without videos.
    """
    info = get(name)
    if not data_root.exists():
        raise UsageError(f"{data_root}: no such data root for {name}. {info.instructions}")
    if name == folder.INFO.name:
        loaded = folder.load_split(split, data_root)
    else:
        if not data_root.is_dir():
            raise UsageError(f"{data_root}: is no folder; {name} needs the data root that holds its videos.")
        if split not in info.splits:
            raise UnknownName(f"{name} has no split {split!r}; {suggest(split, info.splits)}")
        classes, noun_classes = class_names(info)
        loaded = read_split(
            _find_list(info, split, data_root),
            dataset=name,
            split=split,
            task=info.task,
            classes=classes,
            noun_classes=noun_classes,
        )
    if not loaded.videos:
        raise UsageError(f"{name}/{split} at {data_root} holds no videos. {info.instructions}")
    return loaded


def _find_list(info: DatasetInfo, split: str, data_root: Path) -> Path:
    if f"{info.name}/{split}.csv" in read_checksums():
        return split_path(info.name, f"{split}.csv")
    path = list_path(data_root, split)
    if not path.is_file():
        raise UsageError(
            f"{path}: no list of the videos of {info.name}/{split} yet; make it from the official annotation file: "
            f"`vidprep split {info.name} --annotations FILE --data-root {data_root}`."
        )
    return path


def list_path(data_root: Path, split: str) -> Path:
    """Where `load_split` looks for a list that the user built, and `vidprep split` writes it."""
    return data_root / "splits" / f"{split}.csv"


def build_splits(name: str, annotations: Sequence[Path]) -> dict[str, Split]:
    """All splits that the official annotation files hold, by name.

    Raises:
        UnknownDataset: no data set of this name.
        UsageError: its lists are not built from annotations, a file is not of the official form, or none holds a video.
    """
    built = _build(name, annotations)
    if not built:
        raise UsageError(
            f"{', '.join(map(str, annotations))}: no videos of {name} (a heading alone, a list of classes, or an empty "
            f"one). {get(name).instructions}"
        )
    return built


def _build(name: str, annotations: Sequence[Path]) -> dict[str, Split]:
    info = get(name)
    if name not in BUILDERS:
        raise UsageError(f"{name} is not built from annotation files (those that are: {', '.join(BUILDERS)}).")
    if not annotations:
        raise UsageError(f"{name}: give at least one annotation file. {info.instructions}")
    return {split: note_count(built) for split, built in BUILDERS[name](annotations).items()}


def note_count(built: Split) -> Split:
    """The split with a note where its count is not the published one: reported, never asserted.

    Counted are segments of verb_noun, and videos of all others, also where a row is a segment.
    """
    num_published = get(built.dataset).splits.get(built.split)
    num_built = len(built.videos if built.task == "verb_noun" else {video.video_id for video in built.videos})
    if num_published == num_built:
        return built
    what = "segments" if built.task == "verb_noun" else "videos"
    published = (
        "vidprep knows no published number, so look yourself whether the file is whole, and of this release."
        if num_published is None
        else f"{num_published:,} were published."
    )
    note = f"{built.dataset}/{built.split}: {num_built:,} {what}; {published}"
    return replace(built, notes=(*built.notes, note))


def build_split(name: str, split: str, annotations: Sequence[Path]) -> Split:
    """One split from the official annotation files.

    Raises:
        UnknownName: no such data set or split.
        UsageError: as `build_splits`, or the files hold no video of this split.
    """
    info = get(name)
    if split not in info.splits:
        raise UnknownName(f"{name} has no split {split!r}; {suggest(split, info.splits)}")
    built = _build(name, annotations)
    if split not in built:
        held = ", ".join(f"{other.split} ({len(other.videos)})" for other in built.values()) or "none"
        raise UsageError(
            f"{', '.join(map(str, annotations))}: no videos of {name}/{split}; of other splits: {held}. "
            f"Give the annotation file of {split}."
        )
    return built[split]


def locate(info: DatasetInfo, split: Split, data_root: Path) -> dict[str, Path]:
    """The file (or folder of frames) of each video of a split, by one walk below `data_root`.

    Videos without a file are absent.

    Raises:
        UsageError: no such data root.
        VidprepError: two files for one video, in places that count alike.
    """
    if info.name == folder.INFO.name:
        return folder.find_videos(split, data_root)
    ids = (video.video_id for video in split.videos)
    find = files.find_frame_folders if info.media == "frames" else files.find_videos
    return find(data_root, ids, patterns=info.video_paths, split=split.split)
