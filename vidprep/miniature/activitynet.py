"""ActivityNet v1.3 as the drive copy gives it: eight archives of mixed video files, one JSON of segments."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vidprep.miniature.plan import Clip, Content, Workshop, make_tar, make_zip, youtube_id
from vidprep.splits import read_classes

__all__ = ["make"]

ARCHIVES: Mapping[str, str] = {
    "v1-2_train.tar.gz": "v1-2/train",
    "v1-2_val.tar.gz": "v1-2/val",
    "v1-2_test.tar.gz": "v1-2/test",
    "v1-3_train_val.tar.gz": "v1-3/train_val",
    "v1-3_test.tar.gz": "v1-3/test",
    "missing_files.zip": "missing_files",
    "missing_files_v1-2_test.zip": "missing_files_v1-2_test",
    "missing_files_v1-3_test.zip": "missing_files_v1-3_test",
}
"""Archive -> what it unpacks to."""
CODECS = {"mp4": "libx264", "mkv": "libx264", "webm": "libvpx-vp9"}
SUBSETS = {"train": "training", "val": "validation", "test": "testing"}
FRAME_RATE = 10
WHOLE = Clip(video_id="twenty seconds", num_frames=20 * FRAME_RATE, fps=FRAME_RATE)
SHORT = replace(WHOLE, num_frames=8 * FRAME_RATE, width=320, height=240)


@dataclass(frozen=True, kw_only=True)
class _Row:
    clip: Clip
    split: str
    folder: str
    suffix: str
    segments: tuple[tuple[str, float, float], ...]
    """Class and times in seconds."""
    duration_seconds: float
    """As the JSON says."""


def make(name: str, out: Path, workshop: Workshop, rng: np.random.Generator) -> Content:
    """Write archives/ and annotations/ below `out`."""
    rows = _plan(name, rng)
    for row in rows:
        path = workshop.folder / row.folder / f"v_{row.clip.video_id}.{row.suffix}"
        workshop.write_video(row.clip, path, codec=CODECS[row.suffix], has_audio=row.suffix == "mp4")
    archives = out / "archives"
    archives.mkdir()
    for archive, folder in ARCHIVES.items():
        if archive.endswith(".zip"):
            files = (workshop.folder / folder).iterdir()
            content = make_zip({f"{folder}/{path.name}": path.read_bytes() for path in files})
        else:
            content = make_tar(workshop.folder, only=[folder])
        (archives / archive).write_bytes(content)
    annotations = out / "annotations"
    annotations.mkdir()
    (annotations / "activity_net.v1-3.min.json").write_text(json.dumps(_to_json(rows)), encoding="utf-8")
    _, of_two_classes, of_long_segment, of_empty_segment = (row.clip.video_id for row in rows[:4])
    return Content(
        annotations=("annotations/activity_net.v1-3.min.json",),
        splits={split: workshop.expect(row.clip for row in rows if row.split == split) for split in SUBSETS},
        traps={
            "the full set is the union of all archives": "no archive holds a whole split",
            "mp4, mkv and webm side by side": ", ".join(row.clip.video_id for row in rows if row.suffix != "mp4"),
            "dead video": ", ".join(row.clip.video_id for row in rows if row.clip.flaw == "missing"),
            "truncated file (moov atom not found)": next(
                row.clip.video_id for row in rows if row.clip.flaw == "truncated"
            ),
            "validation video in v1-3/train_val": next(
                row.clip.video_id for row in rows if row.split == "val" and row.folder == "v1-3/train_val"
            ),
            "video of two classes, the later one in the order of names first": of_two_classes,
            "segment that ends after the video": of_long_segment,
            "segment whose start is not before its end": of_empty_segment,
            "duration that the file does not have": of_empty_segment,
            "id that begins with -": next(row.clip.video_id for row in rows if row.clip.video_id.startswith("-")),
            "misspelt official class": "Polishing forniture",
        },
    )


def _plan(name: str, rng: np.random.Generator) -> list[_Row]:
    classes = read_classes(name)

    def row(
        split: str,
        folder: str,
        suffix: str,
        *segments: tuple[str, float, float],
        start_of_id: str = "",
        shape: Clip = WHOLE,
        seconds: float | None = None,
    ) -> _Row:
        labels = tuple(dict.fromkeys(classes.index(label) for label, _, _ in segments))
        return _Row(
            clip=replace(shape, video_id=youtube_id(rng, start=start_of_id), labels=labels),
            split=split,
            folder=folder,
            suffix=suffix,
            segments=segments,
            duration_seconds=shape.num_frames / FRAME_RATE if seconds is None else seconds,
        )

    return [
        row("train", "v1-2/train", "mp4", ("Archery", 1.5, 9.25), start_of_id="-"),
        # Two classes; the one that comes first in the video has the higher index.
        row("train", "v1-2/train", "mkv", ("Polishing forniture", 0.0, 7.5), ("Archery", 8.0, 19.5)),
        row("train", "v1-3/train_val", "webm", ("Rock-paper-scissors", 12.0, 24.31), shape=replace(WHOLE, height=240)),
        # The file holds 8 of its 15 seconds: a truncated download, as v_0dkIbKXXFzI.
        row("train", "missing_files", "mp4", ("Zumba", 3.0, 7.0), ("Zumba", 9.0, 9.0), shape=SHORT, seconds=15.5),
        row("train", "v1-2/train", "mp4", ("Zumba", 1.0, 9.0), shape=replace(WHOLE, flaw="missing")),
        row("train", "v1-3/train_val", "mp4", ("Archery", 1.0, 9.0), shape=replace(WHOLE, flaw="truncated")),
        row("val", "v1-2/val", "mp4", ("Zumba", 0.01, 20.0)),
        row("val", "v1-3/train_val", "mkv", ("Archery", 2.0, 4.0), ("Archery", 6.0, 8.5)),
        row("val", "v1-2/val", "mp4", ("Rock-paper-scissors", 1.0, 5.0), shape=replace(WHOLE, flaw="missing")),
        row("test", "v1-2/test", "mp4", shape=SHORT),
        row("test", "v1-3/test", "mp4", shape=SHORT),
        row("test", "missing_files_v1-2_test", "mp4", shape=SHORT),
        row("test", "missing_files_v1-3_test", "mp4", shape=SHORT),
    ]


def _to_json(rows: list[_Row]) -> Mapping[str, object]:
    names = dict.fromkeys(label for row in rows for label, _, _ in row.segments)
    taxonomy: list[Mapping[str, object]] = [{"parentName": None, "nodeName": "Root", "nodeId": 0, "parentId": None}]
    taxonomy += [
        {"parentName": "Root", "nodeName": label, "nodeId": index, "parentId": 0}
        for index, label in enumerate(names, start=1)
    ]
    database = {
        row.clip.video_id: {
            "duration": row.duration_seconds,
            "subset": SUBSETS[row.split],
            "resolution": f"{row.clip.width}x{row.clip.height}",
            "url": f"https://www.youtube.com/watch?v={row.clip.video_id}",
            "annotations": [{"segment": [start, end], "label": label} for label, start, end in row.segments],
        }
        for row in rows
    }
    return {"taxonomy": taxonomy, "version": "VERSION 1.3", "database": database}
