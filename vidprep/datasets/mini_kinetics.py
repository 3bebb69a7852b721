"""Mini-Kinetics as AR-Net, AdaFuse, FrameExit, AdaFocus and TAPS use it: 200 classes of Kinetics-400, all their clips.

The other set of this name, of Xie et al. (2018), is `mini_kinetics_xie2018`; the two share 102 of 200 classes.
"""

from collections.abc import Sequence
from pathlib import Path

from vidprep.datasets import kinetics, kinetics400
from vidprep.datasets.annotations import Rows, label_key, read_lines, read_list, split_of_list
from vidprep.errors import UsageError, quote
from vidprep.splits import Split, read_classes
from vidprep.types import DatasetInfo, FrameFormat, Video

__all__ = ["INFO", "build_splits"]

INFO = DatasetInfo(
    name="mini_kinetics",
    title="Mini-Kinetics (AR-Net, TAPS)",
    description="200 classes of Kinetics-400 with all their clips, as AR-Net, AdaFuse, AdaFocus and TAPS use them.",
    task="single_label",
    num_classes=200,
    splits={"train": 121_215, "val": 9_867},
    video_paths=kinetics.VIDEO_PATHS,
    frames=FrameFormat(fps=5.0, rate_mode="output", short_side=256, jpeg_quality=95, template="image_{:05d}.jpg"),
    access="open",
    files=tuple(file for file in kinetics400.INFO.files if file.split in ("train", "val")),
    archives=("part_*.tar.gz", "replacement_for_corrupted_k400.tgz"),
    traps=(
        "Two sets bear this name; this one and that of Xie et al. (mini_kinetics_xie2018) share 102 of 200 classes.",
        "AR-Net's lists hold 9,867 val clips, TAPS' of August 2023 9,860, the official Kinetics-400 file 9,947.",
        "Paths in the lists hold spaces (`val/air drumming/...`): they are cut from the right.",
        "TAPS' frames are `-r 5` (52 of a 10 s clip, not 50); AR-Net's and AdaFuse's are at the native rate.",
        "TAPS' lists end lines with CRLF, AdaFuse's with LF.",
    ),
    instructions=(
        "The videos are those of Kinetics-400 (`vidprep info kinetics400`). Build the lists from its annotation files, "
        "`vidprep split mini_kinetics --annotations val.csv --data-root ROOT`, or from the lists of TAPS or AdaFuse "
        "(mini_{train,val}_videofolder*.txt), which hold a few clips less."
    ),
    homepage="https://github.com/mengyuest/AR-Net",
    licence="annotations CC BY 4.0; videos under their uploaders' rights",
    paper="https://arxiv.org/abs/2007.15796",
)


def build_splits(annotations: Sequence[Path]) -> dict[str, Split]:
    """The splits that Kinetics-400's annotation files, or lists of TAPS, AR-Net or AdaFuse, hold.

    Of the annotation files, clips of other classes are passed over and counted. Of a list, `val/air drumming/
    7LSJ2Ryv1a8_000000_000010 52 0`, the folder of the class must be the class of the number.

    Raises:
        UsageError: a file is of neither form, or two rows contradict each other; names file, line and reason.
    """
    rows = Rows(INFO, read_classes(INFO.name))
    for path in annotations:
        first = next(read_lines(path))[1]
        if first.endswith(tuple("0123456789")) and "/" in first:
            _read_list(path, rows)
        else:
            _read_annotations(path, rows)
    return rows.to_splits()


def _read_list(path: Path, rows: Rows) -> None:
    class_index = {label_key(name): index for index, name in enumerate(rows.classes)}
    for row in read_list(path, num_classes=len(rows.classes)):
        class_folder = row.folder.split("/")[-2] if "/" in row.folder else ""
        if class_index.get(label_key(class_folder)) != row.labels[0]:
            raise UsageError(
                f"{row.place}: class {row.labels[0]} is {rows.classes[row.labels[0]]!r} here, but the folder is "
                f"{quote(class_folder)}; is the list of the other Mini-Kinetics?"
            )
        split = split_of_list(path, row.folder)
        rows.add(split, Video(video_id=row.name, labels=row.labels), place=row.place, label=str(row.labels[0]))


def _read_annotations(path: Path, rows: Rows) -> None:
    class_index = {label_key(name): index for index, name in enumerate(rows.classes)}
    all_classes = {label_key(name): index for index, name in enumerate(read_classes("kinetics400"))}
    passed_over: dict[str, int] = {}
    for clip in kinetics.read_clips(path):
        if not clip.label or clip.split not in INFO.splits:
            raise UsageError(
                f"{clip.place}: {clip.youtube_id} of split {clip.split} with label {quote(clip.label)}; {INFO.title} "
                "is made of the labelled train and val files of Kinetics-400."
            )
        kinetics.find_class(clip, all_classes, kinetics400.INFO)
        index = class_index.get(label_key(clip.label))
        if index is None:
            passed_over[clip.split] = passed_over.get(clip.split, 0) + 1
            continue
        video = Video(video_id=clip.video_id, labels=(index,), duration_seconds=clip.duration_seconds)
        rows.add(clip.split, video, place=clip.place, label=clip.label)
    for split, count in passed_over.items():
        rows.note(split, f"{path}: {count:,} clips are of the other 200 classes of Kinetics-400 and are passed over.")
