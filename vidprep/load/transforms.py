"""From decoded frames to what a model sees: crop, resize, flip, normalise; one choice for the whole clip.

Frames come as uint8 (t, c, h, w) and leave as float32; resizing is torchvision's bilinear on bytes, by default
antialiased, which is PIL's within one grey level. A frame that already has its size is not resampled.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from vidprep.load.augment import RandAugment, erased_box, random_resized_box

__all__ = ["BoxMap", "CropPlacement", "EvalTransform", "TrainCrop", "TrainTransform", "crop_offsets"]
__all__ += ["multiscale_crop_sizes"]

CropPlacement = Literal["along_longer_side", "along_longer_side_floor", "along_width"]
TrainCrop = Literal["multi_scale", "random_resized"]

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

    def __call__(
        self, frames: Tensor, labels: tuple[int, ...], rng: np.random.Generator
    ) -> tuple[Tensor, tuple[int, ...]]:
        """Transform one clip, and its labels where the clip is flipped.

        Args:
            frames: (t, c, h, w) uint8.
            labels: class indices.
            rng: where the choices come from; the same state makes the same choices.

        Returns:
            (t, c, crop, crop) float32, and the labels of what the clip now shows.
        """
        transformed, labels, _ = self.with_map(frames, labels, rng)
        return transformed, labels

    def with_map(
        self, frames: Tensor, labels: tuple[int, ...], rng: np.random.Generator
    ) -> tuple[Tensor, tuple[int, ...], BoxMap]:
        """As a call, and where the boxes of the clip went."""
        height, width = frames.shape[-2:]
        if self.rand_augment is not None:
            frames = self.rand_augment(frames, rng)
        top, left, crop_height, crop_width = self._box(height, width, rng)
        frames = F.crop(frames, top, left, crop_height, crop_width)
        if self.train_crop == "random_resized":
            frames = interpolate(frames.float(), (self.crop, self.crop), mode="bilinear", align_corners=False)
        else:
            frames = _resize(frames, height=self.crop, width=self.crop)
        is_flipped = self.flip and bool(rng.random() < 0.5)
        if is_flipped:
            frames = frames.flip(-1)
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
        values = _normalise(frames, self.mean, self.std)
        erases = self.random_erasing > 0 and rng.random() < self.random_erasing
        if erases and (box := erased_box(self.crop, self.crop, rng)):
            top, left, height, width = box
            noise = rng.standard_normal((*values.shape[:2], height, width), dtype=np.float32)
            values[..., top : top + height, left : left + width] = torch.from_numpy(noise)
        return values, labels, box_map

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
    touch the edges; "along_longer_side_floor" cuts the centre to an integer instead of rounding it (VideoMAE).
    "along_width" left, right, centre, also of upright frames, on quarters of the slack like the
    training crops: the right one ends up to 3 pixels short of the edge (TSN's `GroupFullResSample`, as in TSM, TAM)."""
    antialias: bool = True
    """Off: OpenCV's bilinear instead of PIL's."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if self.crop > self.resize:
            raise ValueError(f"a crop of {self.crop} px does not fit a short side of {self.resize} px; enlarge resize")
        if self.num_crops not in (1, 3):
            raise ValueError(f"num_crops is 1 (centre) or 3 (left, centre and right), got {self.num_crops}")

    def __call__(self, frames: Tensor) -> Tensor:
        """Transform frames (t, c, h, w) uint8 to (num_crops, t, c, crop, crop) float32."""
        new_height, new_width = self.resized(*frames.shape[-2:])
        frames = _resize(frames, height=new_height, width=new_width, antialias=self.antialias)
        crops = [
            _normalise(frames[..., top : top + self.crop, left : left + self.crop], self.mean, self.std)
            for left, top in self.corners(new_width, new_height)
        ]
        return torch.stack(crops) if len(crops) > 1 else crops[0][None]

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
        new_long = int(self.resize * max(height, width) / min(height, width))
        return (new_long, self.resize) if height > width else (self.resize, new_long)

    def corners(self, width: int, height: int) -> list[tuple[int, int]]:
        """Upper left corner (x, y) of each crop in a resized frame."""
        slack_x, slack_y = width - self.crop, height - self.crop
        # round() goes to even at one half, as torchvision's centre crop does
        centre = (round(slack_x / 2), round(slack_y / 2))
        if self.num_crops == 1:
            return [centre]
        if self.crop_placement == "along_width":
            step_x, step_y = slack_x // 4, slack_y // 4
            return [(quarters * step_x, 2 * step_y) for quarters in (0, 4, 2)]
        if self.crop_placement == "along_longer_side_floor":
            centre = (slack_x // 2, slack_y // 2)
        if height > width:
            return [(centre[0], 0), centre, (centre[0], slack_y)]
        return [(0, centre[1]), centre, (slack_x, centre[1])]


def _resize(frames: Tensor, *, height: int, width: int, antialias: bool = True) -> Tensor:
    if frames.shape[-2:] == (height, width):
        return frames
    resized: Tensor = F.resize(frames, [height, width], interpolation=InterpolationMode.BILINEAR, antialias=antialias)
    return resized


def _normalise(frames: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    # one pass copies, casts and lays the pixels out as (t, c, h, w); divided by 255 first, as the published code does
    values = frames.to(torch.float32, memory_format=torch.contiguous_format)
    return values.div_(255).sub_(torch.tensor(mean).view(-1, 1, 1)).div_(torch.tensor(std).view(-1, 1, 1))
