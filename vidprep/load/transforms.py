"""From decoded frames to what a model sees: crop, resize, flip, normalise; one choice for the whole clip.

Frames come as uint8 (t, c, h, w) and leave as float32, or as bytes where a transform is told not to normalise.
Resizing is torchvision's bilinear on bytes, by default antialiased, which is PIL's within one grey level. A frame that
already has its size is not resampled.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F_float
from torchvision.transforms.v2 import functional as F

from vidprep.load.augment import Operation, RandAugment, apply_operations, erased_box, random_resized_box
from vidprep.load.types import Allocate, new_frames

__all__ = ["BoxMap", "CropPlacement", "ErasedBox", "EvalTransform", "Fit", "FitTransform", "Resampling", "TrainCrop"]
__all__ += ["TrainTransform", "Window", "crop_offsets", "multiscale_crop_sizes", "normalise"]

CropPlacement = Literal["along_longer_side", "along_longer_side_floor", "along_width"]
TrainCrop = Literal["multi_scale", "random_resized"]
Fit = Literal["crop", "pad"]
"""How frames come to the square that a model sees: cut out of them, or around the whole of them."""
Resampling = Literal["antialias", "plain", "float", "float_antialias", "float_antialias_rounded"]
"""Bilinear on bytes with antialias (PIL), without it (OpenCV), on floats without and with it (PyTorch), or on floats
with antialias and rounded to bytes (torchvision's first transforms of tensors)."""

_WHITE = np.float32(255)

# (x, y) in quarters of the slack: four corners, centre, four edge centres, four quarter points
_OFFSET_QUARTERS = (
    (0, 0), (4, 0), (0, 4), (4, 4), (2, 2), (0, 2), (4, 2), (2, 4), (2, 0), (1, 1), (3, 1), (1, 3), (3, 3),
)  # fmt: skip


def multiscale_crop_sizes(
    width: int, height: int, *, scales: Sequence[float], max_aspect_step: int, crop: int
) -> list[tuple[int, int]]:
    """Every (width, height) that the training crop may have, in pixels; the height's scale varies slowest.

    Each side is a scale of the frame's short side, cut to an integer but at least 1; one that is within 2 pixels
    of `crop` becomes `crop`, so that it needs no resampling. In frames 1 or 2 pixels smaller than `crop` it then
    reaches over the edge, and what lies outside is black.

    Args:
        width: of the frame, in pixels.
        height: of the frame, in pixels.
        scales: fractions of the short side.
        max_aspect_step: positions in `scales` by which the two sides may differ.
        crop: side of the square that the model sees, in pixels.

    Source: TSN's `GroupMultiScaleCrop`, as used by TSM, TAM and TAPS.
    """
    short_side = min(width, height)
    sides = [max(1, int(short_side * scale)) for scale in scales]
    sides = [crop if abs(side - crop) < 3 else side for side in sides]
    return [
        (crop_width, crop_height)
        for i, crop_height in enumerate(sides)
        for j, crop_width in enumerate(sides)
        if abs(i - j) <= max_aspect_step
    ]


def crop_offsets(width: int, height: int, crop_width: int, crop_height: int) -> list[tuple[int, int]]:
    """The 13 places (x, y) of a crop in a frame: corners, centre, edge centres, quarter points, in pixels.

    They lie in steps of a quarter of the slack, cut to an integer: the last column begins at 4 * ((width -
    crop_width) // 4), up to 3 pixels short of the edge.

    Source: TSN's `GroupMultiScaleCrop` with fixed offsets, as used by TSM, TAM and TAPS.
    """
    step_x, step_y = (width - crop_width) // 4, (height - crop_height) // 4
    return [(x * step_x, y * step_y) for x, y in _OFFSET_QUARTERS]


class _Scratch(threading.local):
    """Memory of a thread for a frame on its way, which stays in the processor's cache."""

    def __init__(self) -> None:
        self._planes: NDArray[Any] = np.empty(0, dtype=np.uint8)
        self._values = np.empty(0, dtype=np.float32)

    def memory(self, shape: tuple[int, int, int], dtype: type[np.generic]) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """For its colours of `dtype` and for their float32 values, (c, h, w); the next call may return the same."""
        if self._planes.shape != shape or self._planes.dtype != dtype:
            self._planes, self._values = np.empty(shape, dtype=dtype), np.empty(shape, dtype=np.float32)
        return self._planes, self._values


_scratch = _Scratch()


@dataclass(frozen=True, kw_only=True)
class BoxMap:
    """Where a transform puts what lies in a frame: scaled, cut to a window, and mirrored."""

    scale_x: float
    """Pixels after resizing for one before."""
    scale_y: float
    left: float
    """Of the window, in pixels after resizing."""
    top: float
    width: int
    """Of the window: what the model sees, in pixels."""
    height: int
    is_flipped: bool = False

    def __call__(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes as they lie in the window, clipped to it.

        Args:
            boxes: (n, 4) float: left, top, right, bottom in pixels of the frame.

        Returns:
            (n, 4) float32 in pixels of the window, and (n,) bool: which of them still show something.
        """
        x = (boxes[:, 0::2].to(torch.float64) * self.scale_x - self.left).clamp(0, self.width)
        y = (boxes[:, 1::2].to(torch.float64) * self.scale_y - self.top).clamp(0, self.height)
        if self.is_flipped:
            x = self.width - x.flip(1)
        moved = torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], dim=1).to(torch.float32)
        return moved, (moved[:, 2] > moved[:, 0]) & (moved[:, 3] > moved[:, 1])


@dataclass(frozen=True, kw_only=True)
class ErasedBox:
    """A part of a view that noise of deviation 1 fills, other noise in each frame."""

    top: int
    left: int
    height: int
    width: int
    seed: int

    def noise(self, t: int) -> NDArray[np.float32]:
        """Of frame t: (3, height, width)."""
        return np.random.default_rng((self.seed, t)).standard_normal((3, self.height, self.width), dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class Window:
    """What is done to every frame of a clip: RandAugment, cut, resize, mirror, cut into views, normalise, erase."""

    left: int
    """Of what is cut out of the frame, in pixels; it may reach over the edge, and is black there."""
    top: int
    width: int
    height: int
    new_width: int
    """Of what was cut out, after resizing."""
    new_height: int
    corners: Sequence[tuple[int, int]] = ((0, 0),)
    """(left, top) of each view in it."""
    crop: int
    """Side of a view, in pixels; 0: a view is all of it. Right of the frame and below it a view is 0."""
    is_flipped: bool = False
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    is_normalised: bool
    resampling: Resampling = "antialias"
    operations: Sequence[Operation] = ()
    """Of RandAugment, on whole frames."""
    erased: ErasedBox | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the views."""
        return torch.float32 if self.is_normalised else torch.uint8

    @property
    def view_size(self) -> tuple[int, int]:
        """(height, width) of a view, in pixels."""
        return (self.crop, self.crop) if self.crop else (self.new_height, self.new_width)

    def write(self, frames: Tensor, views: Tensor) -> None:
        """Fill views (num_views, t, c, crop, crop) from frames (t, c, h, w) of bytes."""
        write = self.writer(views)
        for t, frame in enumerate(frames.permute(0, 2, 3, 1).numpy()):
            write(frame, t)

    def writer(self, views: Tensor) -> Callable[[NDArray[np.uint8], int], None]:
        """What fills place t of each view (num_views, t, c, crop, crop) from a frame (h, w, c) of bytes.

        Views may also come as (num_views * clips, t, ...), crop by crop: places then count through the clips of a crop.

        It goes frame by frame: while one is in the processor's cache, all that is done to it costs less than one pass
        over the clip would. And it goes by NumPy, whose calls on single frames cost less than PyTorch's, and which
        copies whole rows of pixels at a time.
        """
        height, width = self.view_size
        parts = [(slice(top, top + height), slice(left, left + width)) for left, top in self.corners]
        # Both kinds of memory are without gaps, so that this makes no copy.
        memory = views.numpy() if self.is_normalised else views.numpy().transpose(0, 1, 3, 4, 2)
        memory = memory.reshape(len(parts), -1, *memory.shape[2:])
        if not self.is_normalised:

            def copy(frame: NDArray[np.uint8], t: int) -> None:
                cut = self._cut(frame)
                for view, part in enumerate(parts):
                    np.copyto(_filled(memory[view, t], cut[part].shape[:2]), cut[part])

            return copy
        mean, std = (np.array(values, dtype=np.float32).reshape(-1, 1, 1) for values in (self.mean, self.std))
        cut_type = np.float32 if self.resampling in ("float", "float_antialias") else np.uint8
        shape = (3, min(height, self.new_height), min(width, self.new_width))

        def normalise_into(frame: NDArray[np.uint8], t: int) -> None:
            cut = self._cut(frame)
            planes, values = _scratch.memory(shape, cut_type)
            for view, part in enumerate(parts):
                np.copyto(planes, cut[part].transpose(2, 0, 1))
                place = _filled(memory[view, t].transpose(1, 2, 0), planes.shape[1:]).transpose(2, 0, 1)
                # Divided by 255 first, as the published code does. The batch, which is not in the processor's cache, is
                # written once, by the last step.
                np.divide(planes, _WHITE, out=values)
                np.subtract(values, mean, out=values)
                np.divide(values, std, out=place)
                if self.erased is not None:
                    box = self.erased
                    place[:, box.top : box.top + box.height, box.left : box.left + box.width] = box.noise(t)

        return normalise_into

    def _cut(self, frame: NDArray[np.uint8]) -> NDArray[Any]:
        if self.operations:
            frame = apply_operations(frame, self.operations)
        height, width = frame.shape[:2]
        bottom, right = self.top + self.height, self.left + self.width
        if self.left >= 0 and self.top >= 0 and right <= width and bottom <= height:
            part = frame[self.top : bottom, self.left : right]
        else:
            part = np.zeros((self.height, self.width, 3), dtype=np.uint8)
            rows, columns = slice(max(0, self.top), bottom), slice(max(0, self.left), right)
            seen = frame[rows, columns]
            top, left = rows.start - self.top, columns.start - self.left
            part[top : top + seen.shape[0], left : left + seen.shape[1]] = seen
        cut: NDArray[Any] = part
        if (self.height, self.width) != (self.new_height, self.new_width):
            cut = self._resize(part)
        if not self.is_flipped:
            return cut
        # NumPy copies mirrored bytes one by one, PyTorch a vector at a time: ten times as quick. Where floats are made
        # of them, that goes colour by colour anyway.
        return cut[:, ::-1] if self.is_normalised else torch.from_numpy(cut).flip(1).numpy()

    def _resize(self, part: NDArray[np.uint8]) -> NDArray[Any]:
        # The kernel wants the colours of a pixel side by side, without gaps between the rows.
        pixels = torch.from_numpy(np.ascontiguousarray(part)).permute(2, 0, 1)[None]
        size = [self.new_height, self.new_width]
        if self.resampling in ("float", "float_antialias"):
            antialias = self.resampling == "float_antialias"
            resized = interpolate(pixels.float(), size, mode="bilinear", align_corners=False, antialias=antialias)
        elif self.resampling == "float_antialias_rounded":
            resized = _resize_as_floats(pixels, (self.new_height, self.new_width))
        else:
            antialias = self.resampling == "antialias"
            resized = F.resize(pixels, size, interpolation=InterpolationMode.BILINEAR, antialias=antialias)
        return resized[0].permute(1, 2, 0).numpy()


def _filled(place: NDArray[Any], size: tuple[int, ...]) -> NDArray[Any]:
    """The upper left part of a view (h, w, c) that a frame of this size fills; what the frame leaves is set to 0."""
    height, width = size
    place[height:] = 0
    place[:height, width:] = 0
    return place[:height, :width]


def _resize_as_floats(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Bytes (..., c, h, w) to bytes (..., c, *size): interpolated as float32 with antialias, rounded to nearest."""
    resized: Tensor = F_float.resize(frames, list(size), interpolation=InterpolationMode.BILINEAR, antialias=True)
    return resized


@dataclass(frozen=True, kw_only=True)
class FitTransform:
    """The whole frame, as large as both limits allow; a view is a square with the frame in its upper left corner.

        720 x 1280 in 420 and 672: scale min(420 / 720, 672 / 1280) = 0.525, so 378 x 672, and 294 rows of padding

    The frame is interpolated as float32 with antialias and rounded to bytes again. Nothing is cut; padding is black, or
    0 where frames are normalised.

    Source: RGTP's data set of ImageNet VID, specification section 3.3; the same sizes as detectron2's
    `ResizeShortestEdge` but for the rounding.
    """

    short_side: int
    """The frame's short side is at most this, in pixels."""
    long_side: int
    """Its long side is at most this, which is also the side of a view."""
    flip: bool = False
    """Training: mirror half the clips, before the padding."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    is_normalised: bool = False
    """float32, normalised; else the bytes as they are."""

    def __post_init__(self) -> None:
        if not 1 <= self.short_side <= self.long_side:
            raise ValueError(
                f"a frame's short side is 1 pixel or more and at most its long side, got {self.short_side} and "
                f"{self.long_side}"
            )

    def scale(self, height: int, width: int) -> float:
        """Pixels after resizing for one of a frame of this size; boxes are multiplied by it."""
        return min(self.short_side / min(height, width), self.long_side / max(height, width))

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of a frame after resizing, at least one pixel each."""
        scale = self.scale(height, width)
        return max(1, round(scale * height)), max(1, round(scale * width))

    def __call__(self, frames: Tensor) -> Tensor:
        """Resize frames (..., c, h, w) of bytes; without padding, unchanged where they have their size already."""
        size = self.resized(frames.shape[-2], frames.shape[-1])
        return frames if size == tuple(frames.shape[-2:]) else _resize_as_floats(frames, size)

    def window(self, height: int, width: int, rng: np.random.Generator | None = None) -> tuple[Window, BoxMap]:
        """What is done to frames of this size, and where their boxes go; `rng` decides on a flip."""
        new_height, new_width = self.resized(height, width)
        is_flipped = rng is not None and self.flip and bool(rng.random() < 0.5)
        scale = self.scale(height, width)
        window = Window(
            left=0,
            top=0,
            width=width,
            height=height,
            new_width=new_width,
            new_height=new_height,
            crop=self.long_side,
            is_flipped=is_flipped,
            mean=self.mean,
            std=self.std,
            is_normalised=self.is_normalised,
            resampling="float_antialias_rounded",
        )
        box_map = BoxMap(
            scale_x=scale,
            scale_y=scale,
            left=0,
            top=0,
            width=new_width,
            height=new_height,
            is_flipped=is_flipped,
        )
        return window, box_map


@dataclass(frozen=True, kw_only=True)
class TrainTransform:
    """RandAugment where it is on, a random crop, resized to a square, flipped half the time, normalised, erased."""

    crop: int
    train_crop: TrainCrop = "multi_scale"
    """"multi_scale": one of the fixed sizes and places of TSN; "random_resized": any box of 8 % of the area or more and
    an aspect of 3/4 to 4/3, resized as floats without antialias (VideoMAE)."""
    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    max_aspect_step: int = 1
    flip: bool = True
    rand_augment: RandAugment | None = None
    """Applied to the whole frames, before the crop."""
    random_erasing: float = 0.0
    """Probability that one box, the same in all frames, is filled with noise of deviation 1."""
    flip_pairs: Mapping[int, int] = field(default_factory=lambda: MappingProxyType({}))
    """Class -> class that a flip turns it into, for classes that tell left from right; others keep theirs."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    is_normalised: bool = True
    """float32, normalised; else the bytes as they are."""

    def __call__(
        self, frames: Tensor, labels: tuple[int, ...], rng: np.random.Generator
    ) -> tuple[Tensor, tuple[int, ...]]:
        """Transform one clip, and its labels where the clip is flipped.

        Args:
            frames: (t, c, h, w) uint8.
            labels: class indices.
            rng: where the choices come from; the same state makes the same choices.

        Returns:
            (t, c, crop, crop), and the labels of what the clip now shows.
        """
        transformed, labels, _ = self.with_map(frames, labels, rng)
        return transformed, labels

    def with_map(
        self, frames: Tensor, labels: tuple[int, ...], rng: np.random.Generator, *, allocate: Allocate = new_frames
    ) -> tuple[Tensor, tuple[int, ...], BoxMap]:
        """As a call, and where the boxes of the clip went; `allocate` says where the frames are written."""
        window, labels, box_map = self.window(frames.shape[-2], frames.shape[-1], labels, rng)
        clip = allocate((1, *frames.shape[:2], self.crop, self.crop), window.dtype)
        window.write(frames, clip)
        return clip[0], labels, box_map

    def window(
        self, height: int, width: int, labels: tuple[int, ...], rng: np.random.Generator
    ) -> tuple[Window, tuple[int, ...], BoxMap]:
        """What is done to a clip of frames of this size, the labels of what it then shows, and where its boxes go."""
        operations = self.rand_augment.draw(rng) if self.rand_augment is not None else ()
        top, left, crop_height, crop_width = self._box(height, width, rng)
        is_flipped = self.flip and bool(rng.random() < 0.5)
        if is_flipped:
            labels = tuple(self.flip_pairs.get(label, label) for label in labels)
        scale_x, scale_y = self.crop / crop_width, self.crop / crop_height
        box_map = BoxMap(
            scale_x=scale_x,
            scale_y=scale_y,
            left=left * scale_x,
            top=top * scale_y,
            width=self.crop,
            height=self.crop,
            is_flipped=is_flipped,
        )
        window = Window(
            left=left,
            top=top,
            width=crop_width,
            height=crop_height,
            new_width=self.crop,
            new_height=self.crop,
            crop=self.crop,
            is_flipped=is_flipped,
            mean=self.mean,
            std=self.std,
            is_normalised=self.is_normalised,
            resampling="float" if self.train_crop == "random_resized" else "antialias",
            operations=operations,
            erased=self._erased(rng),
        )
        return window, labels, box_map

    def _box(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """(top, left, height, width) of the crop."""
        if self.train_crop == "random_resized":
            return random_resized_box(height, width, rng)
        sizes = multiscale_crop_sizes(
            width, height, scales=self.scales, max_aspect_step=self.max_aspect_step, crop=self.crop
        )
        crop_width, crop_height = sizes[rng.integers(len(sizes))]
        offsets = crop_offsets(width, height, crop_width, crop_height)
        left, top = offsets[rng.integers(len(offsets))]
        return top, left, crop_height, crop_width

    def _erased(self, rng: np.random.Generator) -> ErasedBox | None:
        if not (self.random_erasing > 0 and rng.random() < self.random_erasing):
            return None
        box = erased_box(self.crop, self.crop, rng)
        if box is None:
            return None
        top, left, height, width = box
        return ErasedBox(top=top, left=left, height=height, width=width, seed=int(rng.integers(2**63)))


@dataclass(frozen=True, kw_only=True)
class EvalTransform:
    """The short side resized, then the centre crop or three crops, normalised."""

    resize: int
    """Short side in pixels; the long one follows, cut to an integer."""
    crop: int
    num_crops: int = 1
    """1: centre; 3: as `crop_placement` says."""
    crop_placement: CropPlacement = "along_longer_side"
    """Of three crops: "along_longer_side" left, centre, right, or of upright frames top, centre, bottom; the outer ones
    touch the edges; "along_longer_side_floor" cuts the centre to an integer instead of rounding it, of a single crop
    too (VideoMAE, RGTP).
    "along_width" left, right, centre, also of upright frames, on quarters of the slack like the
    training crops: the right one ends up to 3 pixels short of the edge (TSN's `GroupFullResSample`, as in TSM, TAM)."""
    antialias: bool = True
    """Off: OpenCV's bilinear instead of PIL's."""
    resize_floats: bool = False
    """Resize floats instead of bytes, with antialias, and round the long side instead of cutting it (RGTP). RGTP
    normalises before; here it comes after, which is the same but for the last bits."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    is_normalised: bool = True
    """float32, normalised; else the bytes as they are."""

    def __post_init__(self) -> None:
        if self.crop > self.resize:
            raise ValueError(f"a crop of {self.crop} px does not fit a short side of {self.resize} px; enlarge resize")
        if self.num_crops not in (1, 3):
            raise ValueError(f"num_crops is 1 (centre) or 3 (left, centre and right), got {self.num_crops}")

    def __call__(self, frames: Tensor, *, allocate: Allocate = new_frames) -> Tensor:
        """Transform frames (t, c, h, w) uint8 to (num_crops, t, c, crop, crop); `allocate` says where to write them."""
        window = self.window(frames.shape[-2], frames.shape[-1])
        crops = allocate((self.num_crops, *frames.shape[:2], self.crop, self.crop), window.dtype)
        window.write(frames, crops)
        return crops

    def window(self, height: int, width: int) -> Window:
        """What is done to frames of this size."""
        new_height, new_width = self.resized(height, width)
        return Window(
            left=0,
            top=0,
            width=width,
            height=height,
            new_width=new_width,
            new_height=new_height,
            corners=self.corners(new_width, new_height),
            crop=self.crop,
            mean=self.mean,
            std=self.std,
            is_normalised=self.is_normalised,
            resampling="float_antialias" if self.resize_floats else "antialias" if self.antialias else "plain",
        )

    def box_maps(self, height: int, width: int) -> list[BoxMap]:
        """Where the boxes of frames of this size go, for each crop."""
        new_height, new_width = self.resized(height, width)
        return [
            BoxMap(
                scale_x=new_width / width,
                scale_y=new_height / height,
                left=left,
                top=top,
                width=self.crop,
                height=self.crop,
            )
            for left, top in self.corners(new_width, new_height)
        ]

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of a frame after resizing."""
        if self.resize_floats:
            scale = max(self.resize / height, self.resize / width)
            return round(scale * height), round(scale * width)
        new_long = int(self.resize * max(height, width) / min(height, width))
        return (new_long, self.resize) if height > width else (self.resize, new_long)

    def corners(self, width: int, height: int) -> list[tuple[int, int]]:
        """Upper left corner (x, y) of each crop in a resized frame."""
        slack_x, slack_y = width - self.crop, height - self.crop
        # round() goes to even at one half, as torchvision's centre crop does
        centre = (round(slack_x / 2), round(slack_y / 2))
        if self.crop_placement == "along_longer_side_floor":
            centre = (slack_x // 2, slack_y // 2)
        if self.num_crops == 1:
            return [centre]
        if self.crop_placement == "along_width":
            step_x, step_y = slack_x // 4, slack_y // 4
            return [(quarters * step_x, 2 * step_y) for quarters in (0, 4, 2)]
        if height > width:
            return [(centre[0], 0), centre, (centre[0], slack_y)]
        return [(0, centre[1]), centre, (slack_x, centre[1])]


def normalise(frames: Tensor, *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Bytes (..., c, h, w) to float32 of the same shape, on the same device: (frames / 255 - mean) / std.

    For batches of bytes (`dtype="uint8"`), after they were copied to the device.
    """
    # one pass copies, casts and lays the pixels out as (t, c, h, w); divided by 255 first, as the published code does
    values = frames.to(torch.float32, memory_format=torch.contiguous_format)
    columns = (torch.tensor(part, device=values.device).view(-1, 1, 1) for part in (mean, std))
    return values.div_(255).sub_(next(columns)).div_(next(columns))
