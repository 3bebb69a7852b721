"""What every decoder gives: frames that carry their own time stamps, read by index."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

__all__ = ["FrameBatch", "VideoReader"]


@dataclass(frozen=True, kw_only=True)
class FrameBatch:
    """Frames of one video, upright, in RGB."""

    data: NDArray[np.uint8]
    """(t, c, h, w) uint8; may be a permuted view of (t, h, w, c) memory."""
    pts_seconds: NDArray[np.float64]
    """(t,) when each frame is shown; NaN where the source holds no times (JPEG folders without a frame rate)."""

    def __post_init__(self) -> None:
        if self.data.ndim != 4 or self.data.dtype != np.uint8:
            raise ValueError(f"frames must be uint8 (t, c, h, w), got {self.data.dtype} {self.data.shape}")
        if self.pts_seconds.shape != self.data.shape[:1]:
            raise ValueError(f"{len(self.data)} frames need as many time stamps, got {self.pts_seconds.shape}")

    def to_torch(self) -> "torch.Tensor":
        """The same memory as a uint8 tensor (t, c, h, w)."""
        import torch

        return torch.from_numpy(self.data)


class VideoReader(Protocol):
    """An opened video. Frame i is the i-th frame, in presentation order, that a decode of the whole stream yields."""

    @property
    def num_frames(self) -> int:
        """Frames that the stream decodes to."""
        ...

    @property
    def height(self) -> int:
        """Pixels, upright (after the display rotation)."""
        ...

    @property
    def width(self) -> int:
        """Pixels, upright (after the display rotation)."""
        ...

    @property
    def pts_seconds(self) -> NDArray[np.float64]:
        """(num_frames,) presentation times in seconds, ascending, as stored in the file."""
        ...

    def get_frames_at(self, indices: Sequence[int] | NDArray[np.int64]) -> FrameBatch:
        """Frames at `indices` (t,), in that order; an index may repeat.

        Raises:
            IndexError: an index outside 0 ... num_frames - 1.
            CorruptVideo: a frame that was asked for does not decode.
        """
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
