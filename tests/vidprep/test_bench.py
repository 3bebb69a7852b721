"""What is measured, told and drawn; how fast anything is, no test says."""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.vidprep.load.folders import numbered_sources, write_shard_folder
from vidprep.bench import LoadRate, LoadReport, LoadTask, measure_loading
from vidprep.cli import app
from vidprep.errors import UsageError
from vidprep.types import Video


def report() -> LoadReport:
    def rate(backend: str, rates: tuple[float, ...], mebibytes: int) -> LoadRate:
        return LoadRate(
            backend=backend, clips_per_second=rates, clips_per_cpu_second=rates, peak_bytes=mebibytes * 2**20
        )

    return LoadReport(
        task=LoadTask(folder="shards", split="val", crop=64),
        content="frames",
        num_clips=12,
        rates=(rate("limit", (100.0, 200.0, 400.0), 300), rate("vidprep", (90.0, 180.0, 300.0), 310)),
        left_out={"dali_cpu": "is not installed; pip install 'vidprep[dali]'"},
    )


def test_shares_are_medians_of_the_rounds() -> None:
    assert report().rate("vidprep").share_of(report().rate("limit")) == 0.9
    with pytest.raises(KeyError, match="dali_cpu"):
        report().rate("dali_cpu")


def test_the_table_names_what_was_loaded_how_fast_and_what_was_left_out() -> None:
    title, _, limit, ours, left_out = report().to_text().splitlines()
    assert title == ("12 clips of 8 frames at 64 px, uint8, evaluation, from frames shards; batches of 16, 2 workers")
    assert limit.split() == ["limit", "200.0", "200.0", "1.00", "300"]
    assert ours.split() == ["vidprep", "180.0", "180.0", "0.90", "310"]
    assert left_out == "dali_cpu: left out, it is not installed; pip install 'vidprep[dali]'"
    assert json.loads(report().to_json())["rates"][1]["clips_per_second"] == [90, 180, 300]


def test_the_picture_has_a_bar_for_each_backend(tmp_path: Path) -> None:
    report().draw(tmp_path / "rates.png")
    with Image.open(tmp_path / "rates.png") as picture:
        pixels = picture.convert("RGB")
        colours = [pixels.getpixel((255, 85 + 46 * place)) for place in range(2)]
    assert colours == [(0xB0, 0xB0, 0xB0), (0x1F, 0x77, 0xB4)]


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        measure_loading(LoadTask(folder=str(tmp_path / "gone"), split="val"))
    with pytest.raises(UsageError, match=r"backends are limit, vidprep, .* got mxnet, 3 and"):
        measure_loading(LoadTask(folder=str(tmp_path), split="val"), backends=["mxnet"])
    for arguments, sentence in (
        (["bench", "load", str(tmp_path / "gone")], "no such folder"),
        (["bench", "load", str(tmp_path), "--png", str(tmp_path / "no" / "a.png")], "there is no folder"),
    ):
        result = CliRunner().invoke(app, arguments)
        assert isinstance(result.exception, UsageError)
        assert sentence in str(result.exception)


@pytest.mark.slow
@pytest.mark.parametrize("content", ["video", "frames"])
def test_every_backend_that_is_there_loads_all_clips(tmp_path: Path, content: str) -> None:
    videos = [Video(video_id=f"v{k}", labels=(k,)) for k in range(4)]
    folder = write_shard_folder(
        tmp_path / "shards",
        numbered_sources(tmp_path, videos, num_frames=8),
        content="video" if content == "video" else "frames",
    )
    task = LoadTask(folder=str(folder), split="train", resize=72, crop=64, batch_size=2)
    backends = ("limit", "vidprep", "dataloader", "webdataset_pil", "webdataset_pil_numpy")
    found = measure_loading(task, rounds=1, seconds=0.2, backends=backends)
    measured = [rate.backend for rate in found.rates]
    if content == "frames":
        assert measured == list(backends)
    else:
        assert measured == ["limit", "vidprep", "dataloader"]
        assert found.left_out == dict.fromkeys(backends[3:], "reads shards of frames")
    assert all(min(rate.clips_per_cpu_second) > 0 and rate.peak_bytes > 50 * 2**20 for rate in found.rates)


MEASURES_FOR_LONG = """
import sys
from vidprep.bench import LoadTask, measure_loading

task = LoadTask(folder=sys.argv[1], split="train", resize=72, crop=64, batch_size=2, workers=1)
measure_loading(task, rounds=1000, seconds=0.05, backends=sys.argv[2:], say=lambda line: print(line, flush=True))
"""


def descendants(pid: int) -> set[int]:
    """Processes that `pid` started, and theirs."""
    found: set[int] = set()
    with suppress(FileNotFoundError, ProcessLookupError):  # a thread or a process that ends meanwhile
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):
                children = {int(child) for child in (task / "children").read_text().split()}
                found |= children.union(*map(descendants, children))
    return found


def is_running(pid: int) -> bool:
    """Neither gone, nor ended and only waiting to be fetched."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_killed_measurement_leaves_no_process(tmp_path: Path) -> None:
    backends = ["dataloader", "webdataset_pil"]
    videos = [Video(video_id=f"v{k}", labels=(k,)) for k in range(4)]
    folder = write_shard_folder(tmp_path / "shards", numbered_sources(tmp_path, videos, num_frames=8), content="frames")
    command = [sys.executable, "-c", MEASURES_FOR_LONG, str(folder), *backends]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as measurement:
        try:
            assert measurement.stdout is not None
            while not measurement.stdout.readline().startswith("round 2"):
                assert measurement.poll() is None, "it ended before its second round"
            started = descendants(measurement.pid)
            assert len(started) >= 2 * len(backends), "each backend is a process with a worker"
        finally:
            measurement.kill()
    deadline = time.monotonic() + 20
    while (left := {pid for pid in started if is_running(pid)}) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, 9)
    assert not left
