"""What a video file is, measured on its packets and frames; and whether all of it decodes."""

from dataclasses import dataclass
from pathlib import Path

import av.error
import numpy as np
from numpy.typing import NDArray

from vidprep.decode.pyav import PyavReader, demux, describe, open_container, reason_of
from vidprep.errors import CorruptVideo, WrongLength

__all__ = ["VideoFacts", "check", "probe"]

# An MPEG-4 packet that repeats the frame before it ("not coded") is a header of a few bytes, and gives no frame.
MPEG4_PLACEHOLDER_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class VideoFacts:
    """Measured facts about the best video stream of a file."""

    num_frames: int
    """Frames that it decodes to."""
    fps: float
    """Average rate between the first and the last frame, (n - 1) / (last - first); NaN where it cannot be measured."""
    width: int
    """Pixels, upright."""
    height: int
    """Pixels, upright."""
    duration_seconds: float
    """num_frames / fps; of a single frame what the file says, or NaN."""
    codec: str
    """As FFmpeg calls it: h264, hevc, vp9 ..."""
    pixel_format: str
    """As FFmpeg calls it: yuv420p ..."""
    rotation: int
    """Degrees, counter-clockwise, by which stored pixels are turned to be upright: 0, 90, 180 or 270."""
    is_variable_rate: bool
    """Frames are not equally far apart, beyond the rounding of the file's time unit."""
    num_keyframes: int
    """Packets that are marked as key frames."""
    num_bytes: int
    """Size of the file."""


def probe(source: str | Path | bytes) -> VideoFacts:
    """Measure a video: its packets are read and its first frame decoded.

    Where the packets do not tell which frames there are (see `PyavReader`), all of it is decoded.

    Raises:
        MissingVideo: no such file.
        CorruptVideo: it cannot be read as a video, or its first frame does not decode.
    """
    with PyavReader(source) as reader:
        stream = reader.stream
        pts = reader.pts_seconds
        fps = _measured_fps(pts)
        duration = reader.num_frames / fps
        if reader.num_frames == 1 and stream.duration and stream.time_base:
            duration = float(stream.duration * stream.time_base)
        return VideoFacts(
            num_frames=reader.num_frames,
            fps=fps,
            width=reader.width,
            height=reader.height,
            duration_seconds=duration,
            codec=stream.codec_context.codec.canonical_name,
            pixel_format=stream.codec_context.pix_fmt or "unknown",
            rotation=reader.rotation,
            is_variable_rate=_is_variable(pts, unit_seconds=float(stream.time_base or 0)),
            num_keyframes=reader.num_keyframes,
            num_bytes=len(source) if isinstance(source, bytes) else Path(source).stat().st_size,
        )


def check(source: str | Path | bytes) -> VideoFacts:
    """Measure a video after decoding all of it, with a decoder that forgives nothing.

    Damage inside a picture that its codec cannot notice (arithmetic codes without check sums) stays unseen.

    Raises:
        MissingVideo: no such file.
        CorruptVideo: it cannot be read as a video, some part of it is damaged, or fewer frames decode than its
            header or its packets promise.
    """
    name = describe(source)
    container, stream = open_container(source, codec_options={"err_detect": "explode"})
    codec = stream.codec_context.codec.canonical_name
    num_frames = num_hidden = num_interlaced = 0
    with container:
        try:
            for packet in demux(container, stream):
                if packet.is_corrupt:
                    raise CorruptVideo(f"{name}: a packet is damaged or cut short, after {num_frames} frames.")
                num_hidden += packet.is_discard or (codec == "mpeg4" and packet.size < MPEG4_PLACEHOLDER_BYTES)
                for frame in stream.decode(packet):
                    if frame.is_corrupt:
                        raise CorruptVideo(f"{name}: frame {num_frames} is damaged.")
                    num_frames += 1
                    num_interlaced += frame.interlaced_frame
            num_frames += len(stream.decode(None))
        except av.error.FFmpegError as error:
            raise CorruptVideo(f"{name}: decoding stops after {num_frames} frames: {reason_of(error)}.") from error
        promised = stream.frames - num_hidden
        # Interlaced AVI files count fields: two of them are one frame.
        if num_frames < promised and not (num_interlaced and 2 * num_frames >= promised):
            raise WrongLength(
                f"{name}: its header promises {promised} frames, {num_frames} decode; it is damaged or cut short."
            )
    facts = probe(source)
    if facts.num_frames != num_frames:
        raise WrongLength(f"{name}: its packets promise {facts.num_frames} frames, {num_frames} decode.")
    return facts


def _measured_fps(pts_seconds: NDArray[np.float64]) -> float:
    span = float(pts_seconds[-1] - pts_seconds[0])
    return (len(pts_seconds) - 1) / span if span > 0 else float("nan")


def _is_variable(pts_seconds: NDArray[np.float64], *, unit_seconds: float) -> bool:
    steps = np.diff(pts_seconds)
    if not len(steps) or np.isnan(steps).any():
        return False
    tolerance = max(1.5 * unit_seconds, 0.01 * float(steps.mean()))
    return bool(np.abs(steps - steps.mean()).max() > tolerance)
