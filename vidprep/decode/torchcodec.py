"""torchcodec (FFmpeg in C++, exact seek mode) behind the same interface; needs the `torchcodec` extra."""

from collections.abc import Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vidprep.decode.pyav import PyavReader, check_indices, describe, open_container, stores_times
from vidprep.decode.types import FrameBatch
from vidprep.errors import CorruptVideo, MissingPackage, UsageError

__all__ = ["TorchcodecReader"]


class TorchcodecReader:
    """A video read by `torchcodec.decoders.VideoDecoder(seek_mode="exact")`, with one decoding thread.

    Exact mode scans the packets, so that frame i is the frame that `PyavReader` gives; its colours may differ
    a little (another version of FFmpeg, another conversion to RGB). Approximate mode guesses indices from the
    average frame rate and gives wrong frames on variable frame rates and open GOPs: it is not offered. Some
    frames of H.264 with open GOPs are lost (an error says so), and files without a time for each frame (AVI) are
    refused, because its frames are then not in order.

    Raises:
        MissingPackage: torchcodec is not installed, or does not find FFmpeg's libraries.
        MissingVideo: no such file.
        CorruptVideo: torchcodec cannot open it.
        UsageError: a file without a time for each frame, such as AVI.
    """

    def __init__(self, source: str | Path | bytes) -> None:
        try:
            decoders: Any = import_module("torchcodec.decoders")
        except ImportError as error:
            raise MissingPackage(
                "Decoding with torchcodec needs the `torchcodec` extra: pip install 'vidprep[torchcodec]'."
            ) from error
        except RuntimeError as error:  # its shared library does not load
            raise MissingPackage(
                "torchcodec is installed but does not load: it needs FFmpeg's shared libraries (apt install ffmpeg) "
                "and the torch version that it was built for."
            ) from error
        self._source = source
        self._name = describe(source)
        container, _ = open_container(source)
        with container:
            if not stores_times(container):
                raise UsageError(
                    f"{self._name}: a file of format {container.format.name} stores no time for each frame, "
                    f"and torchcodec gives wrong frames of it; use backend 'pyav'."
                )
        try:
            self._decoder: Any = decoders.VideoDecoder(
                source if isinstance(source, bytes) else str(source), seek_mode="exact", num_ffmpeg_threads=1
            )
        except (RuntimeError, ValueError) as error:
            raise CorruptVideo(f"{self._name}: torchcodec cannot open it: {_first_line(error)}.") from error

    @property
    def num_frames(self) -> int:
        """Frames of the stream."""
        return len(self._decoder)

    @property
    def height(self) -> int:
        """Pixels, upright."""
        return int(self._decoder.metadata.height)

    @property
    def width(self) -> int:
        """Pixels, upright."""
        return int(self._decoder.metadata.width)

    @cached_property
    def pts_seconds(self) -> NDArray[np.float64]:
        """(num_frames,) when each frame is shown, as stored.

        torchcodec gives times only together with decoded frames: these are read from the packets by PyAV.
        """
        with PyavReader(self._source) as reader:
            if reader.num_frames != self.num_frames:
                raise CorruptVideo(
                    f"{self._name}: torchcodec counts {self.num_frames} frames, {reader.num_frames} decode; "
                    f"read it with backend 'pyav'."
                )
            return reader.pts_seconds

    def get_frames_at(self, indices: Sequence[int] | NDArray[np.int64]) -> FrameBatch:
        """Frames at `indices` (t,), in that order; an index may repeat.

        Raises:
            IndexError: an index outside 0 ... num_frames - 1.
            CorruptVideo: a frame that was asked for does not decode.
        """
        wanted = check_indices(indices, num_frames=self.num_frames, name=self._name)
        if not wanted:
            empty = np.empty((0, 3, self.height, self.width), dtype=np.uint8)
            return FrameBatch(data=empty, pts_seconds=np.empty(0))
        try:
            batch = self._decoder.get_frames_at(wanted)
        except (RuntimeError, ValueError, IndexError) as error:
            raise CorruptVideo(f"{self._name}: torchcodec cannot decode it: {_first_line(error)}.") from error
        return FrameBatch(data=batch.data.numpy(), pts_seconds=batch.pts_seconds.numpy())

    def close(self) -> None:
        """Let go of the file."""
        self._decoder = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
