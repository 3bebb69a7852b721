"""ActivityNet v1.3: 200 activities in untrimmed YouTube videos, several labels a video."""

from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from vidprep.datasets.annotations import (
    YOUTUBE_ID,
    Rows,
    line_numbers,
    line_of,
    read_json,
    read_list,
    read_text,
    split_of_list,
)
from vidprep.errors import UsageError, quote, suggest
from vidprep.splits import Split, read_classes
from vidprep.types import DatasetInfo, FrameFormat, RemoteFile, Video

__all__ = ["INFO", "build_splits"]

ARCHIVE_MD5 = {
    "v1-2_train.tar.gz": "8510ed0d8ae399b1bda399fd117e7406",
    "v1-2_val.tar.gz": "34f0d2b867f188883259b607e68c830f",
    "v1-2_test.tar.gz": "b06ca628443da1c1389c69b2feac6ca2",
    "v1-3_train_val.tar.gz": "eb0829a2eae2e3f254a0fcb64c6583c4",
    "v1-3_test.tar.gz": "ec218c66991d776ad0ff826c0b43836d",
}
"""From the readme beside the archives of the drive copy, which has none for the zips of missing files."""

INFO = DatasetInfo(
    name="activitynet",
    title="ActivityNet v1.3",
    description="Untrimmed YouTube videos, 1.6 s to 975 s, with the segments in which one of 200 activities is seen.",
    task="multi_label",
    num_classes=200,
    splits={"train": 10_024, "val": 4_926, "test": 5_044},
    video_paths=("**/v_{video_id}.*",),  # the archives' folders are not the splits: v1-3/train_val, missing_files
    frames=FrameFormat(fps=1.0, rate_mode="output", short_side=350, jpeg_quality=95, template="image_{:05d}.jpg"),
    access="youtube",
    files=(
        RemoteFile(
            url=("http://ec2-52-25-205-214.us-west-2.compute.amazonaws.com/files/activity_net.v1-3.min.json"),
            filename="annotations/activity_net.v1-3.min.json",
        ),
    ),
    archive_md5=MappingProxyType(ARCHIVE_MD5),
    archives=(*ARCHIVE_MD5, "missing_files*.zip"),
    traps=(
        "The v1-3 archives hold only what v1.3 added to v1.2: the whole set is the union of all eight.",
        "The archives' folders are not the splits, and suffixes are mixed (mp4, mkv, webm): the json says the split.",
        "About 9 % of the videos are gone from YouTube; lists hold 9,649 to 9,897 train and 4,728 to 4,862 val videos.",
        "Its classes have two numberings: alphabetical (TAPS, AR-Net; taken here) and OpenMMLab's, in no order.",
        "Misspelt names are official: Polishing forniture, Mooping floor, Hitting a pinata.",
        "Some videos have two classes; a few segments end after their video or are empty.",
        "Known short files: v_0dkIbKXXFzI, v_vdYFwqfqgJA, v_90vop6PS2Y0, v_MvZFYjs80Y4.",
    ),
    instructions=(
        "Ask for the videos at http://activity-net.org/download.html and unpack all eight archives (the v1-3 ones hold "
        "only what v1.3 added) below ROOT; fetch activity_net.v1-3.min.json from there and run "
        "`vidprep split activitynet --annotations FILE --data-root ROOT`."
    ),
    homepage="http://activity-net.org",
    licence="none stated for the annotations; videos under YouTube's terms",
    paper="https://openaccess.thecvf.com/content_cvpr_2015/html/Heilbron_ActivityNet_A_Large-Scale_2015_CVPR_paper.html",
)

SUBSETS = {"training": "train", "validation": "val", "testing": "test"}


def build_splits(annotations: Sequence[Path], *, unit: Literal["video", "segment"] = "video") -> dict[str, Split]:
    """All splits that official annotation files (activity_net.v1-3.min.json) hold, in the order of the files.

    With `unit` "video" a row is a whole video with all its distinct classes, in the order of their first appearance:
    so do TAPS, AR-Net, AdaFocus and FrameExit. With "segment" a row is an annotated segment, clamped to its video;
    a segment that is empty then is left out. What does not fit its video is noted either way. Test videos have no
    labels and stay whole.

    Raises:
        UsageError: a file is not of this form, not of version 1.3, or two files give one video.
    """
    rows = Rows(INFO, read_classes(INFO.name))
    class_index = {name: index for index, name in enumerate(rows.classes)}
    first_file: dict[str, Path] = {}
    for path in annotations:
        if read_text(path, expected="JSON").startswith("v_"):
            _read_list(path, rows, first_file)
            continue
        content, text = read_json(path, name="activity_net.v1-3.min.json")
        lines = line_numbers(text, r'"([A-Za-z0-9_-]{11})"\s*:')
        held: set[str] = set()
        for video_id, entry in _read_database(content, text, path).items():
            place = f"{path}, line {lines.get(video_id) or line_of(video_id, text)}, {video_id[:80]}"
            if video_id in first_file:
                raise UsageError(f"{place}: already given by {first_file[video_id]}; give only one of the two files.")
            first_file[video_id] = path
            split = _check_entry(video_id, entry, place=place)
            held.add(split)
            labels, segments, faults = _read_segments(entry, class_index, place=place)
            for fault in faults:
                rows.note(split, f"{video_id}: {fault}")
            if unit == "video" or not entry["annotations"]:
                segments = {(None, None): labels}
            for (start, end), of_segment in segments.items():
                video = Video(
                    video_id=video_id,
                    labels=tuple(of_segment),
                    start_seconds=start,
                    end_seconds=end,
                    duration_seconds=float(entry["duration"]),
                )
                rows.add(split, video, place=place)
        for split in held if len(held) < len(INFO.splits) else ():
            missing = ", ".join(f"{name} ({count:,})" for name, count in INFO.splits.items() if name not in held)
            rows.note(split, f"{path}: holds no video of {missing}; the published file holds all splits.")
    return rows.to_splits()


def _read_list(path: Path, rows: Rows, first_file: dict[str, Path]) -> None:
    """A list of TAPS, AR-Net or AdaFocus: `v_sJFgo9H6zNo,141,57`, up to three classes, numbered alphabetically."""
    split = split_of_list(path)
    for row in read_list(path, num_classes=len(rows.classes)):
        if not (row.name.startswith("v_") and YOUTUBE_ID.fullmatch(row.name[2:])):
            raise UsageError(f"{row.place}: expected v_ and an 11-character YouTube id, got {quote(row.name)}.")
        video_id = row.name[2:]
        if first_file.setdefault(video_id, path) != path:
            raise UsageError(f"{row.place}: already given by {first_file[video_id]}; give only one of the two files.")
        rows.add(split, Video(video_id=video_id, labels=row.labels), place=row.place, label=str(row.labels))


def _read_database(content: Any, text: str, path: Path) -> dict[str, Any]:
    if not isinstance(content, dict) or not isinstance(content.get("database"), dict):
        keys = ", ".join(list(content)[:3]) if isinstance(content, dict) else type(content).__name__
        raise UsageError(
            f"{path}, line 1: expected ActivityNet's own form, an object with `database` and `version` "
            f"(activity_net.v1-3.min.json), got {keys or 'nothing'}."
        )
    version = content.get("version")
    if not isinstance(version, str) or "1.3" not in version:
        raise UsageError(
            f"{path}, line {line_of('version', text)}: expected version 1.3 of ActivityNet, got {quote(version)}."
        )
    database: dict[str, Any] = content["database"]
    if not database:
        raise UsageError(f"{path}, line {line_of('database', text)}: its database holds no video; fetch it again.")
    return database


def _check_entry(video_id: str, entry: Any, *, place: str) -> str:
    """The split of a video whose entry has the official form."""
    if not YOUTUBE_ID.fullmatch(video_id):
        raise UsageError(
            f"{place}: a video is named by its 11-character YouTube id (without v_), got {quote(video_id)}."
        )
    if not isinstance(entry, dict):
        raise UsageError(f"{place}: expected an object with subset, duration and annotations, got {quote(entry)}.")
    subset: Any = entry.get("subset")
    duration: Any = entry.get("duration")
    annotations: Any = entry.get("annotations")
    if not isinstance(subset, str) or subset not in SUBSETS:
        raise UsageError(f"{place}: expected subset {', '.join(SUBSETS)}, got {quote(subset)}.")
    if not _is_number(duration) or duration <= 0:
        raise UsageError(f"{place}: expected a duration in seconds, got {quote(duration)}.")
    if not isinstance(annotations, list) or (not annotations and subset != "testing"):
        raise UsageError(f"{place}: a {subset} video needs a list of annotations, got {quote(annotations)}.")
    return SUBSETS[subset]


def _read_segments(
    entry: dict[str, Any], class_index: dict[str, int], *, place: str
) -> tuple[list[int], dict[tuple[float | None, float | None], list[int]], list[str]]:
    """All distinct classes of a video, those of each segment inside it, and what had to be clamped or left out."""
    duration = float(entry["duration"])
    labels: list[int] = []
    segments: dict[tuple[float | None, float | None], list[int]] = {}
    faults: list[str] = []
    for number, annotation in enumerate(entry["annotations"], start=1):
        name = annotation.get("label") if isinstance(annotation, dict) else None
        if not isinstance(name, str) or name not in class_index:
            raise UsageError(
                f"{place}: {quote(name)} is no class of ActivityNet v1.3; {suggest(str(name), class_index)}"
            )
        times = annotation.get("segment")
        if not isinstance(times, list) or len(times) != 2 or not all(map(_is_number, times)):
            raise UsageError(f"{place}: a segment is [start, end] in seconds, got {quote(times)}.")
        label = class_index[name]
        if label not in labels:
            labels.append(label)
        start, end = (min(max(float(seconds), 0.0), duration) for seconds in times)
        if start >= end:
            faults.append(
                f"segment {number} ({times[0]} to {times[1]} s of {duration} s) is empty; left out of the segments."
            )
            continue
        if [start, end] != times:
            faults.append(
                f"segment {number} ({times[0]} to {times[1]} s of {duration} s) clamped to {start} to {end} s."
            )
        same_segment = segments.setdefault((start, end), [])
        if label not in same_segment:
            same_segment.append(label)
    return labels, segments, faults


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e9 < value < 1e9
