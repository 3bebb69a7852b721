"""Frames by the `ffmpeg` program, through ffmpeg-python: for formats that PyAV does not decode, and own filters.

    ffmpeg -ss START -to END -i FILE -vf SELECTION,FILTER,SCALE -q:v 2 %09d.jpg

Slower than the extraction of vidprep itself, and exact as far as the program is: it is told to end at the first error.
"""

import ctypes
import json
import math
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from vidprep.errors import CorruptVideo, EmptyVideo, MissingVideo, UsageError, VidprepError
from vidprep.types import FrameFormat, Video
from vidprep.workers import is_apart

__all__ = ["FfmpegFrames", "FfmpegOptions", "check_filter", "extract_with_ffmpeg", "require_ffmpeg"]


@dataclass(frozen=True, kw_only=True)
class FfmpegOptions:
    """What only the program knows."""

    filter: str = ""
    """A chain of FFmpeg's filters, put after the choice of frames and before the change of size."""
    qscale: int = 2
    """Quality of JPEG images, 2 (best) to 31; about what 90 is elsewhere."""

    def __post_init__(self) -> None:
        if not 2 <= self.qscale <= 31:
            raise ValueError(f"qscale lies between 2 and 31, got {self.qscale}")


@dataclass(frozen=True, kw_only=True)
class FfmpegFrames:
    """What the program wrote, and what it says of the video."""

    paths: Sequence[Path]
    """The images, in order."""
    pts_seconds: tuple[float, ...]
    """When each is shown in the video."""
    width: int
    height: int
    source_num_frames: int
    source_fps: float
    source_width: int
    source_height: int
    source_duration_seconds: float


def require_ffmpeg() -> None:
    """Raise now rather than for each video.

    Raises:
        UsageError: the programs are not there.
    """
    for program in ("ffmpeg", "ffprobe"):
        if shutil.which(program) is None:
            raise UsageError(
                f"--backend ffmpeg needs the program {program} (FFmpeg 5.1 or later) on the PATH: "
                "apt install ffmpeg, or conda install ffmpeg."
            )


def check_filter(filters: str) -> None:
    """Raise now rather than for each video. (Whether a filter suits the videos, only they can tell.)

    Raises:
        UsageError: the program knows no such filter, or not the option that it is given.
    """
    picture = ["-f", "lavfi", "-i", "color=size=64x64:rate=1:duration=1"]
    command = ["ffmpeg", "-hide_banner", "-nostdin", "-loglevel", "error", *picture, "-vf", filters]
    log = _start([*command, "-frames:v", "1", "-f", "null", "-"]).stderr
    if found := re.search(r"No such filter: '.*'|Option '.*' not found", log):
        raise UsageError(
            f"--filter {filters}: {found[0]}; `ffmpeg -filters` lists them, `ffmpeg -h filter=NAME` says more."
        )


def extract_with_ffmpeg(
    source: Path, video: Video, settings: FrameFormat, options: FfmpegOptions, *, folder: Path
) -> FfmpegFrames:
    """Write the frames of one video into an empty folder.

    Args:
        source: the file.
        video: says which segment is wanted; times count from the first frame.
        settings: which frames, size, names; `jpeg_quality` takes no part.
        options: filter and quality.
        folder: is filled with images, called by their number.

    Raises:
        MissingVideo: no such file.
        EmptyVideo: it has no bytes.
        CorruptVideo: the program does not open it, or finds an error in it.
        VidprepError: it wrote no frame.
    """
    if not source.exists():
        raise MissingVideo(f"{source}: no such file.")
    if source.stat().st_size == 0:
        raise EmptyVideo(f"{source}: is empty (0 bytes); fetch it again.")
    found = _probe(source)
    selection, repeats = _selection(source, video, settings, found)
    filters = [*selection, *filter(None, [options.filter]), _scale(settings), "showinfo"]
    suffix = ".png" if settings.template.endswith(".png") else ".jpg"
    output: dict[str, Any] = {"vf": ",".join(filters)}
    is_rate_of_output = settings.fps is not None and settings.rate_mode == "output"
    if is_rate_of_output:
        output["r"] = settings.fps
    else:
        output["fps_mode"] = "passthrough"
    if suffix == ".jpg":
        output |= {"q:v": options.qscale, "pix_fmt": f"yuvj{settings.subsampling}p", "c:v": "mjpeg", "threads": 1}
    log = _run(source, video, found, output, target=f"%09d{suffix}", folder=folder)
    paths = sorted(folder.glob(f"*{suffix}"))
    shown = [(video.start_seconds or 0.0) + float(time) for time in re.findall(r" pts_time:\s*(\S+)", log)]
    sizes = re.findall(r" s:(\d+)x(\d+) ", log)
    if not paths or not sizes:
        raise VidprepError(f"{source}: the program wrote no frame of it (filters {output['vf']})")
    if is_rate_of_output:
        shown = [shown[0] + number / (settings.fps or 1.0) for number in range(len(paths))]
    if len(shown) != len(paths) or (repeats is not None and len(repeats) != len(paths)):
        expected = len(shown) if repeats is None else len(repeats)
        raise CorruptVideo(f"{source}: {len(paths)} images were written, {expected} frames were to be.")
    if repeats is not None:
        paths = [path for path, count in zip(paths, repeats, strict=True) for _ in range(count)]
        shown = [time for time, count in zip(shown, repeats, strict=True) for _ in range(count)]
    width, height = (int(side) for side in sizes[-1])
    return FfmpegFrames(
        paths=paths,
        pts_seconds=tuple(shown),
        width=width,
        height=height,
        source_num_frames=found.num_frames,
        source_fps=found.fps,
        source_width=found.width,
        source_height=found.height,
        source_duration_seconds=found.duration_seconds,
    )


@dataclass(frozen=True, kw_only=True)
class _Probed:
    """What ffprobe says of the stream that ffmpeg would take."""

    stream: int
    num_frames: int
    fps: float
    width: int
    """Upright."""
    height: int
    duration_seconds: float


def _probe(source: Path) -> _Probed:
    command = ["ffprobe", "-show_format", "-show_streams", "-of", "json", "-count_packets", f"file:{source}"]
    done = _start(command)
    if done.returncode != 0:
        complaint = _last_line(done.stderr).removeprefix(f"file:{source}: ")
        raise CorruptVideo(f"{source}: ffprobe does not open it: {complaint}.")
    report = json.loads(done.stdout)
    streams = [
        stream
        for stream in report["streams"]
        if stream["codec_type"] == "video" and not stream.get("disposition", {}).get("attached_pic")
    ]
    if not streams:
        raise CorruptVideo(f"{source}: holds no video stream.")
    best = max(streams, key=lambda stream: stream.get("width", 0) * stream.get("height", 0))
    turns = [part["rotation"] for part in best.get("side_data_list", []) if "rotation" in part]
    width, height = int(best.get("width", 0)), int(best.get("height", 0))
    if turns and turns[0] % 180:
        width, height = height, width
    rate = best.get("avg_frame_rate", "0/0")
    duration = best.get("duration", report["format"].get("duration"))
    return _Probed(
        stream=int(best["index"]),
        num_frames=int(best.get("nb_read_packets", 0)),
        fps=math.nan if rate.endswith("/0") else float(Fraction(rate)),
        width=width,
        height=height,
        duration_seconds=math.nan if duration is None else float(duration),
    )


def _selection(source: Path, video: Video, settings: FrameFormat, found: _Probed) -> tuple[list[str], list[int] | None]:
    """The filters that choose frames, and how often each of them is wanted (None: once)."""
    if settings.fps is not None:
        return [f"fps={settings.fps}"] if settings.rate_mode == "filter" else [], None
    if settings.keyframes_only:
        return ["select='eq(key,1)'"], None
    if settings.num_frames is None:
        return [], None
    # Only a decode says how many frames there are.
    log = _run(source, video, found, {"vf": "showinfo", "fps_mode": "passthrough", "f": "null"}, target="-")
    count = len(re.findall(r" pts_time:", log))
    if count == 0:
        raise VidprepError(f"{source}: the program decodes no frame of it")
    middles = [int((place + 0.5) * count / settings.num_frames) for place in range(settings.num_frames)]
    repeats = Counter(middles)  # those of a short video
    picked = "+".join(f"eq(n,{number})" for number in repeats)
    return [f"select='{picked}'"], list(repeats.values())


def _scale(settings: FrameFormat) -> str:
    if settings.width is not None:
        return f"scale={settings.width}:{settings.height}"
    if settings.height is not None:
        return f"scale=-1:{settings.height}"
    if settings.short_side is not None:
        return f"scale={settings.short_side}:{settings.short_side}:force_original_aspect_ratio=increase"
    return "scale=iw:ih"  # no change, but FFmpeg's -r chooses frames otherwise where there is no filter


def _run(
    source: Path, video: Video, found: _Probed, output: dict[str, Any], *, target: str, folder: Path | None = None
) -> str:
    """What the program logs, at level info."""
    import ffmpeg

    span: dict[str, Any] = {"threads": 1}
    if video.start_seconds is not None:
        span["ss"] = video.start_seconds
    if video.end_seconds is not None:
        span["to"] = video.end_seconds
    opened = ffmpeg.input(f"file:{source.absolute()}", **span)
    command = ffmpeg.compile(
        ffmpeg.output(opened[str(found.stream)], target, **output),
        cmd=["ffmpeg", "-hide_banner", "-nostdin", "-nostats", "-loglevel", "level+info", "-xerror"],
    )
    done = _start(command, folder=folder)
    if done.returncode != 0:
        raise CorruptVideo(f"{source}: ffmpeg ends with an error: {_last_line(done.stderr)}.")
    return done.stderr


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _start(command: Sequence[str], *, folder: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """Run a program of the user's; one that a worker process started ends with it, however that ends (on Linux)."""
    return subprocess.run(  # noqa: S603
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        preexec_fn=_end_with_parent if is_apart() else None,
    )


def _last_line(log: str) -> str:
    """The last complaint of a log, without the addresses in it."""
    lines = [line for line in log.splitlines() if line.strip()]
    complaints = [line for line in lines if "[error]" in line or "[fatal]" in line] or lines or ["no word why"]
    return re.sub(r"\[[^]]*\] ", "", complaints[-1]).strip().rstrip(".")
