"""The central values of vidprep; each checks itself when it is made and then travels unchanged."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, get_args

__all__ = [
    "Access",
    "Box",
    "DatasetInfo",
    "FrameAnnotation",
    "FrameFormat",
    "Media",
    "RemoteFile",
    "Subsampling",
    "Task",
    "Video",
]

Task = Literal["single_label", "multi_label", "verb_noun", "detection"]
Media = Literal["video", "frames"]
"""A file a video, or a folder of images a video."""
Subsampling = Literal["420", "422", "444"]
"""Of colour against brightness in JPEG: half as wide and high, half as wide, the same."""
Access = Literal["open", "form", "youtube", "generated", "own"]
"""How the videos are got: plain download, after a form or by e-mail, from YouTube, made by us, the user has them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Video:
    """One row of a split: a video, or an annotated segment of one."""

    video_id: str
    labels: tuple[int, ...] = ()
    """Class indices: one for single-label, several (first-appearance order) for multi-label, (verb, noun) for
    verb_noun; () when unlabelled, and for detection, whose boxes lie beside the frames."""
    start_seconds: float | None = None
    """Start of the annotated segment; None means the whole file."""
    end_seconds: float | None = None
    segment_id: str = ""
    """The publisher's own name of the segment (EPIC's narration_id), "" where there is none."""
    duration_seconds: float | None = None
    """Length of the whole video, as its annotations state it; `vidprep verify` compares it with the file's."""
    num_frames: int | None = None
    """The same in frames, for annotations that count these."""

    def __post_init__(self) -> None:
        if not self.video_id:
            raise ValueError("a video needs a video_id, got an empty one")
        if any(label < 0 for label in self.labels):
            raise ValueError(f"{self.video_id}: labels are class indices from 0, got {self.labels}")
        start = self.start_seconds or 0.0
        if start < 0 or (self.end_seconds is not None and self.end_seconds <= start):
            raise ValueError(
                f"{self.video_id}: a segment needs 0 <= start < end seconds, "
                f"got {self.start_seconds} to {self.end_seconds}"
            )
        if self.duration_seconds is not None and not 0 < self.duration_seconds < math.inf:
            raise ValueError(f"{self.video_id}: a video lasts more than 0 seconds, got {self.duration_seconds}")
        if self.num_frames is not None and self.num_frames < 1:
            raise ValueError(f"{self.video_id}: a video has at least 1 frame, got {self.num_frames}")


@dataclass(frozen=True, kw_only=True)
class Box:
    """One object in one frame."""

    xyxy: tuple[float, float, float, float]
    """Left, top, right, bottom in pixels, as published: the right edge may equal the width."""
    label: int
    """Class index from 0."""
    track_id: int
    is_occluded: bool = False
    is_generated: bool = False
    """Placed by interpolation between frames, not by hand."""

    def __post_init__(self) -> None:
        left, top, right, bottom = self.xyxy
        if not (0 <= left <= right and 0 <= top <= bottom):
            raise ValueError(f"a box is left, top, right, bottom with 0 <= left <= right, got {self.xyxy}")
        if self.label < 0:
            raise ValueError(f"a label is a class index from 0, got {self.label}")


@dataclass(frozen=True, kw_only=True)
class FrameAnnotation:
    """All boxes of one frame; a frame without objects has none."""

    frame_index: int
    """The number in the frame's file name; the first frame has the `first_index` of its `FrameFormat`."""
    width: int
    height: int
    boxes: tuple[Box, ...] = ()

    def __post_init__(self) -> None:
        if self.frame_index < 0 or self.width < 1 or self.height < 1:
            raise ValueError(
                f"an annotated frame needs an index from 0 and a size, got index {self.frame_index}, "
                f"{self.width} x {self.height}"
            )


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file that a data set's publisher offers."""

    url: str
    sha256: str | None = None
    md5: str | None = None
    num_bytes: int | None = None
    filename: str | None = None
    """Where it goes below the data root, with `/`; None: the last part of the URL (of a URL list: the folder)."""
    kind: Literal["file", "archive", "url_list"] = "file"
    """Kept as it is; joined and unpacked; or a text with one URL of an archive per line, which is read and expanded."""
    split: str | None = None
    """The split that needs it; None: every split does."""
    unpack_to: str = ""
    """Folder below the data root that an archive is unpacked into; "" is the data root itself."""

    def __post_init__(self) -> None:
        for what, path in (("filename", self.filename or ""), ("unpack_to", self.unpack_to)):
            if path.startswith("/") or "\\" in path or ".." in path.split("/"):
                raise ValueError(f"{self.url}: {what} lies below the data root, got {path!r}")
        for what, digest, length in (("sha256", self.sha256, 64), ("md5", self.md5, 32)):
            if digest is not None and not (len(digest) == length and set(digest) <= set("0123456789abcdef")):
                raise ValueError(f"{self.url}: {what} has {length} digits 0-9a-f, got {digest!r}")
        if self.num_bytes is not None and self.num_bytes < 0:
            raise ValueError(f"{self.url}: num_bytes must be 0 or more, got {self.num_bytes}")


@dataclass(frozen=True, kw_only=True)
class FrameFormat:
    """How frames are extracted: which ones, at what size, under which names."""

    fps: float | None = None
    """Frames per second to extract; None keeps every frame of the video, if nothing else says which."""
    rate_mode: Literal["filter", "output"] = "filter"
    """Which meaning of "5 fps": ffmpeg's `-vf fps=5` ("filter", 50 frames of 10 s) or its `-r 5` ("output", 52)."""
    num_frames: int | None = None
    """So many frames a video (or segment), the middle one of each of as many equal parts; None: not by number."""
    keyframes_only: bool = False
    """Only the frames that are stored whole, which are the cheapest to decode."""
    short_side: int | None = None
    """Length of the shorter side in pixels; None keeps the size."""
    height: int | None = None
    """Height in pixels, the width in proportion (ffmpeg `scale=-1:HEIGHT`: upright videos become narrow); or None."""
    width: int | None = None
    """Width in pixels, with `height`: exactly this size, whatever the proportions; or None."""
    jpeg_quality: int = 90
    subsampling: Subsampling = "420"
    template: str = "image_{:05d}.jpg"
    """Names of the frames; one that ends in .png stores PNG images."""
    first_index: int = 1

    def __post_init__(self) -> None:
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise ValueError(f"fps must be positive and finite, or None, got {self.fps}")
        if self.num_frames is not None and self.num_frames < 1:
            raise ValueError(f"num_frames must be at least 1 or None, got {self.num_frames}")
        if (self.fps is not None) + (self.num_frames is not None) + self.keyframes_only > 1:
            raise ValueError(
                f"frames are chosen by fps, by num_frames or as key frames, got fps {self.fps}, "
                f"num_frames {self.num_frames}, keyframes_only {self.keyframes_only}"
            )
        if self.short_side is not None and self.short_side < 1:
            raise ValueError(f"short_side must be at least 1 pixel or None, got {self.short_side}")
        if self.height is not None and (self.height < 1 or self.short_side is not None):
            raise ValueError(f"height is 1 pixel or more and goes without short_side, got {self.height}")
        if self.width is not None and (self.width < 1 or self.height is None):
            raise ValueError(f"width is 1 pixel or more and goes with height, got {self.width}")
        if self.subsampling not in get_args(Subsampling):
            raise ValueError(f"subsampling is one of {', '.join(get_args(Subsampling))}, got {self.subsampling!r}")
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
    """None when the data say it themselves (`folder`); of verb_noun: the verbs."""
    splits: Mapping[str, int | None]
    """Split name -> published number of videos (None: not published); reported, never asserted."""
    video_paths: tuple[str, ...]
    """Glob patterns below the data root, tried in order, with the fields {split}, {video_id} and, of Kinetics'
    `{youtube_id}_{start:06d}_{end:06d}`, {start_seconds}: the start without zeros; {video_id:.11} is the YouTube id."""
    media: Media = "video"
    """What `video_paths` name: video files, or folders of images called as `frames` says."""
    frames: FrameFormat = field(default_factory=FrameFormat)
    """How frames were published (media "frames"), or are extracted by the code that made the data set's lists."""
    num_noun_classes: int | None = None
    """Of verb_noun only."""
    description: str = ""
    """What it is, in a sentence or two."""
    access: Access = "open"
    files: tuple[RemoteFile, ...] = ()
    """What its publisher offers, annotations first; for "form", only to be fetched once its terms are accepted."""
    archives: tuple[str, ...] = ()
    """Glob patterns of the file names of its archives and their parts, as users hold them after the form."""
    archive_md5: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """File name of an archive -> its published md5, where one is."""
    traps: tuple[str, ...] = ()
    """What has misled people about it, one sentence each."""
    instructions: str = ""
    flip_pairs: Mapping[int, int] = field(default_factory=lambda: MappingProxyType({}))
    """Class -> class that a horizontal flip turns it into; a class mapped to itself is unchanged."""
    homepage: str = ""
    licence: str = ""
    paper: str = ""

    def __post_init__(self) -> None:
        if self.num_classes is not None and self.num_classes < 1:
            raise ValueError(f"{self.name}: num_classes must be at least 1, got {self.num_classes}")
        if (self.num_noun_classes is not None) != (self.task == "verb_noun"):
            raise ValueError(f"{self.name}: num_noun_classes is for verb_noun, got {self.num_noun_classes}")
        if not self.video_paths:
            raise ValueError(f"{self.name}: video_paths is empty; give at least one pattern")
