"""EPIC-KITCHENS-100: long .MP4 videos, H.264 in the older part and HEVC in the extension, and CSV files of segments."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType

import numpy as np

from vidprep.miniature.plan import Clip, Content, ExpectedFault, ExpectedSample, ExpectedSplit, Flaw, Workshop
from vidprep.splits import read_packaged

__all__ = ["make"]

COLUMNS = (
    "narration_id",
    "participant_id",
    "video_id",
    "narration_timestamp",
    "start_timestamp",
    "stop_timestamp",
    "start_frame",
    "stop_frame",
    "narration",
    "verb",
    "verb_class",
    "noun",
    "noun_class",
    "all_nouns",
    "all_noun_classes",
)
NUM_TEST_COLUMNS = 8
"""Those of the test file: the first ones."""
ANNOTATIONS = {
    "train": "EPIC_100_train.csv",
    "val": "EPIC_100_validation.csv",
    "test": "EPIC_100_test_timestamps.csv",
}

OLDER = Clip(video_id="EPIC-55", num_frames=480, fps=Fraction(60_000, 1001), width=456, height=256)
EXTENSION = Clip(video_id="the extension", num_frames=250, fps=50, width=456, height=256)

VIDEOS: Mapping[str, tuple[Clip, str]] = MappingProxyType(
    {
        "P01_01": (OLDER, "train"),
        "P01_02": (replace(OLDER, num_frames=180, fps=Fraction(30_000, 1001)), "train"),
        "P01_05": (replace(OLDER, flaw="missing"), "train"),
        "P01_06": (replace(OLDER, num_frames=60, flaw="truncated"), "train"),
        "P01_102": (EXTENSION, "train"),
        "P01_11": (OLDER, "val"),
        "P01_12": (replace(OLDER, flaw="missing"), "val"),
        "P01_101": (EXTENSION, "test"),
    }
)
"""Real ids in their real splits; of what is in them only the codec and the frame rate are as published."""
EPIC55_FOLDERS = {"P01_11": "test", "P01_12": "test"}
"""The folder of EPIC-55's own split, which is not the split of EPIC-100; the others are in train."""


@dataclass(frozen=True, kw_only=True)
class _Segment:
    """One row: times in seconds as the file writes them, names of a verb and of nouns."""

    video_id: str
    number: int
    start: str
    stop: str
    verb: str = ""
    nouns: tuple[str, ...] = ()
    is_timed: bool = True
    """narration_timestamp is there."""

    @property
    def narration_id(self) -> str:
        return f"{self.video_id}_{self.number}"


SEGMENTS = (
    _Segment(video_id="P01_01", number=0, start="0.00", stop="1.89", verb="take", nouns=("plate",)),
    _Segment(video_id="P01_01", number=1, start="1.56", stop="2.45", verb="put", nouns=("plate",)),
    # In the order of the file: as strings.
    _Segment(video_id="P01_01", number=10, start="5.15", stop="7.95", verb="wash", nouns=("spoon", "plate", "tap")),
    _Segment(video_id="P01_01", number=11, start="7.30", stop="9.10", verb="close", nouns=("tap",)),
    _Segment(video_id="P01_01", number=12, start="61.00", stop="62.50", verb="open", nouns=("tap",)),
    _Segment(video_id="P01_01", number=2, start="3.07", stop="3.60", verb="take", nouns=("spoon",)),
    _Segment(video_id="P01_02", number=0, start="0.51", stop="4.02", verb="open", nouns=("cupboard",)),
    _Segment(video_id="P01_05", number=0, start="1.00", stop="2.00", verb="take", nouns=("knife",)),
    _Segment(video_id="P01_06", number=0, start="0.10", stop="0.90", verb="cut", nouns=("knife",)),
    _Segment(video_id="P01_102", number=0, start="0.20", stop="2.33", verb="wash", nouns=("plate",)),
    _Segment(video_id="P01_102", number=1, start="2.33", stop="4.99", verb="put", nouns=("spoon",)),
    _Segment(video_id="P01_11", number=0, start="0.00", stop="1.89", verb="take", nouns=("plate",)),
    _Segment(video_id="P01_11", number=1, start="4.17", stop="7.22", verb="put", nouns=("tap", "spoon")),
    _Segment(
        video_id="P01_11",
        number=2,
        start="1.70",
        stop="2.96",
        verb="close",
        nouns=("cupboard",),
        is_timed=False,
    ),
    _Segment(video_id="P01_12", number=0, start="0.40", stop="1.40", verb="cut", nouns=("knife",)),
    _Segment(video_id="P01_101", number=0, start="2.86", stop="3.87"),
    _Segment(video_id="P01_101", number=1, start="0.97", stop="1.75"),
)


def make(name: str, out: Path, workshop: Workshop, rng: np.random.Generator) -> Content:
    """Write archives/ and annotations/ below `out`; the times of the segments are moved by lot."""
    shift = Fraction(int(rng.integers(0, 5)), 100)
    segments = [_moved(segment, shift) for segment in SEGMENTS]
    clips = {video_id: replace(clip, video_id=video_id) for video_id, (clip, _) in VIDEOS.items()}
    for clip in clips.values():
        codec = "libx265" if _is_extension(clip.video_id) else "libx264"
        workshop.write_video(clip, out / "archives" / _remote_path(clip.video_id), codec=codec, has_audio=True)
    verbs, nouns = (read_packaged(name, file).splitlines() for file in ("verbs.txt", "nouns.txt"))
    annotations = out / "annotations"
    annotations.mkdir()
    for split, file in ANNOTATIONS.items():
        of_split = [segment for segment in segments if VIDEOS[segment.video_id][1] == split]
        newline = "\r\n" if split == "val" else "\n"
        text = _to_csv(of_split, verbs, nouns, num_columns=NUM_TEST_COLUMNS if split == "test" else None)
        (annotations / file).write_bytes(text.replace("\n", newline).encode())
    lines = [
        f"{clip.video_id},{float(clip.num_frames / clip.fps)!r},{float(clip.fps)!r},{clip.width}x{clip.height}\n"
        for clip in clips.values()
    ]
    (annotations / "EPIC_100_video_info.csv").write_text("video_id,duration,fps,resolution\n" + "".join(lines))
    return Content(
        annotations=tuple(f"annotations/{file}" for file in (*ANNOTATIONS.values(), "EPIC_100_video_info.csv")),
        splits={
            split: _expect(
                [segment for segment in segments if VIDEOS[segment.video_id][1] == split],
                clips,
                workshop.first_numbers,
                verbs,
                nouns,
            )
            for split in ANNOTATIONS
        },
        traps={
            "suffix in capitals": "every .MP4",
            "H.264 for two-digit ids, HEVC for three-digit ids": "P01_01, P01_102",
            "frame numbers of the file count 60 (or 50) a second, the video has another rate": "P01_01, P01_02",
            "lists with commas inside a field": "P01_01_10, P01_11_1",
            "empty narration_timestamp": "P01_11_2",
            "overlapping segments": "P01_01_0, P01_01_1",
            "segment that ends after the video": "P01_01_11",
            "segment that lies after the video": "P01_01_12",
            "folders of EPIC-55's old split": "P01_11 is in test/, and of the validation split",
            "dead video": "P01_05, P01_12",
            "truncated file (moov atom not found)": "P01_06",
            "annotation file with CRLF": "EPIC_100_validation.csv",
            "no labels, and 8 columns": "EPIC_100_test_timestamps.csv",
        },
    )


def _moved(segment: _Segment, shift: Fraction) -> _Segment:
    start, stop = (f"{float(Fraction(text) + shift):.2f}" for text in (segment.start, segment.stop))
    return replace(segment, start=start, stop=stop)


def _is_extension(video_id: str) -> bool:
    return len(video_id.partition("_")[2]) == 3


def _remote_path(video_id: str) -> str:
    """Where the publisher's two servers have the video."""
    participant = video_id.partition("_")[0]
    if _is_extension(video_id):
        return f"{participant}/videos/{video_id}.MP4"
    return f"videos/{EPIC55_FOLDERS.get(video_id, 'train')}/{participant}/{video_id}.MP4"


def _to_csv(
    segments: Iterable[_Segment], verbs: Sequence[str], nouns: Sequence[str], *, num_columns: int | None
) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS[:num_columns])
    for segment in segments:
        start, stop = Fraction(segment.start), Fraction(segment.stop)
        # The publisher's images are resampled to these rates, whatever the video has.
        rate = 50 if _is_extension(segment.video_id) else 60
        row: list[object] = [
            segment.narration_id,
            segment.video_id.partition("_")[0],
            segment.video_id,
            _timestamp(start + Fraction(1, 4), decimals=3) if segment.is_timed else "",
            _timestamp(start, decimals=2),
            _timestamp(stop, decimals=2),
            max(1, math.floor(start * rate)),
            math.floor(stop * rate),
        ]
        if segment.verb:
            indices = [nouns.index(noun) for noun in segment.nouns]
            row += [f"{segment.verb} {segment.nouns[0]}", segment.verb, verbs.index(segment.verb)]
            row += [segment.nouns[0], indices[0], str(list(segment.nouns)), str(indices)]
        writer.writerow(row)
    return stream.getvalue()


def _timestamp(seconds: Fraction, *, decimals: int) -> str:
    """HH:MM:SS with decimals."""
    minutes, rest = divmod(seconds, 60)
    width = 3 + decimals
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{float(rest):0{width}.{decimals}f}"


def _expect(
    segments: Iterable[_Segment],
    clips: Mapping[str, Clip],
    first_numbers: Mapping[str, int],
    verbs: Sequence[str],
    nouns: Sequence[str],
) -> ExpectedSplit:
    """Of each segment the frames that are shown in start <= seconds < stop."""
    samples, faults = [], []
    for segment in segments:
        clip = clips[segment.video_id]
        start, stop = Fraction(segment.start), Fraction(segment.stop)
        duration = clip.num_frames / Fraction(clip.fps)
        flaw: Flaw | None = "outside" if start >= duration else clip.flaw
        if flaw is not None:
            faults.append(ExpectedFault(name=segment.narration_id, flaw=flaw))
            continue
        first = first_numbers[segment.video_id]
        samples.append(
            ExpectedSample(
                video_id=segment.video_id,
                labels=(verbs.index(segment.verb), nouns.index(segment.nouns[0])) if segment.verb else (),
                first_number=first + math.ceil(start * clip.fps),
                last_number=first + min(math.ceil(stop * clip.fps), clip.num_frames) - 1,
                start_seconds=float(segment.start),
                end_seconds=float(segment.stop),
                segment_id=segment.narration_id,
            )
        )
    return ExpectedSplit(samples=tuple(samples), faults=tuple(faults))
