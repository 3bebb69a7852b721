"""How long planning and resuming take for a very large split, and how much memory; the files are tiny.

What a run does with each video is replaced by next to nothing, and done in the process of the run: decoding is measured
elsewhere, and would take hours here.

    python -m scripts.benchmarks.planning --count 100000 --folder /tmp/planning

Each stage runs in a process of its own, whose processor time and largest resident size are told, too; with --json the
figures are written to a file.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.videos import write_numbered_video
from vidprep import extract as extract_module
from vidprep import shard as shard_module
from vidprep.datasets import folder as folder_dataset
from vidprep.datasets import get, load_split, locate
from vidprep.extract import extract
from vidprep.ledger import LedgerReport, ledger_paths, read_ledger
from vidprep.probe import VideoFacts
from vidprep.shard import shard
from vidprep.splits import Split
from vidprep.tasks import ArrayTask
from vidprep.types import FrameFormat

FILES_PER_FOLDER = 1000
PTS_SECONDS = [round(number / 30, 4) for number in range(300)]
SETTINGS = FrameFormat(fps=1.0)
STAGES = (
    ("list", "read the list, find the files"),
    ("plan shards", "plan all shards, write the first (--task 1/N)"),
    ("write shards", "write all shards, without decoding"),
    ("resume shards", "the finished command again"),
    ("mend shards", "one shard is missing"),
    ("ledger of shards", "vidprep ledger"),
    ("extract", "a folder and its facts for each, without decoding"),
    ("resume extract", "the finished command again"),
    ("mend extract", "one folder is missing"),
)


def make_files(root: Path, count: int) -> None:
    """`count` copies of one video of two frames."""
    root.mkdir(parents=True)
    content = write_numbered_video(root / "a.mp4", num_frames=2, width=32, height=32).read_bytes()
    (root / "a.mp4").unlink()
    for number in range(count):
        if number % FILES_PER_FOLDER == 0:
            (root / f"class_{number // FILES_PER_FOLDER:04d}").mkdir()
        (root / f"class_{number // FILES_PER_FOLDER:04d}" / f"{number:07d}.mp4").write_bytes(content)


def facts_of(data: bytes) -> VideoFacts:
    """Instead of decoding."""
    return VideoFacts(
        num_frames=2,
        fps=10.0,
        width=32,
        height=32,
        duration_seconds=0.2,
        codec="h264",
        pixel_format="yuv420p",
        rotation=0,
        is_variable_rate=False,
        num_keyframes=1,
        num_bytes=len(data),
    )


def make_folders(group: Any, *, out: Path, **_: Any) -> list[dict[str, Any]]:
    """Instead of extracting frames: a folder with one small file, and the facts of ten seconds at 30 fps."""
    [video] = group.videos
    (out / video.video_id).mkdir(parents=True)
    (out / video.video_id / "image_00001.jpg").write_bytes(b"image")
    facts = {
        "folder": video.video_id,
        "num_frames": 300,
        "fps": 30.0,
        "width": 32,
        "height": 32,
        "pts_seconds": PTS_SECONDS,
        "source_num_frames": 300,
        "source_fps": 30.0,
        "source_width": 32,
        "source_height": 32,
        "source_duration_seconds": 10.0,
    }
    return [{"folder": video.video_id, "facts": facts, "seconds": 0.0}]


def do_stage(stage: str, base: Path) -> dict[str, Any]:
    """One stage; its seconds and the largest resident size of this process."""
    shard_module._open_only = facts_of
    extract_module._extract_group = make_folders
    shards, frames = base / "shards", base / "frames"
    started, started_cpu = time.perf_counter(), time.process_time()
    if stage == "ledger of shards":
        [paths] = ledger_paths(shards).values()
        report = LedgerReport(split="all")
        for entry in read_ledger(paths):
            report.count(entry)
        done = report.states["done"]
    else:
        split, paths_of = _load(base / "videos")
        done = len(paths_of)
    if stage == "plan shards":
        options: dict[str, Any] = {"task": ArrayTask(number=1, count=-(-len(split.videos) // 256))}
        done = shard(split, paths_of, out=base / "first", check="open", **options).num_new_shards
    elif stage == "mend shards":
        (shards / "all-000000.tar").unlink()
    if stage.endswith("shards") and stage not in ("plan shards", "ledger of shards"):
        done = shard(split, paths_of, out=shards, check="open").num_new_shards
    elif stage == "mend extract":
        shutil.rmtree(frames / "class_0000" / "0000000.mp4")
    if stage.endswith("extract"):
        done = extract(split, paths_of, out=frames, settings=SETTINGS).num_new
    seconds = time.perf_counter() - started
    return {
        "stage": stage,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(time.process_time() - started_cpu, 2),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "done": done,
    }


def _load(root: Path) -> tuple[Split, dict[str, Path]]:
    split = load_split("folder", folder_dataset.ALL, data_root=root)
    return split, locate(get("folder"), split, root)


def main() -> None:
    """Run the stages one after the other and print a line for each."""
    parser = argparse.ArgumentParser(prog="scripts.benchmarks.planning", description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="videos (100000)")
    parser.add_argument("--folder", type=Path, help="where to work; kept and used again (default: a temporary one)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage is not None:
        print(json.dumps(do_stage(arguments.stage, arguments.folder)))
        return
    with tempfile.TemporaryDirectory(prefix="planning-") as temporary:
        base = arguments.folder or Path(temporary)
        if not (base / "videos").exists():
            started = time.perf_counter()
            make_files(base / "videos", arguments.count)
            print(f"{arguments.count} files made in {time.perf_counter() - started:.0f} s")
        found = []
        for stage, what in STAGES:
            command = [sys.executable, "-m", "scripts.benchmarks.planning", "--stage", stage, "--folder", str(base)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
            line = found[-1]
            print(
                f"{stage:<17}{line['seconds']:>9.1f} s {line['cpu_seconds']:>7.1f} s {line['peak_mb']:>6.0f} MB"
                f"  {line['done']:>7}  {what}",
                flush=True,
            )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"count": arguments.count, "stages": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
