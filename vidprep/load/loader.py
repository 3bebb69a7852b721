"""Batches from a data set: their order, their share of each process, and threads that prepare them ahead.

    order     a permutation of all samples, from (seed, epoch) alone          7 2 9 | 0 5 3 | 8 1 4 | 6
    shares    two processes, batches of 1 or 2: every n-th of what is left    rank 0: 7 9 5 8 ...  rank 1: 2 0 3 1 ...
    position  how many of the order all processes together have handed out    what `state_dict` holds

Decoders and transforms let go of the interpreter lock, so threads work in parallel; they write straight into the memory
of the batch, which is used again when the batch is gone. No tensor is copied between processes.
"""

import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Literal, Protocol, TypedDict, get_args, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidprep.errors import CorruptVideo, UsageError
from vidprep.load.memory import BatchMemory
from vidprep.load.types import Allocate, Batch, Sample, new_frames

__all__ = ["BufferedSource", "LoadFault", "Loader", "PendingBatch", "PlannedSource", "SampleSource", "make_loader"]

logger = logging.getLogger(__name__)

OnError = Literal["raise", "count"]
LoaderBackend = Literal["threads", "dali"]
Share = Literal["samples", "batches"]
Device = Literal["cpu", "gpu"]


class SampleSource(Protocol):
    """What a loader reads: samples by position, from several threads at once."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...

    def set_epoch(self, epoch: int) -> None:
        """Choose what is random in the samples."""
        ...


@runtime_checkable
class BufferedSource(Protocol):
    """A source that also writes the frames of a sample where it is told to: into the batch, without a copy."""

    def load(self, index: int, *, epoch: int, allocate: Allocate) -> Sample:
        """Sample `index` of `epoch`; its frames are what one call of `allocate` returned."""
        ...


@runtime_checkable
class PlannedSource(Protocol):
    """A source whose samples can be made ready, several after each other, before the first of them is decoded.

    Decoding fills the processor's caches with its own code and data. What is done around it then runs as if for the
    first time, which takes three times as long: for several samples at once it does so only once.
    """

    samples_at_once: int
    """How many are best made ready after each other."""

    def begin(self, index: int, *, epoch: int, allocate: Allocate) -> Callable[[], Sample]:
        """What gives sample `index` of `epoch`, in the same thread; its frames are what a call of `allocate` returned.

        What it raises, now or later, is what `BufferedSource.load` raises.
        """
        ...


@runtime_checkable
class OrderedSource(Protocol):
    """A source that has an order of its own to shuffle by, and wants to know what will be read."""

    def shuffled(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """A random order of all samples."""
        ...

    def announce(self, indices: Sequence[int]) -> None:
        """What this process will read, in this order."""
        ...


@dataclass(frozen=True, kw_only=True)
class LoadFault:
    """A sample that gave no clip."""

    index: int
    """Its position in the data set."""
    epoch: int
    reason: str
    """Names the sample by its key or its id."""


class PendingBatch(Protocol):
    """A batch in the making."""

    def result(self) -> Batch | None:
        """The batch, as soon as its samples are there; None where none gave a clip."""
        ...

    def faults(self) -> Sequence[tuple[int, CorruptVideo]]:
        """(position in the data set, why it gave no clip) of the samples that are left out, after `result`."""
        ...


def make_loader(
    dataset: SampleSource,
    *,
    batch_size: int,
    shuffle: bool = False,
    seed: int = 0,
    workers: int | None = None,
    drop_last: bool = False,
    rank: int = 0,
    world_size: int = 1,
    share: Share = "samples",
    pin_memory: bool = False,
    on_error: OnError = "raise",
    backend: LoaderBackend = "threads",
    device: Device = "cpu",
) -> "Loader":
    """Batches of a data set, in an order that follows from (seed, epoch) alone.

    Training in several processes: `shuffle=True, drop_last=True`; each gets equally many batches, and their
    batches of one step hold together the same samples whatever their number, as long as batch_size x world_size
    stays. Evaluation: `drop_last=False`; each sample is read exactly once, by one of the processes, whose numbers
    of samples may differ by one (`Loader.num_samples`), and so the numbers of their batches.

    Args:
        dataset: where samples come from.
        batch_size: samples of a batch, in this process.
        shuffle: a new order each epoch (`Loader.set_epoch`), instead of the data set's.
        seed: of the order.
        workers: threads that prepare samples; 0 prepares them in the caller's, None starts one per usable CPU.
        drop_last: leave out what does not fill a batch in every process.
        rank: which of the processes this is.
        world_size: processes that share the data set.
        share: "samples": every n-th of the order, so that processes have equally much to do. "batches": every n-th of
            the batches that a single process would make, each of them whole, so that they are the same to the last bit;
            for evaluation.
        pin_memory: batches in page-locked memory, for asynchronous copies to a GPU.
        on_error: "raise": a sample that does not decode ends the epoch. "count": it is left out of its batch, which
            is then smaller, and listed in `Loader.faults`; the epoch ends with a warning that counts them. No other
            sample takes its place.
        backend: "threads": frames are decoded and transformed here. "dali": by a pipeline of NVIDIA DALI, which shows
            the same frames in the same crops; for `ShardDataset` (docs/dali.md says what it cannot do).
        device: where DALI works and the batches lie: "gpu" is PyTorch's current CUDA device.

    Raises:
        UsageError: a number out of range, `drop_last` leaves no batch at all, or DALI cannot do what is asked for.
        MissingPackage: DALI is asked for and not installed.
    """
    if backend not in get_args(LoaderBackend) or device not in get_args(Device):
        raise UsageError(f"backend is 'threads' or 'dali', device 'cpu' or 'gpu'; got {backend!r} and {device!r}.")
    options = LoaderOptions(
        batch_size=batch_size,
        shuffle=shuffle,
        seed=seed,
        workers=len(os.sched_getaffinity(0)) if workers is None else workers,
        drop_last=drop_last,
        rank=rank,
        world_size=world_size,
        share=share,
        pin_memory=pin_memory,
        on_error=on_error,
    )
    if backend == "dali":
        from vidprep.load.dali import DaliLoader

        return DaliLoader(dataset, device=device, **options)
    if device != "cpu":
        raise UsageError("the backend 'threads' works on the CPU; for device 'gpu' choose backend='dali'.")
    return Loader(dataset, **options)


class LoaderOptions(TypedDict):
    """The arguments that loaders of all backends have."""

    batch_size: int
    shuffle: bool
    seed: int
    workers: int
    drop_last: bool
    rank: int
    world_size: int
    share: Share
    pin_memory: bool
    on_error: OnError


class Loader:
    """Iterates over the batches of one epoch; see `make_loader`."""

    def __init__(
        self,
        dataset: SampleSource,
        *,
        batch_size: int,
        shuffle: bool,
        seed: int,
        workers: int,
        drop_last: bool,
        rank: int,
        world_size: int,
        pin_memory: bool,
        share: Share = "samples",
        on_error: OnError = "raise",
    ) -> None:
        if batch_size < 1 or workers < 0 or seed < 0:
            raise UsageError(
                f"a loader needs batch_size >= 1, workers >= 0 and seed >= 0; got {batch_size}, {workers} and {seed}."
            )
        if not 0 <= rank < world_size:
            raise UsageError(f"rank counts from 0 and is below world_size; got {rank} of {world_size}.")
        if on_error not in ("raise", "count"):
            raise UsageError(f"on_error is 'raise' or 'count', got {on_error!r}.")
        if share not in get_args(Share) or (share == "batches" and (drop_last or shuffle)):
            raise UsageError(
                f"share is 'samples', or 'batches' without shuffle and drop_last; got {share!r}, shuffle = {shuffle} "
                f"and drop_last = {drop_last}."
            )
        if drop_last and len(dataset) < batch_size * world_size:
            raise UsageError(
                f"{len(dataset)} samples fill no batch of {batch_size} in each of {world_size} processes; "
                "lower batch_size or keep the last batch."
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.workers = workers
        self.drop_last = drop_last
        self.rank = rank
        self.world_size = world_size
        self.share = share
        self.pin_memory = pin_memory
        self.on_error = on_error
        # Asked once: a look at a protocol costs as much as reading a sample from its shard.
        self._begin = _two_steps(dataset)
        at_once = dataset.samples_at_once if isinstance(dataset, PlannedSource) else 1
        self._at_once = max(1, min(at_once, batch_size // max(1, workers)))
        self.epoch = 0
        self.faults: list[LoadFault] = []
        """Samples of the running or the last iteration that gave no clip, with `on_error="count"`; of this process."""
        self._first = 0
        """Position in the order at which the next iteration begins."""
        self._reached = (0, 0)
        """(epoch, position) of the batches handed out."""
        self._running: Callable[[], Generator[Batch, None, None] | None] = lambda: None
        # Enough batches ahead that every worker has a sample to work on while the caller holds one batch.
        self._ahead = 2 + workers // batch_size
        self._memory = BatchMemory(pin=pin_memory, num_kept=self._ahead + 2)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the random clips of `epoch`, counted from 0; an iteration keeps those it began with.

        The epoch that `load_state_dict` restored goes on where it was; any other one begins at its first batch.
        """
        if epoch != self.epoch:
            self._first = 0
            self._reached = (epoch, 0)
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches that the next iteration gives in this process; after `load_state_dict` those that are left."""
        return len(self._batches())

    @property
    def num_samples(self) -> int:
        """Samples that the next iteration reads in this process; in evaluation others may have one more or less."""
        return sum(len(indices) for indices in self._batches())

    def state_dict(self) -> dict[str, Any]:
        """Where the epoch stands: after the last batch that was handed out, which counts as done.

        Take it between two batches, in any process: it is the same in all that have taken equally many steps, and any
        number of processes and threads, with any batch size, can go on from it.
        """
        epoch, position = self._reached
        return {
            "version": 1,
            "epoch": epoch,
            "position": position,
            "num_samples": len(self.dataset),
            "shuffle": self.shuffle,
            "seed": self.seed,
            "shuffle_shards": getattr(self.dataset, "shuffle_shards", None),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration go on after the batches that `state` counts as done.

        Raises:
            UsageError: the state is that of another order: another data set, seed or shuffling.
        """
        if state.get("version") != 1:
            raise UsageError(f"the state of a loader has version 1, got {state.get('version')!r}.")
        ours = {
            "num_samples": len(self.dataset),
            "shuffle": self.shuffle,
            "seed": self.seed,
            "shuffle_shards": getattr(self.dataset, "shuffle_shards", None),
        }
        for name, value in ours.items():
            if state[name] != value:
                raise UsageError(
                    f"the state was taken with {name} = {state[name]!r}, this loader has {value!r}; "
                    "go on with the same data set, seed and shuffle."
                )
        if not 0 <= state["position"] <= len(self.dataset):
            raise UsageError(f"position {state['position']} of a state lies outside of {len(self.dataset)} samples.")
        self.epoch, self._first = int(state["epoch"]), int(state["position"])
        self._reached = (self.epoch, self._first)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the epoch's batches in order; what a sample raises is raised here, with the sample named."""
        self.dataset.set_epoch(self.epoch)
        batches, epoch, first = self._batches(), self.epoch, self._first
        if isinstance(self.dataset, OrderedSource):
            self.dataset.announce([index for indices in batches for index in indices])
        self._first = 0
        self.faults = []
        self._reached = (epoch, first)
        running = self._count(self._prepare(batches, epoch), first)
        self._running = weakref.ref(running)
        return running

    def close(self) -> None:
        """End the running iteration and its threads, which an error's traceback would keep, and Python with them."""
        running = self._running()
        if running is not None:
            running.close()

    def _prepare(self, batches: Sequence[Sequence[int]], epoch: int) -> Generator[PendingBatch, None, None]:
        """The batches of an epoch in their order; other backends prepare them in their own way."""
        return self._in_threads(batches, epoch) if self.workers else self._here(batches, epoch)

    def _batches(self) -> list[list[int]]:
        num_samples = len(self.dataset)
        if self.shuffle:
            rng = np.random.default_rng((self.seed, self.epoch))
            order: NDArray[np.int64]
            if isinstance(self.dataset, OrderedSource):
                order = self.dataset.shuffled(rng)
            else:
                order = rng.permutation(num_samples)
        else:
            order = np.arange(num_samples)
        order = order[self._first :]
        if self.drop_last:
            step = self.batch_size * self.world_size
            order = order[: len(order) // step * step]
        if self.share == "batches":
            starts = range(0, len(order), self.batch_size)[self.rank :: self.world_size]
            return [order[start : start + self.batch_size].tolist() for start in starts]
        mine = order[self.rank :: self.world_size].tolist()
        return [mine[start : start + self.batch_size] for start in range(0, len(mine), self.batch_size)]

    def _count(self, batches: Generator[PendingBatch, None, None], first: int) -> Generator[Batch, None, None]:
        """The batches, as they are handed out: counted, and without the samples that gave no clip."""
        epoch = self._reached[0]
        num_samples = len(self.dataset)
        with closing(batches):
            for number, pending in enumerate(batches, start=1):
                batch = pending.result()
                self.faults += [LoadFault(index=at, epoch=epoch, reason=str(why)) for at, why in pending.faults()]
                del pending  # it holds the batch, too, whose memory is free as soon as the caller drops it
                self._reached = (epoch, min(num_samples, first + number * self.batch_size * self.world_size))
                if batch is not None:
                    yield batch
                    del batch
                elif self.drop_last:
                    # The other processes have a batch here, and would wait for this one.
                    raise CorruptVideo(
                        f"all {self.batch_size} samples of a training batch give no clip; the last: "
                        f"{self.faults[-1].reason}"
                    )
        if self.faults:
            logger.warning(
                "epoch %d: %d samples gave no clip and were left out; the first: %s",
                epoch,
                len(self.faults),
                self.faults[0].reason,
            )

    def _here(self, batches: Sequence[Sequence[int]], epoch: int) -> Generator[PendingBatch, None, None]:
        for indices in batches:
            pending = _BatchInThreads(indices, self._memory, keep_faults=self.on_error == "count")
            with _one_torch_thread():
                for places in self._groups(len(indices)):
                    self._load_into(pending, places, epoch)
                    pending.raise_first(places)
            yield pending

    def _in_threads(self, batches: Sequence[Sequence[int]], epoch: int) -> Generator[PendingBatch, None, None]:
        ready: deque[_BatchInThreads] = deque()
        with _working_off(self.workers, lambda task: self._load_into(*task, epoch)) as tasks:
            for indices in batches:
                pending = _BatchInThreads(indices, self._memory, keep_faults=self.on_error == "count")
                for places in self._groups(len(indices)):
                    tasks.put((pending, places))
                ready.append(pending)
                if len(ready) > self._ahead:
                    yield ready.popleft()
            while ready:
                yield ready.popleft()

    def _groups(self, num_samples: int) -> Iterator[range]:
        """Places of a batch whose samples one thread makes ready after each other."""
        step = self._at_once
        return (range(first, min(first + step, num_samples)) for first in range(0, num_samples, step))

    def _load_into(self, pending: "_BatchInThreads", places: Sequence[int], epoch: int) -> None:
        # Whatever goes wrong here is raised where the batch is used; nobody looks at the outcome of this task.
        begun: list[tuple[int, Callable[[], Sample]]] = []
        for place in places:
            try:
                finish = self._begin(pending.indices[place], epoch=epoch, allocate=pending.allocator(place))
            except BaseException as error:
                self._put_error(pending, place, error)
            else:
                begun.append((place, finish))
        for place, finish in begun:
            try:
                sample = finish()
            except BaseException as error:
                self._put_error(pending, place, error)
            else:
                pending.put(place, sample)

    def _put_error(self, pending: "_BatchInThreads", place: int, error: BaseException) -> None:
        error.add_note(f"while loading sample {pending.indices[place]} of {len(self.dataset)}")
        pending.put(place, error)


def _two_steps(dataset: SampleSource) -> Callable[..., Callable[[], Sample]]:
    """The quickest way to the samples of a source, as `PlannedSource.begin`."""
    if isinstance(dataset, PlannedSource):
        return dataset.begin
    if isinstance(dataset, BufferedSource):
        return lambda index, **options: partial(dataset.load, index, **options)
    return lambda index, **_: partial(dataset.__getitem__, index)


class _BatchInThreads:
    """A batch in the making: its samples are written into memory of its own, wherever they are prepared."""

    def __init__(self, indices: Sequence[int], memory: BatchMemory, *, keep_faults: bool) -> None:
        self.indices = indices
        self._memory = memory
        self._frames: Tensor | None = None
        self._places: Sequence[Tensor] = ()
        self._is_uneven = False
        self._results: list[Sample | BaseException | None] = [None] * len(indices)
        self._missing = len(indices)
        self._is_done: Future[None] = Future()
        self._lock = threading.Lock()
        self._keep_faults = keep_faults

    def allocator(self, place: int) -> Allocate:
        """Where the sample of `place` writes its frames: its part of the batch."""

        def allocate(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            with self._lock:
                if self._frames is None:
                    self._frames = self._memory.take((len(self.indices), *shape), dtype)
                    self._places = self._frames.unbind()
                frames = self._frames
                if frames.shape[1:] != shape or frames.dtype != dtype:
                    self._is_uneven = True
                    return new_frames(shape, dtype)  # stacking them says what is wrong
            return self._places[place]

        return allocate

    def put(self, place: int, result: Sample | BaseException) -> None:
        """Keep a sample, or why there is none."""
        with self._lock:
            self._results[place] = result
            self._missing -= 1
            is_last = not self._missing
        if is_last:
            self._is_done.set_result(None)

    def faults(self) -> list[tuple[int, CorruptVideo]]:
        """(position in the data set, why it gave no clip) of the samples that are left out."""
        return [
            (index, result)
            for index, result in zip(self.indices, self._results, strict=True)
            if isinstance(result, CorruptVideo)
        ]

    def raise_first(self, places: Sequence[int]) -> None:
        """Raise what the first broken sample of these raised, unless it is counted instead."""
        for place in places:
            result = self._results[place]
            if isinstance(result, BaseException) and not (self._keep_faults and isinstance(result, CorruptVideo)):
                raise result

    def result(self) -> Batch | None:
        """The batch, as soon as its samples are there; None where none gave a clip."""
        self._is_done.result()
        self.raise_first(range(len(self._results)))
        samples = [sample for sample in self._results if isinstance(sample, Sample)]
        if not samples:
            return None
        frames = self._frames
        if frames is None or self._is_uneven:
            batch = Batch.stack(samples)
        else:
            kept = [place for place, sample in enumerate(self._results) if isinstance(sample, Sample)]
            batch = Batch.stack(samples, frames=frames if len(kept) == len(frames) else frames[kept])
        return batch if not self._memory.is_pinned else _pin(batch)


def _pin(batch: Batch) -> Batch:
    return replace(
        batch,
        frames=batch.frames if batch.frames.is_pinned() else batch.frames.pin_memory(),
        labels=batch.labels.pin_memory(),
    )


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """The caller's torch operations on one core: on one clip, several cores mostly wait for each other."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


_Task = tuple[_BatchInThreads, range]
"""Samples to load: their batch, and their places there."""


@contextmanager
def _working_off(workers: int, work: Callable[[_Task], None]) -> Iterator[SimpleQueue[_Task | None]]:
    """Threads that work off a queue; on leaving, what has not begun is dropped.

    One task of the pool is a thread's whole epoch: a task for each sample would cost a lock, a condition and a few
    objects more.
    """
    tasks: SimpleQueue[_Task | None] = SimpleQueue()

    def work_off() -> None:
        while (task := tasks.get()) is not None:
            work(task)
            del task  # it holds the batch, whose memory is free as soon as the caller drops it

    with worker_threads(workers) as pool:
        for _ in range(workers):
            pool.submit(work_off)
        try:
            yield tasks
        finally:
            with suppress(Empty):
                while True:
                    tasks.get_nowait()
            for _ in range(workers):
                tasks.put(None)


@contextmanager
def worker_threads(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads whose torch operations use one core each; on leaving, what has not begun is dropped."""
    main_threads = torch.get_num_threads()
    started = threading.Barrier(workers + 1)

    def start() -> None:
        torch.get_num_threads()  # torch sets a thread up at its first use; later, that would undo the next line
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(workers, thread_name_prefix="vidprep-load")
    try:
        for _ in range(workers):
            pool.submit(start)
        started.wait()
        # The number is each thread's own, but the last one set is also what threads begun later start with.
        torch.set_num_threads(main_threads)
        yield pool
    finally:
        started.abort()  # threads that still wait because the start was interrupted
        pool.shutdown(wait=True, cancel_futures=True)
