"""Clips whose frames are decoded when they are asked for: for models that look at some, and then decide about others.

    clips.take(all, first)       decoded ahead, by the workers
    clips.take(some, chosen)     decoded now; nobody asks for the frames of the others, and nobody decodes them

The pixels are those that a loader gives: the same frames, crop and normalisation.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager, nullcontext
from types import TracebackType
from typing import Protocol, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidprep.decode.types import VideoReader
from vidprep.errors import CorruptVideo, UsageError
from vidprep.index import sample_id
from vidprep.load.dataset import SampleMaker, pictures
from vidprep.load.loader import worker_threads
from vidprep.load.transforms import Window
from vidprep.load.types import new_frames
from vidprep.types import Video

__all__ = ["ClipOnDemand", "ClipsOnDemand", "OpenableSource", "iterate_on_demand"]

_Argument = TypeVar("_Argument")
_Result = TypeVar("_Result")


class OpenableSource(Protocol):
    """Videos that can be opened one by one: `ShardDataset` and `ClipDataset`."""

    make: SampleMaker
    videos: list[Video]

    def __len__(self) -> int: ...

    def open_reader(self, index: int) -> tuple[VideoReader, NDArray[np.float64] | None]:
        """Sample `index`, opened; and the times of its frames where the reader does not know them."""
        ...


class ClipOnDemand:
    """The evaluation clip of one video, one view, of which each frame is decoded at most once: when it is asked for.

    Several threads may ask; they wait for each other. `close` lets go of the video, and keeps what was decoded.

    Args:
        source: where the video is.
        index: of the sample in it.

    Raises:
        UsageError: settings of training, of more than one view or of whole frames, or a detection task.
        CorruptVideo: the video cannot be opened, or its annotated segment holds no frame.
    """

    def __init__(self, source: OpenableSource, index: int) -> None:
        make, video = source.make, source.videos[index]
        settings = make.settings
        if settings.train or settings.whole_frames or settings.num_clips > 1 or settings.num_crops > 1:
            raise UsageError(
                "frames are handed out on demand for one clip and one crop of a video in evaluation, without "
                "whole_frames; set num_clips = 1 and num_crops = 1."
            )
        if make.task == "detection":
            raise UsageError("frames are not handed out on demand for detection, whose labels are those of its frames.")
        self.video_id = sample_id(video)
        self.labels: Tensor = make.encode(video.labels)
        self._make, self._video = make, video
        self._lock = threading.Lock()
        self._window: Window | None = None
        self._done: dict[int, Tensor] = {}
        with _named(self.video_id):
            self._reader, times = source.open_reader(index)
            try:
                self._times = self._reader.pts_seconds if times is None else times
                self._index: list[int] = make.choose(self._times, video, None)[0].tolist()
            except BaseException:
                self._reader.close()
                raise

    def __len__(self) -> int:
        """t, frames of the clip."""
        return len(self._index)

    @property
    def num_decoded(self) -> int:
        """Frames of the video that were asked for so far; one that the clip shows twice counts once."""
        return len(self._done)

    @property
    def num_distinct(self) -> int:
        """Frames of the video that the whole clip shows."""
        return len(set(self._index))

    def frames(self, places: Sequence[int]) -> Tensor:
        """The clip's frames (j, c, h, w) at `places`, 0 ... t - 1, in that order.

        Raises:
            CorruptVideo: one of them does not decode; names the video.
        """
        indices = [self._index[place] for place in places]
        with self._lock, _named(self.video_id):
            wanted = sorted(set(indices).difference(self._done))
            if wanted:
                self._decode(wanted)
            return torch.stack([self._done[index] for index in indices])

    def close(self) -> None:
        """Let go of the video."""
        with self._lock:
            self._reader.close()

    def _decode(self, wanted: list[int]) -> None:
        memory: Tensor | None = None
        for place, picture in enumerate(pictures(self._reader, wanted)):
            height, width = picture.shape[:2]
            if self._window is None:
                plan = self._make.plan(self._times, self._video, height=height, width=width, rng=None)
                self._window, self._size = plan.windows[0], (height, width)
            if (height, width) != self._size:
                raise CorruptVideo(
                    f"frame {wanted[place]} is {width}x{height} pixels, others {self._size[1]}x{self._size[0]}; "
                    "re-encode the video to one size."
                )
            if memory is None:
                memory = new_frames((1, len(wanted), 3, *self._window.view_size), self._window.dtype)
                write = self._window.writer(memory)
            write(picture, place)
            self._done[wanted[place]] = memory[0, place]


class ClipsOnDemand:
    """A batch of n clips whose frames are handed out by `take`; the first ones are decoded ahead.

    Args:
        source: where the videos are.
        indices: of the n samples.
        first: places in a clip of frames that all videos need.
        pool: threads that decode; None: the caller's.
    """

    def __init__(
        self, source: OpenableSource, indices: Sequence[int], *, first: Sequence[int], pool: Executor | None = None
    ) -> None:
        settings = source.make.settings
        self.shape = (len(indices), settings.num_frames, 3, settings.crop, settings.crop)
        """(n, t, c, h, w) of all frames together."""
        self.seconds_waited = self.cpu_seconds_waited = 0.0
        """Wall clock that `take` took so far, and CPU time of the process meanwhile."""
        self._source, self._first, self._pool = source, list(first), pool
        self._opened: list[Future[ClipOnDemand]] = [_run(pool, self._open, index) for index in indices]

    def _open(self, index: int) -> ClipOnDemand:
        clip = ClipOnDemand(self._source, index)
        clip.frames(self._first)
        return clip

    @property
    def clips(self) -> list[ClipOnDemand]:
        """The n clips, with the first frames decoded.

        Raises:
            CorruptVideo: one of them cannot be opened or decoded; names it.
        """
        return [clip.result() for clip in self._opened]

    @property
    def video_id(self) -> list[str]:
        """Of each clip."""
        return [clip.video_id for clip in self.clips]

    @property
    def labels(self) -> Tensor:
        """(n,) or (n, k), as of `Batch`."""
        return torch.stack([clip.labels for clip in self.clips])

    @property
    def num_decoded(self) -> int:
        """Frames of all videos that were asked for so far."""
        return sum(clip.num_decoded for clip in self.clips)

    @property
    def num_distinct(self) -> int:
        """Frames of all videos that a loader of whole clips decodes."""
        return sum(clip.num_distinct for clip in self.clips)

    def take(self, rows: Tensor, places: Tensor) -> Tensor:
        """Frames of some clips.

        Args:
            rows: (m,) int64: which clips.
            places: (m, j) int64: which frames of each, of 0 ... t - 1.

        Returns:
            (m, j, c, h, w).

        Raises:
            CorruptVideo: a frame does not decode; names the video.
        """
        started, cpu_started = time.perf_counter(), time.process_time()
        clips = [self._opened[row].result() for row in rows.tolist()]
        frames = [_run(self._pool, clip.frames, at) for clip, at in zip(clips, places.tolist(), strict=True)]
        taken = torch.stack([part.result() for part in frames])
        self.seconds_waited += time.perf_counter() - started
        self.cpu_seconds_waited += time.process_time() - cpu_started
        return taken

    def close(self) -> None:
        """Let go of the videos that were opened, and open no more."""
        for clip in self._opened:
            if not clip.cancel() and clip.exception() is None:
                clip.result().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def iterate_on_demand(
    source: OpenableSource, *, batch_size: int, first: Sequence[int], workers: int
) -> Iterator[ClipsOnDemand]:
    """All samples in their order, in batches of clips on demand; each is closed when the next one is asked for.

    Args:
        source: where the videos are.
        batch_size: videos of a batch; the last one may have fewer.
        first: places in a clip of the frames that all videos need: workers decode those of the next batch meanwhile.
        workers: threads that decode; 0: the caller's own.

    Raises:
        UsageError: a batch size below 1 or workers below 0.
    """
    if batch_size < 1 or workers < 0:
        raise UsageError(f"batches on demand need batch_size >= 1 and workers >= 0, got {batch_size} and {workers}.")
    ready: deque[ClipsOnDemand] = deque()
    num_ahead = 1 if workers else 0
    with worker_threads(workers) if workers else nullcontext() as pool:
        try:
            for start in range(0, len(source), batch_size):
                indices = range(start, min(start + batch_size, len(source)))
                ready.append(ClipsOnDemand(source, indices, first=first, pool=pool))
                if len(ready) > num_ahead:
                    yield ready[0]
                    ready.popleft().close()
            while ready:
                yield ready[0]
                ready.popleft().close()
        finally:
            for batch in ready:
                batch.close()


def _run(pool: Executor | None, function: Callable[[_Argument], _Result], argument: _Argument) -> "Future[_Result]":
    if pool is not None:
        return pool.submit(function, argument)
    done: Future[_Result] = Future()
    done.set_result(function(argument))
    return done


@contextmanager
def _named(video_id: str) -> Iterator[None]:
    """Say which video a fault is of."""
    try:
        yield
    except CorruptVideo as error:
        raise CorruptVideo(f"{video_id} gives no clip: {error}") from error
