"""Videos to JPEG frames and to short clips: vidprep against the `ffmpeg` program, and against what is possible at all.

The clips are 10 s of 854x480 H.264 (x264's defaults: GOP 250, B-frames), made from real videos of more pixels. Each
side does the whole job, files included (into memory, where there is /dev/shm: the disk is not what is compared), in one
thread, and is charged for the CPU time of its processes: user and system, children too. vidprep runs in this process,
as it does for all videos of a data set but the first; ffmpeg is started for each video, as everybody does, with one
thread (its own choice of threads takes more CPU time for the same work).

Each function of `MEASUREMENTS` gives some ratios; a further one needs only to be added there.
"""

import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import simplejpeg
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter
from PIL import Image
from rich.console import Console
from rich.table import Table

from scripts.benchmarks.decode import NUM_FRAMES, make_clips
from scripts.benchmarks.runner import Ratio, Side, compare, machine_facts, measure, print_rates, print_ratios
from scripts.benchmarks.shards import measure_shards
from vidprep.clips import ClipFormat
from vidprep.clips import clips as cut_clips
from vidprep.datasets import get
from vidprep.decode.pyav import PyavReader
from vidprep.extract import extract, frame_size
from vidprep.splits import Split
from vidprep.types import FrameFormat, Video

__all__ = ["MEASUREMENTS", "run"]

PACKAGES = ("av", "simplejpeg", "numpy")
WIDTH, HEIGHT, GOP = 854, 480, 250
LARGE_CLIPS = ("moviepy_big_buck_bunny_0_30.webm", "mmaction2_ntu_1080p_h264.avi", "mmaction2_demo_skeleton.mp4")
SHORT_SIDE = 256
QUALITY, FFMPEG_QUALITY = 92, 2
"""Of libjpeg-turbo, and of ffmpeg's own coder (-q:v): as good in PSNR; sizes and errors are printed."""
NUM_UNIFORM = 16


def run(*, rounds: int) -> tuple[dict[str, Ratio], dict[str, object]]:
    """Measure and print; the ratios and the machine."""
    if shutil.which("ffmpeg") is None:
        raise SystemExit("this benchmark needs the ffmpeg program on the PATH.")
    clips = make_clips(GOP, width=WIDTH, height=HEIGHT, names=LARGE_CLIPS)
    ratios: dict[str, Ratio] = {}
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        for measurement in MEASUREMENTS:
            ratios |= measurement(clips, Path(folder), rounds)
    print_ratios("extraction", ratios)
    return ratios, machine_facts(PACKAGES) | {"ffmpeg": _ffmpeg_version()}


def cpu_seconds() -> float:
    """User and system time of this process and of its children that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


# All frames


def measure_all_frames(clips: Sequence[Path], folder: Path, rounds: int) -> dict[str, Ratio]:
    """Every frame as a JPEG file at short side 256; the limit decodes, scales and encodes, and writes nothing."""
    settings = FrameFormat(short_side=SHORT_SIDE, jpeg_quality=QUALITY, template="{:05d}.jpg")
    sides = [
        Side(name="vidprep", run=lambda: _extract(clips, folder / "ours" / "val", settings)),
        Side(name="ffmpeg", run=lambda: sum(_ffmpeg_all(clip, folder / "theirs" / clip.stem) for clip in clips)),
        Side(name="limit", run=lambda: sum(_decode_scale_encode(clip) for clip in clips)),
    ]
    rates = measure(sides, rounds=rounds, clock=cpu_seconds)
    print_rates(f"all {NUM_FRAMES} frames to JPEG", rates, unit="frames / CPU s")
    _print_quality(clips, folder / "ours" / "val", folder / "theirs")
    return {
        "all_frames_vs_ffmpeg": compare(rates["vidprep"], rates["ffmpeg"]),
        "all_frames_vs_limit": compare(rates["vidprep"], rates["limit"]),
    }


def _extract(clips: Sequence[Path], out: Path, settings: FrameFormat) -> int:
    shutil.rmtree(out.parent, ignore_errors=True)  # the index beside it, too
    videos = tuple(Video(video_id=clip.stem) for clip in clips)
    split = Split(dataset="folder", split="val", task="single_label", classes=(), videos=videos)
    report = extract(split, {clip.stem: clip for clip in clips}, out=out, settings=settings)
    if report.faults:
        raise RuntimeError(f"extraction failed: {report.faults}")
    return report.num_frames


def _ffmpeg_all(clip: Path, out: Path) -> int:
    return _ffmpeg(["-i", clip], [*_jpeg_options(f"scale=-1:{SHORT_SIDE}"), out / "%05d.jpg"], out)


def _jpeg_options(filters: str) -> list[str | Path]:
    return ["-vf", filters, "-threads", "1", "-q:v", str(FFMPEG_QUALITY)]


def _ffmpeg(inputs: Sequence[str | Path], outputs: Sequence[str | Path], out: Path) -> int:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    command = ["ffmpeg", "-v", "error", "-nostdin", "-filter_threads", "1", "-threads", "1", *inputs, *outputs]
    subprocess.run(command, check=True)
    return sum(1 for _ in out.iterdir())


def _decode_scale_encode(clip: Path) -> int:
    width, height = frame_size(WIDTH, HEIGHT, SHORT_SIDE)
    width -= width % 2  # what the coder takes without a copy
    scaler, count = VideoReformatter(), 0
    with av.open(str(clip)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):
            scaled = scaler.reformat(
                frame,
                width=width,
                height=height,
                format="yuv420p",
                threads=1,
                **FULL_RANGE,
            )
            planes: list[Any] = list(scaled.planes)
            views = [np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size) for plane in planes]
            views = [view[:, : plane.width] for view, plane in zip(views, planes, strict=True)]
            simplejpeg.encode_jpeg_yuv_planes(*views, quality=QUALITY)
            count += 1
    return count


def _print_quality(clips: Sequence[Path], ours: Path, theirs: Path) -> None:
    """Bytes and errors of some images of both sides, against the frame scaled without a coder."""
    table = Table(title="images", title_justify="left")
    for heading in ("side", "kB an image", "PSNR of brightness, dB"):
        table.add_column(heading)
    for name, folder in (("vidprep", ours), ("ffmpeg", theirs)):
        sizes, errors = [], []
        for clip in clips:
            paths = sorted((folder / clip.stem).iterdir())
            sizes += [path.stat().st_size for path in paths]
            with PyavReader(clip) as reader:
                for number in range(0, NUM_FRAMES, 60):
                    [frame] = reader.iterate_stored([number])
                    with Image.open(paths[number]) as image:
                        brightness = np.asarray(image.convert("YCbCr"), np.float64)[..., 0]
                    scaled = frame.reformat(*image.size, "gray", **FULL_RANGE).to_ndarray().astype(np.float64)
                    errors.append(float(((brightness - scaled) ** 2).mean()))
        psnr = 10 * np.log10(255**2 / np.mean(errors))
        table.add_row(name, f"{np.mean(sizes) / 1e3:.1f}", f"{psnr:.1f}")
    Console().print(table)


FULL_RANGE: Any = {"interpolation": Interpolation.BICUBIC, "dst_color_range": ColorRange.JPEG}


# Sixteen frames


def measure_sixteen_frames(clips: Sequence[Path], folder: Path, rounds: int) -> dict[str, Ratio]:
    """16 uniform frames as JPEG files, against the faster of two ways with ffmpeg."""
    settings = FrameFormat(num_frames=NUM_UNIFORM, short_side=SHORT_SIDE, jpeg_quality=QUALITY)
    out = folder / "sixteen" / "val"
    sides = [Side(name="vidprep", run=lambda: _extract(clips, out, settings))]
    for name, way in FFMPEG_WAYS.items():
        sides.append(Side(name=name, run=partial(_each, way, clips, folder / "theirs")))
    rates = measure(sides, rounds=rounds, clock=cpu_seconds)
    print_rates(f"{NUM_UNIFORM} uniform frames of {NUM_FRAMES} to JPEG", rates, unit="frames / CPU s")
    fastest = [max(rates[name][number] for name in FFMPEG_WAYS) for number in range(rounds)]
    return {"sixteen_frames_vs_ffmpeg": compare(rates["vidprep"], fastest)}


def _each(way: Callable[[Path, Path], int], clips: Sequence[Path], out: Path) -> int:
    return sum(way(clip, out) for clip in clips)


def _select_by_number(clip: Path, out: Path) -> int:
    """One pass that ends at the last of them."""
    numbers = "+".join(f"eq(n,{number})" for number in _uniform())
    options = _jpeg_options(f"select='{numbers}',scale=-1:{SHORT_SIDE}")
    return _ffmpeg(["-i", clip], [*options, "-vsync", "vfr", "-frames:v", str(NUM_UNIFORM), out / "%05d.jpg"], out)


def _seek_each(clip: Path, out: Path) -> int:
    """One process that opens the file once for each frame and seeks: quick where key frames are near."""
    inputs: list[str | Path] = []
    outputs: list[str | Path] = []
    for place, number in enumerate(_uniform()):
        inputs += ["-threads", "1", "-ss", f"{(number - 0.5) / 30:.4f}", "-i", clip]
        outputs += ["-map", f"{place}:v", "-frames:v", "1", *_jpeg_options(f"scale=-1:{SHORT_SIDE}")]
        outputs.append(out / f"{place:05d}.jpg")
    return _ffmpeg(inputs, outputs, out)


FFMPEG_WAYS: dict[str, Callable[[Path, Path], int]] = {
    "ffmpeg select": _select_by_number,
    "ffmpeg seek": _seek_each,
}


def _uniform() -> list[int]:
    return [int((place + 0.5) * NUM_FRAMES / NUM_UNIFORM) for place in range(NUM_UNIFORM)]


# Clips


def measure_clips(clips: Sequence[Path], folder: Path, rounds: int) -> dict[str, Ratio]:
    """Six seconds at short side 256 as H.264, against cutting first and resizing then, each with x264's defaults."""
    out = folder / "clips" / "ours"
    sides = [
        Side(name="vidprep", run=lambda: _cut(clips, out)),
        Side(name="two passes", run=partial(_each, _cut_then_resize, clips, folder / "clips" / "theirs")),
    ]
    rates = measure(sides, rounds=rounds, clock=cpu_seconds)
    print_rates(f"{END_SECONDS - START_SECONDS:g} s to H.264", rates, unit="clips / CPU s")
    for name, made in (("vidprep", out), ("two passes", folder / "clips" / "theirs")):
        sizes = [path.stat().st_size for path in made.rglob("*.mp4") if not path.name.startswith("cut_")]
        Console().print(f"{name}: {np.mean(sizes) / 1e3:.0f} kB a clip")
    return {"clips_vs_two_pass": compare(rates["vidprep"], rates["two passes"])}


START_SECONDS, END_SECONDS = 2.0, 8.0


def _cut(clips: Sequence[Path], out: Path) -> int:
    shutil.rmtree(out, ignore_errors=True)
    videos = tuple(Video(video_id=clip.name, start_seconds=START_SECONDS, end_seconds=END_SECONDS) for clip in clips)
    split = Split(dataset="folder", split="val", task="single_label", classes=(), videos=videos)
    paths = {clip.name: clip for clip in clips}
    report = cut_clips(get("folder"), split, paths, out=out, settings=ClipFormat(short_side=SHORT_SIDE))
    if report.faults:
        raise RuntimeError(f"cutting failed: {report.faults}")
    return report.num_clips


def _cut_then_resize(clip: Path, out: Path) -> int:
    """As video2dataset's ClippingSubsampler and ResolutionSubsampler follow each other."""
    out.mkdir(parents=True, exist_ok=True)
    cut, resized = out / f"cut_{clip.name}", out / clip.name
    start = ["ffmpeg", "-v", "error", "-nostdin", "-y", "-filter_threads", "1", "-threads", "1"]
    end = ["-c:v", "libx264", "-threads", "1", "-an"]
    span = ["-ss", str(START_SECONDS), "-to", str(END_SECONDS)]
    subprocess.run([*start, *span, "-i", clip, *end, cut], check=True)
    subprocess.run([*start, "-i", cut, "-vf", f"scale=-2:{SHORT_SIDE}", *end, resized], check=True)
    return 1


def _ffmpeg_version() -> str:
    done = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True, check=True)
    return done.stdout.split()[2]


Measurement = Callable[[Sequence[Path], Path, int], dict[str, Ratio]]
MEASUREMENTS: tuple[Measurement, ...] = (measure_all_frames, measure_sixteen_frames, measure_clips, measure_shards)
"""(the clips, a folder for what is made, rounds) -> ratios by name."""
