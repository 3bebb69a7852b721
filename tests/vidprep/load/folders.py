"""Small shard folders as `vidprep shard` writes them, made directly, so that tests can also make them wrong."""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import simplejpeg

from tests.videos import write_numbered_video
from vidprep.decode import open_video
from vidprep.index import Manifest, Member, SampleRow, ShardFacts, samples_to_frame
from vidprep.sampling import frames_between
from vidprep.types import Task, Video

__all__ = ["Source", "numbered_sources", "write_shard_folder"]

SIDE = 96
"""Frames are squares of this side, so that a crop of it keeps the whole number."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A video with its file."""

    video: Video
    path: Path


def numbered_sources(folder: Path, videos: Sequence[Video], *, num_frames: int = 40) -> list[Source]:
    """A file for each video; frame i of the k-th one shows 100 * k + i, at 10 frames per second."""
    return [
        Source(
            video=video,
            path=write_numbered_video(
                folder / f"{video.video_id}.mp4", num_frames=num_frames, fps=10, width=SIDE, height=SIDE, start=100 * k
            ),
        )
        for k, video in enumerate(videos)
    ]


def write_shard_folder(
    folder: Path,
    sources: Sequence[Source],
    *,
    task: Task = "single_label",
    num_classes: int = 8,
    content: Literal["video", "frames"] = "video",
    split: str = "train",
    per_shard: int = 2,
    flip_pairs: Mapping[int, int] | None = None,
    num_noun_classes: int = 0,
) -> Path:
    """Write tars, table and manifest of one split."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[SampleRow] = []
    shards: list[ShardFacts] = []
    for number, first in enumerate(range(0, len(sources), per_shard)):
        name = f"{split}-{number:06d}.tar"
        part = {f"{first + i:08d}": source for i, source in enumerate(sources[first : first + per_shard])}
        members = {key: _members(source, content) for key, source in part.items()}
        with tarfile.open(folder / name, "w", format=tarfile.USTAR_FORMAT) as tar:
            for key, files in members.items():
                for suffix, data in files.items():
                    info = tarfile.TarInfo(f"{key}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        with tarfile.open(folder / name) as tar:
            places = {info.name: (info.offset_data, info.size) for info in tar}
        for key, source in part.items():
            with open_video(source.path) as reader:
                rows.append(
                    SampleRow(
                        key=key,
                        video_id=source.video.video_id,
                        labels=source.video.labels,
                        shard=name,
                        num_frames=reader.num_frames if content == "video" else len(members[key]) - 1,
                        fps=10.0,
                        width=reader.width,
                        height=reader.height,
                        duration_seconds=reader.num_frames / 10,
                        start_seconds=source.video.start_seconds if content == "video" else None,
                        end_seconds=source.video.end_seconds if content == "video" else None,
                        members=tuple(
                            Member(name=suffix, offset=places[f"{key}.{suffix}"][0], size=places[f"{key}.{suffix}"][1])
                            for suffix in members[key]
                        ),
                    )
                )
        data = (folder / name).read_bytes()
        shards.append(
            ShardFacts(name=name, num_samples=len(part), num_bytes=len(data), sha256=sha256(data).hexdigest())
        )
    manifest = Manifest(
        dataset="numbers",
        split=split,
        task=task,
        classes=tuple(f"class {k}" for k in range(num_classes)),
        content=content,
        settings={},
        num_videos=len(sources),
        shards=tuple(shards),
        flip_pairs={str(label): flipped for label, flipped in (flip_pairs or {}).items()},
        noun_classes=tuple(f"noun {k}" for k in range(num_noun_classes)) if task == "verb_noun" else (),
    )
    samples_to_frame(rows).to_parquet(folder / f"{split}.parquet")
    (folder / f"{split}.json").write_text(manifest.to_json(), encoding="utf-8")
    return folder


def _members(source: Source, content: Literal["video", "frames"]) -> dict[str, bytes]:
    video = source.video
    facts: dict[str, Any] = {"video_id": video.video_id, "labels": video.labels}
    if content == "video":
        return {"json": json.dumps(facts).encode(), "mp4": source.path.read_bytes()}
    with open_video(source.path) as reader:
        indices = frames_between(reader.pts_seconds, video.start_seconds, video.end_seconds)
        frames = reader.get_frames_at(indices).data.transpose(0, 2, 3, 1)
        facts["pts_seconds"] = reader.pts_seconds[indices].tolist()
    encoded = [simplejpeg.encode_jpeg(np.ascontiguousarray(frame), quality=95) for frame in frames]
    members = {f"{number:05d}.jpg": data for number, data in enumerate(encoded, start=1)}
    return {"json": json.dumps(facts).encode(), **members}
