"""The other decoders behind `open_video`: where they agree with the exact one, and where they do not."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from tests.videos import SecondStream, number_image, read_number, write_numbered_video
from vidprep.decode import BACKENDS, Backend, FrameBatch, open_video
from vidprep.errors import CorruptVideo, MissingPackage, MissingVideo, UnknownName, UsageError

NUM_FRAMES = 40
INDICES = [0, 39, 7, 7, 13, 25, 12, 11]


def numbers(batch: FrameBatch) -> list[int]:
    return [read_number(picture) for picture in batch.data]


def write(tmp_path: Path, **arguments: Any) -> Path:
    name = arguments.pop("name", "video.mp4")
    return write_numbered_video(tmp_path / name, **{"num_frames": NUM_FRAMES, **arguments})


VIDEOS: dict[str, dict[str, Any]] = {
    "plain": {},
    "variable rate": {"pts": [i * i for i in range(NUM_FRAMES)]},
    "rotated": {"rotation": 90},
    "hevc": {"codec": "libx265"},
    "vp9": {"codec": "libvpx-vp9", "name": "video.webm"},
    "vp8": {"codec": "libvpx", "name": "video.webm"},
}


@pytest.mark.parametrize("video", VIDEOS)
@pytest.mark.parametrize("backend", ["pyav", "torchcodec"])
def test_exact_backends_give_the_frames_asked_for(tmp_path: Path, backend: Backend, video: str) -> None:
    pytest.importorskip("av" if backend == "pyav" else backend)
    path = write(tmp_path, **VIDEOS[video])
    with open_video(path, backend=backend) as reader, open_video(path) as exact:
        batch = reader.get_frames_at(np.array(INDICES))
        assert numbers(batch) == INDICES
        assert (reader.num_frames, reader.height, reader.width) == (NUM_FRAMES, *batch.data.shape[2:])
        assert np.allclose(batch.pts_seconds, exact.pts_seconds[INDICES], atol=1e-6)
        assert np.array_equal(reader.pts_seconds, exact.pts_seconds)


@pytest.mark.parametrize("video", ["plain", "rotated", "hevc", "variable rate"])
def test_decord_gives_the_frames_asked_for_on_plain_files(tmp_path: Path, video: str) -> None:
    pytest.importorskip("decord")
    path = write(tmp_path, **VIDEOS[video])
    with open_video(path, backend="decord") as reader, open_video(path) as exact:
        batch = reader.get_frames_at(INDICES)
        assert numbers(batch) == INDICES
        assert (reader.num_frames, reader.height, reader.width) == (NUM_FRAMES, exact.height, exact.width)
        assert np.allclose(batch.pts_seconds, exact.pts_seconds[INDICES], atol=1e-3)


def test_decord_gives_wrong_frames_on_open_gops(tmp_path: Path) -> None:
    """It takes every key frame for a safe place to start; the frames shown just before one are then wrong."""
    pytest.importorskip("decord")
    path = write(tmp_path, open_gop=True)
    with open_video(path) as exact:
        truth = exact.get_frames_at(range(NUM_FRAMES)).data
    indices = [1, 9, 11, 22, 23, 35]
    with open_video(path, backend="decord") as reader:
        in_order = reader.get_frames_at(range(NUM_FRAMES)).data
        sparse = reader.get_frames_at(indices).data
    assert np.array_equal(in_order, truth)
    wrong = [index for index, picture in zip(indices, sparse, strict=True) if not np.array_equal(picture, truth[index])]
    assert wrong == [11, 22, 23, 35]


def test_torchcodec_loses_frames_of_open_gops_but_says_so(tmp_path: Path) -> None:
    pytest.importorskip("torchcodec")
    path = write(tmp_path, open_gop=True)
    with open_video(path, backend="torchcodec") as reader:
        assert numbers(reader.get_frames_at([1, 9, 11, 22, 23, 35])) == [1, 9, 11, 22, 23, 35]
    with open_video(path, backend="torchcodec") as reader, pytest.raises(CorruptVideo, match="no more frames left"):
        reader.get_frames_at(INDICES)
    with open_video(path) as reader:
        assert numbers(reader.get_frames_at(INDICES)) == INDICES


def test_torchcodec_is_refused_where_it_would_give_wrong_frames(tmp_path: Path) -> None:
    """Which frames those are, tests/vidprep/test_real_videos.py shows."""
    pytest.importorskip("torchcodec")
    path = write(tmp_path, codec="mpeg4", name="video.avi")
    with pytest.raises(UsageError, match="format avi stores no time for each frame, and torchcodec gives wrong"):
        open_video(path, backend="torchcodec")


@pytest.mark.parametrize("backend", BACKENDS[:3])
def test_every_backend_reads_bytes(tmp_path: Path, backend: Backend) -> None:
    pytest.importorskip("av" if backend == "pyav" else backend)
    with open_video(write(tmp_path).read_bytes(), backend=backend) as reader:
        assert numbers(reader.get_frames_at([5, 30])) == [5, 30]


@pytest.mark.parametrize("backend", ["pyav", "torchcodec"])
def test_exact_backends_choose_the_same_stream(tmp_path: Path, backend: Backend) -> None:
    pytest.importorskip("av" if backend == "pyav" else backend)
    second = SecondStream(num_frames=20, width=64, height=48, start=500, comes_first=True)
    path = write(tmp_path, second_stream=second)
    with open_video(path) as exact, open_video(path, backend=backend) as reader:
        assert numbers(reader.get_frames_at([0, 9])) == numbers(exact.get_frames_at([0, 9]))


@pytest.mark.parametrize("backend", BACKENDS[:3])
def test_every_backend_refuses_what_is_no_video(tmp_path: Path, backend: Backend) -> None:
    pytest.importorskip("av" if backend == "pyav" else backend)
    path = tmp_path / "page.mp4"
    path.write_text("<html>404</html>" * 50)
    with pytest.raises(CorruptVideo, match=r"page\.mp4: .*cannot"):
        open_video(path, backend=backend)
    with pytest.raises(MissingVideo, match="no such file"):
        open_video(tmp_path / "gone.mp4", backend=backend)
    with open_video(write(tmp_path), backend=backend) as reader:
        assert reader.get_frames_at([]).data.shape == (0, 3, 96, 128)
        with pytest.raises(IndexError, match="frame 40 was asked for"):
            reader.get_frames_at([40])
        with pytest.raises(TypeError, match="integers"):
            reader.get_frames_at([0.5])  # type: ignore[list-item]


def test_an_unknown_backend_is_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match=r"no decoder is called 'torchcodex'; did you mean torchcodec\?"):
        open_video(tmp_path, backend="torchcodex")  # type: ignore[arg-type]


@pytest.mark.parametrize("package", ["torchcodec", "decord"])
def test_a_missing_package_names_its_extra(tmp_path: Path, package: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"{package}.decoders", raising=False)
    with pytest.raises(MissingPackage, match=rf"pip install 'vidprep\[{package}\]'"):
        open_video(write(tmp_path, num_frames=2), backend=package)


def test_arguments_of_the_jpeg_backend_belong_to_it(tmp_path: Path) -> None:
    path = write(tmp_path, num_frames=2)
    with pytest.raises(UsageError, match="template and fps belong to backend 'jpeg'"):
        open_video(path, fps=5)
    with pytest.raises(UsageError, match="reads a file or its bytes, got a list"):
        open_video([b"one"])
    with pytest.raises(UsageError, match="a folder or a list of JPEG bytes"):
        open_video(b"one", backend="jpeg")


def test_decoding_needs_no_torch() -> None:
    code = (
        "import sys, vidprep.decode, vidprep.decode.pyav, vidprep.decode.jpeg, vidprep.probe; "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_frames_become_tensors_without_a_copy(tmp_path: Path) -> None:
    with open_video(write(tmp_path, rotation=270)) as reader:
        batch = reader.get_frames_at([3, 1])
    tensor = batch.to_torch()
    assert tuple(tensor.shape) == (2, 3, 128, 96)
    assert tensor.data_ptr() == batch.data.ctypes.data


# JPEG frames


def jpeg(number: int, *, width: int = 64, height: int = 48) -> bytes:
    return bytes(simplejpeg.encode_jpeg(number_image(number, width=width, height=height), quality=90))


def write_jpegs(folder: Path, names: dict[str, int]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, number in names.items():
        (folder / name).write_bytes(jpeg(number))
    return folder


def test_a_folder_of_jpegs_is_read_by_its_template(tmp_path: Path) -> None:
    names = {f"img_{number:05d}.jpg": number for number in range(1, 12)}
    folder = write_jpegs(tmp_path / "frames", {**names, "x_00001.jpg": 900, "img_1.jpg": 901, "img_00001.jpeg": 902})
    with open_video(folder, backend="jpeg", template="img_{:05d}.jpg", fps=5) as reader:
        assert (reader.num_frames, reader.height, reader.width) == (11, 48, 64)
        batch = reader.get_frames_at([10, 0, 0, 4])
        assert numbers(batch) == [11, 1, 1, 5]
        assert np.allclose(batch.pts_seconds, [2, 0, 0, 0.8])


def png(number: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(number_image(number, width=64, height=48)).save(stream, "PNG")
    return stream.getvalue()


def test_a_folder_of_pngs_is_read_like_one_of_jpegs(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        (tmp_path / f"img_{number:05d}.png").write_bytes(png(100 + number))
    with open_video(tmp_path, backend="jpeg", template="img_{:05d}.png") as reader:
        assert (reader.num_frames, reader.height, reader.width) == (3, 48, 64)
        frames = reader.get_frames_at([2, 0, 2]).data
        assert np.array_equal(frames[1].transpose(1, 2, 0), number_image(101, width=64, height=48))
        assert np.array_equal(frames[0], frames[2])
        assert [read_number(frame) for frame in frames] == [103, 101, 103]


def test_damaged_pngs_are_named(tmp_path: Path) -> None:
    whole = png(1)
    with pytest.raises(CorruptVideo, match=r"frame 0 of .*: is not a JPEG or PNG"):
        open_video([whole[:12]], backend="jpeg")
    with (
        open_video([whole, whole[:-40]], backend="jpeg") as reader,
        pytest.raises(CorruptVideo, match=r"frame 1 .* is damaged"),
    ):
        reader.get_frames_at([1])


def test_jpegs_without_a_rate_have_no_times() -> None:
    with open_video([jpeg(7), jpeg(8)], backend="jpeg") as reader:
        assert numbers(reader.get_frames_at([1, 0])) == [8, 7]
        assert np.isnan(reader.pts_seconds).all()


def test_grey_jpegs_become_rgb() -> None:
    grey: NDArray[np.uint8] = number_image(9, width=64, height=48)[:, :, :1].copy()
    with open_video([bytes(simplejpeg.encode_jpeg(grey, colorspace="GRAY"))], backend="jpeg") as reader:
        assert numbers(reader.get_frames_at([0])) == [9]


def test_a_hole_in_the_frames_is_an_error(tmp_path: Path) -> None:
    folder = write_jpegs(tmp_path / "frames", {f"image_{number:05d}.jpg": number for number in (1, 2, 4, 6)})
    with pytest.raises(CorruptVideo, match=r"image_00003\.jpg and 1 more is missing between image_00001\.jpg and"):
        open_video(folder, backend="jpeg")


def test_wrong_templates_and_folders_are_named(tmp_path: Path) -> None:
    folder = write_jpegs(tmp_path / "frames", {"image_00001.jpg": 1})
    with pytest.raises(CorruptVideo, match=r"no file is named like img_1\.jpg"):
        open_video(folder, backend="jpeg", template="img_{}.jpg")
    with pytest.raises(UsageError, match="needs a number field"):
        open_video(folder, backend="jpeg", template="image.jpg")
    with pytest.raises(UsageError, match="fps must be positive"):
        open_video(folder, backend="jpeg", fps=0)
    with pytest.raises(MissingVideo, match="no such folder of frames"):
        open_video(tmp_path / "gone", backend="jpeg")
    with pytest.raises(CorruptVideo, match="there are no frames"):
        open_video([], backend="jpeg")


def test_damaged_jpegs_are_named() -> None:
    good = jpeg(1, width=320, height=240)
    with open_video([good, good[:-500], b"", jpeg(4)], backend="jpeg") as reader:
        with pytest.raises(CorruptVideo, match="frame 1 of 4 JPEG frames in memory: is damaged"):
            reader.get_frames_at([0, 1])
        with pytest.raises(CorruptVideo, match=r"frame 2 of 4 .* is not a JPEG"):
            reader.get_frames_at([2])
        with pytest.raises(CorruptVideo, match=r"frame 3 .* is 64x48 pixels, the first frame 320x240"):
            reader.get_frames_at([3])
