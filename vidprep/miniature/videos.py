"""Videos whose frames show their own numbers, so that one reads from the pixels which frame was decoded.

1011      16 squares, white = 1: twelve bits of the number, then four bits of check sum;
0010      large enough to survive lossy coding, scaling and JPEG. A frame that is rotated,
0110      mirrored, mixed from two frames or damaged fails its check sum.
1100
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

__all__ = ["MAX_NUMBER", "SecondStream", "number_image", "read_number", "write_numbered_video"]

MAX_NUMBER = 4095
GRID = 4
DARK, BRIGHT = 30, 225
SAMPLE_RATE = 44_100
AAC_FRAME = 1024
"""Samples that the encoder takes at a time."""


@dataclass(frozen=True, kw_only=True)
class SecondStream:
    """Another video stream of the same file, with its own size and numbers."""

    num_frames: int
    width: int
    height: int
    start: int = 0
    """Number of its first frame."""
    comes_first: bool = False
    """It is stream 0 of the file and the main one stream 1."""


def number_image(number: int, *, width: int, height: int) -> NDArray[np.uint8]:
    """The picture (h, w, c) that shows `number`."""
    if not 0 <= number <= MAX_NUMBER:
        raise ValueError(f"a frame shows a number between 0 and {MAX_NUMBER}, got {number}")
    code = number << 4 | _check_sum(number)
    bits = np.array([code >> position & 1 for position in reversed(range(GRID * GRID))]).reshape(GRID, GRID)
    rows, columns = np.arange(height) * GRID // height, np.arange(width) * GRID // width
    grey = np.where(bits[rows][:, columns] == 1, BRIGHT, DARK).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def read_number(frame: NDArray[Any]) -> int:
    """The number that a frame shows.

    Args:
        frame: (h, w, c) or (c, h, w) uint8, of any size from 8x8 pixels.

    Raises:
        ValueError: the picture shows no number (check sum wrong, or squares neither dark nor bright).
    """
    if frame.ndim != 3:
        raise ValueError(f"expected one frame (h, w, c) or (c, h, w), got shape {frame.shape}")
    grey = frame.astype(np.float64).mean(axis=0 if frame.shape[0] == 3 and frame.shape[2] != 3 else 2)
    height, width = grey.shape
    code = 0
    for row in range(GRID):
        for column in range(GRID):
            # The middle of each square: its edges are blurred by coding and scaling.
            top, bottom = _middle(row, height)
            left, right = _middle(column, width)
            level = float(grey[top:bottom, left:right].mean())
            if 100 < level < 155:
                raise ValueError(f"square {row},{column} is neither dark nor bright: {level:.0f}")
            code = code << 1 | (level >= 155)
    number = code >> 4
    if code & 15 != _check_sum(number):
        raise ValueError(f"check sum of number {number} is {_check_sum(number)}, the picture shows {code & 15}")
    return number


def write_numbered_video(
    path: Path | str,
    *,
    num_frames: int,
    fps: int | Fraction = 30,
    width: int = 128,
    height: int = 96,
    codec: str = "libx264",
    gop: int = 12,
    bframes: int | None = None,
    open_gop: bool = False,
    options: Mapping[str, str] | None = None,
    start: int = 0,
    pts: Sequence[int] | None = None,
    time_base: Fraction = Fraction(1, 1000),
    rotation: int = 0,
    mirrored: bool = False,
    second_stream: SecondStream | None = None,
    pixel_format: str = "yuv420p",
    container_options: Mapping[str, str] | None = None,
    has_audio: bool = False,
) -> Path:
    """Write a video whose i-th frame shows `start` + i; the container is that of the path's suffix.

    Args:
        path: file to write (.mp4, .mkv, .webm, .mov, .avi, .ts ...).
        num_frames: frames to write, at most 4096 - `start`.
        fps: frames per second, when `pts` is not given.
        width: pixels as stored (before rotation).
        height: pixels as stored (before rotation).
        codec: encoder: libx264, libx265, libvpx, libvpx-vp9, libsvtav1, mpeg4, mpeg2video, mjpeg ...
        gop: frames from one key frame to the next.
        bframes: consecutive B-frames at most; None is the encoder's default (3 for x264).
        open_gop: frames before a key frame (in presentation) may refer to the GOP before it (x264, x265).
        options: further options of the encoder.
        start: number of the first frame.
        pts: presentation time of each frame in units of `time_base` (variable frame rate); None: 1 / `fps` apart.
        time_base: unit of `pts` in seconds.
        rotation: display rotation in degrees that a player applies (counter-clockwise, as FFmpeg's display matrix);
            the frames are stored turned the other way, so that their numbers are readable upright.
        mirrored: the display matrix mirrors left and right; the frames are stored mirrored.
        second_stream: a second video stream.
        pixel_format: as stored.
        container_options: options of the muxer.
        has_audio: an AAC stream beside it, a quiet tone as long as the pictures at `fps`.

    Raises:
        ValueError: the numbers do not fit, `pts` is not one a frame, or the encoder has no such option.
    """
    if pts is not None and len(pts) != num_frames:
        raise ValueError(f"{num_frames} frames need as many pts, got {len(pts)}")
    path = Path(path)
    main = SecondStream(num_frames=num_frames, width=width, height=height, start=start)
    layout = [main]
    if second_stream is not None:
        layout = [second_stream, main] if second_stream.comes_first else [main, second_stream]
    settings = _encoder_options(codec, gop=gop, bframes=bframes, open_gop=open_gop) | dict(options or {})
    step = 1 / Fraction(fps)
    with av.open(str(path), "w", options=dict(container_options or {})) as container:
        streams = []
        for part in layout:
            stream: Any = container.add_stream(codec, rate=Fraction(fps), options=settings)
            stream.width, stream.height, stream.pix_fmt = part.width, part.height, pixel_format
            stream.codec_context.gop_size = gop
            # Microsecond-exact rates for constant rates, the caller's unit for explicit times.
            stream.codec_context.time_base = step if pts is None else time_base
            stream.codec_context.thread_count = 1
            if bframes is not None:
                stream.codec_context.max_b_frames = bframes
            if rotation or mirrored:
                stream.set_display_rotation(rotation, hflip=mirrored)
            streams.append(stream)
        # All streams are there before the first packet: the header names them.
        tone: Any = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono") if has_audio else None
        for index in range(max(part.num_frames for part in layout)):
            for part, stream in zip(layout, streams, strict=True):
                if index >= part.num_frames:
                    continue
                size = (part.height, part.width) if rotation % 180 else (part.width, part.height)
                picture = number_image(part.start + index, width=size[0], height=size[1])
                stored = np.rot90(picture[:, ::-1] if mirrored else picture, -rotation // 90)
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(stored), format="rgb24")
                frame.pts = index if pts is None or part is not main else pts[index]
                frame.time_base = step if pts is None else time_base
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode())
        if tone is not None:
            _encode_tone(container, tone, duration_seconds=num_frames / Fraction(fps))
    return path


def _encode_tone(container: Any, stream: Any, *, duration_seconds: Fraction) -> None:
    num_samples = int(duration_seconds * SAMPLE_RATE)
    tone = (0.05 * np.sin(np.arange(num_samples) * (2 * np.pi * 440 / SAMPLE_RATE))).astype(np.float32)
    for first in range(0, num_samples, AAC_FRAME):
        frame = av.AudioFrame.from_ndarray(tone[None, first : first + AAC_FRAME], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, first, Fraction(1, SAMPLE_RATE)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def _check_sum(number: int) -> int:
    return (number ^ number >> 4 ^ number >> 8 ^ 0b1011) & 15


def _middle(position: int, length: int) -> tuple[int, int]:
    first, last = (4 * position + 1) * length / 16, (4 * position + 3) * length / 16
    return int(first), max(int(last), int(first) + 1)


def _encoder_options(codec: str, *, gop: int, bframes: int | None, open_gop: bool) -> dict[str, str]:
    if codec in ("libx264", "libx265"):
        # scenecut=0: numbered frames differ so much that each would become a key frame.
        parts = [f"keyint={gop}", f"min-keyint={min(gop, 2)}", "scenecut=0", f"open-gop={int(open_gop)}"]
        if bframes is not None:
            parts.append(f"bframes={bframes}")
        if codec == "libx265":
            parts += ["log-level=none", "pools=none", "frame-threads=1"]
        return {"x264-params" if codec == "libx264" else "x265-params": ":".join(parts), "preset": "veryfast"}
    if open_gop:
        raise ValueError(f"open_gop is for libx264 and libx265, got {codec}")
    if codec in ("libvpx", "libvpx-vp9"):
        # A lag lets the encoder make invisible alternate reference frames, as YouTube's files have.
        return {"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "5", "deadline": "good", "b": "400k"}
    if codec == "libsvtav1":
        os.environ.setdefault("SVT_LOG", "1")  # errors only; it has no other switch
        return {"preset": "9", "crf": "15", "svtav1-params": f"keyint={gop}:lp=1"}
    return {}
