"""Frames that were extracted to JPEG or PNG files, or lie as bytes in a shard, read like a video."""

import io
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vidprep.decode.pyav import check_indices
from vidprep.decode.types import FrameBatch
from vidprep.errors import CorruptVideo, MissingVideo, UsageError

__all__ = ["JpegReader", "find_frames"]


_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def _is_png(encoded: bytes | memoryview) -> bool:
    return encoded[: len(_PNG_MAGIC)] == _PNG_MAGIC


def _fresh(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    return np.empty(shape, dtype=np.uint8)


class JpegReader:
    """JPEG (or PNG) frames as a video: a folder of numbered files, or a list of encoded frames.

    Args:
        source: a folder, or the bytes of each frame in order, which must stay as they are while they are read.
        template: of the files' names, with one number field: "img_{:05d}.jpg" or "img_{:05d}.png". Other files of
            the folder (optical flow, lists) are not looked at.
        fps: frames per second; None: `pts_seconds` are NaN.
        min_side: frames are decoded at 1/2, 1/4 or 1/8 of their size as long as the shorter side keeps so many pixels;
            None: as large as they are. The decoder then leaves out the finer frequencies of each 8x8 block.
        allocate: memory (h, w, c) for the frames of `iterate_frames`, in place of fresh one.

    Raises:
        MissingVideo: no such folder.
        CorruptVideo: no frames, a hole in their numbers, or a first frame that is no image.
        UsageError: a template without a number field, or an fps that is not positive.
    """

    def __init__(
        self,
        source: str | Path | Sequence[bytes | memoryview],
        *,
        template: str = "image_{:05d}.jpg",
        fps: float | None = None,
        min_side: int | None = None,
        allocate: Callable[[tuple[int, ...]], NDArray[np.uint8]] = _fresh,
    ) -> None:
        if fps is not None and not fps > 0:
            raise UsageError(f"fps must be positive or None, got {fps}.")
        self._frames: Sequence[Path] | Sequence[bytes | memoryview]
        if isinstance(source, str | Path):
            self._name = str(source)
            self._frames = find_frames(Path(source), template=template)
        else:
            self._name = f"{len(source)} JPEG frames in memory"
            self._frames = source
        if not self._frames:
            raise CorruptVideo(f"{self._name}: there are no frames.")
        self._first = self._encoded(0)
        self.stored_height, self.stored_width = self._size_of(0, self._first)
        self._allocate = allocate
        short_side = min(self.stored_height, self.stored_width)
        can_scale = min_side is not None and not _is_png(self._first)
        sizes = (2, 4, 8) if can_scale else ()
        self._divisor = max([1, *(size for size in sizes if short_side / size >= (min_side or 0))])
        # rounded up, as libjpeg does
        self._height, self._width = -(-self.stored_height // self._divisor), -(-self.stored_width // self._divisor)
        self._options: dict[str, Any] = {"colorspace": "RGB"}
        if self._divisor > 1:
            self._options |= {"min_height": self._height, "min_width": self._width, "min_factor": 2}
        self._step_seconds = np.nan if fps is None else 1 / fps

    @property
    def num_frames(self) -> int:
        """Frames there are."""
        return len(self._frames)

    @property
    def height(self) -> int:
        """Pixels, of the first frame as it is decoded."""
        return self._height

    @property
    def width(self) -> int:
        """Pixels, of the first frame as it is decoded."""
        return self._width

    @property
    def pts_seconds(self) -> NDArray[np.float64]:
        """(num_frames,) index / fps; NaN without a frame rate."""
        return np.arange(self.num_frames, dtype=np.float64) * self._step_seconds

    def get_frames_at(self, indices: Sequence[int] | NDArray[np.int64]) -> FrameBatch:
        """Frames at `indices` (t,), in that order; an index may repeat.

        Raises:
            IndexError: an index outside 0 ... num_frames - 1.
            CorruptVideo: a frame that is no sound image, or of another size than the first.
        """
        wanted = check_indices(indices, num_frames=self.num_frames, name=self._name)
        data = np.empty((len(wanted), self._height, self._width, 3), dtype=np.uint8)
        done: dict[int, int] = {}
        for place, index in enumerate(wanted):
            if index in done:
                data[place] = data[done[index]]
                continue
            self.decode_into(index, data[place])
            done[index] = place
        return FrameBatch(data=data.transpose(0, 3, 1, 2), pts_seconds=self.pts_seconds[wanted])

    def iterate_frames(self, indices: Sequence[int] | NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        """Frames (h, w, c) at `indices`, one after the other, each in the memory of the one before.

        Raises:
            IndexError: an index outside 0 ... num_frames - 1.
            CorruptVideo: a frame that is no sound JPEG, or of another size than the first.
        """
        picture = self._allocate((self._height, self._width, 3))
        for index in check_indices(indices, num_frames=self.num_frames, name=self._name):
            self.decode_into(index, picture)
            yield picture

    def decode_into(self, index: int, picture: NDArray[np.uint8]) -> None:
        """Decode frame `index`, of 0 ... num_frames - 1, into (h, w, c) memory without gaps.

        Raises:
            CorruptVideo: it is no sound JPEG, or of another size than the first.
        """
        encoded = self._encoded(index) if index else self._first
        fault: Exception | None = None
        try:
            if simplejpeg.decode_jpeg(encoded, buffer=picture, **self._options).shape == picture.shape:
                return
        except ValueError as error:
            fault = error
            if _is_png(encoded):
                fault = self._decode_png_into(encoded, picture)
                if fault is None:
                    return
        size = self._size_of(index, encoded)
        if size != (self.stored_height, self.stored_width):
            raise CorruptVideo(
                f"{self._label(index)}: is {size[1]}x{size[0]} pixels, "
                f"the first frame {self.stored_width}x{self.stored_height}; fetch or extract the frames again."
            )
        raise CorruptVideo(f"{self._label(index)}: is damaged: {fault}.") from fault

    @staticmethod
    def _decode_png_into(encoded: bytes | memoryview, picture: NDArray[np.uint8]) -> Exception | None:
        """Why `picture` does not hold the image now; None where it does."""
        try:
            with Image.open(io.BytesIO(encoded)) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (ValueError, OSError, SyntaxError) as error:  # the last is what PIL says of broken PNG chunks
            return error
        if pixels.shape != picture.shape:
            return ValueError(f"it is {pixels.shape[1]}x{pixels.shape[0]} pixels")
        picture[:] = pixels
        return None

    def close(self) -> None:
        """Nothing is held open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _encoded(self, index: int) -> bytes | memoryview:
        frame = self._frames[index]
        try:
            return frame.read_bytes() if isinstance(frame, Path) else frame
        except OSError as error:
            raise CorruptVideo(f"{self._label(index)}: cannot be read: {error.strerror}.") from error

    def _size_of(self, index: int, encoded: bytes | memoryview) -> tuple[int, int]:
        try:
            if _is_png(encoded):
                with Image.open(io.BytesIO(encoded)) as image:
                    return image.height, image.width
            height, width, _, _ = simplejpeg.decode_jpeg_header(encoded)
        except (ValueError, UnidentifiedImageError, SyntaxError) as error:
            raise CorruptVideo(f"{self._label(index)}: is not a JPEG or PNG: {error}.") from error
        return int(height), int(width)

    def _label(self, index: int) -> str:
        frame = self._frames[index]
        return str(frame) if isinstance(frame, Path) else f"frame {index} of {self._name}"


def find_frames(folder: Path, *, template: str) -> list[Path]:
    """The files of `folder` whose names are `template` with a number, by their numbers.

    Raises:
        MissingVideo: no such folder.
        CorruptVideo: none of its files fits, or numbers are missing between the first and the last.
        UsageError: the template has no number field.
    """
    field = re.search(r"\{(:0?\d*d?)?\}", template)
    if field is None:
        raise UsageError(f"the template of the frames' names needs a number field such as {{:05d}}, got {template!r}.")
    if not folder.is_dir():
        raise MissingVideo(f"{folder}: no such folder of frames.")
    pattern = re.compile(re.escape(template[: field.start()]) + r"(\d+)" + re.escape(template[field.end() :]))
    found: dict[int, Path] = {}
    for path in folder.iterdir():
        match = pattern.fullmatch(path.name)
        if match and template.format(int(match[1])) == path.name:
            found[int(match[1])] = path
    if not found:
        raise CorruptVideo(f"{folder}: no file is named like {template.format(1)}; is the template {template!r} right?")
    missing = sorted(set(range(min(found), max(found) + 1)) - found.keys())
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CorruptVideo(
            f"{folder}: {template.format(missing[0])}{more} is missing between {template.format(min(found))} and "
            f"{template.format(max(found))}; fetch or extract the frames again."
        )
    return [found[number] for number in sorted(found)]
