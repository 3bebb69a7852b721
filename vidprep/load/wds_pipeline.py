"""The same samples as a WebDataset pipeline, for training code that has one already.

    names of shards -> share of the process -> share of the worker -> samples of the tars -> shuffled -> clips

Each is a plain stage of `webdataset.DataPipeline`: shards are read from their start, in one go, wherever `webdataset`
can read them (files, http, pipes), and what comes out may go through further stages.
"""

import random
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Unpack

import numpy as np
import torch
import webdataset as wds
from numpy.typing import NDArray
from torch import Tensor
from webdataset.tariterators import group_by_keys, tar_file_expander

from vidprep.decode import Backend, VideoReader, open_video
from vidprep.decode.jpeg import JpegReader
from vidprep.errors import CorruptShard, CorruptVideo, UsageError
from vidprep.index import Manifest, read_manifest, read_samples
from vidprep.load.dataset import ClipOptions, ClipSettings, SampleMaker, check_labels, reused_memory
from vidprep.load.facts import KeyFacts
from vidprep.load.types import Sample
from vidprep.types import Task, Video

__all__ = ["ClipPipeline", "webdataset"]

Handler = Callable[[Exception], bool]
"""As everywhere in webdataset: raises the error, or returns whether to go on with the next sample."""

_FRAME = re.compile(r"\d+\.jpe?g")


class ClipPipeline(wds.DataPipeline):  # type: ignore[misc]
    """A WebDataset pipeline of samples, whose order and random clips follow from (seed, epoch)."""

    epoch: Tensor
    """() int64 in shared memory: worker processes see what `set_epoch` says in theirs, too."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the random clips of the iterations that begin from now on, counted from 0."""
        self.epoch.fill_(epoch)


def webdataset(
    source: Path | str | Sequence[str],
    split: str | None = None,
    *,
    shuffle: int = 0,
    task: Task | None = None,
    num_classes: int | None = None,
    num_noun_classes: int = 0,
    flip_pairs: Mapping[int, int] = MappingProxyType({}),
    backend: Backend = "pyav",
    nodesplitter: Callable[[Iterator[Any]], Iterator[Any]] = wds.split_by_node,
    workersplitter: Callable[[Iterator[Any]], Iterator[Any]] = wds.split_by_worker,
    handler: Handler = wds.reraise_exception,
    **options: Unpack[ClipOptions],
) -> ClipPipeline:
    """A pipeline of samples; `.compose(wds.batched(32, collation_fn=Batch.stack))` makes batches of them.

    Each sample of an epoch is that of `ShardDataset`, with the same frames, crop and flip; only their order is another:
    of shards, and of the samples in a buffer, as WebDataset does it. Shards are shared among processes and workers, so
    each gets as many samples as its shards hold; use `make_loader` where all ranks must have equally many batches.

    Args:
        source: a folder of `vidprep shard`; or what webdataset calls URLs: "train-{000000..000146}.tar",
            "https://...", "pipe:...", or a list of them.
        split: of a folder that holds several.
        shuffle: samples in the shuffle buffer, compressed; shards are shuffled as well. 0: all in their order.
        task: of URLs, which have no manifest; a folder's is in its manifest, as are the next three.
        num_classes: of URLs.
        num_noun_classes: of URLs, for verb_noun.
        flip_pairs: of URLs: class -> class that a horizontal flip turns it into.
        backend: decoder of videos.
        nodesplitter: which shards a process reads; as in webdataset.
        workersplitter: which of these a worker of its `DataLoader` reads.
        handler: what becomes of a sample that gives no clip, and of a damaged shard: raised, by default.
        **options: the fields of `ClipSettings`.

    Raises:
        UsageError: no such folder, URLs without a task, or a setting out of range. While iterating: labels that do not
            fit the task.
        CorruptVideo: while iterating, a sample gives no clip; names its key and its shard.
        CorruptShard: while iterating, a shard is cut short or its facts are wrong.
    """
    settings = ClipSettings(**options)
    if shuffle < 0:
        raise UsageError(f"shuffle is a number of samples, 0 or more; got {shuffle}.")
    if isinstance(source, Path) or (isinstance(source, str) and Path(source).is_dir()):
        if task is not None or num_classes is not None or num_noun_classes or flip_pairs:
            raise UsageError(f"{source} says its task and its classes itself; leave them out.")
        manifest = read_manifest(Path(source), split)
        shards = _Shards.of_folder(Path(source), manifest)
        task, num_classes, num_noun_classes = manifest.task, len(manifest.classes), len(manifest.noun_classes)
        flip_pairs = {int(label): flipped for label, flipped in manifest.flip_pairs.items()}
    else:
        urls = wds.shardlists.expand_urls(source) if isinstance(source, str) else [str(url) for url in source]
        if not urls or not all(url.startswith("pipe:") or ".tar" in url for url in urls):
            raise UsageError(
                f"{source}: no such folder of shards on this machine, and no URLs of tars; ShardDataset reads folders "
                "behind URLs."
            )
        if task is None or num_classes is None or split is not None:
            raise UsageError("tars without their folder need task and num_classes, and have no split.")
        shards = _Shards(urls=urls)
    make = SampleMaker(settings=settings, task=task, num_classes=num_classes, flip_pairs=dict(flip_pairs))
    epoch = torch.zeros((), dtype=torch.int64)
    epoch.share_memory_()  # type: ignore[no-untyped-call]
    pipeline = ClipPipeline(
        _ShardOrder(urls=shards.urls, is_shuffled=shuffle > 0, seed=settings.seed, epoch=epoch),
        nodesplitter,
        workersplitter,
        _TarSamples(shards=shards, handler=handler),
        _Shuffle(num_samples=shuffle, seed=settings.seed, epoch=epoch) if shuffle else None,
        _Clips(
            make=make,
            num_noun_classes=num_noun_classes,
            numbers=shards.numbers,
            backend=backend,
            epoch=epoch,
            handler=handler,
        ),
    )
    pipeline.epoch = epoch
    return pipeline


@dataclass(frozen=True, kw_only=True)
class _Shards:
    """What is known of the shards before they are read."""

    urls: Sequence[str]
    num_samples: Mapping[str, int] = field(default_factory=dict)
    """Of each URL, where a manifest says it."""
    numbers: Mapping[str, int] = field(default_factory=dict)
    """Position in `ShardDataset` of each key, where it is not the key's own number."""

    @classmethod
    def of_folder(cls, folder: Path, manifest: Manifest) -> "_Shards":
        urls = [str(folder / shard.name) for shard in manifest.shards]
        numbers = {}
        if manifest.faults:  # the keys of the others keep their place, their positions do not
            numbers = {row.key: number for number, row in enumerate(read_samples(folder, manifest.split))}
        num_samples = {url: shard.num_samples for url, shard in zip(urls, manifest.shards, strict=True)}
        return cls(urls=urls, num_samples=num_samples, numbers=numbers)


@dataclass(frozen=True, kw_only=True)
class _ShardOrder:
    """The first stage: names of shards."""

    urls: Sequence[str]
    is_shuffled: bool
    seed: int
    epoch: Tensor

    def __call__(self) -> Iterator[dict[str, Any]]:
        order = list(range(len(self.urls)))
        if self.is_shuffled:
            # The same in all processes, which then take every n-th.
            order = np.random.default_rng((self.seed, int(self.epoch))).permutation(len(self.urls)).tolist()
        return ({"url": self.urls[at]} for at in order)


@dataclass(frozen=True, kw_only=True)
class _TarSamples:
    """Shards -> their samples, as bytes by suffix."""

    shards: _Shards
    handler: Handler

    def __call__(self, source: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for shard in source:
            try:
                yield from self._samples(shard)
            except CorruptShard as error:
                if not self.handler(error):
                    return

    def _samples(self, shard: dict[str, Any]) -> Iterator[dict[str, Any]]:
        url, num_samples = shard["url"], 0
        try:
            # Opened here, since webdataset leaves its streams for the garbage collector to close.
            with closing(wds.gopen(url)) as stream:
                for sample in group_by_keys(tar_file_expander([{**shard, "stream": stream}])):
                    num_samples += 1
                    yield sample
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            raise CorruptShard(f"{url}: cannot be read to its end ({error}); run `vidprep verify`.") from error
        expected = self.shards.num_samples.get(url, num_samples)
        if num_samples != expected:
            raise CorruptShard(
                f"{url}: holds {num_samples} samples, its manifest says {expected}; it was cut short or changed, "
                "write it again with `vidprep shard`."
            )


@dataclass(frozen=True, kw_only=True)
class _Shuffle:
    """Samples in the order in which a buffer of them gives them back."""

    num_samples: int
    seed: int
    epoch: Tensor

    def __call__(self, source: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        rng = random.Random(f"{self.seed} {int(self.epoch)}")  # noqa: S311 - an order, not a secret
        shuffled: Iterator[dict[str, Any]] = wds.shuffle(self.num_samples, initial=self.num_samples, rng=rng)(
            iter(source)
        )
        return shuffled


@dataclass(frozen=True, kw_only=True)
class _Clips:
    """The last stage: bytes -> samples for a model."""

    make: SampleMaker
    num_noun_classes: int
    numbers: Mapping[str, int]
    backend: Backend
    epoch: Tensor
    handler: Handler

    def __call__(self, source: Iterable[dict[str, Any]]) -> Iterator[Sample]:
        epoch = int(self.epoch)
        for members in source:
            key, where = members["__key__"], members["__url__"]
            try:
                clip = self._clip(members, epoch)
            except CorruptVideo as error:
                named = CorruptVideo(f"sample {key} of {where} gives no clip: {error}")
                named.__cause__ = error
                if not self.handler(named):
                    return
            except CorruptShard as error:
                if not self.handler(error):
                    return
            else:
                yield clip

    def _clip(self, members: Mapping[str, Any], epoch: int) -> Sample:
        key, where = members["__key__"], f"{members['__url__']}: {members['__key__']}"
        if "json" not in members:
            raise CorruptShard(f"{where} has no json file, which says what it shows; see docs/shards.md.")
        facts = KeyFacts.parse(members["json"], where=f"{where}.json")
        names = sorted(name for name in members if name != "json" and not name.startswith("__"))
        is_frames = bool(names) and all(_FRAME.fullmatch(name) for name in names)
        if not is_frames and len(names) != 1:
            raise CorruptShard(f"{where} should hold one video or numbered jpg files, it holds {names}.")
        video = _video(facts, is_frames=is_frames)
        check_labels(
            [video],
            task=self.make.task,
            num_classes=self.make.num_classes,
            num_noun_classes=self.num_noun_classes,
            where=where,
        )
        # Keys of other writers may be words; their random choices then follow from the letters.
        number = self.numbers.get(key, int(key) if key.isdecimal() else zlib.crc32(key.encode()))
        rng = self.make.settings.rng(epoch, number)
        if is_frames:
            frames = [members[name] for name in names]
            times: NDArray[np.float64] = facts.times(len(frames))
            boxes = facts.boxes(len(frames))
            min_side = self.make.settings.min_decoded_side
            with JpegReader(frames, min_side=min_side, allocate=reused_memory) as reader:
                scale = (
                    reader.width / facts.values.get("width", reader.width),
                    reader.height / facts.values.get("height", reader.height),
                )
                return self.make(reader, video, rng=rng, pts_seconds=times, boxes=boxes, box_scale=scale)
        with open_video(members[names[0]], backend=self.backend) as opened:
            _check_num_frames(opened, facts)
            return self.make(opened, video, rng=rng)


def _check_num_frames(reader: VideoReader, facts: KeyFacts) -> None:
    expected = facts.values.get("num_frames", reader.num_frames)
    if reader.num_frames != expected:
        raise CorruptVideo(f"it has {reader.num_frames} frames, its json file says {expected}; use the backend pyav.")


def _video(facts: KeyFacts, *, is_frames: bool) -> Video:
    values = facts.values
    try:
        return Video(
            video_id=values["video_id"],
            labels=tuple(values["labels"]),
            # Frames are those of the segment already.
            start_seconds=None if is_frames else values.get("start_seconds"),
            end_seconds=None if is_frames else values.get("end_seconds"),
            segment_id=values.get("segment_id") or "",
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptShard(f"{facts.where} does not say which video it is ({error!r}); see docs/shards.md.") from error
