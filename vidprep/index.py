"""What a folder of shards says about itself: a manifest (JSON) and a table of samples (Parquet) per split.

    OUT/val-000000.tar   the shard: members KEY.json and KEY.mp4, or KEY.00001.jpg, KEY.00002.jpg, ...
    OUT/val-000000.idx   the same shard for DALI's `readers.webdataset(index_paths=...)`
    OUT/val.json         the manifest: data set, classes, settings, SHA-256 of each shard, faults
    OUT/val.parquet      one row a sample: labels, measured facts, and where each of its members lies
    OUT/val.wids.json    the list of shards for `wids.ShardListDataset`

With the offsets a loader reads any sample by one `seek`; plain WebDataset readers need only the tars. OUT is a folder,
or the URL of one in an object store.
"""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from vidprep.errors import CorruptShard, UnknownName, UsageError, suggest
from vidprep.store import Location, Store, open_store
from vidprep.types import Task, Video

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Fault",
    "Manifest",
    "Member",
    "SampleRow",
    "ShardFacts",
    "dali_index",
    "faults_to_csv",
    "folder_name",
    "list_splits",
    "read_manifest",
    "read_samples",
    "row_from_dict",
    "row_to_dict",
    "sample_id",
    "samples_to_frame",
    "wids_index",
    "write_samples",
]

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Member:
    """One file of a sample inside its shard."""

    name: str
    """What follows the key and its dot: "json", "mp4", "00001.jpg"."""
    offset: int
    """Of the data (not the tar header), in bytes from the shard's start."""
    size: int


@dataclass(frozen=True, kw_only=True)
class SampleRow:
    """One sample: what it shows, what was measured on it, and where it lies."""

    key: str
    video_id: str
    labels: tuple[int, ...]
    """As in the split: class indices; (verb, noun) for verb_noun; () for detection."""
    shard: str
    num_frames: int
    """Frames of the video (video shards) or of the sample (frame shards)."""
    fps: float
    """Average rate measured from the time stamps; NaN where a video has one frame only."""
    width: int
    height: int
    duration_seconds: float
    start_seconds: float | None
    """Annotated segment inside the video; None means all of it."""
    end_seconds: float | None
    members: tuple[Member, ...]
    segment_id: str = ""
    """The publisher's own name of the segment, "" where there is none."""


@dataclass(frozen=True, kw_only=True)
class ShardFacts:
    """One finished shard."""

    name: str
    num_samples: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A video of the split that is in no shard, and why."""

    video_id: str
    """Of a segment with a name of its own: that name."""
    reason: str
    path: str = ""
    kind: str = ""
    """One of `errors.FaultKind`; "" in manifests of an earlier vidprep."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What one split's shards hold."""

    dataset: str
    split: str
    task: Task
    classes: tuple[str, ...]
    content: Literal["video", "frames"]
    settings: Mapping[str, Any]
    num_videos: int
    """Videos of the split; samples and faults add up to it."""
    shards: tuple[ShardFacts, ...]
    faults: tuple[Fault, ...] = ()
    format: str = "vidprep-shards"
    version: int = FORMAT_VERSION
    flip_pairs: Mapping[str, int] = field(default_factory=dict)
    """Class (as text, for JSON) -> class that a horizontal flip turns it into."""
    noun_classes: tuple[str, ...] = ()
    """The nouns of verb_noun, by index; `classes` are its verbs."""

    def to_json(self) -> str:
        """The manifest as the text of its file."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"


def list_splits(folder: Location | Store) -> list[str]:
    """Names of the splits whose manifests lie in `folder`."""
    names = open_store(folder).sizes()
    return sorted(
        name.removesuffix(".json")
        for name in names
        if name.endswith(".json") and f"{name.removesuffix('.json')}.parquet" in names
    )


def read_manifest(folder: Location | Store, split: str | None = None) -> Manifest:
    """The manifest of one split of a shard folder; `split` may be left out where there is only one.

    Raises:
        UsageError: no such folder, no such split, or several and none named.
        CorruptShard: the manifest cannot be read.
    """
    store = open_store(folder)
    if not store.exists():
        raise UsageError(f"{store}: no such folder; give the folder that `vidprep shard --out` wrote.")
    splits = list_splits(store)
    if not splits:
        raise UsageError(f"{store}: no finished shards here (no SPLIT.json with SPLIT.parquet); run `vidprep shard`.")
    if split is None:
        if len(splits) > 1:
            raise UsageError(f"{store} holds the splits {', '.join(splits)}; say which with --split.")
        split = splits[0]
    if split not in splits:
        raise UnknownName(f"{store}: no split {split!r}; {suggest(split, splits)}")
    path = f"{store}/{split}.json"
    try:
        raw = json.loads(store.read(f"{split}.json").decode("utf-8"))
        if raw.get("format") != "vidprep-shards" or raw.get("version") != FORMAT_VERSION:
            raise CorruptShard(
                f"{path}: expected a vidprep-shards manifest of version {FORMAT_VERSION}, "
                f"got {raw.get('format')!r} version {raw.get('version')!r}; write the shards again."
            )
        raw["classes"] = tuple(raw["classes"])
        raw["noun_classes"] = tuple(raw.get("noun_classes", ()))
        raw["shards"] = tuple(ShardFacts(**shard) for shard in raw["shards"])
        for shard in raw["shards"]:
            if Path(shard.name).name != shard.name:
                raise CorruptShard(f"{path}: a shard lies beside its manifest, got the name {shard.name!r}.")
        raw["faults"] = tuple(Fault(**fault) for fault in raw["faults"])
        return Manifest(**raw)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CorruptShard(f"{path}: not a readable manifest ({error}); write the shards again.") from error


def sample_id(row: Video | SampleRow) -> str:
    """What a sample is called in reports and batches: the segment's own name, where it has one, else its video's."""
    return row.segment_id or row.video_id


def folder_name(video: Video) -> str:
    """Where the frames of a video lie below the folder of a split: its id, and its segment where it has one.

    A segment that has a name of its own is called by that.
    """
    if video.segment_id:
        return video.segment_id
    if video.start_seconds is None and video.end_seconds is None:
        return video.video_id
    end = "end" if video.end_seconds is None else f"{video.end_seconds:.3f}"
    return f"{video.video_id}@{video.start_seconds or 0.0:.3f}-{end}"


def samples_to_frame(samples: Sequence[SampleRow]) -> "pd.DataFrame":
    """The samples as a table, one row each, in order."""
    import pandas as pd

    return pd.DataFrame([asdict(sample) for sample in samples])


def write_samples(stream: IO[bytes], shards: Iterable[Sequence[SampleRow]]) -> int:
    """Write the table of samples, one shard after the other, in memory for one; how many samples there are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    member = pa.struct([("name", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])
    schema = pa.schema(
        [
            ("key", pa.string()),
            ("video_id", pa.string()),
            ("labels", pa.list_(pa.int64())),
            ("shard", pa.string()),
            ("num_frames", pa.int64()),
            ("fps", pa.float64()),
            ("width", pa.int64()),
            ("height", pa.int64()),
            ("duration_seconds", pa.float64()),
            ("start_seconds", pa.float64()),
            ("end_seconds", pa.float64()),
            ("members", pa.list_(member)),
            ("segment_id", pa.string()),
        ]
    )
    num_samples = 0
    with pq.ParquetWriter(stream, schema) as writer:
        for samples in shards:
            # Column by column: of a hundred thousand samples a dictionary for each member takes a quarter of a minute.
            members = [member for sample in samples for member in sample.members]
            ends = accumulate((len(sample.members) for sample in samples), initial=0)
            structs = pa.StructArray.from_arrays(
                [pa.array([getattr(one, field.name) for one in members], field.type) for field in member],
                fields=list(member),
            )
            columns = [
                pa.ListArray.from_arrays(pa.array(ends, pa.int32()), structs)
                if name == "members"
                else pa.array([getattr(sample, name) for sample in samples], schema.field(name).type)
                for name in schema.names
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
            num_samples += len(samples)
    return num_samples


def read_samples(folder: Location | Store, split: str) -> list[SampleRow]:
    """The samples of one split, in the split's order.

    Raises:
        CorruptShard: the table cannot be read.
    """
    import pandas as pd

    store = open_store(folder)
    path = f"{store}/{split}.parquet"
    try:
        table = pd.read_parquet(io.BytesIO(store.read(f"{split}.parquet")))
        rows: list[dict[Any, Any]] = table.to_dict("records")
        return [row_from_dict(row) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptShard(f"{path}: not a readable table of samples ({error}); write the shards again.") from error


def dali_index(samples: Sequence[SampleRow]) -> str:
    """Where the members of a shard's samples lie, for DALI's `readers.webdataset(index_paths=...)`.

    A line with the version and the number of samples, then for each sample "name offset size file" of its members.

    Source: `wds2idx.py` of nvidia-dali 2.4, version v1.2 of the format.
    """
    lines = [f"v1.2 {len(samples)}"]
    lines += [
        " ".join(f"{member.name} {member.offset} {member.size} {row.key}.{member.name}" for member in row.members)
        for row in samples
    ]
    return "\n".join(lines) + "\n"


def wids_index(manifest: Manifest) -> str:
    """The shards of a split, by names beside this list, for `wids.ShardListDataset`.

    Source: `wids_specs.py` of wids 0.1.11, version 1 of the format.
    """
    shards = [
        {"url": shard.name, "nsamples": shard.num_samples, "filesize": shard.num_bytes} for shard in manifest.shards
    ]
    content = {"wids_version": 1, "name": f"{manifest.dataset}-{manifest.split}", "shardlist": shards}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def faults_to_csv(faults: Sequence[Fault]) -> str:
    """The faults as a table to open in any program: video_id,reason,path,kind."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["video_id", "reason", "path", "kind"])
    writer.writerows((fault.video_id, fault.reason, fault.path, fault.kind) for fault in faults)
    return text.getvalue()


def row_to_dict(row: SampleRow) -> dict[str, Any]:
    """The fields of a sample; as `dataclasses.asdict`, which copies each value, in a tenth of its time."""
    return {**vars(row), "members": [vars(member) for member in row.members]}


def row_from_dict(row: Mapping[Any, Any]) -> SampleRow:
    """A sample from its fields as a table or JSON holds them."""
    values = dict(row)
    values["labels"] = tuple(int(label) for label in values["labels"])
    values["members"] = tuple(Member(**member) for member in values["members"])
    for name in ("start_seconds", "end_seconds"):
        values[name] = None if values[name] is None or math.isnan(values[name]) else float(values[name])
    return SampleRow(**values)
