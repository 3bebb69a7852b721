from fractions import Fraction
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vidprep.sampling import (
    frames_between,
    sample_clips,
    sample_dense,
    sample_jittered,
    sample_segments,
    sample_strided,
    sample_window,
)

LENGTHS = st.integers(1, 5000)
SEGMENTS = st.integers(1, 64)
SEEDS = st.integers(0, 2**32 - 1)
SHORTS: st.SearchStrategy[Literal["first", "last"]] = st.sampled_from(["first", "last"])


class Extreme:
    """Draws the lowest or the highest integer that it may, and writes down each call."""

    def __init__(self, *, high: bool) -> None:
        self.high = high
        self.calls: list[tuple[int, int, int | None]] = []

    def integers(self, low: int, high: int, size: int | None = None) -> Any:
        self.calls.append((low, high, size))
        value = high - 1 if self.high else low
        return value if size is None else np.full(size, value)


def test_evaluation_takes_the_centre_of_each_part() -> None:
    assert sample_segments(80, num_segments=8).tolist() == [5, 15, 25, 35, 45, 55, 65, 75]
    assert sample_segments(10, num_segments=4).tolist() == [1, 3, 6, 8]
    assert sample_segments(23, num_segments=8, short="last").tolist() == [1, 4, 7, 10, 12, 15, 18, 21]


def test_short_video_repeats_its_last_frame() -> None:
    assert sample_segments(3, num_segments=8, short="last").tolist() == [0, 1, 2, 2, 2, 2, 2, 2]
    assert sample_segments(8, num_segments=8, short="last").tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    rng = Extreme(high=True)
    assert sample_segments(3, num_segments=8, short="last", rng=rng).tolist() == [0, 1, 2, 2, 2, 2, 2, 2]
    assert rng.calls == []


def test_short_video_repeats_its_first_frame() -> None:
    assert sample_segments(3, num_segments=8, short="first").tolist() == [0] * 8
    assert sample_segments(3, num_segments=8, short="first", rng=Extreme(high=True)).tolist() == [0] * 8
    # TAM: evaluation repeats at n = t too, training does not
    assert sample_segments(8, num_segments=8, short="first").tolist() == [0] * 8
    assert sample_segments(8, num_segments=8, short="first", rng=Extreme(high=True)).tolist() == list(range(8))


def test_short_video_is_spread_over_the_clip() -> None:
    assert sample_segments(3, num_segments=8, short="spread").tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert sample_segments(3, num_segments=8, short="spread", rng=Extreme(high=True)).tolist() == [
        0,
        0,
        0,
        1,
        1,
        2,
        2,
        2,
    ]
    for n in (1, 3, 8, 20):  # what one test clip is, whatever the length
        one_clip = sample_clips(n, num_segments=8, num_clips=1)[0]
        assert sample_segments(n, num_segments=8, short="spread").tolist() == one_clip.tolist()


def test_training_draws_all_segments_in_one_call_and_never_the_tail() -> None:
    low, high = Extreme(high=False), Extreme(high=True)
    assert sample_segments(23, num_segments=8, rng=low).tolist() == [0, 2, 4, 6, 8, 10, 12, 14]
    assert sample_segments(23, num_segments=8, rng=high).tolist() == [1, 3, 5, 7, 9, 11, 13, 15]
    assert low.calls == [(0, 2, 8)]


def test_dense_clip_steps_through_its_window() -> None:
    assert sample_dense(100, num_segments=8, window=64, rng=Extreme(high=False)).tolist() == [*range(0, 64, 8)]
    assert sample_dense(100, num_segments=8, window=64, rng=Extreme(high=True)).tolist() == [*range(35, 99, 8)]
    assert sample_dense(72, num_segments=8, window=64).tolist() == [4, 12, 20, 28, 36, 44, 52, 60]


def test_dense_clip_wraps_around_a_video_shorter_than_its_window() -> None:
    rng = Extreme(high=True)
    assert sample_dense(20, num_segments=8, window=64, rng=rng).tolist() == [0, 8, 16, 4, 12, 0, 8, 16]
    assert sample_dense(20, num_segments=8, window=64).tolist() == [0, 8, 16, 4, 12, 0, 8, 16]
    assert sample_dense(64, num_segments=8, window=64, rng=rng).tolist() == [*range(0, 64, 8)]
    assert rng.calls == []


def test_several_clips_of_segments_begin_at_even_steps() -> None:
    assert sample_clips(72, num_segments=8, num_clips=3).tolist() == [
        [0, 9, 18, 27, 36, 45, 54, 63],
        [4, 13, 22, 31, 40, 49, 58, 67],
        [8, 17, 26, 35, 44, 53, 62, 71],
    ]
    assert sample_clips(72, num_segments=8, num_clips=1).tolist() == [[4, 13, 22, 31, 40, 49, 58, 67]]
    # shorter than the clip: starts are cut towards 0
    assert sample_clips(3, num_segments=6, num_clips=2).tolist() == [[0, 0, 1, 1, 2, 2]] * 2


def test_several_dense_clips_begin_at_even_steps() -> None:
    clips = sample_clips(72, num_segments=8, num_clips=2, sampler="dense", window=64)
    assert clips.tolist() == [[*range(0, 64, 8)], [*range(8, 72, 8)]]
    middle = sample_clips(72, num_segments=8, num_clips=1, sampler="dense", window=64)
    assert middle[0].tolist() == sample_dense(72, num_segments=8, window=64).tolist()


@given(LENGTHS, SEGMENTS, SHORTS, st.none() | SEEDS)
def test_segments_are_sorted_frames_of_the_video(
    n: int, t: int, short: Literal["first", "last"], seed: int | None
) -> None:
    index = sample_segments(n, num_segments=t, short=short, rng=_rng(seed))
    assert index.shape == (t,)
    assert index.dtype == np.int64
    assert (np.diff(index) >= 0).all()
    assert index[0] >= 0
    assert index[-1] < n
    again = sample_segments(n, num_segments=t, short=short, rng=_rng(seed))
    assert (index == again).all()


@given(LENGTHS, SEGMENTS, SEEDS)
def test_training_hits_each_segment_once(n: int, t: int, seed: int) -> None:
    n = max(n, t)
    index = sample_segments(n, num_segments=t, rng=_rng(seed))
    assert (index // (n // t)).tolist() == list(range(t))


@given(LENGTHS, SEGMENTS)
def test_evaluation_takes_the_frame_that_holds_each_centre(n: int, t: int) -> None:
    n = max(n, t + 1)
    for i, frame in enumerate(sample_segments(n, num_segments=t).tolist()):
        centre = Fraction(n, t) * (i + Fraction(1, 2))
        assert -1e-9 < centre - frame < 1 + 1e-9  # double precision may fall just short of a whole number


@given(LENGTHS, SEGMENTS)
def test_centres_are_rounded_in_double_precision(n: int, t: int) -> None:
    tick = n / float(t)
    assert sample_clips(n, num_segments=t, num_clips=1).tolist() == [[int(tick / 2.0 + tick * x) for x in range(t)]]


@given(LENGTHS, SEGMENTS, st.integers(0, 200), st.integers(1, 12), st.none() | SEEDS)
def test_dense_clips_are_frames_of_the_video_at_equal_steps(
    n: int, t: int, extra: int, clips: int, seed: int | None
) -> None:
    window = t + extra
    one = sample_dense(n, num_segments=t, window=window, rng=_rng(seed))
    many = sample_clips(n, num_segments=t, num_clips=clips, sampler="dense", window=window)
    assert many.shape == (clips, t)
    for index in (one, *many):
        assert index.dtype == np.int64
        assert 0 <= index.min() <= index.max() < n
        assert (np.diff(index) % n == (window // t) % n).all()
        if n >= window:
            assert (np.diff(index) > 0).all()


@given(LENGTHS, SEGMENTS, st.integers(1, 12))
def test_clips_of_segments_are_frames_of_the_video_in_order(n: int, t: int, clips: int) -> None:
    index = sample_clips(n, num_segments=t, num_clips=clips)
    assert index.shape == (clips, t)
    assert 0 <= index.min() <= index.max() < n
    if n >= t:
        assert (np.diff(index, axis=1) >= 0).all()
        assert (np.diff(index, axis=0) >= 0).all()


def test_frames_between_takes_time_stamps_as_they_are() -> None:
    pts = np.array([0.0, 0.04, 0.5, 0.54, 2.0])
    assert frames_between(pts, None, None).tolist() == [0, 1, 2, 3, 4]
    assert frames_between(pts, 0.04, 0.54).tolist() == [1, 2]
    assert frames_between(pts, 0.5, None).tolist() == [2, 3, 4]
    assert frames_between(pts, None, 0.5).tolist() == [0, 1]


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=50, unique=True), st.floats(0, 1000), st.floats(0.01, 100))
def test_frames_between_keeps_exactly_the_frames_of_the_segment(
    times: list[float], start: float, length: float
) -> None:
    pts: NDArray[np.float64] = np.array(sorted(times))
    expected = [i for i, time in enumerate(pts.tolist()) if start <= time < start + length]
    if expected:
        assert frames_between(pts, start, start + length).tolist() == expected
    else:
        with pytest.raises(ValueError, match="no frame begins in the segment"):
            frames_between(pts, start, start + length)


def test_a_segment_without_frames_says_where_the_frames_lie() -> None:
    with pytest.raises(ValueError, match=r"segment 5 s to 7 s; the 3 frames lie at 0 to 2 s\. Correct the annotation"):
        frames_between(np.array([0.0, 1.0, 2.0]), 5, 7)
    with pytest.raises(ValueError, match="segment the start to 1 s needs the frames' time stamps"):
        frames_between(np.array([np.nan, np.nan]), None, 1)


def test_impossible_clips_are_refused() -> None:
    with pytest.raises(ValueError, match="a video of at least 1 frame, got 0"):
        sample_segments(0, num_segments=8)
    with pytest.raises(ValueError, match="at least 1 segment, got 0"):
        sample_dense(10, num_segments=0, window=8)
    with pytest.raises(ValueError, match="num_clips must be at least 1, got 0"):
        sample_clips(10, num_segments=8, num_clips=0)
    with pytest.raises(ValueError, match="a window of 7 frames holds no clip of 8"):
        sample_dense(10, num_segments=8, window=7)


def _rng(seed: int | None) -> np.random.Generator | None:
    return None if seed is None else np.random.default_rng(seed)


def test_a_window_is_read_from_end_to_end_in_uneven_steps() -> None:
    clip = sample_window(300, num_segments=16, window=64, rng=np.random.default_rng(0))
    assert set(np.diff(clip)) == {3, 4, 5} or set(np.diff(clip)) == {4, 5}
    assert clip[-1] - clip[0] == 63
    middle = sample_window(300, num_segments=16, window=64)
    assert (middle[0], middle[-1]) == (118, 181)


def test_a_video_shorter_than_the_window_ends_in_its_last_frame() -> None:
    assert sample_window(10, num_segments=16, window=64).tolist() == [0, *([9] * 15)]
    assert sample_window(1, num_segments=4, window=8).tolist() == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="a window of 8 frames holds no clip of 16"):
        sample_window(100, num_segments=16, window=8)


def test_window_clips_take_every_fourth_frame() -> None:
    clips = sample_clips(100, num_segments=16, num_clips=5, sampler="window", window=64)
    assert set(np.diff(clips).ravel()) == {4}
    assert clips[:, 0].tolist() == [0, 8, 16, 24, 36]
    assert sample_clips(100, num_segments=16, num_clips=1, sampler="window", window=64)[0, 0] == 16


def test_interleaved_clips_share_starts_and_centres() -> None:
    clips = sample_clips(64, num_segments=16, num_clips=2, placement="interleaved")
    assert clips[0].tolist() == list(range(0, 64, 4))
    assert clips[1].tolist() == list(range(2, 64, 4))
    with pytest.raises(ValueError, match="interleaved clips are 2 clips of segments, got 3 of segments"):
        sample_clips(64, num_segments=16, num_clips=3, placement="interleaved")


# ---- jittered ----


def test_jittered_takes_centres_and_repeats_frames_of_short_videos_evenly() -> None:
    assert sample_jittered(80, num_segments=8).tolist() == [5, 15, 25, 35, 45, 55, 65, 75]
    assert sample_jittered(3, num_segments=8).tolist() == [0, 0, 0, 1, 1, 2, 2, 2]


@given(n=st.integers(1, 400), t=st.integers(1, 60), seed=st.integers(0, 99))
def test_jittered_frames_ascend_and_lie_in_their_part(n: int, t: int, seed: int) -> None:
    frames = sample_jittered(n, num_segments=t, rng=np.random.default_rng(seed))
    parts = np.arange(t + 1) * n / t
    assert (np.floor(parts[:-1] + 1e-9) <= frames).all()
    assert (frames <= np.ceil(parts[1:] - 1e-9)).all()
    assert (frames >= 0).all()
    assert (frames < n).all()


def test_a_jittered_clip_is_the_only_one() -> None:
    with pytest.raises(ValueError, match="a jittered clip is the only one of its video, got 2 clips"):
        sample_clips(10, num_segments=2, num_clips=2, sampler="jittered")
    assert sample_clips(80, num_segments=8, num_clips=1, sampler="jittered")[0, 0] == 5


# ---- strided ----


def test_a_strided_clip_of_a_short_video_repeats_its_last_frame() -> None:
    assert sample_strided(6, num_segments=4, window=8).tolist() == [0, 2, 4, 5]
    assert sample_strided(1, num_segments=3, window=3).tolist() == [0, 0, 0]
    assert sample_clips(6, num_segments=4, num_clips=2, sampler="strided", window=8).tolist() == [[0, 2, 4, 5]] * 2


def test_strided_clips_begin_at_even_steps_cut_to_integers_and_the_last_ends_the_video() -> None:
    # 75 - 64 = 11 frames of slack: int(k * 11 / 3)
    clips = sample_clips(75, num_segments=32, num_clips=4, sampler="strided", window=64)
    assert clips[:, 0].tolist() == [0, 3, 7, 11]
    assert set(np.diff(clips).ravel()) == {2}
    assert sample_clips(75, num_segments=32, num_clips=1, sampler="strided", window=64)[0, 0] == 5


@given(n=LENGTHS, t=SEGMENTS, stride=st.integers(1, 4), seed=SEEDS)
def test_a_strided_training_clip_lies_anywhere_inside_the_video(n: int, t: int, stride: int, seed: int) -> None:
    low, high = Extreme(high=False), Extreme(high=True)
    first = sample_strided(n, num_segments=t, window=t * stride, rng=low)
    last = sample_strided(n, num_segments=t, window=t * stride, rng=high)
    drawn = sample_strided(n, num_segments=t, window=t * stride, rng=np.random.default_rng(seed))
    assert first[0] == 0
    assert last[0] == max(n - t * stride, 0)
    assert (first <= drawn).all()
    assert (drawn <= last).all()
    assert drawn.max() < n
