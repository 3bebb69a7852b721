"""The central values of vidprep; each checks itself when it is made and then travels unchanged."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

__all__ = ["DatasetInfo", "FrameFormat", "RemoteFile", "Task", "Video"]

Task = Literal["single_label", "multi_label", "detection"]


@dataclass(frozen=True, kw_only=True)
class Video:
    """One row of a split: a video, or an annotated segment of one."""

    video_id: str
    labels: tuple[int, ...] = ()
    """Class indices: one for single-label, several (first-appearance order) for multi-label, () when unlabelled."""
    start_seconds: float | None = None
    """Start of the annotated segment; None means the whole file."""
    end_seconds: float | None = None

    def __post_init__(self) -> None:
        if not self.video_id:
            raise ValueError("a video needs a video_id, got an empty one")
        if any(label < 0 for label in self.labels):
            raise ValueError(f"{self.video_id}: labels are class indices from 0, got {self.labels}")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"{self.video_id}: labels repeat: {self.labels}")
        start = self.start_seconds or 0.0
        if start < 0 or (self.end_seconds is not None and self.end_seconds <= start):
            raise ValueError(
                f"{self.video_id}: a segment needs 0 <= start < end seconds, "
                f"got {self.start_seconds} to {self.end_seconds}"
            )


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file that a data set's publisher offers."""

    url: str
    sha256: str | None = None
    num_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class FrameFormat:
    """How frames are extracted: which ones, at what size, under which names."""

    fps: float | None = None
    """Frames per second to extract; None keeps every frame of the video."""
    rate_mode: Literal["filter", "output"] = "filter"
    """Which meaning of "5 fps": ffmpeg's `-vf fps=5` ("filter", 50 frames of 10 s) or its `-r 5` ("output", 52)."""
    short_side: int | None = None
    """Length of the shorter side in pixels; None keeps the size."""
    jpeg_quality: int = 90
    template: str = "image_{:05d}.jpg"
    first_index: int = 1

    def __post_init__(self) -> None:
        if self.fps is not None and self.fps <= 0:
            raise ValueError(f"fps must be positive or None, got {self.fps}")
        if self.short_side is not None and self.short_side < 1:
            raise ValueError(f"short_side must be at least 1 pixel or None, got {self.short_side}")
        if not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f"jpeg_quality lies between 1 and 100, got {self.jpeg_quality}")
        if self.first_index < 0:
            raise ValueError(f"first_index must be 0 or more, got {self.first_index}")
        if self.template.format(0) == self.template.format(1):
            raise ValueError(f"template needs a number field such as {{:05d}}, got {self.template!r}")


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What a data set is: its classes and splits, where its files lie, how it is got."""

    name: str
    title: str
    task: Task
    num_classes: int | None
    """None when the data say it themselves (`folder`)."""
    splits: Mapping[str, int | None]
    """Split name -> published number of videos (None: not published); reported, never asserted."""
    video_paths: tuple[str, ...]
    """Glob patterns below the data root, tried in order, with the fields {split} and {video_id}."""
    frames: FrameFormat = field(default_factory=FrameFormat)
    files: tuple[RemoteFile, ...] = ()
    """Empty: obtained on request, see `instructions`."""
    instructions: str = ""
    flip_pairs: Mapping[int, int] = field(default_factory=lambda: MappingProxyType({}))
    """Class -> class that a horizontal flip turns it into; a class mapped to itself is unchanged."""
    homepage: str = ""
    licence: str = ""
    paper: str = ""

    def __post_init__(self) -> None:
        if self.num_classes is not None and self.num_classes < 1:
            raise ValueError(f"{self.name}: num_classes must be at least 1, got {self.num_classes}")
        if not self.video_paths:
            raise ValueError(f"{self.name}: video_paths is empty; give at least one pattern")
