"""Fetch videos by their YouTube ids through yt-dlp, and remember why each failure failed.

A ledger (JSON lines) holds every attempt. What is gone, private or blocked is not asked for again, unless that is
wanted; what failed for the network or for asking too often is tried again by the next run.
"""

import json
import logging
import re
import shutil
import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from vidprep.console import track
from vidprep.engine import CannotWrite, writing
from vidprep.errors import MissingPackage, UsageError
from vidprep.types import DatasetInfo, Video

__all__ = [
    "Attempt",
    "Reason",
    "YouTubeReport",
    "YouTubeVideo",
    "classify",
    "fetch_videos",
    "read_ledger",
    "youtube_videos",
]

Reason = Literal["gone", "private", "blocked", "rate_limited", "network", "other"]
REASONS: tuple[Reason, ...] = get_args(Reason)
RETRYABLE: frozenset[Reason] = frozenset({"rate_limited", "network"})

WATCH_URL = "https://www.youtube.com/watch?v={youtube_id}"

MAX_ATTEMPTS = 5
"""Of what may be tried again, over all runs."""
MAX_RATE_LIMITED = 3
"""In a row, after which a run ends: asking on would only lengthen the ban."""

# The first that fits counts: YouTube says "Video unavailable" before almost every other reason.
PATTERNS: tuple[tuple[Reason, str], ...] = (
    (
        "rate_limited",
        r"HTTP Error 429|Too Many Requests|rate.?limit|not a bot|captcha|isn.t available, try again later",
    ),
    (
        "blocked",
        r"in your country|in your location|blocked it|geo.?restrict|confirm your age|age.?restricted|"
        r"inappropriate for some users|members.only|Join this channel|requires payment|Premium members|\bDRM\b|"
        r"HTTP Error 403|HTTP Error 451",
    ),
    ("private", r"Private video|video is private|is not public|HTTP Error 401"),
    (
        "gone",
        r"Video unavailable|video is unavailable|not available any ?more|no longer available|has been removed|"
        r"been terminated|account .*closed|does not exist|isn.t available|HTTP Error 404|HTTP Error 410",
    ),
    (
        "network",
        r"HTTP Error 5\d\d|timed? ?out|Connection (?:aborted|refused|reset)|Remote end closed|Network is unreachable|"
        r"resolve host|Name or service not known|Temporary failure|getaddrinfo|IncompleteRead|bytes missing|"
        r"more expected|content too short|SSL|TransportError",
    ),
)


@dataclass(frozen=True, kw_only=True)
class YouTubeVideo:
    """A video to fetch, or a segment of one."""

    youtube_id: str
    name: str
    """Of the file below the folder, without its suffix: that is as YouTube has it, mp4 where it can be."""
    start_seconds: float | None = None
    end_seconds: float | None = None
    """A segment is cut exactly, so it is encoded anew; None for both keeps the whole video as it is."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """The last that is known of a video that did not come."""

    youtube_id: str
    reason: Reason
    message: str
    """As yt-dlp said it."""
    time: str
    """UTC, ISO 8601."""
    num_attempts: int


@dataclass(frozen=True, kw_only=True)
class YouTubeReport:
    """What became of the videos that were asked for."""

    folder: Path
    fetched: tuple[Path, ...]
    num_there: int
    failed: tuple[Attempt, ...]
    """In this run."""
    passed_over: tuple[Attempt, ...]
    """Failed in an earlier run for a reason that stays, or too often."""
    num_not_tried: int
    """Left when YouTube refused to go on."""

    @property
    def is_complete(self) -> bool:
        """All videos are there."""
        return not (self.failed or self.passed_over or self.num_not_tried)

    def to_text(self) -> str:
        """Counts, by reason."""
        lines = [f"{self.folder}: {len(self.fetched)} videos fetched, {self.num_there} were there"]
        for what, attempts in (("failed now", self.failed), ("passed over", self.passed_over)):
            counts = Counter(attempt.reason for attempt in attempts)
            if counts:
                listed = ", ".join(f"{reason} {counts[reason]}" for reason in REASONS if counts[reason])
                lines.append(f"{len(attempts)} {what}: {listed}")
        if self.num_not_tried:
            lines.append(f"{self.num_not_tried} not tried: YouTube limits the rate; run it again in an hour or so")
        return "\n".join(lines)


def youtube_videos(info: DatasetInfo, videos: Iterable[Video], *, split: str) -> list[YouTubeVideo]:
    """The YouTube ids behind a split: `ID` (named as the data set names files), or `ID_START_END` as Kinetics cuts it.

    Raises:
        UsageError: a video id of another form.
    """
    named = next((Path(path).name for path in info.video_paths if "{video_id}" in Path(path).name), "{video_id}.*")
    found = []
    for video in videos:
        clip = re.fullmatch(r"([A-Za-z0-9_-]{11})_(\d{6})_(\d{6})", video.video_id)
        if clip is not None:
            name, start, end = f"{split}/{video.video_id}", float(clip[2]), float(clip[3])
            found.append(YouTubeVideo(youtube_id=clip[1], name=name, start_seconds=start, end_seconds=end))
        elif re.fullmatch(r"[A-Za-z0-9_-]{11}", video.video_id):
            name = named.partition(".")[0].format(video_id=video.video_id, split=split)
            found.append(YouTubeVideo(youtube_id=video.video_id, name=f"youtube/{name}"))
        else:
            raise UsageError(f"{info.name}: {video.video_id!r} is no YouTube id of 11 characters, and no ID_START_END.")
    return found


def fetch_videos(
    videos: Sequence[YouTubeVideo],
    folder: Path,
    *,
    ledger: Path,
    retry: Collection[Reason] = (),
    max_height: int = 720,
    url: str | None = None,
    seconds_between: float = 1.0,
    progress: str | None = None,
) -> YouTubeReport:
    """Fetch what is not there yet, one after the other.

    Args:
        videos: what to fetch.
        folder: where the files go; made when missing.
        ledger: file of the attempts; made when missing, appended to.
        retry: reasons to try again beyond those that pass by themselves (rate_limited, network).
        max_height: the best format up to this height is taken, mp4 before others.
        url: address of a video, with the field {youtube_id}; None is YouTube's own.
        seconds_between: wait between two videos, out of courtesy.
        progress: what is being done, in a word or two; None shows nothing.

    Raises:
        MissingPackage: yt-dlp is not installed.
        UsageError: an unknown reason.
        CannotWrite: the disk takes no more.
    """
    if unknown := set(retry) - set(REASONS):
        raise UsageError(f"no reason {', '.join(sorted(unknown))}; known: {', '.join(REASONS)}.")
    yt_dlp = _import_yt_dlp()
    known = read_ledger(ledger)
    fetched: list[Path] = []
    failed: list[Attempt] = []
    passed_over: list[Attempt] = []
    num_there = num_in_a_row = num_tried = num_not_tried = 0
    there = _names_there(folder, videos)
    for video in track(videos, description=progress) if progress else videos:
        before = known.get(video.youtube_id)
        if video.name in there:
            num_there += 1
        elif before is not None and not _is_due(before, retry):
            passed_over.append(before)
        elif num_in_a_row >= MAX_RATE_LIMITED:
            num_not_tried += 1
        else:
            if num_tried:
                time.sleep(seconds_between)
            num_tried += 1
            attempt = _fetch(yt_dlp, video, folder, url or WATCH_URL, max_height, before)
            if isinstance(attempt, Path):
                fetched.append(attempt)
                num_in_a_row = 0
            else:
                failed.append(attempt)
                num_in_a_row = num_in_a_row + 1 if attempt.reason == "rate_limited" else 0
                _remember(ledger, attempt)
    return YouTubeReport(
        folder=folder,
        fetched=tuple(fetched),
        num_there=num_there,
        failed=tuple(failed),
        passed_over=tuple(passed_over),
        num_not_tried=num_not_tried,
    )


def classify(message: str) -> Reason:
    """Why a video did not come, from what yt-dlp says."""
    return next((reason for reason, pattern in PATTERNS if re.search(pattern, message, re.IGNORECASE)), "other")


def read_ledger(path: Path) -> dict[str, Attempt]:
    """The last attempt of each video; the last line may be torn by a power cut, others may not.

    Raises:
        UsageError: a line that is no attempt.
    """
    attempts: dict[str, Attempt] = {}
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            attempt = Attempt(**json.loads(line))
        except (ValueError, TypeError) as error:
            if number == len(lines):
                break
            raise UsageError(f"{path}, line {number}: no attempt ({error}); remove the line.") from error
        attempts[attempt.youtube_id] = attempt
    return attempts


def _remember(path: Path, attempt: Attempt) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_bytes() if path.is_file() else b""
        if text and not text.endswith(b"\n"):
            # A torn line is taken away, so that it does not stand in the middle.
            path.write_bytes(text[: text.rfind(b"\n") + 1])
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(attempt)) + "\n")


def _is_due(attempt: Attempt, retry: Collection[Reason]) -> bool:
    if attempt.reason in retry:
        return True
    return attempt.reason in RETRYABLE and attempt.num_attempts < MAX_ATTEMPTS


def _names_there(folder: Path, videos: Sequence[YouTubeVideo]) -> set[str]:
    """Names of files that are there, whatever their suffix."""
    parents = {Path(video.name).parent for video in videos}
    return {
        (parent / path.stem).as_posix()
        for parent in parents
        if (folder / parent).is_dir()
        for path in (folder / parent).iterdir()
        if path.is_file() and not path.name.startswith(".")
    }


def _import_yt_dlp() -> Any:
    try:
        import yt_dlp
    except ImportError as error:
        raise MissingPackage(
            "Fetching from YouTube needs the `youtube` extra: pip install 'vidprep[youtube]'."
        ) from error
    return yt_dlp


class _Log:
    """What yt-dlp would print, at our lowest level."""

    def debug(self, message: str) -> None:
        logging.getLogger(__name__).debug(message)

    info = warning = error = debug


def _fetch(
    yt_dlp: Any, video: YouTubeVideo, folder: Path, url: str, max_height: int, before: Attempt | None
) -> Path | Attempt:
    # A folder of its own, kept after a failure: yt-dlp goes on from its own part there.
    work = folder / ".youtube" / Path(video.name).name
    with writing(work):
        work.mkdir(parents=True, exist_ok=True)
    options = _options(yt_dlp, video, work, max_height)
    try:
        with yt_dlp.YoutubeDL(options) as downloader:
            downloader.download([url.format(youtube_id=video.youtube_id)])
    except Exception as error:  # also what yt-dlp itself stumbles over: one video must not end the run
        message = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split()) or type(error).__name__
        if "No space left" in message or "Disk quota exceeded" in message:
            raise CannotWrite(f"{work}: {message}; free some and run the same command again.") from error
        return Attempt(
            youtube_id=video.youtube_id,
            reason=classify(message),
            message=message,
            time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            num_attempts=before.num_attempts + 1 if before else 1,
        )
    [made] = [path for path in work.iterdir() if path.stem == "video" and path.suffix not in (".part", ".ytdl")]
    # Not with_suffix: an id may hold no dot, but names may.
    target = folder / f"{video.name}{made.suffix}"
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        made.replace(target)
        shutil.rmtree(work)
    return target


def _options(yt_dlp: Any, video: YouTubeVideo, work: Path, max_height: int) -> dict[str, Any]:
    up_to = f"[height<=?{max_height}]"
    whole = f"b[ext=mp4]{up_to}/b{up_to}"
    # Pictures and sound come apart in most formats; joining them needs the program ffmpeg.
    joined = f"bv*[ext=mp4]{up_to}+ba[ext=m4a]/{whole}/bv*{up_to}+ba"
    options: dict[str, Any] = {
        "format": joined if shutil.which("ffmpeg") else whole,
        "outtmpl": str(work).replace("%", "%%") + "/video.%(ext)s",
        "logger": _Log(),
        "quiet": True,
        "noprogress": True,
        "noplaylist": True,
        "overwrites": True,
        "continuedl": True,
        "updatetime": False,
        "cachedir": False,
        "retries": 3,
        "fragment_retries": 3,
        "socket_timeout": 30,
    }
    if video.start_seconds is not None or video.end_seconds is not None:
        if not shutil.which("ffmpeg"):
            raise UsageError("cutting a segment out of a YouTube video needs the program ffmpeg; install it.")
        span = (video.start_seconds or 0.0, video.end_seconds if video.end_seconds is not None else float("inf"))
        options["download_ranges"] = yt_dlp.utils.download_range_func(None, [span])
        options["force_keyframes_at_cuts"] = True
    return options
