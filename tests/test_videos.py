import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.videos import SecondStream, number_image, read_number, write_numbered_video


def numbers_of(path: Path, *, stream_index: int = 0) -> list[int]:
    with av.open(str(path)) as container:
        frames = container.decode(container.streams.video[stream_index])
        return [read_number(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)) for frame in frames]


@pytest.mark.parametrize("number", [0, 1, 2, 77, 1024, 4095])
def test_number_is_read_after_scaling_and_jpeg(number: int) -> None:
    image = Image.fromarray(number_image(number, width=128, height=96)).resize((37, 61))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=50)
    small = np.asarray(Image.open(file))
    assert read_number(small) == number
    assert read_number(small.transpose(2, 0, 1)) == number


def test_mixture_of_two_frames_is_no_number() -> None:
    first, second = (number_image(number, width=64, height=64).astype(np.uint16) for number in (5, 1130))
    with pytest.raises(ValueError, match="neither dark nor bright"):
        read_number(((first + second) // 2).astype(np.uint8))


def test_mirrored_frame_is_no_number() -> None:
    with pytest.raises(ValueError, match="check sum"):
        read_number(number_image(77, width=64, height=64)[:, ::-1])


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"),
        ("a.mp4", "libx265"),
        ("a.webm", "libvpx"),
        ("a.webm", "libvpx-vp9"),
        ("a.mkv", "libsvtav1"),
        ("a.avi", "mpeg4"),
    ],
)
def test_every_frame_shows_its_number(tmp_path: Path, name: str, codec: str) -> None:
    path = write_numbered_video(tmp_path / name, num_frames=30, codec=codec, start=50)
    assert numbers_of(path) == list(range(50, 80))


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotated_video_shows_its_numbers_upright(tmp_path: Path, rotation: int) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", num_frames=3, rotation=rotation)
    assert numbers_of(path) == [0, 1, 2]


def test_variable_rate_and_second_stream(tmp_path: Path) -> None:
    path = write_numbered_video(
        tmp_path / "a.mkv",
        num_frames=4,
        pts=[0, 10, 500, 501],
        time_base=Fraction(1, 1000),
        second_stream=SecondStream(num_frames=3, width=64, height=48, start=100, comes_first=True),
    )
    assert numbers_of(path, stream_index=0) == [100, 101, 102]
    assert numbers_of(path, stream_index=1) == [0, 1, 2, 3]
    with av.open(str(path)) as container:
        assert [frame.pts for frame in container.decode(video=1)] == [0, 10, 500, 501]
