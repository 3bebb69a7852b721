"""Is everything there and whole? Of a folder of shards, byte by byte; of a data set's videos, frame by frame.

Damaged videos may be moved out of the way, and nothing is deleted:

    ROOT/quarantine/...        the files, at the paths that they had below ROOT
    ROOT/quarantine.csv        video_id,reason,from,to: the ledger of all moves
"""

import csv
import hashlib
import io
import json
import math
import os
import re
import tarfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO, Literal, cast

from vidprep.engine import publish, run, writing
from vidprep.errors import CorruptShard, CorruptVideo, MissingVideo, UsageError, VidprepError, kind_of
from vidprep.extract import FrameFacts, match_annotations, read_delivered
from vidprep.index import (
    Fault,
    SampleRow,
    ShardFacts,
    dali_index,
    list_splits,
    read_manifest,
    read_samples,
    sample_id,
    wids_index,
)
from vidprep.splits import Split, split_to_csv
from vidprep.store import Location, Store, open_store
from vidprep.types import FrameAnnotation, FrameFormat, Video

__all__ = [
    "QUARANTINE",
    "LengthDifference",
    "Moved",
    "ShardsReport",
    "SplitReport",
    "VideosReport",
    "quarantine",
    "verify_shards",
    "verify_videos",
]

Check = Literal["decode", "sample", "open"]

QUARANTINE = "quarantine"
"""Folder below a data root for damaged files; the ledger lies beside it."""
NUM_SAMPLED = 8
"""Frames that are decoded of each video when it is sampled: the first, the last and some between."""

READ_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class SplitReport:
    """One split of a folder of shards."""

    split: str
    num_shards: int
    num_samples: int
    num_bytes: int
    num_videos: int
    """Videos of the split, those without a sample included."""
    faults: tuple[Fault, ...]
    """Videos that are in no shard; that is known and no problem of the shards."""
    problems: tuple[str, ...]
    """What is wrong with the shards, one sentence each, beginning with the file."""
    damaged: tuple[str, ...] = ()
    """Files of the shards that the problems are about (val-000003.tar, .idx): what `vidprep repair` rebuilds."""


@dataclass(frozen=True, kw_only=True)
class ShardsReport:
    """A folder of shards."""

    folder: str
    splits: tuple[SplitReport, ...]

    @property
    def is_sound(self) -> bool:
        """Every shard is what its manifest says."""
        return not any(split.problems for split in self.splits)

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps({"is_sound": self.is_sound, **asdict(self)}, indent=1, ensure_ascii=False) + "\n"

    def to_text(self) -> str:
        """The report in lines: the problems first, then one line for each split."""
        lines = [problem for split in self.splits for problem in split.problems]
        for split in self.splits:
            state = "damaged" if split.problems else "sound"
            line = (
                f"{split.split}: {split.num_shards} shards, {split.num_samples} samples, "
                f"{_megabytes(split.num_bytes)}: {state}"
            )
            if split.faults:
                line += f"; {len(split.faults)} of {split.num_videos} videos are in no shard:"
            lines.append(line)
            lines += [f"  {fault.video_id}: {fault.reason}" for fault in split.faults]
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class LengthDifference:
    """A sound video that is longer or shorter than its annotations say."""

    video_id: str
    annotated: float
    measured: float
    unit: Literal["seconds", "frames"]
    path: str

    def __str__(self) -> str:
        if self.unit == "frames":
            return f"{self.video_id}: has {self.measured:.0f} frames, annotated are {self.annotated:.0f}"
        return f"{self.video_id}: lasts {self.measured:.3f} s, annotated are {self.annotated:g} s"


@dataclass(frozen=True, kw_only=True)
class VideosReport:
    """The video files of a split."""

    dataset: str
    split: str
    num_listed: int
    """Different videos of the split's list."""
    num_published: int | None
    """As the data set's publisher counts them: segments of verb_noun, else videos."""
    num_sound: int
    num_frames: int
    """Of the sound videos together."""
    faults: tuple[Fault, ...]
    is_published_in_segments: bool = False
    """What `num_published` counts."""
    damaged: tuple[str, ...] = ()
    """Videos among the faults whose file is there and is damaged; the others are missing or could not be read."""
    num_segments: int = 0
    """Annotated segments of the list, where it has some; its videos are then those that they lie in."""
    num_sound_segments: int = 0
    """Those that begin within a sound video."""
    doubts: tuple[Fault, ...] = ()
    """Annotated segments of sound videos that do not lie within them; each counts as a sample without frames."""
    num_lengths: int = 0
    """Sound videos whose length the annotations state and the file tells: so many were compared."""
    length_differences: tuple[LengthDifference, ...] = ()
    """Those that are longer or shorter than annotated; like doubts, these are no faults."""
    list_sha256: str = ""
    """SHA-256 of the split's list as `vidprep split` writes it, without its columns of lengths: lists with and without
    them name the same videos. Of lists that come with vidprep, the recorded one."""
    sound_list_sha256: str = ""
    """The same of the list without the videos that are no sound ones: which videos exactly an experiment had."""
    durations_seconds: Mapping[str, float] = field(default_factory=dict)
    """Of each sound video, by its id, NaN where it is not known; too many for the report as JSON."""

    @property
    def footnote(self) -> str:
        """How much of which list is there, for a paper: "19,404 of 19,906 videos (97.5 %), list sha256 0f3a..."."""
        there, listed, what = self.num_sound, self.num_listed, "videos"
        if self.num_segments:
            there, listed = self.num_sound_segments, self.num_segments
            what = f"segments of {self.num_listed:,} videos"
        return (
            f"{self.dataset}/{self.split}: {there:,} of {listed:,} {what} ({100 * there / listed:.1f} %), "
            f"list sha256 {self.list_sha256}"
        )

    @property
    def coverage(self) -> str:
        """How much of the data set is there, in one sentence for a paper's appendix."""
        share = 100 * self.num_sound / self.num_listed
        sentence = f"{self.dataset}/{self.split}: {self.num_sound} of {self.num_listed} listed videos ({share:.1f} %)"
        if self.num_segments:
            sentence += f"; {self.num_sound_segments} of {self.num_segments} segments"
        if self.num_published is not None:
            sentence += f"; published: {self.num_published}{' segments' if self.is_published_in_segments else ''}"
        return sentence

    @property
    def lengths(self) -> str:
        """How many videos are as long as annotated, in one line; "" where nothing says how long they should be."""
        if not self.num_lengths:
            return ""
        num_equal = self.num_lengths - len(self.length_differences)
        return (
            f"lengths: {num_equal:,} of {self.num_lengths:,} sound videos are as long as annotated (seconds within "
            f"{LENGTH_TOLERANCE_SECONDS:g} s or {LENGTH_TOLERANCE_SHARE:.1%}, frames exactly)"
        )

    def to_json(self) -> str:
        """The report as JSON."""
        texts = {"coverage": self.coverage, "footnote": self.footnote}
        content = asdict(self)
        del content["durations_seconds"]
        return json.dumps({**texts, **content}, indent=1, ensure_ascii=False) + "\n"

    def to_text(self) -> str:
        """The report in lines: each fault, doubt and other length, then the lengths, the footnote, the coverage."""
        lines = [f"{fault.video_id}: {fault.reason}" for fault in self.faults]
        lines += [f"{doubt.video_id}: {doubt.reason}" for doubt in self.doubts]
        lines += [str(difference) for difference in self.length_differences]
        lines += [self.lengths] if self.lengths else []
        return "\n".join([*lines, f"footnote: {self.footnote}", self.coverage])


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB"


# Shards


def verify_shards(
    folder: Location, split: str | None = None, *, workers: int = 1, progress: str | None = None
) -> ShardsReport:
    """Read every byte of every shard and compare it with the manifest and the table of samples.

    Args:
        folder: what `vidprep shard --out` wrote, or its URL: then nothing is kept of what is read.
        split: only this one; None verifies all splits of the folder.
        workers: processes.
        progress: shown while it runs; None shows nothing.

    Raises:
        UsageError: no such folder or split, or no shards in it.
    """
    store = open_store(folder)
    if not store.exists():
        raise UsageError(f"{store}: no such folder; give the folder that `vidprep shard --out` wrote.")
    files = store.sizes()
    finished = list_splits(store)
    begun = {name.removesuffix(".plan.json") for name in files if name.endswith(".plan.json")}
    names = sorted({*finished, *begun}) if split is None else [split]
    if not names:
        raise UsageError(f"{store}: no shards here (no SPLIT.json with SPLIT.parquet); run `vidprep shard`.")
    reports = [
        _unfinished(files, name)
        if name in begun and name not in finished
        else _verify_split(store, files, name, workers, progress)
        for name in names
    ]
    return ShardsReport(folder=str(store), splits=tuple(reports))


def _unfinished(files: Mapping[str, int], split: str) -> SplitReport:
    num_shards = sum(re.fullmatch(rf"{re.escape(split)}-\d+\.tar", name) is not None for name in files)
    return _report(
        split, [f"{split}.json: missing, {num_shards} shards are there; run the same `vidprep shard` command again"]
    )


def _report(split: str, problems: Sequence[str]) -> SplitReport:
    return SplitReport(
        split=split, num_shards=0, num_samples=0, num_bytes=0, num_videos=0, faults=(), problems=tuple(problems)
    )


def _verify_split(
    store: Store, files: Mapping[str, int], split: str, workers: int, progress: str | None
) -> SplitReport:
    try:
        manifest = read_manifest(store, split)
        samples = read_samples(store, split)
    except CorruptShard as error:
        return _report(split, [str(error)])
    by_shard: dict[str, list[SampleRow]] = {shard.name: [] for shard in manifest.shards}
    problems: list[str] = []
    for row in samples:
        if row.shard in by_shard:
            by_shard[row.shard].append(row)
        else:
            problems.append(f"{split}.parquet: sample {row.key} lies in {row.shard}, which the manifest does not list")
    if len(samples) + len(manifest.faults) != manifest.num_videos:
        problems.append(
            f"{split}.parquet: {len(samples)} samples and {len(manifest.faults)} faults, "
            f"the split has {manifest.num_videos} videos"
        )
    if f"{split}.wids.json" not in files or store.read(f"{split}.wids.json").decode() != wids_index(manifest):
        problems.append(f"{split}.wids.json: is not the list of the shards; run the same `vidprep shard` command again")
    units = [(shard, tuple(by_shard[shard.name]), files.get(shard.name)) for shard in manifest.shards]
    description = f"{progress} {split}" if progress is not None else None
    found: dict[str, str] = {}
    with closing(run(units, partial(_check_shard, store=store), workers=workers, progress=description)) as outcomes:
        for outcome in outcomes:
            if outcome.error is not None:
                found[outcome.unit[0].name] = f"{outcome.unit[0].name}: cannot be verified ({outcome.error})"
            elif outcome.result is not None:
                found[outcome.unit[0].name] = outcome.result
    problems += [found[shard.name] for shard in manifest.shards if shard.name in found]
    return SplitReport(
        split=split,
        num_shards=len(manifest.shards),
        num_samples=len(samples),
        num_bytes=sum(shard.num_bytes for shard in manifest.shards),
        num_videos=manifest.num_videos,
        faults=manifest.faults,
        problems=tuple(problems),
        damaged=tuple(found[shard.name].partition(":")[0] for shard in manifest.shards if shard.name in found),
    )


def _check_shard(unit: tuple[ShardFacts, tuple[SampleRow, ...], int | None], store: Store) -> str | None:
    """What is wrong with a shard, in one sentence; None when nothing is."""
    shard, rows, num_bytes = unit
    if num_bytes is None:
        return f"{shard.name}: missing"
    if num_bytes < shard.num_bytes:
        return f"{shard.name}: cut short, {num_bytes} of {shard.num_bytes} bytes"
    if num_bytes > shard.num_bytes:
        return f"{shard.name}: {num_bytes} bytes, {shard.num_bytes} expected; something was appended"
    try:
        with store.open(shard.name) as stream:
            hashing = _Hashing(stream)
            problem = _compare_members(shard.name, hashing, rows)
            sha256 = hashing.finish()
        if sha256 != shard.sha256:
            return (
                f"{shard.name}: changed, SHA-256 {sha256[:12]}... instead of {shard.sha256[:12]}...; "
                "`vidprep repair` rebuilds it"
            )
        return problem or _check_index(shard.name, rows, store)
    except FileNotFoundError:
        return f"{shard.name}: missing"
    except OSError as error:
        return f"{shard.name}: cannot be read ({error.strerror or error})"


class _Hashing:
    """A stream that is read once, from its beginning to its end, and its SHA-256."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._sha256 = stream, hashlib.sha256()

    def read(self, num_bytes: int) -> bytes:
        content = self._stream.read(num_bytes)
        self._sha256.update(content)
        return content

    def finish(self) -> str:
        while self.read(READ_BYTES):
            pass
        return self._sha256.hexdigest()


def _compare_members(name: str, stream: _Hashing, rows: Sequence[SampleRow]) -> str | None:
    expected = [(f"{row.key}.{member.name}", member.offset, member.size) for row in rows for member in row.members]
    try:
        with tarfile.open(fileobj=cast(IO[bytes], stream), mode="r|", bufsize=READ_BYTES) as archive:
            found = [(member.name, member.offset_data, member.size) for member in archive]
    except tarfile.TarError as error:
        return f"{name}: not readable as a tar ({error})"
    if found == expected:
        return None
    for there, listed in zip(found, expected, strict=False):
        if there != listed:
            return f"{name}: member {there} where the table of samples says {listed}"
    return f"{name}: {len(found)} members, the table of samples lists {len(expected)}"


def _check_index(name: str, rows: Sequence[SampleRow], store: Store) -> str | None:
    index = f"{name.removesuffix('.tar')}.idx"
    try:
        is_right = store.read(index) == dali_index(rows).encode()
    except FileNotFoundError:
        return f"{index}: missing; run the same `vidprep shard` command again"
    return None if is_right else f"{index}: does not say where the members of {name} lie; `vidprep repair` rebuilds it"


# Videos


def verify_videos(
    split: Split,
    paths: Mapping[str, Path],
    *,
    check: Check = "decode",
    delivered: FrameFormat | None = None,
    annotations: Mapping[str, Path] | None = None,
    read_boxes: Callable[[Path], Sequence[FrameAnnotation]] | None = None,
    num_published: int | None = None,
    workers: int = 1,
    time_limit_seconds: float | None = None,
    progress: str | None = None,
) -> VideosReport:
    """Look at every video of a split: it exists, opens and decodes, holds its segments, is as long as annotated.

    Annotated seconds may differ from the file's by 1 s or 0.5 %, whichever is more: containers, sound and re-encoding
    move the end of a video by less. Annotated frames are compared exactly. Where neither is known, nothing is compared.

    Of folders of frames: the numbers have no holes and begin as they should, and the files are JPEG images of one size.

    Args:
        split: the videos; one with several segments counts once.
        paths: video_id -> file, or folder of frames; videos that are not in it are missing.
        check: "decode" all of each video, "sample" some frames of it, or only "open" it and decode its first frame.
        delivered: how a data set that is delivered as folders of frames calls them; None: `paths` are video files.
        annotations: video_id -> where the boxes of its frames lie, for detection; None: the split has none.
        read_boxes: reads them: one for each frame, of its size.
        num_published: the publisher's count of rows, for the report.
        workers: processes.
        time_limit_seconds: for a video; one that takes longer becomes a fault. None: as long as it takes.
        progress: shown while it runs; None shows nothing.

    Raises:
        UsageError: an empty split.
    """
    if not split.videos:
        raise UsageError(f"{split.dataset}/{split.split}: the split is empty, there is nothing to verify.")
    video_ids = list(dict.fromkeys(video.video_id for video in split.videos))
    boxes = {} if annotations is None else annotations
    units = [_Media(video_id=name, path=paths.get(name), boxes=boxes.get(name)) for name in video_ids]
    reasons: dict[str, str] = {}
    kinds: dict[str, str] = {}
    damaged: set[str] = set()
    durations: dict[str, float] = {}
    num_frames: dict[str, int] = {}
    work = partial(
        _measure, check_mode=check, delivered=delivered, read_boxes=None if annotations is None else read_boxes
    )
    hands = run(units, work, workers=workers, time_limit_seconds=time_limit_seconds, progress=progress)
    with closing(hands) as outcomes:
        for outcome in outcomes:
            video_id = outcome.unit.video_id
            if outcome.error is None and outcome.result is not None:
                num_frames[video_id], durations[video_id] = outcome.result
            elif isinstance(outcome.error, VidprepError):
                reasons[video_id] = str(outcome.error).rstrip(".")
            else:
                reasons[video_id] = f"{type(outcome.error).__name__}: {outcome.error}"
            if outcome.error is not None:
                kinds[video_id] = kind_of(outcome.error)
            # Boxes that are wrong are no reason to move the frames away.
            if isinstance(outcome.error, CorruptVideo) and not isinstance(outcome.error, _WrongBoxes):
                damaged.add(video_id)
    segments = [video for video in split.videos if video.start_seconds is not None or video.end_seconds is not None]
    sound = replace(split, videos=tuple(video for video in split.videos if video.video_id in durations))
    lengths = [
        length
        for video in {video.video_id: video for video in sound.videos}.values()  # once for all segments of a video
        if (
            length := _compare_length(
                video, paths[video.video_id], durations[video.video_id], num_frames[video.video_id]
            )
        )
    ]
    return VideosReport(
        dataset=split.dataset,
        split=split.split,
        num_listed=len(video_ids),
        num_published=num_published,
        is_published_in_segments=split.task == "verb_noun",
        num_sound=len(video_ids) - len(reasons),
        num_frames=sum(num_frames.values()),
        faults=tuple(
            Fault(
                video_id=unit.video_id,
                reason=reasons[unit.video_id],
                path=str(unit.path or ""),
                kind=kinds[unit.video_id],
            )
            for unit in units
            if unit.video_id in reasons
        ),
        num_segments=len(segments),
        num_sound_segments=sum(
            not (video.start_seconds or 0.0) >= durations.get(video.video_id, 0.0) for video in segments
        ),
        damaged=tuple(video_id for video_id in video_ids if video_id in damaged),
        doubts=tuple(
            Fault(video_id=sample_id(video), reason=doubt, path=str(paths[video.video_id]))
            for video in sound.videos
            if (doubt := _doubt(video, durations[video.video_id]))
        ),
        num_lengths=len(lengths),
        length_differences=tuple(length for length in lengths if _differs(length)),
        list_sha256=_list_sha256(split),
        sound_list_sha256=_list_sha256(sound),
        durations_seconds=durations,
    )


@dataclass(frozen=True, kw_only=True)
class _Media:
    """What there is of one video."""

    video_id: str
    path: Path | None
    boxes: Path | None


class _WrongBoxes(CorruptVideo):
    """The frames of a video are sound, what is annotated on them is not."""


def _list_sha256(split: Split) -> str:
    videos = tuple(replace(video, duration_seconds=None, num_frames=None) for video in split.videos)
    return hashlib.sha256(split_to_csv(replace(split, videos=videos)).encode()).hexdigest()


def _compare_length(video: Video, path: Path, duration_seconds: float, num_frames: int) -> LengthDifference | None:
    """What is annotated and what was measured: frames where these are annotated, else seconds; None: not known."""
    facts = {"video_id": video.video_id, "path": str(path)}
    if video.num_frames is not None:
        return LengthDifference(**facts, annotated=video.num_frames, measured=num_frames, unit="frames")
    if video.duration_seconds is None or not math.isfinite(duration_seconds):
        return None
    return LengthDifference(**facts, annotated=video.duration_seconds, measured=duration_seconds, unit="seconds")


def _differs(length: LengthDifference) -> bool:
    tolerance = max(LENGTH_TOLERANCE_SECONDS, LENGTH_TOLERANCE_SHARE * length.annotated)
    return abs(length.measured - length.annotated) > (tolerance if length.unit == "seconds" else 0)


def _doubt(video: Video, duration_seconds: float) -> str:
    """Why an annotated segment cannot be cut as it is; "" where it can, or where the duration is not known."""
    start, end = video.start_seconds or 0.0, video.end_seconds
    if start >= duration_seconds:
        return f"the segment begins at {start:g} s, the video ends at {duration_seconds:.3f} s"
    # A frame's time and the sound, which may last a little longer, are no reason to doubt.
    if end is not None and end > duration_seconds + END_TOLERANCE_SECONDS:
        return f"the segment ends at {end:g} s, the video at {duration_seconds:.3f} s"
    return ""


END_TOLERANCE_SECONDS = 1.0
LENGTH_TOLERANCE_SECONDS = 1.0
LENGTH_TOLERANCE_SHARE = 0.005
"""Of the annotated length; the larger of the two tolerances counts."""


def _measure(
    media: _Media,
    *,
    check_mode: Check,
    delivered: FrameFormat | None,
    read_boxes: Callable[[Path], Sequence[FrameAnnotation]] | None,
) -> tuple[int, float]:
    """Number of frames, and duration in seconds (NaN where it is not known)."""
    path = media.path
    if path is None:
        raise MissingVideo("no file found for it")
    try:
        if delivered is None:
            return _measure_video(path, check_mode)
        facts = _measure_frames(path, check_mode, delivered)
    except CorruptVideo as error:
        # The report names the video; its path would say so twice.
        raise CorruptVideo(str(error).removeprefix(f"{path}: ").removeprefix(f"{path}/")) from error
    if read_boxes is not None:
        if media.boxes is None:
            raise _WrongBoxes("no annotations found for it")
        try:
            match_annotations(read_boxes(media.boxes), facts, delivered=delivered)
        except CorruptVideo as error:
            raise _WrongBoxes(str(error)) from error
    return facts.num_frames, facts.source_duration_seconds


def _measure_video(path: Path, check_mode: Check) -> tuple[int, float]:
    from vidprep.decode.pyav import PyavReader
    from vidprep.probe import check, probe

    facts = (check if check_mode == "decode" else probe)(path)
    if check_mode == "sample":
        with PyavReader(path) as reader:
            for _ in reader.iterate_frames(_spread(reader.num_frames)):
                pass
    return facts.num_frames, facts.duration_seconds


def _measure_frames(folder: Path, check_mode: Check, delivered: FrameFormat) -> FrameFacts:
    from vidprep.decode.jpeg import JpegReader

    video = Video(video_id=folder.name)
    is_decoded = check_mode == "decode"
    frames = read_delivered(folder, video, FrameFormat(), delivered=delivered, is_decoded=is_decoded)
    if is_decoded:
        for _ in frames.images:
            pass
    else:
        with JpegReader(folder, template=delivered.template) as reader:
            reader.get_frames_at([0] if check_mode == "open" else _spread(reader.num_frames))
    return frames.facts


def _spread(num_frames: int) -> list[int]:
    """The first frame, the last one, and some between."""
    last = num_frames - 1
    return sorted({round(last * part / (NUM_SAMPLED - 1)) for part in range(NUM_SAMPLED)})


# Quarantine


@dataclass(frozen=True, kw_only=True)
class Moved:
    """A damaged file (or folder of frames) that was put aside."""

    video_id: str
    reason: str
    from_path: str
    """Below the data root, with `/`."""
    to_path: str
    """Below the data root, with `/`."""


LEDGER_HEADER = ["video_id", "reason", "from", "to"]


def quarantine(report: VideosReport, data_root: Path) -> list[Moved]:
    """Move the damaged files of a report to `data_root`/quarantine, each under the path that it had below the root.

    Nothing is deleted or replaced: a second file of the same path gets a number. Each move stands in
    `data_root`/quarantine.csv before it is done; when a run is killed in between, the next one takes the line back.

    Args:
        report: its `damaged` videos; those that are missing or could not be read stay where they are.
        data_root: the folder that the videos lie in.

    Returns:
        What was moved, in the report's order.

    Raises:
        UsageError: `data_root` is no folder, or a file does not lie below it.
        CannotWrite: no permission, no space, or the folder lies on another file system.
    """
    if not data_root.is_dir():
        raise UsageError(f"{data_root}: is no folder; --quarantine needs the folder that the videos lie in.")
    damaged = [fault for fault in report.faults if fault.video_id in set(report.damaged)]
    paths = [Path(fault.path) for fault in damaged]
    for fault, path in zip(damaged, paths, strict=True):
        if not path.is_relative_to(data_root):
            raise UsageError(f"{fault.video_id}: {path} does not lie below {data_root}; move it away yourself.")
    ledger = data_root / f"{QUARANTINE}.csv"
    _take_back_unfinished(ledger, data_root)
    moves = []
    for fault, path in zip(damaged, paths, strict=True):
        if not path.exists():
            continue  # the same file stands for another video, too, and was moved for that one
        below = path.relative_to(data_root)
        target = _free_path(data_root / QUARANTINE / below)
        move = Moved(
            video_id=fault.video_id,
            reason=fault.reason,
            from_path=below.as_posix(),
            to_path=target.relative_to(data_root).as_posix(),
        )
        with writing(target):
            _append(ledger, [move.video_id, move.reason, move.from_path, move.to_path])
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
        moves.append(move)
    return moves


def _free_path(path: Path) -> Path:
    """The path itself, or one with a number before its suffix when there is something already."""
    candidate, number = path, 2
    while candidate.exists():
        candidate = path.with_name(f"{path.stem}.{number}{path.suffix}")
        number += 1
    return candidate


def _append(ledger: Path, row: Sequence[str]) -> None:
    text = io.StringIO()
    rows = [row] if ledger.exists() else [LEDGER_HEADER, row]
    csv.writer(text, lineterminator="\n").writerows(rows)
    with ledger.open("ab") as stream:
        stream.write(text.getvalue().encode())
        stream.flush()
        os.fsync(stream.fileno())


def _take_back_unfinished(ledger: Path, data_root: Path) -> None:
    """Remove the ledger's last line when a killed run wrote it, whole or in part, and did not come to move the file."""
    if not ledger.exists():
        return
    text = ledger.read_text(encoding="utf-8")
    whole = text if text.endswith("\n") else text[: text.rfind("\n") + 1]
    rows = list(csv.reader(io.StringIO(whole, newline="")))
    if rows[:1] not in ([LEDGER_HEADER], []):
        raise UsageError(f"{ledger}: is no ledger of `vidprep verify --quarantine`; move it away.")
    if len(rows) > 1:
        *_, from_path, to_path = rows[-1]
        if (data_root / from_path).exists() and not (data_root / to_path).exists():
            rows.pop()
    kept = io.StringIO()
    csv.writer(kept, lineterminator="\n").writerows(rows or [LEDGER_HEADER])
    if kept.getvalue() != text:
        with publish(ledger) as stream:
            stream.write(kept.getvalue().encode())
