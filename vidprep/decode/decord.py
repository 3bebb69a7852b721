"""decord (legacy: unmaintained since 2021) behind the same interface; needs the `decord` extra."""

import io
from collections.abc import Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vidprep.decode.pyav import check_indices, describe, require_file
from vidprep.decode.types import FrameBatch
from vidprep.errors import CorruptVideo, MissingPackage

__all__ = ["DecordReader"]


class DecordReader:
    """A video read by `decord.VideoReader(num_threads=1)`: for comparison with code that used it.

    Known to differ from a plain decode: wrong frames near the key frames of open GOPs, at times a wrong last frame
    and always meaningless times of AVI; no AV1, no WebM without a duration. Use "pyav" instead.

    Raises:
        MissingPackage: decord is not installed.
        MissingVideo: no such file.
        CorruptVideo: decord cannot open it.
    """

    def __init__(self, source: str | Path | bytes) -> None:
        try:
            decord: Any = import_module("decord")
        except ImportError as error:
            raise MissingPackage(
                "Decoding with decord needs the `decord` extra: pip install 'vidprep[decord]'."
            ) from error
        self._name = describe(source)
        if not isinstance(source, bytes):
            require_file(Path(source))
        self._error: type[Exception] = decord.DECORDError
        try:
            self._reader: Any = decord.VideoReader(
                io.BytesIO(source) if isinstance(source, bytes) else str(source), num_threads=1
            )
            if not len(self._reader):
                raise CorruptVideo(f"{self._name}: decord finds no frame in it.")
        except (self._error, RuntimeError) as error:
            raise CorruptVideo(f"{self._name}: decord cannot open it: {_first_line(error)}.") from error

    @property
    def num_frames(self) -> int:
        """Frames that decord counts."""
        return len(self._reader)

    @property
    def height(self) -> int:
        """Pixels, of the first frame."""
        return int(self._first_frame.shape[0])

    @property
    def width(self) -> int:
        """Pixels, of the first frame."""
        return int(self._first_frame.shape[1])

    @cached_property
    def _first_frame(self) -> NDArray[np.uint8]:
        first: NDArray[np.uint8] = self._read([0])[0]
        return first

    @cached_property
    def pts_seconds(self) -> NDArray[np.float64]:
        """(num_frames,) when decord shows each frame; single precision."""
        times = self._reader.get_frame_timestamp(range(self.num_frames))
        return np.asarray(times, dtype=np.float64)[:, 0]

    def get_frames_at(self, indices: Sequence[int] | NDArray[np.int64]) -> FrameBatch:
        """Frames at `indices` (t,), in that order; an index may repeat.

        Raises:
            IndexError: an index outside 0 ... num_frames - 1.
            CorruptVideo: decord cannot decode them.
        """
        wanted = check_indices(indices, num_frames=self.num_frames, name=self._name)
        data = self._read(wanted) if wanted else np.empty((0, self.height, self.width, 3), dtype=np.uint8)
        return FrameBatch(data=data.transpose(0, 3, 1, 2), pts_seconds=self.pts_seconds[wanted])

    def _read(self, indices: list[int]) -> NDArray[np.uint8]:
        try:
            frames: NDArray[np.uint8] = self._reader.get_batch(indices).asnumpy()
        except (self._error, RuntimeError) as error:
            raise CorruptVideo(f"{self._name}: decord cannot decode it: {_first_line(error)}.") from error
        return frames

    def close(self) -> None:
        """Let go of the file."""
        self._reader = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _first_line(error: Exception) -> str:
    # decord's messages begin with the time of day and a place in its source: "[10:00:00] a/b.cc:151: Check failed".
    lines = str(error).strip().splitlines()
    return lines[0].split(": ", 1)[-1].rstrip(".") if lines else type(error).__name__
