"""Pictures to images: from the planes that a video decoder gives to those that JPEG stores, without RGB in between.

    decoder            swscale, one step             colour step, where needed        turbojpeg
    yuv420p, BT.709 -> scaled, same matrix        -> BT.601, full range            -> JPEG
    yuv420p, BT.601 -> scaled, full range                                          -> JPEG

JPEG images are BT.601 in full range; all others would be shown in wrong colours.
"""

import io
from fractions import Fraction
from typing import Any

import av
import numpy as np
import simplejpeg
from av.filter import Graph
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray

from vidprep.decode.pyav import UPRIGHT, Orientation, turn_upright
from vidprep.types import Subsampling

__all__ = ["JpegEncoder", "encode_png"]

# AVColorSpace, as frames carry it -> its name in FFmpeg's colorspace filter. All others (BT.601 under its several
# names, RGB, and what is not stated) are what swscale takes for BT.601.
MATRICES = {1: "bt709", 4: "fcc", 7: "smpte240m", 9: "bt2020ncl", 10: "bt2020ncl"}
RGB_MATRIX = 0


class JpegEncoder:
    """Encodes pictures of one video as JPEG images of one size; keeps its scalers and buffers from one to the next.

    Scaling is bicubic, by FFmpeg's swscale; the coder is libjpeg-turbo.

    Args:
        width: of the images, upright.
        height: of the images, upright.
        quality: 1 to 100.
        subsampling: of colour against brightness: "420" half as wide and high, "422" half as wide, "444" the same.
    """

    def __init__(self, *, width: int, height: int, quality: int, subsampling: Subsampling = "420") -> None:
        self.width, self.height = width, height
        self.quality = quality
        self.subsampling = subsampling
        self._scaler = VideoReformatter()
        self._colour_steps: dict[tuple[str, int, int, int], _ColourStep] = {}
        # Of planes with an odd side the coder reads a row or column too many: it is given one, a copy of the last.
        is_odd = (subsampling != "444" and width % 2 == 1) or (subsampling == "420" and height % 2 == 1)
        self._brightness = np.empty((height + height % 2, width + width % 2), dtype=np.uint8) if is_odd else None

    def encode(self, frame: av.VideoFrame, turn: Orientation = UPRIGHT) -> bytes:
        """A decoded frame, of any size, pixel format and matrix, as a JPEG image.

        Args:
            frame: as it was decoded; it is not changed.
            turn: how stored pixels lie upright.
        """
        is_on_its_side = turn[0][0] == 0
        width, height = (self.height, self.width) if is_on_its_side else (self.width, self.height)
        if turn != UPRIGHT and ((is_on_its_side and self.subsampling == "422") or self.width % 2 or self.height % 2):
            # Turned planes would not be subsampled in the direction, or from the side, that JPEG has in mind.
            rgb = self._scale(frame, width, height, format="rgb24")
            return self._encode_rgb(turn_upright(_view_rgb(rgb), turn))
        planes = [
            _view(plane)[:rows, :columns]
            for plane, (rows, columns) in zip(
                self.scale(frame, width, height).planes, self._plane_sizes(width, height), strict=True
            )
        ]
        if turn != UPRIGHT:
            planes = [np.ascontiguousarray(turn_upright(plane[:, :, None], turn)[:, :, 0]) for plane in planes]
        return self._encode_planes(*planes)

    def _plane_sizes(self, width: int, height: int) -> list[tuple[int, int]]:
        """(rows, columns) of the planes of an image; those of `scale` may have one more."""
        rows = (height + 1) // 2 if self.subsampling == "420" else height
        columns = width if self.subsampling == "444" else (width + 1) // 2
        return [(height, width), (rows, columns), (rows, columns)]

    def encode_rgb(self, picture: NDArray[np.uint8]) -> bytes:
        """A picture (h, w, c) in RGB as a JPEG image; one of the right size goes straight to the coder."""
        if picture.shape[:2] == (self.height, self.width):
            return self._encode_rgb(picture)
        return self.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24"))

    def _encode_rgb(self, picture: NDArray[np.uint8]) -> bytes:
        image: bytes = simplejpeg.encode_jpeg(
            np.ascontiguousarray(picture), quality=self.quality, colorspace="RGB", colorsubsampling=self.subsampling
        )
        return image

    def _encode_planes(self, y: NDArray[np.uint8], u: NDArray[np.uint8], v: NDArray[np.uint8]) -> bytes:
        if self._brightness is not None:
            padded = self._brightness
            padded[: self.height, : self.width] = y
            padded[: self.height, self.width :] = y[:, -1:]
            padded[self.height :] = padded[self.height - 1]
            y = padded[: self.height, : self.width]
        image: bytes = simplejpeg.encode_jpeg_yuv_planes(y, u, v, quality=self.quality)
        return image

    def scale(self, frame: av.VideoFrame, width: int, height: int) -> av.VideoFrame:
        """A decoded frame with the planes of a JPEG image, still as it lies in storage.

        It may have a row and a column more than asked for, copies of the last.
        """
        pixels = f"yuv{self.subsampling}p"
        matrix = MATRICES.get(frame.colorspace)
        if matrix is None or frame.format.is_rgb:
            from_matrix = None if frame.format.is_rgb or frame.colorspace == RGB_MATRIX else Colorspace.ITU601
            return self._scale(
                frame,
                width,
                height,
                format=pixels,
                src_colorspace=from_matrix,
                dst_colorspace=Colorspace.ITU601,
                dst_color_range=ColorRange.JPEG,
            )
        # swscale would go from one matrix to another through RGB, in twice the time of all the rest.
        is_full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
        stored_range = ColorRange.JPEG if is_full else ColorRange.MPEG
        scaled = self._scale(frame, width, height, format=pixels, dst_color_range=stored_range)
        if width % 2 or height % 2:
            scaled = _padded(scaled)  # the filter takes even sides only
            width, height = scaled.width, scaled.height
        key = (matrix, int(is_full), width, height)
        if key not in self._colour_steps:
            self._colour_steps[key] = _ColourStep(matrix, is_full=is_full, width=width, height=height, pixels=pixels)
        return self._colour_steps[key].convert(scaled)

    def _scale(self, frame: av.VideoFrame, width: int, height: int, **colours: Any) -> av.VideoFrame:
        # One thread: the other processors have videos of their own.
        return self._scaler.reformat(
            frame, width=width, height=height, interpolation=Interpolation.BICUBIC, threads=1, **colours
        )


class _ColourStep:
    """FFmpeg's colorspace filter from one matrix and range to BT.601 in full range, size and format kept."""

    def __init__(self, matrix: str, *, is_full: bool, width: int, height: int, pixels: str) -> None:
        self._graph = Graph()
        source = self._graph.add_buffer(
            width=width, height=height, format=av.VideoFormat(pixels, width, height), time_base=Fraction(1)
        )
        # fast: no linear light, so the primaries and the curve, which must be named, take no part.
        step = self._graph.add(
            "colorspace",
            f"ispace={matrix}:space=smpte170m:irange={'pc' if is_full else 'tv'}:range=pc:fast=1:"
            "iprimaries=bt709:primaries=bt709:itrc=bt709:trc=bt709",
        )
        sink = self._graph.add("buffersink")
        source.link_to(step)
        step.link_to(sink)
        self._graph.configure()
        self._source, self._sink = source, sink

    def convert(self, frame: av.VideoFrame) -> av.VideoFrame:
        self._source.push(frame)
        converted: av.VideoFrame = self._sink.pull()  # type: ignore[assignment]  # a sink of pictures
        return converted


def _view(plane: Any) -> NDArray[np.uint8]:
    """(h, w), the plane's own memory without the ends of its rows."""
    rows = np.frombuffer(plane, dtype=np.uint8).reshape(plane.height, plane.line_size)
    return rows[:, : plane.width]


def _padded(frame: av.VideoFrame) -> av.VideoFrame:
    """A copy with even sides: the last row and column may be there twice."""
    width, height = frame.width + frame.width % 2, frame.height + frame.height % 2
    padded = av.VideoFrame(width, height, frame.format.name)
    padded.colorspace, padded.color_range = frame.colorspace, frame.color_range
    for source, target in zip(map(_view, frame.planes), map(_view, padded.planes), strict=True):
        rows, columns = source.shape
        target[:rows, :columns] = source
        target[:rows, columns:] = source[:, -1:]
        target[rows:] = target[rows - 1]
    return padded


def _view_rgb(frame: av.VideoFrame) -> NDArray[np.uint8]:
    """(h, w, c) of a frame in rgb24."""
    picture: NDArray[np.uint8] = frame.to_ndarray()  # type: ignore[assignment]  # eight bits a channel
    return picture


def encode_png(picture: NDArray[np.uint8], *, width: int, height: int) -> bytes:
    """A picture (h, w, c) in RGB as a PNG image of another size (bicubic) or of its own."""
    from PIL import Image

    picture = np.ascontiguousarray(picture)
    if picture.shape[:2] != (height, width):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        scaled = frame.reformat(width=width, height=height, format="rgb24", interpolation=Interpolation.BICUBIC)
        picture = np.ascontiguousarray(scaled.to_ndarray())
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return stream.getvalue()
