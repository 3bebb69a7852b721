"""Videos to JPEG (or PNG) frames, as data sets are published: which frames, at which size, under which names.

Data sets that are delivered as folders of frames go the same way: their files as they are, or fewer, or smaller ones.

OUT/{video_id}/image_00001.jpg ...     the frames of one video; the folder appears when all are there
OUT.parquet                            one row a video: number of frames, their times, what the video is
OUT.faults.csv                         the videos without frames, and why
OUT.journal                            the ledger, what was done and what failed: a restart does the rest
"""

import csv
import hashlib
import json
import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Literal, Self, cast

import numpy as np
from numpy.typing import NDArray

from vidprep.engine import CannotWrite, media_state, publish, run, unique_name, writing
from vidprep.errors import CorruptVideo, FaultKind, MissingVideo, UsageError, VidprepError, WrongLength
from vidprep.ffmpeg import FfmpegOptions, check_filter, extract_with_ffmpeg, require_ffmpeg
from vidprep.index import Fault, faults_to_csv, folder_name, sample_id
from vidprep.journal import Group, Journal, JournalState, by_file, fault_entry, note_all
from vidprep.ledger import check_retry
from vidprep.sampling import sample_clips
from vidprep.splits import Split
from vidprep.tasks import ArrayTask, Held
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
    "frame_size",
    "frames_of",
    "match_annotations",
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
    kinds = check_retry(retry)
    journal = Journal(
        base=out,
        suffix=".journal",
        folder=out,
        what="frames",
        command="extract",
        plan=plan,
        key="folder",
        rows=[(folder_name(video), sample_id(video)) for video in split.videos],
        task=task,
        skips_facts=True,
    )
    if not journal.path.exists():
        _refuse_foreign(journal.path, out)
    journal.begin()
    half = out / (HALF_FILLED if task is None else f"{HALF_FILLED}-{task.number}-of-{task.count}")
    with journal.hold_part() as state:
        if task is None:
            _sweep_folders(out)
        else:
            _sweep_folder(half)
        videos = split.videos[journal.part.start : journal.part.stop]
        lost = _lost_folders([folder_name(video) for video in videos], state, out)
        todo = [
            (video, paths.get(video.video_id))
            for video in videos
            if not _is_settled(video, paths.get(video.video_id), state, kinds, lost)
        ]
        work = partial(_extract_group, out=out, half=half, settings=settings, delivered=delivered, ffmpeg=ffmpeg)
        engine = partial(
            run,
            work=work,
            workers=workers,
            time_limit_seconds=time_limit_seconds,
            scheduler=scheduler,
            progress=progress,
        )
        try:
            num_new = note_all(by_file(todo), journal, state, engine, key_of=folder_name)
        finally:
            _sweep_folder(half)  # after a run that was ended: what workers were filling
        if task is None:
            return _finish(journal, state, num_new=num_new)
        report = _report_part(journal, state, num_new=num_new)
    try:
        with journal.hold_all() as state:
            num_missing = journal.num_missing(state)
            if not num_missing:
                _sweep_folders(out)
                return _finish(replace(journal, task=None), state, num_new=num_new)
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


def _refuse_foreign(journal: Path, out: Path) -> None:
    with os.scandir(out) as entries:
        if any(not entry.name.startswith(".") for entry in entries):
            raise UsageError(
                f"{out}: holds files that no `vidprep extract` recorded (no {journal.name} beside it); "
                "move them away or give another --out."
            )


def _is_settled(
    video: Video, path: Path | None, state: JournalState, retry: frozenset[FaultKind], lost: Set[str]
) -> bool:
    """Whether nothing is to be done: its frames are there, or it is a fault and its file the one that was tried."""
    known = state.known.get(folder_name(video))
    if known is None:
        return False
    if known.is_done:
        return folder_name(video) not in lost
    return known.kind not in retry and known.source == media_state(path)


def _lost_folders(names: Sequence[str], state: JournalState, out: Path) -> set[str]:
    """Folders of frames that are done and not there any more.

    Many in one place are looked for by listing it: a look at each would take minutes where the disk does not have
    them in memory.
    """
    lost = {name for name in names if (known := state.known.get(name)) is not None and known.is_done}
    for parent, count in Counter(name.rpartition("/")[0] for name in lost).items():
        if count >= LISTED_FOLDERS and (out / parent).is_dir():
            below = f"{parent}/" if parent else ""
            with os.scandir(out / parent) as entries:
                lost.difference_update(f"{below}{entry.name}" for entry in entries if entry.is_dir())
    return {name for name in lost if not (out / name).is_dir()}


LISTED_FOLDERS = 16
"""Of fewer each is looked for by itself: a task may have few in a place of many."""


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
KEPT_PACKET_BYTES = 4 * 1024**3
"""A long video whose segments are cut one after the other stays in memory up to this size, as compressed packets."""


def _extract_group(
    group: Group,
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
                entries.append(fault_entry("folder", folder_name(video), group.path, error))
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


# The index of a split


def _finish(journal: Journal, state: JournalState, *, num_new: int) -> ExtractReport:
    """Write the index and the list of faults from the journal, unless they are there.

    Of an index that is there, the rows of videos that nothing was noted of since are taken over.
    """
    out = journal.folder
    index_path, faults_path = _beside(out, ".parquet"), _beside(out, ".faults.csv")
    faults = journal.faults(state)
    faults_csv = faults_to_csv(faults).encode()
    mark = state.mark or {}
    is_whole = (
        mark.get("rows_sha256") == _rows_sha256(journal)
        and mark.get("place") == state.mark_place  # nobody took lines out of the journal
        and mark.get("sha256") == _sha256(index_path)
    )
    if not (is_whole and state.is_unchanged and faults_path.is_file() and faults_path.read_bytes() == faults_csv):
        mark = _write_index(journal, state, index_path, before=index_path if is_whole else None)
        with publish(faults_path) as stream:
            stream.write(faults_csv)
        journal.mark(state, mark)
    return ExtractReport(
        folder=out,
        num_videos=mark["num_videos"],
        num_frames=mark["num_frames"],
        num_new=num_new,
        faults=faults,
    )


def _report_part(journal: Journal, state: JournalState, *, num_new: int) -> ExtractReport:
    keys = [key for key, _ in journal.rows[journal.part.start : journal.part.stop]]
    frames = [entry["facts"]["num_frames"] for _, found, entry in journal.entries(state, keys) if found.is_done]
    return ExtractReport(
        folder=journal.folder,
        num_videos=len(frames),
        num_frames=sum(frames),
        num_new=num_new,
        faults=journal.faults(state),
    )


def _rows_sha256(journal: Journal) -> str:
    """Equal where an index is of the same rows, and has the same columns."""
    columns = [field.name for field in fields(FrameFacts)]
    return hashlib.sha256(f"{journal.rows_sha256} {columns}".encode()).hexdigest()


def _sha256(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_index(journal: Journal, state: JournalState, path: Path, *, before: Path | None) -> dict[str, Any]:
    """Write the table of all frames; what the journal's mark is to say of it.

    Args:
        journal: says which rows there are, and in which order.
        state: what is known of each.
        path: the table.
        before: the table that the journal's last mark is about, to take rows from; None: all are made from the journal.
    """
    done = [row for row in journal.rows if (known := state.known.get(row[0])) is not None and known.is_done]
    changed = {key for key, _ in done if before is None or state.known[key].place > state.mark_place}
    entries = journal.entries(state, [key for key, _ in done if key in changed])
    with closing(entries), publish(path) as stream, _FrameTable(stream) as table, ExitStack() as opened:
        kept = None if before is None else opened.enter_context(_KeptRows(before))
        for key, video_id in done:
            if kept is not None and key not in changed:
                table.take(kept.keep(key))
                continue
            if kept is not None:
                table.take(kept.let_go())
            table.add({"video_id": video_id, **next(entries)[2]["facts"]})
        if kept is not None:
            table.take(kept.let_go())
    return {
        "rows_sha256": _rows_sha256(journal),
        "place": state.end,
        "sha256": _sha256(path),
        "num_videos": table.num_rows,
        "num_frames": table.num_frames,
    }


class _FrameTable:
    """The index of frames as it is written, in memory for some hundred rows; its bytes depend on the rows alone."""

    NUM_ROWS = 1024

    def __init__(self, stream: IO[bytes]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        types = {str: pa.string(), int: pa.int64(), float: pa.float64(), tuple[float, ...]: pa.list_(pa.float64())}
        self._schema = pa.schema(
            [("video_id", pa.string()), *((field.name, types[cast(type, field.type)]) for field in fields(FrameFacts))]
        )
        self._pa = pa
        self._writer = pq.ParquetWriter(stream, self._schema)
        self._rows: list[dict[str, Any]] = []
        self._tables: list[Any] = []
        self._num_waiting = 0
        self.num_rows = self.num_frames = 0

    def add(self, row: dict[str, Any]) -> None:
        # A list of Python's numbers takes four times the memory.
        self._rows.append({**row, "pts_seconds": np.array(row["pts_seconds"], dtype=np.float64)})
        self._count(1, row["num_frames"])

    def take(self, rows: Any) -> None:
        """Add rows of another such table."""
        while rows is not None and rows.num_rows:
            some = rows.slice(0, self.NUM_ROWS - self._num_waiting)
            rows = rows.slice(some.num_rows)
            self._gather()
            self._tables.append(some)
            self._count(some.num_rows, sum(some["num_frames"].to_pylist()))

    def _count(self, num_rows: int, num_frames: int) -> None:
        self.num_rows += num_rows
        self.num_frames += num_frames
        self._num_waiting += num_rows
        if self._num_waiting == self.NUM_ROWS:
            self._flush()

    def _gather(self) -> None:
        if self._rows:
            self._tables.append(self._pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows = []

    def _flush(self) -> None:
        self._gather()
        if self._tables:
            self._writer.write_table(self._pa.concat_tables(self._tables).combine_chunks())
        self._tables, self._num_waiting = [], 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._flush()
        self._writer.close()


class _KeptRows:
    """Rows of an index that was written before, taken in its order; in memory for one of its row groups."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq

        self._path = path
        self._file = pq.ParquetFile(path)
        self._num_groups = 0
        self._table: Any = None
        self._folders: list[str] = []
        self._start = self._stop = 0
        """The rows that are kept and not yet let go."""

    def keep(self, folder: str) -> Any:
        """Keep the row of a folder; the rows that were kept before and do not end where it begins, None where none."""
        ended = None
        while self._stop == len(self._folders) or self._folders[self._stop] != folder:
            if self._start < self._stop:
                ended = self.let_go()
            elif self._stop < len(self._folders):
                self._start = self._stop = self._stop + 1
            elif self._num_groups == self._file.num_row_groups:
                raise VidprepError(f"{self._path}: lacks {folder}; remove this file and run the same command again.")
            else:
                self._table = self._file.read_row_group(self._num_groups)
                self._folders = self._table["folder"].to_pylist()
                self._num_groups += 1
                self._start = self._stop = 0
        self._stop += 1
        return ended

    def let_go(self) -> Any:
        """The rows that are kept, as a table; None where none are."""
        if self._start == self._stop:
            return None
        rows = self._table.slice(self._start, self._stop - self._start)
        self._start = self._stop
        return rows

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
