"""WebDataset shards of a split: planned before the first is written, each an idempotent unit of work.

    OUT/val-000000.tar         KEY.json and KEY.mp4, or KEY.00001.jpg ...; shard k holds positions k*n to (k+1)*n - 1
    OUT/val-000000.jsonl       written after its tar: this shard is finished; checksum, faults, one line a sample
    OUT/val.plan.json          what was asked for; a run that asks for something else is refused
    OUT/val.json, val.parquet  the manifest and the table of samples, when all shards are finished
    OUT/val.faults.csv         the videos that are in no shard, and why

The bytes of a shard depend on the plan and on the videos alone: not on the number of workers, not on restarts.
"""

import hashlib
import json
import math
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

from vidprep.datasets import DATASETS
from vidprep.decode.pyav import PyavReader
from vidprep.engine import CannotWrite, WorkerDied, differences, lock, publish, run, source_state, sweep, writing
from vidprep.errors import CorruptShard, CorruptVideo, MissingVideo, UsageError, VidprepError
from vidprep.extract import (
    KEPT_PACKET_BYTES,
    FrameFacts,
    FrameIndex,
    folder_name,
    frames_of,
    match_annotations,
    media_state,
    open_frames,
    read_delivered,
    read_frame_index,
)
from vidprep.index import (
    Fault,
    Manifest,
    Member,
    SampleRow,
    ShardFacts,
    faults_to_csv,
    read_manifest,
    row_from_dict,
    sample_id,
    write_samples,
)
from vidprep.probe import VideoFacts, check, probe
from vidprep.splits import Split
from vidprep.types import FrameAnnotation, FrameFormat, Task, Video

__all__ = ["ShardReport", "TarWriter", "default_samples_per_shard", "shard"]

Content = Literal["video", "frames"]
Check = Literal["decode", "open"]

MAX_SAMPLES_PER_SHARD = 256
"""A shard of ten-second clips at 256 lines has then some 100 MB."""
NUM_SHARDS, MIN_SAMPLES_PER_SHARD = 16, 16
"""Smaller splits get some 16 shards, for as many workers and for readers that shuffle shards; but no crumbs."""
MAX_MEMBER_BYTES = 8 * 1024**3 - 1
"""USTAR writes sizes with eleven octal digits."""


@dataclass(frozen=True, kw_only=True)
class ShardReport:
    """What a run left behind."""

    folder: Path
    manifest: Manifest
    num_samples: int
    num_new_shards: int
    """Shards that this run wrote; the others were there."""


@dataclass(frozen=True, kw_only=True)
class _Item:
    """One video with its place in the split."""

    position: int
    video: Video
    path: Path | None
    """The file, or the folder of its frames; None when there is none."""
    frames: FrameFacts | None = None
    """What was extracted, when the shard is made from extracted frames."""
    annotations: Path | None = None
    """Where the boxes of its frames lie, for detection."""
    reason: str = ""
    """Why it cannot become a sample, as far as that is known beforehand."""


@dataclass(frozen=True, kw_only=True)
class _Unit:
    """One shard to write."""

    name: str
    items: tuple[_Item, ...]


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What is the same for all shards of a run."""

    out: Path
    dataset: str
    split: str
    task: Task
    classes: tuple[str, ...]
    noun_classes: tuple[str, ...]
    plan_sha256: str
    content: Content
    measure: Callable[[bytes], VideoFacts]
    """Checks a video as thoroughly as was asked for."""
    settings: FrameFormat | None = None
    """Of frames; None for shards of videos."""
    delivered: FrameFormat | None = None
    """How the data set calls its own frames, when it is delivered as folders of them."""
    read_boxes: Callable[[Path], Sequence[FrameAnnotation]] | None = None
    """Reads the boxes of all frames of a video, for detection."""
    decode_frames: bool = True
    """Extracted frames are decoded to see that they are whole, not only opened."""
    condemned: Mapping[int, str] = field(default_factory=dict)
    """Position -> why, for videos that end the process that looks at them."""


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """A sample in memory, ready to be written."""

    row: SampleRow
    """Without its shard and its members."""
    info: Mapping[str, Any]
    """What KEY.json says."""
    members: Sequence[tuple[str, bytes]]
    """Name after the key, and content."""


@dataclass(frozen=True, kw_only=True)
class _Finished:
    """The first line of a shard's sidecar."""

    plan_sha256: str
    shard: ShardFacts | None
    """None when every video of the shard is a fault; then there is no tar."""
    faults: tuple[Fault, ...]
    sources: tuple[list[int] | None, ...]
    """Size and time of change of each fault's file when it was tried."""


def shard(
    split: Split,
    paths: Mapping[str, Path],
    *,
    out: Path,
    content: Content = "video",
    frames: FrameFormat | None = None,
    frames_from: Path | None = None,
    delivered: FrameFormat | None = None,
    annotations: Mapping[str, Path] | None = None,
    read_boxes: Callable[[Path], Sequence[FrameAnnotation]] | None = None,
    samples_per_shard: int | None = None,
    workers: int = 1,
    check: Check = "decode",
    progress: str | None = None,
) -> ShardReport:
    """Write the shards of a split; those that are finished are left alone.

    A video that is missing, empty or damaged becomes a fault: the run goes on, and the fault stands in the sidecar,
    the manifest and the list of faults. When its file is replaced, the next run writes its shard anew.

    Segments of long videos are cut by seconds: of each only its own frames are decoded and checked, and a video is
    opened once for all its segments that follow each other in a shard.

    Args:
        split: the videos, in the order of the samples.
        paths: video_id -> file, or folder of frames; videos that are not in it are missing. Not used with
            `frames_from`.
        out: the folder of the shards; several splits may share one.
        content: the files as they are, or JPEG frames.
        frames: which frames, for `content` "frames" straight from the videos.
        frames_from: a folder that `extract` wrote, to take the frames from.
        delivered: how a data set that is delivered as folders of frames calls them. Frames that keep their size
            keep their bytes; their times are those of its frame rate, NaN where it states none.
        annotations: video_id -> where the boxes of its frames lie, for detection; None: the split has none.
        read_boxes: reads them, one `FrameAnnotation` a frame.
        samples_per_shard: positions of the split in one shard; None: `default_samples_per_shard`.
        workers: processes; each holds one video in memory.
        check: "decode" all of each video, or only "open" it and decode its first frame.
        progress: shown while it runs; None shows nothing.

    Raises:
        UsageError: an empty split, a setting out of range, or an `out` that holds shards of another plan.
        CannotWrite: no space, no permission.
    """
    if not split.videos:
        raise UsageError(f"{split.dataset}/{split.split}: the split is empty, there is nothing to shard.")
    if samples_per_shard is None:
        samples_per_shard = default_samples_per_shard(len(split.videos), task=split.task)
    if samples_per_shard < 1:
        raise UsageError(f"samples_per_shard must be at least 1, got {samples_per_shard}.")
    if content == "video" and (frames is not None or frames_from is not None):
        raise UsageError("frame settings and extracted frames are for --content frames, got --content video.")
    if frames is not None and frames_from is not None:
        raise UsageError("extracted frames are taken as they are; give no frame settings with --from frames.")
    if content == "video":
        _refuse_copies(split, delivered)
    if split.task == "detection" and frames_from is not None:
        raise UsageError("boxes belong to the frames as they are delivered; leave --from frames out.")
    index = read_frame_index(frames_from) if frames_from is not None else None
    settings = index.settings if index is not None else (frames or FrameFormat()) if content == "frames" else None
    if settings is not None and settings.template.endswith(".png"):
        raise UsageError(f"shards hold JPEG frames, got {settings.template!r}; extract them with a --template in .jpg.")
    source = "frames" if index is not None else "videos" if delivered is None else "delivered frames"
    plan = _plan(split, content=content, settings=settings, source=source, per_shard=samples_per_shard, check=check)
    if index is None and delivered is not None:
        plan["delivered"] = asdict(delivered)
    if annotations is not None:
        plan["has_boxes"] = True
    out = out.absolute()
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is a file; give --out the name of a folder.")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    plan_path = out / f"{split.split}.plan.json"
    if not plan_path.exists():
        _begin(plan_path, plan, split.split)
    with lock(plan_path, purpose="vidprep shard"):
        _refuse_other_plan(plan_path, plan)
        _sweep(out, split.split)
        job = _Job(
            out=out,
            dataset=split.dataset,
            split=split.split,
            task=split.task,
            classes=split.classes,
            noun_classes=split.noun_classes,
            plan_sha256=_digest(plan),
            content=content,
            measure=_decode_all if check == "decode" else _open_only,
            settings=settings,
            delivered=delivered if index is None else None,
            read_boxes=read_boxes if annotations is not None else None,
            decode_frames=check == "decode",
        )
        units = _units(split, _items(split, paths, index, frames_from, annotations), samples_per_shard)
        todo = [unit for unit in units if not _is_finished(unit, job)]
        published = None if todo else _published(out, split)
        if published is not None:
            manifest = published
        else:
            # No manifest while its shards change: after a kill nothing may pass for finished.
            with writing(out):
                (out / f"{split.split}.json").unlink(missing_ok=True)
            try:
                _write_all(todo, job, workers=workers, progress=progress)
                manifest = _publish(split, units, job, plan)
            except BaseException:
                _sweep(out, split.split)  # what workers were writing when they were ended
                raise
        return ShardReport(
            folder=out,
            manifest=manifest,
            num_samples=sum(facts.num_samples for facts in manifest.shards),
            num_new_shards=len(todo),
        )


def _refuse_copies(split: Split, delivered: FrameFormat | None) -> None:
    """Shards of video files are for data sets whose samples are video files."""
    if delivered is not None:
        raise UsageError(
            f"{split.dataset} is delivered as folders of frames, there are no video files to copy; "
            "use --content frames, which packs the frames as they are."
        )
    if any(video.segment_id for video in split.videos):
        num_files = len({video.video_id for video in split.videos})
        raise UsageError(
            f"{split.dataset}/{split.split}: its {len(split.videos)} rows are segments of {num_files} long videos, and "
            "--content video would copy a whole video for each; use --content frames, which cuts them by seconds."
        )


def default_samples_per_shard(num_videos: int, *, task: Task = "single_label") -> int:
    """Positions in a shard by the size of the split: 37 videos -> 16, 400 -> 25, 20,000 -> 256.

    Samples of a detection task are whole sequences of large frames, some 25 MB each: 16 of them.
    """
    if task == "detection":
        return MIN_SAMPLES_PER_SHARD
    return min(max(-(-num_videos // NUM_SHARDS), MIN_SAMPLES_PER_SHARD), MAX_SAMPLES_PER_SHARD)


# The plan


def _plan(
    split: Split, *, content: Content, settings: FrameFormat | None, source: str, per_shard: int, check: Check
) -> dict[str, Any]:
    """All that decides the bytes of the shards, apart from the videos."""
    rows = [
        [video.video_id, video.labels, video.start_seconds, video.end_seconds, *filter(None, [video.segment_id])]
        for video in split.videos
    ]
    return {
        "format": "vidprep-plan",
        "dataset": split.dataset,
        "split": split.split,
        "task": split.task,
        "num_videos": len(split.videos),
        "videos_sha256": _digest(rows),
        "classes_sha256": _digest([split.classes, split.noun_classes] if split.noun_classes else split.classes),
        "content": content,
        "source": source,
        "samples_per_shard": per_shard,
        "check": check,
        "frames": None if settings is None else asdict(settings),
    }


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _begin(plan_path: Path, plan: Mapping[str, Any], split: str) -> None:
    others = re.compile(rf"{re.escape(split)}(-\d{{6}}\.tar|\.json|\.parquet)")
    found = sorted(path.name for path in plan_path.parent.iterdir() if others.fullmatch(path.name))
    if found:
        raise UsageError(
            f"{plan_path.parent}: holds {found[0]} but no {plan_path.name}; it was not written by `vidprep shard`. "
            "Give another --out."
        )
    with publish(plan_path) as stream:
        stream.write((json.dumps(plan, indent=1, ensure_ascii=False) + "\n").encode())


def _refuse_other_plan(plan_path: Path, plan: Mapping[str, Any]) -> None:
    try:
        before = json.loads(plan_path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{plan_path}: cannot be read ({error}); give another --out.") from error
    if not isinstance(before, dict) or before.get("format") != plan["format"]:
        raise UsageError(f"{plan_path}: is no plan of `vidprep shard`; give another --out.")
    if found := differences(before, plan):
        raise UsageError(
            f"{plan_path.parent}: holds shards of {plan['split']} that were made otherwise ({found}); "
            "give another --out, or the settings of before."
        )


def _items(
    split: Split,
    paths: Mapping[str, Path],
    index: FrameIndex | None,
    frames_from: Path | None,
    annotations: Mapping[str, Path] | None,
) -> Iterator[_Item]:
    for position, video in enumerate(split.videos):
        if index is None or frames_from is None:
            path = paths.get(video.video_id)
            boxes = None if annotations is None else annotations.get(video.video_id)
            reason = "" if path is not None else "no file found for it"
            if path is not None and annotations is not None and boxes is None:
                reason = "no annotations found for it"
            yield _Item(position=position, video=video, path=path, reason=reason, annotations=boxes)
            continue
        facts = index.frames.get(folder_name(video))
        reason = "" if facts is not None else index.reasons.get(sample_id(video), "no frames were extracted of it")
        yield _Item(position=position, video=video, path=frames_from / folder_name(video), frames=facts, reason=reason)


def _units(split: Split, items: Iterator[_Item], per_shard: int) -> list[_Unit]:
    every = list(items)
    starts = range(0, len(every), per_shard)
    return [
        _Unit(name=f"{split.split}-{number:06d}.tar", items=tuple(every[start : start + per_shard]))
        for number, start in enumerate(starts)
    ]


# What is there


def _sidecar(unit: _Unit, job: _Job) -> Path:
    return job.out / Path(unit.name).with_suffix(".jsonl")


def _is_finished(unit: _Unit, job: _Job) -> bool:
    """Whether the shard is there as its sidecar says, and no fault's file was replaced since."""
    try:
        with _sidecar(unit, job).open(encoding="utf-8") as lines:
            finished = _parse_header(lines.readline())
        if finished.plan_sha256 != job.plan_sha256:
            return False
        if finished.shard is not None and (job.out / unit.name).stat().st_size != finished.shard.num_bytes:
            return False
    except (OSError, ValueError, KeyError, TypeError):
        return False  # no sidecar, or one of a broken disk: the shard is written again
    # Several segments of a video may go by one id.
    states: dict[str, list[list[int] | None]] = {fault.video_id: [] for fault in finished.faults}
    for item in unit.items:
        if sample_id(item.video) in states:
            states[sample_id(item.video)].append(_state(item))
    return all(
        source in states[fault.video_id] for fault, source in zip(finished.faults, finished.sources, strict=True)
    )


def _state(item: _Item) -> list[int] | None:
    """What changes when the files of a video, or of its boxes, are replaced."""
    media, boxes = media_state(item.path), media_state(item.annotations)
    return media if media is None or boxes is None else [*media, *boxes]


def _parse_header(line: str) -> _Finished:
    raw = json.loads(line)
    return _Finished(
        plan_sha256=raw["plan_sha256"],
        shard=None if raw["shard"] is None else ShardFacts(**raw["shard"]),
        faults=tuple(Fault(**fault) for fault in raw["faults"]),
        sources=tuple(raw["sources"]),
    )


def _sweep(out: Path, split: str) -> None:
    sweep(out, rf"{re.escape(split)}(-\d{{6}})?\.(tar|jsonl|json|plan\.json|parquet|faults\.csv)")


def _published(out: Path, split: Split) -> Manifest | None:
    """The manifest; None where it or the table of samples is missing or damaged, and the sidecars give both again."""
    import pyarrow.parquet as pq

    try:
        manifest = read_manifest(out, split.split)
        with pq.ParquetFile(out / f"{split.split}.parquet") as table:
            num_rows = sum(table.read_row_group(group).num_rows for group in range(table.num_row_groups))
    except (VidprepError, OSError, ValueError):
        return None
    return manifest if num_rows == sum(facts.num_samples for facts in manifest.shards) else None


# Writing


def _write_all(units: Sequence[_Unit], job: _Job, *, workers: int, progress: str | None) -> None:
    """Write the shards; a video that ends the process that looks at it is found, condemned and left out."""
    while units:
        lost: list[_Unit] = []
        with closing(run(units, partial(_write_shard, job=job), workers=workers, progress=progress)) as outcomes:
            for outcome in outcomes:
                if isinstance(outcome.error, WorkerDied):
                    lost.append(outcome.unit)
                elif outcome.error is not None:
                    raise outcome.error
        if lost:
            job = _condemn(lost, job, workers=workers)
        units = lost


def _condemn(lost: Sequence[_Unit], job: _Job, *, workers: int) -> _Job:
    """Try each video of the lost shards by itself; those that end their process again become faults."""
    items = [item for unit in lost for item in unit.items if item.position not in job.condemned]
    with closing(run(items, partial(_try, job=job), workers=max(workers, 2))) as outcomes:
        culprits = {
            outcome.unit.position: str(outcome.error) for outcome in outcomes if isinstance(outcome.error, WorkerDied)
        }
    if not culprits:
        names = ", ".join(unit.name for unit in lost)
        raise VidprepError(
            f"{names}: the process that writes it dies, though each of its videos passes alone; "
            "with too little memory, use fewer --workers and run the same command again."
        )
    return replace(job, condemned={**job.condemned, **culprits})


def _try(item: _Item, job: _Job) -> None:
    try:
        with _LongVideo() as long_video:
            _prepare(item, job, long_video)
    except _SAMPLE_FAULTS:
        return  # a fault like any other, which the shard will report


_SAMPLE_FAULTS = (VidprepError, OSError, ValueError, MemoryError)
"""What a single video can be blamed for."""


def _write_shard(unit: _Unit, job: _Job) -> None:
    """Write one shard, then its sidecar, which says that it is finished."""
    with writing(_sidecar(unit, job)):
        _sidecar(unit, job).unlink(missing_ok=True)
    rows: list[SampleRow] = []
    faults: list[Fault] = []
    sources: list[list[int] | None] = []
    path = job.out / unit.name
    with publish(path) as stream, _LongVideo() as long_video:
        tar = TarWriter(stream)
        for item in unit.items:
            state = _state(item)
            try:
                sample = _prepare(item, job, long_video)
            except CannotWrite:
                raise
            except _SAMPLE_FAULTS as error:
                # The path has its own column.
                reason = _reason(error).removeprefix(f"{item.path}: ").removeprefix(f"{item.path}/")
                faults.append(Fault(video_id=sample_id(item.video), reason=reason, path=str(item.path or "")))
                sources.append(state)
                continue
            rows.append(_add_sample(tar, sample, shard=unit.name))
        facts = tar.finish(unit.name, num_samples=len(rows))
    if not rows:
        with writing(path):
            path.unlink()
    header = _Finished(
        plan_sha256=job.plan_sha256,
        shard=facts if rows else None,
        faults=tuple(faults),
        sources=tuple(sources),
    )
    with publish(_sidecar(unit, job)) as stream:
        for line in (asdict(header), *map(asdict, rows)):
            stream.write((json.dumps(line, ensure_ascii=False) + "\n").encode())


def _reason(error: BaseException) -> str:
    if isinstance(error, VidprepError):
        return str(error).rstrip(".")
    if isinstance(error, MemoryError):
        return "too large for the memory"
    if isinstance(error, OSError):
        return f"cannot be read ({error.strerror or error})"
    return f"{type(error).__name__}: {error}"


def _add_sample(tar: "TarWriter", sample: _Sample, *, shard: str) -> SampleRow:
    info = json.dumps(sample.info, ensure_ascii=False, separators=(",", ":")).encode()
    members = tuple(
        Member(name=name, offset=tar.add(f"{sample.row.key}.{name}", content), size=len(content))
        for name, content in (("json", info), *sample.members)
    )
    return replace(sample.row, shard=shard, members=members)


class TarWriter:
    """A tar archive in the plain USTAR form, the same bytes for the same members; its checksum as it is written."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._sha256 = hashlib.sha256()
        self._num_bytes = 0

    def add(self, name: str, content: bytes) -> int:
        """Append a member; where its content begins, in bytes from the start."""
        header = tarfile.TarInfo(name)
        # No owner, no time: they would differ from run to run. An integer time also keeps PAX headers away.
        header.size, header.mode, header.mtime = len(content), 0o644, 0
        self._put(header.tobuf(tarfile.USTAR_FORMAT))
        offset = self._num_bytes
        self._put(content)
        self._put(bytes(-len(content) % tarfile.BLOCKSIZE))
        return offset

    def finish(self, name: str, *, num_samples: int) -> ShardFacts:
        """Write the end of the archive; the facts of the shard."""
        self._put(bytes(2 * tarfile.BLOCKSIZE))
        self._put(bytes(-self._num_bytes % tarfile.RECORDSIZE))
        return ShardFacts(
            name=name, num_samples=num_samples, num_bytes=self._num_bytes, sha256=self._sha256.hexdigest()
        )

    def _put(self, content: bytes) -> None:
        self._stream.write(content)
        self._sha256.update(content)
        self._num_bytes += len(content)


# Samples


class _LongVideo:
    """The video whose segments are being cut: it stays open, with its packets, until one of another video comes."""

    def __init__(self) -> None:
        self._reader: PyavReader | None = None
        self._opened: tuple[Path, list[int] | None] | None = None
        self._fault: CorruptVideo | None = None

    def open(self, path: Path) -> PyavReader:
        """The opened video.

        Raises:
            MissingVideo, CorruptVideo: it does not open; asked again, it says so without another look.
        """
        wanted = (path, source_state(path))
        if wanted != self._opened:
            self.close()
            self._opened = wanted
            try:
                self._reader = PyavReader(path, kept_packet_bytes=KEPT_PACKET_BYTES)
            except CorruptVideo as error:
                self._fault = error
        if self._fault is not None:
            raise self._fault
        if self._reader is None:
            raise MissingVideo("no file found for it")
        return self._reader

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._reader = self._opened = self._fault = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _prepare(item: _Item, job: _Job, long_video: _LongVideo) -> _Sample:
    """A checked sample in memory; raises one of `_SAMPLE_FAULTS` with the reason why it cannot be one."""
    if item.position in job.condemned:
        raise CorruptVideo(job.condemned[item.position])
    if item.reason or item.path is None:
        raise MissingVideo(item.reason)
    if item.frames is not None:
        return _sample_from_frames(item, item.path, item.frames, job)
    if job.delivered is not None and job.settings is not None:
        return _sample_from_folder(item, item.path, job, job.settings, job.delivered)
    is_segment = item.video.start_seconds is not None or item.video.end_seconds is not None
    if is_segment and job.settings is not None:
        return _sample_from_segment(item, item.path, job, job.settings, long_video)
    # One read: what is checked is what is written, whatever happens to the file meanwhile.
    data = _read_whole(item.path)
    try:
        if job.settings is None:
            return _sample_from_video(item, item.path, data, job)
        return _sample_from_decoding(item, data, job, job.settings)
    except CorruptVideo as error:
        in_memory = f"video of {len(data)} bytes in memory: "
        raise CorruptVideo(str(error).removeprefix(in_memory)) from error


def _read_whole(path: Path) -> bytes:
    """A file's content.

    Raises:
        MissingVideo: it is gone.
        CorruptVideo: it is empty, too large for a tar, or changed while it was read.
    """
    before = source_state(path)
    if before is None:
        raise MissingVideo("no file found for it")
    if before[0] == 0:
        raise CorruptVideo("is empty (0 bytes); fetch it again")
    if before[0] > MAX_MEMBER_BYTES:
        raise CorruptVideo(f"has {before[0]} bytes; a tar holds files of at most {MAX_MEMBER_BYTES}")
    data = path.read_bytes()
    if source_state(path) != before or len(data) != before[0]:
        raise CorruptVideo("changed while it was read; run the same command again when it is complete")
    return data


def _decode_all(data: bytes) -> VideoFacts:
    return check(data)


def _open_only(data: bytes) -> VideoFacts:
    return probe(data)


def _sample_from_video(item: _Item, path: Path, data: bytes, job: _Job) -> _Sample:
    facts = job.measure(data)
    start = item.video.start_seconds or 0.0
    if start >= facts.duration_seconds:
        raise VidprepError(f"the segment begins at {start:g} s, the video ends at {facts.duration_seconds:.3f} s")
    row = _row(
        item,
        job,
        num_frames=facts.num_frames,
        fps=facts.fps,
        size=(facts.width, facts.height),
        duration_seconds=facts.duration_seconds,
        segment=(item.video.start_seconds, item.video.end_seconds),
    )
    suffix = path.suffix.lower().removeprefix(".")
    # A reader needs some suffix, and "json" is taken.
    name = suffix if suffix.isalnum() and suffix.isascii() and suffix != "json" else "video"
    return _Sample(row=row, info=_info(row, item, job), members=[(name, data)])


def _sample_from_decoding(item: _Item, data: bytes, job: _Job, settings: FrameFormat) -> _Sample:
    job.measure(data)
    with open_frames(data, item.video, settings) as (facts, images):
        return _frame_sample(item, facts, list(images), job)


def _sample_from_segment(item: _Item, path: Path, job: _Job, settings: FrameFormat, long_video: _LongVideo) -> _Sample:
    """The frames of a segment; what lies outside of it is neither decoded nor checked."""
    before = source_state(path)
    facts, images = frames_of(long_video.open(path), item.video, settings)
    encoded = list(images)
    if source_state(path) != before:
        raise CorruptVideo("changed while it was read; run the same command again when it is complete")
    return _frame_sample(item, facts, encoded, job)


def _sample_from_folder(item: _Item, folder: Path, job: _Job, settings: FrameFormat, delivered: FrameFormat) -> _Sample:
    """The frames that a data set delivers, with the boxes on them where it has some."""
    frames = read_delivered(folder, item.video, settings, delivered=delivered, is_decoded=job.decode_frames)
    sample = _frame_sample(item, frames.facts, list(frames.images), job)
    if item.annotations is None or job.read_boxes is None:
        return sample
    annotated = match_annotations(job.read_boxes(item.annotations), frames.facts, delivered=delivered)
    return replace(sample, info={**sample.info, "boxes": _boxes(annotated, frames.indices, frames.facts, job)})


def _boxes(
    annotated: Sequence[FrameAnnotation], indices: Iterable[int], facts: FrameFacts, job: _Job
) -> list[list[dict[str, Any]]]:
    """The boxes of each frame of a sample, in pixels of its frames."""
    per_frame = []
    for index in indices:
        found = annotated[int(index)]
        beyond = [box for box in found.boxes if box.label >= len(job.classes)]
        if beyond:
            raise CorruptVideo(
                f"the annotation of frame {index} has label {beyond[0].label}, of {len(job.classes)} classes"
            )
        across, down = facts.width / facts.source_width, facts.height / facts.source_height
        per_frame.append(
            [
                {
                    "label": box.label,
                    "xyxy": [x * scale for x, scale in zip(box.xyxy, (across, down) * 2, strict=True)],
                    "track_id": box.track_id,
                    "occluded": box.is_occluded,
                    "generated": box.is_generated,
                }
                for box in found.boxes
            ]
        )
    return per_frame


def _sample_from_frames(item: _Item, folder: Path, facts: FrameFacts, job: _Job) -> _Sample:
    """A sample from the folder of one video that `extract` wrote; every frame must be there and whole."""
    import simplejpeg

    if job.settings is None:
        raise ValueError("extracted frames have settings")
    images = []
    for number in range(facts.num_frames):
        path = folder / job.settings.template.format(job.settings.first_index + number)
        place = f"frame {number + 1} of {facts.num_frames} ({path.name})"
        try:
            image = path.read_bytes()
        except FileNotFoundError as error:
            raise MissingVideo(f"{place} is missing; remove {folder} and run `vidprep extract` again") from error
        try:
            if job.decode_frames:
                height, width = simplejpeg.decode_jpeg(image).shape[:2]
            else:
                height, width = simplejpeg.decode_jpeg_header(image)[:2]
        except ValueError as error:
            raise CorruptVideo(f"{place} does not decode: {error}") from error
        if (width, height) != (facts.width, facts.height):
            raise CorruptVideo(f"{place} is {width}x{height}, the index says {facts.width}x{facts.height}")
        images.append(image)
    return _frame_sample(item, facts, images, job)


def _frame_sample(item: _Item, facts: FrameFacts, images: Sequence[bytes], job: _Job) -> _Sample:
    row = _row(
        item,
        job,
        num_frames=facts.num_frames,
        fps=facts.fps,
        size=(facts.width, facts.height),
        duration_seconds=facts.num_frames / facts.fps,
        segment=(None, None),  # the frames are those of the segment already
    )
    info = _info(row, item, job) | {"pts_seconds": [_number(time) for time in facts.pts_seconds]}
    members = [(f"{number:05d}.jpg", image) for number, image in enumerate(images, start=1)]
    return _Sample(row=row, info=info, members=members)


def _row(
    item: _Item,
    job: _Job,
    *,
    num_frames: int,
    fps: float,
    size: tuple[int, int],
    duration_seconds: float,
    segment: tuple[float | None, float | None],
) -> SampleRow:
    return SampleRow(
        key=f"{item.position:08d}",
        video_id=item.video.video_id,
        labels=item.video.labels,
        shard="",
        num_frames=num_frames,
        fps=fps,
        width=size[0],
        height=size[1],
        duration_seconds=duration_seconds,
        start_seconds=segment[0],
        end_seconds=segment[1],
        members=(),
        segment_id=item.video.segment_id,
    )


def _info(row: SampleRow, item: _Item, job: _Job) -> dict[str, Any]:
    """What KEY.json says: all that a reader without the table needs to know."""
    names = (job.classes, job.noun_classes) if job.task == "verb_noun" else (job.classes,) * len(row.labels)
    return {
        "video_id": row.video_id,
        "segment_id": row.segment_id or None,
        "labels": list(row.labels),
        "classes": [of_label[label] for label, of_label in zip(row.labels, names, strict=False)],
        "dataset": job.dataset,
        "split": job.split,
        "num_frames": row.num_frames,
        "fps": _number(row.fps),
        "width": row.width,
        "height": row.height,
        "duration_seconds": _number(row.duration_seconds),
        "start_seconds": item.video.start_seconds,
        "end_seconds": item.video.end_seconds,
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value  # JSON has no NaN


# The manifest


def _read_sidecar(path: Path) -> tuple[_Finished, list[SampleRow]]:
    """What the sidecar of a finished shard says.

    Raises:
        CorruptShard: it is cut short or no sidecar.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            header = _parse_header(lines.readline())
            rows = [row_from_dict(json.loads(line)) for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptShard(
            f"{path}: cut short or changed ({error}); remove it and run the same command again."
        ) from error
    expected = 0 if header.shard is None else header.shard.num_samples
    if len(rows) != expected:
        raise CorruptShard(
            f"{path}: cut short or changed ({len(rows)} samples instead of {expected}); "
            "remove it and run the same command again."
        )
    return header, rows


def _publish(split: Split, units: Sequence[_Unit], job: _Job, plan: Mapping[str, Any]) -> Manifest:
    """Write the table of samples, the list of faults and, as the last, the manifest, all from the sidecars."""
    headers: list[_Finished] = []

    def samples() -> Iterator[list[SampleRow]]:
        for unit in units:
            header, rows = _read_sidecar(_sidecar(unit, job))
            headers.append(header)
            yield rows

    with publish(job.out / f"{split.split}.parquet") as stream:
        write_samples(stream, samples())
    faults = tuple(fault for header in headers for fault in header.faults)
    info = DATASETS.get(split.dataset)
    manifest = Manifest(
        dataset=split.dataset,
        split=split.split,
        task=split.task,
        classes=split.classes,
        noun_classes=split.noun_classes,
        content=job.content,
        settings={
            name: plan[name]
            for name in ("source", "samples_per_shard", "check", "frames", "delivered", "has_boxes")
            if name in plan
        },
        num_videos=len(split.videos),
        shards=tuple(header.shard for header in headers if header.shard is not None),
        faults=faults,
        flip_pairs={} if info is None else {str(label): to for label, to in info.flip_pairs.items()},
    )
    with publish(job.out / f"{split.split}.faults.csv") as stream:
        stream.write(faults_to_csv(faults).encode())
    with publish(job.out / f"{split.split}.json") as stream:
        stream.write(manifest.to_json().encode())
    return manifest
