"""Videos to JPEG (or PNG) frames, as data sets are published: which frames, at which size, under which names.

Data sets that are delivered as folders of frames go the same way: their files as they are, or fewer, or smaller ones.

OUT/{video_id}/image_00001.jpg ...     the frames of one video; the folder appears when all are there
OUT.parquet                            one row a video: number of frames, their times, what the video is
OUT.faults.csv                         the videos without frames, and why
OUT.journal                            the ledger, what was done and what failed: a restart does the rest
"""

import csv
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Literal, Self, cast

import numpy as np
from numpy.typing import NDArray

from vidprep.engine import (
    CannotWrite,
    Outcomes,
    WorkerDied,
    differences,
    publish,
    run,
    source_state,
    unique_name,
    writing,
)
from vidprep.errors import CorruptVideo, FaultKind, MissingVideo, UsageError, VidprepError, WrongLength, kind_of
from vidprep.ffmpeg import FfmpegOptions, check_filter, extract_with_ffmpeg, require_ffmpeg
from vidprep.index import Fault, faults_to_csv, sample_id
from vidprep.ledger import check_retry, ends_in_newline, now, samples_line
from vidprep.sampling import sample_clips
from vidprep.splits import Split
from vidprep.tasks import ArrayTask, Held, hold
from vidprep.types import FrameAnnotation, FrameFormat, Video
from vidprep.workers import begin_part

if TYPE_CHECKING:
    from vidprep.decode.pyav import PyavReader
    from vidprep.encode import JpegEncoder

__all__ = [
    "DeliveredFrames",
    "ExtractReport",
    "FrameFacts",
    "FrameIndex",
    "extract",
    "folder_name",
    "frame_size",
    "frames_of",
    "match_annotations",
    "media_state",
    "open_frames",
    "read_delivered",
    "read_frame_index",
    "select_frames",
]

RateMode = Literal["filter", "output"]


@dataclass(frozen=True, kw_only=True)
class FrameFacts:
    """The frames of one video (or of its annotated segment), and the video they come from."""

    folder: str
    """Below the folder of extracted frames."""
    num_frames: int
    fps: float
    """Frames per second: as asked for, or the video's own, or `num_frames` over the seconds that they are spread over;
    NaN for a video of a single frame, and for key frames."""
    width: int
    height: int
    pts_seconds: tuple[float, ...]
    """When each frame is shown in the video, as stored there; frames may repeat."""
    source_num_frames: int
    source_fps: float
    source_width: int
    source_height: int
    source_duration_seconds: float


@dataclass(frozen=True, kw_only=True)
class FrameIndex:
    """All extracted frames of a split."""

    settings: FrameFormat
    frames: Mapping[str, FrameFacts]
    """By folder name."""
    reasons: Mapping[str, str]
    """video_id -> why it has no frames."""


@dataclass(frozen=True, kw_only=True)
class ExtractReport:
    """What a run left behind."""

    folder: Path
    num_videos: int
    num_frames: int
    num_new: int
    """Videos that this run extracted; the others were there."""
    faults: tuple[Fault, ...]
    num_missing: int = 0
    """Videos that other tasks have still to look at."""
    is_finished: bool = True
    """The index of all frames is written; False while other tasks are at work: then this tells of one part."""


# Which frames


def select_frames(
    pts_seconds: Sequence[float] | NDArray[np.float64],
    *,
    fps: float | None,
    rate_mode: RateMode = "filter",
    frame_rate: float | None = None,
    end_seconds: float | None = None,
) -> NDArray[np.int64]:
    """Which frames FFmpeg writes when it is asked for `fps` images per second; ascending, with repeats.

        10 s at 30 fps, fps=5, "filter":  2 8 14 20 ... 296       50 frames, ffmpeg -vf fps=5
                               "output":  0 1 5 11 17 ... 299     52 frames, ffmpeg -vf scale=... -r 5

    Both modes write a picture for every tick of 1 / `fps` and repeat one where the video has none. They differ in
    where a tick lies and in what happens at the start. In "output" mode without any `-vf`, FFmpeg 5 and later choose
    other frames when fps is more than half the video's rate; the published recipes all scale, so that is followed.

    Args:
        pts_seconds: (num_frames,) ascending times, on any origin: they count from the first one.
        fps: images per second; None keeps every frame once.
        rate_mode: "filter" is `-vf fps=N`, "output" is `-r N` as an option of the output.
        frame_rate: of the video, nominal; None: from the median distance of its frames.
        end_seconds: when the last frame ends, on the origin of `pts_seconds`; None: one frame later than it begins.

    Returns:
        Indices; at least one, where FFmpeg in "filter" mode writes none for a video of less than half a tick.

    Raises:
        ValueError: no frames, or times that descend.

    Source: FFmpeg 5.1, `libavfilter/vf_fps.c` (round=near, eof_action=round) and the constant-rate branch of
    `do_video_out` in `fftools/ffmpeg.c`; checked against the program frame by frame.
    """
    times = np.asarray(pts_seconds, dtype=np.float64)
    if len(times) == 0:
        raise ValueError("a video without frames has none to select")
    if np.any(np.diff(times) < 0):
        raise ValueError("presentation times must ascend")
    if fps is None:
        return np.arange(len(times), dtype=np.int64)
    if frame_rate is None:
        frame_rate = _median_rate(times) or fps
    last = end_seconds if end_seconds is not None else float(times[-1]) + 1 / frame_rate
    if rate_mode == "filter":
        return _select_by_filter((times - times[0]) * fps, (last - float(times[0])) * fps)
    return _select_by_output((times - times[0]) * fps, min(fps / frame_rate, 1.0))


def _select_by_filter(ticks: NDArray[np.float64], end: float) -> NDArray[np.int64]:
    """Each frame counts from the tick nearest to it; a tick shows the last frame that counts by then."""
    begins = np.array([_round_half_up(tick) for tick in ticks], dtype=np.int64)
    written = np.arange(begins[0], max(_round_half_up(end), int(begins[0]) + 1))
    return (np.searchsorted(begins, written, side="right") - 1).astype(np.int64)


def _round_half_up(tick: float) -> int:
    # Times are rational in the file and only nearly so here: a half is a half up to a millionth.
    return math.floor(tick + 0.5 + 1e-6)


def _select_by_output(ticks: NDArray[np.float64], duration: float) -> NDArray[np.int64]:
    """A frame is written as often as needed to keep up with its time, and dropped when 1.1 ticks early.

    Args:
        ticks: when each frame is shown, in units of output frames.
        duration: of each frame, in the same unit, at most 1.
    """
    chosen: list[int] = []
    repeats_of_previous = [0, 0, 0]
    for index, tick in enumerate(ticks):
        # FFmpeg moves times off exact halves by this much.
        lead = float(tick) + (2.0**-17 if tick > 0 else 0.0) - len(chosen)
        lag = lead + duration
        if lead < 0 < lag:
            lead = 0.0
        num_times, num_previous = 1, 0
        if lag < -1.1:
            num_times = 0
        elif lag > 1.1:
            num_times = round(lag)
            if lead > 1.1:
                num_previous = round(lead - 0.6)
        num_previous = min(num_previous, num_times)
        repeats_of_previous = [num_previous, *repeats_of_previous[:2]]
        chosen += [max(index - 1, 0)] * num_previous + [index] * (num_times - num_previous)
    chosen += [len(ticks) - 1] * sorted(repeats_of_previous)[1]
    return np.array(chosen, dtype=np.int64)


def _median_rate(times: NDArray[np.float64]) -> float | None:
    steps = np.diff(times)
    steps = steps[steps > 0]
    return float(1 / np.median(steps)) if len(steps) else None


def frame_size(width: int, height: int, short_side: int | None, *, to_height: int | None = None) -> tuple[int, int]:
    """(width, height) with the shorter side `short_side`, or the height `to_height`, the other in proportion, rounded.

    340x256 at 350 is 465x350, as with FFmpeg's `scale=350:350:force_original_aspect_ratio=increase`; at the height
    360 it is 478x360, as with `scale=-1:360`.
    """
    if to_height is not None:
        return max((2 * width * to_height + height) // (2 * height), 1), to_height
    if short_side is None:
        return width, height
    longer = (2 * max(width, height) * short_side + min(width, height)) // (2 * min(width, height))
    return (longer, short_side) if width >= height else (short_side, longer)


def _target_size(width: int, height: int, settings: FrameFormat) -> tuple[int, int]:
    if settings.width is not None and settings.height is not None:
        return settings.width, settings.height
    return frame_size(width, height, settings.short_side, to_height=settings.height)


def _spread(indices: NDArray[np.int64], num_frames: int) -> NDArray[np.int64]:
    """The middle one of each of `num_frames` equal parts; frames repeat where there are fewer."""
    spread: NDArray[np.int64] = indices[sample_clips(len(indices), num_segments=num_frames, num_clips=1)[0]]
    return spread


def _rate_of(settings: FrameFormat, *, own: float, duration: float) -> float:
    """Frames per second of what is extracted; NaN for key frames, which keep no rate."""
    if settings.keyframes_only:
        return math.nan
    if settings.num_frames is not None:
        return settings.num_frames / duration if duration > 0 else math.nan
    return float(settings.fps if settings.fps is not None else own)


# From one video to JPEG images


@contextmanager
def open_frames(
    source: Path | bytes, video: Video, settings: FrameFormat
) -> Iterator[tuple[FrameFacts, Iterator[bytes]]]:
    """The frames of one video as JPEG images, one after the other: little memory, however long the video is.

    Args:
        source: the file, or its bytes.
        video: says which segment is wanted; times count from the first frame.
        settings: which frames, size, quality.

    Yields:
        The facts, known beforehand, and `num_frames` images. An image that does not decode raises `CorruptVideo`.

    Raises:
        MissingVideo, CorruptVideo: the source does not open.
        VidprepError: the segment lies outside the video.
    """
    from vidprep.decode.pyav import PyavReader

    with PyavReader(source) as reader:
        yield frames_of(reader, video, settings)


def frames_of(reader: "PyavReader", video: Video, settings: FrameFormat) -> tuple[FrameFacts, Iterator[bytes]]:
    """As `open_frames`, of a video that is open already: several segments of a long one need one opening.

    Raises:
        VidprepError: the segment lies outside the video.
    """
    nominal = reader.stream.guessed_rate or reader.stream.average_rate or Fraction(25)
    stored = reader.pts_seconds
    # A file that stores no times (raw streams) is taken at its nominal rate.
    pts = stored if np.all(np.isfinite(stored)) else np.arange(reader.num_frames) / float(nominal)
    end = float(pts[-1]) + 1 / float(nominal)
    inside = _inside(pts - pts[0], end - float(pts[0]), video)
    last = end if video.end_seconds is None else min(end, float(pts[0]) + video.end_seconds)
    if settings.num_frames is not None:
        chosen = _spread(inside, settings.num_frames)
    elif settings.keyframes_only:
        chosen = np.intersect1d(inside, reader.keyframe_indices)
        if not len(chosen):
            raise VidprepError(f"none of the {len(inside)} frames is a key frame; choose frames by fps or by number")
    else:
        chosen = inside[0] + select_frames(
            pts[inside], fps=settings.fps, rate_mode=settings.rate_mode, frame_rate=float(nominal), end_seconds=last
        )
    width, height = _target_size(reader.width, reader.height, settings)
    source_fps = (len(pts) - 1) / float(pts[-1] - pts[0]) if len(pts) > 1 and pts[-1] > pts[0] else math.nan
    facts = FrameFacts(
        folder=folder_name(video),
        num_frames=len(chosen),
        fps=_rate_of(settings, own=source_fps, duration=last - float(pts[inside[0]])),
        width=width,
        height=height,
        pts_seconds=tuple(float(stored[index]) for index in chosen),
        source_num_frames=reader.num_frames,
        source_fps=source_fps,
        source_width=reader.width,
        source_height=reader.height,
        source_duration_seconds=end - float(pts[0]),
    )
    return facts, _encode(reader, chosen, settings, width=width, height=height)


def _encode(
    reader: "PyavReader", chosen: NDArray[np.int64], settings: FrameFormat, *, width: int, height: int
) -> Iterator[bytes]:
    """An image for each of the ascending indices; repeated frames are encoded once."""
    from vidprep.encode import encode_png

    distinct, counts = np.unique(chosen, return_counts=True)
    if _is_png(settings):
        for picture, count in zip(reader.iterate_frames(distinct), counts.tolist(), strict=True):
            yield from [encode_png(picture, width=width, height=height)] * count
        return
    encoder = _jpeg_encoder(settings, width=width, height=height)
    for frame, count in zip(reader.iterate_stored(distinct), counts.tolist(), strict=True):
        yield from [encoder.encode(frame, reader.orientation_of(frame))] * count


def _is_png(settings: FrameFormat) -> bool:
    return settings.template.endswith(".png")


def _jpeg_encoder(settings: FrameFormat, *, width: int, height: int) -> "JpegEncoder":
    from vidprep.encode import JpegEncoder

    return JpegEncoder(width=width, height=height, quality=settings.jpeg_quality, subsampling=settings.subsampling)


@dataclass(frozen=True, kw_only=True)
class DeliveredFrames:
    """The frames of one video of a data set that is delivered as folders of frames."""

    facts: FrameFacts
    indices: NDArray[np.int64]
    """(t,) which of the folder's frames they are, counted from 0."""
    images: Iterator[bytes]
    """(t,) JPEG images; the files' own bytes where no other size was asked for."""


def read_delivered(
    folder: Path, video: Video, settings: FrameFormat, *, delivered: FrameFormat, is_decoded: bool = True
) -> DeliveredFrames:
    """The frames of one video from the folder in which its data set delivers them.

    Args:
        folder: the numbered JPEG files.
        video: says which segment is wanted.
        settings: which frames (`fps` None: all), size, quality; a frame that keeps its size keeps its bytes.
        delivered: the files' names, the number of the first one, and the frame rate where the data set states one;
            without it times are NaN.
        is_decoded: every frame is decoded to see that it is whole, not only its header read.

    Raises:
        MissingVideo: no such folder.
        CorruptVideo: no frames, holes in their numbers, a first number other than the data set's. The images raise it
            for a file that is no sound JPEG or of another size than the first.
        UsageError: `settings.fps`, or a segment, where the data set states no frame rate.
        VidprepError: the segment lies outside the video.
    """
    from vidprep.decode.jpeg import find_frames
    from vidprep.encode import encode_png

    if folder.is_dir() and next(folder.iterdir(), None) is None:
        raise CorruptVideo(f"{folder}: is an empty folder; fetch the frames again.")
    paths = find_frames(folder, template=delivered.template)
    first = delivered.template.format(delivered.first_index)
    if paths[0].name != first:
        raise CorruptVideo(f"{folder}: its first frame is {paths[0].name}, expected {first}; fetch the frames again.")
    is_part = settings.fps is not None or video.start_seconds is not None or video.end_seconds is not None
    if is_part and delivered.fps is None:
        raise UsageError(
            f"{folder}: frames by seconds need a frame rate, which the data set does not state; take all frames."
        )
    if settings.keyframes_only:
        raise UsageError(f"{folder}: frames that are delivered as images have no key frames; choose them by number.")
    times = np.arange(len(paths)) / (delivered.fps or math.nan)
    chosen = np.arange(len(paths), dtype=np.int64)
    if is_part:
        chosen = _inside(times, len(paths) / (delivered.fps or math.nan), video)
    if settings.fps is not None:
        chosen = chosen[0] + select_frames(
            times[chosen], fps=settings.fps, rate_mode=settings.rate_mode, frame_rate=delivered.fps
        )
    duration = len(chosen) / (delivered.fps or math.nan)
    if settings.num_frames is not None:
        chosen = _spread(chosen, settings.num_frames)
    source_width, source_height = _jpeg_size(_read_image(paths[0]), name=str(paths[0]))
    width, height = _target_size(source_width, source_height, settings)
    facts = FrameFacts(
        folder=folder_name(video),
        num_frames=len(chosen),
        fps=_rate_of(settings, own=delivered.fps or math.nan, duration=duration),
        width=width,
        height=height,
        pts_seconds=tuple(float(times[index]) for index in chosen),
        source_num_frames=len(paths),
        source_fps=float(delivered.fps or math.nan),
        source_width=source_width,
        source_height=source_height,
        source_duration_seconds=len(paths) / (delivered.fps or math.nan),
    )
    is_png = _is_png(settings)
    encoder = _jpeg_encoder(settings, width=width, height=height)

    def images() -> Iterator[bytes]:
        for index in chosen:
            path = paths[index]
            image = _read_image(path)
            size = _jpeg_size(image, name=str(path))
            if size != (source_width, source_height):
                raise CorruptVideo(
                    f"{path}: is {size[0]}x{size[1]} pixels, the first frame {source_width}x{source_height}; "
                    "fetch the frames again."
                )
            is_kept = size == (width, height) and not is_png
            if is_decoded or not is_kept:
                picture = _decode_jpeg(image, name=str(path))
            if is_kept:
                yield image
            else:
                yield encode_png(picture, width=width, height=height) if is_png else encoder.encode_rgb(picture)

    return DeliveredFrames(facts=facts, indices=chosen, images=images())


def match_annotations(
    annotations: Sequence[FrameAnnotation], facts: FrameFacts, *, delivered: FrameFormat
) -> list[FrameAnnotation]:
    """The boxes of each frame of a folder, in order.

    Raises:
        CorruptVideo: a frame without annotation, an annotation without frame, or one of another size.
    """
    by_index = {found.frame_index - delivered.first_index: found for found in annotations}
    missing = sorted(set(range(facts.source_num_frames)) - by_index.keys())
    beyond = sorted(by_index.keys() - set(range(facts.source_num_frames)))
    if missing or beyond:
        name = delivered.template.format((missing or beyond)[0] + delivered.first_index)
        what = "has no annotation" if missing else "is annotated and not there"
        raise CorruptVideo(f"frame {name} {what} ({facts.source_num_frames} frames, {len(by_index)} annotations)")
    for index, found in sorted(by_index.items()):
        if (found.width, found.height) != (facts.source_width, facts.source_height):
            raise CorruptVideo(
                f"the annotation of frame {delivered.template.format(index + delivered.first_index)} is of "
                f"{found.width}x{found.height} pixels, the frame has {facts.source_width}x{facts.source_height}"
            )
    return [by_index[index] for index in range(facts.source_num_frames)]


def _read_image(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CorruptVideo(f"{path}: cannot be read: {error.strerror}.") from error


def _jpeg_size(image: bytes, *, name: str) -> tuple[int, int]:
    """(width, height) as the header says."""
    import simplejpeg

    try:
        height, width = simplejpeg.decode_jpeg_header(image)[:2]
    except ValueError as error:
        raise CorruptVideo(f"{name}: is not a JPEG: {error}.") from error
    return int(width), int(height)


def _decode_jpeg(image: bytes, *, name: str) -> NDArray[np.uint8]:
    """(h, w, c) in RGB."""
    import simplejpeg

    try:
        picture: NDArray[np.uint8] = simplejpeg.decode_jpeg(image, colorspace="RGB")
    except ValueError as error:
        raise CorruptVideo(f"{name}: is damaged: {error}.") from error
    return picture


def media_state(path: Path | None) -> list[int] | None:
    """As `engine.source_state`; of a folder of frames the sum of sizes and the latest change of all its files."""
    if path is None or not path.is_dir():
        return source_state(path)
    states = [state for entry in (path, *path.iterdir()) if (state := source_state(entry)) is not None]
    return [sum(size for size, _ in states), max(change for _, change in states)]


def _inside(times: NDArray[np.float64], duration: float, video: Video) -> NDArray[np.int64]:
    """Indices of the frames that are shown inside the segment of `video`; times count from the first frame."""
    start = video.start_seconds or 0.0
    end = math.inf if video.end_seconds is None else video.end_seconds
    inside = np.flatnonzero((times >= start - 1e-6) & (times < end - 1e-6))
    if len(inside) == 0:
        raise WrongLength(
            f"the segment {start:g} to {end:g} s lies outside the video or between two frames "
            f"({len(times)} frames in {duration:.3f} s)"
        )
    return inside.astype(np.int64)


def folder_name(video: Video) -> str:
    """Where the frames of a video lie below the folder of a split: its id, and its segment where it has one.

    A segment that has a name of its own is called by that.
    """
    if video.segment_id:
        return video.segment_id
    if video.start_seconds is None and video.end_seconds is None:
        return video.video_id
    end = "end" if video.end_seconds is None else f"{video.end_seconds:.3f}"
    return f"{video.video_id}@{video.start_seconds or 0.0:.3f}-{end}"


# A whole split


def extract(
    split: Split,
    paths: Mapping[str, Path],
    *,
    out: Path,
    settings: FrameFormat,
    delivered: FrameFormat | None = None,
    ffmpeg: FfmpegOptions | None = None,
    workers: int = 1,
    retry: Sequence[str] = (),
    time_limit_seconds: float | None = None,
    scheduler: str | None = None,
    task: ArrayTask | None = None,
    progress: str | None = None,
) -> ExtractReport:
    """Extract the frames of every video of a split; what is there already is left alone.

    Args:
        split: the videos.
        paths: video_id -> file, or folder of frames; videos that are not in it are missing.
        out: the folder of this split's frames; the index and the journal lie beside it.
        settings: which frames, size, quality, names.
        delivered: how a data set that is delivered as folders of frames calls them; None: `paths` are video files.
        ffmpeg: the program `ffmpeg` does the work, with these options; None: PyAV does.
        workers: processes.
        retry: kinds of faults (`ledger.check_retry`) whose videos are tried again though their files are the same.
        time_limit_seconds: for a video; one that takes longer becomes a fault. None: as long as it takes.
        scheduler: address of a Dask scheduler whose workers do the work, instead of processes here.
        task: only this part of the videos; other tasks, here or elsewhere, do theirs in the same folder. The one that
            finds all of them done and nobody else at work writes the index.
        progress: shown while it runs; None shows nothing.

    Raises:
        UsageError: an empty split, `out` is a file or holds frames of other settings, or another run is at work there.
        CannotWrite: no space, no permission.
    """
    if not split.videos:
        raise UsageError(f"{split.dataset}/{split.split}: the split is empty, there is nothing to extract.")
    out = out.absolute()
    _refuse_escapes(split, out)
    plan = {
        "format": "vidprep-frames",
        "dataset": split.dataset,
        "split": split.split,
        **asdict(settings),
        **({} if delivered is None else {"delivered": asdict(delivered)}),
        **({} if ffmpeg is None else {"ffmpeg": asdict(ffmpeg)}),
    }
    if ffmpeg is not None:
        if delivered is not None:
            raise UsageError(f"{split.dataset} is delivered as folders of frames; leave the ffmpeg program out.")
        require_ffmpeg()
        if ffmpeg.filter:
            check_filter(ffmpeg.filter)
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is a file; give --out the name of a folder.")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    journal = _beside(out, ".journal")
    kinds = check_retry(retry)
    if not journal.exists():
        _begin_journal(journal, plan, out)
    lock_file = _beside(out, ".lock")
    with writing(lock_file):
        lock_file.touch()
    whole = range(len(split.videos))
    mine = whole if task is None else task.part_of(len(split.videos))
    own_journal = journal if task is None else _beside(out, f".{task.number}-of-{task.count}.journal")
    half = out / (HALF_FILLED if task is None else f"{HALF_FILLED}-{task.number}-of-{task.count}")
    purpose = "vidprep extract" if task is None else f"vidprep extract --task {task}"
    # A task that is just writing the index holds all videos, for a moment.
    with hold(lock_file, mine, purpose=purpose, patience_seconds=0.0 if task is None else FINISH_PATIENCE_SECONDS):
        known = _scan_journal(journal, plan)
        if task is None:
            if _absorb_tasks(split, journal, out):
                known = _scan_journal(journal, plan)
            _sweep_folders(out)
        else:
            _sweep_folder(half)
            if not own_journal.exists():
                with publish(own_journal) as stream:
                    stream.write((json.dumps(plan) + "\n").encode())
            known |= _scan_journal(own_journal, plan)
        videos = split.videos[mine.start : mine.stop]
        todo = [
            (video, paths.get(video.video_id))
            for video in videos
            if not _is_done(video, known.get(folder_name(video)), paths.get(video.video_id), out, kinds)
        ]
        samples = samples_line([(folder_name(video), sample_id(video)) for video in videos])
        try:
            work = partial(_extract_group, out=out, half=half, settings=settings, delivered=delivered, ffmpeg=ffmpeg)
            engine = partial(
                run, work=work, workers=workers, time_limit_seconds=time_limit_seconds, scheduler=scheduler
            )
            num_new = _extract_all(_by_file(todo), own_journal, samples, known, engine, progress=progress)
        except BaseException:
            _sweep_folder(half)  # what workers were filling when they were ended
            raise
        _sweep_folder(half)
        if task is None:
            return _finish(split, out=out, journal=journal, plan=plan, num_new=num_new)
        report = _report_part(videos, [own_journal, journal], out=out, plan=plan, num_new=num_new)
    try:
        with hold(lock_file, whole, purpose=purpose):
            _absorb_tasks(split, journal, out)
            known = _scan_journal(journal, plan)
            num_missing = sum(folder_name(video) not in known for video in split.videos)
            if not num_missing:
                _sweep_folders(out)
                return _finish(split, out=out, journal=journal, plan=plan, num_new=num_new)
    except Held:
        num_missing = 0  # whoever is still at work looks for what is missing when it is done
    return replace(report, num_missing=num_missing, is_finished=False)


def read_frame_index(out: Path) -> FrameIndex:
    """What `extract` left in and beside the folder `out`.

    Raises:
        UsageError: no frames there, or their extraction did not come to its end.
        VidprepError: the index cannot be read.
    """
    import pandas as pd

    out = out.absolute()
    path, journal = _beside(out, ".parquet"), _beside(out, ".journal")
    if not path.is_file() or not journal.is_file():
        raise UsageError(f"{path}: no index of extracted frames; run `vidprep extract` (to its end) first.")
    try:
        with journal.open(encoding="utf-8") as lines:
            plan = json.loads(lines.readline())
        rows: list[dict[Any, Any]] = pd.read_parquet(path).to_dict("records")
        frames = [
            FrameFacts(
                **{field.name: row[field.name] for field in fields(FrameFacts) if field.name != "pts_seconds"},
                # Parquet has no NaN inside lists, which frames of an unknown rate have.
                pts_seconds=tuple(math.nan if time is None else float(time) for time in row["pts_seconds"]),
            )
            for row in rows
        ]
        with _beside(out, ".faults.csv").open(encoding="utf-8", newline="") as stream:
            reasons = {row["video_id"]: row["reason"] for row in csv.DictReader(stream)}
        # A journal of an earlier vidprep lacks settings that came later.
        settings = FrameFormat(**{field.name: plan[field.name] for field in fields(FrameFormat) if field.name in plan})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VidprepError(f"{path}: not a readable index of frames ({error}); run `vidprep extract` again.") from error
    return FrameIndex(settings=settings, frames={facts.folder: facts for facts in frames}, reasons=reasons)


def _beside(out: Path, suffix: str) -> Path:
    return out.with_name(out.name + suffix)


def _refuse_escapes(split: Split, out: Path) -> None:
    base = os.path.normpath(out)
    for video in split.videos:
        target = os.path.normpath(os.path.join(base, folder_name(video)))  # noqa: PTH118 - an absolute id must show
        if not target.startswith(base + os.sep):
            raise UsageError(
                f"{video.video_id}: its frames would lie outside {out}; list videos by paths below the data root."
            )


def _begin_journal(journal: Path, plan: Mapping[str, Any], out: Path) -> None:
    with os.scandir(out) as entries:
        if any(not entry.name.startswith(".") for entry in entries):
            raise UsageError(
                f"{out}: holds files that no `vidprep extract` recorded (no {journal.name} beside it); "
                "move them away or give another --out."
            )
    with publish(journal) as stream:
        stream.write((json.dumps(plan) + "\n").encode())


@dataclass(frozen=True, kw_only=True, slots=True)
class _Known:
    """What the journal says of a video, in little: of a hundred thousand the entries themselves fill the memory."""

    place: int
    """Of its entry in the journal, in bytes."""
    is_done: bool
    kind: str
    source: list[int] | None
    num_attempts: int


def _scan_journal(journal: Path, plan: Mapping[str, Any]) -> dict[str, _Known]:
    """Folder -> what is known of it; later lines replace earlier ones.

    Raises:
        UsageError: not a journal, or one of other settings.
    """
    known: dict[str, _Known] = {}
    with journal.open("rb") as lines:
        first = lines.readline()
        try:
            before = json.loads(first) if first else {}
        except ValueError as error:
            raise UsageError(
                f"{journal}: not a journal of `vidprep extract`; move it away or give another --out."
            ) from error
        if found := differences(before, plan):
            raise UsageError(
                f"{journal.with_suffix('')}: holds frames of other settings ({found}); give another --out."
            )
        place = len(first)
        for line in lines:
            if (found_of := _known_of(line, place)) is not None:
                known[found_of[0]] = found_of[1]
            place += len(line)
    return known


def _known_of(line: bytes, place: int) -> tuple[str, _Known] | None:
    """A folder and what a line of the journal says of it; None for other lines, and for one that was not written out.

    The facts, the times of hundreds of frames, are not parsed: of a hundred thousand videos that takes minutes.
    """
    head, facts, _ = line.partition(b', "facts": ')
    if not line.endswith(b"}\n"):
        return None
    try:
        entry = json.loads(head + b"}" if facts else line)
    except ValueError:
        return None
    if "folder" not in entry:
        return None
    return entry["folder"], _Known(
        place=place,
        is_done=bool(facts),
        kind=entry.get("kind", "other"),
        source=entry.get("source"),
        num_attempts=entry.get("attempts", 1),
    )


def _is_done(video: Video, known: _Known | None, path: Path | None, out: Path, retry: frozenset[FaultKind]) -> bool:
    if known is None:
        return False
    if known.is_done:
        return (out / folder_name(video)).is_dir()
    # A fault stands as long as its file is the one that was tried.
    return known.kind not in retry and known.source == media_state(path)


def _absorb_tasks(split: Split, journal: Path, out: Path) -> bool:
    """Append to the journal what tasks noted in journals of their own, and remove these. No task is at work.

    Returns:
        Whether there were any.
    """
    name = re.compile(rf"{re.escape(out.name)}\.\d+-of-\d+\.journal")
    found = sorted(path for path in out.parent.iterdir() if name.fullmatch(path.name))
    if not found:
        return False
    samples = samples_line([(folder_name(video), sample_id(video)) for video in split.videos])
    with writing(journal), journal.open("a+b") as target:
        if not ends_in_newline(journal):
            target.write(b"\n")
        target.write(samples.encode())
        for path in found:
            with path.open("rb") as lines:
                lines.readline()  # its settings, which are the journal's
                for line in lines:
                    if b'"samples_sha256"' not in line[:20]:
                        target.write(line if line.endswith(b"\n") else line + b"\n")
        target.flush()
        os.fsync(target.fileno())
        for path in found:
            path.unlink()
    return True


def _sweep_folders(out: Path) -> None:
    """Remove the folders that killed runs left half-filled. No task is at work."""
    for half in out.glob(f"{HALF_FILLED}*"):
        _sweep_folder(half)


def _sweep_folder(half: Path) -> None:
    if half.exists():
        with writing(half):
            shutil.rmtree(half)


HALF_FILLED = ".part"
"""Folder below `out` in which folders are filled before they get their place; each task has its own."""
FINISH_PATIENCE_SECONDS = 10.0
"""A task waits so long for another one that writes the index."""


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Rows of a split that come from one file: a video, or some segments of a long one."""

    videos: tuple[Video, ...]
    path: Path | None


SEGMENTS_PER_GROUP = 32
"""Of one long video; it is opened once for them, and they are noted in the journal together."""
KEPT_PACKET_BYTES = 4 * 1024**3
"""A long video whose segments are cut one after the other stays in memory up to this size, as compressed packets."""


def _by_file(rows: Sequence[tuple[Video, Path | None]]) -> list[_Group]:
    """Neighbours of the same file together, in order."""
    groups: list[_Group] = []
    for video, path in rows:
        last = groups[-1] if groups else None
        if last is not None and path is not None and last.path == path and len(last.videos) < SEGMENTS_PER_GROUP:
            groups[-1] = replace(last, videos=(*last.videos, video))
        else:
            groups.append(_Group(videos=(video,), path=path))
    return groups


def _extract_all(
    groups: Sequence[_Group],
    journal: Path,
    samples: str,
    known: Mapping[str, _Known],
    engine: Callable[..., Outcomes[_Group, list[dict[str, Any]]]],
    *,
    progress: str | None,
) -> int:
    """Extract the frames of each video and note it in the journal; how many videos got frames."""
    num_new = 0
    with writing(journal), journal.open("a", encoding="utf-8") as lines:
        if not ends_in_newline(journal):
            lines.write("\n")  # ends the line that a killed run was writing
        if groups:
            lines.write(samples)
        lines.flush()

        def note(entries: Sequence[dict[str, Any]], *, seconds: float | None = None, num_attempts: int = 1) -> None:
            for entry in entries:
                before = known.get(entry["folder"])
                entry.setdefault("seconds", None if seconds is None else round(seconds, 3))
                entry["attempts"] = num_attempts + (before.num_attempts if before is not None else 0)
                entry["when"] = now()
            # The facts last: see `_known_of`.
            ordered = (dict(sorted(entry.items(), key=lambda item: item[0] == "facts")) for entry in entries)
            lines.writelines(json.dumps(entry) + "\n" for entry in ordered)
            lines.flush()

        missing = MissingVideo("no file found for it")
        note([_fault_entry(video, None, missing) for group in groups if group.path is None for video in group.videos])
        waiting = [group for group in groups if group.path is not None]
        while waiting:
            lost: list[_Group] = []
            with closing(engine(waiting, progress=progress)) as outcomes:
                for outcome in outcomes:
                    group, error = outcome.unit, outcome.error
                    failed = group.videos
                    if isinstance(error, WorkerDied) and len(group.videos) > 1:
                        # One of the segments ended the process; the others are done again without it, or each alone.
                        failed = tuple(video for video in group.videos if folder_name(video) == error.part)
                        rest = [video for video in group.videos if video not in failed]
                        apart = [tuple(rest)] if failed else [(video,) for video in rest]
                        lost += [replace(group, videos=videos) for videos in apart]
                    entries = outcome.result or [_fault_entry(video, group.path, error) for video in failed]
                    note(entries, seconds=outcome.seconds, num_attempts=outcome.num_attempts)
                    num_new += sum("facts" in entry for entry in entries)
            waiting = lost
    return num_new


def _extract_group(
    group: _Group,
    *,
    out: Path,
    half: Path,
    settings: FrameFormat,
    delivered: FrameFormat | None,
    ffmpeg: FfmpegOptions | None,
) -> list[dict[str, Any]]:
    """The journal's entry of each video; a fault of one does not keep the others from their frames."""
    if group.path is None:
        raise MissingVideo("no file found for it")
    write = partial(_write_frames, out=out, half=half, settings=settings)
    with ExitStack() as opened:
        reader = None
        if delivered is None and ffmpeg is None and len(group.videos) > 1:
            from vidprep.decode.pyav import PyavReader

            reader = opened.enter_context(PyavReader(group.path, kept_packet_bytes=KEPT_PACKET_BYTES))
        entries: list[dict[str, Any]] = []
        for video in group.videos:
            begin_part(folder_name(video))
            started = time.perf_counter()
            try:
                if delivered is not None:
                    frames = read_delivered(group.path, video, settings, delivered=delivered)
                    facts = write(frames.facts, frames.images, group.path, video)
                elif ffmpeg is not None:
                    with _ffmpeg_frames(group.path, video, settings, ffmpeg, half=half) as (found, images):
                        facts = write(found, images, group.path, video)
                elif reader is not None:
                    facts = write(*frames_of(reader, video, settings), group.path, video)
                else:
                    with open_frames(group.path, video, settings) as (found, images):
                        facts = write(found, images, group.path, video)
                # `asdict` copies the times one by one.
                entries.append({"folder": facts.folder, "facts": dict(vars(facts))})
            except CannotWrite:
                raise
            except (VidprepError, OSError, ValueError, MemoryError) as error:
                entries.append(_fault_entry(video, group.path, error))
            entries[-1]["seconds"] = round(time.perf_counter() - started, 3)
    return entries


@contextmanager
def _ffmpeg_frames(
    path: Path, video: Video, settings: FrameFormat, options: FfmpegOptions, *, half: Path
) -> Iterator[tuple[FrameFacts, Iterator[bytes]]]:
    """As `open_frames`, by the program, which writes into a folder of its own first."""
    folder = half / f"ffmpeg-{unique_name()}"
    with writing(folder):
        folder.mkdir(parents=True)
    try:
        made = extract_with_ffmpeg(path, video, settings, options, folder=folder)
        span = made.pts_seconds[-1] - made.pts_seconds[0]
        own = (len(made.paths) - 1) / span if span > 0 else math.nan
        facts = FrameFacts(
            folder=folder_name(video),
            num_frames=len(made.paths),
            fps=math.nan if settings.keyframes_only else settings.fps or own,
            width=made.width,
            height=made.height,
            pts_seconds=made.pts_seconds,
            source_num_frames=made.source_num_frames,
            source_fps=made.source_fps,
            source_width=made.source_width,
            source_height=made.source_height,
            source_duration_seconds=made.source_duration_seconds,
        )
        yield facts, (image.read_bytes() for image in made.paths)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_frames(
    facts: FrameFacts,
    images: Iterator[bytes],
    path: Path,
    video: Video,
    *,
    out: Path,
    half: Path,
    settings: FrameFormat,
) -> FrameFacts:
    folder = out / folder_name(video)
    half = half / unique_name()
    before = media_state(path)
    with writing(folder):
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir(parents=True)
        with _open_folder(half) as descriptor:
            for number, image in enumerate(images, start=settings.first_index):
                _write_file(settings.template.format(number), image, descriptor)
        if media_state(path) != before:
            raise CorruptVideo(f"{path}: changed while it was read; run the same command again.")
        if folder.exists():
            shutil.rmtree(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        half.rename(folder)
    return facts


@contextmanager
def _open_folder(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write_file(name: str, content: bytes, folder: int) -> None:
    """A new file in an open folder: a third of the time of `Path.write_bytes`, for millions of small files."""
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666, dir_fd=folder)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    finally:
        os.close(descriptor)


def _fault_entry(video: Video, path: Path | None, error: Exception | None) -> dict[str, Any]:
    text = str(error).removeprefix(f"{path}: ").removeprefix(f"{path}/").rstrip(".")  # the path has its own column
    return {
        "folder": folder_name(video),
        "kind": "other" if error is None else kind_of(error),
        "reason": text if isinstance(error, VidprepError) else f"{type(error).__name__}: {text}",
        "path": str(path or ""),
        "source": media_state(path),
    }


def _finish(split: Split, *, out: Path, journal: Path, plan: Mapping[str, Any], num_new: int) -> ExtractReport:
    """Write the index and the list of faults from the journal."""
    faults: list[Fault] = []
    num_videos = num_frames = 0
    with publish(_beside(out, ".parquet")) as stream, _FrameTable(stream) as table:
        for video, found, entry in _entries(split.videos, [journal], plan=plan):
            if found.is_done:
                table.add({"video_id": sample_id(video), **entry["facts"]})
                num_videos += 1
                num_frames += entry["facts"]["num_frames"]
            else:
                faults.append(_fault(video, found, entry))
    with publish(_beside(out, ".faults.csv")) as stream:
        stream.write(faults_to_csv(faults).encode())
    return ExtractReport(
        folder=out, num_videos=num_videos, num_frames=num_frames, num_new=num_new, faults=tuple(faults)
    )


def _report_part(
    videos: Sequence[Video], journals: Sequence[Path], *, out: Path, plan: Mapping[str, Any], num_new: int
) -> ExtractReport:
    entries = list(_entries(videos, journals, plan=plan))
    frames = [entry["facts"]["num_frames"] for _, found, entry in entries if found.is_done]
    faults = tuple(_fault(video, found, entry) for video, found, entry in entries if not found.is_done)
    return ExtractReport(folder=out, num_videos=len(frames), num_frames=sum(frames), num_new=num_new, faults=faults)


def _entries(
    videos: Sequence[Video], journals: Sequence[Path], *, plan: Mapping[str, Any]
) -> Iterator[tuple[Video, _Known, dict[str, Any]]]:
    """What is known of each video, by the first journal that knows it; one entry in memory at a time."""
    with ExitStack() as opened:
        sources = [(opened.enter_context(path.open("rb")), _scan_journal(path, plan)) for path in journals]
        for video in videos:
            name = folder_name(video)
            source = next(((lines, known[name]) for lines, known in sources if name in known), None)
            if source is not None:
                lines, found = source
                lines.seek(found.place)
                yield video, found, json.loads(lines.readline())


def _fault(video: Video, known: _Known, entry: Mapping[str, Any]) -> Fault:
    return Fault(video_id=sample_id(video), reason=entry["reason"], path=entry["path"], kind=known.kind)


class _FrameTable:
    """The index of frames as it is written, in memory for some thousand rows."""

    NUM_ROWS = 4096

    def __init__(self, stream: IO[bytes]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        types = {str: pa.string(), int: pa.int64(), float: pa.float64(), tuple[float, ...]: pa.list_(pa.float64())}
        self._schema = pa.schema(
            [("video_id", pa.string()), *((field.name, types[cast(type, field.type)]) for field in fields(FrameFacts))]
        )
        self._table = pa.Table
        self._writer = pq.ParquetWriter(stream, self._schema)
        self._rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) == self.NUM_ROWS:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(self._table.from_pylist(self._rows, schema=self._schema))
        self._rows.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._flush()
        self._writer.close()
