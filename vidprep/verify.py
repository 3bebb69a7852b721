"""Is everything there and whole? Of a folder of shards, byte by byte; of a data set's videos, frame by frame."""

import hashlib
import json
import tarfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from vidprep.engine import run
from vidprep.errors import CorruptShard, CorruptVideo, MissingVideo, UsageError, VidprepError
from vidprep.index import Fault, SampleRow, ShardFacts, list_splits, read_manifest, read_samples
from vidprep.splits import Split

__all__ = ["ShardsReport", "SplitReport", "VideosReport", "verify_shards", "verify_videos"]

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
class VideosReport:
    """The video files of a split."""

    dataset: str
    split: str
    num_listed: int
    """Different videos of the split's list."""
    num_published: int | None
    """As the data set's publisher counts them."""
    num_sound: int
    num_frames: int
    """Of the sound videos together."""
    faults: tuple[Fault, ...]

    @property
    def coverage(self) -> str:
        """How much of the data set is there, in one sentence for a paper's appendix."""
        share = 100 * self.num_sound / self.num_listed
        sentence = f"{self.dataset}/{self.split}: {self.num_sound} of {self.num_listed} listed videos ({share:.1f} %)"
        if self.num_published is not None:
            sentence += f"; published: {self.num_published}"
        return sentence

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps({"coverage": self.coverage, **asdict(self)}, indent=1, ensure_ascii=False) + "\n"

    def to_text(self) -> str:
        """The report in lines: one for each fault, the coverage last."""
        lines = [f"{fault.video_id}: {fault.reason}" for fault in self.faults]
        return "\n".join([*lines, self.coverage])


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB"


# Shards


def verify_shards(
    folder: Path, split: str | None = None, *, workers: int = 1, progress: str | None = None
) -> ShardsReport:
    """Read every byte of every shard and compare it with the manifest and the table of samples.

    Args:
        folder: what `vidprep shard --out` wrote.
        split: only this one; None verifies all splits of the folder.
        workers: processes.
        progress: shown while it runs; None shows nothing.

    Raises:
        UsageError: no such folder or split, or no shards in it.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; give the folder that `vidprep shard --out` wrote.")
    finished = list_splits(folder)
    begun = {path.name.removesuffix(".plan.json") for path in folder.glob("*.plan.json")}
    names = sorted({*finished, *begun}) if split is None else [split]
    if not names:
        raise UsageError(f"{folder}: no shards here (no SPLIT.json with SPLIT.parquet); run `vidprep shard`.")
    reports = [
        _unfinished(folder, name)
        if name in begun and name not in finished
        else _verify_split(folder, name, workers, progress)
        for name in names
    ]
    return ShardsReport(folder=str(folder), splits=tuple(reports))


def _unfinished(folder: Path, split: str) -> SplitReport:
    num_shards = len(list(folder.glob(f"{split}-[0-9]*.tar")))
    return _report(
        split, [f"{split}.json: missing, {num_shards} shards are there; run the same `vidprep shard` command again"]
    )


def _report(split: str, problems: Sequence[str]) -> SplitReport:
    return SplitReport(
        split=split, num_shards=0, num_samples=0, num_bytes=0, num_videos=0, faults=(), problems=tuple(problems)
    )


def _verify_split(folder: Path, split: str, workers: int, progress: str | None) -> SplitReport:
    try:
        manifest = read_manifest(folder, split)
        samples = read_samples(folder, split)
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
    units = [(shard, tuple(by_shard[shard.name])) for shard in manifest.shards]
    description = f"{progress} {split}" if progress is not None else None
    found: dict[str, str] = {}
    with closing(run(units, partial(_check_shard, folder=folder), workers=workers, progress=description)) as outcomes:
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
    )


def _check_shard(unit: tuple[ShardFacts, tuple[SampleRow, ...]], folder: Path) -> str | None:
    """What is wrong with a shard, in one sentence; None when nothing is."""
    shard, rows = unit
    path = folder / shard.name
    try:
        num_bytes = path.stat().st_size
        if num_bytes < shard.num_bytes:
            return f"{shard.name}: cut short, {num_bytes} of {shard.num_bytes} bytes"
        if num_bytes > shard.num_bytes:
            return f"{shard.name}: {num_bytes} bytes, {shard.num_bytes} expected; something was appended"
        sha256 = _sha256(path)
        if sha256 != shard.sha256:
            return f"{shard.name}: changed, SHA-256 {sha256[:12]}... instead of {shard.sha256[:12]}..."
        expected = [(f"{row.key}.{member.name}", member.offset, member.size) for row in rows for member in row.members]
        return _compare_members(path, expected)
    except FileNotFoundError:
        return f"{shard.name}: missing"
    except OSError as error:
        return f"{shard.name}: cannot be read ({error.strerror or error})"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _compare_members(path: Path, expected: Sequence[tuple[str, int, int]]) -> str | None:
    try:
        with tarfile.open(path, "r:") as archive:
            found = [(member.name, member.offset_data, member.size) for member in archive]
    except tarfile.TarError as error:
        return f"{path.name}: not readable as a tar ({error})"
    if found == list(expected):
        return None
    for there, listed in zip(found, expected, strict=False):
        if there != listed:
            return f"{path.name}: member {there} where the table of samples says {listed}"
    return f"{path.name}: {len(found)} members, the table of samples lists {len(expected)}"


# Videos


def verify_videos(
    split: Split,
    paths: Mapping[str, Path],
    *,
    check: Literal["decode", "open"] = "decode",
    num_published: int | None = None,
    workers: int = 1,
    progress: str | None = None,
) -> VideosReport:
    """Look at every video of a split: it exists, opens and decodes.

    Args:
        split: the videos; one with several segments counts once.
        paths: video_id -> file; videos that are not in it are missing.
        check: "decode" all of each video, or only "open" it and decode its first frame.
        num_published: the publisher's count, for the report.
        workers: processes.
        progress: shown while it runs; None shows nothing.

    Raises:
        UsageError: an empty split.
    """
    if not split.videos:
        raise UsageError(f"{split.dataset}/{split.split}: the split is empty, there is nothing to verify.")
    video_ids = list(dict.fromkeys(video.video_id for video in split.videos))
    units = [(video_id, paths.get(video_id)) for video_id in video_ids]
    reasons: dict[str, str] = {}
    num_frames = 0
    work = partial(_count_frames, check_mode=check)
    with closing(run(units, work, workers=workers, progress=progress)) as outcomes:
        for outcome in outcomes:
            if outcome.error is None:
                num_frames += outcome.result or 0
            elif isinstance(outcome.error, VidprepError):
                reasons[outcome.unit[0]] = str(outcome.error).rstrip(".")
            else:
                reasons[outcome.unit[0]] = f"{type(outcome.error).__name__}: {outcome.error}"
    return VideosReport(
        dataset=split.dataset,
        split=split.split,
        num_listed=len(video_ids),
        num_published=num_published,
        num_sound=len(video_ids) - len(reasons),
        num_frames=num_frames,
        faults=tuple(
            Fault(video_id=video_id, reason=reasons[video_id], path=str(path or ""))
            for video_id, path in units
            if video_id in reasons
        ),
    )


def _count_frames(unit: tuple[str, Path | None], check_mode: Literal["decode", "open"]) -> int:
    from vidprep.probe import check, probe

    _, path = unit
    if path is None:
        raise MissingVideo("no file found for it")
    try:
        return (check if check_mode == "decode" else probe)(path).num_frames
    except CorruptVideo as error:
        # The report names the video; its path would say so twice.
        raise CorruptVideo(str(error).removeprefix(f"{path}: ")) from error
