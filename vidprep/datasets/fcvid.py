"""FCVID, the Fudan-Columbia Video Dataset: 239 categories of web videos, several labels a video."""

import re
from collections.abc import Sequence
from pathlib import Path

from vidprep.datasets.annotations import Rows, label_key, read_lines, read_list, split_of_list
from vidprep.errors import UsageError
from vidprep.splits import Split, read_classes
from vidprep.types import DatasetInfo, FrameFormat, Video

__all__ = ["INFO", "build_splits"]

INFO = DatasetInfo(
    name="fcvid",
    title="FCVID (Fudan-Columbia)",
    description="Untrimmed web videos of events, actions, objects and scenes, 167 s on average.",
    task="multi_label",
    num_classes=239,
    splits={"train": 45_611, "test": 45_612},
    video_paths=("**/{video_id}.*",),
    frames=FrameFormat(fps=1.0, rate_mode="output", short_side=360, template="image_{:05d}.jpg"),
    access="form",
    archives=("*.tar", "*.tar.gz", "*.tgz", "*.zip"),
    traps=(
        "No class list was found at its publisher; the order here is that of the sorted names, and each video's labels "
        "are checked against the class folder it lies in.",
        "Paths in the split file may hold backslashes, and hold the class folder.",
        "Two kinds of lists circulate: video,frames,class... with classes from 0 (AR-Net), and video,class with "
        "classes from 1 (hashing); they are told apart by their columns.",
        "AR-Net's lists call the test videos val, and give at most three classes a video.",
        "Sizes and counts are from memory of papers: about 1.9 TB.",
        "Scenes (beach, tajMahal) hardly change from frame to frame at 1 fps.",
    ),
    instructions=(
        "Ask for it by e-mail, see https://fvl.fudan.edu.cn/dataset/fcvid/list.htm; put the class folders of videos "
        "anywhere below ROOT and run `vidprep split fcvid --annotations materials/FCVID_VideoName_TrainTestSplit.txt "
        "--annotations materials/FCVID_Label.txt --data-root ROOT`."
    ),
    homepage="https://fvl.fudan.edu.cn/dataset/fcvid/list.htm",
    licence="research only, on request; videos under their uploaders' rights",
    paper="https://arxiv.org/abs/1502.07209",
)

HASHING_LINE = re.compile(r"([^,]+),([0-9]{1,9})")


def build_splits(annotations: Sequence[Path]) -> dict[str, Split]:
    """The splits that the official pair of files, or lists of AR-Net or of the hashing community, hold.

    The pair is FCVID_VideoName_TrainTestSplit.txt (`path train|test`) and FCVID_Label.txt (239 columns of 0 and 1 in
    the same order of rows). A video is called by its path without suffix: `class folder/name`.

    Raises:
        UsageError: a file is of none of these forms, the two have not the same rows, or the columns of the labels are
            not in the order of the classes; names file, line and reason.
    """
    rows = Rows(INFO, read_classes(INFO.name))
    names: list[Path] = []
    matrices: list[Path] = []
    for path in annotations:
        first = next(read_lines(path))[1]
        if set(first.split()) <= {"0", "1"} and " " in first + " ":
            matrices.append(path)
        elif first.split()[-1] in ("train", "test"):
            names.append(path)
        elif HASHING_LINE.fullmatch(first):
            _read_hashing_list(path, rows)
        else:
            _read_list(path, rows)
    if len(names) != len(matrices) or len(names) > 1:
        raise UsageError(
            f"{', '.join(map(str, annotations))}: give FCVID_VideoName_TrainTestSplit.txt and FCVID_Label.txt "
            f"together, one of each; got {len(names)} and {len(matrices)}."
        )
    if names:
        _read_pair(names[0], matrices[0], rows)
    return rows.to_splits()


def _read_pair(names: Path, matrix: Path, rows: Rows) -> None:
    videos = list(read_lines(names))
    labels = list(read_lines(matrix))
    if len(videos) != len(labels):
        raise UsageError(
            f"{matrix}, line {labels[-1][0]}: {len(labels):,} rows of labels, but {names} has {len(videos):,} videos; "
            "is one of them cut short?"
        )
    class_index = {label_key(name): index for index, name in enumerate(rows.classes)}
    num_checked = 0
    contradictions: list[str] = []
    for (line, text), (label_line, columns) in zip(videos, labels, strict=True):
        place = f"{names}, line {line}"
        *path, split = text.rsplit(None, 1)
        if not path or split not in INFO.splits:
            raise UsageError(
                f"{place}: expected `path train` or `path test`, got {text[:80]!r}; is the file cut short?"
            )
        video_id = _video_id(path[0])
        indices = _read_columns(columns, num_classes=len(rows.classes), place=f"{matrix}, line {label_line}")
        of_folder = [class_index[key] for part in video_id.split("/")[:-1] if (key := label_key(part)) in class_index]
        if of_folder:
            num_checked += 1
            if of_folder[-1] not in indices:
                named = ", ".join(rows.classes[index] for index in indices) or "nothing"
                contradictions.append(f"{matrix}, line {label_line}: {video_id} is labelled {named}")
                rows.note(split, f"{contradictions[-1]}, which its folder does not say.")
        rows.add(split, Video(video_id=video_id, labels=indices), place=place)
    if num_checked and 2 * len(contradictions) > num_checked:
        raise UsageError(
            f"{contradictions[0]}, and so for {len(contradictions):,} of {num_checked:,} videos the labels contradict "
            "the class folder; the columns are not in the order of the classes (sorted names)."
        )


def _video_id(path: str) -> str:
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")]
    return re.sub(r"\.[A-Za-z0-9]{2,4}$", "", "/".join(parts))


def _read_columns(text: str, *, num_classes: int, place: str) -> tuple[int, ...]:
    columns = text.split()
    if len(columns) != num_classes or not set(columns) <= {"0", "1"}:
        raise UsageError(
            f"{place}: expected {num_classes} columns of 0 and 1, got {len(columns)}"
            f"{'' if set(columns) <= {'0', '1'} else ' of other values'}; is the file cut short?"
        )
    return tuple(index for index, column in enumerate(columns) if column == "1")


def _read_list(path: Path, rows: Rows) -> None:
    """AR-Net's list: `video,frames,class[,class[,class]]`, classes from 0."""
    split = _split_of(path)
    for row in read_list(path, num_classes=len(rows.classes)):
        rows.add(split, Video(video_id=row.folder, labels=row.labels), place=row.place, label=str(row.labels))


def _read_hashing_list(path: Path, rows: Rows) -> None:
    """The hashing community's list: `video,class`, classes from 1."""
    split = _split_of(path)
    for line, text in read_lines(path):
        place = f"{path}, line {line}"
        found = HASHING_LINE.fullmatch(text)
        if found is None or not 1 <= int(found[2]) <= len(rows.classes):
            raise UsageError(
                f"{place}: expected `video,class` with classes from 1 to {len(rows.classes)}, got {text[:80]!r}."
            )
        video = Video(video_id=_video_id(found[1]), labels=(int(found[2]) - 1,))
        rows.add(split, video, place=place, label=found[2])


def _split_of(path: Path) -> str:
    return "train" if split_of_list(path) == "train" else "test"
