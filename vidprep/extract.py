"""Videos to JPEG frames, as data sets are published: which frames, at which size, under which names.

OUT/{video_id}/image_00001.jpg ...     the frames of one video; the folder appears when all are there
OUT.parquet                            one row a video: number of frames, their times, what the video is
OUT.faults.csv                         the videos without frames, and why
OUT.journal                            what is done already: a restart does the rest
"""

import csv
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vidprep.engine import differences, lock, publish, run, source_state, writing
from vidprep.errors import CorruptVideo, UsageError, VidprepError
from vidprep.index import Fault, faults_to_csv
from vidprep.splits import Split
from vidprep.types import FrameFormat, Video

__all__ = [
    "ExtractReport",
    "FrameFacts",
    "FrameIndex",
    "encode_jpeg",
    "extract",
    "folder_name",
    "frame_size",
    "open_frames",
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
    """Frames per second that were asked for, or the video's own rate; NaN for a single frame."""
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


def frame_size(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """(width, height) with the shorter side `short_side`, the other in proportion and rounded.

    340x256 at 350 is 465x350, as with FFmpeg's `scale=350:350:force_original_aspect_ratio=increase`.
    """
    if short_side is None:
        return width, height
    longer = (2 * max(width, height) * short_side + min(width, height)) // (2 * min(width, height))
    return (longer, short_side) if width >= height else (short_side, longer)


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
        nominal = reader.stream.guessed_rate or reader.stream.average_rate or Fraction(25)
        stored = reader.pts_seconds
        # A file that stores no times (raw streams) is taken at its nominal rate.
        pts = stored if np.all(np.isfinite(stored)) else np.arange(reader.num_frames) / float(nominal)
        end = float(pts[-1]) + 1 / float(nominal)
        inside = _inside(pts - pts[0], end - float(pts[0]), video)
        last = end if video.end_seconds is None else min(end, float(pts[0]) + video.end_seconds)
        chosen = inside[0] + select_frames(
            pts[inside], fps=settings.fps, rate_mode=settings.rate_mode, frame_rate=float(nominal), end_seconds=last
        )
        width, height = frame_size(reader.width, reader.height, settings.short_side)
        source_fps = (len(pts) - 1) / float(pts[-1] - pts[0]) if len(pts) > 1 and pts[-1] > pts[0] else math.nan
        facts = FrameFacts(
            folder=folder_name(video),
            num_frames=len(chosen),
            fps=settings.fps if settings.fps is not None else source_fps,
            width=width,
            height=height,
            pts_seconds=tuple(float(stored[index]) for index in chosen),
            source_num_frames=reader.num_frames,
            source_fps=source_fps,
            source_width=reader.width,
            source_height=reader.height,
            source_duration_seconds=end - float(pts[0]),
        )

        def images() -> Iterator[bytes]:
            # Repeated frames are encoded once.
            distinct, counts = np.unique(chosen, return_counts=True)
            for picture, count in zip(reader.iterate_frames(distinct), counts, strict=True):
                image = encode_jpeg(picture, width=width, height=height, quality=settings.jpeg_quality)
                yield from [image] * int(count)

        yield facts, images()


def _inside(times: NDArray[np.float64], duration: float, video: Video) -> NDArray[np.int64]:
    """Indices of the frames that are shown inside the segment of `video`; times count from the first frame."""
    start = video.start_seconds or 0.0
    end = math.inf if video.end_seconds is None else video.end_seconds
    inside = np.flatnonzero((times >= start - 1e-6) & (times < end - 1e-6))
    if len(inside) == 0:
        raise VidprepError(
            f"the segment {start:g} to {end:g} s lies outside the video or between two frames "
            f"({len(times)} frames in {duration:.3f} s)"
        )
    return inside.astype(np.int64)


def encode_jpeg(picture: NDArray[np.uint8], *, width: int, height: int, quality: int) -> bytes:
    """A picture (h, w, c) in RGB as a JPEG image (4:2:0, full range) of another size or of its own.

    Scaling (bicubic, by FFmpeg's swscale) ends in the planes that JPEG stores, which the coder takes as they are:
    half the time of a way through RGB. A picture of the right size goes straight to the coder.
    """
    import av
    import simplejpeg
    from av.video.reformatter import ColorRange, Colorspace, Interpolation

    picture = np.ascontiguousarray(picture)
    if picture.shape[:2] != (height, width):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        size = {"width": width, "height": height, "interpolation": Interpolation.BICUBIC}
        if width % 2 == 0 and height % 2 == 0:
            scaled = frame.reformat(
                **size, format="yuv420p", dst_colorspace=Colorspace.ITU601, dst_color_range=ColorRange.JPEG
            )
            from_planes: bytes = simplejpeg.encode_jpeg_yuv_planes(*map(_plane, scaled.planes), quality=quality)
            return from_planes
        # Of planes with an odd side simplejpeg 1.9 reads a row or column too many, whatever lies in memory there.
        picture = np.ascontiguousarray(frame.reformat(**size, format="rgb24").to_ndarray())
    from_rgb: bytes = simplejpeg.encode_jpeg(picture, quality=quality, colorspace="RGB", colorsubsampling="420")
    return from_rgb


def _plane(plane: Any) -> NDArray[np.uint8]:
    """(h, w), without the padding at the ends of rows."""
    rows = np.frombuffer(memoryview(plane), dtype=np.uint8).reshape(-1, plane.line_size)
    return np.ascontiguousarray(rows[: plane.height, : plane.width])


def folder_name(video: Video) -> str:
    """Where the frames of a video lie below the folder of a split: its id, and its segment where it has one."""
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
    workers: int = 1,
    progress: str | None = None,
) -> ExtractReport:
    """Extract the frames of every video of a split; what is there already is left alone.

    Args:
        split: the videos.
        paths: video_id -> file; videos that are not in it are missing.
        out: the folder of this split's frames; the index and the journal lie beside it.
        settings: which frames, size, quality, names.
        workers: processes.
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
    }
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is a file; give --out the name of a folder.")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    journal = _beside(out, ".journal")
    if not journal.exists():
        _begin_journal(journal, plan, out)
    with lock(journal, purpose="vidprep extract"):
        done, old_faults = _read_journal(journal, plan)
        _sweep_folders(out)
        todo = [
            (video, paths.get(video.video_id))
            for video in split.videos
            if not _is_done(video, done, old_faults, paths.get(video.video_id), out)
        ]
        try:
            num_new = _extract_all(todo, journal, out=out, settings=settings, workers=workers, progress=progress)
        except BaseException:
            _sweep_folders(out)  # what workers were filling when they were ended
            raise
        return _finish(split, out=out, journal=journal, plan=plan, num_new=num_new)


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
                pts_seconds=tuple(float(time) for time in row["pts_seconds"]),
            )
            for row in rows
        ]
        with _beside(out, ".faults.csv").open(encoding="utf-8", newline="") as stream:
            reasons = {row["video_id"]: row["reason"] for row in csv.DictReader(stream)}
        settings = FrameFormat(**{field.name: plan[field.name] for field in fields(FrameFormat)})
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


def _read_journal(journal: Path, plan: Mapping[str, Any]) -> tuple[dict[str, FrameFacts], dict[str, dict[str, Any]]]:
    """What was done (folder -> facts) and what could not be (folder -> entry); later lines replace earlier ones."""
    lines = journal.read_text(encoding="utf-8", errors="replace").splitlines()
    try:
        before = json.loads(lines[0]) if lines else {}
    except ValueError as error:
        raise UsageError(
            f"{journal}: not a journal of `vidprep extract`; move it away or give another --out."
        ) from error
    if found := differences(before, plan):
        raise UsageError(f"{journal.with_suffix('')}: holds frames of other settings ({found}); give another --out.")
    done: dict[str, FrameFacts] = {}
    faults: dict[str, dict[str, Any]] = {}
    for line in lines[1:]:
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # the line that a killed run was writing; its video is extracted again
        folder = entry["folder"]
        done.pop(folder, None)
        faults.pop(folder, None)
        if "facts" in entry:
            done[folder] = FrameFacts(**{**entry["facts"], "pts_seconds": tuple(entry["facts"]["pts_seconds"])})
        else:
            faults[folder] = entry
    return done, faults


def _is_done(
    video: Video,
    done: Mapping[str, FrameFacts],
    faults: Mapping[str, Mapping[str, Any]],
    path: Path | None,
    out: Path,
) -> bool:
    folder = folder_name(video)
    if folder in done:
        return (out / folder).is_dir()
    # A fault stands as long as its file is the one that was tried.
    return folder in faults and faults[folder]["source"] == source_state(path)


def _sweep_folders(out: Path) -> None:
    """Remove the folders that killed runs left half-filled."""
    half = out / HALF_FILLED
    if half.exists():
        with writing(half):
            shutil.rmtree(half)


HALF_FILLED = ".part"
"""Folder below `out` in which folders are filled before they get their place."""


def _extract_all(
    todo: Sequence[tuple[Video, Path | None]],
    journal: Path,
    *,
    out: Path,
    settings: FrameFormat,
    workers: int,
    progress: str | None,
) -> int:
    """Extract the frames of each video and note it in the journal; how many videos got frames."""
    num_new = 0
    with writing(journal), journal.open("a", encoding="utf-8") as lines:
        if not journal.read_bytes().endswith(b"\n"):
            lines.write("\n")  # ends the line that a killed run was writing
        work = partial(_extract_one, out=out, settings=settings)
        with closing(run(todo, work, workers=workers, progress=progress)) as outcomes:
            for outcome in outcomes:
                video, path = outcome.unit
                entry = _entry(video, path, outcome.result, outcome.error)
                lines.write(json.dumps(entry) + "\n")
                lines.flush()
                num_new += "facts" in entry
    return num_new


def _extract_one(unit: tuple[Video, Path | None], *, out: Path, settings: FrameFormat) -> FrameFacts:
    video, path = unit
    if path is None:
        raise VidprepError("no file found for it")
    folder = out / folder_name(video)
    half = out / HALF_FILLED / f"{os.getpid()}-{hashlib.sha256(folder.name.encode()).hexdigest()[:16]}"
    before = source_state(path)
    with open_frames(path, video, settings) as (facts, images), writing(folder):
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir(parents=True)
        for number, image in enumerate(images, start=settings.first_index):
            (half / settings.template.format(number)).write_bytes(image)
        if source_state(path) != before:
            raise CorruptVideo(f"{path}: changed while it was read; run the same command again.")
        if folder.exists():
            shutil.rmtree(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        half.rename(folder)
    return facts


def _entry(video: Video, path: Path | None, facts: FrameFacts | None, error: Exception | None) -> dict[str, Any]:
    if facts is not None:
        return {"folder": facts.folder, "facts": asdict(facts)}
    text = str(error).removeprefix(f"{path}: ").rstrip(".")  # the path has its own column
    return {
        "folder": folder_name(video),
        "reason": text if isinstance(error, VidprepError) else f"{type(error).__name__}: {text}",
        "path": str(path or ""),
        "source": source_state(path),
    }


def _finish(split: Split, *, out: Path, journal: Path, plan: Mapping[str, Any], num_new: int) -> ExtractReport:
    """Write the index and the list of faults from the journal."""
    import pandas as pd

    done, entries = _read_journal(journal, plan)
    _sweep_folders(out)
    named = [(video.video_id, folder_name(video)) for video in split.videos]
    rows = [{"video_id": video_id, **asdict(done[folder])} for video_id, folder in named if folder in done]
    faults = tuple(
        Fault(video_id=video_id, reason=entries[folder]["reason"], path=entries[folder]["path"])
        for video_id, folder in named
        if folder in entries
    )
    with publish(_beside(out, ".parquet")) as stream:
        pd.DataFrame(rows, columns=["video_id", *(field.name for field in fields(FrameFacts))]).to_parquet(stream)
    with publish(_beside(out, ".faults.csv")) as stream:
        stream.write(faults_to_csv(faults).encode())
    return ExtractReport(
        folder=out,
        num_videos=len(rows),
        num_frames=sum(row["num_frames"] for row in rows),
        num_new=num_new,
        faults=faults,
    )
