"""What a trained model sees in a camera, again and again: the last seconds are always its clip.

    camera -> thread -> the newest frames -> window of the last n -> clip -> model -> a line, every half a second

A model that is slower than the camera misses frames in between, and never falls behind.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import av
import av.error
import numpy as np
from numpy.typing import NDArray

from vidmodels.data import clip_of_frames
from vidmodels.evaluate import choose_device
from vidmodels.predict import Classifier, Prediction
from vidmodels.runs import Run
from vidmodels.types import Recipe
from vidprep.errors import UsageError, VidprepError

__all__ = ["Source", "open_source", "watch", "window_frames"]

Frame = NDArray[np.uint8]
"""(h, w, 3) RGB."""
CAMERA_OPTIONS = {"video_size": "640x480"}
"""Asked for; a camera that cannot gives the nearest. A window of larger frames would fill the memory."""
STRIDED = ("dense", "window", "strided")
"""Samplers whose clip spans a number of frames; those of the others span a whole video, of any length."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Frames, one after another."""

    name: str
    frames: Iterator[Frame]
    frame_rate: float
    is_live: bool
    """Frames come when they come, whether they are taken or not."""


@contextmanager
def open_source(name: str) -> Iterator[Source]:
    """A camera by its number or its device (0, /dev/video0), a stream (rtsp://...), or a file.

    Raises:
        UsageError: nothing there.
        VidprepError: it cannot be opened, or breaks off.
    """
    device = f"/dev/video{name}" if name.isdecimal() else name
    is_camera, is_stream = device.startswith("/dev/"), "://" in device
    if not is_stream and not Path(device).exists():
        cure = "`ls /dev/video*` shows the cameras that are here" if is_camera else "give a camera's number, or a file"
        raise UsageError(f"{device}: no such {'camera' if is_camera else 'file'}; {cure}.")
    try:
        if is_camera:
            container = av.open(device, "r", format="v4l2", options=dict(CAMERA_OPTIONS))
        else:
            container = av.open(device if is_stream else f"file:{device}", "r")
    except (av.error.FFmpegError, ValueError) as error:  # ValueError: an FFmpeg without v4l2
        raise VidprepError(f"{device}: {_opening_fault(error, is_camera=is_camera)}.") from error
    with container:
        video = container.streams.best("video")
        rate = None if video is None else video.average_rate or video.guessed_rate
        if video is None or not rate:
            raise VidprepError(f"{device}: gives no video with a known frame rate.")
        yield Source(
            name=device,
            frames=_decoded(container, device),
            frame_rate=float(rate),
            is_live=is_camera or is_stream,
        )


def _decoded(container: av.container.InputContainer, name: str) -> Iterator[Frame]:
    try:
        for frame in container.decode(video=0):
            yield cast(Frame, frame.to_ndarray(format="rgb24"))
    except av.error.FFmpegError as error:
        raise VidprepError(f"{name}: broke off ({error.strerror}); is it still connected?") from error


def _opening_fault(error: Exception, *, is_camera: bool) -> str:
    if isinstance(error, av.error.PermissionError):
        return (
            "may not be read; add yourself to the group that owns it (`ls -l` shows it, mostly video) and log in again"
        )
    if not isinstance(error, av.error.FFmpegError):
        return "this FFmpeg cannot read cameras (it has no v4l2); install PyAV from its own wheels, on Linux"
    what = "camera" if is_camera else "video"
    return f"cannot be opened as a {what} ({error.strerror})" + ("; is another program using it?" if is_camera else "")


def window_frames(recipe: Recipe, *, frame_rate: float, seconds: float) -> int:
    """Frames that a clip is taken from: as many as the recipe's clips span, or `seconds` where they span a video."""
    data = recipe.data
    return data.dense_window if data.train_sampler in STRIDED else max(data.num_frames, round(seconds * frame_rate))


def watch(
    run: Run,
    name: str,
    *,
    seconds: float = 4.0,
    every: float = 0.5,
    top: int = 5,
    device: str | None = None,
    opening: Callable[[str], AbstractContextManager[Source]] = open_source,
    tell: Callable[[str], object] | None = None,
) -> Iterator[Prediction]:
    """The likeliest classes of the last seconds, for ever, or until a file ends.

    Args:
        run: weights with their recipe.
        name: as for `open_source`.
        seconds: length of the window for recipes whose clips span a whole video; others say it themselves.
        every: seconds of video from one prediction to the next; a slow model takes longer.
        top: classes of each.
        device: None takes a GPU where there is one.
        opening: how the source is opened.
        tell: told in a sentence once it is.

    Yields:
        Predictions of the window's central clip and crop, named after the time of its newest frame.

    Raises:
        UsageError: no such source, settings out of range, or unknown classes.
        VidprepError: the source fails, or ends before the first window is full.
    """
    if not seconds > 0 or not every > 0:
        raise UsageError(f"--seconds and --every must be above 0, got {seconds:g} and {every:g}.")
    classifier = Classifier.load(run, device=choose_device(device))
    with opening(name) as source:
        size = window_frames(run.recipe, frame_rate=source.frame_rate, seconds=seconds)
        step = max(1, round(every * source.frame_rate))
        if tell is not None:
            tell(f"watching {source.name}, {size / source.frame_rate:.1f} s at a time; Ctrl-C ends it")
        window: deque[Frame] = deque(maxlen=size)
        num_seen = num_new = 0
        is_first = True
        for new in _newest(source, keep=size):
            window.extend(new.frames)
            num_new += len(new.frames)
            num_seen = new.num_seen
            if len(window) == size and (is_first or num_new >= step):
                num_new, is_first = 0, False
                clip = clip_of_frames(run.recipe, window)
                yield classifier.predict(clip[None], name=f"{num_seen / source.frame_rate:.1f} s", top=top)
        if is_first:
            raise VidprepError(
                f"{source.name}: ended after {num_seen} frames, and a window has {size}; "
                "`vidmodels predict FILE` takes shorter videos, too."
            )


@dataclass(frozen=True, kw_only=True)
class _New:
    """Frames that came since the last ones."""

    frames: list[Frame]
    num_seen: int
    """Of the source, those that were missed too."""


def _newest(source: Source, *, keep: int) -> Iterator[_New]:
    """What came while the last frames were looked at, of a live source at most `keep`; of a file every frame alone."""
    if not source.is_live:
        for number, frame in enumerate(source.frames, start=1):
            yield _New(frames=[frame], num_seen=number)
        return
    reader = _Reader(source.frames, keep=keep)
    try:
        while (new := reader.take()).frames:
            yield new
    finally:
        reader.stop()


class _Reader:
    """Takes frames in a thread of its own, and keeps the newest."""

    def __init__(self, frames: Iterable[Frame], *, keep: int) -> None:
        self._frames: deque[Frame] = deque(maxlen=keep)
        self._num_seen = 0
        self._is_over = self._is_stopped = False
        self._fault: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, args=(frames,), name="camera", daemon=True)
        self._thread.start()

    def _read(self, frames: Iterable[Frame]) -> None:
        fault: BaseException | None = None
        try:
            for frame in frames:
                with self._changed:
                    if self._is_stopped:
                        break
                    self._frames.append(frame)
                    self._num_seen += 1
                    self._changed.notify()
        except BaseException as error:  # it is raised where the frames are taken
            fault = error
        with self._changed:
            self._fault, self._is_over = fault, True
            self._changed.notify()

    def take(self) -> _New:
        """Waits for frames; none are left where there are none. Raises what the source raised, after its last frame."""
        with self._changed:
            while not self._frames and not self._is_over:
                self._changed.wait(timeout=0.2)  # so that Ctrl-C is heard
            if not self._frames and self._fault is not None:
                raise self._fault
            new = _New(frames=list(self._frames), num_seen=self._num_seen)
            self._frames.clear()
        return new

    def stop(self) -> None:
        """Wait for the thread to let go of the source."""
        with self._changed:
            self._is_stopped = True
        self._thread.join(timeout=2.0)
