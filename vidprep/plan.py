"""What preparing a split will cost, and what it will bring, measured on a few of its videos before anything is done.

Three ways to prepare it are compared: the files as they are, JPEG frames, and short videos whose key frames lie close
together (H.264, a key frame every few frames). Bytes and hours are those of the measured videos, in proportion to the
sizes of the files (of segments: to their seconds); clips per second are decoding alone, from memory.
"""

import io
import json
import math
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from vidprep.decode.pyav import PyavReader
from vidprep.engine import media_state, run, source_state
from vidprep.errors import CorruptVideo, MissingVideo, UsageError, VidprepError
from vidprep.extract import FrameFacts, frames_of, read_delivered
from vidprep.index import sample_id
from vidprep.sampling import sample_clips
from vidprep.shard import default_samples_per_shard
from vidprep.splits import Split
from vidprep.types import FrameFormat, Video

__all__ = ["Plan", "Way", "make_plan"]

GOP_FRAMES = 8
"""Between two key frames of a short-GOP video."""
MAX_MEASURED_SECONDS = 20.0
"""Of a video; of a longer one its beginning stands for the rest."""
NUM_CLIPS = 8
"""That are decoded of each measured video, to see how fast they load."""
TIME_LIMIT_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to prepare the split."""

    name: str
    hours: float
    """On all workers."""
    num_bytes: int
    num_shards: int
    clips_per_second: float
    """That all workers decode afterwards; the files as they are, where they are not smaller, are resized on top."""
    fits: bool
    """On the disk that was looked at, with a tenth to spare."""
    command: str
    """That does it; "" where a command needs more than is known here."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What preparing a split takes and brings."""

    dataset: str
    split: str
    num_samples: int
    """Rows of the split."""
    num_missing: int
    """Rows without a file."""
    source_bytes: int
    video_hours: float
    num_measured: int
    faults: Mapping[str, str]
    """id -> why it could not be measured."""
    workers: int
    num_clip_frames: int
    folder: str
    free_bytes: int
    ways: tuple[Way, ...]

    def to_text(self) -> str:
        """A table of the ways, and a sentence on which of them loads fastest."""
        there = self.num_samples - self.num_missing
        lines = [
            f"{self.dataset}/{self.split}: {there:,} of {self.num_samples:,} samples have files, "
            f"{_size(self.source_bytes)}, {_duration(self.video_hours)} long; measured on {self.num_measured}"
        ]
        lines += [f"  not measured: {name}: {reason}" for name, reason in self.faults.items()]
        rows = [("", f"time on {self.workers} workers", "size", "shards", "clips/s then", "disk")]
        for way in self.ways:
            fits = "enough" if way.fits else "too small"
            rows.append(
                (way.name, _duration(way.hours), _size(way.num_bytes), f"{way.num_shards:,}",
                 f"{way.clips_per_second:,.0f}", fits)
            )  # fmt: skip
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = [cell.ljust(width) if place == 0 else cell.rjust(width) for place, (cell, width) in
                     enumerate(zip(row, widths, strict=True))]  # fmt: skip
            lines.append("  ".join(cells).rstrip())
        lines.append(f"{self.folder}: {_size(self.free_bytes)} free; clips of {self.num_clip_frames} frames")
        if len(self.ways) > 1:
            fastest, *others = sorted(self.ways, key=lambda way: -way.clips_per_second)
            lines.append(f"{fastest.name} will load fastest: " + ", ".join(
                f"{fastest.clips_per_second / way.clips_per_second:.1f} times {way.name} "
                f"at {fastest.num_bytes / max(way.num_bytes, 1):.2g} times the size"
                for way in others
            ))  # fmt: skip
        lines += [f"  {way.name}: {way.command}" for way in self.ways if way.command]
        return "\n".join(lines)

    def to_json(self) -> str:
        """The same, to be read by programs."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"


@dataclass(frozen=True, kw_only=True)
class _Item:
    video: Video
    path: Path


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """Of one sample, wholly: what was measured on its beginning is scaled to its length."""

    seconds: float
    """Its length."""
    file_bytes: int
    decode_seconds: float
    jpeg_seconds: float
    """Decoding included."""
    jpeg_bytes: float
    gop_seconds: float
    """Of encoding alone."""
    gop_bytes: float
    clip_seconds: Mapping[str, float]
    """Name of a way -> seconds that one clip takes to decode."""


def make_plan(
    split: Split,
    paths: Mapping[str, Path],
    *,
    settings: FrameFormat,
    delivered: FrameFormat | None = None,
    folder: Path,
    workers: int = 1,
    num_videos: int = 8,
    num_clip_frames: int = 8,
    command_options: str = "",
    frame_options: str = "",
    progress: str | None = None,
) -> Plan:
    """Measure a few videos of a split and say what preparing all of it takes.

    Args:
        split: the videos.
        paths: video_id -> file, or folder of frames.
        settings: which frames, size, quality.
        delivered: how a data set that is delivered as folders of frames calls them; None: `paths` are video files.
        folder: where the result is to lie; its disk is looked at, nothing is written.
        workers: processes that will do the work; measured is one.
        num_videos: how many are measured, evenly spread over the split.
        num_clip_frames: frames of a clip, spread over its video, as they are loaded for training.
        command_options: of the commands in the report: data set, split, data root.
        frame_options: of those that make frames, too, each with a blank before it.
        progress: shown while it runs; None shows nothing.

    Raises:
        UsageError: no sample has a file, or a number below 1.
        VidprepError: none of the videos that were tried can be read.
    """
    for name, number in (("workers", workers), ("num_videos", num_videos), ("num_clip_frames", num_clip_frames)):
        if number < 1:
            raise UsageError(f"{name} must be at least 1, got {number}.")
    there = [_Item(video=video, path=paths[video.video_id]) for video in split.videos if video.video_id in paths]
    if not there:
        raise UsageError(
            f"{split.dataset}/{split.split}: none of its {len(split.videos)} samples has a file; fetch them first."
        )
    sizes = {path: (media_state(path) or [0])[0] for path in {item.path for item in there}}
    positions = np.unique(np.linspace(0, len(there) - 1, num_videos).round().astype(int))
    chosen = [there[position] for position in positions]
    work = partial(_measure, settings=settings, delivered=delivered, num_clip_frames=num_clip_frames)
    measured: dict[Video, _Measured] = {}
    faults: dict[str, str] = {}
    # One at a time, in a process of its own: nobody has looked at these videos before.
    with closing(run(chosen, work, time_limit_seconds=TIME_LIMIT_SECONDS, progress=progress)) as outcomes:
        for outcome in outcomes:
            if outcome.result is not None:
                measured[outcome.unit.video] = outcome.result
            elif isinstance(outcome.error, VidprepError | OSError | ValueError | MemoryError):
                faults[sample_id(outcome.unit.video)] = str(outcome.error)
            elif outcome.error is not None:
                raise outcome.error
    if not measured:
        name, reason = next(iter(faults.items()))
        raise VidprepError(f"none of the {len(chosen)} videos that were tried can be measured ({name}: {reason}).")
    factor = _factor(there, sizes, measured)
    # So many frames of each video are as many of a short one as of a long one.
    frames_factor = factor if settings.num_frames is None else len(there) / len(measured)
    free = shutil.disk_usage(_existing(folder)).free
    return Plan(
        dataset=split.dataset,
        split=split.split,
        num_samples=len(split.videos),
        num_missing=len(split.videos) - len(there),
        source_bytes=sum(sizes.values()),
        video_hours=factor * sum(of_one.seconds for of_one in measured.values()) / 3600,
        num_measured=len(measured),
        faults=faults,
        workers=workers,
        num_clip_frames=num_clip_frames,
        folder=str(folder),
        free_bytes=free,
        ways=_ways(
            split,
            list(measured.values()),
            factor,
            frames_factor,
            settings,
            delivered,
            workers,
            free,
            command_options,
            frame_options,
        ),
    )


def _factor(there: Sequence[_Item], sizes: Mapping[Path, int], measured: Mapping[Video, _Measured]) -> float:
    """How much more all samples are than those that were measured."""
    seconds = [_annotated_seconds(item.video) for item in there]
    if all(of_one is not None for of_one in seconds):
        # Several segments share a file: its size says nothing about one of them.
        known = sum(of_one or 0.0 for of_one in seconds)
        return known / sum(_annotated_seconds(video) or 0.0 for video in measured)
    of_file = {item.video: sizes[item.path] for item in there}
    return sum(of_file.values()) / max(sum(of_file[video] for video in measured), 1)


def _annotated_seconds(video: Video) -> float | None:
    return None if video.end_seconds is None else video.end_seconds - (video.start_seconds or 0.0)


def _ways(
    split: Split,
    measured: Sequence[_Measured],
    factor: float,
    frames_factor: float,
    settings: FrameFormat,
    delivered: FrameFormat | None,
    workers: int,
    free_bytes: int,
    options: str,
    frame_options: str,
) -> tuple[Way, ...]:
    def total(value: Callable[[_Measured], float], factor: float = factor) -> float:
        return factor * sum(map(value, measured))

    def clips_per_second(name: str) -> float:
        return workers / statistics.fmean(of_one.clip_seconds[name] for of_one in measured)

    size = f"short side {settings.short_side}" if settings.short_side else "their size"
    if settings.height:
        size = f"{settings.width}x{settings.height}" if settings.width else f"height {settings.height}"
    which = "key frames" if settings.keyframes_only else "frames"
    if settings.num_frames is not None:
        which = f"frames, {settings.num_frames} of each"
    num_shards = math.ceil(len(split.videos) / default_samples_per_shard(len(split.videos), task=split.task))
    is_segments = any(video.end_seconds is not None for video in split.videos)
    ways = []
    if delivered is None and not is_segments:
        # What is checked is decoded wholly.
        seconds = total(lambda of_one: of_one.decode_seconds)
        ways.append(("files", seconds, total(lambda of_one: of_one.file_bytes), "files as they are", "--content video"))
    # Straight from videos each is decoded twice: to see that it is whole, and for its frames.
    check_seconds = total(lambda of_one: of_one.decode_seconds) if delivered is None and not is_segments else 0.0
    ways.append(
        (
            "frames",
            check_seconds + total(lambda of_one: of_one.jpeg_seconds, frames_factor),
            total(lambda of_one: of_one.jpeg_bytes, frames_factor),
            f"JPEG {which}, {size}",
            f"--content frames{frame_options}",
        )
    )
    ways.append(
        (
            "short GOP",
            total(lambda of_one: of_one.decode_seconds + of_one.gop_seconds),
            total(lambda of_one: of_one.gop_bytes),
            f"short-GOP video, {size}",
            "" if delivered is not None else _clip_options(settings),
        )
    )
    return tuple(
        Way(
            name=title,
            hours=seconds / workers / 3600,
            num_bytes=round(num_bytes),
            num_shards=num_shards,
            clips_per_second=clips_per_second(name),
            fits=num_bytes * 1.1 < free_bytes,
            command=f"vidprep {command} {options} {own} --workers {workers} --out DIR" if own and options else "",
        )
        for name, seconds, num_bytes, title, own in ways
        for command in ["clips" if name == "short GOP" else "shard"]
    )


def _clip_options(settings: FrameFormat) -> str:
    """Of `vidprep clips`, for what is measured; "" where it makes no such videos."""
    is_even = settings.short_side is None or settings.short_side % 2 == 0
    if settings.height is not None or not is_even or (settings.fps is not None and settings.rate_mode == "output"):
        return ""
    size = "" if settings.short_side is None else f" --short-side {settings.short_side}"
    rate = "" if settings.fps is None else f" --fps {settings.fps:g}"
    return f"--gop {GOP_FRAMES} --preset veryfast{size}{rate}"


def _existing(folder: Path) -> Path:
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return place


# One sample


def _measure(item: _Item, *, settings: FrameFormat, delivered: FrameFormat | None, num_clip_frames: int) -> _Measured:
    """Decode, extract and encode a sample, or its beginning; each is timed by itself.

    Raises:
        MissingVideo, CorruptVideo: it cannot be read.
    """
    size = (source_state(item.path) or [0])[0]
    # Short-GOP video has all frames (of a rate), also where fewer are to be extracted.
    is_few = settings.num_frames is not None or settings.keyframes_only
    every = replace(settings, num_frames=None, keyframes_only=False)
    if delivered is not None:
        found = read_delivered(item.path, item.video, settings, delivered=delivered)
        with _timed() as jpeg:
            images = list(found.images)
        whole, shown_images = found, images
        if is_few:
            whole = read_delivered(item.path, item.video, every, delivered=delivered)
            shown_images = list(whole.images)
        seconds = found.facts.source_duration_seconds
        gop = _measure_gop(shown_images, whole.facts.fps, num_clip_frames)
        return _Measured(
            seconds=0.0 if math.isnan(seconds) else seconds,
            file_bytes=size,
            decode_seconds=jpeg[0],
            jpeg_seconds=jpeg[0],
            jpeg_bytes=float(sum(map(len, images))),
            gop_seconds=gop.encode_seconds,
            gop_bytes=gop.num_bytes,
            clip_seconds={"frames": _frames_seconds(images, num_clip_frames), "short GOP": gop.clip_seconds},
        )
    with PyavReader(item.path) as reader:
        video, share = _beginning(item.video, reader)
        with _timed() as decoding:
            shown = _indices(reader, video)
            for _ in reader.iterate_stored(shown):
                pass
        with _timed() as jpeg:
            # So many frames are spread over the whole video, not over its beginning.
            facts, encoded = frames_of(reader, video if settings.num_frames is None else item.video, settings)
            images = list(encoded)
        jpeg_share = share if settings.num_frames is None else 1.0
        whole_facts, shown_images = facts, images
        if is_few:
            whole_facts, encoded = frames_of(reader, video, every)
            shown_images = list(encoded)
        clip = shown[sample_clips(len(shown), num_segments=num_clip_frames, num_clips=1)[0]]
        with _timed() as original:
            for _ in range(NUM_CLIPS):
                with PyavReader(item.path) as again:
                    again.get_frames_at(clip)
    gop = _measure_gop(shown_images, whole_facts.fps, num_clip_frames)
    return _Measured(
        seconds=_length(video, facts) / share,
        file_bytes=size,
        decode_seconds=decoding[0] / share,
        jpeg_seconds=jpeg[0] / jpeg_share,
        jpeg_bytes=sum(map(len, images)) / jpeg_share,
        gop_seconds=gop.encode_seconds / share,
        gop_bytes=gop.num_bytes / share,
        clip_seconds={
            "files": original[0] / NUM_CLIPS,
            "frames": _frames_seconds(images, num_clip_frames),
            "short GOP": gop.clip_seconds,
        },
    )


def _beginning(video: Video, reader: PyavReader) -> tuple[Video, float]:
    """The video or its beginning, and which share of it that is."""
    start = video.start_seconds or 0.0
    times = reader.pts_seconds
    if not np.all(np.isfinite(times)) or len(times) < 2:
        return video, 1.0
    end = float(times[-1] - times[0]) if video.end_seconds is None else video.end_seconds
    if end - start <= MAX_MEASURED_SECONDS:
        return video, 1.0
    return replace(video, end_seconds=start + MAX_MEASURED_SECONDS), MAX_MEASURED_SECONDS / (end - start)


def _indices(reader: PyavReader, video: Video) -> NDArray[np.int64]:
    """The frames of the segment, all of them where the file holds no times."""
    times = reader.pts_seconds - reader.pts_seconds[0]
    if not np.all(np.isfinite(times)):
        return np.arange(reader.num_frames, dtype=np.int64)
    end = math.inf if video.end_seconds is None else video.end_seconds
    shown = np.flatnonzero((times >= (video.start_seconds or 0.0)) & (times < end)).astype(np.int64)
    if len(shown) == 0:
        raise CorruptVideo("no frame lies in the segment")
    return shown


def _length(video: Video, facts: FrameFacts) -> float:
    end = facts.source_duration_seconds if video.end_seconds is None else video.end_seconds
    return max(min(end, facts.source_duration_seconds) - (video.start_seconds or 0.0), 0.0)


def _frames_seconds(images: Sequence[bytes], num_clip_frames: int) -> float:
    """That a clip takes to decode from JPEG images."""
    if not images:
        raise MissingVideo("no frame of it is chosen")
    clip = sample_clips(len(images), num_segments=num_clip_frames, num_clips=1)[0]
    with _timed() as taken:
        for _ in range(NUM_CLIPS):
            for index in clip:
                simplejpeg.decode_jpeg(images[index])
    return taken[0] / NUM_CLIPS


@dataclass(frozen=True, kw_only=True)
class _Gop:
    """Short-GOP video of what was measured."""

    encode_seconds: float
    num_bytes: float
    clip_seconds: float
    """That a clip takes to decode."""


def _measure_gop(images: Sequence[bytes], rate: float, num_clip_frames: int) -> _Gop:
    if not images:
        raise MissingVideo("no frame of it is chosen")
    pictures = [simplejpeg.decode_jpeg(image) for image in images]
    with _timed() as encoding:
        data = _short_gop(pictures, rate if math.isfinite(rate) and rate > 0 else 25.0)
    clip = sample_clips(len(images), num_segments=num_clip_frames, num_clips=1)[0]
    with _timed() as from_video:
        for _ in range(NUM_CLIPS):
            with PyavReader(data) as reader:
                reader.get_frames_at(np.minimum(clip, reader.num_frames - 1))
    return _Gop(encode_seconds=encoding[0], num_bytes=float(len(data)), clip_seconds=from_video[0] / NUM_CLIPS)


def _short_gop(pictures: Sequence[NDArray[np.uint8]], rate: float) -> bytes:
    """Pictures (h, w, c) as H.264 (x264, veryfast, CRF 23) with a key frame every `GOP_FRAMES` frames."""
    from fractions import Fraction

    stream = io.BytesIO()
    height, width = pictures[0].shape[:2]
    with av.open(stream, "w", format="mp4") as out:
        video: Any = out.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001))
        video.width, video.height = max(width - width % 2, 2), max(height - height % 2, 2)
        video.pix_fmt = "yuv420p"
        video.codec_context.gop_size = GOP_FRAMES
        video.codec_context.thread_count = 1
        video.options = {"crf": "23", "preset": "veryfast", "sc_threshold": "0"}
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            out.mux(video.encode(frame.reformat(width=video.width, height=video.height)))
        out.mux(video.encode(None))
    return stream.getvalue()


@contextmanager
def _timed() -> Iterator[list[float]]:
    """A list that holds the seconds that the block took."""
    taken = [0.0]
    started = time.perf_counter()
    yield taken
    taken[0] = max(time.perf_counter() - started, 1e-9)


def _size(num_bytes: int) -> str:
    for unit, factor in (("TB", 1e12), ("GB", 1e9)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{num_bytes / 1e6:.1f} MB"


def _duration(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{hours * 60:.1f} min" if hours * 60 >= 1 else f"{hours * 3600:.2g} s"
