"""Does memory stay flat? Loads clips of changing resolutions for minutes, and records the memory of the process.

    python -m scripts.benchmarks.soak --minutes 30 --png soak.png --csv soak.csv

Epoch after epoch, videos and frames of seven sizes are loaded as batches of three sizes, floats and bytes, some of them
broken off in the middle. Recorded are the resident memory of the process; the part that is its own: without the pages
of files (code and libraries) that it shares with the system; and of that, what C code took from glibc and has not given
back: the rest is Python's objects and what `malloc` keeps for later, in pieces. The slopes over the last two
thirds of the time are printed: the last 20 of 30 minutes.
"""

import argparse
import ctypes
import tempfile
import time
from itertools import cycle, product
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vidprep.load import ShardDataset, make_loader
from vidprep.miniature.videos import write_numbered_video
from vidprep.shard import shard
from vidprep.splits import Split
from vidprep.types import Video

SIZES = ((128, 96), (160, 120), (240, 180), (320, 240), (342, 256), (240, 320), (480, 270))
CROPS = (64, 112, 160)
SAMPLE_SECONDS = 1.0


def main() -> None:
    """Load, record, draw."""
    parser = argparse.ArgumentParser(prog="soak", description="Watch the memory of the loaders.")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--png", type=Path, required=True)
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        series, num_clips = load_for(60 * arguments.minutes, _shards(Path(folder)))
    if arguments.csv is not None:
        rows = "".join(",".join(f"{value:.1f}" for value in row) + "\n" for row in series)
        arguments.csv.write_text(f"seconds,in_use_mib,anonymous_mib,rss_mib\n{rows}", encoding="utf-8")
    seconds, in_use, own, _ = np.array(series).T
    is_late = seconds >= seconds[-1] / 3
    slopes = [float(np.polyfit(seconds[is_late] / 60, kind[is_late], 1)[0]) for kind in (own, in_use)]
    peaks = [part.max() for part in np.array_split(own, 3)]
    summary = (
        f"{num_clips} clips in {seconds[-1] / 60:.1f} min; last two thirds: own memory {slopes[0]:+.2f}, in use "
        f"{slopes[1]:+.2f} MiB a minute; peaks of the thirds {peaks[0]:.0f}, {peaks[1]:.0f} and {peaks[2]:.0f} MiB"
    )
    draw(series, arguments.png, title=summary)
    print(summary)


Series = list[tuple[float, float, float, float]]
"""(seconds, MiB in use, MiB of its own, resident MiB) every second."""


def load_for(seconds: float, folders: dict[str, Path]) -> tuple[Series, int]:
    """The memory over time, and the number of clips."""
    series: Series = []
    num_clips, started = 0, time.monotonic()
    kinds = cycle(product(folders.values(), CROPS, ("float32", "uint8"), (False, True)))
    for number, (folder, crop, dtype, train) in enumerate(kinds):
        dataset = ShardDataset(
            folder,
            "train",
            num_frames=8,
            resize=crop + 16,
            crop=crop,
            dtype="uint8" if dtype == "uint8" else "float32",
            train=train,
            seed=number,
        )
        loader = make_loader(dataset, batch_size=4, shuffle=True, workers=2)
        loader.set_epoch(number)
        for step, batch in enumerate(loader):
            num_clips += len(batch.video_id)
            now = time.monotonic() - started
            if not series or now - series[-1][0] >= SAMPLE_SECONDS:
                series.append((now, *_mebibytes()))
            if (number % 5 == 4 and step == 2) or now >= seconds:
                break
        if time.monotonic() - started >= seconds:
            return series, num_clips
    raise RuntimeError("the kinds of loaders are gone through in circles")


def draw(series: Series, path: Path, *, title: str) -> None:
    """The memory over time as a PNG."""
    width, height, left, top = 900, 420, 80, 60
    picture = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size=14)
    highest = max(resident for *_, resident in series) * 1.1
    longest = max(series[-1][0], 1.0)

    def place(seconds: float, mebibytes: float) -> tuple[float, float]:
        return left + (width - left - 30) * seconds / longest, height - 50 - (height - top - 50) * mebibytes / highest

    pen.text((20, 16), title, fill="black", font=font)
    for share in range(5):
        mebibytes = highest * share / 4
        y = place(0, mebibytes)[1]
        pen.line((left, y, width - 30, y), fill="#dddddd")
        pen.text((14, y - 8), f"{mebibytes:.0f} MiB", fill="#555555", font=font)
        x = place(longest * share / 4, 0)[0]
        pen.text((x - 20, height - 40), f"{longest * share / 4 / 60:.1f} min", fill="#555555", font=font)
    for column, colour in ((3, "#b0b0b0"), (2, "#1f77b4"), (1, "#2ca02c")):
        pen.line([place(row[0], row[column]) for row in series], fill=colour, width=2)
    explanation = "blue: its own (anonymous) memory; grey: with pages of files (RSS); green: in use, of malloc's"
    pen.text((20, 36), explanation, fill="#555555", font=font)
    picture.save(path, format="PNG")


def _shards(root: Path) -> dict[str, Path]:
    """One folder of shards of videos, and one of frames, of all sizes."""
    videos, paths = [], {}
    for number in range(3 * len(SIZES)):
        width, height = SIZES[number % len(SIZES)]
        name = f"v{number:02d}"
        videos.append(Video(video_id=name, labels=(number % 4,)))
        paths[name] = write_numbered_video(root / f"{name}.mp4", num_frames=24, width=width, height=height)
    split = Split(
        dataset="soak",
        split="train",
        task="single_label",
        classes=tuple(f"class {number}" for number in range(4)),
        videos=tuple(videos),
    )
    for content in ("video", "frames"):
        shard(split, paths, out=root / content, content="video" if content == "video" else "frames")
    return {content: root / content for content in ("video", "frames")}


class _Mallinfo2(ctypes.Structure):
    """Of all arenas, in bytes; see mallinfo(3)."""

    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in _names.split()]


_libc = ctypes.CDLL("libc.so.6")
_libc.mallinfo2.restype = _Mallinfo2


def _mebibytes() -> tuple[float, float, float]:
    """(in use, anonymous, resident)."""
    lines = (line.split() for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    kibibytes = {name: int(values[0]) for name, *values in lines if name in ("RssAnon:", "VmRSS:")}
    malloc = _libc.mallinfo2()
    in_use = (malloc.uordblks + malloc.hblkhd) / 2**20
    return in_use, kibibytes["RssAnon:"] / 1024, kibibytes["VmRSS:"] / 1024


if __name__ == "__main__":
    main()
