"""ActivityNet v1.3: 200 activities in untrimmed YouTube videos, several labels a video."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from vidprep.errors import UsageError, suggest
from vidprep.splits import Split, read_classes
from vidprep.types import DatasetInfo, FrameFormat, Video

__all__ = ["INFO", "build_splits"]

INFO = DatasetInfo(
    name="activitynet",
    title="ActivityNet v1.3",
    task="multi_label",
    num_classes=200,
    splits={"train": 10_024, "val": 4_926, "test": 5_044},
    video_paths=("**/v_{video_id}.*",),  # the archives' folders are not the splits: v1-3/train_val, missing_files
    frames=FrameFormat(fps=1.0, rate_mode="output", short_side=350, jpeg_quality=95, template="image_{:05d}.jpg"),
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
YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]{11}")


def build_splits(annotations: Sequence[Path], *, unit: Literal["video", "segment"] = "video") -> dict[str, Split]:
    """All splits that official annotation files (activity_net.v1-3.min.json) hold, in the order of the files.

    With `unit` "video" a row is a whole video with all its distinct classes, in the order of their first appearance:
    so do TAPS, AR-Net, AdaFocus and FrameExit. With "segment" a row is an annotated segment, clamped to its video;
    a segment that is empty then is left out. What does not fit its video is noted either way. Test videos have no
    labels and stay whole.

    Raises:
        UsageError: a file is not of this form, not of version 1.3, or two files give one video.
    """
    classes = read_classes(INFO.name)
    class_index = {name: index for index, name in enumerate(classes)}
    videos: dict[str, list[Video]] = {}
    notes: dict[str, list[str]] = {}
    first_file: dict[str, Path] = {}
    for path in annotations:
        text = _read_text(path)
        for video_id, entry in _read_database(text, path).items():
            place = f"{path}, line {_line_of(video_id, text)}, {video_id}"
            if video_id in first_file:
                raise UsageError(f"{place}: already given by {first_file[video_id]}; give only one of the two files.")
            first_file[video_id] = path
            split = _check_entry(video_id, entry, place=place)
            labels, segments, faults = _read_segments(entry, class_index, place=place)
            notes.setdefault(split, []).extend(f"{video_id}: {fault}" for fault in faults)
            if unit == "video" or not entry["annotations"]:
                segments = {(None, None): labels}
            videos.setdefault(split, []).extend(
                Video(video_id=video_id, labels=tuple(of_segment), start_seconds=start, end_seconds=end)
                for (start, end), of_segment in segments.items()
            )
    return {
        split: Split(
            dataset=INFO.name,
            split=split,
            task=INFO.task,
            classes=classes,
            videos=tuple(rows),
            notes=tuple(notes.get(split, ())),
        )
        for split, rows in videos.items()
        if rows
    }


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not a text file in UTF-8 (byte {error.start}); expected JSON, unpacked.") from error


def _read_database(text: str, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(text, object_pairs_hook=_without_doubles, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"{path}, line {error.lineno}, column {error.colno}: not readable as JSON ({error.msg}); "
            "is the file cut short, or not activity_net.v1-3.min.json?"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not readable as JSON ({error}).") from error
    if not isinstance(content, dict) or not isinstance(content.get("database"), dict):
        keys = ", ".join(list(content)[:3]) if isinstance(content, dict) else type(content).__name__
        raise UsageError(
            f"{path}, line 1: expected ActivityNet's own form, an object with `database` and `version` "
            f"(activity_net.v1-3.min.json), got {keys or 'nothing'}."
        )
    version = content.get("version")
    if not isinstance(version, str) or "1.3" not in version:
        raise UsageError(
            f"{path}, line {_line_of('version', text)}: expected version 1.3 of ActivityNet, got {version!r}."
        )
    database: dict[str, Any] = content["database"]
    return database


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's members; plain `json` would keep the last of two equal keys in silence."""
    members = dict(pairs)
    if len(members) < len(pairs):
        keys = [key for key, _ in pairs]
        double = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{double!r} is given twice in one object")
    return members


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _line_of(key: str, text: str) -> int:
    """Line of the first appearance of `"key"`; the official file is one line, copies are often indented."""
    return text.count("\n", 0, max(text.find(f'"{key}"'), 0)) + 1


def _check_entry(video_id: str, entry: Any, *, place: str) -> str:
    """The split of a video whose entry has the official form."""
    if not YOUTUBE_ID.fullmatch(video_id):
        raise UsageError(f"{place}: a video is named by its 11-character YouTube id (without v_), got {video_id!r}.")
    if not isinstance(entry, dict):
        raise UsageError(f"{place}: expected an object with subset, duration and annotations, got {entry!r}.")
    subset: Any = entry.get("subset")
    duration: Any = entry.get("duration")
    annotations: Any = entry.get("annotations")
    if not isinstance(subset, str) or subset not in SUBSETS:
        raise UsageError(f"{place}: expected subset {', '.join(SUBSETS)}, got {subset!r}.")
    if not _is_number(duration) or duration <= 0:
        raise UsageError(f"{place}: expected a duration in seconds, got {duration!r}.")
    if not isinstance(annotations, list) or (not annotations and subset != "testing"):
        raise UsageError(f"{place}: a {subset} video needs a list of annotations, got {annotations!r}.")
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
            raise UsageError(f"{place}: {name!r} is no class of ActivityNet v1.3; {suggest(str(name), class_index)}")
        times = annotation.get("segment")
        if not isinstance(times, list) or len(times) != 2 or not all(map(_is_number, times)):
            raise UsageError(f"{place}: a segment is [start, end] in seconds, got {times!r}.")
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
