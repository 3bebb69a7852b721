"""Whole sequences, for models that go through a video: every frame in order, with the objects in it.

From the shards of a detection split (`SequenceDataset`), or from a video file or a folder of images (`open_sequences`).
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidprep.decode.jpeg import JpegReader
from vidprep.decode.pyav import PyavReader
from vidprep.errors import CorruptVideo, MissingVideo, UsageError
from vidprep.index import Fault
from vidprep.load.shards import ShardDataset
from vidprep.load.transforms import FitTransform
from vidprep.load.types import FrameTargets
from vidprep.types import Box

__all__ = ["FrameSequence", "SequenceDataset", "SequenceFrame", "open_sequences", "split_at_gaps"]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})


@dataclass(frozen=True, kw_only=True)
class SequenceFrame:
    """One frame of a sequence."""

    number: int
    """In its video, from 0; of a folder of images, that of the file's name."""
    seconds: float
    """When it is shown in its video; NaN where that is not known."""
    picture: NDArray[np.uint8]
    """(h, w, c) RGB, as it is stored."""
    pixels: Tensor
    """(c, h, w) uint8, resized for the model."""
    scale: float
    """Pixels of `pixels` for one of `picture`, along both sides."""
    targets: FrameTargets | None
    """The objects in `pixels`; all of them, unclipped; None where nothing is annotated."""


@dataclass(frozen=True, kw_only=True)
class FrameSequence:
    """Consecutive frames of one video; iterating reads them, one ahead, in a thread."""

    name: str
    """The video's id, or the name of its file or folder, with the first frame's number where it has several."""
    places: range
    """Which of the frames that `read` knows it has."""
    read: Callable[[range], Iterator[SequenceFrame]]
    """Starts to read the frames at these places."""

    def __len__(self) -> int:
        return len(self.places)

    def part(self, start: int, stop: int) -> "FrameSequence":
        """Frames `start` to `stop` - 1 of these, as far as there are such."""
        return replace(self, places=self.places[start:stop])

    def __iter__(self) -> Iterator[SequenceFrame]:
        frames = self.read(self.places)
        with ThreadPoolExecutor(1, thread_name_prefix="vidprep-sequence") as pool:
            following = pool.submit(next, frames, None)
            while (frame := following.result()) is not None:
                following = pool.submit(next, frames, None)
                yield frame


class SequenceDataset:
    """The sequences of a detection split, from its shards, in the split's order.

    A sample of a shard is a whole video without gaps (`vidprep shard` leaves others out and names them in
    `missing`), and so one sequence.
    """

    def __init__(self, folder: Path | str, split: str | None = None, *, fit: FitTransform) -> None:
        """Open one split.

        Args:
            folder: what `vidprep shard --out` wrote, or its URL.
            split: may be left out where the folder holds only one.
            fit: how frames, and boxes with them, are resized; they are not padded.

        Raises:
            UsageError: no such folder or split, shards of another task, or shards that do not hold every frame.
            CorruptShard: a shard is missing or not as long as its index says.
        """
        self._shards = ShardDataset(folder, split, num_frames=1, fit="pad", resize=fit.short_side, crop=fit.long_side)
        self.manifest, self.fit = self._shards.manifest, fit
        where = f"{self._shards.folder}, split {self.manifest.split}"
        if self.manifest.task != "detection":
            raise UsageError(f"{where}: its task is {self.manifest.task}; sequences are for detection.")
        settings = self.manifest.settings.get("frames") or {}
        chosen = {name: settings[name] for name in ("fps", "num_frames") if settings.get(name) is not None}
        if chosen or settings.get("keyframes_only"):
            raise UsageError(
                f"{where}: holds some frames of each video only ({chosen or 'key frames'}); a sequence has them all. "
                "Write the shards without choosing frames."
            )

    @property
    def missing(self) -> Sequence[Fault]:
        """Videos of the split that are in no shard, and why."""
        return self.manifest.faults

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, index: int) -> FrameSequence:
        row = self._shards.rows[index]
        return FrameSequence(
            name=row.video_id,
            places=range(row.num_frames),
            read=lambda places: self._read(index, places),
        )

    @property
    def num_frames(self) -> int:
        """Of all sequences."""
        return sum(row.num_frames for row in self._shards.rows)

    def _read(self, index: int, places: range) -> Iterator[SequenceFrame]:
        row, facts = self._shards.rows[index], self._shards.facts(index)
        boxes, times = facts.boxes(row.num_frames), facts.times(row.num_frames)
        try:
            reader = JpegReader(self._shards.encoded(index))
            for number in places:
                [picture] = reader.get_frames_at([number]).data.transpose(0, 2, 3, 1)
                of_frame = None if boxes is None else boxes(number)
                yield _frame(number, picture, self.fit, seconds=float(times[number]), boxes=of_frame)
        except CorruptVideo as error:
            raise CorruptVideo(f"sample {row.key} of {self._shards.folder / row.shard}: {error}") from error


def open_sequences(path: Path, *, fit: FitTransform) -> list[FrameSequence]:
    """The sequences of a video file (one), or of a folder of numbered images: a gap in their numbers starts another.

    Args:
        path: the file or the folder; images are `.jpg`, `.jpeg` or `.png` files whose names end in a number.
        fit: how frames are resized; they are not padded.

    Raises:
        MissingVideo: nothing there.
        CorruptVideo: no video, or no images; while frames are read: one does not decode, or is of another size.
        UsageError: images without a number, or two with the same.
    """
    if path.is_dir():
        return _open_folder(path, fit)
    if not path.exists():
        raise MissingVideo(f"{path}: no such video file or folder of images.")
    with PyavReader(path) as reader:
        times = reader.pts_seconds

    def read(places: range) -> Iterator[SequenceFrame]:
        with PyavReader(path) as reader:
            for number, picture in zip(places, reader.iterate_frames(places), strict=True):
                yield _frame(number, picture.copy(), fit, seconds=float(times[number]))

    return [FrameSequence(name=path.name, places=range(len(times)), read=read)]


def _open_folder(folder: Path, fit: FitTransform) -> list[FrameSequence]:
    numbered: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
            continue
        found = re.search(r"(\d+)$", path.stem)
        if found is None:
            raise UsageError(f"{path}: an image of a sequence has a number at the end of its name, such as 000012.jpg.")
        other = numbered.setdefault(int(found[1]), path)
        if other != path:
            raise UsageError(f"{folder}: {other.name} and {path.name} have the same number; keep one of them.")
    if not numbered:
        raise CorruptVideo(f"{folder}: no .jpg, .jpeg or .png images in this folder.")
    numbers = sorted(numbered)
    parts = split_at_gaps(numbers)
    return [
        FrameSequence(
            name=folder.name if len(parts) == 1 else f"{folder.name}/{numbered[numbers[part.start]].stem}",
            places=range(part.start, part.stop),
            read=lambda places: _read_images([(numbers[place], numbered[numbers[place]]) for place in places], fit),
        )
        for part in parts
    ]


def split_at_gaps(numbers: Sequence[int]) -> list[slice]:
    """The parts of an ascending list that count up by one: 3 4 5 9 10 -> 3 4 5 and 9 10.

    Source: RGTP's data set of ImageNet VID, specification section 3.2: "next > last + 1 starts a new sequence".
    """
    starts = [0, *(place for place, (last, following) in enumerate(pairwise(numbers), 1) if following > last + 1)]
    ends = [*starts[1:], len(numbers)]
    return [slice(start, end) for start, end in zip(starts, ends, strict=True) if end > start]


def _read_images(files: Sequence[tuple[int, Path]], fit: FitTransform) -> Iterator[SequenceFrame]:
    first: tuple[int, ...] | None = None
    for number, path in files:
        try:
            [picture] = JpegReader([path.read_bytes()]).get_frames_at([0]).data.transpose(0, 2, 3, 1)
        except OSError as error:
            raise CorruptVideo(f"{path}: cannot be read: {error.strerror}.") from error
        except CorruptVideo as error:
            raise CorruptVideo(f"{path}: {error}") from error
        first = first or picture.shape
        if picture.shape != first:
            raise CorruptVideo(
                f"{path}: is {picture.shape[1]}x{picture.shape[0]} pixels, the first image {first[1]}x{first[0]}."
            )
        yield _frame(number, picture, fit)


def _frame(
    number: int,
    picture: NDArray[np.uint8],
    fit: FitTransform,
    *,
    seconds: float = math.nan,
    boxes: Sequence[Box] | None = None,
) -> SequenceFrame:
    height, width = picture.shape[:2]
    scale = fit.scale(height, width)
    return SequenceFrame(
        number=number,
        seconds=seconds,
        picture=picture,
        pixels=fit(torch.from_numpy(picture).permute(2, 0, 1)),
        scale=scale,
        targets=None if boxes is None else _targets(boxes, scale),
    )


def _targets(boxes: Sequence[Box], scale: float) -> FrameTargets:
    corners = torch.tensor([box.xyxy for box in boxes], dtype=torch.float64).reshape(-1, 4)
    return FrameTargets(
        boxes=(corners * scale).to(torch.float32),
        labels=torch.tensor([box.label for box in boxes], dtype=torch.int64),
        track_ids=torch.tensor([box.track_id for box in boxes], dtype=torch.int64),
        is_occluded=torch.tensor([box.is_occluded for box in boxes], dtype=torch.bool),
        is_generated=torch.tensor([box.is_generated for box in boxes], dtype=torch.bool),
    )
