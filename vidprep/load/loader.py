"""Batches from a data set: their order, their share of each process, and threads that prepare them ahead.

Decoders and transforms let go of the interpreter lock, so threads work in parallel and hand over tensors
without copying them between processes.
"""

import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from vidprep.errors import UsageError
from vidprep.load.types import Batch, Sample

__all__ = ["Loader", "SampleSource", "make_loader"]


class SampleSource(Protocol):
    """What a loader reads: samples by position, from several threads at once."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...

    def set_epoch(self, epoch: int) -> None:
        """Choose what is random in the samples."""
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
    pin_memory: bool = False,
) -> "Loader":
    """Batches of a data set, in an order that follows from (seed, epoch) alone.

    Training in several processes: `shuffle=True, drop_last=True`; each gets equally many batches, and their
    batches of one step hold together the same samples whatever their number, as long as batch_size x world_size
    stays. Evaluation: `drop_last=False`; each sample is read exactly once, by one of the processes, whose numbers
    of samples may differ by one.

    Args:
        dataset: where samples come from.
        batch_size: samples of a batch, in this process.
        shuffle: a new order each epoch (`Loader.set_epoch`), instead of the data set's.
        seed: of the order.
        workers: threads that prepare samples; 0 prepares them in the caller's, None starts one per usable CPU.
        drop_last: leave out what does not fill a batch in every process.
        rank: which of the processes this is.
        world_size: processes that share the data set.
        pin_memory: batches in page-locked memory, for asynchronous copies to a GPU.

    Raises:
        UsageError: a number out of range, or `drop_last` leaves no batch at all.
    """
    return Loader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle,
        seed=seed,
        workers=len(os.sched_getaffinity(0)) if workers is None else workers,
        drop_last=drop_last,
        rank=rank,
        world_size=world_size,
        pin_memory=pin_memory,
    )


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
    ) -> None:
        if batch_size < 1 or workers < 0 or seed < 0:
            raise UsageError(
                f"a loader needs batch_size >= 1, workers >= 0 and seed >= 0; got {batch_size}, {workers} and {seed}."
            )
        if not 0 <= rank < world_size:
            raise UsageError(f"rank counts from 0 and is below world_size; got {rank} of {world_size}.")
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
        self.pin_memory = pin_memory
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the random clips of `epoch`, counted from 0; an iteration keeps those it began with."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches of an epoch in this process."""
        return len(self._batches())

    def __iter__(self) -> Iterator[Batch]:
        """Yield the epoch's batches in order; what a sample raises is raised here, with the sample named."""
        self.dataset.set_epoch(self.epoch)
        batches = self._batches()
        return self._in_threads(batches) if self.workers else map(self._load, batches)

    def _batches(self) -> list[list[int]]:
        num_samples = len(self.dataset)
        if self.shuffle:
            order: NDArray[np.int64] = np.random.default_rng((self.seed, self.epoch)).permutation(num_samples)
        else:
            order = np.arange(num_samples)
        if self.drop_last:
            step = self.batch_size * self.world_size
            order = order[: num_samples // step * step]
        mine = order[self.rank :: self.world_size].tolist()
        return [mine[start : start + self.batch_size] for start in range(0, len(mine), self.batch_size)]

    def _in_threads(self, batches: Sequence[Sequence[int]]) -> Iterator[Batch]:
        # Enough batches ahead that every worker has a sample to work on while the caller holds one batch.
        ahead = 2 + self.workers // self.batch_size
        ready: deque[Future[Batch]] = deque()
        with _worker_threads(self.workers) as pool:
            for indices in batches:
                pending = _PendingBatch(len(indices))
                for place, index in enumerate(indices):
                    pool.submit(self._load_into, pending, place, index)
                ready.append(pending.batch)
                if len(ready) > ahead:
                    yield ready.popleft().result()
            while ready:
                yield ready.popleft().result()

    def _load(self, indices: Sequence[int]) -> Batch:
        with _one_torch_thread():
            return self._collate([self._load_one(index) for index in indices])

    def _load_one(self, index: int) -> Sample:
        try:
            return self.dataset[index]
        except Exception as error:
            error.add_note(f"while loading sample {index} of {len(self.dataset)}")
            raise

    def _load_into(self, pending: "_PendingBatch", place: int, index: int) -> None:
        # Whatever goes wrong here is raised where the batch is used; nobody looks at the outcome of this task.
        try:
            is_last = pending.put(place, self._load_one(index))
        except BaseException as error:
            is_last = pending.put(place, error)
        if is_last:
            try:
                pending.batch.set_result(self._collate(pending.samples()))
            except BaseException as error:
                pending.batch.set_exception(error)

    def _collate(self, samples: Sequence[Sample]) -> Batch:
        batch = Batch.stack(samples)
        if not self.pin_memory:
            return batch
        return replace(batch, frames=batch.frames.pin_memory(), labels=batch.labels.pin_memory())


class _PendingBatch:
    """A batch in the making; whichever worker brings the last sample puts it together."""

    def __init__(self, num_samples: int) -> None:
        self.batch: Future[Batch] = Future()
        self._results: list[Sample | BaseException | None] = [None] * num_samples
        self._missing = num_samples
        self._lock = threading.Lock()

    def put(self, place: int, result: Sample | BaseException) -> bool:
        """Keep a sample, or why there is none; True for the last one."""
        with self._lock:
            self._results[place] = result
            self._missing -= 1
            return self._missing == 0

    def samples(self) -> list[Sample]:
        """All samples; raises what the first broken one raised."""
        samples = []
        for result in self._results:
            if not isinstance(result, Sample):
                raise result if result is not None else RuntimeError("a sample of this batch was not put yet")
            samples.append(result)
        return samples


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """The caller's torch operations on one core: on one clip, several cores mostly wait for each other."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


@contextmanager
def _worker_threads(workers: int) -> Iterator[ThreadPoolExecutor]:
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
