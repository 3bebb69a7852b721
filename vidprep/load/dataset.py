"""From a video to a sample, and the data set of video files: which frames, decoded, transformed, with their labels.

    index   = options.indices(num_frames, rng)      integers      (clips, t)
    frames  = reader.get_frames_at(index)           pixels        (clips * t, c, h, w) uint8
    sample  = transform(frames)                     a Sample      (v, t, c, h, w) float32

What is random in sample i of an epoch follows from (seed, epoch, i) alone, so neither the number of
workers nor the order of reading changes a clip.
"""

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Required, Self, TypedDict, Unpack, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from vidprep import datasets
from vidprep.decode import Backend, open_video
from vidprep.decode.jpeg import JpegReader
from vidprep.decode.pyav import PyavReader
from vidprep.decode.types import VideoReader
from vidprep.errors import CorruptVideo, MissingVideo, UsageError
from vidprep.index import sample_id
from vidprep.load.augment import RandAugment
from vidprep.load.transforms import (
    BoxMap,
    CropPlacement,
    EvalTransform,
    Fit,
    FitTransform,
    TrainCrop,
    TrainTransform,
    Window,
)
from vidprep.load.types import Allocate, FrameTargets, Sample, new_frames
from vidprep.sampling import (
    ClipPlacement,
    Sampler,
    Short,
    frames_between,
    sample_clips,
    sample_dense,
    sample_jittered,
    sample_segments,
    sample_strided,
    sample_window,
)
from vidprep.types import Box, FrameFormat, Task, Video

__all__ = [
    "ClipDataset",
    "ClipOptions",
    "ClipPlan",
    "ClipSettings",
    "SampleMaker",
    "check_labels",
    "open_videos",
    "pictures",
    "position",
    "reused_memory",
]


class ClipOptions(TypedDict, total=False):
    """The keyword arguments of a data set of clips; `ClipSettings` says what each one is."""

    num_frames: Required[int]
    resize: Required[int]
    crop: Required[int]
    fit: Fit
    train: bool
    sampler: Sampler
    dense_window: int
    leading_frames: int
    short: Short
    num_clips: int
    clip_placement: ClipPlacement
    num_crops: int
    crop_placement: CropPlacement
    antialias: bool
    resize_floats: bool
    num_repeats: int
    train_crop: TrainCrop
    rand_augment: str
    random_erasing: float
    scales: tuple[float, ...]
    max_aspect_step: int
    flip: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    dtype: Literal["float32", "uint8"]
    dct_scaling: bool
    whole_frames: bool
    seed: int


@dataclass(frozen=True, kw_only=True)
class ClipSettings:
    """Which clips of a video a model sees, and how they are cropped.

    Raises:
        UsageError: a setting out of its range.
    """

    num_frames: int
    """t, frames of a clip."""
    resize: int
    """Short side in pixels before the evaluation crop; with `fit` "pad" the most that it may be."""
    crop: int
    """Side of the square that the model sees, in pixels."""
    fit: Fit = "crop"
    """"pad": nothing is cut, the whole frame lies in the upper left of the square, which is black elsewhere: see
    `FitTransform`. For detection."""
    train: bool = False
    """One random clip with random crop and flip; otherwise fixed clips and crops."""
    sampler: Sampler = "segments"
    dense_window: int = 64
    """Frames that a clip of "dense", "window" and "strided" spans; its stride is window // t."""
    leading_frames: int = 0
    """Of a "jittered" clip: so many frames are sampled over the whole video on their own, and lie before the others."""
    short: Short = "last"
    """What fills up videos shorter than the clip, where there is one clip: see `sample_segments`."""
    num_clips: int = 1
    """Clips of a video in evaluation; training takes one."""
    clip_placement: ClipPlacement = "even"
    """Where several clips lie: see `sample_clips`."""
    num_crops: int = 1
    """Crops of a clip in evaluation, 1 or 3; training takes one."""
    crop_placement: CropPlacement = "along_longer_side"
    """Where three crops lie: see `EvalTransform`."""
    antialias: bool = True
    """Evaluation: resize as PIL does, or without antialias as OpenCV."""
    resize_floats: bool = False
    """Evaluation: resize normalised floats, with antialias, instead of bytes: see `EvalTransform`."""
    num_repeats: int = 1
    """Training: views of a clip, each changed and cropped anew (repeated augmentation)."""
    train_crop: TrainCrop = "multi_scale"
    """Training: how the crop is drawn: see `TrainTransform`."""
    rand_augment: str = ""
    """Training: operations on the frames, such as "rand-m7-n4-mstd0.5-inc1"; "" changes nothing."""
    random_erasing: float = 0.0
    """Training: probability that a box of the clip is filled with noise."""
    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    """Training: sides of the crop as fractions of the short side."""
    max_aspect_step: int = 1
    """Training: positions in `scales` by which a crop's two sides may differ."""
    flip: bool = True
    """Training: horizontal flip of half the clips."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of RGB in 0 ... 1, subtracted."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    dtype: Literal["float32", "uint8"] = "float32"
    """float32: normalised. uint8: the bytes, for `normalise` on the device: a quarter of the memory to copy there."""
    dct_scaling: bool = False
    """JPEG frames at least twice as large as needed are decoded at 1/2, 1/4 or 1/8 of their size: quicker, and not the
    same pixels (docs/loading.md)."""
    whole_frames: bool = False
    """The frames as they are stored, for crops on the device: neither resized nor cropped nor flipped, of one size in a
    batch; `resize`, `crop` and what belongs to them are not used."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_frames", "resize", "crop", "num_clips", "num_repeats"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.seed < 0 or self.max_aspect_step < 0:
            raise UsageError(f"seed and max_aspect_step are 0 or more, got {self.seed} and {self.max_aspect_step}.")
        choices = {
            "fit": get_args(Fit),
            "sampler": get_args(Sampler),
            "clip_placement": get_args(ClipPlacement),
            "train_crop": get_args(TrainCrop),
            "short": get_args(Short),
            "crop_placement": get_args(CropPlacement),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise UsageError(f"{name} is one of {', '.join(known)}; got {getattr(self, name)!r}.")
        if self.sampler in ("dense", "window", "strided") and self.dense_window < self.num_frames:
            raise UsageError(f"dense_window {self.dense_window} holds no clip of {self.num_frames} frames; widen it.")
        if self.clip_placement == "interleaved" and (self.sampler != "segments" or self.num_clips != 2):
            raise UsageError(
                f'clip_placement "interleaved" is for 2 clips of segments, got {self.num_clips} of {self.sampler}.'
            )
        if self.sampler == "jittered" and self.num_clips > 1:
            raise UsageError(f"a jittered clip is the only one of its video, got num_clips = {self.num_clips}.")
        most_leading = self.num_frames - 1 if self.sampler == "jittered" else 0
        if not 0 <= self.leading_frames <= most_leading:
            raise UsageError(
                f'leading_frames lies in 0 ... {most_leading} for {self.num_frames} frames of "{self.sampler}", got '
                f"{self.leading_frames}."
            )
        if not 0 <= self.random_erasing <= 1:
            raise UsageError(f"random_erasing is a probability, got {self.random_erasing}.")
        if self.rand_augment:
            RandAugment.parse(self.rand_augment)
        if self.fit == "pad":
            self._check_padded()
        elif self.crop > self.resize:
            raise UsageError(f"a crop of {self.crop} px does not fit a short side of {self.resize} px; enlarge resize.")
        if self.num_crops not in (1, 3):
            raise UsageError(f"num_crops is 1 (centre) or 3 (left, centre and right), got {self.num_crops}.")
        if not self.scales or not all(0 < scale <= 1 for scale in self.scales):
            raise UsageError(f"scales are fractions of the short side, above 0 and at most 1, got {self.scales}.")
        if self.whole_frames and (self.dct_scaling or self.num_crops > 1):
            raise UsageError("whole_frames are neither scaled nor cropped; leave dct_scaling and num_crops out.")
        if self.whole_frames and (self.rand_augment or self.random_erasing or self.num_repeats > 1):
            raise UsageError("whole_frames are not changed; leave rand_augment, random_erasing and num_repeats out.")
        if self.dtype not in ("float32", "uint8"):
            raise UsageError(f"dtype is 'float32' or 'uint8', got {self.dtype!r}.")
        if self.dtype == "uint8" and self.train and (self.random_erasing or self.train_crop == "random_resized"):
            raise UsageError(
                'random_erasing and train_crop "random_resized" give no whole grey levels; use dtype "float32".'
            )
        if self.resize_floats and not self.antialias:
            raise UsageError("resize_floats is with antialias; leave antialias on.")
        if self.resize_floats and self.dtype == "uint8" and not self.train:
            raise UsageError('resize_floats gives no whole grey levels; use dtype "float32".')
        if min(self.std) <= 0:
            raise UsageError(f"std must be positive, got {self.std}.")

    def _check_padded(self) -> None:
        if self.resize > self.crop:
            raise UsageError(
                f'fit "pad": a short side of {self.resize} px does not fit a square of {self.crop} px; enlarge crop.'
            )
        alone = {
            "num_crops": self.num_crops > 1,
            "num_repeats": self.num_repeats > 1,
            "rand_augment": bool(self.rand_augment),
            "random_erasing": self.random_erasing > 0,
            "dct_scaling": self.dct_scaling,
            "whole_frames": self.whole_frames,
        }
        asked = [name for name, is_asked in alone.items() if is_asked]
        if asked:
            raise UsageError(f'fit "pad" shows whole frames as they are; leave {", ".join(asked)} out.')

    def indices(self, num_frames: int, rng: np.random.Generator | None) -> NDArray[np.int64]:
        """Frames of a video's clips, (clips, t): one random clip with `rng`, the fixed ones without."""
        if rng is None and self.num_clips > 1:
            return sample_clips(
                num_frames,
                num_segments=self.num_frames,
                num_clips=self.num_clips,
                sampler=self.sampler,
                window=self.dense_window,
                placement=self.clip_placement,
            )
        if self.sampler == "jittered":
            parts = (self.leading_frames, self.num_frames - self.leading_frames)
            clip = [sample_jittered(num_frames, num_segments=part, rng=rng) for part in parts if part]
            return np.concatenate(clip)[None]
        if self.sampler == "window":
            return sample_window(num_frames, num_segments=self.num_frames, window=self.dense_window, rng=rng)[None]
        if self.sampler == "strided":
            return sample_strided(num_frames, num_segments=self.num_frames, window=self.dense_window, rng=rng)[None]
        if self.sampler == "dense":
            return sample_dense(num_frames, num_segments=self.num_frames, window=self.dense_window, rng=rng)[None]
        return sample_segments(num_frames, num_segments=self.num_frames, short=self.short, rng=rng)[None]

    @property
    def min_decoded_side(self) -> int | None:
        """Short side in pixels below which no frame may be scaled while it is decoded; None: none is scaled at all."""
        if not self.dct_scaling or (self.train and self.train_crop == "random_resized"):
            return None
        return math.ceil(self.crop / min(self.scales)) if self.train else self.resize

    def train_transform(self, flip_pairs: Mapping[int, int]) -> TrainTransform:
        """The random transform of these settings."""
        return TrainTransform(
            crop=self.crop,
            train_crop=self.train_crop,
            rand_augment=RandAugment.parse(self.rand_augment) if self.rand_augment else None,
            random_erasing=self.random_erasing,
            scales=self.scales,
            max_aspect_step=self.max_aspect_step,
            flip=self.flip,
            flip_pairs=flip_pairs,
            mean=self.mean,
            std=self.std,
            is_normalised=self.dtype == "float32",
        )

    def eval_transform(self) -> EvalTransform:
        """The fixed transform of these settings."""
        return EvalTransform(
            resize=self.resize,
            crop=self.crop,
            num_crops=self.num_crops,
            crop_placement=self.crop_placement,
            antialias=self.antialias,
            resize_floats=self.resize_floats,
            mean=self.mean,
            std=self.std,
            is_normalised=self.dtype == "float32",
        )

    def fit_transform(self) -> FitTransform:
        """The transform of these settings with `fit` "pad"."""
        return FitTransform(
            short_side=self.resize,
            long_side=self.crop,
            flip=self.train and self.flip,
            mean=self.mean,
            std=self.std,
            is_normalised=self.dtype == "float32",
        )

    def rng(self, epoch: int, index: int) -> np.random.Generator | None:
        """Source of what is random in sample `index` of `epoch`; None in evaluation."""
        return np.random.default_rng((self.seed, epoch, index)) if self.train else None


@dataclass(frozen=True, kw_only=True)
class ClipPlan:
    """A sample without its pixels: which frames it shows, what is done to them, and all that is told with them."""

    video_id: str
    index: NDArray[np.int64]
    """(clips, t): frames of the video."""
    windows: tuple[Window, ...]
    """What is done to each frame of a clip; several where a clip is augmented more than once."""
    labels: Tensor
    pts_seconds: Tensor
    """(v, t) float64."""
    targets: list[list[FrameTargets]] | None
    shown_size: tuple[int, int] | None = None
    """(height, width) of the picture in padded frames."""

    @property
    def num_views(self) -> int:
        """v: clips, times crops or augmented copies."""
        return len(self.pts_seconds)

    def sample(self, frames: Tensor) -> Sample:
        """The sample whose pixels are `frames` (v, t, c, h, w)."""
        return Sample(
            video_id=self.video_id,
            frames=frames,
            labels=self.labels,
            pts_seconds=self.pts_seconds,
            targets=self.targets,
            shown_size=self.shown_size,
        )


@dataclass(frozen=True, kw_only=True)
class SampleMaker:
    """Makes samples of opened videos: the settings, with what the data set says about its labels."""

    settings: ClipSettings
    task: Task
    num_classes: int
    flip_pairs: Mapping[int, int]
    """Class -> class that a horizontal flip turns it into; of verb_noun: the verbs."""
    _fixed_indices: dict[int, "_Places"] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Where nothing is random, number of frames -> the clips."""
    _fixed_windows: dict[tuple[int, int], tuple[Window, list[BoxMap]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """(height, width) of frames -> what is done to them."""

    def __post_init__(self) -> None:
        settings = self.settings
        if settings.train and settings.num_repeats > 1 and settings.flip and self.flip_pairs:
            raise UsageError(
                "num_repeats flips each view by itself, but these classes tell left from right, and a sample has one "
                "label; set flip = false."
            )
        if self.task == "detection" and (settings.rand_augment or settings.random_erasing):
            raise UsageError("rand_augment and random_erasing do not change boxes; detection needs them off.")

    def __call__(
        self,
        reader: VideoReader,
        video: Video,
        *,
        rng: np.random.Generator | None,
        pts_seconds: NDArray[np.float64] | None = None,
        boxes: Callable[[int], Sequence[Box]] | None = None,
        box_scale: tuple[float, float] = (1.0, 1.0),
        allocate: Allocate = new_frames,
    ) -> Sample:
        """The clips of one video, or of its annotated segment; random ones with `rng`: `begin`, and what it returns."""
        return self.begin(
            reader,
            video,
            rng=rng,
            pts_seconds=pts_seconds,
            boxes=boxes,
            box_scale=box_scale,
            allocate=allocate,
        )()

    def begin(
        self,
        reader: VideoReader,
        video: Video,
        *,
        rng: np.random.Generator | None,
        pts_seconds: NDArray[np.float64] | None = None,
        boxes: Callable[[int], Sequence[Box]] | None = None,
        box_scale: tuple[float, float] = (1.0, 1.0),
        allocate: Allocate = new_frames,
    ) -> Callable[[], Sample]:
        """Choose the clips of one video, or of its annotated segment, and return what decodes them.

        Views lie crop by crop and inside a crop clip by clip: v = crop * num_clips + clip.

        Args:
            reader: the opened video.
            video: its labels and its segment.
            rng: source of random choices; None for evaluation.
            pts_seconds: (num_frames,) times of the frames where the reader knows none; None: the reader's.
            boxes: for detection, the objects in a frame of the reader, by its index; None where none are known.
            box_scale: (x, y), pixels of the reader's frames for one of the boxes'.
            allocate: where the clips are written.

        Raises:
            CorruptVideo: a frame that was asked for does not decode, or the annotated segment holds no frame.
        """
        times = reader.pts_seconds if pts_seconds is None else pts_seconds
        chosen = self._choose(times, video, rng)

        def prepare(height: int, width: int) -> tuple[ClipPlan, Tensor]:
            plan = self._plan(chosen.index, times, video, height, width, rng, boxes, box_scale)
            size = plan.windows[0].view_size
            return plan, allocate((plan.num_views, chosen.index.shape[1], 3, *size), plan.windows[0].dtype)

        if not isinstance(reader, JpegReader):
            return lambda: _decode(pictures(reader, chosen.wanted), chosen, prepare)
        plan, views = prepare(reader.height, reader.width)
        if self.settings.whole_frames and self.settings.dtype == "uint8":
            memory = views.numpy().transpose(0, 1, 3, 4, 2).reshape(-1, reader.height, reader.width, 3)
            return lambda: _decode_in_place(reader, chosen, plan, views, memory)
        write = _writer(plan, views)
        return lambda: _write(reader.iterate_frames(chosen.wanted), chosen, plan, views, write)

    def plan(
        self,
        pts_seconds: NDArray[np.float64],
        video: Video,
        *,
        height: int,
        width: int,
        rng: np.random.Generator | None,
        boxes: Callable[[int], Sequence[Box]] | None = None,
        box_scale: tuple[float, float] = (1.0, 1.0),
    ) -> ClipPlan:
        """The same choices as a call makes, for those who decode and transform the frames themselves.

        Args:
            pts_seconds: (num_frames,) times of the video's frames.
            video: its labels and its segment.
            height: of its frames, in pixels.
            width: of its frames, in pixels.
            rng: source of random choices; None for evaluation.
            boxes: as in a call.
            box_scale: as in a call.

        Raises:
            CorruptVideo: the annotated segment holds no frame.
        """
        index = self.choose(pts_seconds, video, rng)
        return self._plan(index, pts_seconds, video, height, width, rng, boxes, box_scale)

    def choose(
        self, pts_seconds: NDArray[np.float64], video: Video, rng: np.random.Generator | None
    ) -> NDArray[np.int64]:
        """Frames of the video's clips, (clips, t)."""
        return self._choose(pts_seconds, video, rng).index

    def _choose(self, pts_seconds: NDArray[np.float64], video: Video, rng: np.random.Generator | None) -> "_Places":
        if video.start_seconds is None and video.end_seconds is None:
            num_frames = len(pts_seconds)
            if rng is not None:
                return _Places.of(self.settings.indices(num_frames, rng))
            places = self._fixed_indices.get(num_frames)
            if places is None:
                places = self._fixed_indices[num_frames] = _Places.of(self.settings.indices(num_frames, None))
            return places
        candidates = _frames_of_segment(pts_seconds, video)
        return _Places.of(candidates[self.settings.indices(len(candidates), rng)])

    def _plan(
        self,
        index: NDArray[np.int64],
        pts_seconds: NDArray[np.float64],
        video: Video,
        height: int,
        width: int,
        rng: np.random.Generator | None,
        boxes: Callable[[int], Sequence[Box]] | None,
        box_scale: tuple[float, float],
    ) -> ClipPlan:
        windows, labels, box_maps = self._windows(height, width, video.labels, rng)
        targets = None
        if boxes is not None:
            targets = [
                [_targets(boxes(int(at)), box_map, box_scale) for at in clip_index]
                for box_map in box_maps
                for clip_index in index
            ]
            labels = tuple(sorted({int(label) for view in targets for frame in view for label in frame.labels}))
        return ClipPlan(
            video_id=sample_id(video),
            index=index,
            windows=windows,
            labels=self.encode(labels),
            pts_seconds=torch.from_numpy(pts_seconds[np.concatenate([index] * len(box_maps))]),
            targets=targets,
            shown_size=(windows[0].new_height, windows[0].new_width) if self.settings.fit == "pad" else None,
        )

    def _windows(
        self, height: int, width: int, labels: tuple[int, ...], rng: np.random.Generator | None
    ) -> tuple[tuple[Window, ...], tuple[int, ...], list[BoxMap]]:
        """What is done to the frames, the labels of what they then show, and where the boxes of each view go."""
        if rng is None or self.settings.whole_frames:
            fixed = self._fixed_windows.get((height, width))
            if fixed is None:
                fixed = self._fixed_windows[height, width] = _fixed_window(self.settings, height, width)
            return (fixed[0],), labels, fixed[1]
        if self.settings.fit == "pad":
            window, box_map = self.settings.fit_transform().window(height, width, rng)
            if window.is_flipped:
                labels = tuple(self.flip_pairs.get(label, label) for label in labels)
            return (window,), labels, [box_map]
        # What a flip changes is the verb; a noun may have the same number.
        flipped, kept = (labels[:1], labels[1:]) if self.task == "verb_noun" else (labels, ())
        train_transform = self.settings.train_transform(self.flip_pairs)
        drawn = [train_transform.window(height, width, flipped, rng) for _ in range(self.settings.num_repeats)]
        windows, box_maps = tuple(window for window, _, _ in drawn), [box_map for _, _, box_map in drawn]
        return windows, drawn[0][1] + kept, box_maps

    def encode(self, labels: tuple[int, ...]) -> Tensor:
        """Labels as a sample has them."""
        if self.task == "single_label":
            # Quicker than `torch.tensor`, by a share of the decoding that can be measured.
            return torch.from_numpy(np.array(labels[0], dtype=np.int64))
        if self.task == "verb_noun":
            return torch.tensor(labels, dtype=torch.int64)
        hot = torch.zeros(self.num_classes, dtype=torch.float32)
        hot[list(labels)] = 1
        return hot


@dataclass(frozen=True, kw_only=True)
class _Places:
    """Which frames of a video its clips show, and where."""

    index: NDArray[np.int64]
    """(clips, t): frames of the video."""
    wanted: Sequence[int]
    """Each of these frames once, ascending."""
    places: Sequence[Sequence[int]]
    """Of each wanted frame: where it stands in `index`, counted through the clips."""

    @classmethod
    def of(cls, index: NDArray[np.int64]) -> Self:
        index.flags.writeable = False
        places: dict[int, list[int]] = {}
        for place, at in enumerate(index.reshape(-1).tolist()):
            places.setdefault(at, []).append(place)
        wanted = sorted(places)
        return cls(index=index, wanted=wanted, places=[places[at] for at in wanted])


_Picture = NDArray[np.uint8]
_Write = Callable[[_Picture, int], None]


def _decode(
    pictures: Iterator[_Picture], chosen: _Places, prepare: Callable[[int, int], tuple[ClipPlan, Tensor]]
) -> Sample:
    """The sample of a reader that knows the size of its frames only when one is decoded."""
    first = next(pictures)
    plan, views = prepare(first.shape[0], first.shape[1])
    return _write(chain([first], pictures), chosen, plan, views, _writer(plan, views))


def _decode_in_place(
    reader: JpegReader, chosen: _Places, plan: ClipPlan, views: Tensor, memory: NDArray[np.uint8]
) -> Sample:
    """The sample whose frames are decoded where they stay: `memory` (clips * t, h, w, c) is that of `views`."""
    for at, (place, *repeats) in zip(chosen.wanted, chosen.places, strict=True):
        reader.decode_into(at, memory[place])
        for repeat in repeats:
            memory[repeat] = memory[place]
    return plan.sample(views)


def _writer(plan: ClipPlan, views: Tensor) -> _Write:
    """What writes a frame to a place of each view."""
    if len(plan.windows) == 1:
        return plan.windows[0].writer(views)
    writers = [window.writer(part) for window, part in zip(plan.windows, views.chunk(len(plan.windows)), strict=True)]

    def write(picture: _Picture, place: int) -> None:
        for one in writers:
            one(picture, place)

    return write


def _write(pictures: Iterable[_Picture], chosen: _Places, plan: ClipPlan, views: Tensor, write: _Write) -> Sample:
    """The sample whose frames pass by one after the other, each in the memory of the one before."""
    shape = None
    for at, places, picture in zip(chosen.wanted, chosen.places, pictures, strict=True):
        if shape is None:
            shape = picture.shape
        if picture.shape != shape:
            raise CorruptVideo(
                f"frame {at} is {picture.shape[1]}x{picture.shape[0]} pixels, frames before it "
                f"{shape[1]}x{shape[0]}; re-encode the video to one size."
            )
        for place in places:
            write(picture, place)
    return plan.sample(views)


def _targets(boxes: Sequence[Box], box_map: BoxMap, scale: tuple[float, float]) -> FrameTargets:
    """The objects of a frame that are to be seen in the window of a transform, as they lie there."""
    corners = torch.tensor([box.xyxy for box in boxes], dtype=torch.float64).reshape(-1, 4)
    corners *= torch.tensor([*scale, *scale], dtype=torch.float64)
    moved, is_seen = box_map(corners)
    return FrameTargets(
        boxes=moved[is_seen],
        labels=torch.tensor([box.label for box in boxes], dtype=torch.int64)[is_seen],
        track_ids=torch.tensor([box.track_id for box in boxes], dtype=torch.int64)[is_seen],
        is_occluded=torch.tensor([box.is_occluded for box in boxes], dtype=torch.bool)[is_seen],
        is_generated=torch.tensor([box.is_generated for box in boxes], dtype=torch.bool)[is_seen],
    )


def check_labels(
    videos: Sequence[Video], *, task: Task, num_classes: int, where: str, num_noun_classes: int = 0
) -> None:
    """Every video has the labels that its task needs; of detection nothing is asked, its labels are those of its boxes.

    Raises:
        UsageError: videos without labels or with several in a single-label task, or labels outside the classes;
            names the first such video.
    """
    if task == "detection":
        labelled = [video for video in videos if video.labels]
        if labelled:
            raise UsageError(
                f"{where}: {labelled[0].video_id} has the labels {labelled[0].labels}, but the task is detection, "
                "whose labels are those of its boxes."
            )
        return
    unlabelled = [video.video_id for video in videos if not video.labels]
    if unlabelled:
        raise UsageError(
            f"{where}: {len(unlabelled)} of {len(videos)} videos have no label ({unlabelled[0]} is the first), "
            f"but the task is {task}; choose a labelled split."
        )
    for video in videos:
        if task == "single_label" and len(video.labels) > 1:
            raise UsageError(f"{where}: {video.video_id} has the labels {video.labels}, but the task is single_label.")
        if task == "verb_noun" and len(video.labels) != 2:
            raise UsageError(
                f"{where}: {sample_id(video)} has the labels {video.labels}, but the task needs (verb, noun)."
            )
        sizes = (num_classes, num_noun_classes) if task == "verb_noun" else (num_classes,) * len(video.labels)
        for label, size in zip(video.labels, sizes, strict=True):
            if label >= size:
                raise UsageError(f"{where}: {sample_id(video)} has label {label}, but the {size} classes count from 0.")


class ClipDataset(Dataset[Sample]):
    """Clips of video files. `dataset[i]` is sample i of the epoch set by `set_epoch`; it may be read from threads."""

    def __init__(
        self,
        videos: Sequence[Video],
        paths: Sequence[Path | str],
        *,
        task: Task,
        num_classes: int,
        num_noun_classes: int = 0,
        flip_pairs: Mapping[int, int] = MappingProxyType({}),
        backend: Backend = "pyav",
        delivered: FrameFormat | None = None,
        **options: Unpack[ClipOptions],
    ) -> None:
        """Take the videos of a split.

        Args:
            videos: rows of a split: ids, labels, annotated segments.
            paths: the file (or folder of frames) of each video, in the same order.
            task: whether a video has one label, several, or a verb and a noun.
            num_classes: k; of verb_noun the verbs.
            num_noun_classes: of verb_noun only.
            flip_pairs: class -> class that a horizontal flip turns it into.
            backend: decoder of video files.
            delivered: for folders of frames, how their files are called; None: `paths` are video files.
            **options: the fields of `ClipSettings`.

        Raises:
            UsageError: no videos, labels that do not fit the task, or a setting out of range.
            MissingVideo: a file that is not there; names the first.
        """
        settings = ClipSettings(**options)
        if len(videos) != len(paths):
            raise ValueError(f"{len(videos)} videos need as many paths, got {len(paths)}")
        if not videos:
            raise UsageError("a data set of clips needs at least one video, got none; check the split.")
        if task == "detection":
            raise UsageError(
                "the boxes of a detection task come with its shards; write them with `vidprep shard` and open them "
                "with ShardDataset."
            )
        check_labels(
            videos, task=task, num_classes=num_classes, num_noun_classes=num_noun_classes, where="these videos"
        )
        missing = [path for path in paths if not Path(path).exists()]
        if missing:
            raise MissingVideo(
                f"{len(missing)} of {len(paths)} videos are not there, {missing[0]} is the first; "
                "run `vidprep verify` for the full list."
            )
        self.videos = list(videos)
        self.paths = [str(path) for path in paths]
        self.make = SampleMaker(settings=settings, task=task, num_classes=num_classes, flip_pairs=dict(flip_pairs))
        self.backend: Backend = backend if delivered is None else "jpeg"
        self.delivered = delivered
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the random clips, crops and flips of `epoch`, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> Sample:
        return self.load(index, epoch=self.epoch)

    def load(self, index: int, *, epoch: int, allocate: Allocate = new_frames) -> Sample:
        """Sample `index` of an epoch, its frames written where `allocate` says.

        Raises:
            CorruptVideo: it gives no clip; names it.
        """
        index = position(index, len(self))
        video, path = self.videos[index], self.paths[index]
        try:
            with self._open(path) as reader:
                return self.make(reader, video, rng=self.make.settings.rng(epoch, index), allocate=allocate)
        except CorruptVideo as error:
            raise CorruptVideo(f"{sample_id(video)} ({path}) gives no clip: {error}") from error

    def open_reader(self, index: int) -> tuple[VideoReader, NDArray[np.float64] | None]:
        """The video of sample `index`, opened, to be closed by the caller; and None: it knows the times of its frames.

        Raises:
            CorruptVideo: it cannot be opened.
        """
        return self._open(self.paths[position(index, len(self))]), None

    def _open(self, path: str) -> VideoReader:
        if self.delivered is None:
            return open_video(path, backend=self.backend)
        return JpegReader(
            path,
            template=self.delivered.template,
            fps=self.delivered.fps,
            min_side=self.make.settings.min_decoded_side,
            allocate=reused_memory,
        )


def open_videos(
    dataset: str,
    split: str,
    *,
    data_root: Path,
    backend: Backend = "pyav",
    **options: Unpack[ClipOptions],
) -> ClipDataset:
    """The clips of a data set's video files below `data_root`, for those who prepare no shards.

    Raises:
        UsageError: no such data set, split or root, or a setting out of range.
        MissingVideo: a video of the split has no file; names the first.
    """
    info = datasets.get(dataset)
    listed = datasets.load_split(dataset, split, data_root=data_root)
    found = datasets.locate(info, listed, data_root)
    missing = [video.video_id for video in listed.videos if video.video_id not in found]
    if missing:
        raise MissingVideo(
            f"{missing[0]}: no file below {data_root}; {len(missing)} of {len(listed.videos)} videos of "
            f"{dataset}/{split} are missing. Run `vidprep verify` for the full list."
        )
    return ClipDataset(
        listed.videos,
        [found[video.video_id] for video in listed.videos],
        task=listed.task,
        num_classes=len(listed.classes),
        num_noun_classes=len(listed.noun_classes),
        flip_pairs=info.flip_pairs,
        backend=backend,
        delivered=info.frames if info.media == "frames" else None,
        **options,
    )


def position(index: int, length: int) -> int:
    """The sample that `dataset[index]` means, from 0: -1 is the last one, as in a list.

    Raises:
        IndexError: there is no such sample; it also ends a plain `for` loop over a data set.
    """
    if not -length <= index < length:
        raise IndexError(f"sample {index} of a data set of {length} samples; they count from 0 to {length - 1}")
    return index % length


_scratch = threading.local()


def reused_memory(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Memory for a decoded frame, the thread's own: the next one that it decodes overwrites it."""
    size = math.prod(shape)
    memory: NDArray[np.uint8] | None = getattr(_scratch, "memory", None)
    if memory is None or not size <= len(memory) <= 4 * size:
        memory = _scratch.memory = np.empty(size, dtype=np.uint8)
    return memory[:size].reshape(shape)


def _fixed_window(settings: ClipSettings, height: int, width: int) -> tuple[Window, list[BoxMap]]:
    """What is done to all frames of a size where nothing is random, and where the boxes of each view go."""
    if settings.fit == "pad":
        padded, box_map = settings.fit_transform().window(height, width)
        return padded, [box_map]
    if not settings.whole_frames:
        transform = settings.eval_transform()
        return transform.window(height, width), transform.box_maps(height, width)
    window = Window(
        left=0,
        top=0,
        width=width,
        height=height,
        new_width=width,
        new_height=height,
        crop=0,
        mean=settings.mean,
        std=settings.std,
        is_normalised=settings.dtype == "float32",
    )
    return window, [BoxMap(scale_x=1, scale_y=1, left=0, top=0, width=width, height=height)]


def pictures(reader: VideoReader, wanted: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
    """The frames (h, w, c) at these ascending indices, each to be used before the next is asked for."""
    if isinstance(reader, JpegReader | PyavReader):
        yield from reader.iterate_frames(wanted)
    else:
        yield from reader.get_frames_at(wanted).data.transpose(0, 2, 3, 1)


def _frames_of_segment(pts_seconds: NDArray[np.float64], video: Video) -> NDArray[np.int64]:
    try:
        return frames_between(pts_seconds, video.start_seconds, video.end_seconds)
    except ValueError as error:
        raise CorruptVideo(f"{error}.") from error
