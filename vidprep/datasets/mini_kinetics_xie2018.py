"""Mini-Kinetics-200 of Xie et al. (S3D, 2018): the 200 most frequent classes of Kinetics-400, balanced.

The other set of this name, of AR-Net and TAPS, is `mini_kinetics`; the two share 102 of 200 classes.
"""

from collections.abc import Sequence
from pathlib import Path

from vidprep.datasets import kinetics, kinetics400
from vidprep.datasets.annotations import YOUTUBE_ID, Rows, label_key, read_lines, split_of_list
from vidprep.errors import UsageError, quote
from vidprep.splits import Split, read_classes
from vidprep.types import DatasetInfo, FrameFormat, Video

__all__ = ["INFO", "build_splits"]

INFO = DatasetInfo(
    name="mini_kinetics_xie2018",
    title="Mini-Kinetics-200 (Xie et al., 2018)",
    description="The 200 most frequent classes of Kinetics-400, 400 training and 25 validation clips each.",
    task="single_label",
    num_classes=200,
    splits={"train": 80_000, "val": 5_000},
    video_paths=kinetics.VIDEO_PATHS,
    frames=FrameFormat(short_side=256, template="img_{:05d}.jpg"),
    access="open",
    files=tuple(file for file in kinetics400.INFO.files if file.split in ("train", "val")),
    archives=("part_*.tar.gz", "replacement_for_corrupted_k400.tgz"),
    traps=(
        "Two sets bear this name; this one and that of AR-Net and TAPS (mini_kinetics) share 102 of 200 classes.",
        "Its lists are bare YouTube ids: label and times come from the annotation files of Kinetics-400.",
        "No class order was published; here it is that of Kinetics-400, which is sorted.",
    ),
    instructions=(
        "The videos are those of Kinetics-400 (`vidprep info kinetics400`). Fetch train_ytid_list.txt and "
        "val_ytid_list.txt from https://github.com/s9xie/Mini-Kinetics-200 and run `vidprep split "
        "mini_kinetics_xie2018 --annotations train_ytid_list.txt --annotations train.csv --data-root ROOT` with the "
        "annotation file of Kinetics-400; the same for val."
    ),
    homepage="https://github.com/s9xie/Mini-Kinetics-200",
    licence="annotations CC BY 4.0; videos under their uploaders' rights",
    paper="https://arxiv.org/abs/1712.04851",
)


def build_splits(annotations: Sequence[Path]) -> dict[str, Split]:
    """The splits that lists of YouTube ids hold, with labels and times from annotation files of Kinetics-400.

    Raises:
        UsageError: the lists or the annotation files are missing, a file is of neither form, or an id is of a class
            that is none of the 200; names file, line and reason.
    """
    rows = Rows(INFO, read_classes(INFO.name))
    lists = [path for path in annotations if YOUTUBE_ID.fullmatch(next(read_lines(path))[1])]
    tables = [path for path in annotations if path not in lists]
    if not lists or not tables:
        missing = "the list of YouTube ids (val_ytid_list.txt)" if not lists else "Kinetics-400's file (val.csv)"
        raise UsageError(f"{', '.join(map(str, annotations))}: {INFO.name} needs both; {missing} is not among them.")
    class_index = {label_key(name): index for index, name in enumerate(rows.classes)}
    all_classes = {label_key(name): index for index, name in enumerate(read_classes("kinetics400"))}
    clips: dict[str, dict[str, list[kinetics.Clip]]] = {}
    for path in tables:
        for clip in kinetics.read_clips(path):
            kinetics.find_class(clip, all_classes, kinetics400.INFO)
            clips.setdefault(clip.split, {}).setdefault(clip.youtube_id, []).append(clip)
    for path in lists:
        _join(path, clips, class_index, rows)
    return rows.to_splits()


def _join(
    path: Path, clips: dict[str, dict[str, list[kinetics.Clip]]], class_index: dict[str, int], rows: Rows
) -> None:
    split = split_of_list(path)
    missing: list[str] = []
    for line, youtube_id in read_lines(path):
        place = f"{path}, line {line}"
        if not YOUTUBE_ID.fullmatch(youtube_id):
            raise UsageError(f"{place}: expected a YouTube id of 11 characters, got {quote(youtube_id)}.")
        named = clips.get(split, {}).get(youtube_id)
        if named is None:
            missing.append(youtube_id)
            continue
        clip = named[0]
        if len({(other.video_id, label_key(other.label)) for other in named}) > 1:
            places = ", ".join(f"{other.video_id} {quote(other.label)} in {other.place}" for other in named[:5])
            rows.note(split, f"{place}: {youtube_id} is the id of {len(named)} clips ({places}); the first is taken.")
        index = class_index.get(label_key(clip.label))
        if index is None:
            raise UsageError(
                f"{place}: {youtube_id} is of {quote(clip.label)} ({clip.place}), none of the 200 classes of Xie et "
                "al.; is the list of the other Mini-Kinetics?"
            )
        video = Video(video_id=clip.video_id, labels=(index,), duration_seconds=clip.duration_seconds)
        rows.add(split, video, place=place, label=clip.label)
    if missing and split not in rows.videos:
        raise UsageError(
            f"{path}: none of its {len(missing)} ids is in the {split} split of the annotation files; give {split}.csv "
            "of Kinetics-400."
        )
    if missing:
        rows.note(split, f"{path}: {len(missing):,} ids are in no annotation file (first {missing[0]}); left out.")
