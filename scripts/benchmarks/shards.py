"""Members to tar shards: vidprep, which computes checksum and indices on the way, against Python's plain `tarfile`.

Both write the same members to a disk, under another name first, call fsync, and rename. The clock is that of the wall,
since our checksum is computed beside the writing, by a thread of its own.
"""

import io
import tarfile
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from scripts.benchmarks.runner import Ratio, Side, compare, measure, print_rates
from vidprep.engine import publish
from vidprep.index import Member, SampleRow, dali_index
from vidprep.shard import TarWriter

__all__ = ["measure_shards"]

Members = Sequence[tuple[str, bytes]]
NUM_FRAME_SAMPLES, NUM_FRAMES, FRAME_BYTES = 500, 8, 16_000
NUM_VIDEO_SAMPLES, VIDEO_BYTES = 140, 450_000
INFO_BYTES = 900
"""Of KEY.json."""


def measure_shards(_clips: Sequence[Path], _folder: Path, rounds: int) -> dict[str, Ratio]:
    """A shard of frames (8 JPEGs a sample) and one of ten-second videos, 64 MB each."""
    rng = np.random.default_rng(0)
    info = ("json", rng.bytes(INFO_BYTES))
    shards = {
        "frames": [
            [info, *((f"{number:05d}.jpg", rng.bytes(FRAME_BYTES)) for number in range(1, NUM_FRAMES + 1))]
            for _ in range(NUM_FRAME_SAMPLES)
        ],
        "videos": [[info, ("mp4", rng.bytes(VIDEO_BYTES))] for _ in range(NUM_VIDEO_SAMPLES)],
    }
    with tempfile.TemporaryDirectory() as folder:  # on a disk, not in memory

        def write_with_vidprep() -> int:
            return sum(_write_shard(samples, Path(folder) / name) for name, samples in shards.items())

        def write_with_tarfile() -> int:
            return sum(_write_plainly(samples, Path(folder) / name) for name, samples in shards.items())

        sides = [Side(name="vidprep", run=write_with_vidprep), Side(name="tarfile", run=write_with_tarfile)]
        rates = measure(sides, rounds=rounds, clock=time.perf_counter)
        _refuse_others(Path(folder), shards)
    megabytes = {name: [rate / 1e6 for rate in of_side] for name, of_side in rates.items()}
    print_rates("shards of frames and of videos to a disk", megabytes, unit="MB / s")
    return {"shards_vs_tarfile": compare(rates["vidprep"], rates["tarfile"])}


def _write_shard(samples: Sequence[Members], stem: Path) -> int:
    """As `vidprep shard` writes a shard, less the sidecar: the tar with its checksum, then DALI's index."""
    path = stem.with_suffix(".tar")
    rows: list[SampleRow] = []
    with publish(path) as stream, TarWriter(stream) as tar:
        for position, members in enumerate(samples):
            key = f"{position:08d}"
            placed = tuple(
                Member(name=name, offset=tar.add(f"{key}.{name}", content), size=len(content))
                for name, content in members
            )
            rows.append(_row(key, placed))
        facts = tar.finish(path.name, num_samples=len(rows))
    with publish(stem.with_suffix(".idx")) as stream:
        stream.write(dali_index(rows).encode())
    return facts.num_bytes


def _row(key: str, members: tuple[Member, ...]) -> SampleRow:
    return SampleRow(
        key=key,
        video_id=key,
        labels=(0,),
        shard="",
        num_frames=NUM_FRAMES,
        fps=30.0,
        width=341,
        height=256,
        duration_seconds=10.0,
        start_seconds=None,
        end_seconds=None,
        members=members,
    )


def _write_plainly(samples: Sequence[Members], stem: Path) -> int:
    path = stem.with_name(f"{stem.name}-plain.tar")
    with publish(path) as stream, tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for position, members in enumerate(samples):
            for name, content in members:
                header = tarfile.TarInfo(f"{position:08d}.{name}")
                header.size = len(content)
                archive.addfile(header, io.BytesIO(content))
    return path.stat().st_size


def _refuse_others(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        if (folder / f"{name}.tar").read_bytes() != (folder / f"{name}-plain.tar").read_bytes():
            raise RuntimeError(f"{name}: the two sides wrote different archives")
