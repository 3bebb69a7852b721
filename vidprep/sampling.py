"""Which frames make a clip: integers from integers, counted from 0; no file is opened here.

    evaluation, 10 frames, 4 segments:   .f.f..f.f.   (tick 2.5: floor(1.25 + 2.5 i) = 1 3 6 8)
    training, 10 frames, 4 segments:     one random frame of each [01][23][45][67]; 8 and 9 are never used
    dense, window 8, 4 frames, start 1:  .f.f.f.f..

Where a rule must give somebody else's numbers, its docstring names the source.
"""

from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["ClipPlacement", "RandomIntegers", "Sampler", "Short", "frames_between", "sample_clips", "sample_dense"]
__all__ += ["RandomNumbers", "sample_jittered", "sample_segments", "sample_strided", "sample_window"]

Sampler = Literal["segments", "dense", "window", "jittered", "strided"]
"""How one clip is taken: `sample_segments`, `sample_dense`, `sample_window`, `sample_jittered`, `sample_strided`."""
ClipPlacement = Literal["even", "interleaved"]
"""Where several clips of a video lie: see `sample_clips`."""

Short = Literal["first", "last", "spread"]
"""What fills up a video that is shorter than the clip: see `sample_segments`."""


class RandomIntegers(Protocol):
    """Where random frames come from: a `numpy.random.Generator`, or anything that draws integers like one."""

    def integers(self, low: int, high: int, size: int | None = None) -> Any:
        """Uniform integers of [low, high): one, or an array of `size`."""
        ...


class RandomNumbers(Protocol):
    """Where random places come from: a `numpy.random.Generator`, or anything that draws numbers like one."""

    def random(self, size: int) -> Any:
        """Uniform numbers of [0, 1), an array of `size`."""
        ...


def sample_segments(
    num_frames: int,
    *,
    num_segments: int,
    short: Short = "first",
    rng: RandomIntegers | None = None,
) -> NDArray[np.int64]:
    """Index of one frame from each of `num_segments` equal parts of a video, (t,).

    With `rng` a random frame of each part (training), without it the central one (evaluation):
    80 frames, 8 segments -> 5 15 25 35 45 55 65 75. In training the parts are n // t frames long,
    so the last n % t frames are never drawn; all t numbers come from one call of `rng`.

    A video that is too short is filled up, alike in training and in evaluation:

        short="last"    3 frames, 8 segments -> 0 1 2 2 2 2 2 2
        short="first"   3 frames, 8 segments -> 0 0 0 0 0 0 0 0
        short="spread"  3 frames, 8 segments -> 0 0 0 1 1 2 2 2    the centres, as in any other video

    Too short means n < t; with short="first", evaluation also repeats frame 0 at n = t, as its source does.

    Args:
        num_frames: n, frames in the video, at least 1.
        num_segments: t, the length of the clip.
        short: what fills up short videos: "last" as in TAPS, "first" as in TSM and TAM, "spread" as in TAM's tests.
        rng: source of random numbers; None for evaluation.

    Raises:
        ValueError: `num_frames` or `num_segments` is below 1.

    Source: TSN (Wang et al., 2016), section 3.1. Rounding and short="first" as in TSM and TAM, `ops/dataset.py`,
    `_sample_indices` and `_get_val_indices`; short="last" as in the code of TAPS (Dinai et al., ACCV 2024).
    """
    _check(num_frames, num_segments)
    last_too_short = num_segments if short == "first" and rng is None else num_segments - 1
    if num_frames <= last_too_short:
        if short == "spread":
            return _centres(num_frames, num_segments)
        ramp = np.arange(num_segments, dtype=np.int64)
        return np.minimum(ramp, num_frames - 1) if short == "last" else np.zeros_like(ramp)
    if rng is None:
        return _centres(num_frames, num_segments)
    length = num_frames // num_segments
    starts = np.arange(num_segments, dtype=np.int64) * length
    return starts + np.asarray(rng.integers(0, length, size=num_segments), dtype=np.int64)


def sample_dense(
    num_frames: int, *, num_segments: int, window: int, rng: RandomIntegers | None = None
) -> NDArray[np.int64]:
    """Frames at equal steps inside one window of a video, (t,): start + i * (window // t), modulo the video's length.

    With `rng` the window starts anywhere (training), without it in the middle (evaluation). A video that is
    no longer than the window starts at 0 and is read round and round.

    Args:
        num_frames: n, frames in the video, at least 1.
        num_segments: t, the length of the clip.
        window: frames that the clip spans, at least t.
        rng: source of random numbers; None for evaluation.

    Raises:
        ValueError: `num_frames` or `num_segments` is below 1, or the window is shorter than the clip.

    Source: random starts [0, n - window) as in the code of TAPS (whose validation draws them too) and, for clips
    whose length divides the window, of TAM; the middle start as TAM's validation (`ops/dataset.py`).
    """
    _check(num_frames, num_segments)
    stride = _stride(num_segments, window)
    if rng is None:
        start = _num_starts(num_frames, num_segments * stride) // 2
    else:
        start = 0 if num_frames <= window else int(rng.integers(0, num_frames - window))
    return (start + stride * np.arange(num_segments, dtype=np.int64)) % num_frames


def sample_window(
    num_frames: int, *, num_segments: int, window: int, rng: RandomIntegers | None = None
) -> NDArray[np.int64]:
    """Frames spread over one window of a video, both its ends included, (t,): uneven steps of window / (t - 1).

        window 64, 16 frames, start 0:   0 4 8 12 17 21 25 29 34 38 42 46 51 55 59 63

    With `rng` the window starts anywhere (training), without it in the middle. A video that is no longer than the
    window is spread over n // (window // t) frames, and its last frame fills up the clip.

    Args:
        num_frames: n, frames in the video, at least 1.
        num_segments: t, the length of the clip.
        window: frames that the clip spans, at least t.
        rng: source of random numbers; None for evaluation.

    Raises:
        ValueError: `num_frames` or `num_segments` is below 1, or the window is shorter than the clip.

    Source: VideoMAE, `kinetics.py::VideoClsDataset.loadvideo_decord`, training. Ends lie in [window, n), so the very
    last frame begins no clip.
    """
    _check(num_frames, num_segments)
    stride = _stride(num_segments, window)
    if num_frames <= window:
        spread = np.linspace(0, num_frames, num_frames // stride)
        positions = np.concatenate([spread, np.full(num_segments - len(spread), float(num_frames))])
        clip: NDArray[np.int64] = np.clip(positions, 0, num_frames - 1).astype(np.int64)
        return clip
    end = (num_frames + window) // 2 if rng is None else int(rng.integers(window, num_frames))
    positions = np.linspace(end - window, end, num_segments)
    return np.clip(positions, end - window, end - 1).astype(np.int64)


def sample_strided(
    num_frames: int, *, num_segments: int, window: int, rng: RandomIntegers | None = None
) -> NDArray[np.int64]:
    """Frames at equal steps inside one window of a video, (t,); a video that is too short repeats its last frame.

        window 8, 4 frames, 6 in the video:   f.f.ff      0 2 4 5

    With `rng` the window starts anywhere (training), without it in the middle, at (n - window) // 2.

    Args:
        num_frames: n, frames in the video, at least 1.
        num_segments: t, the length of the clip.
        window: frames that the clip spans, at least t; its stride is window // t.
        rng: source of random numbers; None for evaluation.

    Raises:
        ValueError: `num_frames` or `num_segments` is below 1, or the window is shorter than the clip.

    Source: RGTP on ViViT, as its evaluation pads and takes one temporal view. The start in training is ours.
    """
    _check(num_frames, num_segments)
    stride = _stride(num_segments, window)
    slack = max(num_frames - num_segments * stride, 0)
    start = slack // 2 if rng is None else int(rng.integers(0, slack + 1))
    clip: NDArray[np.int64] = np.minimum(start + stride * np.arange(num_segments, dtype=np.int64), num_frames - 1)
    return clip


def sample_jittered(num_frames: int, *, num_segments: int, rng: RandomNumbers | None = None) -> NDArray[np.int64]:
    """One frame from each of `num_segments` equal parts of a video, (t,): floor((i + u) / t * n).

    With `rng` u is random (training), without it 0.5: 80 frames, 8 segments -> 5 15 25 35 45 55 65 75. The parts are
    cut as real numbers, so every frame may be drawn in training, and short videos repeat frames evenly:
    3 frames, 8 segments -> 0 0 0 1 1 2 2 2.

    Args:
        num_frames: n, frames in the video, at least 1.
        num_segments: t, the length of the clip.
        rng: source of random numbers; None for evaluation.

    Raises:
        ValueError: `num_frames` or `num_segments` is below 1.

    Source: Uni-AdaFocus, `ops/dataset.py`.
    """
    _check(num_frames, num_segments)
    places = np.full(num_segments, 0.5) if rng is None else np.asarray(rng.random(num_segments), dtype=np.float64)
    # in this order: others round some frames differently
    indices: NDArray[np.int64] = ((np.arange(num_segments) + places) / num_segments * num_frames).astype(np.int64)
    return np.minimum(indices, num_frames - 1)


def sample_clips(
    num_frames: int,
    *,
    num_segments: int,
    num_clips: int,
    sampler: Sampler = "segments",
    window: int = 64,
    placement: ClipPlacement = "even",
) -> NDArray[np.int64]:
    """Several clips of one video for testing, (clips, t), spread evenly over where a clip can start.

        segments, 1 clip    the centre of each part: int(tick / 2 + tick * i), tick = n / t
        segments, N clips   clip j begins at the j-th of N even steps through the first part, 0 ... tick - 1
        dense, 1 clip       the window in the middle
        dense, N clips      the window at N even steps from the first start to the last
        jittered, 1 clip    as `sample_jittered` without `rng`
        strided, 1 clip     as `sample_strided` without `rng`
        strided, N clips    the window at N even steps from the first start to the last: int(j * (n - window) / (N - 1))
        window, N clips     every (window // t)-th frame of the video, then t of these at N even steps
        interleaved         2 clips of segments: the starts and the centres of the parts, sorted, then by turns

    Args:
        num_frames: n, frames in the video, at least 1.
        num_segments: t, the length of a clip.
        num_clips: clips of the video, at least 1.
        sampler: how one clip is taken.
        window: frames that a dense clip spans, at least t.
        placement: "interleaved" for 2 clips of "segments"; "even" otherwise.

    Raises:
        ValueError: a count is below 1, the window of a dense clip is shorter than the clip, or a placement does not
            go with the other arguments.

    Source: TAM, `ops/dataset.py`, test modes uniform-N and dense-N (one clip shorter than t frames repeats frames
    evenly there, unlike in `sample_segments`). Starts are cut to integers towards 0. "window" and "interleaved":
    VideoMAE, `kinetics.py` and `ssv2.py`, test mode. "strided": RGTP on ViViT.
    """
    _check(num_frames, num_segments)
    if num_clips < 1:
        raise ValueError(f"num_clips must be at least 1, got {num_clips}")
    if sampler == "jittered" and num_clips > 1:
        raise ValueError(f"a jittered clip is the only one of its video, got {num_clips} clips")
    if placement == "interleaved" and (sampler != "segments" or num_clips != 2):
        raise ValueError(f"interleaved clips are 2 clips of segments, got {num_clips} of {sampler}")
    steps = np.arange(num_segments, dtype=np.int64)
    if placement == "interleaved":
        tick = num_frames / num_segments
        both = np.concatenate([_centres(num_frames, num_segments), (tick * steps).astype(np.int64)])
        clips: NDArray[np.int64] = np.sort(both).reshape(num_segments, 2).T.copy()
        return clips
    if sampler == "jittered":
        return sample_jittered(num_frames, num_segments=num_segments)[None]
    if sampler == "window":
        return _strided_clips(num_frames, num_segments, num_clips, stride=_stride(num_segments, window))
    if sampler == "strided":
        if num_clips == 1:
            return sample_strided(num_frames, num_segments=num_segments, window=window)[None]
        stride = _stride(num_segments, window)
        gap = max(num_frames - num_segments * stride, 0) / (num_clips - 1)
        starts = np.array([int(clip * gap) for clip in range(num_clips)], dtype=np.int64)
        clips = np.minimum(starts[:, None] + stride * steps, num_frames - 1)
        return clips
    if sampler == "dense":
        stride = _stride(num_segments, window)
        num_starts = _num_starts(num_frames, num_segments * stride)
        if num_clips == 1:
            starts = np.array([num_starts // 2], dtype=np.int64)
        else:
            starts = np.linspace(0, num_starts - 1, num_clips).astype(np.int64)
        return (starts[:, None] + stride * steps) % num_frames
    if num_clips == 1:
        return _centres(num_frames, num_segments)[None]
    tick = num_frames / num_segments
    starts = np.linspace(0, tick - 1, num_clips).astype(np.int64)
    return (starts[:, None] + tick * steps).astype(np.int64) % num_frames


def frames_between(
    pts_seconds: NDArray[np.float64], start_seconds: float | None, end_seconds: float | None
) -> NDArray[np.int64]:
    """Indices of the frames that begin inside an annotated segment: start <= time stamp < end.

    Times are those stored in the file; no frame rate is assumed. None leaves that side open.

    Raises:
        ValueError: frames without time stamps, or no frame begins in the segment.
    """
    if start_seconds is None and end_seconds is None:
        return np.arange(len(pts_seconds), dtype=np.int64)
    if np.isnan(pts_seconds).any():
        raise ValueError(
            f"the segment {_text(start_seconds, end_seconds)} needs the frames' time stamps, but the source holds "
            "none; give the frame rate at which the frames were extracted"
        )
    start = -np.inf if start_seconds is None else start_seconds
    end = np.inf if end_seconds is None else end_seconds
    indices = np.flatnonzero((pts_seconds >= start) & (pts_seconds < end)).astype(np.int64)
    if not len(indices):
        span = f"{pts_seconds[0]:g} to {pts_seconds[-1]:g} s" if len(pts_seconds) else "nowhere: there are no frames"
        raise ValueError(
            f"no frame begins in the segment {_text(start_seconds, end_seconds)}; the {len(pts_seconds)} frames lie at "
            f"{span}. Correct the annotation or leave the segment out"
        )
    return indices


def _centres(num_frames: int, num_segments: int) -> NDArray[np.int64]:
    # double precision and in this order, as int(tick / 2.0 + tick * x): other orders round some frames differently
    tick = num_frames / num_segments
    return (tick / 2 + tick * np.arange(num_segments)).astype(np.int64)


def _strided_clips(num_frames: int, num_segments: int, num_clips: int, *, stride: int) -> NDArray[np.int64]:
    frames = np.arange(0, num_frames, stride, dtype=np.int64)
    frames = np.pad(frames, (0, max(num_segments - len(frames), 0)), mode="edge")
    slack = len(frames) - num_segments
    starts = [slack // 2] if num_clips == 1 else [int(clip * (slack / (num_clips - 1))) for clip in range(num_clips)]
    return np.stack([frames[start : start + num_segments] for start in starts])


def _stride(num_segments: int, window: int) -> int:
    if window < num_segments:
        raise ValueError(f"a window of {window} frames holds no clip of {num_segments}; widen it or shorten the clip")
    return window // num_segments


def _num_starts(num_frames: int, span: int) -> int:
    return max(1, 1 + num_frames - span)


def _check(num_frames: int, num_segments: int) -> None:
    if num_frames < 1:
        raise ValueError(f"a clip needs a video of at least 1 frame, got {num_frames}")
    if num_segments < 1:
        raise ValueError(f"a clip needs at least 1 segment, got {num_segments}")


def _text(start_seconds: float | None, end_seconds: float | None) -> str:
    start = "the start" if start_seconds is None else f"{start_seconds:g} s"
    end = "the end" if end_seconds is None else f"{end_seconds:g} s"
    return f"{start} to {end}"
