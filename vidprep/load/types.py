"""What a data set yields (`Sample`) and what a loader yields (`Batch`)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Batch", "Sample"]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One video as clips, ready for a model."""

    video_id: str
    frames: Tensor
    """(v, t, c, h, w) float: v views = clips x crops, 1 in training; RGB, normalised."""
    labels: Tensor
    """() int64: the class, for single-label tasks; (k,) float32 of zeros and ones for multi-label ones."""
    pts_seconds: Tensor
    """(v, t) float64: when each frame is shown, in seconds."""

    def __post_init__(self) -> None:
        if self.frames.ndim != 5:
            raise ValueError(f"{self.video_id}: frames must be (v, t, c, h, w), got shape {tuple(self.frames.shape)}")
        if self.pts_seconds.shape != self.frames.shape[:2]:
            raise ValueError(
                f"{self.video_id}: pts_seconds must be (v, t) = {tuple(self.frames.shape[:2])}, "
                f"got {tuple(self.pts_seconds.shape)}"
            )


@dataclass(frozen=True, kw_only=True)
class Batch:
    """b samples of equal shape."""

    video_id: Sequence[str]
    frames: Tensor
    """(b, v, t, c, h, w) float."""
    labels: Tensor
    """(b,) int64 or (b, k) float32."""
    pts_seconds: Tensor
    """(b, v, t) float64."""

    def __post_init__(self) -> None:
        if self.frames.ndim != 6:
            raise ValueError(f"frames must be (b, v, t, c, h, w), got shape {tuple(self.frames.shape)}")
        if not len(self.video_id) == len(self.frames) == len(self.labels) == len(self.pts_seconds):
            raise ValueError(
                f"a batch's parts must be equally long, got {len(self.video_id)} ids, {len(self.frames)} clips, "
                f"{len(self.labels)} labels, {len(self.pts_seconds)} time stamps"
            )

    @classmethod
    def stack(cls, samples: Sequence[Sample]) -> "Batch":
        """Collate samples of equal shape.

        Raises:
            ValueError: no samples, or clips of different shapes.
        """
        if not samples:
            raise ValueError("a batch needs at least one sample, got none")
        shapes = {tuple(sample.frames.shape) for sample in samples}
        if len(shapes) > 1:
            raise ValueError(
                f"clips of one batch must have one shape, got {sorted(shapes)}; resize and crop them alike"
            )
        return cls(
            video_id=[sample.video_id for sample in samples],
            frames=torch.stack([sample.frames for sample in samples]),
            labels=torch.stack([sample.labels for sample in samples]),
            pts_seconds=torch.stack([sample.pts_seconds for sample in samples]),
        )

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch with its tensors on `device` (asynchronously from pinned memory)."""
        return Batch(
            video_id=self.video_id,
            frames=self.frames.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            pts_seconds=self.pts_seconds,
        )
