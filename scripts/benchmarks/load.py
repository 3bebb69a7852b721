"""Loading clips from shards: ours against the decoder alone, webdataset + PIL and DALI on the CPU, on the same shards.

Frame shards hold 400 clips of 8 JPEG frames of 342x256 px, video shards 48 H.264 clips of 300 frames of 340x256 px.
The ratios `frames_vs_...` are of batches of 16 clips of whole frames, as bytes; `..._crops` are of their crops
of 224x224 px, and `..._crops_float32` of these as normalised floats. `videos_vs_decoder` is of crops as bytes. What the
others do is told in `vidprep.bench`. Five rounds are about six minutes of CPU time.
"""

import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import simplejpeg

from scripts.benchmarks.decode import make_clips
from scripts.benchmarks.runner import Ratio, compare, machine_facts, print_ratios
from vidprep.bench import LoadReport, LoadTask, measure_loading
from vidprep.decode import open_video
from vidprep.shard import shard
from vidprep.splits import Split
from vidprep.types import FrameFormat, Video

__all__ = ["run"]

PACKAGES = ("av", "simplejpeg", "torch", "torchvision", "webdataset", "pillow", "nvidia-dali-cuda130", "numpy")
NUM_FRAME_CLIPS, CLIP_LENGTH, NUM_VIDEOS = 400, 8, 48
SECONDS = 1.5
"""Of CPU time, for a round."""
COMPARED = ("limit", "vidprep", "webdataset_pil", "webdataset_pil_numpy", "dali_cpu")


def run(*, rounds: int) -> tuple[dict[str, Ratio], dict[str, object]]:
    """Measure and print; the ratios and the machine."""
    workers = min(2, len(os.sched_getaffinity(0)))
    ratios: dict[str, Ratio] = {}
    frames = LoadTask(folder=str(_frame_shards()), split="train", num_frames=CLIP_LENGTH, workers=workers)
    videos = LoadTask(folder=str(_video_shards()), split="train", num_frames=CLIP_LENGTH, workers=workers)
    for suffix, task in (
        ("", replace(frames, whole_frames=True)),
        ("", videos),
        ("_crops", frames),
        ("_crops_float32", replace(frames, dtype="float32")),
        ("_float32", replace(videos, dtype="float32")),
    ):
        report = _measure(task, rounds=rounds)
        if report.content == "video":
            ratios[f"videos_vs_decoder{suffix}"] = _ratio(report, "limit")
        else:
            for other in (rate.backend for rate in report.rates if rate.backend != "vidprep"):
                ratios[f"frames_vs_{other}{suffix}"] = _ratio(report, other)
        print_ratios("loading, clips per CPU second, ours over theirs", ratios)
        sys.stdout.flush()
    return ratios, machine_facts(PACKAGES)


def _measure(task: LoadTask, *, rounds: int) -> LoadReport:
    report = measure_loading(task, rounds=rounds, seconds=SECONDS, backends=COMPARED)
    print(report.to_text() + "\n", flush=True)
    return report


def _ratio(report: LoadReport, other: str) -> Ratio:
    return compare(report.rate("vidprep").clips_per_cpu_second, report.rate(other).clips_per_cpu_second)


def _frame_shards() -> Path:
    """Shards of JPEG frames, kept for the next run."""
    folder = _folder("frame-shards")
    if (folder / "train.json").exists():
        return folder
    encoded = [data for clip in make_clips(12) for data in _jpegs(clip)]
    sources = _folder("frames")
    videos = tuple(Video(video_id=f"clip{number:04d}", labels=(number % 10,)) for number in range(NUM_FRAME_CLIPS))
    for number, video in enumerate(videos):
        clip = sources / video.video_id
        clip.mkdir(parents=True, exist_ok=True)
        for at in range(CLIP_LENGTH):
            data = encoded[(number * 37 + at * 31) % len(encoded)]
            (clip / f"{at + 1:05d}.jpg").write_bytes(data)
    paths = {video.video_id: sources / video.video_id for video in videos}
    shard(_split(videos), paths, out=folder, content="frames", delivered=FrameFormat(template="{:05d}.jpg"), workers=2)
    return folder


def _jpegs(clip: Path) -> list[bytes]:
    """Frames of a clip, two columns wider."""
    with open_video(clip) as reader:
        frames = reader.get_frames_at(range(0, reader.num_frames, 2)).data.transpose(0, 2, 3, 1)
    wide = np.concatenate([frames, frames[:, :, -2:]], axis=2)
    return [simplejpeg.encode_jpeg(np.ascontiguousarray(frame), quality=90, colorsubsampling="420") for frame in wide]


def _video_shards() -> Path:
    """Shards of H.264 videos, kept for the next run."""
    folder = _folder("video-shards")
    clips = make_clips(12)
    videos = tuple(Video(video_id=f"clip{number:04d}", labels=(number % 10,)) for number in range(NUM_VIDEOS))
    if not (folder / "train.json").exists():
        shard(_split(videos), {video.video_id: clips[at % len(clips)] for at, video in enumerate(videos)}, out=folder)
    return folder


def _split(videos: tuple[Video, ...]) -> Split:
    classes = tuple(f"class {number}" for number in range(10))
    return Split(dataset="benchmark", split="train", task="single_label", classes=classes, videos=videos)


def _folder(name: str) -> Path:
    folder = Path(tempfile.gettempdir()) / f"vidprep-benchmarks-{os.getuid()}" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
