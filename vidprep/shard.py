"""WebDataset shards of a split: planned before the first is written, each an idempotent unit of work.

    OUT/val-000000.tar         KEY.json and KEY.mp4, or KEY.00001.jpg ...; shard k holds positions k*n to (k+1)*n - 1
    OUT/val-000000.idx         where its members lie, for DALI
    OUT/val-000000.jsonl       written after both: this shard is finished; checksum, faults, one line a sample
    OUT/val.plan.json          what was asked for; a run that asks for something else is refused
    OUT/val.json, val.parquet  the manifest and the table of samples, when all shards are finished
    OUT/val.wids.json          the list of shards, for wids
    OUT/val.faults.csv         the videos that are in no shard, and why
    OUT/val.ledger.jsonl       each sample with its state, attempts and time

The bytes of a shard depend on the plan and on the videos alone: not on the number of workers, not on restarts, not on
the machine or the task of a job array that writes it, not on where OUT lies: a folder or the URL of an object store.
"""

import hashlib
import json
import math
import re
import tarfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Any, Literal, Self, TypeVar, cast

from vidprep.datasets import DATASETS
from vidprep.decode.pyav import PyavReader
from vidprep.engine import CannotWrite, Outcomes, WorkerDied, differences, media_state, run, source_state
from vidprep.errors import (
    CorruptShard,
    CorruptVideo,
    EmptyVideo,
    FaultKind,
    MissingVideo,
    UsageError,
    VidprepError,
    WrongLength,
    kind_of,
)
from vidprep.extract import (
    KEPT_PACKET_BYTES,
    FrameFacts,
    FrameIndex,
    frames_of,
    match_annotations,
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
    dali_index,
    faults_to_csv,
    folder_name,
    read_manifest,
    row_from_dict,
    row_to_dict,
    sample_id,
    wids_index,
    write_samples,
)
from vidprep.ledger import LEDGER_SUFFIX, Entry, Ledger, check_retry, now
from vidprep.probe import VideoFacts, check, probe
from vidprep.splits import Split
from vidprep.store import Location, Store, StoreUnreachable, open_store, read_url, url_sizes, url_state
from vidprep.tasks import ArrayTask, Held, hold
from vidprep.types import FrameAnnotation, FrameFormat, Task, Video
from vidprep.workers import begin_part

__all__ = ["ShardReport", "TarWriter", "default_samples_per_shard", "list_plans", "read_plan", "shard"]

U = TypeVar("U")
R = TypeVar("R")

Content = Literal["video", "frames"]
Check = Literal["decode", "open"]

MAX_SAMPLES_PER_SHARD = 256
"""A shard of ten-second clips at 256 lines has then some 100 MB."""
NUM_SHARDS, MIN_SAMPLES_PER_SHARD = 16, 16
"""Smaller splits get some 16 shards, for as many workers and for readers that shuffle shards; but no crumbs."""
MAX_MEMBER_BYTES = 8 * 1024**3 - 1
"""USTAR writes sizes with eleven octal digits."""
PLAN_FORMAT = "vidprep-plan"
NUM_ESTIMATED = 16
"""Samples of frames that are made, and thrown away, to plan shards of so many bytes."""
SAMPLE_OVERHEAD_BYTES = 2560
"""Headers, padding and KEY.json of a video in a tar."""
MAX_SUFFIX_LENGTH = 16
"""Of a member's name; the names of a tar end at 100 letters."""
PUBLISH_PATIENCE_SECONDS = 10.0
"""A task waits so long for another one that publishes the manifest."""


@dataclass(frozen=True, kw_only=True)
class ShardReport:
    """What a run left behind."""

    folder: Location
    """The path, or the URL."""
    manifest: Manifest
    """Of a task that was not the last to finish: what its own shards hold; nothing is published yet."""
    num_samples: int
    num_new_shards: int
    """Shards that this run wrote; the others were there."""
    num_missing_shards: int = 0
    """Shards that other tasks have still to write."""
    is_published: bool = True
    """The manifest of the whole split is there; False while other tasks are at work."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Item:
    """One video with its place in the split."""

    position: int
    video: Video
    path: Location | None
    """The file, its URL, or the folder of its frames; None when there is none."""
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

    store: Store
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
    condemned: Mapping[int, WorkerDied] = field(default_factory=dict)
    """Position -> why, for videos that end the process that looks at them."""
    retry: frozenset[FaultKind] = frozenset()
    """Shards with faults of these kinds are written again."""


@dataclass(frozen=True, kw_only=True)
class _Hands:
    """Who does the work."""

    workers: int
    scheduler: str | None
    time_limit_seconds: float | None

    def run(self, units: Sequence[U], work: Callable[[U], R], *, progress: str | None = None) -> Outcomes[U, R]:
        return run(
            units,
            work,
            workers=self.workers,
            scheduler=self.scheduler,
            time_limit_seconds=self.time_limit_seconds,
            progress=progress,
        )


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
    paths: Mapping[str, Location],
    *,
    out: Location,
    content: Content = "video",
    frames: FrameFormat | None = None,
    frames_from: Path | None = None,
    delivered: FrameFormat | None = None,
    annotations: Mapping[str, Path] | None = None,
    read_boxes: Callable[[Path], Sequence[FrameAnnotation]] | None = None,
    samples_per_shard: int | None = None,
    shard_bytes: int | None = None,
    task: ArrayTask | None = None,
    workers: int = 1,
    scheduler: str | None = None,
    time_limit_seconds: float | None = None,
    retry: Sequence[str] = (),
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
        paths: video_id -> file, its URL, or folder of frames; videos that are not in it are missing. Not used with
            `frames_from`.
        out: the folder of the shards, or its URL; several splits may share one.
        content: the files as they are, or JPEG frames.
        frames: which frames, for `content` "frames" straight from the videos.
        frames_from: a folder that `extract` wrote, to take the frames from.
        delivered: how a data set that is delivered as folders of frames calls them. Frames that keep their size
            keep their bytes; their times are those of its frame rate, NaN where it states none.
        annotations: video_id -> where the boxes of its frames lie, for detection; None: the split has none.
        read_boxes: reads them, one `FrameAnnotation` a frame.
        samples_per_shard: positions of the split in one shard; None: `default_samples_per_shard`.
        shard_bytes: instead of it, about how large a shard is. Where shards begin is planned from the sizes of the
            videos (of frames: from what some samples take), and stands in the plan from then on.
        task: only this part of the shards is written; other tasks, here or elsewhere, write theirs to the same `out`.
            The one that finds all shards finished and nobody else at work publishes the manifest.
        workers: processes; each holds one video in memory.
        scheduler: address of a Dask scheduler whose workers do the work instead.
        time_limit_seconds: for a video; one that takes longer becomes a fault. None: as long as it takes.
        retry: kinds of faults (`ledger.check_retry`) whose videos are tried again though their files are the same.
        check: "decode" all of each video, or only "open" it and decode its first frame.
        progress: shown while it runs; None shows nothing.

    Raises:
        UsageError: an empty split, a setting out of range, an `out` that holds shards of another plan, or another run
            at work on the same shards.
        CannotWrite: no space, no permission.
        StoreUnreachable: an object store does not answer.
    """
    if not split.videos:
        raise UsageError(f"{split.dataset}/{split.split}: the split is empty, there is nothing to shard.")
    if shard_bytes is not None and samples_per_shard is not None:
        raise UsageError("--samples-per-shard and --shard-bytes both say how large a shard is; give one of them.")
    if samples_per_shard is None and shard_bytes is None:
        samples_per_shard = default_samples_per_shard(len(split.videos), task=split.task)
    for name, value in (("samples_per_shard", samples_per_shard), ("shard_bytes", shard_bytes)):
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}.")
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
    if shard_bytes is not None:
        plan["shard_bytes"] = shard_bytes
    if index is None and delivered is not None:
        plan["delivered"] = asdict(delivered)
    if annotations is not None:
        plan["has_boxes"] = True
    store = open_store(out if not isinstance(out, Path) else out.absolute())
    if isinstance(store.location, Path) and store.location.exists() and not store.location.is_dir():
        raise UsageError(f"{store}: is a file; give --out the name of a folder.")
    if str(store).startswith("memory://") and (workers > 1 or scheduler is not None or time_limit_seconds is not None):
        raise UsageError(
            f"{store}: lies in the memory of one process; write to it with --workers 1 and no --time-limit (0)."
        )
    store.make()
    job = _Job(
        store=store,
        dataset=split.dataset,
        split=split.split,
        task=split.task,
        classes=split.classes,
        noun_classes=split.noun_classes,
        plan_sha256="",
        content=content,
        measure=_decode_all if check == "decode" else _open_only,
        settings=settings,
        delivered=delivered if index is None else None,
        read_boxes=read_boxes if annotations is not None else None,
        decode_frames=check == "decode",
        retry=check_retry(retry),
    )
    hands = _Hands(workers=workers, scheduler=scheduler, time_limit_seconds=time_limit_seconds)
    items = list(_items(split, paths, index, frames_from, annotations))
    before = read_plan(store, split.split)
    if before is None:
        _refuse_foreign(store, split.split)
        starts = {} if shard_bytes is None else {"starts": _starts(_sample_bytes(items, job, hands), shard_bytes)}
        # Another task may have begun at the same moment: what stands there counts for both, and its file stays, for
        # that task holds its part in it.
        store.create(
            f"{split.split}.plan.json",
            (json.dumps({**plan, **starts}, indent=1, ensure_ascii=False) + "\n").encode(),
        )
        before = read_plan(store, split.split) or {}
    _refuse_other_plan(store, before, plan)
    job = replace(job, plan_sha256=_digest(before))
    units = _units(split, items, before)
    if task is None:
        return _write_everything(split, units, job, before, hands, progress=progress)
    return _write_part(split, units, job, before, hands, task, progress=progress)


def _write_everything(
    split: Split,
    units: Sequence[_Unit],
    job: _Job,
    plan: Mapping[str, Any],
    hands: _Hands,
    *,
    progress: str | None,
) -> ShardReport:
    with hold(job.store.lock_file(f"{split.split}.plan.json"), range(len(units)), purpose="vidprep shard"):
        _sweep(units, job)
        num_new = _write_missing(units, job, hands, ledger=f"{split.split}{LEDGER_SUFFIX}", progress=progress)
        manifest = _published(job.store, split.split) or _publish(split, units, job, plan)
    return _report(job, manifest, num_new=num_new)


def _write_part(
    split: Split,
    units: Sequence[_Unit],
    job: _Job,
    plan: Mapping[str, Any],
    hands: _Hands,
    task: ArrayTask,
    *,
    progress: str | None,
) -> ShardReport:
    """Write the shards of one task, and publish the manifest if they were the last."""
    lock_file = job.store.lock_file(f"{split.split}.plan.json")
    mine = task.part_of(len(units))
    own = units[mine.start : mine.stop]
    # A task that is just publishing holds all shards, for a moment.
    with hold(lock_file, mine, purpose=f"vidprep shard --task {task}", patience_seconds=PUBLISH_PATIENCE_SECONDS):
        _sweep(own, job)
        ledger = f"{split.split}.{task.number}-of-{task.count}{LEDGER_SUFFIX}"
        num_new = _write_missing(own, job, hands, ledger=ledger, progress=progress)
    missing = _unfinished(units, job)
    if not missing:
        try:
            with hold(lock_file, range(len(units)), purpose="vidprep shard"):
                _sweep(units, job)
                manifest = _published(job.store, split.split) or _publish(split, units, job, plan)
                return _report(job, manifest, num_new=num_new)
        except Held:
            pass  # whoever is still at work looks for what is missing when it is done, and publishes
    of_own = _manifest(split, _headers(own, job), job, plan, num_videos=sum(len(unit.items) for unit in own))
    report = _report(job, of_own, num_new=num_new)
    return replace(report, num_missing_shards=len(missing), is_published=False)


def _write_missing(units: Sequence[_Unit], job: _Job, hands: _Hands, *, ledger: str, progress: str | None) -> int:
    """Write those of the shards that are not finished; how many they were."""
    todo = _unfinished(units, job)
    if not todo and f"{job.split}.json" in job.store.sizes():
        _write_lost_indices(units, job)
        return 0
    # No manifest while its shards change: after a kill nothing may pass for finished.
    job.store.remove(f"{job.split}.json")
    path = job.store.lock_file(ledger)
    try:
        with Ledger(path, [(_key(item), sample_id(item.video)) for unit in units for item in unit.items]) as noted:
            unfinished = {unit.name for unit in todo}
            for unit in units:
                if unit.name not in unfinished and any(_key(item) not in noted.attempts for item in unit.items):
                    noted.add(_entries_of_sidecar(unit, job))  # a killed run had not come to it
            job = replace(job, condemned=_condemned_before(todo, job, noted))
            _write_all(todo, job, hands, noted, progress=progress)
        if isinstance(job.store.location, str):
            with job.store.publish(ledger) as stream:
                stream.write(path.read_bytes())
        _write_lost_indices(units, job)
    except BaseException:
        _sweep(units, job)  # what workers were writing when they were ended
        raise
    return len(todo)


def _key(item: _Item) -> str:
    return f"{item.position:08d}"


def _entries_of_sidecar(unit: _Unit, job: _Job) -> list[Entry]:
    """What a sidecar knows: states and reasons, but no times."""
    header, rows = _read_sidecar(unit, job)
    done = {row.key for row in rows}
    # Faults stand in the order of the split.
    faults = iter(zip(header.faults, header.sources, strict=True))
    entries = []
    for item in unit.items:
        entry = Entry(key=_key(item), sample=sample_id(item.video), state="done", attempts=1)
        if entry.key not in done:
            fault, source = next(faults)
            entry = replace(
                entry, state="failed", kind=fault.kind or "other", reason=fault.reason, path=fault.path, source=source
            )
        entries.append(entry)
    return entries


def _condemned_before(units: Sequence[_Unit], job: _Job, ledger: Ledger) -> dict[int, WorkerDied]:
    """Videos that ended their process in an earlier run, and are still the same."""
    condemned = {}
    for item in (item for unit in units for item in unit.items):
        entry = ledger.deaths.get(_key(item))
        if entry is not None and entry.kind not in job.retry and entry.source == _state(item):
            condemned[item.position] = error = WorkerDied(entry.reason)
            error.kind = cast(FaultKind, entry.kind)
    return condemned


def _report(job: _Job, manifest: Manifest, *, num_new: int) -> ShardReport:
    return ShardReport(
        folder=job.store.location,
        manifest=manifest,
        num_samples=sum(facts.num_samples for facts in manifest.shards),
        num_new_shards=num_new,
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
    split: Split, *, content: Content, settings: FrameFormat | None, source: str, per_shard: int | None, check: Check
) -> dict[str, Any]:
    """All that decides the bytes of the shards, apart from the videos."""
    rows = (
        [video.video_id, video.labels, video.start_seconds, video.end_seconds, *filter(None, [video.segment_id])]
        for video in split.videos
    )
    return {
        "format": PLAN_FORMAT,
        "dataset": split.dataset,
        "split": split.split,
        "task": split.task,
        "num_videos": len(split.videos),
        "videos_sha256": _digest_rows(rows),
        "classes_sha256": _digest([split.classes, split.noun_classes] if split.noun_classes else split.classes),
        "content": content,
        "source": source,
        "samples_per_shard": per_shard,
        "check": check,
        "frames": None if settings is None else asdict(settings),
    }


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _digest_rows(rows: Iterable[object]) -> str:
    """As `_digest` of the list of them, of which only one is in memory."""
    digest = hashlib.sha256(b"[")
    for number, row in enumerate(rows):
        digest.update(f"{', ' if number else ''}{json.dumps(row, ensure_ascii=False)}".encode())
    digest.update(b"]")
    return digest.hexdigest()


def read_plan(store: Store, split: str) -> dict[str, Any] | None:
    """What was asked for when the shards of a split were begun; None where none were.

    Raises:
        UsageError: it cannot be read, or is no plan.
    """
    name = f"{split}.plan.json"
    try:
        plan = json.loads(store.read(name).decode("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"{store}/{name}: cannot be read ({error}); give another --out.") from error
    if not isinstance(plan, dict) or plan.get("format") != PLAN_FORMAT:
        raise UsageError(f"{store}/{name}: is no plan of `vidprep shard`; give another --out.")
    return plan


def list_plans(store: Store) -> list[str]:
    """Names of the splits whose shards were begun in a folder."""
    return sorted(name.removesuffix(".plan.json") for name in store.sizes() if name.endswith(".plan.json"))


def _refuse_foreign(store: Store, split: str) -> None:
    others = re.compile(rf"{re.escape(split)}(-\d{{6}}\.tar|\.json|\.parquet)")
    found = sorted(name for name in store.sizes() if others.fullmatch(name))
    if found:
        raise UsageError(
            f"{store}: holds {found[0]} but no {split}.plan.json; it was not written by `vidprep shard`. "
            "Give another --out."
        )


def _refuse_other_plan(store: Store, before: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
    # Where shards begin follows from the rest, as the videos were when the plan was made.
    asked = json.loads(json.dumps(plan))  # as it stands in a file: lists, no tuples
    if found := differences({name: value for name, value in before.items() if name != "starts"}, asked):
        raise UsageError(
            f"{store}: holds shards of {plan['split']} that were made otherwise ({found}); "
            "give another --out, or the settings of before."
        )


def _items(
    split: Split,
    paths: Mapping[str, Location],
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


def _units(split: Split, items: Sequence[_Item], plan: Mapping[str, Any]) -> list[_Unit]:
    per_shard = plan["samples_per_shard"]
    starts = plan["starts"] if per_shard is None else range(0, len(items), per_shard)
    ends = [*starts[1:], len(items)]
    return [
        _Unit(name=f"{split.split}-{number:06d}.tar", items=tuple(items[start:end]))
        for number, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]


def _starts(sample_bytes: Sequence[int], shard_bytes: int) -> list[int]:
    """The first position of each shard, filled in order: the next begins where one more sample would be too much."""
    starts, filled = [0], 0
    for position, size in enumerate(sample_bytes):
        if filled and filled + size > shard_bytes:
            starts.append(position)
            filled = 0
        filled += size
    return starts


def _sample_bytes(items: Sequence[_Item], job: _Job, hands: _Hands) -> list[int]:
    """About how many bytes each sample takes in its shard; none where there is no video.

    Of videos: the size of the file. Of frames: in proportion to the size of the file, the seconds of the segment or
    the number of frames, by what `NUM_ESTIMATED` samples take; so many frames of each take the same.
    """
    weights = _weights(items, job)
    if job.content == "video":
        return [int(weight) + SAMPLE_OVERHEAD_BYTES if weight else 0 for weight in weights]
    there = [position for position, weight in enumerate(weights) if weight]
    step = max(len(there) // NUM_ESTIMATED, 1)
    chosen = [items[position] for position in there[::step][:NUM_ESTIMATED]]
    total, total_weight = 0, 0.0
    # In processes of their own, since nobody has looked at these videos before.
    apart = replace(hands, workers=max(hands.workers, 2))
    with closing(apart.run(chosen, partial(_measure_bytes, job=job))) as outcomes:
        for outcome in outcomes:
            if outcome.error is None and outcome.result is not None:
                total += outcome.result
                total_weight += weights[outcome.unit.position]
            elif not isinstance(outcome.error, SAMPLE_FAULTS):
                raise outcome.error or RuntimeError("no sample was measured")
    if not total_weight:
        raise VidprepError(
            f"none of {len(chosen)} videos that were tried gives frames, so nothing tells how large their shards "
            "would be; give --samples-per-shard instead of --shard-bytes."
        )
    return [round(weight * total / total_weight) for weight in weights]


def _weights(items: Sequence[_Item], job: _Job) -> list[float]:
    """What the bytes of a sample are taken to be in proportion to; 0 for those that are missing."""
    urls = [item.path for item in items if isinstance(item.path, str) and item.frames is None]
    of_url = url_sizes(urls) if urls else {}
    weights = []
    for item in items:
        start, end = item.video.start_seconds, item.video.end_seconds
        if item.reason or item.path is None:
            weights.append(0.0)
        elif item.frames is not None:
            weights.append(float(item.frames.num_frames))
        elif job.delivered is not None or (job.settings is not None and job.settings.num_frames is not None):
            weights.append(1.0)
        elif job.content == "frames" and end is not None:
            weights.append(max(end - (start or 0.0), 0.0))
        elif isinstance(item.path, str):
            weights.append(float(of_url.get(item.path, 0)))
        else:
            weights.append(float((source_state(item.path) or [0])[0]))
    return weights


def _measure_bytes(item: _Item, job: _Job) -> int:
    with _LongVideo() as long_video:
        sample = _prepare(item, job, long_video)
    padded = [-(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE for _, content in sample.members]
    return sum(padded) + len(padded) * tarfile.BLOCKSIZE + SAMPLE_OVERHEAD_BYTES


# What is there


def _sidecar(unit: _Unit) -> str:
    return f"{unit.name.removesuffix('.tar')}.jsonl"


def _dali_name(unit: _Unit) -> str:
    return f"{unit.name.removesuffix('.tar')}.idx"


def _unfinished(units: Sequence[_Unit], job: _Job) -> list[_Unit]:
    """The shards that are not there as their sidecars say, or of whose faults a file was replaced since."""
    sizes = job.store.sizes()
    heads = job.store.heads([name for name in map(_sidecar, units) if name in sizes])
    return [unit for unit in units if not _is_finished(unit, job, sizes, heads.get(_sidecar(unit)))]


def _is_finished(unit: _Unit, job: _Job, sizes: Mapping[str, int], head: bytes | None) -> bool:
    if head is None:
        return False
    try:
        finished = _parse_header(head)
    except (ValueError, KeyError, TypeError):
        return False  # the sidecar of a broken disk: the shard is written again
    if finished.plan_sha256 != job.plan_sha256:
        return False
    if finished.shard is not None and sizes.get(unit.name) != finished.shard.num_bytes:
        return False
    if any(fault.kind in job.retry for fault in finished.faults):
        return False
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
    media = url_state(item.path) if isinstance(item.path, str) else media_state(item.path)
    boxes = media_state(item.annotations)
    return media if media is None or boxes is None else [*media, *boxes]


def _parse_header(line: bytes | str) -> _Finished:
    raw = json.loads(line)
    return _Finished(
        plan_sha256=raw["plan_sha256"],
        shard=None if raw["shard"] is None else ShardFacts(**raw["shard"]),
        faults=tuple(Fault(**fault) for fault in raw["faults"]),
        sources=tuple(raw["sources"]),
    )


def _sweep(units: Sequence[_Unit], job: _Job) -> None:
    """Remove what killed runs left half-written of these shards, and of what is written when all are finished.

    Other tasks may be at work on other shards.
    """
    names = {name for unit in units for name in (unit.name, _dali_name(unit), _sidecar(unit))}
    names |= {f"{job.split}.{suffix}" for suffix in ("plan.json", "json", "parquet", "faults.csv", "wids.json")}
    job.store.sweep(names)


def _published(store: Store, split: str) -> Manifest | None:
    """The manifest; None where it, or what belongs to it, is missing or damaged: the sidecars give it again."""
    import pyarrow.parquet as pq

    try:
        manifest = read_manifest(store, split)
        with store.open(f"{split}.parquet") as stream, pq.ParquetFile(stream) as table:
            num_rows = sum(table.read_row_group(group).num_rows for group in range(table.num_row_groups))
        is_listed = store.read(f"{split}.wids.json").decode() == wids_index(manifest)
    except StoreUnreachable:
        raise
    except (VidprepError, OSError, ValueError):
        return None
    is_whole = is_listed and num_rows == sum(facts.num_samples for facts in manifest.shards)
    return manifest if is_whole else None


# Writing


def _write_all(units: Sequence[_Unit], job: _Job, hands: _Hands, ledger: Ledger, *, progress: str | None) -> None:
    """Write the shards; a video that ends the process that looks at it is found, condemned and left out."""
    while units:
        lost: list[_Unit] = []
        culprits: dict[int, WorkerDied] = {}
        with closing(hands.run(units, partial(_write_shard, job=job), progress=progress)) as outcomes:
            for outcome in outcomes:
                if isinstance(outcome.error, WorkerDied):
                    lost.append(outcome.unit)
                    if outcome.error.part is not None:
                        culprits[int(outcome.error.part)] = outcome.error
                elif outcome.error is not None:
                    raise outcome.error
                else:
                    ledger.add(outcome.result or ())
        if lost:
            unexplained = [unit for unit in lost if not any(item.position in culprits for item in unit.items)]
            if unexplained:
                culprits |= _find_culprits(unexplained, job, hands)
            job = replace(job, condemned={**job.condemned, **culprits})
            ledger.add(
                Entry(
                    key=_key(item),
                    sample=sample_id(item.video),
                    state="failed",
                    kind=culprits[item.position].kind,
                    reason=str(culprits[item.position]),
                    path=str(item.path or ""),
                    source=_state(item),
                    attempts=culprits[item.position].num_deaths,
                    when=now(),
                )
                for unit in lost
                for item in unit.items
                if item.position in culprits
            )
        units = lost


def _find_culprits(lost: Sequence[_Unit], job: _Job, hands: _Hands) -> dict[int, WorkerDied]:
    """Try each video of the lost shards by itself; those that end their process again become faults."""
    items = [item for unit in lost for item in unit.items if item.position not in job.condemned]
    apart = replace(hands, workers=max(hands.workers, 2))
    with closing(apart.run(items, partial(_try, job=job))) as outcomes:
        culprits = {
            outcome.unit.position: outcome.error for outcome in outcomes if isinstance(outcome.error, WorkerDied)
        }
    if not culprits:
        names = ", ".join(unit.name for unit in lost)
        raise VidprepError(
            f"{names}: the process that writes it dies, though each of its videos passes alone; "
            "with too little memory, use fewer --workers and run the same command again."
        )
    return culprits


def _try(item: _Item, job: _Job) -> None:
    try:
        with _LongVideo() as long_video:
            _prepare(item, job, long_video)
    except SAMPLE_FAULTS:
        return  # a fault like any other, which the shard will report


SAMPLE_FAULTS = (VidprepError, OSError, ValueError, MemoryError)
"""What a single video can be blamed for."""


def _write_shard(unit: _Unit, job: _Job) -> list[Entry]:
    """Write one shard, its index, then its sidecar, which says that it is finished; what the ledger is to note."""
    store = job.store
    store.remove(_sidecar(unit))
    rows: list[SampleRow] = []
    faults: list[tuple[Fault, list[int] | None]] = []
    entries: list[Entry] = []
    facts: ShardFacts | None = None
    with _LongVideo() as long_video:
        samples = _checked(unit, job, long_video, faults, entries)
        first = next(samples, None)
        if first is not None:
            with store.publish(unit.name) as stream, TarWriter(stream) as tar:
                rows += [_add_sample(tar, sample, shard=unit.name) for sample in chain([first], samples)]
                facts = tar.finish(unit.name, num_samples=len(rows))
    if facts is None:
        # Every video is a fault now; what an earlier run wrote is no shard any more.
        for name in (unit.name, _dali_name(unit)):
            store.remove(name)
    else:
        _write_dali_index(unit, job, rows)
    header = _Finished(
        plan_sha256=job.plan_sha256,
        shard=facts,
        faults=tuple(fault for fault, _ in faults),
        sources=tuple(source for _, source in faults),
    )
    with store.publish(_sidecar(unit)) as stream:
        for line in (asdict(header), *map(row_to_dict, rows)):
            stream.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
    return entries


def _write_dali_index(unit: _Unit, job: _Job, rows: Sequence[SampleRow]) -> None:
    with job.store.publish(_dali_name(unit)) as stream:
        stream.write(dali_index(rows).encode())


def _write_lost_indices(units: Sequence[_Unit], job: _Job) -> None:
    """Write the indices that somebody removed, or that an earlier vidprep did not write, from the sidecars."""
    sizes = job.store.sizes()
    for unit in units:
        if unit.name in sizes and _dali_name(unit) not in sizes:
            _write_dali_index(unit, job, _read_sidecar(unit, job)[1])


def _checked(
    unit: _Unit,
    job: _Job,
    long_video: "_LongVideo",
    faults: list[tuple[Fault, list[int] | None]],
    entries: list[Entry],
) -> Iterator[_Sample]:
    """The samples of a shard, one after the other; what cannot be one is added to `faults`, with its file's state.

    What the ledger is to note is added to `entries`.
    """
    for item in unit.items:
        begin_part(str(item.position))
        state = _state(item)
        started = time.perf_counter()
        entry = Entry(key=_key(item), sample=sample_id(item.video), state="done", path=str(item.path or ""), attempts=1)
        try:
            sample = _prepare(item, job, long_video)
        except (CannotWrite, StoreUnreachable):
            raise
        except SAMPLE_FAULTS as error:
            # The path has its own column.
            reason = _reason(error).removeprefix(f"{item.path}: ").removeprefix(f"{item.path}/")
            kind = kind_of(error)
            fault = Fault(video_id=sample_id(item.video), reason=reason, path=str(item.path or ""), kind=kind)
            faults.append((fault, state))
            entry = replace(entry, state="failed", kind=kind, reason=reason, source=state)
        if item.position not in job.condemned:  # those have their entry
            entries.append(replace(entry, seconds=round(time.perf_counter() - started, 3), when=now()))
        if entry.state == "done":
            yield sample


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
    """A tar archive in the plain USTAR form, the same bytes for the same members; its checksum as it is written.

    The checksum is computed by a thread of its own while the next bytes are written; use it in a `with` block.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._sha256 = hashlib.sha256()
        self._num_bytes = 0
        self._waiting = bytearray()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sha256")
        self._hashed: deque[Future[None]] = deque()

    def add(self, name: str, content: bytes) -> int:
        """Append a member; where its content begins, in bytes from the start."""
        self._put(_tar_header(name, len(content)))
        offset = self._num_bytes
        self._put(content)
        if padding := -len(content) % tarfile.BLOCKSIZE:
            self._put(bytes(padding))
        return offset

    def finish(self, name: str, *, num_samples: int) -> ShardFacts:
        """Write the end of the archive; the facts of the shard."""
        self._put(bytes(2 * tarfile.BLOCKSIZE))
        self._put(bytes(-self._num_bytes % tarfile.RECORDSIZE))
        self._flush()
        for future in self._hashed:
            future.result()
        self._hashed.clear()
        return ShardFacts(
            name=name, num_samples=num_samples, num_bytes=self._num_bytes, sha256=self._sha256.hexdigest()
        )

    def _put(self, content: bytes) -> None:
        self._num_bytes += len(content)
        # Small pieces are gathered, for each write and each hand-over costs more than copying them; large ones are not.
        if len(content) >= LARGE_BYTES:
            self._flush()
            self._write(content)
        else:
            self._waiting += content
            if len(self._waiting) >= GATHERED_BYTES:
                self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._write(self._waiting)
            self._waiting = bytearray()

    def _write(self, content: bytes | bytearray) -> None:
        if len(self._hashed) >= MAX_UNHASHED:
            self._hashed.popleft().result()
        self._hashed.append(self._thread.submit(self._sha256.update, content))
        self._stream.write(content)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)


LARGE_BYTES, GATHERED_BYTES = 1 << 17, 1 << 20
MAX_UNHASHED = 4
"""Pieces that wait for their checksum; they are in memory."""


def _tar_header(name: str, num_bytes: int) -> bytes:
    """The header of a plain file in the USTAR form.

    No owner, no time: they would differ from run to run. As `tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT)` at a
    tenth of its time, and the same with every version of Python.
    """
    encoded = name.encode("ascii")
    if len(encoded) > tarfile.LENGTH_NAME:
        raise ValueError(f"{name}: the name of a member has at most {tarfile.LENGTH_NAME} letters, got {len(encoded)}")
    start = encoded.ljust(tarfile.LENGTH_NAME, b"\0") + b"0000644\0%s%011o\0" % (b"0000000\0" * 2, num_bytes)
    # The checksum is that of the header with blanks in its place.
    checksum = sum(start) + HEADER_REST_SUM
    return start + HEADER_MTIME + b"%06o\0 " % checksum + HEADER_END


HEADER_MTIME = b"%011o\0" % 0
HEADER_END = (b"0" + bytes(100) + b"ustar\x0000").ljust(tarfile.BLOCKSIZE - 156, b"\0")
HEADER_REST_SUM = sum(HEADER_MTIME) + 8 * ord(" ") + sum(HEADER_END)


# Samples


class _LongVideo:
    """The video whose segments are being cut: it stays open, with its packets, until one of another video comes."""

    def __init__(self) -> None:
        self._reader: PyavReader | None = None
        self._opened: tuple[Location, list[int] | None] | None = None
        self._fault: CorruptVideo | None = None

    def open(self, path: Location) -> PyavReader:
        """The opened video.

        Raises:
            MissingVideo, CorruptVideo: it does not open; asked again, it says so without another look.
        """
        wanted = (path, url_state(path) if isinstance(path, str) else source_state(path))
        if wanted != self._opened:
            self.close()
            self._opened = wanted
            try:
                source = _read_whole(path) if isinstance(path, str) else path
                self._reader = PyavReader(source, kept_packet_bytes=KEPT_PACKET_BYTES)
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
    """A checked sample in memory; raises one of `SAMPLE_FAULTS` with the reason why it cannot be one."""
    if item.position in job.condemned:
        raise job.condemned[item.position]
    if item.reason or item.path is None:
        raise MissingVideo(item.reason)
    if item.frames is not None:
        return _sample_from_frames(item, Path(item.path), item.frames, job)
    if job.delivered is not None and job.settings is not None:
        return _sample_from_folder(item, Path(item.path), job, job.settings, job.delivered)
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


def _read_whole(path: Location) -> bytes:
    """A file's content.

    Raises:
        MissingVideo: it is gone.
        CorruptVideo: it is empty, too large for a tar, or changed while it was read.
        StoreUnreachable: it lies in an object store that does not answer.
    """
    before = url_state(path) if isinstance(path, str) else source_state(path)
    if before is None:
        raise MissingVideo("no file found for it")
    if before[0] == 0:
        raise EmptyVideo("is empty (0 bytes); fetch it again")
    if before[0] > MAX_MEMBER_BYTES:
        raise CorruptVideo(f"has {before[0]} bytes; a tar holds files of at most {MAX_MEMBER_BYTES}")
    data = read_url(path) if isinstance(path, str) else path.read_bytes()
    # A store hands out one version of an object, whole.
    is_other = isinstance(path, Path) and source_state(path) != before
    if is_other or len(data) != before[0]:
        raise CorruptVideo("changed while it was read; run the same command again when it is complete")
    return data


def _decode_all(data: bytes) -> VideoFacts:
    return check(data)


def _open_only(data: bytes) -> VideoFacts:
    return probe(data)


def _sample_from_video(item: _Item, path: Location, data: bytes, job: _Job) -> _Sample:
    facts = job.measure(data)
    start = item.video.start_seconds or 0.0
    if start >= facts.duration_seconds:
        raise WrongLength(f"the segment begins at {start:g} s, the video ends at {facts.duration_seconds:.3f} s")
    row = _row(
        item,
        job,
        num_frames=facts.num_frames,
        fps=facts.fps,
        size=(facts.width, facts.height),
        duration_seconds=facts.duration_seconds,
        segment=(item.video.start_seconds, item.video.end_seconds),
    )
    suffix = PurePosixPath(path).suffix.lower().removeprefix(".")
    # A reader needs some suffix, and "json" is taken.
    is_fit = suffix.isalnum() and suffix.isascii() and len(suffix) <= MAX_SUFFIX_LENGTH and suffix != "json"
    name = suffix if is_fit else "video"
    return _Sample(row=row, info=_info(row, item, job), members=[(name, data)])


def _sample_from_decoding(item: _Item, data: bytes, job: _Job, settings: FrameFormat) -> _Sample:
    job.measure(data)
    with open_frames(data, item.video, settings) as (facts, images):
        return _frame_sample(item, facts, list(images), job)


def _sample_from_segment(
    item: _Item, path: Location, job: _Job, settings: FrameFormat, long_video: _LongVideo
) -> _Sample:
    """The frames of a segment; what lies outside of it is neither decoded nor checked."""
    before = None if isinstance(path, str) else source_state(path)
    facts, images = frames_of(long_video.open(path), item.video, settings)
    encoded = list(images)
    if isinstance(path, Path) and source_state(path) != before:
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


def _read_sidecar(unit: _Unit, job: _Job) -> tuple[_Finished, list[SampleRow]]:
    """What the sidecar of a finished shard says.

    Raises:
        CorruptShard: it is cut short or no sidecar.
    """
    name = f"{job.store}/{_sidecar(unit)}"
    try:
        # Not `splitlines`: names may hold what Unicode takes for the end of a line.
        first, *lines = job.store.read(_sidecar(unit)).decode().removesuffix("\n").split("\n")
        header = _parse_header(first)
        rows = [row_from_dict(json.loads(line)) for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptShard(
            f"{name}: cut short or changed ({error}); remove it and run the same command again."
        ) from error
    expected = 0 if header.shard is None else header.shard.num_samples
    if len(rows) != expected:
        raise CorruptShard(
            f"{name}: cut short or changed ({len(rows)} samples instead of {expected}); "
            "remove it and run the same command again."
        )
    return header, rows


def _headers(units: Sequence[_Unit], job: _Job) -> list[_Finished]:
    heads = job.store.heads([_sidecar(unit) for unit in units])
    return [_parse_header(heads[_sidecar(unit)]) for unit in units]


def _publish(split: Split, units: Sequence[_Unit], job: _Job, plan: Mapping[str, Any]) -> Manifest:
    """Write the table of samples, the lists of shards and of faults and, as the last, the manifest: from the sidecars.

    Raises:
        CorruptShard: a sidecar is cut short.
    """
    headers: list[_Finished] = []

    def samples() -> Iterator[list[SampleRow]]:
        for unit in units:
            header, rows = _read_sidecar(unit, job)
            headers.append(header)
            yield rows

    with job.store.publish(f"{split.split}.parquet") as stream:
        write_samples(stream, samples())
    manifest = _manifest(split, headers, job, plan, num_videos=len(split.videos))
    with job.store.publish(f"{split.split}.faults.csv") as stream:
        stream.write(faults_to_csv(manifest.faults).encode())
    with job.store.publish(f"{split.split}.wids.json") as stream:
        stream.write(wids_index(manifest).encode())
    with job.store.publish(f"{split.split}.json") as stream:
        stream.write(manifest.to_json().encode())
    return manifest


def _manifest(
    split: Split, headers: Sequence[_Finished], job: _Job, plan: Mapping[str, Any], *, num_videos: int
) -> Manifest:
    info = DATASETS.get(split.dataset)
    names = ("source", "samples_per_shard", "shard_bytes", "check", "frames", "delivered", "has_boxes")
    return Manifest(
        dataset=split.dataset,
        split=split.split,
        task=split.task,
        classes=split.classes,
        noun_classes=split.noun_classes,
        content=job.content,
        settings={name: plan[name] for name in names if name in plan},
        num_videos=num_videos,
        shards=tuple(header.shard for header in headers if header.shard is not None),
        faults=tuple(fault for header in headers for fault in header.faults),
        flip_pairs={} if info is None else {str(label): to for label, to in info.flip_pairs.items()},
    )
