import io
from pathlib import Path

import av
import numpy as np
import pytest
import simplejpeg
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from numpy.typing import NDArray
from PIL import Image

from vidprep.decode.pyav import UPRIGHT, Orientation, PyavReader, turn_upright
from vidprep.encode import JpegEncoder, encode_png
from vidprep.types import Subsampling


@pytest.mark.parametrize("size", [(320, 240), (160, 120), (161, 121), (1, 1)])
def test_jpeg_images_keep_colours_and_range(size: tuple[int, int]) -> None:
    rows, columns = np.mgrid[0:240, 0:320]
    picture = np.stack([columns * 255 // 319, rows * 255 // 239, (rows + columns) * 255 // 558], axis=-1)
    image = JpegEncoder(width=size[0], height=size[1], quality=95).encode_rgb(picture.astype(np.uint8))
    shown = np.asarray(Image.open(io.BytesIO(image)).convert("RGB")).astype(int)
    assert shown.shape == (size[1], size[0], 3)
    expected = np.asarray(Image.fromarray(picture.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)).astype(int)
    # 4:2:0, quality 95, and swscale's rounding of up to one level: measured 0.6 to 1.2 on average
    assert np.abs(shown - expected).mean() < 2
    for level in (0, 255):
        flat = JpegEncoder(width=32, height=32, quality=90).encode_rgb(np.full((64, 64, 3), level, dtype=np.uint8))
        assert set(np.unique(simplejpeg.decode_jpeg(flat))) == {level}


@pytest.mark.parametrize("size", [(43, 32), (44, 31), (465, 350), (44, 32)])
def test_the_same_picture_gives_the_same_bytes(size: tuple[int, int], rng: np.random.Generator) -> None:
    picture = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    images = set()
    for _ in range(20):
        images.add(JpegEncoder(width=size[0], height=size[1], quality=90).encode_rgb(picture))
        rng.integers(0, 256, 100_000, dtype=np.uint8)  # other memory around the next one
    assert len(images) == 1


def smooth_picture(*, width: int, height: int) -> NDArray[np.uint8]:
    """(h, w, c) in RGB, saturated colours that change slowly, so that scaling and subsampling hardly count."""
    rows, columns = np.mgrid[0:height, 0:width] * np.array([np.pi / height, np.pi / width])[:, None, None]
    channels = [np.sin(rows + phase) * np.cos(columns - 2 * phase) for phase in (0.0, 1.0, 2.0)]
    return (127.5 + 127.5 * np.stack(channels, axis=-1)).astype(np.uint8)


def stored_frame(
    picture: NDArray[np.uint8], pixels: str, matrix: Colorspace, colour_range: ColorRange
) -> av.VideoFrame:
    """A picture as a decoder would give it."""
    rgb = av.VideoFrame.from_ndarray(picture, format="rgb24")
    frame = rgb.reformat(format=pixels, dst_colorspace=matrix, dst_color_range=colour_range)
    frame.colorspace, frame.color_range = matrix, colour_range
    return frame


def shown(image: bytes) -> NDArray[np.int64]:
    return np.asarray(Image.open(io.BytesIO(image)).convert("RGB")).astype(np.int64)


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le"])
@pytest.mark.parametrize("colour_range", [ColorRange.MPEG, ColorRange.JPEG])
@pytest.mark.parametrize("matrix", [Colorspace.ITU601, Colorspace.ITU709, Colorspace.BT2020, Colorspace.SMPTE240M])
def test_colours_are_those_of_the_picture(pixels: str, matrix: Colorspace, colour_range: ColorRange) -> None:
    picture = smooth_picture(width=320, height=240)
    frame = stored_frame(picture, pixels, matrix, colour_range)
    expected = np.asarray(Image.fromarray(picture).resize((160, 120), Image.Resampling.BICUBIC)).astype(int)
    rgb = frame.reformat(width=160, height=120, format="rgb24", interpolation=Interpolation.BICUBIC)
    found = shown(JpegEncoder(width=160, height=120, quality=95).encode(frame))
    # Measured: 0.8 to 1.2 of 255 on average, and up to 2.2 for swscale's own RGB of 4:2:0, which is a little dark. A
    # wrong matrix gives 5 to 8, a wrong range 7.
    assert np.abs(found - expected).mean() < 1.4
    assert np.abs(found - rgb.to_ndarray().astype(int)).mean() < 2.5


@pytest.mark.parametrize("subsampling", ["420", "422", "444"])
@pytest.mark.parametrize("size", [(159, 120), (160, 119), (159, 119)])
@pytest.mark.parametrize("matrix", [Colorspace.ITU601, Colorspace.ITU709])
def test_colours_are_right_at_odd_sizes(matrix: Colorspace, size: tuple[int, int], subsampling: Subsampling) -> None:
    picture = smooth_picture(width=320, height=240)
    frame = stored_frame(picture, "yuv420p", matrix, ColorRange.MPEG)
    width, height = size
    image = JpegEncoder(width=width, height=height, quality=95, subsampling=subsampling).encode(frame)
    assert simplejpeg.decode_jpeg_header(image) == (height, width, "YCbCr", subsampling)
    expected = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(shown(image) - expected).mean() < 1.8
    assert np.abs(shown(image) - expected)[-1].mean() < 3
    assert np.abs(shown(image) - expected)[:, -1].mean() < 3


@pytest.mark.parametrize("pixels", ["rgb24", "gbrp", "gray", "pal8"])
def test_pictures_that_are_no_yuv_keep_their_colours(pixels: str) -> None:
    picture = smooth_picture(width=64, height=48)
    if pixels == "gray":
        picture = np.repeat(picture[:, :, :1], 3, axis=2)
    if pixels == "pal8":
        picture = np.full_like(picture, 255) // np.array([1, 3, 5], dtype=np.uint8)
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
    if pixels not in ("rgb24", "pal8"):
        frame = frame.reformat(format=pixels, dst_color_range=ColorRange.JPEG)
    image = JpegEncoder(width=64, height=48, quality=95, subsampling="444").encode(frame)
    assert np.abs(shown(image) - picture.astype(int)).mean() < 2


TURNS: list[Orientation] = [((0, 1), (-1, 0)), ((-1, 0), (0, -1)), ((0, -1), (1, 0)), ((-1, 0), (0, 1))]


@pytest.mark.parametrize("subsampling", ["420", "422", "444"])
@pytest.mark.parametrize("size", [(48, 64), (47, 63), (48, 63)])
@pytest.mark.parametrize("turn", [UPRIGHT, *TURNS])
def test_turned_frames_are_upright_images(subsampling: Subsampling, size: tuple[int, int], turn: Orientation) -> None:
    picture = smooth_picture(width=128, height=96)
    frame = stored_frame(picture, "yuv444p", Colorspace.ITU601, ColorRange.MPEG)
    upright = turn_upright(picture, turn)
    width, height = size
    image = JpegEncoder(width=width, height=height, quality=95, subsampling=subsampling).encode(frame, turn)
    assert simplejpeg.decode_jpeg_header(image)[:2] == (height, width)
    assert simplejpeg.decode_jpeg_header(image)[3] == subsampling
    expected = Image.fromarray(np.ascontiguousarray(upright)).resize(size, Image.Resampling.BICUBIC)
    # Measured: up to 2.1 of 255 on average, for 4:2:0 of so small a picture.
    assert np.abs(shown(image) - np.asarray(expected).astype(int)).mean() < 2.5


@pytest.mark.parametrize("matrix", [Colorspace.ITU601, Colorspace.ITU709])
@pytest.mark.parametrize("subsampling", ["420", "422", "444"])
@pytest.mark.parametrize("size", [(43, 32), (44, 31), (43, 31), (1, 1)])
def test_planes_of_odd_sides_give_the_same_bytes_whatever_lies_behind_them(
    matrix: Colorspace, subsampling: Subsampling, size: tuple[int, int], rng: np.random.Generator
) -> None:
    frame = stored_frame(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8), "yuv420p", matrix, ColorRange.MPEG)
    images = set()
    for _ in range(20):
        images.add(JpegEncoder(width=size[0], height=size[1], quality=90, subsampling=subsampling).encode(frame))
        rng.integers(0, 256, 100_000, dtype=np.uint8)  # other memory around the next one
    assert len(images) == 1


def test_encoding_leaves_the_frame_as_it_was() -> None:
    frame = stored_frame(smooth_picture(width=63, height=47), "yuvj420p", Colorspace.ITU601, ColorRange.JPEG)
    before = [bytes(plane) for plane in frame.planes]
    JpegEncoder(width=63, height=47, quality=90).encode(frame)
    assert [bytes(plane) for plane in frame.planes] == before


@pytest.mark.real
@pytest.mark.parametrize(
    "name",
    [
        "torchcodec_bt709_full_range.mp4",
        "torchcodec_h264_10bits.mp4",
        "torchcodec_av1_video.mkv",
        "video2dataset_test_video.mp4",
        "mmaction2_test.mp4",
        "mmaction2_test.avi",
        "decord_video_90.mov",
        "moviepy_transparent.webm",
        "-video-with-dash-.mp4",
    ],
)
def test_real_videos_keep_their_colours(name: str, testdata: Path) -> None:
    with PyavReader(testdata / "videos" / name) as reader:
        [picture] = reader.iterate_frames([1])
        [frame] = reader.iterate_stored([1])
        width, height = max(reader.width // 2, 1), max(reader.height // 2, 1)
        encoder = JpegEncoder(width=width, height=height, quality=95, subsampling="444")
        image = encoder.encode(frame, reader.orientation_of(frame))
    expected = shown(encode_png(picture, width=width, height=height))
    # Measured: up to 2.8 of 255 on average, of which up to 2 are swscale's RGB (see above).
    assert np.abs(shown(image) - expected).mean() < 3
