"""The same samples from WebDataset shards: any of them by one read, at the offset that the index holds.

A shard is read with `pread`, which has no position to share: threads, forked and spawned processes may
use one data set at the same time.
"""

import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import add
from pathlib import Path
from typing import Any, Unpack, overload

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from vidprep.decode import Backend, open_video
from vidprep.decode.jpeg import JpegReader
from vidprep.decode.types import VideoReader
from vidprep.errors import CorruptShard, CorruptVideo, UsageError
from vidprep.index import Manifest, Member, SampleRow, read_manifest, read_samples
from vidprep.load.dataset import ClipOptions, ClipSettings, SampleMaker, check_labels, position, reused_memory
from vidprep.load.facts import KeyFacts
from vidprep.load.remote import ShardCache, is_url
from vidprep.load.types import Allocate, Sample, new_frames
from vidprep.types import Video

__all__ = ["ShardDataset"]

logger = logging.getLogger(__name__)

READ_AHEAD_SHARDS = 2
"""Shards of a URL that are fetched before they are read."""

_MAX_BYTES_AT_ONCE = 512 * 1024
"""Frame samples up to this size are read at once, those of larger ones frame by frame, as they are wanted."""

_SAMPLES_AT_ONCE = 8
"""Samples of frames that a loader's thread reads before it decodes the first of them."""

_MAX_FREE_BLOCKS = 32
"""Blocks of so many bytes that are kept for the next samples."""

_MAX_OPEN_SHARDS = 256
"""Shards held open; further ones are opened for each read, far below the usual limit of 1024 files."""


class ShardDataset(Dataset[Sample]):
    """Clips of the samples of a shard folder, whether they hold videos or frames.

    `dataset[i]` is sample i of the epoch set by `set_epoch`, in the split's order; it may be read from threads.
    """

    def __init__(
        self,
        folder: Path | str,
        split: str | None = None,
        *,
        backend: Backend = "pyav",
        min_frames: int = 1,
        cache: ShardCache | None = None,
        shuffle_shards: int | None = None,
        **options: Unpack[ClipOptions],
    ) -> None:
        """Open one split.

        Args:
            folder: what `vidprep shard --out` wrote, or its URL (s3://, https://, ...): shards are then fetched into a
                cache on this machine when they are needed, and verified.
            split: may be left out where the folder holds only one.
            backend: decoder of videos; frames are always JPEG.
            min_frames: videos with fewer frames are left out, which the log says.
            cache: of a URL: where its shards are kept, and how many; None: `ShardCache(folder)`.
            shuffle_shards: shuffle so many shards at a time, in a random order of shards, instead of all samples: for
                shards that do not all fit into the cache. None: all samples.
            **options: the fields of `ClipSettings`.

        Raises:
            UsageError: no such folder or split, a split without samples, labels that do not fit its task,
                or a setting out of range.
            CorruptShard: a shard is missing or not as long as its index says; names it.
        """
        settings = ClipSettings(**options)
        if shuffle_shards is not None and shuffle_shards < 1:
            raise UsageError(f"shuffle_shards must be at least 1 or None, got {shuffle_shards}.")
        self.shuffle_shards = shuffle_shards
        self._cache = cache
        if is_url(folder):
            self._cache = cache or ShardCache(str(folder))
            if split is None:
                names = self._cache.list_splits()
                if len(names) != 1:
                    raise UsageError(f"{folder} holds the splits {', '.join(names) or 'none'}; say which.")
                split = names[0]
            self._cache.fetch_index(split)
        elif cache is not None:
            raise UsageError(f"a cache is for shards at a URL, got the folder {folder}.")
        self.folder = Path(folder) if self._cache is None else self._cache.folder
        self.manifest = read_manifest(self.folder, split)
        where = f"{self.folder}, split {self.manifest.split}"
        rows = read_samples(self.folder, self.manifest.split)
        if not rows:
            raise UsageError(
                f"{where}: the split holds no samples ({len(self.manifest.faults)} faults); see its report."
            )
        _check_table(self.folder, self.manifest, rows)
        rows = _long_enough(rows, min_frames, where=where)
        if self._cache is None:
            _check_files(self.folder, self.manifest)
        else:
            self._cache.use(self.manifest.shards)
        self.videos = [
            Video(
                video_id=row.video_id,
                labels=row.labels,
                start_seconds=row.start_seconds,
                end_seconds=row.end_seconds,
                segment_id=row.segment_id,
            )
            for row in rows
        ]
        num_classes = len(self.manifest.classes)
        check_labels(
            self.videos,
            task=self.manifest.task,
            num_classes=num_classes,
            num_noun_classes=len(self.manifest.noun_classes),
            where=where,
        )
        if self.manifest.task == "detection" and self.manifest.content == "video":
            raise UsageError(
                f"{where}: boxes lie beside frames, these are videos; use `vidprep shard --content frames`."
            )
        self.make = SampleMaker(
            settings=settings,
            task=self.manifest.task,
            num_classes=num_classes,
            flip_pairs={int(label): flipped for label, flipped in self.manifest.flip_pairs.items()},
        )
        self.backend: Backend = backend
        self.epoch = 0
        self._media = _MemberTable([[member for member in row.members if member.name != "json"] for row in rows])
        self._facts = _MemberTable([[member for member in row.members if member.name == "json"] for row in rows])
        self.rows = [replace(row, members=()) for row in rows]
        """What is known of each sample, without its members, which for frame shards are most of the memory."""
        self._files = _ShardFiles(self.folder, self._cache)
        self._name = str(self.folder)
        self._min_decoded_side = settings.min_decoded_side
        # Opening a video takes long, and needs memory for all of it.
        self.samples_at_once = _SAMPLES_AT_ONCE if self.manifest.content == "frames" else 1

    def set_epoch(self, epoch: int) -> None:
        """Choose the random clips, crops and flips of `epoch`, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.videos)

    def shuffled(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """A random order of all samples, or with `shuffle_shards` of those of so many shards after each other."""
        if self.shuffle_shards is None:
            return rng.permutation(len(self))
        shards: dict[str, list[int]] = {}
        for index, row in enumerate(self.rows):
            shards.setdefault(row.shard, []).append(index)
        groups = list(shards.values())
        mixed = [groups[at] for at in rng.permutation(len(groups))]
        parts = (mixed[at : at + self.shuffle_shards] for at in range(0, len(mixed), self.shuffle_shards))
        return np.concatenate([rng.permutation(np.concatenate(part)) for part in parts])

    def announce(self, indices: Sequence[int]) -> None:
        """Which samples will be read, in which order: shards of a URL are fetched ahead."""
        if self._cache is not None:
            names = list(dict.fromkeys(self.rows[index].shard for index in indices))
            self._cache.read_ahead(names, num_shards=READ_AHEAD_SHARDS)

    def __getitem__(self, index: int) -> Sample:
        return self.load(index, epoch=self.epoch)

    def load(self, index: int, *, epoch: int, allocate: Allocate = new_frames) -> Sample:
        """Sample `index` of an epoch, its frames written where `allocate` says.

        Raises:
            CorruptVideo: it gives no clip; names its key and its shard.
            CorruptShard: the shard is not what its index says.
        """
        return self.begin(index, epoch=epoch, allocate=allocate)()

    def begin(self, index: int, *, epoch: int, allocate: Allocate = new_frames) -> Callable[[], Sample]:
        """Read sample `index` of an epoch and choose its clips; what is returned decodes them, in the same thread.

        Raises:
            CorruptVideo: as `load`, now or then.
            CorruptShard: as `load`.
        """
        index = position(index, len(self))
        row, video = self.rows[index], self.videos[index]
        rng = self.make.settings.rng(epoch, index)
        if self.manifest.content == "video":
            return lambda: self._load_video(index, rng, allocate)
        memory = _take_block()
        try:
            text, encoded = self._read_frames(index, memory)
            facts = self._parse(text, row)
            frames = JpegReader(encoded, min_side=self._min_decoded_side, allocate=reused_memory)
            finish = self.make.begin(
                frames,
                video,
                rng=rng,
                pts_seconds=facts.times(row.num_frames),
                boxes=facts.boxes(row.num_frames),
                box_scale=(frames.width / row.width, frames.height / row.height),
                allocate=allocate,
            )
        except CorruptVideo as error:
            raise self._no_clip(row, error) from error

        def decode() -> Sample:
            try:
                return finish()
            except CorruptVideo as error:
                raise self._no_clip(row, error) from error
            finally:
                _give_block_back(memory)

        return decode

    def _load_video(self, index: int, rng: np.random.Generator | None, allocate: Allocate) -> Sample:
        try:
            with self._open_video(index) as reader:
                return self.make(reader, self.videos[index], rng=rng, allocate=allocate)
        except CorruptVideo as error:
            raise self._no_clip(self.rows[index], error) from error

    def _no_clip(self, row: SampleRow, error: CorruptVideo) -> CorruptVideo:
        return CorruptVideo(f"sample {row.key} of {self.folder / row.shard} gives no clip: {error}")

    def open_reader(self, index: int) -> tuple[VideoReader, NDArray[np.float64] | None]:
        """The video or the frames of sample `index`, opened, to be closed by the caller; with the times of its frames
        where the reader does not know them. Frames are read from the shard when they are asked for.

        Raises:
            CorruptVideo: it cannot be opened.
            CorruptShard: the shard is not what its index says.
        """
        index = position(index, len(self))
        if self.manifest.content == "video":
            return self._open_video(index), None
        reader = JpegReader(self.encoded(index), min_side=self._min_decoded_side, allocate=reused_memory)
        return reader, self.facts(index).times(self.rows[index].num_frames)

    def encoded(self, index: int) -> Sequence[bytes]:
        """The JPEG frames of sample `index`, or its one video, as they are stored; read when they are asked for.

        Raises:
            CorruptShard: the shard is missing or ends before them.
        """
        offsets, sizes = self._media[index]
        return _StoredMembers(self._files, self.rows[index].shard, offsets, sizes)

    def _read_frames(self, index: int, memory: memoryview) -> tuple[bytes | memoryview, Sequence[bytes | memoryview]]:
        """KEY.json and the frames of a sample, parts of `memory` where it is large enough."""
        (text_at,), (text_size,) = self._facts[index]
        offsets, sizes = self._media[index]
        shard = self.rows[index].shard
        first = min(text_at, *offsets)
        end = max(text_at + text_size, *map(add, offsets, sizes))
        if end - first > len(memory):
            return self._files.read(shard, text_at, text_size), _StoredMembers(self._files, shard, offsets, sizes)
        memory = memory[: end - first]
        self._files.read_into(memory, shard, first)
        frames = [memory[at - first : at - first + size] for at, size in zip(offsets, sizes, strict=True)]
        return memory[text_at - first : text_at - first + text_size], frames

    def _open_video(self, index: int) -> VideoReader:
        row, encoded = self.rows[index], self.encoded(index)
        reader = open_video(encoded[0], backend=self.backend)
        if reader.num_frames != row.num_frames:
            reader.close()
            raise CorruptVideo(
                f"backend {self.backend} finds {reader.num_frames} frames, the index says {row.num_frames}; "
                "use the backend pyav or write the shards again."
            )
        return reader

    def facts(self, index: int) -> KeyFacts:
        """What KEY.json of sample `index` says.

        Raises:
            CorruptShard: the shard is not what its index says.
        """
        row, ((offset,), (size,)) = self.rows[index], self._facts[index]
        return self._parse(self._files.read(row.shard, offset, size), row)

    def _parse(self, text: bytes | memoryview, row: SampleRow) -> KeyFacts:
        return KeyFacts.parse(text, where=f"{self._name}/{row.shard}: {row.key}.json")

    def close(self) -> None:
        """Let go of the shards; a later read opens them again."""
        if self._cache is not None:
            self._cache.close()
        self._files.close()


class _MemberTable:
    """Where members of each sample lie, in bytes: two flat arrays instead of an object per member."""

    def __init__(self, members: Sequence[Sequence[Member]]) -> None:
        self.offsets = np.array([member.offset for sample in members for member in sample], dtype=np.int64)
        self.sizes = np.array([member.size for sample in members for member in sample], dtype=np.int64)
        self.first: list[int] = np.cumsum([0, *map(len, members)]).tolist()

    def __getitem__(self, index: int) -> tuple[list[int], list[int]]:
        part = slice(self.first[index], self.first[index + 1])
        return self.offsets[part].tolist(), self.sizes[part].tolist()


class _ShardFiles:
    """Shards opened at their first read and kept open; pickled without what is open."""

    def __init__(self, folder: Path, cache: ShardCache | None = None) -> None:
        self.folder = folder
        self._cache = cache
        self._open: dict[str, int] = {}

    def read(self, shard: str, offset: int, size: int) -> bytes:
        """Bytes of a shard.

        Raises:
            CorruptShard: the shard is missing or ends before them.
        """
        data = bytearray(size)
        self.read_into(memoryview(data), shard, offset)
        return bytes(data)

    def read_into(self, memory: memoryview, shard: str, offset: int) -> None:
        """As many bytes of a shard as there is memory for.

        Raises:
            CorruptShard: the shard is missing or ends before them.
        """
        descriptor = self._open.get(shard)
        kept = descriptor is not None
        try:
            if descriptor is None:
                if self._cache is not None:
                    # Not kept open: what the cache drops would go on taking room.
                    descriptor = self._cache.open(shard)
                else:
                    descriptor = os.open(self.folder / shard, os.O_RDONLY | os.O_CLOEXEC)
                if self._cache is None and len(self._open) < _MAX_OPEN_SHARDS:
                    # setdefault is atomic: of two threads that open one shard, the first one's file is kept
                    kept = self._open.setdefault(shard, descriptor) == descriptor
            num_read = os.preadv(descriptor, [memory], offset)
        except OSError as error:
            raise CorruptShard(f"{self.folder / shard}: cannot be read ({error}); run `vidprep verify`.") from error
        finally:
            if descriptor is not None and not kept:
                os.close(descriptor)
        if num_read < len(memory):
            raise CorruptShard(
                f"{self.folder / shard}: ends before byte {offset + len(memory)} that its index names; "
                "it was cut short, write it again with `vidprep shard`."
            )

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "_cache": self._cache, "_open": {}}

    def __del__(self) -> None:
        self.close()


class _StoredMembers(Sequence[bytes]):
    """The frames or the video of a sample, each read from its shard when it is asked for."""

    def __init__(self, files: _ShardFiles, shard: str, offsets: Sequence[int], sizes: Sequence[int]) -> None:
        self._files, self._shard, self._offsets, self._sizes = files, shard, offsets, sizes

    def __len__(self) -> int:
        return len(self._offsets)

    @overload
    def __getitem__(self, index: int) -> bytes: ...

    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...

    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._files.read(self._shard, self._offsets[index], self._sizes[index])


_free_blocks: deque[memoryview] = deque(maxlen=_MAX_FREE_BLOCKS)
"""Memory for samples as they are stored. It outlives the threads of an epoch; its operations are atomic."""


def _take_block() -> memoryview:
    """Memory for a sample as it is stored, used again when it is given back."""
    try:
        return _free_blocks.pop()
    except IndexError:
        return np.empty(_MAX_BYTES_AT_ONCE, dtype=np.uint8).data


def _give_block_back(memory: memoryview) -> None:
    _free_blocks.append(memory)


def _long_enough(rows: Sequence[SampleRow], min_frames: int, *, where: str) -> list[SampleRow]:
    kept = [row for row in rows if row.num_frames >= min_frames]
    if not kept:
        raise UsageError(f"{where}: none of the {len(rows)} videos has min_frames = {min_frames} frames.")
    if len(kept) < len(rows):
        logger.warning(
            "%s: %d of %d videos have fewer than %d frames and are left out",
            where,
            len(rows) - len(kept),
            len(rows),
            min_frames,
        )
    return kept


def _check_table(folder: Path, manifest: Manifest, rows: Sequence[SampleRow]) -> None:
    """The table of samples fits the manifest."""
    unknown = {row.shard for row in rows} - {shard.name for shard in manifest.shards}
    if unknown:
        raise CorruptShard(f"{folder / min(unknown)}: in the table of samples, not in the manifest; write both again.")
    for row in rows:
        expected = 1 if manifest.content == "video" else row.num_frames
        names = [member.name for member in row.members]
        if names.count("json") != 1 or len(names) != 1 + expected:
            raise CorruptShard(
                f"{folder / row.shard}: sample {row.key} should hold a json file and {expected} of "
                f"{manifest.content}, the table of samples says {len(names)} files; write the shards again."
            )
    num_listed = Counter(row.shard for row in rows)
    for shard in manifest.shards:
        if num_listed[shard.name] != shard.num_samples:
            raise CorruptShard(
                f"{folder / shard.name}: the table of samples lists {num_listed[shard.name]} of its "
                f"{shard.num_samples} samples; write the table again with `vidprep shard`."
            )


def _check_files(folder: Path, manifest: Manifest) -> None:
    """What can be known without reading the shards: they are there, and as long as the manifest says."""
    for shard in manifest.shards:
        path = folder / shard.name
        try:
            num_bytes = path.stat().st_size
        except OSError as error:
            raise CorruptShard(f"{path}: cannot be read ({error}); write it again with `vidprep shard`.") from error
        if num_bytes != shard.num_bytes:
            raise CorruptShard(
                f"{path}: {num_bytes} bytes, its manifest says {shard.num_bytes}; "
                "it was cut short or changed, write it again with `vidprep shard`."
            )
