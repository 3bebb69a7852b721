"""Every data set from its official form to the loader: each stage is the command that a user runs."""

import json
import math
import re
import shutil
import sys
import tarfile
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from tests.videos import read_number
from tests.vidprep.conftest import Make
from vidprep.cli import main
from vidprep.datasets import DATASETS, load_split
from vidprep.index import read_manifest, read_samples, sample_id
from vidprep.load import Batch, ShardDataset, make_loader
from vidprep.miniature import MAKERS, ExpectedSample, ExpectedSplit, Miniature
from vidprep.miniature.plan import Flaw

NUM_FRAMES = 6
SIDE = 64
"""Of the pictures that the loader gives, in pixels."""

REASONS: Mapping[Flaw, str] = {
    "missing": "no file found for it",
    "empty": r"is empty \(0 bytes\)|is an empty folder",
    "truncated": "its index .* is missing|is damaged|is not a JPEG",
    "gap": "missing|holes",
    "outside": "lies outside the video",
}

WITH_LENGTHS = {
    *("kinetics400", "kinetics600", "kinetics700", "mini_kinetics", "mini_kinetics_xie2018"),
    *("activitynet", "epic_kitchens", "imagenet_vid"),
}
"""Data sets whose annotation files state how long a video is."""

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process: exit status and output."""

    def run_command(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["vidprep", *map(str, arguments)])
        status = main()
        return status, capsys.readouterr().out

    return run_command


def test_the_chain_covers_every_published_data_set() -> None:
    assert set(MAKERS) == set(DATASETS) - {"toy", "toy_detection", "folder"}
    assert len(MAKERS) == 12


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_a_data_set_goes_from_its_official_form_to_the_loader(name: str, make: Make, run: Run, tmp_path: Path) -> None:
    made = make(name)
    root, shards = tmp_path / "root", tmp_path / "shards"
    status, output = run("download", name, "--from", made.archives, "--data-root", root)
    assert status == 0, output
    annotations = [argument for path in made.annotation_files for argument in ("--annotations", path)]
    status, output = run("split", name, "--data-root", root, *annotations)
    assert status == 0, output
    for split, expected in made.splits.items():
        where = ("--dataset", name, "--data-root", root, "--split", split, "--workers", 1)
        check_list(name, split, expected, root)

        status, output = run("verify", *where, "--json", tmp_path / "report.json")
        assert status == bool(expected.faults), output
        check_verified(made, expected, json.loads((tmp_path / "report.json").read_text()))

        status, output = run("extract", *where, "--fps", 0, "--short-side", SIDE)
        assert status == bool(expected.faults), output
        check_frames(expected, root / "frames" / split)

        status, output = run("shard", *where, "--out", shards)
        assert status == bool(expected.faults), output
        check_faults(expected, [(fault.video_id, fault.reason) for fault in read_manifest(shards, split).faults])
    status, output = run("verify", shards, "--workers", 1)
    assert status == 0, output
    assert output.count(": sound") == len(made.splits)
    for split, expected in made.splits.items():
        check_samples(expected, shards, split)
        if expected.samples[0].labels or expected.samples[0].boxes:
            check_batches(expected, shards, split)


def check_list(name: str, split: str, expected: ExpectedSplit, root: Path) -> None:
    """The list holds what was published, with the right labels: sound videos and others."""
    videos = {sample_id(video): video for video in load_split(name, split, data_root=root).videos}
    assert set(videos) == {sample.name for sample in expected.samples} | {fault.name for fault in expected.faults}
    for sample in expected.samples:
        video = videos[sample.name]
        assert (video.video_id, video.labels) == (sample.video_id, sample.labels)
        assert (video.start_seconds, video.end_seconds) == (sample.start_seconds, sample.end_seconds)


def check_verified(made: Miniature, expected: ExpectedSplit, report: Mapping[str, Any]) -> None:
    """Each faulty video is named with its reason: of segments their video, and what does not lie within it."""
    reasons = {fault["video_id"]: fault["reason"] for fault in report["faults"]}
    doubts = {doubt["video_id"]: doubt["reason"] for doubt in report["doubts"]}
    for fault in expected.faults:
        if fault.flaw == "outside":
            assert re.search("the segment begins at .* the video ends at", doubts.pop(fault.name))
            continue
        name = fault.name.rpartition("_")[0] if DATASETS[made.dataset].task == "verb_noun" else fault.name
        assert re.search(REASONS[fault.flaw], reasons.pop(name))
    assert not reasons
    # What is only shortened is told, too, though it becomes a sample.
    assert set(doubts) <= {made.traps.get("segment that ends after the video")}
    assert all(re.search("the segment ends at", reason) for reason in doubts.values())
    # Where annotations state lengths, all sound videos were compared, and those that differ on purpose are named.
    sound = {sample.video_id for sample in expected.samples}
    odd = {made.traps.get("clip shorter than its ten seconds"), made.traps.get("duration that the file does not have")}
    assert {length["video_id"] for length in report["length_differences"]} == odd & sound
    assert report["num_lengths"] == (len(sound) if made.dataset in WITH_LENGTHS else 0)


def check_faults(expected: ExpectedSplit, faults: Sequence[tuple[str, str]]) -> None:
    assert {video_id for video_id, _ in faults} == {fault.name for fault in expected.faults}
    reasons = dict(faults)
    for fault in expected.faults:
        assert re.search(REASONS[fault.flaw], reasons[fault.name]), reasons[fault.name]


def check_frames(expected: ExpectedSplit, folder: Path) -> None:
    """Of each sample all frames were extracted, and no others."""
    for sample in expected.samples:
        paths = sorted(path for path in (folder / sample.name).iterdir() if path.suffix.lower() == ".jpg")
        paths = paths or sorted((folder / sample.name).glob("*.JPEG"))
        assert len(paths) == sample.num_frames, sample.name
        shown = [read_number(np.asarray(Image.open(path))) for path in (paths[0], paths[-1])]
        assert shown == [sample.first_number, sample.last_number], sample.name


def check_samples(expected: ExpectedSplit, shards: Path, split: str) -> None:
    """The table of samples has the labels and lengths, and the shards have the boxes, as they were published."""
    rows = read_samples(shards, split)
    samples = {sample.name: sample for sample in expected.samples}
    assert [sample_id(row) for row in rows] == list(samples)
    for row in rows:
        sample = samples[sample_id(row)]
        assert (row.video_id, row.labels, row.num_frames) == (sample.video_id, sample.labels, sample.num_frames)
        if not sample.boxes:
            continue
        with tarfile.open(shards / row.shard) as shard:
            file = shard.extractfile(f"{row.key}.json")
            assert file is not None
            facts = json.load(file)
        assert [[box["xyxy"] for box in frame] for frame in facts["boxes"]] == [
            [list(box.xyxy) for box in frame.boxes] for frame in sample.boxes
        ]
        for name, key in {
            "label": "label",
            "track_id": "track_id",
            "is_occluded": "occluded",
            "is_generated": "generated",
        }.items():
            assert [[box[key] for box in frame] for frame in facts["boxes"]] == [
                [getattr(box, name) for box in frame.boxes] for frame in sample.boxes
            ]


def check_batches(expected: ExpectedSplit, shards: Path, split: str) -> None:
    """A loader gives each sample once, with its labels, and frames of its own in their order."""
    dataset = ShardDataset(shards, split, num_frames=NUM_FRAMES, resize=SIDE, crop=SIDE, num_crops=3)
    samples = {sample.name: sample for sample in expected.samples}
    sizes = {sample_id(row): (row.width, row.height) for row in read_samples(shards, split)}
    seen = []
    for batch in make_loader(dataset, batch_size=2, workers=0):
        for index, name in enumerate(batch.video_id):
            sample = samples[name]
            seen.append(name)
            assert labels_of(batch, index) == expected_labels(sample)
            shown = [read_number(picture) for picture in whole_pictures(batch.frames[index], dataset, *sizes[name])]
            assert sample.first_number <= shown[0] < shown[-1] <= sample.last_number
            assert shown == sorted(shown)
            check_targets(sample, batch, index, shown)
    assert seen == list(samples)


def labels_of(batch: Batch, index: int) -> tuple[int, ...]:
    """Class indices in whichever form the batch has them."""
    labels = batch.labels[index]
    if labels.dtype == torch.float32:
        return tuple(int(label) for label in labels.nonzero().flatten())
    return tuple(int(label) for label in labels.flatten())


def expected_labels(sample: ExpectedSample) -> tuple[int, ...]:
    if sample.boxes:
        return tuple(sorted({box.label for frame in sample.boxes for box in frame.boxes}))
    return tuple(sorted(sample.labels)) if not sample.segment_id else sample.labels


def check_targets(sample: ExpectedSample, batch: Batch, index: int, shown: Sequence[int]) -> None:
    """The tracks of each frame are those that were drawn into it, as far as a crop shows them."""
    if not sample.boxes:
        assert batch.targets is None
        return
    assert batch.targets is not None
    for position, number in enumerate(shown):
        boxes = sample.boxes[number - sample.first_number].boxes
        frames = [view[position] for view in batch.targets[index]]
        tracks = {int(track) for frame in frames for track in frame.track_ids}
        assert tracks == {box.track_id for box in boxes}


def whole_pictures(crops: torch.Tensor, dataset: ShardDataset, width: int, height: int) -> list[NDArray[np.uint8]]:
    """The frames (h, w, c) of three crops (3, t, c, side, side) along the longer side, put together again."""
    settings = dataset.make.settings
    mean, std = (torch.tensor(values)[:, None, None] for values in (settings.mean, settings.std))
    pictures = ((crops * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    missing = round(SIDE * max(width, height) / min(width, height)) - SIDE
    along = -1 if width >= height else -2
    last = pictures[2].narrow(along, SIDE - missing, missing)
    return [picture.numpy().transpose(1, 2, 0) for picture in torch.cat([pictures[0], last], dim=along)]


def test_segments_of_activitynet_are_cut_by_seconds(make: Make, run: Run, tmp_path: Path) -> None:
    made = make("activitynet")
    root, shards = tmp_path / "root", tmp_path / "shards"
    assert run("download", "activitynet", "--from", made.archives, "--data-root", root)[0] == 0
    annotations = made.annotation_files[0]
    status, output = run("split", "activitynet", "--data-root", root, "--annotations", annotations, "--unit", "segment")
    assert status == 0, output
    assert f"{made.traps['segment whose start is not before its end']}: segment 2 (9.0 to 9.0 s of 15.5 s)" in output
    where = ("--dataset", "activitynet", "--data-root", root, "--split", "train", "--workers", 1)
    run("shard", *where, "--out", shards, "--content", "frames", "--fps", 0, "--short-side", SIDE)
    whole = {sample.video_id: sample for sample in made.splits["train"].samples}
    database, classes = json.loads(annotations.read_text())["database"], read_manifest(shards, "train").classes
    expected = []
    for video_id, sample in whole.items():
        for annotation in database[video_id]["annotations"]:
            # ten frames a second, as many as the file has
            first, end = (math.ceil(round(10 * seconds, 6)) for seconds in annotation["segment"])
            end = min(end, sample.num_frames)
            if first < end:
                numbers = sample.first_number + first, sample.first_number + end - 1
                expected.append((video_id, (classes.index(annotation["label"]),), *numbers))
    assert len(expected) == 5
    dataset = ShardDataset(shards, "train", num_frames=NUM_FRAMES, resize=SIDE, crop=SIDE, num_crops=3)
    rows = read_samples(shards, "train")
    for index, (row, (video_id, labels, first, last)) in enumerate(zip(rows, expected, strict=True)):
        assert (row.video_id, row.labels, row.num_frames) == (video_id, labels, last - first + 1)
        shown = [
            read_number(picture) for picture in whole_pictures(dataset[index].frames, dataset, row.width, row.height)
        ]
        assert first <= shown[0] < shown[-1] <= last


def test_kinetics400_comes_the_same_from_a_server_as_from_a_folder(make: Make, run: Run, tmp_path: Path) -> None:
    made = make("kinetics400")
    site = tmp_path / "site" / "kinetics" / "400"
    shutil.copytree(made.archives, site)
    shutil.copytree(made.folder / "annotations", site / "annotations")
    handler = partial(QuietHandler, directory=str(tmp_path / "site"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            mirror = f"http://127.0.0.1:{server.server_port}"
            status, output = run("download", "kinetics400", "--data-root", tmp_path / "fetched", "--mirror", mirror)
        finally:
            server.shutdown()
            thread.join()
    assert status == 0, output
    assert run("download", "kinetics400", "--from", made.archives, "--data-root", tmp_path / "taken")[0] == 0
    fetched, taken = (
        {path.relative_to(tmp_path / root): path.read_bytes() for path in (tmp_path / root).rglob("*.mp4")}
        for root in ("fetched", "taken")
    )
    assert fetched == taken
    assert len(fetched) > len(made.splits["train"].samples)


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""
