"""FCVID: videos in folders of their class, and two tables: names with their split, and a matrix of labels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vidprep.miniature.plan import Clip, Content, Workshop, youtube_id
from vidprep.splits import read_classes

__all__ = ["make"]

FRAME_RATE = 5
"""The publisher's videos have any; these are slow, so that half a minute is few frames."""
WHOLE = Clip(video_id="half a minute", num_frames=30 * FRAME_RATE, fps=FRAME_RATE, width=320, height=240)


@dataclass(frozen=True, kw_only=True)
class _Row:
    clip: Clip
    suffix: str
    split: str
    separator: str

    @property
    def path(self) -> str:
        return f"{self.clip.video_id}.{self.suffix}"


def make(name: str, out: Path, workshop: Workshop, rng: np.random.Generator) -> Content:
    """Write archives/ and annotations/ below `out`; the publisher gives folders, so archives/ holds folders."""
    rows = _plan(name, rng)
    for row in rows:
        codec = "mpeg4" if row.suffix == "avi" else "libx264"
        workshop.write_video(row.clip, out / "archives" / row.path, codec=codec, has_audio=row.suffix == "mp4")
    materials = _materials(rows, num_classes=len(read_classes(name)))
    for folder in (out / "annotations", out / "archives" / "materials"):
        folder.mkdir(parents=True)
        for file, text in materials.items():
            (folder / file).write_bytes(text.encode())
    return Content(
        annotations=tuple(f"annotations/{file}" for file in materials),
        splits={
            split: workshop.expect(row.clip for row in rows if row.split == split)
            for split in dict.fromkeys(row.split for row in rows)
        },
        traps={
            "id with a folder in it": "every video",
            "labels in another file, by row": "annotations/FCVID_Label.txt",
            "videos of several classes": ", ".join(row.clip.video_id for row in rows if len(row.clip.labels) > 1),
            "path with a backslash": next(row.path for row in rows if row.separator == "\\"),
            "video in the folder of one of its classes only": next(
                row.path for row in rows if len(row.clip.labels) > 1
            ),
            "dead video": next(row.clip.video_id for row in rows if row.clip.flaw == "missing"),
            "file of zero bytes": next(row.clip.video_id for row in rows if row.clip.flaw == "empty"),
            "id that begins with -": next(row.clip.video_id for row in rows if "/-" in row.clip.video_id),
            "table with CRLF": "annotations/FCVID_VideoName_TrainTestSplit.txt",
            "table without a final newline": "annotations/FCVID_Label.txt",
        },
    )


def _plan(name: str, rng: np.random.Generator) -> list[_Row]:
    classes = read_classes(name)

    def row(
        split: str,
        *labels: str,
        suffix: str = "mp4",
        shape: Clip = WHOLE,
        start_of_id: str = "",
        separator: str = "/",
    ) -> _Row:
        indices = tuple(sorted(classes.index(label) for label in labels))  # a matrix has no other order
        # A video is called by its path.
        video_id = f"{labels[0]}/{youtube_id(rng, start=start_of_id)}"
        return _Row(
            clip=replace(shape, video_id=video_id, labels=indices),
            suffix=suffix,
            split=split,
            separator=separator,
        )

    return [
        row("train", "accordionPerformance"),
        row("test", "yoga"),
        row("train", "yoga", "beach"),
        row("train", "carWashing", suffix="avi", start_of_id="-"),
        row("test", "yoyoTricks", "americanFootballAmateur", "beach", "yoga", shape=replace(WHOLE, num_frames=60)),
        row("train", "beach", separator="\\"),
        row("train", "yoyoTricks", shape=replace(WHOLE, flaw="missing")),
        row("test", "beach", shape=replace(WHOLE, flaw="empty")),
        row("test", "carWashing", suffix="mkv"),
    ]


def _materials(rows: Sequence[_Row], *, num_classes: int) -> dict[str, str]:
    """The two tables: their rows belong together."""
    names = [f"{row.path.replace('/', row.separator)} {row.split}\r\n" for row in rows]
    matrix = [" ".join(str(int(index in row.clip.labels)) for index in range(num_classes)) for row in rows]
    return {
        "FCVID_VideoName_TrainTestSplit.txt": "".join(names),
        "FCVID_Label.txt": "\n".join(matrix),
    }
