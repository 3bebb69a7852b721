"""What a data set yields (`Sample`) and what a loader yields (`Batch`)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["Allocate", "Batch", "FrameTargets", "Sample", "Targets", "as_frames", "frames_in_memory", "new_frames"]

Allocate = Callable[[tuple[int, ...], torch.dtype], Tensor]
"""Memory for frames (..., c, h, w) of a type; what is in it is of no importance, and all of it is written."""


def new_frames(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory for frames of `shape` (..., c, h, w); of bytes, a view of (..., h, w, c), in which decoders write them."""
    return as_frames(torch.empty(frames_in_memory(shape, dtype), dtype=dtype))


def frames_in_memory(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[int, ...]:
    """How frames of `shape` (..., c, h, w) lie in memory: (..., h, w, c) for bytes, as they are for floats."""
    *leading, c, h, w = shape
    return (*leading, h, w, c) if dtype == torch.uint8 else shape


def as_frames(memory: Tensor) -> Tensor:
    """Memory of `frames_in_memory` as frames (..., c, h, w), a view."""
    return memory.movedim(-1, -3) if memory.dtype == torch.uint8 else memory


@dataclass(frozen=True, kw_only=True)
class FrameTargets:
    """The n objects that are to be found in one frame."""

    boxes: Tensor
    """(n, 4) float32: left, top, right, bottom in pixels of the frame as the model sees it."""
    labels: Tensor
    """(n,) int64: the class of each."""
    track_ids: Tensor
    """(n,) int64: the same number for the same object, in all frames of a video."""
    is_occluded: Tensor
    """(n,) bool."""
    is_generated: Tensor
    """(n,) bool: interpolated between frames by the annotators, not drawn."""

    def __post_init__(self) -> None:
        num_boxes = len(self.labels)
        if self.boxes.shape != (num_boxes, 4):
            raise ValueError(f"{num_boxes} labels need boxes (n, 4), got shape {tuple(self.boxes.shape)}")
        for name in ("track_ids", "is_occluded", "is_generated"):
            if getattr(self, name).shape != (num_boxes,):
                raise ValueError(f"{num_boxes} boxes need as many {name}, got shape {tuple(getattr(self, name).shape)}")

    def to(self, device: torch.device | str) -> "FrameTargets":
        """The same on `device`."""
        return FrameTargets(
            boxes=self.boxes.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            track_ids=self.track_ids.to(device, non_blocking=True),
            is_occluded=self.is_occluded.to(device, non_blocking=True),
            is_generated=self.is_generated.to(device, non_blocking=True),
        )


Targets = Sequence[Sequence[FrameTargets]]
"""[v][t]: the objects of each frame of each view; lists, since frames have different numbers of them."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One video as clips, ready for a model."""

    video_id: str
    frames: Tensor
    """(v, t, c, h, w): v views = clips x crops, 1 in training; RGB; float32 normalised, or uint8 as decoded."""
    labels: Tensor
    """() int64: the class, for single-label tasks; (k,) float32 of zeros and ones for multi-label ones; (2,) int64,
    verb and noun, for verb_noun; for detection (k,) float32, one for each class that a box of the clip has."""
    pts_seconds: Tensor
    """(v, t) float64: when each frame is shown, in seconds."""
    targets: Targets | None = None
    """[v][t], for detection: the objects in each frame; None for other tasks and where nothing is annotated."""
    shown_size: tuple[int, int] | None = None
    """(height, width) of the picture in the upper left of padded frames; None where it fills them."""

    def __post_init__(self) -> None:
        if self.frames.ndim != 5:
            raise ValueError(f"{self.video_id}: frames must be (v, t, c, h, w), got shape {tuple(self.frames.shape)}")
        if self.pts_seconds.shape != self.frames.shape[:2]:
            raise ValueError(
                f"{self.video_id}: pts_seconds must be (v, t) = {tuple(self.frames.shape[:2])}, "
                f"got {tuple(self.pts_seconds.shape)}"
            )
        if self.targets is not None and any(len(view) != self.frames.shape[1] for view in self.targets):
            lengths = [len(view) for view in self.targets]
            raise ValueError(f"{self.video_id}: {self.frames.shape[1]} frames need as many targets, got {lengths}")
        if self.targets is not None and len(self.targets) != self.frames.shape[0]:
            raise ValueError(
                f"{self.video_id}: {self.frames.shape[0]} views need as many targets, got {len(self.targets)}"
            )


@dataclass(frozen=True, kw_only=True)
class Batch:
    """b samples of equal shape."""

    video_id: Sequence[str]
    frames: Tensor
    """(b, v, t, c, h, w) float32, or uint8 where the settings ask for bytes."""
    labels: Tensor
    """(b,) int64, (b, k) float32, or (b, 2) int64 for verb_noun."""
    pts_seconds: Tensor
    """(b, v, t) float64."""
    targets: Sequence[Targets] | None = None
    """[b][v][t], for detection."""
    shown_sizes: Sequence[tuple[int, int]] | None = None
    """b times (height, width) of the picture in the upper left of padded frames; None where it fills them."""

    def __post_init__(self) -> None:
        if self.frames.ndim != 6:
            raise ValueError(f"frames must be (b, v, t, c, h, w), got shape {tuple(self.frames.shape)}")
        if not len(self.video_id) == len(self.frames) == len(self.labels) == len(self.pts_seconds):
            raise ValueError(
                f"a batch's parts must be equally long, got {len(self.video_id)} ids, {len(self.frames)} clips, "
                f"{len(self.labels)} labels, {len(self.pts_seconds)} time stamps"
            )
        if self.targets is not None and len(self.targets) != len(self.frames):
            raise ValueError(f"{len(self.frames)} samples need as many targets, got {len(self.targets)}")
        if self.shown_sizes is not None and len(self.shown_sizes) != len(self.frames):
            raise ValueError(f"{len(self.frames)} samples need as many shown_sizes, got {len(self.shown_sizes)}")

    @classmethod
    def stack(cls, samples: Sequence[Sample], *, frames: Tensor | None = None) -> "Batch":
        """Collate samples of equal shape; `frames` (b, v, t, c, h, w) are theirs, where they lie together already.

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
        targets = [sample.targets for sample in samples if sample.targets is not None]
        if targets and len(targets) < len(samples):
            without = next(sample.video_id for sample in samples if sample.targets is None)
            raise ValueError(f"either all samples of a batch have targets or none, {without} has none")
        shown = [sample.shown_size for sample in samples if sample.shown_size is not None]
        if shown and len(shown) < len(samples):
            raise ValueError("either all samples of a batch are padded or none; fit them alike")
        return cls(
            video_id=[sample.video_id for sample in samples],
            frames=torch.stack([sample.frames for sample in samples]) if frames is None else frames,
            labels=torch.stack([sample.labels for sample in samples]),
            pts_seconds=torch.stack([sample.pts_seconds for sample in samples]),
            targets=targets or None,
            shown_sizes=shown or None,
        )

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch with its tensors on `device` (asynchronously from pinned memory)."""
        return replace(
            self,
            frames=self.frames.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            targets=None
            if self.targets is None
            else [[[frame.to(device) for frame in view] for view in sample] for sample in self.targets],
        )
